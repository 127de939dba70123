"""Files that list pictures and their captions in the forms in which data sets are handed around.

    coco      captions_val2017.json: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
    token     Flickr8k.token.txt, results_20130124.token: NAME.jpg#0 TAB caption, one line per caption
    table     .csv, .tsv or .txt with a column for the file and one for the caption, separated by , ; tab or |
    parquet   the same columns in Parquet (extra `parquet`)

A picture may be in several lines or rows; its captions are collected. `CaptionFile.records` has the fields that a line
of metadata.jsonl has. This module knows nothing about where the pictures are.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voken.data.images import SUFFIXES
from voken.data.metadata import parquet_records, parse_json, read_json, text_lines
from voken.errors import DataError

Form = Literal["coco", "token", "table", "parquet"]

PATTERNS = (
    "captions*.json",
    "annotations/captions*.json",
    "*.token",
    "*.token.txt",
    "captions.txt",
    "captions.csv",
    "captions.tsv",
    "captions.parquet",
    "results.csv",
)
"""Where a folder's caption files are looked for. Any other one can be named."""
_NOT_CAPTIONS = "lemma"
"""Flickr8k.lemma.token.txt holds the captions again, word stems only."""
FILE_COLUMNS = (
    *("file_name", "filename", "file", "filepath", "file_path", "path"),
    *("image", "image_name", "image_path", "image_file", "img", "picture"),
)
CAPTION_COLUMNS = ("captions", "caption", "text", "comment", "sentence", "description", "title")
_TOKEN = re.compile(r"(?P<name>.+?)#(?P<number>\w+)\t(?P<caption>.*)")
_DELIMITERS = ",;\t|"
_SHARD_STATISTICS = re.compile(r"\d{5,}_stats\.json")
_SPLIT_IN_NAME = re.compile(r"(train|val|test)")
_SPLIT_LISTS = {"train": "train", "dev": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Record:
    """A picture and its captions."""

    place: str
    """File and line of its first caption, for messages."""
    fields: dict[str, Any]
    """`file_name`, `captions`, perhaps `split`, and other columns."""


@dataclass(frozen=True)
class CaptionFile:
    """A file whose form was recognised."""

    path: Path
    form: Form

    def records(self) -> list[Record]:
        """Its pictures in the order of the file. Raises DataError, which names the line and the fault."""
        read = {"coco": _coco, "token": _token, "table": _table, "parquet": _parquet}[self.form]
        return _collected(read(self.path))


def caption_file(path: Path) -> CaptionFile | None:
    """A file that lists captions, by its name and its first line; None if it is none."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        return CaptionFile(path, "coco")
    if suffix == ".parquet":
        return CaptionFile(path, "parquet")
    if suffix not in {".csv", ".tsv", ".txt", ".token"}:
        return None
    first = next((line for _, line in text_lines(path) if line.strip()), "")
    if _TOKEN.fullmatch(first.rstrip("\r\n")):
        return CaptionFile(path, "token")
    return CaptionFile(path, "table") if _columns(first) is not None else None


def caption_files(folder: Path) -> tuple[list[CaptionFile], list[tuple[Path, str]]]:
    """The caption files of a folder by their names, and those of such names that are none, with the reason."""
    files: list[CaptionFile] = []
    others: list[tuple[Path, str]] = []
    paths = (path for pattern in PATTERNS for path in sorted(folder.glob(pattern)))
    for path in dict.fromkeys(paths):
        if not path.is_file() or _NOT_CAPTIONS in path.name:
            continue
        try:
            file = caption_file(path)
            if file is not None and file.form == "coco":
                _coco_json(path)
        except DataError as error:
            others.append((path, f"not read as captions: {str(error).partition(': ')[2]}"))
            continue
        if file is None:
            others.append((path, "not read as captions: the first line names no file and caption"))
        else:
            files.append(file)
    return files, others


def split_lists(folder: Path) -> dict[str, str]:
    """The split of each picture by Flickr8k's lists, such as Flickr_8k.trainImages.txt."""
    splits: dict[str, str] = {}
    for path in sorted(folder.glob("Flickr*Images.txt")):
        kind = re.search(r"\.(train|dev|val|test)Images\.txt$", path.name)
        if kind is not None:
            names = (line.strip() for _, line in text_lines(path))
            splits.update((name, _SPLIT_LISTS[kind[1]]) for name in names if name)
    return splits


def _collected(records: Iterable[Record]) -> list[Record]:
    """One record per picture: the captions of all its records, the other fields of the first."""
    pictures: dict[str, Record] = {}
    for record in records:
        name = record.fields.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{record.place}: names no picture. Correct or remove it.")
        first = pictures.setdefault(name, record)
        if first is not record:
            first.fields["captions"] += record.fields["captions"]
    return list(pictures.values())


def _coco(path: Path) -> Iterator[Record]:
    content = _coco_json(path)
    names: dict[Any, str] = {}
    split = _SPLIT_IN_NAME.search(path.stem.lower())
    fields = {} if split is None else {"split": split[1]}
    for number, image in enumerate(content["images"]):
        place = f"{path}, images[{number}]"
        if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
            raise DataError(f"{place}: this must be an object with an id and a file_name. Correct or remove it.")
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{place}: 'file_name' is missing. Add it, or remove the entry.")
        names[image["id"]] = name
        yield Record(place, {"file_name": name, "captions": [], **fields})
    for number, entry in enumerate(content["annotations"]):
        place = f"{path}, annotations[{number}]"
        known = isinstance(entry, dict) and isinstance(entry.get("image_id"), (int, str))
        if not known or entry["image_id"] not in names:
            raise DataError(f"{place}: its image_id is that of no picture in the file. Correct or remove it.")
        if not isinstance(entry.get("caption"), str):
            raise DataError(f"{place}: 'caption' is missing. Give a file of captions, not of objects or keypoints.")
        yield Record(place, {"file_name": names[entry["image_id"]], "captions": [entry["caption"]]})


def _coco_json(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not is_coco(content):
        raise DataError(f"{path}: this is not COCO's form, an object with lists 'images' and 'annotations'.")
    assert isinstance(content, dict)
    return content


def is_coco(content: object) -> bool:
    """Whether a JSON value has the form of COCO's captions."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def _token(path: Path) -> Iterator[Record]:
    for number, line in text_lines(path):
        place, line = f"{path}, line {number}", line.rstrip("\r\n")
        if not line.strip():
            continue
        parts = _TOKEN.fullmatch(line)
        if parts is None:
            raise DataError(f"{place}: this is not NAME#NUMBER, a tab and a caption. Correct or remove the line.")
        yield Record(place, {"file_name": parts["name"], "captions": [parts["caption"]]})


@dataclass(frozen=True)
class _Columns:
    names: Sequence[str]
    delimiter: str
    has_heading: bool


def _columns(line: str) -> _Columns | None:
    """What the first line of a table says, or None if it is no table of files and captions."""
    for delimiter in sorted(_DELIMITERS, key=line.count, reverse=True):
        cells = [cell.strip() for cell in next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])]
        if len(cells) < 2:
            return None
        lowered = [cell.lower().lstrip("\ufeff") for cell in cells]
        file = next((name for name in FILE_COLUMNS if name in lowered), None)
        caption = next((name for name in CAPTION_COLUMNS if name in lowered and name != file), None)
        if file and caption:
            names = ["file_name" if name == file else "captions" if name == caption else name for name in lowered]
            return _Columns(names, delimiter, has_heading=True)
        if Path(cells[0]).suffix.lower() in SUFFIXES:
            return _Columns(["file_name", *["captions"] * (len(cells) - 1)], delimiter, has_heading=False)
    return None


def _table(path: Path) -> Iterator[Record]:
    lines = (line for _, line in text_lines(path))
    first = next((line for line in lines if line.strip()), "")
    columns = _columns(first)
    if columns is None:
        raise DataError(
            f"{path}, line 1: names no column for the file (such as file_name) and one for the caption (such as "
            "caption), and is no file and caption either. Add a first line with the names."
        )
    width = len(columns.names)

    def rows() -> Iterator[str]:
        if not columns.has_heading:
            yield first
        yield from lines

    if columns.delimiter == "|":  # in Flickr30k's results.csv quotation marks are part of the captions
        reader = csv.reader(rows(), delimiter="|", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(rows(), delimiter=columns.delimiter)
    number = 1
    try:
        for cells in reader:
            number = reader.line_num + columns.has_heading
            place = f"{path}, line {number}"
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > width and columns.names[-1] == "captions":
                # a caption with the delimiter in it, which nobody quoted
                cells = [*cells[: width - 1], columns.delimiter.join(cells[width - 1 :])]
            if len(cells) < width:
                raise DataError(f"{place}: {len(cells)} cells, not {width}. Correct or remove the line.")
            fields: dict[str, Any] = {"captions": []}
            for name, cell in zip(columns.names, cells, strict=False):
                if name == "captions":
                    fields["captions"] += _captions_of(cell.strip())
                else:
                    fields[name] = cell.strip()
            yield Record(place, fields)
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: this is not a line of a table ({error}). Correct it.") from error


def _parquet(path: Path) -> Iterator[Record]:
    for number, row in parquet_records(path):
        place = f"{path}, row {number}"
        lowered = {name.lower(): name for name in row}
        file = next((lowered[name] for name in FILE_COLUMNS if name in lowered), None)
        caption = next((lowered[name] for name in CAPTION_COLUMNS if name in lowered and lowered[name] != file), None)
        if file is None or caption is None:
            raise DataError(
                f"{path}: has no column for the file (such as file_name) and one for the caption. If the pictures are "
                f"inside this file, write them out first: voken unpack {shlex.quote(str(path))} DIR"
            )
        if not isinstance(row[file], str):
            raise DataError(
                f"{place}: {file!r} is not the name of a file. If the pictures are inside this file, write them out "
                f"first: voken unpack {shlex.quote(str(path))} DIR"
            )
        others = {name: value for name, value in row.items() if name not in (file, caption)}
        value = row[caption]
        captions = list(value) if isinstance(value, list) else [] if value is None else [value]
        yield Record(place, {**others, "file_name": row[file], "captions": captions})


def _captions_of(cell: str) -> list[str]:
    """A cell's caption; a JSON list in a cell is several."""
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return [cell]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
    return [cell] if cell else []


def is_img2dataset(folder: Path) -> bool:
    """Whether img2dataset wrote a folder: each of its shards has statistics, such as 00000_stats.json."""
    return any(_SHARD_STATISTICS.fullmatch(path.name) for path in folder.glob("*_stats.json"))


def archived_shards(folder: Path) -> list[Path]:
    """img2dataset's shards that are archives, and were not extracted into a folder of the same name."""
    return [path for path in sorted(folder.glob("*.tar")) if not path.with_suffix("").is_dir()]


def sidecar_record(picture: Path) -> dict[str, Any]:
    """What img2dataset wrote beside a picture: the caption in a .txt, and the fields in a .json of the same name.

    Raises DataError for a .json that is none.
    """
    text, description = picture.with_suffix(".txt"), picture.with_suffix(".json")
    fields: dict[str, Any] = {}
    if description.is_file():
        try:
            content = parse_json(description.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{description}: this is not JSON ({error}). Correct or remove the file.") from error
        if not isinstance(content, dict):
            raise DataError(f"{description}: this must be a JSON object, not {type(content).__name__}. Correct it.")
        fields = {name: value for name, value in content.items() if isinstance(value, (str, int, float))}
    caption = fields.pop("caption", "")
    if text.is_file():
        caption = "".join(line for _, line in text_lines(text)).strip()
    return {**fields, "captions": [caption] if caption else []}
