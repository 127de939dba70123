"""Pairs of pictures by how much of their voken sequences they share, as in the paper's Figure 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voken.metrics import shared_vokens
from voken.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Pair:
    """Two pictures, by row: the cosine of their vectors, and the number of equal vokens that both begin with."""

    first: int
    second: int
    shared: int
    cosine: float


@dataclass(frozen=True)
class PairGroups:
    """Pairs of pictures, grouped by what their sequences share. A group is empty if there is no such pair."""

    nothing: tuple[Pair, ...]
    """No voken is equal at any level; the pairs with the most distant vectors."""
    first_only: tuple[Pair, ...]
    """The first voken is equal, the second is not; the pairs with the nearest vectors."""
    all_but_last: tuple[Pair, ...]
    """The longest start that two different sequences share: all but the last voken if there is such a pair."""
    same: tuple[Pair, ...]
    """Equal sequences."""


def find_pairs(
    vokens: Int[np.ndarray, "pictures M"],
    vectors: Float[np.ndarray, "pictures dim"],
    families: Sequence[str],
    *,
    count: int = 3,
) -> PairGroups:
    """At most `count` pairs per group, no picture twice in a group; pairs of two families come first.

    Compares every pair, so it is meant for a few thousand pictures.
    """
    size, levels = vokens.shape
    numbers = {family: number for number, family in enumerate(dict.fromkeys(families))}
    family = np.array([numbers[name] for name in families])
    cosine = (vectors.astype(np.float32) @ vectors.astype(np.float32).T).astype(np.float64)
    equal_levels, shared = shared_vokens(vokens)
    upper = np.triu(np.ones((size, size), dtype=bool), 1)
    other_family = family[:, None] != family[None, :]
    longest = int(shared[upper & (shared < levels)].max(initial=0))

    def pick(members: Bool[np.ndarray, "pictures pictures"], nearest: bool) -> tuple[Pair, ...]:
        rows, columns = np.nonzero(members & upper)
        score = cosine[rows, columns] if nearest else -cosine[rows, columns]
        order = np.lexsort((columns, rows, -score, ~other_family[rows, columns]))
        used: set[int] = set()
        pairs: list[Pair] = []
        for first, second in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
            if len(pairs) == count:
                break
            if first not in used and second not in used:
                used |= {first, second}
                pairs.append(Pair(first, second, int(shared[first, second]), float(cosine[first, second])))
        return tuple(pairs)

    return PairGroups(
        nothing=pick(equal_levels == 0, nearest=False),
        first_only=pick(shared == 1, nearest=True) if levels > 1 else (),
        all_but_last=pick(shared == longest, nearest=True) if longest > 1 else (),
        same=pick(shared == levels, nearest=True),
    )
