"""The one-tower system: a text and a picture read together, pair by pair. BLIP's row in the tables.

What reads both at once knows more of how they fit than two vectors do, and pays for it: nothing of a query is
known of a picture before it is asked, so every pair costs a pass. `OneTower` scores the whole pool,
`Reranked` only what another system found first.

Neither knows how a pair is scored: that is a `PairScorer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from voken.errors import ConfigError, DataError
from voken.search.hit import Hit
from voken.shapes import Float, Int
from voken_lab.systems.two_tower import check_ids


class PairScorer(Protocol):
    """Match scores of a text with pictures of the pool that the scorer is bound to."""

    def score(self, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
        """How well `text` fits the pictures that stand at `rows` of the pool; the larger, the better."""
        ...


class SearchSystem(Protocol):
    """Anything that answers texts with ranked pictures (see `voken_lab.evaluation.protocol`)."""

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` hits, by falling score, none twice."""
        ...


class OneTower:
    """Every picture of the pool scored for every text. Hits of equal score come in the order of the pictures.

    `bytes_per_picture` is what must be stored for a picture beside its id, where the caller knows it: a one-tower
    system keeps what its scorer reads of a picture.

    Raises `EmptyDataError` without pictures, `DataError` where lengths differ or an id stands twice.
    """

    def __init__(
        self,
        scorer: PairScorer,
        image_ids: Sequence[str],
        *,
        paths: Sequence[str] | None = None,
        bytes_per_picture: float | None = None,
    ) -> None:
        check_ids(image_ids)
        if paths is not None and len(paths) != len(image_ids):
            raise DataError(f"{len(image_ids)} picture ids and {len(paths)} paths: there must be one a picture.")
        self._scorer = scorer
        self._image_ids = tuple(image_ids)
        self._paths = ("",) * len(image_ids) if paths is None else tuple(map(str, paths))
        self.bytes_per_picture = _bytes_of(scorer) if bytes_per_picture is None else bytes_per_picture

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text the `k` pictures that fit it best (all of them where there are fewer), best first.

        Raises `ConfigError` for `k` under 1, `DataError` where the scorer's answer is not one number a picture.
        """
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        return [self._best(text, k) for text in texts]

    def _best(self, text: str, k: int) -> list[Hit]:
        scores = _scores(self._scorer, text, np.arange(len(self._image_ids)))
        best = np.argsort(-scores, kind="stable")[:k]
        return [Hit(self._image_ids[row], self._paths[row], float(scores[row])) for row in best]


class Reranked:
    """Another system's first `depth` hits, put in a scorer's order; the hits behind them stay as they are.

    Scores must fall along the whole answer, and the two systems' scores do not compare. Those of the reranked hits
    are the scorer's; a hit behind them gets its own system's score, moved by one number for all, so that the first
    of them lies 1 below the last reranked hit. What was tied behind `depth` stays tied.

    `image_ids` are the pool's, in the order of the scorer's rows. `bytes_per_picture` is the sum of what system and
    scorer say, None where one of them does not.

    Raises `ConfigError` for `depth` under 1, `EmptyDataError` without pictures, `DataError` where an id stands twice.
    """

    def __init__(self, system: SearchSystem, scorer: PairScorer, image_ids: Sequence[str], *, depth: int) -> None:
        if depth < 1:
            raise ConfigError(f"depth: {depth} hits to rerank; rerank 1 or more.")
        check_ids(image_ids)
        self._system = system
        self._scorer = scorer
        self._row = {name: row for row, name in enumerate(image_ids)}
        self.depth = depth
        self.bytes_per_picture = _sum_of_bytes(system, scorer)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` hits, best first. Equal scores come in the other system's order.

        Raises `ConfigError` for `k` under 1, `DataError` where the other system finds a picture outside the pool or
        the scorer's answer is not one number a picture.
        """
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        found = self._system.search(texts, max(self.depth, k))
        return [self._reranked(text, hits)[:k] for text, hits in zip(texts, found, strict=True)]

    def _reranked(self, text: str, hits: list[Hit]) -> list[Hit]:
        head, tail = hits[: self.depth], hits[self.depth :]
        if not head:
            return []
        unknown = [hit.image_id for hit in head if hit.image_id not in self._row]
        if unknown:
            raise DataError(f"Picture {unknown[0]!r} was found, but is not in the scorer's pool. Search the same pool.")
        scores = _scores(self._scorer, text, np.array([self._row[hit.image_id] for hit in head]))
        best = np.argsort(-scores, kind="stable")
        ranked = [_with_score(head[row], float(scores[row])) for row in best]
        if tail:
            drop = tail[0].score - (ranked[-1].score - 1.0)
            ranked += [_with_score(hit, hit.score - drop) for hit in tail]
        return ranked


def _with_score(hit: Hit, score: float) -> Hit:
    return Hit(hit.image_id, hit.path, score, hit.vokens)


def _scores(scorer: PairScorer, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
    scores = np.asarray(scorer.score(text, rows), dtype=np.float64)
    if scores.shape != rows.shape:
        raise DataError(f"The scorer gave scores of shape {scores.shape} for {len(rows)} pictures: one each is needed.")
    if not np.isfinite(scores).all():
        bad = int(rows[np.flatnonzero(~np.isfinite(scores))[0]])
        raise DataError(f"The scorer gave a score that is not finite for {text!r} and the picture at row {bad}.")
    return scores


def _bytes_of(holder: object) -> float | None:
    """`bytes_per_picture` of a scorer or system that says it."""
    known = getattr(holder, "bytes_per_picture", None)
    return None if known is None else float(known)


def _sum_of_bytes(system: object, scorer: object) -> float | None:
    parts = (_bytes_of(system), _bytes_of(scorer))
    return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
