"""A collection as a LlamaIndex retriever: queries in words, pictures as image nodes.

    from voken.llama_index import VokenRetriever

    retriever = VokenRetriever.open("photos.voken", k=5, where=["date>=2024"])
    for found in retriever.retrieve("two dogs on a beach"):
        print(found.score, found.node.image_path)

This module only turns hits into nodes. It needs llama-index-core (the extra `llama-index`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

from voken.api import Collection, Hit
from voken.documents import hit_document
from voken.errors import MissingExtraError
from voken.search.searcher import SearchModel

try:
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingExtraError(error.name or "llama-index-core", "llama-index") from None

__all__ = ["VokenRetriever"]


class VokenRetriever(BaseRetriever):
    """Returns the pictures that match a query as image nodes, best first. Create one with a collection, or with `open`.

    A node's `text` and `metadata` are those of `voken.documents.HitDocument`; its id is the picture's, `image_path` its
    file, and its score the hit's. `k`, `where` and `threshold` are those of `Collection.search`, whose errors are
    raised. The caller closes the collection.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        k: int = 10,
        where: Sequence[str] = (),
        threshold: float | None = None,
        content_field: str | None = None,
        **settings: Any,
    ) -> None:
        """`content_field` is the field of the metadata that becomes the text; `settings` are the base class's."""
        super().__init__(**settings)
        self.collection = collection
        self.content_field = content_field
        self._options: dict[str, Any] = {"k": k, "where": where, "threshold": threshold}

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
        """Open a saved collection, as `Collection.open` does; `settings` are the retriever's arguments."""
        return cls(Collection.open(path, model=model, device=device, threads=threads), **settings)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._nodes(self.collection.search(query_bundle.query_str, **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        (hits,) = await self.collection.asearch([query_bundle.query_str], **self._options)
        return self._nodes(hits)

    def _nodes(self, hits: Iterable[Hit]) -> list[NodeWithScore]:
        documents = [(hit, hit_document(self.collection, hit, self.content_field)) for hit in hits]
        return [
            NodeWithScore(
                node=ImageNode(id_=hit.image_id, text=document.content, image_path=hit.path, metadata=document.fields),
                score=hit.score,
            )
            for hit, document in documents
        ]
