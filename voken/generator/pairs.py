"""What stage 2 learns from: texts, the voken sequences of their pictures, and nothing of the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voken.shapes import Float, Int


@dataclass(frozen=True)
class SoftTargets:
    """A distribution over codebook entries at each level of each row, the K most probable kept."""

    entries: Int[np.ndarray, "rows M K"]
    weights: Float[np.ndarray, "rows M K"]


@dataclass(frozen=True)
class VokenPairs:
    """Training pairs. Row p of `pairs` says that text `pairs[p, 1]` describes picture `pairs[p, 0]`."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "images M"]
    concepts: Int[np.ndarray, " images"]
    """Pictures of one concept are never negatives of each other's texts."""
    pairs: Int[np.ndarray, "pairs 2"]
    soft: SoftTargets | None = None
    """Soft targets of the pictures; None: one-hot."""
    text_soft: SoftTargets | None = None
    """Soft targets of the texts' own vectors, for text-only training; None: none."""
    text_vectors: Float[np.ndarray, "texts dim"] | None = None
    """With `rebuilt_vectors`, the teacher of list-wise distillation; None: none."""
    rebuilt_vectors: Float[np.ndarray, "images dim"] | None = None

    def draw(self, random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
        """One row for each picture that has a text, with one of its texts, in random order."""
        return one_text_each(self.pairs, random)


def one_text_each(pairs: Int[np.ndarray, "pairs 2"], random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
    """Of rows (picture, text) one for each picture, drawn, in random order."""
    shuffled = pairs[random.permutation(len(pairs))]
    _, first = np.unique(shuffled[:, 0], return_index=True)
    rows: np.ndarray = shuffled[first][random.permutation(len(first))]
    return rows


@dataclass(frozen=True)
class ValidationQueries:
    """What judges the generator while it trains: queries over a pool, with every right answer."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "pool M"]
    relevant: Int[np.ndarray, "answers 2"]
    """Rows (query, picture of the pool)."""
