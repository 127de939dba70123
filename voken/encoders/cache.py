"""Vectors that were computed once, kept in one SQLite file by (encoder, content of the picture's file).

A picture that moved or was copied is found again; one that changed is computed again; another encoder, or
the same with other weights, never sees them. Any number of processes may share the folder. Each batch is
committed as soon as it is computed, so that a run that is killed loses one batch and the next goes on.

This module knows neither encoders nor pictures: it stores rows of numbers.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from voken.artifact import open_database, storage_errors
from voken.data.images import file_hash, load_images
from voken.data.skipped import Skipped
from voken.encoders.interface import Encoder
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, PictureError, StorageError
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

FILE = "vectors.sqlite3"
_VERSION = 1
_ASKED_AT_ONCE = 500
_PIXELS_AT_ONCE = 1 << 26
"""Of the pictures of one batch: 256 MB. Sixty-four photos of 24 million pixels would take 6 GB."""
_DAMAGED = (
    "the vector cache is damaged ({why}). Delete the file and run the command again; nothing is lost but the time "
    "to compute the vectors."
)


class EncodedFiles(NamedTuple):
    """Vectors of the files that could be used, and the list of the others."""

    vectors: Float[np.ndarray, "kept dim"]
    """Row i is of file `kept[i]`. With nothing kept the shape is (0, 0)."""
    kept: Int[np.ndarray, " kept"]
    """Indices into the paths given, ascending."""
    skipped: list[Skipped]


class VectorCache:
    """A folder with a table of vectors.

    Every method may raise `StorageError` (the disk is full or refuses) and `CorruptArtifactError` (the
    file is no longer readable; it is safe to delete, as everything in it can be computed again).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        try:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StorageError(f"{self.folder}: a file is in the way. Choose another folder for the cache.") from None
        with self._open() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise ArtifactVersionError(
                    f"{self.path}: cache format {version} is newer than this voken reads ({_VERSION}). Upgrade voken."
                )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS vectors "
                "(encoder TEXT NOT NULL, file TEXT NOT NULL, dim INTEGER NOT NULL, vector BLOB NOT NULL, "
                "PRIMARY KEY (encoder, file))"
            )
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    def __len__(self) -> int:
        """How many vectors there are, of all encoders."""
        with self._open() as connection:
            return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def get_many(self, fingerprint: str, hashes: Sequence[str]) -> dict[str, Float[np.ndarray, " dim"]]:
        """The vectors that are there, by file hash; the others are simply absent from the result."""
        found: dict[str, np.ndarray] = {}
        with self._open() as connection:
            for start in range(0, len(hashes), _ASKED_AT_ONCE):
                asked = hashes[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(asked))
                rows = connection.execute(
                    f"SELECT file, dim, vector FROM vectors WHERE encoder = ? AND file IN ({marks})",
                    (fingerprint, *asked),
                )
                for file, dim, blob in rows:
                    if len(blob) != 4 * dim:
                        why = f"the vector of {file} is cut short"
                        raise CorruptArtifactError(f"{self.path}: {_DAMAGED.format(why=why)}")
                    found[file] = np.frombuffer(blob, dtype="<f4").astype(np.float32)
        return found

    def put_many(self, fingerprint: str, hashes: Sequence[str], vectors: Float[np.ndarray, "files dim"]) -> None:
        """Keep one vector a hash, all or none of them. One that is there already is replaced."""
        if len(hashes) != len(vectors):
            raise ConfigError(f"{len(hashes)} hashes for {len(vectors)} vectors: give one a vector.")
        little = np.ascontiguousarray(vectors, dtype="<f4")
        rows = [(fingerprint, file, little.shape[1], row.tobytes()) for file, row in zip(hashes, little, strict=True)]
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
            connection.execute("COMMIT")

    def encode_files(
        self,
        paths: Sequence[Path],
        encode: Callable[[list[Image]], Float[np.ndarray, "images dim"]],
        fingerprint: str,
        *,
        batch_size: int = 64,
        workers: int = 2,
        hashes: Sequence[str] | None = None,
        progress: Progress = no_progress,
    ) -> EncodedFiles:
        """Vectors of picture files: those that are here from here, the others decoded, encoded and kept.

        `encode` turns pictures (RGB, upright) into vectors, a row a picture. Files of equal content are
        encoded once. Batches of large pictures are smaller: a batch is decoded before it is encoded. A file that cannot
        be read or decoded is skipped and listed, in the order given. `hashes` are
        those of `file_hash`, where they are known already.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        known: Sequence[str | Skipped] = list(_hashes(paths, workers)) if hashes is None else hashes
        positions: dict[str, list[int]] = {}
        refused: dict[int, Skipped] = {}
        for index, outcome in enumerate(known):
            if isinstance(outcome, Skipped):
                refused[index] = outcome
            else:
                positions.setdefault(outcome, []).append(index)

        table = _Rows(len(paths))
        for file, vector in self.get_many(fingerprint, list(positions)).items():
            table.put(positions.pop(file), vector)

        missing = list(positions)
        done = len(paths) - sum(map(len, positions.values()))
        progress("pictures to vectors", done, len(paths))
        images: list[Image] = []
        batch: list[str] = []
        pixels = 0
        first = [paths[positions[file][0]] for file in missing]
        for index, picture in load_images(first, workers=workers):
            if isinstance(picture, Skipped):
                for position in positions[missing[index]]:
                    refused[position] = Skipped(str(paths[position]), picture.reason)
            else:
                images.append(picture)
                batch.append(missing[index])
                pixels += picture.width * picture.height
            done += len(positions[missing[index]])
            if images and (len(images) == batch_size or pixels >= _PIXELS_AT_ONCE or index == len(missing) - 1):
                vectors = np.asarray(encode(images), dtype=np.float32)
                self.put_many(fingerprint, batch, vectors)
                for file, vector in zip(batch, vectors, strict=True):
                    table.put(positions[file], vector)
                images, batch, pixels = [], [], 0
                progress("pictures to vectors", done, len(paths))
        kept = np.array([index for index in range(len(paths)) if index not in refused], dtype=np.int64)
        return EncodedFiles(table.take(kept), kept, [refused[index] for index in sorted(refused)])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with open_database(self.path, damaged=_DAMAGED, create=True) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection


def picture_vectors(
    encoder: Encoder,
    paths: Sequence[Path],
    *,
    cache: VectorCache | None = None,
    hashes: Sequence[str] | None = None,
    progress: Progress = no_progress,
) -> EncodedFiles:
    """Vectors of the files that can be read, and the list of the others. Without `cache` nothing is kept.

    `hashes` are those of `voken.data.images.file_hash`, where they are known already.
    """
    from voken.encoders.two_tower import TwoTowerEncoder

    if cache is None:
        with tempfile.TemporaryDirectory(prefix="voken-") as folder:
            kept = VectorCache(Path(folder))
            return picture_vectors(encoder, paths, cache=kept, hashes=hashes, progress=progress)
    if not isinstance(encoder, TwoTowerEncoder):
        return cache.encode_files(paths, encoder.encode_images, encoder.fingerprint, hashes=hashes, progress=progress)
    pictures = encoder.pictures
    found = cache.encode_files(
        paths, encoder.features_of_images, pictures.fingerprint, hashes=hashes, progress=progress
    )
    vectors = encoder.project_images(found.vectors) if len(found.kept) else found.vectors
    return EncodedFiles(vectors, found.kept, found.skipped)


class _Rows:
    """Rows of a table whose width is known with the first of them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._table: np.ndarray | None = None

    def put(self, positions: Sequence[int], vector: np.ndarray) -> None:
        if self._table is None:
            self._table = np.zeros((self._rows, len(vector)), dtype=np.float32)
        self._table[positions] = vector

    def take(self, kept: np.ndarray) -> np.ndarray:
        if self._table is None:
            return np.zeros((0, 0), dtype=np.float32)
        return self._table if len(kept) == self._rows else self._table[kept]


def _hashes(paths: Sequence[Path], workers: int) -> Iterator[str | Skipped]:
    def one(path: Path) -> str | Skipped:
        try:
            return file_hash(path)
        except PictureError as error:
            return Skipped(error.path, error.reason)

    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}.")
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, paths)
