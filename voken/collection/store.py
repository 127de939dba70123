"""A collection on disk: what the last compaction wrote, and what was added and removed since.

    manifest.json        the kind of folder and the version of its format
    collection.sqlite3   where the pictures and the model are, which base is current, what was added and removed since,
                         and which files were skipped. Every change is a commit to this file; no other file changes
    base-000001/         the pictures, as mapped arrays (see `voken.collection.base`); a compaction writes the next base
    codebooks.npy        the tokenizer's codebooks, so that similar pictures can be searched without torch
    model-000001/        the collection's own model, if it has one. If it is fitted again, the next model and its
                         codebooks-000002.npy are written, and the change to them is one transaction
    pictures/            uploaded pictures, which exist nowhere else

Any number of processes may read while one writes: a reader reads one version in one transaction. Changes are SQLite
transactions: once `commit` returns, the change survives a kill or a power cut, and a killed change leaves nothing.
docs/explanation/libraries.md compares SQLite with Lance and with a log written for this purpose.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from voken import artifact
from voken.artifact import map_array, open_database
from voken.collection import index_lock
from voken.collection.base import FACTS, Base, write_base
from voken.collection.snapshot import UPLOAD_PREFIX, AddedPictures, Origin, Snapshot, refuse_repeats
from voken.data.paths import absolute_path, is_file, is_folder, is_same_folder, relative_path
from voken.data.skipped import Skipped
from voken.decoding.merged_trie import places_of
from voken.decoding.trie import MAX_ENTRIES, MAX_LEVELS, VokenTrie
from voken.errors import (
    ArtifactError,
    ArtifactVersionError,
    BusyError,
    ConfigError,
    CorruptArtifactError,
    StorageError,
)
from voken.shapes import Float16, Float32, Int32, Int64

KIND, VERSION = "collection", 3
FILE, CODEBOOKS, PICTURES = "collection.sqlite3", "codebooks.npy", "pictures"
_DAMAGED = (
    "the collection's changes cannot be read ({why}). Restore the folder from a copy, or index the pictures again"
)
_AGAIN = "Index the pictures again."
_BASES = re.compile(r"base-\d{6,12}|\.base-\d{6,12}\.(partial|retired)-\d+")
"""The names of bases and of those that a killed compaction left."""
_FITS = re.compile(r"(\.?model-\d{6,12}(\.(partial|retired)-\d+)?)|(codebooks-\d{6,12}\.npy)")
"""The names of the collection's own models, of their codebooks, and of what a killed fit left."""
_FILES = {artifact.MANIFEST, CODEBOOKS, PICTURES} | {
    name + end for name in (FILE, index_lock.FILE) for end in ("", "-journal", "-wal", "-shm")
}
_TABLES = """
    CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE added (
        row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, vokens BLOB NOT NULL, vector BLOB,
        size INTEGER NOT NULL, modified INTEGER NOT NULL, taken INTEGER NOT NULL, hash BLOB NOT NULL,
        metadata TEXT NOT NULL);
    CREATE TABLE removed (row INTEGER PRIMARY KEY, place INTEGER NOT NULL);
    CREATE TABLE skipped (
        path TEXT PRIMARY KEY, reason TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL) WITHOUT ROWID;
"""
_MIN_CHANGES = 4_096
_CHANGED_SHARE = 16
"""A compaction is due if more than one picture in this many has changed."""
_ATTEMPTS = 20
_BASE = re.compile(r"(base-\d{6,12})?")
_MAX_NUMBER, MAX_DIM = 1 << 63, 1 << 16
_LEAST_BYTES = {"settings": 2, "added": 32, "removed": 4, "skipped": 8}
"""What a row of each table takes in the file, at least. In a hostile file pages may follow one another in a circle."""
_PATHS_TRIED = 16
"""Pictures that must be looked for to tell the original of a folder from its copy."""


class Codebooks(Protocol):
    """What a collection needs of its model's tokenizer."""

    @property
    def levels(self) -> int:
        """M, the length of a voken sequence."""
        ...

    @property
    def codebook_size(self) -> int:
        """N, the number of entries per level."""
        ...

    @property
    def codebooks(self) -> Float32[np.ndarray, "M N e"]:
        """The entries of every level."""
        ...


@dataclass(frozen=True)
class FileFacts:
    """The facts that show whether a file has changed."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since 1970."""
    taken: int = 0
    """When the picture was taken (see `voken.data.dates`); `NO_DATE` if only the file's time is known."""
    hash: bytes = bytes(16)
    """BLAKE2b of the content, 128 bits."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture to be stored."""

    image_id: str
    stored_path: str
    """See `voken.collection.snapshot.stored_path`."""
    vokens: Int32[np.ndarray, " M"]
    vector: Float16[np.ndarray, " dim"] | None
    facts: FileFacts
    metadata: str = ""


@dataclass(frozen=True)
class Change:
    """The ids that a change concerned."""

    version: int
    """The collection's version after the change."""
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Pictures that existed and were replaced."""
    removed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Ids that were to be removed but do not exist."""
    skipped: tuple[Skipped, ...] = ()
    """Files that could not be used, and why."""


@dataclass(frozen=True)
class FittedModel:
    """What a collection's own model is, which was made from its pictures without training."""

    encoder: str
    """"photos" for the built-in one, else the hub name or the folder of a checkpoint."""
    levels: int
    codebook_size: int
    pictures: int
    """The pictures that its codebooks were fitted on."""
    prompt: str = "{}"
    """The words around every query (see `voken.encoders.prompts`)."""


@dataclass(frozen=True)
class IndexReport:
    """The counts of pictures that an update changed, and the collection after it."""

    version: int
    pictures: int
    """The pictures in the collection."""
    sequences: int
    """Distinct voken sequences in the collection."""
    bytes_per_picture: float
    """See `Snapshot.bytes_per_picture`."""
    with_vectors: bool
    seconds: float
    added: int = 0
    updated: int = 0
    """Their file or their metadata changed."""
    moved: int = 0
    """Recognised by their content under another path."""
    removed: int = 0
    """Their file no longer exists."""
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = ()
    """All files that could not be used, now or earlier, and everything else in the folder that is not a picture."""
    fitted: FittedModel | None = None
    """The collection's own model, if this update made it or fitted it again."""
    missing: int = 0
    """Pictures that stay although their files do not exist, because they are so many. A drive may be missing."""

    @property
    def changes(self) -> int:
        """How many pictures were changed."""
        return self.added + self.updated + self.moved + self.removed


@dataclass(frozen=True)
class IndexOptions:
    """Which files a collection is to hold. It remembers them for the next run."""

    split: str = ""
    """The part of a data set; empty for all of it."""
    exclude: tuple[str, ...] = ()
    """Patterns of names and paths that are left out (see `voken.data.picture_folder.list_folder`)."""
    max_pixels: int = 0
    """Larger pictures are left out; 0 means `voken.data.images.MAX_PIXELS`."""
    described: bool = False
    """Whether a file such as metadata.jsonl described the pictures in the last run."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be used. Size and time show whether it has changed since."""

    path: str
    reason: str
    size: int = -1
    modified: int = -1


@dataclass(frozen=True)
class _State:
    """The settings table, read in one transaction."""

    uid: str
    version: int
    base: str
    next_row: int
    levels: int
    codebook_size: int
    dim: int
    """Width of the stored vectors; 0 if none are stored."""
    fingerprint: str
    root: str
    root_relative: str
    model: str
    model_relative: str
    split: str = ""
    exclude: str = ""
    """Patterns, one per line."""
    max_pixels: int = 0
    described: bool = False
    own_model: int = 0
    """The number of the collection's own model; 0 if its model is not its own."""
    fitted: int = 0
    """The pictures that the own model was fitted on."""

    @property
    def codebooks_file(self) -> str:
        return CODEBOOKS if self.own_model < 2 else f"codebooks-{self.own_model:06d}.npy"

    @property
    def current_names(self) -> set[str]:
        """The base, the own model and the codebooks."""
        return {self.base, _model_name(self.own_model), self.codebooks_file}


@dataclass(eq=False)
class Store:
    """A collection on disk. Create one with `create` or `open`. Any number of threads may use it."""

    folder: Path
    _base: tuple[str, Base] | None = field(default=None, repr=False)
    """The base that was opened last, and the key that identifies it."""
    _codebooks: tuple[str, np.ndarray] | None = field(default=None, repr=False)
    """The codebooks that were opened last, and the name of their file."""

    def __post_init__(self) -> None:
        self.folder = absolute_path(Path(self.folder))  # the working folder may change

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        root: Path,
        fingerprint: str,
        tokenizer: Codebooks,
        vectors: int = 0,
        model_folder: Path | None = None,
        replace: bool = False,
        base: Base | None = None,
        own_model: Callable[[Path], str] | None = None,
        fitted: int = 0,
    ) -> Self:
        """Create a collection of the pictures of `base`, or an empty one.

        `vectors` is the width of the vectors that it stores, or 0 for none. `own_model` saves the model in the folder
        that it is given, inside the collection, and returns its fingerprint; `model_folder` and `fingerprint` are then
        ignored, and `fitted` is the number of pictures that the model was fitted on. Raises `ArtifactError` if `folder`
        is not empty (`replace` allows an older collection), `StorageError` if the disk refuses; then nothing is left
        behind.
        """
        folder = Path(folder)
        if artifact.is_artifact(folder):
            kind = artifact.kind_of(folder)
            if not replace or kind != KIND:
                raise ArtifactError(f"{folder}: a saved {kind} is there already. Remove it or choose another folder.")
            if any(path.is_file() and not path.name.startswith(".") for path in (folder / PICTURES).rglob("*")):
                raise ArtifactError(
                    f"{folder / PICTURES}: holds pictures that were uploaded, and there is no other copy of them. Move "
                    "them away first, or choose another folder."
                )
            names = (path.name for path in folder.iterdir())
            bases = {name for name in names if _BASES.fullmatch(name) or _FITS.fullmatch(name)}
            artifact.refuse_other_files(folder, bases | _FILES)
        folder, root = absolute_path(folder), absolute_path(root)
        if own_model is not None:
            model_folder = folder / _model_name(1)
        model = None if model_folder is None else absolute_path(Path(model_folder))
        state = _State(
            uid=secrets.token_hex(8),
            version=1,
            base="base-000001" if base is not None and len(base) else "",
            next_row=0 if base is None else len(base),
            levels=tokenizer.levels,
            codebook_size=tokenizer.codebook_size,
            dim=vectors,
            fingerprint=fingerprint,
            root=str(root),
            root_relative=os.path.relpath(root, folder),
            model="" if model is None else str(model),
            model_relative="" if model is None else os.path.relpath(model, folder),
            own_model=int(own_model is not None),
            fitted=fitted,
        )
        with artifact.writing(folder, kind=KIND, version=VERSION, replace=replace, sealed=False) as partial:
            if base is not None and state.base:
                base.save(partial / state.base)
            if own_model is not None:
                state = replace_fields(state, fingerprint=own_model(partial / _model_name(1)))
            np.save(partial / CODEBOOKS, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
            with open_database(partial / FILE, damaged=_DAMAGED, create=True) as connection:
                connection.execute("PRAGMA auto_vacuum = FULL")
                connection.executescript(f"BEGIN; {_TABLES}")
                _write_settings(connection, **vars(state))
                connection.execute("COMMIT")
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a saved collection.

        Raises `ArtifactError` if there is none, `ArtifactVersionError` if another version of voken made it.
        """
        folder = Path(folder)
        manifest = artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        if manifest["version"] < VERSION:
            raise ArtifactVersionError(
                f"{folder}: collection format {manifest['version']}, made by an older voken. Index the pictures again."
            )
        if not (folder / FILE).is_file():
            raise CorruptArtifactError(f"{folder / FILE}: missing. Restore the folder from a copy or create it again.")
        if (folder / PICTURES).is_symlink():
            # deleting an upload would delete a file elsewhere
            raise CorruptArtifactError(f"{folder / PICTURES}: is a link. Put the folder of uploaded pictures there.")
        return cls(folder)

    def snapshot(self, latest: Snapshot | None = None, *, verify: bool = False, wait: float | None = None) -> Snapshot:
        """The current version: `latest` itself if nothing has changed. `verify` compares the checksums of all files.

        `wait` is how many seconds a writer may hold the lock; None means a minute. Raises `StorageError` if it holds it
        longer, `CorruptArtifactError` if the files cannot be read.
        """
        for attempt in range(_ATTEMPTS):
            with self._reading(wait) as connection:
                connection.execute("BEGIN")
                state = _read_state(connection)
                if latest is not None and not verify and latest.key == (state.uid, state.version):
                    return latest
                added, removed = _read_added(connection, state), _read_removed(connection, state)
                skipped = _read_skipped(connection)
                connection.execute("COMMIT")
            try:
                base = self._open_base(state, verify=verify)
                _check_rows(self.folder, base, added, removed)
            except ArtifactError:
                # a compaction may have replaced the base meanwhile
                if attempt + 1 < _ATTEMPTS and self._state().base != state.base:
                    continue
                raise
            origin = self._origin(state)
            return Snapshot(
                base=base,
                origin=origin,
                version=state.version,
                uid=state.uid,
                removed=removed[:, 0].copy(),
                removed_places=removed[:, 1].copy(),
                additions=added,
                skipped=tuple(Skipped(str(origin.root / file.path), file.reason) for file in skipped),
            )
        raise StorageError(f"{self.folder}: another process compacts it again and again. Try again in a moment.")

    def commit(
        self,
        entries: Sequence[Entry] = (),
        *,
        remove: Sequence[str] = (),
        skipped: Sequence[SkippedFile] = (),
        forget: Sequence[str] = (),
        fingerprint: str = "",
    ) -> Change:
        """Add `entries` and remove ids, in one transaction. An entry replaces the picture that has its id.

        When it returns, the change is on disk. `skipped` files are remembered until a picture with that path is
        added, or until the path is in `forget`. `fingerprint` is that of the model which encoded the entries, if the
        collection's own model may have been fitted again since. Raises `DataError` for a repeated id, `ConfigError` for
        vokens or vectors of another model, `BusyError` for another fingerprint, `StorageError` if the disk refuses;
        then nothing has changed.
        """
        refuse_repeats([entry.image_id for entry in entries])
        with self._transaction() as (connection, state):
            if fingerprint and fingerprint != state.fingerprint:
                raise BusyError(f"{self.folder}: its model was fitted again meanwhile. Add the pictures again.")
            base = self._open_base(state)
            _check_entries(entries, state)
            remove = tuple(dict.fromkeys(remove))
            obsolete = list(dict.fromkeys([*(entry.image_id for entry in entries), *remove]))
            existed = {image_id for image_id in obsolete if _delete_added(connection, image_id)}
            rows = {}
            for image_id in obsolete:
                row = base.row_of(image_id)
                if row is None or connection.execute("SELECT 1 FROM removed WHERE row = ?", (row,)).fetchone():
                    continue
                rows[row] = image_id
            places = _places(self.folder / state.base, base, sorted(rows))
            connection.executemany(
                "INSERT INTO removed (row, place) VALUES (?, ?)", zip(sorted(rows), places.tolist(), strict=True)
            )
            existed |= set(rows.values())
            values = [_as_row(state.next_row + place, entry) for place, entry in enumerate(entries)]
            connection.executemany(f"INSERT INTO added VALUES ({','.join('?' * 10)})", values)
            connection.executemany(
                "DELETE FROM skipped WHERE path = ?",
                [(_encode_text(path),) for path in (*forget, *(entry.stored_path for entry in entries))],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)",
                [(_encode_text(file.path), _encode_text(file.reason), file.size, file.modified) for file in skipped],
            )
            version = state.version + 1
            _write_settings(connection, version=version, next_row=state.next_row + len(entries))
        written = dict.fromkeys(entry.image_id for entry in entries)
        return Change(
            version,
            added=tuple(image_id for image_id in written if image_id not in existed),
            updated=tuple(image_id for image_id in written if image_id in existed),
            removed=tuple(image_id for image_id in remove if image_id in existed and image_id not in written),
            absent=tuple(image_id for image_id in remove if image_id not in existed),
        )

    def move_root(self, root: Path) -> None:
        """Record that the folder of the pictures is now `root`."""
        root = absolute_path(root)
        with self._transaction() as (connection, state):
            relative = os.path.relpath(root, self.folder)
            _write_settings(connection, version=state.version + 1, root=str(root), root_relative=relative)

    @property
    def index_options(self) -> IndexOptions:
        """Which files it is to hold."""
        state = self._state()
        return IndexOptions(state.split, tuple(state.exclude.splitlines()), state.max_pixels, state.described)

    def remember(self, options: IndexOptions) -> None:
        """Record which files it is to hold."""
        with self._transaction() as (connection, _):
            _write_settings(connection, **{**vars(options), "exclude": "\n".join(options.exclude)})

    def skipped(self) -> dict[str, SkippedFile]:
        """The files that could not be used, by stored path."""
        with self._reading() as connection:
            return {file.path: file for file in _read_skipped(connection)}

    @property
    def fitted(self) -> int:
        """The number of pictures that its own model was fitted on; 0 if its model is not its own."""
        state = self._state()
        return state.fitted if state.own_model else 0

    @property
    def stores_vectors(self) -> bool:
        """Whether a vector is stored with each picture."""
        return self._state().dim > 0

    def upload_path(self, path: Path) -> str | None:
        """The stored path of an uploaded picture, in the collection's own folder; None for a file elsewhere."""
        inside = relative_path(path, self.folder / PICTURES)
        return None if inside is None else f"{UPLOAD_PREFIX}{PICTURES}/{inside}"

    @property
    def wants_compaction(self) -> bool:
        """Whether there are so many changes that opening is slow."""
        with self._reading() as connection:
            state = _read_state(connection)
            most = max(_MIN_CHANGES, len(self._open_base(state)) // _CHANGED_SHARE)
            query = "SELECT count(*) FROM (SELECT row FROM added UNION ALL SELECT row FROM removed LIMIT ?)"
            return int(connection.execute(query, (most + 1,)).fetchone()[0]) > most

    def compact(self) -> bool:
        """Write all pictures into a new base. Returns False if there were no changes to write.

        Searches continue meanwhile, in this process and in others; other writers wait. A compaction that is killed
        changes nothing, and the next one removes its files. Row numbers change, ids do not.
        """
        with self._transaction() as (connection, state):
            snapshot = self._snapshot_to_write(connection, state)
            if not snapshot.is_changed:
                self._remove_others(state)
                return False
            self._remove_others(state)  # left by killed compactions
            self._write_next_base(connection, state, snapshot, snapshot.trie.codebook_size, None)
        self._remove_others_under_lock()
        return True

    def recode(
        self,
        tokenizer: Codebooks,
        vokens_of: Callable[[Snapshot], Int32[np.ndarray, "pictures M"]],
        own_model: Callable[[Path], str],
        fitted: int,
    ) -> None:
        """Give the collection another model of its own, and all pictures its vokens, in one transaction.

        `vokens_of` returns the vokens of a snapshot's pictures in the order of its rows. `own_model` and `fitted` are
        as in `create`. Searches continue meanwhile, with the model and the vokens of before; other writers wait.
        Raises `StorageError` if the disk refuses; then nothing has changed.
        """
        with self._transaction() as (connection, state):
            snapshot = self._snapshot_to_write(connection, state)
            self._remove_others(state)
            after = replace_fields(state, own_model=state.own_model + 1)
            model = self.folder / _model_name(after.own_model)
            with artifact.storage_errors(self.folder):
                fingerprint = own_model(model)
                codebooks = self.folder / after.codebooks_file
                np.save(codebooks, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
                artifact.sync_file(codebooks)
            self._write_next_base(connection, state, snapshot, tokenizer.codebook_size, vokens_of(snapshot))
            _write_settings(
                connection,
                levels=tokenizer.levels,
                codebook_size=tokenizer.codebook_size,
                own_model=after.own_model,
                fitted=fitted,
                fingerprint=fingerprint,
                model=str(model),
                model_relative=model.name,
            )
        self._remove_others_under_lock()

    def _snapshot_to_write(self, connection: sqlite3.Connection, state: _State) -> Snapshot:
        with _odd_values(self.folder / FILE):
            added, removed = _read_added(connection, state), _read_removed(connection, state)
        base = self._open_base(state)
        _check_rows(self.folder, base, added, removed)
        return Snapshot(
            base,
            self._origin(state),
            removed=removed[:, 0].copy(),
            removed_places=removed[:, 1].copy(),
            additions=added,
        )

    def _write_next_base(
        self,
        connection: sqlite3.Connection,
        state: _State,
        snapshot: Snapshot,
        codebook_size: int,
        vokens: Int32[np.ndarray, "pictures M"] | None,
    ) -> None:
        """Write the pictures of `snapshot` as the next base. `vokens` None: those that they have."""
        name = f"base-{int(state.base.rpartition('-')[2] or 0) + 1:06d}" if len(snapshot) else ""
        if name:
            sequences = snapshot.trie.row_vokens()[1] if vokens is None else vokens
            _write_snapshot(snapshot, VokenTrie.from_vokens(sequences, codebook_size), self.folder / name)
        connection.execute("DELETE FROM added")
        connection.execute("DELETE FROM removed")
        _write_settings(connection, base=name, version=state.version + 1, next_row=len(snapshot))

    def _remove_others_under_lock(self) -> None:
        # the lock makes sure which base is current: another process may have compacted since. If another process is
        # writing now, the next compaction removes the old base
        with suppress(StorageError), self._connection(wait=0) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._remove_others(_read_state(connection))
            connection.execute("ROLLBACK")

    def integrity(self) -> list[str]:
        """The faults that SQLite reports in its file; empty if there are none."""
        with self._reading() as connection:
            messages = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall()]
        return [] if messages == ["ok"] else messages

    def leftovers(self) -> list[Path]:
        """The files that killed compactions left. They are harmless, and the next compaction removes them."""
        return self._others(self._state())

    def codebooks(self) -> Float32[np.ndarray, "M N e"]:
        """The codebooks of the tokenizer that encoded the pictures. Raises `CorruptArtifactError`."""
        state = self._state()
        path = self.folder / state.codebooks_file
        if self._codebooks is not None and self._codebooks[0] == path.name:
            return self._codebooks[1]
        codebooks: np.ndarray = map_array(path)
        if (
            codebooks.dtype != np.float32
            or codebooks.shape[:2] != (state.levels, state.codebook_size)
            or codebooks.ndim != 3
            or not np.isfinite(codebooks).all()
        ):
            raise CorruptArtifactError(f"{path}: does not fit the collection. Index the pictures again.")
        self._codebooks = path.name, codebooks
        return codebooks

    @contextmanager
    def _reading(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """A connection that changes nothing in the folder."""
        path = self.folder / FILE
        with (
            open_database(path, damaged=_DAMAGED, tables=_TABLES, read_only=True, wait=wait) as connection,
            _odd_values(path),
        ):
            yield connection

    @contextmanager
    def _connection(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        path = self.folder / FILE
        with open_database(path, damaged=_DAMAGED, tables=_TABLES, wait=wait) as connection:
            # syncs the removal of the journal, too, so that a reported commit survives a power cut
            connection.execute("PRAGMA synchronous = EXTRA")
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[tuple[sqlite3.Connection, _State]]:
        """One exclusive transaction: committed if the block succeeds, rolled back if it raises."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                with _odd_values(self.folder / FILE):
                    state = _read_state(connection)
                yield connection, state
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _state(self) -> _State:
        with self._reading() as connection:
            return _read_state(connection)

    def _open_base(self, state: _State, *, verify: bool = False) -> Base:
        key, cached = f"{state.uid} {state.base}", self._base
        if cached is not None and cached[0] == key and not verify:
            return cached[1]
        if state.base:
            if (self.folder / state.base).is_symlink():
                raise CorruptArtifactError(f"{self.folder / state.base}: is a link. Put the folder itself there.")
            base = Base.open(self.folder / state.base, verify=verify)
            if (base.trie.levels, base.trie.codebook_size) != (state.levels, state.codebook_size) or (
                base.vectors is not None and base.vectors.shape[1] != state.dim
            ):
                raise CorruptArtifactError(f"{self.folder / state.base}: is of another collection. {_AGAIN}")
        else:
            base = Base.empty(state.levels, state.codebook_size, state.dim)
        self._base = (key, base)
        return base

    def _origin(self, state: _State) -> Origin:
        absolute, relative = Path(state.root), absolute_path(self.folder / state.root_relative)
        # a collection and its pictures, or its model, may have been moved or copied together
        root = relative if is_folder(relative) and self._has_pictures(state, relative, absolute) else absolute
        models = (absolute_path(self.folder / state.model_relative), Path(state.model)) if state.model else ()
        if models and not artifact.is_artifact(models[0]):
            models = models[::-1]
        return Origin(root, state.fingerprint, self.folder, tuple(dict.fromkeys(models)))

    def _has_pictures(self, state: _State, root: Path, other: Path) -> bool:
        """Whether the collection's pictures are in `root` rather than in `other`, judged by a few of its base."""
        if not is_folder(other) or is_same_folder(root, other):
            return True
        stored_paths = self._open_base(state).stored_paths
        few = [path for path in stored_paths[:_PATHS_TRIED] if not path.startswith(UPLOAD_PREFIX)]
        return not few or any(is_file(root / path) for path in few)

    def _others(self, state: _State) -> list[Path]:
        """Bases, own models and codebooks that are not the current ones."""
        ours = (path for path in self.folder.iterdir() if _BASES.fullmatch(path.name) or _is_fit(path, state))
        return sorted(path for path in ours if path.name not in state.current_names)

    def _remove_others(self, state: _State) -> None:
        """Remove what is not current. Only the process that holds the write lock may call it."""
        # a reader may still use an older base that it has mapped; the next compaction removes what is refused now
        for path in self._others(state):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


@contextmanager
def _odd_values(path: Path) -> Iterator[None]:
    """Raise `CorruptArtifactError` for a value that voken cannot have written."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: {_DAMAGED.format(why=error)}.") from error


def _read_state(connection: sqlite3.Connection) -> _State:
    """Raises `TypeError` or `ValueError` for odd values."""
    names = [column.name for column in fields(_State)]
    marks = ",".join("?" * len(names))
    rows = connection.execute(f"SELECT name, value FROM settings WHERE name IN ({marks}) LIMIT 100", names).fetchall()
    state = _State(**{name: json.loads(value) for name, value in rows})
    for column in fields(_State):
        value = getattr(state, column.name)
        if type(value).__name__ != column.type or (isinstance(value, int) and not 0 <= value < _MAX_NUMBER):
            raise ValueError(f"{column.name} is {str(value)[:40]!r}")
    if not (0 < state.levels <= MAX_LEVELS and 0 < state.codebook_size <= MAX_ENTRIES and state.dim <= MAX_DIM):
        raise ValueError(f"{state.levels} vokens of {state.codebook_size}, vectors of {state.dim}")
    if _BASE.fullmatch(state.base) is None:
        raise ValueError(f"base is {state.base[:40]!r}")
    return state


def _write_settings(connection: sqlite3.Connection, **settings: Any) -> None:
    rows = [(name, json.dumps(value)) for name, value in settings.items()]
    connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)


def _delete_added(connection: sqlite3.Connection, image_id: str) -> bool:
    return connection.execute("DELETE FROM added WHERE id = ?", (_encode_text(image_id),)).rowcount > 0


def _check_entries(entries: Sequence[Entry], state: _State) -> None:
    for entry in entries:
        vokens = np.asarray(entry.vokens)
        if vokens.shape != (state.levels,) or vokens.min() < 0 or vokens.max() >= state.codebook_size:
            raise ConfigError(
                f"{entry.image_id}: {vokens.tolist()} is not a sequence of {state.levels} vokens of "
                f"{state.codebook_size}. Use the model that the collection was made with."
            )
        if state.dim and (entry.vector is None or entry.vector.shape != (state.dim,)):
            raise ConfigError(
                f"{entry.image_id}: the collection stores vectors of {state.dim} numbers. Give the picture one."
            )


def _as_row(row: int, entry: Entry) -> tuple[Any, ...]:
    vector = None if entry.vector is None else entry.vector.astype("<f2").tobytes()
    facts = entry.facts
    return (
        row,
        _encode_text(entry.image_id),
        _encode_text(entry.stored_path),
        np.asarray(entry.vokens, dtype="<i4").tobytes(),
        vector,
        facts.size,
        facts.modified,
        facts.taken,
        facts.hash,
        entry.metadata,
    )


def _rows(connection: sqlite3.Connection, table: str, columns: str, order: str) -> list[tuple[Any, ...]]:
    """All rows of a table. Raises `ValueError` if there are more than the file has room for."""
    (size,) = connection.execute(
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    ).fetchone()
    most = size // _LEAST_BYTES[table]
    rows = connection.execute(f"SELECT {columns} FROM {table} ORDER BY {order} LIMIT ?", (most + 1,)).fetchall()
    if len(rows) > most:
        raise ValueError(f"the table {table!r} has no end")
    return rows


def _read_removed(connection: sqlite3.Connection, state: _State) -> Int64[np.ndarray, "removed 2"]:
    rows = _rows(connection, "removed", "row, place", "row")
    removed = np.array(rows, dtype=np.int64).reshape(-1, 2)
    if len(rows) and (not _ascends(removed[:, 0], 0, state.next_row) or removed.min() < 0):
        raise ValueError("the numbers of removed pictures are impossible")
    return removed


def _read_skipped(connection: sqlite3.Connection) -> list[SkippedFile]:
    rows = _rows(connection, "skipped", "path, reason, size, modified", "path")
    files = [SkippedFile(_decode_text(path), _decode_text(reason), *values) for path, reason, *values in rows]
    if any((type(file.size), type(file.modified)) != (int, int) for file in files):
        raise ValueError("a file that was left out has an impossible entry")
    return files


def _read_added(connection: sqlite3.Connection, state: _State) -> AddedPictures:
    columns = "row, id, name, vokens, vector, size, modified, taken, hash, metadata"
    records = _rows(connection, "added", columns, "row")
    if not records:
        return AddedPictures.empty(state.levels)
    rows, ids, stored_paths, vokens, vectors, size, modified, taken, digest, metadata = zip(*records, strict=True)
    facts = np.zeros(len(records), FACTS)
    for field_name, values in (("size", size), ("modified", modified), ("taken", taken)):
        facts[field_name] = values
    facts["hash"] = np.frombuffer(_joined(digest, 16), dtype="V16")
    stored_vectors = None
    if state.dim:
        stored_vectors = np.frombuffer(_joined(vectors, 2 * state.dim), dtype="<f2").reshape(len(records), state.dim)
    sequences = np.frombuffer(_joined(vokens, 4 * state.levels), dtype="<i4").reshape(len(records), state.levels)
    if sequences.min() < 0 or sequences.max() >= state.codebook_size:
        raise ValueError(f"a voken is not in 0 … {state.codebook_size - 1}")
    row_numbers = np.array(rows, dtype=np.int64)
    if not _ascends(row_numbers, 0, state.next_row) or not all(isinstance(text, str) for text in metadata):
        raise ValueError("an added picture has an impossible entry")
    return AddedPictures(
        rows=row_numbers,
        ids=tuple(map(_decode_text, ids)),
        stored_paths=tuple(map(_decode_text, stored_paths)),
        vokens=sequences,
        vectors=stored_vectors,
        facts=facts,
        metadata=metadata,
    )


def _ascends(numbers: Int64[np.ndarray, " rows"], least: int, end: int) -> bool:
    return bool(numbers[0] >= least and numbers[-1] < end and (np.diff(numbers) > 0).all())


def _check_rows(folder: Path, base: Base, added: AddedPictures, removed: Int64[np.ndarray, "removed 2"]) -> None:
    """Raise `CorruptArtifactError` if changes do not belong to `base`."""
    rows, places = removed.T
    if (len(rows) and (rows[-1] >= len(base) or places.max() >= len(base) or len(np.unique(places)) < len(places))) or (
        len(added.rows) and added.rows[0] < len(base)
    ):
        raise CorruptArtifactError(f"{folder / FILE}: its changes are those of another collection. {_AGAIN}")


def _places(folder: Path, base: Base, rows: list[int]) -> Int64[np.ndarray, " rows"]:
    """The places of rows in the trie of `base`, which is saved in `folder`. Raises `CorruptArtifactError`."""
    try:
        return places_of(base.trie, np.array(rows, dtype=np.int64))
    except IndexError as error:
        raise CorruptArtifactError(f"{folder}: {error}. {_AGAIN}") from error


def _joined(blobs: Sequence[Any], size: int) -> bytes:
    """Blobs of `size` bytes each. Raises `ValueError` for another size, `TypeError` for another type."""
    if any(len(blob) != size for blob in blobs):
        raise ValueError(f"a value has not {size} bytes")
    return b"".join(blobs)


def _encode_text(text: str) -> str | bytes:
    """A text for SQLite. File names that are not UTF-8 hold lone surrogates in Python; they are stored as bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _decode_text(value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise TypeError(f"{value!r} is no text")
    return value.decode("utf-8", "surrogatepass")


def _model_name(number: int) -> str:
    return f"model-{number:06d}"


def _is_fit(path: Path, state: _State) -> bool:
    """Whether a path is one of an own model's. Without an own model, folders of such names are somebody's."""
    return state.own_model > 0 and (_FITS.fullmatch(path.name) is not None or path.name == CODEBOOKS)


def _write_snapshot(snapshot: Snapshot, trie: VokenTrie, folder: Path) -> None:
    rows = snapshot.rows
    numbers = rows.tolist()
    ids = [snapshot.ids[row] for row in numbers]
    stored_paths = [snapshot.stored_paths[row] for row in numbers]
    write_base(
        folder,
        rows,
        ids,
        ids if stored_paths == ids else stored_paths,
        trie,
        snapshot.vectors,
        None if snapshot.facts is None else snapshot.facts[rows],
        [snapshot.metadata(row) for row in numbers],
    )
