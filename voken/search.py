"""Texts to ranked pictures: the generator writes voken sequences, the collection says whose they are.

    searcher = Searcher.open(Path("photos.voken"))
    for hit in searcher.search(["two dogs on a beach"], k=10)[0]:
        ...

Three read-outs rank what the beams found (docs/protocol.md): "generate" by log p(Y|q) alone; "voken" adds
weight × cosine of the query's vector with the one rebuilt from the vokens; "vector" adds weight × cosine with
the picture's stored vector. Only the last can tell apart pictures that share a sequence; the other two give
them one score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from voken.batching import Batcher
from voken.collection.store import Collection
from voken.config import MAX_TEXT_CHARACTERS, SearchConfig
from voken.decoding.beam import Beams, beam_search_from_state
from voken.decoding.interface import StepModel
from voken.errors import ArtifactError, ConfigError
from voken.hit import Hit
from voken.shapes import Float, Int, Int64

__all__ = ["Hit", "SearchModel", "Searcher", "load_model"]

_LOGITS_AT_ONCE = 1 << 24
"""queries × beams × N of one block of queries: 64 MB of float32."""
_QUERIES_AT_ONCE = 64


class VectorBuilder(Protocol):
    """The half of an `ImageTokenizer` that a rerank needs."""

    def decode(self, vokens: Int[np.ndarray, "sequences M"]) -> Float[np.ndarray, "sequences dim"]:
        """Unit vectors rebuilt from voken sequences."""
        ...


class SearchModel(Protocol):
    """What a search asks of a model. `voken.model.Model` is one, in torch; `CompiledModel` is one without."""

    @property
    def generator(self) -> StepModel:
        """Writes the sequences."""
        ...

    @property
    def tokenizer(self) -> VectorBuilder:
        """Rebuilds vectors."""
        ...

    @property
    def search(self) -> SearchConfig:
        """How it is best searched."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; collections know their model by it."""
        ...

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space; `state` is the generator's `prefill` of the texts."""
        ...


def load_model(folder: Path, *, device: str = "cpu", threads: int = 0, once: bool = False) -> SearchModel:
    """A saved model, to search with: on a CPU its engine where it has one, which needs no torch; else in torch.

    `threads` 0: as many as there are cores; `once`: for a process that asks one query. Raises `ArtifactError` where
    there is no model, or where only torch could search it and torch is not installed.
    """
    from voken.inference.compiled import CompiledModel, is_compiled

    if device == "cpu" and is_compiled(folder):
        return CompiledModel.load(folder, threads=threads, once=once)
    try:
        import torch
    except ImportError:
        raise ArtifactError(
            f'{folder}: only torch can search it (on {device}). Install it: pip install "voken-search[train]"'
        ) from None
    from voken.model import Model

    if threads:
        torch.set_num_threads(threads)
    return Model.load(folder, device=device)


class Searcher:
    """Searches one collection with the model it was made with.

    `search` says how; without it the model's own settings hold, with the best read-out that the collection
    allows ("vector" where vectors are stored, otherwise "voken"). Beams are as many as `search.beams`, and at least
    k, so that k sequences can be answered; `widen=False` keeps to the number, as an evaluation must.

    Raises `ArtifactError` where model and collection do not go together, `ConfigError` for impossible settings.
    """

    def __init__(
        self, model: SearchModel, collection: Collection, search: SearchConfig | None = None, *, widen: bool = True
    ) -> None:
        collection.check_model(model)
        if search is None:
            search = dataclasses.replace(model.search, readout="voken" if collection.vectors is None else "vector")
        self.model = model
        self.collection = collection
        self.search_config = search
        self._weight = _weight(search, model.search, collection)
        self._widen = widen
        self._batcher: Batcher[str, list[Hit]] = Batcher(self._answer, max_batch=_QUERIES_AT_ONCE)

    @classmethod
    def open(cls, collection: Path, model: SearchModel | None = None, search: SearchConfig | None = None) -> Self:
        """Open a saved collection, and the model it was made with where none is given.

        Raises `ArtifactError` where that model is no longer where it was.
        """
        opened = Collection.open(collection)
        return cls(load_model(opened.find_model()) if model is None else model, opened, search)

    def search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` hits, by falling score; pictures of equal score in the collection's order.

        Fewer than k come where the collection holds fewer. Raises `ConfigError` for a `k` under 1 and for a text
        without any character to read; what follows the first 2,000 characters of a text is not read. Any number of
        threads may search at once: their texts go through the model together.
        """
        return self._batcher.call(*self._asked(texts, k))

    async def asearch(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """`search`, without blocking the event loop."""
        return await self._batcher.acall(*self._asked(texts, k))

    def close(self) -> None:
        """Answer what was asked and take nothing more: from now on a search raises `BusyError`."""
        self._batcher.close()

    def _asked(self, texts: Sequence[str], k: int) -> tuple[list[str], tuple[int, int]]:
        """Texts fit to read, and what only queries of one batch share: k and beams."""
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        if self.search_config.beams < 1:
            raise ConfigError(f"search.beams: {self.search_config.beams}; at least 1 is needed.")
        wanted = max(self.search_config.beams, k) if self._widen else self.search_config.beams
        beams = min(wanted, self.collection.trie.sequences)
        return [readable_text(text, place) for place, text in enumerate(texts)], (k, beams)

    def _answer(self, key: tuple[int, int], texts: list[str]) -> list[list[Hit]]:
        k, beams = key
        step = max(1, _LOGITS_AT_ONCE // (beams * self.collection.trie.codebook_size))
        if len(texts) > step:
            return self._answer(key, texts[:step]) + self._answer(key, texts[step:])
        generator = self.model.generator
        state = generator.prefill(texts)
        found = beam_search_from_state(generator, state, self.collection.trie, beams)
        readout = self.search_config.readout
        if readout == "generate":
            return [self._hits(leaf, score, None, k) for leaf, score in _by_leaf(found, found.log_prob)]
        queries = self.model.query_vectors(texts, state)
        if readout == "voken":
            scores = found.log_prob + self._weight * self._rebuilt_cosines(found, queries)
            return [self._hits(leaf, score, None, k) for leaf, score in _by_leaf(found, scores)]
        return [
            self._hits(leaf, score, query, k)
            for (leaf, score), query in zip(_by_leaf(found, found.log_prob), queries, strict=True)
        ]

    def _rebuilt_cosines(
        self, found: Beams, queries: Float[np.ndarray, "queries dim"]
    ) -> Float[np.ndarray, "queries beams"]:
        # each sequence is rebuilt once: a network may round one input differently at different places of a batch
        leaves, place = np.unique(found.leaf, return_inverse=True)
        sequences = self.collection.trie.leaf_vokens(np.maximum(leaves, 0))
        rebuilt = self.model.tokenizer.decode(sequences)[place.reshape(found.leaf.shape)]
        cosines: np.ndarray = np.einsum("qd,qbd->qb", queries, rebuilt)
        return cosines

    def _hits(
        self,
        leaves: Int64[np.ndarray, " leaves"],
        scores: Float[np.ndarray, " leaves"],
        query: Float[np.ndarray, " dim"] | None,
        k: int,
    ) -> list[Hit]:
        """The best `k` pictures of `leaves`; with `query`, reranked by their stored vectors."""
        collection = self.collection
        if not len(leaves):
            return []
        rows, counts = collection.trie.rows_of(leaves)
        score = np.repeat(np.asarray(scores, dtype=np.float64), counts)
        if query is not None and collection.vectors is not None:
            score = score + self._weight * (collection.vectors[rows].astype(np.float32) @ query)
        best = np.lexsort((rows, -score))[:k]
        vokens = collection.trie.leaf_vokens(np.repeat(leaves, counts)[best]).tolist()
        return [
            Hit(collection.ids[row], str(collection.path(row)), value, tuple(sequence))
            for row, value, sequence in zip(rows[best].tolist(), score[best].tolist(), vokens, strict=True)
        ]


def _by_leaf(
    found: Beams, scores: Float[np.ndarray, "queries beams"]
) -> list[tuple[Int64[np.ndarray, " leaves"], Float[np.ndarray, " leaves"]]]:
    """The leaves and scores of each query, without the padding."""
    return [(leaf[leaf >= 0], score[leaf >= 0]) for leaf, score in zip(found.leaf, scores, strict=True)]


def _weight(search: SearchConfig, chosen: SearchConfig, collection: Collection) -> float:
    if search.readout == "generate":
        return 0.0
    if search.readout == "vector" and collection.vectors is None:
        raise ConfigError(
            "search.readout 'vector' needs stored vectors, and this collection was made without. Use readout 'voken', "
            "or index the pictures again with vectors."
        )
    name = f"{search.readout}_weight"
    given = getattr(search, name)
    weight = getattr(chosen, name) if given is None else given
    if weight is None:
        raise ConfigError(f"search.{name} was not chosen when the model was trained. Give it a value.")
    return float(weight)


def readable_text(text: str, place: int) -> str:
    """What is read of the query at `place` (from 0). Raises `ConfigError` where nothing is left of it."""
    # a lone surrogate, which a terminal may pass on, breaks every tokenizer
    cut = text.strip()[:MAX_TEXT_CHARACTERS].rstrip().encode("utf-8", "replace").decode("utf-8")
    if not cut:
        raise ConfigError(f"Query {place + 1} is empty. Say in a few words what the picture shows.")
    return cut
