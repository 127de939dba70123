"""Bring a collection up to date with the pictures on disk.

A file whose size and time have not changed is not read again. A file with the content of a picture in the collection,
because it was moved, copied or only touched, is not encoded again. New pictures are committed a few hundred at a time:
an interrupted run loses at most these, and searches see the others while it continues.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from voken import artifact
from voken.collection.base import FACTS
from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot, stored_path
from voken.collection.store import Change, Entry, FileFacts, IndexReport, SkippedFile, Store
from voken.data.captions import CaptionedImage, Dataset
from voken.data.dates import NO_DATE, date_in_metadata
from voken.data.images import MAX_PIXELS, date_taken, file_hash
from voken.data.paths import absolute_path, is_folder, is_same_folder
from voken.data.skipped import Skipped, none_usable
from voken.encoders.cache import HashedFile, picture_vectors
from voken.errors import ConfigError, EmptyDataError, MissingExtraError, PictureError
from voken.model import compiled
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

if TYPE_CHECKING:
    from voken.encoders.cache import VectorCache
    from voken.encoders.interface import PictureEncoder
    from voken.model.model import PictureSide

_PICTURES_IN_FIRST_COMMIT, _PICTURES_PER_COMMIT = 32, 512
_FEW_PICTURES, _MISSING_SHARE = 10, 0.25
"""If the files of more pictures are missing at once, they are not taken for removed."""


class PictureTokenizer(Protocol):
    """What indexing needs of an image tokenizer: that of `voken.image_tokenizer.model`, or that of an engine."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    @property
    def levels(self) -> int:
        """M, the length of a voken sequence."""
        ...

    @property
    def codebook_size(self) -> int:
        """N, the number of entries per level."""
        ...

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"]:
        """The codebook of every level."""
        ...

    def code_vectors(self, vectors: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images e"]:
        """What is quantized of vectors."""
        ...

    def encode(self, vectors: Float[np.ndarray, "images dim"]) -> Int[np.ndarray, "images M"]:
        """Voken sequences of vectors."""
        ...

    def decode(self, vokens: Int[np.ndarray, "images M"]) -> Float[np.ndarray, "images dim"]:
        """The vectors rebuilt from voken sequences, at unit length."""
        ...


class PictureModel(Protocol):
    """What indexing needs of a model. `voken.model.model.Model` is one."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; a collection recognises its model by it."""
        ...

    @property
    def encoder(self) -> PictureEncoder:
        """Turns pictures into vectors."""
        ...

    @property
    def tokenizer(self) -> PictureTokenizer:
        """Turns vectors into vokens."""
        ...


@dataclass(frozen=True)
class SavedModel:
    """The encoder and the tokenizer of a saved model, loaded on first use: a run without new pictures is fast.

    They are those of the model's engine if it encodes pictures and the device is the CPU. Its properties raise
    `ArtifactError` if there is no model, `MissingExtraError` if torch is needed and not installed.
    """

    folder: Path
    device: str = "cpu"
    threads: int = 0
    """The number of threads; 0 means one per core."""

    @cached_property
    def fingerprint(self) -> str:
        """As `Model.fingerprint`."""
        artifact.check(self.folder, kind=compiled.KIND, version=compiled.VERSION, checksums=False)
        return artifact.contents_digest(self.folder, without=compiled.FOLDER)

    @property
    def encoder(self) -> PictureEncoder:
        """As `Model.encoder`."""
        return self._model.encoder

    @property
    def tokenizer(self) -> PictureTokenizer:
        """As `Model.tokenizer`."""
        return self._model.tokenizer

    @cached_property
    def _model(self) -> PictureSide | compiled.CompiledPictureSide:
        if self.device == "cpu" and compiled.encodes_pictures(self.folder):
            return compiled.CompiledPictureSide.load(self.folder, threads=self.threads)
        if find_spec("torch") is None:
            raise MissingExtraError("torch, which reads pictures,", "train")
        import torch

        from voken.model.model import PictureSide

        if self.threads:
            torch.set_num_threads(self.threads)
        return PictureSide.load(self.folder, device=self.device)


def new_store(
    folder: Path,
    root: Path,
    model: PictureModel,
    *,
    vectors: bool = True,
    model_folder: Path | None = None,
    replace: bool = False,
) -> Store:
    """Create a collection without pictures, for `model`. Raises what `Store.create` raises."""
    return Store.create(
        folder,
        root=root,
        fingerprint=model.fingerprint,
        tokenizer=model.tokenizer,
        vectors=model.tokenizer.dim if vectors else 0,
        model_folder=model_folder,
        replace=replace,
    )


def index_pictures(
    store: Store,
    dataset: Dataset,
    model: PictureModel,
    *,
    cache: VectorCache | None = None,
    workers: int = 0,
    compact: bool = False,
    max_pixels: int = MAX_PIXELS,
    remove_missing: bool = False,
    progress: Progress = no_progress,
) -> IndexReport:
    """Make the collection hold the pictures of `dataset`, the uploaded pictures, and no others.

    `workers` threads read and decode; 0 means one per core. `compact` compacts the collection at the end, which
    otherwise happens only after many changes. Pictures in folders that the system does not list stay. If the files of
    more than a quarter of the pictures, and of more than ten, no longer exist, a drive may be missing: then these
    pictures stay, too, and the report counts them, unless `remove_missing`. If the collection's folder of pictures is
    gone and `dataset` holds most of its pictures, the folder was moved, and the collection follows it. Raises
    `ConfigError` if the collection holds the pictures of another folder, `ArtifactError` if it was made with another
    model, and `EmptyDataError` if the collection would be empty, because none of the pictures can be used.
    """
    start = time.perf_counter()
    workers = workers or os.cpu_count() or 1
    before = store.snapshot()
    before.check_model(model)
    if not is_same_folder(dataset.root, before.root):
        if not _has_moved(before, dataset):
            raise ConfigError(
                f"{store.folder}: holds the pictures of {before.root}, not of {dataset.root}. Name that folder, or "
                "another collection. `voken add` adds single pictures from any folder."
            )
        store.move_root(dataset.root)
        before = store.snapshot()
    options = store.index_options
    # a metadata file that is gone takes its fields with it; fields that were given with single pictures stay
    keep_metadata = not options.described
    plan = _plan_changes(before, dataset, store.skipped(), max_pixels, keep_metadata, workers, progress)
    counts = Counter[str](unchanged=plan.unchanged)
    for part in _parts(plan.encoded):
        _commit_encoded(store, before, part, counts)
    moved = {picture.moved_from for picture in plan.encoded}
    removed = [image_id for image_id in plan.removed if image_id not in moved]
    missing = [] if remove_missing else _suspiciously_missing(before, removed)
    removed = [image_id for image_id in removed if image_id not in set(missing)]
    if removed or plan.skipped or plan.forgotten:
        change = store.commit(remove=removed, skipped=plan.skipped, forget=plan.forgotten)
        counts["removed"] += len(change.removed)
    completed = 0
    for part in _parts(plan.new):
        entries, skipped = _encode(
            part,
            model,
            cache,
            max_pixels,
            progress,
            store.stores_vectors,
            workers=workers,
            before=completed,
            total=len(plan.new),
        )
        _commit_new(store, part, entries, skipped, counts)
        completed += len(part)
    described = any(image.is_described for image in dataset.images)
    if described != options.described:
        store.remember(replace(options, described=described))
    after = store.snapshot(before)
    if not len(after):
        others = {file.path for file in dataset.left_out}
        unusable = none_usable([file for file in after.skipped if file.path not in others])
        raise EmptyDataError(f"{dataset.root}: {unusable}")
    if compact or store.wants_compaction:
        store.compact()
        after = store.snapshot(after)
    return IndexReport(
        version=after.version,
        pictures=len(after),
        sequences=after.trie.sequences,
        bytes_per_picture=after.bytes_per_picture,
        with_vectors=after.vectors is not None,
        seconds=time.perf_counter() - start,
        skipped=after.skipped,
        missing=len(missing),
        fitted=None,
        **counts,
    )


def add_pictures(
    store: Store,
    paths: Sequence[Path],
    model: PictureModel,
    *,
    ids: Sequence[str] | None = None,
    metadata: Sequence[str | None] | None = None,
    cache: VectorCache | None = None,
    progress: Progress = no_progress,
) -> Change:
    """Add single pictures in one transaction. A picture whose id is in the collection already replaces that picture.

    `ids` and `metadata` have an entry per path. By default the id is the one that the file has in the collection, or
    else the path, relative to the collection's folder of pictures if the file is in it, or else absolute. A picture
    without an entry in `metadata`, or with None, keeps the metadata of its id. A file that occurs twice with the same
    id is added once. Pictures that cannot be used are skipped. Raises `ConfigError` for a wrong number of `ids` or
    `metadata`, and if a file occurs twice with different metadata, and what `Store.commit` raises.
    """
    if any(values is not None and len(values) != len(paths) for values in (ids, metadata)):
        raise ConfigError(f"Give an id and metadata for each of the {len(paths)} pictures, or for none.")
    before = store.snapshot()
    before.check_model(model)
    pictures, unreadable = [], []
    stored_paths = [store.upload_path(path) or stored_path(path, before.root) for path in paths]
    known_ids = {} if ids else before.ids_of_paths(stored_paths)
    first_places: dict[tuple[str, str], int] = {}
    for place, stored in enumerate(stored_paths):
        image_id = ids[place] if ids else known_ids.get(stored, [stored.removeprefix(UPLOAD_PREFIX)])[0]
        first = first_places.setdefault((image_id, stored), place)
        if metadata and metadata[first] != metadata[place]:
            raise ConfigError(f"{paths[place]}: occurs twice, with different metadata. Give every file once.")
    for (image_id, stored), place in first_places.items():
        path, row = absolute_path(paths[place]), before.find(image_id)
        text = metadata[place] if metadata else None
        if text is None:
            text = "" if row is None else before.metadata(row)
        image = CaptionedImage(image_id if row is None else before.ids[row], path, metadata=text)
        try:
            size, modified = _size_and_time(path)
            facts = FileFacts(size, modified, *_date_and_hash(image))
            pictures.append(_PendingPicture(image, stored, facts, "added"))
        except PictureError as error:
            unreadable.append(Skipped(error.path, error.reason))
    max_pixels = store.index_options.max_pixels or MAX_PIXELS
    entries, skipped = _encode(pictures, model, cache, max_pixels, progress, before.vectors is not None)
    path_of = {picture.stored_path: str(picture.image.path) for picture in pictures}
    reasons = (Skipped(path_of[file.path], file.reason) for file in skipped)
    change = store.commit(entries, fingerprint=model.fingerprint)
    return replace(change, skipped=(*unreadable, *reasons))


def dataset_of(paths: Iterable[Path]) -> Dataset:
    """A data set of pictures without captions. Ids are paths relative to the deepest folder that holds all pictures."""
    absolute = list(dict.fromkeys(absolute_path(Path(path)) for path in paths))
    if not absolute:
        raise EmptyDataError("There is no picture to index.")
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    images = tuple(CaptionedImage(path.relative_to(root).as_posix(), path) for path in absolute)
    return Dataset(root.name or str(root), root, images)


@dataclass(frozen=True)
class _PendingPicture:
    """A picture that is about to be written."""

    image: CaptionedImage
    stored_path: str
    facts: FileFacts
    kind: str
    """The field of `IndexReport` that counts it."""
    row: int = -1
    """The row of a picture in the collection with the same content; -1 if this picture must be encoded."""
    moved_from: str = ""
    """The old id of a picture whose file was moved; empty for all others."""

    def entry(self, vokens: np.ndarray, vector: np.ndarray | None) -> Entry:
        return Entry(self.image.image_id, self.stored_path, vokens, vector, self.facts, self.image.metadata)


@dataclass(frozen=True)
class _Plan:
    unchanged: int
    encoded: list[_PendingPicture]
    """Files with the content of a picture in the collection, whose vokens and vector they get."""
    new: list[_PendingPicture]
    """Files that must be encoded."""
    removed: list[str]
    """Ids whose files no longer exist, including those of moved pictures."""
    skipped: list[SkippedFile]
    forgotten: list[str]
    """Stored paths of files that were skipped earlier and no longer exist."""


def _plan_changes(
    before: Snapshot,
    dataset: Dataset,
    skipped: dict[str, SkippedFile],
    max_pixels: int,
    keep_metadata: bool,
    workers: int,
    progress: Progress,
) -> _Plan:
    """Decide what to do with each file, by its size and time, and by its content if these have changed."""
    rows = before.rows.tolist()
    facts = np.zeros(0, FACTS) if before.facts is None else before.facts[before.rows]
    place_of = {before.ids[row]: place for place, row in enumerate(rows)}
    unchanged, unusable, changed, forgotten = 0, [], [], []
    listed_ids, listed_paths = set(), set()
    for count, image in enumerate(dataset.images, start=1):
        listed_ids.add(image.image_id)
        path = stored_path(image.path, dataset.root)
        listed_paths.add(path)
        try:
            size, modified = _size_and_time(image.path)
        except PictureError as error:
            unusable.append(SkippedFile(path, error.reason))
            continue
        place = place_of.get(image.image_id)
        if place is not None and keep_metadata and not image.is_described and (text := before.metadata(rows[place])):
            image = replace(image, metadata=text)
        if place is not None and len(facts):
            same_file = (facts["size"][place], facts["modified"][place]) == (size, modified)
            if same_file and before.metadata(rows[place]) == image.metadata:
                unchanged += 1
                if path in skipped:
                    forgotten.append(path)  # it could not be read for a while
                continue
        earlier = skipped.get(path)
        if place is None and earlier is not None and (earlier.size, earlier.modified) == (size, modified):
            reason = Skipped(path, earlier.reason)
            if not reason.may_pass and reason.is_within(max_pixels):
                continue
        changed.append((image, path, size, modified))
        if count % 1000 == 0:
            progress("check files", count, len(dataset))
    progress("check files", len(dataset), len(dataset))
    left_out = [
        SkippedFile(stored_path(Path(file.path), dataset.root), file.reason)
        for file in (*dataset.skipped, *dataset.left_out)
    ]
    listed_paths.update(file.path for file in left_out)
    unlisted = tuple(f"{stored_path(folder, dataset.root)}/" for folder in dataset.unlisted)
    contents: list[tuple[int, bytes] | None] = []
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda file: _date_and_hash_or_error(file[0]), changed)
        for count, ((_, path, size, modified), result) in enumerate(zip(changed, results, strict=True), start=1):
            if count % 100 == 0 or count == len(changed):
                progress("read new files", count, len(changed))
            if isinstance(result, PictureError):
                unusable.append(SkippedFile(path, result.reason, size, modified))
            contents.append(None if isinstance(result, PictureError) else result)
    # a file that cannot be read now may have been added under another id than its path
    unreadable = {file.path for file in unusable}
    removed = [
        image_id
        for image_id, place in place_of.items()
        if image_id not in listed_ids
        and not (path := before.stored_paths[rows[place]]).startswith((UPLOAD_PREFIX, *unlisted))
        and path not in unreadable
    ]
    encoded: list[_PendingPicture] = []
    new: list[_PendingPicture] = []
    place_of_content = {bytes(facts["hash"][place]): place for place in range(len(facts))} if changed else {}
    # a new file with the content of one that is gone was moved; further files with this content are copies
    gone: dict[bytes, list[int]] = {}
    for image_id in reversed(removed) if len(facts) and changed else ():
        gone.setdefault(bytes(facts["hash"][place_of[image_id]]), []).append(place_of[image_id])
    for (image, path, size, modified), content in zip(changed, contents, strict=True):
        if content is None:
            continue
        kind = "updated" if image.image_id in place_of else "added"
        picture = _PendingPicture(image, path, FileFacts(size, modified, *content), kind)
        source = place_of_content.get(content[1], -1)
        if source < 0:
            new.append(picture)
            continue
        own = place_of.get(image.image_id, -1)
        if own >= 0 and bytes(facts["hash"][own]) == content[1]:
            source = own
        elif kind == "added" and gone.get(content[1]):
            kind, source = "moved", gone[content[1]].pop()
        row, source_id = rows[source], before.ids[rows[source]]
        if source_id == image.image_id and before.metadata(row) == image.metadata:
            kind = "unchanged"  # except for the file's time
        elif kind == "moved" and keep_metadata and not image.is_described:
            picture = replace(picture, image=replace(image, metadata=before.metadata(row)))
        encoded.append(replace(picture, kind=kind, row=row, moved_from=source_id if kind == "moved" else ""))
    newly_skipped = [file for file in (*left_out, *unusable) if file != skipped.get(file.path)]
    forgotten += [path for path in skipped if path not in listed_paths and not path.startswith(unlisted)]
    return _Plan(unchanged, encoded, new, removed, newly_skipped, forgotten)


def _has_moved(before: Snapshot, dataset: Dataset) -> bool:
    """Whether the collection's folder of pictures is gone, and most of the pictures are in the data set's."""
    if is_folder(before.root):
        return False
    paths = {stored_path(image.path, dataset.root) for image in dataset.images}
    rows = [row for row in before.rows.tolist() if not before.is_upload(row)]
    return 2 * sum(before.stored_paths[row] in paths for row in rows) > len(rows)


def _suspiciously_missing(before: Snapshot, removed: list[str]) -> list[str]:
    """The pictures among `removed` whose files do not exist, if they are so many that a drive may be missing."""
    limit = max(_FEW_PICTURES, len(before) * _MISSING_SHARE)
    if len(removed) <= limit:
        return []
    rows = {image_id: before.find(image_id) for image_id in removed}
    missing = [image_id for image_id, row in rows.items() if row is not None and not _exists(before.path(row))]
    return missing if len(missing) > limit else []


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return True


def _commit_encoded(store: Store, before: Snapshot, part: list[_PendingPicture], counts: Counter[str]) -> None:
    rows = np.array([picture.row for picture in part], dtype=np.int64)
    sequences = before.vokens[before.rows.searchsorted(rows)]
    vectors = [None] * len(part) if before.vectors is None else before.vectors[rows]
    entries = [picture.entry(*values) for picture, *values in zip(part, sequences, vectors, strict=True)]
    store.commit(entries, remove=[picture.moved_from for picture in part if picture.moved_from])
    counts.update(picture.kind for picture in part)


def _commit_new(
    store: Store, part: list[_PendingPicture], entries: list[Entry], skipped: list[SkippedFile], counts: Counter[str]
) -> None:
    kinds = {picture.image.image_id: picture.kind for picture in part}
    usable = {entry.image_id for entry in entries}
    # these files were pictures and no longer are; if they only cannot be read now, the pictures stay
    may_pass = {file.path for file in skipped if Skipped(file.path, file.reason).may_pass}
    broken = [
        picture.image.image_id
        for picture in part
        if picture.kind == "updated" and picture.image.image_id not in usable and picture.stored_path not in may_pass
    ]
    known = store.skipped()
    newly_skipped = [file for file in skipped if file != known.get(file.path)]
    if entries or broken or newly_skipped:
        change = store.commit(entries, remove=broken, skipped=newly_skipped)
        counts["removed"] += len(change.removed)
    counts.update(kinds[image_id] for image_id in usable)


def _encode(
    pictures: Sequence[_PendingPicture],
    model: PictureModel,
    cache: VectorCache | None,
    max_pixels: int,
    progress: Progress,
    store_vectors: bool,
    *,
    workers: int = 0,
    before: int = 0,
    total: int | None = None,
) -> tuple[list[Entry], list[SkippedFile]]:
    """Entries of the pictures that can be read, and the files that cannot. `before` and `total` are for `progress`."""
    if not pictures:
        return [], []
    encoded = picture_vectors(
        model.encoder,
        [picture.image.path for picture in pictures],
        cache=cache,
        hashes=[HashedFile(one.facts.hash.hex(), one.facts.size, one.facts.modified) for one in pictures],
        max_pixels=max_pixels,
        workers=workers,
        progress=progress,
        before=before,
        total=total,
    )
    rows = encoded.rows.tolist()
    vokens = model.tokenizer.encode(encoded.vectors) if rows else np.zeros((0, 0), np.int32)
    vectors = encoded.vectors.astype(np.float16) if store_vectors else [None] * len(rows)
    entries = [pictures[place].entry(*values) for place, *values in zip(rows, vokens, vectors, strict=True)]
    reasons = {file.path: file.reason for file in encoded.skipped}
    usable = set(rows)
    skipped = [
        SkippedFile(picture.stored_path, reasons[str(picture.image.path)], picture.facts.size, picture.facts.modified)
        for place, picture in enumerate(pictures)
        if place not in usable
    ]
    return entries, skipped


def _parts(pictures: list[_PendingPicture]) -> Iterator[list[_PendingPicture]]:
    """The pictures of each commit. The first parts are small, so that there is soon something to search."""
    start, count = 0, min(_PICTURES_IN_FIRST_COMMIT, _PICTURES_PER_COMMIT)
    while start < len(pictures):
        yield pictures[start : start + count]
        start, count = start + count, min(2 * count, _PICTURES_PER_COMMIT)


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise PictureError(path, f"cannot be read ({error.strerror or error})") from error
    return status.st_size, status.st_mtime_ns


def _date_and_hash(image: CaptionedImage) -> tuple[int, bytes]:
    """When a picture was taken, by its metadata or its file, and the hash of the file. Raises `PictureError`."""
    digest = bytes.fromhex(file_hash(image.path))
    date = date_in_metadata(image.metadata)
    if date is None:
        date = date_taken(image.path)
    return NO_DATE if date is None else date, digest


def _date_and_hash_or_error(image: CaptionedImage) -> tuple[int, bytes] | PictureError:
    try:
        return _date_and_hash(image)
    except PictureError as error:
        return error
