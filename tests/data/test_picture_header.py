"""What the header of a file says, also if it lies or is damaged."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from voken.data.picture_header import PictureHeader, picture_header, picture_size


def jpeg(**tags):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8))
    exif = Image.Exif()
    for tag, value in tags.items():
        number = int(tag.removeprefix("t"), 16)
        (exif.get_ifd(0x8769) if number > 0x8000 else exif)[number] = value
    written = io.BytesIO()
    image.save(written, "JPEG", exif=exif)
    return written


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, PictureHeader(9, 6, "JPEG")),
        ({"t0112": 6}, PictureHeader(6, 9, "JPEG")),
        ({"t0112": 3}, PictureHeader(9, 6, "JPEG")),
        ({"t010F": "Acme", "t0110": "Acme 7"}, PictureHeader(9, 6, "JPEG", "Acme 7")),
        ({"t010F": "Acme Corp.", "t0110": "X7"}, PictureHeader(9, 6, "JPEG", "Acme Corp. X7")),
        ({"t0110": "a\x1b[31mb"}, PictureHeader(9, 6, "JPEG", "a[31mb")),  # nothing that commands a terminal
        ({"t829A": 0.004, "t829D": 2.8}, PictureHeader(9, 6, "JPEG", "", "", "1/250 s · f/2.8")),
        ({"t829A": 2.0, "t8827": 400}, PictureHeader(9, 6, "JPEG", "", "", "2 s · ISO 400")),
        ({"t829A": 0.0, "t920A": 35.0}, PictureHeader(9, 6, "JPEG", "", "", "35 mm")),
        ({"tA434": "Lens 35"}, PictureHeader(9, 6, "JPEG", "", "Lens 35")),
    ],
)
def test_the_header_says_what_the_camera_wrote(tags, expected):
    file = jpeg(**tags)
    assert picture_header(file) == expected
    assert file.tell() == 0
    assert picture_size(file) == (expected.width, expected.height)


def test_damaged_headers_have_a_size_or_none():
    whole = jpeg(t010F="Acme", t0110="X7", t829A=0.004).getvalue()
    draw = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: draw.randrange(len(whole) + 1)])
        for _ in range(draw.randrange(8)):
            if damaged:
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        header = picture_header(io.BytesIO(bytes(damaged)))
        assert header is None or (header.width > 0 and header.height > 0)
    assert picture_header(io.BytesIO(b"no picture")) is None
