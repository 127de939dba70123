"""Limits concurrent work: worker threads, slots, a throughput meter, and a background thread for compactions."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from starlette.requests import Request

from voken.api import Collection
from voken.errors import BusyError, VokenError
from voken.serve.responses import CLIENT_GONE, RequestError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_log = logging.getLogger("voken.serve")
_WINDOW_SECONDS = 10.0
_LONGEST_WAIT = 60


class Workers:
    """A pool of `threads` threads, with a queue of at most `waiting` calls."""

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._capacity = threads + waiting
        self._lock = threading.Lock()
        self.pending = 0
        """How many calls wait or run."""

    async def run(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Call `function` in a thread and return its result. A call that is cancelled while it waits never runs.

        Raises `BusyError` if the queue is full.
        """
        with self._lock:
            if self.pending >= self._capacity:
                raise BusyError(f"{self.pending} requests about pictures are pending. Try again in a moment.")
            self.pending += 1
        try:
            future = self._pool.submit(function, *args, **kwargs)
        except RuntimeError:
            self._count_down(None)
            raise BusyError("The server is closing. Try again in a moment.") from None
        future.add_done_callback(self._count_down)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Accept no more calls, cancel those that wait, and finish those that run."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _count_down(self, future: Future[Any] | None) -> None:
        with self._lock:
            self.pending -= 1


class Slots:
    """A limited number of slots that tasks of one event loop can hold."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._held = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold a slot. Raises `BusyError` if none is free."""
        if self._held >= self._slots:
            raise BusyError(f"{self._held} requests with files are pending. Try again in a moment.")
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1


class ThroughputMeter:
    """Counts pending queries and measures how fast they are answered, in one event loop. `now` is a clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._answered: deque[tuple[float, int]] = deque()
        """When queries were answered, and how many."""
        self.pending = 0
        """How many queries wait or are being answered."""

    @contextmanager
    def count(self, queries: int) -> Iterator[None]:
        """Count `queries` as pending during the block, and then as answered, unless it raised an error."""
        self.pending += queries
        try:
            yield
            self._remove_old()
            self._answered.append((self._now(), queries))
        finally:
            self.pending -= queries

    def per_second(self) -> float:
        """Queries answered per second in the last ten seconds."""
        self._remove_old()
        if not self._answered:
            return 0.0
        return sum(queries for _, queries in self._answered) / max(1.0, self._now() - self._answered[0][0])

    def retry_after(self) -> int:
        """The seconds until half of the pending queries are answered, between 1 and 60."""
        rate = self.per_second()
        return min(_LONGEST_WAIT, max(1, math.ceil(self.pending / 2 / rate))) if rate else 1

    def _remove_old(self) -> None:
        start = self._now() - _WINDOW_SECONDS
        while self._answered and self._answered[0][0] < start:
            self._answered.popleft()


class Compaction:
    """Compacts a collection in a background thread, one at a time. Any thread may use it."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start_if_needed(self) -> None:
        """Start a compaction if the collection has changed enough and none is running. Returns at once."""
        with self._lock:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            if self._collection.wants_compaction:
                # a daemon, so that the process can end before it; a compaction that is cut off changes nothing
                self._thread = threading.Thread(target=self._run, name="voken-compaction", daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Start no more compactions, and wait at most `seconds` for a running one."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        try:
            self._collection.compact()
        except VokenError as error:
            _log.warning("The collection was not compacted: %r", str(error))
        except Exception:
            _log.exception("The collection was not compacted")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client disconnects. The request's body must have been read."""
    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_client_disconnects(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestError(CLIENT_GONE, "The client has closed the connection.")
    finally:
        working.cancel()
        disconnected.cancel()


async def _client_disconnects(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
