"""Pictures over HTTP: their addresses, their files, and thumbnails in a cache on disk.

An address holds a picture's id and is never used as a path. An id that is not in the collection leads to no file.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote_to_bytes

from PIL.Image import Resampling
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from voken.api import Picture
from voken.errors import PictureError
from voken.serve.responses import RequestError

if TYPE_CHECKING:
    from voken.api import OpenedPicture

THUMBNAIL_TYPE = "image/webp"
NO_PICTURE = "There is no picture with that id. Search again: it may have been removed."
_ROOT = "/pictures/"
_BLOCK = 1 << 17
_QUALITY = 80
_EFFORT = 2
"""WebP's effort, 0 to 6. More effort would save only a few percent of the bytes."""
_SWEEP_TARGET = 0.9
_TOUCH_SECONDS = 3_600.0
"""A use is recorded, as the file's time, if the recorded time is older than this."""


class _AnyText(Convertor[str]):
    """The rest of an address, with line breaks; starlette's convertor "path" stops at one."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any_text", _AnyText())
PICTURE_ROUTE = f"{_ROOT}{{image_id:any_text}}"


def url_of(image_id: str) -> str:
    """The address of a picture. Every id has an address, also ids with lone surrogates or with dots between slashes."""
    # browsers remove parts of dots from an address, and proxies remove empty parts; then slashes are quoted, too
    plain = all(part not in ("", ".", "..") for part in image_id.split("/"))
    return f"{_ROOT}{quote(image_id.encode('utf-8', 'surrogatepass'), safe='/' if plain else '')}"


def id_in(request: Request, root: str = _ROOT) -> str:
    """The id in a request's address, after `root`. Raises `RequestError` if no id can have that address.

    The undecoded address is read, because the server has lost bytes that are not UTF-8, and ids may hold them.
    """
    scope: Any = request.scope
    raw = scope.get("raw_path")
    try:
        path = scope["path"] if raw is None else unquote_to_bytes(raw).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise RequestError(404, NO_PICTURE) from None
    return str(path.removeprefix(scope.get("root_path", "")).removeprefix(root))


@dataclass(frozen=True)
class PictureFile:
    """A picture, and its file, which was opened once. Close it, or use it as a context."""

    picture: Picture
    opened: OpenedPicture
    media_type: str

    @classmethod
    def of(cls, picture: Picture, *, follow_links: bool = False) -> Self:
        """Open and examine the file.

        Raises `RequestError`: 410 if it cannot be read, 403 if a link leads out of its folder, 415 if it is no longer a
        picture.
        """
        gone = RequestError(410, "The picture's file no longer exists. Restore it, or index its folder again.")
        try:
            opened = picture.open(follow_links=follow_links)
        except PictureError as error:
            if "link" in error.reason:
                raise RequestError(
                    403,
                    "The picture's file is a link that leads out of the folder of the pictures. Copy the picture into "
                    "the folder, or start the server with --follow-links.",
                ) from None
            raise gone from None
        except (OSError, ValueError):
            raise gone from None
        if opened.format is None:
            opened.close()
            raise RequestError(415, "The picture's file is no longer a picture. Index its folder again.")
        return cls(picture, opened, opened.format.media_type)

    @property
    def key(self) -> str:
        """32 hexadecimal digits, which differ for every file and every state of it."""
        status = self.opened.status
        state = f"{status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(self.picture.path.absolute())
        return blake2b(state, digest_size=16).hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.opened.close()


class OpenFileResponse(Response):
    """Sends a file that is open, from that file and not from its path, and closes it."""

    def __init__(self, file: PictureFile, headers: Mapping[str, str]) -> None:
        # a name may hold bytes that are not UTF-8
        name = quote(file.picture.path.name.encode("utf-8", "replace").decode())
        super().__init__(
            media_type=file.media_type,
            headers={
                **headers,
                "Content-Disposition": f"inline; filename*=utf-8''{name}",
                "Content-Length": str(file.opened.status.st_size),
            },
        )
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        with self._file:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            remaining = 0 if scope["method"] == "HEAD" else self._file.opened.status.st_size
            source = self._file.opened.file
            await asyncio.to_thread(source.seek, 0)
            while remaining:
                block = await asyncio.to_thread(source.read, min(_BLOCK, remaining))
                if not block:
                    raise OSError(f"{self._file.picture.path}: became shorter while it was sent")
                remaining -= len(block)
                await send({"type": "http.response.body", "body": block, "more_body": remaining > 0})
            if scope["method"] == "HEAD" or not self._file.opened.status.st_size:
                await send({"type": "http.response.body", "body": b""})


class Thumbnails:
    """Small pictures, drawn on demand and cached on disk, in at most `megabytes`; 0 caches none.

        1f/1f0c…-256.webp    at most 256 pixels per side; named by `PictureFile.key`, so that a file that has changed
                             has another thumbnail

    Any number of processes and threads may share the folder. The least recently used thumbnails are deleted first. If
    the cache cannot be written, thumbnails only take longer.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        self._max_bytes = megabytes << 20
        self._lock = threading.Lock()
        self._bytes: int | None = None
        """The bytes on disk, without what other processes wrote since the last sweep; None before the first sweep."""

    def get(self, file: PictureFile, side: int) -> bytes:
        """The picture as WebP, reduced to at most `side` pixels per side. Raises `PictureError`."""
        path = self._folder / file.key[:2] / f"{file.key}-{side}.webp"
        if self._max_bytes and (cached := _read(path)):
            return cached
        image = file.opened.image(least_side=side)
        image.info.clear()  # a thumbnail says nothing about place and time
        image.thumbnail((side, side), Resampling.LANCZOS, reducing_gap=3.0)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY, method=_EFFORT)
        content = buffer.getvalue()
        if self._max_bytes:
            self._write(path, content)
        return content

    def _write(self, path: Path, content: bytes) -> None:
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}-{threading.get_ident()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return
        with self._lock:
            if self._bytes is not None:
                self._bytes += len(content)
            if self._bytes is None or self._bytes > self._max_bytes:
                self._bytes = self._sweep()

    def _sweep(self) -> int:
        """Delete the least recently used thumbnails if they take too many bytes. Returns the remaining bytes."""
        files = []
        for path in self._folder.glob("??/*"):
            with suppress(OSError):  # another process may have deleted it
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        if total > self._max_bytes:
            for _, size, path in sorted(files):
                if total <= _SWEEP_TARGET * self._max_bytes:
                    break
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size
        return total


def _read(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
        # after a power cut a file may be incomplete
        if content[:4] != b"RIFF" or int.from_bytes(content[4:8], "little") + 8 != len(content):
            return None
        now = time.time()
        if now - path.stat().st_mtime > _TOUCH_SECONDS:
            os.utime(path, (now, now))
        return content
    except OSError:
        return None
