"""How a server says no: a status, one sentence that names the remedy, and headers where the status asks for some.

What voken raises on purpose is told as it says it, unless it is about the server's own disk: then the log has it.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from voken.errors import BusyError, ConfigError, MissingExtraError, PictureError, VokenError
from voken.serve.json_answer import JsonAnswer

_log = logging.getLogger("voken.serve")

CLIENT_GONE = 499
"""Nobody reads the answer: the client closed the connection."""


class RefusedError(Exception):
    """A request that is not answered as it asked."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = dict(headers or {})

    def answer(self) -> Response:
        """As it is sent."""
        return JsonAnswer({"error": self.sentence}, self.status, self.headers)


def refusal_of(error: VokenError, retry_after: int) -> RefusedError:
    """What a client is told of an error that it, or the load, has caused; else 500, and the log has the rest."""
    if isinstance(error, BusyError):
        return RefusedError(503, one_line(error), {"Retry-After": str(retry_after)})
    if isinstance(error, PictureError):
        return RefusedError(415, f"This is no picture that can be used: {error.reason}. Send another.")
    if isinstance(error, ConfigError):
        return RefusedError(422, one_line(error))
    if isinstance(error, MissingExtraError):
        return RefusedError(501, f"This server cannot read pictures. {one_line(error)}")
    return failure(error)


def failure(error: BaseException) -> RefusedError:
    """500 for what is the server's own trouble. It is logged, once, under the number that the client is given."""
    number = secrets.token_hex(4)
    _log.error("request %s failed", number, exc_info=error)
    sentence = f"The server failed. Its log says more about request {number}; ask again later."
    return RefusedError(500, sentence, {"X-Request-Id": number})


def one_line(error: BaseException) -> str:
    """Its message in one line."""
    return " ".join(str(error).split())


def answer_errors(app: FastAPI, retry_after: Callable[[], int]) -> None:
    """Have `app` answer what is raised in it. `retry_after()` is seconds after which a full queue is worth a try."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return error.answer()

    async def raised(request: Request, error: Exception) -> Response:
        assert isinstance(error, VokenError)
        return refusal_of(error, retry_after()).answer()

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            allowed = methods_of(app, request)
            headers["Allow"] = ", ".join(allowed)
            sentence = f"{request.method} is not possible here. Use {' or '.join(allowed)}."
        elif error.status_code == 404:
            sentence = "There is nothing here. GET /openapi.json lists what there is."
        else:
            sentence = str(error.detail)
        return RefusedError(error.status_code, sentence, headers).answer()

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(VokenError, raised)
    app.add_exception_handler(HTTPException, framework)


def methods_of(app: FastAPI, request: Request) -> list[str]:
    """What may be done at the address of `request`: one route is a method, and an address may have several."""
    found: set[str] = set()
    for route in app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found) or ["GET"]
