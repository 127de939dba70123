"""Pictures with captions: what a data set is here, how it is read, and how it is written.

Three layouts are read, told apart by what lies in the folder:

- **imagefolder**: a folder with `metadata.jsonl`, one JSON object a line::

      {"file_name": "images/dog.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

  `captions` is a list; `text` or `caption` (one string) stands for a list of one. Optional: `split`, `concept`,
  `family`, `licence`, and fields of your own, which a search can filter by. Paths are relative to the folder and may
  not leave it.
- **Karpathy**: the `dataset_*.json` of Karpathy's splits for Flickr30K and MS-COCO, beside the folder of pictures.
- **plain pictures**: a folder without either; every picture is taken, without captions.

A module that knows nothing about pixels: a picture is a path here, and only its existence is checked.
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
"""A caption longer than this is cut to it when it is read: no text encoder here reads nearly as much."""

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
    """One picture and what is said about it.

    `concept` names what the picture shows: pictures of one concept are all right answers to its captions.
    `family` names a group of concepts so alike that a split may not part them. Both default to the next finer
    name: family to the concept, concept to the image's id.
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
    """What else its line of metadata.jsonl says, as a JSON object; "" for nothing. Searches filter by it."""

    def __post_init__(self) -> None:
        if not self.concept:
            object.__setattr__(self, "concept", self.image_id)
        if not self.family:
            object.__setattr__(self, "family", self.concept)


@dataclass(frozen=True)
class Dataset:
    """An ordered set of captioned images.

    `root` is the folder their relative names start from; `skipped` is what was left out when the set was made.
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
    def families(self) -> tuple[str, ...]:
        """The distinct families, in order of first appearance."""
        return tuple(dict.fromkeys(image.family for image in self.images))

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; of the pictures' ids, splits, concepts and captions, and the sizes of their files, in order."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(json.dumps([image.image_id, image.split, image.concept, *image.captions]).encode())
            with suppress(OSError):
                digest.update(str(image.path.stat().st_size).encode())
        return digest.hexdigest()[:32]

    def split(self, name: str) -> Dataset:
        """The images of one split ("train", "validation" or "test").

        Raises EmptyDataError where the split holds none.
        """
        images = tuple(image for image in self.images if image.split == name)
        if not images:
            there = sorted({image.split or "(none)" for image in self.images})
            raise EmptyDataError(f"{self.name}: no picture in split {name!r}; the data set has {', '.join(there)}")
        return Dataset(self.name, self.root, images)


def read_dataset(path: Path, images: Path | None = None) -> Dataset:
    """Read a data set in any of the three layouts of this module's docstring.

    `path` is the folder, a `metadata.jsonl` or a Karpathy `.json` file; `images` is the folder of the pictures where
    they lie elsewhere. Raises DataError naming file, line and fault, and EmptyDataError.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if path.name.endswith(".jsonl"):
            return _read_imagefolder(images or path.parent, path)
        if path.suffix == ".json":
            return _read_karpathy(path, images or path.parent)
        raise DataError(f"{path}: expected a folder, a metadata.jsonl or a Karpathy .json file")
    if (path / METADATA).is_file():
        return _read_imagefolder(images or path, path / METADATA)
    found = sorted(path.glob("dataset*.json"))
    if len(found) > 1:
        raise DataError(f"{path}: several data set files ({', '.join(file.name for file in found)}); name one of them")
    if found:
        return _read_karpathy(found[0], images or path)
    root = path.absolute()
    plain = tuple(CaptionedImage(file.relative_to(root).as_posix(), file) for file in list_images(root))
    if not plain:
        raise EmptyDataError(f"{path}: no metadata.jsonl, no dataset_*.json and no picture in it")
    return Dataset(path.absolute().name, root, plain)


def write_dataset(destination: Path, name: str, images: Iterable[CaptionedImage]) -> Dataset:
    """Write `destination/metadata.jsonl`, whole or not at all, for pictures that already lie in `destination`.

    Returns the data set as `read_dataset(destination)` reads it. Raises StorageError where the disk refuses.
    """
    root = Path(destination).absolute()
    kept = tuple(images)
    if not kept:
        raise EmptyDataError(f"{destination}: no picture to write a data set of")
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=root, prefix=".metadata-", suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
                for image in kept:
                    record: dict[str, Any] = {
                        "file_name": image.path.absolute().relative_to(root).as_posix(),
                        "captions": list(image.captions),
                        "split": image.split,
                        "concept": image.concept,
                        "family": image.family,
                        "licence": image.licence,
                        "vendor": image.vendor,
                    }
                    others = json.loads(image.metadata) if image.metadata else {}
                    out.write(json.dumps(others | record, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
            Path(draft).chmod(0o644)
            Path(draft).replace(root / METADATA)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{root / METADATA}: could not be written ({error})") from error
    except ValueError as error:
        raise DataError(f"{root / METADATA}: a picture cannot be named in it ({error})") from error
    return Dataset(name, root, kept)


def _read_imagefolder(root: Path, metadata: Path) -> Dataset:
    root = root.absolute()
    images: list[CaptionedImage] = []
    first_line: dict[str, int] = {}
    listing = _Listing(root)
    for number, line in _lines(metadata):
        where = f"{metadata}, line {number}"
        record = _json(line, where)
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
        name = _inside(_text(record, "file_name", where, required=True), where)
        if name in first_line:
            raise DataError(f"{where}: file_name {name!r} stands already on line {first_line[name]}")
        first_line[name] = number
        picture = root / name
        if not listing.holds(name):
            raise DataError(f"{where}: the picture {picture} does not exist")
        images.append(
            CaptionedImage(
                image_id=name,
                path=picture,
                captions=_captions(record, where),
                split=_split(_text(record, "split", where), where),
                concept=_text(record, "concept", where),
                licence=_text(record, "licence", where) or _text(record, "license", where),
                family=_text(record, "family", where),
                vendor=_text(record, "vendor", where),
                metadata=_metadata(record),
            )
        )
    if not images:
        raise EmptyDataError(f"{metadata}: holds no picture")
    return Dataset(root.name, root, tuple(images))


def _read_karpathy(source: Path, folder: Path) -> Dataset:
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read ({error})") from error
    raw = _json(text, str(source))
    if not isinstance(raw, dict) or not isinstance(raw.get("images"), list):
        raise DataError(f"{source}: expected a JSON object with a list 'images', as in Karpathy's splits")
    root = folder.absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of pictures")
    listing = _Listing(root)
    folders = ["", *sorted(f"{entry.name}/" for entry in root.iterdir() if entry.is_dir())]
    images: list[CaptionedImage] = []
    seen: set[str] = set()
    for index, record in enumerate(raw["images"]):
        where = f"{source}, images[{index}]"
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
        name = _inside(_text(record, "filename", where, required=True), where)
        filepath = _text(record, "filepath", where)
        if filepath:
            name = f"{_inside(filepath, where)}/{name}"
        if name in seen:
            raise DataError(f"{where}: filename {name!r} stands already earlier in the file")
        seen.add(name)
        # copies differ: the pictures lie beside the file, or in one folder more or less
        lies = [folder + end for end in dict.fromkeys((name, name.rpartition("/")[2])) for folder in folders]
        found = next((candidate for candidate in lies if listing.holds(candidate)), None)
        if found is None:
            raise DataError(f"{where}: the picture {name!r} is neither in {root} nor in a folder of it")
        sentences = record.get("sentences", [])
        if not isinstance(sentences, list) or not all(isinstance(s, dict) for s in sentences):
            raise DataError(f"{where}: 'sentences' must be a list of objects with 'raw'")
        captions = tuple(_text(s, "raw", f"{where}.sentences[{at}]", required=True) for at, s in enumerate(sentences))
        images.append(
            CaptionedImage(
                image_id=name,
                path=root / found,
                captions=tuple(caption for caption in map(_clean, captions) if caption),
                split=_split(_text(record, "split", where), where),
            )
        )
    if not images:
        raise EmptyDataError(f"{source}: holds no picture")
    named = _text(raw, "dataset", str(source))
    return Dataset(named or source.stem.removeprefix("dataset_"), root, tuple(images))


class _Listing:
    """Which files there are below a folder, asked of the disk once a folder rather than once a file."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, frozenset[str]] = {}

    def holds(self, name: str) -> bool:
        folder, _, file = name.rpartition("/")
        there = self._folders.get(folder)
        if there is None:
            try:
                with os.scandir(self._root / folder) as entries:
                    there = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                there = frozenset()
            self._folders[folder] = there
        return file in there


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, without byte-order mark and line ends."""
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


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: bad JSON ({error})") from error


def _text(record: dict[str, Any], key: str, where: str, *, required: bool = False) -> str:
    value = record.get(key)
    if value is None or value == "":
        if required:
            raise DataError(f"{where}: {key!r} is missing")
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be a string, found {type(value).__name__}")
    return value


def _captions(record: dict[str, Any], where: str) -> tuple[str, ...]:
    given = record.get("captions")
    if given is None:
        one = _text(record, "text", where) or _text(record, "caption", where)
        given = [one] if one else []
    if not isinstance(given, list):
        raise DataError(f"{where}: 'captions' must be a list of strings, found {type(given).__name__}")
    for at, caption in enumerate(given):
        if not isinstance(caption, str):
            raise DataError(f"{where}: captions[{at}] must be a string, found {type(caption).__name__}")
    return tuple(caption for caption in map(_clean, given) if caption)


def _metadata(record: dict[str, Any]) -> str:
    """All but the path and the captions: a search by words must not find a picture by what was written about it."""
    said = {name: value for name, value in record.items() if name not in _NOT_METADATA and value not in ("", None)}
    return json.dumps(said, ensure_ascii=False, separators=(",", ":")) if said else ""


def _clean(caption: str) -> str:
    # a lone surrogate is legal in JSON and breaks every tokenizer
    return caption.strip()[:MAX_CAPTION_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def _split(value: str, where: str) -> str:
    try:
        return _SPLIT_NAMES[value.strip().lower()]
    except KeyError:
        raise DataError(f"{where}: unknown split {value!r}; use train, validation or test") from None


def _inside(name: str, where: str) -> str:
    """The name as a normalised relative path with forward slashes; refused where it leaves the folder."""
    slashed = name.replace("\\", "/")
    if slashed.startswith("/") or slashed[1:2] == ":":
        raise DataError(f"{where}: {name!r} is an absolute path; give it relative to the folder")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise DataError(f"{where}: {name!r} leaves the folder; '..' is not allowed")
    if "\0" in name or not parts:
        raise DataError(f"{where}: {name!r} is not a file name")
    return "/".join(parts)
