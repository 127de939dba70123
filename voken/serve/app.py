"""The HTTP interface of a collection: an ASGI application. It owns neither the collection nor the process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from voken.api import Collection
from voken.errors import VokenError
from voken.serve import answers
from voken.serve.guards import Guards
from voken.serve.json_answer import JsonAnswer
from voken.serve.last_word import LastWord
from voken.serve.limits import BodyLimits
from voken.serve.metrics import CONTENT_TYPE, Measured
from voken.serve.pictures import add_pictures
from voken.serve.refusals import RefusedError, answer_errors, one_line
from voken.serve.searches import add_searches
from voken.serve.service import Service
from voken.serve.settings import ServeSettings

STATIC = Path(__file__).parent / "static"


def create_app(collection: Collection, settings: ServeSettings | None = None) -> FastAPI:
    """An application that serves `collection`, which must stay open as long as it runs.

    `app.state.service` is its `Service`. Any number of applications may serve one collection, in one process or many.
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
        docs_url=None,  # they load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    answer_errors(app, service.pace.retry_after)
    app.add_exception_handler(RequestValidationError, _invalid)
    _add_facts(app, service)
    add_searches(app, service)
    add_pictures(app, service)
    _add_page(app)
    _add_gauges(service)
    # the one that is added last comes first
    app.add_middleware(
        BodyLimits,
        max_body=service.settings.max_body,
        seconds=service.settings.body_seconds,
        less={"/search": service.form.max_bytes},
    )
    app.add_middleware(LastWord, closing=lambda: service.closing)
    app.add_middleware(Guards, settings=service.settings)
    app.add_middleware(Measured, metrics=service.metrics)
    return app


def _add_facts(app: FastAPI, service: Service) -> None:
    collection = service.collection

    @app.get("/about", response_model=answers.About, responses=answers.refusals(503), summary="What is served")
    async def about() -> Response:
        return JsonAnswer(await service.readers.run(_about, service))

    @app.get(
        "/healthz",
        response_model=answers.Health,
        responses=answers.refusals(503),
        summary="Whether searches are answered",
    )
    async def healthz() -> Response:
        if service.closing:
            raise RefusedError(503, "The server is closing. Ask another, or again in a moment.", {"Retry-After": "1"})
        try:
            number = await asyncio.to_thread(collection.stored_version)
        except VokenError as error:
            raise RefusedError(503, one_line(error), {"Retry-After": "10"}) from None
        return JsonAnswer({"status": "ok", "pictures": len(collection), "version": number})

    @app.get(
        "/metrics",
        response_class=Response,
        responses={
            200: {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}},
            **answers.refusals(),
        },
        summary="Counters, for Prometheus",
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    @app.get("/", response_class=FileResponse, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _add_gauges(service: Service) -> None:
    collection, metrics = service.collection, service.metrics
    metrics.follow("voken_queries_in_hand", "Queries that wait or are being answered.", lambda: service.pace.in_hand)
    metrics.follow("voken_queries_per_second", "Answered in the last ten seconds.", service.pace.per_second)
    metrics.follow("voken_pictures", "Pictures in the collection.", lambda: len(collection))
    metrics.follow("voken_collection_version", "Grows with every change.", lambda: collection.version)
    collection.watch_batches(metrics.saw_batch)


def _about(service: Service) -> dict[str, Any]:
    collection = service.collection
    return {
        "name": collection.folder.absolute().name.removesuffix(".voken"),
        "pictures": len(collection),
        "version": collection.version,
        "readout": collection.readout,
        "fields": collection.fields,
        "calibrated": collection.calibrated,
        "can_encode": collection.can_encode,
        "uploads": bool(service.settings.token),
        "examples": [],
    }


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{one['loc'][-1]}: {one['msg'][0].lower()}{one['msg'][1:]}" for one in error.errors())
    return RefusedError(422, f"{said}. Mend that and ask again.").answer()
