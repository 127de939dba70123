"""What the server answers without a search: lists, months, folders, values, examples, details, exports."""

import io
import json
import os
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from builders.collections import make_collection
from builders.served import PICTURES, TOKEN, Served, error_of, noise, upload
from builders.tiny_model import tiny_model

DAYS = ("2024-05-03", "2024-05-01", "2023-12-24", "2023-12-24", "2019-07-01")
FOLDERS = ("trips/rome", "trips/oslo", "home", "home", "")
WORDS = ("red", "green", "blue", "white", "grey")


def photograph(path, seed, day, *, width=30, height=20, orientation=1):
    """A JPEG of noise that a camera might have written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Acme", "Acme 7"
    inner = exif.get_ifd(0x8769)
    inner[0x9003] = f"{day.replace('-', ':')} 10:20:30"
    inner[0x829A], inner[0x829D], inner[0x8827], inner[0x920A] = 0.004, 2.8, 100, 35.0
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path, exif=exif)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photographs: two on one day, one upright, one broken after it was indexed."""
    root = tmp_path_factory.mktemp("photographs")
    lines = []
    for place, (day, inside) in enumerate(zip(DAYS, FOLDERS, strict=True)):
        name = f"{inside}/p{place}.jpg".lstrip("/")
        photograph(root / name, place, day, orientation=6 if place == 1 else 1)
        title = f"{WORDS[place]} thing"
        lines.append({"file_name": name, "text": "x", "title": title, "stars": place % 2, "tags": ["a", WORDS[place]]})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="module")
def photos(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("photos")
    make_collection(place / "c", folder, tiny_model())
    with Served.over(place / "c", place / "thumbnails", tiny_model(), max_page=3) as served:
        yield served


@pytest.fixture(scope="module")
def client(photos):
    with photos.client() as client:
        yield client


def ids(answer):
    assert answer.status_code == 200, answer.text
    return [picture["id"] for picture in answer.json()["pictures"]]


NEWEST_FIRST = ["trips/rome/p0.jpg", "trips/oslo/p1.jpg", "home/p2.jpg", "home/p3.jpg", "p4.jpg"]


def test_pictures_are_listed_newest_first_in_pages(client):
    first = client.get("/pictures", params={"limit": 3})
    assert ids(first) == NEWEST_FIRST[:3]
    assert first.json()["total"] == len(NEWEST_FIRST)
    assert ids(client.get("/pictures", params={"offset": 3, "limit": 3})) == NEWEST_FIRST[3:]
    assert ids(client.get("/pictures", params={"offset": 99})) == []
    assert client.head("/pictures").status_code == 200
    one = first.json()["pictures"][0]
    assert one["metadata"]["title"] == "red thing"
    assert one["layout"] == {"width": 30, "height": 20, "date": "2024-05-03T10:20:30", "stack": None}
    assert client.get(one["thumbnail"]).headers["content-type"] == "image/webp"
    turned = first.json()["pictures"][1]["layout"]
    assert (turned["width"], turned["height"]) == (20, 30)  # upright


def test_filters_apply_to_lists_and_months(client):
    assert ids(client.get("/pictures", params={"filters": "folder=trips"})) == NEWEST_FIRST[:2]
    both = {"filters": ["date<2024", "title~BLUE"]}
    assert ids(client.get("/pictures", params=both)) == ["home/p2.jpg"]
    months = client.get("/timeline").json()
    assert months["total"] == 5
    counts = [(month["month"], month["pictures"]) for month in months["months"]]
    assert counts == [("2024-05", 2), ("2023-12", 2), ("2019-07", 1)]
    few = client.get("/timeline", params=both).json()
    assert few["months"] == [{"month": "2023-12", "pictures": 1}]
    assert client.get("/timeline", params={"filters": "title=nothing"}).json()["months"] == []


@pytest.mark.parametrize(
    ("path", "parameters", "says"),
    [
        ("/pictures", {"limit": 0}, "limit"),
        ("/pictures", {"limit": 4}, "limit"),  # over max_page
        ("/pictures", {"limit": "many"}, "limit"),
        ("/pictures", {"offset": -1}, "offset"),
        ("/pictures", {"filters": "colour=red"}, "no picture has this field"),
        ("/pictures", {"filters": "nonsense"}, "filter"),
        ("/pictures", {"filters": ["a=b"] * 17}, "filters"),
        ("/pictures", [("limit", 1), ("limit", 2)], "repeated"),
        ("/timeline", {"filters": "date=banana"}, "banana"),
        ("/values", {}, "field"),
        ("/values", {"field": "colour"}, "no picture has this field"),
        ("/folders", {"limit": 1_000}, "limit"),
    ],
)
def test_a_wrong_list_is_refused_with_a_reason(client, path, parameters, says):
    assert says in error_of(client.get(path, params=parameters), 422)


def test_folders_are_a_tree_with_counts(client):
    top = client.get("/folders").json()
    assert top["folders"] == [
        {"path": "home", "name": "home", "pictures": 2, "has_folders": False},
        {"path": "trips", "name": "trips", "pictures": 2, "has_folders": True},
    ]
    inside = client.get("/folders", params={"parent": "trips"}).json()["folders"]
    assert [(one["path"], one["name"], one["pictures"]) for one in inside] == [
        ("trips/oslo", "oslo", 1),
        ("trips/rome", "rome", 1),
    ]
    for one in (*top["folders"], *inside):  # each is a filter
        listed = client.get("/pictures", params={"filters": f"folder={one['path']}"})
        assert listed.json()["total"] == one["pictures"]
    assert client.get("/folders", params={"parent": "nowhere"}).json()["total"] == 0
    paged = client.get("/folders", params={"offset": 1, "limit": 1}).json()
    assert (paged["total"], [one["path"] for one in paged["folders"]]) == (2, ["trips"])


def test_values_complete_filters(client):
    def values(**parameters):
        answer = client.get("/values", params=parameters).json()
        return [(one["value"], one["pictures"]) for one in answer["values"]]

    assert values(field="stars") == [("0", 3), ("1", 2)]
    assert values(field="title", contains="BL") == [("blue thing", 1)]
    assert values(field="tags")[0] == ("a", 5)  # a list counts for each of its members
    assert values(field="folder", contains="o")[:2] == [("home", 2), ("trips/oslo", 1)]
    assert values(field="date") == [
        ("2023", 2),
        ("2023-12", 2),
        ("2024", 2),
        ("2024-05", 2),
        ("2019", 1),
        ("2019-07", 1),
    ]
    for field in ("stars", "title", "folder", "date"):
        for value, count in values(field=field):
            answer = client.get("/pictures", params={"filters": f"{field}={value}"})
            assert answer.json()["total"] == count, (field, value)


def test_details_say_what_the_file_says(client, folder):
    details = client.get("/details/trips/oslo/p1.jpg").json()
    file = folder / "trips/oslo/p1.jpg"
    assert {name: details[name] for name in ("width", "height", "format", "camera", "exposure", "folder")} == {
        "width": 20,
        "height": 30,
        "format": "JPEG",
        "camera": "Acme 7",
        "exposure": "1/250 s · f/2.8 · ISO 100 · 35 mm",
        "folder": "trips/oslo",
    }
    assert (details["date"], details["is_dated"]) == ("2024-05-01T10:20:30", True)
    assert (details["bytes"], details["path"]) == (file.stat().st_size, str(file))
    assert client.head("/details/trips/oslo/p1.jpg").status_code == 200
    error_of(client.get("/details/nobody.jpg"), 404)


def test_a_file_that_cannot_be_read_is_still_listed(tmp_path):
    with Served.of(tmp_path) as served, served.client() as client:
        served.paths[0].write_bytes(b"not a picture any more")
        served.paths[1].unlink()
        listed = {one["id"]: one["layout"] for one in client.get("/pictures").json()["pictures"]}
        assert len(listed) == PICTURES
        for place in (0, 1):
            image_id = served.collection.picture(served.paths[place].name).image_id
            assert listed[image_id]["width"] is None
            details = client.get(f"/details/{image_id}").json()
            assert details["width"] is None
        os.utime(served.paths[2], (1e9, 1e9))
        # files that say nothing have the date of the file when it was indexed
        assert not client.get(f"/details/{served.paths[2].name}").json()["is_dated"]


def test_what_other_machines_may_see(photos, folder):
    place = photos.folder, photos.settings.thumbnail_folder, tiny_model()
    with Served.over(*place, host="0.0.0.0") as served, served.client() as client:
        assert client.get("/details/home/p2.jpg").json()["path"] == "home/p2.jpg"
        text = client.post("/export", json={"ids": ["home/p2.jpg"], "format": "list"}).text
        assert text == "home/p2.jpg\n"
    with Served.over(*place, strip_location=True) as served, served.client() as client:
        details = client.get("/details/home/p2.jpg").json()
        assert (details["camera"], details["exposure"], details["width"]) == ("", "", 30)
        archive = client.post("/export", json={"ids": ["home/p2.jpg"]}).content
        with zipfile.ZipFile(io.BytesIO(archive)) as opened, Image.open(opened.open("home/p2.jpg")) as image:
            assert not image.getexif()


def test_near_duplicates_are_named(tmp_path):
    original = Image.fromarray(np.asarray(noise(24).resize((240, 160), Image.Resampling.BICUBIC)))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    original.save(pictures / "a.png")
    original.save(pictures / "saved-again.jpg", quality=70)
    original.resize((120, 80)).save(pictures / "smaller.png")
    original.crop((40, 20, 200, 140)).save(pictures / "cropped.png")
    original.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "mirrored.png")
    Image.new("RGB", (50, 50), (200, 0, 0)).save(pictures / "flat.png")
    Image.new("RGB", (60, 60), (200, 0, 0)).save(pictures / "flat-too.png")
    Image.new("RGB", (60, 60), (180, 0, 0)).save(pictures / "darker.png")
    for place, path in enumerate(sorted(pictures.iterdir())):
        os.utime(path, (1e9 - 60 * place, 1e9 - 60 * place))
    make_collection(tmp_path / "c", pictures, tiny_model())
    with Served.over(tmp_path / "c", tmp_path / "t", tiny_model()) as served, served.client() as client:
        stacks = {one["id"]: one["layout"]["stack"] for one in client.get("/pictures").json()["pictures"]}
        same = {"saved-again.jpg": "a.png", "smaller.png": "a.png", "flat.png": "flat-too.png"}
        assert stacks == dict.fromkeys(stacks) | same
        hits = served.search(client, k=20, layout=True)
        by_id = {hit["id"]: hit["layout"] for hit in hits}
        assert by_id["a.png"]["width"] == 240
        group = {"a.png", "saved-again.jpg", "smaller.png"}
        first = next(hit["id"] for hit in hits if hit["id"] in group)
        assert {name: by_id[name]["stack"] for name in group} == dict.fromkeys(group, first) | {first: None}
        assert served.search(client)[0]["layout"] is None
        sent = {"file": (pictures / "a.png").read_bytes()}
        form = client.post("/search/picture", files=sent, data={"layout": "true"}).json()
        assert form["results"][0]["hits"][0]["layout"]["width"]


def test_examples_lead_to_their_pictures(client, photos):
    suggested = client.get("/examples").json()["examples"]
    assert suggested
    assert len(suggested) <= 8
    titles = {photos.collection.metadata(one)["title"]: one for one in NEWEST_FIRST}
    for text in set(suggested) & set(titles):
        assert titles[text] in [hit.image_id for hit in photos.collection.search(text, 3)]
    words = [word for text in suggested for word in text.split()]
    assert len(words) == len(set(words))  # no two say the same


def test_an_export_is_the_files_as_they_are(client, folder):
    chosen = ["home/p2.jpg", "trips/rome/p0.jpg", "home/p2.jpg", "nobody.jpg"]
    answer = client.post("/export", json={"ids": chosen})
    assert answer.headers["content-type"] == "application/zip"
    assert "attachment" in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["home/p2.jpg", "trips/rome/p0.jpg"]
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes()
        assert archive.getinfo("home/p2.jpg").date_time[:3] == (2023, 12, 24)
    listed = client.post("/export", json={"ids": chosen, "format": "list"})
    assert listed.text.splitlines() == [str(folder / name) for name in chosen[:2]]
    error_of(client.post("/export", json={"ids": ["nobody.jpg"]}), 404)
    error_of(client.post("/export", content=b'{"ids": ["home/p2.jpg"]}'), 415)
    error_of(client.post("/export", content=b"{", headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    "body", [{"ids": []}, {"ids": "p4.jpg"}, {"ids": [7]}, {"ids": ["p4.jpg"], "format": "tar"}, {"id": "p4.jpg"}, []]
)
def test_a_wrong_export_is_refused(client, body):
    error_of(client.post("/export", json=body), 422)


def test_exports_are_bounded(photos, folder):
    size = (folder / "p4.jpg").stat().st_size
    cache = photos.settings.thumbnail_folder
    limits = {"max_export": 2, "max_export_bytes": size}
    with Served.over(photos.folder, cache, tiny_model(), **limits) as served, served.client() as client:
        assert client.post("/export", json={"ids": ["p4.jpg"]}).status_code == 200
        assert "limit of 2" in error_of(client.post("/export", json={"ids": NEWEST_FIRST}), 422)
        assert "bytes" in error_of(client.post("/export", json={"ids": NEWEST_FIRST[:2]}), 413)
        with served.service.export_slots.hold():
            assert client.post("/export", json={"ids": ["p4.jpg"]}).status_code == 200
        slots = served.service.export_slots
        held = [slots.hold() for _ in range(4)]
        for one in held:
            one.__enter__()
        error_of(client.post("/export", json={"ids": ["p4.jpg"]}), 503)
        for one in held:
            one.__exit__(None, None, None)


def test_an_export_leaves_nothing_of_the_archive(tmp_path):
    """Names in the archive stay inside it, no two are equal, and what is gone is named."""
    with Served.of(tmp_path) as served, served.client() as client:
        outside = served.collection
        names = ["../../etc/x.png", "/etc/x.png", "etc/x.png", "missing.txt"]
        paths = [tmp_path / "more" / f"{place}.png" for place in range(4)]
        for place, path in enumerate(paths):
            path.parent.mkdir(exist_ok=True)
            noise(8, place).save(path)
        outside.add(paths, ids=names)
        paths[3].unlink()
        with zipfile.ZipFile(io.BytesIO(client.post("/export", json={"ids": names}).content)) as archive:
            assert archive.namelist() == ["etc/x.png", "etc/x (2).png", "etc/x (3).png", "missing.txt"]
            assert archive.read("etc/x (3).png") == paths[2].read_bytes()
            assert archive.read("missing.txt").decode().splitlines() == ["missing (2).txt"]


def test_lists_follow_changes(tmp_path):
    with Served.of(tmp_path) as served, served.client() as client:
        before = client.get("/pictures").json()
        (added,) = upload(client, ("new.png", _png())).json()["added"]
        after = client.get("/pictures").json()
        assert after["version"] > before["version"]
        assert after["total"] == before["total"] + 1
        shown = {picture["id"]: picture for picture in after["pictures"]}
        # the newest, perhaps of the same second as the others
        assert shown[added]["layout"]["date"] == max(picture["layout"]["date"] for picture in shown.values())
        assert shown[added]["layout"]["date"] == after["pictures"][0]["layout"]["date"]
        month = f"{datetime.now(UTC).astimezone():%Y-%m}"
        assert client.get("/timeline").json()["months"][0]["month"] == month
        assert [one["path"] for one in client.get("/folders").json()["folders"]] == ["pictures"]
        client.delete(shown[added]["url"], headers=TOKEN)
        assert client.get("/pictures").json()["total"] == before["total"]


def _png():
    content = io.BytesIO()
    noise(8, 99).save(content, "PNG")
    return content.getvalue()
