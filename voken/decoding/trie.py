"""Which voken sequences exist, as sorted integer arrays.

    images     0: [3, 1]    sorted     [0, 2]  leaf 0  rows 1
               1: [0, 2]    sequences  [3, 1]  leaf 1  rows 0, 3
               2: [3, 2]               [3, 2]  leaf 2  rows 2
               3: [3, 1]

A *node* of level l is a distinct prefix of length l, numbered in lexicographic order within its level;
the root is node 0 of level 0 and a *leaf* a node of level M. The children of a node are neighbours in
the level below, so a level is two arrays: the voken of each node, and where each node's children start.
Numbers grow with the order of the sequences, so that "lower node" means "lexicographically first".

This module does not know what a picture, a text or a probability is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from jaxtyping import Int, Int32, Int64, Integer

from voken.artifact import storage_errors, write_json
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, EmptyDataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_HEADER = "trie.json"
_FORMAT = 1
_MOST_DENSE_ENTRIES = 1 << 22
"""Largest dense table of level 2 (16 MB); above it the level is searched as the deeper ones are."""
_LEAST_DENSE_FILL = 0.125
"""A table of level 2 emptier than this costs more time and memory than the lists of children do."""


@dataclass(frozen=True, eq=False)
class VokenTrie:
    """The distinct voken sequences of a set of images, and which image has which. Immutable.

    Make one with `from_vokens` or `load`. `rows` are row numbers of the matrix given to `from_vokens`.
    """

    codebook_size: int
    """N: vokens are 0 … N - 1."""
    vokens: tuple[Int32[np.ndarray, " nodes"], ...]
    """For each level 1 … M: the voken of each node."""
    child_starts: tuple[Int32[np.ndarray, " nodes+1"], ...]
    """For each level 0 … M - 1: children of node n are nodes child_starts[n] … child_starts[n + 1] - 1 below."""
    row_starts: Int32[np.ndarray, " leaves+1"]
    """Rows of leaf f are order[row_starts[f]] … order[row_starts[f + 1] - 1]."""
    order: Int32[np.ndarray, " images"]
    """Row numbers, sorted by sequence, ascending within a leaf."""
    first: Int32[np.ndarray, " N"]
    """Node of level 1 for each voken, -1 where no sequence starts with it."""
    second: Int32[np.ndarray, "nodes N"] | None
    """Node of level 2 for each node of level 1 and voken, -1 where none; None where a table does not pay."""
    _on_device: dict[str, TorchTrie] = field(default_factory=dict, repr=False)

    @classmethod
    def from_vokens(cls, vokens: Integer[np.ndarray, "images levels"], codebook_size: int) -> Self:
        """Build from one voken sequence a row (any integer type, any memory layout).

        Raises `EmptyDataError` without images, `ConfigError` where a voken is not in 0 … N - 1, and
        `ValueError` where the array is not a matrix of integers with at least one column.
        """
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] == 0:
            raise ValueError(f"voken sequences must be a matrix, a row an image; this has shape {vokens.shape}")
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
        order = _lexicographic_order(vokens, codebook_size)
        ordered = vokens[order].astype(np.int32)
        is_new = np.zeros(images, dtype=bool)
        is_new[0] = True
        starts = [np.zeros(1, dtype=np.int64)]
        node_vokens, child_starts = [], []
        for level in range(levels):
            is_new[1:] |= ordered[1:, level] != ordered[:-1, level]
            starts.append(np.flatnonzero(is_new))
            node_vokens.append(np.ascontiguousarray(ordered[starts[-1], level]))
            child_starts.append(np.append(np.searchsorted(starts[-1], starts[-2]), len(starts[-1])).astype(np.int32))
        first = np.full(codebook_size, -1, dtype=np.int32)
        first[node_vokens[0]] = np.arange(len(node_vokens[0]), dtype=np.int32)
        return cls(
            codebook_size=codebook_size,
            vokens=tuple(node_vokens),
            child_starts=tuple(child_starts),
            row_starts=np.append(starts[-1], images).astype(np.int32),
            order=order.astype(np.int32),
            first=first,
            second=_second_table(node_vokens, child_starts, codebook_size),
        )

    @property
    def levels(self) -> int:
        """M: vokens of a sequence."""
        return len(self.vokens)

    @property
    def sequences(self) -> int:
        """How many distinct sequences (leaves) there are."""
        return len(self.vokens[-1])

    @property
    def images(self) -> int:
        """How many images (rows) there are."""
        return len(self.order)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays().values())

    def nodes(self, level: int) -> int:
        """How many distinct prefixes of length `level` there are (0 … M)."""
        return 1 if level == 0 else len(self.vokens[level - 1])

    def rows(self, leaf: int) -> Int64[np.ndarray, " rows"]:
        """Row numbers of the images of one leaf, ascending. `IndexError` where there is no such leaf."""
        if not 0 <= leaf < self.sequences:
            raise IndexError(f"leaf {leaf} is not in 0 … {self.sequences - 1}")
        return np.asarray(self.order[self.row_starts[leaf] : self.row_starts[leaf + 1]], dtype=np.int64)

    def leaf_of(self, vokens: Integer[np.ndarray, "sequences levels"]) -> Int64[np.ndarray, " sequences"]:
        """The leaf of each sequence, -1 where no image has it. Vokens outside 0 … N - 1 are no image's."""
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] != self.levels:
            raise ValueError(f"sequences of {self.levels} vokens expected, a row each; this has shape {vokens.shape}")
        nodes = np.zeros(len(vokens), dtype=np.int64)
        for level in range(self.levels):
            nodes = self._child(level, nodes, vokens[:, level].astype(np.int64))
        return nodes

    def leaf_vokens(self, leaves: Integer[np.ndarray, " leaves"]) -> Int32[np.ndarray, "leaves levels"]:
        """The voken sequences of leaves. `IndexError` where there is no such leaf."""
        nodes = np.asarray(leaves, dtype=np.int64)
        if nodes.size and (nodes.min() < 0 or nodes.max() >= self.sequences):
            raise IndexError(f"leaves must be in 0 … {self.sequences - 1}")
        vokens = np.empty((len(nodes), self.levels), dtype=np.int32)
        for level in range(self.levels, 0, -1):
            vokens[:, level - 1] = self.vokens[level - 1][nodes]
            nodes = np.searchsorted(self.child_starts[level - 1], nodes, side="right") - 1
        return vokens

    def to_torch(self, device: torch.device | str = "cpu") -> TorchTrie:
        """The arrays a search needs, on `device`: shared with this trie on the CPU, copied once elsewhere."""
        key = str(device)
        if key not in self._on_device:
            self._on_device[key] = TorchTrie.of(self, device)
        return self._on_device[key]

    def save(self, folder: Path) -> None:
        """Write the arrays as .npy files and a header. Put it inside `voken.artifact.writing` to be crash-safe."""
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, array in self._arrays().items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
        header = {
            "format": _FORMAT,
            "codebook_size": self.codebook_size,
            "levels": self.levels,
            "lengths": {name: list(array.shape) for name, array in self._arrays().items()},
        }
        write_json(folder / _HEADER, header)

    @classmethod
    def load(cls, folder: Path, *, mmap: bool = True) -> Self:
        """Read what `save` wrote; `mmap` maps the files instead of reading them (copy-on-write, never written back).

        Raises `CorruptArtifactError` for missing, cut or inconsistent files, `ArtifactVersionError` for a newer format.
        """
        folder = Path(folder)
        try:
            header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
            written, codebook_size, levels = (int(header[key]) for key in ("format", "codebook_size", "levels"))
            lengths = {name: tuple(shape) for name, shape in header["lengths"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptArtifactError(
                f"{folder / _HEADER}: cannot be read ({error}). Make the collection again."
            ) from error
        if written > _FORMAT:
            raise ArtifactVersionError(
                f"{folder}: trie format {written} is newer than this voken reads ({_FORMAT}). Upgrade voken."
            )

        def read(name: str) -> Int32[np.ndarray, "*shape"]:
            path = folder / f"{name}.npy"
            try:
                array = np.load(path, mmap_mode="c" if mmap else None, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the collection again.") from error
            if array.dtype != np.int32 or array.shape != lengths.get(name):
                raise CorruptArtifactError(
                    f"{path}: holds {array.dtype} {array.shape}, the header says int32 {lengths.get(name)}. "
                    "Make the collection again."
                )
            return np.asarray(array)

        return cls(
            codebook_size=codebook_size,
            vokens=tuple(read(f"vokens_{level}") for level in range(1, levels + 1)),
            child_starts=tuple(read(f"child_starts_{level}") for level in range(levels)),
            row_starts=read("row_starts"),
            order=read("order"),
            first=read("first"),
            second=read("second") if "second" in lengths else None,
        )

    def _arrays(self) -> dict[str, np.ndarray[Any, np.dtype[np.int32]]]:
        arrays = {"row_starts": self.row_starts, "order": self.order, "first": self.first}
        if self.second is not None:
            arrays["second"] = self.second
        arrays |= {f"vokens_{level}": array for level, array in enumerate(self.vokens, start=1)}
        arrays |= {f"child_starts_{level}": array for level, array in enumerate(self.child_starts)}
        return arrays

    def _child(
        self, level: int, nodes: Int64[np.ndarray, " sequences"], vokens: Int64[np.ndarray, " sequences"]
    ) -> Int64[np.ndarray, " sequences"]:
        """The child with that voken of each node of `level`, -1 where the node is -1 or has none."""
        starts, below = self.child_starts[level], self.vokens[level]
        low = starts[np.maximum(nodes, 0)].astype(np.int64)
        end = starts[np.maximum(nodes, 0) + 1].astype(np.int64)
        high = end.copy()
        widest = int((end - low).max(initial=0))
        for _ in range(widest.bit_length()):
            middle = (low + high) // 2
            right = (middle < high) & (below[np.minimum(middle, len(below) - 1)] < vokens)
            low = np.where(right, middle + 1, low)
            high = np.where(right, high, middle)
        found = (nodes >= 0) & (low < end) & (below[np.minimum(low, len(below) - 1)] == vokens)
        return np.where(found, low, -1)


@dataclass(frozen=True, eq=False)
class TorchTrie:
    """A `VokenTrie`'s arrays on a device, and the expansion of many nodes at once."""

    counts: tuple[int, ...]
    """Nodes of levels 0 … M."""
    vokens: tuple[Int[Tensor, " nodes"], ...]
    child_starts: tuple[Int[Tensor, " nodes+1"], ...]
    first: Int[Tensor, " N"]
    second: Int[Tensor, "nodes N"] | None

    @classmethod
    def of(cls, trie: VokenTrie, device: torch.device | str) -> Self:
        """Share (CPU) or copy (elsewhere) the arrays of `trie`."""
        import torch

        def on(array: Int32[np.ndarray, "*shape"]) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            counts=tuple(trie.nodes(level) for level in range(trie.levels + 1)),
            vokens=tuple(map(on, trie.vokens)),
            child_starts=tuple(map(on, trie.child_starts)),
            first=on(trie.first),
            second=None if trie.second is None else on(trie.second),
        )

    @property
    def levels(self) -> int:
        """M: vokens of a sequence."""
        return len(self.vokens)

    @property
    def codebook_size(self) -> int:
        """N: vokens are 0 … N - 1."""
        return len(self.first)

    def children(
        self, level: int, nodes: Int[Tensor, "queries beams"]
    ) -> tuple[Int[Tensor, "queries beams width"], bool]:
        """The children of nodes of `level` (0 … M - 1), as nodes of the level below; -1 fills the width.

        The second value says whether the width is the codebook, i.e. column v holds the child with voken v;
        otherwise the children stand first, in order. In both cases children ascend along the width.
        """
        import torch

        if level == 0:
            return self.first.long().expand(*nodes.shape, -1), True
        if level == 1 and self.second is not None:
            return self.second[nodes].long(), True
        starts = self.child_starts[level]
        start = starts[nodes].long().unsqueeze(-1)
        end = starts[nodes + 1].long().unsqueeze(-1)
        width = int((end - start).max())
        child = start + torch.arange(width, device=start.device)
        return torch.where(child < end, child, -1), False

    def voken_of(self, level: int, nodes: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The last voken of nodes of `level` (1 … M)."""
        return self.vokens[level - 1][nodes].long()


def _lexicographic_order(
    vokens: Integer[np.ndarray, "images levels"], codebook_size: int
) -> Int64[np.ndarray, " images"]:
    """The stable permutation that sorts the rows; as many levels as fit are packed into one sort key."""
    bits = max(1, (codebook_size - 1).bit_length())
    per_key = max(1, 63 // bits)
    keys = []
    for begin in range(0, vokens.shape[1], per_key):
        key = np.zeros(len(vokens), dtype=np.int64)
        for level in range(begin, min(begin + per_key, vokens.shape[1])):
            key = (key << bits) | vokens[:, level].astype(np.int64)
        keys.append(key)
    if len(keys) == 1:
        return np.argsort(keys[0], kind="stable")
    return np.lexsort(keys[::-1])


def _second_table(
    vokens: list[Int32[np.ndarray, " nodes"]], child_starts: list[Int32[np.ndarray, " nodes+1"]], codebook_size: int
) -> Int32[np.ndarray, "nodes N"] | None:
    if len(vokens) < 2:
        return None
    above, below = len(vokens[0]), len(vokens[1])
    if above * codebook_size > _MOST_DENSE_ENTRIES or below < _LEAST_DENSE_FILL * above * codebook_size:
        return None
    table = np.full((above, codebook_size), -1, dtype=np.int32)
    table[np.repeat(np.arange(above), np.diff(child_starts[1])), vokens[1]] = np.arange(below, dtype=np.int32)
    return table
