"""What the endpoints of one application share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from voken.api import Collection
from voken.serve.asked import SearchForm
from voken.serve.compaction import Compaction
from voken.serve.metrics import Metrics
from voken.serve.pace import Pace
from voken.serve.refusals import CLIENT_GONE, RefusedError
from voken.serve.settings import ServeSettings
from voken.serve.thumbnails import Thumbnails
from voken.serve.workers import Slots, Workers

Result = TypeVar("Result")

_UPLOADS_WAITING = 16


class Service:
    """A collection, and how it is served."""

    def __init__(self, collection: Collection, settings: ServeSettings) -> None:
        cores = os.cpu_count() or 1
        self.collection = collection
        self.settings = settings
        self.form = SearchForm(settings)
        self.metrics = Metrics()
        self.pace = Pace()
        self.thumbnails = Thumbnails(settings.thumbnail_folder, settings.thumbnail_megabytes)
        self.compaction = Compaction(collection)
        self.searchers = Workers(1, settings.max_queue, "voken-search")
        """For searches that do not go through the model's queue."""
        self.readers = Workers(cores, settings.max_pictures_waiting, "voken-picture")
        """For files and thumbnails."""
        self.writers = Workers(1, _UPLOADS_WAITING, "voken-change")
        """For what changes the collection: one thing at a time."""
        self.forms = Slots(settings.max_forms)
        """For requests with files that are arriving."""
        self.closing = False
        """The server was told to stop: what it has accepted is answered, and no more."""

    def close(self) -> None:
        """Finish what is in hand. A compaction is waited for as long as there is grace."""
        self.closing = True
        for workers in (self.searchers, self.readers, self.writers):
            workers.close()
        self.compaction.close(self.settings.grace_seconds)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled where the client goes. The request's body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RefusedError(CLIENT_GONE, "The client has gone.")
    finally:
        working.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
