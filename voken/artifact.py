"""Saved folders and databases: they are complete or absent, are checked when read, and errors name the remedy.

A saved folder holds its files and one `manifest.json`, which is written last. The manifest names the kind of thing
saved, the format version, and the SHA-256 of every file. The folder is written beside its destination and renamed into
place: a reader sees the old folder or the new one, never a mixture, and a full disk or a kill leaves the old one as it
was.

A folder may come from a stranger. So its names are plain, and lead to regular files inside it, never through a link;
sizes are checked before anything is read; and SQLite opens a database read-only, unless something is to be changed, and
only if it holds the expected tables and nothing that runs by itself.

This module does not know what is saved.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voken.errors import ArtifactError, ArtifactVersionError, CorruptArtifactError, StorageError

if TYPE_CHECKING:
    import numpy as np

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 24
_OF_THE_SYSTEM = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""File managers write these files into every folder that they show."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFIT_PATHS = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
WAIT_SECONDS = 60.0
"""How long another process may hold the lock of a database."""
_MAX_JSON_BYTES = 16 << 20
_MAX_VALUE_BYTES = 64 << 20
"""The longest text or blob that SQLite reads from a database."""
_SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""The end of a journal that names another journal (sqlite.org/fileformat.html). SQLite would delete the file that is
named, wherever it is. A database that is never attached to another has no such journal."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CORRUPT = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_SCHEMA,
    sqlite3.SQLITE_TOOBIG,
}
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

    With `replace` an older artifact is replaced as soon as the new one is complete, unless somebody has put other files
    into it. Anything else in its place raises `ArtifactError`. If the block raises, nothing is left behind.
    `sealed=False` is for a folder whose files change later: its manifest lists no files, and the caller checks that
    nothing of others is in the folder.
    """
    destination = Path(destination)
    if not _may_write(destination, replace):
        raise _already_exists(destination)
    if replace and sealed and is_artifact(destination):
        refuse_other_files(destination, set(_read_manifest(destination, kind)["files"]) | {MANIFEST})
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    with storage_errors(destination):
        try:
            # a killed process may have left this folder: in a container every process may have the same number
            shutil.rmtree(partial, ignore_errors=True)
            _make_folder(partial, destination)
            yield partial
            _write_manifest(partial, kind=kind, version=version, sealed=sealed)
            _swap(partial, destination, replace)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _make_folder(partial: Path, destination: Path) -> None:
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        if error.errno in _UNFIT_PATHS:
            raise StorageError(
                f"{destination}: no folder can be created there ({error.strerror}). Choose another folder."
            ) from error
        raise


@contextmanager
def open_database(
    path: Path,
    *,
    damaged: str,
    tables: str | None = None,
    read_only: bool = False,
    create: bool = False,
    wait: float | None = None,
) -> Iterator[sqlite3.Connection]:
    """An SQLite connection for one transaction or a few queries, closed at the end. The caller begins and commits.

    A connection per call takes 0.1 ms, and none is shared between threads or survives a fork. Without `create` the file
    must exist. `tables` are the statements that create the tables that the file may hold: other tables, views, triggers
    and indices are refused. `wait` is how many seconds another process may hold the lock; None means a minute.
    `damaged` is the message for a file that cannot be read: what is wrong and what to do ("the cache is damaged
    ({why}). Delete it"). Raises `StorageError` if the disk refuses or the lock is not released in time, and
    `CorruptArtifactError`.
    """
    connection: sqlite3.Connection | None = None
    path = Path(path)
    try:
        if reason := _unsafe(path, strict=tables is not None):
            raise CorruptArtifactError(f"{path}: {damaged.format(why=reason)}.")
        mode = "ro" if read_only else "rwc" if create else "rw"
        connection = _connect(path, mode, wait)
        try:
            objects = _objects(connection)
        except sqlite3.OperationalError as error:
            if not read_only or getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
            # a killed process left a change half done, which only a connection that may write can undo
            connection.close()
            connection = _connect(path, "rw", wait)
            _objects(connection)
            connection.close()
            connection = _connect(path, "ro", wait)
            objects = _objects(connection)
        except UnicodeDecodeError as error:  # SQLite's own message quotes a damaged schema
            reason = "its description of the tables is no text"
            raise CorruptArtifactError(f"{path}: {damaged.format(why=reason)}.") from error
        if tables is not None and not objects <= _expected_objects(tables):
            name = sorted(objects - _expected_objects(tables))[0][1][:40]
            reason = f"it holds {name!r}, which voken did not create"
            raise CorruptArtifactError(f"{path}: {damaged.format(why=reason)}.")
        yield connection
    except sqlite3.DatabaseError as error:
        # the low byte is the kind of error, the other bytes are its details (sqlite.org/rescode.html)
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        if code in _CORRUPT:
            raise CorruptArtifactError(f"{path}: {damaged.format(why=error)}.") from error
        raise StorageError(f"{path}: {_REFUSED.get(code, f'{error}. Run the command again')}.") from error
    finally:
        if connection is not None:
            connection.close()


def _connect(path: Path, mode: str, wait: float | None) -> sqlite3.Connection:
    timeout = WAIT_SECONDS if wait is None else wait
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=timeout, isolation_level=None
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def _unsafe(path: Path, *, strict: bool) -> str:
    """Why SQLite must not open a database; empty if it may. Nothing is opened through a link.

    `strict` refuses databases with a write-ahead log, too.
    """
    for part in (path, *(path.with_name(path.name + suffix) for suffix in ("-journal", "-wal", "-shm"))):
        try:
            status = part.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            return f"{part.name} is not a plain file"
        if strict and part.name.endswith("-wal"):
            return f"{part.name} belongs to another kind of database"
        if part.name.endswith("-journal") and status.st_size >= 16:
            with suppress(FileNotFoundError), open(part, "rb") as file:  # another process may have completed its change
                file.seek(-8, os.SEEK_END)
                if file.read() == _SUPER_JOURNAL:
                    return f"{part.name} names a file elsewhere"
        if strict and part is path and status.st_size >= 100:
            with open(part, "rb") as file:
                if file.read(20)[18:] != b"\x01\x01":
                    return "it is not a database that voken wrote"
    return ""


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    """Type, name and definition of every table, index, view and trigger."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema LIMIT 100").fetchall()
    return {(str(kind), str(name), " ".join(str(sql).split())) for kind, name, sql in rows}


@cache
def _expected_objects(tables: str) -> frozenset[tuple[str, str, str]]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(tables)
        return frozenset(_objects(connection))
    finally:
        connection.close()


def is_artifact(folder: Path) -> bool:
    """Whether `folder` holds something voken saved. False also if the system does not say, or takes no such path."""
    return os.path.isfile(Path(folder) / MANIFEST)  # noqa: PTH113 -- Path.is_file raises if a path is too long


def saved_kind(folder: Path) -> str | None:
    """The kind of thing that voken saved in `folder`; None if it saved nothing there. Never raises, and never blocks.

    Other programs write files of this name too; theirs do not have the three keys.
    """
    try:
        status = os.lstat(folder / MANIFEST)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_MANIFEST:
            return None
        return str(_read_manifest(folder, "")["kind"])
    except (OSError, ValueError, RecursionError, ArtifactError):
        return None


def refuse_other_files(folder: Path, ours: set[str]) -> None:
    """Raise `ArtifactError` if `folder`, which is about to be replaced, holds a file that voken did not write there.

    `ours` are the paths of files, and of folders in which every file is ours, relative to `folder`, with "/".
    """
    for here, folders, files in os.walk(folder):
        place = Path(here).relative_to(folder)
        folders[:] = [name for name in folders if (place / name).as_posix() not in ours]
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        for name in (*files, *links):
            if (place / name).as_posix() not in ours and name not in _OF_THE_SYSTEM and ".partial-" not in name:
                raise ArtifactError(
                    f"{folder / place / name}: voken did not write this file, and to replace {folder} would delete it. "
                    "Move it away first, or choose another folder."
                )


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
        raise ArtifactVersionError(f"{folder}: holds a {manifest['kind']}, not a {kind}. Name another folder.")
    if manifest["version"] > version:
        raise ArtifactVersionError(
            f"{folder}: {kind} format {manifest['version']} is newer than this voken reads ({version}). Upgrade voken."
        )
    if manifest["files"]:
        _refuse_links(folder)
    for name, entry in manifest["files"].items():
        path = plain_path(folder, name)
        with open_file(path) as file:
            intact = os.fstat(file.fileno()).st_size == entry["bytes"]
            if intact and checksums:
                intact = hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
        if not intact:
            raise CorruptArtifactError(
                f"{path}: differs from what was saved. Restore the folder from a copy or create it again."
            )
    return manifest


def contents_digest(folder: Path, *, without: str) -> str:
    """A hexadecimal digest of the files in the subfolders of a saved folder, apart from the subfolder `without`."""
    files = _read_manifest(Path(folder), "model")["files"]
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


def sync_file(path: Path) -> None:
    """Sync a file, so that what was written to it survives a power cut."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


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
    with open_file(path, max_bytes=_MAX_JSON_BYTES) as file:
        content = file.read()
    try:
        value = json.loads(content.decode("utf-8"))
    # a number of thousands of digits, or brackets in brackets without end
    except (ValueError, RecursionError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Create the folder again.") from error
    if not isinstance(value, dict):
        raise CorruptArtifactError(f"{path}: does not hold what voken saved. Create the folder again.")
    return value


def open_file(path: Path, *, max_bytes: int | None = None) -> io.BufferedReader:
    """Open a file of a saved folder to read it. It must be a regular file, not a link, of at most `max_bytes`.

    A named pipe does not block. Raises `CorruptArtifactError`, and `StorageError` if the file may not be read.
    """
    # a folder is opened as if it were a file, and refused below; Windows lacks the first two flags and needs the third
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    remedy = "Restore the folder from a copy or create it again."
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptArtifactError(f"{path}: missing. {remedy}") from None
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENAMETOOLONG, errno.EISDIR}:
            raise CorruptArtifactError(f"{path}: is not a plain file. {remedy}") from None
        raise StorageError(f"{path}: cannot be read ({error.strerror}). Correct its permissions.") from error
    status = os.fstat(descriptor)
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "is not a plain file"
    elif max_bytes is not None and status.st_size > max_bytes:
        reason = f"has {status.st_size:,} bytes, over the limit of {max_bytes:,}"
    if reason:
        os.close(descriptor)
        raise CorruptArtifactError(f"{path}: {reason}. {remedy}")
    return open(descriptor, "rb")


def plain_path(folder: Path, name: object) -> Path:
    """The path of a file that a saved folder names: relative, with "/", and inside the folder without any link.

    Raises `CorruptArtifactError` for another name. The file itself may be missing; `open_file` refuses links to files.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or not part.isprintable() for part in parts):
        raise CorruptArtifactError(
            f"{folder}: names the file {str(name)[:80]!r}, which is not a plain name. Create the folder again."
        )
    path = Path(folder)
    for part in parts[:-1]:
        path /= part
        if path.is_symlink():
            raise CorruptArtifactError(f"{path}: is a link. Put the folder itself there.")
    return path / parts[-1]


def _refuse_links(folder: Path) -> None:
    """Raise `CorruptArtifactError` if anything in a folder is neither a folder nor a regular file, listed or not.

    What reads the folder may open more than the manifest lists: a graph names the file of its weights.
    """
    for here, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(here, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise CorruptArtifactError(f"{path}: is {kind}. Put the file itself there, or remove it.")


def map_array(path: Path) -> np.ndarray:
    """Memory-map an array that `numpy.save` wrote. Raises `CorruptArtifactError`."""
    import numpy as np  # `voken --help` must not wait for it
    from numpy.lib import format as npy

    with open_file(path) as file:
        try:
            header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, fortran_order, dtype = header(file)
            needed = file.tell() + math.prod(shape) * dtype.itemsize
            if dtype.hasobject or not dtype.itemsize or any(side < 0 for side in shape):
                raise ValueError(f"an array of {dtype} {shape}")
            if os.fstat(file.fileno()).st_size < needed:
                raise ValueError("it is cut short")
            array = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")
        # numpy reads the header as a literal of Python, and passes on whatever its tokenizer raises
        except Exception as error:
            raise CorruptArtifactError(f"{path}: cannot be read ({error}). Index the pictures again.") from error
    return np.asarray(array)


def _read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    if folder.is_file():
        raise ArtifactError(f"{folder}: is a file, but a saved {kind} is a folder. Name the folder.")
    if not is_artifact(folder):
        raise ArtifactError(f"{folder}: no saved {kind} there (it has no {MANIFEST}). Name another folder.")
    manifest = read_json(folder / MANIFEST)
    if not _is_manifest(manifest):
        raise CorruptArtifactError(f"{folder / MANIFEST}: is not a manifest. Create the folder again.")
    return manifest


def _is_manifest(values: dict[str, Any]) -> bool:
    files = values.get("files")
    return (
        isinstance(values.get("kind"), str)
        and type(values.get("version")) is int
        and isinstance(files, dict)
        and all(
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("sha256"), str)
            and _SHA256.fullmatch(entry["sha256"]) is not None
            for entry in files.values()
        )
    )


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


def _already_exists(destination: Path) -> ArtifactError:
    return ArtifactError(
        f"{destination}: already exists. Remove it or choose another folder"
        + ("." if is_artifact(destination) else " (it is not something voken saved).")
    )


def _swap(partial: Path, destination: Path, replace: bool) -> None:
    retired = destination.with_name(f".{destination.name}.retired-{os.getpid()}")
    if replace and destination.exists():
        destination.replace(retired)
    try:
        partial.replace(destination)
    except OSError as error:
        if retired.exists():
            retired.replace(destination)
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:  # another process has written it meanwhile
            raise _already_exists(destination) from error
        raise
    with suppress(OSError):
        sync_folder(destination.parent)
    shutil.rmtree(retired, ignore_errors=True)
