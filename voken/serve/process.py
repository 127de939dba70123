"""A server as a process of its own: opens a collection, listens, and ends well when it is told to.

Told to stop (SIGTERM, Ctrl-C) it stops accepting, answers what it has accepted, and returns; after the grace time what
is left is refused. A second Ctrl-C ends it at once.
"""

from __future__ import annotations

import logging
import socket
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from voken.errors import ConfigError, MissingExtraError
from voken.serve.settings import ServeSettings


def serve(
    collection: Path,
    settings: ServeSettings,
    *,
    model: Path | None = None,
    device: str = "cpu",
    threads: int = 0,
    open_page: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve the collection in a folder until told to stop. `tell` gets a line with the address once it listens.

    `open_page` opens the page in a browser. Raises `MissingExtraError` where the extra is not installed,
    `ConfigError` where the address cannot be had, and what `Collection.open` raises.
    """
    _check_extra()
    from voken.api import Collection
    from voken.serve.app import create_app
    from voken.serve.server import Server

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a client's broken form is the client's to hear of
    # first what is known at once: whether the address is free
    with (
        _listener(settings) as listener,
        Collection.open(
            collection, model=model, device=device, threads=threads, max_queue=settings.max_queue
        ) as opened,
    ):
        if len(opened):
            opened.search("a picture", 1)  # what a first search loads is loaded before anybody waits for it
        address = _address(settings.host, listener)

        def listening() -> None:
            tell(f"Serving {len(opened):,} pictures of {collection} at {address} (Ctrl-C stops)")
            if open_page:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        Server(create_app(opened, settings), listening).run(sockets=[listener])


def _check_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "What a server needs", "serve") from None


def _listener(settings: ServeSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{settings.host}:{settings.port}: cannot listen there ({said}). Give another --port (0: any that is "
            "free) or --host."
        ) from None


def _address(host: str, listener: socket.socket) -> str:
    """What to type into a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{listener.getsockname()[1]}/"
