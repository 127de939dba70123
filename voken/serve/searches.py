"""Searching: by words, by a picture of the collection, by a picture that is sent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from voken.api import Collection, Hit, Why
from voken.errors import DataError, PictureError
from voken.serve import answers
from voken.serve.asked import Asked
from voken.serve.json_answer import JsonAnswer
from voken.serve.multipart import media_type, multipart_body, parts
from voken.serve.refusals import RefusedError
from voken.serve.service import Service, unless_gone

LIKELY = 0.02
"""A best hit with less confidence than this is no match."""
THUMBNAIL = 256
_HITS_AT_ONCE = 1_000
"""More are looked up in a thread: some ten milliseconds in which the event loop would answer nobody."""
_EXAMPLES = {
    "words": {"value": {"query": "two dogs on a beach", "k": 5}},
    "many": {"value": {"queries": ["a red flower", "snow"], "filters": ["date>=2024"]}},
}


def add_searches(app: FastAPI, service: Service) -> None:
    """`POST /search` and `POST /search/picture`."""
    collection, form = service.collection, service.form

    @app.post(
        "/search",
        response_model=answers.Found,
        responses=answers.refusals(400, 403, 404, 408, 409, 413, 415, 422, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": form.schema, "examples": _EXAMPLES}},
            }
        },
        summary="Find pictures by words, or like one of the collection",
    )
    async def search(request: Request) -> Response:
        began = time.perf_counter()
        if media_type(request) != "application/json":
            raise RefusedError(415, "Send the search as application/json (header Content-Type).")
        asked = form.read(await request.body())
        if asked.threshold is not None and not collection.calibrated:
            raise RefusedError(
                409, "This model is not calibrated, so hits have no confidence. Leave the threshold out."
            )
        found = await unless_gone(request, _found(service, asked))
        if sum(len(hits) for _, hits, _ in found) > _HITS_AT_ONCE:
            return await service.readers.run(_answer, collection, found, began)
        return _answer(collection, found, began)

    @app.post(
        "/search/picture",
        response_model=answers.Found,
        responses=answers.refusals(400, 403, 408, 413, 415, 422, 501, 503),
        openapi_extra={"requestBody": multipart_body("file", form.picture_schema, many=False)},
        summary="Find pictures like one that is sent",
    )
    async def search_picture(request: Request) -> Response:
        began = time.perf_counter()
        async with parts(request, service.forms, files=1, fields=1 + service.settings.max_filters) as sent:
            picture = sent.file("file")
            k, filters = form.read_fields(sent.fields)
            hits = await unless_gone(request, service.searchers.run(_like_file, service, picture, k, filters))
        return _answer(collection, [(None, hits, None)], began)


async def _found(service: Service, asked: Asked) -> list[tuple[str | None, Sequence[Hit], Sequence[Why] | None]]:
    collection, where = service.collection, asked.filters
    if asked.like is not None:
        try:
            hits = await service.searchers.run(collection.similar, asked.like, asked.k, where=where)
        except DataError:
            raise RefusedError(
                404, "There is no picture with that id. Search again: it may have been removed."
            ) from None
        return [(None, hits, None)]
    with service.pace.count(len(asked.queries)):
        found = await collection.asearch(asked.queries, asked.k, where=where, threshold=asked.threshold)
    whys: list[list[Why] | None] = [None] * len(found)
    if asked.why:
        whys = [
            await service.searchers.run(collection.explain, query, hits) if hits else []
            for query, hits in zip(asked.queries, found, strict=True)
        ]
    return list(zip(asked.queries, found, whys, strict=True))


def _like_file(service: Service, picture: UploadFile, k: int, filters: Sequence[str]) -> list[Hit]:
    try:
        return service.collection.search_picture(picture.file, k, where=filters)
    except PictureError:
        raise
    except DataError as error:
        raise RefusedError(501, f"This server cannot read pictures. {error}") from None


def _answer(
    collection: Collection, found: Sequence[tuple[str | None, Sequence[Hit], Sequence[Why] | None]], began: float
) -> Response:
    results = [
        {
            "query": query,
            "no_match": not hits or (hits[0].confidence is not None and hits[0].confidence < LIKELY),
            "hits": [
                _hit(collection, hit, whys[place] if whys is not None else None) for place, hit in enumerate(hits)
            ],
        }
        for query, hits, whys in found
    ]
    seconds = round(time.perf_counter() - began, 6)
    return JsonAnswer({"version": collection.version, "seconds": seconds, "results": results})


def _hit(collection: Collection, hit: Hit, why: Why | None) -> dict[str, Any]:
    url = address_of(hit.image_id)
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


def address_of(image_id: str) -> str:
    """Where a picture is. Every id has one address, also one with lone surrogates or with dots between slashes."""
    # browsers would take such a part away, and proxies an empty one
    plain = all(part not in ("", ".", "..") for part in image_id.split("/"))
    return f"/pictures/{quote(image_id.encode('utf-8', 'surrogatepass'), safe='/' if plain else '')}"
