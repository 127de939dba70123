"""generator.json: what a saved generator is, beside its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from voken.artifact import write_json
from voken.errors import ArtifactVersionError, CorruptArtifactError

_FILE = "generator.json"
_FORMAT = 1


def write_header(folder: Path, family: str, settings: dict[str, Any]) -> None:
    """Write the family ("t5", "llama", …), the format's version and `settings` into `folder`."""
    write_json(Path(folder) / _FILE, {"family": family, "format": _FORMAT, **settings})


def read_header(folder: Path, family: str) -> dict[str, Any]:
    """What `write_header` wrote.

    Raises `CorruptArtifactError` where it is missing or damaged, `ArtifactVersionError` for another family or a
    newer format.
    """
    path = Path(folder) / _FILE
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        written, found = int(header["format"]), header["family"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Restore the folder from a copy.") from error
    if found != family:
        raise ArtifactVersionError(f"{path}: holds a {found} generator, not {family}.")
    if written > _FORMAT:
        raise ArtifactVersionError(
            f"{path}: generator format {written} is newer than this voken reads ({_FORMAT}). Upgrade voken."
        )
    return dict(header)
