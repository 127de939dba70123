"""A collection as a Haystack component: a query in words, pictures as documents.

    from haystack import Pipeline
    from voken.haystack import VokenRetriever

    pipeline = Pipeline()
    pipeline.add_component("pictures", VokenRetriever("photos.voken", k=5))
    pipeline.run({"pictures": {"query": "two dogs on a beach"}})["pictures"]["documents"]

This module only turns hits into documents. It needs haystack-ai (the extra `haystack`), whose reports of use to its
makers it turns off, unless the program has imported Haystack before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from voken.api import Collection, Hit
from voken.documents import hit_document
from voken.errors import MissingExtraError

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
try:
    from haystack import Document, component, default_to_dict
except ImportError as error:
    raise MissingExtraError(error.name or "haystack-ai", "haystack") from None

__all__ = ["VokenRetriever"]


@component
class VokenRetriever:
    """Returns the pictures that match a query as documents, best first. The collection is opened by the first query.

    `content` and `meta` of a document are those of `voken.documents.HitDocument`; its id is the picture's, and its
    score the hit's. `k`, `where` and `threshold` are those of `Collection.search`, whose errors are raised; a run may
    override them. To load a saved pipeline, allow this module: `Pipeline.loads(…, allowed_modules=["voken.haystack"])`.
    """

    def __init__(
        self,
        collection: str | Path,
        *,
        model: str | Path | None = None,
        k: int = 10,
        where: Sequence[str] = (),
        threshold: float | None = None,
        content_field: str | None = None,
    ) -> None:
        """`collection` and `model` are folders; `content_field` is the field of the metadata that becomes the text."""
        self._folders = {"collection": str(collection), "model": None if model is None else str(model)}
        self._options: dict[str, Any] = {"k": k, "where": list(where), "threshold": threshold}
        self._content_field = content_field
        self._opened: Collection | None = None

    @property
    def collection(self) -> Collection:
        """The collection, which is opened if it is not open. The caller closes it."""
        if self._opened is None:
            self._opened = Collection.open(self._folders["collection"] or "", model=self._folders["model"])
        return self._opened

    def warm_up(self) -> None:
        """Open the collection, so that the first query is as fast as the others."""
        _ = self.collection

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, k: int | None = None, where: list[str] | None = None, threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """The pictures that match `query`, as `documents`."""
        return self._documents(self.collection.search(query, **self._of_run(k=k, where=where, threshold=threshold)))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, k: int | None = None, where: list[str] | None = None, threshold: float | None = None
    ) -> dict[str, list[Document]]:
        """Like `run`, without blocking the event loop."""
        options = self._of_run(k=k, where=where, threshold=threshold)
        return self._documents((await self.collection.asearch([query], **options))[0])

    def to_dict(self) -> dict[str, Any]:
        """The settings, as Haystack saves and loads them."""
        return dict(default_to_dict(self, **self._folders, **self._options, content_field=self._content_field))

    def _of_run(self, **given: Any) -> dict[str, Any]:
        return self._options | {name: value for name, value in given.items() if value is not None}

    def _documents(self, hits: Iterable[Hit]) -> dict[str, list[Document]]:
        described = [(hit, hit_document(self.collection, hit, self._content_field)) for hit in hits]
        return {
            "documents": [
                Document(id=hit.image_id, content=document.content, meta=document.fields, score=hit.score)
                for hit, document in described
            ]
        }
