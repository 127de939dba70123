"""A picture's file as it is handed out: still there, still a picture, and of which kind, by content and not by name."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, Self

from PIL import Image

from voken.serve.refusals import RefusedError

_KINDS = {
    "JPEG": ("image/jpeg", ".jpg"),
    "PNG": ("image/png", ".png"),
    "WEBP": ("image/webp", ".webp"),
    "GIF": ("image/gif", ".gif"),
    "AVIF": ("image/avif", ".avif"),
    "TIFF": ("image/tiff", ".tif"),
    "BMP": ("image/bmp", ".bmp"),
    "PPM": ("image/x-portable-anymap", ".ppm"),
    "DIB": ("image/bmp", ".dib"),
}
"""Media type and file name's end of each format that `voken.data.images` reads. None of them can hold a script."""
_PREFIX = 16
"""Bytes by which Pillow tells formats apart."""


@dataclass(frozen=True)
class Kind:
    """What a file's first bytes say it is."""

    media_type: str
    suffix: str

    @classmethod
    def of(cls, source: BinaryIO) -> Self | None:
        """Of an open file, which is left at its beginning. None: not a picture of a known kind."""
        source.seek(0)
        prefix = source.read(_PREFIX)
        source.seek(0)
        return next((cls(*said) for name, said in _KINDS.items() if _accepts(name, prefix)), None)


def _accepts(name: str, prefix: bytes) -> bool:
    Image.init()
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    try:
        return accept is not None and accept(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):
        return False  # fewer bytes than the test reads


@dataclass(frozen=True)
class PictureFile:
    """One that was there a moment ago."""

    path: Path
    stat: os.stat_result
    kind: Kind

    @classmethod
    def look(cls, path: Path) -> Self:
        """Raises `RefusedError`: 410 where the file is gone or cannot be read, 415 where it is no picture any more."""
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a file")
            with open(path, "rb") as source:
                kind = Kind.of(source)
        except (OSError, ValueError):
            raise RefusedError(
                410, "The picture's file is no longer where it was. Bring it back, or index its folder again."
            ) from None
        if kind is None:
            raise RefusedError(415, "The picture's file holds no picture any more. Index its folder again.")
        return cls(path, found, kind)

    @property
    def mark(self) -> str:
        """Differs for every file and every state of it: 32 hexadecimal digits."""
        said = f"{self.stat.st_size} {self.stat.st_mtime_ns} ".encode() + os.fsencode(self.path.absolute())
        return blake2b(said, digest_size=16).hexdigest()
