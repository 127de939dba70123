"""A collection as a LangChain retriever: queries in words, pictures as documents.

    from voken.langchain import VokenRetriever

    retriever = VokenRetriever.open("photos.voken", k=5, where=["date>=2024"])
    for document in retriever.invoke("two dogs on a beach"):
        print(document.page_content, document.metadata["path"])

This module only turns hits into documents. It needs langchain-core (the extra `langchain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from voken.api import Collection, Hit
from voken.errors import MissingExtraError
from voken.search.searcher import SearchModel

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError(error.name or "langchain-core", "langchain") from None

__all__ = ["VokenRetriever"]

CAPTION_FIELDS = ("caption", "description", "alt", "title", "text", "concept", "name")
"""Metadata fields that may describe a picture, in the order in which they are tried."""


class VokenRetriever(BaseRetriever):
    """Returns the pictures that match a query as documents, best first. Create one with a collection, or with `open`.

    `page_content` is the field of the picture's metadata that describes it: `content_field`, or else the first of
    caption, description, alt, title, text, concept and name that it has. A picture without such a field has its id
    there. `metadata` holds all fields of the picture's metadata, and the hit's `id`, `path`, `score`, `confidence`
    (None if the model is not calibrated) and `vokens`, which replace fields of the same names.

    `k`, `where` and `threshold` are those of `Collection.search` and apply to every query; a call may override them:
    `retriever.invoke("dogs", k=3)`. Raises what `Collection.search` raises.
    """

    collection: Collection
    """The caller closes it."""
    k: int = 10
    where: Sequence[str] = ()
    """Filters that must all hold (see `voken.collection.filters`)."""
    threshold: float | None = None
    """The lowest confidence of a returned hit; the result may be empty."""
    content_field: str | None = None
    """The field of the metadata that becomes `page_content`."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | Path | SearchModel | None = None,
        device: str = "cpu",
        threads: int = 0,
        **settings: Any,
    ) -> Self:
        """Open a saved collection, as `Collection.open` does; `settings` are the retriever's fields."""
        return cls(collection=Collection.open(path, model=model, device=device, threads=threads), **settings)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> list[Document]:
        options = self._search_options(k, where, threshold)
        return list(map(self._document, self.collection.search(query, **options)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> list[Document]:
        (hits,) = await self.collection.asearch([query], **self._search_options(k, where, threshold))
        return list(map(self._document, hits))

    def _search_options(self, k: int | None, where: Sequence[str] | None, threshold: float | None) -> dict[str, Any]:
        return {
            "k": self.k if k is None else k,
            "where": self.where if where is None else where,
            "threshold": self.threshold if threshold is None else threshold,
        }

    def _document(self, hit: Hit) -> Document:
        fields = self.collection.metadata(hit.image_id)
        names = CAPTION_FIELDS if self.content_field is None else (self.content_field,)
        content = next((fields[name] for name in names if fields.get(name)), hit.image_id)
        return Document(
            page_content="; ".join(map(str, content)) if isinstance(content, list) else str(content),
            id=hit.image_id,
            metadata={
                **fields,
                "id": hit.image_id,
                "path": hit.path,
                "score": hit.score,
                "confidence": hit.confidence,
                "vokens": list(hit.vokens),
            },
        )
