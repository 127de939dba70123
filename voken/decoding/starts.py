"""Where the children of each parent start, when parents and children are numbered in the same order.

    children   0 1 2 | 3 | 4 5      starts  0, 3, 4 (, 6)      bits  1 0 0 1 1 0 (1)

Few parents with many children: the starts as numbers. About as many parents as children, as at the deeper levels of
a trie and between its leaves and its pictures: a bit a child, set where a parent's first child is, and how many bits
are set before each word of 64: 1.5 bits a child where numbers take 32 a parent (Jacobson, FOCS 1989: rank and select).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from voken.shapes import Bool, Int32, Int64, UInt32, UInt64

_AT_ONCE = 1 << 16
"""Starts looked up in one go: a word each is unpacked, 4 MB."""
_WORD = np.dtype("<u8")
_ONES = np.uint64(2**64 - 1)


class Starts(Protocol):
    """The children of parent p are start(p) … start(p + 1) - 1; every parent has one at least.

    Only the root of an empty trie has none.
    """

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """First child of each; for the number of parents, one past the last, the number of children."""
        ...

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """First child of each, and the one after its last. Numbers that are no parent give nonsense or IndexError."""
        ...

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """Whose children these are; for the number of children, one past the last, the number of parents."""
        ...

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """All starts as numbers, and the number of children at the end."""
        ...

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """What is stored, by name."""
        ...


def starts_of(is_first: Bool[np.ndarray, " children"]) -> Starts:
    """From whether each child is its parent's first, in the form that takes fewer bytes."""
    bits = BitStarts.of(is_first)
    numbers = 4 * (int(np.count_nonzero(is_first)) + 1)
    if numbers > sum(array.nbytes for array in bits.arrays.values()):
        return bits
    return NumberStarts(np.append(np.flatnonzero(is_first), len(is_first)).astype(np.int32))


def stored_starts(arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], name: str) -> Starts:
    """From what `arrays` of one gave, under `name.`. Raises `KeyError` where it is not there."""
    if f"{name}.starts" in arrays:
        return NumberStarts(arrays[f"{name}.starts"])
    return BitStarts(arrays[f"{name}.words"], arrays[f"{name}.before"])


@dataclass(frozen=True, eq=False)
class NumberStarts:
    """Starts as numbers."""

    starts: Int32[np.ndarray, " parents+1"]

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `Starts`."""
        found: np.ndarray = self.starts[parents].astype(np.int64)
        return found

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """See `Starts`."""
        return self.firsts(parents), self.firsts(parents + 1)

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `Starts`."""
        # of one type, or numpy would convert all the starts
        found: np.ndarray = np.searchsorted(self.starts, children.astype(np.int32), side="right") - 1
        return found

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `Starts`."""
        return self.starts

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `Starts`."""
        return {"starts": self.starts}


@dataclass(frozen=True, eq=False)
class BitStarts:
    """Starts as bits. Behind the last child stands one more bit that is set."""

    words: UInt64[np.ndarray, " words"]
    before: UInt32[np.ndarray, " words"]
    """How many bits are set in the words before."""

    @classmethod
    def of(cls, is_first: Bool[np.ndarray, " children"]) -> Self:
        """From whether each child is its parent's first."""
        packed = np.packbits(np.append(is_first, True), bitorder="little")
        words = np.zeros(-(-len(packed) // 8), dtype=_WORD)
        words.view(np.uint8)[: len(packed)] = packed
        before = np.zeros(len(words), dtype=np.uint32)
        np.cumsum(np.bitwise_count(words[:-1]), out=before[1:])
        return cls(words, before)

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `Starts`."""
        if len(parents) > _AT_ONCE:
            return np.concatenate([self.firsts(parents[at : at + _AT_ONCE]) for at in range(0, len(parents), _AT_ONCE)])
        # of one type, or numpy would convert all of `before`
        place = self.before.searchsorted(parents.astype(np.uint32), "right") - 1
        set_bits = np.unpackbits(self.words[place].view(np.uint8), bitorder="little").view(bool).nonzero()[0]
        first = set_bits.searchsorted(np.arange(0, 64 * len(place), 64))
        nth = parents - self.before[place] + first
        found: np.ndarray = (place << 6) + (set_bits[nth] & 63)
        return found

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """See `Starts`."""
        bounds = self.firsts(np.concatenate([parents, parents + 1]))
        return bounds[: len(parents)], bounds[len(parents) :]

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `Starts`."""
        word = children >> 6
        up_to = self.words[word] & (_ONES >> (63 - (children & 63)).astype(np.uint64))
        found: np.ndarray = self.before[word] + np.bitwise_count(up_to).astype(np.int64) - 1
        return found

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `Starts`."""
        return np.flatnonzero(np.unpackbits(self.words.view(np.uint8), bitorder="little")).astype(np.int32)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `Starts`."""
        return {"words": self.words, "before": self.before}
