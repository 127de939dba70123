"""Pictures that come without a file of the user's own: checked, kept in the collection's folder, added, and removed.

    COLLECTION/pictures/3f/3f9a….jpg    named by its content, so that what comes twice is there once

A file lies there complete, and on the disk, before the collection knows of it; what the collection would not take is
removed again. A server that is killed in between leaves a file that nobody asks for, and that the same upload finds.
One process at a time changes the folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from voken import artifact
from voken.api import Collection
from voken.collection.snapshot import OWN
from voken.collection.store import PICTURES
from voken.data.images import open_image
from voken.data.skipped import Skipped
from voken.database import connected
from voken.errors import DataError, PictureError, VokenError
from voken.serve.picture_file import Kind

_LOCK = ".lock.sqlite3"
_BLOCK = 1 << 20
_NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Upload:
    """One file as it came."""

    name: str
    """What its sender calls it; only ever shown."""
    source: BinaryIO


@dataclass(frozen=True)
class Taken:
    """What an upload did, by id."""

    version: int
    added: tuple[str, ...]
    updated: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    """By the names that their sender gave."""


def take(collection: Collection, uploads: Sequence[Upload], max_pixels: int) -> Taken:
    """Add what is a picture of at most `max_pixels`, in one transaction; tell of the rest.

    Raises `StorageError` where the disk refuses, `MissingExtraError` where pictures cannot be read here; then the
    collection is as it was.
    """
    refused: list[Skipped] = []
    good: dict[str, tuple[Upload, str]] = {}
    for upload in uploads:
        try:
            relative = _checked(upload, max_pixels)
        except PictureError as error:
            refused.append(Skipped(shown_name(upload.name), error.reason))
            continue
        good.setdefault(relative, (upload, shown_name(upload.name)))
    if not good:
        return Taken(collection.version, (), (), tuple(refused))
    root = collection.folder.absolute()
    folder = root / PICTURES
    names = {folder / relative: name for relative, (_, name) in good.items()}
    written: list[Path] = []
    with _alone(folder):
        try:
            for relative, (upload, _) in good.items():
                if _keep(folder / relative, upload.source):
                    written.append(folder / relative)
            _fsync_folders(written)
            change = collection.add(list(names), metadata=[{"title": name} for name in names.values()])
        except BaseException:
            _remove_unknown(collection, written)
            raise
        # a collection tells of a file of its own by name or by path
        unusable = {root / one.path.removeprefix(OWN): one.reason for one in change.skipped}
        _remove([path for path in written if path in unusable])
    refused += [Skipped(names.get(path, path.name), reason) for path, reason in unusable.items()]
    return Taken(change.version, change.added, change.updated, tuple(refused))


def remove(collection: Collection, image_id: str) -> tuple[int, tuple[str, ...]]:
    """Remove a picture, and its file where that came by upload: the version since then, and the ids removed.

    Raises `DataError` where there is none, `StorageError` where the disk refuses.
    """
    folder = collection.folder / PICTURES
    picture = collection.picture(image_id)
    if not _lies_in(picture.path, folder):
        change = collection.remove([image_id])
    else:
        with _alone(folder):
            change = collection.remove([image_id])
            if change.removed:
                _remove([picture.path])
    if not change.removed:
        raise DataError(f"{image_id}: no picture of the collection has that id.")
    return change.version, change.removed


def shown_name(name: str) -> str:
    """What a sender calls a file, fit to be stored and shown: without folders and signs that cannot be seen."""
    last = name.replace("\\", "/").rpartition("/")[2].encode("utf-8", "replace").decode("utf-8")
    return (
        "".join(character if character.isprintable() else " " for character in last).strip()[:_NAME_CHARACTERS] or "?"
    )


def _checked(upload: Upload, max_pixels: int) -> str:
    """Where its file goes, below the folder of uploads. Raises `PictureError`."""
    kind = Kind.of(upload.source)
    if kind is None:
        empty = not upload.source.read(1)
        raise PictureError(upload.name, "empty file" if empty else "not a picture of a known kind")
    open_image(upload.source, max_pixels=max_pixels)
    upload.source.seek(0)
    digest = blake2b(digest_size=16)
    while block := upload.source.read(_BLOCK):
        digest.update(block)
    name = digest.hexdigest()
    return f"{name[:2]}/{name}{kind.suffix}"


def _keep(place: Path, source: BinaryIO) -> bool:
    """Write a file complete or not at all; False where it is there already."""
    if place.exists():
        return False
    partial = place.with_name(f".{place.name}.partial")
    with artifact.storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.seek(0)
            with open(partial, "wb") as file:
                while block := source.read(_BLOCK):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return True


def _fsync_folders(written: Sequence[Path]) -> None:
    # a name is on the disk when its folder is; Windows has no such thing
    if os.name == "nt":
        return
    parents = {path.parent for path in written}
    for folder in sorted({above for parent in parents for above in (parent, *parent.parents[:2])}):
        with artifact.storage_errors(folder):
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


def _remove(paths: Sequence[Path]) -> None:
    """A file that stays is asked for by nobody: it is not worth an error."""
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_unknown(collection: Collection, paths: Sequence[Path]) -> None:
    """What went wrong may have done so after the pictures were added."""
    with suppress(VokenError):
        snapshot = collection.store.snapshot()
        root = collection.folder.absolute()
        _remove([path for path in paths if snapshot.find(path.relative_to(root).as_posix()) is None])


def _lies_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other upload or removal goes on meanwhile, in any process; SQLite's lock goes with a killed holder."""
    with artifact.storage_errors(folder):
        folder.mkdir(exist_ok=True)
    damaged = "the lock of the uploaded pictures cannot be used ({why}). Remove it"
    with connected(folder / _LOCK, damaged=damaged, create=True) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")
