"""A picture's file, opened once: what is examined, decoded and sent are the same bytes, whatever happens to its path.

    with OpenedPicture.open(path, within=folder) as file:
        file.format                                             # by its header; None if it is not a picture
        file.image()                                            # decoded

A path may lead through links, as long as the file lies in `within`. Otherwise a link in a folder of pictures would show
files from anywhere on the machine to everyone who may see the pictures.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

from voken.data.images import MAX_BYTES, MAX_PIXELS, PictureFormat, header_format, open_image
from voken.data.picture_header import PictureHeader, picture_header, picture_size
from voken.data.picture_metadata import without_metadata
from voken.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image


_MOST_IN_MEMORY = 1 << 28
_QUALITY = 92


@dataclass(frozen=True)
class OpenedPicture:
    """An open file. Close it, or use it as a context."""

    path: Path
    file: BinaryIO
    status: os.stat_result
    """Of the open file."""

    @classmethod
    def open(cls, path: Path, *, within: Path | None = None) -> Self:
        """Open a regular file that lies in the folder `within`; None means anywhere.

        Raises `PictureError` for anything else, and `OSError` if there is no such file or it may not be read.
        """
        # a pipe must not block; Windows lacks the first flag and needs the second
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise PictureError(path, "not a file")
            if status.st_size > MAX_BYTES:
                raise PictureError(path, f"{status.st_size:,} bytes, over the limit of {MAX_BYTES:,}")
            if within is not None and not _lies_within(path, status, within):
                raise PictureError(path, "a link that leads out of its folder")
        except BaseException:
            file.close()
            raise
        return cls(path, file, status)

    @cached_property
    def format(self) -> PictureFormat | None:
        """The format, by the whole header; None if the file is not a picture."""
        return header_format(self.file)

    def image(self, *, least_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image:
        """The picture in mode RGB, upright; see `open_image`. Raises `PictureError`."""
        self.file.seek(0)
        return open_image(self.file, least_side=least_side, max_pixels=max_pixels)

    def size(self) -> tuple[int, int] | None:
        """Width and height of the upright picture, from its header; None if it is no picture."""
        return picture_size(self.file)

    def header(self) -> PictureHeader | None:
        """Its size, its format and the camera's facts; None if it is no picture."""
        return picture_header(self.file)

    def without_metadata(self) -> tuple[bytes, str]:
        """The picture without the place where it was taken and whatever else its file tells, and its media type.

        A picture of a format whose metadata cannot be taken out is drawn again. Raises `PictureError`.
        """
        content = None
        if self.format is not None and self.status.st_size <= _MOST_IN_MEMORY:
            self.file.seek(0)
            content = without_metadata(self.file.read(_MOST_IN_MEMORY), self.format.media_type)
        if content is not None and self.format is not None:
            return content, self.format.media_type
        image = self.image()
        image.info.clear()
        drawn = io.BytesIO()
        image.save(drawn, "JPEG", quality=_QUALITY)
        return drawn.getvalue(), "image/jpeg"

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _lies_within(path: Path, status: os.stat_result, folder: Path) -> bool:
    """Whether an open file, reached by `path`, is now found in `folder` without any link."""
    real = os.path.realpath(path)
    try:
        same = os.path.samestat(os.stat(real, follow_symlinks=False), status)  # noqa: PTH116 -- as below
    except OSError:
        return False
    return same and Path(real).is_relative_to(os.path.realpath(folder))
