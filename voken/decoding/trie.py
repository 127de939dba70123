"""The trie of the voken sequences that exist, as sorted integer arrays.

    images     0: [3, 1]    sorted     [0, 2]  leaf 0  rows 1
               1: [0, 2]    sequences  [3, 1]  leaf 1  rows 0, 3
               2: [3, 2]               [3, 2]  leaf 2  rows 2
               3: [3, 1]

A *node* of level l is a distinct prefix of length l, numbered in lexicographic order within its level. The root is
node 0 of level 0; a *leaf* is a node of level M. The children of a node are adjacent in the level below, so a level
needs only two arrays: the voken of each node, and where each node's children start. A lower node is lexicographically
earlier.

A node costs the bytes of its voken (2 for N = 1,024) and at most 1.5 bits for its parent. An image costs the bytes of
its row number (3 below 16,777,216 images) and at most 1.5 bits for its leaf. Files are mapped into memory and searched
as they are.

This module does not know what a picture, a text or a probability is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np

from voken.artifact import map_array, plain_path, read_json, storage_errors, write_json
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, EmptyDataError
from voken.shapes import Bool, Int32, Int64, Integer, UInt, UInt8, UInt32, UInt64

MAX_LEVELS, MAX_ENTRIES = 256, 1 << 24
"""A saved trie has at most so many levels, and a level so many entries of its codebook."""
_HEADER = "trie.json"
_FORMAT = 2
_REMEDY = "Index the pictures again."
_AT_ONCE = 1 << 20
"""Rows that are packed or unpacked at once, so that temporaries stay small."""
_LOOKUPS_AT_ONCE = 1 << 16
"""Starts that are looked up at once. Each unpacks a word of 64 bits to 64 bytes: 4 MB in all."""
_WORD = np.dtype("<u8")
_ONES = np.uint64(2**64 - 1)


@runtime_checkable
class Column(Protocol):
    """The vokens of a level, or the rows: a numpy array or a `MergedColumn`."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Any, /) -> Any: ...

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> Any: ...

    def take(self, indices: Any, /, *, mode: Literal["clip"]) -> Any:
        """See `numpy.ndarray.take`."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes, in memory or mapped."""
        ...


class ChildOffsets(Protocol):
    """Where the children of each parent start, if parents and children are numbered in the same order.

        children   0 1 2 | 3 | 4 5      starts  0, 3, 4 (, 6)      bits  1 0 0 1 1 0 (1)

    The children of parent p are start(p) … start(p + 1) - 1. Every parent has at least one child, except the root of an
    empty trie. `NumberOffsets` suits few parents with many children. `BitOffsets` suits about as many parents as
    children, as at the deeper levels of a trie and between its leaves and its pictures.
    """

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """The first child of each parent. For the number after the last parent: the number of children."""
        ...

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """The first child of each parent, and the number after its last child. The numbers must be parents: others give
        nonsense or `IndexError`."""
        bounds = self.firsts(np.concatenate([parents, parents + 1]))
        return bounds[: len(parents)], bounds[len(parents) :]

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """The parent of each child. For the number after the last child: the number of parents."""
        ...

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """All starts as numbers, followed by the number of children."""
        ...

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """The stored arrays by name."""
        ...


def offsets_of(is_first: Bool[np.ndarray, " children"]) -> ChildOffsets:
    """The offsets in the smaller of the two forms. `is_first` says whether each child is its parent's first."""
    bits = BitOffsets.of(is_first)
    numbers = 4 * (int(np.count_nonzero(is_first)) + 1)
    if numbers > sum(array.nbytes for array in bits.arrays.values()):
        return bits
    return NumberOffsets(np.append(np.flatnonzero(is_first), len(is_first)).astype(np.int32))


def _read_offsets(arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], name: str) -> NumberOffsets | BitOffsets:
    """The offsets whose `arrays` are stored under `name.`. Raises `KeyError` if they are missing."""
    if f"{name}.starts" in arrays:
        return NumberOffsets(arrays[f"{name}.starts"])
    return BitOffsets(arrays[f"{name}.words"], arrays[f"{name}.before"])


@dataclass(frozen=True, eq=False)
class NumberOffsets(ChildOffsets):
    """The starts as numbers, 32 bits per parent."""

    starts: Int32[np.ndarray, " parents+1"]

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `ChildOffsets`."""
        values: np.ndarray = self.starts[parents].astype(np.int64)
        return values

    def ranges(
        self, parents: Int64[np.ndarray, " parents"]
    ) -> tuple[Int64[np.ndarray, " parents"], Int64[np.ndarray, " parents"]]:
        """See `ChildOffsets`."""
        return self.firsts(parents), self.firsts(parents + 1)

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `ChildOffsets`."""
        # of the same type, or numpy would convert all starts
        values: np.ndarray = np.searchsorted(self.starts, children.astype(np.int32), side="right") - 1
        return values

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `ChildOffsets`."""
        return self.starts

    def fits(self, parents: int, children: int, most: int) -> bool:
        """Whether it gives so many `parents` so many `children`, each at least one and at most `most`.

        The root of an empty trie has none.
        """
        starts = self.starts
        if starts.dtype != np.int32 or starts.shape != (parents + 1,) or starts[0] != 0 or starts[-1] != children:
            return False
        if not children:
            return parents <= 1
        counts = np.diff(starts)
        return bool(counts.min() > 0 and counts.max() <= most)

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `ChildOffsets`."""
        return {"starts": self.starts}


@dataclass(frozen=True, eq=False)
class BitOffsets(ChildOffsets):
    """A bit per child, set if it is its parent's first, and a set bit after the last child.

    With the count of set bits before each word of 64 bits, this takes 1.5 bits per child (rank and select; Jacobson,
    FOCS 1989).
    """

    words: UInt64[np.ndarray, " words"]
    before: UInt32[np.ndarray, " words"]
    """For each word, how many bits are set in the words before it."""

    @classmethod
    def of(cls, is_first: Bool[np.ndarray, " children"]) -> Self:
        """Build it; `is_first` says whether each child is its parent's first."""
        packed = np.packbits(np.append(is_first, True), bitorder="little")
        words = np.zeros(-(-len(packed) // 8), dtype=_WORD)
        words.view(np.uint8)[: len(packed)] = packed
        before = np.zeros(len(words), dtype=np.uint32)
        np.cumsum(np.bitwise_count(words[:-1]), out=before[1:])
        return cls(words, before)

    def firsts(self, parents: Int64[np.ndarray, " parents"]) -> Int64[np.ndarray, " parents"]:
        """See `ChildOffsets`."""
        if len(parents) > _LOOKUPS_AT_ONCE:
            return np.concatenate(
                [self.firsts(parents[at : at + _LOOKUPS_AT_ONCE]) for at in range(0, len(parents), _LOOKUPS_AT_ONCE)]
            )
        # of the same type, or numpy would convert all of `before`
        place = self.before.searchsorted(parents.astype(np.uint32), "right") - 1
        set_bits = np.unpackbits(self.words[place].view(np.uint8), bitorder="little").view(bool).nonzero()[0]
        first = set_bits.searchsorted(np.arange(0, 64 * len(place), 64))
        nth = parents - self.before[place] + first
        values: np.ndarray = (place << 6) + (set_bits[nth] & 63)
        return values

    def parents(self, children: Int64[np.ndarray, " children"]) -> Int64[np.ndarray, " children"]:
        """See `ChildOffsets`."""
        word = children >> 6
        up_to = self.words[word] & (_ONES >> (63 - (children & 63)).astype(np.uint64))
        values: np.ndarray = self.before[word] + np.bitwise_count(up_to).astype(np.int64) - 1
        return values

    def expanded(self) -> Int32[np.ndarray, " parents+1"]:
        """See `ChildOffsets`."""
        return np.flatnonzero(np.unpackbits(self.words.view(np.uint8), bitorder="little")).astype(np.int32)

    def fits(self, parents: int, children: int, most: int) -> bool:
        """See `NumberOffsets.fits`. Words are counted, not bits: a parent may have 126 children more than `most`."""
        words, before = self.words, self.before
        last = children >> 6
        if (
            words.dtype != _WORD
            or before.dtype != np.uint32
            or words.shape != (last + 1,)
            or before.shape != (last + 1,)
        ):
            return False
        counts = np.bitwise_count(words).cumsum(dtype=np.int64)
        empty = np.diff(np.flatnonzero(words)).max(initial=1) - 1
        return bool(
            before[0] == 0
            and np.array_equal(before[1:], counts[:-1])
            and counts[-1] == parents + 1
            and words[0] & np.uint64(1)
            and words[-1] >> np.uint64(children & 63) == 1
            and 64 * empty <= most
        )

    @property
    def arrays(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """See `ChildOffsets`."""
        return {"words": self.words, "before": self.before}


@dataclass(frozen=True, eq=False)
class VokenTrie:
    """The distinct voken sequences of a set of images, and which image has which. Immutable.

    `from_vokens` and `load` create a trie; `merged_trie` creates one from a trie and later changes. An image's row
    number is its row in the matrix that `from_vokens` takes, or the number passed with it.
    """

    codebook_size: int
    """N: vokens are 0 … N - 1."""
    vokens: tuple[UInt[np.ndarray, " _"] | Column, ...]
    """For each level 1 … M: the voken of each node."""
    child_offsets: tuple[ChildOffsets, ...]
    """For each level 0 … M - 1: where each node's children start in the level below."""
    row_offsets: ChildOffsets
    """Where each leaf's rows start in `order`."""
    order: UInt8[np.ndarray, "images bytes"] | Column
    """Row numbers, sorted by sequence and ascending within a leaf. Each is stored as bytes, low byte first."""
    base: VokenTrie | None = None
    """The trie that this one presents with changes, if `merged_trie` made it."""

    @classmethod
    def from_vokens(
        cls,
        vokens: Integer[np.ndarray, "images levels"],
        codebook_size: int,
        rows: Int64[np.ndarray, " images"] | None = None,
    ) -> Self:
        """Build from a matrix with one voken sequence per row (any integer type, any memory layout).

        `rows` are the images' row numbers, ascending; by default 0 … images - 1. Sorting needs about 30 bytes per row
        beside `vokens` (M = 4, N = 1024). It is fastest if a sequence and a row number together fit into 64 bits.
        Raises `EmptyDataError` without images (see `empty`), `ConfigError` if a voken is not in 0 … N - 1, and
        `ValueError` if the array is not a matrix of integers with at least one column, or if the row numbers do not
        ascend.
        """
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] == 0:
            raise ValueError(f"voken sequences must be a matrix with a row per image; this has shape {vokens.shape}")
        if not np.issubdtype(vokens.dtype, np.integer):
            raise ValueError(f"vokens must be integers; these are {vokens.dtype}")
        if codebook_size < 1:
            raise ConfigError(f"codebook_size {codebook_size}: must be at least 1.")
        images, levels = vokens.shape
        if images == 0:
            raise EmptyDataError("There are no images to search: add pictures to the collection first.")
        if images >= 2**31 - 1:
            raise ConfigError(f"{images} images: a collection holds fewer than 2,147,483,647. Split it.")
        low, high = int(vokens.min()), int(vokens.max())
        if low < 0 or high >= codebook_size:
            wrong = low if low < 0 else high
            row = int(np.flatnonzero((vokens == wrong).any(axis=1))[0])
            raise ConfigError(
                f"row {row}: voken {wrong} is not in 0 … {codebook_size - 1}. "
                "The sequences come from another image tokenizer than this codebook_size; tokenize the images again."
            )
        if rows is not None and (len(rows) != images or (np.diff(rows, prepend=-1) <= 0).any() or rows[-1] >= 2**31):
            raise ValueError(f"{images} row numbers expected that ascend within 0 … 2,147,483,647")
        order, columns = _sorted(vokens, codebook_size)
        if rows is not None:
            order = _packed(rows[_unpacked(order)], int(rows[-1]) + 1)
        # the first level at which a row differs from the row before; one past the last level if it does not differ
        fresh = np.full(images, levels + 1, dtype=np.min_scalar_type(levels + 1))
        for level in range(levels, 0, -1):
            fresh[1:][columns[level - 1][1:] != columns[level - 1][:-1]] = level
        fresh[0] = 0
        node_vokens, child_offsets = [], []
        for level, column in enumerate(columns):
            is_node = fresh <= level + 1
            node_vokens.append(column[is_node])
            child_offsets.append(offsets_of(fresh[is_node] <= level))
        return cls(
            codebook_size=codebook_size,
            vokens=tuple(node_vokens),
            child_offsets=tuple(child_offsets),
            row_offsets=offsets_of(fresh <= levels),
            order=order,
        )

    @classmethod
    def empty(cls, levels: int, codebook_size: int) -> Self:
        """The trie of no images: a root without children."""
        nothing = np.zeros(1, dtype=np.int32)
        return cls(
            codebook_size=codebook_size,
            vokens=tuple(np.zeros(0, dtype=np.min_scalar_type(codebook_size - 1)) for _ in range(levels)),
            child_offsets=(NumberOffsets(np.zeros(2, dtype=np.int32)), *(NumberOffsets(nothing),) * (levels - 1)),
            row_offsets=NumberOffsets(nothing),
            order=np.zeros((0, 1), dtype=np.uint8),
        )

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return len(self.vokens)

    @property
    def sequences(self) -> int:
        """The number of distinct sequences (leaves)."""
        return len(self.vokens[-1])

    @property
    def images(self) -> int:
        """The number of images (rows)."""
        return len(self.order)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays().values())

    @property
    def row_nbytes(self) -> int:
        """The part of `nbytes` that maps leaves to images."""
        return self.order.nbytes + sum(array.nbytes for array in self.row_offsets.arrays.values())

    def nodes(self, level: int) -> int:
        """The number of nodes of `level` (0 … M), which is that of distinct prefixes of this length."""
        return 1 if level == 0 else len(self.vokens[level - 1])

    def rows(self, leaf: int) -> Int64[np.ndarray, " rows"]:
        """Row numbers of the images of one leaf, ascending. Raises `IndexError` if there is no such leaf."""
        return self.rows_of(np.array([leaf]))[0]

    def rows_of(
        self, leaves: Integer[np.ndarray, " leaves"]
    ) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " leaves"]]:
        """Row numbers of the images of several leaves, leaf by leaf, and how many images each leaf has."""
        start, end = self.row_offsets.ranges(self._checked(leaves))
        counts = end - start
        places = np.repeat(start - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
        return self.rows_at(places), counts

    def rows_at(self, places: Int64[np.ndarray, " places"] | slice) -> Int64[np.ndarray, " places"]:
        """Row numbers at places of `order`."""
        return _unpacked(self.order[places])

    def leaf_of(self, vokens: Integer[np.ndarray, "sequences levels"]) -> Int64[np.ndarray, " sequences"]:
        """The leaf of each sequence; -1 if no image has it. Vokens outside 0 … N - 1 match nothing."""
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] != self.levels:
            raise ValueError(f"sequences of {self.levels} vokens expected, one per row; this has shape {vokens.shape}")
        return self.node_of(vokens)

    def node_of(self, prefixes: Integer[np.ndarray, "prefixes length"]) -> Int64[np.ndarray, " prefixes"]:
        """The node of each prefix, at the level of the prefix's length; -1 if no image has it."""
        if not self.sequences:
            return np.full(len(prefixes), -1)
        nodes = np.zeros(len(prefixes), dtype=np.int64)
        for level in range(prefixes.shape[1]):
            nodes = self._child(level, nodes, prefixes[:, level].astype(np.int64))
        return nodes

    def leaf_vokens(self, leaves: Integer[np.ndarray, " leaves"]) -> Int32[np.ndarray, "leaves levels"]:
        """The voken sequences of leaves.

        Raises `IndexError` if there is no such leaf, `CorruptArtifactError` if a saved file names no voken.
        """
        nodes = self._checked(leaves)
        vokens = np.empty((len(nodes), self.levels), dtype=np.int32)
        for level in range(self.levels, 0, -1):
            vokens[:, level - 1] = self.vokens[level - 1][nodes]
            nodes = self.child_offsets[level - 1].parents(nodes)
        self.check_vokens(vokens)
        return vokens

    def check_vokens(self, vokens: Integer[np.ndarray, "*some"]) -> None:
        """Raise `CorruptArtifactError` if vokens that were read from a file are not below N.

        `load` does not read them, so whoever uses them as places in an array asks first.
        """
        if (greatest := int(vokens.max(initial=0))) >= self.codebook_size:
            raise CorruptArtifactError(
                f"A sequence of the collection names voken {greatest}, of {self.codebook_size}. {_REMEDY}"
            )

    def image_vokens(self) -> Int32[np.ndarray, "images levels"]:
        """The sequences of all images, as passed to `from_vokens`. Unpacks the whole trie.

        Raises `ValueError` if rows are not 0 … images - 1; use `row_vokens` then.
        """
        rows, vokens = self.row_vokens()
        if self.images and rows[-1] != self.images - 1:
            raise ValueError(
                f"{self.images} images have row numbers up to {rows[-1]}: some are missing. Use row_vokens"
            )
        return vokens

    def row_vokens(self) -> tuple[Int64[np.ndarray, " images"], Int32[np.ndarray, "images levels"]]:
        """All row numbers, ascending, and their sequences. Unpacks the whole trie."""
        rows = _unpacked(np.asarray(self.order))
        is_row = np.zeros(rows.max(initial=-1) + 1, dtype=bool)
        is_row[rows] = True
        place = rows if is_row.all() else (is_row.cumsum() - 1)[rows]
        vokens = np.empty((self.images, self.levels), dtype=np.int32)
        for level in range(self.levels):
            column = np.asarray(self.vokens[level])
            for starts in (*self.child_offsets[level + 1 :], self.row_offsets):
                column = np.repeat(column, np.diff(starts.expanded()))
            vokens[place, level] = column
        return np.flatnonzero(is_row), vokens

    def save(self, folder: Path) -> None:
        """Write the arrays as .npy files, and a header. To survive a crash, call it inside `voken.artifact.writing`."""
        folder = Path(folder)
        arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = self._as_plain_arrays()._arrays()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        header = {
            "format": _FORMAT,
            "codebook_size": self.codebook_size,
            "levels": self.levels,
            "arrays": {name: [array.dtype.str, *array.shape] for name, array in arrays.items()},
        }
        write_json(folder / _HEADER, header)

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True) -> Self:
        """Read what `save` wrote; `mmap` maps the files instead of reading them.

        Raises `CorruptArtifactError` for missing, cut or inconsistent files, `ArtifactVersionError` for another format.
        """
        folder = Path(folder)
        header = read_json(folder / _HEADER)
        written, codebook_size, levels, named = (
            header.get(key) for key in ("format", "codebook_size", "levels", "arrays")
        )
        if type(written) is not int or type(codebook_size) is not int or type(levels) is not int:
            raise CorruptArtifactError(f"{folder / _HEADER}: does not hold what voken saved. {_REMEDY}")
        if written > _FORMAT:
            raise ArtifactVersionError(
                f"{folder}: trie format {written} is newer than this voken reads ({_FORMAT}). Upgrade voken."
            )
        if written < _FORMAT:
            raise ArtifactVersionError(
                f"{folder}: trie format {written}, written by an older voken. Index the pictures again."
            )
        if not (0 < levels <= MAX_LEVELS and 0 < codebook_size <= MAX_ENTRIES and isinstance(named, dict)):
            raise CorruptArtifactError(
                f"{folder / _HEADER}: describes {levels} levels of {codebook_size} entries. {_REMEDY}"
            )
        arrays = {name: _read(plain_path(folder, f"{name}.npy"), expected, mmap) for name, expected in named.items()}
        try:
            columns = [arrays[f"vokens_{level}"] for level in range(1, levels + 1)]
            children = [_read_offsets(arrays, f"children_{level}") for level in range(levels)]
            rows, order = _read_offsets(arrays, "rows"), arrays["order"]
        except KeyError as error:
            raise CorruptArtifactError(f"{folder / _HEADER}: does not name {error}. {_REMEDY}") from error
        # takes milliseconds for ten million images, because it does not read the vokens and the row numbers
        smallest = np.min_scalar_type(codebook_size - 1)
        nodes = [1, *map(len, columns)]
        if (
            any(column.dtype != smallest or column.ndim != 1 for column in columns)
            or order.dtype != np.uint8
            or order.ndim != 2
            or not 1 <= order.shape[1] <= 4
            or not all(starts.fits(nodes[at], nodes[at + 1], codebook_size) for at, starts in enumerate(children))
            or not rows.fits(nodes[-1], len(order), len(order))
        ):
            raise CorruptArtifactError(f"{folder}: its arrays contradict one another. {_REMEDY}")
        return cls(codebook_size, tuple(columns), tuple(children), rows, order)

    def _as_plain_arrays(self) -> VokenTrie:
        """The same trie with plain arrays."""
        starts = (*self.child_offsets, self.row_offsets)
        columns = (*self.vokens, self.order)
        if all(isinstance(column, np.ndarray) for column in columns):
            return self
        arrays = [np.asarray(column) for column in columns]
        plain = []
        for offsets, array in zip(starts, arrays, strict=True):
            is_first = np.zeros(len(array), dtype=bool)
            is_first[offsets.expanded()[:-1]] = True
            plain.append(offsets_of(is_first))
        return VokenTrie(self.codebook_size, tuple(arrays[:-1]), tuple(plain[:-1]), plain[-1], arrays[-1])

    def _arrays(self) -> dict[str, Any]:
        arrays: dict[str, Any] = {"order": self.order}
        arrays |= {f"vokens_{level}": array for level, array in enumerate(self.vokens, start=1)}
        starts = {f"children_{level}": starts for level, starts in enumerate(self.child_offsets)}
        for name, offsets in (starts | {"rows": self.row_offsets}).items():
            arrays |= {f"{name}.{part}": array for part, array in offsets.arrays.items()}
        return arrays

    def _checked(self, leaves: Integer[np.ndarray, " leaves"]) -> Int64[np.ndarray, " leaves"]:
        leaves = np.asarray(leaves, dtype=np.int64)
        if leaves.size and (leaves.min() < 0 or leaves.max() >= self.sequences):
            raise IndexError(f"leaves must be in 0 … {self.sequences - 1}")
        return leaves

    def _child(
        self, level: int, nodes: Int64[np.ndarray, " sequences"], vokens: Int64[np.ndarray, " sequences"]
    ) -> Int64[np.ndarray, " sequences"]:
        """The child with that voken of each node of `level`; -1 if the node is -1 or has no such child."""
        low, end = self.child_offsets[level].ranges(np.maximum(nodes, 0))
        place, exists = find_between(self.vokens[level], low, end, vokens)
        return np.where(exists & (nodes >= 0), place, -1)


def find_between(
    column: UInt[np.ndarray, " _"] | Column,
    low: Int64[np.ndarray, " values"],
    end: Int64[np.ndarray, " values"],
    values: Integer[np.ndarray, " values"],
) -> tuple[Int64[np.ndarray, " values"], Bool[np.ndarray, " values"]]:
    """The place of each value in its range `low` … `end` - 1 of a column, which ascends there; and whether it exists.

    The place of a missing value is where it would be inserted. The column must not be empty.
    """
    high, last = end, len(column) - 1
    widest = int((end - low).max(initial=0))
    for _ in range(widest.bit_length()):
        middle = (low + high) // 2
        right = (middle < high) & (column[np.minimum(middle, last)] < values)
        low = np.where(right, middle + 1, low)
        high = np.where(right, high, middle)
    return low, (low < end) & (column[np.minimum(low, last)] == values)


def _sorted(
    vokens: Integer[np.ndarray, "images levels"], codebook_size: int
) -> tuple[UInt8[np.ndarray, "images bytes"], list[UInt[np.ndarray, " images"]]]:
    """The rows in lexicographic order, equal ones by number: their packed numbers, and each level's vokens."""
    images, levels = vokens.shape
    bits, row_bits = (codebook_size - 1).bit_length(), (images - 1).bit_length()
    smallest = np.min_scalar_type(codebook_size - 1)
    if levels * bits + row_bits > 64:
        by_sequence = _lexicographic_order(vokens, bits)
        return _packed(by_sequence, images), [vokens[:, level][by_sequence].astype(smallest) for level in range(levels)]
    # a sequence and its row number share a word: sorting the words is several times faster than an argsort
    words = np.empty(images, dtype=np.uint64)
    for at in range(0, images, _AT_ONCE):
        word = words[at : at + _AT_ONCE]
        word[:] = vokens[at : at + _AT_ONCE, 0]
        for level in range(1, levels):
            word <<= np.uint64(bits)
            word |= vokens[at : at + _AT_ONCE, level].astype(np.uint64)
        word <<= np.uint64(row_bits)
        word |= np.arange(at, at + len(word), dtype=np.uint64)
    words.sort()
    order = np.empty((images, row_bytes(images)), dtype=np.uint8)
    columns = [np.empty(images, dtype=smallest) for _ in range(levels)]
    for at in range(0, images, _AT_ONCE):
        word = words[at : at + _AT_ONCE]
        order[at : at + _AT_ONCE] = _packed(word & np.uint64((1 << row_bits) - 1), images)
        word >>= np.uint64(row_bits)
        for column in reversed(columns):
            column[at : at + _AT_ONCE] = word & np.uint64((1 << bits) - 1)
            word >>= np.uint64(bits)
    return order, columns


def _lexicographic_order(vokens: Integer[np.ndarray, "images levels"], bits: int) -> Int64[np.ndarray, " images"]:
    """The stable permutation that sorts the rows; as many levels as fit are packed into one sort key."""
    per_key = max(1, 64 // max(1, bits))
    keys = []
    for begin in range(0, vokens.shape[1], per_key):
        key = np.zeros(len(vokens), dtype=np.uint64)
        for level in range(begin, min(begin + per_key, vokens.shape[1])):
            key <<= np.uint64(bits)
            key |= vokens[:, level].astype(np.uint64)
        keys.append(key)
    if len(keys) == 1:
        return np.argsort(keys[0], kind="stable")
    return np.lexsort(keys[::-1])


def row_bytes(images: int) -> int:
    """The bytes of a row number, if there are so many images."""
    return max(1, -(-(images - 1).bit_length() // 8))


def _packed(rows: Integer[np.ndarray, " rows"], images: int) -> UInt8[np.ndarray, "rows bytes"]:
    """Row numbers in the bytes that `images` numbers need, low byte first."""
    whole = rows.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.ascontiguousarray(whole[:, : row_bytes(images)])


def _unpacked(packed: UInt8[np.ndarray, "rows bytes"]) -> Int64[np.ndarray, " rows"]:
    # byte by byte for all rows: eight times as fast as copying the bytes of each row
    rows = packed[:, -1].astype(np.int64)
    for place in range(packed.shape[1] - 2, -1, -1):
        rows <<= 8
        rows |= packed[:, place]
    return rows


def _read(path: Path, expected: Any, mmap: bool) -> np.ndarray[Any, np.dtype[Any]]:
    array = map_array(path)
    if [array.dtype.str, *array.shape] != expected:
        raise CorruptArtifactError(
            f"{path}: holds {array.dtype.str} {array.shape}, the header says {expected}. {_REMEDY}"
        )
    return array if mmap else array.copy()
