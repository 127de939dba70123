"""A server over a real collection and a tiny model, for the tests of `voken.serve`."""

from __future__ import annotations

import asyncio
import io
import threading
from contextlib import contextmanager
from urllib.parse import unquote_to_bytes

import httpx2
import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from builders.collections import make_collection
from builders.tiny_model import PrefixGenerator, paint_many, tiny_model
from voken import Collection
from voken.serve.app import create_app
from voken.serve.settings import ServeSettings

SOON = 30
"""Seconds after which something hangs. Nothing waits that long if all is well."""
TOKEN = {"Authorization": "Bearer open-sesame"}
PICTURES = 8


class BlockingGenerator(PrefixGenerator):
    """Answers when the test sets `go`, and records the batches."""

    def __init__(self):
        super().__init__(4, 2)
        self.go, self.started, self.batches = threading.Event(), threading.Semaphore(0), []

    def prefill(self, texts):
        self.batches.append(list(texts))
        self.started.release()
        assert self.go.wait(SOON)
        return super().prefill(texts)


class Served:
    """An application that serves the collection in a folder."""

    def __init__(self, folder, cache, model=None, **settings):
        self.folder = folder
        self.settings = ServeSettings(**{"token": "open-sesame", "thumbnail_folder": cache, **settings})
        self.collection = Collection.open(
            folder,
            model=model or tiny_model(),
            max_queue=self.settings.max_queue,
            strip_location=self.settings.strip_location,
        )
        self.app = create_app(self.collection, self.settings)
        self.service = self.app.state.service

    @classmethod
    @contextmanager
    def of(cls, root, model=None, **settings):
        """Over small pictures of one colour each, two of each colour."""
        paths = paint_many(root / "pictures", PICTURES)
        make_collection(root / "c", paths, tiny_model())
        with cls.over(root / "c", root / "thumbnails", model, **settings) as served:
            served.paths = paths
            yield served

    @classmethod
    @contextmanager
    def over(cls, folder, cache, model=None, **settings):
        """Over a collection that exists."""
        served = cls(folder, cache, model, **settings)
        yield served
        served.service.close()
        served.collection.close()

    def client(self):
        return TestClient(self.app, base_url="http://localhost")

    def search(self, client, query="red", **more):
        answer = client.post("/search", json={"query": query, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["results"][0]["hits"]

    def ids(self, client):
        return {hit["id"] for hit in self.search(client, k=200)}


def as_file(image, form="PNG", **options):
    written = io.BytesIO()
    image.save(written, form, **options)
    return written.getvalue()


def noise(side=64, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def upload(client, *files, headers=TOKEN):
    return client.post("/pictures", files=[("files", (name, content)) for name, content in files], headers=headers)


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert list(content) == ["error"]
    assert content["error"].endswith((".", '"'))  # a sentence, or a command to type
    return content["error"]


class Exchange:
    """One request straight to the application, as a server would pass it on: nothing is tidied up on the way."""

    def __init__(self, app, method, raw_path, headers=(), messages=({"type": "http.request", "body": b""},)):
        self.app, self.messages, self.sent = app, list(messages), []
        self.read = 0
        path, _, query = raw_path.partition(b"?")
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "root_path": "",
            "query_string": query,
            "headers": [(b"host", b"localhost"), *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 7860),
            "state": {},
        }

    async def receive(self):
        if not self.messages:
            await asyncio.Event().wait()  # for ever
        message = self.messages.pop(0)
        self.read += len(message.get("body", b""))
        return message

    async def send(self, message):
        self.sent.append(message)

    async def run(self):
        await self.app(self.scope, self.receive, self.send)
        self.status = self.sent[0]["status"]
        self.headers = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        self.body = b"".join(message.get("body", b"") for message in self.sent[1:])
        return self

    @classmethod
    def get(cls, app, raw_path, **named):
        return asyncio.run(cls(app, "GET", raw_path, **named).run())


def together(app, *requests):
    """Responses to JSON searches that are sent at once."""

    async def all_of_them():
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.post("/search", json=body) for body in requests))

    return asyncio.run(all_of_them())
