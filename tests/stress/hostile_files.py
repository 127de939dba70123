"""Hostile files made from real pictures: the input of `fuzz_pictures.py`.

The kind of a file says what was done to it, and so what must happen to it: a whole picture must be indexed, another
kind of file must be skipped, and for most damaged ones either is right. The same seed gives the same files, with the
same version of Pillow. This module knows formats, but not what will read the files.
"""

from __future__ import annotations

import io
import os
import random
import re
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Fate = Literal["indexed", "skipped", "either", "passed over"]
"""What must happen to a file. "passed over": its name says that it is no picture, or that it is hidden."""
A_FOLDER = 100
"""Files per folder."""
NEAR = 9_990
"""Side of a picture of nearly a hundred million pixels."""
NUMBERS = (0, 1, 2, 0xFF, 9_999, 16_383, 30_000, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class HostileFile:
    """A file, or another entry of a folder."""

    path: Path
    kind: str
    fate: Fate
    is_file: bool = True
    """A plain file of a size that can be sent."""


@dataclass(frozen=True)
class Content:
    """The bytes of a file, and its suffix."""

    data: bytes
    suffix: str
    fate: Fate = "either"


def make(folder: Path, count: int, seed: int, *, near_limit: int) -> Iterator[HostileFile]:
    """`count` files and a few other things below `folder`; `near_limit` more have nearly a hundred million pixels."""
    chance = random.Random(seed)
    for number in range(count):
        here = folder / f"{number // A_FOLDER:03d}"
        here.mkdir(parents=True, exist_ok=True)
        kind = chance.choice(list(KINDS))
        content = KINDS[kind](chance)
        suffix = content.suffix if chance.random() < 0.9 else chance.choice(SUFFIXES)
        odd = chance.random() < 0.1
        name = odd_name(chance, number, suffix) if odd else f"{number:06d}{suffix}".encode()
        path = here / os.fsdecode(name)
        path.write_bytes(content.data)
        yield HostileFile(path, kind, content.fate)
    others = folder / "others"
    others.mkdir(parents=True, exist_ok=True)
    yield from no_files(others)
    for number in range(near_limit):
        path = others / f"near-{number:03d}.png"
        path.write_bytes(_near_limit(number % len(NEAR_LIMIT)) + _behind(chance))
        yield HostileFile(path, "near the limit", "indexed")


# Real pictures


@cache
def originals() -> tuple[Content, ...]:
    """Small real pictures of every format that `voken.data.images` reads, in many modes."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    smooth = Image.fromarray(noise[:5, :6]).resize((48, 40), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274], exif[306], exif[271] = 6, "2024:05:06 07:08:09", "a camera"
    exif.get_ifd(0x8769)[36867] = "2023:05:06 07:08:09"
    deep = Image.fromarray(noise.view(np.uint16)[:, :, 0].copy())
    wide = Image.fromarray(noise.view(np.uint32)[:, :, 0].astype(np.float32))
    modes = {mode: smooth.convert("RGB").convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK", "YCbCr")}
    modes |= {"RGBA": smooth, "LA": smooth.convert("LA"), "I;16": deep, "F": wide}
    wanted: list[tuple[str, str, str, dict[str, Any]]] = [
        *(("PNG", ".png", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
        ("PNG", ".png", "P", {"transparency": bytes(range(256))}),
        ("PNG", ".png", "L", {"transparency": 7}),
        ("PNG", ".png", "RGB", {"exif": exif}),
        *(("JPEG", ".jpg", mode, {}) for mode in ("RGB", "L", "CMYK", "YCbCr")),
        ("JPEG", ".jpg", "RGB", {"progressive": True, "exif": exif}),
        ("MPO", ".jpg", "RGB", {"save_all": True, "append_images": [modes["RGB"]]}),
        *(("GIF", ".gif", mode, {}) for mode in ("P", "L", "1", "RGBA")),
        *(("BMP", ".bmp", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(("DIB", ".bmp", mode, {}) for mode in ("L", "RGB")),
        *(("PPM", ".ppm", mode, {}) for mode in ("1", "L", "RGB", "I;16", "F")),
        *(("TIFF", ".tif", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F", "LA")),
        *(("TIFF", ".tiff", "RGB", {"compression": how}) for how in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
        ("TIFF", ".tiff", "1", {"compression": "group4"}),
        ("TIFF", ".tiff", "RGB", {"save_all": True, "append_images": [modes["L"]], "exif": exif}),
        *(("WEBP", ".webp", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (True, False)),
        *(("AVIF", ".avif", mode, {"speed": 10}) for mode in ("RGB", "RGBA")),
    ]
    frames = {"save_all": True, "append_images": [modes["RGB"].rotate(90 * turn) for turn in range(1, 4)]}
    wanted += [(name, suffix, "RGB", frames) for name, suffix in (("GIF", ".gif"), ("PNG", ".png"), ("WEBP", ".webp"))]
    Image.init()
    writable = [(name, suffix, mode, how) for name, suffix, mode, how in wanted if name in Image.SAVE]
    pictures = [Content(_written(modes[mode], name, how), suffix, "indexed") for name, suffix, mode, how in writable]
    plain = b"P3 # plain\n3 2 255\n" + b" ".join(str(place * 13 % 256).encode() for place in range(18))
    return (*pictures, Content(plain, ".ppm", "indexed"))


def _written(image: Image.Image, form: str, options: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _behind(chance: random.Random) -> bytes:
    """Bytes behind the end of a picture, which no decoder reads; they make equal pictures unequal files."""
    return b"\n#" + chance.randbytes(8).hex().encode()


def _original(chance: random.Random, *suffixes: str) -> Content:
    return chance.choice([one for one in originals() if not suffixes or one.suffix in suffixes])


NEAR_LIMIT: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("RGB", "PNG", {"compress_level": 1}),
    ("I;16", "PNG", {"compress_level": 1}),
    ("RGBA", "PNG", {"compress_level": 1}),
    ("1", "PNG", {}),
    ("F", "TIFF", {"compression": "tiff_deflate"}),
    ("P", "GIF", {}),
    ("RGB", "JPEG", {}),
    ("RGB", "WEBP", {"method": 0, "quality": 1}),
)


@cache
def _near_limit(place: int) -> bytes:
    mode, form, options = NEAR_LIMIT[place]
    return _written(Image.new(mode, (NEAR, NEAR)), form, options)


# What is done to them


def whole(chance: random.Random) -> Content:
    """Unharmed, with some bytes behind its end."""
    one = _original(chance)
    return Content(one.data + _behind(chance), one.suffix, "indexed")


def truncated(chance: random.Random) -> Content:
    """Cut anywhere, as often within its first bytes as behind them."""
    one = _original(chance)
    most = min(64, len(one.data) - 1) if chance.random() < 0.5 else len(one.data) - 1
    return Content(one.data[: chance.randint(1, most)], one.suffix)


def flipped(chance: random.Random) -> Content:
    """Some bits are flipped, anywhere or only in the first bytes."""
    one = _original(chance)
    data = bytearray(one.data)
    most = min(128, len(data)) if chance.random() < 0.5 else len(data)
    for _ in range(2 ** chance.randint(0, 6)):
        data[chance.randrange(most)] ^= 1 << chance.randrange(8)
    return Content(bytes(data), one.suffix)


def overwritten(chance: random.Random) -> Content:
    """Two or four bytes somewhere hold a number that programmers forget."""
    one = _original(chance)
    data = bytearray(one.data)
    size = chance.choice((2, 4))
    at = chance.randrange(min(len(data), 512) - size)
    number = chance.choice(NUMBERS) & ((1 << 8 * size) - 1)
    data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
    return Content(bytes(data), one.suffix)


def resized(chance: random.Random) -> Content:
    """The header claims another size; nothing else is changed."""
    one = _original(chance, *SIZE_FIELDS)
    data = bytearray(one.data)
    for find in SIZE_FIELDS[one.suffix]:
        for at, size, order in find(bytes(data)):
            if chance.random() < 0.8:
                number = chance.choice(NUMBERS) & ((1 << 8 * size) - 1)
                data[at : at + size] = number.to_bytes(size, order)
    return Content(_checksummed(bytes(data)) if one.suffix == ".png" else bytes(data), one.suffix)


_Field = tuple[int, int, Literal["little", "big"]]


def _fixed(magic: bytes, *fields: _Field) -> Callable[[bytes], list[_Field]]:
    return lambda data: list(fields) if data.startswith(magic) else []


def _frame_header(data: bytes) -> list[_Field]:
    match = re.search(rb"\xff[\xc0-\xc2]..\x08", data, re.DOTALL)
    return [(match.end(), 2, "big"), (match.end() + 2, 2, "big")] if match else []


def _tags(data: bytes) -> list[_Field]:
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    entries = [at + 2 + 12 * place for place in range(count)]
    return [(here + 8, 4, "little") for here in entries if data[here : here + 2] in (b"\x00\x01", b"\x01\x01")]


def _extents(data: bytes) -> list[_Field]:
    at = data.find(b"ispe")
    return [] if at < 0 else [(at + 8, 4, "big"), (at + 12, 4, "big")]


SIZE_FIELDS: dict[str, list[Callable[[bytes], list[_Field]]]] = {
    ".png": [_fixed(b"\x89PNG", (16, 4, "big"), (20, 4, "big"))],
    ".gif": [_fixed(b"GIF8", (6, 2, "little"), (8, 2, "little"))],
    ".bmp": [
        _fixed(b"BM", (18, 4, "little"), (22, 4, "little")),
        _fixed(b"\x28\0\0\0", (4, 4, "little"), (8, 4, "little")),
    ],
    ".jpg": [_frame_header],
    ".tif": [_tags],
    ".webp": [_fixed(b"RIFF", (24, 3, "little"), (27, 3, "little"))],
    ".avif": [_extents],
}
"""By suffix: where the width and height of a file are."""


def joined(chance: random.Random) -> Content:
    """One file behind another, whole or in the middle of it."""
    one, other = _original(chance), _original(chance)
    at = len(one.data) if chance.random() < 0.5 else chance.randrange(len(one.data))
    return Content(one.data[:at] + other.data, one.suffix)


def bad_checksum(chance: random.Random) -> Content:
    """A PNG with a wrong checksum or length in one chunk."""
    one = _original(chance, ".png")
    data = bytearray(one.data)
    starts = [match.start() for match in re.finditer(rb"IHDR|IDAT|PLTE|tRNS|IEND", one.data)]
    data[chance.choice(starts) - chance.choice((1, -4, -5))] ^= 0x55
    return Content(bytes(data), ".png")


def png_bomb(chance: random.Random) -> Content:
    """A PNG with little in it that unpacks to much, in its pixels, texts or colour profile; or of very many chunks."""
    zeros = _packed_zeros()
    plain = _chunk(b"IDAT", zlib.compress(b"\0" * 400))
    before: dict[str, bytes] = {
        "pixels": b"",
        "text": _chunk(b"zTXt", b"k\0\0" + zeros),
        "texts": _chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 900_000)) * 200,
        "unicode": _chunk(b"iTXt", b"k\0\1\0\0\0" + zeros),
        "profile": _chunk(b"iCCP", b"k\0\0" + zeros),
        "long": _chunk(b"tEXt", b"k\0" + b"x" * 3_000_000),
        "many": _chunk(b"tEXt", b"k\0v") * 60_000,
        "exif": _chunk(b"eXIf", chance.randbytes(200_000)),
        "animation": _chunk(b"acTL", struct.pack(">II", 0xFFFFFFFF, 0)),
        "palette": _chunk(b"PLTE", chance.randbytes(chance.choice((0, 1, 3, 768, 3000)))),
    }
    what = chance.choice(list(before))
    pixels = _chunk(b"IDAT", zeros) if what == "pixels" else plain
    kind = chance.choice((b"\x08\x00", b"\x08\x02", b"\x08\x03", b"\x10\x00", b"\x01\x00"))
    header = _chunk(b"IHDR", struct.pack(">II", 10, 10) + kind + b"\0\0\0")
    return Content(b"\x89PNG\r\n\x1a\n" + header + before[what] + pixels + _chunk(b"IEND", b""), ".png")


def many_frames(chance: random.Random) -> Content:
    """A GIF of some thousand frames; only the first is read."""
    one = next(one for one in originals() if one.suffix == ".gif")
    start = one.data.index(b"\x2c")
    frames = chance.randint(500, 3000)
    frame = b"\x21\xf9\x04\0\1\0\0\0" + one.data[start:-1]
    return Content(one.data[:start] + frame * min(frames, 1 + 4_000_000 // len(frame)) + b"\x3b", ".gif", "indexed")


def odd_tags(chance: random.Random) -> Content:
    """A TIFF whose directories loop, lie, or hold too much."""
    long, short = 4, 3
    entries = [(256, long, 1, 8), (257, long, 1, 8), (258, short, 1, 8), (259, short, 1, 1), (262, short, 1, 1)]
    entries += [(273, long, 1, 0), (277, short, 1, 1), (278, long, 1, 8), (279, long, 1, 64)]
    following = 0
    match chance.randrange(6):
        case 0:
            following = 8  # its own directory is the next one
        case 1:
            entries += [
                (tag, chance.randrange(20), chance.choice(NUMBERS), chance.choice(NUMBERS)) for tag in (270, 271)
            ]
        case 2:
            entries += [(0x8769, long, 1, 8), (0x8825, long, 1, 8), (330, long, 1, 8)]
        case 3:
            entries += [(chance.randrange(1 << 16), 2, chance.choice(NUMBERS), 8) for _ in range(2_000)]
        case 4:
            entries = [(tag, kind, count, chance.choice(NUMBERS)) for tag, kind, count, _ in entries]
        case _:
            entries = [(tag, kind, chance.choice(NUMBERS), value) for tag, kind, count, value in entries]
    wide = [(tag, kind, count, min(value, 0xFFFFFFFF)) for tag, kind, count, value in entries]
    body = struct.pack("<H", len(wide)) + b"".join(struct.pack("<HHII", *one) for one in wide)
    return Content(b"II*\0\x08\0\0\0" + body + struct.pack("<I", following) + chance.randbytes(64), ".tif")


def odd_exif(chance: random.Random) -> Content:
    """A JPEG whose EXIF is garbage, loops, or has an orientation that does not exist."""
    one = _original(chance, ".jpg")
    turned = struct.pack("<HHII", 274, 3, 1, chance.choice((0, 3, 9, 70_000)))
    loop = struct.pack("<HHII", 0x8769, 4, 1, 8)
    dated = struct.pack("<HHII", 306, 2, chance.choice((1, 20, 0xFFFFFFFF)), 8)
    entries = chance.choice(([turned], [turned, loop], [dated, loop, turned]))
    known = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 8)
    exif = b"Exif\0\0" + chance.choice((known, chance.randbytes(chance.randrange(60_000)), b""))
    return Content(one.data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + one.data[2:], ".jpg")


def empty(chance: random.Random) -> Content:
    """No byte, or a single one."""
    return Content(chance.choice((b"", b"\0", b"\x89", b"B", b"P")), chance.choice(SUFFIXES), "skipped")


def nothing_of_the_kind(chance: random.Random) -> Content:
    """A text, a page, an SVG, an archive, a program; some begin as pictures do."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr(zipfile.ZipInfo("a.png"), b"\x89PNG")  # a plain name would be stored with the time of day
    choices = (
        "I am no picture. " * chance.randrange(1, 50),
        "<!doctype html><html><body><img src=x.png></body></html>",
        '<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/><script>alert(1)</script></svg>',
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        '{"file_name": "a.png"}\n',
        archive.getvalue(),
        b"\x7fELF\x02\x01\x01" + chance.randbytes(2_000),
        b"\x89PNG\r\n\x1a\n" + chance.randbytes(500),
        b"GIF89a",
        b"RIFF\xff\xff\xff\xffWEBPVP8 ",
        b"\xff\xd8\xff\xe0",
        chance.randbytes(4_000),
    )
    choice = chance.choice(choices)
    data = choice.encode() if isinstance(choice, str) else choice
    return Content(data, chance.choice(SUFFIXES), "skipped")


def another_format(chance: random.Random) -> Content:
    """A format that Pillow reads and voken does not."""
    names = ("ICO", "TGA", "PCX", "SGI", "JPEG2000", "ICNS", "EPS", "SPIDER", "MSP", "XBM")
    Image.init()
    form = chance.choice([name for name in names if name in Image.SAVE])
    mode = {"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(form, "RGB")
    data = _written(Image.new(mode, (32, 32)), form, {})
    return Content(data, chance.choice((".png", ".jpg")), "skipped")


KINDS: dict[str, Callable[[random.Random], Content]] = {
    one.__name__.replace("_", " "): one
    for one in (
        whole,
        truncated,
        flipped,
        overwritten,
        resized,
        joined,
        bad_checksum,
        png_bomb,
        many_frames,
        odd_tags,
        odd_exif,
        empty,
        nothing_of_the_kind,
        another_format,
    )
}
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp", ".PNG", ".Jpg")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _checksummed(png: bytes) -> bytes:
    """The PNG with the right checksum of its header."""
    return png[:29] + struct.pack(">I", zlib.crc32(png[12:29])) + png[33:]


@cache
def _packed_zeros() -> bytes:
    return zlib.compress(bytes(100_000_000), 9)


# Names, and entries that are no files


def odd_name(chance: random.Random, number: int, suffix: str) -> bytes:
    """A name that is allowed but rarely expected. Names in one folder differ by their number."""
    stem = f"{number:06d}".encode()
    end = suffix.encode()
    choices = (
        stem + b"\nsecond line" + end,
        stem + b"\x1b[31m\x07\t\x7f" + end,
        stem + b"\xff\xfe" + end,
        stem + b"\xed\xa0\x80" + end,  # half a surrogate pair, as UTF-8 forbids
        stem + b"x" * (255 - len(stem) - len(end)) + end,
        stem + "é́‮𝄞".encode() + end,
        stem + b"'\"`$(reboot);&|<>*?[]{}%00" + end,
        b" " + stem + b" " + end,
        b"--" + stem + end,
        stem + b"\\..\\" + end,
        stem + end + end,
    )
    return chance.choice(choices)


def no_files(folder: Path) -> Iterator[HostileFile]:
    """One of every kind of folder entry that is no plain file, and files that cannot be read."""

    def below(name: str, fate: Fate) -> HostileFile:
        return HostileFile(folder / name, "no plain file", fate, is_file=False)

    picture = originals()[0].data
    os.mkfifo(folder / "pipe.png")
    yield below("pipe.png", "skipped")
    here = os.open(folder, os.O_RDONLY)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"/proc/self/fd/{here}/socket.png")  # a socket's path may have 107 bytes
        yield below("socket.png", "skipped")
    os.close(here)
    (folder / "folder.png").mkdir()
    (folder / "folder.png" / "in.png").write_bytes(picture)
    yield HostileFile(folder / "folder.png" / "in.png", "no plain file", "indexed")
    for name, target, fate in (
        ("loop.png", "loop.png", "skipped"),
        ("nowhere.png", "none", "skipped"),
        ("device.png", "/dev/zero", "skipped"),
        ("to-pipe.png", "pipe.png", "skipped"),
        ("linked.png", "folder.png/in.png", "indexed"),
        ("to-folder.png", "folder.png", "passed over"),
        ("up.png", "..", "passed over"),
        (".hidden.png", "folder.png/in.png", "passed over"),
    ):
        (folder / name).symlink_to(target)
        yield below(name, fate)  # type: ignore[arg-type]
    with suppress(OSError):  # some file systems do not take so long a file
        (folder / "sparse.png").write_bytes(picture)
        os.truncate(folder / "sparse.png", 1 << 40)
        yield below("sparse.png", "skipped")
    if os.geteuid():  # root may read everything
        (folder / "secret.png").write_bytes(picture)
        (folder / "secret.png").chmod(0)
        yield below("secret.png", "skipped")
