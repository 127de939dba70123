"""Reports when the pictures in a folder change. The caller decides what to do then."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from voken.data.paths import absolute_path, is_folder
from voken.data.picture_folder import folders_below, is_left_out
from voken.errors import MissingExtraError

if TYPE_CHECKING:
    from watchfiles._rust_notify import RustNotify

_QUIET_MILLISECONDS = 1_000
"""Changes are reported after this much quiet, so that a copy of many files is reported as one change."""
_LOOK_SECONDS = 1.0
"""How often a folder is looked for that has disappeared, and how often one is compared that the system cannot watch."""
_RESCAN_SECONDS = 600.0
"""After so long a silence it is reported that anything may have changed: network drives say nothing at all."""
_SHARE_OF_COMPARISONS = 0.1
"""The share of the time that comparing takes at most, if the system cannot watch a folder."""

_IS_RECURSIVE = sys.platform in ("darwin", "win32")
"""Whether the system watches a folder with all that is below it. Linux watches each folder by itself."""


def folder_changes(folder: Path, without: Path) -> Iterator[set[Path]]:
    """Yield the files and folders that were created, changed or removed since the last item, without end.

    An empty set means that anything may have changed: it is the first item, and it comes when folders were created or
    removed, when `folder` has disappeared or is back, and after ten minutes of silence. Changes in the folder
    `without`, which is the collection's, are not reported. If the system cannot watch the folders, they are compared
    with what they were; then the items are the folders in which something has changed. Ctrl-C raises
    `KeyboardInterrupt`. Raises `MissingExtraError` if watchfiles is not installed.
    """
    try:
        from watchfiles._rust_notify import RustNotify
    except ImportError:
        raise MissingExtraError("watchfiles, which follows folders,", "watch") from None
    folder, without = absolute_path(folder), absolute_path(without)
    while True:
        identity = _identity(folder)
        if identity is None:
            yield set()
            while _identity(folder) is None:
                time.sleep(_LOOK_SECONDS)
            continue
        folders = folders_below(folder, without)
        paths = [
            str(path) for path, is_listed in folders.items() if is_listed and not (_IS_RECURSIVE and path != folder)
        ]
        if not all(map(_is_text, paths)):
            yield from _compared(folder, without, identity)  # watchfiles does not take them
            continue
        try:
            system = RustNotify(paths, False, False, 0, _IS_RECURSIVE, False)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            time.sleep(_LOOK_SECONDS)  # a folder has just disappeared, or was closed
        except (OSError, RuntimeError):
            yield from _compared(folder, without, identity)  # the system can watch no more folders
        else:
            with system:
                yield from _reported(system, folder, without, folders, identity)


def _is_text(path: str) -> bool:
    """Whether a path is Unicode. On Linux, names of files are bytes."""
    return path.encode(errors="ignore").decode() == path


class _Pause:
    """Ends a wait for changes: if the folder is no longer the same, or after ten minutes. The system says neither.

    A time limit of watchfiles would not do: changes that come at the moment when it expires are lost.
    """

    def __init__(self, folder: Path, identity: tuple[int, int]) -> None:
        self._folder, self._identity = folder, identity
        self._end = time.monotonic() + _RESCAN_SECONDS

    def is_set(self) -> bool:
        """Whether to end the wait."""
        return time.monotonic() >= self._end or _identity(self._folder) != self._identity


def _reported(
    system: RustNotify, folder: Path, without: Path, folders: dict[Path, bool], identity: tuple[int, int]
) -> Iterator[set[Path]]:
    """What the system reports, until other folders than `folders` must be watched, or anything may have changed."""
    yield set()
    while _IS_RECURSIVE or folders_below(folder, without) == folders:
        relevant: set[Path] = set()
        while not relevant:
            try:
                changes = system.watch(4 * _QUIET_MILLISECONDS, _QUIET_MILLISECONDS, 0, _Pause(folder, identity))
            except RuntimeError:  # the name of a file is no text; what else has changed is not known
                return
            if changes == "signal":
                raise KeyboardInterrupt
            if isinstance(changes, str):
                return
            paths = {Path(path) for _, path in changes}
            if not _IS_RECURSIVE and not folders.keys().isdisjoint(paths):
                return  # one was renamed, replaced, closed or opened, and may no longer be watched
            relevant = {path for path in paths if _is_relevant(path, folder, without)}
        if not _IS_RECURSIVE and any(map(is_folder, relevant)):
            return  # it is not watched yet
        yield relevant


def _is_relevant(path: Path, folder: Path, without: Path) -> bool:
    if not path.is_relative_to(folder) or path.is_relative_to(without):
        return False
    # a folder that is moved is reported by its name alone, which may look like a file's
    return path == folder or not is_left_out(path.relative_to(folder).as_posix())


def _compared(folder: Path, without: Path, identity: tuple[int, int]) -> Iterator[set[Path]]:
    """The folders in which something has changed, until the folder is no longer the same or ten minutes have passed."""
    end = time.monotonic() + _RESCAN_SECONDS
    last = _states(folder, without)
    yield set()
    while time.monotonic() < end and _identity(folder) == identity:
        begin = time.monotonic()
        states = _states(folder, without)
        if states == last:
            time.sleep(max(_LOOK_SECONDS, (time.monotonic() - begin) * (1 / _SHARE_OF_COMPARISONS - 1)))
            continue
        for _ in range(4):  # until it is quiet
            time.sleep(_QUIET_MILLISECONDS / 1000)
            before, states = states, _states(folder, without)
            if states == before:
                break
        changed = {path for path in states.keys() | last.keys() if states.get(path) != last.get(path)}
        last = states
        yield changed


def _states(folder: Path, without: Path) -> dict[Path, int]:
    """A number per folder, which changes with the names, sizes and times of what is in there."""
    return {path: _state(path) for path in folders_below(folder, without)}


def _state(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return hash(frozenset(_entry_state(entry) for entry in entries if not entry.name.startswith(".")))
    except OSError as error:
        return hash(error.errno)


def _entry_state(entry: os.DirEntry[str]) -> tuple[str | int, ...]:
    try:
        status = entry.stat()
    except OSError as error:
        return entry.name, error.errno or 0
    state = entry.name, status.st_ino, status.st_mode
    return state if stat.S_ISDIR(status.st_mode) else (*state, status.st_size, status.st_mtime_ns)


def _identity(folder: Path) -> tuple[int, int] | None:
    """What distinguishes a folder from another one at the same place; None if there is none."""
    try:
        status = os.stat(folder)  # noqa: PTH116 -- the fields below are not those of Path.stat on every system
    except OSError:
        return None
    return status.st_dev, status.st_ino
