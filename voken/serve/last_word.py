"""What is answered where nothing else has been: to an unforeseen error, and by a server that stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voken.serve.refusals import RefusedError, failure


class LastWord:
    """Around an ASGI application. `closing()`: whether the server was told to stop, and may cancel what is in hand."""

    def __init__(self, app: ASGIApp, closing: Callable[[], bool]) -> None:
        self._app = app
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._closing():
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, noted)
            return
        except ClientDisconnect:
            return  # while it was still sending
        except asyncio.CancelledError:
            if not self._closing():
                raise
            refusal = RefusedError(503, "The server is closing. Ask again in a moment.", {"Retry-After": "1"})
        except Exception as error:
            refusal = failure(error)
        if not started:
            await refusal.answer()(scope, receive, noted)
