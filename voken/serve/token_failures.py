"""Wrong tokens: each is logged and answered late, and a client that goes on is refused for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address, ip_network

from voken.serve.responses import RequestError

_log = logging.getLogger("voken.serve")

_WINDOW_SECONDS = 60.0
_MOST = 20
"""Wrong tokens of a client within the window before its further tokens are not looked at."""
_CLIENTS = 10_000
"""The clients that are remembered."""


class TokenFailures:
    """The recent wrong tokens of each client, in one event loop. Each is answered after `seconds`. `now` is a clock.

    A client on this machine is only slowed: a proxy sends everyone's requests, and nobody may lock out the others.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._now = now
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        """When each client sent wrong tokens; the client that did so last is at the end."""

    def check(self, client: str) -> None:
        """Raise `RequestError` (429) if the client has sent too many wrong tokens to be listened to."""
        times = self._recent(_origin(client))
        if len(times) >= _MOST and not _is_here(client):
            seconds = max(1, round(times[0] + _WINDOW_SECONDS - self._now()))
            raise RequestError(
                429,
                f"Too many wrong tokens came from this address. Try again in {seconds} seconds.",
                {"Retry-After": str(seconds)},
            )

    async def record(self, client: str) -> None:
        """Log a wrong token, and wait before it is answered."""
        origin = _origin(client)
        times = self._recent(origin)
        times.append(self._now())
        while len(times) > _MOST:
            times.popleft()
        self._times[origin] = times
        self._times.move_to_end(origin)
        if len(self._times) > _CLIENTS:
            self._times.popitem(last=False)
        _log.warning("wrong token from %s, the %d. within a minute", client or "an unknown address", len(times))
        await asyncio.sleep(self._seconds)

    def _recent(self, origin: str) -> deque[float]:
        times = self._times.get(origin, deque())
        while times and times[0] <= self._now() - _WINDOW_SECONDS:
            times.popleft()
        return times


def _origin(client: str) -> str:
    """What is counted as one client: an address, or the network that IPv6 gives to one household."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else client


def _is_here(client: str) -> bool:
    try:
        return ip_address(client).is_loopback
    except ValueError:
        return False
