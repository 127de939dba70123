"""The layers around the application, from the outermost: metrics, origin policy, fallback errors, body limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voken.serve.responses import CLIENT_GONE, RequestError
from voken.serve.settings import ServeSettings

METRICS_TYPE = CONTENT_TYPE_PLAIN_1_0_0
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""For users' files that a browser opens in a page of their own; the inline styles are those of its picture viewer."""
_LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}
_REJECTIONS = {
    401: "token",
    403: "forbidden",
    408: "slow",
    413: "too_large",
    421: "host",
    422: "invalid",
    429: "wrong_tokens",
    503: "busy",
}
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_DRAIN_FACTOR = 4
"""A body over the limit is read, without being used, up to this many times the limit."""
_CLOSE = {"Connection": "close"}


class Metrics:
    """The counters of one application, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "voken_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "voken_request_seconds",
            "From a request's head to the end of its response.",
            ("route",),
            buckets=_LATENCIES,
            registry=self.registry,
        )
        self._rejected = Counter(
            "voken_rejected", "Requests that were refused, by reason.", ("reason",), registry=self.registry
        )
        self._batches = Histogram(
            "voken_batch_queries",
            "Queries that went through the model together.",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        Info("voken", "The server.", registry=self.registry).info({"version": version("voken-search")})
        ProcessCollector(registry=self.registry)
        for reason in _REJECTIONS.values():
            self._rejected.labels(reason)

    def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge. `value()` is called whenever the metrics are read."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def count_batch(self, queries: int) -> None:
        """Count a batch of queries. Any thread may call it."""
        self._batches.observe(queries)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if reason := _REJECTIONS.get(status):
            self._rejected.labels(reason).inc()

    def text(self) -> bytes:
        """The counters in Prometheus' text format."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """Counts every request by its route, so that there are few counters whatever addresses clients request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), CLIENT_GONE

        async def send_and_record_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_status)
        finally:
            route = scope.get("route")  # set by FastAPI if a route matches
            name = str(getattr(route, "path_format", None) or getattr(route, "path", None) or "other")
            self._metrics.count_request(scope["method"], name, status, time.perf_counter() - start)


class OriginPolicy:
    """Refuses requests for other hosts and from other sites' pages, and adds security headers to every response.

    A page of another site that is open in the user's browser can send requests to a server on the same machine. It can
    even read the responses, if the other site's name resolves to this machine (DNS rebinding). So a server that only
    this machine can reach accepts only the names of this machine, and a server that was started with names accepts only
    those. No server accepts a change or a search from another site's page.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        names = {*_LOCAL_NAMES, settings.host, *settings.hosts}
        self._names = {name.strip("[]").lower() for name in names} if settings.is_local or settings.hosts else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if scope["method"] not in _SAFE_METHODS:
                _check_site(headers)
        except RequestError as error:
            await error.response()(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._names is not None and _host_name(host) not in self._names:
            raise RequestError(
                421,
                f"This server does not have the name {host!r}. Use http://localhost, or start the server with that "
                "name (--name).",
            )


def _check_site(headers: Headers) -> None:
    """Refuse a request from another site's page. Browsers send one of two headers; other programs send neither."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site is not None:
        allowed = site in ("same-origin", "none")
    else:
        allowed = origin is None or _netloc(origin) == headers.get("host", "").lower()
    if not allowed:
        raise RequestError(
            403,
            "This request comes from a page of another site. Use this server's own page; a proxy in front of it must "
            "pass on the Host header.",
        )


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """The name in a Host header, in lower case, without the port and without the brackets of an IPv6 address."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class FallbackErrorMiddleware:
    """Answers after an unexpected error, and when a closing server cancels a request.

    `closing()` returns whether the server has been stopped.
    """

    def __init__(self, app: ASGIApp, closing: Callable[[], bool]) -> None:
        self._app = app
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_record_start(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if self._closing():
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_and_record_start)
            return
        except ClientDisconnect:
            return  # while it was sending its body
        except asyncio.CancelledError:
            if not self._closing():
                raise
            request_error = RequestError(503, "The server is closing. Try again in a moment.", {"Retry-After": "1"})
        except Exception as error:
            request_error = RequestError.failure(error)
        if not started:
            await request_error.response()(scope, receive, send_and_record_start)


class BodyLimits:
    """Limits the bytes of a request's body (413) and the seconds in which it must arrive (408).

    A request with the server's token has more time than others. `lower_limits` holds lower limits in bytes by path:
    those of bodies that are held in memory. Of these, all that have no token share `max_open_bytes` (503), because
    anybody can begin as many as there are connections and never end them. A body over its own limit is read a little
    further, because a client that is still sending when the connection closes may not read the response.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, lower_limits: Mapping[str, int]) -> None:
        self._app = app
        self._max_bytes = settings.max_body
        self._settings = settings
        self._lower_limits = lower_limits
        self._shared = _SharedBytes(settings.max_open_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = min(self._max_bytes, self._lower_limits.get(scope["path"], self._max_bytes))
        headers = Headers(scope=scope)
        seconds, shared = self._settings.body_seconds, None
        if not self._settings.has_token(headers.get("authorization", "")):
            seconds = min(seconds, self._settings.open_body_seconds)
            shared = self._shared if scope["path"] in self._lower_limits else None
        body = _Body(receive, limit, seconds, shared)
        length = headers.get("content-length", "")
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            try:
                # a client that sends `Expect` waits for permission and has sent nothing yet
                await body.refuse(drain="expect" not in headers)
            except RequestError as error:
                await error.response()(scope, receive, send)
            return
        try:
            await self._app(scope, body.receive, send)
        finally:
            body.release()


class _SharedBytes:
    """The bytes that requests hold together, of one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    def hold(self, count: int) -> None:
        """Hold `count` bytes more. Raises `RequestError` if these are too many."""
        if self._held + count > self._most:
            raise RequestError(
                503, "Too many requests are being sent at once. Try again in a moment.", {"Retry-After": "1", **_CLOSE}
            )
        self._held += count

    def release(self, count: int) -> None:
        """Hold `count` bytes fewer."""
        self._held -= count


class _Body:
    """Receives a request's body within the limits. `release` it at the end."""

    def __init__(self, receive: Receive, max_bytes: int, seconds: float, shared: _SharedBytes | None) -> None:
        self._receive = receive
        self._shared = shared
        self._shared_bytes = 0
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._bytes = 0
        self._complete = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """The next message. Raises `RequestError` if the body is over a limit."""
        message = await self._next()
        if self._bytes > self._max_bytes:
            await self.refuse(drain=True)
        if self._shared is not None and self._bytes > self._shared_bytes:
            self._shared.hold(self._bytes - self._shared_bytes)
            self._shared_bytes = self._bytes
        return message

    def release(self) -> None:
        """Give back what was held of the shared bytes."""
        if self._shared is not None:
            self._shared.release(self._shared_bytes)
            self._shared_bytes = 0

    async def refuse(self, *, drain: bool) -> None:
        """Raise `RequestError` for a body over the limit; with `drain` some more of it is read before."""
        while drain and not self._complete and self._bytes < _DRAIN_FACTOR * self._max_bytes:
            await self._next()
        raise RequestError(
            413,
            f"The request's body is over the limit of {self._max_bytes:,} bytes. Send a smaller request.",
            None if self._complete else _CLOSE,
        )

    async def _next(self) -> Message:
        if self._complete:
            return await self._receive()  # returns when the client disconnects
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise RequestError(
                408,
                f"The request's body did not arrive within {self._seconds:g} seconds. Send a smaller request.",
                _CLOSE,
            ) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True
        return message
