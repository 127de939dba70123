"""The load generator of `benchmarks/serving.py` counts what a server does to it, and its table shows it."""

import asyncio
import itertools
import json
from collections import Counter

import pytest

import serving


def response(status, body=b"", *headers):
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Moody:
    """A server that treats the n-th request by the n-th mood."""

    def __init__(self, moods):
        self.moods, self.queries = list(moods), Counter()

    async def __call__(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
                )
                query = json.loads(await reader.readexactly(length))["query"]
                self.queries[query] += 1
                mood = self.moods.pop(0) if self.moods else "answer"
                echo = "another query" if mood == "mix up" else query
                good = response(200, json.dumps({"results": [{"query": echo}]}).encode())
                if mood == "drop":
                    break
                if mood == "busy":
                    good = response(503, b"{}", "Retry-After: 0")
                if mood in ("500", "503", "422"):
                    good = response(mood, b"{}")
                if mood == "close":
                    good = good.replace(b"Content-Length", b"Connection: close\r\nContent-Length")
                writer.write(good)
                await writer.drain()
                if mood == "close":
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("clients", [1, 3])
def test_everything_that_happens_to_a_query_is_counted(clients):
    moods = ["answer", "busy", "busy", "mix up", "drop", "500", "503", "422", "close", "drop"]
    server = Moody(moods)

    async def run():
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            counts, numbers = serving.Counts(seconds=0), itertools.count()
            while server.moods:  # a busy machine needs more than one slice of time
                address, query = f"http://127.0.0.1:{port}", lambda _: serving.query(next(numbers))
                counts.add(await serving.drive(address, clients, 0.5, query))
            return counts

    counts = asyncio.run(run())
    assert (counts.busy, counts.lost, counts.mixed_up) == (2, 2, 1)
    assert (counts.server_errors, counts.other_errors) == (2, 1)
    queries, requests = len(server.queries), sum(server.queries.values())
    assert requests == queries + 2  # refused queries were sent again, unchanged
    assert counts.answers + counts.late == queries - 2 - 3
    assert len(counts.latencies) == len(counts.waits) == counts.answers
    assert all(wait >= latency for wait, latency in zip(counts.waits, counts.latencies, strict=True))


def test_queries_are_many_and_differ():
    assert len({serving.query(number) for number in range(5_000)}) == 5_000


def test_slices_add_up_and_the_table_compares():
    counts = serving.Counts(seconds=2.0, answers=10, latencies=[0.1, 0.3])
    counts.add(serving.Counts(seconds=2.0, answers=30, lost=1, latencies=[0.2]))
    assert (counts.per_second, counts.lost, counts.latencies) == (10.0, 1, [0.1, 0.3, 0.2])
    common = dict.fromkeys(("answers", "late", "busy", "server_errors", "lost", "mixed_up"), 0)
    row = {
        **common,
        "per_second": 5.0,
        "latency": serving.percentiles([1.0, 2.0, 3.0]),
        "wait": serving.percentiles([]),
        "cpu_seconds_per_answer": 0.0125,
        "resident_megabytes": [1.0, 2.0, 3.0],
    }
    printed = serving.table({serving.BATCHED: {**row, "per_second": 15.0}, serving.SINGLE: row}).splitlines()
    assert printed[2].startswith("| voken serve | 15.0 | 3.00 | 2.000 | 2.980 | nan | 12.5 |")
    assert "| 1.00 |" in printed[3]
