"""What a folder holds: its pictures, and everything else by name, so that nothing is left out in silence.

    listing = list_folder(Path("photos"))
    listing.pictures      photos/a.jpg, photos/2024/b.png …, sorted
    listing.left_out      photos/c.svg: a drawing (.svg), photos/@eaDir: thumbnails of a Synology NAS …
    listing.unlisted      photos/2023, which this user may not list: nobody knows what is in there

A file is a picture by its suffix or, if the suffix says nothing, by its first bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from voken import artifact
from voken.data.folder_settings import FOLDER_SETTINGS
from voken.data.images import reason_of_content, reason_of_suffix
from voken.data.paths import DEFAULT_COLLECTION
from voken.data.skipped import CANNOT_LIST, Skipped
from voken.errors import DataError

_OTHER_SUFFIXES = {
    "a drawing": "ai cdr dxf emf eps ps svg svgz wmf",
    "a picture of a kind that voken does not read": "afphoto bpg cin clip dds djvu dpx exr fit fits fpx hdr icns ico "
    "j2k jp2 jpf jpx jxr pcx pct pic psb psd sgi tga wdp xbm xcf xpm kra procreate sketch",
    "a film": "3g2 3gp asf avi flv lrv m2ts m4v mkv mov mp4 mpeg mpg mts ogv thm vob webm wmv insv",
    "a sound": "aac aif aiff amr flac m4a mid mp3 oga ogg opus wav wma",
    "a text": "c cfg conf cpp css csv h htm html ini java js json jsonl log md py rst rtf sh tex toml ts tsv txt xml "
    "yaml yml",
    "data about pictures": "aae acr cos dop ithmb lrcat lrtemplate modd moff nksc on1 pp3 picasa plist pts vrd xmp",
    "a document": "doc docx epub key numbers odp ods odt pages pdf ppt pptx xls xlsx",
    "an archive": "7z bz2 dmg gz iso jar rar tar tgz whl xz zip zst",
    "a program or its data": "bin class db dll dylib exe mdb npy npz o obj onnx parquet pdb pt pyc safetensors so "
    "sqlite sqlite3 sqlite3-journal ttf otf woff woff2",
    "an unfinished download": "crdownload download opdownload part partial tmp",
}
_KINDS = {f".{suffix}": kind for kind, suffixes in _OTHER_SUFFIXES.items() for suffix in suffixes.split()}
_OTHER_FOLDERS = {
    "@eadir": "thumbnails of a Synology NAS",
    "@tmp": "files of a NAS",
    "@sharebin": "the trash of a NAS",
    "@recycle": "the trash of a QNAP NAS",
    "@recently-snapshot": "snapshots of a QNAP NAS",
    "#recycle": "the trash of a Synology NAS",
    "#snapshot": "snapshots of a Synology NAS",
    "$recycle.bin": "the trash of Windows",
    "recycler": "the trash of Windows",
    "system volume information": "files of Windows",
    "found.000": "files of Windows",
    "lost+found": "files of Linux",
    "network trash folder": "the trash of macOS",
    "temporary items": "files of macOS",
    "__macosx": "files of macOS",
    "ipod photo cache": "thumbnails of iTunes",
}
_HIDDEN = "hidden (the name begins with a dot)"


@dataclass(frozen=True)
class FolderListing:
    """What `list_folder` finds."""

    pictures: tuple[Path, ...]
    """Files, sorted by path."""
    left_out: tuple[Skipped, ...]
    """The other files and folders, sorted by path, and why they are not among the pictures."""
    unlisted: tuple[Path, ...]
    """Folders that exist and that the system did not list; they are in `left_out`, too."""


def list_folder(folder: Path, exclude: Sequence[str] = (), *, without: frozenset[Path] = frozenset()) -> FolderListing:
    """List `folder` and the folders below it.

    Left out are hidden files and folders, links to folders, collections and models, the folders in which NAS and
    desktop systems put thumbnails and trash, and what matches a pattern of `exclude`: a name or a path relative to
    `folder` with the wildcards * and ?, as `drafts`, `*.gif`, `2019/*/raw`. The paths `without` are not mentioned.

    Raises DataError if `folder` is not a folder, cannot be listed, or is a collection or a model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Correct the path.")
    pictures: list[Path] = []
    left_out: list[Skipped] = []
    unlisted: list[Path] = []
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = sorted(_entries(here), key=lambda entry: entry.name)
        except OSError as error:
            reason = f"{CANNOT_LIST} ({error.strerror or error})"
            if here == folder:
                raise DataError(f"{folder}: {reason}. Correct its permissions, or mount its drive again.") from error
            left_out.append(Skipped(str(here), reason))
            unlisted.append(here)
            continue
        if any(entry.name == artifact.MANIFEST for entry in entries) and (kind := artifact.saved_kind(here)):
            if here == folder:
                raise DataError(f"{folder}: is a saved {kind}. Name the folder of the pictures.")
            left_out.append(Skipped(str(here), f"a saved {kind}"))
            continue
        for entry in entries:
            path = here / entry.name
            if here == folder and entry.name == FOLDER_SETTINGS:
                continue
            if path in without or (entry.name == DEFAULT_COLLECTION and artifact.saved_kind(path)):
                continue
            is_folder = _is_folder(entry)
            reason = _reason(entry, path.relative_to(folder).as_posix(), is_folder, exclude)
            if reason:
                left_out.append(Skipped(str(path), reason))
            elif is_folder:
                waiting.append(path)
            else:
                pictures.append(path)
    return FolderListing(
        tuple(sorted(pictures)), tuple(sorted(left_out, key=lambda one: one.path)), tuple(sorted(unlisted))
    )


def folders_below(folder: Path, without: Path) -> dict[Path, bool]:
    """`folder` and the folders below it that `list_folder` would list, and whether the system lists them.

    The folder `without` is left out. Empty if there is no `folder`.
    """
    folders: dict[Path, bool] = {}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            entries = list(_entries(here))
        except FileNotFoundError:
            continue
        except OSError:
            folders[here] = False
            continue
        if here != folder and any(entry.name == artifact.MANIFEST for entry in entries) and artifact.saved_kind(here):
            continue
        folders[here] = True
        for entry in entries:
            if _is_folder(entry) and not _reason_of_folder(entry.name):
                path = here / entry.name
                if path != without:
                    waiting.append(path)
    return folders


def is_left_out(relative: str, exclude: Sequence[str] = ()) -> bool:
    """Whether the file at this path, relative to a folder of pictures, is left out because of a name on its way."""
    names = relative.split("/")
    folders = names[:-1]
    return (
        any(name.startswith(".") for name in names)
        or any(name.lower() in _OTHER_FOLDERS for name in folders)
        or is_excluded(relative, exclude)
    )


def is_excluded(relative: str, exclude: Sequence[str]) -> bool:
    """Whether a pattern of `exclude` matches a path, relative to a folder of pictures, or a folder on its way."""
    names = relative.split("/") if exclude else []
    return any(_matches("/".join(names[: depth + 1]), exclude) for depth in range(len(names)))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False


def _reason(entry: os.DirEntry[str], relative: str, is_folder: bool, exclude: Sequence[str]) -> str:
    """Why an entry is left out; "" for a picture and for a folder that must be listed."""
    name = entry.name
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 -- faster, and there may be millions
    if name.startswith("."):
        return _HIDDEN
    if _matches(relative, exclude):
        return "excluded (--exclude, voken.toml)"
    if is_folder:
        return _reason_of_folder(name)
    if _leads_to_folder(entry):
        return "a link to a folder, which is not followed"
    reason = reason_of_suffix(suffix)
    if reason is not None:
        return reason
    return f"{_KINDS[suffix]} ({suffix})" if suffix in _KINDS else reason_of_content(Path(entry.path))


def _reason_of_folder(name: str) -> str:
    """Why a folder of this name is left out; "" if it is not."""
    if name.startswith("."):
        return _HIDDEN
    if name.lower().endswith(".lrdata"):
        return "previews of Lightroom"
    return _OTHER_FOLDERS.get(name.lower(), "")


def _matches(relative: str, exclude: Sequence[str]) -> bool:
    name = relative.rpartition("/")[2]
    return any(
        fnmatchcase(relative, pattern) or fnmatchcase(name, pattern)
        for pattern in (pattern.strip("/") for pattern in exclude)
        if pattern
    )
