"""What bounds how much goes on at once: a few threads for what would block an event loop, and mere places."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from voken.errors import BusyError

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Workers:
    """`threads` of them; as many as `waiting` calls may wait for one."""

    def __init__(self, threads: int, waiting: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._most = threads + waiting
        self._counting = threading.Lock()
        self.in_hand = 0
        """Calls that wait or run."""

    async def run(self, function: Callable[Given, Result], *given: Given.args, **named: Given.kwargs) -> Result:
        """`function`'s result. Cancelled while it waits, it is not run. Raises `BusyError` where too many wait."""
        with self._counting:
            if self.in_hand >= self._most:
                raise BusyError(f"{self.in_hand} requests about pictures are in hand. Ask again in a moment.")
            self.in_hand += 1
        try:
            future = self._pool.submit(function, *given, **named)
        except RuntimeError:
            self._done(None)
            raise BusyError("The server is closing. Ask again in a moment.") from None
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Take nothing more; what waits is dropped, what runs is finished."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _done(self, future: Future[Any] | None) -> None:
        with self._counting:
            self.in_hand -= 1


class Slots:
    """`most` places, for one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold one. Raises `BusyError` where all are taken."""
        if self._taken >= self._most:
            raise BusyError(f"{self._taken} requests with files are in hand. Ask again in a moment.")
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
