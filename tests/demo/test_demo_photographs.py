"""The demo on a folder of the user's pictures: what it says, and what it cannot say."""

import pytest

from builders.html_reader import HtmlReader
from builders.untrained import paint_noise, quick_encoder
from voken import Collection
from voken.encoders import frozen
from voken.errors import EmptyDataError
from voken.model import untrained
from voken.serve import examples
from voken_lab.demo.photographs import run

THINGS = ["snail", "canoe", "violin", "teapot", "zebra", "castle"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    encoder = quick_encoder()
    monkeypatch.setattr(frozen, "frozen_encoder", lambda settings, device=None: encoder)
    monkeypatch.setattr(untrained, "_MIXTURES", 300)
    monkeypatch.setattr(examples, "thing_names", lambda: THINGS)


@pytest.mark.slow
def test_a_folder_of_pictures_is_shown_without_training(tmp_path):
    paint_noise(tmp_path / "photos", range(9))
    printed = []
    result = run(tmp_path / "photos", tmp_path / "out", print_line=printed.append)
    read = HtmlReader(result.page.read_text(encoding="utf-8"))
    assert [what for what, _ in result.steps] == ["indexing", "queries", "page"]
    assert any("Nothing was trained" in line for line in printed)
    assert "Nothing was trained, because no captions are known." in read.text
    for absent in ("R@1", "recall on validation", "✓", "before training"):  # nothing says what is right
        assert absent not in read.text
    asked = [name for name in THINGS if f"“{name}”" in read.text]
    assert asked
    assert len(read.all("article")) == len(asked)
    with Collection.open(tmp_path / "out" / "collection") as collection:
        for name in asked:
            for hit in collection.search(name, 8):
                assert hit.image_id.removesuffix(".png") in read.text
    assert not list((tmp_path / "photos").glob(".voken*"))  # the user's folder is left alone
    again = run(tmp_path / "photos", tmp_path / "out")
    assert again.page == result.page


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyDataError):
        run(tmp_path / "empty", tmp_path / "out")
