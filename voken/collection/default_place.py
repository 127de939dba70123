"""Where the collection of a folder of pictures is, if nobody named a place: in the folder itself.

    photos/.voken                                     if the folder can be written to
    ~/.local/share/voken/collections/photos-5f2e81a0  if it cannot

The second is `$XDG_DATA_HOME/voken/collections` where that variable is set, and not the cache: a collection may hold
uploaded pictures.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from voken import artifact
from voken.data.paths import DEFAULT_COLLECTION, absolute_path


def default_place(pictures: Path) -> Path:
    """The folder of the collection of these pictures, which may not exist yet.

    `pictures` is a folder, or a file in it that lists them.
    """
    folder = Path(pictures)
    folder = folder if folder.is_dir() else folder.parent
    inside, outside = folder / DEFAULT_COLLECTION, _outside(folder)
    if artifact.is_artifact(inside) or not (artifact.is_artifact(outside) or not os.access(folder, os.W_OK)):
        return inside
    return outside


def find_collection(folder: Path) -> Path:
    """The folder to open: `folder` itself if something is saved there, else the collection of its pictures if there is
    one, else `folder`.
    """
    folder = Path(folder)
    if artifact.is_artifact(folder) or not folder.is_dir():
        return folder
    place = default_place(folder)
    return place if artifact.is_artifact(place) else folder


def _outside(folder: Path) -> Path:
    data = os.environ.get("XDG_DATA_HOME")
    home = Path(data) if data else Path.home() / ".local" / "share"
    path = absolute_path(folder)
    digest = sha256(os.fsencode(path)).hexdigest()[:8]
    return home / "voken" / "collections" / f"{path.name or 'root'}-{digest}"
