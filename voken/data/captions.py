"""Data sets of pictures with captions: how they are represented, read and written.

These layouts are read, and recognised by the files in the folder:

- **imagefolder**: a folder with `metadata.jsonl`, one JSON object per line::

      {"file_name": "images/dog.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

  `captions`, `text` or `caption` is a list or a single text. The fields `split`, `concept`, `family` and `licence` are
  optional, and so are fields of your own, which a search can filter by. Paths are relative to the folder and may not
  leave it. The file may also be a `metadata.csv` or a `metadata.parquet` with these columns, and it may lie deeper: a
  folder such as `train/` with a file of its own lists its pictures there, and gives them the split that it is named
  for.
- **caption files** (`voken.data.caption_files`): COCO's captions, the token files of Flickr8k and Flickr30k, tables of
  files and captions in CSV, TSV or Parquet, and the folders that img2dataset writes.
- **Karpathy**: the `dataset_*.json` of Karpathy's splits for Flickr30K and MS-COCO, beside the folder of pictures.
- **plain pictures**: a folder with neither file; the data set is all of its pictures, without captions.

A line without a file name of its own stops the reading. A value of the wrong type does not: it is left out, and listed
in `Dataset.unused_values` if training would need it.

This module knows nothing about pixels: a picture is a path, and only its existence is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from voken.config import MAX_TEXT_CHARACTERS
from voken.data.caption_files import (
    CaptionFile,
    archived_shards,
    caption_file,
    caption_files,
    is_coco,
    is_img2dataset,
    sidecar_record,
    split_lists,
)
from voken.data.folder_settings import read_folder_settings
from voken.data.metadata import (
    METADATA,
    METADATA_CSV,
    METADATA_PARQUET,
    metadata_fields,
    metadata_text,
    read_json,
    read_records,
    without_surrogates,
)
from voken.data.paths import absolute_path
from voken.data.picture_folder import FolderListing, is_excluded, list_folder
from voken.data.skipped import CANNOT_LIST, Skipped, by_reason
from voken.errors import DataError, EmptyDataError, StorageError

MAX_CAPTION_CHARACTERS = MAX_TEXT_CHARACTERS
"""Longer captions are cut when they are read. No text encoder in voken uses nearly as much."""

SPLITS = ("train", "validation", "test")

_METADATA_FILES = (METADATA, METADATA_CSV, METADATA_PARQUET)
"""If several are in a folder, the first is read."""
_REASONS_SHOWN = 3
_NOT_METADATA = {"file_name", "captions", "caption", "text"}
_OF_THE_DOWNLOAD = {"status", "error_message", "exif", "sha256", "original_width", "original_height"}
"""Fields of img2dataset that say how a picture was fetched, and nothing of the picture."""
_SPLIT_NAMES = {
    "": "",
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}


@dataclass(frozen=True)
class CaptionedImage:
    """One picture, its captions and its metadata.

    `concept` names what the picture shows: a caption of one picture of a concept is right for all pictures of it.
    `family` names a group of concepts so similar that a split may not separate them. By default a family is one
    concept, and a concept is one picture.
    """

    image_id: str
    path: Path
    captions: tuple[str, ...] = ()
    split: str = ""
    concept: str = ""
    licence: str = ""
    family: str = ""
    vendor: str = ""
    metadata: str = field(default="", compare=False)
    """The fields of its line in metadata.jsonl that searches filter by, as a JSON object; "" if there are none."""
    is_described: bool = field(default=True, compare=False)
    """False if no such file describes the picture, so that nothing is known of its fields."""

    def __post_init__(self) -> None:
        if not self.concept:
            object.__setattr__(self, "concept", self.image_id)
        if not self.family:
            object.__setattr__(self, "family", self.concept)


@dataclass(frozen=True)
class Dataset:
    """An ordered set of captioned images.

    `root` is the folder that their ids are relative to; `skipped` lists what was left out when the set was created.
    `unused_values` lists, by file and line, the captions, concepts and splits that training cannot use; their pictures
    can be indexed all the same.
    """

    name: str
    root: Path
    images: tuple[CaptionedImage, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    unused_values: tuple[Skipped, ...] = field(default=(), repr=False, compare=False)
    left_out: tuple[Skipped, ...] = field(default=(), repr=False, compare=False)
    """What else is in the folder, and why it is not part of the set."""
    unlisted: tuple[Path, ...] = field(default=(), repr=False, compare=False)
    """Folders that the system did not list: pictures in them may exist."""
    max_pixels: int = field(default=0, repr=False, compare=False)
    """What its `voken.toml` says; 0 if it says nothing."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def concepts(self) -> tuple[str, ...]:
        """The distinct concepts, in order of first appearance."""
        return tuple(dict.fromkeys(image.concept for image in self.images))

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest of the pictures' ids, splits, concepts, captions and file sizes, in order."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(json.dumps([image.image_id, image.split, image.concept, *image.captions]).encode())
            with suppress(OSError):
                digest.update(str(image.path.stat().st_size).encode())
        return digest.hexdigest()[:32]

    def split(self, name: str) -> Dataset:
        """The images of one split: "train", "validation" or "test". Raises EmptyDataError if there are none."""
        images = tuple(image for image in self.images if image.split == name)
        if not images:
            splits = sorted({image.split or "(none)" for image in self.images})
            raise EmptyDataError(
                f"{self.name}: no picture is in split {name!r}. Its pictures are in {', '.join(splits)}, as the "
                f"field 'split' of {METADATA} says."
            )
        return replace(self, images=images)


def read_dataset(path: Path, images: Path | None = None, exclude: Sequence[str] = ()) -> Dataset:
    """Read a data set in any of the three layouts of this module's docstring.

    `path` is the folder, a `metadata.jsonl` or a Karpathy `.json` file; `images` is the folder of the pictures if they
    are elsewhere. `exclude` are patterns of what is left out (see `list_folder`), and so are those of a `voken.toml` in
    the folder of the pictures. A listed picture that does not exist is skipped. Raises DataError, which names the file,
    the line and the fault, and EmptyDataError.
    """
    path = Path(path)
    if images and not images.is_dir():
        raise DataError(f"{images}: no such folder of pictures. Correct the path (--images).")
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Correct the path.")
    settings = read_folder_settings(images or (path.parent if path.is_file() else path))
    return replace(_read(path, images, (*exclude, *settings.exclude)), max_pixels=settings.max_pixels)


def _read(path: Path, images: Path | None, exclude: Sequence[str]) -> Dataset:
    if path.is_file():
        if path.suffix == ".jsonl" or path.name in _METADATA_FILES:
            return _read_imagefolder(images or path.parent, path, [], exclude)
        if path.suffix == ".json" and not is_coco(raw := read_json(path)):
            return _read_karpathy(path, _karpathy(path, raw), images or path.parent, [], exclude)
        if (file := caption_file(path)) is not None:
            return _read_caption_files([file], images or path.parent, [], exclude)
        if path.suffix == ".csv":  # whose columns may be only a file_name and fields
            return _read_imagefolder(images or path.parent, path, [], exclude)
        raise DataError(
            f"{path}: this is not a folder, and no list of pictures that voken can read (docs/reference/data.md). "
            "Give one of these."
        )
    skipped: list[Skipped] = []
    if metadata := _metadata_file(path, skipped):
        return _read_imagefolder(images or path, metadata, skipped, exclude)
    sources = _karpathy_sources(path, skipped)
    if len(sources) > 1:
        raise DataError(
            f"{path}: several data set files ({', '.join(file.name for file in sources)}). Name one of them."
        )
    for source, content in sources.items():
        return _read_karpathy(source, content, images or path, skipped, exclude)
    if images:
        raise DataError(
            f"{images}: no file in {path} lists pictures that could be there. Leave --images out, or index that folder."
        )
    files, others = caption_files(path)
    skipped += (Skipped(str(file), reason) for file, reason in others)
    if len({file.form for file in files}) > 1 or (len(files) > 1 and files[0].form != "coco"):
        raise DataError(
            f"{path}: several data set files ({', '.join(file.path.name for file in files)}); name one of them"
        )
    if files or is_img2dataset(path):
        return _read_caption_files(files, images or path, skipped, exclude)
    return _read_folders(path, skipped, exclude)


def write_dataset(destination: Path, name: str, images: Iterable[CaptionedImage]) -> Dataset:
    """Write `destination/metadata.jsonl`, complete or not at all, for pictures that are already in `destination`.

    Returns the data set as `read_dataset(destination)` reads it. Raises StorageError if the disk refuses.
    """
    root = Path(destination).absolute()
    pictures = tuple(images)
    if not pictures:
        raise EmptyDataError(f"{destination}: there is no picture to write. Give at least one.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=root, prefix=".metadata-", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
                for image in pictures:
                    record: dict[str, Any] = {
                        "file_name": image.path.absolute().relative_to(root).as_posix(),
                        "captions": list(image.captions),
                        "split": image.split,
                        "concept": image.concept,
                        "family": image.family,
                        "licence": image.licence,
                        "vendor": image.vendor,
                    }
                    fields = metadata_fields(image.metadata)
                    out.write(json.dumps(fields | record, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            Path(draft).chmod(0o644)
            Path(draft).replace(root / METADATA)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{root / METADATA}: cannot be written ({error.strerror}). Free some space, or choose another folder."
        ) from error
    except ValueError as error:
        raise DataError(f"{root / METADATA}: a path or a text in it cannot be written ({error}). Rename it.") from error
    return Dataset(name, root, pictures)


def _metadata_file(folder: Path, skipped: list[Skipped], *, named: bool = False) -> Path | None:
    """The file that lists the pictures of `folder`; None if there is none. Files not read go to `skipped`.

    Other programs write files of these names. A .csv or .parquet must have a column file_name; with `named`, a .jsonl
    must name a file in its first line, too.
    """
    files = [folder / name for name in _METADATA_FILES if (folder / name).is_file()]
    skipped.extend(Skipped(str(file), f"not read, because there is a {files[0].name}") for file in files[1:])
    if files and (named or files[0].name != METADATA) and (fault := _fault_of_first_line(files[0])):
        skipped.append(Skipped(str(files[0]), f"not read: {fault}"))
        return None
    return files[0] if files else None


def _fault_of_first_line(metadata: Path) -> str:
    try:
        _, record = next(read_records(metadata), (1, {"file_name": ""}))
    except DataError as error:
        return str(error).removeprefix(f"{metadata}, ")
    return "" if "file_name" in record else "line 1: 'file_name' is missing"


def _deeper_metadata_files(listing: FolderListing, skipped: list[Skipped]) -> list[Path]:
    """The files of a folder's subfolders that list pictures, the topmost of each branch, in order."""
    others = (Path(file.path) for file in listing.left_out)
    folders = sorted({file.parent for file in others if file.name.startswith("metadata.")})
    files: list[Path] = []
    for folder in folders:
        if not any(folder.is_relative_to(file.parent) for file in files):
            file = _metadata_file(folder, skipped, named=True)
            if file is not None:
                files.append(file)
    return files


def _read_imagefolder(root: Path, metadata: Path, skipped: list[Skipped], exclude: Sequence[str]) -> Dataset:
    root = absolute_path(root)
    listing = list_folder(root, exclude)
    reader = _Reader(root, exclude, skipped)
    images = reader.listed_images(root, metadata)
    if not images:
        raise EmptyDataError(f"{metadata}: it lists no picture{_contents(reader.skipped)}. Correct it, or remove it.")
    left_out = _unlisted_files(listing, images, [metadata], reader.skipped)
    return reader.dataset(root.name, images, listing, left_out)


def _read_folders(root: Path, skipped: list[Skipped], exclude: Sequence[str]) -> Dataset:
    """The pictures that metadata files in subfolders list, and all pictures of the folders that no file describes."""
    folder, root = root, absolute_path(root)
    listing = list_folder(root, exclude)
    files = _deeper_metadata_files(listing, skipped)
    reader = _Reader(root, exclude, skipped)
    images: list[CaptionedImage] = []
    for metadata in files:
        images += reader.listed_images(metadata.parent, metadata)
    described = tuple(f"{metadata.parent}{os.sep}" for metadata in files)
    others = [file for file in listing.pictures if not str(file).startswith(described)]
    images += (CaptionedImage(file.relative_to(root).as_posix(), file, is_described=False) for file in others)
    left_out = _unlisted_files(listing, images, files, reader.skipped)
    if not images:
        contents = _contents([*reader.skipped, *left_out])
        remedy = "Give a folder of pictures."
        if any(file.path.endswith((".tar", ".parquet")) for file in left_out):
            remedy = f"If the pictures are inside these files: voken unpack {shlex.quote(str(folder))} DIR"
        raise EmptyDataError(
            f"{folder}: the folder has no metadata.jsonl, no dataset_*.json and no picture{contents}. {remedy}"
        )
    return reader.dataset(root.name, images, listing, left_out)


def _unlisted_files(
    listing: FolderListing, images: Sequence[CaptionedImage], sources: Sequence[Path], skipped: Sequence[Skipped]
) -> list[Skipped]:
    """What a folder holds beside the pictures of a data set, the files that list them, and what is `skipped` anyway."""
    others = (*sources, *(Path(file.path) for file in skipped))
    mentioned = {str(image.path) for image in images} | {str(absolute_path(path)) for path in others}
    names = " and ".join(sorted({source.name for source in sources}))
    unlisted = (Skipped(str(file), f"not listed in {names}") for file in listing.pictures)
    return [file for file in (*listing.left_out, *unlisted) if file.path not in mentioned]


class _Reader:
    """Reads the pictures of one data set, and collects what cannot be used."""

    def __init__(self, root: Path, exclude: Sequence[str], skipped: list[Skipped]) -> None:
        self.root = root
        self.exclude = exclude
        self.skipped = skipped
        self.unused: list[Skipped] = []
        self.files = _Files()

    def dataset(
        self, name: str, images: Sequence[CaptionedImage], listing: FolderListing, left_out: Sequence[Skipped]
    ) -> Dataset:
        """The data set of `images`, with everything that was collected."""
        unlisted = dict.fromkeys((*listing.unlisted, *self.files.unlisted))
        return Dataset(
            name,
            self.root,
            tuple(images),
            tuple(self.skipped),
            tuple(self.unused),
            left_out=tuple(left_out),
            unlisted=tuple(unlisted),
        )

    def skip_missing(self, path: Path, place: str) -> None:
        """Record a listed picture that is not there."""
        reason = self.files.unlisted.get(path.parent)
        self.skipped.append(Skipped(str(path), reason or f"{place} lists it, but it does not exist"))

    def listed_images(self, folder: Path, metadata: Path) -> list[CaptionedImage]:
        """The pictures that `metadata` lists, by names relative to `folder`."""
        images: list[CaptionedImage] = []
        first_line: dict[Path, int] = {}
        unused = self.unused
        prefix = "" if folder == self.root else f"{folder.relative_to(self.root).as_posix()}/"
        folder_split = next((_SPLIT_NAMES[name] for name in prefix.lower().split("/") if name in _SPLIT_NAMES), "")
        splits = _Splits(metadata, unused)
        for number, record in read_records(metadata):
            place = f"{metadata}, line {number}"
            name = _inside(_text(record, "file_name", place, required=True), place)
            if is_excluded(prefix + name, self.exclude):
                continue
            file = self.files.find(folder / name)
            picture = file or folder / name
            if picture in first_line:
                raise DataError(
                    f"{place}: file_name {name!r} is already on line {first_line[picture]}. Remove one of them."
                )
            first_line[picture] = number
            if file is None:
                self.skip_missing(picture, f"{metadata.name}, line {number},")
                continue
            images.append(
                CaptionedImage(
                    image_id=prefix + name,
                    path=file,
                    captions=_captions(record, place, unused),
                    split=splits.of(record, number) or folder_split,
                    concept=_label(record, "concept", place, unused),
                    licence=_label(record, "licence", place, []) or _label(record, "license", place, []),
                    family=_label(record, "family", place, unused),
                    vendor=_label(record, "vendor", place, []),
                    metadata=_metadata(record),
                )
            )
        splits.report()
        return images

    def captioned_images(
        self, source: CaptionFile, listing: FolderListing, splits: Mapping[str, str]
    ) -> list[CaptionedImage]:
        """The pictures of a caption file, wherever they are in the folder; `splits` are those of lists beside it."""
        places: dict[str, list[Path]] = {}
        for picture in listing.pictures:
            places.setdefault(unicodedata.normalize("NFC", picture.name), []).append(picture)
        images: list[CaptionedImage] = []
        listed: set[Path] = set()
        split_of = _Splits(source.path, self.unused)
        for number, record in enumerate(source.records(), start=1):
            fields, place = record.fields, record.place
            name = _inside(_text(fields, "file_name", place, required=True), place)
            if is_excluded(name, self.exclude):
                continue
            found = places.get(unicodedata.normalize("NFC", name.rpartition("/")[2]), [])
            # data sets name the file alone, or a path that begins above or below the folder of the copy
            found = [path for path in found if _ends_with(path, name)] or found
            if len(found) != 1:
                what = "lists it, but it does not exist"
                several = f"names {len(found)} pictures; give the path relative to the folder"
                at = place.removeprefix(f"{source.path}, ")
                reason = f"{source.path.name}, {at}, {several if found else what}"
                self.skipped.append(Skipped(str(self.root / name), reason))
                continue
            if found[0] in listed:
                raise DataError(f"{place}: {name!r} is a picture that is listed under another name. Remove one.")
            listed.add(found[0])
            images.append(
                CaptionedImage(
                    image_id=found[0].relative_to(self.root).as_posix(),
                    path=found[0],
                    captions=_captions(fields, place, self.unused),
                    split=split_of.of(fields, number) or splits.get(name, ""),
                    concept=_label(fields, "concept", place, self.unused),
                    licence=_label(fields, "licence", place, []) or _label(fields, "license", place, []),
                    family=_label(fields, "family", place, self.unused),
                    vendor=_label(fields, "vendor", place, []),
                    metadata=_metadata(fields),
                )
            )
        split_of.report()
        return images

    def image_with_sidecars(self, picture: Path) -> CaptionedImage:
        """A picture with what img2dataset wrote beside it."""
        fields = sidecar_record(picture)
        return CaptionedImage(
            image_id=picture.relative_to(self.root).as_posix(),
            path=picture,
            captions=_captions(fields, str(picture.with_suffix(".txt")), self.unused),
            metadata=_metadata({name: value for name, value in fields.items() if name not in _OF_THE_DOWNLOAD}),
        )


def _ends_with(path: Path, name: str) -> bool:
    parts = [unicodedata.normalize("NFC", part) for part in name.split("/")]
    return [unicodedata.normalize("NFC", part) for part in path.parts[-len(parts) :]] == parts


def _read_caption_files(
    files: Sequence[CaptionFile], folder: Path, skipped: list[Skipped], exclude: Sequence[str]
) -> Dataset:
    """The pictures that caption files list, or, without any, all pictures of a folder that img2dataset wrote."""
    root = absolute_path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of pictures. Correct the path (--images).")
    if not files and (archives := archived_shards(root)):
        raise DataError(
            f"{archives[0]}: the pictures are in archives. Write them out as files first: voken unpack "
            f"{shlex.quote(str(root))} DIR"
        )
    listing = list_folder(root, exclude)
    reader = _Reader(root, exclude, skipped)
    if files:
        splits = split_lists(files[0].path.parent)
        images = [image for file in files for image in reader.captioned_images(file, listing, splits)]
    else:
        images = [reader.image_with_sidecars(picture) for picture in listing.pictures]
    source = files[0].path if files else root
    if not images:
        raise EmptyDataError(f"{source}: it lists no picture{_contents(reader.skipped)}. Correct it, or remove it.")
    left_out = _unlisted_files(listing, images, [file.path for file in files], reader.skipped)
    return reader.dataset(root.name, images, listing, left_out)


def _karpathy_sources(folder: Path, skipped: list[Skipped]) -> dict[Path, dict[str, Any]]:
    """The files in the form of Karpathy's splits, with their content. Others of such names go to `skipped`."""
    sources = {}
    for file in sorted(folder.glob("dataset*.json")):
        try:
            sources[file] = _karpathy_json(file)
        except DataError as error:
            reason = str(error).partition(": ")[2]
            skipped.append(Skipped(str(file), f"not read as a data set: {reason}"))
    return sources


def _karpathy_json(source: Path) -> dict[str, Any]:
    return _karpathy(source, read_json(source))


def _karpathy(source: Path, raw: Any) -> dict[str, Any]:
    if not isinstance(raw, dict) or not isinstance(raw.get("images"), list):
        raise DataError(f"{source}: this must be a JSON object with a list 'images', as in Karpathy's splits")
    return raw


def _read_karpathy(
    source: Path, raw: dict[str, Any], folder: Path, skipped: list[Skipped], exclude: Sequence[str]
) -> Dataset:
    root = absolute_path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of pictures. Correct the path (--images).")
    listing = list_folder(root, exclude)
    reader = _Reader(root, exclude, skipped)
    folders = ["", *sorted(f"{entry.name}/" for entry in root.iterdir() if entry.is_dir())]
    images: list[CaptionedImage] = []
    seen: set[str] = set()
    splits = _Splits(source, reader.unused)
    for index, record in enumerate(raw["images"]):
        place = f"{source}, images[{index}]"
        if not isinstance(record, dict):
            raise DataError(f"{place}: this must be a JSON object, not {type(record).__name__}")
        name = _inside(_text(record, "filename", place, required=True), place)
        filepath = _text(record, "filepath", place)
        if filepath:
            name = f"{_inside(filepath, place)}/{name}"
        if name in seen:
            raise DataError(f"{place}: filename {name!r} occurs earlier in the file. Remove one of them.")
        seen.add(name)
        # copies of the data set differ in the folders between the file and its pictures
        candidates = [above + end for end in dict.fromkeys((name, name.rpartition("/")[2])) for above in folders]
        files = filter(None, (reader.files.find(root / candidate) for candidate in candidates))
        file = next(files, None)
        if file is None:
            reader.skip_missing(root / name, f"{source.name}, images[{index}],")
            continue
        if is_excluded(file.relative_to(root).as_posix(), exclude):
            continue
        images.append(
            CaptionedImage(
                image_id=name,
                path=file,
                captions=_sentences(record, place, reader.unused),
                split=splits.of(record, index),
            )
        )
    splits.report()
    if not images:
        raise EmptyDataError(f"{source}: it lists no picture{_contents(reader.skipped)}. Correct it, or remove it.")
    title = raw.get("dataset")
    name = without_surrogates(title) if isinstance(title, str) else ""
    left_out = _unlisted_files(listing, images, [source], reader.skipped)
    return reader.dataset(name or source.stem.removeprefix("dataset_"), images, listing, left_out)


class _Files:
    """The files of folders. Each folder is listed once, because a system call per file would be slow."""

    def __init__(self) -> None:
        self.unlisted: dict[Path, str] = {}
        """The folders that exist and that the system did not list, and why."""
        self._names: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path) -> Path | None:
        """The file at `path`, also if names are composed otherwise on the disk (é as two characters)."""
        if path.parent not in self._names:
            self._names[path.parent] = self._list(path.parent)
        names = self._names[path.parent]
        return names.get(path.name) or names.get(unicodedata.normalize("NFC", path.name))

    def _list(self, folder: Path) -> dict[str, Path]:
        try:
            existing = _existing_folder(folder)
            files = [] if existing is None else [path for path in existing.iterdir() if not path.is_dir()]
        except OSError as error:
            self.unlisted[folder] = f"{CANNOT_LIST} ({error.strerror or error})"
            return {}
        return {unicodedata.normalize("NFC", file.name): file for file in files} | {file.name: file for file in files}


def _existing_folder(folder: Path) -> Path | None:
    """The folder at this path, also if names are composed otherwise on the disk; None if there is none."""
    if folder.is_dir():
        return folder
    above = None if folder.parent == folder else _existing_folder(folder.parent)
    wanted = unicodedata.normalize("NFC", folder.name)
    folders = () if above is None else (path for path in above.iterdir() if path.is_dir())
    return next((path for path in folders if unicodedata.normalize("NFC", path.name) == wanted), None)


def _contents(left_out: Sequence[Skipped]) -> str:
    """What a folder without pictures holds, for a message."""
    groups = by_reason(left_out)
    shown = [
        f"{len(files):,} × {reason}" if len(files) > 1 else f"{Path(files[0].path).name}: {reason}"
        for reason, files in groups.items()
    ]
    more = " …" if len(shown) > _REASONS_SHOWN else ""
    return f" (it holds {'; '.join(shown[:_REASONS_SHOWN])}{more})" if shown else ""


def _text(record: dict[str, Any], key: str, place: str, *, required: bool = False) -> str:
    value = record.get(key)
    if value is None or value == "":
        if required:
            raise DataError(f"{place}: {key!r} is missing. Add it, or remove the entry.")
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: {key!r} must be a string, not {type(value).__name__}")
    return value


def _label(record: Mapping[str, Any], key: str, place: str, unused: list[Skipped]) -> str:
    """A name, which may be written as a number; "" if it is neither."""
    value = record.get(key)
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if value is not None:
        unused.append(Skipped(place, f"{key!r} is not used: it must be a string, not {type(value).__name__}"))
    return ""


def _captions(record: Mapping[str, Any], place: str, unused: list[Skipped]) -> tuple[str, ...]:
    key = next((key for key in ("captions", "text", "caption") if record.get(key) not in (None, "")), None)
    if key is None:
        return ()
    values = record[key]
    if not isinstance(values, list):
        values = [values]
    return clean_captions([(f"{key}[{at}]", value) for at, value in enumerate(values)], place, unused)


def _sentences(record: Mapping[str, Any], place: str, unused: list[Skipped]) -> tuple[str, ...]:
    sentences = record.get("sentences", [])
    if not isinstance(sentences, list):
        unused.append(Skipped(place, "'sentences' is not used: it must be a list of objects with 'raw'"))
        return ()
    values = []
    for at, sentence in enumerate(sentences):
        tokens = sentence.get("tokens") if isinstance(sentence, dict) else None
        joined = " ".join(map(str, tokens)) if isinstance(tokens, list) else None
        raw = sentence.get("raw", joined) if isinstance(sentence, dict) else sentence
        values.append((f"sentences[{at}]", raw))
    return clean_captions(values, place, unused)


def clean_captions(values: list[tuple[str, Any]], place: str, unused: list[Skipped]) -> tuple[str, ...]:
    """The captions among named values, of the length that is read. What is no text goes to `unused` by its name."""
    captions = []
    for name, value in values:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            captions.append(_clean(str(value)))
        elif value is not None:
            unused.append(Skipped(place, f"{name} is not used: it must be a string, not {type(value).__name__}"))
    return tuple(filter(None, captions))


def _metadata(record: dict[str, Any]) -> str:
    # without the captions: a search by words must not find a picture by them
    fields = {name: value for name, value in record.items() if name not in _NOT_METADATA and value not in ("", None)}
    return metadata_text(fields)


def _clean(caption: str) -> str:
    return without_surrogates(caption.strip()[:MAX_CAPTION_CHARACTERS])


def split_name(value: object) -> str:
    """The split that data sets call by this name: "train", "validation", "test", "" for none, or an unknown name."""
    name = "" if value is None else str(value).strip().lower()
    return _SPLIT_NAMES.get(name, without_surrogates(name))


class _Splits:
    """Reads the split of each record. Pictures of an unknown split stay in it, where training does not see them."""

    def __init__(self, source: Path, unused: list[Skipped]) -> None:
        self._source, self._unused = source, unused
        self._unknown: dict[str, list[int]] = {}

    def of(self, record: Mapping[str, Any], number: int) -> str:
        split = split_name(record.get("split"))
        if split not in ("", *SPLITS):
            self._unknown.setdefault(split, []).append(number)
        return split

    def report(self) -> None:
        """List the unknown splits, once each."""
        for name, numbers in self._unknown.items():
            what = f"the split {name!r} of {len(numbers):,} pictures (the first: {numbers[0]:,}) is unknown"
            reason = f"{what}; they are not trained on. Use train, validation or test"
            self._unused.append(Skipped(str(self._source), reason))


def _inside(name: str, place: str) -> str:
    """`name` as a normalised relative path with forward slashes. Raises DataError if it leaves the folder."""
    slashed = name.replace("\\", "/")
    if slashed.startswith("/") or slashed[1:2] == ":":
        raise DataError(f"{place}: {name!r} is an absolute path. Give it relative to the folder.")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{place}: {name!r} leaves the folder. Write it without '..'.")
    if "\0" in name or not parts:
        raise DataError(f"{place}: {name!r} is not a file name. Correct or remove it.")
    return "/".join(parts)
