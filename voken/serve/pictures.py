"""Pictures over HTTP: their addresses, their files, and thumbnails in a cache on disk.

An address holds a picture's id and is never used as a path. An id that is not in the collection leads to no file.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote_to_bytes

from PIL.Image import Resampling
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from voken.api import Picture
from voken.serve.responses import RequestError

THUMBNAIL_TYPE = "image/webp"
NO_PICTURE = "There is no picture with that id. Search again: it may have been removed."
_ROOT = "/pictures/"
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


def id_in(request: Request) -> str:
    """The id in a request's address. Raises `RequestError` if no id can have that address.

    The undecoded address is read, because the server has lost bytes that are not UTF-8, and ids may hold them.
    """
    scope: Any = request.scope
    raw = scope.get("raw_path")
    try:
        path = scope["path"] if raw is None else unquote_to_bytes(raw).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise RequestError(404, NO_PICTURE) from None
    return str(path.removeprefix(scope.get("root_path", "")).removeprefix(_ROOT))


@dataclass(frozen=True)
class PictureFile:
    """A picture, and the state of its file."""

    picture: Picture
    stat: os.stat_result
    media_type: str

    @classmethod
    def of(cls, picture: Picture) -> Self:
        """Examine the file. Raises `RequestError`: 410 if it cannot be read, 415 if it is no longer a picture."""
        try:
            status = picture.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a file")
            media_type = picture.media_type()
        except (OSError, ValueError):
            raise RequestError(
                410, "The picture's file no longer exists. Restore it, or index its folder again."
            ) from None
        if media_type is None:
            raise RequestError(415, "The picture's file is no longer a picture. Index its folder again.")
        return cls(picture, status, media_type)

    @property
    def key(self) -> str:
        """32 hexadecimal digits, which differ for every file and every state of it."""
        state = f"{self.stat.st_size} {self.stat.st_mtime_ns} ".encode() + os.fsencode(self.picture.path.absolute())
        return blake2b(state, digest_size=16).hexdigest()


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
        image = file.picture.image()
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
