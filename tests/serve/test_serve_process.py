"""A server in its own process: on a real port, beside another process that changes its collection, to its end."""

import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from builders.served import SOON, BlockingGenerator, Served, as_file, noise, upload
from builders.tiny_model import tiny_model
from voken.errors import ArtifactError
from voken.serve.process import Server, serve
from voken.serve.settings import ServeSettings

PROGRAM = """
import dataclasses, sys, time
from pathlib import Path

sys.path.insert(0, {tests!r})
from builders.tiny_model import PrefixGenerator, tiny_model

import voken.api
from voken.serve.process import serve
from voken.serve.settings import ServeSettings

class BlockingGenerator(PrefixGenerator):
    def prefill(self, texts):
        while "held" in " ".join(texts) and not Path({go!r}).exists():
            time.sleep(0.01)
        return super().prefill(texts)

voken.api.load_model = lambda folder, **named: dataclasses.replace(tiny_model(), generator=BlockingGenerator(4, 2))
settings = ServeSettings(port=0, grace_seconds={grace}, thumbnail_folder=Path({cache!r}))
serve(Path({collection!r}), settings, model=Path("any"), report=lambda line: print(line, flush=True))
print("ended well", flush=True)
"""


class Running:
    """A server process."""

    def __init__(self, root, grace=20.0):
        self.go = root / "go"
        text = PROGRAM.format(
            tests=str(Path(__file__).parents[1]),
            go=str(self.go),
            cache=str(root / "thumbnails"),
            collection=str(root / "c"),
            grace=grace,
        )
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        assert line.startswith("Serving 8 pictures"), line + self.process.stderr.read()
        address = urlsplit(next(word for word in line.split() if word.startswith("http://")))
        self.host, self.port = address.hostname, address.port

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=SOON)

    def ask(self, method, path, body=None, headers=()):
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def search(self, query, **more):
        body = json.dumps({"query": query, **more})
        status, headers, content = self.ask("POST", "/search", body, {"Content-Type": "application/json"})
        return status, headers, json.loads(content)

    def ids(self):
        (result,) = self.search("red", k=200)[2]["results"]
        return {hit["id"] for hit in result["hits"]}

    def pending(self):
        lines = self.ask("GET", "/metrics")[2].decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("voken_queries_in_hand "))


def until(holds):
    """Wait for what happens in another process."""
    for _ in range(SOON * 100):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError(f"{holds} did not come to hold")


def refuses(running):
    try:
        socket.create_connection((running.host, running.port), timeout=SOON).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.fixture
def here(tmp_path):
    with Served.of(tmp_path) as application:
        yield application


@pytest.fixture
def running(here, tmp_path):
    server = Running(tmp_path)
    yield server
    server.go.touch()
    server.process.kill()
    server.process.wait(SOON)
    server.process.stdout.close()
    server.process.stderr.close()


def raw(running, *chunks, pause=0.0, gone=False):
    """What comes back where bytes are sent as they are. `gone`: the sender ends, and is owed no answer from then on."""
    with socket.create_connection((running.host, running.port), timeout=SOON) as connection:
        for chunk in chunks:
            connection.sendall(chunk)
            time.sleep(pause)
        if gone:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while more := connection.recv(65_536):
            received += more
    return received


@pytest.mark.slow
def test_over_a_real_port_from_beginning_to_end(running, here):
    # it answers, and to no other name
    assert running.ask("GET", "/healthz")[0] == 200
    assert running.ask("GET", "/about", headers={"Host": "evil.example"})[0] == 421
    assert running.ask("GET", "/pictures/p000.png")[2] == here.paths[0].read_bytes()
    for path in ("/", "/healthz", "/metrics", "/pictures/p000.png", "/pictures/p000.png?thumbnail=64"):
        request = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        head, body = raw(running, request.encode()).split(b"\r\n\r\n", 1)
        assert b" 200 " in head.splitlines()[0]
        assert body == b""
    assert running.ask("GET", "/pictures/../../etc/passwd")[0] == 404
    assert running.ask("GET", "/pictures/%2e%2e%2fp000.png")[0] == 404
    assert running.ask("GET", "/", headers={"Connection": "Upgrade", "Upgrade": "websocket"})[0] == 200

    # bodies in chunks, whole and broken
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b" 200 " in raw(
        running, chunked, b'5\r\n{"que\r\n', b'9\r\nry":"red"\r\n', b"1\r\n}\r\n0\r\n\r\n", pause=0.01
    )
    assert b" 400 " in raw(running, chunked, b"zz\r\n")
    assert b" 413 " in raw(running, head + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n")
    assert raw(running, head + b"Content-Length: 50\r\n\r\n{", gone=True) == b""
    assert b" 400 " in raw(running, b"\x16\x03\x01 not http\r\n\r\n")

    # what another process changes is found
    with here.client() as client:
        (uploaded,) = upload(client, ("x.png", as_file(noise()))).json()["added"]
        until(lambda: uploaded in running.ids())
        assert running.ask("GET", f"/pictures/{uploaded}")[2] == as_file(noise())
        client.delete(f"/pictures/{uploaded}", headers={"Authorization": "Bearer open-sesame"})
        until(lambda: uploaded not in running.ids())
        assert running.ask("GET", f"/pictures/{uploaded}")[0] == 404
    assert running.ask("DELETE", "/pictures/p000.png", headers={"Authorization": "Bearer "})[0] == 403

    # stopped while requests are pending, it answers them all
    with ThreadPoolExecutor(24) as threads:
        pending = [threads.submit(running.search, f"held {number}") for number in range(24)]
        until(lambda: running.pending() == 24)
        idle = running.connect()
        idle.request("GET", "/about")
        idle.getresponse().read()
        running.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(running))
        assert not any(search.done() for search in pending)
        running.go.touch()
        answers = [search.result(SOON) for search in pending]
    idle.close()
    assert [status for status, _, _ in answers] == [200] * 24
    assert [content["results"][0]["query"] for _, _, content in answers] == [f"held {number}" for number in range(24)]
    assert all(headers["Connection"] == "close" for _, headers, _ in answers)
    assert running.process.wait(SOON) == 0
    assert running.process.stdout.read() == "ended well\n"
    assert running.process.stderr.read() == ""


@pytest.fixture
def in_a_thread(here, monkeypatch):
    """`serve` in a thread of this process, as it has come to listen: its server and its address."""
    generator = BlockingGenerator()
    model = dataclasses.replace(tiny_model(), generator=generator)
    servers, reports, opened, ready = [], [], [], threading.Event()
    started = Server.startup

    async def startup(self, sockets=None):
        servers.append(self)
        await started(self, sockets)

    monkeypatch.setattr(Server, "startup", startup)
    monkeypatch.setattr("voken.api.load_model", lambda folder, **named: model)
    monkeypatch.setattr("voken.serve.process._HEAD_SECONDS", 0.2)
    monkeypatch.setattr("webbrowser.open", lambda address: (opened.append(address), ready.set()))
    settings = ServeSettings(port=0, grace_seconds=0.5, thumbnail_folder=here.settings.thumbnail_folder)
    named = {"model": Path("any"), "open_page": True, "report": reports.append}
    generator.go.set()  # for the search before it listens
    thread = threading.Thread(target=serve, args=(here.folder, settings), kwargs=named)
    thread.start()
    assert ready.wait(SOON)
    generator.go.clear()
    assert opened[0] in reports[0]
    yield servers[0], urlsplit(opened[0]), generator
    generator.go.set()
    servers[0].should_exit = True
    thread.join(SOON)
    assert not thread.is_alive()


def test_after_the_grace_time_what_is_left_is_refused(in_a_thread, caplog):
    server, address, generator = in_a_thread
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=SOON)
    with contextlib.closing(connection):
        body = json.dumps({"query": "never answered in time"})
        connection.request("POST", "/search", body, {"Content-Type": "application/json"})
        while "never" not in str(generator.batches):
            assert generator.started.acquire(timeout=SOON)
        server.should_exit = True
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Connection"]) == (503, "1", "close")
        assert "closing" in json.loads(answer.read())["error"]
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_client_that_sends_nothing_or_half_a_head_is_not_waited_for(begun, in_a_thread):
    _, address, _ = in_a_thread
    with socket.create_connection((address.hostname, address.port), timeout=SOON) as silent:
        silent.sendall(begun)
        assert silent.recv(100) == b""
    with socket.create_connection((address.hostname, address.port), timeout=SOON) as second:
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = second.recv(65_536)
        assert b" 200 " in received
        second.sendall(b"GET /he")  # and nothing more
        while more := second.recv(65_536):
            received += more
        assert received.endswith(b"}")


def test_a_missing_collection_is_an_error(tmp_path):
    with pytest.raises(ArtifactError):
        serve(tmp_path / "nothing", ServeSettings(port=0))
