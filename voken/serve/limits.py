"""How much of a request's body is read, and for how long: asked of what arrives, not of what headers promise.

A body that is too long is read on for a while, to no purpose but that its sender finds the answer: one that is still
sending when the connection closes may never see it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voken.serve.refusals import RefusedError

_READ_ON = 4
"""As many times the limit."""
_CLOSE = {"Connection": "close"}


class BodyLimits:
    """Around an ASGI application: `max_body` bytes and `seconds`, 413 and 408 beyond them.

    `less` are paths where fewer bytes are taken.
    """

    def __init__(self, app: ASGIApp, max_body: int, seconds: float, less: Mapping[str, int]) -> None:
        self._app = app
        self._max_body = max_body
        self._seconds = seconds
        self._less = less

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = min(self._max_body, self._less.get(scope["path"], self._max_body))
        body = _Body(receive, most, self._seconds)
        headers = Headers(scope=scope)
        promised = headers.get("content-length", "")
        if promised.isdecimal() and (len(promised) > 18 or int(promised) > most):
            try:
                # who waits for leave to send has sent nothing
                await body.refuse(read_on="expect" not in headers)
            except RefusedError as refusal:
                await refusal.answer()(scope, receive, send)
            return
        await self._app(scope, body.receive, send)


class _Body:
    def __init__(self, receive: Receive, max_body: int, seconds: float) -> None:
        self._receive = receive
        self._max_body = max_body
        self._seconds = seconds
        self._read = 0
        self._complete = False
        self._due: float | None = None

    async def receive(self) -> Message:
        """The next message. Raises `RefusedError`."""
        message = await self._next()
        if self._read > self._max_body:
            await self.refuse(read_on=True)
        return message

    async def refuse(self, *, read_on: bool) -> None:
        """Raises `RefusedError` for a body that is too long, having read some more of it."""
        while read_on and not self._complete and self._read < _READ_ON * self._max_body:
            await self._next()
        raise RefusedError(
            413,
            f"The request's body is over the limit of {self._max_body:,} bytes. Send less at once.",
            None if self._complete else _CLOSE,
        )

    async def _next(self) -> Message:
        if self._complete:
            return await self._receive()  # until the client goes
        if self._due is None:
            self._due = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._due):
                message = await self._receive()
        except TimeoutError:
            raise RefusedError(
                408, f"The request's body did not come within {self._seconds:g} seconds. Send less at once.", _CLOSE
            ) from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True
        return message
