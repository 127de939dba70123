"""A trie and what changed since, numbered as a trie built afresh of the live rows. The first trie is not copied.

    base       0 1 2 3 4     dead       1, 4
                             inserted   a before 2, b at the end
    merged     0 a 2 3 b     numbers    0 1 2 3 4

A level stays in lexicographic order, so the number of a live node is its number in the base, less the dead ones in
front of it, plus the inserted ones: both are counted by bisection of small sorted arrays. From number to node there is
one bisection, as between two changes the difference is constant. Rows are treated as one more level of nodes, whose
numbers are places in `order`.

Time and memory grow with what changed, not with the base. Where most of it has changed, build a new trie. This module
does not know where changes are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from voken.decoding.trie import ChildOffsets, Column, NumberOffsets, VokenTrie, find_between
from voken.shapes import Bool, Int32, Int64, Integer, Shaped

_RUN = 16
"""Runs of consecutive numbers are read as such from this width on; below, a bisection a number costs less."""
_AT_ONCE = 1 << 16
"""Rows looked through in one go, so that temporaries stay small."""


def merged_trie(
    base: VokenTrie,
    dead_places: Int64[np.ndarray, " dead"],
    added: Integer[np.ndarray, "added M"],
    added_rows: Int64[np.ndarray, " added"],
) -> VokenTrie:
    """The trie of the rows of `base` but those at `dead_places`, and of `added`: as `VokenTrie.from_vokens` makes it.

    `base` is no merged trie itself. `dead_places` are places in its `order`, as `places_of` gives them, in any order.
    `added_rows` are the row numbers of `added`: ascending, and higher than those of the base. Without changes `base`
    is returned. Raises `IndexError` for places that are not there, `ConfigError` where a voken is not in 0 … N - 1,
    and `ValueError` where shapes or row numbers are not as said.
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
    placed = _placed(base, new)
    joins = placed[-2].found[placed[-1].parents]
    if (base.rows_at(placed[-1].before[joins] - 1) >= new.rows_at(joins.nonzero()[0])).any():
        raise ValueError("added rows must have higher numbers than those of the base")
    dead = _dead(base, placed, dead_places)
    above = Renumbering.of(1, dead[0], placed[0].before[:0])
    numbers = np.zeros(1, dtype=np.int64)
    starts: list[ChildOffsets] = []
    columns: list[Column] = []
    for level, place in enumerate(placed[1:]):
        fresh = ~place.found
        here = Renumbering.of(len(base_columns[level]), dead[level + 1], place.before[fresh])
        level_starts, column = base_starts[level], base_columns[level]
        if here.changes:  # and where the level above changes, this one does
            starts.append(MergedOffsets(level_starts, above, here, numbers[place.parents[fresh]]))
            columns.append(MergedColumn(column, here, _widened(new_columns[level][fresh], column.shape[1:])))
        else:
            starts.append(level_starts)
            columns.append(column)
        numbers = here.of_base(place.before)
        numbers[fresh] = here.inserted
        above = here
    return VokenTrie(base.codebook_size, tuple(columns[:-1]), tuple(starts[:-1]), starts[-1], columns[-1])


def places_of(base: VokenTrie, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """Where these rows stand in the `order` of `base`, which is read from end to end.

    Raises `IndexError` where the trie does not have a row.
    """
    if len(rows) and rows.min() < 0:
        raise IndexError("row numbers must be 0 or more")
    # one more, which stays False, for the row numbers above
    is_wanted = np.zeros(rows.max(initial=-1) + 2, dtype=bool)
    is_wanted[rows] = True
    places, found = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for at in range(0, base.images, _AT_ONCE):
        block = base.rows_at(slice(at, at + _AT_ONCE))
        here = is_wanted.take(block, mode="clip").nonzero()[0]
        places.append(at + here)
        found.append(block[here])
    place, row = np.concatenate(places), np.concatenate(found)
    by_row = row.argsort()
    at_row = row.searchsorted(rows, sorter=by_row)
    missing = np.setdiff1d(rows, row)
    if len(missing):
        raise IndexError(f"row {missing[0]} is not in the trie ({len(missing)} rows are not)")
    return place[by_row[at_row]]


@dataclass(frozen=True, eq=False)
class Renumbering:
    """The nodes of a level: their numbers in the base, and merged."""

    base_count: int
    """Nodes of the base, dead ones included."""
    dead: Int64[np.ndarray, " dead"]
    """Numbers in the base of those that are left out, ascending."""
    before: Int64[np.ndarray, " inserted"]
    """For each inserted node, in order: how many nodes of the base stand in front of it, dead ones included."""
    inserted: Int64[np.ndarray, " inserted"]
    """Merged numbers of the inserted nodes, ascending."""
    piece: Int64[np.ndarray, " pieces"]
    """Merged number at which each piece starts: from there to the next one, merged and base numbers grow alike."""
    shift: Int64[np.ndarray, " pieces"]
    """What is to be added in each piece to get from merged to base numbers."""
    which: Int64[np.ndarray, " pieces"]
    """Which inserted node a piece is, -1 where it is none. Base numbers are those of the live node behind it then."""

    @classmethod
    def of(cls, base_count: int, dead: Int64[np.ndarray, " dead"], before: Int64[np.ndarray, " inserted"]) -> Self:
        """From what is left out and what is inserted where."""
        live_before = before - dead.searchsorted(before)
        inserted = live_before + np.arange(len(before))
        live_before_dead = dead - np.arange(len(dead))
        behind_dead = live_before_dead + live_before.searchsorted(live_before_dead)
        # a stable sort merges what is sorted; numpy's unique would hash it
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
        """How many live nodes of the base stand in front of these base numbers, 0 … base_count."""
        return nodes - self.dead.searchsorted(nodes)

    def of_base(self, nodes: Int64[np.ndarray, " nodes"]) -> Int64[np.ndarray, " nodes"]:
        """Merged numbers of live nodes of the base; nonsense for dead ones."""
        return self.live_before(nodes) + self.before.searchsorted(nodes, "right")

    def base_from(self, numbers: Int64[np.ndarray, " numbers"]) -> Int64[np.ndarray, " numbers"]:
        """Base numbers of the first live node of the base at or behind each; `base_count` where there is none."""
        nodes: np.ndarray = numbers + self.shift[self.piece.searchsorted(numbers, "right") - 1]
        return nodes

    def found(
        self, numbers: Int64[np.ndarray, "*shape"]
    ) -> tuple[Int64[np.ndarray, "*shape"], Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """As `base_from`; and at which (flat) places of `numbers` an inserted node stands, and which it is."""
        piece = self.piece.searchsorted(numbers, "right") - 1
        which = self.which[piece].reshape(-1)
        places = (which >= 0).nonzero()[0]
        return numbers + self.shift[piece], places, which[places]

    def found_in_runs(
        self, runs: Int64[np.ndarray, "runs width"]
    ) -> tuple[Int64[np.ndarray, "runs width"], Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """The same for lines of consecutive numbers, with two bisections a line."""
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
    """The vokens of a level, or the rows of `order`, by merged numbers. See `Column`."""

    base: Shaped[np.ndarray, " nodes *bytes"]
    numbers: Renumbering
    inserted: Shaped[np.ndarray, " inserted *bytes"]
    """Of the inserted nodes; as many bytes a row as either needs."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: Integer[np.ndarray, "*shape"] | slice) -> Shaped[np.ndarray, "*shape_bytes"]:
        if isinstance(places, slice):
            places = np.arange(*places.indices(len(self)))
        return self._filled(*self.numbers.found(places))

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> Shaped[np.ndarray, "*shape"]:
        """Written out."""
        whole: np.ndarray = self._filled(*self.numbers.found_in_runs(np.arange(len(self))[None]))[0]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def take(
        self, indices: Integer[np.ndarray, "*shape"], *, mode: Literal["clip"]
    ) -> Shaped[np.ndarray, "*shape_bytes"]:
        """See `numpy.ndarray.take`. Fast where each line is a run of consecutive indices, as an expansion asks for."""
        last = len(self) - 1
        wide = indices.ndim == 2 and indices.shape[1] >= _RUN
        if not wide or indices[:, 0].min(initial=0) < 0 or (np.diff(indices) != 1).any():
            return self[indices.clip(0, last)]
        values = self._filled(*self.numbers.found_in_runs(indices))
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
        """What the base has at `nodes`, with what was inserted put at (flat) `places`."""
        bytes_of_one = self.inserted.shape[1:]
        values = _widened(self.base.take(nodes, axis=0, mode="clip"), bytes_of_one)
        values.reshape(-1, *bytes_of_one)[places] = self.inserted[which]
        return values


@dataclass(frozen=True, eq=False)
class MergedOffsets:
    """The children of each node, by merged numbers. See `ChildOffsets`."""

    base: ChildOffsets
    above: Renumbering
    below: Renumbering
    parents_of_inserted: Int64[np.ndarray, " inserted"]
    """Merged number of the parent of each node that is inserted below, ascending."""

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `ChildOffsets`."""
        # between a node and the live one of the base behind it stand dead ones, which have no live children
        of_base = self.below.live_before(self.base.firsts(self.above.base_from(parents)))
        return of_base + self.parents_of_inserted.searchsorted(parents)

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """See `ChildOffsets`."""
        bounds = self.firsts(np.concatenate([parents, parents + 1]))
        return bounds[: len(parents)], bounds[len(parents) :]

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `ChildOffsets`."""
        nodes, places, which = self.below.found(children)
        parents = self.above.of_base(self.base.parents(nodes))
        parents[places] = self.parents_of_inserted[which]
        return parents

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `ChildOffsets`."""
        unpacked = replace(self, base=NumberOffsets(self.base.expanded()))
        return unpacked.firsts(np.arange(len(self.above) + 1)).astype(np.int32)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `ChildOffsets`. Those of `above` and `below` are the columns'."""
        return self.base.arrays | {"parents_of_inserted": self.parents_of_inserted}


@dataclass(frozen=True, eq=False)
class _Placed:
    """Where the nodes of a level of the new trie belong in the base."""

    parents: Int64[np.ndarray, " nodes"]
    """In the new trie."""
    before: Int64[np.ndarray, " nodes"]
    """How many nodes of the base stand in front; where the base has the node itself, that is its number."""
    found: Bool[np.ndarray, " nodes"]
    """Whether the base has it."""


def _placed(base: VokenTrie, new: VokenTrie) -> list[_Placed]:
    """From the root to the rows, of which the base has none."""
    root = np.zeros(1, dtype=np.int64)
    placed = [_Placed(root, root, root == 0)]
    for base_starts, base_column, starts, column in zip(*_levels(base), *_levels(new), strict=True):
        above = placed[-1]
        parents = starts.parents(np.arange(len(column)))
        # a parent that the base does not have stands there with no children
        low = base_starts.firsts(above.before[parents])
        end = base_starts.firsts(above.before[parents] + above.found[parents])
        if column is new.order:
            placed.append(_Placed(parents, end, np.zeros(len(column), dtype=bool)))
        else:
            placed.append(_Placed(parents, *find_between(base_column, low, end, column)))
    return placed


def _dead(
    base: VokenTrie, placed: list[_Placed], dead_places: Int64[np.ndarray, " dead"]
) -> list[Int64[np.ndarray, " _"]]:
    """For each level from the root to the rows: the nodes of the base without live children, ascending."""
    dead = [dead_places]
    starts, _ = _levels(base)
    for level in range(base.levels, 0, -1):
        parents, dead_children = np.unique(starts[level].parents(dead[0]), return_counts=True)
        start, end = starts[level].ranges(parents)
        inserted = placed[level + 1].parents[~placed[level + 1].found]
        gets_some = placed[level].before[inserted][placed[level].found[inserted]]
        dead.insert(0, parents[(dead_children == end - start) & ~np.isin(parents, gets_some)])
    return [dead_places[:0], *dead]


def _levels(trie: VokenTrie) -> tuple[tuple[ChildOffsets, ...], tuple[np.ndarray[Any, np.dtype[Any]], ...]]:
    """Of each level below the root, the last being the rows: starts in the level above, and what its nodes hold."""
    columns = (*trie.vokens, trie.order)
    return (*trie.child_offsets, trie.row_offsets), tuple(map(np.asarray, columns))


def _widened(values: Shaped[np.ndarray, "*shape"], bytes_of_one: tuple[int, ...]) -> Shaped[np.ndarray, "*wider"]:
    """With at least as many bytes a row; low byte first, so zeros follow."""
    if not bytes_of_one or values.shape[-1] >= bytes_of_one[0]:
        return values
    wide = np.zeros((*values.shape[:-1], *bytes_of_one), dtype=values.dtype)
    wide[..., : values.shape[-1]] = values
    return wide
