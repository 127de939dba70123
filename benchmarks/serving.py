"""How many more queries does a server answer if it searches simultaneous queries together, and does it lose any?

    python benchmarks/serving.py COLLECTION --clients 500 --seconds 300 --json out.json

There are three processes: `voken serve` as it is; a server of the same stack (uvicorn, FastAPI) that searches one query
at a time; and a load generator. The servers take turns in slices, so that other work on the machine slows both. Each
client sends a query, waits for the answer, and sends another query; after a 503 it waits as Retry-After says and tries
again. Queries that were sent before a slice ended are awaited; a query without an answer is lost. Every answer is
compared with its query. Memory is resident memory. Processor time is that of the server's process, and the more
reliable figure on a shared machine. Both are read from /proc, so this benchmark runs on Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from report import markdown_table, option_parser, write_report

BATCHED, SINGLE = "voken serve", "one query at a time"
THINGS = ("a dog", "two cats", "red boats", "an old man", "a green leaf", "snow", "a house", "a smiling face", "hands")
PLACES = ("at sea", "on a hill", "in the rain", "by night", "in a box", "with a hat", "under a tree", "on the moon")
COLOURS = ("", "blue ", "yellow ", "small ", "big ", "drawn ", "broken ", "new ", "many ")
SLICE_SECONDS = 30.0
PATIENCE = 120.0
"""Seconds after which a missing answer counts as lost."""
K = 10


@dataclass
class Counts:
    """What the clients of one server counted."""

    seconds: float = 0.0
    answers: int = 0
    """Answers that arrived in these seconds."""
    late: int = 0
    """Answers that arrived later, to queries sent in these seconds."""
    busy: int = 0
    """Responses 503 with Retry-After."""
    server_errors: int = 0
    """Other responses 5xx."""
    other_errors: int = 0
    lost: int = 0
    """Queries that were sent and never answered."""
    mixed_up: int = 0
    """Answers to another query."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from a request to its answer."""
    waits: list[float] = field(default_factory=list)
    """Seconds from a query's first request to its answer, refusals included."""

    def add(self, other: Counts) -> None:
        """Add the counts of another slice."""
        for item in dataclasses.fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds if self.seconds else 0.0


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, write JSON; with --role, run as one of the processes."""
    parser = option_parser(__doc__)
    parser.add_argument("collection", help="a folder that `voken index` saved")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=300.0, help="for each server")
    parser.add_argument("--threads", type=int, default=0, help="of a server's model; 0: one per core")
    parser.add_argument("--max-queue", type=int, default=256)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--role", choices=["serve", "single", "drive"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role == "serve":
        serve_batched(options)
    elif options.role == "single":
        serve_single(options)
    elif options.role == "drive":
        counts = asyncio.run(drive(options.collection, options.clients, options.seconds))  # an address
        json.dump(dataclasses.asdict(counts), sys.stdout)
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Measure both servers, in turns."""
    slices = max(2, math.ceil(options.seconds / SLICE_SECONDS))
    with ExitStack() as stack:
        servers = {
            BATCHED: stack.enter_context(ServerProcess("serve", options)),
            SINGLE: stack.enter_context(ServerProcess("single", options)),
        }
        for server in servers.values():
            drive_in_process(server.address, 2, 1.0)  # so that everything is loaded
            server.record()
        for number in range(slices):
            for name, server in servers.items():
                server.counts.add(drive_in_process(server.address, options.clients, options.seconds / slices))
                server.record()
                print(f"slice {number + 1} of {slices}: {name}, {server.counts.per_second:.1f}/s", file=sys.stderr)
        exit_codes = {name: server.stop() for name, server in servers.items()}
    rows = {name: server.row(exit_codes[name]) for name, server in servers.items()}
    print(table(rows))
    settings = {name: getattr(options, name) for name in ("clients", "seconds", "threads", "max_queue")}
    report = {"benchmark": "serving", "collection": options.collection, "settings": settings, "rows": rows}
    write_report(options.json, report)


class ServerProcess:
    """A server in its own process."""

    def __init__(self, role: str, options: argparse.Namespace) -> None:
        self.counts = Counts()
        self.resident: list[int] = []
        """Bytes, at the start and after each slice."""
        self._command = [sys.executable, __file__, options.collection, "--role", role]
        self._command += ["--threads", str(options.threads), "--max-queue", str(options.max_queue)]
        if options.model:
            self._command += ["--model", str(options.model)]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        addresses = [word for word in line.split() if word.startswith("http://")]
        if not addresses:
            raise SystemExit(f"{self._command} did not start.")
        self.address = addresses[0]
        return self

    def __exit__(self, *raised: object) -> None:
        self._process.kill()
        self._process.wait()

    def record(self) -> None:
        """Record the server's memory, and its processor time since the first record."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        self.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
        # after the name, which may hold anything, user and system time are fields 14 and 15 (man proc)
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if len(self.resident) == 1:
            self._cpu_before = used
        self.cpu_seconds = used - self._cpu_before

    def stop(self) -> int:
        """Stop the server; return its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def row(self, exit_code: int) -> dict[str, Any]:
        """The measurements as JSON."""
        counts = self.counts
        answers = max(1, counts.answers + counts.late)
        middle = self.resident[len(self.resident) // 2]
        return {
            **{
                item.name: getattr(counts, item.name)
                for item in dataclasses.fields(counts)
                if item.type != "list[float]"
            },
            "per_second": counts.per_second,
            "latency": percentiles(counts.latencies),
            "wait": percentiles(counts.waits),
            "cpu_seconds_per_answer": self.cpu_seconds / answers,
            "resident_megabytes": [round(size / 2**20, 1) for size in (self.resident[0], middle, self.resident[-1])],
            "exit_code": exit_code,
        }


def drive_in_process(address: str, clients: int, seconds: float) -> Counts:
    """`drive` in its own process, so that no client waits for the interpreter of a server, or for this one."""
    command = [sys.executable, __file__, address, "--role", "drive"]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return Counts(**json.loads(output))


async def drive(address: str, clients: int, seconds: float, queries: Callable[[int], str] | None = None) -> Counts:
    """Run `clients` clients at once for `seconds`, and count. `queries(n)` is the n-th query."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    place = urlsplit(address)
    counts = Counts(seconds=seconds)
    numbers = iter(range(sys.maxsize))
    end = time.perf_counter() + seconds
    query_text = queries or query
    runs = [
        Client(place.hostname or "", place.port or 80, counts, end).run(query_text(number) for number in numbers)
        for _ in range(clients)
    ]
    await asyncio.gather(*runs)
    return counts


def query(number: int) -> str:
    """The query with that number; no two are equal."""
    thing, rest = number % len(THINGS), number // len(THINGS)
    place, colour = rest % len(PLACES), rest // len(PLACES) % len(COLOURS)
    return f"{COLOURS[colour]}{THINGS[thing]} {PLACES[place]} {number // 648 or ''}".strip()


class Client:
    """A client that sends queries one after the other, over one connection."""

    def __init__(self, host: str, port: int, counts: Counts, end: float) -> None:
        self._host, self._port, self._counts, self._end = host, port, counts, end
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, queries: Iterable[str]) -> None:
        """Send queries until the time is over, and wait for the last answer."""
        for text in queries:
            if time.perf_counter() >= self._end:
                break
            await self._query(text)
        self._close()

    async def _query(self, text: str) -> None:
        counts, first = self._counts, time.perf_counter()
        while True:
            start = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    status, headers, body = await self._send(text)
            except (OSError, EOFError, TimeoutError, ValueError):
                self._close()
                counts.lost += 1
                await asyncio.sleep(0.1)
                return
            now = time.perf_counter()
            if status == 503 and "retry-after" in headers:
                counts.busy += 1
                if now - first > PATIENCE:
                    counts.lost += 1
                    return
                self._close()  # an idle connection may be closed just when it is used again
                await asyncio.sleep(int(headers["retry-after"]))
                continue
            if status != 200:
                counts.server_errors += status >= 500
                counts.other_errors += status < 500
                return
            counts.mixed_up += json.loads(body)["results"][0]["query"] != text
            if now > self._end:
                counts.late += 1
                return
            counts.answers += 1
            counts.latencies.append(round(now - start, 5))
            counts.waits.append(round(now - first, 5))
            return

    async def _send(self, text: str) -> tuple[int, dict[str, str], bytes]:
        if self._stream is None:
            self._stream = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._stream
        body = json.dumps({"query": text, "k": K}).encode()
        head = f"POST /search HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        answer = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self._close()
        return int(first.split()[1]), headers, answer

    def _close(self) -> None:
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None


def serve_batched(options: argparse.Namespace) -> None:
    """Serve as `voken serve` does."""
    from voken.serve.process import serve
    from voken.serve.settings import ServeSettings

    settings = ServeSettings(port=0, max_queue=options.max_queue)
    serve(Path(options.collection), settings, model=options.model, threads=options.threads, report=_print)


def serve_single(options: argparse.Namespace) -> None:
    """Serve with the simplest code for the same stack: a lock, and one search per request."""
    import socket
    import threading

    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    from voken import Collection

    class Query(BaseModel):
        query: str
        k: int = K

    opened = Collection.open(options.collection, model=options.model, threads=options.threads)
    lock = threading.Lock()
    app = FastAPI()

    def search(body: Query) -> dict[str, Any]:
        with lock:
            hits = opened.search(body.query, body.k)
        return {
            "version": opened.version,
            "results": [{"query": body.query, "hits": [dataclasses.asdict(hit) for hit in hits]}],
        }

    search.__annotations__["body"] = Query  # a local name, which FastAPI cannot look up
    app.post("/search")(search)
    opened.search("a picture", 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _print(f"Serving at http://127.0.0.1:{listener.getsockname()[1]}/")
        uvicorn.Server(uvicorn.Config(app, log_level="error", backlog=2048)).run(sockets=[listener])


def _print(line: str) -> None:
    print(line, flush=True)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one line per server."""
    single = rows[SINGLE]
    speed = ["answers/s", "× single", "p50 s", "p99 s", "p99 s with refusals", "CPU ms per answer"]
    heads = ["", *speed, "answered", "503", "other 5xx", "lost", "mixed up", "MB at start, middle, end"]
    lines = []
    for name, row in rows.items():
        lines.append(
            [
                name,
                f"{row['per_second']:,.1f}",
                f"{row['per_second'] / single['per_second']:.2f}" if single["per_second"] else "",
                f"{row['latency']['p50']:.3f}",
                f"{row['latency']['p99']:.3f}",
                f"{row['wait']['p99']:.3f}",
                f"{1e3 * row['cpu_seconds_per_answer']:.1f}",
                f"{row['answers'] + row['late']:,}",
                f"{row['busy']:,}",
                f"{row['server_errors']:,}",
                f"{row['lost']:,}",
                f"{row['mixed_up']:,}",
                ", ".join(f"{size:,.0f}" for size in row["resident_megabytes"]),
            ]
        )
    return markdown_table(heads, lines)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99; NaN without values."""
    if len(seconds) < 2:
        return dict.fromkeys(("p50", "p99"), seconds[0] if seconds else math.nan)
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98]}


if __name__ == "__main__":
    main()
