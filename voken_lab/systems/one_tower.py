"""One-tower systems, which read a text and a picture together, pair by pair. BLIP is one of them in the tables.

A network that reads both at once can compare them in more detail than two vectors allow, but it is expensive: a pair
cannot be scored before the query is known, so every pair costs a forward pass. `OneTower` scores the whole pool,
`Reranked` only the first hits of another system.

A `PairScorer` scores the pairs for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from voken.errors import ConfigError, DataError
from voken.search.hit import Hit
from voken.search.searcher import check_k
from voken.shapes import Float, Int
from voken_lab.systems.pictures import PoolPictures, SearchSystem


class PairScorer(Protocol):
    """Scores how well a text fits pictures of the pool that the scorer is bound to."""

    def score(self, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
        """How well `text` fits the pictures at `rows` of the pool; larger is better."""
        ...


class OneTower:
    """Scores every picture of the pool for every text. Hits of equal score come in the order of the pictures.

    `bytes_per_picture` is what must be stored for a picture besides its id. If None, it is the scorer's number, or None
    if the scorer has none.

    Raises `EmptyDataError` without pictures, `DataError` if lengths differ or an id is there twice.
    """

    def __init__(
        self,
        scorer: PairScorer,
        image_ids: Sequence[str],
        *,
        paths: Sequence[str] | None = None,
        bytes_per_picture: float | None = None,
    ) -> None:
        self._scorer = scorer
        self._pictures = PoolPictures(image_ids, paths)
        self.bytes_per_picture = _bytes_of(scorer) if bytes_per_picture is None else bytes_per_picture

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text the `k` pictures that fit it best (all of them if there are fewer), best first.

        Raises `ConfigError` for `k` under 1, `DataError` if the scorer does not return one number per picture.
        """
        check_k(k)
        return [self._best(text, k) for text in texts]

    def _best(self, text: str, k: int) -> list[Hit]:
        scores = _scores(self._scorer, text, np.arange(len(self._pictures)))
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._pictures.hit(row, float(scores[row])) for row in best]


class Reranked:
    """Sorts another system's first `depth` hits by a scorer's scores. The hits after them keep their order.

    Scores must fall along the whole answer, but the scores of the two systems cannot be compared. Reranked hits
    therefore have the scorer's scores, and the hits after them have their system's scores, all shifted by the same
    number: the first of them is 1 below the last reranked hit. Ties after `depth` stay ties.

    `image_ids` are the pool's ids, in the order of the scorer's rows. `bytes_per_picture` is the sum of the system's
    and the scorer's number, or None if either has none.

    Raises `ConfigError` for `depth` under 1, `EmptyDataError` without pictures, `DataError` if an id is there twice.
    """

    def __init__(self, system: SearchSystem, scorer: PairScorer, image_ids: Sequence[str], *, depth: int) -> None:
        if depth < 1:
            raise ConfigError(f"depth: {depth} hits to rerank; it must be 1 or more.")
        self._system = system
        self._scorer = scorer
        self._row = {image_id: row for row, image_id in enumerate(PoolPictures(image_ids).image_ids)}
        self.depth = depth
        self.bytes_per_picture = _sum_of_bytes(system, scorer)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` hits, best first. Equal scores come in the other system's order.

        Raises `ConfigError` for `k` under 1, `DataError` if the other system returns a picture outside the pool or the
        scorer does not return one number per picture.
        """
        check_k(k)
        answers = self._system.search(texts, max(self.depth, k))
        return [self._reranked(text, hits)[:k] for text, hits in zip(texts, answers, strict=True)]

    def _reranked(self, text: str, hits: list[Hit]) -> list[Hit]:
        head, tail = hits[: self.depth], hits[self.depth :]
        if not head:
            return []
        unknown = [hit.image_id for hit in head if hit.image_id not in self._row]
        if unknown:
            raise DataError(f"Picture {unknown[0]!r} is a hit, but not in the scorer's pool. Search the same pool.")
        scores = _scores(self._scorer, text, np.array([self._row[hit.image_id] for hit in head]))
        best = np.argsort(-scores, kind="stable")
        ranked = [_with_score(head[row], float(scores[row])) for row in best]
        if tail:
            shift = tail[0].score - (ranked[-1].score - 1.0)
            ranked += [_with_score(hit, hit.score - shift) for hit in tail]
        return ranked


def _with_score(hit: Hit, score: float) -> Hit:
    return Hit(hit.image_id, hit.path, score, hit.vokens)


def _scores(scorer: PairScorer, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
    scores = np.asarray(scorer.score(text, rows), dtype=np.float64)
    if scores.shape != rows.shape:
        raise DataError(
            f"The scorer returned scores of shape {scores.shape}, not one for each of {len(rows)} pictures."
        )
    if not np.isfinite(scores).all():
        row = int(rows[np.flatnonzero(~np.isfinite(scores))[0]])
        raise DataError(f"The scorer returned a score that is not finite for {text!r} and the picture at row {row}.")
    return scores


def _bytes_of(scorer_or_system: object) -> float | None:
    value = getattr(scorer_or_system, "bytes_per_picture", None)
    return None if value is None else float(value)


def _sum_of_bytes(system: object, scorer: object) -> float | None:
    parts = (_bytes_of(system), _bytes_of(scorer))
    return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
