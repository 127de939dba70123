"""Sends chosen pictures: a list of their paths, or their files in one ZIP archive that is written while it is sent.

The archive is not compressed, because pictures are. A file that can no longer be read is left out, and `missing.txt` in
the archive names it.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from voken.api import ListedPicture
from voken.errors import VokenError
from voken.serve.requests import media_type
from voken.serve.responses import RequestError
from voken.serve.service import Service, service_of
from voken.serve.settings import ServeSettings

_BLOCK = 1 << 17
_MISSING = "missing.txt"
_EARLIEST, _LATEST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
"""ZIP has no other dates."""


async def export(request: Request) -> Response:
    """Send the files of pictures, or a list of their paths."""
    service = service_of(request)
    if media_type(request) != "application/json":
        raise RequestError(415, "Send the ids as application/json (header Content-Type).")
    asked = service.parser.parse_export(await request.body())
    pictures = [picture for picture in await service.readers.run(service.collection.listed_ids, asked.ids) if picture]
    if not pictures:
        raise RequestError(404, "None of these pictures is in the collection. Search again.")
    if asked.format == "list":
        return _list(service, pictures)
    entries = await service.readers.run(_entries, service.settings, pictures)
    size = sum(entry.bytes for entry in entries)
    limit = service.settings.max_export_bytes
    if size > limit:
        raise RequestError(
            413, f"The pictures are {size:,} bytes, over the limit of {limit:,}. Choose fewer, or take the list."
        )
    return _ArchiveResponse(service, entries)


class _ArchiveResponse(StreamingResponse):
    """Sends an archive, and holds a slot as long as this takes. Raises `BusyError` if none is free."""

    def __init__(self, service: Service, entries: Sequence[_Entry]) -> None:
        headers = {"Content-Disposition": 'attachment; filename="pictures.zip"', "Cache-Control": "no-store"}
        super().__init__(_archive(service.settings, entries), media_type="application/zip", headers=headers)
        self._slots = service.export_slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        with self._slots.hold():
            await super().__call__(scope, receive, send)


def _list(service: Service, pictures: Sequence[ListedPicture]) -> Response:
    settings = service.settings
    local = settings.is_local and not settings.hosts
    paths = (str(picture.path.absolute()) if local else picture.image_id for picture in pictures)
    text = "".join(f"{path}\n" for path in paths).encode("utf-8", "surrogateescape" if local else "replace")
    headers = {"Content-Disposition": 'attachment; filename="pictures.txt"', "Cache-Control": "no-store"}
    return Response(text, media_type="text/plain; charset=utf-8", headers=headers)


@dataclass(frozen=True)
class _Entry:
    picture: ListedPicture
    name: str
    """In the archive."""
    bytes: int


def _entries(settings: ServeSettings, pictures: Sequence[ListedPicture]) -> list[_Entry]:
    """The files with their names in the archive: those in the collection, without what leads out of it."""
    entries: list[_Entry] = []
    used: set[str] = {_MISSING}
    for picture in pictures:
        parts = [part for part in picture.image_id.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        name = "/".join(parts).replace(":", "_").encode("utf-8", "replace").decode() or "picture"
        stem, dot, suffix = name.rpartition(".")
        number = 1
        while name.casefold() in used:
            number += 1
            name = f"{stem} ({number}){dot}{suffix}" if dot else f"{suffix} ({number})"
        used.add(name.casefold())
        size = 0
        with suppress(OSError, ValueError, VokenError), picture.open(follow_links=settings.follow_links) as opened:
            size = opened.status.st_size
        entries.append(_Entry(picture, name, size))
    return entries


def _archive(settings: ServeSettings, entries: Sequence[_Entry]) -> Iterator[bytes]:
    """The archive's bytes. Each file is opened once, and checked, when its turn comes."""
    sink = _Sink()
    missing: list[str] = []
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for entry in entries:
            # read before the entry begins, because an archive cannot take one back
            try:
                with entry.picture.open(follow_links=settings.follow_links) as opened:
                    if opened.format is None:
                        raise ValueError("no longer a picture")
                    info = zipfile.ZipInfo(entry.name, _date(entry.picture))
                    info.external_attr = 0o644 << 16
                    if settings.strip_location:
                        archive.writestr(info, opened.without_metadata()[0])
                        yield sink.take()
                        continue
                    remaining = opened.status.st_size
                    opened.file.seek(0)
                    with archive.open(info, "w", force_zip64=remaining >= 1 << 31) as target:
                        while remaining and (block := opened.file.read(min(_BLOCK, remaining))):
                            remaining -= len(block)
                            target.write(block)
                            yield sink.take()
            except (OSError, ValueError, VokenError):
                missing.append(entry.name)
        if missing:
            archive.writestr(_MISSING, "".join(f"{name}\n" for name in missing))
    yield sink.take()


def _date(picture: ListedPicture) -> tuple[int, int, int, int, int, int]:
    year, month, day, hours, minutes, seconds = map(int, re.findall(r"\d+", picture.taken)[:6])
    return max(_EARLIEST, min((year, month, day, hours, minutes, seconds), _LATEST))


class _Sink(io.RawIOBase):
    """Collects what the archive writes, until it is taken. It cannot seek, so that the archive is written in order."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, block: object) -> int:
        """See `io.RawIOBase`."""
        content = bytes(block)  # type: ignore[call-overload] # any buffer
        self._blocks.append(content)
        return len(content)

    def take(self) -> bytes:
        """What was written since the last call."""
        content = b"".join(self._blocks)
        self._blocks.clear()
        return content
