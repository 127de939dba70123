"""Takes out of a picture's file what its camera wrote beside the pixels: the place, the time, a name, a second picture.

    content = without_metadata(content, "image/jpeg")

The pixels, their colours and how the picture is turned stay, to the byte. Only formats are handled that consist of
blocks which a viewer may pass over; a picture of another format must be drawn again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP sBIT bKGD hIST pHYs acTL fcTL fdAT".split())
_WEBP_CHUNKS = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"])
_WEBP_METADATA = 0x08 | 0x04
"""The bits of a VP8X chunk that announce EXIF and XMP."""
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SOI, _EOI, _SOS, _APP0, _APP1, _APP2, _APP14, _COMMENT = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112


def without_metadata(content: bytes, media_type: str) -> bytes | None:
    """A picture's file without its metadata; None if the picture must be drawn again."""
    readers = {"image/jpeg": _jpeg, "image/png": _png, "image/webp": _webp}
    if media_type in ("image/bmp", "image/x-portable-anymap"):
        return content  # these have none
    if media_type not in readers:
        return None
    try:
        parts = list(readers[media_type](content))
    except (IndexError, ValueError, struct.error):
        return None
    return b"".join(content[part] if isinstance(part, slice) else part for part in parts)


def _jpeg(content: bytes) -> Iterator[bytes | slice]:
    at = 2
    if content[:2] != b"\xff\xd8":
        raise ValueError("no picture")
    yield slice(0, 2)
    turned = False
    while True:
        if content[at] != 0xFF:
            raise ValueError("no marker")
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _EOI:
            yield slice(at, at + 2)  # what follows is another picture, or a film
            return
        (length,) = struct.unpack(">H", content[at + 2 : at + 4])
        end = at + 2 + length
        if end > len(content):
            raise ValueError("cut short")
        if marker == _APP1 and content[at + 4 : at + 10] == _EXIF and not turned:
            orientation = _orientation(content[at + 10 : end])
            if orientation > 1:
                exif = _EXIF + _exif(orientation)
                yield b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
                turned = True
        # of the applications' segments only the colours stay: JFIF, the ICC profile and Adobe's transform
        is_colour = marker in (_APP0, _APP14) or (marker == _APP2 and content[at + 4 : at + 15] == b"ICC_PROFILE")
        if is_colour or not (_APP0 <= marker <= 0xEF or marker == _COMMENT):
            yield slice(at, end)
        at = end
        if marker == _SOS:
            found = _NEXT_MARKER.search(content, end)
            at = found.start() if found else len(content)
            yield slice(end, at)
            if found is None:
                return  # cut short; viewers show the rest grey


def _png(content: bytes) -> Iterator[bytes | slice]:
    if content[:8] != _PNG:
        raise ValueError("no picture")
    yield slice(0, 8)
    at = 8
    while True:
        length, name = struct.unpack(">I4s", content[at : at + 8])
        end = at + 12 + length
        if end > len(content):
            raise ValueError("cut short")
        if name in _PNG_CHUNKS:
            yield slice(at, end)
        elif name == b"eXIf" and _orientation(content[at + 8 : end - 4]) > 1:
            raise ValueError("it must be turned")
        if name == b"IEND":
            return
        at = end


def _webp(content: bytes) -> Iterator[bytes | slice]:
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise ValueError("no picture")
    parts: list[tuple[int, bytes | slice]] = []
    at, end = 12, min(len(content), 8 + int.from_bytes(content[4:8], "little"))
    while at + 8 <= end:
        name, length = struct.unpack("<4sI", content[at : at + 8])
        after = at + 8 + length + length % 2
        if after > end:
            raise ValueError("cut short")
        if name == b"EXIF" and _orientation(content[at + 8 : after].removeprefix(_EXIF)) > 1:
            raise ValueError("it must be turned")
        if name == b"VP8X":
            flags = bytes([content[at + 8] & ~_WEBP_METADATA])
            parts += [(8, slice(at, at + 8)), (1, flags), (after - at - 9, slice(at + 9, after))]
        elif name in _WEBP_CHUNKS:
            parts.append((after - at, slice(at, after)))
        at = after
    yield b"RIFF" + struct.pack("<I", 4 + sum(size for size, _ in parts)) + b"WEBP"
    for _, part in parts:
        yield part


def _orientation(exif: bytes) -> int:
    """How a picture is turned, by its EXIF: 1 to 8, and 1 if it does not say."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack(f"{order}I", exif[4:8])
        (entries,) = struct.unpack(f"{order}H", exif[first : first + 2])
        for entry in range(entries):
            tag, kind, count, value = struct.unpack(
                f"{order}HHIH", exif[first + 2 + 12 * entry : first + 12 + 12 * entry]
            )
            if (tag, kind, count) == (_ORIENTATION, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _exif(orientation: int) -> bytes:
    """EXIF with nothing but how the picture is turned."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, _ORIENTATION, 3, 1, orientation, 0, 0)
