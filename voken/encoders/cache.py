"""A cache of picture vectors in one SQLite file, keyed by the encoder and by the content of the picture's file.

A picture that was moved or copied is recognised, and a picture that has changed is encoded again. Each encoder has its
own vectors, and so does each version of its weights. Any number of processes may share the folder. A batch is committed
as soon as it is computed, so a run that is killed loses at most one batch, and the next run continues after it.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from voken.artifact import open_database, storage_errors
from voken.data.images import MAX_PIXELS, file_hash, load_images
from voken.data.skipped import Skipped
from voken.encoders.interface import PictureEncoder, PreparingEncoder, TwoStepEncoder
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, PictureError, StorageError
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

FILE = "vectors.sqlite3"
_VERSION = 1
_HASHES_PER_QUERY = 500
_PIXELS_PER_BATCH = 1 << 26
"""A batch ends when its decoded pictures reach this size: 256 MB. Sixty-four photographs of 24 million pixels would
take 6 GB."""
_DAMAGED = (
    "the vector cache is damaged ({why}). Delete the file and run the command again; nothing is lost but the time "
    "to compute the vectors."
)


class EncodedFiles(NamedTuple):
    """Vectors of the usable files, and the files that were skipped."""

    vectors: Float[np.ndarray, "usable dim"]
    """Row i belongs to file `rows[i]`. If no file is usable, the shape is (0, 0)."""
    rows: Int[np.ndarray, " usable"]
    """Indices of the usable files in the sequence of paths, ascending."""
    skipped: list[Skipped]


class VectorCache:
    """A folder with a table of vectors.

    Every method may raise `StorageError` (the disk is full or refuses) and `CorruptArtifactError` (the file cannot be
    read; it is safe to delete, because everything in it can be computed again).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / FILE
        try:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StorageError(
                f"{self.folder}: is not a folder, or is inside a file. Choose another folder for the cache."
            ) from None
        with self._connection() as connection:
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
        """The number of vectors, of all encoders."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])

    def get_many(self, fingerprint: str, hashes: Sequence[str]) -> dict[str, Float[np.ndarray, " dim"]]:
        """The cached vectors by file hash. A hash without a cached vector is left out."""
        vectors: dict[str, np.ndarray] = {}
        with self._connection() as connection:
            for start in range(0, len(hashes), _HASHES_PER_QUERY):
                batch = hashes[start : start + _HASHES_PER_QUERY]
                marks = ",".join("?" * len(batch))
                rows = connection.execute(
                    f"SELECT file, dim, vector FROM vectors WHERE encoder = ? AND file IN ({marks})",
                    (fingerprint, *batch),
                )
                for file, dim, blob in rows:
                    if len(blob) != 4 * dim:
                        why = f"the vector of {file} is cut short"
                        raise CorruptArtifactError(f"{self.path}: {_DAMAGED.format(why=why)}")
                    vectors[file] = np.frombuffer(blob, dtype="<f4").astype(np.float32)
        return vectors

    def put_many(self, fingerprint: str, hashes: Sequence[str], vectors: Float[np.ndarray, "files dim"]) -> None:
        """Store one vector per hash: all of them or none. A cached vector of the same hash is replaced."""
        if len(hashes) != len(vectors):
            raise ConfigError(f"{len(hashes)} hashes for {len(vectors)} vectors: give one vector per hash.")
        little = np.ascontiguousarray(vectors, dtype="<f4")
        rows = [(fingerprint, file, little.shape[1], row.tobytes()) for file, row in zip(hashes, little, strict=True)]
        with self._connection() as connection:
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
        max_pixels: int = MAX_PIXELS,
        least_side: int | None = None,
        prepare: Callable[[Image], Image] | None = None,
        progress: Progress = no_progress,
        before: int = 0,
        total: int | None = None,
    ) -> EncodedFiles:
        """Vectors of picture files: cached ones from the cache, the others decoded, encoded and cached.

        `encode` turns pictures (RGB, upright) into vectors, one row per picture. Files of equal content are encoded
        once. A batch is decoded before it is encoded, so batches of large pictures are smaller. A file that cannot be
        read or decoded is skipped; the skipped files are in the order of the paths. `hashes` are the files' hashes from
        `file_hash`; if None, they are computed. Pictures of more than `max_pixels` are skipped. `workers` threads read
        and decode, and call `prepare` on each picture (see `voken.data.images.load_images`, also for `least_side`). If
        the files are part of a longer list, `before` is the number of files before them and `total` the length of the
        whole list, both for `progress`.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}.")
        outcomes: Sequence[str | Skipped] = list(_hashes(paths, workers)) if hashes is None else hashes
        positions: dict[str, list[int]] = {}
        skipped: dict[int, Skipped] = {}
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Skipped):
                skipped[index] = outcome
            else:
                positions.setdefault(outcome, []).append(index)

        table = _VectorTable(len(paths))
        for file, vector in self.get_many(fingerprint, list(positions)).items():
            table.put(positions.pop(file), vector)

        total = len(paths) if total is None else total
        missing = list(positions)
        count = before + len(paths) - sum(map(len, positions.values()))
        progress("pictures to vectors", count, total)
        images: list[Image] = []
        batch: list[str] = []
        pixels = 0
        first = [paths[positions[file][0]] for file in missing]
        pictures = load_images(first, least_side=least_side, prepare=prepare, workers=workers, max_pixels=max_pixels)
        for index, picture in pictures:
            if isinstance(picture, Skipped):
                for position in positions[missing[index]]:
                    skipped[position] = Skipped(str(paths[position]), picture.reason)
            else:
                images.append(picture)
                batch.append(missing[index])
                pixels += picture.width * picture.height
            count += len(positions[missing[index]])
            if images and (len(images) == batch_size or pixels >= _PIXELS_PER_BATCH or index == len(missing) - 1):
                vectors = np.asarray(encode(images), dtype=np.float32)
                self.put_many(fingerprint, batch, vectors)
                for file, vector in zip(batch, vectors, strict=True):
                    table.put(positions[file], vector)
                images, batch, pixels = [], [], 0
                progress("pictures to vectors", count, total)
        usable = np.array([index for index in range(len(paths)) if index not in skipped], dtype=np.int64)
        return EncodedFiles(table.take(usable), usable, [skipped[index] for index in sorted(skipped)])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with open_database(self.path, damaged=_DAMAGED, create=True) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection


class _VectorTable:
    """A table of vectors that is allocated when the first vector, and so the width, is known."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._table: np.ndarray | None = None

    def put(self, positions: Sequence[int], vector: np.ndarray) -> None:
        if self._table is None:
            self._table = np.zeros((self._rows, len(vector)), dtype=np.float32)
        self._table[positions] = vector

    def take(self, rows: np.ndarray) -> np.ndarray:
        if self._table is None:
            return np.zeros((0, 0), dtype=np.float32)
        return self._table if len(rows) == self._rows else self._table[rows]


def picture_vectors(
    encoder: PictureEncoder,
    paths: Sequence[Path],
    *,
    cache: VectorCache | None = None,
    hashes: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
    progress: Progress = no_progress,
    before: int = 0,
    total: int | None = None,
) -> EncodedFiles:
    """An encoder's vectors of picture files, read from `cache` and stored in it. If it is None, nothing is stored.

    For the built-in encoder the features before its small head are cached. Computing them takes nearly all the time,
    and they are the same for every head, so another training or another seed decodes no picture again. `workers`
    threads decode; 0 means one per core. See `VectorCache.encode_files` for the other arguments.
    """
    two_step = encoder if isinstance(encoder, TwoStepEncoder) else None
    preparing = encoder if isinstance(encoder, PreparingEncoder) else None
    encode = encoder.encode_images if preparing is None else preparing.encode_prepared
    with ExitStack() as stack:
        if cache is None:
            cache = VectorCache(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="voken-"))))
        encoded = cache.encode_files(
            paths,
            encode if two_step is None else two_step.features_of_images,
            encoder.fingerprint if two_step is None else two_step.features_fingerprint(),
            workers=workers or os.cpu_count() or 1,
            hashes=hashes,
            max_pixels=max_pixels,
            least_side=None if preparing is None else preparing.least_side,
            prepare=None if preparing is None else preparing.prepare,
            progress=progress,
            before=before,
            total=total,
        )
    if two_step is None or not len(encoded.rows):
        return encoded
    return encoded._replace(vectors=two_step.project_images(encoded.vectors))


def _hashes(paths: Sequence[Path], workers: int) -> Iterator[str | Skipped]:
    def hash_or_skip(path: Path) -> str | Skipped:
        try:
            return file_hash(path)
        except PictureError as error:
            return Skipped(error.path, error.reason)

    if workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}.")
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(hash_or_skip, paths)
