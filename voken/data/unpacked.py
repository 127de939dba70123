"""Data sets whose pictures lie inside other files, written out as a folder of pictures with a metadata.jsonl.

    webdataset   img2dataset's and others' archives: 00000.tar with 000000000.jpg, .txt and .json
    parquet      Hugging Face's picture columns (a struct of bytes and path), img2dataset's column of bytes
    hub          a data set by its name on the Hugging Face hub, "user/name", through `datasets` (extra `hub`)

A collection shows and checks the files of its pictures, so the pictures must be files. What cannot be used is named and
left out, and the rest goes on. Names from the sources are paths below the folder or are refused; sizes are bounded.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from voken.artifact import storage_errors
from voken.data.caption_files import CAPTION_COLUMNS, FILE_COLUMNS
from voken.data.captions import CaptionedImage, Dataset, clean_captions, split_name, write_dataset
from voken.data.images import SUFFIXES, header_format
from voken.data.metadata import METADATA, metadata_text, parse_json, without_surrogates
from voken.data.skipped import Skipped
from voken.data.tar_members import Member, tar_members
from voken.errors import ConfigError, DataError, EmptyDataError, MissingExtraError
from voken.progress import Progress, no_progress

MAX_PICTURE_BYTES = 1 << 28
"""A larger picture inside another file is left out."""
_MAX_TEXT_BYTES = 1 << 20
_TEXTS = ("txt", "text", "caption", "cap")
_PICTURE_SUFFIXES = frozenset(suffix[1:] for suffix in SUFFIXES)
_PICTURE_COLUMNS = (*FILE_COLUMNS, "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "photo")
_TEXT_COLUMNS = (*CAPTION_COLUMNS, "sentences", "alt_text", "alt")
_NUMBERED_CAPTION = re.compile(r"(caption|text|sentence|description)_?\d{1,2}")
_OF_THE_DOWNLOAD = {"status", "error_message", "exif", "sha256", "md5", "original_width", "original_height"}
_SPLIT_IN_PATH = re.compile(r"(?:^|[/_.-])(train|training|validation|valid|val|dev|test)(?=[/_.-])")
_LONGEST_NAME, _DEEPEST = 200, 8
_ROWS_AT_ONCE = 16
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PackedPicture:
    """A picture inside another file, and what is written beside it."""

    place: str
    """Where it is, for messages."""
    key: str
    """The path of its file without the suffix, relative to the new folder."""
    content: bytes
    fields: dict[str, Any] = field(default_factory=dict)
    """`captions`, `split`, and fields of its own."""


def unpack(
    source: str | Path,
    folder: Path,
    *,
    picture: str | None = None,
    caption: str | None = None,
    config: str | None = None,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Write the pictures of `source` below `folder`, with a metadata.jsonl, which is complete or absent.

    `source` is a .tar or .parquet file, a folder of them, or a name on the hub. `picture` and `caption` name the
    columns if they are not recognised, `config` is the part of a hub data set, and `limit` is how many pictures are
    taken. What could not be used is in `skipped` of the returned data set. Raises `DataError` if the source is none of
    these, `EmptyDataError` if no picture in it can be used, `ConfigError` if there is a data set in `folder`, and
    `StorageError`.
    """
    folder = Path(folder)
    if (folder / METADATA).exists():
        raise ConfigError(f"{folder}: holds a data set already. Choose another folder, or remove that one.")
    columns = _ColumnNames(picture, caption)
    writer = _Writer(folder.absolute())
    with storage_errors(folder):
        for found in _packed_pictures(source, columns, config, progress):
            if isinstance(found, Skipped):
                writer.skipped.append(found)
            else:
                writer.add(found)
            if limit is not None and len(writer.images) >= limit:
                break
    if not writer.images:
        first = f" ({writer.skipped[0].path}: {writer.skipped[0].reason})" if writer.skipped else ""
        raise EmptyDataError(f"{source}: no picture in it can be used{first}. Give another source.")
    write_dataset(folder, folder.name, writer.images)
    return Dataset(folder.name, folder.absolute(), tuple(writer.images), skipped=tuple(writer.skipped))


def packed_files(source: Path) -> list[Path]:
    """The archives of a data set or, without any, its Parquet files, in order; none if it has neither.

    Beside an archive img2dataset writes a Parquet file of the same name, without the pictures.
    """
    if source.is_file():
        return [source] if source.suffix.lower() in {".tar", ".parquet"} else []
    kinds = ([path for path in source.rglob(f"*.{suffix}") if path.is_file()] for suffix in ("tar", "parquet"))
    return sorted(next(filter(None, kinds), []))


def webdataset_pictures(path: Path, below: str) -> Iterator[PackedPicture | Skipped]:
    """The pictures of an archive: files that follow one another and have one name up to the first dot are a sample."""
    parts: dict[str, bytes] = {}
    key = ""
    for member in tar_members(path, limit=_most_bytes):
        if isinstance(member, Skipped):
            yield member
            continue
        name, suffix = _key_and_suffix(member)
        if name != key:
            yield from _sample(path, key, parts, below)
            key, parts = name, {}
        parts.setdefault(suffix, member.content)
    yield from _sample(path, key, parts, below)


def parquet_pictures(path: Path, below: str, columns: _ColumnNames) -> Iterator[PackedPicture | Skipped]:
    """The pictures of a Parquet file that has them in a column. A row that cannot be read is named by its number."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError("pyarrow, which reads Parquet files,", "parquet") from None
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            types = {one.name: str(one.type) for one in schema}
            labels = _class_names(schema.metadata or {})
            binary = {name for name, kind in types.items() if "binary" in kind}
            if not binary and columns.picture is None:
                yield Skipped(str(path), "holds no pictures")
                return
            column = columns.of_pictures(binary, str(path))
            texts = columns.of_captions(types, str(path))
            names = [column, *(name for name, kind in types.items() if "binary" not in kind)]
            row = 0
            for group in range(file.num_row_groups):
                first = row
                row += file.metadata.row_group(group).num_rows
                number = count(first + 1)
                try:
                    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names):
                        for record in batch.to_pylist():
                            yield _row(f"{path}, row {next(number)}", record, column, texts, labels, below, path.parent)
                except (ArrowException, OSError, ValueError) as error:
                    yield Skipped(str(path), f"rows {next(number):,} to {row:,} cannot be read ({_first_line(error)})")
    except (ArrowException, OSError, ValueError) as error:
        yield Skipped(str(path), f"this is not a Parquet file ({_first_line(error)})")


def hub_pictures(
    name: str, columns: _ColumnNames, *, config: str | None = None, progress: Progress = no_progress
) -> Iterator[PackedPicture | Skipped]:
    """The pictures of a data set on the hub, or in a folder that `datasets` reads, split by split."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets, which reads data sets of the hub,", "hub") from None
    try:
        splits = datasets.load_dataset(name, config)
    except Exception as error:  # of the hub, its client for HTTP, or a reader of a format
        raise DataError(
            f"{name}: `datasets` cannot read it ({_first_line(error)}). Check the name, the network, and for a private "
            "data set the login (hf auth login)."
        ) from error
    roots = [Path(datasets.config.HF_CACHE_HOME), Path(datasets.config.HF_DATASETS_CACHE), Path(name)]
    total, done = sum(map(len, splits.values())), 0
    for split, rows in splits.items():
        binary = {one for one, kind in rows.features.items() if isinstance(kind, datasets.Image)}
        binary |= {one for one, kind in rows.features.items() if "binary" in str(getattr(kind, "dtype", ""))}
        column = columns.of_pictures(binary, name)
        texts = columns.of_captions({one: str(kind) for one, kind in rows.features.items()}, name)
        labels = {one: kind.names for one, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
        if isinstance(rows.features[column], datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        rows = rows.remove_columns([one for one in binary if one != column])
        for number, record in enumerate(rows, start=1):
            done += 1
            progress("unpack: pictures", done, total)
            place = f"{name}, {split}, row {number}"
            yield _row(place, {"split": split, **record}, column, texts, labels, f"{split}/", *roots)


@dataclass(frozen=True)
class _ColumnNames:
    """Which column holds the pictures, and which hold captions; None for those that are recognised by their names."""

    picture: str | None = None
    caption: str | None = None

    def of_pictures(self, binary: set[str], place: str) -> str:
        by_name = {name.lower(): name for name in sorted(binary)}
        known = [by_name[name] for name in _PICTURE_COLUMNS if name in by_name]
        column = self.picture or next(iter(known), None) or (min(binary) if len(binary) == 1 else None)
        if column is None or column not in binary:
            held = ", ".join(sorted(binary)) or "none"
            raise DataError(
                f"{place}: {'which column holds' if column is None else f'{column!r} does not hold'} pictures"
                f"{' is not clear' if column is None else ''}; the columns of bytes are: {held}. Name the one with the "
                "pictures (--picture)."
            )
        return column

    def of_captions(self, types: dict[str, str], place: str) -> list[str]:
        if self.caption is not None:
            if self.caption not in types:
                raise DataError(
                    f"{place}: has no column {self.caption!r}; it has {', '.join(sorted(types))}. Name one (--caption)."
                )
            return [self.caption]
        by_name = {name.lower(): name for name in types}
        known = next(([by_name[name]] for name in _TEXT_COLUMNS if name in by_name), [])
        return known or [name for name in types if _NUMBERED_CAPTION.fullmatch(name.lower())]


class _Writer:
    """Writes pictures below a folder, and notes what it could not use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[CaptionedImage] = []
        self.skipped: list[Skipped] = []
        self._paths: set[str] = set()

    def add(self, picture: PackedPicture) -> None:
        key = _plain_path(picture.key)
        file_format = header_format(io.BytesIO(picture.content))
        if key is None or file_format is None:
            name, header = "its name is no plain path below the folder", "not a picture, or its header is damaged"
            self.skipped.append(Skipped(picture.place, name if key is None else header))
            return
        path = f"{key}{file_format.suffix}"
        if path.lower() in self._paths:  # on many systems A.jpg and a.jpg are one file
            path = f"{key}-{len(self.images) + 1}{file_format.suffix}"
        self._paths.add(path.lower())
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture.content)
        fields = {name: value for name, value in picture.fields.items() if name not in {"captions", "split", "license"}}
        self.images.append(
            CaptionedImage(
                image_id=path,
                path=target,
                captions=clean_captions(
                    [(f"captions[{at}]", text) for at, text in enumerate(picture.fields.get("captions", ()))],
                    picture.place,
                    self.skipped,
                ),
                split=split_name(picture.fields.get("split")),
                licence=str(picture.fields.get("license") or ""),
                metadata=metadata_text({name: value for name, value in fields.items() if value not in ("", None)}),
            )
        )


def _packed_pictures(
    source: str | Path, columns: _ColumnNames, config: str | None, progress: Progress
) -> Iterator[PackedPicture | Skipped]:
    path = Path(source)
    if not path.exists():
        if not _HUB_NAME.fullmatch(str(source)):
            raise DataError(f"{source}: no such file or folder, and no name on the hub (USER/NAME). Correct it.")
        yield from hub_pictures(str(source), columns, config=config, progress=progress)
        return
    files = packed_files(path)
    if not files:
        raise DataError(
            f"{path}: there is no .tar and no .parquet file. A folder of pictures needs no unpacking: give it to voken "
            "index or voken fit."
        )
    root = path if path.is_dir() else path.parent
    for number, file in enumerate(files):
        progress("unpack: files", number, len(files))
        relative = file.relative_to(root).with_suffix("").as_posix()
        split = _SPLIT_IN_PATH.search(f"{relative.lower()}/")
        pictures = (
            webdataset_pictures(file, f"{relative}/")
            if file.suffix.lower() == ".tar"
            else parquet_pictures(file, f"{relative}/", columns)
        )
        for found in pictures:
            if split is not None and isinstance(found, PackedPicture):
                found.fields.setdefault("split", split[1])
            yield found
    progress("unpack: files", len(files), len(files))


def _key_and_suffix(member: Member) -> tuple[str, str]:
    folder, slash, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}{slash}{stem}".removeprefix("./"), suffix.lower()


def _most_bytes(name: str) -> int:
    suffix = name.rpartition("/")[2].partition(".")[2].rpartition(".")[2].lower()
    if suffix in _PICTURE_SUFFIXES:
        return MAX_PICTURE_BYTES
    return _MAX_TEXT_BYTES if suffix in (*_TEXTS, "json") else 0


def _sample(path: Path, key: str, parts: dict[str, bytes], below: str) -> Iterator[PackedPicture | Skipped]:
    pictures = [suffix for suffix in parts if suffix.rpartition(".")[2] in _PICTURE_SUFFIXES]
    suffix = min(pictures, key=lambda suffix: suffix.count("."), default=None)  # .jpg before .thumbnail.jpg
    if suffix is None:
        return  # its picture was refused, and named
    fields: dict[str, Any] = {}
    if "json" in parts:
        try:
            record = parse_json(parts["json"].decode("utf-8-sig"))
            if not isinstance(record, dict):
                raise ValueError("an object is needed")
            fields = {name: value for name, value in record.items() if isinstance(value, str | int | float)}
        except (ValueError, RecursionError) as error:
            yield Skipped(f"{path}/{key}.json", f"not used: this is not JSON ({error})")
    captions = next((fields.pop(name) for name in ("caption", "text") if name in fields), "")
    text = next((parts[name] for name in _TEXTS if name in parts), None)
    if text is not None:
        try:
            captions = text.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            yield Skipped(f"{path}/{key}.txt", f"not used: not UTF-8 ({error.reason})")
    fields = {name: value for name, value in fields.items() if name not in _OF_THE_DOWNLOAD}
    yield PackedPicture(f"{path}/{key}.{suffix}", f"{below}{key}", parts[suffix], {**fields, "captions": [captions]})


def _row(
    place: str,
    record: dict[str, Any],
    column: str,
    texts: Sequence[str],
    labels: dict[str, list[str]],
    below: str,
    *roots: Path,
) -> PackedPicture | Skipped:
    """The picture in a row. A picture that is only named must lie in one of the folders `roots`."""
    value = record.pop(column)
    name = ""
    if isinstance(value, dict):
        name = value.get("path") or ""
        value = value.get("bytes")
        if value is None and name:
            value = _file_within(Path(name), roots)
    if not isinstance(value, bytes):
        return Skipped(place, "holds no picture" if not name else f"its picture is a file elsewhere ({name})")
    if len(value) > MAX_PICTURE_BYTES:
        return Skipped(place, f"{len(value):,} bytes, over the limit of {MAX_PICTURE_BYTES:,}")
    captions = [text for name in texts for text in _texts(record.pop(name, None))]
    fields: dict[str, Any] = {"captions": captions}
    for field_name, entry in record.items():
        if field_name in labels and isinstance(entry, int) and 0 <= entry < len(labels[field_name]):
            fields[field_name] = labels[field_name][entry]
        elif isinstance(entry, str | int | float) and field_name not in _OF_THE_DOWNLOAD:
            fields[field_name] = entry
        elif hasattr(entry, "isoformat"):
            fields[field_name] = entry.isoformat()
    key = record.get("key")
    row = place.rpartition(" ")[2]
    stem = name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or (key if isinstance(key, str) else "")
    return PackedPicture(place, f"{below}{stem if _plain_path(stem) else row.zfill(8)}", value, fields)


def _texts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = value.get("raw")
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [] if value is None else [value]


def _file_within(path: Path, roots: Sequence[Path]) -> bytes | None:
    for root in roots:
        real = (root / path).resolve()
        if real.is_relative_to(root.resolve()) and real.is_file() and real.stat().st_size <= MAX_PICTURE_BYTES:
            return real.read_bytes()
    return None


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The names of classes by column. Hugging Face writes them into a Parquet file's schema; the values are numbers."""
    with suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: [str(label) for label in kind["names"]]
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
        }
    return {}


def _plain_path(path: str) -> str | None:
    """A path that every system can write below a folder; None for any other."""
    parts = path.split("/")
    is_plain = len(parts) <= _DEEPEST and all(
        part.isprintable()
        and without_surrogates(part) == part
        and not part.startswith(".")
        and part == part.strip()
        and 0 < len(part.encode()) <= _LONGEST_NAME
        and not set(part) & set('\\:*?"<>|')
        for part in parts
    )
    return path if is_plain else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
