"""Every error that voken raises on purpose, in one tree.

    VokenError
     ├─ DataError              the data is malformed or cannot be used
     │   ├─ PictureError       one picture cannot be used: the file and the reason
     │   ├─ EmptyDataError     nothing is left to train on, index or search
     │   └─ SplitLeakError     the same concept or picture is on both sides of a split
     ├─ ArtifactError          a saved folder cannot be used
     │   ├─ CorruptArtifactError   a checksum differs, or a file is missing
     │   └─ ArtifactVersionError   another version of voken wrote the folder, or it holds another kind of thing
     ├─ StorageError           the disk refused to save something
     ├─ ConfigError            a setting has an impossible value
     ├─ ResumeError            an interrupted run cannot continue from its files
     ├─ BusyError              too many requests at once; the same request may succeed later
     └─ MissingExtraError      an optional dependency is not installed

A message says what is wrong, in which file and line, and what to do about it. Catch `VokenError` to catch them all. Any
other exception that leaves voken is a bug.
"""

from __future__ import annotations

_LONGEST_MESSAGE = 1_000


class VokenError(Exception):
    """Base of all errors that voken raises on purpose."""


class DataError(VokenError):
    """The data is malformed or cannot be used."""


class PictureError(DataError):
    """One picture cannot be used. Runs over many pictures skip it and list it.

    `path` is the file, `reason` a short text without the path.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class EmptyDataError(DataError):
    """Nothing is left to train on, index or search."""


class SplitLeakError(DataError):
    """The same concept or picture is on both sides of a split."""


class ArtifactError(VokenError):
    """A saved folder cannot be used.

    A damaged file may hold a value of any length. A message that quotes it is cut in the middle.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if len(text) > _LONGEST_MESSAGE:
            text = f"{text[: _LONGEST_MESSAGE // 2]} … {text[-_LONGEST_MESSAGE // 2 :]}"
        super().__init__(text)


class CorruptArtifactError(ArtifactError):
    """A checksum differs from the manifest, or a listed file is missing."""


class ArtifactVersionError(ArtifactError):
    """Another version of voken wrote the folder, or it holds another kind of thing."""


class StorageError(VokenError):
    """The disk refused to save something. What was there before is unchanged."""


class ConfigError(VokenError):
    """A setting has an impossible value, or two settings contradict each other."""


class ResumeError(VokenError):
    """An interrupted run cannot continue from the files that it left."""


class BusyError(VokenError):
    """Too many requests at once. The same request may succeed later; over HTTP the status is 503."""


class MissingExtraError(VokenError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""

    def __init__(self, dependency: str, extra: str) -> None:
        super().__init__(f'{dependency} is not installed. Install it with: pip install "voken-search[{extra}]"')
