"""The routes of the HTTP interface: the functions that handle requests, and the documented list of routes."""

from __future__ import annotations

import asyncio
import dataclasses
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
from voken.serve.concurrency import while_connected
from voken.serve.export import export
from voken.serve.gallery import (
    DETAILS_ROUTE,
    THUMBNAIL,
    details,
    examples,
    folders,
    layouts,
    list_pictures,
    timeline,
    values,
)
from voken.serve.middleware import METRICS_TYPE, PICTURE_POLICY
from voken.serve.pictures import NO_PICTURE, PICTURE_ROUTE, THUMBNAIL_TYPE, OpenFileResponse, PictureFile, id_in, url_of
from voken.serve.requests import SearchRequest, media_type, upload_form, upload_schema
from voken.serve.responses import JsonResponse, RequestError, documented, one_line
from voken.serve.service import Service, service_of

LIKELY = 0.02
"""If the best hit has less confidence than this, nothing matches."""
_STATIC = Path(__file__).parent / "static"
_MANY_HITS = 1_000
"""Larger responses are built in a thread: this takes some ten milliseconds, which would block the event loop."""
_MIN_SIDE, _MAX_SIDE = 16, 1024
_EXAMPLES = {
    "words": {"value": {"query": "two dogs on a beach", "k": 5}},
    "many": {"value": {"queries": ["a red flower", "snow"], "filters": ["date>=2024"]}},
}


async def page() -> Response:
    """The web page."""
    return FileResponse(_STATIC / "index.html")


async def about(request: Request) -> Response:
    """What this server serves."""
    service = service_of(request)
    return JsonResponse(await service.readers.run(_about, service.collection, bool(service.settings.token)))


def _about(collection: Collection, uploads: bool) -> dict[str, Any]:
    folder = collection.folder.absolute()
    return {
        # a collection in its default place is `.voken` in the folder of its pictures
        "name": folder.name.removesuffix(".voken") or folder.parent.name,
        "pictures": len(collection),
        "version": collection.version,
        "readout": collection.readout,
        "fields": collection.fields,
        "calibrated": collection.calibrated,
        "can_encode": collection.can_encode,
        "uploads": uploads,
    }


async def healthz(request: Request) -> Response:
    """Whether the server answers and the collection on the disk can be read."""
    service = service_of(request)
    if service.closing:
        raise RequestError(503, "The server is closing. Try again in a moment.", {"Retry-After": "1"})
    try:
        version = await asyncio.to_thread(service.collection.stored_version)
    except VokenError as error:
        raise RequestError(503, one_line(error), {"Retry-After": "10"}) from None
    return JsonResponse({"status": "ok", "pictures": len(service.collection), "version": version})


async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    return Response(service_of(request).metrics.text(), media_type=METRICS_TYPE)


@dataclass(frozen=True)
class _QueryHits:
    query: str | None
    hits: Sequence[Hit]
    whys: Sequence[Why] | None = None


async def search(request: Request) -> Response:
    """Search by words, or by a picture of the collection."""
    start, service = time.perf_counter(), service_of(request)
    if media_type(request) != "application/json":
        raise RequestError(415, "Send the search as application/json (header Content-Type).")
    search_request = service.parser.parse(await request.body())
    if search_request.threshold is not None and not service.collection.calibrated:
        raise RequestError(409, "This model is not calibrated, so hits have no confidence. Leave the threshold out.")
    results = await while_connected(request, _search(service, search_request))
    if search_request.layout or sum(len(result.hits) for result in results) > _MANY_HITS:
        return await service.readers.run(_search_response, service, results, start, layout=search_request.layout)
    return _search_response(service, results, start)


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
    start, service = time.perf_counter(), service_of(request)
    fields = 2 + service.settings.max_filters
    slots = service.form_slots
    if service.settings.has_token(request.headers.get("authorization", "")):
        slots = service.upload_slots
    async with upload_form(request, slots, files=1, fields=fields) as form:
        picture = form.file("file")
        k, filters, layout = service.parser.parse_fields(form.fields)
        most = service.settings.max_pixels
        work = service.searchers.run(_search_picture, service.collection, picture.file, k, filters, most)
        hits = await while_connected(request, work)
    results = [_QueryHits(None, hits)]
    return await service.readers.run(_search_response, service, results, start, layout=layout)


def _search_picture(
    collection: Collection, file: BinaryIO, k: int, filters: Sequence[str], max_pixels: int
) -> list[Hit]:
    try:
        return collection.search_picture(file, k, where=filters, max_pixels=max_pixels)
    except PictureError:
        raise
    except DataError as error:
        raise RequestError(501, f"This server cannot read pictures. {error}") from None


def _search_response(
    service: Service, results: Sequence[_QueryHits], start: float, *, layout: bool = False
) -> Response:
    contents = [
        {
            "query": result.query,
            "no_match": not result.hits
            or (result.hits[0].confidence is not None and result.hits[0].confidence < LIKELY),
            "hits": _hits(service, result, layout=layout),
        }
        for result in results
    ]
    seconds = round(time.perf_counter() - start, 6)
    return JsonResponse({"version": service.collection.version, "seconds": seconds, "results": contents})


def _hits(service: Service, result: _QueryHits, *, layout: bool) -> list[dict[str, Any]]:
    nothing = [None] * len(result.hits)
    whys: Sequence[Why | None] = nothing if result.whys is None else result.whys
    looks = _layouts(service, result.hits) if layout else nothing
    return [_hit(service.collection, *parts) for parts in zip(result.hits, whys, looks, strict=True)]


def _layouts(service: Service, hits: Sequence[Hit]) -> list[dict[str, Any] | None]:
    """How a page can lay out each hit; None for a picture that has been removed meanwhile."""
    pictures = service.collection.listed_ids([hit.image_id for hit in hits])
    present = iter(layouts(service.looks, [picture for picture in pictures if picture is not None]))
    return [None if picture is None else next(present) for picture in pictures]


def _hit(collection: Collection, hit: Hit, why: Why | None, layout: dict[str, Any] | None) -> dict[str, Any]:
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
        "layout": layout,
    }


async def picture(
    request: Request,
    image_id: str,
    thumbnail: Annotated[
        int | None, Query(ge=_MIN_SIDE, le=_MAX_SIDE, description="Pixels per side, at most.", examples=[256])
    ] = None,
) -> Response:
    """A picture's file, or a thumbnail of it."""
    service = service_of(request)
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
    service = service_of(request)
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
    service = service_of(request)
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
    service = service_of(request)
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
    service = service_of(request)
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
    listed, lists = partial(parser.list_parameters, "filters"), documented(422, 503)
    binary = {"schema": {"type": "string", "format": "binary"}}
    archive = {
        "description": "A ZIP archive, or a text with a path per line",
        "content": {"application/zip": binary, "text/plain": {"schema": {"type": "string"}}},
    }
    export_body = {"application/json": {"schema": parser.export_schema}}
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
        "/pictures",
        list_pictures,
        response_model=responses.PictureList,
        responses=lists,
        openapi_extra={"parameters": listed("offset", "limit")},
        summary="The pictures, newest first",
    )
    route(
        "/timeline",
        timeline,
        response_model=responses.Timeline,
        responses=lists,
        openapi_extra={"parameters": listed()},
        summary="How many pictures each month has",
    )
    route(
        "/folders",
        folders,
        response_model=responses.FolderList,
        responses=lists,
        openapi_extra={"parameters": parser.list_parameters("parent", "offset", "limit")},
        summary="The folders in a folder, with their numbers of pictures",
    )
    route(
        "/values",
        values,
        response_model=responses.FieldValues,
        responses=lists,
        openapi_extra={"parameters": parser.list_parameters("field", "contains")},
        summary="The most frequent values of a field, to complete a filter",
    )
    route(
        "/examples",
        examples,
        response_model=responses.Examples,
        responses=documented(503),
        summary="Queries to suggest",
    )
    route(
        DETAILS_ROUTE,
        details,
        response_model=responses.Details,
        responses=documented(404, 503),
        summary="What is known of a picture",
    )
    route(
        "/export",
        export,
        methods=["POST"],
        response_class=Response,
        responses={200: archive, **documented(400, 403, 404, 408, 413, 415, 422, 503)},
        openapi_extra={"requestBody": {"required": True, "content": export_body}},
        summary="The files of some pictures in an archive, or a list of their paths",
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
