"""A collection's pictures as mapped arrays, as they were when they were last written out in one piece. Immutable.

    base.json            how many pictures, and which of the parts below there are
    ids.* · paths.*      a text each picture (see `text_column`); no ids where they are 0, 1, 2 …, no paths where they
                         are the ids
    lookup.*.npy         hashes of the ids, sorted, and whose they are
    trie/                the voken sequences and who has them (see `voken.decoding.trie`)
    vectors.npy          float16 (pictures, dim), only where a rerank by stored vectors is wanted
    files.npy            size, time and content hash of each file, and when the picture was taken
    metadata.*           a JSON object each picture, where any has one

Opening imports nothing that reads pictures or runs a model, and reads nothing but the headers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from operator import eq
from pathlib import Path
from typing import Self

import numpy as np

from voken import artifact
from voken.collection.number_column import NumberColumn
from voken.collection.text_column import TextColumn
from voken.decoding.trie import VokenTrie
from voken.errors import CorruptArtifactError, StorageError
from voken.shapes import Float16, Int64, Shaped, UInt32, UInt64

KIND, VERSION = "collection base", 1
FACTS = np.dtype([("size", "<i8"), ("modified", "<i8"), ("taken", "<i8"), ("hash", "V16")])
"""Bytes; nanoseconds since 1970; seconds since 1970, local time read as UTC; BLAKE2b of the content."""
_AT_ONCE = 1 << 14


@dataclass(frozen=True, eq=False)
class Base:
    """Row i of every column is picture i."""

    ids: TextColumn | NumberColumn
    names: TextColumn | NumberColumn
    """Paths, relative to the pictures' folder. `ids` itself where equal."""
    trie: VokenTrie
    vectors: Float16[np.ndarray, "pictures dim"] | None = None
    facts: Shaped[np.ndarray, " pictures"] | None = None
    """Of `FACTS`; None where nobody looked at the files."""
    metadata: TextColumn | None = None
    lookup: Lookup | None = None
    """None where the ids are numbers."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def empty(cls, levels: int, codebook_size: int, dim: int = 0) -> Self:
        """Without pictures; `dim` is the width of the vectors there would be, 0 for none."""
        vectors = np.zeros((0, dim), np.float16) if dim else None
        none = TextColumn.of([])
        return cls(none, none, VokenTrie.empty(levels, codebook_size), vectors, np.zeros(0, FACTS))

    def row_of(self, image_id: str) -> int | None:
        """Whose id it is."""
        if self.lookup is not None:
            return next((row for row in self.lookup.rows_of(image_id) if self.ids[row] == image_id), None)
        if isinstance(self.ids, NumberColumn):
            number = int(image_id) if image_id.isdecimal() and image_id.isascii() else -1
            return number if 0 <= number < len(self) and str(number) == image_id else None
        return next((row for row, name in enumerate(self.ids) if name == image_id), None)

    def save(self, folder: Path) -> None:
        """Write it as the folder `folder`, whole or not at all. Raises `StorageError` where the disk refuses."""
        vectors = self.vectors
        write_base(
            folder,
            self.ids,
            self.ids if self.names is self.ids else self.names,
            self.trie,
            None if vectors is None else (lambda rows: vectors[rows], vectors.shape[1]),
            self.facts,
            self.metadata,
        )

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Map what was written. `verify` reads all of it and compares checksums; otherwise only sizes are.

        Raises `ArtifactError` if there is none, `CorruptArtifactError` where it is not what was written.
        """
        artifact.check(folder, kind=KIND, version=VERSION, checksums=verify)
        described = artifact.read_json(folder / "base.json")
        try:
            count = int(described["pictures"])
            ids = NumberColumn(count) if described["ids_are_numbers"] else TextColumn.load(folder, "ids", count)
            names = ids if described["paths_are_ids"] else TextColumn.load(folder, "paths", count)
            trie = VokenTrie.load(folder / "trie")
            vectors = mapped(folder / "vectors.npy") if described["with_vectors"] else None
            facts = mapped(folder / "files.npy") if described["with_files"] else None
            metadata = TextColumn.load(folder, "metadata", count) if described["with_metadata"] else None
            lookup = None if described["ids_are_numbers"] else Lookup.load(folder)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{folder / 'base.json'}: is not what was saved there ({error!r}). Make the collection again."
            ) from error
        lengths = {trie.images, *(len(part) for part in (vectors, facts) if part is not None)}
        if lengths != {count}:
            raise CorruptArtifactError(f"{folder}: its parts are not of one collection. Make the collection again.")
        return cls(ids, names, trie, vectors, facts, metadata, lookup)


@dataclass(frozen=True, eq=False)
class Lookup:
    """Rows by the hash of their id."""

    hashes: UInt64[np.ndarray, " pictures"]
    """Ascending."""
    rows: UInt32[np.ndarray, " pictures"]

    @classmethod
    def of(cls, ids: Sequence[str]) -> Self:
        """Of the ids in order."""
        hashes = np.fromiter(map(_hash, ids), dtype=np.uint64, count=len(ids))
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.uint32))

    def rows_of(self, image_id: str) -> list[int]:
        """Rows whose id has the same hash: nearly always one or none."""
        wanted = np.uint64(_hash(image_id))
        low, high = self.hashes.searchsorted(wanted, "left"), self.hashes.searchsorted(wanted, "right")
        found: list[int] = self.rows[low:high].tolist()
        return found

    def save(self, folder: Path) -> None:
        """Two files."""
        np.save(folder / "lookup.hashes.npy", self.hashes, allow_pickle=False)
        np.save(folder / "lookup.rows.npy", self.rows, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Map them."""
        return cls(mapped(folder / "lookup.hashes.npy"), mapped(folder / "lookup.rows.npy"))


def write_base(
    folder: Path,
    ids: Sequence[str],
    names: Sequence[str],
    trie: VokenTrie,
    vectors: tuple[Callable[[Int64[np.ndarray, " rows"]], Float16[np.ndarray, "rows dim"]], int] | None,
    facts: Shaped[np.ndarray, " pictures"] | None,
    metadata: Sequence[str] | None,
) -> None:
    """Write what `Base.open` reads. `vectors` gives those of some rows, and their width: never all are held at once.

    Raises `StorageError` where the disk refuses; then nothing is left behind.
    """
    numbers = all(map(eq, ids, NumberColumn(len(ids))))
    with artifact.writing(folder, kind=KIND, version=VERSION) as partial, _full_disk(folder):
        if not numbers:
            TextColumn.of(ids).save(partial, "ids")
            Lookup.of(ids).save(partial)
        same = names is ids
        if not same:
            TextColumn.of(names).save(partial, "paths")
        if vectors is not None:
            rows_of, dim = vectors
            with open(partial / "vectors.npy", "wb") as file:
                header = {"descr": "<f2", "fortran_order": False, "shape": (len(ids), dim)}
                np.lib.format.write_array_header_1_0(file, header)
                for at in range(0, len(ids), _AT_ONCE):
                    file.write(np.ascontiguousarray(rows_of(np.arange(at, min(at + _AT_ONCE, len(ids)))), "<f2").data)
        if facts is not None:
            np.save(partial / "files.npy", facts, allow_pickle=False)
        with_metadata = metadata is not None and any(metadata)
        if with_metadata and metadata is not None:
            TextColumn.of(metadata).save(partial, "metadata")
        trie.save(partial / "trie")
        artifact.write_json(
            partial / "base.json",
            {
                "pictures": len(ids),
                "ids_are_numbers": numbers,
                "paths_are_ids": same,
                "with_vectors": vectors is not None,
                "with_files": facts is not None,
                "with_metadata": with_metadata,
            },
        )


def column(texts: Sequence[str]) -> TextColumn | NumberColumn:
    """In memory, as short as they can be."""
    numbers = NumberColumn(len(texts))
    return numbers if all(map(eq, texts, numbers)) else TextColumn.of(texts)


def metadata_text(fields: dict[str, object]) -> str:
    """As it is stored; nothing for no field."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) if fields else ""


def mapped(path: Path) -> np.ndarray:
    """An array as it lies in its file. Raises `CorruptArtifactError`."""
    try:
        array: np.ndarray = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        return array
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the collection again.") from error


def _hash(image_id: str) -> int:
    return int.from_bytes(blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """numpy says that a disk is full by an OSError without a number, which `storage_errors` cannot know."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise StorageError(
                f"{folder}: the disk took only a part ({error}). Free some space and run the same command again; "
                "what was saved before is untouched."
            ) from error
        raise
