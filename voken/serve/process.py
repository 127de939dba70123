"""A server as a process: opens a collection, listens, and ends cleanly when it is stopped.

After SIGTERM or Ctrl-C the server accepts no more requests, answers those that it has accepted, and returns. Requests
that are not answered within the grace time are refused. A second Ctrl-C ends the server at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import HANDLED_SIGNALS

from voken.api import Collection
from voken.errors import ConfigError
from voken.serve.app import create_app
from voken.serve.service import Service
from voken.serve.settings import ServeSettings

_BACKLOG = 2048
_FILES_PER_CONNECTION = 2
_OTHER_FILES = 512
_KEEP_ALIVE_SECONDS = 30
_HEAD_SECONDS = 30.0
_HEAD_BYTES = 65_536
_WRITE_SECONDS = 30.0
"""A client that takes nothing of its response for so long is disconnected."""


def serve(
    folder: Path,
    settings: ServeSettings,
    *,
    model: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    open_page: bool = False,
    report: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the collection in `folder` until the process is stopped.

    When the server listens, `report` is called with a line that names the address. `warn` is called first if other
    machines can reach it.

    `open_page` opens the page in a browser. Raises `ConfigError` if the address is not available, and what
    `Collection.open` raises.
    """
    _allow_files(settings.max_connections)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a broken form is reported to the client
    if not settings.is_local:
        warn(
            f"Everyone who can reach {settings.host} will see all pictures of {folder}: the server has no login and no "
            "encryption. Use 127.0.0.1 behind a proxy that has both."
        )
    # the address first: if it is not free, that shows before the model is loaded
    with (
        _listener(settings) as listener,
        Collection.open(
            folder,
            model=model,
            device=device,
            threads=threads,
            max_queue=settings.max_queue,
            strip_location=settings.strip_location,
        ) as collection,
    ):
        if len(collection):
            collection.search("a picture", 1)  # the first search is slow
        address = _address(settings.host, listener)

        def listening() -> None:
            report(f"Serving {len(collection):,} pictures of {folder} at {address} (Ctrl-C stops)")
            if open_page:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        Server(create_app(collection, settings), listening).run(sockets=[listener])


def _allow_files(connections: int) -> None:
    """Let this process open the files of so many connections, if the system allows it: it often stops at 1,024."""
    try:
        import resource
    except ImportError:  # on Windows there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES_PER_CONNECTION * connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _listener(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{settings.host}:{settings.port}: cannot listen there ({reason}). Give another --port (0 for any free "
            "port) or --host."
        ) from None


def _address(host: str, listener: socket.socket) -> str:
    """The URL of the server for a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listener.getsockname()[1]}/"


class Connection(H11Protocol):
    """A connection that closes if a request's head does not arrive in time, or if the client does not read its
    response; uvicorn's would wait for ever. If there are too many, the oldest of those without the token is closed:
    whoever opens connections and does nothing with them loses them first."""

    _began = 0.0
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _unsent = 0
    """The bytes that the client had not taken when it was last looked at."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._began = self.loop.time()
        self._set_timer()
        self._watch_writing()
        service: Service = self.config.app.state.service  # type: ignore[union-attr] # the application of `Server`
        connections = [other for other in cast(set[Connection], self.connections) if not other.transport.is_closing()]
        if len(connections) > service.settings.max_connections:
            others = [other for other in connections if other is not self and not other.has_token(service)]
            if others:
                min(others, key=lambda other: other._began).transport.abort()

    def has_token(self, service: Service) -> bool:
        """Whether a request with the server's token is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        headers = dict(self.scope["headers"])
        return service.settings.has_token(headers.get(b"authorization", b"").decode("latin-1"))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._cancel_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`: the client has taken most of what was waiting."""
        super().resume_writing()
        self._unsent = 0

    def _watch_writing(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if 0 < self._unsent <= unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._write_timer = self.loop.call_later(_WRITE_SECONDS, self._watch_writing)

    def handle_events(self) -> None:
        """Handle arrived bytes, and after a response the next request if it has already arrived."""
        super().handle_events()
        self._set_timer()

    def _set_timer(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._cancel_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self._time_out)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """A server for an application of `create_app`. It calls `listening` when it listens."""

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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await super().startup(sockets)
        if self.started:
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._service.closing = True
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, but a handled signal is not raised again, because the caller must close the collection."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
