"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voken.serve.refusals import CLIENT_GONE

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0
_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS"}
_REJECTED = {
    401: "token",
    403: "forbidden",
    408: "slow",
    413: "too_large",
    421: "host",
    422: "invalid",
    503: "busy",
}


class Metrics:
    """Of one application: two in a process count for themselves."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "voken_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "voken_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rejected = Counter(
            "voken_rejected", "Requests that were not answered as they asked.", ("reason",), registry=self.registry
        )
        self._batches = Histogram(
            "voken_batch_queries",
            "Queries that went through the model together.",
            buckets=_BATCHES,
            registry=self.registry,
        )
        Info("voken", "What serves.", registry=self.registry).info({"version": version("voken-search")})
        ProcessCollector(registry=self.registry)
        for reason in _REJECTED.values():
            self._rejected.labels(reason)

    def follow(self, name: str, says: str, value: Callable[[], float]) -> None:
        """Add a gauge that is asked for its value."""
        Gauge(name, says, registry=self.registry).set_function(value)

    def saw_batch(self, queries: int) -> None:
        """From any thread."""
        self._batches.observe(queries)

    def saw_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Once it was answered."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if reason := _REJECTED.get(status):
            self._rejected.labels(reason).inc()

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


class Measured:
    """Around an ASGI application: every request is counted, under its route and not its address."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), CLIENT_GONE

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = _route(scope)
            self._metrics.saw_request(scope["method"], route, status, time.perf_counter() - began)


def _route(scope: Scope) -> str:
    """As the documentation names it."""
    route = scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", None) or "other")
