"""Reports when the pictures in a folder change. The caller decides what to do then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from voken.data.images import SUFFIXES
from voken.data.metadata import METADATA, METADATA_CSV
from voken.errors import MissingExtraError

_QUIET_MILLISECONDS = 1_000
"""Changes are reported after this much quiet, so that a copy of many files is reported as one change."""


def folder_changes(folder: Path) -> Iterator[set[Path]]:
    """Yield the pictures that were created, changed or removed since the last item, without end.

    Ctrl-C raises `KeyboardInterrupt`. Raises `MissingExtraError` if watchfiles is not installed.
    """
    try:
        from watchfiles import Change, watch
    except ImportError:
        raise MissingExtraError("watchfiles, which follows folders,", "watch") from None

    def is_relevant(change: Change, path: str) -> bool:
        file = Path(path)
        hidden = any(part.startswith(".") for part in file.relative_to(folder.absolute()).parts)
        # if a folder is moved, the system reports its name but not its pictures
        return not hidden and (
            file.suffix.lower() in SUFFIXES or file.name in (METADATA, METADATA_CSV) or not file.suffix
        )

    for changes in watch(
        folder.absolute(), watch_filter=is_relevant, debounce=_QUIET_MILLISECONDS * 4, step=_QUIET_MILLISECONDS
    ):
        yield {Path(path) for _, path in changes}
