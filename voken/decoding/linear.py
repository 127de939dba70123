"""Exact search for a linear model: one whose logits do not depend on the vokens before.

A query is then a table, and the score of a sequence a sum over levels:

    score(leaf) = Σ table[level, voken] + bias(leaf)

A scan computes the sum for every leaf, with one lookup per code. A code stands for one level or, if a codebook is
small, for a few levels at once. A bound on the levels that are left (the sum of their maxima) would exclude nearly
nothing: with codebooks of residual k-means, 80 to 99 of 100 leaves are still possible after half of sixteen levels.

A scan excludes the leaves that cannot be among the best; the others are scored in float64. So the result is exact, ties
included, up to the last rounding to float32. There are two scans:

- `_scan.c`, where it is compiled. Entries become bytes, rounded so that a sum of bytes is a bound of a score, and one
  instruction looks up 64 codes (as in faiss's fast scan; André et al., VLDB 2015, "Cache locality is not enough").
- numpy, where it is not. It sums in float32, numbers below 0, so that their relative error is bounded. Up to four
  queries share a scan, because numpy copies four adjacent float32 as fast as it copies two.

This module knows neither text nor pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from voken.decoding.interface import DIVERGED, IMPOSSIBLE
from voken.decoding.merged_trie import inserted_leaves, merged_leaf_values
from voken.decoding.node_bias import NodeBias, sequence_prior, squared_lengths
from voken.decoding.trie import VokenTrie
from voken.errors import VokenError
from voken.shapes import Float32, Int, Int64, Integer, UInt, UInt8

try:
    from voken.decoding import _scan
except ImportError:  # it was not compiled when voken was installed
    _scan = None  # type: ignore[assignment]

MOST_LEAVES = 1 << 21
"""Leaves of the largest trie that is scanned. Beyond it a beam search over the table is faster, and not exact."""
MOST_LEAVES_ONCE = 1 << 14
"""The same for a process that answers a single query: preparing the leaves must not take longer than the search."""
_QUERIES_AT_ONCE = 4
_LEAVES_AT_ONCE = 1 << 16
"""Leaves that are summed at once, so that lookups of a code stay in the processor's cache."""
_MOST_CODES = 1 << 16 if _scan is None else 1 << 8
"""Largest table of a code that stands for more than one level: 256 KB of float32 per query, or what a byte holds."""
_MOST_STEPS = 255
"""What a byte holds."""
_MOST_CODE = (1 << 16) - 1
"""The greatest code that `_scan` reads."""
_ENTRIES_AT_ONCE = 1 << 22
"""Entries of all queries' tables that are held at once: 32 MB of float64."""
_GROUPED = 16
"""Leaves per group; only the best of a group is compared at first."""
_VECTORS_AT_ONCE = 1 << 12
"""Leaves whose vectors are summed at once."""
_LEAVES_PER_PRODUCT = 10
"""The squared lengths of so many leaves cost about as much as all inner products of the entries of a level with those
of the levels before."""
_MOST_PRODUCTS = 1 << 25
"""Twice the most inner products that are held: 64 MB."""
_ROUNDING = 2.0**-24
"""Largest relative error of a rounded float32."""
_LOWEST = np.finfo(np.float32).min


@dataclass(frozen=True, eq=False)
class LeafCodes:
    """The sequences of all leaves of a trie, with the vokens of a few levels in one code."""

    codebook_size: int
    levels: int
    levels_per_code: int
    codes: tuple[UInt[np.ndarray, " leaves"], ...]
    """For each run of `levels_per_code` levels: the vokens as digits of a number, the first level's highest."""

    @classmethod
    def of(cls, trie: VokenTrie) -> LeafCodes:
        """The codes of `trie`, unpacked once for as long as it lives: M bytes per leaf if N is 256."""
        codes = _CODES.get(trie)
        if codes is None:
            codes = _CODES[trie] = cls._unpack(trie) if trie.base is None else cls._merge(trie, cls.of(trie.base))
        return codes

    @classmethod
    def _merge(cls, trie: VokenTrie, base: LeafCodes) -> LeafCodes:
        """The codes of a merged trie. Only the sequences that its base does not have are read from the trie."""
        inserted = trie.leaf_vokens(inserted_leaves(trie))
        codes = tuple(
            merged_leaf_values(trie, column, _numbers(inserted[:, at : at + base.levels_per_code], base.codebook_size))
            for at, column in zip(range(0, base.levels, base.levels_per_code), base.codes, strict=True)
        )
        return cls(base.codebook_size, base.levels, base.levels_per_code, codes)

    @classmethod
    def _unpack(cls, trie: VokenTrie) -> LeafCodes:
        size, levels, leaves = trie.codebook_size, trie.levels, trie.sequences
        per_code = 1
        while per_code < levels and size ** (per_code + 1) <= min(_MOST_CODES, 2 * leaves):
            per_code += 1
        smallest = np.min_scalar_type(size**per_code - 1)
        codes = [np.zeros(leaves, dtype=smallest) for _ in range(-(-levels // per_code))]
        nodes: np.ndarray | None = None  # those of the leaves, if they are not the leaves themselves
        for level in range(levels - 1, -1, -1):
            column = np.asarray(trie.vokens[level])
            trie.check_vokens(column)
            column = (column if nodes is None else column[nodes]).astype(smallest)
            place, digit = divmod(level, per_code)
            digits = min(per_code, levels - place * per_code) - 1 - digit
            column *= smallest.type(size**digits)
            codes[place] += column
            if trie.nodes(level) < trie.nodes(level + 1):
                counts = np.diff(trie.child_offsets[level].expanded())
                parents = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
                nodes = parents if nodes is None else parents[nodes]
        return cls(size, levels, per_code, tuple(codes))

    @property
    def leaves(self) -> int:
        """The number of leaves."""
        return len(self.codes[0])

    def vokens(self, leaves: Int64[np.ndarray, " some"]) -> Int64[np.ndarray, "some M"]:
        """The sequences of leaves."""
        vokens = np.empty((len(leaves), self.levels), dtype=np.int64)
        for place, column in enumerate(self.codes):
            first = place * self.levels_per_code
            code = column[leaves].astype(np.int64)
            for level in range(min(first + self.levels_per_code, self.levels) - 1, first, -1):
                code, vokens[:, level] = np.divmod(code, self.codebook_size)
            vokens[:, first] = code
        return vokens

    def tables(self, table: Float32[np.ndarray, "M N queries"]) -> list[Float32[np.ndarray, "codes queries"]]:
        """For each code: the sums of its levels' entries."""
        sums = []
        for first in range(0, self.levels, self.levels_per_code):
            total = table[first]
            for level in range(first + 1, min(first + self.levels_per_code, self.levels)):
                # rows are long, so that the sum is quick
                total = total.repeat(self.codebook_size, axis=0).reshape(len(total), -1)
                total += table[level].reshape(-1)
                total = total.reshape(-1, table.shape[2])
            sums.append(total)
        return sums


@dataclass(frozen=True, eq=False)
class LeafBias:
    """What a `NodeBias` adds to the scores of whole sequences."""

    greatest: float
    below: Float32[np.ndarray, " leaves"]
    """The bias of each leaf, less the greatest."""

    @cached_property
    def least(self) -> float:
        """The least of `below`."""
        return float(self.below.min(initial=0.0))

    @cached_property
    def codes(self) -> UInt8[np.ndarray, " leaves"]:
        """`below` in 256 equal steps from 0 to the least, rounded towards 0."""
        steps: np.ndarray = self.below * np.float32(255 / self.least if self.least else 0.0)
        return steps.astype(np.uint8)

    @classmethod
    def of(cls, bias: NodeBias, trie: VokenTrie) -> LeafBias:
        """That of all leaves of `trie`, computed once for as long as the trie and the bias live.

        Raises `VokenError` if one is NaN or +inf.
        """
        biases = _BIASES.setdefault(bias, WeakKeyDictionary())
        leaf_bias = biases.get(trie)
        if leaf_bias is None:
            leaf_bias = biases[trie] = cls._sum(bias, trie)
        return leaf_bias

    @classmethod
    def _sum(cls, bias: NodeBias, trie: VokenTrie) -> LeafBias:
        total = np.zeros(trie.sequences, dtype=np.float32)
        if bias.norm_weight:
            assert bias.codebooks is not None
            total -= np.float32(bias.norm_weight) * leaf_lengths(bias.codebooks, trie)
        if bias.prior_weight:
            assert bias.prior is not None
            total -= np.float32(bias.prior_weight) * sequence_prior(bias.prior, trie)
        greatest = total.max(initial=_LOWEST)
        if not greatest < np.inf:
            raise VokenError(DIVERGED)
        total -= greatest
        return cls(float(greatest), total)


@dataclass(frozen=True, eq=False)
class TableModel:
    """A `StepModel` that reads its log-probabilities from a table. Its state is the level."""

    table: Float32[np.ndarray, "queries M N"]
    log_probs = True
    reads_trees = False
    device = None

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        return int(self.table.shape[2])

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return int(self.table.shape[1])

    def prefill(self, texts: Any) -> int:
        """The first level: the table has the queries already."""
        return 0

    def step(
        self,
        state: int,
        vokens: Int64[np.ndarray, "queries beams"] | None,
        parents: Int64[np.ndarray, "queries beams"] | None,
    ) -> tuple[Float32[np.ndarray, "queries beams N"], int]:
        """See `StepModel`."""
        return level_rows(self.table, state, vokens), state + 1


def level_rows(
    table: Float32[np.ndarray, "queries M N"], level: int, vokens: Int64[np.ndarray, "queries beams"] | None
) -> Float32[np.ndarray, "queries beams N"]:
    """What `step` of a linear model returns: the same row for each beam of a query. `vokens` are those of `step`."""
    beams = 1 if vokens is None else vokens.shape[1]
    return np.broadcast_to(table[:, level, None], (len(table), beams, table.shape[2]))


def best_leaves(
    table: Float32[np.ndarray, "queries M N"], trie: VokenTrie, count: int, bias: NodeBias | None = None
) -> tuple[Int64[np.ndarray, "queries count"], Float32[np.ndarray, "queries count"]]:
    """The `count` leaves with the greatest sums of log-probabilities, best first, and their scores.

    If scores are equal, the lower leaf comes first. `count` is at most the number of leaves. A log-probability below
    `IMPOSSIBLE` counts as that. Raises `VokenError` if a value is NaN or +inf.
    """
    if not table.max(initial=_LOWEST) < np.inf:
        raise VokenError(DIVERGED)
    table = np.maximum(table, np.float32(IMPOSSIBLE))
    codes = LeafCodes.of(trie)
    leaf_bias = None if bias is None else LeafBias.of(bias, trie)
    leaves = np.empty((len(table), count), dtype=np.int64)
    scores = np.empty((len(table), count), dtype=np.float32)
    entries = 1 << max(8, (codes.codebook_size**codes.levels_per_code - 1).bit_length())
    compiled = _scan is not None and entries - 1 <= _MOST_CODE and codes.leaves > count
    at_once = max(1, _ENTRIES_AT_ONCE // (entries * len(codes.codes))) if compiled else _QUERIES_AT_ONCE
    for first in range(0, len(table), at_once):
        some = table[first : first + at_once]
        if compiled:
            candidates = _compiled_scan(some, codes, entries, count, leaf_bias)
        else:
            candidates = _numpy_scan(some, codes, count, leaf_bias)
        for place, (of_query, exact) in enumerate(candidates, start=first):
            best = np.argsort(-exact, kind="stable")[:count]
            leaves[place], scores[place] = of_query[best], exact[best]
    return leaves, scores


def _compiled_scan(
    table: Float32[np.ndarray, "queries M N"], codes: LeafCodes, entries: int, count: int, bias: LeafBias | None
) -> Iterator[tuple[Int[np.ndarray, " candidates"], Float32[np.ndarray, " candidates"]]]:
    """For each query: the `count` best leaves, those that are equal to the last too, and their scores.

    The leaves are ascending. `entries` is a power of two, not less than the number of codes.
    """
    assert _scan is not None
    numbers = np.zeros((len(table), len(codes.codes), entries))
    if codes.levels_per_code == 1:
        numbers[:, :, : table.shape[2]] = table
    else:
        for place, sums in enumerate(codes.tables(np.moveaxis(table.astype(np.float64), 0, 2))):
            numbers[:, place, : len(sums)] = sums.T
    highest = table.max(axis=2).astype(np.float64)
    parts = [highest[:, at : at + codes.levels_per_code] for at in range(0, codes.levels, codes.levels_per_code)]
    below = np.stack([part.sum(axis=1) for part in parts], axis=1)[:, :, None] - numbers
    least = 0.0 if bias is None else -bias.least
    # half of what is there: an entry that is further below the best rarely belongs to a leaf that is among the best
    widest = np.maximum(np.where(below < -IMPOSSIBLE / 2, below, 0).max(axis=(1, 2)) / 2, least)
    step = np.maximum(widest / _MOST_STEPS, 1e-30)
    steps = np.zeros((len(table), len(codes.codes) + (bias is not None), entries), dtype=np.uint8)
    steps[:, : len(codes.codes)] = np.clip(below / step[:, None, None], 0, _MOST_STEPS)  # padding is below 0
    columns = codes.codes
    if bias is not None:
        # a hair less, because the codes were rounded too
        edges = np.arange(256) * (least / 255 * (1 - 1e-5))
        steps[:, -1, :256] = edges / step[:, None]
        columns = (*columns, bias.codes)
    greatest = 0.0 if bias is None else bias.greatest
    scales = np.stack([highest.sum(axis=1) + greatest, step], axis=1)
    below_greatest = None if bias is None else bias.below
    for leaves, scores in _scan.best_leaves(columns, steps, numbers, scales, below_greatest, greatest, count):
        yield np.frombuffer(leaves, dtype=np.int32), np.frombuffer(scores).astype(np.float32)


def _numpy_scan(
    table: Float32[np.ndarray, "queries M N"], codes: LeafCodes, count: int, bias: LeafBias | None
) -> Iterator[tuple[Int[np.ndarray, " candidates"], Float32[np.ndarray, " candidates"]]]:
    """The same by numpy, for at most `_QUERIES_AT_ONCE` queries, with more leaves that are not among the best."""
    for row, candidates in zip(table, _candidates(table, codes, count, bias), strict=True):
        yield candidates, _scores(row, codes, candidates, bias)


def _candidates(
    table: Float32[np.ndarray, "queries M N"], codes: LeafCodes, count: int, bias: LeafBias | None
) -> list[Int64[np.ndarray, " candidates"]]:
    """For each query: leaves, ascending, that are certain to hold the `count` best."""
    if codes.leaves <= _GROUPED * count:
        return [np.arange(codes.leaves)] * len(table)
    highest = table.max(axis=2, keepdims=True)
    lanes = 1 << (len(table) - 1).bit_length()  # numpy copies 4, 8 or 16 bytes at once faster than 12
    below = np.zeros((*table.shape[1:], lanes), dtype=np.float32)
    below[:, :, : len(table)] = np.moveaxis(table - highest, 0, 2)
    sums = _sums(codes.tables(below), codes, bias)
    bests = sums.reshape(_GROUPED, -1, lanes).max(axis=0)
    # at most one rounding per level for the difference to the highest, for a sum, for the bias; twice for each of
    # two leaves that are compared
    error = 4 * (codes.levels + 3) * _ROUNDING
    offsets = highest.sum(axis=(1, 2), dtype=np.float64) + (0.0 if bias is None else bias.greatest)
    candidates = []
    for lane, offset in enumerate(offsets):
        best = np.ascontiguousarray(bests[:, lane])
        # the count-th best of the groups' bests is at most the count-th best leaf
        least = float(np.partition(best, len(best) - count)[len(best) - count])
        # scores that differ by less than a rounding are equal in the end
        least = least * (1 + error) - 2 * float(np.spacing(np.float32(abs(offset + least))))
        threshold = np.float32(max(least, float(_LOWEST)))
        members = (np.arange(_GROUPED)[:, None] * len(best) + np.flatnonzero(best >= threshold)).reshape(-1)
        members = members[sums[members, lane] >= threshold]
        candidates.append(members if len(members) >= count else np.arange(codes.leaves))
    return candidates


def _sums(
    tables: list[Float32[np.ndarray, "codes queries"]], codes: LeafCodes, bias: LeafBias | None
) -> Float32[np.ndarray, "padded queries"]:
    """The sums of all leaves, padded with -inf to a multiple of `_GROUPED`."""
    leaves, lanes = codes.leaves, tables[0].shape[1]
    padded = -(-leaves // _GROUPED) * _GROUPED
    sums = np.empty((padded, lanes), dtype=np.float32)
    sums[leaves:] = -np.inf
    indices = np.empty(min(leaves, _LEAVES_AT_ONCE), dtype=np.intp)
    looked_up = np.empty((len(indices), lanes), dtype=np.float32)
    for start in range(0, leaves, _LEAVES_AT_ONCE):
        total = sums[start : min(start + _LEAVES_AT_ONCE, leaves)]
        index, part = indices[: len(total)], looked_up[: len(total)]
        for place, (table, column) in enumerate(zip(tables, codes.codes, strict=True)):
            index[:] = column[start : start + len(total)]
            if place:
                table.take(index, axis=0, mode="clip", out=part)
                total += part
            else:
                table.take(index, axis=0, mode="clip", out=total)
        if bias is not None:
            total += bias.below[start : start + len(total), None]
    return sums


def _scores(
    table: Float32[np.ndarray, "M N"], codes: LeafCodes, leaves: Int64[np.ndarray, " some"], bias: LeafBias | None
) -> Float32[np.ndarray, " some"]:
    """The scores of leaves, summed in float64."""
    scores = np.empty(len(leaves), dtype=np.float32)
    rows = np.arange(0, table.size, table.shape[1])
    for start in range(0, len(leaves), _LEAVES_AT_ONCE):
        some = leaves[start : start + _LEAVES_AT_ONCE]
        total = table.reshape(-1).take(codes.vokens(some) + rows).sum(axis=1, dtype=np.float64)
        if bias is not None:
            total += bias.below[some].astype(np.float64) + bias.greatest
        scores[start : start + len(some)] = total
    return scores


def _numbers(vokens: Integer[np.ndarray, "some levels"], codebook_size: int) -> Int64[np.ndarray, " some"]:
    """The vokens of each row as digits of a number, the first one highest."""
    numbers = np.zeros(len(vokens), dtype=np.int64)
    for column in vokens.T:
        numbers = numbers * codebook_size + column
    return numbers


def leaf_lengths(books: Float32[np.ndarray, "M N e"], trie: VokenTrie) -> Float32[np.ndarray, " leaves"]:
    """‖z‖² of all leaves, z being the sum of a sequence's entries; computed once for as long as the trie lives."""
    known = _LENGTHS.get(trie, ())
    for other_books, lengths in known:
        if other_books is books:
            return lengths
    if trie.base is None:
        lengths = _squared_lengths(books, LeafCodes.of(trie))
    else:
        of_inserted = squared_lengths(books, trie.leaf_vokens(inserted_leaves(trie)))
        lengths = merged_leaf_values(trie, leaf_lengths(books, trie.base), of_inserted)
    _LENGTHS[trie] = ((books, lengths), *known[:1])
    return lengths


def _squared_lengths(books: Float32[np.ndarray, "M N e"], codes: LeafCodes) -> Float32[np.ndarray, " leaves"]:
    levels, size = codes.levels, codes.codebook_size
    lengths = np.empty(codes.leaves, dtype=np.float32)
    products_take = size * size * levels
    if codes.leaves * _LEAVES_PER_PRODUCT < products_take or products_take * levels > _MOST_PRODUCTS:
        for start in range(0, codes.leaves, _VECTORS_AT_ONCE):
            some = np.arange(start, min(start + _VECTORS_AT_ONCE, codes.leaves))
            lengths[some] = squared_lengths(books, codes.vokens(some))
        return lengths
    # Σ ‖c‖² + 2 Σ <c, c'>, with the inner products of all pairs of entries
    squares = np.einsum("mne,mne->mn", books, books)
    products = [[2 * (books[one] @ books[other].T).reshape(-1) for other in range(one)] for one in range(levels)]
    for start in range(0, codes.leaves, _LEAVES_AT_ONCE):
        some = np.arange(start, min(start + _LEAVES_AT_ONCE, codes.leaves))
        vokens = np.ascontiguousarray(codes.vokens(some).T)
        total = np.zeros(len(some))
        for level, voken in enumerate(vokens):
            total += squares[level].take(voken)
            row = voken * size
            for other in range(level):
                total += products[level][other].take(row + vokens[other], mode="clip")
        lengths[start : start + len(total)] = total
    return lengths


_CODES: WeakKeyDictionary[VokenTrie, LeafCodes] = WeakKeyDictionary()
_LENGTHS: WeakKeyDictionary[
    VokenTrie, tuple[tuple[Float32[np.ndarray, "M N e"], Float32[np.ndarray, " leaves"]], ...]
] = WeakKeyDictionary()
"""For the last two codebooks (the model's, and those that the collection stores): these, and the lengths they give."""
_BIASES: WeakKeyDictionary[NodeBias, WeakKeyDictionary[VokenTrie, LeafBias]] = WeakKeyDictionary()
