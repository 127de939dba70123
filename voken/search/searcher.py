"""Texts to ranked pictures: the generator writes voken sequences, the collection says whose they are.

    searcher = Searcher.open(Path("photos.voken"))
    for hit in searcher.search(["two dogs on a beach"], k=10)[0]:
        ...

A search runs on one version of the collection from beginning to end. An opened collection is followed: what other
processes add and remove is found by searches that begin a moment later.

Three read-outs rank what the beams found (docs/protocol.md): "generate" by log p(Y|q) alone; "voken" adds
weight × cosine of the query's vector with the one rebuilt from the vokens; "vector" adds weight × cosine with
the picture's stored vector. Only the last can tell apart pictures that share a sequence; the other two give
them one score.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from voken.collection.filters import Filter, matching_rows
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.config import MAX_TEXT_CHARACTERS, SearchConfig
from voken.decoding.beam import Beams, beam_search_from_state
from voken.decoding.interface import StepModel
from voken.decoding.nearest import NearestSequences
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, ConfigError, DataError, StorageError
from voken.search.batching import Batcher
from voken.search.confidence import ReadoutCalibration
from voken.search.hit import Hit
from voken.shapes import Float, Int, Int64

__all__ = ["Hit", "SearchModel", "Searcher", "load_model"]

_LOGITS_AT_ONCE = 1 << 24
"""queries × beams × N of one block of queries: 64 MB of float32."""
_QUERIES_AT_ONCE = 64
_LOOKED_EVERY = 0.2
"""Seconds between looks at whether the collection has changed."""
_NOT_CALIBRATED = (
    "This model is not calibrated for this read-out, so its hits have no confidence to compare with. Train it "
    "again with a validation set of 50 queries or more."
)
_PATIENCE = 0.05
"""Seconds that a search waits for a writer before it goes on with what it knows."""
_FILTERS_KEPT = 8
"""Tries of what filters let through, kept for the next search with the same filters."""


class VectorBuilder(Protocol):
    """The half of an `ImageTokenizer` that a rerank needs."""

    def decode(self, vokens: Int[np.ndarray, "sequences M"]) -> Float[np.ndarray, "sequences dim"]:
        """Unit vectors rebuilt from voken sequences."""
        ...


class SearchModel(Protocol):
    """What a search asks of a model. `voken.model.model.Model` is one, in torch; `CompiledModel` is one without."""

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
    from voken.model.compiled import CompiledModel, is_compiled

    if device == "cpu" and is_compiled(folder):
        return CompiledModel.load(folder, threads=threads, once=once)
    try:
        import torch
    except ImportError:
        raise ArtifactError(
            f'{folder}: only torch can search it (on {device}). Install it: pip install "voken-search[train]"'
        ) from None
    from voken.model.model import Model

    if threads:
        torch.set_num_threads(threads)
    return Model.load(folder, device=device)


class Searcher:
    """Searches one collection with the model it was made with.

    `search` says how; without it the model's own settings hold, with the best read-out that the collection
    allows ("vector" where vectors are stored, otherwise "voken"). Beams are as many as `search.beams`, and at least
    k, so that k sequences can be answered; `widen=False` keeps to the number, as an evaluation must. With `store` the
    collection is followed as it changes. `max_queue` is how many queries may wait (see `voken.search.batching`).

    Raises `ArtifactError` where model and collection do not go together, `ConfigError` for impossible settings.
    """

    def __init__(
        self,
        model: SearchModel,
        collection: Snapshot,
        search: SearchConfig | None = None,
        *,
        widen: bool = True,
        store: Store | None = None,
        max_queue: int | None = None,
    ) -> None:
        collection.check_model(model)
        if search is None:
            search = dataclasses.replace(model.search, readout="voken" if collection.vectors is None else "vector")
        self.model = model
        self.search_config = search
        self._weight = _weight(search, model.search, collection)
        self._calibration = _calibration(search, self._weight)
        self._widen = widen
        self._store = store
        self._snapshot = collection
        self._looked = time.monotonic()
        self._looking = threading.Lock()
        self._views: dict[tuple[Filter, ...], _View] = {(): _View(collection, collection.trie)}
        self._batcher: Batcher[str, list[Hit]] = Batcher(self._answer, max_batch=_QUERIES_AT_ONCE, max_queue=max_queue)

    @classmethod
    def open(
        cls,
        collection: Path,
        model: SearchModel | None = None,
        search: SearchConfig | None = None,
        *,
        max_queue: int | None = None,
    ) -> Self:
        """Open a saved collection, and the model it was made with where none is given.

        Raises `ArtifactError` where that model is no longer where it was.
        """
        store = Store.open(collection)
        opened = store.snapshot()
        loaded = load_model(opened.find_model()) if model is None else model
        return cls(loaded, opened, search, store=store, max_queue=max_queue)

    @property
    def collection(self) -> Snapshot:
        """The version that a search that begins now would search."""
        return self._now()

    @property
    def calibrated(self) -> bool:
        """Whether hits have a confidence: the model is calibrated for this read-out and its weight."""
        return self._calibration is not None

    def threshold(self, precision: float) -> float:
        """The confidence from which on so great a share of answers was right on validation.

        Raises `ConfigError` where no threshold reached it, or the model is not calibrated.
        """
        if self._calibration is None or self.search_config.calibration is None:
            raise ConfigError(_NOT_CALIBRATED)
        found = self.search_config.calibration.threshold(self._calibration.readout, precision)
        if found is None:
            reached = [f"{one.precision:g}" for one in self._calibration.thresholds]
            raise ConfigError(
                f"precision {precision}: no threshold reached it on validation"
                + (f" ({', '.join(reached)} were reached)." if reached else ", nor any other.")
                + " Give -t a probability instead."
            )
        return found

    def search(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """For each text at most `k` hits, by falling score; pictures of equal score in the collection's order.

        Only pictures that all filters of `where` let through are searched: the answer is that of a collection of these
        alone. Fewer than k come where it holds fewer, and with `threshold` where fewer have that confidence. Raises
        `ConfigError` for a `k` under 1, for a text without any character to read, and for a threshold where the model
        is not calibrated; what follows the first 2,000 characters of a text is not read. Any number of threads may
        search at once: their texts go through the model together.
        """
        sure = self._sure(threshold)
        if where:
            self._view(tuple(where))  # not in the batch: it may look through all metadata
        return list(map(sure, self._batcher.call(*self._asked(texts, k, where))))

    async def asearch(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """`search`, without blocking the event loop."""
        sure = self._sure(threshold)
        if where:
            import asyncio

            await asyncio.to_thread(self._view, tuple(where))
        return list(map(sure, await self._batcher.acall(*self._asked(texts, k, where))))

    def similar(self, image_id: str, k: int, where: Sequence[Filter] = ()) -> list[Hit]:
        """At most `k` pictures like one of the collection, which is not among them. Neither torch nor text is needed.

        Raises `DataError` where there is no such picture.
        """
        view = self._view(tuple(where))
        row = view.snapshot.find(image_id)
        if row is None:
            raise DataError(f"{image_id}: no picture of the collection has that id.")
        own = view.snapshot.sequence(row)[None]
        vectors = view.snapshot.vectors
        rebuilt = self.model.tokenizer.decode(own)
        query = rebuilt if vectors is None else np.asarray(vectors[np.array([row])], dtype=np.float32)
        found = self._near(view, None, own, query, k + 1)
        return [hit for hit in found if hit.image_id != image_id][:k]

    def like_vector(
        self,
        point: Float[np.ndarray, " e"],
        vector: Float[np.ndarray, " dim"],
        k: int,
        where: Sequence[Filter] = (),
    ) -> list[Hit]:
        """At most `k` pictures near a picture's vector; `point` is what the tokenizer quantizes of it."""
        return self._near(self._view(tuple(where)), point[None], None, vector[None], k)

    def watch_batches(self, watcher: Callable[[int], None]) -> None:
        """Have `watcher` told how many queries go through the model together, by the thread that runs them."""
        self._batcher.watchers.append(watcher)

    def close(self) -> None:
        """Answer what was asked and take nothing more: from now on a search raises `BusyError`."""
        self._batcher.close()

    def _sure(self, threshold: float | None) -> Callable[[list[Hit]], list[Hit]]:
        """Keeps the hits that are sure enough."""
        if threshold is None:
            return lambda hits: hits
        if not self.calibrated:
            raise ConfigError(_NOT_CALIBRATED)
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold {threshold}: a confidence is between 0 and 1.")
        return lambda hits: [hit for hit in hits if hit.confidence is not None and hit.confidence >= threshold]

    def refresh(self) -> None:
        """Look at once whether the collection has changed: who changed it wants to find it changed."""
        with self._looking:
            self._look(None)

    def _now(self) -> Snapshot:
        """The version to search, looked for anew where the last look is some time ago."""
        if self._store is None or time.monotonic() - self._looked < _LOOKED_EVERY:
            return self._snapshot
        if self._looking.acquire(blocking=False):
            try:
                # while a writer commits, or where the disk does not answer, what is known is searched on
                with suppress(StorageError):
                    self._look(_PATIENCE)
            finally:
                self._looking.release()
        return self._snapshot

    def _look(self, wait: float | None) -> None:
        if self._store is not None:
            self._looked = time.monotonic()
            found = self._store.snapshot(self._snapshot, wait=wait)
            if found is not self._snapshot:
                found.check_model(self.model)
                self._views = {(): _View(found, found.trie)}
                self._snapshot = found

    def _view(self, where: tuple[Filter, ...]) -> _View:
        snapshot = self._now()
        views = self._views
        view = views.get(where)
        if view is None or view.snapshot is not snapshot:
            view = _View.of(snapshot, where)
            while len(views) > _FILTERS_KEPT:
                views.pop(next((key for key in list(views) if key), ()), None)
            views[where] = view
        return view

    def _asked(
        self, texts: Sequence[str], k: int, where: Sequence[Filter]
    ) -> tuple[list[str], tuple[int, int, tuple[Filter, ...]]]:
        """Texts fit to read, and what only queries of one batch share: k, beams and filters."""
        self._check(k)
        beams = max(self.search_config.beams, k) if self._widen else self.search_config.beams
        return [readable_text(text, place) for place, text in enumerate(texts)], (k, beams, tuple(where))

    def _check(self, k: int) -> None:
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        if self.search_config.beams < 1:
            raise ConfigError(f"search.beams: {self.search_config.beams}; at least 1 is needed.")

    def _answer(self, key: tuple[int, int, tuple[Filter, ...]], texts: list[str]) -> list[list[Hit]]:
        k, wanted, where = key
        view = self._view(where)
        beams = min(wanted, view.trie.sequences)
        if not beams:
            return [[] for _ in texts]
        step = max(1, _LOGITS_AT_ONCE // (beams * view.trie.codebook_size))
        return [
            hits for at in range(0, len(texts), step) for hits in self._block(view, texts[at : at + step], k, beams)
        ]

    def _block(self, view: _View, texts: list[str], k: int, beams: int) -> list[list[Hit]]:
        generator, readout = self.model.generator, self.search_config.readout
        state = generator.prefill(texts)
        found = beam_search_from_state(generator, state, view.trie, beams)
        sure = self._calibration
        if readout == "generate" and sure is None:
            return [view.hits(leaf, score, k) for leaf, score in _by_leaf(found, found.log_prob)]
        queries = self.model.query_vectors(texts, state)
        if readout == "vector":
            return [
                view.hits(leaf, log_prob, k, view.stored_cosines(query), self._weight, sure)
                for (leaf, log_prob), query in zip(_by_leaf(found, found.log_prob), queries, strict=True)
            ]
        rebuilt = self._rebuilt_cosines(view.trie, found, queries)
        return [
            view.hits(leaf, log_prob, k, _of_leaves(cosine), self._weight, sure)
            for (leaf, log_prob), (_, cosine) in zip(
                _by_leaf(found, found.log_prob), _by_leaf(found, rebuilt), strict=True
            )
        ]

    def _near(
        self,
        view: _View,
        points: Float[np.ndarray, "1 e"] | None,
        sequences: Int[np.ndarray, "1 M"] | None,
        queries: Float[np.ndarray, "1 dim"],
        k: int,
    ) -> list[Hit]:
        """By cosine alone, of what the beams find nearest to a point, or to what a sequence stands for."""
        self._check(k)
        if self._store is None:
            raise ArtifactError("Pictures like a picture are found in a saved collection only. Save it, and open it.")
        beams = min(max(self.search_config.beams, k), view.trie.sequences)
        if not beams:
            return []
        walker = NearestSequences(self._store.codebooks())
        if points is None and sequences is not None:
            # a tokenizer without layers quantizes the vector itself, which says more than its sequence
            same = queries.shape[1] == walker.codebooks.shape[2] and view.snapshot.vectors is not None
            points = queries if same else walker.of_sequences(np.asarray(sequences, dtype=np.int64))
        found = beam_search_from_state(walker, walker.prefill(points), view.trie, beams)
        ((leaf, nothing),) = _by_leaf(found, np.zeros_like(found.log_prob))
        if view.snapshot.vectors is not None:
            return view.hits(leaf, nothing, k, view.stored_cosines(queries[0]), 1.0)
        ((_, cosine),) = _by_leaf(found, self._rebuilt_cosines(view.trie, found, queries))
        return view.hits(leaf, nothing, k, _of_leaves(cosine), 1.0)

    def _rebuilt_cosines(
        self, trie: VokenTrie, found: Beams, queries: Float[np.ndarray, "queries dim"]
    ) -> Float[np.ndarray, "queries beams"]:
        # each sequence is rebuilt once: a network may round one input differently at different places of a batch
        leaves, place = np.unique(found.leaf, return_inverse=True)
        sequences = trie.leaf_vokens(np.maximum(leaves, 0))
        rebuilt = self.model.tokenizer.decode(sequences)[place.reshape(found.leaf.shape)]
        cosines: np.ndarray = np.einsum("qd,qbd->qb", queries, rebuilt)
        return cosines


@dataclasses.dataclass(frozen=True, eq=False)
class _View:
    """What one search sees: a version, and the trie of its pictures that filters let through."""

    snapshot: Snapshot
    trie: VokenTrie

    @classmethod
    def of(cls, snapshot: Snapshot, where: tuple[Filter, ...]) -> Self:
        """A filter is a smaller trie: the beams meet no picture that it keeps back."""
        if not where:
            return cls(snapshot, snapshot.trie)
        rows = matching_rows(snapshot, where)
        if not len(rows):
            return cls(snapshot, VokenTrie.empty(snapshot.trie.levels, snapshot.trie.codebook_size))
        vokens = snapshot.vokens[snapshot.rows.searchsorted(rows)]
        return cls(snapshot, VokenTrie.from_vokens(vokens, snapshot.trie.codebook_size, rows))

    def stored_cosines(self, query: Float[np.ndarray, " dim"]) -> Cosines:
        """With the vectors of pictures. There must be some."""
        vectors = self.snapshot.vectors
        assert vectors is not None
        return lambda rows, counts: np.asarray(vectors[rows]).astype(np.float32) @ query

    def hits(
        self,
        leaves: Int64[np.ndarray, " leaves"],
        log_prob: Float[np.ndarray, " leaves"],
        k: int,
        cosines: Cosines | None = None,
        weight: float = 0.0,
        sure: ReadoutCalibration | None = None,
    ) -> list[Hit]:
        """The best `k` pictures of `leaves` by log-probability + weight × cosine; `sure` says how likely each is."""
        snapshot = self.snapshot
        found = ranked(self.trie, leaves, log_prob, k, cosines, weight, sure)
        return [
            Hit(snapshot.ids[one.row], str(snapshot.path(one.row)), one.score, one.vokens, one.confidence)
            for one in found
        ]


Cosines = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of the query with pictures, leaf after leaf: by their rows, and how many each leaf has."""


def _of_leaves(cosines: Float[np.ndarray, " leaves"]) -> Cosines:
    """Of the leaves' own vectors, which their pictures share."""
    return lambda rows, counts: np.repeat(cosines, counts)


class Ranked(NamedTuple):
    """A picture's place in an answer."""

    row: int
    score: float
    vokens: tuple[int, ...]
    confidence: float | None


def ranked(
    trie: VokenTrie,
    leaves: Int64[np.ndarray, " leaves"],
    log_prob: Float[np.ndarray, " leaves"],
    k: int,
    cosines: Cosines | None = None,
    weight: float = 0.0,
    sure: ReadoutCalibration | None = None,
) -> list[Ranked]:
    """The best `k` pictures of `leaves`, by log-probability + weight × cosine. Of equals the lower row comes first."""
    if not len(leaves):
        return []
    rows, counts = trie.rows_of(leaves)
    each = np.repeat(np.asarray(log_prob, dtype=np.float64), counts)
    cosine = np.zeros(len(rows)) if cosines is None else cosines(rows, counts)
    score = each + weight * cosine
    best = np.lexsort((rows, -score))[:k]
    vokens = map(tuple, trie.leaf_vokens(np.repeat(leaves, counts)[best]).tolist())
    confidence: list[float | None] = [None] * len(best)
    if sure is not None:
        confidence = sure.confidence(each, cosine, np.repeat(counts, counts))[best].tolist()
    return list(map(Ranked, rows[best].tolist(), score[best].tolist(), vokens, confidence))


def _by_leaf(
    found: Beams, scores: Float[np.ndarray, "queries beams"]
) -> list[tuple[Int64[np.ndarray, " leaves"], Float[np.ndarray, " leaves"]]]:
    """The leaves and scores of each query, without the padding."""
    return [(leaf[leaf >= 0], score[leaf >= 0]) for leaf, score in zip(found.leaf, scores, strict=True)]


def _weight(search: SearchConfig, chosen: SearchConfig, collection: Snapshot) -> float:
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


def _calibration(search: SearchConfig, weight: float) -> ReadoutCalibration | None:
    made = search.calibration
    return made.of(search.readout) if made is not None and made.holds(search.readout, weight) else None


def readable_text(text: str, place: int) -> str:
    """What is read of the query at `place` (from 0). Raises `ConfigError` where nothing is left of it."""
    # a lone surrogate, which a terminal may pass on, breaks every tokenizer
    cut = text.strip()[:MAX_TEXT_CHARACTERS].rstrip().encode("utf-8", "replace").decode("utf-8")
    if not cut:
        raise ConfigError(f"Query {place + 1} is empty. Say in a few words what the picture shows.")
    return cut
