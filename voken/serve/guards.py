"""Which requests are let in at all, and what browsers are told about every answer.

A page of another site that is open in the user's browser can send requests to a server on the same machine, and with a
name of its own that it lets point here (DNS rebinding) even read the answers. So: a server for this machine alone
answers to this machine's names only, one that was told its names to those, and none takes anything but reading from
another site's page.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from voken.serve.refusals import RefusedError
from voken.serve.settings import ServeSettings

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_READING = {"GET", "HEAD", "OPTIONS"}
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
"""For files of the user's that a browser opens by themselves; styles are those of its own picture viewer."""
_HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guards:
    """Around an ASGI application."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        names = {*_LOCAL_NAMES, settings.host, *settings.hosts}
        self._names = {name.strip("[]").lower() for name in names} if settings.is_local or settings.hosts else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            if scope["method"] not in _READING:
                _check_site(headers)
        except RefusedError as refusal:
            await refusal.answer()(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _check_host(self, headers: Headers) -> None:
        if self._names is None:
            return
        host = headers.get("host", "")
        if _name(host) not in self._names:
            raise RefusedError(
                421,
                f"This server does not go by the name {host!r}. Use http://localhost, or tell it the name when it is "
                "started.",
            )


def _check_site(headers: Headers) -> None:
    """Browsers say which site's page asks, in one of two ways; other programs say nothing."""
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site is not None:
        allowed = site in ("same-origin", "none")
    elif origin is not None:
        allowed = _netloc(origin) == headers.get("host", "").lower()
    else:
        allowed = True
    if not allowed:
        raise RefusedError(
            403,
            "A page of another site asked for this. Use this server's own page; a proxy before it must pass on the "
            "Host header.",
        )


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _name(host: str) -> str:
    """Without the port, in small letters; an IPv6 address without its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
