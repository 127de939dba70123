"""Reports when the pictures in a folder change. The caller decides what to do then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from voken.data.paths import absolute_path
from voken.data.picture_folder import is_left_out
from voken.errors import MissingExtraError

if TYPE_CHECKING:
    from watchfiles import Change

_QUIET_MILLISECONDS = 1_000
"""Changes are reported after this much quiet, so that a copy of many files is reported as one change."""
_LOOK_SECONDS = 1.0
"""How often it is checked that the folder is still the same: the system says nothing of a drive that was removed."""
_RESCAN_SECONDS = 600.0
"""After so long a silence it is reported that anything may have changed: network drives say nothing at all."""


def folder_changes(folder: Path, without: Path) -> Iterator[set[Path]]:
    """Yield the files and folders that were created, changed or removed since the last item, without end.

    An empty set means that anything may have changed: it is the first item, and it comes when the folder has
    disappeared or is back, and after ten minutes of silence. Changes in the folder `without`, which is the
    collection's, are not reported. Ctrl-C raises `KeyboardInterrupt`. Raises `MissingExtraError` if watchfiles is not
    installed.
    """
    try:
        from watchfiles import watch
    except ImportError:
        raise MissingExtraError("watchfiles, which follows folders,", "watch") from None
    folder, without = absolute_path(folder), absolute_path(without)

    def is_relevant(change: Change, path: str) -> bool:
        file = Path(path)
        if not file.is_relative_to(folder) or file.is_relative_to(without):
            return False
        # a folder that is moved is reported by its name alone, which may look like a file's
        return file == folder or not is_left_out(file.relative_to(folder).as_posix())

    polling = False
    while True:
        identity = _identity(folder)
        if identity is None:
            yield set()
            while _identity(folder) is None:
                time.sleep(_LOOK_SECONDS)
            continue
        last = -_RESCAN_SECONDS
        try:
            for changes in watch(
                folder,
                watch_filter=is_relevant,
                debounce=_QUIET_MILLISECONDS * 4,
                step=_QUIET_MILLISECONDS,
                rust_timeout=int(1000 * _LOOK_SECONDS),
                yield_on_timeout=True,
                ignore_permission_denied=True,
                force_polling=polling or None,
            ):
                if changes or time.monotonic() - last >= _RESCAN_SECONDS:
                    yield {Path(path) for _, path in changes}
                    last = time.monotonic()
                if _identity(folder) != identity:
                    break
        # watchfiles raises both if the system watches no more folders, or if the folder has just disappeared
        except (OSError, RuntimeError):
            if _identity(folder) == identity and polling:
                raise
            polling = _identity(folder) == identity


def _identity(folder: Path) -> tuple[int, int] | None:
    """What distinguishes a folder from another one at the same place; None if there is none."""
    try:
        status = os.stat(folder)  # noqa: PTH116 -- the fields below are not those of Path.stat on every system
    except OSError:
        return None
    return status.st_dev, status.st_ino
