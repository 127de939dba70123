"""Routes that show the collection without a search: its list, months, folders, values, examples, and one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from voken.api import Collection, ListedPicture
from voken.errors import VokenError
from voken.serve.looks import Look, Looks
from voken.serve.pictures import NO_PICTURE, id_in, url_of
from voken.serve.requests import ListRequest
from voken.serve.responses import JsonResponse, RequestError
from voken.serve.service import Service, service_of

DETAILS_ROOT = "/details/"
DETAILS_ROUTE = f"{DETAILS_ROOT}{{image_id:any_text}}"
THUMBNAIL = 256
VALUES = 50
"""At most so many values of a field are answered."""


async def list_pictures(request: Request) -> Response:
    """The pictures, newest first."""
    service = service_of(request)
    asked = service.parser.parse_list(request.query_params.multi_items())
    return JsonResponse(await service.readers.run(_list, service, asked))


def _list(service: Service, asked: ListRequest) -> dict[str, Any]:
    gallery = service.collection.gallery(asked.filters)
    pictures = service.collection.listed(gallery, asked.offset, asked.limit)
    return {
        "version": gallery.snapshot.version,
        "total": len(gallery),
        "offset": asked.offset,
        "pictures": [
            {
                "id": picture.image_id,
                "url": url_of(picture.image_id),
                "thumbnail": f"{url_of(picture.image_id)}?thumbnail={THUMBNAIL}",
                "metadata": picture.metadata,
                "layout": layout,
            }
            for picture, layout in zip(pictures, layouts(service.looks, pictures), strict=True)
        ],
    }


def layouts(looks: Looks, pictures: Sequence[ListedPicture]) -> list[dict[str, Any]]:
    """What a page needs to lay out each picture of a list: proportions, date, and whether it repeats another."""
    return [_layout(picture, look) for picture, look in zip(pictures, looks.of(pictures), strict=True)]


def _layout(picture: ListedPicture, look: Look) -> dict[str, Any]:
    return {"width": look.width, "height": look.height, "date": picture.taken, "stack": look.stack}


async def timeline(request: Request) -> Response:
    """How many pictures each month has, newest first."""
    service = service_of(request)
    asked = service.parser.parse_list(request.query_params.multi_items())
    gallery = await service.readers.run(service.collection.gallery, asked.filters)
    months = [{"month": month, "pictures": count} for month, count in await service.readers.run(lambda: gallery.months)]
    return JsonResponse({"version": gallery.snapshot.version, "total": len(gallery), "months": months})


async def folders(request: Request) -> Response:
    """The folders in a folder, by name."""
    service = service_of(request)
    asked = service.parser.parse_list(request.query_params.multi_items())
    return JsonResponse(await service.readers.run(_folders, service.collection, asked))


def _folders(collection: Collection, asked: ListRequest) -> dict[str, Any]:
    gallery = collection.gallery()
    inside = gallery.subfolders(asked.parent.strip("/"))
    return {
        "version": gallery.snapshot.version,
        "total": len(inside),
        "offset": asked.offset,
        "folders": [
            {
                "path": folder.path,
                "name": folder.path.rpartition("/")[2],
                "pictures": folder.pictures,
                "has_folders": folder.has_subfolders,
            }
            for folder in inside[asked.offset : asked.offset + asked.limit]
        ],
    }


async def values(request: Request) -> Response:
    """The most frequent values of a field that contain a text."""
    service = service_of(request)
    asked = service.parser.parse_list(request.query_params.multi_items())
    if not asked.field:
        raise RequestError(422, "field: it is missing. Name one of the fields that GET /about lists.")
    counts = await service.readers.run(service.collection.field_values, asked.field)
    wanted = asked.contains.casefold()
    matching = [(value, count) for value, count in counts if wanted in value.casefold()]
    return JsonResponse(
        {
            "field": asked.field,
            "total": len(matching),
            "values": [{"value": value, "pictures": count} for value, count in matching[:VALUES]],
        }
    )


async def examples(request: Request) -> Response:
    """Queries that the collection answers well."""
    service = service_of(request)
    return JsonResponse({"examples": await service.describers.run(service.examples.get)})


async def details(request: Request, image_id: str) -> Response:
    """What is known of one picture."""
    service = service_of(request)
    return JsonResponse(await service.readers.run(_details, service, id_in(request, DETAILS_ROOT)))


def _details(service: Service, image_id: str) -> dict[str, Any]:
    (picture,) = service.collection.listed_ids([image_id])
    if picture is None:
        raise RequestError(404, NO_PICTURE)
    settings = service.settings
    content: dict[str, Any] = {
        "id": picture.image_id,
        "url": url_of(picture.image_id),
        "thumbnail": f"{url_of(picture.image_id)}?thumbnail={THUMBNAIL}",
        "date": picture.taken,
        "is_dated": picture.is_dated,
        "folder": picture.folder,
        # the folders of the machine are its own business if others can reach it
        "path": str(picture.path.absolute()) if settings.is_local and not settings.hosts else picture.image_id,
        "metadata": picture.metadata,
        **dict.fromkeys(("width", "height", "bytes"), None),
        **dict.fromkeys(("format", "camera", "lens", "exposure"), ""),
    }
    try:
        with picture.open(follow_links=settings.follow_links) as opened:
            header = opened.header()
            content["bytes"] = opened.status.st_size
    except (OSError, ValueError, VokenError):
        return content
    if header is not None:
        content |= {"width": header.width, "height": header.height, "format": header.format}
        if not settings.strip_location:
            content |= {"camera": header.camera, "lens": header.lens, "exposure": header.exposure}
    return content
