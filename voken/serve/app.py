"""The HTTP interface of a collection: an ASGI application. It owns neither the collection nor the process.

FastAPI routes requests and writes the OpenAPI document, for which Starlette alone would need code here. FastAPI costs
23 µs per request, while a search takes 14 ms. `voken.serve.requests` reads and checks bodies, because FastAPI would
read a body before it checks the token, and would answer 400 if `BodyLimits` stops it with 413 or 408.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from voken.api import Collection
from voken.errors import VokenError
from voken.serve.middleware import BodyLimits, FallbackErrorMiddleware, MetricsMiddleware, OriginPolicy
from voken.serve.responses import RequestError
from voken.serve.routes import add_routes
from voken.serve.service import Service
from voken.serve.settings import ServeSettings


def create_app(collection: Collection, settings: ServeSettings | None = None) -> FastAPI:
    """Create an application that serves `collection`, which must stay open as long as the application runs.

    `app.state.service` is its `Service`. Any number of applications and processes may serve one collection.
    """
    service = Service(collection, settings or ServeSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="voken",
        summary="Pictures found by words.",
        version=version("voken-search"),
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    for kind in (RequestError, VokenError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _error_response)
    add_routes(app)
    # the innermost layer first
    app.add_middleware(
        BodyLimits,
        settings=service.settings,
        lower_limits={"/search": service.parser.max_bytes, "/export": service.parser.max_export_bytes},
    )
    app.add_middleware(FallbackErrorMiddleware, closing=lambda: service.closing)
    app.add_middleware(OriginPolicy, settings=service.settings)
    app.add_middleware(MetricsMiddleware, metrics=service.metrics)
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, VokenError):
        error = RequestError.of(error, request.app.state.service.throughput.retry_after())
    elif isinstance(error, RequestValidationError):
        reasons = "; ".join(f"{item['loc'][-1]}: {item['msg'][0].lower()}{item['msg'][1:]}" for item in error.errors())
        error = RequestError(422, f"{reasons}. Correct that and try again.")
    elif isinstance(error, HTTPException):
        error = _framework_error(request, error)
    assert isinstance(error, RequestError)
    return error.response()


def _framework_error(request: Request, error: HTTPException) -> RequestError:
    headers = dict(error.headers or {})
    if error.status_code == 405:
        # each route has one method, and several routes may have the same address
        matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = sorted({method for route in matching for method in getattr(route, "methods", None) or ()}) or ["GET"]
        headers["Allow"] = ", ".join(methods)
        return RequestError(
            405, f"{request.method} is not possible at this address. Use {' or '.join(methods)}.", headers
        )
    if error.status_code == 404:
        return RequestError(404, "There is no such address. GET /openapi.json lists the addresses.", headers)
    return RequestError(error.status_code, str(error.detail), headers)
