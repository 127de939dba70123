"""Joins the queries of many callers into batches.

    queue = SearchQueue(searcher)
    (hits,) = queue.search(["two dogs"], k=10)                      # from any thread
    (hits,) = await queue.asearch(["two dogs"], k=10)               # from any event loop
    queue.close()

It uses a `Batcher`, which does not know what it batches:

    batcher = Batcher(searcher.answer)                              # returns one result per item, in their order
    results = batcher.call(["two dogs", "a cat"], key)
    future = batcher.submit("two dogs", key)                        # a concurrent.futures.Future

Items that arrive while a batch runs form the next batch, so batches grow with the load. An item never waits just for
others to join it, unless `max_wait` is set. If nothing runs or waits, a caller runs its items in the calling thread.
All other batches run in one background thread, which starts when it is first needed and ends after a second without
work. For a single caller (two cores, a function that does nothing), a batch costs 2 µs more than a plain call in the
calling thread, and 40 µs more in the background thread.
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
    """Searches for any number of threads and event loops at once, whose texts go through the model together.

    `max_queue` is how many queries may wait while others are answered; None means no limit. A full or closed queue
    raises `BusyError`.
    """

    def __init__(self, searcher: Searcher, *, max_queue: int | None = None) -> None:
        self.searcher = searcher
        """It may be replaced at any time, by one of the same collection."""
        self._batcher: Batcher[str, list[Hit]] = Batcher(
            lambda key, texts: self.searcher.answer(key, texts), max_batch=QUERIES_AT_ONCE, max_queue=max_queue
        )

    def search(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """As `Searcher.search`."""
        search = self.searcher.prepare(texts, k, where, threshold)
        return search.above_threshold(self._batcher.call(search.texts, search.key))

    async def asearch(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """`search`, without blocking the event loop."""
        if where:
            import asyncio

            search = await asyncio.to_thread(self.searcher.prepare, texts, k, where, threshold)
        else:
            search = self.searcher.prepare(texts, k, where, threshold)
        return search.above_threshold(await self._batcher.acall(search.texts, search.key))

    def watch_batches(self, watcher: Callable[[int], None]) -> None:
        """Call `watcher` with the size of every batch, in the thread that runs it."""
        self._batcher.watchers.append(watcher)

    def close(self) -> None:
        """Accept no more queries, and finish those that are waiting."""
        self._batcher.close()


class _PendingItem(Generic[Item, Result]):
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

    `max_wait` is how many seconds the oldest item waits for others to fill its batch. `max_queue` is how many items may
    wait, besides those that run; None means no limit. A single call with more items than that is accepted if nothing
    waits. Raises `ConfigError` for impossible values.

    `run`, and callbacks added to a future, must not wait for this batcher: they run in the thread that
    they would wait for.
    A forked child starts with an empty queue and without the thread; earlier futures belong to the parent. When the
    interpreter exits, waiting items are dropped unless `close` has finished them.
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
        self._reset()
        _ALL.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        """Guards everything below; notified when an item arrives, a batch ends, or the batcher closes."""
        self._queues: dict[Hashable, deque[_PendingItem[Item, Result]]] = {}
        """The waiting items by key, oldest first. No queue is empty."""
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

        Raises what `run` raises for the first item that fails, and `BusyError` as `submit` does; then none of the items
        waits.
        """
        with self._changed:
            in_this_thread = not (self._running or self._queues or self._closed or self._max_wait)
            if in_this_thread:
                self._running = True
            else:
                futures = self._accept(items, key)
        if not in_this_thread:
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:  # after a failure or Ctrl-C, some may still be waiting
                    future.cancel()
        try:
            results: list[Result] = []
            for start in range(0, len(items), self._max_batch):
                results.extend(self._results(key, list(items[start : start + self._max_batch])))
            return results
        finally:
            with self._changed:
                self._running = False
                if self._queues or self._closed:  # otherwise there is nobody to wake
                    self._changed.notify_all()

    async def acall(self, items: Sequence[Item], key: Hashable = None) -> list[Result]:
        """As `call`, without blocking the event loop. The items of a cancelled call are dropped, or run for nobody."""
        import asyncio  # slow to import, and a command that searches once does not need it

        with self._changed:
            futures = self._accept(items, key)
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))

    def close(self) -> None:
        """Accept no more items, and return when all accepted ones have results. May be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._running or self._queues))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # the caller of _accept, _drop_cancelled and _next_batch must hold self._changed

    def _accept(self, items: Sequence[Item], key: Hashable) -> list[Future[Result]]:
        from concurrent.futures import Future  # it imports logging, which takes time

        if self._closed:
            raise BusyError("This search is closed and takes no more queries. Open the collection again.")
        if self._max_queue is not None and self._queues and self._pending_count() + len(items) > self._max_queue:
            self._drop_cancelled()
            if self._queues and self._pending_count() + len(items) > self._max_queue:
                raise BusyError(
                    f"{self._pending_count()} queries wait, and at most {self._max_queue} may. Try again in a moment."
                )
        if not items:
            return []
        if not self._has_thread:
            threading.Thread(target=self._run_batches, name="voken-batcher", daemon=True).start()
            self._has_thread = True
        pending = [_PendingItem[Item, Result](item, Future(), time.perf_counter()) for item in items]
        self._queues.setdefault(key, deque()).extend(pending)
        self._changed.notify_all()
        return [entry.future for entry in pending]

    def _pending_count(self) -> int:
        return sum(map(len, self._queues.values()))

    def _drop_cancelled(self) -> None:
        queues = {
            key: deque(entry for entry in queue if not entry.future.cancelled()) for key, queue in self._queues.items()
        }
        self._queues = {key: queue for key, queue in queues.items() if queue}

    def _next_batch(self) -> tuple[Hashable, list[_PendingItem[Item, Result]]]:
        """Wait for the next batch and mark it as running. It is empty if the thread should end."""
        idle = False
        while True:
            if self._running:  # a caller runs items in the calling thread
                self._changed.wait()
            elif not self._queues:
                if idle or self._closed:
                    self._has_thread = False
                    self._changed.notify_all()  # for `close`, if everything that waited was cancelled
                    return None, []
                idle = not self._changed.wait(_IDLE_SECONDS)
            else:
                key = min(self._queues, key=lambda key: self._queues[key][0].arrived)
                queue = self._queues[key]
                remaining_wait = queue[0].arrived + self._max_wait - time.perf_counter()
                if remaining_wait > 0 and len(queue) < self._max_batch and not self._closed:
                    self._changed.wait(remaining_wait)
                    continue
                batch: list[_PendingItem[Item, Result]] = []
                while queue and len(batch) < self._max_batch:
                    entry = queue.popleft()
                    if entry.future.set_running_or_notify_cancel():
                        batch.append(entry)
                if not queue:
                    del self._queues[key]
                if batch:
                    self._running = True
                    return key, batch

    def _run_batches(self) -> None:
        """Run batch after batch in the background thread, until nothing arrives for a while."""
        while True:
            with self._changed:
                key, batch = self._next_batch()
            if not batch:
                return
            self._run_batch(key, batch)
            del batch  # results must not stay in memory while this thread waits
            with self._changed:
                self._running = False
                self._changed.notify_all()

    def _run_batch(self, key: Hashable, batch: list[_PendingItem[Item, Result]]) -> None:
        try:
            results = self._results(key, [entry.item for entry in batch])
        except BaseException as error:  # also SystemExit: it belongs to the caller, who must not wait for ever
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
        else:
            for entry, result in zip(batch, results, strict=True):
                entry.future.set_result(result)
            return
        for entry in batch:
            self._run_batch(key, [entry])

    def _results(self, key: Hashable, items: list[Item]) -> Sequence[Result]:
        for watcher in self.watchers:
            watcher(len(items))
        results = self._run(key, items)
        if len(results) != len(items):
            raise RuntimeError(f"{self._run!r} returned {len(results)} results for {len(items)} items.")
        return results


_ALL: weakref.WeakSet[Batcher[Any, Any]] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for batcher in list(_ALL):
        batcher._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
