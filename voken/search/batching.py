"""Many callers of one search, served together without knowing of each other.

    queue = SearchQueue(searcher)
    (hits,) = queue.search(["two dogs"], k=10)                      # from any thread
    (hits,) = await queue.asearch(["two dogs"], k=10)               # from any event loop
    queue.close()

Under it lies a `Batcher`, which does not know what it batches:

    batcher = Batcher(searcher.answer)                              # returns one result per item, in their order
    results = batcher.call(["two dogs", "a cat"], key)
    future = batcher.submit("two dogs", key)                        # a concurrent.futures.Future

Nobody waits for company unless `max_wait` says so: what arrives while a batch runs is the next batch, so batches grow
with the load by themselves. A caller that meets no running and no waiting items runs its items in its own thread.
Everything else is done by one thread, which starts when it is first needed and ends after a second without work.
Measured for a single caller (two cores, a function that does nothing): 2 µs more than the bare call, and 40 µs through
the thread.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from voken.collection.filters import Filter
from voken.errors import BusyError, ConfigError
from voken.search.hit import Hit
from voken.search.searcher import QUERIES_AT_ONCE, Searcher

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

_IDLE_SECONDS = 1.0
"""How long the thread waits for work before it ends. An idle batcher holds no thread and can be freed."""


class SearchQueue:
    """A `Searcher` for any number of threads and event loops at once, whose texts go through the model together.

    `max_queue` is how many queries may wait while others are answered; None means no bound. A full or closed queue
    raises `BusyError`.
    """

    def __init__(self, searcher: Searcher, *, max_queue: int | None = None) -> None:
        self.searcher = searcher
        self._batcher: Batcher[str, list[Hit]] = Batcher(
            searcher.answer, max_batch=QUERIES_AT_ONCE, max_queue=max_queue
        )

    def search(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """As `Searcher.search`."""
        search = self.searcher.prepare(texts, k, where, threshold)
        return search.confident(self._batcher.call(search.texts, search.key))

    async def asearch(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """`search`, without blocking the event loop."""
        if where:
            import asyncio

            search = await asyncio.to_thread(self.searcher.prepare, texts, k, where, threshold)
        else:
            search = self.searcher.prepare(texts, k, where, threshold)
        return search.confident(await self._batcher.acall(search.texts, search.key))

    def watch_batches(self, watcher: Callable[[int], None]) -> None:
        """Call `watcher` with the size of every batch, in the thread that runs it."""
        self._batcher.watchers.append(watcher)

    def close(self) -> None:
        """Finish the queries that wait, and accept no more."""
        self._batcher.close()


class _Waiting(Generic[Item, Result]):
    __slots__ = ("arrived", "future", "item")

    def __init__(self, item: Item, future: Future[Result], arrived: float) -> None:
        self.item = item
        self.future = future
        self.arrived = arrived


class Batcher(Generic[Item, Result]):
    """Calls `run(key, items)` with items that arrive one by one. Any thread may use it.

    `run` returns one result per item, in their order; two threads never call it at once. Items with the same `key`
    share a batch of at most `max_batch`. The next batch is that of the item that has waited longest, its oldest items
    first. If `run` raises for a joint batch, each item is tried alone, so that only those that raise again fail.

    `max_wait` is how many seconds the oldest item waits for company while its batch is not full. `max_queue` is how
    many items may wait, besides those that run; None means no bound. A single call with more items than that is
    accepted if nothing waits. Raises `ConfigError` for impossible values.

    `run`, and callbacks added to a future, must not wait for this batcher: they run in the thread that would answer.
    A forked child starts with an empty queue and a thread of its own; futures from before belong to the parent. When
    the interpreter ends, items that nobody waits for are dropped; `close` finishes them.
    """

    def __init__(
        self,
        run: Callable[[Any, list[Item]], Sequence[Result]],
        *,
        max_batch: int = 32,
        max_wait: float = 0.0,
        max_queue: int | None = None,
    ) -> None:
        if max_batch < 1 or (max_queue is not None and max_queue < 1):
            raise ConfigError(f"max_batch {max_batch} and max_queue {max_queue} must be 1 or more.")
        if not 0 <= max_wait <= threading.TIMEOUT_MAX:
            raise ConfigError(f"max_wait {max_wait}: give seconds, 0 or more.")
        self._run, self._max_batch, self._max_wait, self._max_queue = run, max_batch, max_wait, max_queue
        self._closed = False
        self.watchers: list[Callable[[int], None]] = []
        """Called with the size of every batch, in the thread that runs it."""
        self._start_empty()
        _ALL.add(self)

    def _start_empty(self) -> None:
        self._changed = threading.Condition()
        """Guards everything below; notified when work comes, a batch ends, or the batcher closes."""
        self._lines: dict[Hashable, deque[_Waiting[Item, Result]]] = {}
        """The waiting items by key, oldest first. No line is empty."""
        self._running = False
        self._has_thread = False

    def submit(self, item: Item, key: Hashable = None) -> Future[Result]:
        """Queue `item` and return at once. `cancel` on the future withdraws it while it waits.

        Raises `BusyError` if the queue is full or closed.
        """
        with self._changed:
            return self._accept([item], key)[0]

    def call(self, items: Sequence[Item], key: Hashable = None) -> list[Result]:
        """Results of `items`, in joint batches with those of other callers that have the same `key`.

        Raises what `run` raises for the first item that fails, and `BusyError` as `submit` does: either all items wait
        or none.
        """
        with self._changed:
            alone = not (self._running or self._lines or self._closed or self._max_wait)
            if alone:
                self._running = True
            else:
                futures = self._accept(items, key)
        if not alone:
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:  # one has failed, or Ctrl-C ended the waiting
                    future.cancel()
        try:
            results: list[Result] = []
            for start in range(0, len(items), self._max_batch):
                results.extend(self._results(key, list(items[start : start + self._max_batch])))
            return results
        finally:
            with self._changed:
                self._running = False
                if self._lines or self._closed:  # otherwise there is nobody to wake
                    self._changed.notify_all()

    async def acall(self, items: Sequence[Item], key: Hashable = None) -> list[Result]:
        """As `call`, without blocking the event loop. The items of a cancelled call are dropped, or run for nobody."""
        import asyncio  # here, because it is slow to import and a command that searches once does not need it

        with self._changed:
            futures = self._accept(items, key)
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    def close(self) -> None:
        """Accept no more items, and return when all accepted ones have results. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._running or self._lines))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # _accept, _drop_cancelled and _next_batch need self._changed held

    def _accept(self, items: Sequence[Item], key: Hashable) -> list[Future[Result]]:
        from concurrent.futures import Future  # here, as asyncio above: it imports logging

        if self._closed:
            raise BusyError("This search is closed and takes no more queries. Open the collection again.")
        if self._max_queue is not None and self._lines and self._waiting() + len(items) > self._max_queue:
            self._drop_cancelled()
            if self._lines and self._waiting() + len(items) > self._max_queue:
                raise BusyError(f"{self._waiting()} queries wait, and {self._max_queue} may. Try again in a moment.")
        if not items:
            return []
        if not self._has_thread:
            threading.Thread(target=self._work, name="voken-batcher", daemon=True).start()
            self._has_thread = True
        waiting = [_Waiting[Item, Result](item, Future(), time.perf_counter()) for item in items]
        self._lines.setdefault(key, deque()).extend(waiting)
        self._changed.notify_all()
        return [entry.future for entry in waiting]

    def _waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def _drop_cancelled(self) -> None:
        lines = {
            key: deque(entry for entry in line if not entry.future.cancelled()) for key, line in self._lines.items()
        }
        self._lines = {key: line for key, line in lines.items() if line}

    def _next_batch(self) -> tuple[Hashable, list[_Waiting[Item, Result]]]:
        """Wait for the next batch and mark it as running. It is empty if the thread should end."""
        idle = False
        while True:
            if self._running:  # a caller runs its own items
                self._changed.wait()
            elif not self._lines:
                if idle or self._closed:
                    self._has_thread = False
                    self._changed.notify_all()  # for `close`, if everything that waited was cancelled
                    return None, []
                idle = not self._changed.wait(_IDLE_SECONDS)
            else:
                key = min(self._lines, key=lambda key: self._lines[key][0].arrived)
                line = self._lines[key]
                patience = line[0].arrived + self._max_wait - time.perf_counter()
                if patience > 0 and len(line) < self._max_batch and not self._closed:
                    self._changed.wait(patience)
                    continue
                batch: list[_Waiting[Item, Result]] = []
                while line and len(batch) < self._max_batch:
                    entry = line.popleft()
                    if entry.future.set_running_or_notify_cancel():
                        batch.append(entry)
                if not line:
                    del self._lines[key]
                if batch:
                    self._running = True
                    return key, batch

    def _work(self) -> None:
        """What the thread does: batch after batch, until nothing arrives for a while."""
        while True:
            with self._changed:
                key, batch = self._next_batch()
            if not batch:
                return
            self._answer(key, batch)
            del batch  # results must not stay in memory while this thread waits
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _answer(self, key: Hashable, batch: list[_Waiting[Item, Result]]) -> None:
        try:
            results = self._results(key, [entry.item for entry in batch])
        except BaseException as error:  # also SystemExit: it belongs to the caller, and nobody may wait for ever
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.future.set_result(result)
            return
        for entry in batch:
            self._answer(key, [entry])

    def _results(self, key: Hashable, items: list[Item]) -> Sequence[Result]:
        for watcher in self.watchers:
            watcher(len(items))
        results = self._run(key, items)
        if len(results) != len(items):
            raise RuntimeError(f"{self._run!r} returned {len(results)} results for {len(items)} items.")
        return results


_ALL: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()


def _start_empty_after_fork() -> None:
    for batcher in list(_ALL):
        batcher._start_empty()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_empty_after_fork)
