"""What a picture's file says about itself without being decoded: its size, its format, the camera and the exposure."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any, BinaryIO

from PIL import Image as PillowImage
from PIL.Image import Exif, Image

from voken.data.images import opened_header

_EXIF_IFD = 0x8769
_ORIENTATION, _MAKE, _MODEL = 0x0112, 0x010F, 0x0110
_EXPOSURE, _APERTURE, _ISO, _FOCAL_LENGTH, _LENS = 0x829A, 0x829D, 0x8827, 0x920A, 0xA434
_TURNED = {5, 6, 7, 8}
"""Orientations in which the stored width is the height of the upright picture."""
_MOST_CHARACTERS = 100


@dataclass(frozen=True)
class PictureHeader:
    """The facts in a picture's file. A text is empty if the file does not say it."""

    width: int
    """In pixels, of the upright picture."""
    height: int
    format: str
    """Pillow's name, such as JPEG."""
    camera: str = ""
    lens: str = ""
    exposure: str = ""
    """For example "1/250 s · f/2.8 · ISO 100 · 35 mm"."""


def picture_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height of the upright picture in an open file; None if it is no picture. Rewinds the file."""
    header = _read(file, details=False)
    return None if header is None else (header.width, header.height)


def picture_header(file: BinaryIO) -> PictureHeader | None:
    """The header of the picture in an open file; None if it is no picture. Rewinds the file."""
    return _read(file, details=True)


def _read(file: BinaryIO, *, details: bool) -> PictureHeader | None:
    file.seek(0)
    header = None
    # Pillow may raise any exception for a hostile or damaged file
    with suppress(Exception), opened_header(file) as image:
        header = _of_image(image, details=details)
    file.seek(0)
    return header


def _of_image(image: Image, *, details: bool) -> PictureHeader | None:
    width, height = image.size
    if width < 1 or height < 1:
        return None
    header = PictureHeader(width, height, image.format or "")
    # a picture with broken EXIF is still one
    with suppress(Exception):
        # PngImageFile.getexif would decode the whole picture if the EXIF does not precede the pixels
        exif = PillowImage.Image.getexif(image)
        if exif.get(_ORIENTATION) in _TURNED:
            width, height = height, width
        header = PictureHeader(width, height, header.format)
        if details:
            inner = exif.get_ifd(_EXIF_IFD)
            header = PictureHeader(
                width, height, header.format, _camera(exif), _text(inner.get(_LENS)), _exposure(inner)
            )
    return header


def _camera(exif: Exif) -> str:
    make, model = _text(exif.get(_MAKE)), _text(exif.get(_MODEL))
    # many models name their maker
    return model if model.casefold().startswith(make.casefold().split(" ")[0]) else f"{make} {model}".strip()


def _exposure(exif: dict[int, Any]) -> str:
    seconds, aperture = _number(exif.get(_EXPOSURE)), _number(exif.get(_APERTURE))
    iso, focal_length = exif.get(_ISO), _number(exif.get(_FOCAL_LENGTH))
    iso = _number(iso[0] if isinstance(iso, tuple) and iso else iso)
    parts = (
        "" if seconds is None else f"{seconds:g} s" if seconds >= 0.4 else f"1/{round(1 / seconds)} s",
        "" if aperture is None else f"f/{aperture:.3g}",
        "" if iso is None else f"ISO {iso:g}",
        "" if focal_length is None else f"{focal_length:.3g} mm",
    )
    return " · ".join(part for part in parts if part)


def _number(value: Any) -> float | None:
    """A number above 0; None for anything else."""
    try:
        number = float(Fraction(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, ArithmeticError):
        return None
    return number if isfinite(number) and 1e-6 < number < 1e9 else None


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = " ".join(str(value or "").replace("\0", " ").split())
    return "".join(character for character in text if character.isprintable())[:_MOST_CHARACTERS]
