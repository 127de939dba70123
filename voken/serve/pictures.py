"""Pictures themselves: their files, small copies of them, and what adds and removes them.

A picture is known by its id alone, and an id that the collection has not is not there, whatever it looks like: no
address is ever taken for a path.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from typing import Annotated, Any, BinaryIO
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import FileResponse, Response

from voken.api import Change
from voken.errors import DataError, PictureError
from voken.serve import answers, thumbnails
from voken.serve.guards import PICTURE_POLICY
from voken.serve.json_answer import JsonAnswer
from voken.serve.multipart import multipart_body, parts
from voken.serve.picture_file import PictureFile
from voken.serve.refusals import RefusedError
from voken.serve.service import Service

_LEAST_SIDE, _MOST_SIDE = 16, 1024
_FIRST = "/pictures/"
_GONE = "There is no picture with that id. Search again: it may have been removed."
_IMAGE = {"schema": {"type": "string", "format": "binary"}}


class _Anything(Convertor[str]):
    """The rest of an address, whatever is in it; starlette's own "path" ends at a line's end."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def add_pictures(app: FastAPI, service: Service) -> None:
    """`GET` and `DELETE /pictures/{id}`, `POST /pictures`."""
    register_url_convertor("anything", _Anything())
    may_change = Depends(_guard(service.settings.token))

    @app.get(
        "/pictures/{image_id:anything}",
        response_class=FileResponse,
        responses={
            200: {"description": "The picture", "content": {"image/*": _IMAGE}},
            304: {"description": "As it was (If-None-Match)"},
            **answers.refusals(404, 410, 415, 422, 503),
        },
        summary="A picture as it is, or a small copy of it",
    )
    async def picture(
        request: Request,
        image_id: str,
        thumbnail: Annotated[
            int | None, Query(ge=_LEAST_SIDE, le=_MOST_SIDE, description="Pixels a side, at most.", examples=[256])
        ] = None,
    ) -> Response:
        try:
            found = service.collection.picture(_id_of(request))
        except DataError:
            raise RefusedError(404, _GONE) from None
        file = await service.readers.run(PictureFile.look, found)
        mark = f'"{file.mark}-{thumbnail}"' if thumbnail else f'"{file.mark}"'
        headers = {"ETag": mark, "Cache-Control": "private, no-cache", "Content-Security-Policy": PICTURE_POLICY}
        if _knows(request, mark):
            return Response(status_code=304, headers=headers)
        if thumbnail is None:
            # in one piece: starlette would refuse a wrong Range in words of its own
            request.scope["headers"] = [one for one in request.scope["headers"] if one[0] != b"range"]
            headers["Accept-Ranges"] = "none"
            # a name may hold bytes that are no text
            name = found.path.name.encode("utf-8", "replace").decode()
            return FileResponse(
                found.path,
                headers=headers,
                media_type=file.media_type,
                filename=name,
                stat_result=file.stat,
                content_disposition_type="inline",
            )
        try:
            small = await service.readers.run(service.thumbnails.get, file, thumbnail)
        except PictureError as error:
            raise RefusedError(415, f"The picture's file is broken: {error.reason}. Index its folder again.") from None
        return Response(small, headers={**headers, "Content-Disposition": "inline"}, media_type=thumbnails.MEDIA_TYPE)

    @app.post(
        "/pictures",
        dependencies=[may_change],
        response_model=answers.Added,
        responses=answers.refusals(400, 401, 403, 408, 413, 415, 422, 501, 503),
        openapi_extra={"requestBody": multipart_body("files", {}, many=True)},
        summary="Add pictures to the collection",
    )
    async def add(request: Request) -> Response:
        async with parts(request, service.forms, files=service.settings.max_files, fields=1) as sent:
            if sent.fields:
                raise RefusedError(422, "Send nothing but files, in the field 'files'.")
            files = [(one.filename or "", one.file) for one in sent.files("files")]
            try:
                taken = await service.writers.run(_take, service, files)
            except PictureError:
                raise
            except DataError as error:
                raise RefusedError(501, f"This server cannot read pictures. {error}") from None
        skipped = [dataclasses.asdict(one) for one in taken.skipped]
        return JsonAnswer(
            {"version": taken.version, "added": taken.added, "updated": taken.updated, "skipped": skipped}
        )

    @app.delete(
        "/pictures/{image_id:anything}",
        dependencies=[may_change],
        response_model=answers.Removed,
        responses=answers.refusals(401, 403, 404, 503),
        summary="Remove a picture from the collection",
    )
    async def remove(request: Request, image_id: str) -> Response:
        try:
            change = await service.writers.run(_remove, service, _id_of(request))
        except DataError:
            raise RefusedError(404, _GONE) from None
        return JsonAnswer({"version": change.version, "removed": change.removed})


def _take(service: Service, files: list[tuple[str, BinaryIO]]) -> Change:
    taken = service.collection.add_uploads(files, service.settings.max_pixels)
    service.compaction.consider()
    return taken


def _remove(service: Service, image_id: str) -> Change:
    change = service.collection.delete(image_id)
    service.compaction.consider()
    return change


_bearer = HTTPBearer(auto_error=False, description="The token that the server was started with.")


def _guard(token: str) -> Callable[..., None]:
    """Lets only those who know `token` go on. It comes before the body is read."""

    def guard(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> None:
        if not token:
            raise RefusedError(
                403, "This server lets nobody change the collection. Start it with a token (--token or VOKEN_TOKEN)."
            )
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise RefusedError(
                401,
                "The token is missing or wrong. Send the header Authorization: Bearer TOKEN, with the token that the "
                "server was started with.",
                {"WWW-Authenticate": "Bearer"},
            )

    return guard


def _id_of(request: Request) -> str:
    """As it stands in the address. Raises `RefusedError` where no id is written so.

    Servers decode addresses as UTF-8 and lose what is none; ids may be names of files, which need not be.
    """
    scope: Any = request.scope
    raw = scope.get("raw_path")
    try:
        path = scope["path"] if raw is None else unquote_to_bytes(raw).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise RefusedError(404, _GONE) from None
    return str(path.removeprefix(scope.get("root_path", "")).removeprefix(_FIRST))


def _knows(request: Request, mark: str) -> bool:
    return mark in (one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(","))
