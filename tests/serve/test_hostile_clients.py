"""Clients that mean harm, and pictures whose files change under the server: what each may see, take and hold up."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import re
import socket
import threading
import time

import pytest
from PIL import Image

from builders.served import SOON, TOKEN, Exchange, Served, as_file, error_of, noise, upload
from builders.tiny_model import paint
from voken import Collection
from voken.errors import ConfigError
from voken.serve.pictures import PictureFile
from voken.serve.process import Server, serve
from voken.serve.requests import _FILTER, SearchParser, _is_filter
from voken.serve.settings import ServeSettings
from voken.serve.token_failures import TokenFailures

SECRET = as_file(noise(40, seed=9))


@pytest.fixture
def served(tmp_path):
    with Served.of(tmp_path, wrong_token_seconds=0.01) as application:
        yield application


@pytest.fixture
def client(served):
    with served.client() as client:
        yield client


# pictures


@pytest.mark.parametrize("address", ["/pictures/p000.png", "/pictures/p000.png?thumbnail=64"])
def test_a_link_that_is_swapped_in_is_not_served(served, client, tmp_path, monkeypatch, address):
    before = client.get(address).content
    secret = tmp_path / "secret.png"
    secret.write_bytes(SECRET)
    opened = PictureFile.of.__func__
    swaps = []

    def open_and_swap(cls, picture, **options):
        file = opened(cls, picture, **options)
        picture.path.unlink()
        picture.path.symlink_to(secret)
        swaps.append(picture.path)
        return file

    monkeypatch.setattr(PictureFile, "of", classmethod(open_and_swap))
    monkeypatch.setattr(served.service.thumbnails, "_max_bytes", 0)
    assert client.get(address).content == before
    assert swaps[0].resolve() == secret
    monkeypatch.undo()
    assert "link" in error_of(client.get(address), 403)


@pytest.mark.parametrize("kind", ["file", "folder", "hidden part"])
def test_links_are_served_if_they_stay_inside(served, client, tmp_path, kind):
    outside, inside = tmp_path / "outside", tmp_path / "pictures"
    outside.mkdir()
    (outside / "p000.png").write_bytes(SECRET)
    path = inside / "p000.png"
    path.unlink()
    if kind == "file":
        path.symlink_to(outside / "p000.png")
    elif kind == "folder":
        inside.rename(tmp_path / "moved")
        inside.mkdir()
        path.symlink_to(tmp_path / "moved" / ".." / "outside" / "p000.png")
    else:
        (inside / ".annex").mkdir()
        (inside / ".annex" / "k").write_bytes(SECRET)
        path.symlink_to(".annex/k")
    answer = client.get("/pictures/p000.png")
    if kind == "hidden part":
        assert answer.content == SECRET
        return
    assert "--follow-links" in error_of(answer, 403)
    assert error_of(client.get("/pictures/p000.png?thumbnail=64"), 403)
    with (
        Served.over(served.folder, tmp_path / "t", follow_links=True) as follower,
        follower.client() as following,
    ):
        assert following.get("/pictures/p000.png").content == SECRET


@pytest.mark.parametrize(
    "content",
    [
        b"BMI of all patients: 23, 27, 31, 22, 45, 19, 28, 33, 24, 26, 30, 21, 25, 29",
        b"BM" + bytes(60),
        b"P1 priorities for the board meeting, confidential",
        b"P6 passwords\nroot toor\n",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"II*\0" + b"secret" * 20,
    ],
    ids=range(7),
)
def test_texts_that_begin_like_pictures_are_none(served, client, content):
    served.paths[0].write_bytes(content)
    assert error_of(client.get("/pictures/p000.png"), 415)
    assert upload(client, ("x.bmp", content)).json()["added"] == []


def test_a_folder_or_a_pipe_in_its_place_is_gone(served, client):
    served.paths[0].unlink()
    os.mkfifo(served.paths[0])
    assert error_of(client.get("/pictures/p000.png"), 410)
    served.paths[0].unlink()
    served.paths[0].mkdir()
    assert error_of(client.get("/pictures/p000.png"), 410)


def test_a_picture_that_becomes_shorter_while_it_is_sent_ends_the_answer(served, monkeypatch):
    opened = PictureFile.of.__func__

    def open_and_cut(cls, picture, **options):
        file = opened(cls, picture, **options)
        picture.path.write_bytes(b"")
        return file

    served.paths[0].write_bytes(as_file(noise(400)))  # longer than what is read at once
    monkeypatch.setattr(PictureFile, "of", classmethod(open_and_cut))
    exchange = Exchange(served.app, "GET", b"/pictures/p000.png")
    asyncio.run(exchange.app(exchange.scope, exchange.receive, exchange.send))
    assert exchange.sent[0]["status"] == 200
    assert all(message.get("more_body") for message in exchange.sent[1:])


def gps():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 31.0, 12.0)
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    return exif


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>exif:GPSLatitude 52,31.2N a camera</x:xmpmeta>"


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("MPO", {"save_all": True, "append_images": [noise(32)]}),
        ("PNG", {}),
        ("WEBP", {"xmp": XMP}),
        ("TIFF", {}),
    ],
    ids=["JPEG", "progressive", "MPO", "PNG", "WEBP", "TIFF"],
)
def test_the_location_is_taken_out(served, tmp_path, form, options):
    image = noise(48).resize((64, 48))
    exif = gps()
    if form in ("PNG", "WEBP"):
        exif[0x0112] = 1
    content = as_file(image, form, exif=exif, **options)
    trailer = b"a film, taken at 52,31.2N" if form == "JPEG" else b""
    assert b"a camera" in content
    served.paths[0].write_bytes(content + trailer)
    with (
        Served.over(served.folder, tmp_path / "t", strip_location=True) as stripping,
        stripping.client() as client,
    ):
        answers = [client.get("/pictures/p000.png"), client.get("/pictures/p000.png?thumbnail=64")]
        for answer in answers:
            assert answer.status_code == 200, answer.text
            for told in (b"a camera", b"2024:05", b"GPS", b"52,31", b"a film"):
                assert told not in answer.content
        (tmp_path / "stripped").write_bytes(answers[0].content)
        with Image.open(served.paths[0]) as upright, Image.open(tmp_path / "stripped") as seen:
            assert seen.getexif().get_ifd(0x8825) == {}
            if form != "TIFF":
                assert seen.getexif().get(0x0112, 1) == upright.getexif().get(0x0112, 1)
                assert seen.convert("RGB").tobytes() == upright.convert("RGB").tobytes()
    with served.client() as plain:
        assert plain.get("/pictures/p000.png").content == content + trailer


def test_fields_that_tell_the_location_are_left_out(served, tmp_path):
    fields = {
        "title": "a beach",
        "GPSLatitude": 52.5,
        "camera_lng": 13.4,
        "exif": {"gps": {"lat": 52.5}, "model": "X100", "places": [{"location": "52.5,13.4"}]},
    }
    served.collection.add([served.paths[0]], metadata=[fields])
    with (
        Served.over(served.folder, tmp_path / "t", strip_location=True) as stripping,
        stripping.client() as client,
    ):
        (hit,) = stripping.search(client, filters=["title=a beach"])
        assert hit["metadata"] == {"title": "a beach", "exif": {"model": "X100", "places": [{}]}}
        named = client.get("/about").json()["fields"]
        assert set(named) & {"title", "exif", "GPSLatitude", "camera_lng"} == {"title", "exif"}
        for condition in ("GPSLatitude>52", "metadata.camera_lng!=1", "GPSLatitude=52.5"):
            message = error_of(client.post("/search", json={"query": "red", "filters": [condition]}), 422)
            assert "52.5" not in message
        assert stripping.search(client, filters=["exif~52.5"]) == []
        assert stripping.search(client, filters=["exif~X100"])
    with served.client() as plain:
        (hit,) = served.search(plain, filters=["GPSLatitude=52.5"])
        assert hit["metadata"] == fields


def test_a_picture_that_is_sent_again_keeps_its_hidden_fields(served, tmp_path):
    with (
        Served.over(served.folder, tmp_path / "t", strip_location=True) as stripping,
        stripping.client() as client,
    ):
        (image_id,) = upload(client, ("a.png", as_file(noise(20)))).json()["added"]
        path = served.folder / image_id
        served.collection.add([path], ids=[image_id], metadata=[{"gps": "52.5", "title": "a.png"}])
        assert upload(client, ("b.png", as_file(noise(20)))).json()["updated"] == [image_id]
    served.collection.searcher.refresh()  # by itself it looks only so often
    assert served.collection.metadata(image_id) == {"gps": "52.5", "title": "b.png"}


# slots and time


def test_slow_forms_without_the_token_hold_up_no_upload(tmp_path):
    with Served.of(tmp_path, max_forms=1) as served, served.client() as client:
        kind = (b"content-type", b"multipart/form-data; boundary=x")
        begun = {"type": "http.request", "body": b"--x\r\nContent-Disposition: form-data; ", "more_body": True}

        async def hold_and_upload():
            slow = Exchange(served.app, "POST", b"/search/picture", [kind], [begun])
            holding = asyncio.create_task(slow.app(slow.scope, slow.receive, slow.send))
            while served.service.form_slots._held == 0:
                await asyncio.sleep(0.001)
            other = Exchange(served.app, "POST", b"/search/picture", [kind], [begun])
            await other.run()
            return holding, other, await asyncio.to_thread(upload, client, ("new.png", as_file(noise(20))))

        async def run():
            holding, other, uploaded = await hold_and_upload()
            holding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await holding
            return other, uploaded

        other, uploaded = asyncio.run(run())
        assert other.status == 503
        assert uploaded.status_code == 200, uploaded.text
        assert len(uploaded.json()["added"]) == 1


@pytest.mark.parametrize(("headers", "status"), [([], 408), ([(b"authorization", b"Bearer open-sesame")], None)])
def test_only_the_token_gives_more_time(tmp_path, headers, status):
    with Served.of(tmp_path, open_body_seconds=0.05) as served:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}]
        kind = (b"content-type", b"application/json")
        exchange = Exchange(served.app, "POST", b"/search", [kind, *headers], messages)
        if status is None:
            with pytest.raises(TimeoutError):
                asyncio.run(asyncio.wait_for(exchange.run(), 0.5))
        else:
            assert asyncio.run(asyncio.wait_for(exchange.run(), SOON)).status == status


def test_wrong_tokens_are_logged_slowed_and_refused(client, caplog):
    caplog.set_level(logging.WARNING, "voken.serve")
    statuses = [
        client.delete("/pictures/p000.png", headers={"Authorization": f"Bearer guess-{number}"}).status_code
        for number in range(22)
    ]
    assert statuses == [401] * 20 + [429] * 2
    assert len(caplog.records) == 20
    assert "wrong token from testclient" in caplog.text
    assert "guess" not in caplog.text
    answer = client.delete("/pictures/p000.png", headers=TOKEN)
    assert "seconds" in error_of(answer, 429)
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_wrong_tokens_are_forgotten_and_nobody_here_is_locked_out():
    now = [0.0]

    async def fail(failures, client):
        for _ in range(30):
            await failures.record(client)

    for client, others in (("203.0.113.7", "203.0.113.8"), ("2001:db8::1", "2001:db8:1::1")):
        failures = TokenFailures(0.0, lambda: now[0])
        asyncio.run(fail(failures, client))
        with pytest.raises(Exception, match="Too many wrong tokens"):
            failures.check(client)
        failures.check(others)
        now[0] += 61
        failures.check(client)
    failures = TokenFailures(0.0, lambda: now[0])
    asyncio.run(fail(failures, "2001:db8::1"))
    with pytest.raises(Exception, match="Too many wrong tokens"):
        failures.check("2001:db8::ffff")  # the same household
    for here in ("127.0.0.1", "::1"):
        asyncio.run(fail(failures, here))
        failures.check(here)


def test_the_right_token_does_not_wait(tmp_path):
    with Served.of(tmp_path, wrong_token_seconds=SOON) as served:

        async def both():
            async def ask(token):
                headers = [(b"authorization", b"Bearer " + token)]
                return await Exchange(served.app, "DELETE", b"/pictures/p000.png", headers).run()

            wrong = [asyncio.create_task(ask(b"wrong")) for _ in range(50)]
            await asyncio.sleep(0)
            right = await asyncio.wait_for(ask(b"open-sesame"), SOON / 2)
            for task in wrong:
                task.cancel()
            await asyncio.gather(*wrong, return_exceptions=True)
            return right

        assert asyncio.run(both()).status == 200


@contextlib.contextmanager
def on_a_port(served):
    """The server on a real port; yields it and its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    listening = threading.Event()
    server = Server(served.app, listening.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert listening.wait(SOON)
        yield server, listener.getsockname()
    finally:
        server.should_exit = True
        thread.join(SOON)
        listener.close()


def test_a_client_that_does_not_read_is_disconnected(tmp_path, monkeypatch):
    """Over a real port, because the operating system's buffers come first."""
    monkeypatch.setattr("voken.serve.process._WRITE_SECONDS", 0.2)
    with Served.of(tmp_path) as served:
        with open(served.paths[0], "ab") as file:
            file.truncate(64 << 20)
        with on_a_port(served) as (server, address):
            with socket.create_connection(address, timeout=SOON) as idle:
                idle.sendall(b"GET /pictures/p000.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert idle.recv(12) == b"HTTP/1.1 200"
                end = time.monotonic() + SOON
                while server.server_state.connections and time.monotonic() < end:
                    time.sleep(0.05)
                assert not server.server_state.connections
            with socket.create_connection(address, timeout=SOON) as slow:
                slow.sendall(b"GET /pictures/p000.png HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                received = 0
                while block := slow.recv(1 << 22):
                    received += len(block)
                    time.sleep(0.02)  # it takes its time, but it reads
                assert received > 64 << 20


def test_connections_that_do_nothing_hold_up_nobody(tmp_path):
    head = b"POST /pictures HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    head += b"Authorization: Bearer open-sesame\r\nContent-Length: 1000\r\n\r\n--x\r\n"
    with Served.of(tmp_path, max_connections=4) as served, on_a_port(served) as (server, address):

        def connect(count):
            return [socket.create_connection(address, timeout=SOON) for _ in range(count)]

        def wait_until(condition):
            end = time.monotonic() + SOON
            while not condition() and time.monotonic() < end:
                time.sleep(0.01)
            assert condition()

        (sending,) = connect(1)
        sending.sendall(head)
        wait_until(lambda: served.service.upload_slots._held == 1)
        idle = connect(3)
        wait_until(lambda: len(server.server_state.connections) == 4)
        (asking,) = connect(1)
        asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert asking.recv(12) == b"HTTP/1.1 200"
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""  # the oldest that has no token
        for other in (sending, *idle[1:]):
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.recv(1)
        assert served.service.upload_slots._held == 1
        for connection in (sending, asking, *idle):
            connection.close()
        wait_until(lambda: not server.server_state.connections)


def test_searches_that_are_sent_slowly_share_the_memory(tmp_path):
    kind = (b"content-type", b"application/json")
    token = (b"authorization", b"Bearer open-sesame")
    begun = {"type": "http.request", "body": b" " * 600, "more_body": True}
    search = {"type": "http.request", "body": b'{"query": "red"}' + b" " * 600}
    with Served.of(tmp_path, max_open_bytes=1_000) as served:

        async def run():
            slow = Exchange(served.app, "POST", b"/search", [kind], [begun])
            holding = asyncio.create_task(slow.app(slow.scope, slow.receive, slow.send))
            while slow.messages:
                await asyncio.sleep(0.001)
            statuses = [
                (await Exchange(served.app, "POST", b"/search", [kind, *more], [search]).run()).status
                for more in ([], [], [token])
            ]
            holding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await holding
            again = [await Exchange(served.app, "POST", b"/search", [kind], [search]).run() for _ in range(3)]
            return statuses + [exchange.status for exchange in again]

        assert asyncio.run(run()) == [503, 503, 200, 200, 200, 200]


# sizes


def test_many_unknown_keys_are_refused_at_once(client):
    body = json.dumps({"query": "red", **{f"key-{number}": 0 for number in range(100_000)}})
    start = time.process_time()
    assert "100,001 fields" in error_of(
        client.post("/search", content=body, headers={"Content-Type": "application/json"}), 422
    )
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text", [" " * 999 + "x", "a" + " " * 998 + "b", "=" * 1000, " " * 1000, "a= " + " " * 997, "a" * 1000, "!" * 1000]
)
def test_texts_that_are_no_filters_are_refused_in_no_time(text):
    parser = SearchParser(ServeSettings())
    start = time.process_time()
    for _ in range(16):
        with pytest.raises(Exception, match=r"filter|characters"):
            parser.parse(json.dumps({"query": "red", "filters": [text] * 16}).encode())
    assert time.process_time() - start < 1


def test_the_documented_expression_says_the_same():
    pieces = ["", " ", "a", "=", "!", "<", ">", "~", "!=", "<=", ">=", "\t", "\xa0", "b c"]
    expression = re.compile(_FILTER)
    for text in ("".join(words) for words in itertools.product(pieces, repeat=4)):
        assert _is_filter(text) == bool(expression.search(text)), text


def test_pictures_to_search_with_have_the_limit_of_uploads(tmp_path):
    with Served.of(tmp_path, max_pixels=1_000) as served, served.client() as client:
        fits, large = as_file(noise(31)), as_file(noise(32))
        assert client.post("/search/picture", files={"file": ("a.png", fits)}).status_code == 200
        answer = client.post("/search/picture", files={"file": ("a.png", large)})
        assert "over the limit of 1,000" in error_of(answer, 415)


def test_listening_for_others_is_said(tmp_path, monkeypatch):
    lines = []

    def refuse(settings):
        raise ConfigError("taken")

    monkeypatch.setattr("voken.serve.process._listener", refuse)
    for host, warned in (("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True), ("192.0.2.1", True)):
        lines.clear()
        with pytest.raises(ConfigError, match="taken"):
            serve(tmp_path, ServeSettings(host=host), warn=lines.append)
        assert bool(lines) == warned
        assert all(host in line and "no login" in line for line in lines)


def test_an_uploaded_picture_is_served(served, client):
    (added,) = upload(client, ("new.png", SECRET)).json()["added"]
    assert client.get(f"/pictures/{added}").content == SECRET


def test_a_picture_that_was_added_from_elsewhere_is_served(served, client, tmp_path):
    path = paint(tmp_path / "elsewhere.png", "red")
    with Collection.open(served.folder, model=served.collection.searcher.model) as collection:
        collection.add([path])
    served.collection.searcher.refresh()
    address = client.post("/search", json={"query": "red", "k": 200}).json()["results"][0]["hits"]
    (url,) = [hit["url"] for hit in address if hit["id"] == str(path)]
    assert client.get(url).content == path.read_bytes()
