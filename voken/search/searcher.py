"""Searches a collection: the generator writes voken sequences, and the collection says which pictures have them.

    store = Store.open(Path("photos.voken"))
    snapshot = store.snapshot()
    searcher = Searcher(load_model(snapshot.find_model()), snapshot, store=store)
    (hits,) = searcher.search(["two dogs on a beach"], k=10)

A search sees one version of the collection from beginning to end. With a store, searches that begin a moment after
another process added or removed pictures see the change. Read-outs (`voken.search.readouts`) score the hits.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from voken import artifact
from voken.collection.filters import Filter, matching_rows
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.config import MAX_TEXT_CHARACTERS, ReadOutWeights, SearchConfig
from voken.decoding.beam import Beams, beam_search_from_state
from voken.decoding.interface import LinearModel, StepModel
from voken.decoding.nearest import NearestSequences
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, ConfigError, DataError, StorageError
from voken.model.calibration import Calibration
from voken.search.corrections import Corrections
from voken.search.hit import Hit
from voken.search.readouts import Candidates, Pool, ReadOut, VectorBuilder
from voken.shapes import Float

QUERIES_AT_ONCE = 64
"""Queries that go through the model together."""
_LOGITS_AT_ONCE = 1 << 23
"""Largest queries × beams × N of a block of queries: 32 MB of float32. A step holds a few such arrays at once."""
_CHARACTERS_AT_ONCE = 1 << 14
"""Largest queries × length of the longest of a block of queries: reading them takes memory in proportion."""
_REFRESH_SECONDS = 0.2
"""Time between two checks for changes of the collection."""
_WRITER_SECONDS = 0.05
"""Time that a search waits for a writer before it uses the version that it has."""
_MAX_POOLS = 8
"""Largest number of filtered pools that stay in memory for the next search with the same filters."""
_NOT_CALIBRATED = (
    "This model is not calibrated for this read-out, so its hits have no confidence. Train it "
    "again with a validation set of 50 queries or more."
)


class SearchModel(Protocol):
    """What a search needs of a model. `voken.model.model.Model` is one in torch; `CompiledModel` is one without."""

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
        """The search settings that are used unless a caller passes others."""
        ...

    @property
    def weights(self) -> ReadOutWeights:
        """The weights of the read-outs that training chose."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """The calibration of its confidences, if it has one."""
        ...

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"] | None:
        """The entries that sum to the vectors of pictures, if they do."""
        ...

    @property
    def prior_captions(self) -> tuple[str, ...]:
        """The captions with which the generator's prior is measured, if it is taken out of the scores."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal. A collection stores the fingerprint of its model."""
        ...

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space; `state` is the generator's `prefill` of the texts."""
        ...


def load_model(folder: Path, *, device: str = "cpu", threads: int = 0, once: bool = False) -> SearchModel:
    """Load a saved model for searching: its engine if it has one and `device` is a CPU, otherwise the model in torch.

    The engine needs no torch. `threads` 0 means as many as there are cores; `once` is for a process that searches
    only once. Raises `ArtifactError` if there is no model, or if only torch could search it and torch is not installed.
    """
    from voken.model.compiled import KIND, VERSION, CompiledModel, is_compiled

    if device == "cpu" and is_compiled(folder):
        return CompiledModel.load(folder, threads=threads, once=once)
    try:
        import torch
    except ImportError:
        artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        raise ArtifactError(
            f'{folder}: only torch can search it (on {device}). Install it: pip install "voken-search[train]"'
        ) from None
    from voken.model.model import Model

    if threads:
        torch.set_num_threads(threads)
    return Model.load(folder, device=device)


@dataclass(frozen=True)
class SearchKey:
    """What queries must have in common to be searched together."""

    k: int
    beams: int
    filters: tuple[Filter, ...]


@dataclass(frozen=True)
class PreparedSearch:
    """A search whose arguments were checked: its texts as the model reads them, its key, and its threshold."""

    texts: list[str]
    key: SearchKey
    threshold: float | None

    def above_threshold(self, answers: Sequence[list[Hit]]) -> list[list[Hit]]:
        """The answers without the hits whose confidence is below the threshold."""
        if (least := self.threshold) is None:
            return list(answers)
        return [[hit for hit in hits if hit.confidence is not None and hit.confidence >= least] for hits in answers]


class Searcher:
    """Searches one collection with the model that it was indexed with.

    `search` holds the settings. Without it the model's settings are used, with the best read-out that the collection
    allows ("vector" if vectors are stored, otherwise "voken"). A search uses `search.beams` beams, or k if that is
    more, so that k sequences can be returned; with `widen=False` it always uses `search.beams`, as an evaluation must.
    With `store`, searches see later changes of the collection. To batch the searches of many threads or of an event
    loop, use a `voken.search.batching.SearchQueue`.

    Raises `ArtifactError` if model and collection do not belong together, `ConfigError` for impossible settings.
    """

    def __init__(
        self,
        model: SearchModel,
        collection: Snapshot,
        search: SearchConfig | None = None,
        *,
        widen: bool = True,
        store: Store | None = None,
    ) -> None:
        collection.check_model(model)
        if search is None:
            search = dataclasses.replace(model.search, readout="voken" if collection.vectors is None else "vector")
        self.model = model
        self.search_config = search
        self.read_out = _read_out(search, model, collection)
        weights = search.weights(model.weights)
        codebooks = model.codebooks if weights.norm else None
        self.corrections = Corrections(model.generator, codebooks, model.prior_captions, weights)
        self._widen = widen
        self._store = store
        self._snapshot = collection
        self._last_refresh = time.monotonic()
        self._refresh_lock = threading.Lock()
        self.is_outdated = False
        """Whether the collection has another model now. Searches then see the last version of before."""
        self._pools: dict[tuple[Filter, ...], Pool] = {(): Pool(collection, collection.trie, model.tokenizer)}

    @property
    def collection(self) -> Snapshot:
        """The version of the collection that a search would see if it began now."""
        if self._store is None or time.monotonic() - self._last_refresh < _REFRESH_SECONDS:
            return self._snapshot
        if self._refresh_lock.acquire(blocking=False):
            try:
                # while a writer commits, or if the disk fails, searches use the version that they have
                with suppress(StorageError):
                    self._refresh(_WRITER_SECONDS)
            finally:
                self._refresh_lock.release()
        return self._snapshot

    @property
    def calibrated(self) -> bool:
        """Whether hits have a confidence: the model is calibrated for this read-out and its weight."""
        return self.read_out.calibration is not None

    def threshold(self, precision: float) -> float:
        """The lowest confidence at which at least this share of hits was right on validation.

        Raises `ConfigError` if no threshold reached it, or the model is not calibrated.
        """
        calibration = self.read_out.calibration
        if calibration is None:
            raise ConfigError(_NOT_CALIBRATED)
        confidence = self.read_out.threshold(precision)
        if confidence is None:
            reached = ", ".join(f"{threshold.precision:g}" for threshold in calibration.thresholds)
            raise ConfigError(
                f"precision {precision}: no threshold reached it on validation"
                + (f" ({reached} were reached)." if reached else ", nor any other.")
                + " Pass a probability as the threshold instead."
            )
        return confidence

    def search(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """At most `k` hits per text, by falling score; hits with equal scores are in the collection's order.

        Only pictures that pass all filters of `where` are searched, as if the collection held no others. There are
        fewer than k hits if fewer pictures pass, or if fewer reach the confidence `threshold`. Only the first 2,000
        characters of a text are read. Raises `ConfigError` for a `k` under 1, for an empty text, and for a
        threshold if the model is not calibrated.
        """
        search = self.prepare(texts, k, where, threshold)
        batches = [search.texts[at : at + QUERIES_AT_ONCE] for at in range(0, len(texts), QUERIES_AT_ONCE)]
        return search.above_threshold([hits for batch in batches for hits in self.answer(search.key, batch)])

    def prepare(
        self, texts: Sequence[str], k: int, where: Sequence[Filter] = (), threshold: float | None = None
    ) -> PreparedSearch:
        """Check a search, and find the pictures that pass its filters. Raises as `search` does."""
        if threshold is not None:
            if not self.calibrated:
                raise ConfigError(_NOT_CALIBRATED)
            if not 0 <= threshold <= 1:
                raise ConfigError(f"threshold {threshold}: a confidence is between 0 and 1.")
        beams = self._beams(k)
        if where:
            self.pool(where)  # may read all metadata: better here than in a batch of many callers
        key = SearchKey(k, beams if self._widen else self.search_config.beams, tuple(where))
        return PreparedSearch([readable_text(text, place) for place, text in enumerate(texts)], key, threshold)

    def answer(self, key: SearchKey, texts: list[str]) -> list[list[Hit]]:
        """The hits of prepared texts; `search` and `voken.search.batching.SearchQueue` call it."""
        pool = self.pool(key.filters)
        beams = min(key.beams, pool.trie.sequences)
        if not beams:
            return [[] for _ in texts]
        size = max(1, _LOGITS_AT_ONCE // (beams * pool.trie.codebook_size))
        blocks = _blocks(texts, size)
        return [hits for block in blocks for hits in self._answer_block(pool, block, key.k, beams)]

    def similar(self, image_id: str, k: int, where: Sequence[Filter] = ()) -> list[Hit]:
        """At most `k` pictures that look like a picture of the collection, without that picture. Needs no torch.

        Raises `DataError` if there is no such picture, `ConfigError` for a `k` under 1.
        """
        check_k(k)
        pool = self.pool(where)
        row = pool.snapshot.find(image_id)
        if row is None:
            raise DataError(f"{image_id}: no picture of the collection has that id. A search shows the ids (--json).")
        sequence = np.asarray(pool.snapshot.sequence(row)[None], dtype=np.int64)
        vectors = pool.snapshot.vectors
        if vectors is None:
            query = self.model.tokenizer.decode(sequence)
        else:
            query = np.asarray(vectors[np.array([row])], dtype=np.float32)
        model = self._nearest()
        # a tokenizer without layers quantizes the vector itself, which is more precise than its sequence
        quantizes_vectors = vectors is not None and query.shape[1] == model.codebooks.shape[2]
        point = query if quantizes_vectors else model.of_sequences(sequence)
        return [hit for hit in self._near(pool, model, point, query, k + 1) if hit.image_id != image_id][:k]

    def vector_of(self, image_id: str) -> Float[np.ndarray, " dim"]:
        """The vector of a picture of the collection: the stored one, or else that of its sequence.

        Raises `DataError` if there is no such picture.
        """
        snapshot = self.collection
        row = snapshot.find(image_id)
        if row is None:
            raise DataError(f"{image_id}: no picture of the collection has that id. A search shows the ids (--json).")
        vector: Float[np.ndarray, " dim"]
        if snapshot.vectors is not None:
            vector = np.asarray(snapshot.vectors[np.array([row])], dtype=np.float32)[0]
        else:
            vector = self.model.tokenizer.decode(np.asarray(snapshot.sequence(row)[None], dtype=np.int64))[0]
        return vector

    def like_vector(
        self,
        point: Float[np.ndarray, " e"],
        vector: Float[np.ndarray, " dim"],
        k: int,
        where: Sequence[Filter] = (),
    ) -> list[Hit]:
        """At most `k` pictures near a picture's vector; `point` is what the tokenizer makes of it before quantizing."""
        return self._near(self.pool(where), self._nearest(), point[None], vector[None], k)

    def refresh(self) -> None:
        """Read the collection's changes now, so that a writer's next search sees what it wrote."""
        with self._refresh_lock:
            self._refresh(None)

    def pool(self, where: Sequence[Filter] = ()) -> Pool:
        """The pictures that a search with these filters would see if it began now."""
        filters, snapshot, pools = tuple(where), self.collection, self._pools
        pool = pools.get(filters)
        if pool is None or pool.snapshot is not snapshot:
            pool = Pool(snapshot, _filtered_trie(snapshot, filters), self.model.tokenizer)
            while len(pools) > _MAX_POOLS:
                pools.pop(next((key for key in list(pools) if key), ()), None)
            pools[filters] = pool
        return pool

    def _refresh(self, wait: float | None) -> None:
        if self._store is not None:
            self._last_refresh = time.monotonic()
            snapshot = self._store.snapshot(self._snapshot, wait=wait)
            if snapshot.model_fingerprint != self.model.fingerprint:
                self.is_outdated = True
            elif snapshot is not self._snapshot:
                self._pools = {(): Pool(snapshot, snapshot.trie, self.model.tokenizer)}
                self._snapshot = snapshot

    def _beams(self, k: int) -> int:
        """The number of beams in the settings, or `k` if that is more."""
        check_k(k)
        if self.search_config.beams < 1:
            raise ConfigError(f"search.beams: {self.search_config.beams}; at least 1 is needed.")
        return max(self.search_config.beams, k)

    def _answer_block(self, pool: Pool, texts: list[str], k: int, count: int) -> list[list[Hit]]:
        generator = self.model.generator
        state = generator.prefill(texts)
        beams = beam_search_from_state(generator, state, pool.trie, count, bias=self.corrections.of(pool.trie))
        queries = self.model.query_vectors(texts, state) if self.read_out.needs_cosines else None
        return _ranked_hits(pool, self.read_out, beams, queries, k)

    def _nearest(self) -> NearestSequences:
        if self._store is None:
            raise ArtifactError("Only a saved collection can be searched for similar pictures. Save it, and open it.")
        generator = self.model.generator
        once = isinstance(generator, LinearModel) and generator.answers_once
        return NearestSequences(self._store.codebooks(), answers_once=once)

    def _near(
        self,
        pool: Pool,
        model: NearestSequences,
        point: Float[np.ndarray, "1 e"],
        query: Float[np.ndarray, "1 dim"],
        k: int,
    ) -> list[Hit]:
        """The pictures whose sequences are nearest to `point`, ranked by their cosine with `query` alone."""
        count = min(self._beams(k), pool.trie.sequences)
        if not count:
            return []
        beams = beam_search_from_state(model, model.prefill(point), pool.trie, count)
        beams = dataclasses.replace(beams, log_prob=np.zeros_like(beams.log_prob))
        read_out = ReadOut("voken" if pool.snapshot.vectors is None else "vector", 1.0)
        return _ranked_hits(pool, read_out, beams, query, k)[0]


def _blocks(texts: list[str], most: int) -> list[list[str]]:
    """The texts in blocks of at most `most`, which take a bounded amount of memory."""
    blocks: list[list[str]] = []
    longest = 0
    for text in texts:
        longest = max(longest, len(text))
        if not blocks or len(blocks[-1]) == most or (len(blocks[-1]) + 1) * longest > _CHARACTERS_AT_ONCE:
            blocks.append([])
            longest = len(text)
        blocks[-1].append(text)
    return blocks


def _ranked_hits(
    pool: Pool, read_out: ReadOut, beams: Beams, queries: Float[np.ndarray, "queries dim"] | None, k: int
) -> list[list[Hit]]:
    """The best `k` pictures that each query's beams reached. `queries` may be None if no cosine is needed."""
    snapshot = pool.snapshot
    answers = []
    candidates = [Candidates.of(pool.trie, *row) for row in zip(beams.leaf, beams.log_prob, strict=True)]
    for pictures in candidates:
        snapshot.check_rows(pictures.rows)
    cosines = [np.zeros(1)] * len(candidates) if queries is None else read_out.cosines(pool, beams, candidates, queries)
    for pictures, cosine in zip(candidates, cosines, strict=True):
        scores = read_out.score(pictures.log_prob, cosine)
        best = pictures.best(scores, k)
        confidences: list[float | None] = [None] * len(best)
        if read_out.calibration is not None:
            confidences = read_out.confidence(pictures.log_prob, cosine, pictures.shared)[best].tolist()
        rows, vokens = pictures.rows[best].tolist(), pool.trie.leaf_vokens(pictures.leaves[best]).tolist()
        answers.append(
            [
                Hit(snapshot.ids[row], str(snapshot.path(row)), score, tuple(sequence), confidence)
                for row, score, sequence, confidence in zip(
                    rows, scores[best].tolist(), vokens, confidences, strict=True
                )
            ]
        )
    return answers


def _filtered_trie(snapshot: Snapshot, filters: tuple[Filter, ...]) -> VokenTrie:
    """The trie of only the pictures that pass all filters."""
    if not filters:
        return snapshot.trie
    rows = matching_rows(snapshot, filters)
    if not len(rows):
        return VokenTrie.empty(snapshot.trie.levels, snapshot.trie.codebook_size)
    vokens = snapshot.vokens[snapshot.rows.searchsorted(rows)]
    return VokenTrie.from_vokens(vokens, snapshot.trie.codebook_size, rows)


def _read_out(search: SearchConfig, model: SearchModel, collection: Snapshot) -> ReadOut:
    """The read-out, with the weight in `search` or else the weight that training chose."""
    name = search.readout
    if name == "vector" and collection.vectors is None:
        raise ConfigError(
            "search.readout 'vector' needs stored vectors, and this collection has none. Use readout 'voken', "
            "or index the pictures again with vectors."
        )
    weights = search.weights(model.weights)
    weight = {"generate": 0.0, "voken": weights.voken, "vector": weights.vector}[name]
    if weight is None:
        raise ConfigError(f"search.{name}_weight was not chosen when the model was trained. Give it a value.")
    # confidences were fitted on scores with the model's own corrections
    same = (weights.norm or 0.0, weights.prior or 0.0) == (model.weights.norm or 0.0, model.weights.prior or 0.0)
    return ReadOut.calibrated(name, float(weight), model.calibration if same else None)


def check_k(k: int) -> None:
    """Raises `ConfigError` for a `k` under 1."""
    if k < 1:
        raise ConfigError(f"k: {k} pictures per query; ask for 1 or more.")


def readable_text(text: str, place: int) -> str:
    """The part of the query at `place` (from 0) that is read. Raises `ConfigError` if it is empty."""
    # a lone surrogate, which a terminal may pass on, breaks every tokenizer
    cut = text.strip()[:MAX_TEXT_CHARACTERS].rstrip().encode("utf-8", "replace").decode("utf-8")
    if not any(character.isprintable() and not character.isspace() for character in cut):
        raise ConfigError(f"Query {place + 1} is empty. Describe the picture in a few words.")
    return cut
