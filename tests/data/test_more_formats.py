"""Phones' and cameras' own formats, and greys of every depth."""

import numpy as np
import pytest
from PIL import Image

from builders.raw_pictures import halves, mosaic, write_dng
from voken.data import images
from voken.data.images import open_image, picture_format
from voken.errors import PictureError


@pytest.mark.parametrize("suffix", [".heic", ".jxl"])
def test_pictures_of_phones(tmp_path, suffix):
    images._formats()  # adds both formats to Pillow
    halves(64, 48).save(tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").rename(tmp_path / "a.jpg")  # the content counts
    picture = open_image(tmp_path / "a.jpg")
    assert (picture.mode, picture.size) == ("RGB", (64, 48))
    left, right = np.asarray(picture)[24, 8].astype(int), np.asarray(picture)[24, 56].astype(int)
    assert np.abs(left - [255, 0, 0]).max() <= 8
    assert np.abs(right - [0, 0, 255]).max() <= 8
    with open(tmp_path / "a.jpg", "rb") as file:
        assert picture_format(file).suffix == suffix
    with pytest.raises(PictureError, match=r"over the limit of 1,000"):
        open_image(tmp_path / "a.jpg", max_pixels=1000)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:60])
    with pytest.raises(PictureError):
        open_image(tmp_path / "a.jpg")


def test_a_raw_picture_is_its_preview_upright(tmp_path):
    file = write_dng(tmp_path / "a.dng", mosaic(640, 0, 60_000, 0), preview=halves(400, 300), orientation=6)
    picture = open_image(file)
    assert picture.size == (300, 400)
    top, bottom = picture.getpixel((150, 20)), picture.getpixel((150, 380))
    assert np.abs(np.array(top) - [255, 0, 0]).max() <= 8
    assert np.abs(np.array(bottom) - [0, 0, 255]).max() <= 8
    assert open_image(file, size=128).size == (128, 128)


@pytest.mark.parametrize("preview", [None, halves(160, 120)])
def test_a_raw_picture_without_a_useful_preview_is_developed(tmp_path, preview):
    file = write_dng(tmp_path / "a.dng", mosaic(320, 2_000, 60_000, 2_000), preview=preview)
    picture = np.asarray(open_image(file)).astype(int)
    assert picture.shape == (320, 320, 3)
    middle = picture[100:200, 100:200].mean((0, 1))
    assert middle[1] > 200
    assert middle[1] - max(middle[0], middle[2]) > 80
    with pytest.raises(PictureError, match=r"claims 320 × 320 pixels, over the limit of 1,000"):
        open_image(file, max_pixels=1000)


def test_a_file_that_is_no_raw_picture_is_refused(tmp_path):
    for content in (b"II*\0" + bytes(100), b"no picture"):
        (tmp_path / "a.nef").write_bytes(content)
        with pytest.raises(PictureError, match=r"a\.nef: cannot be decoded"):
            open_image(tmp_path / "a.nef")


def test_without_the_libraries_the_command_is_named(tmp_path, monkeypatch):
    write_dng(tmp_path / "a.dng", mosaic(64, 1, 1, 1))
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(16))
    monkeypatch.setattr(images, "_is_installed", lambda module: False)
    monkeypatch.setattr(images, "_formats", lambda: images._FORMATS)
    for name in ("a.dng", "a.jpg"):
        with pytest.raises(PictureError, match=r'pip install "voken-search\[pictures\]"'):
            open_image(tmp_path / name)


@pytest.mark.parametrize("top", [1.0, 1.001, 2.5, 255.0, 300.0, 1e6])
def test_floats_are_scaled_by_what_they_hold(tmp_path, top):
    Image.fromarray(np.linspace(0, top, 400, dtype=np.float32).reshape(20, 20)).save(tmp_path / "f.tif")
    low, high = open_image(tmp_path / "f.tif").getextrema()[0]
    assert (low, high >= 254) == (0, True)


def test_a_sun_does_not_darken_the_rest(tmp_path):
    values = np.full((200, 200), 0.5, np.float32)
    values[:5, :5] = 5_000.0
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert open_image(tmp_path / "f.tif").getpixel((100, 100)) == (128, 128, 128)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_sensor_has_fewer_bits_than_its_file(tmp_path, bits):
    top = 2**bits - 1
    Image.fromarray(np.linspace(0, top, 400).astype(np.uint16).reshape(20, 20)).save(tmp_path / "t.png")
    assert open_image(tmp_path / "t.png").getextrema()[0] == (0, 255)
