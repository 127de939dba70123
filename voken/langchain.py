"""A collection as a retriever of LangChain: a question in words, pictures as documents.

    from voken.langchain import VokenRetriever

    retriever = VokenRetriever.open("photos.voken", k=5, where=["date>=2024"])
    for document in retriever.invoke("two dogs on a beach"):
        print(document.page_content, document.metadata["path"])

This module makes documents of hits; searching is the collection's. Needs langchain-core (the extra `langchain`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from voken.api import Collection
from voken.errors import MissingExtraError
from voken.search.hit import Hit
from voken.search.searcher import SearchModel

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
except ImportError as error:
    raise MissingExtraError(error.name or "langchain-core", "langchain") from None

__all__ = ["VokenRetriever"]

CAPTION_FIELDS = ("caption", "description", "alt", "title", "text", "concept", "name")
"""Fields of a picture's metadata that say what it shows, the best first."""


class VokenRetriever(BaseRetriever):
    """Documents of the pictures that answer a query, best first. Made of an open collection, or with `open` of a path.

    `page_content` is what the picture's metadata says it shows (`content_field`, or the first of caption, description,
    alt, title, text, concept and name that is there), else its id. `metadata` has the fields of the picture's own
    metadata, and over them `id`, `path`, `score`, `confidence` (None where the model is not calibrated) and `vokens`
    of the hit.

    `k`, `where` and `threshold` are those of `Collection.search`, for every query; one call may have its own:
    `retriever.invoke("dogs", k=3)`. Raises what `Collection.search` raises.
    """

    collection: Collection
    """It stays its owner's to close."""
    k: int = 10
    where: Sequence[str] = ()
    """Filters that must all hold (see `voken.collection.filters`)."""
    threshold: float | None = None
    """The least confidence of a hit; no document where nothing matches."""
    content_field: str | None = None
    """The field of the metadata that becomes `page_content`."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Path | SearchModel | None = None,
        device: str = "cpu",
        threads: int = 0,
        **settings: Any,
    ) -> Self:
        """Of a saved collection: arguments and errors of `Collection.open`; `settings` are the retriever's fields."""
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
        asked = self._asked(k, where, threshold)
        return list(map(self._document, self.collection.search(query, **asked)))

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Sequence[str] | None = None,
        threshold: float | None = None,
    ) -> list[Document]:
        (hits,) = await self.collection.asearch([query], **self._asked(k, where, threshold))
        return list(map(self._document, hits))

    def _asked(self, k: int | None, where: Sequence[str] | None, threshold: float | None) -> dict[str, Any]:
        return {
            "k": self.k if k is None else k,
            "where": self.where if where is None else where,
            "threshold": self.threshold if threshold is None else threshold,
        }

    def _document(self, hit: Hit) -> Document:
        known = self.collection.metadata(hit.image_id)
        fields = CAPTION_FIELDS if self.content_field is None else (self.content_field,)
        said = next((known[name] for name in fields if known.get(name)), hit.image_id)
        return Document(
            page_content="; ".join(map(str, said)) if isinstance(said, list) else str(said),
            id=hit.image_id,
            metadata={
                **known,
                "id": hit.image_id,
                "path": hit.path,
                "score": hit.score,
                "confidence": hit.confidence,
                "vokens": list(hit.vokens),
            },
        )
