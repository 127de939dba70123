"""Recall of pictures and of sequences, and collisions. Training and evaluation use the same functions.

R@K is the share of queries with at least one right picture among the first K hits, as text-to-image papers report it.
TREC tools call this figure Success@K; if a query has several right pictures, their R@K is another figure.

Pictures with equal scores may come in any order, so recall is the expected value over all their orders. It depends only
on the best right picture. If s pictures score higher than it, and n pictures (r of them right) have its score, then
m = min(max(K − s, 0), n) of these n are among the first K, and P(at least one is right) = 1 − C(n − r, m) / C(n, m).

This module does not know what a picture, a query or a system is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from voken.errors import ConfigError, DataError
from voken.shapes import Bool, Float, Int

_QUERIES_PER_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class FirstRelevant:
    """The rank of each query's best right picture, which is all that recall depends on.

    `above` counts the pictures with a higher score, `tied` those with the same score (itself included), and
    `relevant` the right pictures among `tied`. All three are 0 if no right picture was returned.
    """

    above: Int[np.ndarray, " queries"]
    tied: Int[np.ndarray, " queries"]
    relevant: Int[np.ndarray, " queries"]


def first_relevant(
    scores: Float[np.ndarray, "queries pictures"], relevant: Bool[np.ndarray, "queries pictures"]
) -> FirstRelevant:
    """The rank of each query's best right picture. A score of −inf means "not returned".

    >>> first = first_relevant(np.array([[3.0, 2.0, 2.0, 2.0]]), np.array([[False, True, False, True]]))
    >>> int(first.above[0]), int(first.tied[0]), int(first.relevant[0])
    (1, 3, 2)

    Raises `DataError` if the shapes differ or a score is NaN.
    """
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise DataError(
            f"Scores of shape {scores.shape} and relevance of shape {relevant.shape}: both must be (queries, pictures)."
        )
    if np.isnan(scores).any():
        query, picture = np.argwhere(np.isnan(scores))[0]
        raise DataError(f"The score of query {query}, picture {picture} is NaN, which has no rank.")
    best = np.where(relevant, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    returned = best[:, 0] > -np.inf
    equal = scores == best
    return FirstRelevant(
        above=(scores > best).sum(axis=1) * returned,
        tied=equal.sum(axis=1) * returned,
        relevant=(equal & relevant).sum(axis=1) * returned,
    )


def first_relevant_by_product(
    queries: Float[np.ndarray, "queries dim"],
    pool: Float[np.ndarray, "pictures dim"],
    answers: Int[np.ndarray, "answers 2"],
) -> FirstRelevant:
    """`first_relevant` for an exact search of `pool` by inner product. Rows of `answers` are (query, right picture)."""
    parts = [FirstRelevant(*np.zeros((3, 0), np.int64))]
    for start in range(0, len(queries), _QUERIES_PER_BLOCK):
        scores = queries[start : start + _QUERIES_PER_BLOCK] @ pool.T
        row = answers[:, 0] - start
        inside = (row >= 0) & (row < len(scores))
        relevant = np.zeros(scores.shape, bool)
        relevant[row[inside], answers[inside, 1]] = True
        parts.append(first_relevant(scores, relevant))
    return FirstRelevant(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("above", "tied", "relevant"))
    )


def mean_recall(first: FirstRelevant) -> float:
    """Mean of R@1, R@5 and R@10, by which training chooses epochs and rerank weights. NaN if there are no queries."""
    return float(np.mean([recall_at(first, k).mean() for k in (1, 5, 10)]))


def recall_at(first: FirstRelevant, k: int) -> Float[np.ndarray, " queries"]:
    """Probability per query that a right picture is among the first `k`, over random orders of ties.

    >>> recall_at(first_relevant(np.array([[2.0, 2.0, 1.0]]), np.array([[True, False, False]])), 1).tolist()
    [0.5]

    Raises `ConfigError` for `k` under 1.
    """
    if k < 1:
        raise ConfigError(f"A cutoff of {k}: R@K needs K of 1 or more.")
    places = np.clip(k - first.above, 0, first.tied)
    missed = np.ones(len(places))
    for draw in range(int(places.max(initial=0))):
        # Pictures are drawn without replacement: after each wrong picture, one fewer wrong and tied picture is left.
        wrong = np.maximum(first.tied - first.relevant - draw, 0)
        missed = np.where(draw < places, missed * wrong / np.maximum(first.tied - draw, 1), missed)
    return 1.0 - missed


def reciprocal_rank_at(first: FirstRelevant, k: int) -> Float[np.ndarray, " queries"]:
    """Expected 1 / rank of the first right picture per query; 0 if it is not among the first `k`.

    E[1/rank] = Σ_{j ≤ k} (R@j − R@(j−1)) / j, as R@j is the probability that the first right picture is at j or before.
    """
    value = np.zeros(len(first.above))
    before = np.zeros(len(first.above))
    for rank in range(1, k + 1):
        until = recall_at(first, rank)
        value += (until - before) / rank
        before = until
    return value


def ranked_matrices(
    answers: Sequence[Sequence[tuple[Hashable, float]]], relevant: Sequence[Set[Hashable]]
) -> tuple[Float[np.ndarray, "queries depth"], Bool[np.ndarray, "queries depth"]]:
    """Scores and relevance of ranked (id, score) lists of unequal lengths, padded with −inf and False.

    A right picture that is not in a list counts as not returned.
    """
    if len(answers) != len(relevant):
        raise DataError(f"{len(answers)} answers for {len(relevant)} queries.")
    depth = max((len(answer) for answer in answers), default=0)
    scores = np.full((len(answers), depth), -np.inf)
    right = np.zeros((len(answers), depth), dtype=bool)
    for row, (answer, right_ids) in enumerate(zip(answers, relevant, strict=True)):
        scores[row, : len(answer)] = [score for _, score in answer]
        right[row, : len(answer)] = [image_id in right_ids for image_id, _ in answer]
    return scores, right


def sequence_recall(
    ranked: Sequence[Sequence[Hashable]], relevant: Sequence[Set[Hashable]], k: int
) -> Float[np.ndarray, " queries"]:
    """Whether a right picture's sequence is among the first `k` *distinct* sequences, per query.

    The paper's official code calls this figure recall. Pictures that share a sequence count as one, so the figure is
    never below the recall of pictures unless two sequences tie. `ranked` lists the sequences of each query's hits, in
    order and with repeats; `relevant` holds the sequences of its right pictures.
    """
    if k < 1:
        raise ConfigError(f"A cutoff of {k}: R@K needs K of 1 or more.")
    if len(ranked) != len(relevant):
        raise DataError(f"{len(ranked)} answers for {len(relevant)} queries.")
    return np.array(
        [
            float(any(sequence in right for sequence in list(dict.fromkeys(answer))[:k]))
            for answer, right in zip(ranked, relevant, strict=True)
        ],
        dtype=np.float64,
    )


def collision_rate(vokens: Int[np.ndarray, "pictures M"]) -> float:
    """Share of the pictures that share their sequence with another picture.

    >>> collision_rate(np.array([[1, 2], [1, 2], [3, 4], [1, 3]]))
    0.5
    """
    if vokens.ndim != 2 or not len(vokens):
        raise DataError(f"vokens must have the shape (pictures, M) with 1 picture or more, not {vokens.shape}.")
    _, counts = np.unique(vokens, axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(vokens))


def shared_vokens(
    vokens: Int[np.ndarray, "pictures M"],
) -> tuple[Int[np.ndarray, "pictures pictures"], Int[np.ndarray, "pictures pictures"]]:
    """For every pair of pictures, the number of levels with equal vokens, and the length of the common prefix.

    The pairs of the paper's Figure 5 are chosen by these numbers. Memory grows with the square of the number of
    pictures: use this function for a few thousand.
    """
    size, levels = vokens.shape
    equal_levels = np.zeros((size, size), dtype=np.int16)
    prefix_length = np.zeros((size, size), dtype=np.int16)
    is_prefix = np.ones((size, size), dtype=bool)
    for level in range(levels):
        equal = vokens[:, level, None] == vokens[None, :, level]
        equal_levels += equal
        is_prefix &= equal
        prefix_length += is_prefix
    return equal_levels, prefix_length
