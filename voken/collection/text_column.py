"""Many short texts, compressed in small blocks and mapped into memory: millions of ids open in a millisecond.

`NAME.zlib` holds the blocks one after another, 128 texts each, every text ended by a byte that UTF-8 never uses;
`NAME.blocks.npy` says where each block starts (int64, one more than blocks). A text costs the unpacking of its
block, about 20 µs; the last few blocks are remembered.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Self, overload

import numpy as np

from voken.errors import CorruptArtifactError
from voken.shapes import Int64, UInt8

_BLOCK = 128
_REMEMBERED = 64
"""Blocks; about a megabyte."""
_END = b"\xff"
# file names may hold bytes that are no UTF-8; Python shows them as lone surrogates, and they must come back so
_SURROGATES = "surrogatepass"


class TextColumn(Sequence[str]):
    """A read-only sequence of texts. Make one with `of` or `load`."""

    def __init__(
        self, content: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " blocks+1"], texts: int, name: str = ""
    ) -> None:
        self._content = content
        self._starts = starts
        self._texts = texts
        self._name = name
        self._block = lru_cache(_REMEMBERED)(self._unpack)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """A column of `texts`, in memory."""
        remaining, count = iter(texts), 0
        blocks, starts = [], [0]
        while block := list(islice(remaining, _BLOCK)):
            plain = b"".join(text.encode("utf-8", _SURROGATES) + _END for text in block)
            blocks.append(zlib.compress(plain, 9))
            starts.append(starts[-1] + len(blocks[-1]))
            count += len(block)
        return cls(np.frombuffer(b"".join(blocks), dtype=np.uint8), np.array(starts, dtype=np.int64), count)

    def save(self, folder: Path, name: str) -> None:
        """Write both files into `folder`."""
        (folder / f"{name}.zlib").write_bytes(self._content.data)
        np.save(folder / f"{name}.blocks.npy", self._starts, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str, texts: int) -> Self:
        """Map what `save` wrote, `texts` texts. Raises `CorruptArtifactError` where that cannot be what is there."""
        path = folder / f"{name}.zlib"
        try:
            starts = np.load(folder / f"{name}.blocks.npy", mmap_mode="r", allow_pickle=False)
            # a file of no bytes cannot be mapped
            empty = path.stat().st_size == 0
            content = np.zeros(0, np.uint8) if empty else np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the collection again.") from error
        if starts.dtype != np.int64 or starts.shape != (-(-texts // _BLOCK) + 1,) or starts[-1] != len(content):
            raise CorruptArtifactError(f"{path}: does not fit its blocks. Make the collection again.")
        return cls(np.asarray(content), np.asarray(starts), texts, str(path))

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self._content.nbytes + self._starts.nbytes

    def __len__(self) -> int:
        return self._texts

    def __iter__(self) -> Iterator[str]:
        for block in range(len(self._starts) - 1):
            for text in self._unpack(block):
                yield text.decode("utf-8", _SURROGATES)

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
        return self._block(row // _BLOCK)[row % _BLOCK].decode("utf-8", _SURROGATES)

    def _unpack(self, block: int) -> list[bytes]:
        """Raises `CorruptArtifactError` where the block is not what was written."""
        wanted = min(_BLOCK, self._texts - block * _BLOCK)
        try:
            # the format carries a checksum, so that what is unpacked is what was packed
            plain = zlib.decompress(self._content[self._starts[block] : self._starts[block + 1]].data)
        except zlib.error as error:
            raise CorruptArtifactError(f"{self._name}: is damaged ({error}). Make the collection again.") from error
        texts = plain.split(_END)[:-1]
        if len(texts) != wanted:
            raise CorruptArtifactError(
                f"{self._name}: block {block} holds {len(texts)} texts, not {wanted}. Make the collection again."
            )
        return texts
