"""Evaluate one trained model on one data set: its three read-outs, exact search and the quantized ceiling."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.data.captions import Dataset
from voken.data.skipped import Skipped
from voken.encoders.cache import VectorCache, picture_vectors
from voken.errors import EmptyDataError
from voken.generator.lite import LiteGenerator
from voken.model.compiled import CompiledModel
from voken.model.model import Model
from voken.progress import Progress, no_progress
from voken.search.searcher import Searcher, SearchModel
from voken.shapes import Float
from voken_lab.evaluation.protocol import (
    Conditions,
    Evaluation,
    Pool,
    draw_queries,
    evaluate,
    pool_of,
    queries_of,
)
from voken_lab.systems.caption_memory import memory_bytes_of
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower

TWO_TOWER = "two-tower, exact"
CEILING = "quantized ceiling"
QUERY_POINT = "two-tower + caption memory, exact"
MOVED_POINT = "the generator's query point, exact"
"""The same row if the generator moves the query's vector by what it learned, with a memory or without."""
READOUTS: tuple[Literal["generate", "voken", "vector"], ...] = ("generate", "voken", "vector")


@dataclass(frozen=True)
class Benchmark:
    """The evaluations of one model, and the collection that was searched."""

    rows: tuple[Evaluation, ...]
    """In the order of a table: two-tower, quantized ceiling, exact search from the generator's query point if it has
    one, then the model's read-outs."""
    collection: Snapshot
    """The pool, in memory."""
    skipped: tuple[Skipped, ...]
    """Pictures that could not be read; they are in no row's pool."""


def benchmark(
    model: Model,
    dataset: Dataset,
    *,
    split: str = "test",
    one_per_concept: bool = True,
    distinct: bool = True,
    limit: int | None = None,
    seed: int = 0,
    beams: int | None = None,
    cutoffs: Sequence[int] = (1, 5, 10),
    reference: bool = True,
    searched: SearchModel | None = None,
    cache: VectorCache | None = None,
    progress: Progress = no_progress,
) -> Benchmark:
    """Evaluate `model` with the captions of `split` as queries and the split's pictures as the pool.

    docs/explanation/protocol.md explains each term.

    `one_per_concept` and `distinct` are those of `pool_of` and `queries_of`. `seed` draws the pool, and also the
    queries if there are more than `limit` (None asks all). If `beams` is None, the model's number of beams is used.
    `reference=False` leaves out the systems that are not read-outs of the model. `searched` is a model to search with
    instead of `model`, such as its engine in some precision. Raises `EmptyDataError` without pictures or captions.
    """
    side = dataset.split(split)
    pool = pool_of(side, one_per_concept=one_per_concept, seed=seed)
    collection, vectors, skipped = _index(model, side, pool, cache, progress)
    pool = Pool(tuple(collection.ids), np.asarray(collection.vokens))
    queries = draw_queries(queries_of(side, pool, distinct=distinct), limit, seed)
    search = model.search if beams is None else dataclasses.replace(model.search, beams=beams)
    names, paths = list(collection.ids), [str(path) for path in collection.paths]
    conditions = Conditions(
        system=f"voken {model.config.name}",
        dataset=f"{dataset.name} {split}",
        pool=_pool_in_words(one_per_concept, distinct),
        protocol=model.config.protocol,
        seed=model.config.seed,
        config=model.config.to_dict(),
    )
    ceiling = TwoTower.quantized(model.encoder, names, vectors, model.tokenizer, paths=paths)
    systems: list[tuple[SearchSystem, Conditions]] = []
    if reference:
        exact = TwoTower(model.encoder, names, vectors, paths=paths, vokens=np.asarray(collection.vokens))
        references = [(TWO_TOWER, exact), (CEILING, ceiling)]
        if model.has_query_point:
            moved = isinstance(model.generator, LiteGenerator) and model.generator.config.moves_query_point
            point = MOVED_POINT if moved else QUERY_POINT
            references.append((point, TwoTower(_QueryPoints(model), names, vectors, paths=paths)))
        for name, system in references:
            row = dataclasses.replace(conditions, system=name, bytes_per_picture=system.bytes_per_picture)
            if name in (QUERY_POINT, MOVED_POINT):
                row = dataclasses.replace(row, memory_bytes=memory_bytes_of(model.generator))
            systems.append((system, row))
    if isinstance(searched, CompiledModel):
        conditions = dataclasses.replace(
            conditions, system=f"{conditions.system}, engine {searched.generator.precision}"
        )
    for readout in READOUTS:
        settings = dataclasses.replace(search, readout=readout)
        size = ceiling.bytes_per_picture + (2.0 * vectors.shape[1] if readout == "vector" else 0.0)
        row = dataclasses.replace(
            conditions,
            readout=readout,
            beams=settings.beams,
            bytes_per_picture=size,
            memory_bytes=memory_bytes_of(model.generator),
        )
        systems.append((Searcher(searched or model, collection, settings, widen=False), row))
    rows = [
        evaluate(system, queries, pool, conditions=row, cutoffs=cutoffs, k=max(50, *cutoffs), progress=progress)
        for system, row in systems
    ]
    return Benchmark(tuple(rows), collection, tuple(skipped))


def _index(
    model: Model, side: Dataset, pool: Pool, cache: VectorCache | None, progress: Progress
) -> tuple[Snapshot, Float[np.ndarray, "pictures dim"], list[Skipped]]:
    members = set(pool.image_ids)
    drawn = [image for image in side.images if image.image_id in members]
    encoded = picture_vectors(model.encoder, [image.path for image in drawn], cache=cache, progress=progress)
    if not len(encoded.rows):
        first = encoded.skipped[0]
        raise EmptyDataError(f"{side.root}: no picture of the pool can be read ({first.path}: {first.reason}).")
    readable = Dataset(side.name, side.root, tuple(drawn[row] for row in encoded.rows))
    return Snapshot.of_vectors(readable, encoded.vectors, model), encoded.vectors, encoded.skipped


class _QueryPoints:
    """Encodes queries as the model's reranks do."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        return self._model.query_vectors(texts)


def _pool_in_words(one_per_concept: bool, distinct: bool) -> str:
    words = "one picture per concept" if one_per_concept else "all pictures"
    return words if distinct else f"{words}, every caption a query"
