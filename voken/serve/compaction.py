"""Compacts a collection in the background when it asks for it: one at a time, and never in the way of closing."""

from __future__ import annotations

import logging
import threading

from voken.api import Collection
from voken.errors import VokenError

_log = logging.getLogger("voken.serve")


class Compaction:
    """Of one collection. Any thread may use it."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def consider(self) -> None:
        """Begin one where the collection has changed enough and none is going on. Returns at once."""
        with self._starting:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            if self._collection.wants_compaction:
                # a daemon: one that the server does not wait for ends with it, and has then not happened
                self._thread = threading.Thread(target=self._run, name="voken-compaction", daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Begin no other; wait so long for the one that is going on, and abandon it then."""
        with self._starting:
            self._closed = True
            thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        try:
            self._collection.compact()
        except VokenError as error:
            _log.warning("The collection was not compacted: %s", error)
        except Exception:
            _log.exception("The collection was not compacted")
