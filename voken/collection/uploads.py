"""Uploaded pictures: checked, then stored in a collection's own folder.

    COLLECTION/pictures/3f/3f9a….jpg    named after its content, so that a file that is sent twice is stored once

A file is complete and synced to disk before the collection lists it. A file that the collection does not accept is
deleted. If the process is killed in between, a file stays to which nothing refers; the same upload uses it again. One
process at a time changes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from voken.artifact import open_database, storage_errors, sync_folder
from voken.collection.store import PICTURES, Store
from voken.data.images import open_image, picture_format
from voken.data.skipped import Skipped
from voken.errors import PictureError, VokenError

_LOCK = ".lock.sqlite3"
_BLOCK = 1 << 20
_TITLE_CHARACTERS = 200

Uploads = dict[str, tuple[str, BinaryIO]]
"""The title and the open file of each picture to store, by its path in the folder of uploads."""


def check(files: Sequence[tuple[str, BinaryIO]], max_pixels: int) -> tuple[Uploads, list[Skipped]]:
    """The pictures of at most `max_pixels` among `files` (pairs of name and open file), and the other files."""
    accepted: Uploads = {}
    skipped: list[Skipped] = []
    for name, file in files:
        title = display_name(name)
        try:
            accepted.setdefault(_stored_path(file, max_pixels), (title, file))
        except PictureError as error:
            skipped.append(Skipped(title, error.reason))
    return accepted, skipped


def _stored_path(file: BinaryIO, max_pixels: int) -> str:
    file_format = picture_format(file)
    if file_format is None:
        raise PictureError("upload", "not a picture of a known kind" if file.read(1) else "empty file")
    open_image(file, max_pixels=max_pixels)
    file.seek(0)
    digest = blake2b(digest_size=16)
    while block := file.read(_BLOCK):
        digest.update(block)
    name = digest.hexdigest()
    return f"{name[:2]}/{name}{file_format.suffix}"


def display_name(name: str) -> str:
    """A file name that a client sent, without folders and invisible characters, cut to a reasonable length."""
    last = name.replace("\\", "/").rpartition("/")[2].encode("utf-8", "replace").decode("utf-8")
    visible = "".join(character if character.isprintable() else " " for character in last)
    return visible.strip()[:_TITLE_CHARACTERS] or "?"


@contextmanager
def storing(store: Store, files: Uploads) -> Iterator[dict[Path, str]]:
    """Write the files, and yield their titles by path. The block adds them to the collection.

    At the end, also after an error, files are deleted that were written but that the collection does not list. Raises
    `StorageError` if the disk refuses.
    """
    root = store.folder.absolute()
    folder = root / PICTURES
    written: list[Path] = []
    with lock(store.folder):
        try:
            for path, (_, file) in files.items():
                if _write(folder / path, file):
                    written.append(folder / path)
            _sync_folders(written)
            yield {folder / path: title for path, (title, _) in files.items()}
        finally:
            with suppress(VokenError):
                snapshot = store.snapshot()
                delete([path for path in written if snapshot.find(path.relative_to(root).as_posix()) is None])


def delete(paths: Sequence[Path]) -> None:
    """Delete files that the collection no longer lists. A file that cannot be deleted is ignored."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def lock(collection: Path) -> Iterator[None]:
    """Keep out uploads and removals by other threads and processes. SQLite releases the lock of a killed process."""
    folder = collection / PICTURES
    with storage_errors(folder):
        folder.mkdir(exist_ok=True)
    damaged = "the lock of the uploaded pictures cannot be used ({why}). Remove it"
    with open_database(folder / _LOCK, damaged=damaged, tables="", create=True) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def _write(path: Path, file: BinaryIO) -> bool:
    """Write a file, complete or not at all. Returns False if it exists already."""
    if path.exists():
        return False
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.seek(0)
            with open(partial, "wb") as target:
                while block := file.read(_BLOCK):
                    target.write(block)
                target.flush()
                os.fsync(target.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return True


def _sync_folders(files: Sequence[Path]) -> None:
    for folder in sorted({above for path in files for above in path.parents[:3]}):
        with storage_errors(folder):
            sync_folder(folder)
