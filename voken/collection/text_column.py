"""Many short texts in two flat files, mapped into memory: millions of ids open in a millisecond.

`NAME.utf8` holds the texts one after another, `NAME.offsets.npy` where each starts (int64, one more than texts).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self, overload

import numpy as np
from jaxtyping import Int64, UInt8

from voken.errors import CorruptArtifactError

# file names may hold bytes that are no UTF-8; Python shows them as lone surrogates, and they must come back so
_SURROGATES = "surrogatepass"


class TextColumn(Sequence[str]):
    """A read-only sequence of texts. Make one with `of` or `load`."""

    def __init__(self, bytes_: UInt8[np.ndarray, " bytes"], offsets: Int64[np.ndarray, " texts+1"]) -> None:
        self._bytes = bytes_
        self._offsets = offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """A column of `texts`, in memory."""
        encoded = [text.encode("utf-8", _SURROGATES) for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def save(self, folder: Path, name: str) -> None:
        """Write both files into `folder`."""
        (folder / f"{name}.utf8").write_bytes(self._bytes.tobytes())
        np.save(folder / f"{name}.offsets.npy", self._offsets, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """Map what `save` wrote. Raises `CorruptArtifactError` where a file is missing or cut short."""
        path = folder / f"{name}.utf8"
        try:
            offsets = np.load(folder / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False)
            # a file of no bytes cannot be mapped
            empty = path.stat().st_size == 0
            content = np.zeros(0, np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the collection again.") from error
        if offsets.dtype != np.int64 or offsets.ndim != 1 or not len(offsets) or offsets[-1] != len(content):
            raise CorruptArtifactError(f"{path}: does not fit its offsets. Make the collection again.")
        return cls(np.asarray(content), np.asarray(offsets))

    def __len__(self) -> int:
        return len(self._offsets) - 1

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
        return self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes().decode("utf-8", _SURROGATES)
