"""The stores that `stores.py` compares, behind one interface.

This module knows how each keeps a base and its changes; it measures nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from voken.collection.base import TextColumn
from voken.shapes import Int64, UInt32

if TYPE_CHECKING:
    import sqlite3

    from jaxtyping import UInt16

LEVELS, CODEBOOK_SIZE, DIM = 6, 1024, 512
TEXTS = ("ids", "paths", "metadata")


@dataclass(frozen=True)
class Records:
    """Some pictures; element i of everything is picture i."""

    texts: tuple[list[str], ...]
    """Ids, paths and metadata (JSON)."""
    numbers: np.ndarray
    """Of `row_type`."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, seeds: Int64[np.ndarray, " pictures"], *, vectors: bool) -> Self:
        """Made up, always the same for the same seed."""
        mixed = _mixed(seeds, 16)
        rows = np.zeros(len(seeds), row_type(DIM if vectors else 0))
        rows["vokens"] = mixed[:, 1 : 1 + LEVELS] % CODEBOOK_SIZE
        rows["size"] = mixed[:, 8] >> 9
        rows["time"] = 1_700_000_000_000_000_000 + mixed[:, 9].astype(np.int64) * 1_000_003
        rows["hash"] = mixed[:, 10:14].copy().view(np.uint8)
        if vectors:
            # sign and fraction at random, the exponent of 0.25: no encoding makes it smaller
            bits = _mixed(seeds + (1 << 40), DIM // 2).view(np.uint16)
            rows["vector"] = ((bits & 0x83FF) | 0x3400).view(np.float16)
        named = zip(seeds.tolist(), mixed[:, 0].tolist(), strict=True)
        ids = [f"trips/{2000 + seed % 25}/{seed:09}-{word:08x}.jpg" for seed, word in named]
        dated = ((seed, f"20{seed % 25:02}-{1 + seed % 12:02}-{1 + seed % 28:02}") for seed in seeds.tolist())
        metadata = [json.dumps({"date": date, "rating": seed % 5}) for seed, date in dated]
        return cls((ids, [f"pictures/{one}" for one in ids], metadata), rows)

    @property
    def ids(self) -> list[str]:
        """Of the texts, what a picture is known by."""
        return self.texts[0]

    @property
    def dim(self) -> int:
        """Of their vectors; 0 where they have none."""
        return int(self.numbers.dtype["vector"].shape[0])

    @property
    def digest(self) -> str:
        """Equal for equal records."""
        return hashlib.sha256(repr(self.texts).encode() + self.numbers.tobytes()).hexdigest()

    def take(self, places: Sequence[int]) -> Records:
        """Some of them."""
        texts = tuple([column[place] for place in places] for column in self.texts)
        return Records(texts, self.numbers[np.asarray(places, np.int64)])

    def __add__(self, other: Records) -> Records:
        texts = tuple(ours + theirs for ours, theirs in zip(self.texts, other.texts, strict=True))
        return Records(texts, np.concatenate([self.numbers, other.numbers]))


def row_type(dim: int) -> np.dtype[np.void]:
    """What a picture has beside texts, packed."""
    columns = [("vokens", "<u2", LEVELS), ("vector", "<f2", dim), ("size", "<i8"), ("time", "<i8"), ("hash", "u1", 16)]
    return np.dtype(columns)


def seed_of(image_id: str) -> int:
    """Which seed's picture has this id."""
    return int(image_id[11:20])


def _mixed(seeds: Int64[np.ndarray, " pictures"], words: int) -> UInt32[np.ndarray, "pictures words"]:
    """A hash of each seed: steps of MurmurHash3's finaliser."""
    counted = seeds[:, None] * words + np.arange(words)
    mixed: UInt32[np.ndarray, "pictures words"] = (counted ^ (counted >> 29)).astype(np.uint32)
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1):
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    return mixed


@dataclass(frozen=True)
class Changes:
    """All that a reader needs to search: what is there beside the base, and what of the base is not."""

    ids: list[str]
    vokens: UInt16[np.ndarray, "added M"]
    removed: Int64[np.ndarray, " removed"]
    """Rows of the base, ascending."""

    @property
    def digest(self) -> str:
        """Equal for equal changes."""
        parts = ["\n".join(self.ids).encode(), self.vokens.tobytes(), self.removed.astype(np.int64).tobytes()]
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


class Store(ABC):
    """A collection on disk, opened by one process; only one process at a time may open it to write.

    Rows are those of the base, then the pictures added, in the order of the `Changes` that `open` returned.
    """

    libraries: ClassVar[tuple[str, ...]] = ()
    """What is imported on opening."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = 0
        """Of the base; known when it is open."""

    @abstractmethod
    def create(self, base: Records) -> None:
        """Write the base into the folder, which is empty."""

    @abstractmethod
    def open(self, *, write: bool = False) -> Changes:
        """Open it, and read what happened since the base was made."""

    @abstractmethod
    def add(self, records: Records) -> None:
        """One commit; returns when it is as durable as the store makes it."""

    @abstractmethod
    def remove(self, ids: Sequence[str]) -> None:
        """One commit."""

    @abstractmethod
    def get(self, rows: Sequence[int]) -> Records:
        """The records of some rows, in their order."""

    @abstractmethod
    def newer(self) -> bool:
        """Whether another process committed something since it was opened."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and locks."""


class Base:
    """Mapped arrays that never change; ids are found through their sorted hashes."""

    def __init__(self, folder: Path) -> None:
        # a missing column is that of vectors
        names = (*(row_type(0).names or ()), "keys", "key_rows")
        files = {name: folder / f"{name}.npy" for name in names}
        self._arrays = {
            name: np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
            for name, path in files.items()
            if name != "vector" or path.exists()
        }
        self._pictures = len(self._arrays["keys"])
        self._texts = [TextColumn.load(folder, name, self._pictures) for name in TEXTS]

    def __len__(self) -> int:
        return self._pictures

    @staticmethod
    def save(folder: Path, records: Records) -> None:
        """Write `records` into `folder`, and wait for the disk."""
        folder.mkdir()
        for name, column in zip(TEXTS, records.texts, strict=True):
            TextColumn.of(column).save(folder, name)
        keys = _keys(records.ids)
        order = np.argsort(keys, kind="stable")
        arrays = {name: records.numbers[name] for name in records.numbers.dtype.names or ()}
        for name, array in {**arrays, "keys": keys[order], "key_rows": order.astype(np.uint32)}.items():
            if array.size:
                np.save(folder / name, np.ascontiguousarray(array), allow_pickle=False)
        for path in [*folder.iterdir(), folder, folder.parent]:
            sync(path)

    def find(self, ids: Sequence[str]) -> Int64[np.ndarray, " found"]:
        """The rows of those that are there. Of ids that share a hash, of 64 bits, only the first is found."""
        places = np.minimum(np.searchsorted(self._arrays["keys"], _keys(ids)), self._pictures - 1)
        rows = self._arrays["key_rows"][places].tolist()
        return np.array([row for row, one in zip(rows, ids, strict=True) if self._texts[0][row] == one], np.int64)

    def get(self, rows: Sequence[int]) -> Records:
        """The records of some rows."""
        vectors = self._arrays.get("vector")
        numbers = np.zeros(len(rows), row_type(0 if vectors is None else vectors.shape[1]))
        for name in numbers.dtype.names or ():
            if name in self._arrays:
                numbers[name] = self._arrays[name][np.asarray(rows, np.int64)]
        return Records(tuple([column[row] for row in rows] for column in self._texts), numbers)


def _keys(ids: Sequence[str]) -> np.ndarray:
    digests = b"".join(hashlib.blake2b(one.encode(), digest_size=8).digest() for one in ids)
    return np.frombuffer(digests, np.uint64)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Get = Callable[[list[int]], Records]


def _of_both(rows: Sequence[int], pictures: int, of_base: Get, of_added: Get) -> Records:
    """Records of which those of the base, the first `pictures` rows, and those added lie in two places."""
    given = np.asarray(rows, np.int64)
    new = given >= pictures
    if new.all() or not new.any():
        return of_added((given - pictures).tolist()) if new.any() else of_base(given.tolist())
    found = of_base(given[~new].tolist()) + of_added((given[new] - pictures).tolist())
    return found.take(np.argsort(np.argsort(new, kind="stable")).tolist())


class SqliteStore(Store):
    """One SQLite file holds the changes, or everything; its writer checks that no id stands twice."""

    libraries = ("sqlite3",)

    def __init__(self, folder: Path, *, everything: bool, journal: str, synchronous: str) -> None:
        super().__init__(folder)
        self._everything, self._journal, self._synchronous = everything, journal, synchronous

    def create(self, base: Records) -> None:
        """Mapped arrays and empty tables, or one table with everything."""
        if not self._everything:
            Base.save(self.folder / "base", base)
        connection = self._connect()
        connection.execute(f"PRAGMA journal_mode={self._journal}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE pictures (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path TEXT, metadata TEXT,"
            " vokens BLOB, vector BLOB, size INTEGER, time INTEGER, hash BLOB)"
        )
        connection.execute("CREATE TABLE removed (row INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE base (pictures INTEGER)")
        connection.execute("INSERT INTO base VALUES (?)", (len(base),))
        if self._everything:
            self._insert(connection, 0, base)
        connection.execute("COMMIT")
        connection.close()

    def open(self, *, write: bool = False) -> Changes:
        """Read in one transaction, which sees one version."""
        self._connection = self._connect()
        self._base = None if self._everything else Base(self.folder / "base")
        self._connection.execute("BEGIN")
        (self.pictures,) = self._connection.execute("SELECT pictures FROM base").fetchone()
        # where everything is here, lower rows are those of the base
        query = "SELECT row, id, vokens FROM pictures WHERE row >= ? ORDER BY row"
        added = self._connection.execute(query, (self.pictures,)).fetchall()
        removed = self._connection.execute("SELECT row FROM removed ORDER BY row").fetchall()
        self._version = self._data_version()
        self._connection.execute("COMMIT")
        self._rows = [row for row, _, _ in added]
        vokens = np.frombuffer(b"".join(packed for _, _, packed in added), "<u2").reshape(-1, LEVELS)
        return Changes([one for _, one, _ in added], vokens, np.array(removed, np.int64).reshape(-1))

    def add(self, records: Records) -> None:
        """One transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        (last,) = self._connection.execute("SELECT max(row) FROM pictures").fetchone()
        self._insert(self._connection, max(self.pictures, 0 if last is None else last + 1), records)
        self._connection.execute("COMMIT")

    def remove(self, ids: Sequence[str]) -> None:
        """One transaction: rows go, and `removed` names those of the base."""
        self._connection.execute("BEGIN IMMEDIATE")
        rows = [] if self._base is None else self._base.find(ids).tolist()
        for image_id in ids:
            gone = self._connection.execute("DELETE FROM pictures WHERE id = ? RETURNING row", (image_id,)).fetchall()
            rows += [row for (row,) in gone if row < self.pictures]
        self._connection.executemany("INSERT OR IGNORE INTO removed VALUES (?)", [(row,) for row in rows])
        self._connection.execute("COMMIT")

    def get(self, rows: Sequence[int]) -> Records:
        """A query a row."""
        return _of_both(rows, self.pictures, self._select if self._base is None else self._base.get, self._added)

    def newer(self) -> bool:
        """SQLite counts what others commit."""
        return self._data_version() != self._version

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _added(self, places: list[int]) -> Records:
        return self._select([self._rows[place] for place in places])

    def _select(self, rows: list[int]) -> Records:
        query = "SELECT id, path, metadata, vokens, vector, size, time, hash FROM pictures WHERE row = ?"
        found = [self._connection.execute(query, (row,)).fetchone() for row in rows]
        numbers = np.zeros(len(found), row_type(len(found[0][4] or b"") // 2 if found else 0))
        for place, (_, _, _, vokens, vector, size, time, hashed) in enumerate(found):
            numbers[place] = np.frombuffer(vokens, "<u2"), np.frombuffer(vector or b"", "<f2"), size, time, list(hashed)
        return Records(tuple([record[column] for record in found] for column in range(len(TEXTS))), numbers)

    @staticmethod
    def _insert(connection: sqlite3.Connection, first: int, records: Records) -> None:
        values = (
            (
                first + place,
                *(column[place] for column in records.texts),
                row["vokens"].tobytes(),
                row["vector"].tobytes() or None,
                int(row["size"]),
                int(row["time"]),
                row["hash"].tobytes(),
            )
            for place, row in enumerate(records.numbers)
        )
        connection.executemany("INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        connection = sqlite3.connect(self.folder / "collection.sqlite", timeout=30, isolation_level=None)
        connection.execute(f"PRAGMA synchronous={self._synchronous}")
        return connection

    def _data_version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)


class LanceStore(Store):
    """A Lance dataset holds everything; the base is its first fragment.

    `synced` writes files to the disk, those of the data before a commit names them, the manifest after.
    """

    libraries = ("lance",)

    def __init__(self, folder: Path, *, synced: bool) -> None:
        super().__init__(folder)
        self._place, self._synced = folder / "pictures.lance", synced
        self._on_disk: set[str] = set()

    def create(self, base: Records) -> None:
        """One fragment, so that the row of a picture is its address, and an index over ids."""
        import lance

        dataset = lance.write_dataset(_arrow(base), self._place, max_rows_per_file=1 << 30)
        dataset.create_scalar_index("ids", "BTREE")

    def open(self, *, write: bool = False) -> Changes:
        """Read the fragments after the base's, and which rows of the base are left."""
        import lance

        self._dataset = lance.dataset(self._place)
        base, *added = self._dataset.get_fragments()
        self.pictures = base.physical_rows
        removed = np.zeros(0, np.int64)
        if base.num_deletions:
            gone = np.ones(self.pictures, bool)
            gone[self._scanned([], fragments=[base])["_rowaddr"].to_numpy()] = False
            removed = np.flatnonzero(gone)
        ids, vokens, self._addresses = list[str](), np.zeros((0, LEVELS), np.uint16), np.zeros(0, np.int64)
        if added:
            table = self._scanned(["ids", "vokens"], fragments=added)
            ids, vokens = table["ids"].to_pylist(), _matrix(table, "vokens")
            self._addresses = table["_rowaddr"].to_numpy().astype(np.int64)
        if write and self._synced:
            self._sync_new()
        return Changes(ids, vokens, removed)

    def add(self, records: Records) -> None:
        """One fragment."""
        import lance

        if self._synced:
            self._commit(lance.LanceOperation.Append(lance.fragment.write_fragments(_arrow(records), self._dataset)))
        else:
            self._dataset = lance.write_dataset(_arrow(records), self._dataset, mode="append")

    def remove(self, ids: Sequence[str]) -> None:
        """A deletion file for every fragment that loses a picture."""
        import lance

        predicate = "ids IN ({})".format(", ".join("'" + one.replace("'", "''") + "'" for one in ids))
        if not self._synced:
            self._dataset.delete(predicate)
            return
        addresses = self._scanned([], filter=predicate)["_rowaddr"].to_numpy().astype(np.int64)
        changed, emptied = [], []
        for number in np.unique(addresses >> 32).tolist():
            fragment: Any = self._dataset.get_fragment(number)
            left = fragment.delete_rows((addresses[addresses >> 32 == number] & 0xFFFFFFFF).tolist())
            if left is None:
                emptied.append(number)
            else:
                changed.append(left)
        self._commit(lance.LanceOperation.Delete(changed, emptied, predicate))

    def get(self, rows: Sequence[int]) -> Records:
        """By address: `take` goes by place, and once a picture was removed that takes it milliseconds a picture."""
        given = np.asarray(rows, np.int64)
        new = given >= self.pictures
        addresses = given.copy()
        addresses[new] = self._addresses[given[new] - self.pictures]
        table = self._scanned(None, filter=f"_rowaddr IN ({', '.join(map(str, addresses.tolist()))})")
        places = {address: place for place, address in enumerate(table["_rowaddr"].to_pylist())}
        numbers = np.zeros(len(table), row_type(DIM if "vector" in table.column_names else 0))
        for name in ("size", "time"):
            numbers[name] = table[name].to_numpy()
        for name in ("vokens", "vector"):
            if name in table.column_names:
                numbers[name] = _matrix(table, name)
        numbers["hash"] = np.frombuffer(b"".join(table["hash"].to_pylist()), np.uint8).reshape(-1, 16)
        texts = tuple(table[name].to_pylist() for name in TEXTS)
        return Records(texts, numbers).take([places[address] for address in addresses.tolist()])

    def newer(self) -> bool:
        """Look for a newer manifest."""
        return bool(self._dataset.latest_version != self._dataset.version)

    def close(self) -> None:
        """Let go of it."""
        del self._dataset

    def _scanned(self, columns: list[str] | None, **limits: Any) -> Any:
        scanner = self._dataset.scanner(columns, with_row_address=True, scan_in_order=True, **limits)
        return scanner.to_table()

    def _commit(self, operation: Any) -> None:
        import lance

        self._sync_new()
        self._dataset = lance.LanceDataset.commit(self._dataset, operation, read_version=self._dataset.version)
        self._sync_new()

    def _sync_new(self) -> None:
        """Wait for all files that came since the last time, and for the folders that name them."""
        for place in (self._place / name for name in ("data", "_deletions", "_transactions", "_versions")):
            if place.is_dir():
                # the hint of the newest version only saves looking for it
                there = {entry.path for entry in os.scandir(place) if not entry.name.endswith("hint.json")}
                fresh = there - self._on_disk
                for path in fresh:
                    sync(Path(path))
                if fresh:
                    sync(place)
                self._on_disk |= fresh


def _arrow(records: Records) -> Any:
    import pyarrow

    numbers = records.numbers
    columns = {name: pyarrow.array(column) for name, column in zip(TEXTS, records.texts, strict=True)}
    columns |= {name: pyarrow.array(np.ascontiguousarray(numbers[name])) for name in ("size", "time")}
    columns["hash"] = pyarrow.array([one.tobytes() for one in numbers["hash"]], pyarrow.binary(16))
    for name in ("vokens", "vector"):
        if numbers[name].size:
            flat = pyarrow.array(np.ascontiguousarray(numbers[name]).reshape(-1))
            columns[name] = pyarrow.FixedSizeListArray.from_arrays(flat, numbers[name].shape[1])
    return pyarrow.table(columns)


def _matrix(table: Any, name: str) -> np.ndarray:
    return np.asarray(table[name].combine_chunks().flatten().to_numpy()).reshape(len(table), -1)


class LogStore(Store):
    """The base as mapped arrays; changes in a log of our own, a frame a commit.

    A frame is the length and the CRC-32 of its payload (uint32 each), and the payload, written in one piece. A payload
    starts with its kind, the pictures in it, the width of their vectors and the bytes of its ids; then come a row
    (`row_type`) for each picture added, the ids, and paths and metadata, as JSON. Reading stops at the first frame that
    is not whole; a writer cuts the log there.
    """

    FRAME, HEAD = struct.Struct("<II"), struct.Struct("<BIHI")
    ADDED, REMOVED = 0, 1

    def create(self, base: Records) -> None:
        """Mapped arrays and an empty log."""
        Base.save(self.folder / "base", base)
        (self.folder / "changes.log").touch()
        sync(self.folder / "changes.log")
        sync(self.folder)

    def open(self, *, write: bool = False) -> Changes:
        """Read the log from its start."""
        self._base = Base(self.folder / "base")
        self.pictures = len(self._base)
        self._descriptor = os.open(self.folder / "changes.log", os.O_RDWR | os.O_APPEND if write else os.O_RDONLY)
        if write:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(self._descriptor).st_size
        # a file of no bytes cannot be mapped
        self._content = memoryview(mmap.mmap(self._descriptor, size, access=mmap.ACCESS_READ) if size else b"")
        places: dict[str, tuple[int, int]] = {}  # the frame of a picture that was added, and its row there
        vokens: dict[int, np.ndarray] = {}
        gone: list[str] = []
        self._end = 0
        for start, end in self._frames():
            kind, numbers, ids, _ = self._read(start)
            if kind == self.ADDED:
                vokens[start] = numbers["vokens"]
                places.update((one, (start, row)) for row, one in enumerate(ids))
            else:
                gone += [one for one in ids if places.pop(one, None) is None]
            self._end = end
        if write and self._end < size:
            os.ftruncate(self._descriptor, self._end)
            os.fsync(self._descriptor)
        self._places = list(places.values())
        added = np.array([vokens[start][row] for start, row in self._places], np.uint16).reshape(-1, LEVELS)
        return Changes(list(places), added, np.sort(self._base.find(list(set(gone)))))

    def add(self, records: Records) -> None:
        """One frame."""
        self._append(self.ADDED, records.ids, records.numbers, records.texts[1:])

    def remove(self, ids: Sequence[str]) -> None:
        """One frame, which names ids."""
        self._append(self.REMOVED, ids, np.zeros(0, row_type(0)), ())

    def get(self, rows: Sequence[int]) -> Records:
        """From the mapped arrays and the mapped log."""
        return _of_both(rows, self.pictures, self._base.get, self._added)

    def newer(self) -> bool:
        """The log has grown."""
        return os.fstat(self._descriptor).st_size != self._end

    def close(self) -> None:
        """Let go of the file, and of the lock."""
        os.close(self._descriptor)

    def _append(self, kind: int, ids: Sequence[str], numbers: np.ndarray, rest: Sequence[list[str]]) -> None:
        packed = json.dumps(ids).encode()
        head = self.HEAD.pack(kind, len(numbers), numbers.dtype["vector"].shape[0], len(packed))
        payload = b"".join([head, numbers.tobytes(), packed, json.dumps(rest).encode()])
        frame = memoryview(self.FRAME.pack(len(payload), zlib.crc32(payload)) + payload)
        while frame:
            frame = frame[os.write(self._descriptor, frame) :]
        os.fdatasync(self._descriptor)
        self._end = os.fstat(self._descriptor).st_size

    def _frames(self) -> Iterator[tuple[int, int]]:
        """Start and end of every whole payload."""
        content, start = self._content, self.FRAME.size
        while start <= len(content):
            length, crc = self.FRAME.unpack_from(content, start - self.FRAME.size)
            if start + length > len(content) or zlib.crc32(content[start : start + length]) != crc:
                return
            yield start, start + length
            start += length + self.FRAME.size

    def _read(self, start: int) -> tuple[int, np.ndarray, list[str], int]:
        """Kind, numbers and ids of the payload that starts there, and where the rest of it starts."""
        kind, count, dim, packed = self.HEAD.unpack_from(self._content, start)
        numbers = np.frombuffer(self._content, row_type(dim), count, start + self.HEAD.size)
        rest = start + self.HEAD.size + numbers.nbytes + packed
        return kind, numbers, json.loads(bytes(self._content[rest - packed : rest])), rest

    def _added(self, places: list[int]) -> Records:
        frames: dict[int, Records] = {}
        for start in {self._places[place][0] for place in places}:
            length, _ = self.FRAME.unpack_from(self._content, start - self.FRAME.size)
            _, numbers, ids, rest = self._read(start)
            texts = json.loads(bytes(self._content[rest : start + length]))
            frames[start] = Records((ids, *texts), numbers)
        found = [(frames[start], row) for start, row in (self._places[place] for place in places)]
        columns = tuple([frame.texts[column][row] for frame, row in found] for column in range(len(TEXTS)))
        return Records(columns, np.array([frame.numbers[row] for frame, row in found]))


def _sqlite(everything: bool, journal: str, synchronous: str) -> Callable[[Path], Store]:
    return lambda folder: SqliteStore(folder, everything=everything, journal=journal, synchronous=synchronous)


CANDIDATES: dict[str, Callable[[Path], Store]] = {
    "sqlite": _sqlite(False, "DELETE", "FULL"),
    "sqlite, extra": _sqlite(False, "DELETE", "EXTRA"),
    "sqlite, WAL": _sqlite(False, "WAL", "FULL"),
    "sqlite, all": _sqlite(True, "DELETE", "EXTRA"),
    "sqlite, all, WAL": _sqlite(True, "WAL", "FULL"),
    "lance": lambda folder: LanceStore(folder, synced=False),
    "lance, synced": lambda folder: LanceStore(folder, synced=True),
    "arrays + log": LogStore,
}
"""By name: what opens the store of a folder."""
