"""Columns that have grown since they were written: row i of what is mapped, or of what was added since.

Rows of what was added are numbered from where the mapped ones end, and may have holes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from voken.shapes import Int64, Shaped


class GrownTexts(Sequence[str]):
    """A column of texts and some more by row number. What a hole holds is the empty text."""

    def __init__(self, base: Sequence[str], added: Mapping[int, str], added_bytes: int, base_bytes: int) -> None:
        self._base, self._added = base, added
        self._length = max([len(base), *(row + 1 for row in added)])
        self.nbytes = base_bytes + added_bytes

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self._base[row] if row < len(self._base) else self._added.get(row, "")


@dataclass(frozen=True, eq=False)
class GrownRows:
    """Rows of numbers and some more, taken by row number."""

    base: Shaped[np.ndarray, base * row]
    added: Shaped[np.ndarray, added * row]
    added_rows: Int64[np.ndarray, " added"]
    """Ascending."""

    @property
    def nbytes(self) -> int:
        """Of both parts."""
        return self.base.nbytes + self.added.nbytes

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of a number."""
        found: np.dtype[np.generic] = self.base.dtype
        return found

    def __getitem__(self, rows: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, rows * row]:
        """Rows that are there. Holes and numbers past the end give nonsense or IndexError."""
        rows = np.asarray(rows)
        found = np.empty((*rows.shape, *self.base.shape[1:]), self.base.dtype)
        old = rows < len(self.base)
        found[old] = self.base[rows[old]]
        found[~old] = self.added[self.added_rows.searchsorted(rows[~old])]
        return found
