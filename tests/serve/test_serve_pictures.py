"""Pictures over HTTP: by id and never by path, small ones, new ones, and those that are gone."""

import contextlib
import dataclasses
import io
import json
import logging
import os
import struct
import threading
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from builders.collections import make_collection
from builders.served import PICTURES, SOON, TOKEN, Exchange, Served, as_file, error_of, noise, upload
from builders.tiny_model import paint, tiny_model
from voken import Collection
from voken.api import Picture
from voken.errors import MissingExtraError, StorageError
from voken.serve.app import create_app
from voken.serve.pictures import PictureFile, Thumbnails, url_of


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    """One that no test changes."""
    with Served.of(tmp_path_factory.mktemp("still")) as application:
        yield application


@pytest.fixture(scope="module")
def asking(still):
    with still.client() as client:
        yield client


@pytest.fixture
def served(tmp_path):
    with Served.of(tmp_path) as application:
        yield application


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


@pytest.fixture
def file_at():
    """Opens pictures, which are closed at the end of the test."""
    with contextlib.ExitStack() as opened:
        yield lambda path: opened.enter_context(PictureFile.of(Picture(path.name, path, (), {})))


def strange_names(root):
    # what a disk may hold and an address may not, or not as it is
    return [
        "plain.png",
        "trips/2024/ä ö.png",
        "a%2Fb%00.png",
        "what?is#this.png",
        "line\nend.png",
        "%2e%2e/up.png",
        os.fsdecode(b"latin-\xfc.png"),
        "'\"<b>.png",
    ]


def test_every_id_has_an_address_that_leads_to_its_picture(tmp_path):
    root = tmp_path / "pictures"
    paths = [paint(root / name, (20 * place, 0, 0)) for place, name in enumerate(strange_names(root))]
    make_collection(tmp_path / "c", paths, tiny_model())
    with Served.over(tmp_path / "c", tmp_path / "thumbnails") as served, served.client() as client:
        served.collection.add([paths[0]] * 1, ids=["../up/./here//x"], metadata=[{"size": float("inf"), "title": "ü"}])
        hits = {hit["id"]: hit for hit in served.search(client, k=50)}
        assert set(hits) == {*strange_names(root), "../up/./here//x"}
        assert hits["../up/./here//x"]["metadata"] == {"size": None, "title": "ü"}  # JSON has no infinity
        for name, path in zip(strange_names(root), paths, strict=True):
            assert client.get(hits[name]["url"]).content == path.read_bytes()
            assert client.get(hits[name]["thumbnail"]).headers["content-type"] == "image/webp"
            liked = client.post(
                "/search",
                content=json.dumps({"like": name, "k": 1}).encode(),
                headers={"Content-Type": "application/json"},
            )
            assert liked.status_code == 200
        assert client.get(hits["../up/./here//x"]["url"]).content == paths[0].read_bytes()
        for name in hits:
            assert client.delete(url_of(name), headers=TOKEN).status_code == 200
        assert served.search(client) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"/pictures/../../etc/passwd",
        b"/pictures/%2e%2e/%2e%2e/etc/passwd",
        b"/pictures/..%2f..%2fetc%2fpasswd",
        b"/pictures//etc/passwd",
        b"/pictures/%2fetc%2fpasswd",
        b"/pictures/p000.png%00",
        b"/pictures/%00",
        b"/pictures/c/collection.sqlite3",
        b"/pictures/pictures/.lock.sqlite3",
        b"/pictures/..\\..\\etc\\passwd",
        b"/pictures/%ff%fe",
        b"/pictures/%ed%a0%80",
        b"/pictures/",
        b"/pictures/." + b"/." * 5_000,
        b"/pictures/" + quote("p000.png/../p000.png").encode(),
        b"/static/..%2f..%2fapp.py",
        b"/static/%2e%2e/app.py",
        b"/static/%00",
    ],
)
def test_no_address_is_a_path(raw, still):
    for query in (b"", b"?thumbnail=64"):
        answer = Exchange.get(still.app, raw + query)
        assert answer.status == 404
        assert json.loads(answer.body)["error"]


def test_a_picture_comes_with_its_true_type_and_is_not_sent_twice(served, client, tmp_path):
    jpeg = tmp_path / "actually-a-jpeg.png"
    jpeg.write_bytes(as_file(noise(), "JPEG"))
    served.collection.add([jpeg], ids=["x.png"])
    answer = client.get("/pictures/x.png")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"].startswith("inline")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.content == jpeg.read_bytes()
    again = client.get("/pictures/x.png", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    jpeg.write_bytes(as_file(noise(seed=1), "JPEG"))
    changed = client.get("/pictures/x.png", headers={"If-None-Match": answer.headers["etag"]})
    assert (changed.status_code, changed.content) == (200, jpeg.read_bytes())
    part = client.get("/pictures/x.png", headers={"Range": "bytes=5-2"})
    assert (part.status_code, part.content) == (200, jpeg.read_bytes())


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (None, 410),
        ("a folder", 410),
        (b"", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415),
        (b"<html><script>alert(1)</script></html>", 415),
        (b"\x89PNG\r\n\x1a\n torn", 415),
    ],
)
def test_a_file_that_is_no_longer_what_it_was(content, status, served, client):
    path = served.paths[0]
    path.unlink()
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    answer = client.get("/pictures/p000.png")
    error_of(answer, status)
    assert str(served.folder.parent) not in error_of(client.get("/pictures/p000.png?thumbnail=64"), status)


def test_a_pipe_in_place_of_a_picture_holds_nobody_up(served, client):
    served.paths[0].unlink()
    os.mkfifo(served.paths[0])
    error_of(client.get("/pictures/p000.png"), 410)


@pytest.mark.parametrize(("wide", "high", "side"), [(200, 100, 64), (100, 200, 64), (30, 20, 64), (300, 3, 16)])
def test_thumbnails_fit_their_side_and_are_not_enlarged(wide, high, side, served, client, tmp_path):
    path = tmp_path / "x.png"
    noise(300).resize((wide, high)).save(path)
    served.collection.add([path], ids=["x"])
    answer = client.get(f"/pictures/x?thumbnail={side}")
    assert answer.headers["content-type"] == "image/webp"
    scale = min(1, side / max(wide, high))
    size = Image.open(io.BytesIO(answer.content)).size
    assert size == pytest.approx((max(1, wide * scale), max(1, high * scale)), abs=1)
    assert max(size) <= max(side, 1)
    known = client.get(f"/pictures/x?thumbnail={side}", headers={"If-None-Match": answer.headers["etag"]})
    assert known.status_code == 304


@pytest.mark.parametrize("side", ["15", "1025", "-1", "0", "1e2", "NaN", "", "64px", "9" * 400])
def test_thumbnails_have_a_least_and_a_most_size(side, asking):
    error_of(asking.get(f"/pictures/p000.png?thumbnail={side}"), 422)


def test_a_changed_picture_has_another_thumbnail_and_a_cached_one_is_used_again(served, tmp_path, monkeypatch, file_at):
    decoded = []
    monkeypatch.setattr(
        "voken.data.opened_picture.open_image", lambda file, **options: decoded.append(file) or Image.open(file)
    )
    cache = Thumbnails(tmp_path / "cache", 1)
    path = served.paths[0]
    first = cache.get(file_at(path), 32)
    assert Thumbnails(tmp_path / "cache", 1).get(file_at(path), 32) == first
    assert len(decoded) == 1
    (file,) = (tmp_path / "cache").glob("??/*")
    file.write_bytes(file.read_bytes()[:-3])  # a power cut
    assert cache.get(file_at(path), 32) == first
    paint(path, (1, 2, 3))
    os.utime(path, ns=(0, 5))
    assert cache.get(file_at(path), 32) != first
    assert len(decoded) == 3


def test_the_least_used_thumbnails_go_first(tmp_path, file_at):
    pictures = [tmp_path / f"{number}.png" for number in range(24)]
    for number, path in enumerate(pictures):
        noise(256, seed=number).save(path)
    cache = Thumbnails(tmp_path / "cache", 1)
    size = len(cache.get(file_at(pictures[0]), 256))
    assert 3 * size < (1 << 20) < 20 * size
    for number, path in enumerate(pictures):
        cache.get(file_at(path), 256)
        (newest,) = [file for file in (tmp_path / "cache").glob("??/*") if file_at(path).key in file.name]
        os.utime(newest, (number, number))
    cached = {file.name.partition("-")[0] for file in (tmp_path / "cache").glob("??/*")}
    assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("??/*")) <= 1 << 20
    keys = [file_at(path).key for path in pictures]
    assert cached == set(keys[-len(cached) :])


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(still, tmp_path, file_at):
    (tmp_path / "in-the-way").write_text("")
    for cache in (Thumbnails(tmp_path / "in-the-way", 1), Thumbnails(tmp_path / "none", 0)):
        content = cache.get(file_at(still.paths[0]), 32)
        assert Image.open(io.BytesIO(content)).size == (8, 8)
    assert not (tmp_path / "none").exists()


def test_uploads_are_added_found_and_shown(served, client):
    red = Image.new("RGB", (40, 30), (255, 0, 0))
    files = {
        "ä 1.png": as_file(red),
        "moving.gif": as_file(red, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), (0, 0, 255))]),
        "grey16.png": as_file(Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
        "print.jpg": as_file(noise().convert("CMYK"), "JPEG"),
        "lies.txt": as_file(noise(seed=2), "WEBP"),
    }
    answer = upload(client, *files.items())
    assert answer.status_code == 200, answer.text
    change = answer.json()
    assert (len(change["added"]), change["updated"], change["skipped"]) == (5, [], [])
    assert change["version"] == served.collection.version
    hits = {hit["id"]: hit for hit in served.search(client, k=50)}
    assert len(hits) == PICTURES + 5
    shown = {hits[name]["metadata"]["title"]: client.get(hits[name]["url"]) for name in change["added"]}
    assert {name: picture.content for name, picture in shown.items()} == files
    assert {name: picture.headers["content-type"] for name, picture in shown.items()} == {
        "ä 1.png": "image/png",
        "moving.gif": "image/gif",
        "grey16.png": "image/png",
        "print.jpg": "image/jpeg",
        "lies.txt": "image/webp",
    }
    again = upload(client, ("other name.png", files["ä 1.png"])).json()
    assert (again["added"], len(again["updated"])) == ([], 1)
    assert len(served.ids(client)) == PICTURES + 5


def bomb():
    """A PNG that claims more pixels than anybody has."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def test_uploads_that_are_no_pictures_are_reported_and_leave_nothing(served, client):
    good = as_file(noise())
    answer = upload(
        client,
        ("torn.png", good[: len(good) // 2]),
        ("bomb.png", bomb()),
        ("text.png", b"I am not a picture"),
        ("page.jpg", b"<html><script>alert(1)</script>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        ("empty.png", b""),
        ("../../..\\tmp/g\u202eood.png", good),
        ("B" * 10, b"B"),
    )
    assert answer.status_code == 200, answer.text
    change = answer.json()
    assert len(change["added"]) == 1
    reasons = {file["path"]: file["reason"] for file in change["skipped"]}
    assert set(reasons) == {"torn.png", "bomb.png", "text.png", "page.jpg", "drawing.svg", "empty.png", "B" * 10}
    assert "pixels" in reasons["bomb.png"]
    assert reasons["empty.png"] == "empty file"
    stored = [path for path in (served.folder / "pictures").rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} == {".png", ".sqlite3"}
    assert [path.read_bytes() for path in stored if path.suffix == ".png"] == [good]
    assert served.collection.metadata(change["added"][0]) == {"title": "g ood.png"}
    nothing = upload(client, ("text.png", b"not one"))
    assert (nothing.status_code, nothing.json()["added"], len(nothing.json()["skipped"])) == (200, [], 1)
    assert nothing.json()["version"] == change["version"]


def test_what_the_collection_itself_would_not_take_does_not_stay(served, client, monkeypatch):
    monkeypatch.setattr("voken.collection.uploads.open_image", lambda *args, **named: None)
    good = as_file(noise())
    change = upload(client, ("torn.png", good[: len(good) // 2]), ("good.png", good)).json()
    assert [file["path"] for file in change["skipped"]] == ["torn.png"]
    assert len(change["added"]) == 1
    stored = [path for path in (served.folder / "pictures").rglob("*.png") if path.is_file()]
    assert [path.read_bytes() for path in stored] == [good]


def test_uploads_have_limits(served):
    small = create_app(served.collection, dataclasses.replace(served.settings, max_files=2, max_pixels=100))
    with TestClient(small, base_url="http://localhost") as client:
        tiny = as_file(noise(8))
        assert len(upload(client, ("a.png", tiny), ("b.png", as_file(noise(11)))).json()["skipped"]) == 1
        error_of(upload(client, *[("a.png", tiny)] * 3), 400)
        error_of(client.post("/pictures", files={"other": tiny}, headers=TOKEN), 422)
        error_of(client.post("/pictures", files={"files": tiny}, data={"id": "x"}, headers=TOKEN), 422)
        error_of(client.post("/pictures", data={"files": "text"}, files={"x": b""}, headers=TOKEN), 422)
        torn = {**TOKEN, "Content-Type": "multipart/form-data; boundary=x"}
        error_of(client.post("/pictures", content=b"--x\r\nContent-Dis", headers=torn), 422)
        error_of(client.post("/pictures", content=b"nothing like it", headers=torn), 400)
        no_end = {**TOKEN, "Content-Type": "multipart/form-data"}
        error_of(client.post("/pictures", content=b"x", headers=no_end), 400)
        error_of(client.post("/search/picture", files={"file": b"text"}), 415)
        error_of(client.post("/search/picture", files={"file": tiny}, data={"k": "many"}), 422)
        error_of(client.post("/search/picture", files={"file": tiny}, data={"k": "0"}), 422)
        error_of(client.post("/search/picture", files={"file": tiny}, data={"other": "0"}), 422)
        error_of(client.post("/search/picture", files=[("file", tiny), ("file", tiny)]), 400)
        assert client.post("/search/picture", files={"file": tiny}, data={"k": "3"}).status_code == 200


def test_a_picture_that_is_removed_is_found_by_nobody(served, client, tmp_path):
    (uploaded,) = upload(client, ("x.png", as_file(noise()))).json()["added"]
    file = served.folder / uploaded
    assert file.is_file()
    with Served.over(served.folder, tmp_path / "thumbnails") as other, other.client() as elsewhere:
        assert uploaded in other.ids(elsewhere)
        for name in (uploaded, "p000.png"):
            answer = elsewhere.delete(url_of(name), headers=TOKEN)
            assert answer.json()["removed"] == [name]
            error_of(elsewhere.delete(url_of(name), headers=TOKEN), 404)
            error_of(elsewhere.get(url_of(name)), 404)
        assert not {uploaded, "p000.png"} & other.ids(elsewhere)
        assert other.collection.version == answer.json()["version"]
    served.collection.searcher.refresh()  # what happens by itself within 0.2 s
    assert not {uploaded, "p000.png"} & served.ids(client)
    error_of(client.get(url_of(uploaded)), 404)
    assert not file.exists()
    assert served.paths[0].exists()  # not an upload
    # the same file can come again
    assert upload(client, ("x.png", as_file(noise()))).json()["added"] == [uploaded]
    assert client.get(url_of(uploaded)).content == as_file(noise())


@pytest.mark.parametrize("error", [StorageError("/secret/place: the disk is full."), RuntimeError("unforeseen")])
def test_what_goes_wrong_while_adding_leaves_nothing_and_is_logged_once(error, served, client, monkeypatch, caplog):
    def fail(*args, **named):
        raise error

    monkeypatch.setattr(served.collection, "add", fail)
    answer = upload(client, ("x.png", as_file(noise())))
    sentence = error_of(answer, 500)
    assert "secret" not in sentence
    assert "unforeseen" not in sentence
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert answer.headers["x-request-id"] in record.getMessage()
    assert answer.headers["x-request-id"] in sentence
    assert record.exc_info[1] is error
    assert [path.name for path in (served.folder / "pictures").rglob("*") if path.is_file()] == [".lock.sqlite3"]
    monkeypatch.undo()
    assert upload(client, ("x.png", as_file(noise()))).status_code == 200


def test_a_picture_that_was_added_before_something_went_wrong_keeps_its_file(served, client, monkeypatch):
    add = served.collection.add

    def add_and_fail(*args, **named):
        add(*args, **named)
        raise StorageError("The disk has gone.")

    monkeypatch.setattr(served.collection, "add", add_and_fail)
    error_of(upload(client, ("x.png", as_file(noise()))), 500)
    (uploaded,) = [name for name in served.ids(client) if name.startswith("pictures/")]
    assert client.get(url_of(uploaded)).content == as_file(noise())


def test_without_torch_pictures_are_searched_and_not_read(served, client, monkeypatch):
    def missing(*args, **named):
        raise MissingExtraError("torch, which reads pictures,", "train")

    monkeypatch.setattr(served.collection, "add", missing)
    monkeypatch.setattr(served.collection, "search_picture", missing)
    assert 'pip install "voken-search[train]"' in error_of(upload(client, ("x.png", as_file(noise()))), 501)
    assert "train" in error_of(client.post("/search/picture", files={"file": as_file(noise())}), 501)
    assert served.search(client)


def test_one_compaction_at_a_time_and_none_in_the_way_of_closing(served, monkeypatch):
    go, begun = threading.Event(), threading.Semaphore(0)
    running = []

    def compact(self):
        running.append(threading.current_thread())
        begun.release()
        assert go.wait(SOON)
        return True

    monkeypatch.setattr(Collection, "wants_compaction", property(lambda self: True))
    monkeypatch.setattr(Collection, "compact", compact)
    with served.client() as client:
        for place in range(3):
            client.delete(f"/pictures/p00{place}.png", headers=TOKEN)
        assert begun.acquire(timeout=SOON)
        assert len(running) == 1
        assert len(served.ids(client)) == PICTURES - 3
        served.service.compaction.close(0.0)  # it is abandoned
        assert running[0].is_alive()
        go.set()
        running[0].join(SOON)
        client.delete("/pictures/p003.png", headers=TOKEN)
    assert len(running) == 1


def test_compaction_happens_and_changes_no_answer(served, monkeypatch):
    monkeypatch.setattr("voken.collection.store._MIN_CHANGES", 1)
    with served.client() as client:
        for place in range(2):
            client.delete(f"/pictures/p00{place}.png", headers=TOKEN)
        before = served.ids(client)
        served.service.compaction.close(SOON)
        assert not served.collection.store.snapshot().is_changed
        served.collection.searcher.refresh()
        assert served.ids(client) == before == {f"p00{place}.png" for place in range(2, PICTURES)}
