"""The demo's page and what stands on it; the whole demo, on a miniature."""

import base64
import importlib
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from builders.drawings import SHAPES, TINY_SETTINGS, draw
from builders.html_reader import HtmlReader
from voken.config import preset
from voken.data.captions import CaptionedImage, Dataset, write_dataset
from voken.errors import ConfigError, MissingExtraError
from voken.image_tokenizer.train import LevelUsage
from voken_lab.demo.page import DemoPage, EpochRow, QueryCard, RecallRow
from voken_lab.demo.pairs import find_pairs
from voken_lab.demo.queries import demo_queries
from voken_lab.demo.run import run
from voken_lab.pages.page import HitCard, PairCard, PairSection, Picture, thumbnail, write_page


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "picture.png"
    draw((200, 10, 10), "square").save(path)
    evil = Picture(path, '<script>alert("x")</script> & "quotes"', (3, 1, 2))
    other = Picture(tmp_path / "missing.png", "gone", (3, 1, 5))
    hits = (HitCard(evil, -1.25, True), HitCard(other, -2.5, False))
    return DemoPage(
        title="A <title>",
        lead="lead",
        facts=(("12", "pictures"),),
        queries=(QueryCard("<b>red</b> & blue", "typed", hits),),
        recall_note="note",
        rows=(
            RecallRow("two-tower", {1: 0.25, 10: 0.5}, 1024.0, 900.4, is_reference=True),
            RecallRow("voken", {1: 0.2, 10: 0.45}, None, 88.0),
        ),
        groups=(
            PairSection("All but the last", "why", (PairCard(evil, other, 2, 0.91),)),
            PairSection("Nothing", "why", ()),
        ),
        usage=(LevelUsage(1, 7, 8, 4.0),),
        usage_note="usage",
        training_note="training",
        epochs=(EpochRow("generation", 1, 3.5, 0.1, False), EpochRow("generation", 2, 2.5, 0.2, True)),
        untrained_recall=0.05,
        steps=(("training", 61.2),),
        commands=("voken search 'my <folder>' \"two dogs\"",),
        credits=("Somebody, MIT.",),
    )


def test_everything_said_is_on_the_page_and_nothing_is_markup(page):
    html = page.render()
    read = HtmlReader(html)
    assert read.all("script") == []
    for text in (
        "A <title>", '<script>alert("x")</script> & "quotes"', "“<b>red</b> & blue”", "score -1.25", "cosine 0.91",
        "25.0", "1,024", "7 of 8", "3.500", "20.0", "61 s", "voken search 'my <folder>' \"two dogs\"", "Somebody, MIT.",
    ):  # fmt: skip
        assert text in read.text, text
    images = read.all("img")
    assert len(images) == 4
    assert images[0]["alt"] == page.queries[0].hits[0].picture.name
    assert all(image["src"].startswith("data:image/") for image in images)
    assert html.count('class="v same"') == 4  # two shared vokens on both sides of the pair
    assert html.count("✓</b>") == 1
    assert any(attributes.get("aria-label") == "vokens 3 1 2" for attributes in read.all("span"))


def test_the_page_fetches_nothing_and_fits_phones_and_dark_rooms(page):
    html = page.render()
    assert not re.search(r"https?://|//[a-z]", re.sub(r'data:[^"]+', "", html))
    assert 'src="http' not in html
    assert not re.search(r"url\(|@import|<link|<iframe", html)
    read = HtmlReader(html)
    policy = next(meta for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")
    assert any("width=device-width" in (meta.get("content") or "") for meta in read.all("meta"))
    assert "prefers-color-scheme:dark" in html
    assert read.all("html") == [{"lang": "en"}]


def test_a_thumbnail_is_the_picture(tmp_path):
    draw((200, 10, 10), "corner").resize((300, 300)).save(tmp_path / "a.png")
    kind, _, content = thumbnail(tmp_path / "a.png", 32).partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (32, 32, 3)
    assert abs(pixels[3, 3] - (200, 10, 10)).max() < 20
    assert pixels[28, 28].min() > 240
    assert thumbnail(tmp_path / "none.png").startswith("data:image/gif")


def test_a_page_is_written_whole(page, tmp_path):
    write_page(tmp_path / "deep" / "index.html", page.render())
    assert (tmp_path / "deep" / "index.html").read_text(encoding="utf-8") == page.render()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["index.html"]


def test_pairs_by_hand():
    vokens = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [2, 2, 2], [2, 2, 2], [1, 1, 3]])
    angles = np.array([0.0, 0.1, 0.5, 3.0, 3.1, 1.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pairs = find_pairs(vokens, vectors, list("abcdef"), count=2)
    assert [(p.first, p.second) for p in pairs.nothing] == [(0, 4), (1, 3)]
    assert [(p.first, p.second, p.shared) for p in pairs.first_only] == [(1, 2, 1)]
    assert [(p.first, p.second, p.shared) for p in pairs.all_but_last] == [(0, 1, 2)]
    assert [(p.first, p.second, p.shared) for p in pairs.same] == [(3, 4, 3)]
    assert pairs.same[0].cosine == pytest.approx(np.cos(0.1))
    # a pair of one family comes after one of two, however near
    twice = find_pairs(np.array([[0, 0], [0, 1], [0, 2]]), vectors[:3], ["a", "a", "b"], count=1)
    assert [(p.first, p.second) for p in twice.first_only] == [(1, 2)]


def test_no_pairs():
    pairs = find_pairs(np.array([[1, 2]]), np.ones((1, 2)), ["a"])
    assert (pairs.nothing, pairs.first_only, pairs.all_but_last, pairs.same) == ((), (), (), ())


def test_queries_fit_the_pool_and_repeat(tmp_path):
    names = ["lemon", "lime", "tiger", "whale", "crab", "fish"]
    images = tuple(
        CaptionedImage(f"{n}.png", tmp_path / f"{n}.png", (f"the {n} it is", "sour, fruit, yellow, x"), "test", n)
        for n in names
    )
    pool = Dataset("pool", tmp_path, images)
    queries = demo_queries(pool, seed=0)
    assert queries == demo_queries(pool, seed=0)
    general = {query.text: query.concepts for query in queries if query.origin == "a general phrase"}
    assert general["it tastes sour"] == {"lemon", "lime"}
    assert general["an animal of the sea"] == {"whale", "crab", "fish"}
    assert "a wild cat" not in general  # one of its concepts only
    assert all("," not in query.text for query in queries)
    assert len(queries) <= 8
    assert demo_queries(pool, seed=1) != queries


@pytest.mark.slow
def test_the_whole_demo_on_a_miniature(tmp_path):
    def make(folder, seed, progress):
        folder.mkdir(parents=True, exist_ok=True)
        images = []
        for number in range(40):
            shape, shade = SHAPES[number % 5], 30 + 5 * number
            path = folder / f"{number}.png"
            draw((shade, 255 - shade, 90), shape).save(path)
            split = "test" if number >= 30 else "validation" if number >= 24 else "train"
            images.append(CaptionedImage(path.name, path, (f"shape {shape} {number}",), split, f"c{number}", "MIT"))
        return write_dataset(folder, "mini", images)

    config = preset("demo").override(dict(setting.split("=") for setting in TINY_SETTINGS))
    printed = []
    result = run(tmp_path / "out", config=config, make_data=make, print_line=printed.append)
    html = result.page.read_text(encoding="utf-8")
    read = HtmlReader(html)
    assert len(read.all("article")) >= 3
    assert "10 unseen pictures" in read.text.replace("  ", " ") or "unseen pictures of 10 concepts" in read.text
    assert [what for what, _ in result.steps] == ["data", "training", "indexing", "evaluation", "page"]
    assert any("never saw" in line for line in printed)
    assert any(command.startswith("voken search") and "collection" in command for command in result.commands)
    again = run(tmp_path / "out", config=config, make_data=make)  # what is there is kept
    assert dict(again.steps)["training"] < dict(result.steps)["training"]
    with pytest.raises(ConfigError, match="other settings"):
        run(tmp_path / "out", seed=1, config=config, make_data=make)


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [("jinja2", "voken_lab.pages.page", "data"), ("matplotlib", "voken_lab.pages.charts", "bench")],
)
def test_a_missing_package_of_the_pages_names_its_extra(package, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtraError, match=rf"voken-search\[{extra}\]"):
        importlib.import_module(module)
