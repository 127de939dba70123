"""Reads pictures from files that may be damaged or hostile.

`open_image` turns every format that it reads into the same kind of picture: 8-bit RGB, upright, opaque, one frame. A
file that cannot be used raises a PictureError, which names the file and the reason. `load_images` reads many pictures;
it continues after such a file and yields a `Skipped` in its place.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from voken.data.dates import date_in_exif
from voken.data.skipped import CANNOT_READ, INSTALL, OVER_LIMIT, Skipped
from voken.errors import ConfigError, PictureError
from voken.progress import Progress

MAX_PIXELS = 100_000_000
"""A picture that claims more pixels than this is refused before it is decoded."""

MAX_BYTES = 1 << 30
"""A larger file is not read. 100 million pixels of four 16-bit channels take 0.8 of this."""


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(f".{name}" for name in names.split())


SUFFIXES = _suffixes("apng avif bmp dib gif jfi jfif jif jpe jpeg jpg mpo pbm pgm png pnm ppm tif tiff webp")
"""The suffixes of pictures, in lower case. `open_image` recognises pictures by content."""

_RAW_SUFFIXES = _suffixes(
    "3fr arw cr2 cr3 crw dcr dng erf fff iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f"
)
# only formats that Pillow decodes itself: its EPS reader, for example, starts another program
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class _Decoder:
    """A library of the extra `pictures`."""

    module: str
    what: str
    """What it reads, with an article."""
    suffixes: frozenset[str]
    format: str = ""
    """The format that it adds to Pillow; empty if it adds none."""

    @property
    def is_installed(self) -> bool:
        return _is_installed(self.module)

    @property
    def missing(self) -> str:
        return f'{self.what}. {INSTALL} "voken-search[pictures]"'


_HEIF = _Decoder("pillow_heif", "a HEIC picture", frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"}), "HEIF")
_JPEG_XL = _Decoder("pillow_jxl", "a JPEG XL picture", frozenset({".jxl"}), "JXL")
_RAW = _Decoder("rawpy", "a camera's raw picture", _RAW_SUFFIXES)
_DECODERS = (_HEIF, _JPEG_XL, _RAW)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_JPEG_XL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_SMALLEST_PREVIEW = 256
"""A camera's raw picture whose preview has a shorter side than this is developed instead."""
_PIXELS_AT_ONCE = 1 << 20
_PIXELS_AHEAD = 1 << 25
"""The pixels that are decoded ahead of the consumer: 128 MB, because Pillow uses four bytes per pixel."""
_INTEGER_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
_NEARLY_ALL = 0.999
_FLOAT_LIGHTS = 16.0
"""Floating-point pictures whose largest number is above 1 and below this hold bright lights, and not 0 to 255."""
_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class PictureFormat:
    """The format of a picture's file. No format here can hold a script, which a browser would run."""

    media_type: str
    suffix: str


_PICTURE_FORMATS = {
    "JPEG": PictureFormat("image/jpeg", ".jpg"),  # its first bytes are also those of Pillow's MPO
    "PNG": PictureFormat("image/png", ".png"),
    "WEBP": PictureFormat("image/webp", ".webp"),
    "GIF": PictureFormat("image/gif", ".gif"),
    "AVIF": PictureFormat("image/avif", ".avif"),
    "TIFF": PictureFormat("image/tiff", ".tif"),
    "BMP": PictureFormat("image/bmp", ".bmp"),
    "PPM": PictureFormat("image/x-portable-anymap", ".ppm"),
    "DIB": PictureFormat("image/bmp", ".dib"),
    "HEIF": PictureFormat("image/heic", ".heic"),
    "JXL": PictureFormat("image/jxl", ".jxl"),
}
_PREFIX_BYTES = 16
"""Pillow recognises a format by so many bytes at the start of a file."""


def picture_format(file: BinaryIO) -> PictureFormat | None:
    """The format of an open file by its first bytes, or None if `open_image` cannot read it. Rewinds the file."""
    readable = _formats()
    file.seek(0)
    prefix = file.read(_PREFIX_BYTES)
    file.seek(0)
    formats = ((name, file_format) for name, file_format in _PICTURE_FORMATS.items() if name in readable)
    return next((file_format for name, file_format in formats if _accepts(name, prefix)), None)


def reason_of_suffix(suffix: str) -> str | None:
    """Whether files with this suffix, in lower case, are pictures: "" if they are, else the reason why they are not.

    None means that the suffix says nothing.
    """
    if suffix in SUFFIXES:
        return ""
    decoder = next((decoder for decoder in _DECODERS if suffix in decoder.suffixes), None)
    return None if decoder is None else "" if decoder.is_installed else decoder.missing


def reason_of_content(path: Path) -> str:
    """Whether a file is a picture, by its first bytes: "" if it is, else why it is not used. Reads no more of it."""
    try:
        with _open_file(path) as file:
            prefix = file.read(_PREFIX_BYTES)
            return "" if picture_format(file) else _reason_of_prefix(prefix)
    except PictureError as error:
        return error.reason
    except OSError as error:
        return f"{CANNOT_READ} ({error.strerror or error})"


def _reason_of_prefix(prefix: bytes) -> str:
    if not prefix:
        return "empty file"
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS and not _HEIF.is_installed:
        return _HEIF.missing
    if prefix.startswith(_JPEG_XL_STARTS) and not _JPEG_XL.is_installed:
        return _JPEG_XL.missing
    return _UNKNOWN


_UNKNOWN = "not a picture of a known kind"


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def _accepts(name: str, prefix: bytes) -> bool:
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    try:
        return accept is not None and accept(prefix) is True
    except (SyntaxError, IndexError, TypeError, struct.error):
        return False  # the prefix is shorter than the test expects


def file_hash(path: Path) -> str:
    """The BLAKE2b hash of a file's content, 128 bits in hexadecimal.

    Raises PictureError if the file cannot be read, is not a regular file, or is larger than `MAX_BYTES`.
    """
    digest = blake2b(digest_size=16)
    try:
        with _open_file(path) as source:
            while block := source.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise PictureError(path, f"{CANNOT_READ} ({error.strerror or error})") from error
    return digest.hexdigest()


def date_taken(path: Path) -> int | None:
    """When a picture was taken, by its EXIF data (see `voken.data.dates`); None if unknown."""
    try:
        with _QUIET, _open_file(path) as source, Image.open(source, formats=_formats()) as image:
            # PngImageFile.getexif would decode the whole picture if the EXIF does not precede the pixels
            exif = Image.Image.getexif(image)
            return date_in_exif(exif)
    # Pillow may raise any exception for a hostile or damaged file, which then has no date
    except Exception:
        return None


def open_image(
    path: Path | BinaryIO, *, size: int | None = None, least_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The first frame of a picture in mode RGB, turned upright by its EXIF, with white behind transparent pixels.

    16-bit greys are scaled (65535 becomes 255), not clipped. With `size`, the shorter side is resized to `size`
    (bicubic) and the centre is cropped to size × size pixels, without distortion or padding; JPEGs are then decoded at
    a smaller scale if that loses nothing. Without `size` the whole picture is returned, and at its own size without
    `least_side`: with it, a JPEG whose shorter side has four times as many pixels or more may be decoded at half the
    size, and so on, so that it never has fewer than twice as many.

    Raises PictureError if the file does not exist, is empty, truncated or not a picture, or if its header claims more
    than `max_pixels`; then nothing is decoded. The format is recognised by content, not by the file's name. A path to
    something that is not a regular file (a named pipe, a device), or to a file larger than `MAX_BYTES`, is refused
    without being read.
    """
    name = str(path) if isinstance(path, (str, os.PathLike)) else str(getattr(path, "name", "(stream)"))
    try:
        with _QUIET, _opened(path) as source:
            return _decode(source, name, size, least_side or size, max_pixels)
    except PictureError:
        raise
    except FileNotFoundError:
        raise PictureError(name, "no such file") from None
    except UnidentifiedImageError:
        raise PictureError(name, _UNKNOWN) from None
    except Image.DecompressionBombError as error:
        number = re.search(r"\d+", str(error))
        pixels = f"{int(number[0]):,} pixels" if number else "too many pixels"
        raise PictureError(name, f"claims {pixels}, over the limit of {max_pixels:,}") from None
    except MemoryError:
        raise PictureError(name, "too large for the available memory") from None
    # Pillow may raise any exception for a hostile file
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise PictureError(name, f"{CANNOT_READ} ({error.strerror})") from error
        raise PictureError(name, f"cannot be decoded ({error or type(error).__name__})") from error


def load_images(
    paths: Sequence[Path],
    *,
    size: int | None = None,
    least_side: int | None = None,
    prepare: Callable[[Image.Image], Image.Image] | None = None,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Image.Image | Skipped]]:
    """Open many pictures with `workers` threads. Yields pairs of index into `paths` and picture or `Skipped`, in order.

    Only a few pictures per thread are in memory at once, and fewer if they are large, even if the consumer is slow.
    `open_image` explains `size`, `least_side` and `max_pixels`. The threads call `prepare` on each picture, which may
    make it smaller.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    ahead = _DecodedAhead()

    def load(index: int) -> Image.Image | Skipped:
        ahead.wait(index)
        try:
            image = open_image(paths[index], size=size, least_side=least_side, max_pixels=max_pixels)
            image = image if prepare is None else prepare(image)
        except PictureError as error:
            return Skipped(error.path, error.reason)
        ahead.add(image)
        return image

    total = len(paths)
    waiting: deque[Future[Image.Image | Skipped]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="voken-image") as pool:
        try:
            started = 0
            for index in range(total):
                while started < total and len(waiting) < 4 * workers:
                    waiting.append(pool.submit(load, started))
                    started += 1
                result = waiting.popleft().result()
                ahead.take(result)
                if progress is not None:
                    progress("read pictures", index + 1, total)
                yield index, result
        finally:
            for future in waiting:
                future.cancel()
            ahead.close()


class _DecodedAhead:
    """Limits the pixels that are decoded ahead of the consumer. The picture that is needed next never waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pixels = 0
        self._next = 0
        self._closed = False

    def wait(self, index: int) -> None:
        """Wait until the picture at `index` may be decoded."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or index == self._next or self._pixels < _PIXELS_AHEAD)

    def add(self, image: Image.Image) -> None:
        """Count the pixels of a picture that was decoded."""
        with self._changed:
            self._pixels += image.width * image.height

    def take(self, result: Image.Image | Skipped) -> None:
        """Stop counting the pixels of a picture that the consumer receives."""
        with self._changed:
            self._next += 1
            if isinstance(result, Image.Image):
                self._pixels -= result.width * result.height
            self._changed.notify_all()

    def close(self) -> None:
        """Let the waiting threads continue."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class _Quiet:
    """Silences Pillow's warnings while any thread is inside the block.

    `warnings.catch_warnings` replaces global state, and two threads would restore it in the wrong order. So the first
    thread that enters replaces it, and the last that leaves restores it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stack.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\b")
                warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
                # the caller's limit counts, which is checked before the pixels are decoded
                limit = Image.MAX_IMAGE_PIXELS
                Image.MAX_IMAGE_PIXELS = None
                self._stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", limit)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stack.close()


_QUIET = _Quiet()


@contextmanager
def _opened(path: Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(path, (str, os.PathLike)):
        with _open_file(path) as source:
            yield source
    else:
        yield path


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file of at most `MAX_BYTES`. A named pipe could block for ever, and a device might never end."""
    status = os.stat(path)  # noqa: PTH116 -- `path` may be a text
    if not stat.S_ISREG(status.st_mode):
        raise PictureError(path, f"{_FILE_TYPES.get(stat.S_IFMT(status.st_mode), 'something else')}, not a file")
    if status.st_size > MAX_BYTES:
        raise PictureError(path, f"{status.st_size:,} bytes, over the limit of {MAX_BYTES:,}")
    # a pipe that has replaced the file meanwhile must not block; Windows lacks this flag and needs another
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return open(path, "rb", opener=lambda name, _: os.open(name, flags))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    if _HEIF.is_installed:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    if _JPEG_XL.is_installed:
        import pillow_jxl  # noqa: F401 -- the import adds the format to Pillow
    added = (decoder.format for decoder in _DECODERS if decoder.format)
    return tuple(name for name in (*_FORMATS, *added) if name in Image.OPEN)


def _decode(source: BinaryIO, name: str, size: int | None, least_side: int | None, max_pixels: int) -> Image.Image:
    start = source.tell()
    prefix = source.read(_PREFIX_BYTES)
    source.seek(start)
    reason = _reason_of_prefix(prefix)
    if reason != _UNKNOWN:
        raise PictureError(name, reason)
    if os.path.splitext(name)[1].lower() in _RAW_SUFFIXES:  # noqa: PTH122 -- `name` is a text
        return _decode_raw(source, name, size, least_side, max_pixels)
    with Image.open(source, formats=_formats()) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise PictureError(name, f"claims {width:,} × {height:,} {OVER_LIMIT} {max_pixels:,}")
        if least_side is not None:
            # twice the size, so that the bicubic step still averages several pixels
            image.draft("RGB", (2 * least_side, 2 * least_side))
        image.load()
        # a picture with broken EXIF is still usable
        with suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        rgb = _rgb(image)
    return rgb if size is None else _square(rgb, size)


def _decode_raw(source: BinaryIO, name: str, size: int | None, least_side: int | None, max_pixels: int) -> Image.Image:
    """A camera's raw picture: the preview that the camera put into the file, or else the developed picture."""
    if not _RAW.is_installed:
        raise PictureError(name, _RAW.missing)
    import rawpy

    try:
        with rawpy.imread(source) as raw:
            width, height = raw.sizes.width, raw.sizes.height
            if width * height > max_pixels:
                raise PictureError(name, f"claims {width:,} × {height:,} {OVER_LIMIT} {max_pixels:,}")
            picture = _preview(raw, max_pixels, max(least_side or 0, _SMALLEST_PREVIEW))
            if picture is None:
                developed = raw.postprocess(use_camera_wb=True, half_size=min(width, height) > 4 * _SMALLEST_PREVIEW)
                picture = Image.fromarray(developed)
    except rawpy.LibRawError as error:
        text = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise PictureError(name, f"cannot be decoded ({text})") from error
    return picture if size is None else _square(picture, size)


def _preview(raw: Any, max_pixels: int, smallest: int) -> Image.Image | None:
    """The preview in a raw picture, upright; None if it has none whose shorter side is at least `smallest`."""
    import rawpy

    try:
        thumbnail = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    if thumbnail.format == rawpy.ThumbFormat.BITMAP:
        preview = Image.fromarray(thumbnail.data)
    else:
        preview = Image.open(BytesIO(thumbnail.data), formats=("JPEG",))
    if not smallest <= min(preview.size) or preview.width * preview.height > max_pixels:
        return None
    turned = preview.getexif().get(ExifTags.Base.Orientation) is not None
    upright = ImageOps.exif_transpose(preview) if turned else preview
    turn = None if turned else _TURNS.get(raw.sizes.flip)
    return _rgb(upright if turn is None else upright.transpose(turn))


_TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}
"""LibRaw's `flip`."""


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        white = _white_level(image)
        return _in_strips(image, lambda strip: _eight_bits(strip, white))
    if image.has_transparency_data:
        return _in_strips(image, _over_white)
    return image.convert("RGB") if image.mode != "RGB" or image.info.get("transparency") is not None else image.copy()


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert a few rows at a time, because intermediate values take many times the memory of the result."""
    whole = Image.new("RGB", image.size)
    for box in _strips(image):
        whole.paste(convert(image.crop(box)), box)
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _PIXELS_AT_ONCE // max(1, image.width))
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _over_white(image: Image.Image) -> Image.Image:
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return background.convert("RGB")


def _white_level(image: Image.Image) -> float:
    """The value that becomes 255. Files do not give the range of deep greys: the narrowest usual range is used.

    A sensor's 10, 12 or 14 bits lie in 16. Floating-point numbers end at 1 or at 255; if they end elsewhere, at the
    largest, without the few that are far beyond the rest, such as the sun and broken pixels.
    """
    if image.mode != "F":
        maximum = max((float(_numbers(image.crop(box)).max(initial=0.0)) for box in _strips(image)), default=0.0)
        return next((limit for limit in _INTEGER_WHITES if maximum <= limit), maximum)
    step = max(1, math.isqrt(image.width * image.height // _PIXELS_AT_ONCE))
    sample = [np.asarray(image.crop(box))[::, ::step].ravel()[::step] for box in _strips(image)]
    with np.errstate(invalid="ignore"):
        values = np.nan_to_num(np.concatenate(sample).astype(np.float64), posinf=0.0, neginf=0.0)
    largest = float(np.quantile(values, _NEARLY_ALL)) if values.size else 0.0
    if largest <= 1.0:
        return 1.0
    return 255.0 if _FLOAT_LIGHTS < largest <= 255.0 else largest


def _eight_bits(image: Image.Image, white: float) -> Image.Image:
    scaled = np.clip(np.rint(_numbers(image) * (255.0 / white)), 0, 255).astype(np.uint8)
    return Image.fromarray(scaled, mode="L").convert("RGB")


def _numbers(image: Image.Image) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # raised by a signalling NaN
        return np.nan_to_num(np.asarray(image).astype(np.float64))


def _square(image: Image.Image, size: int) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=3.0
    )


def header_format(file: BinaryIO) -> PictureFormat | None:
    """The format of an open file by its whole header, or None if `open_image` cannot read it. Rewinds the file.

    Many texts begin with the two letters of a picture's format (`BM`, `P1`); few have the rest of its header.
    """
    file_format = picture_format(file)
    if file_format is not None and not _has_header(file):
        file_format = None
    file.seek(0)
    return file_format


@contextmanager
def opened_header(file: BinaryIO) -> Iterator[Image.Image]:
    """The picture in an open file, of which only the header has been read. Raises what Pillow raises."""
    with _QUIET, Image.open(file, formats=_formats()) as image:
        yield image


def _has_header(file: BinaryIO) -> bool:
    try:
        with opened_header(file) as image:
            return image.width > 0 < image.height
    except Image.DecompressionBombError:
        return True  # a picture, if a large one
    # Pillow may raise any exception for a hostile file
    except Exception:
        return False
