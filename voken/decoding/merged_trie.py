"""Presents a trie and its changes as one trie, numbered like a new trie of the live rows.

    base       0 1 2 3 4     dead       1, 4
                             inserted   a before 2, b at the end
    merged     0 a 2 3 b     numbers    0 1 2 3 4

A level stays in lexicographic order, so the number of a live node is its number in the base, minus the dead nodes
before it, plus the inserted nodes before it. Both are counted by bisection of small sorted arrays. The way back, from
number to node, takes one bisection, because the difference is constant between two changes. Rows are treated as one
more level of nodes, whose numbers are places in `order`.

Time and memory grow with the changes, not with the base, which is not copied. If most of the base has changed, build a
new trie. This module does not know where changes are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from voken.decoding.trie import ChildOffsets, Column, NumberOffsets, VokenTrie, find_between
from voken.shapes import Bool, Int32, Int64, Integer, Shaped

_RUN = 16
"""Runs of at least this many consecutive numbers are looked up as runs. For shorter ones a bisection per number is
cheaper."""
_AT_ONCE = 1 << 16
"""Rows that are searched at once, so that temporaries stay small."""


def merged_trie(
    base: VokenTrie,
    dead_places: Int64[np.ndarray, " dead"],
    added: Integer[np.ndarray, "added M"],
    added_rows: Int64[np.ndarray, " added"],
) -> VokenTrie:
    """The trie of the rows of `base` except those at `dead_places`, and of `added`; it equals a new trie of these rows.

    `base` must not be a merged trie. `dead_places` are places in its `order`, from `places_of`, in any order.
    `added_rows` are the row numbers of `added`: ascending, and higher than those of the base. Without changes `base`
    is returned. Raises `IndexError` for places that do not exist, `ConfigError` if a voken is not in 0 … N - 1, and
    `ValueError` for shapes that do not match or row numbers that do not ascend.
    """
    dead_places = np.unique(dead_places)
    if len(dead_places) and (dead_places[0] < 0 or dead_places[-1] >= base.images):
        raise IndexError(f"places must be in 0 … {base.images - 1}")
    if added.shape != (len(added_rows), base.levels):
        raise ValueError(f"{len(added_rows)} sequences of {base.levels} vokens expected; the shape is {added.shape}")
    if not len(dead_places) and not len(added):
        return base
    new = VokenTrie.empty(base.levels, base.codebook_size)
    if len(added):
        new = VokenTrie.from_vokens(added, base.codebook_size, added_rows)
    if len(dead_places) == base.images:
        return new
    base_starts, base_columns = _levels(base)
    _, new_columns = _levels(new)
    positions = _positions(base, new)
    joins = positions[-2].in_base[positions[-1].parents]
    if (base.rows_at(positions[-1].before[joins] - 1) >= new.rows_at(joins.nonzero()[0])).any():
        raise ValueError("added rows must have higher numbers than those of the base")
    dead = _dead_nodes(base, positions, dead_places)
    above = Renumbering.of(1, dead[0], positions[0].before[:0])
    numbers = np.zeros(1, dtype=np.int64)
    starts: list[ChildOffsets] = []
    columns: list[Column] = []
    for level, position in enumerate(positions[1:]):
        fresh = ~position.in_base
        here = Renumbering.of(len(base_columns[level]), dead[level + 1], position.before[fresh])
        level_starts, column = base_starts[level], base_columns[level]
        if here.changes:  # always the case if the level above changes
            starts.append(MergedOffsets(level_starts, above, here, numbers[position.parents[fresh]]))
            columns.append(MergedColumn(column, here, _widened(new_columns[level][fresh], column.shape[1:])))
        else:
            starts.append(level_starts)
            columns.append(column)
        numbers = here.of_base(position.before)
        numbers[fresh] = here.inserted
        above = here
    return VokenTrie(base.codebook_size, tuple(columns[:-1]), tuple(starts[:-1]), starts[-1], columns[-1], base)


def inserted_leaves(trie: VokenTrie) -> Int64[np.ndarray, " inserted"]:
    """The leaves of a merged trie that its base does not have."""
    column = trie.vokens[-1]
    return column.numbers.inserted if isinstance(column, MergedColumn) else np.zeros(0, dtype=np.int64)


def merged_leaf_values(
    trie: VokenTrie, of_base: Shaped[np.ndarray, " base"], of_inserted: Shaped[np.ndarray, " inserted"]
) -> Shaped[np.ndarray, " leaves"]:
    """A value for every leaf of a merged trie: from those of its base's leaves, and those of `inserted_leaves`."""
    column = trie.vokens[-1]
    if not isinstance(column, MergedColumn):
        return of_base
    return np.asarray(MergedColumn(of_base, column.numbers, of_inserted.astype(of_base.dtype, copy=False)))


def places_of(base: VokenTrie, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """The places of these rows in the `order` of `base`, all of which is read.

    Raises `IndexError` if the trie does not have a row.
    """
    if len(rows) and rows.min() < 0:
        raise IndexError("row numbers must be 0 or more")
    # the last place, which stays False, stands for all higher row numbers
    is_requested = np.zeros(rows.max(initial=-1) + 2, dtype=bool)
    is_requested[rows] = True
    places, requested = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for at in range(0, base.images, _AT_ONCE):
        block = base.rows_at(slice(at, at + _AT_ONCE))
        here = is_requested.take(block, mode="clip").nonzero()[0]
        places.append(at + here)
        requested.append(block[here])
    place, row = np.concatenate(places), np.concatenate(requested)
    by_row = row.argsort()
    at_row = row.searchsorted(rows, sorter=by_row)
    missing = np.setdiff1d(rows, row)
    if len(missing):
        raise IndexError(f"row {missing[0]} is not in the trie ({len(missing)} rows are not)")
    return place[by_row[at_row]]


@dataclass(frozen=True, eq=False)
class Renumbering:
    """Maps the numbers of a level's nodes in the base to their numbers after merging, and back."""

    base_count: int
    """The number of nodes in the base, dead ones included."""
    dead: Int64[np.ndarray, " dead"]
    """Base numbers of the dead nodes, ascending."""
    before: Int64[np.ndarray, " inserted"]
    """For each inserted node, in order: how many nodes of the base come before it, dead ones included."""
    inserted: Int64[np.ndarray, " inserted"]
    """Merged numbers of the inserted nodes, ascending."""
    piece: Int64[np.ndarray, " pieces"]
    """Merged number at which each piece starts. Within a piece, merged minus base number is constant."""
    shift: Int64[np.ndarray, " pieces"]
    """Base number minus merged number in each piece."""
    which: Int64[np.ndarray, " pieces"]
    """The inserted node that a piece is, or -1. The base number of an inserted node is that of the next live node."""

    @classmethod
    def of(cls, base_count: int, dead: Int64[np.ndarray, " dead"], before: Int64[np.ndarray, " inserted"]) -> Self:
        """Compute it from `base_count`, `dead` and `before`."""
        live_before = before - dead.searchsorted(before)
        inserted = live_before + np.arange(len(before))
        live_before_dead = dead - np.arange(len(dead))
        behind_dead = live_before_dead + live_before.searchsorted(live_before_dead)
        # a stable sort merges sorted parts quickly; numpy's unique would hash them
        piece = np.sort(np.concatenate([[0], inserted, inserted + 1, behind_dead]), kind="stable")
        piece = piece[np.append(True, piece[1:] != piece[:-1])]
        live = piece - inserted.searchsorted(piece)
        shift = live + live_before_dead.searchsorted(live, "right") - piece
        which = np.full(len(piece), -1)
        which[piece.searchsorted(inserted)] = np.arange(len(inserted))
        return cls(base_count, dead, before, inserted, piece, shift, which)

    def __len__(self) -> int:
        return self.base_count - len(self.dead) + len(self.inserted)

    @property
    def changes(self) -> bool:
        """Whether merged numbers differ from the base's."""
        return len(self.dead) > 0 or len(self.inserted) > 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.dead, self.before, self.inserted, self.piece, self.shift, self.which)
        return sum(array.nbytes for array in arrays)

    def live_before(self, nodes: Int64[np.ndarray, " nodes"]) -> Int64[np.ndarray, " nodes"]:
        """How many live nodes of the base come before each of these base numbers, 0 … base_count."""
        return nodes - self.dead.searchsorted(nodes)

    def of_base(self, nodes: Int64[np.ndarray, " nodes"]) -> Int64[np.ndarray, " nodes"]:
        """Merged numbers of live nodes of the base; undefined for dead ones."""
        return self.live_before(nodes) + self.before.searchsorted(nodes, "right")

    def base_from(self, numbers: Int64[np.ndarray, " numbers"]) -> Int64[np.ndarray, " numbers"]:
        """Base number of the first live base node at or after each merged number; `base_count` if there is none."""
        nodes: np.ndarray = numbers + self.shift[self.piece.searchsorted(numbers, "right") - 1]
        return nodes

    def lookup(
        self, numbers: Int64[np.ndarray, "*shape"]
    ) -> tuple[Int64[np.ndarray, "*shape"], Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """`base_from`, the (flat) places of `numbers` that are inserted nodes, and which inserted nodes these are."""
        piece = self.piece.searchsorted(numbers, "right") - 1
        which = self.which[piece].reshape(-1)
        places = (which >= 0).nonzero()[0]
        return numbers + self.shift[piece], places, which[places]

    def lookup_runs(
        self, runs: Int64[np.ndarray, "runs width"]
    ) -> tuple[Int64[np.ndarray, "runs width"], Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """`lookup` for rows of consecutive numbers, with two bisections per row."""
        count, width = runs.shape
        first = self.piece.searchsorted(runs[:, 0], "right") - 1
        pieces = self.piece.searchsorted(runs[:, -1], "right") - first
        run = np.repeat(np.arange(count), pieces)
        piece = np.repeat(first - (pieces.cumsum() - pieces), pieces) + np.arange(len(run))
        places = run * width + np.maximum(self.piece[piece] - runs[run, 0], 0)
        shift = np.repeat(self.shift[piece], np.diff(places, append=count * width))
        is_inserted = self.which[piece] >= 0
        return runs + shift.reshape(runs.shape), places[is_inserted], self.which[piece[is_inserted]]


@dataclass(frozen=True, eq=False)
class MergedColumn:
    """A `Column` of the vokens of a level, or of the rows of `order`, by merged numbers."""

    base: Shaped[np.ndarray, " nodes *bytes"]
    numbers: Renumbering
    inserted: Shaped[np.ndarray, " inserted *bytes"]
    """Values of the inserted nodes, with as many bytes per row as they or the base need, whichever is more."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: Integer[np.ndarray, "*shape"] | slice) -> Shaped[np.ndarray, "*shape_bytes"]:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        return self._filled(*self.numbers.lookup(places))

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> Shaped[np.ndarray, "*shape"]:
        """All values as one array."""
        whole: np.ndarray = self._filled(*self.numbers.lookup_runs(np.arange(len(self))[None]))[0]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def take(
        self, indices: Integer[np.ndarray, "*shape"], *, mode: Literal["clip"]
    ) -> Shaped[np.ndarray, "*shape_bytes"]:
        """See `numpy.ndarray.take`. Fast if each row is a run of consecutive indices, as in an expansion."""
        last = len(self) - 1
        wide = indices.ndim == 2 and indices.shape[1] >= _RUN
        if not wide or indices[:, 0].min(initial=0) < 0 or (np.diff(indices) != 1).any():
            return self[indices.clip(0, last)]
        values = self._filled(*self.numbers.lookup_runs(indices))
        if indices[:, -1].max(initial=0) > last:
            values[indices > last] = self[np.array([last])]
        return values

    @property
    def nbytes(self) -> int:
        """Bytes, in memory or mapped."""
        return self.base.nbytes + self.numbers.nbytes + self.inserted.nbytes

    def _filled(
        self,
        nodes: Int64[np.ndarray, "*shape"],
        places: Int64[np.ndarray, " places"],
        which: Int64[np.ndarray, " places"],
    ) -> Shaped[np.ndarray, "*shape_bytes"]:
        """The values of the base at `nodes`, and those of inserted nodes at (flat) `places`."""
        row_shape = self.inserted.shape[1:]
        values = _widened(self.base.take(nodes, axis=0, mode="clip"), row_shape)
        values.reshape(-1, *row_shape)[places] = self.inserted[which]
        return values


@dataclass(frozen=True, eq=False)
class MergedOffsets(ChildOffsets):
    """`ChildOffsets` by merged numbers."""

    base: ChildOffsets
    above: Renumbering
    below: Renumbering
    parents_of_inserted: Int64[np.ndarray, " inserted"]
    """Merged number of the parent of each node that is inserted below, ascending."""

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `ChildOffsets`."""
        # nodes between a number and the next live base node are dead, so they have no live children
        of_base = self.below.live_before(self.base.firsts(self.above.base_from(parents)))
        return of_base + self.parents_of_inserted.searchsorted(parents)

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `ChildOffsets`."""
        nodes, places, which = self.below.lookup(children)
        parents = self.above.of_base(self.base.parents(nodes))
        parents[places] = self.parents_of_inserted[which]
        return parents

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `ChildOffsets`."""
        unpacked = replace(self, base=NumberOffsets(self.base.expanded()))
        return unpacked.firsts(np.arange(len(self.above) + 1)).astype(np.int32)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `ChildOffsets`. The arrays of `above` and `below` count as the columns'."""
        return self.base.arrays | {"parents_of_inserted": self.parents_of_inserted}


@dataclass(frozen=True, eq=False)
class _BasePositions:
    """Where the nodes of a level of the new trie belong in the base."""

    parents: Int64[np.ndarray, " nodes"]
    """Their parents in the new trie."""
    before: Int64[np.ndarray, " nodes"]
    """How many nodes of the base come before each. If the base has the node itself, this is its number there."""
    in_base: Bool[np.ndarray, " nodes"]
    """Whether the base has the node itself."""


def _positions(base: VokenTrie, new: VokenTrie) -> list[_BasePositions]:
    """For each level from the root to the rows. The base has none of the new rows."""
    root = np.zeros(1, dtype=np.int64)
    positions = [_BasePositions(root, root, root == 0)]
    for base_starts, base_column, starts, column in zip(*_levels(base), *_levels(new), strict=True):
        above = positions[-1]
        parents = starts.parents(np.arange(len(column)))
        # a parent that the base does not have gets an empty range of children
        low = base_starts.firsts(above.before[parents])
        end = base_starts.firsts(above.before[parents] + above.in_base[parents])
        if column is new.order:
            positions.append(_BasePositions(parents, end, np.zeros(len(column), dtype=bool)))
        else:
            positions.append(_BasePositions(parents, *find_between(base_column, low, end, column)))
    return positions


def _dead_nodes(
    base: VokenTrie, positions: list[_BasePositions], dead_places: Int64[np.ndarray, " dead"]
) -> list[Int64[np.ndarray, " _"]]:
    """For each level from the root to the rows: the nodes of the base without live children, ascending."""
    dead = [dead_places]
    starts, _ = _levels(base)
    for level in range(base.levels, 0, -1):
        parents, dead_children = np.unique(starts[level].parents(dead[0]), return_counts=True)
        start, end = starts[level].ranges(parents)
        inserted = positions[level + 1].parents[~positions[level + 1].in_base]
        gets_children = positions[level].before[inserted][positions[level].in_base[inserted]]
        dead.insert(0, parents[(dead_children == end - start) & ~np.isin(parents, gets_children)])
    return [dead_places[:0], *dead]


def _levels(trie: VokenTrie) -> tuple[tuple[ChildOffsets, ...], tuple[np.ndarray[Any, np.dtype[Any]], ...]]:
    """For each level below the root, and for the rows: the child offsets of the level above, and the values."""
    columns = (*trie.vokens, trie.order)
    return (*trie.child_offsets, trie.row_offsets), tuple(map(np.asarray, columns))


def _widened(values: Shaped[np.ndarray, "*shape"], row_shape: tuple[int, ...]) -> Shaped[np.ndarray, "*wider"]:
    """Values with at least as many bytes per row as `row_shape` says. Zeros follow, because the low byte is first."""
    if not row_shape or values.shape[-1] >= row_shape[0]:
        return values
    wide = np.zeros((*values.shape[:-1], *row_shape), dtype=values.dtype)
    wide[..., : values.shape[-1]] = values
    return wide
