"""How many queries are in hand, how fast they go, and so when a full queue is worth another try."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_WINDOW_SECONDS = 10.0
_LONGEST_WAIT = 60


class Pace:
    """Counts what one event loop asks for. `now` is a clock in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._done: deque[tuple[float, int]] = deque()
        self.in_hand = 0
        """Queries that wait or are being answered."""

    @contextmanager
    def count(self, queries: int) -> Iterator[None]:
        """Around the answering of so many. Those that fail do not count as done."""
        self.in_hand += queries
        try:
            yield
            self._forget()
            self._done.append((self._now(), queries))
        finally:
            self.in_hand -= queries

    def per_second(self) -> float:
        """Queries answered, lately."""
        self._forget()
        if not self._done:
            return 0.0
        return sum(queries for _, queries in self._done) / max(1.0, self._now() - self._done[0][0])

    def retry_after(self) -> int:
        """Seconds until half of what is in hand is done, 1 to 60."""
        rate = self.per_second()
        if not rate:
            return 1
        return min(_LONGEST_WAIT, max(1, math.ceil(self.in_hand / 2 / rate)))

    def _forget(self) -> None:
        since = self._now() - _WINDOW_SECONDS
        while self._done and self._done[0][0] < since:
            self._done.popleft()
