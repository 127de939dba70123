"""A collection on disk: what was written out in one piece, and what was added and removed since.

    manifest.json        that this is a collection, and of which format
    collection.sqlite3   where pictures and model lie, which base holds, what was added and removed since, what was
                         skipped. The only file that changes: a commit here is what makes a change so
    base-000001/         most pictures, as mapped arrays (see `voken.collection.base`); a compaction writes the next
    codebooks.npy        of the tokenizer: what finds pictures like a picture without torch
    pictures/            those that came without a file of the user's own, by upload

Any number of processes may read while one writes: a reader takes one version in one transaction and keeps it. Changes
are transactions with SQLite's own durability: what `commit` returned from is there after a kill or a power cut, and a
killed change left nothing. SQLite and not Lance or a log of our own: docs/method.md has the test.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from voken import artifact
from voken.collection.base import FACTS, Base, mapped, write_base
from voken.collection.snapshot import OWN, Added, Fingerprinted, Origin, Snapshot, refuse_twice
from voken.data.skipped import Skipped
from voken.database import connected
from voken.decoding.merged_trie import places_of
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, ArtifactVersionError, ConfigError, CorruptArtifactError, StorageError
from voken.shapes import Float16, Float32, Int32

KIND, VERSION = "collection", 3
FILE, CODEBOOKS, PICTURES = "collection.sqlite3", "codebooks.npy", "pictures"
_DAMAGED = (
    "the collection's changes cannot be read ({why}). Restore the folder from a copy, or index the pictures again"
)
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
_LEAST_COMPACTED = 4_096
_COMPACTED_SHARE = 16
"""A base is written anew when the changes are this part of it."""


class Codebooks(Protocol):
    """What a collection wants to know of its model's tokenizer."""

    @property
    def levels(self) -> int:
        """M."""
        ...

    @property
    def codebook_size(self) -> int:
        """N."""
        ...

    @property
    def codebooks(self) -> Float32[np.ndarray, "M N e"]:
        """The entries of every level."""
        ...


@dataclass(frozen=True)
class FileFacts:
    """What tells whether a file is the one it was."""

    size: int
    modified: int
    """Nanoseconds since 1970."""
    taken: int = 0
    """Seconds since 1970: when the picture was taken, as its camera says, or else the file's time."""
    hash: bytes = bytes(16)
    """BLAKE2b of the content, 128 bits."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A picture to be kept."""

    image_id: str
    name: str
    """Its path, as `relative_name` says it."""
    vokens: Int32[np.ndarray, " M"]
    vector: Float16[np.ndarray, " dim"] | None
    facts: FileFacts
    metadata: str = ""


@dataclass(frozen=True)
class Committed:
    """What one change did, by id."""

    version: int
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Were there and were replaced."""
    removed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    """Were to be removed and were not there."""


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be used, and what tells whether it has changed since."""

    path: str
    reason: str
    size: int = -1
    modified: int = -1


@dataclass(frozen=True)
class _State:
    """The settings, read in one transaction."""

    uid: str
    version: int
    base: str
    next_row: int
    levels: int
    codebook_size: int
    dim: int
    """Of the stored vectors; 0 where none are stored."""
    fingerprint: str
    root: str
    root_relative: str
    model: str
    model_relative: str


@dataclass(eq=False)
class Store:
    """Make one with `create` or `open`. Any number of threads may use it."""

    folder: Path
    _base: tuple[str, Base] | None = field(default=None, repr=False)
    """The base that was opened last, by name."""

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
    ) -> Self:
        """A collection of the pictures of `base`, or of none. `vectors` is the width of the vectors it keeps, or 0.

        Raises `ArtifactError` where `folder` is taken (`replace` allows an older collection), `StorageError` where the
        disk refuses; then nothing is left behind.
        """
        folder = Path(folder)
        if artifact.is_artifact(folder):
            kind = artifact.kind_of(folder)
            if not replace or kind != KIND:
                raise ArtifactError(f"{folder}: a saved {kind} is there already. Remove it or choose another folder.")
            if any(not path.name.startswith(".") for path in (folder / PICTURES).rglob("*.*")):
                raise ArtifactError(
                    f"{folder / PICTURES}: holds pictures that were uploaded, and there is no other copy of them. Move "
                    "them away first, or choose another folder."
                )
        model = None if model_folder is None else Path(model_folder).absolute()
        state = _State(
            uid=secrets.token_hex(8),
            version=1,
            base="base-000001" if base is not None and len(base) else "",
            next_row=0 if base is None else len(base),
            levels=tokenizer.levels,
            codebook_size=tokenizer.codebook_size,
            dim=vectors,
            fingerprint=fingerprint,
            root=str(root.absolute()),
            root_relative=os.path.relpath(root.absolute(), folder.absolute()),
            model="" if model is None else str(model),
            model_relative="" if model is None else os.path.relpath(model, folder.absolute()),
        )
        with artifact.writing(folder, kind=KIND, version=VERSION, replace=replace, sealed=False) as partial:
            if base is not None and state.base:
                base.save(partial / state.base)
            np.save(partial / CODEBOOKS, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
            with connected(partial / FILE, damaged=_DAMAGED, create=True) as connection:
                connection.execute("PRAGMA auto_vacuum = FULL")
                connection.executescript(f"BEGIN; {_TABLES}")
                _write_state(connection, state)
                connection.execute("COMMIT")
        return cls(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """One that is there.

        Raises `ArtifactError` if there is none, `ArtifactVersionError` where another voken made it.
        """
        folder = Path(folder)
        manifest = artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        if manifest["version"] < VERSION:
            raise ArtifactVersionError(
                f"{folder}: collection format {manifest['version']}, made by an older voken. Index the pictures again."
            )
        if not (folder / FILE).is_file():
            raise CorruptArtifactError(f"{folder / FILE}: missing. Restore the folder from a copy or make it again.")
        return cls(folder)

    def snapshot(self, known: Snapshot | None = None, *, verify: bool = False, wait: float | None = None) -> Snapshot:
        """The version that holds now; `known` itself where that is the one. `verify` reads all and compares checksums.

        `wait` is how many seconds it may take until a writer is done; None: a minute. Raises `StorageError` where that
        is not enough, and `CorruptArtifactError` where what is there cannot be read.
        """
        for attempt in range(_TRIES):
            with self._connected(wait) as connection:
                connection.execute("BEGIN")
                state = _read_state(connection, self.folder)
                if known is not None and not verify and known.key == (state.uid, state.version):
                    return known
                more = _read_added(connection, state)
                removed = connection.execute("SELECT row, place FROM removed ORDER BY row").fetchall()
                skipped = connection.execute("SELECT path, reason FROM skipped ORDER BY path").fetchall()
                connection.execute("COMMIT")
            try:
                base = self._opened(state, verify=verify)
            except ArtifactError:
                # a compaction may have put another in its place since
                if attempt + 1 < _TRIES and self._state().base != state.base:
                    continue
                raise
            gone = np.array(removed, dtype=np.int64).reshape(-1, 2)
            origin = self._origin(state)
            return Snapshot(
                base=base,
                origin=origin,
                version=state.version,
                uid=state.uid,
                removed=gone[:, 0].copy(),
                removed_places=gone[:, 1].copy(),
                more=more,
                skipped=tuple(Skipped(str(origin.root / _told(path)), reason) for path, reason in skipped),
            )
        raise StorageError(f"{self.folder}: is compacted over and over by another process. Try again in a moment.")

    def commit(
        self,
        entries: Sequence[Entry] = (),
        *,
        remove: Sequence[str] = (),
        skipped: Sequence[SkippedFile] = (),
        forget: Sequence[str] = (),
    ) -> Committed:
        """Add `entries` and remove ids, all or nothing. An entry whose id is there replaces it.

        When it returns, the change is on the disk. `skipped` are remembered, until a picture of that name comes or
        they are in `forget`. Raises `DataError` where an id stands twice, `ConfigError` for vokens or vectors of
        another model, `StorageError` where the disk refuses; then nothing has changed.
        """
        refuse_twice([entry.image_id for entry in entries])
        with self._writing() as (connection, state):
            base = self._opened(state)
            _check_entries(entries, state)
            leaving = list(dict.fromkeys([*(entry.image_id for entry in entries), *remove]))
            there = {name for name in leaving if _delete_added(connection, name)}
            rows = {}
            for name in leaving:
                row = base.row_of(name)
                if row is None or connection.execute("SELECT 1 FROM removed WHERE row = ?", (row,)).fetchone():
                    continue
                rows[row] = name
            places = places_of(base.trie, np.array(sorted(rows), dtype=np.int64))
            gone = zip(sorted(rows), places.tolist(), strict=True)
            connection.executemany("INSERT INTO removed (row, place) VALUES (?, ?)", gone)
            there |= set(rows.values())
            written = [_as_row(state.next_row + place, entry) for place, entry in enumerate(entries)]
            connection.executemany(f"INSERT INTO added VALUES ({','.join('?' * 10)})", written)
            connection.executemany(
                "DELETE FROM skipped WHERE path = ?",
                [(_stored(name),) for name in (*forget, *(entry.name for entry in entries))],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO skipped VALUES (?, ?, ?, ?)",
                [(_stored(one.path), one.reason, one.size, one.modified) for one in skipped],
            )
            version = state.version + 1
            _write(connection, version=version, next_row=state.next_row + len(entries))
        ours = {entry.image_id for entry in entries}
        return Committed(
            version,
            added=tuple(name for name in ours if name not in there),
            updated=tuple(name for name in ours if name in there),
            removed=tuple(name for name in remove if name in there and name not in ours),
            absent=tuple(name for name in remove if name not in there),
        )

    def skipped(self) -> dict[str, SkippedFile]:
        """What could not be used, by path."""
        with self._connected() as connection:
            rows = connection.execute("SELECT path, reason, size, modified FROM skipped").fetchall()
        return {_told(path): SkippedFile(_told(path), *said) for path, *said in rows}

    @property
    def keeps_vectors(self) -> bool:
        """Whether pictures are kept with a vector."""
        return self._state().dim > 0

    def own_name(self, path: Path) -> str | None:
        """The name of a picture that lies in the collection's own folder; None for one of the user's."""
        try:
            inside = path.absolute().relative_to((self.folder / PICTURES).absolute())
        except ValueError:
            return None
        return f"{OWN}{PICTURES}/{inside.as_posix()}"

    @property
    def wants_compaction(self) -> bool:
        """Whether the changes have grown so that opening feels them."""
        with self._connected() as connection:
            state = _read_state(connection, self.folder)
            changes = connection.execute(
                "SELECT (SELECT count(*) FROM added) + (SELECT count(*) FROM removed)"
            ).fetchone()[0]
        return int(changes) > max(_LEAST_COMPACTED, len(self._opened(state)) // _COMPACTED_SHARE)

    def compact(self) -> bool:
        """Write everything out in one piece; whether there was anything to write.

        Searches go on meanwhile, in this process and in others; other writers wait. Killed at any moment it has not
        happened, and the next one removes what was left. Row numbers change, ids do not.
        """
        with self._writing() as (connection, state):
            base = self._opened(state)
            removed = np.array(
                connection.execute("SELECT row, place FROM removed ORDER BY row").fetchall(), dtype=np.int64
            ).reshape(-1, 2)
            more = _read_added(connection, state)
            snapshot = Snapshot(
                base,
                self._origin(state),
                removed=removed[:, 0].copy(),
                removed_places=removed[:, 1].copy(),
                more=more,
            )
            if not snapshot.is_changed:
                self._sweep(state.base)
                return False
            name = f"base-{_number(state.base) + 1:06d}" if len(snapshot) else ""
            if name:
                self._sweep(state.base)  # what compactions left that were killed
                _write_out(snapshot, self.folder / name)
            connection.execute("DELETE FROM added")
            connection.execute("DELETE FROM removed")
            _write(connection, base=name, version=state.version + 1, next_row=len(snapshot))
        # only who may write knows what nobody needs: another process may have compacted again since. Where one writes
        # just now, the next compaction sweeps
        with suppress(StorageError), self._connected(wait=0) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._sweep(_read_state(connection, self.folder).base)
            connection.execute("ROLLBACK")
        return True

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its file; nothing where all is well."""
        with self._connected() as connection:
            said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check").fetchall()]
        return [] if said == ["ok"] else said

    def leftovers(self) -> list[Path]:
        """What killed compactions left in the folder; harmless, and swept away by the next one."""
        return self._others(self._state().base)

    def check_model(self, model: Fingerprinted) -> None:
        """Raise `ArtifactError` where `model` is not the one that the collection was made with."""
        Snapshot(Base.empty(1, 2), self._origin(self._state())).check_model(model)

    def codebooks(self) -> Float32[np.ndarray, "M N e"]:
        """Of the tokenizer it was made with."""
        return mapped(self.folder / CODEBOOKS)

    @contextmanager
    def _connected(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        with connected(self.folder / FILE, damaged=_DAMAGED, wait=wait) as connection:
            # of the journal, too, the removal is synced: what was reported outlasts a power cut
            connection.execute("PRAGMA synchronous = EXTRA")
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, _State]]:
        """One transaction, alone: it is committed where the block ends well, and else has never been."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection, _read_state(connection, self.folder)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _state(self) -> _State:
        with self._connected() as connection:
            return _read_state(connection, self.folder)

    def _opened(self, state: _State, *, verify: bool = False) -> Base:
        key = f"{state.uid} {state.base}"
        if self._base is None or self._base[0] != key or verify:
            if state.base:
                base = Base.open(self.folder / state.base, verify=verify)
            else:
                base = Base.empty(state.levels, state.codebook_size, state.dim)
            self._base = (key, base)
        return self._base[1]

    def _origin(self, state: _State) -> Origin:
        absolute, relative = Path(state.root), self.folder / state.root_relative
        models = (Path(state.model), self.folder / state.model_relative) if state.model else ()
        # a collection and its pictures may have moved together
        root = absolute if absolute.is_dir() else relative.resolve() if relative.is_dir() else absolute
        return Origin(root, state.fingerprint, self.folder, models)

    def _others(self, base: str) -> list[Path]:
        return sorted(
            path for path in self.folder.iterdir() if path.name.lstrip(".").startswith("base-") and path.name != base
        )

    def _sweep(self, base: str) -> None:
        """Remove all bases but one. Whoever calls it is the only one who may write."""
        # a reader that has mapped an older base keeps it; where that cannot be removed now, the next sweep will
        for path in self._others(base):
            shutil.rmtree(path, ignore_errors=True)


_TRIES = 20


def _read_state(connection: sqlite3.Connection, folder: Path) -> _State:
    try:
        said = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM settings")}
        return _State(**said)
    except (TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{folder / FILE}: {_DAMAGED.format(why=error)}.") from error


def _write_state(connection: sqlite3.Connection, state: _State) -> None:
    _write(connection, **vars(state))


def _write(connection: sqlite3.Connection, **settings: Any) -> None:
    rows = [(name, json.dumps(value)) for name, value in settings.items()]
    connection.executemany("INSERT OR REPLACE INTO settings VALUES (?, ?)", rows)


def _delete_added(connection: sqlite3.Connection, image_id: str) -> bool:
    return connection.execute("DELETE FROM added WHERE id = ?", (_stored(image_id),)).rowcount > 0


def _check_entries(entries: Sequence[Entry], state: _State) -> None:
    for entry in entries:
        vokens = np.asarray(entry.vokens)
        if vokens.shape != (state.levels,) or vokens.min() < 0 or vokens.max() >= state.codebook_size:
            raise ConfigError(
                f"{entry.image_id}: {vokens.tolist()} is no sequence of {state.levels} vokens of "
                f"{state.codebook_size}. Use the model that the collection was made with."
            )
        if state.dim and (entry.vector is None or entry.vector.shape != (state.dim,)):
            raise ConfigError(f"{entry.image_id}: the collection keeps vectors of {state.dim} numbers. Give one.")


def _as_row(row: int, entry: Entry) -> tuple[Any, ...]:
    vector = None if entry.vector is None else entry.vector.astype("<f2").tobytes()
    facts = entry.facts
    return (
        row,
        _stored(entry.image_id),
        _stored(entry.name),
        np.asarray(entry.vokens, dtype="<i4").tobytes(),
        vector,
        facts.size,
        facts.modified,
        facts.taken,
        facts.hash,
        entry.metadata,
    )


def _read_added(connection: sqlite3.Connection, state: _State) -> Added:
    rows = connection.execute("SELECT * FROM added ORDER BY row").fetchall()
    if not rows:
        return Added.none(state.levels)
    number, ids, names, vokens, vectors, size, modified, taken, digest, metadata = zip(*rows, strict=True)
    facts = np.zeros(len(rows), FACTS)
    for name, values in (("size", size), ("modified", modified), ("taken", taken)):
        facts[name] = values
    facts["hash"] = np.frombuffer(b"".join(digest), dtype="V16")
    kept = None
    if state.dim:
        kept = np.frombuffer(b"".join(vectors), dtype="<f2").reshape(len(rows), state.dim)
    return Added(
        rows=np.array(number, dtype=np.int64),
        ids=tuple(map(_told, ids)),
        names=tuple(map(_told, names)),
        vokens=np.frombuffer(b"".join(vokens), dtype="<i4").reshape(len(rows), state.levels),
        vectors=kept,
        facts=facts,
        metadata=metadata,
    )


def _stored(text: str) -> str | bytes:
    """File names may hold bytes that are no UTF-8, which Python shows as lone surrogates and SQLite refuses as text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _told(stored: str | bytes) -> str:
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


def _write_out(snapshot: Snapshot, folder: Path) -> None:
    rows = snapshot.rows
    numbers = rows.tolist()
    ids = [snapshot.ids[row] for row in numbers]
    names = [snapshot.names[row] for row in numbers]
    vectors, facts = snapshot.vectors, snapshot.facts
    write_base(
        folder,
        ids,
        ids if names == ids else names,
        VokenTrie.from_vokens(snapshot.trie.row_vokens()[1], snapshot.trie.codebook_size),
        None if vectors is None else (lambda places: vectors[rows[places]], _width(snapshot)),
        None if facts is None else facts[rows],
        [snapshot.metadata(row) for row in numbers],
    )


def _width(snapshot: Snapshot) -> int:
    base = snapshot.base.vectors
    assert base is not None
    return int(base.shape[1])


def _number(base: str) -> int:
    return int(base.rpartition("-")[2] or 0)
