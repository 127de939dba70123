"""Recall of pictures, with ties; recall of sequences; collisions. Numbers in, numbers out.

A query counts at K when at least one of its right pictures is among the first K: R@K as text-to-image
papers report it. With several right pictures this is what TREC tools call Success@K, not their R@K.

Where pictures tie across the cut, their order is anyone's guess, and the value here is the expected one
over all orders of the tie. Only the best right picture matters: with s pictures above its tie, n pictures
in the tie and r of them right, the first K hold min(max(K − s, 0), n) = m of the tie, and
P(at least one is right) = 1 − C(n − r, m) / C(n, m).

This module does not know what a picture, a query or a system is.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from voken.errors import ConfigError, DataError
from voken.shapes import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class FirstRelevant:
    """Where the best right picture of each query stands, all that recall with ties depends on.

    `above` counts the pictures scored higher, `tied` those with the same score (itself included),
    `relevant` how many of the tied are right. All three are 0 where no right picture was returned.
    """

    above: Int[np.ndarray, " queries"]
    tied: Int[np.ndarray, " queries"]
    relevant: Int[np.ndarray, " queries"]


def first_relevant(
    scores: Float[np.ndarray, "queries pictures"], relevant: Bool[np.ndarray, "queries pictures"]
) -> FirstRelevant:
    """Find each query's best right picture. A score of −inf means "not returned".

    >>> found = first_relevant(np.array([[3.0, 2.0, 2.0, 2.0]]), np.array([[False, True, False, True]]))
    >>> int(found.above[0]), int(found.tied[0]), int(found.relevant[0])
    (1, 3, 2)

    Raises `DataError` where the shapes differ or a score is NaN.
    """
    if scores.shape != relevant.shape or scores.ndim != 2:
        raise DataError(f"Scores {scores.shape} and relevance {relevant.shape} must be one (queries, pictures) shape.")
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


def recall_at(found: FirstRelevant, k: int) -> Float[np.ndarray, " queries"]:
    """Expected value, over random order of ties, of "a right picture is in the first `k`", for each query.

    Raises `ConfigError` for `k` under 1.
    """
    if k < 1:
        raise ConfigError(f"A cutoff of {k}: R@K needs K of 1 or more.")
    drawn = np.clip(k - found.above, 0, found.tied)
    missed = np.ones(len(drawn))
    for draw in range(int(drawn.max(initial=0))):
        # Drawing without replacement: each wrong picture drawn leaves one fewer of both.
        wrong = np.maximum(found.tied - found.relevant - draw, 0)
        missed = np.where(draw < drawn, missed * wrong / np.maximum(found.tied - draw, 1), missed)
    return 1.0 - missed


def reciprocal_rank_at(found: FirstRelevant, k: int) -> Float[np.ndarray, " queries"]:
    """Expected 1 / rank of the first right picture, for each query; 0 where it is not in the first `k`.

    E[1/rank] = Σ_{j ≤ k} (R@j − R@(j−1)) / j, as R@j is the chance that the first right picture is at j or before.
    """
    value = np.zeros(len(found.above))
    before = np.zeros(len(found.above))
    for rank in range(1, k + 1):
        until = recall_at(found, rank)
        value += (until - before) / rank
        before = until
    return value


def expected_recall(
    scores: Float[np.ndarray, "queries pictures"], relevant: Bool[np.ndarray, "queries pictures"], k: int
) -> Float[np.ndarray, " queries"]:
    """R@`k` of each query, expected over random order of tied pictures; −inf means "not returned".

    >>> expected_recall(np.array([[2.0, 2.0, 1.0]]), np.array([[True, False, False]]), 1).tolist()
    [0.5]
    """
    return recall_at(first_relevant(scores, relevant), k)


def ranked_matrices(
    answers: Sequence[Sequence[tuple[Hashable, float]]], relevant: Sequence[Set[Hashable]]
) -> tuple[Float[np.ndarray, "queries depth"], Bool[np.ndarray, "queries depth"]]:
    """Scores and relevance of ranked (id, score) lists of unequal lengths, padded with −inf and False.

    Right pictures that a list does not hold are simply absent, which is what "counts 0" means.
    """
    if len(answers) != len(relevant):
        raise DataError(f"{len(answers)} answers for {len(relevant)} queries.")
    depth = max((len(answer) for answer in answers), default=0)
    scores = np.full((len(answers), depth), -np.inf)
    right = np.zeros((len(answers), depth), dtype=bool)
    for row, (answer, wanted) in enumerate(zip(answers, relevant, strict=True)):
        scores[row, : len(answer)] = [score for _, score in answer]
        right[row, : len(answer)] = [name in wanted for name, _ in answer]
    return scores, right


def sequence_recall(
    ranked: Sequence[Sequence[Hashable]], relevant: Sequence[Set[Hashable]], k: int
) -> Float[np.ndarray, " queries"]:
    """Whether a right picture's sequence is among the first `k` *distinct* sequences, for each query.

    This is the figure the official code of the paper calls recall: pictures that share a sequence count as
    one, so it is at or above the recall of pictures wherever no two sequences tie. `ranked` lists the sequence of
    each answered picture, in order and with repeats; `relevant` holds the sequences of the right pictures.
    """
    if k < 1:
        raise ConfigError(f"A cutoff of {k}: R@K needs K of 1 or more.")
    if len(ranked) != len(relevant):
        raise DataError(f"{len(ranked)} answers for {len(relevant)} queries.")
    return np.array(
        [
            float(any(sequence in wanted for sequence in list(dict.fromkeys(answer))[:k]))
            for answer, wanted in zip(ranked, relevant, strict=True)
        ],
        dtype=np.float64,
    )


def collision_rate(vokens: Int[np.ndarray, "pictures M"]) -> float:
    """Share of pictures whose sequence is not theirs alone.

    >>> collision_rate(np.array([[1, 2], [1, 2], [3, 4], [1, 3]]))
    0.5
    """
    if vokens.ndim != 2 or not len(vokens):
        raise DataError(f"Collisions are counted over vokens of shape (pictures, M), not {vokens.shape}.")
    _, counts = np.unique(vokens, axis=0, return_counts=True)
    return float(counts[counts > 1].sum() / len(vokens))
