"""How a notebook shows an answer."""

import base64
import copy
import io
import pickle
import re

import pytest
from PIL import Image

from builders.collections import make_collection
from builders.tiny_model import paint_many, tiny_model
from voken import Collection
from voken.data.captions import read_dataset
from voken.search.hit import Hit
from voken.search.hit_list import MAX_THUMBNAIL_BYTES, SHOWN, HitList


def pictures_in(html):
    found = re.findall(r'src="data:image/jpeg;base64,([A-Za-z0-9+/=]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "pictures"
    paint_many(root, 5)
    large = Image.new("RGB", (4000, 1000), (200, 10, 10))
    large.save(root / "p000.png", "JPEG", comment=b"secret place")
    make_collection(tmp_path / "c", read_dataset(root), tiny_model())
    (root / "p001.png").unlink()
    (root / "p002.png").unlink()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    (root / "p002.png").symlink_to(tmp_path / "elsewhere.png")
    with Collection.open(tmp_path / "c", model=tiny_model()) as opened:
        yield opened


def test_an_answer_shows_its_pictures_small_and_without_their_files_texts(photos):
    hits = photos.search("red", 5)
    assert type(hits) is HitList
    html = hits._repr_html_()
    shown = pictures_in(html)
    # p001.png is gone, and p002.png is a link that leads out of the folder
    assert {hit.image_id for hit in hits} & {"p001.png", "p002.png"}
    assert len(shown) == sum(hit.image_id not in ("p001.png", "p002.png") for hit in hits) > 0
    assert {picture.format for picture in shown} == {"JPEG"}
    assert (160, 40) in {picture.size for picture in shown}
    assert all("comment" not in picture.info and not picture.getexif() for picture in shown)
    assert html.count("<figure") == len(hits)
    (first, *_) = photos.similar(hits[0].image_id, 2)
    assert isinstance(first, Hit)
    assert isinstance(photos.similar(hits[0].image_id, 2), HitList)


def test_texts_are_escaped_and_sizes_bounded():
    hostile = '<script>alert(1)</script>"\udc80'
    hits = HitList([Hit(hostile, hostile, 1.5, confidence=0.25)] * (SHOWN + 2), lambda image_id: b"x" * 10)
    html = hits._repr_html_()
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;") == 3 * SHOWN
    assert html.count("<img") == SHOWN
    assert "… and 2 more" in html
    assert "score 1.500, confidence 25%" in html
    html.encode()
    large = HitList(hits[:1], lambda image_id: b"x" * (MAX_THUMBNAIL_BYTES + 1))
    assert "<img" not in large._repr_html_()
    assert "Nothing matches" in HitList()._repr_html_()


def test_it_is_a_list_that_can_be_copied_and_sent(photos):
    hits = photos.search("red", 3)
    assert hits == list(hits)
    assert [*hits] == hits[:] == hits
    assert pickle.loads(pickle.dumps(hits)) == hits
    assert type(copy.deepcopy(hits)) is list
