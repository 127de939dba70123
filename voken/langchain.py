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
from voken.documents import hit_document
from voken.errors import MissingExtraError
from voken.search.searcher import SearchModel

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError(error.name or "langchain-core", "langchain") from None

__all__ = ["VokenRetriever"]


class VokenRetriever(BaseRetriever):
    """Returns the pictures that match a query as documents, best first. Create one with a collection, or with `open`.

    `page_content` is the field of the picture's metadata that describes it: `content_field`, or else the first of
    caption, description, alt, title, text, concept and name that it has. A picture without such a field has its id
    there. `metadata` holds the fields of `voken.documents.HitDocument`.

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
        document = hit_document(self.collection, hit, self.content_field)
        return Document(page_content=document.content, id=hit.image_id, metadata=document.fields)
