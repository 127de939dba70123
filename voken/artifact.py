"""Saved folders and databases: they are complete or absent, are checked when read, and errors name the remedy.

A saved folder holds its files and one `manifest.json`, which is written last. The manifest names the kind of thing
saved, the format version, and the SHA-256 of every file. The folder is written beside its destination and renamed into
place: a reader sees the old folder or the new one, never a mixture, and a full disk or a kill leaves the old one as it
was.

This module does not know what is saved.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from voken.errors import ArtifactError, ArtifactVersionError, CorruptArtifactError, StorageError

MANIFEST = "manifest.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WAIT_SECONDS = 60.0
"""How long another process may hold the lock of a database."""
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}
_REFUSED = {
    sqlite3.SQLITE_FULL: "the disk is full. Free some space and run the same command again; saved data is untouched",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write. Check its space and health and run the command again",
    sqlite3.SQLITE_READONLY: "cannot write there. Choose another folder or correct its permissions",
    sqlite3.SQLITE_PERM: "cannot write there. Choose another folder or correct its permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened. Choose another folder or correct its permissions",
    sqlite3.SQLITE_BUSY: "another process has held its lock for a minute. Wait for it or end it, and try again",
    sqlite3.SQLITE_LOCKED: "another process holds its lock. Wait for it or end it, and run the command again",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a refused write (disk full, quota, no permission, read-only) into `StorageError` naming `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{path}: the disk is full ({error.strerror}). Free some space and run the same command again; "
                "what was saved before is untouched."
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise StorageError(
                f"{path}: cannot write there ({error.strerror}). Choose another folder or correct its permissions."
            ) from error
        raise


@contextmanager
def writing(
    destination: Path, *, kind: str, version: int, replace: bool = False, sealed: bool = True
) -> Iterator[Path]:
    """Yield an empty folder to fill; if the block succeeds, it becomes `destination`, with its manifest.

    With `replace` an older artifact is replaced as soon as the new one is complete. Anything else in its place raises
    `ArtifactError`. If the block raises, nothing is left behind. `sealed=False` is for a folder whose files change
    later: its manifest lists no files.
    """
    destination = Path(destination)
    if not _may_write(destination, replace):
        raise ArtifactError(
            f"{destination}: already exists. Remove it or choose another folder"
            + ("." if is_artifact(destination) else " (it is not something voken saved).")
        )
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    with storage_errors(destination):
        try:
            # a killed process may have left this folder: in a container every process may have the same number
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            _write_manifest(partial, kind=kind, version=version, sealed=sealed)
            _swap(partial, destination)
        finally:
            if partial.exists():
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def open_database(
    path: Path, *, damaged: str, create: bool = False, wait: float | None = None
) -> Iterator[sqlite3.Connection]:
    """An SQLite connection for one transaction or a few queries, closed at the end. The caller begins and commits.

    A connection per call takes 0.1 ms, and none is shared between threads or survives a fork. Without `create` the file
    must exist. `wait` is how many seconds another process may hold the lock; None means a minute. `damaged` is the
    message for a file that cannot be read: what is wrong and what to do ("the cache is damaged ({why}). Delete it").
    Raises `StorageError` if the disk refuses or the lock is not released in time, and `CorruptArtifactError`.
    """
    connection: sqlite3.Connection | None = None
    try:
        uri = f"{Path(path).absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
        timeout = WAIT_SECONDS if wait is None else wait
        connection = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
        yield connection
    except sqlite3.DatabaseError as error:
        # the low byte is the kind of error, the other bytes are its details (sqlite.org/rescode.html)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        if code in _CORRUPT:
            raise CorruptArtifactError(f"{path}: {damaged.format(why=error)}") from error
        raise StorageError(f"{path}: {_REFUSED.get(code, f'{error}. Run the command again')}.") from error
    finally:
        if connection is not None:
            connection.close()


def is_artifact(folder: Path) -> bool:
    """Whether `folder` holds something voken saved."""
    return (Path(folder) / MANIFEST).is_file()


def kind_of(folder: Path) -> str:
    """The kind of thing in a saved folder. Raises `ArtifactError` if it is not a saved folder."""
    return str(_read_manifest(Path(folder), "collection or model")["kind"])


def check(folder: Path, *, kind: str, version: int, checksums: bool = True) -> dict[str, Any]:
    """Verify a saved folder and return its manifest.

    `checksums=False` compares only sizes, for large memory-mapped files that must open in milliseconds. Raises
    `ArtifactError` if it is not a saved folder, `ArtifactVersionError` for another kind or a newer format, and
    `CorruptArtifactError` for a missing or changed file.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder, kind)
    if manifest["kind"] != kind:
        raise ArtifactVersionError(f"{folder}: holds a {manifest['kind']}, not a {kind}.")
    if manifest["version"] > version:
        raise ArtifactVersionError(
            f"{folder}: {kind} format {manifest['version']} is newer than this voken reads ({version}). Upgrade voken."
        )
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            intact = path.stat().st_size == entry["bytes"] and (not checksums or sha256(path) == entry["sha256"])
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise CorruptArtifactError(f"{path}: missing. Restore the folder from a copy or create it again.") from None
        if not intact:
            raise CorruptArtifactError(
                f"{path}: differs from what was saved. Restore the folder from a copy or create it again."
            )
    return manifest


def contents_digest(folder: Path, *, without: str) -> str:
    """A hexadecimal digest of the files in the subfolders of a saved folder, apart from the subfolder `without`."""
    files = read_json(Path(folder) / MANIFEST)["files"]
    digests = {name: entry["sha256"] for name, entry in files.items() if name.partition("/")[0] not in (name, without)}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32]


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that a new name in it survives a power cut. Does nothing on Windows, which cannot do this."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, complete or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, *, encoding: str = "utf-8") -> None:
    """Write a text file with "\\n" at line ends, complete or not at all."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with storage_errors(path):
        try:
            with open(partial, "w", encoding=encoding, newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `CorruptArtifactError` if it is missing, not JSON or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CorruptArtifactError(f"{path}: missing. Restore the folder from a copy or create it again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Create the folder again.") from error
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: does not hold what voken saved. Create the folder again.")
    return value


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    if folder.is_file():
        raise ArtifactError(f"{folder}: is a file; a saved {kind} is a folder.")
    if not is_artifact(folder):
        raise ArtifactError(f"{folder}: no saved {kind} there (it has no {MANIFEST}).")
    manifest = read_json(folder / MANIFEST)
    if not {"kind", "version", "files"} <= manifest.keys():
        raise CorruptArtifactError(f"{folder / MANIFEST}: is not a manifest. Create the folder again.")
    return manifest


def _write_manifest(folder: Path, *, kind: str, version: int, sealed: bool) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            if sealed:
                files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, {"kind": kind, "version": version, "files": files})


def _may_write(destination: Path, replace: bool) -> bool:
    if not destination.exists() or (replace and is_artifact(destination)):
        return True
    return destination.is_dir() and not any(destination.iterdir())


def _swap(partial: Path, destination: Path) -> None:
    retired = destination.with_name(f".{destination.name}.retired-{os.getpid()}")
    if destination.exists():
        destination.replace(retired)
    try:
        partial.replace(destination)
    except OSError:
        if retired.exists():
            retired.replace(destination)
        raise
    with suppress(OSError):
        sync_folder(destination.parent)
    shutil.rmtree(retired, ignore_errors=True)
