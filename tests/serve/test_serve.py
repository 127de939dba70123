"""The server over a real collection: what it answers, whom it refuses, how much it accepts, and what it survives."""

import asyncio
import dataclasses
import importlib
import json
import socket
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from starlette.testclient import TestClient

from builders.served import PICTURES, SOON, TOKEN, BlockingGenerator, Exchange, Served, error_of, together
from builders.tiny_model import tiny_model
from voken.errors import BusyError, ConfigError, MissingExtraError
from voken.serve.app import create_app
from voken.serve.concurrency import Slots, ThroughputMeter, Workers
from voken.serve.process import serve
from voken.serve.settings import ServeSettings


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


def test_says_what_is_served(still, asking):
    assert asking.get("/about").json() == {
        "name": "c",
        "pictures": PICTURES,
        "version": still.collection.version,
        "readout": "vector",
        "fields": ["date", "folder"],
        "calibrated": False,
        "can_encode": still.collection.can_encode,
        "uploads": True,
    }
    health = asking.get("/healthz")
    assert (health.status_code, health.json()["status"], health.json()["pictures"]) == (200, "ok", PICTURES)


def test_the_page_and_its_files_are_served_with_a_policy_that_keeps_other_hosts_out(asking):
    page = asking.get("/")
    assert page.status_code == 200
    assert "<html" in page.text
    assert "text/javascript" in asking.get("/static/app.js").headers["content-type"]
    for answer in (page, asking.get("/about"), asking.get("/nothing"), asking.get("/static/../app.py")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert error_of(asking.get("/nothing"), 404)
    assert asking.get("/docs").status_code == 404  # it would load scripts from elsewhere


def test_a_search_answers_what_the_collection_answers(still, asking):
    body = {"queries": ["red", "blue or so"], "k": 3, "filters": ["folder!=nowhere"], "why": True}
    answer = asking.post("/search", json=body).json()
    expected = still.collection.search_many(body["queries"], 3)
    assert answer["version"] == still.collection.version
    assert [result["query"] for result in answer["results"]] == body["queries"]
    for query, result, hits in zip(body["queries"], answer["results"], expected, strict=True):
        assert not result["no_match"]
        assert [(hit["id"], hit["score"], tuple(hit["vokens"])) for hit in result["hits"]] == [
            (hit.image_id, pytest.approx(hit.score), hit.vokens) for hit in hits
        ]
        whys = still.collection.explain(query, hits)
        assert [hit["why"]["log_prob"] for hit in result["hits"]] == [pytest.approx(why.log_prob) for why in whys]
        assert [level["voken"] for level in result["hits"][0]["why"]["levels"]] == list(hits[0].vokens)
        assert asking.get(result["hits"][0]["url"]).content == Path(hits[0].path).read_bytes()


def test_a_search_that_finds_nothing_says_so(asking):
    (result,) = asking.post("/search", json={"query": "red", "filters": ["folder=nowhere"], "why": True}).json()[
        "results"
    ]
    assert result == {"query": "red", "no_match": True, "hits": []}


def test_words_are_added_and_taken_away(still, asking):
    like = sorted(still.ids(asking))[0]
    body = {"like": like, "plus": ["at night:2"], "minus": ["people"], "k": 3}
    (result,) = asking.post("/search", json=body).json()["results"]
    wanted = still.collection.combine(like=like, plus=["at night:2"], minus=["people"], k=3)
    assert [hit["id"] for hit in result["hits"]] == [hit.image_id for hit in wanted]
    answer = asking.post("/search", json={"query": "a dog", "minus": ["people:0.5"], "k": 3}).json()
    assert "results" in answer, answer
    (result,) = answer["results"]
    wanted = still.collection.combine("a dog", 3, minus=["people:0.5"])
    assert [hit["id"] for hit in result["hits"]] == [hit.image_id for hit in wanted]


def test_like_a_picture_of_the_collection_and_like_one_that_is_sent(still, asking):
    like = still.ids(asking).pop()
    (result,) = asking.post("/search", json={"like": like, "k": 3}).json()["results"]
    assert result["query"] is None
    assert [hit["id"] for hit in result["hits"]] == [hit.image_id for hit in still.collection.similar(like, 3)]
    sent = still.paths[0].read_bytes()
    answer = asking.post(
        "/search/picture", files={"file": sent}, data={"k": "2", "filters": ["folder!=x", "date>=1990"]}
    )
    (result,) = answer.json()["results"]
    assert len(result["hits"]) == 2
    # two pictures have each colour
    assert {Path(hit["url"]).name for hit in result["hits"]} == {"p000.png", "p004.png"}
    error_of(asking.post("/search", json={"like": "nobody"}), 404)


@pytest.mark.parametrize(
    "query",
    ["🐕‍🦺 am Strand", "a\x00b\x1f\x7f", "\ud83d half a sign", "日本語", "x" * 2_000, "<script>", "' OR 1=1 --"],
)
def test_any_text_is_searched(query, asking):
    sent = json.dumps({"query": query}).encode()
    answer = asking.post("/search", content=sent, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 200
    assert len(answer.json()["results"][0]["hits"]) == PICTURES


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"query": ""}, 422, "query"),
        ({"query": " \t\n"}, 422, "query"),
        ({"query": "\x00\x1f"}, 422, "query"),
        ({"query": "x" * 2_001}, 422, "2,001 characters, over the limit of 2,000"),
        ({"query": "x" * 1_000_000}, 422, "over the limit of 2,000"),
        ({"query": 7}, 422, "query: it must be a text"),
        ({"query": None}, 422, "query"),
        ({"query": "x", "queries": ["x"]}, 422, "one of"),
        ({}, 422, "one of"),
        ([], 422, "one of"),
        ({"queries": []}, 422, "queries"),
        ({"queries": ["x"] * 65}, 422, "64"),
        ({"queries": ["x", ""]}, 422, "queries[1]"),
        ({"query": "x", "k": 0}, 422, "k:"),
        ({"query": "x", "k": 201}, 422, "200"),
        ({"query": "x", "k": -1}, 422, "k:"),
        ({"query": "x", "k": "3"}, 422, "k:"),
        ({"query": "x", "k": True}, 422, "k:"),
        ({"query": "x", "k": 2.5}, 422, "k:"),
        (b'{"query": "x", "k": 1e400}', 422, "k:"),
        (b'{"query": "x", "k": NaN}', 422, "k:"),
        (b'{"query": "x", "k": ' + b"9" * 5_000 + b"}", 400, "JSON"),
        ({"query": "x", "threshold": 1.5}, 422, "threshold"),
        (b'{"query": "x", "threshold": NaN}', 422, "threshold"),
        ({"query": "x", "threshold": 0.5}, 409, "calibrated"),
        ({"query": "x", "why": 1}, 422, "why"),
        ({"query": "x", "filters": ["nonsense"]}, 422, "filters[0]"),
        ({"query": "x", "filters": ["date>=soon"]}, 422, "date"),
        ({"query": "x", "filters": ["licnese=CC0"]}, 422, "The fields are date, folder"),
        ({"query": "x", "filters": ["year=>2020"]}, 422, "'=>' is no operator"),
        ({"query": "x", "filters": ["a=b"] * 17}, 422, "filters"),
        ({"query": "x", "limit": 3}, 422, "limit"),
        ({"like": ""}, 422, "like"),
        ({"like": "x", "queries": ["y"]}, 422, "one of"),
        ({"query": "x", "plus": "y"}, 422, "list of words"),
        ({"query": "x", "minus": [" "]}, 422, "empty"),
        ({"query": "x", "minus": ["y:0"]}, 422, "above 0"),
        ({"query": "x", "plus": ["y"], "why": True}, 422, "plus or minus"),
        ({"queries": ["x"], "plus": ["y"]}, 422, "no such field"),
        ({"like": "nobody", "plus": ["y"]}, 404, "picture"),
        ({"like": "../../etc/passwd"}, 404, "picture"),
        ({"like": "a\x00b"}, 404, "picture"),
        (b"{", 400, "JSON"),
        (b"", 400, "JSON"),
        (b"\xff\xfe\xff", 400, "JSON"),
        (b"[" * 100_000, 400, "JSON"),
    ],
)
def test_what_is_wrong_with_a_search_is_said(body, status, says, asking):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = asking.post("/search", content=content, headers={"Content-Type": "application/json"})
    assert says in error_of(answer, status)


def test_a_search_longer_than_any_within_the_limits_is_read_no_further(still):
    small = create_app(still.collection, dataclasses.replace(still.settings, max_query_characters=10, max_queries=1))
    with TestClient(small, base_url="http://localhost") as client:
        body = b'{"query": "x"' + b" " * small.state.service.parser.max_bytes + b"}"
        error_of(client.post("/search", content=body, headers={"Content-Type": "application/json"}), 413)
        assert "limit of 10" in error_of(client.post("/search", json={"query": "x" * 11}), 422)
    most = small.state.service.parser.max_bytes
    endless = asyncio.run(Exchange(small, "POST", b"/search", [JSON], body_of(*[100_000] * 100)).run())
    assert endless.status == 413
    assert endless.read <= 4 * most + 100_000


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/search", "text/plain"),
        ("/search", ""),
        ("/search", "multipart/form-data; boundary=x"),
        ("/search/picture", "application/json"),
        ("/search/picture", "application/x-www-form-urlencoded"),
        ("/pictures", "image/png"),
    ],
)
def test_other_types_of_content_are_refused(path, content_type, asking):
    answer = asking.post(path, content=b'{"query": "x"}', headers={**TOKEN, "Content-Type": content_type})
    error_of(answer, 415)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/search", {"POST"}),
        ("/pictures/a/b", {"GET", "HEAD", "DELETE"}),
        ("/pictures", {"GET", "HEAD", "POST"}),
        ("/export", {"POST"}),
        ("/about", {"GET", "HEAD"}),
        ("/metrics", {"GET", "HEAD"}),
    ],
)
def test_other_methods_are_refused_with_those_that_are_allowed(path, allowed, asking):
    for method in {"GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "TRACE"} - allowed:
        answer = asking.request(method, path)
        assert answer.status_code == 405
        assert method == "HEAD" or error_of(answer, 405)
        assert set(answer.headers["allow"].split(", ")) == allowed


READABLE = [
    "/", "/about", "/healthz", "/openapi.json", "/static/app.js", "/pictures/p000.png", "/pictures/none.png",
    "/pictures", "/timeline", "/folders", "/values?field=date", "/examples", "/details/p000.png", "/details/none.png",
]  # fmt: skip


@pytest.mark.parametrize("path", [*READABLE, "/pictures/p000.png?thumbnail=64", "/nowhere"])
def test_head_is_answered_as_get_without_the_body(path, asking):
    whole, head = asking.get(path), asking.head(path)
    assert head.status_code == whole.status_code
    assert dict(head.headers) == dict(whole.headers)
    assert int(head.headers["content-length"]) == len(whole.content)
    if etag := whole.headers.get("etag"):
        condition = {"If-None-Match": etag}
        assert asking.head(path, headers=condition).status_code == asking.get(path, headers=condition).status_code


@pytest.mark.parametrize(
    ("token", "header", "status"),
    [
        ("", "Bearer open-sesame", 403),
        ("", "Bearer ", 403),
        ("open-sesame", None, 401),
        ("open-sesame", "Bearer", 401),
        ("open-sesame", "Bearer open-sesam", 401),
        ("open-sesame", "Bearer open-sesame!", 401),
        ("open-sesame", "Basic open-sesame", 401),
        ("open-sesame", "Bearer \xfc", 401),
    ],
)
def test_who_has_not_the_token_changes_nothing(token, header, status, still):
    app = create_app(still.collection, dataclasses.replace(still.settings, token=token))
    headers = [] if header is None else [(b"authorization", header.encode("latin-1"))]
    # the body is not even read
    add = Exchange(app, "POST", b"/pictures", headers, [{"type": "http.request", "body": b"x", "more_body": True}])
    remove = Exchange(app, "DELETE", b"/pictures/p000.png", headers)
    for exchange in (add, remove):
        answer = asyncio.run(exchange.run())
        assert answer.status == status
        assert json.loads(answer.body)["error"]
        assert exchange.read == 0
        assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    with TestClient(app, base_url="http://localhost") as client:
        assert len(still.ids(client)) == PICTURES
        assert client.get("/about").json()["uploads"] == bool(token)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://localhost"}, True),
        ({"Origin": "https://localhost"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://elsewhere"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "http://[::1"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_a_page_of_another_site_cannot_use_it(headers, allowed, asking):
    answers = [
        asking.post("/search", json={"query": "red"}, headers=headers),
        asking.delete("/pictures/nobody", headers={**TOKEN, **headers}),
    ]
    assert [answer.status_code for answer in answers] == ([200, 404] if allowed else [403, 403])
    assert asking.get("/about", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("localhost", {}, 200),
        ("LOCALHOST:7860", {}, 200),
        ("127.0.0.1:7860", {}, 200),
        ("[::1]:7860", {}, 200),
        ("127.0.0.2", {"host": "127.0.0.2"}, 200),
        ("photos.example", {"hosts": ("photos.example",)}, 200),
        ("evil.example", {}, 421),
        ("evil.example:7860", {}, 421),
        ("localhost.evil.example", {}, 421),
        ("127.0.0.1.evil.example", {}, 421),
        ("", {}, 421),
        ("evil.example", {"host": "0.0.0.0"}, 200),
        ("photos.example", {"host": "0.0.0.0", "hosts": ("photos.example",)}, 200),
        ("evil.example", {"host": "0.0.0.0", "hosts": ("photos.example",)}, 421),
    ],
)
def test_a_server_for_this_machine_answers_to_its_names_only(host, settings, status, still):
    settings = dataclasses.replace(still.settings, **settings)
    app = create_app(still.collection, settings)
    for method, path in (("GET", b"/about"), ("GET", b"/pictures/p000.png"), ("GET", b"/")):
        exchange = Exchange(app, method, path)
        exchange.scope["headers"] = [(b"host", host.encode())]
        assert asyncio.run(exchange.run()).status == status
    exchange.scope["headers"] = []
    exchange.sent.clear()
    if status == 421:
        assert asyncio.run(exchange.run()).status == 421


def body_of(*sizes, last=True):
    return [
        {"type": "http.request", "body": b"x" * size, "more_body": not last or place + 1 < len(sizes)}
        for place, size in enumerate(sizes)
    ]


JSON = (b"content-type", b"application/json")


@pytest.mark.parametrize("path", [b"/search", b"/search/picture", b"/pictures"])
@pytest.mark.parametrize(
    ("headers", "messages", "most_read"),
    [
        ([(b"content-length", b"1001")], body_of(1001), 1001),  # read on, so that its sender finds the answer
        ([(b"content-length", b"100000")], body_of(*[500] * 200), 4_500),  # but not for ever
        ([(b"content-length", b"9" * 5000)], body_of(*[500] * 200), 4_500),
        ([(b"content-length", b"1001"), (b"expect", b"100-continue")], body_of(1001), 0),
        ([(b"transfer-encoding", b"chunked")], body_of(*[100] * 1_000), 4_500),
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], body_of(*[100] * 1_000), 4_500),
    ],
)
def test_a_body_is_read_to_its_limit(path, headers, messages, most_read, still):
    app = create_app(still.collection, dataclasses.replace(still.settings, max_body=1_000))
    kind = JSON if path == b"/search" else (b"content-type", b"multipart/form-data; boundary=y")
    sesame = (b"authorization", b"Bearer open-sesame")
    answer = asyncio.run(Exchange(app, "POST", path, [kind, sesame, *headers], messages).run())
    if path != b"/search" and b"chunked" in dict(headers).get(b"transfer-encoding", b""):
        # a broken form is noticed before the limit is reached
        assert answer.status in (400, 413)
    else:
        assert answer.status == 413
        assert "1,000 bytes" in json.loads(answer.body)["error"]
    assert answer.read <= most_read
    fits = asyncio.run(Exchange(app, "POST", b"/search", [JSON], body_of(500, 500)).run())
    assert fits.status == 400  # it is no JSON


def test_a_body_that_comes_too_slowly_is_not_waited_for(still):
    app = create_app(still.collection, dataclasses.replace(still.settings, body_seconds=0.05))
    for messages in ([], body_of(10, 10, last=False)):
        answer = asyncio.run(Exchange(app, "POST", b"/search", [JSON], messages).run())
        assert answer.status == 408
        assert answer.headers["connection"] == "close"


def test_a_client_that_leaves_while_it_sends_is_no_error(still, caplog):
    exchange = Exchange(still.app, "POST", b"/search", [JSON], [*body_of(5, last=False), {"type": "http.disconnect"}])
    asyncio.run(exchange.app(exchange.scope, exchange.receive, exchange.send))
    assert exchange.sent == []
    assert caplog.records == []


def test_a_full_queue_says_when_to_come_back_and_loses_nothing(tmp_path):
    generator = BlockingGenerator()
    model = dataclasses.replace(tiny_model(), generator=generator)

    async def run(served):
        transport = httpx2.ASGITransport(served.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:

            def ask(query):
                return asyncio.ensure_future(client.post("/search", json={"query": query}))

            first = ask("first")
            assert await asyncio.to_thread(generator.started.acquire, timeout=SOON)
            waiting = [ask(f"waiting {number}") for number in range(4)]
            while served.service.throughput.pending < 5:
                await asyncio.sleep(0.001)
            refused = [await ask("one too many") for _ in range(3)]
            many = await client.post("/search", json={"queries": ["a", "b"]})
            health = await client.get("/healthz")
            counted = (await client.get("/metrics")).text
            generator.go.set()
            answered = await asyncio.gather(first, *waiting)
            again = await ask("one too many")
            return refused, many, health, counted, answered, again

    with Served.of(tmp_path, model, max_queue=4) as served:
        refused, many, health, counted, answered, again = asyncio.run(run(served))
    for answer in [*refused, many]:
        assert "again" in error_of(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
    assert health.status_code == 200  # busy is not ill
    assert "voken_queries_in_hand 5.0" in counted
    assert 'voken_rejected_total{reason="busy"} 4.0' in counted
    assert [answer.status_code for answer in [*answered, again]] == [200] * 6
    assert [answer.json()["results"][0]["query"] for answer in answered] == [
        "first",
        *(f"waiting {n}" for n in range(4)),
    ]
    assert sorted(generator.batches[1]) == [f"waiting {n}" for n in range(4)]  # together
    assert served.service.throughput.pending == 0


def test_the_query_of_a_client_that_left_is_not_searched(tmp_path):
    generator = BlockingGenerator()

    def ask(served, query, gone=None):
        exchange = Exchange(served.app, "POST", b"/search", [JSON], [])
        body = {"type": "http.request", "body": json.dumps({"query": query}).encode()}

        async def receive(messages=[body]):  # noqa: B006 - a list per call
            if messages:
                return messages.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        exchange.receive = receive
        return asyncio.ensure_future(exchange.run())

    async def run(served):
        first = ask(served, "first")
        assert await asyncio.to_thread(generator.started.acquire, timeout=SOON)
        gone = asyncio.Event()
        left, stays = ask(served, "left", gone), ask(served, "stays")
        while served.service.throughput.pending < 3:
            await asyncio.sleep(0.001)
        gone.set()
        assert (await left).status == 499
        generator.go.set()
        return [(await exchange).status for exchange in (first, stays)]

    with Served.of(tmp_path, dataclasses.replace(tiny_model(), generator=generator)) as served:
        assert asyncio.run(run(served)) == [200, 200]
    assert generator.batches == [["first"], ["stays"]]


def test_workers_take_so_many_and_no_more():
    workers = Workers(1, 2, "test")
    go, ran = threading.Event(), []

    async def run():
        held = asyncio.ensure_future(workers.run(go.wait, SOON))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(workers.run(ran.append, name)) for name in ("left", "stays")]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="Try again"):
            await workers.run(ran.append, "too many")
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        late = asyncio.ensure_future(workers.run(ran.append, "late"))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(held, waiting[1], late)

    asyncio.run(run())
    assert ran == ["stays", "late"]
    assert workers.pending == 0
    workers.close()
    with pytest.raises(BusyError):
        asyncio.run(workers.run(ran.append, "closed"))


def test_slots_are_given_back():
    slots = Slots(1)
    for _ in range(3):
        with slots.hold(), pytest.raises(BusyError, match="Try again"), slots.hold():
            pass


def test_a_full_queue_is_worth_a_try_when_half_of_it_is_done():
    now = 100.0
    meter = ThroughputMeter(lambda: now)
    assert meter.retry_after() == 1  # nobody knows yet
    for _ in range(5):
        with meter.count(8):
            now += 1.0
    assert meter.per_second() == pytest.approx(40 / 4)  # in the 4 s since the first were answered
    with meter.count(300):
        assert meter.retry_after() == 15
    with pytest.raises(ZeroDivisionError), meter.count(10_000):
        assert meter.retry_after() // 0 == 60
    now += 1_000.0
    with meter.count(1):
        pass
    assert len(meter._answered) == 1  # however long it runs
    now += 1_000.0
    assert meter.per_second() == 0.0
    assert meter.pending == 0


def test_errors_nobody_foresaw_are_answered_and_logged_once(served, client, monkeypatch, caplog):
    async def fail(*args, **named):
        raise ZeroDivisionError("/home/someone/secret")

    monkeypatch.setattr(served.collection, "asearch", fail)
    answer = client.post("/search", json={"query": "red"})
    assert "secret" not in error_of(answer, 500)
    (record,) = caplog.records
    assert answer.headers["x-request-id"] in record.getMessage()
    assert answer.headers["content-security-policy"]
    counted = client.get("/metrics").text
    assert 'voken_requests_total{method="POST",route="/search",status="500"} 1.0' in counted


def test_health_is_bad_while_closing_and_where_the_collection_is_gone(served, client):
    (served.folder / "collection.sqlite3").rename(served.folder / "away")
    assert "Retry-After".lower() in client.get("/healthz").headers
    error_of(client.get("/healthz"), 503)
    (served.folder / "away").rename(served.folder / "collection.sqlite3")
    assert client.get("/healthz").status_code == 200
    served.service.closing = True
    answer = client.get("/healthz")
    error_of(answer, 503)
    assert answer.headers["connection"] == "close"
    assert served.search(client)  # what still comes is answered


def test_requests_are_counted_by_route_and_not_by_address(served, client):
    for path in ("/pictures/p000.png", "/pictures/p001.png", "/pictures/nobody", "/elsewhere", "/other/place"):
        client.get(path)
    client.request("BREW", "/about")
    served.search(client)
    counted = client.get("/metrics")
    assert counted.headers["content-type"].startswith("text/plain")
    lines = set(counted.text.splitlines())
    assert {
        'voken_requests_total{method="GET",route="/pictures/{image_id}",status="200"} 2.0',
        'voken_requests_total{method="GET",route="/pictures/{image_id}",status="404"} 1.0',
        'voken_requests_total{method="GET",route="other",status="404"} 2.0',
        'voken_requests_total{method="other",route="/about",status="405"} 1.0',
        'voken_request_seconds_count{route="/search"} 1.0',
        f"voken_pictures {PICTURES}.0",
        f"voken_collection_version {served.collection.version}.0",
    } <= lines
    assert any(line.startswith("voken_info{version=") for line in lines)
    second = create_app(served.collection, served.settings)  # counts for itself
    with TestClient(second, base_url="http://localhost") as other:
        assert 'route="/search"' not in other.get("/metrics").text


def test_batches_are_counted(still):
    def counted():
        with still.client() as client:
            lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
        return float(lines["voken_batch_queries_sum"]), float(lines["voken_batch_queries_count"])

    queries, batches = counted()
    answers = together(still.app, *({"query": f"red {number}"} for number in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    after_queries, after_batches = counted()
    assert after_queries - queries == 20
    assert 1 <= after_batches - batches < 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": 65_536},
        {"max_queue": 0},
        {"max_body": 0},
        {"max_k": 0},
        {"body_seconds": 0},
        {"grace_seconds": float("nan")},
        {"grace_seconds": float("inf")},
        {"thumbnail_megabytes": -1},
        {"host": ""},
        {"token": "two words"},
        {"token": "ü"},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        ServeSettings(**wrong)


def test_a_token_is_not_shown_where_settings_are():
    assert "open-sesame" not in repr(ServeSettings(token="open-sesame"))


def test_a_server_without_its_libraries_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "voken.serve")
    with pytest.raises(MissingExtraError, match=r"voken-search\[serve\]"):
        importlib.import_module("voken.serve")


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_an_address_that_cannot_be_had_is_said_before_anything_is_loaded(host, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="--port"):
        serve(tmp_path / "nothing", ServeSettings(host=host, port=taken.getsockname()[1]))
