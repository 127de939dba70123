"""Pairs of pictures by how much of their voken sequences they share, as in the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voken.metrics import shared_vokens
from voken.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Pair:
    """Two pictures, by row; `cosine` is that of their vectors, `shared` how many vokens they begin with alike."""

    first: int
    second: int
    shared: int
    cosine: float


@dataclass(frozen=True)
class PairGroups:
    """The pairs to look at. A group is empty where there is no such pair."""

    nothing: tuple[Pair, ...]
    """No voken alike at any level; the farthest by their vectors."""
    first_only: tuple[Pair, ...]
    """The first voken alike, the second not; the nearest by their vectors."""
    all_but_last: tuple[Pair, ...]
    """The longest beginning that two different sequences share (all but the last voken where there is such a pair)."""
    same: tuple[Pair, ...]
    """One sequence."""


def find_pairs(
    vokens: Int[np.ndarray, "pictures M"],
    vectors: Float[np.ndarray, "pictures dim"],
    families: Sequence[str],
    *,
    count: int = 3,
) -> PairGroups:
    """At most `count` pairs a group, no picture twice in a group, pairs of two families before those of one.

    Compares every pair: meant for some thousands of pictures.
    """
    size, levels = vokens.shape
    numbers = {family: number for number, family in enumerate(dict.fromkeys(families))}
    family = np.array([numbers[name] for name in families])
    cosine = (vectors.astype(np.float32) @ vectors.astype(np.float32).T).astype(np.float64)
    alike, shared = shared_vokens(vokens)
    upper = np.triu(np.ones((size, size), dtype=bool), 1)
    apart = family[:, None] != family[None, :]
    longest = int(shared[upper & (shared < levels)].max(initial=0))

    def pick(members: Bool[np.ndarray, "pictures pictures"], nearest: bool) -> tuple[Pair, ...]:
        rows, columns = np.nonzero(members & upper)
        score = cosine[rows, columns] if nearest else -cosine[rows, columns]
        order = np.lexsort((columns, rows, -score, ~apart[rows, columns]))
        taken: set[int] = set()
        pairs: list[Pair] = []
        for place in order.tolist():
            one, other = int(rows[place]), int(columns[place])
            if one in taken or other in taken:
                continue
            taken |= {one, other}
            pairs.append(Pair(one, other, int(shared[one, other]), float(cosine[one, other])))
            if len(pairs) == count:
                break
        return tuple(pairs)

    return PairGroups(
        nothing=pick(alike == 0, nearest=False),
        first_only=pick(shared == 1, nearest=True) if levels > 1 else (),
        all_but_last=pick(shared == longest, nearest=True) if longest > 1 else (),
        same=pick(shared == levels, nearest=True),
    )
