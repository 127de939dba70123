"""When a folder of pictures changes, as the system reports it. This module does not know what is done then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from voken.data.captions import METADATA
from voken.data.images import SUFFIXES
from voken.errors import MissingExtraError

_QUIET_MILLISECONDS = 1_000
"""How long nothing more must happen before a change is reported, so that the copying of many files is one change."""


def folder_changes(folder: Path) -> Iterator[set[Path]]:
    """The pictures that were made, changed or removed since the last item, for ever. Ctrl-C raises `KeyboardInterrupt`.

    Raises `MissingExtraError` without watchfiles.
    """
    try:
        from watchfiles import Change, watch
    except ImportError:
        raise MissingExtraError("watchfiles, which follows folders,", "watch") from None

    def matters(change: Change, path: str) -> bool:
        file = Path(path)
        hidden = any(part.startswith(".") for part in file.relative_to(folder.absolute()).parts)
        # of a folder that was moved only its own name is reported
        return not hidden and (file.suffix.lower() in SUFFIXES or file.name == METADATA or not file.suffix)

    for changes in watch(
        folder.absolute(), watch_filter=matters, debounce=_QUIET_MILLISECONDS * 4, step=_QUIET_MILLISECONDS
    ):
        yield {Path(path) for _, path in changes}
