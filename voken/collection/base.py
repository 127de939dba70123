"""The pictures of a collection as the last compaction wrote them: memory-mapped arrays, which never change.

    base.json            how many pictures there are, which of the files below exist, and the fields of the metadata
    ids.* · paths.*      one text per picture (see `TextColumn`). There is no ids file if the ids are 0, 1, 2 …, and no
                         paths file if the paths equal the ids
    lookup.*.npy         the sorted hashes of the ids, and the row of each
    trie/                the voken sequences and the pictures of each (see `voken.decoding.trie`)
    vectors.npy          float16 (pictures, dim), only if searches rerank by stored vectors
    files.npy            size, time and content hash of each file, and when the picture was taken
    metadata.*           one JSON object per picture, if any picture has metadata

Opening reads only the headers, and imports no code that reads pictures or runs a model.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from itertools import islice
from operator import eq
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from voken import artifact
from voken.data.metadata import metadata_fields
from voken.decoding.trie import VokenTrie, row_bytes
from voken.errors import CorruptArtifactError, StorageError
from voken.shapes import Float16, Int64, Shaped, UInt8, UInt32, UInt64

KIND, VERSION = "collection base", 1
FACTS = np.dtype([("size", "<i8"), ("modified", "<i8"), ("taken", "<i8"), ("hash", "V16")])
"""Bytes; nanoseconds since 1970; when it was taken (see `voken.data.dates`); BLAKE2b of the content."""
_ROWS_PER_WRITE = 1 << 14
_TEXTS_PER_BLOCK = 128
_CACHED_BLOCKS = 64
"""About a megabyte."""
_SMALL_BLOCK = 1 << 16
_AGAIN = "Index the pictures again."
_END_OF_TEXT = b"\xff"
# a file name may hold bytes that are not UTF-8; Python represents them as lone surrogates, which must be restored
_SURROGATES = "surrogatepass"


@dataclass(frozen=True, eq=False)
class Base:
    """Row i of every column is picture i."""

    ids: TextColumn | NumberColumn
    stored_paths: TextColumn | NumberColumn
    """Relative to the pictures' folder. The same object as `ids` if the two are equal."""
    trie: VokenTrie
    vectors: Float16[np.ndarray, "pictures dim"] | None = None
    facts: Shaped[np.ndarray, " pictures"] | None = None
    """Of type `FACTS`; None if the collection does not record its files."""
    metadata: TextColumn | None = None
    lookup: Lookup | None = None
    """None if the ids are numbers."""
    saved_field_names: tuple[str, ...] | None = None
    """The fields of the metadata; None if they were not saved."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, levels: int, codebook_size: int, dim: int = 0) -> Self:
        """A base without pictures. `dim` is the width of the vectors that it would store; 0 if it stores none."""
        vectors = np.zeros((0, dim), np.float16) if dim else None
        no_texts = TextColumn.of([])
        return cls(no_texts, no_texts, VokenTrie.empty(levels, codebook_size), vectors, np.zeros(0, FACTS))

    @cached_property
    def field_names(self) -> frozenset[str]:
        """The names of all fields in the pictures' metadata. If they were not saved, reads all metadata, once."""
        if self.saved_field_names is not None:
            return frozenset(self.saved_field_names)
        return frozenset(name for text in self.metadata or () for name in metadata_fields(text))

    def row_of(self, image_id: str) -> int | None:
        """The row of the picture with this id, or None."""
        if self.lookup is not None:
            return next((row for row in self.lookup.rows_of(image_id) if self.ids[row] == image_id), None)
        if isinstance(self.ids, NumberColumn):
            number = int(image_id) if image_id.isdecimal() and image_id.isascii() else -1
            return number if 0 <= number < len(self) and str(number) == image_id else None
        return next((row for row, other in enumerate(self.ids) if other == image_id), None)

    def save(self, folder: Path) -> None:
        """Write this base to `folder`, complete or not at all. Raises `StorageError` if the disk refuses."""
        write_base(
            folder,
            np.arange(len(self)),
            self.ids,
            self.stored_paths,
            self.trie,
            self.vectors,
            self.facts,
            self.metadata,
        )

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Map what `save` wrote. `verify` reads every byte and compares checksums; otherwise only sizes are compared.

        Raises `ArtifactError` if `folder` holds no base, `CorruptArtifactError` if its files were changed.
        """
        artifact.check(folder, kind=KIND, version=VERSION, checksums=verify)
        header = artifact.read_json(folder / "base.json")
        types = {"pictures": int} | dict.fromkeys(
            ("ids_are_numbers", "paths_are_ids", "with_vectors", "with_files", "with_metadata"), bool
        )
        fields = header.get("fields", [])
        if (
            any(type(header.get(name)) is not kind for name, kind in types.items())
            or not isinstance(fields, list)
            or not all(isinstance(name, str) for name in fields)
        ):
            raise CorruptArtifactError(
                f"{folder / 'base.json'}: does not hold what voken saved. Index the pictures again."
            )
        count = header["pictures"]
        trie = VokenTrie.load(folder / "trie")
        if trie.images != count or np.asarray(trie.order).shape[1] != row_bytes(count):
            raise CorruptArtifactError(f"{folder}: its files are from different collections. Index the pictures again.")
        ids = NumberColumn(count) if header["ids_are_numbers"] else TextColumn.load(folder, "ids", count)
        stored_paths = ids if header["paths_are_ids"] else TextColumn.load(folder, "paths", count)
        vectors = _map(folder / "vectors.npy", "<f2", count, columns=True) if header["with_vectors"] else None
        facts = _map(folder / "files.npy", FACTS, count) if header["with_files"] else None
        metadata = TextColumn.load(folder, "metadata", count) if header["with_metadata"] else None
        lookup = None if header["ids_are_numbers"] else Lookup.load(folder, count)
        # bases of earlier versions do not hold the fields
        field_names = tuple(fields) if "fields" in header else None
        return cls(ids, stored_paths, trie, vectors, facts, metadata, lookup, field_names)


def write_base(
    folder: Path,
    rows: Int64[np.ndarray, " pictures"],
    ids: Sequence[str],
    stored_paths: Sequence[str],
    trie: VokenTrie,
    vectors: Float16[np.ndarray, "all dim"] | AppendedRows | None,
    facts: Shaped[np.ndarray, " pictures"] | None,
    metadata: Sequence[str] | None,
) -> None:
    """Write what `Base.open` reads. The vector of picture i is `vectors[rows[i]]`; vectors are copied part by part.

    Raises `StorageError` if the disk refuses; then nothing is left behind.
    """
    numbers = all(map(eq, ids, NumberColumn(len(ids))))
    with artifact.writing(folder, kind=KIND, version=VERSION) as partial, _disk_full_errors(folder):
        if not numbers:
            TextColumn.of(ids).save(partial, "ids")
            Lookup.of(ids).save(partial)
        if stored_paths is not ids:
            TextColumn.of(stored_paths).save(partial, "paths")
        if vectors is not None:
            with open(partial / "vectors.npy", "wb") as file:
                shape = (len(rows), vectors[rows[:1]].shape[1])
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(rows), _ROWS_PER_WRITE):
                    file.write(np.ascontiguousarray(vectors[rows[start : start + _ROWS_PER_WRITE]], "<f2").data)
        if facts is not None:
            np.save(partial / "files.npy", facts, allow_pickle=False)
        with_metadata = metadata is not None and any(metadata)
        if with_metadata and metadata is not None:
            TextColumn.of(metadata).save(partial, "metadata")
        fields = {name for text in metadata or () for name in metadata_fields(text)}
        trie.save(partial / "trie")
        artifact.write_json(
            partial / "base.json",
            {
                "pictures": len(ids),
                "ids_are_numbers": numbers,
                "paths_are_ids": stored_paths is ids,
                "with_vectors": vectors is not None,
                "with_files": facts is not None,
                "with_metadata": with_metadata,
                "fields": sorted(fields),
            },
        )


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows by the hash of their id."""

    hashes: UInt64[np.ndarray, " pictures"]
    """Ascending."""
    rows: UInt32[np.ndarray, " pictures"]

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """A lookup of `ids`, which are in the order of their rows."""
        hashes = np.fromiter(map(_hash, ids), dtype=np.uint64, count=len(ids))
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.uint32))

    def rows_of(self, image_id: str) -> list[int]:
        """The rows whose id has the same hash as `image_id`: nearly always one or none."""
        key = np.uint64(_hash(image_id))
        low, high = self.hashes.searchsorted(key, "left"), self.hashes.searchsorted(key, "right")
        rows: list[int] = self.rows[low:high].tolist()
        if rows and max(rows) >= len(self.rows):
            raise CorruptArtifactError(f"The lookup of ids names the picture {max(rows)} of {len(self.rows)}. {_AGAIN}")
        return rows

    def save(self, folder: Path) -> None:
        """Write both arrays into `folder`."""
        np.save(folder / "lookup.hashes.npy", self.hashes, allow_pickle=False)
        np.save(folder / "lookup.rows.npy", self.rows, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, pictures: int) -> Self:
        """Map what `save` wrote. Raises `CorruptArtifactError` if the files are not for so many `pictures`."""
        hashes = _map(folder / "lookup.hashes.npy", "<u8", pictures)
        return cls(hashes, _map(folder / "lookup.rows.npy", "<u4", pictures))


class _Texts(Sequence[str]):
    """A sequence of texts; subclasses read one row."""

    def _text(self, row: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(row) for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self._text(row)


class TextColumn(_Texts):
    """A read-only sequence of short texts, compressed in blocks and memory-mapped. Create one with `of` or `load`.

    Millions of ids open in a millisecond. `NAME.zlib` holds blocks of 128 texts; each text ends with a byte that UTF-8
    never uses. `NAME.blocks.npy` holds the start of each block and the end of the last block, as int64. Reading a text
    unpacks its block, which takes about 20 µs. The 64 blocks used last are cached.
    """

    def __init__(
        self, content: UInt8[np.ndarray, " bytes"], starts: Int64[np.ndarray, " blocks+1"], texts: int, name: str = ""
    ) -> None:
        self._content = content
        self._starts = starts
        self._texts = texts
        self._name = name
        self._block = lru_cache(_CACHED_BLOCKS)(self._unpack)

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """A column of `texts`, in memory."""
        remaining, count = iter(texts), 0
        blocks, starts = [], [0]
        while block := list(islice(remaining, _TEXTS_PER_BLOCK)):
            plain = b"".join(text.encode("utf-8", _SURROGATES) + _END_OF_TEXT for text in block)
            packed = zlib.compress(plain, 9)
            blocks.append(packed if len(plain) <= _most_bytes(len(packed)) else zlib.compress(plain, 0))
            starts.append(starts[-1] + len(blocks[-1]))
            count += len(block)
        return cls(np.frombuffer(b"".join(blocks), dtype=np.uint8), np.array(starts, dtype=np.int64), count)

    def save(self, folder: Path, name: str) -> None:
        """Write both files into `folder`."""
        (folder / f"{name}.zlib").write_bytes(self._content.data)
        np.save(folder / f"{name}.blocks.npy", self._starts, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, name: str, texts: int) -> Self:
        """Map what `save` wrote. Raises `CorruptArtifactError` if the files cannot hold so many `texts`."""
        path = folder / f"{name}.zlib"
        starts = artifact.map_array(folder / f"{name}.blocks.npy")
        blocks = -(-texts // _TEXTS_PER_BLOCK)
        with artifact.open_file(path) as file:
            # an empty file cannot be mapped
            empty = os.fstat(file.fileno()).st_size == 0
            content = np.zeros(0, np.uint8) if empty else np.memmap(file, dtype=np.uint8, mode="r")
        if (
            starts.dtype != np.int64
            or starts.shape != (blocks + 1,)
            or starts[0] != 0
            or starts[-1] != len(content)
            or (np.diff(starts) < 0).any()
        ):
            raise CorruptArtifactError(f"{path}: its size is not that of its blocks. Index the pictures again.")
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
                yield self._decode(text)

    def _text(self, row: int) -> str:
        return self._decode(self._block(row // _TEXTS_PER_BLOCK)[row % _TEXTS_PER_BLOCK])

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8", _SURROGATES)
        except UnicodeDecodeError as error:
            raise CorruptArtifactError(f"{self._name}: is damaged ({error}). Index the pictures again.") from error

    def _unpack(self, block: int) -> list[bytes]:
        """The encoded texts of a block. Raises `CorruptArtifactError` if the block is damaged."""
        expected = min(_TEXTS_PER_BLOCK, self._texts - block * _TEXTS_PER_BLOCK)
        packed = self._content[self._starts[block] : self._starts[block + 1]].data
        decompressor = zlib.decompressobj()
        most = _most_bytes(len(packed))
        try:
            # the zlib format carries a checksum, which is compared here
            plain = decompressor.decompress(packed, most + 1)
        except zlib.error as error:
            raise CorruptArtifactError(f"{self._name}: is damaged ({error}). Index the pictures again.") from error
        if len(plain) > most or not decompressor.eof:
            why = (
                f"block {block} unpacks to over {most:,} bytes" if len(plain) > most else f"block {block} is cut short"
            )
            raise CorruptArtifactError(f"{self._name}: is damaged ({why}). Index the pictures again.")
        texts = plain.split(_END_OF_TEXT, expected + 1)[:-1]
        if len(texts) != expected:
            raise CorruptArtifactError(
                f"{self._name}: block {block} holds {len(texts)} texts, not {expected}. Index the pictures again."
            )
        return texts


class NumberColumn(_Texts):
    """The numbers below `count` as texts, "0", "1", "2" …: ids that take no bytes."""

    nbytes = 0

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return map(str, range(self._count))

    def _text(self, row: int) -> str:
        return str(row)


class AppendedTextColumn(_Texts):
    """A base column, and the texts added since, by row number. The rows of removed pictures hold the empty text."""

    def __init__(self, base: TextColumn | NumberColumn, added: Mapping[int, str]) -> None:
        self._base, self._added = base, added
        self._length = max([len(base), *(row + 1 for row in added)])
        self.nbytes = base.nbytes + sum(map(len, added.values()))

    def __len__(self) -> int:
        return self._length

    def _text(self, row: int) -> str:
        return self._base[row] if row < len(self._base) else self._added.get(row, "")


@dataclass(frozen=True, eq=False)
class AppendedRows:
    """The rows of a base array, and the rows added since, whose numbers begin where the base ends."""

    base: Shaped[np.ndarray, base * row]
    added: Shaped[np.ndarray, added * row]
    added_rows: Int64[np.ndarray, " added"]
    """The row number of each added row, ascending; numbers of removed pictures are missing."""

    @property
    def nbytes(self) -> int:
        """Bytes of both parts."""
        return self.base.nbytes + self.added.nbytes

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype of the values."""
        dtype: np.dtype[np.generic] = self.base.dtype
        return dtype

    def __getitem__(self, rows: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, rows * row]:
        """The values of `rows`. A removed picture has no defined value; a row past the end raises IndexError."""
        rows = np.asarray(rows)
        values = np.empty((*rows.shape, *self.base.shape[1:]), self.base.dtype)
        is_base = rows < len(self.base)
        values[is_base] = self.base[rows[is_base]]
        values[~is_base] = self.added[self.added_rows.searchsorted(rows[~is_base])]
        return values


def column(texts: Sequence[str]) -> TextColumn | NumberColumn:
    """A column of `texts` in memory: a `NumberColumn` if they are 0, 1, 2 …, else a `TextColumn`."""
    numbers = NumberColumn(len(texts))
    return numbers if all(map(eq, texts, numbers)) else TextColumn.of(texts)


def _map(path: Path, dtype: str | np.dtype[Any], rows: int, *, columns: bool = False) -> np.ndarray:
    """Map an array of `rows` rows. Raises `CorruptArtifactError` if it has another type or size."""
    array: np.ndarray = artifact.map_array(path)
    if array.dtype != np.dtype(dtype) or array.ndim != 1 + columns or len(array) != rows:
        raise CorruptArtifactError(f"{path}: holds {array.dtype} {array.shape}, and not one per picture. {_AGAIN}")
    return array


def _most_bytes(packed: int) -> int:
    """The most bytes that a block of `packed` bytes may unpack to. A block that compresses better is not compressed.

    A small file must not fill the memory: zlib reaches 1 : 1,000.
    """
    return max(_SMALL_BLOCK, min(256 * packed, 64 * _SMALL_BLOCK), 32 * packed)


def _hash(image_id: str) -> int:
    return int.from_bytes(blake2b(image_id.encode("utf-8", _SURROGATES), digest_size=8).digest(), "little")


@contextmanager
def _disk_full_errors(folder: Path) -> Iterator[None]:
    """Raise `StorageError` if numpy reports a full disk: its OSError has no number for `artifact.storage_errors`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise StorageError(
                f"{folder}: the disk stored only a part ({error}). Free some space and run the same command again; "
                "what was saved before is untouched."
            ) from error
        raise
