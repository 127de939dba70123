"""What the routes of one application share: the collection, worker threads, slots, caches and counters."""

from __future__ import annotations

import os

from fastapi import Request

from voken.api import Collection
from voken.serve.concurrency import Compaction, Slots, ThroughputMeter, Workers
from voken.serve.examples import Examples
from voken.serve.looks import Looks
from voken.serve.middleware import Metrics
from voken.serve.pictures import Thumbnails
from voken.serve.requests import SearchParser
from voken.serve.settings import ServeSettings
from voken.serve.token_failures import TokenFailures

_WAITING_CHANGES = 16
_WAITING_EXPORTS = 4
_WAITING_EXAMPLES = 64


class Service:
    """A collection, and the other objects that the routes of one application share."""

    def __init__(self, collection: Collection, settings: ServeSettings) -> None:
        self.collection = collection
        self.settings = settings
        self.parser = SearchParser(settings)
        self.metrics = Metrics()
        self.throughput = ThroughputMeter()
        self.thumbnails = Thumbnails(settings.thumbnail_folder, settings.thumbnail_megabytes)
        self.looks = Looks(collection, follow_links=settings.follow_links)
        self.examples = Examples(collection)
        self.compaction = Compaction(collection)
        self.searchers = Workers(1, settings.max_queue, "voken-search")
        """Runs searches that bypass the model's queue."""
        self.readers = Workers(os.cpu_count() or 1, settings.max_pictures_waiting, "voken-picture")
        """Reads files and draws thumbnails."""
        self.describers = Workers(1, _WAITING_EXAMPLES, "voken-examples")
        """Chooses the queries that the page suggests."""
        self.writers = Workers(1, _WAITING_CHANGES, "voken-change")
        """Changes the collection, one request at a time."""
        self.export_slots = Slots(_WAITING_EXPORTS)
        """Limits the exports that are being sent."""
        self.form_slots = Slots(settings.max_forms)
        """Limits the searches by picture that are sending their file."""
        self.upload_slots = Slots(settings.max_forms)
        """Limits the requests with the token that are sending files: whoever has none cannot take their slots."""
        self.token_failures = TokenFailures(settings.wrong_token_seconds)
        self.closing = False
        """Whether the server has been stopped: it answers accepted requests, and no others."""
        add_gauge = self.metrics.add_gauge
        add_gauge("voken_queries_in_hand", "Queries that wait or are being answered.", lambda: self.throughput.pending)
        add_gauge("voken_queries_per_second", "Answered in the last ten seconds.", self.throughput.per_second)
        add_gauge("voken_pictures", "Pictures in the collection.", lambda: len(collection))
        add_gauge("voken_collection_version", "Grows with every change.", lambda: collection.version)
        collection.watch_batches(self.metrics.count_batch)

    def close(self) -> None:
        """Finish running calls, and wait for a compaction until the grace time ends."""
        self.closing = True
        for workers in (self.searchers, self.readers, self.describers, self.writers):
            workers.close()
        self.compaction.close(self.settings.grace_seconds)


def service_of(request: Request) -> Service:
    """The `Service` of the application that a request came to."""
    service: Service = request.app.state.service
    return service
