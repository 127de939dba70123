"""Data sets of pictures with captions: how they are represented, read and written.

Three layouts are read, and recognised by the files in the folder:

- **imagefolder**: a folder with `metadata.jsonl`, one JSON object per line::

      {"file_name": "images/dog.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

  `captions` is a list; a single caption may be a string named `text` or `caption`. The fields `split`, `concept`,
  `family` and `licence` are optional, and so are fields of your own, which a search can filter by. Paths are relative
  to the folder and may not leave it.
- **Karpathy**: the `dataset_*.json` of Karpathy's splits for Flickr30K and MS-COCO, beside the folder of pictures.
- **plain pictures**: a folder with neither file; the data set is all of its pictures, without captions.

This module knows nothing about pixels: a picture is a path, and only its existence is checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from voken.config import MAX_TEXT_CHARACTERS
from voken.data.images import list_images
from voken.data.skipped import Skipped
from voken.errors import DataError, EmptyDataError, StorageError

MAX_CAPTION_CHARACTERS = MAX_TEXT_CHARACTERS
"""Longer captions are cut when they are read. No text encoder in voken uses nearly as much."""

SPLITS = ("train", "validation", "test")
METADATA = "metadata.jsonl"

_NOT_METADATA = {"file_name", "captions", "caption", "text"}
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

    def __post_init__(self) -> None:
        if not self.concept:
            object.__setattr__(self, "concept", self.image_id)
        if not self.family:
            object.__setattr__(self, "family", self.concept)


@dataclass(frozen=True)
class Dataset:
    """An ordered set of captioned images.

    `root` is the folder that their ids are relative to; `skipped` lists what was left out when the set was created.
    """

    name: str
    root: Path
    images: tuple[CaptionedImage, ...] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

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
            raise EmptyDataError(f"{self.name}: no picture in split {name!r}; the data set has {', '.join(splits)}")
        return Dataset(self.name, self.root, images)


def read_dataset(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set in any of the three layouts of this module's docstring.

    `path` is the folder, a `metadata.jsonl` or a Karpathy `.json` file; `images` is the folder of the pictures if they
    are elsewhere. Raises DataError, which names the file, the line and the fault, and EmptyDataError.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if path.name.endswith(".jsonl"):
            return _read_imagefolder(images or path.parent, path)
        if path.suffix == ".json":
            return _read_karpathy(path, images or path.parent)
        raise DataError(f"{path}: this is not a folder, a metadata.jsonl or a Karpathy .json file")
    if (path / METADATA).is_file():
        return _read_imagefolder(images or path, path / METADATA)
    files = sorted(path.glob("dataset*.json"))
    if len(files) > 1:
        raise DataError(f"{path}: several data set files ({', '.join(file.name for file in files)}); name one of them")
    if files:
        return _read_karpathy(files[0], images or path)
    root = path.absolute()
    pictures = tuple(CaptionedImage(file.relative_to(root).as_posix(), file) for file in list_images(root))
    if not pictures:
        raise EmptyDataError(f"{path}: the folder has no metadata.jsonl, no dataset_*.json and no picture")
    return Dataset(root.name, root, pictures)


def write_dataset(destination: Path, name: str, images: Iterable[CaptionedImage]) -> Dataset:
    """Write `destination/metadata.jsonl`, complete or not at all, for pictures that are already in `destination`.

    Returns the data set as `read_dataset(destination)` reads it. Raises StorageError if the disk refuses.
    """
    root = Path(destination).absolute()
    pictures = tuple(images)
    if not pictures:
        raise EmptyDataError(f"{destination}: there is no picture to write")
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
                    fields = json.loads(image.metadata) if image.metadata else {}
                    out.write(json.dumps(fields | record, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            Path(draft).chmod(0o644)
            Path(draft).replace(root / METADATA)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{root / METADATA}: cannot be written ({error})") from error
    except ValueError as error:
        raise DataError(f"{root / METADATA}: a path or a text in it cannot be written ({error})") from error
    return Dataset(name, root, pictures)


def metadata_text(fields: dict[str, Any]) -> str:
    """The fields as `CaptionedImage.metadata` holds them: a JSON object, or the empty text if there are none."""
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) if fields else ""


def _read_imagefolder(root: Path, metadata: Path) -> Dataset:
    root = root.absolute()
    images: list[CaptionedImage] = []
    first_line: dict[str, int] = {}
    listing = _Listing(root)
    for number, line in _lines(metadata):
        place = f"{metadata}, line {number}"
        record = _json(line, place)
        if not isinstance(record, dict):
            raise DataError(f"{place}: this must be a JSON object, not {type(record).__name__}")
        name = _inside(_text(record, "file_name", place, required=True), place)
        if name in first_line:
            raise DataError(f"{place}: file_name {name!r} is already on line {first_line[name]}")
        first_line[name] = number
        picture = root / name
        if not listing.holds(name):
            raise DataError(f"{place}: the picture {picture} does not exist")
        images.append(
            CaptionedImage(
                image_id=name,
                path=picture,
                captions=_captions(record, place),
                split=_split(_text(record, "split", place), place),
                concept=_text(record, "concept", place),
                licence=_text(record, "licence", place) or _text(record, "license", place),
                family=_text(record, "family", place),
                vendor=_text(record, "vendor", place),
                metadata=_metadata(record),
            )
        )
    if not images:
        raise EmptyDataError(f"{metadata}: it lists no picture")
    return Dataset(root.name, root, tuple(images))


def _read_karpathy(source: Path, folder: Path) -> Dataset:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read ({error})") from error
    raw = _json(text, str(source))
    if not isinstance(raw, dict) or not isinstance(raw.get("images"), list):
        raise DataError(f"{source}: this must be a JSON object with a list 'images', as in Karpathy's splits")
    root = folder.absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of pictures")
    listing = _Listing(root)
    folders = ["", *sorted(f"{entry.name}/" for entry in root.iterdir() if entry.is_dir())]
    images: list[CaptionedImage] = []
    seen: set[str] = set()
    for index, record in enumerate(raw["images"]):
        place = f"{source}, images[{index}]"
        if not isinstance(record, dict):
            raise DataError(f"{place}: this must be a JSON object, not {type(record).__name__}")
        name = _inside(_text(record, "filename", place, required=True), place)
        filepath = _text(record, "filepath", place)
        if filepath:
            name = f"{_inside(filepath, place)}/{name}"
        if name in seen:
            raise DataError(f"{place}: filename {name!r} occurs earlier in the file")
        seen.add(name)
        # copies of the data set differ in the folders between the file and its pictures
        candidates = [above + end for end in dict.fromkeys((name, name.rpartition("/")[2])) for above in folders]
        file = next((candidate for candidate in candidates if listing.holds(candidate)), None)
        if file is None:
            raise DataError(f"{place}: the picture {name!r} is neither in {root} nor in one of its folders")
        sentences = record.get("sentences", [])
        if not isinstance(sentences, list) or not all(isinstance(s, dict) for s in sentences):
            raise DataError(f"{place}: 'sentences' must be a list of objects with 'raw'")
        captions = tuple(_text(s, "raw", f"{place}.sentences[{at}]", required=True) for at, s in enumerate(sentences))
        images.append(
            CaptionedImage(
                image_id=name,
                path=root / file,
                captions=tuple(caption for caption in map(_clean, captions) if caption),
                split=_split(_text(record, "split", place), place),
            )
        )
    if not images:
        raise EmptyDataError(f"{source}: it lists no picture")
    title = _text(raw, "dataset", str(source))
    return Dataset(title or source.stem.removeprefix("dataset_"), root, tuple(images))


class _Listing:
    """The files below a folder. Each folder is listed once, because a system call per file would be slow."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, frozenset[str]] = {}

    def holds(self, name: str) -> bool:
        folder, _, file = name.rpartition("/")
        files = self._folders.get(folder)
        if files is None:
            try:
                with os.scandir(self._root / folder) as entries:
                    files = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                files = frozenset()
            self._folders[folder] = files
        return file in files


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers. A byte-order mark is removed."""
    number = 0
    try:
        with path.open("rb") as source:
            for number, raw in enumerate(source, start=1):
                # a byte-order mark is legal at the very start only
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if line:
                    yield number, line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: this is not JSON ({error})") from error


def _text(record: dict[str, Any], key: str, place: str, *, required: bool = False) -> str:
    value = record.get(key)
    if value is None or value == "":
        if required:
            raise DataError(f"{place}: {key!r} is missing")
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: {key!r} must be a string, not {type(value).__name__}")
    return value


def _captions(record: dict[str, Any], place: str) -> tuple[str, ...]:
    captions = record.get("captions")
    if captions is None:
        caption = _text(record, "text", place) or _text(record, "caption", place)
        captions = [caption] if caption else []
    if not isinstance(captions, list):
        raise DataError(f"{place}: 'captions' must be a list of strings, not {type(captions).__name__}")
    for at, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise DataError(f"{place}: captions[{at}] must be a string, not {type(caption).__name__}")
    return tuple(caption for caption in map(_clean, captions) if caption)


def _metadata(record: dict[str, Any]) -> str:
    # without the captions: a search by words must not find a picture by them
    fields = {name: value for name, value in record.items() if name not in _NOT_METADATA and value not in ("", None)}
    return metadata_text(fields)


def _clean(caption: str) -> str:
    # a lone surrogate is legal in JSON and breaks every tokenizer
    return caption.strip()[:MAX_CAPTION_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _split(value: str, place: str) -> str:
    try:
        return _SPLIT_NAMES[value.strip().lower()]
    except KeyError:
        raise DataError(f"{place}: unknown split {value!r}; use train, validation or test") from None


def _inside(name: str, place: str) -> str:
    """`name` as a normalised relative path with forward slashes. Raises DataError if it leaves the folder."""
    slashed = name.replace("\\", "/")
    if slashed.startswith("/") or slashed[1:2] == ":":
        raise DataError(f"{place}: {name!r} is an absolute path; give it relative to the folder")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{place}: {name!r} leaves the folder; '..' is not allowed")
    if "\0" in name or not parts:
        raise DataError(f"{place}: {name!r} is not a file name")
    return "/".join(parts)
