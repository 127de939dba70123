"""Encoders: pictures and texts to vectors of one space. Nothing heavy loads before it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

from voken.encoders.interface import Encoder
from voken.errors import ArtifactError, ArtifactVersionError, CorruptArtifactError

__all__ = ["Encoder", "load_encoder"]


def load_encoder(folder: Path, *, device: str | None = None) -> Encoder:
    """Read an encoder that its `save` wrote, of whatever family.

    Raises `ArtifactError` if there is none, `CorruptArtifactError` if its description cannot be read,
    `ArtifactVersionError` for a family this voken does not know.
    """
    path = Path(folder) / "config.json"
    try:
        family = json.loads(path.read_text(encoding="utf-8"))["family"]
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{folder}: no saved encoder there (it has no config.json).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error!r}). Make the folder again.") from error
    if family == "builtin":
        from voken.encoders.two_tower import TwoTowerEncoder

        return TwoTowerEncoder.load(Path(folder), device=device)
    if family in ("clip", "siglip"):
        from voken.encoders.clip import HubEncoder

        return HubEncoder.load(Path(folder), device=device)
    raise ArtifactVersionError(f"{folder}: holds an encoder of the unknown family {family!r}. Upgrade voken.")
