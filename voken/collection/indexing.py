"""Pictures on the disk into a collection, and the collection kept as the disk is.

A file whose size and time are those it had is not looked at again; one whose content is known, because it moved, was
copied or only touched, is not encoded again. What is new is committed every few hundred pictures, so that a run that is
stopped loses no more than these, and searches find the pictures while it goes on.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from voken import artifact
from voken.collection.base import FACTS
from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot, stored_path
from voken.collection.store import Change, Entry, FileFacts, SkippedFile, Store
from voken.data.captions import CaptionedImage, Dataset
from voken.data.images import date_taken, file_hash
from voken.data.skipped import Skipped
from voken.encoders.cache import picture_vectors
from voken.errors import ConfigError, EmptyDataError, PictureError
from voken.model import compiled
from voken.progress import Progress, no_progress

if TYPE_CHECKING:
    from voken.encoders.cache import VectorCache
    from voken.encoders.interface import Encoder
    from voken.image_tokenizer.model import ImageTokenizer
    from voken.model.model import PictureSide

_COMMITTED_AT_ONCE = 512
_REASONS_SHOWN = 3


class Indexer(Protocol):
    """What indexing asks of a model. `voken.model.model.Model` is one."""

    @property
    def fingerprint(self) -> str:
        """Collections know their model by it."""
        ...

    @property
    def encoder(self) -> Encoder:
        """Pictures to vectors."""
        ...

    @property
    def tokenizer(self) -> ImageTokenizer:
        """Vectors to vokens."""
        ...


@dataclass(frozen=True)
class SavedModel:
    """A model that is loaded, with torch, when there is a picture to read: an update that finds nothing new is quick.

    Raises `ArtifactError` where there is no model.
    """

    folder: Path
    device: str = "cpu"
    threads: int = 0
    """Of torch; 0: as many as it takes by itself."""

    @cached_property
    def fingerprint(self) -> str:
        """As `Model.fingerprint`."""
        artifact.check(self.folder, kind=compiled.KIND, version=compiled.VERSION, checksums=False)
        return compiled.fingerprint(self.folder)

    @property
    def encoder(self) -> Encoder:
        """As `Model.encoder`."""
        return self._model.encoder

    @property
    def tokenizer(self) -> ImageTokenizer:
        """As `Model.tokenizer`."""
        return self._model.tokenizer

    @cached_property
    def _model(self) -> PictureSide:
        import torch

        from voken.model.model import PictureSide

        if self.threads:
            torch.set_num_threads(self.threads)
        return PictureSide.load(self.folder, device=self.device)


@dataclass(frozen=True)
class Indexed:
    """What a run did, in pictures."""

    version: int
    added: int = 0
    updated: int = 0
    """Their file or their metadata changed."""
    moved: int = 0
    """Found again by their content under another path."""
    removed: int = 0
    """Their file is no longer there."""
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = ()
    """All that could not be used, this time or before."""

    @property
    def changes(self) -> int:
        """How many pictures are not as they were."""
        return self.added + self.updated + self.moved + self.removed


def create_collection(
    folder: Path,
    pictures: Dataset | Iterable[Path],
    model: Indexer,
    *,
    vectors: bool = True,
    model_folder: Path | None = None,
    cache: VectorCache | None = None,
    replace: bool = False,
    progress: Progress = no_progress,
) -> Snapshot:
    """A new collection of `pictures` in `folder`, written out in one piece.

    Pictures that cannot be read are left out and stand in `skipped`. Ids of bare paths are the paths relative to
    the folder they share. `vectors` keeps a float16 vector a picture, for the best read-out; `model_folder`
    is remembered, so that a search finds its model. With `cache`, pictures that were encoded once are not again.

    Raises `EmptyDataError` where no picture can be used and `ArtifactError` where `folder` is taken (`replace`
    allows an older collection); then nothing is left behind. Stopped, or where the disk refuses (`StorageError`), what
    was committed stays, and `index_pictures` goes on from it.
    """
    dataset = pictures if isinstance(pictures, Dataset) else dataset_of(pictures)
    if not len(dataset):
        raise EmptyDataError(f"{dataset.name}: there is no picture to index.")
    store = new_store(folder, dataset.root, model, vectors=vectors, model_folder=model_folder, replace=replace)
    try:
        index_pictures(store, dataset, model, cache=cache, progress=progress)
        store.compact()
    except BaseException:
        if not len(store.snapshot()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return store.snapshot()


def new_store(
    folder: Path,
    root: Path,
    model: Indexer,
    *,
    vectors: bool = True,
    model_folder: Path | None = None,
    replace: bool = False,
) -> Store:
    """A collection without pictures, for `model`. Raises as `Store.create`."""
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
    model: Indexer,
    *,
    cache: VectorCache | None = None,
    workers: int = 0,
    progress: Progress = no_progress,
) -> Indexed:
    """Make the collection hold the pictures of `dataset` and no others but those that were uploaded.

    `workers` threads read and decode; 0: as many as there are cores. Raises `ConfigError` where the collection is of
    another folder, `ArtifactError` where it was made with another model, `EmptyDataError` where it would be left
    without any picture, because none of these can be used.
    """
    workers = workers or os.cpu_count() or 1
    before = store.snapshot()
    before.check_model(model)
    if dataset.root.absolute() != before.root.absolute():
        raise ConfigError(
            f"{store.folder}: holds the pictures of {before.root}, not of {dataset.root}. Give that folder, or another "
            "collection; `voken add` takes single pictures from anywhere."
        )
    plan = _planned(before, dataset, store.skipped(), workers, progress)
    done = Counter[str](unchanged=plan.unchanged)
    for part in _parts(plan.copied):
        _commit_copied(store, before, part, done)
    moved = {work.moved_from for work in plan.copied}
    gone = [name for name in plan.gone if name not in moved]
    if gone or plan.refused or plan.forgotten:
        done["removed"] += len(store.commit(remove=gone, skipped=plan.refused, forget=plan.forgotten).removed)
    encoded = 0
    for part in _parts(plan.fresh):
        _commit_fresh(store, part, model, cache, done, _from(progress, encoded, len(plan.fresh)))
        encoded += len(part)
    after = store.snapshot(before)
    if not len(after):
        raise EmptyDataError(_all_skipped(dataset, after.skipped))
    return Indexed(after.version, **done, skipped=after.skipped)


def add_pictures(
    store: Store,
    pictures: Sequence[Path],
    model: Indexer,
    *,
    ids: Sequence[str] | None = None,
    metadata: Sequence[str] | None = None,
    cache: VectorCache | None = None,
    progress: Progress = no_progress,
) -> tuple[Change, tuple[Skipped, ...]]:
    """Add single pictures in one transaction; one whose id is there is replaced.

    An id is the path relative to the collection's folder of pictures, or the whole path where a picture lies elsewhere.
    Pictures that cannot be used are left out and told. Raises as `Store.commit`.
    """
    before = store.snapshot()
    before.check_model(model)
    works, refused = [], []
    for place, path in enumerate(dict.fromkeys(pictures)):
        name = store.upload_path(path) or stored_path(path, before.root)
        image = CaptionedImage(
            image_id=ids[place] if ids else name.removeprefix(UPLOAD_PREFIX),
            path=path,
            metadata=metadata[place] if metadata else "",
        )
        try:
            size, modified = _stat(path)
            works.append(_Work(image, name, FileFacts(size, modified, *_looked_at(path, modified)), "added"))
        except PictureError as error:
            refused.append(Skipped(error.path, error.reason))
    entries, bad = _encoded(works, model, cache, progress, keep_vectors=before.vectors is not None)
    paths = {work.name: str(work.image.path) for work in works}
    return store.commit(entries), (*refused, *(Skipped(paths[one.path], one.reason) for one in bad))


def dataset_of(paths: Iterable[Path]) -> Dataset:
    """Bare paths as a data set without captions; an id is the path from the folder that all share."""
    absolute = list(dict.fromkeys(Path(path).absolute() for path in paths))
    if not absolute:
        raise EmptyDataError("There is no picture to index.")
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    images = tuple(CaptionedImage(path.relative_to(root).as_posix(), path) for path in absolute)
    return Dataset(root.name or str(root), root, images)


@dataclass(frozen=True)
class _Work:
    """A picture to be written: where it stands, what it is, and what was known of its content."""

    image: CaptionedImage
    name: str
    facts: FileFacts
    kind: str
    """Which count of `Indexed` it is one of."""
    row: int = -1
    """Of the picture with the same content; -1: it must be encoded."""
    moved_from: str = ""
    """The id that picture had."""


@dataclass(frozen=True)
class _Plan:
    unchanged: int
    copied: list[_Work]
    fresh: list[_Work]
    gone: list[str]
    refused: list[SkippedFile]
    forgotten: list[str]


def _planned(
    before: Snapshot, dataset: Dataset, skipped: dict[str, SkippedFile], workers: int, progress: Progress
) -> _Plan:
    """What is to be done for each file, from its size, time and, where these are not as they were, its content."""
    rows = before.rows.tolist()
    facts = before.facts
    known = np.zeros(0, FACTS) if facts is None else facts[before.rows]
    place_of = {before.ids[row]: place for place, row in enumerate(rows)}
    unchanged, refused, changed = 0, [], []
    listed, names = set(), set()
    for done, image in enumerate(dataset.images, start=1):
        listed.add(image.image_id)
        name = stored_path(image.path, dataset.root)
        names.add(name)
        try:
            size, modified = _stat(image.path)
        except PictureError as error:
            refused.append(SkippedFile(name, error.reason))
            continue
        place = place_of.get(image.image_id)
        if place is not None and len(known):
            same = (known["size"][place], known["modified"][place]) == (size, modified)
            if same and before.metadata(rows[place]) == image.metadata:
                unchanged += 1
                continue
        if place is None and (once := skipped.get(name)) and (once.size, once.modified) == (size, modified):
            continue
        changed.append((image, name, size, modified))
        if done % 1000 == 0:
            progress("look at files", done, len(dataset))
    progress("look at files", len(dataset), len(dataset))
    gone = [name for name, place in place_of.items() if name not in listed and not _is_own(before, rows[place])]
    is_gone = set(gone)
    copied: list[_Work] = []
    fresh: list[_Work] = []
    content = {bytes(known["hash"][place]): place for place in range(len(known))} if changed else {}
    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(lambda one: _looked_at_or_not(one[0].path, one[3]), changed)
        for done, ((image, name, size, modified), found) in enumerate(zip(changed, looked, strict=True), start=1):
            if done % 100 == 0 or done == len(changed):
                progress("read new files", done, len(changed))
            if isinstance(found, PictureError):
                refused.append(SkippedFile(name, found.reason, size, modified))
                continue
            kind = "updated" if image.image_id in place_of else "added"
            source = content.get(found[1], -1)
            work = _Work(image, name, FileFacts(size, modified, *found), kind)
            if source < 0:
                fresh.append(work)
                continue
            row, source_id = rows[source], before.ids[rows[source]]
            if source_id == image.image_id and before.metadata(row) == image.metadata:
                kind = "unchanged"  # but for its time
            elif source_id in is_gone and kind == "added":
                kind = "moved"
                is_gone.discard(source_id)  # another copy of it is a copy
            moved_from = source_id if kind == "moved" else ""
            copied.append(dataclasses.replace(work, kind=kind, row=row, moved_from=moved_from))
    return _Plan(unchanged, copied, fresh, gone, refused, [name for name in skipped if name not in names])


def _commit_copied(store: Store, before: Snapshot, part: list[_Work], done: Counter[str]) -> None:
    vectors = before.vectors
    rows = np.array([work.row for work in part], dtype=np.int64)
    sequences = before.vokens[before.rows.searchsorted(rows)]
    kept = None if vectors is None else vectors[rows]
    entries = [
        Entry(
            work.image.image_id,
            work.name,
            sequences[place],
            None if kept is None else kept[place],
            work.facts,
            work.image.metadata,
        )
        for place, work in enumerate(part)
    ]
    store.commit(entries, remove=[work.moved_from for work in part if work.moved_from])
    done.update(work.kind for work in part)


def _commit_fresh(
    store: Store,
    part: list[_Work],
    model: Indexer,
    cache: VectorCache | None,
    done: Counter[str],
    progress: Progress,
) -> None:
    entries, bad = _encoded(part, model, cache, progress, keep_vectors=store.stores_vectors)
    kinds = {work.image.image_id: work.kind for work in part}
    kept = {entry.image_id for entry in entries}
    # a file that was a picture and is none any more
    broken = [name for name, kind in kinds.items() if kind == "updated" and name not in kept]
    committed = store.commit(entries, remove=broken, skipped=bad)
    done.update(kinds[name] for name in kept)
    done["removed"] += len(committed.removed)


def _encoded(
    works: Sequence[_Work], model: Indexer, cache: VectorCache | None, progress: Progress, *, keep_vectors: bool
) -> tuple[list[Entry], list[SkippedFile]]:
    if not works:
        return [], []
    paths = [work.image.path for work in works]
    hashes = [work.facts.hash.hex() for work in works]
    found = picture_vectors(model.encoder, paths, cache=cache, hashes=hashes, progress=progress)
    vokens = model.tokenizer.encode(found.vectors) if len(found.kept) else np.zeros((0, 0), np.int32)
    vectors = found.vectors.astype(np.float16)
    kept = found.kept.tolist()
    entries = [
        Entry(
            works[place].image.image_id,
            works[place].name,
            vokens[row],
            vectors[row] if keep_vectors else None,
            works[place].facts,
            works[place].image.metadata,
        )
        for row, place in enumerate(kept)
    ]
    reasons = {one.path: one.reason for one in found.skipped}
    left = [work for place, work in enumerate(works) if place not in set(kept)]
    bad = [SkippedFile(work.name, reasons[str(work.image.path)], work.facts.size, work.facts.modified) for work in left]
    return entries, bad


def _parts(works: list[_Work]) -> Iterator[list[_Work]]:
    for at in range(0, len(works), _COMMITTED_AT_ONCE):
        yield works[at : at + _COMMITTED_AT_ONCE]


def _from(progress: Progress, before: int, total: int) -> Progress:
    """The progress of a part as that of the whole."""
    return lambda what, done, _: progress(what, before + done, total)


def _stat(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise PictureError(path, f"cannot be read ({error.strerror or error})") from error
    return found.st_size, found.st_mtime_ns


def _looked_at(path: Path, modified: int) -> tuple[int, bytes]:
    """When it was taken, and the hash of its content. Raises `PictureError`."""
    digest = bytes.fromhex(file_hash(path))
    taken = date_taken(path)
    return modified // 1_000_000_000 if taken is None else taken, digest


def _looked_at_or_not(path: Path, modified: int) -> tuple[int, bytes] | PictureError:
    try:
        return _looked_at(path, modified)
    except PictureError as error:
        return error


def _is_own(snapshot: Snapshot, row: int) -> bool:
    return snapshot.stored_paths[row].startswith(UPLOAD_PREFIX)


def _all_skipped(dataset: Dataset, skipped: Sequence[Skipped]) -> str:
    shown = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:_REASONS_SHOWN])
    more = f"; and {len(skipped) - _REASONS_SHOWN} more" if len(skipped) > _REASONS_SHOWN else ""
    count = f"None of the {len(skipped)} pictures" if len(skipped) > 1 else "The only picture"
    return f"{dataset.root}: {count} could be used ({shown}{more}). Give pictures that a viewer can open."
