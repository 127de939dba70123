"""Paths of files and folders: one spelling for one place."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_COLLECTION = ".voken"
"""The collection of a folder of pictures, in that folder. It is not listed among the pictures."""


def absolute_path(path: Path) -> Path:
    """`path` from the root of the file system, without "..".

    Links stay as they are, except before a "..", which leads to the folder above the link's target.
    """
    parts = path.parts
    if ".." not in parts:
        return path.absolute()
    last = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:last])), *parts[last:])


def is_folder(path: Path) -> bool:
    """Whether there is a folder. False also if the system does not say, or takes no such path."""
    return os.path.isdir(path)  # noqa: PTH112 -- Path.is_dir raises then


def is_file(path: Path) -> bool:
    """Whether there is a file; as `is_folder`."""
    return os.path.isfile(path)  # noqa: PTH113 -- Path.is_file raises then


def is_same_folder(first: Path, second: Path) -> bool:
    """Whether both are one folder, perhaps by a link. Folders that do not exist are compared by their paths."""
    first, second = absolute_path(first), absolute_path(second)
    try:
        return first == second or os.path.samefile(first, second)  # noqa: PTH121 -- Path.samefile raises the same
    except OSError:
        return False


def relative_path(path: Path, folder: Path) -> str | None:
    """`path` relative to `folder`, with "/"; None if it is not in there.

    A path that leads there by a link to a folder counts. A link to a file is itself, and not its target.
    """
    path, folder = absolute_path(path), absolute_path(folder)
    if not path.is_relative_to(folder):
        path, folder = Path(os.path.realpath(path.parent), path.name), Path(os.path.realpath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None
