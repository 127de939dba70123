"""A picture's file as it is handed out: still there, still a picture, and of which kind, by content and not by name."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from voken.api import Picture
from voken.serve.refusals import RefusedError


@dataclass(frozen=True)
class PictureFile:
    """One that was there a moment ago."""

    picture: Picture
    stat: os.stat_result
    media_type: str

    @classmethod
    def look(cls, picture: Picture) -> Self:
        """Raises `RefusedError`: 410 where the file is gone or cannot be read, 415 where it is no picture any more."""
        try:
            found = picture.path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise OSError("not a file")
            kind = picture.media_type()
        except (OSError, ValueError):
            raise RefusedError(
                410, "The picture's file is no longer where it was. Bring it back, or index its folder again."
            ) from None
        if kind is None:
            raise RefusedError(415, "The picture's file holds no picture any more. Index its folder again.")
        return cls(picture, found, kind)

    @property
    def mark(self) -> str:
        """Differs for every file and every state of it: 32 hexadecimal digits."""
        said = f"{self.stat.st_size} {self.stat.st_mtime_ns} ".encode() + os.fsencode(self.picture.path.absolute())
        return blake2b(said, digest_size=16).hexdigest()
