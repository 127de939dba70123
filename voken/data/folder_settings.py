"""What a folder of pictures says about itself, in the file `voken.toml`:

    exclude = ["drafts", "*.gif"]   # left out, like --exclude
    max_pixels = 50_000_000         # larger pictures are left out, like --max-pixels

Folders come from elsewhere, too, so the file can only leave out more than is left out without it.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voken.data.images import MAX_PIXELS
from voken.errors import DataError

FOLDER_SETTINGS = "voken.toml"
_LARGEST = 1 << 16
_KEYS = ("exclude", "max_pixels")


@dataclass(frozen=True)
class FolderSettings:
    """What to leave out of a folder."""

    exclude: tuple[str, ...] = ()
    """Patterns, as `voken.data.picture_folder.list_folder` takes them."""
    max_pixels: int = 0
    """0 if the file does not say."""


def read_folder_settings(folder: Path) -> FolderSettings:
    """The settings in `folder`; the default ones if it has none.

    Raises `DataError`, which names the file and the line, because pictures that were to be left out would be indexed.
    """
    path = folder / FOLDER_SETTINGS
    text = _text(path)
    if text is None:
        return FolderSettings()
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: is not TOML: {str(error) or 'too deep'}. Correct it, or remove it.") from None
    for key, value in values.items():
        if key not in _KEYS:
            raise DataError(f"{_place(path, text, key)}: {key} is no setting. Use {' or '.join(_KEYS)}.")
        if key == "exclude" and not _is_patterns(value):
            raise DataError(f'{_place(path, text, key)}: exclude is not a list of texts. Write exclude = ["drafts"].')
        if key == "max_pixels" and (type(value) is not int or not 1 <= value <= MAX_PIXELS):
            raise DataError(
                f"{_place(path, text, key)}: max_pixels is not a whole number from 1 to {MAX_PIXELS}. Correct it, or "
                "allow larger pictures with --max-pixels."
            )
    return FolderSettings(tuple(values.get("exclude", ())), values.get("max_pixels", 0))


def _text(path: Path) -> str | None:
    try:
        # a pipe must not make anybody wait
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{path}: is not a file. Remove it, or put a file there.")
            content = file.read(_LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Correct it, or remove it.") from None
    if len(content) > _LARGEST:
        raise DataError(f"{path}: is longer than {_LARGEST} bytes. Shorten it.")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8. Save it as UTF-8.") from None


def _is_patterns(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pattern, str) for pattern in value)


def _place(path: Path, text: str, key: str) -> str:
    """The file and, if a line begins with the key, that line."""
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"""\s*\[*\s*["']?{re.escape(key)}\b""", line):
            return f"{path}, line {number}"
    return str(path)
