"""Every kind of picture a folder may hold, and every kind that must be refused."""

import io
import os
import socket
import struct
import threading
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from voken.data import images
from voken.data.images import MAX_BYTES, date_taken, file_hash, load_images, open_image
from voken.data.skipped import Skipped
from voken.errors import ConfigError, PictureError


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def png_claiming(path: Path, width: int, height: int) -> Path:
    """A well-formed PNG header with next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    return path


def test_plain_rgb_is_unchanged(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert (pixels(open_image(tmp_path / "a.png")) == values).all()


def test_a_stream_is_read_from_where_it_stands(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), "blue").save(stream, "PNG")
    stream.seek(0)
    assert pixels(open_image(stream))[0, 0].tolist() == [0, 0, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 256, 257, 1000, 32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    # v / 257 to the nearest, by hand
    expected = [0, 0, 1, 1, 1, 4, 128, 255, 255]
    for name in ("deep.png", "deep.tiff"):
        for channel in range(3):
            assert pixels(open_image(tmp_path / name))[0, :, channel].tolist() == expected, name


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0.0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[-5.0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[0.0, 500_000.0, 1_000_000.0]], np.float32), [0, 128, 255]),
        (np.array([[float("nan"), 0.0, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0.0, 0.0, 0.0]], np.float32), [0, 0, 0]),
        # the first is a signalling NaN, at which a processor raises a flag
        (np.array([[0x7FA00000, 0, 0x3F800000]], np.uint32).view(np.float32), [0, 0, 255]),
    ],
)
def test_thirty_two_bit_grey(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert pixels(open_image(tmp_path / "a.tiff"))[0, :, 0].tolist() == expected


def test_cmyk_jpeg(tmp_path):
    # C=0 M=255 Y=255 K=0 is red
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(open_image(tmp_path / "a.jpg")).astype(int) - [255, 0, 0]).max() <= 3


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (2, 2), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (2, 2), (200, 0, 0, 51)).save(tmp_path / "fifth.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "grey.png")
    Image.new("L", (2, 2), 7).save(tmp_path / "key.png", transparency=7)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "bytes.png", transparency=b"\x00\xff")
    palette.save(tmp_path / "index.gif", transparency=0)
    assert (pixels(open_image(tmp_path / "clear.png")) == 255).all()
    # 255 − (255 − 200) · 0.2 = 244, 255 − 255 · 0.2 = 204
    assert pixels(open_image(tmp_path / "fifth.png"))[0, 0].tolist() == [244, 204, 204]
    assert (pixels(open_image(tmp_path / "grey.png")) == 255).all()
    assert (pixels(open_image(tmp_path / "key.png")) == 255).all()
    for name in ("bytes.png", "index.gif"):
        assert pixels(open_image(tmp_path / name))[0].tolist() == [[255, 255, 255], [0, 0, 255]], name


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_conversions_in_strips_leave_no_seams(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(images, "_PIXELS_AT_ONCE", at_once)
    values = np.random.default_rng(0).integers(0, 256, (11, 3, 4), dtype=np.uint8)
    values[:, :, 3] = np.where(values[:, :, 3] > 127, 255, 0)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.where(values[:, :, 3:] == 255, values[:, :, :3], 255)
    assert (pixels(open_image(tmp_path / "a.png")) == expected).all()
    # the largest of all becomes 255, in whatever strip it stands
    greys = np.arange(33, dtype=np.int32).reshape(11, 3) * 10
    greys[0, 0] = 255_000
    for upside in (greys, greys[::-1]):
        Image.fromarray(np.ascontiguousarray(upside)).save(tmp_path / "a.tiff")
        assert (pixels(open_image(tmp_path / "a.tiff"))[:, :, 1] == np.rint(upside / 1000)).all()


def test_deep_greys_take_little_more_than_the_picture(tmp_path):
    side = 3000
    Image.new("I;16", (side, side), 40_000).save(tmp_path / "a.png", compress_level=1)
    tracemalloc.start()
    try:
        open_image(tmp_path / "a.png")
        # of arrays; Pillow's own memory is not traced. All at once it was 32 bytes a pixel
        assert tracemalloc.get_traced_memory()[1] < 8 * side * side
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    name = "a.jpg" if mode == "YCbCr" else "a.png"
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / name)
    assert (pixels(open_image(tmp_path / name)) >= 254).all()


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert pixels(open_image(tmp_path / name))[0, 0].tolist() == [255, 0, 0], name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = 255
    # how a camera stores the upright picture for each orientation, from the EXIF standard's definition
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, 3),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert (pixels(open_image(tmp_path / "a.png")) == upright).all()


def test_broken_exif_is_passed_over(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(tmp_path / "a.jpg").size == (8, 8)


def test_the_content_tells_the_kind_not_the_name(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "really.jpg")
    assert pixels(open_image(tmp_path / "really.jpg"))[0, 0].tolist() == [255, 0, 0]


def test_size_crops_the_centre_and_squashes_nothing(tmp_path):
    values = np.zeros((20, 60, 3), dtype=np.uint8)
    # the bicubic filter reaches a few pixels past the crop, as it does when the whole is resized and then cropped
    values[:, 15:45] = 255
    Image.fromarray(values).save(tmp_path / "wide.png")
    Image.fromarray(np.ascontiguousarray(values.transpose(1, 0, 2))).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        picture = open_image(tmp_path / name, size=10)
        assert picture.size == (10, 10)
        assert (pixels(picture) == 255).all()
    assert open_image(tmp_path / "wide.png", size=64).size == (64, 64)
    Image.new("RGB", (500, 1), "red").save(tmp_path / "line.png")
    assert pixels(open_image(tmp_path / "line.png", size=8)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64


def test_size_agrees_with_a_plain_crop_and_resize(tmp_path):
    smooth = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 9, 3), dtype=np.uint8)).resize((1800, 1200))
    smooth.save(tmp_path / "big.jpg", quality=95)
    expected = smooth.crop((300, 0, 1500, 1200)).resize((48, 48), Image.Resampling.BICUBIC)
    picture = pixels(open_image(tmp_path / "big.jpg", size=48)).astype(int)
    assert np.abs(picture - np.asarray(expected)).mean() < 2


def refused(path: Path) -> str:
    with pytest.raises(PictureError) as caught:
        open_image(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def test_files_that_are_no_picture(tmp_path):
    (tmp_path / "empty.png").touch()
    assert refused(tmp_path / "empty.png") == "empty file"
    (tmp_path / "text.jpg").write_text("I am no picture")
    assert refused(tmp_path / "text.jpg") == "not a picture of a known kind"
    assert refused(tmp_path / "gone.jpg") == "no such file"
    (tmp_path / "folder.png").mkdir()
    assert refused(tmp_path / "folder.png") == "a folder, not a file"
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert refused(tmp_path / "a.eps") == "not a picture of a known kind"


@pytest.fixture
def pipe(tmp_path):
    """A named pipe with a writer, without whom who reads it would wait for ever."""
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.open("wb").close(), daemon=True)
    writer.start()
    yield path
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.join()
    os.close(reader)


def test_what_is_no_file_is_never_read(tmp_path, pipe):
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
    for name, reason in (("pipe", "a named pipe"), ("zero", "a device"), ("s", "a socket")):
        path = tmp_path / f"{name}.png"
        assert refused(path) == f"{reason}, not a file"
        assert date_taken(path) is None
        with pytest.raises(PictureError, match=f"{reason}, not a file"):
            file_hash(path)
    assert "symbolic links" in refused(tmp_path / "loop.png")
    with pytest.raises(PictureError, match="cannot be read"):
        file_hash(tmp_path / "loop.png")


def test_a_file_too_long_for_a_picture_is_never_read(tmp_path):
    path = tmp_path / "sparse.png"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)
    assert refused(path) == "1,073,741,825 bytes, over the limit of 1,073,741,824"
    with pytest.raises(PictureError, match="over the limit"):
        file_hash(path)


def test_the_date_is_read_without_the_pixels(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[306] = "1970:01:02 00:00:01"
    for name in ("a.png", "a.jpg", "a.webp", "a.tiff"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"dated-{name}", exif=exif)
        Image.new("RGB", (8, 8)).save(tmp_path / name)

    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.filename))
    for name in ("a.png", "a.jpg", "a.webp", "a.tiff"):
        assert date_taken(tmp_path / f"dated-{name}") == 86_401, name
        assert date_taken(tmp_path / name) is None
    assert decoded == []


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.webp", "a.bmp", "a.tiff"])
def test_truncated_and_damaged_files(tmp_path, name):
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / name)
    for length in (1, 3, 10, 20, 30):
        (tmp_path / name).write_bytes(whole[:length])
        refused(tmp_path / name)


def test_random_damage_never_escapes_as_another_error(tmp_path):
    lots = np.random.default_rng(0)
    for name in ("a.jpg", "a.png", "a.gif", "a.webp", "a.tiff", "a.bmp"):
        Image.fromarray(lots.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name)
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[lots.integers(0, len(whole), 4)] = lots.integers(0, 256, 4)
            (tmp_path / name).write_bytes(damaged.tobytes())
            with suppress(PictureError):
                assert open_image(tmp_path / name, size=8).size == (8, 8)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_001), (12_000, 12_000)])
def test_huge_pictures_are_refused_before_decoding(tmp_path, width, height):
    reason = refused(png_claiming(tmp_path / "bomb.png", width, height))
    assert "over the limit of 100,000,000" in reason


def test_the_limit_is_a_setting(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", max_pixels=200).size == (20, 10)
    with pytest.raises(PictureError, match="claims 20 × 10 pixels, over the limit of 199"):
        open_image(tmp_path / "a.png", max_pixels=199)


def test_the_filters_for_warnings_are_left_as_they_were(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    before = list(warnings.filters)
    start = threading.Barrier(4)

    def many(_: int) -> None:
        start.wait()
        for _ in range(50):
            open_image(tmp_path / "a.png")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(many, range(4)))
    assert warnings.filters == before


def test_load_images_is_ordered_and_goes_on_after_a_bad_one(tmp_path):
    paths = []
    for number in range(30):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (4, 4), (number, 0, 0)).save(paths[-1])
    paths[7].write_text("broken")
    progress = []
    results = list(
        load_images(paths, size=2, workers=3, progress=lambda what, done, total: progress.append((done, total)))
    )
    assert [index for index, _ in results] == list(range(30))
    assert results[7][1] == Skipped(str(paths[7]), "not a picture of a known kind")
    good = [(index, image) for index, image in results if isinstance(image, Image.Image)]
    assert [image.getpixel((0, 0))[0] for _, image in good] == [index for index, _ in good]
    assert len(good) == 29
    assert progress == [(number, 30) for number in range(1, 31)]


def test_load_images_holds_few_at_once(tmp_path, monkeypatch):
    opened = []
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or real(*args, **options))
    stream = load_images([tmp_path / "a.png"] * 100, workers=2)
    next(stream)
    stream.close()
    assert len(opened) <= 9
    with pytest.raises(ConfigError):
        next(load_images([], workers=0))


@pytest.mark.parametrize("workers", [1, 3])
def test_large_pictures_are_not_decoded_ahead(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(images, "_PIXELS_AHEAD", 10)
    for number in range(20):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("broken")
    decoded, taken, most = [], 0, 0
    real = images.open_image

    def counted(path, **options):
        nonlocal most
        decoded.append(path)
        most = max(most, len(decoded) - taken)
        return real(path, **options)

    monkeypatch.setattr(images, "open_image", counted)
    stream = load_images([tmp_path / f"{number}.png" for number in range(20)], workers=workers)
    for number, (index, image) in enumerate(stream):
        assert index == number
        assert isinstance(image, Skipped) if number == 3 else image.getpixel((0, 0))[0] == number
        taken += 1
    # one may wait to be taken when each thread begins another
    assert most <= workers + 2
    stream = load_images([tmp_path / "0.png"] * 100, workers=workers)
    next(stream)
    stream.close()  # whoever waits is let go


def test_file_hash(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == blake2b(content, digest_size=16).hexdigest()
    with pytest.raises(PictureError, match="cannot be read"):
        file_hash(tmp_path / "gone")
