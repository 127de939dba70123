"""The routes of the HTTP interface: the functions that handle requests, and the documented list of routes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, FastAPI, Query, Request
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from voken.api import Change, Collection, Hit, Why
from voken.errors import DataError, PictureError, VokenError
from voken.serve import responses
from voken.serve.concurrency import Compaction, Slots, ThroughputMeter, Workers, while_connected
from voken.serve.middleware import METRICS_TYPE, PICTURE_POLICY, Metrics
from voken.serve.pictures import (
    NO_PICTURE,
    PICTURE_ROUTE,
    THUMBNAIL_TYPE,
    OpenFileResponse,
    PictureFile,
    Thumbnails,
    id_in,
    url_of,
)
from voken.serve.requests import SearchParser, SearchRequest, media_type, upload_form, upload_schema
from voken.serve.responses import JsonResponse, RequestError, documented, one_line
from voken.serve.settings import ServeSettings
from voken.serve.token_failures import TokenFailures

LIKELY = 0.02
"""If the best hit has less confidence than this, nothing matches."""
THUMBNAIL = 256
_STATIC = Path(__file__).parent / "static"
_WAITING_CHANGES = 16
_MANY_HITS = 1_000
"""Larger responses are built in a thread: this takes some ten milliseconds, which would block the event loop."""
_MIN_SIDE, _MAX_SIDE = 16, 1024
_EXAMPLES = {
    "words": {"value": {"query": "two dogs on a beach", "k": 5}},
    "many": {"value": {"queries": ["a red flower", "snow"], "filters": ["date>=2024"]}},
}


class Service:
    """A collection, and the other objects that the routes of one application share."""

    def __init__(self, collection: Collection, settings: ServeSettings) -> None:
        self.collection = collection
        self.settings = settings
        self.parser = SearchParser(settings)
        self.metrics = Metrics()
        self.throughput = ThroughputMeter()
        self.thumbnails = Thumbnails(settings.thumbnail_folder, settings.thumbnail_megabytes)
        self.compaction = Compaction(collection)
        self.searchers = Workers(1, settings.max_queue, "voken-search")
        """Runs searches that bypass the model's queue."""
        self.readers = Workers(os.cpu_count() or 1, settings.max_pictures_waiting, "voken-picture")
        """Reads files and draws thumbnails."""
        self.writers = Workers(1, _WAITING_CHANGES, "voken-change")
        """Changes the collection, one request at a time."""
        self.form_slots = Slots(settings.max_forms)
        """Limits the searches by picture that are sending their file."""
        self.upload_slots = Slots(settings.max_forms)
        """Limits the requests with the token that are sending files: whoever has none cannot take their slots."""
        self.token_failures = TokenFailures(settings.wrong_token_seconds)
        self.closing = False
        """Whether the server has been stopped: it answers accepted requests, and no others."""
        add_gauge = self.metrics.add_gauge
        add_gauge("voken_queries_in_hand", "Queries that wait or are being answered.", lambda: self.throughput.pending)
        add_gauge("voken_queries_per_second", "Answered in the last ten seconds.", self.throughput.per_second)
        add_gauge("voken_pictures", "Pictures in the collection.", lambda: len(collection))
        add_gauge("voken_collection_version", "Grows with every change.", lambda: collection.version)
        collection.watch_batches(self.metrics.count_batch)

    def close(self) -> None:
        """Finish running calls, and wait for a compaction until the grace time ends."""
        self.closing = True
        for workers in (self.searchers, self.readers, self.writers):
            workers.close()
        self.compaction.close(self.settings.grace_seconds)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def page() -> Response:
    """The web page."""
    return FileResponse(_STATIC / "index.html")


async def about(request: Request) -> Response:
    """What this server serves."""
    service = _service(request)
    return JsonResponse(await service.readers.run(_about, service.collection, bool(service.settings.token)))


def _about(collection: Collection, uploads: bool) -> dict[str, Any]:
    return {
        "name": collection.folder.absolute().name.removesuffix(".voken"),
        "pictures": len(collection),
        "version": collection.version,
        "readout": collection.readout,
        "fields": collection.fields,
        "calibrated": collection.calibrated,
        "can_encode": collection.can_encode,
        "uploads": uploads,
        "examples": [],
    }


async def healthz(request: Request) -> Response:
    """Whether the server answers and the collection on the disk can be read."""
    service = _service(request)
    if service.closing:
        raise RequestError(503, "The server is closing. Try again in a moment.", {"Retry-After": "1"})
    try:
        version = await asyncio.to_thread(service.collection.stored_version)
    except VokenError as error:
        raise RequestError(503, one_line(error), {"Retry-After": "10"}) from None
    return JsonResponse({"status": "ok", "pictures": len(service.collection), "version": version})


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=METRICS_TYPE)


@dataclass(frozen=True)
class _QueryHits:
    query: str | None
    hits: Sequence[Hit]
    whys: Sequence[Why] | None = None


async def search(request: Request) -> Response:
    """Search by words, or by a picture of the collection."""
    start, service = time.perf_counter(), _service(request)
    if media_type(request) != "application/json":
        raise RequestError(415, "Send the search as application/json (header Content-Type).")
    search_request = service.parser.parse(await request.body())
    if search_request.threshold is not None and not service.collection.calibrated:
        raise RequestError(409, "This model is not calibrated, so hits have no confidence. Leave the threshold out.")
    results = await while_connected(request, _search(service, search_request))
    if sum(len(result.hits) for result in results) > _MANY_HITS:
        return await service.readers.run(_search_response, service.collection, results, start)
    return _search_response(service.collection, results, start)


async def _search(service: Service, search: SearchRequest) -> list[_QueryHits]:
    collection, k, where = service.collection, search.k, search.filters
    if search.plus or search.minus:
        query = search.queries[0] if search.queries else None
        combine = partial(collection.combine, query, k, where=where)
        try:
            nearest = service.searchers.run(combine, like=search.like, plus=search.plus, minus=search.minus)
            return [_QueryHits(query, await nearest)]
        except DataError:
            raise RequestError(404, NO_PICTURE) from None
    if search.like is not None:
        try:
            return [_QueryHits(None, await service.searchers.run(collection.similar, search.like, k, where=where))]
        except DataError:
            raise RequestError(404, NO_PICTURE) from None
    with service.throughput.count(len(search.queries)):
        hits_by_query = await collection.asearch(search.queries, k, where=where, threshold=search.threshold)
    results = []
    for query, hits in zip(search.queries, hits_by_query, strict=True):
        whys = await service.searchers.run(collection.explain, query, hits) if search.why else None
        results.append(_QueryHits(query, hits, whys))
    return results


async def search_picture(request: Request) -> Response:
    """Search by a picture that the client sends."""
    start, service = time.perf_counter(), _service(request)
    fields = 1 + service.settings.max_filters
    slots = service.form_slots
    if service.settings.has_token(request.headers.get("authorization", "")):
        slots = service.upload_slots
    async with upload_form(request, slots, files=1, fields=fields) as form:
        picture = form.file("file")
        k, filters = service.parser.parse_fields(form.fields)
        most = service.settings.max_pixels
        work = service.searchers.run(_search_picture, service.collection, picture.file, k, filters, most)
        hits = await while_connected(request, work)
    return _search_response(service.collection, [_QueryHits(None, hits)], start)


def _search_picture(
    collection: Collection, file: BinaryIO, k: int, filters: Sequence[str], max_pixels: int
) -> list[Hit]:
    try:
        return collection.search_picture(file, k, where=filters, max_pixels=max_pixels)
    except PictureError:
        raise
    except DataError as error:
        raise RequestError(501, f"This server cannot read pictures. {error}") from None


def _search_response(collection: Collection, results: Sequence[_QueryHits], start: float) -> Response:
    contents = [
        {
            "query": result.query,
            "no_match": not result.hits
            or (result.hits[0].confidence is not None and result.hits[0].confidence < LIKELY),
            "hits": [
                _hit(collection, hit, result.whys[place] if result.whys is not None else None)
                for place, hit in enumerate(result.hits)
            ],
        }
        for result in results
    ]
    seconds = round(time.perf_counter() - start, 6)
    return JsonResponse({"version": collection.version, "seconds": seconds, "results": contents})


def _hit(collection: Collection, hit: Hit, why: Why | None) -> dict[str, Any]:
    url = url_of(hit.image_id)
    return {
        "id": hit.image_id,
        "score": hit.score,
        "confidence": hit.confidence,
        "vokens": hit.vokens,
        "url": url,
        "thumbnail": f"{url}?thumbnail={THUMBNAIL}",
        "metadata": collection.metadata(hit.image_id),
        "why": None if why is None else dataclasses.asdict(why),
    }


async def picture(
    request: Request,
    image_id: str,
    thumbnail: Annotated[
        int | None, Query(ge=_MIN_SIDE, le=_MAX_SIDE, description="Pixels per side, at most.", examples=[256])
    ] = None,
) -> Response:
    """A picture's file, or a thumbnail of it."""
    service = _service(request)
    try:
        entry = service.collection.picture(id_in(request))
    except DataError:
        raise RequestError(404, NO_PICTURE) from None
    file = await service.readers.run(partial(PictureFile.of, follow_links=service.settings.follow_links), entry)
    try:
        response = await _picture_response(request, file, thumbnail)
    except PictureError as error:
        file.opened.close()
        raise RequestError(415, f"The picture's file is broken: {error.reason}. Index its folder again.") from None
    except BaseException:
        file.opened.close()
        raise
    if not isinstance(response, OpenFileResponse):
        file.opened.close()
    return response


async def _picture_response(request: Request, file: PictureFile, thumbnail: int | None) -> Response:
    """The response, which closes the file if it is an `OpenFileResponse`. Raises `PictureError`."""
    service = _service(request)
    stripped = service.settings.strip_location
    etag = f'"{file.key}-{thumbnail or ("stripped" if stripped else "whole")}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Content-Security-Policy": PICTURE_POLICY}
    if etag in (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    if thumbnail is not None:
        content = await service.readers.run(service.thumbnails.get, file, thumbnail)
        return Response(content, headers={**headers, "Content-Disposition": "inline"}, media_type=THUMBNAIL_TYPE)
    headers["Accept-Ranges"] = "none"
    if stripped:
        content, media_type = await service.readers.run(file.opened.without_metadata)
        return Response(content, headers={**headers, "Content-Disposition": "inline"}, media_type=media_type)
    return OpenFileResponse(file, headers)


async def add(request: Request) -> Response:
    """Add pictures."""
    service = _service(request)
    async with upload_form(request, service.upload_slots, files=service.settings.max_files, fields=1) as form:
        if form.fields:
            raise RequestError(422, "Send only files, in the field 'files'.")
        files = [(file.filename or "", file.file) for file in form.files("files")]
        try:
            change = await service.writers.run(_add, service, files)
        except PictureError:
            raise
        except DataError as error:
            raise RequestError(501, f"This server cannot read pictures. {error}") from None
    skipped = [dataclasses.asdict(file) for file in change.skipped]
    return JsonResponse(
        {"version": change.version, "added": change.added, "updated": change.updated, "skipped": skipped}
    )


def _add(service: Service, files: list[tuple[str, BinaryIO]]) -> Change:
    change = service.collection.add_uploads(files, service.settings.max_pixels)
    service.compaction.start_if_needed()
    return change


async def remove(request: Request, image_id: str) -> Response:
    """Remove a picture."""
    service = _service(request)
    try:
        change = await service.writers.run(_remove, service, id_in(request))
    except DataError:
        raise RequestError(404, NO_PICTURE) from None
    return JsonResponse({"version": change.version, "removed": change.removed})


def _remove(service: Service, image_id: str) -> Change:
    change = service.collection.delete(image_id)
    service.compaction.start_if_needed()
    return change


_bearer = HTTPBearer(auto_error=False, description="The token that the server was started with.")


async def check_token(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Refuse clients that do not send the server's token, before the request's body is read."""
    service = _service(request)
    client = request.client.host if request.client else ""
    if not service.settings.token:
        raise RequestError(
            403, "This server does not allow changes of the collection. Start it with a token (--token or VOKEN_TOKEN)."
        )
    service.token_failures.check(client)
    if not service.settings.has_token(request.headers.get("authorization", "")):
        if credentials is not None:
            await service.token_failures.record(client)
        raise RequestError(
            401,
            "The token is missing or wrong. Send the header Authorization: Bearer TOKEN, with the token that the "
            "server was started with.",
            {"WWW-Authenticate": "Bearer"},
        )


def add_routes(app: FastAPI) -> None:
    """Add every route to `app`. `app.state.service` must be set."""
    route, parser, token = app.add_api_route, app.state.service.parser, [Depends(check_token)]
    text = {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    image = {"description": "The picture", "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
    search_body = {"application/json": {"schema": parser.schema, "examples": _EXAMPLES}}

    route("/", page, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
    route("/about", about, response_model=responses.About, responses=documented(503), summary="What this server serves")
    route(
        "/healthz",
        healthz,
        response_model=responses.Health,
        responses=documented(503),
        summary="Whether the server answers searches",
    )
    route(
        "/metrics",
        metrics,
        response_class=Response,
        responses={200: text, **documented()},
        summary="Counters, for Prometheus",
    )
    route(
        "/search",
        search,
        methods=["POST"],
        response_model=responses.SearchResults,
        responses=documented(400, 403, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra={"requestBody": {"required": True, "content": search_body}},
        summary="Find pictures by words, or pictures similar to one of the collection",
    )
    route(
        "/search/picture",
        search_picture,
        methods=["POST"],
        response_model=responses.SearchResults,
        responses=documented(400, 403, 408, 413, 415, 422, 501, 503),
        openapi_extra={"requestBody": upload_schema("file", parser.picture_schema, many=False)},
        summary="Find pictures similar to one that is sent",
    )
    route(
        PICTURE_ROUTE,
        picture,
        response_class=FileResponse,
        responses={
            200: image,
            304: {"description": "Not changed (If-None-Match)"},
            **documented(403, 404, 410, 415, 422, 503),
        },
        summary="A picture as it is, or a thumbnail of it",
    )
    route(
        "/pictures",
        add,
        methods=["POST"],
        dependencies=token,
        response_model=responses.Addition,
        responses=documented(400, 401, 403, 408, 413, 415, 422, 429, 501, 503),
        openapi_extra={"requestBody": upload_schema("files", {}, many=True)},
        summary="Add pictures to the collection",
    )
    route(
        PICTURE_ROUTE,
        remove,
        methods=["DELETE"],
        dependencies=token,
        response_model=responses.Removal,
        responses=documented(401, 403, 404, 429, 503),
        summary="Remove a picture from the collection",
    )
    # HTTP asks for HEAD wherever GET is answered (RFC 9110, 9.1); FastAPI's routes do not add it by themselves
    for readable in [known for known in app.routes if isinstance(known, APIRoute) and "GET" in (known.methods or ())]:
        route(readable.path, readable.endpoint, methods=["HEAD"], include_in_schema=False)
