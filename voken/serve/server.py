"""uvicorn with what it lacks here: an end that raises no signal again, and no patience with silent clients."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from voken.serve.service import Service

_BACKLOG = 2048
_KEEP_ALIVE_SECONDS = 30
_HEAD_SECONDS = 30.0
_HEAD_BYTES = 65_536


class Connection(H11Protocol):
    """Closed where a request's head has not come in time. uvicorn itself waits for ever, once a byte has come."""

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """From asyncio."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """From asyncio."""
        super().connection_lost(exc)
        self._stop_watching()

    def handle_events(self) -> None:
        """What has come, and after an answer what had come before."""
        super().handle_events()
        self._watch()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._due is None:
            self._due = self.loop.call_later(_HEAD_SECONDS, self._late)

    def _stop_watching(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _late(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves `app`, made by `create_app`. `listening` is called once it does."""

    def __init__(self, app: FastAPI, listening: Callable[[], None]) -> None:
        self._service: Service = app.state.service
        self._listening = listening
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(self._service.settings.grace_seconds),
                h11_max_incomplete_event_size=_HEAD_BYTES,
            )
        )

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """From uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """From uvicorn."""
        self._service.closing = True
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but that a signal which was obeyed is not raised again: the caller has things to close."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
