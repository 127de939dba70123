"""The evaluation protocol: the pool, the queries, how a system is asked, and what is reported.

docs/explanation/protocol.md describes it. A system is anything with `search(texts, k)`. This module does not know how
a system answers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from voken.data.captions import CaptionedImage, Dataset
from voken.errors import ConfigError, DataError, EmptyDataError
from voken.metrics import (
    collision_rate,
    first_relevant,
    ranked_matrices,
    recall_at,
    reciprocal_rank_at,
    sequence_recall,
)
from voken.progress import Progress, no_progress
from voken.search.hit import Hit
from voken.shapes import Float, Int
from voken_lab.evaluation.machine import Machine
from voken_lab.systems.pictures import SearchSystem


@dataclass(frozen=True)
class Query:
    """A text and all pictures of the pool that are right answers to it.

    `query_id` is a hash of the text, so that two evaluations can tell whether they asked the same queries.
    """

    query_id: str
    text: str
    relevant: frozenset[str]


@dataclass(frozen=True)
class Pool:
    """The pictures that are searched. `vokens` holds their sequences, if there are any, in the order of the ids.

    Raises `EmptyDataError` without pictures, `DataError` if an id occurs twice or the rows do not match the ids.
    """

    image_ids: tuple[str, ...]
    vokens: Int[np.ndarray, "pictures M"] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.image_ids:
            raise EmptyDataError("The pool holds no picture. Check the split's name and the data set's folder.")
        if len(set(self.image_ids)) != len(self.image_ids):
            repeated = next(name for name in self.image_ids if self.image_ids.count(name) > 1)
            raise DataError(f"Picture {repeated!r} is in the pool twice. Give every picture its own id.")
        if self.vokens is not None and (self.vokens.ndim != 2 or len(self.vokens) != len(self.image_ids)):
            raise DataError(
                f"The pool has {len(self.image_ids)} pictures and vokens of shape {self.vokens.shape}; "
                "there must be one row of M vokens per picture."
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def with_vokens(self, vokens: Int[np.ndarray, "pictures M"]) -> Pool:
        """The same pictures with the sequences of a tokenizer."""
        return dataclasses.replace(self, vokens=vokens)


def pool_of(images: Dataset, *, one_per_concept: bool = False, seed: int = 0) -> Pool:
    """A split's pictures as a pool, in their order.

    `one_per_concept` draws one picture of each concept (with `seed`), so that every query has about one right
    answer, as in pools of captioned photographs. The draw does not depend on the order of the pictures.
    """
    if not one_per_concept:
        return Pool(tuple(image.image_id for image in images.images))
    drawn: dict[str, CaptionedImage] = {}
    for image in images.images:
        best = drawn.get(image.concept)
        if best is None or _draw_key(seed, image.image_id) < _draw_key(seed, best.image_id):
            drawn[image.concept] = image
    return Pool(tuple(image.image_id for image in images.images if drawn[image.concept] is image))


def queries_of(images: Dataset, pool: Pool, *, distinct: bool = True) -> tuple[Query, ...]:
    """Every distinct caption of the pool's concepts, with all pictures of the pool that it describes.

    Captions are compared without regard to case and spacing. A caption that several concepts share has the pictures
    of all of them as right answers. A concept's captions are those of all its pictures in `images`, including
    pictures that were not drawn into the pool. Only captions of the data set are queries.

    `distinct=False` asks every caption of every picture in the pool as a query of its own, as published tables on
    Karpathy's splits do (COCO 5K: 25,010 queries). Its right answers are found in the same way: if two pictures have
    one caption, both are right for both queries, because nothing in the text tells them apart.

    Raises `DataError` if the pool holds a picture that `images` does not, `EmptyDataError` without any caption.
    """
    image_of = {image.image_id: image for image in images.images}
    unknown = [image_id for image_id in pool.image_ids if image_id not in image_of]
    if unknown:
        raise DataError(
            f"{len(unknown)} pictures of the pool are not in {images.name!r}, e.g. {unknown[0]!r}. "
            "Make the pool from the same data set."
        )
    pictures: dict[str, set[str]] = {}
    for image_id in pool.image_ids:
        pictures.setdefault(image_of[image_id].concept, set()).add(image_id)
    queries = _distinct_queries(images, pictures)
    if not distinct:
        relevant = {query.query_id: query.relevant for query in queries}
        queries = tuple(
            Query(_query_id(image_id, str(place), caption), caption, relevant[_query_id(_caption_key(caption))])
            for image_id in pool.image_ids
            for place, caption in enumerate(image_of[image_id].captions)
            if caption.strip()
        )
    if not queries:
        raise EmptyDataError(f"No picture of the pool from {images.name!r} has a caption, so there is nothing to ask.")
    return queries


def draw_queries(queries: tuple[Query, ...], limit: int | None, seed: int) -> tuple[Query, ...]:
    """All queries in order, or `limit` of them, drawn by `seed`, if there are more."""
    if limit is None or len(queries) <= limit:
        return queries
    rows = np.random.default_rng(seed).choice(len(queries), limit, replace=False)
    return tuple(queries[row] for row in np.sort(rows))


@dataclass(frozen=True)
class Conditions:
    """What must be reported beside every number: the system, the pool, the protocol and the settings.

    `pool` says how the pool was drawn ("one picture per concept"); rows with different pools or data sets are in
    different tables. `protocol` is transductive if training saw texts generated for the pool's pictures. `readout` is
    the read-out that ranked the pictures ("" if the system has only one). `bytes_per_picture` is what must be stored
    for a picture besides its id, and `memory_bytes` what a caption memory takes beside all pictures. `beams_tried` is
    the validation recall by number of beams, if `beams` was chosen by it. `config` holds all settings of the run, ready
    for JSON.
    """

    system: str
    dataset: str = ""
    pool: str = ""
    protocol: Literal["inductive", "transductive"] = "inductive"
    readout: Literal["", "generate", "voken", "vector"] = ""
    seed: int = 0
    beams: int | None = None
    bytes_per_picture: float | None = None
    memory_bytes: int = 0
    beams_tried: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.protocol not in ("inductive", "transductive"):
            raise ConfigError(f"protocol: {self.protocol!r} is not 'inductive' or 'transductive'.")
        if self.readout not in ("", "generate", "voken", "vector"):
            raise ConfigError(f"readout: {self.readout!r} is not 'generate', 'voken', 'vector' or ''.")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one system over one pool with one seed. Recalls are between 0 and 1.

    `recall[k]` counts pictures, and is the expected value over the orders of ties. `sequence_recall[k]` counts
    sequences, like the official code, and is None without vokens. The results per query, the queries and the answers
    are for paired tests and TREC files.
    """

    conditions: Conditions
    cutoffs: tuple[int, ...]
    recall: dict[int, float]
    reciprocal_rank: float
    """Mean of 1 / rank of the first right picture, which counts as 0 beyond the largest cutoff."""
    sequence_recall: dict[int, float] | None
    collision_rate: float | None
    pool_size: int
    query_count: int
    queries_per_second: float
    machine: Machine
    queries: tuple[Query, ...] = field(repr=False)
    answers: tuple[tuple[Hit, ...], ...] = field(repr=False)
    recall_per_query: dict[int, Float[np.ndarray, " queries"]] = field(repr=False)
    sequence_recall_per_query: dict[int, Float[np.ndarray, " queries"]] | None = field(repr=False)

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Everything a table needs, ready for JSON; cutoffs become text keys.

        `per_query` adds the results of single queries, and for each query a `group`: queries with the same right
        answers have the same group.
        """
        values: dict[str, Any] = {
            **dataclasses.asdict(self.conditions),
            "cutoffs": list(self.cutoffs),
            "recall": _text_keys(self.recall),
            "reciprocal_rank": self.reciprocal_rank,
            "sequence_recall": None if self.sequence_recall is None else _text_keys(self.sequence_recall),
            "collision_rate": self.collision_rate,
            "pool_size": self.pool_size,
            "query_count": self.query_count,
            "queries_per_second": self.queries_per_second,
            "machine": dataclasses.asdict(self.machine),
        }
        if per_query:
            values["per_query"] = {
                "query_id": [query.query_id for query in self.queries],
                "group": [_digest(sorted(query.relevant)) for query in self.queries],
                "recall": {str(k): result.tolist() for k, result in self.recall_per_query.items()},
            }
        return values


def evaluate(
    system: SearchSystem,
    queries: Sequence[Query],
    pool: Pool | Sequence[str],
    *,
    conditions: Conditions,
    cutoffs: Sequence[int] = (1, 5, 10),
    k: int = 50,
    batch_size: int = 256,
    progress: Progress = no_progress,
) -> Evaluation:
    """Ask `system` every query and score its answers.

    Each query is asked for `k` hits. If the last of them ties with the hit at the largest cutoff, or if there are too
    few distinct sequences, the query is asked again for more hits, so that expected recall is exact. Only the first
    search is timed. One query is asked before the clock starts, so that lazy loading is not timed.

    Raises `DataError` if the system breaks its contract (a hit outside the pool, a picture twice, rising or NaN
    scores, vokens that differ from the pool's), or a query has no right answer in the pool.
    """
    pool = pool if isinstance(pool, Pool) else Pool(tuple(pool))
    queries, cutoffs = tuple(queries), tuple(sorted(set(cutoffs)))
    _check_request(queries, pool, cutoffs, k)
    depth = min(k, len(pool))
    sequences = _sequences(pool)
    check = _AnswerCheck(conditions.system, sequences)

    system.search([queries[0].text], depth)
    answers, seconds = _ask(system, queries, depth, batch_size, check, progress)
    while shallow := [row for row, hits in enumerate(answers) if _too_shallow(hits, depth, cutoffs[-1], sequences)]:
        if depth == len(pool):
            break
        depth = min(depth * 4, len(pool))
        deeper, _ = _ask(system, [queries[row] for row in shallow], depth, batch_size, check, no_progress)
        for row, hits in zip(shallow, deeper, strict=True):
            answers[row] = hits

    relevant = [query.relevant for query in queries]
    scores, is_right = ranked_matrices([[(hit.image_id, hit.score) for hit in hits] for hits in answers], relevant)
    best_rank = first_relevant(scores, is_right)
    per_query = {cutoff: recall_at(best_rank, cutoff) for cutoff in cutoffs}
    by_sequence: dict[int, Float[np.ndarray, " queries"]] | None = None
    if pool.vokens is not None:
        ranked = [[sequences[hit.image_id] for hit in hits] for hits in answers]
        right = [{sequences[image_id] for image_id in image_ids} for image_ids in relevant]
        by_sequence = {cutoff: sequence_recall(ranked, right, cutoff) for cutoff in cutoffs}
    return Evaluation(
        conditions=conditions,
        cutoffs=cutoffs,
        recall={cutoff: float(result.mean()) for cutoff, result in per_query.items()},
        reciprocal_rank=float(reciprocal_rank_at(best_rank, cutoffs[-1]).mean()),
        sequence_recall=None if by_sequence is None else {k: float(v.mean()) for k, v in by_sequence.items()},
        collision_rate=None if pool.vokens is None else collision_rate(pool.vokens),
        pool_size=len(pool),
        query_count=len(queries),
        queries_per_second=len(queries) / max(seconds, 1e-9),
        machine=Machine.here(),
        queries=queries,
        answers=tuple(tuple(hits) for hits in answers),
        recall_per_query=per_query,
        sequence_recall_per_query=by_sequence,
    )


@dataclass(frozen=True)
class Spread:
    """Mean and spread over seeds. `std` divides by n − 1 and is None with one seed, which has no spread.

    The keys are "recall@K", "sequence_recall@K", "reciprocal_rank", "collision_rate", "queries_per_second";
    figures that one of the evaluations lacks are left out.
    """

    seeds: tuple[int, ...]
    mean: dict[str, float]
    std: dict[str, float | None]


_MUST_BE_EQUAL = ("system", "dataset", "pool", "protocol", "readout")


def spread(evaluations: Sequence[Evaluation | Mapping[str, Any]]) -> Spread:
    """Summarise evaluations (or their `to_dict`) that differ by seed only.

    Raises `ConfigError` if they differ in system, data set, pool, protocol or read-out, or if a seed occurs twice.
    Beams may differ only if every seed's were chosen on validation.
    """
    records = [e.to_dict() if isinstance(e, Evaluation) else e for e in evaluations]
    if not records:
        raise EmptyDataError("There is no evaluation to summarise.")
    are_beams_chosen = all(record.get("beams_tried") for record in records)
    for name in (*_MUST_BE_EQUAL, *(() if are_beams_chosen else ("beams",))):
        values = {record.get(name) for record in records}
        if len(values) > 1:
            raise ConfigError(
                f"Evaluations with different {name} ({', '.join(sorted(map(repr, values)))}) are never merged. "
                "Summarise each separately."
            )
    seeds = tuple(int(record["seed"]) for record in records)
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"Seeds {seeds}: a seed occurs twice. A spread is over different seeds.")
    figures = [_figures(record) for record in records]
    shared = [name for name in figures[0] if all(name in other for other in figures)]
    table = {name: np.array([row[name] for row in figures]) for name in shared}
    return Spread(
        seeds=seeds,
        mean={name: float(column.mean()) for name, column in table.items()},
        std={name: float(column.std(ddof=1)) if len(column) > 1 else None for name, column in table.items()},
    )


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    values = {f"recall@{k}": float(value) for k, value in record["recall"].items()}
    values |= {f"sequence_recall@{k}": float(value) for k, value in (record.get("sequence_recall") or {}).items()}
    for name in ("reciprocal_rank", "collision_rate", "queries_per_second"):
        if record.get(name) is not None:
            values[name] = float(record[name])
    return values


def _distinct_queries(images: Dataset, pictures: Mapping[str, set[str]]) -> tuple[Query, ...]:
    texts: dict[str, str] = {}
    relevant: dict[str, set[str]] = {}
    for image in images.images:
        if image.concept not in pictures:
            continue
        for caption in image.captions:
            text = " ".join(caption.split())
            if text:
                key = _caption_key(caption)
                texts.setdefault(key, text)
                relevant.setdefault(key, set()).update(pictures[image.concept])
    return tuple(Query(_query_id(key), text, frozenset(relevant[key])) for key, text in texts.items())


def _caption_key(caption: str) -> str:
    return " ".join(caption.split()).casefold()


def _query_id(*parts: str) -> str:
    return f"q{_digest(parts)}"


def _digest(parts: Iterable[str]) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _draw_key(seed: int, image_id: str) -> bytes:
    return blake2b(f"{seed}\0{image_id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _text_keys(values: Mapping[int, float]) -> dict[str, float]:
    return {str(key): value for key, value in values.items()}


def _sequences(pool: Pool) -> dict[str, tuple[int, ...]]:
    """Each picture's sequence; empty tuples if the pool has none."""
    if pool.vokens is None:
        return dict.fromkeys(pool.image_ids, ())
    return {name: tuple(row) for name, row in zip(pool.image_ids, pool.vokens.tolist(), strict=True)}


def _check_request(queries: tuple[Query, ...], pool: Pool, cutoffs: tuple[int, ...], k: int) -> None:
    if not queries:
        raise EmptyDataError("There are no queries to ask.")
    if not cutoffs or cutoffs[0] < 1:
        raise ConfigError(f"cutoffs: {cutoffs} must hold whole numbers of 1 or more.")
    if k < cutoffs[-1]:
        raise ConfigError(f"k: {k} hits per query are too few for R@{cutoffs[-1]}. Ask for at least {cutoffs[-1]}.")
    if len({query.query_id for query in queries}) != len(queries):
        raise DataError("Two queries have the same id. Give every query its own id.")
    members = set(pool.image_ids)
    for query in queries:
        if not query.relevant or not query.relevant <= members:
            missing = sorted(query.relevant - members)
            what = f"right answer {missing[0]!r} outside the pool" if missing else "no right answer"
            raise DataError(f"Query {query.query_id} ({query.text!r}) has {what}. Make the queries from this pool.")


class _AnswerCheck:
    """Checks that a system keeps its contract. Otherwise a broken system would be scored like a weak one."""

    def __init__(self, system: str, sequences: Mapping[str, tuple[int, ...]]) -> None:
        self._system = system
        self._sequences = sequences

    def __call__(self, query: Query, hits: Sequence[Hit], k: int) -> None:
        problem = self._problem(hits, k)
        if problem:
            raise DataError(f"{self._system}, query {query.query_id} ({query.text!r}): {problem}")

    def _problem(self, hits: Sequence[Hit], k: int) -> str:
        if len(hits) > k:
            return f"{len(hits)} hits, but at most {k} were requested."
        seen: set[str] = set()
        last = np.inf
        for hit in hits:
            if hit.image_id not in self._sequences:
                return f"picture {hit.image_id!r} is not in the pool. Search exactly the pool's pictures."
            if hit.image_id in seen:
                return f"picture {hit.image_id!r} is in the answer twice."
            if not hit.score <= last:
                return f"the score {hit.score} of {hit.image_id!r} follows {last}; scores must fall and not be NaN."
            vokens = self._sequences[hit.image_id]
            if vokens and hit.vokens and tuple(hit.vokens) != vokens:
                return f"picture {hit.image_id!r} has vokens {hit.vokens}, and {vokens} in the pool. Use one tokenizer."
            seen.add(hit.image_id)
            last = hit.score
        return ""


def _ask(
    system: SearchSystem, queries: Sequence[Query], k: int, batch_size: int, check: _AnswerCheck, progress: Progress
) -> tuple[list[list[Hit]], float]:
    answers: list[list[Hit]] = []
    seconds = 0.0
    for start in range(0, len(queries), batch_size):
        batch = queries[start : start + batch_size]
        start_time = time.perf_counter()
        batch_answers = system.search([query.text for query in batch], k)
        seconds += time.perf_counter() - start_time
        if len(batch_answers) != len(batch):
            raise DataError(f"The system returned {len(batch_answers)} answers to {len(batch)} queries.")
        for query, hits in zip(batch, batch_answers, strict=True):
            check(query, hits, k)
        answers.extend(list(hits) for hits in batch_answers)
        progress("queries", len(answers), len(queries))
    return answers, seconds


def _too_shallow(hits: Sequence[Hit], depth: int, cutoff: int, sequences: Mapping[str, tuple[int, ...]]) -> bool:
    if len(hits) < depth:
        return False  # the system has no more hits
    tie_cut = len(hits) >= cutoff and hits[-1].score == hits[cutoff - 1].score
    distinct = {sequences[hit.image_id] for hit in hits}
    return tie_cut or (distinct != {()} and len(distinct) < cutoff)
