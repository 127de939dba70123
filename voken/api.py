"""The Python interface: collections of pictures that can be searched, and the training of models for them.

    from voken import Collection, fit

    fit("emoji", "emoji.model")
    Collection.index("photos.voken", "photos", model="emoji.model")
    with Collection.open("photos.voken") as photos:
        for hit in photos.search("two dogs on a beach", k=5, where=["date>=2024"]):
            print(hit.path, hit.confidence)
        photos.add(["new.jpg"])
        photos.remove(["trips/old.jpg"])

The command line and the server use only this module. Functions that need torch import it when they are called.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast, get_args

import numpy as np

from voken import artifact
from voken.collection.default_place import default_place, find_collection
from voken.collection.filters import fields_of, parse_all
from voken.collection.gallery import Galleries, Gallery, Subfolder, field_values, folder_of, taken_seconds
from voken.collection.snapshot import UPLOAD_PREFIX, CollectionSize, Snapshot, stored_path
from voken.collection.store import KIND as COLLECTION
from voken.collection.store import PICTURES, Change, FittedModel, IndexOptions, IndexReport, Store
from voken.config import ReadOutName
from voken.data.dates import NO_DATE
from voken.data.location import without_location
from voken.data.metadata import metadata_fields, metadata_text
from voken.data.skipped import Skipped
from voken.device import check_device
from voken.errors import (
    ArtifactError,
    BusyError,
    ConfigError,
    CorruptArtifactError,
    DataError,
    EmptyDataError,
    MissingExtraError,
    StorageError,
    VokenError,
)
from voken.extras import extra_errors
from voken.model import compiled
from voken.progress import Progress, no_progress
from voken.search import explain
from voken.search.batching import SearchQueue
from voken.search.combined_query import Term, combined, parse_terms
from voken.search.hit import Hit
from voken.search.hit_list import HitList
from voken.search.searcher import Searcher, SearchModel, check_k, load_model, readable_text
from voken.shapes import Float

if TYPE_CHECKING:
    from PIL.Image import Image

    from voken.collection.doctor import Finding
    from voken.collection.indexing import PictureModel
    from voken.config import RunConfig
    from voken.data.captions import Dataset as Dataset  # re-exported for annotations
    from voken.data.opened_picture import OpenedPicture as OpenedPicture  # re-exported for annotations
    from voken.encoders.cache import VectorCache
    from voken.image_tokenizer.train import TokenizerReport as TokenizerReport  # re-exported for annotations
    from voken.model.model import Model

__all__ = [
    "Change",
    "Collection",
    "CollectionInfo",
    "FittedModel",
    "Gallery",
    "Hit",
    "IndexReport",
    "ListedPicture",
    "ModelInfo",
    "Picture",
    "Skipped",
    "Subfolder",
    "Why",
    "answer_encoder_question",
    "answered_encoder",
    "auto_encoder",
    "compile_model",
    "default_place",
    "draw_dataset",
    "encoder_question",
    "fit",
    "info",
    "is_collection",
    "model_card",
    "pull",
    "push",
    "tokenizer_report",
    "unpack_dataset",
]

Why = explain.Why

_BUSY_SECONDS = 5.0
"""After so long a folder that is watched is looked at again if another process was indexing it."""
_THUMBNAIL = 160
"""Longer side of the pictures that notebooks show."""
_FILES_EXAMINED = 1_000
"""Files of a folder that is no collection, among which a picture is looked for."""


@dataclass(frozen=True)
class Picture:
    """One picture of a collection."""

    image_id: str
    path: Path
    vokens: tuple[int, ...]
    metadata: dict[str, Any]
    """The fields of its line in metadata.jsonl, without the captions."""
    within: Path | None = None
    """The folder that its file must lie in, None for any: the folder of the collection's pictures, that of the uploaded
    pictures, or the folder of a file that was added from elsewhere."""

    @extra_errors()
    def open(self, *, follow_links: bool = False) -> OpenedPicture:
        """Open its file, which is then examined, decoded and sent without being opened again.

        Raises `OSError` if there is none, `PictureError` if it is no regular file, or if a link leads out of `within`
        and `follow_links` is false.
        """
        from voken.data.opened_picture import OpenedPicture

        return OpenedPicture.open(self.path, within=None if follow_links else self.within)

    @extra_errors()
    def image(self) -> Image:
        """The picture in mode RGB, upright. Raises `PictureError` if its file cannot be read."""
        from voken.data.images import open_image

        return open_image(self.path)


@dataclass(frozen=True)
class ListedPicture:
    """One picture of a list, with what a page needs to show it."""

    image_id: str
    path: Path
    taken: str
    """When it was taken, or else when its file changed: "2024-05-03T10:11:12", on the clock of that place."""
    is_dated: bool
    """Whether its metadata or its file say when it was taken."""
    folder: str
    """Relative to the folder of the collection's pictures, as the filter `folder` names it."""
    content_hash: str
    """Hexadecimal; equal for files with the same content; empty if the collection does not record its files."""
    metadata: dict[str, Any]
    within: Path | None = None
    """See `Picture.within`."""

    @extra_errors()
    def open(self, *, follow_links: bool = False) -> OpenedPicture:
        """See `Picture.open`."""
        from voken.data.opened_picture import OpenedPicture

        return OpenedPicture.open(self.path, within=None if follow_links else self.within)


@dataclass(frozen=True)
class CollectionInfo:
    """What a collection is, and how many bytes each part of it takes."""

    pictures: int
    version: int
    added: int
    """Pictures added since the last compaction."""
    removed: int
    """Pictures removed since the last compaction."""
    sequences: int
    """Distinct voken sequences."""
    levels: int
    codebook_size: int
    root: Path
    """The folder of the pictures."""
    fields: tuple[str, ...]
    """The fields that filters can name."""
    skipped: tuple[Skipped, ...]
    """Files that could not be used, and why."""
    model: Path | None
    """The folder of the model that made the vokens; None if that model was not saved."""
    model_fingerprint: str
    size: CollectionSize


@dataclass(frozen=True)
class ModelInfo:
    """What a saved model is, and how many bytes each part of it takes."""

    family: str
    """The generator's family: lite, t5 or llama."""
    fingerprint: str
    engine: str | None
    """The precision of the engine, which searches without torch; None if there is no engine."""
    search: dict[str, Any]
    """The search settings that training chose."""
    bytes: dict[str, int]
    warnings: tuple[str, ...] = ()
    """What training found wrong with the image tokenizer, and what to change."""


class Collection:
    """Pictures that can be searched by words, by pictures and by metadata. Create one with `index`, then `open` it.

    Any number of threads may use one collection at the same time, and so may other processes: a search sees the version
    before or after a change, never a part of it.
    """

    def __init__(
        self,
        store: Store,
        model: SearchModel | None,
        model_folder: Path | None,
        load_options: dict[str, Any],
        *,
        beams: int | None = None,
        readout: str | None = None,
        max_queue: int | None = None,
        strip_location: bool = False,
    ) -> None:
        if readout is not None and readout not in get_args(ReadOutName):
            raise ConfigError(f"readout: {readout!r} is not generate, voken or vector. Use one of them.")
        self._store = store
        self._search_model, self._model_folder = model, model_folder  # None: what the collection names
        self._beams, self._readout = beams, cast(ReadOutName | None, readout)
        self._load_options, self._max_queue = load_options, max_queue
        self._strip_location = strip_location
        self._loading, self._encoding = threading.Lock(), threading.Lock()
        self._queue: SearchQueue | None = None
        self._snapshot: Snapshot | None = None
        self._picture_model: PictureModel | None = None
        self._galleries = Galleries()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | Path | SearchModel | None = None,
        beams: int | None = None,
        readout: str | None = None,
        device: str = "cpu",
        threads: int = 0,
        once: bool = False,
        max_queue: int | None = None,
        strip_location: bool = False,
        load: bool = True,
    ) -> Self:
        """Open a saved collection with its model. `path` is its folder, or that of the pictures if the collection is in
        its default place. `model` is the folder of a model that was moved, or a model.

        `beams` is how many sequences the beam search holds at each level, never fewer than `k`; None means the number
        in the model's settings. `readout` ranks hits by "generate" (log-probability), "voken" (plus the cosine with the
        vector rebuilt from the vokens) or "vector" (plus the cosine with the stored vector); None means the best that
        the collection allows. `threads` is the number of threads; 0 means one per core. `once` is for a process that
        searches a single time: it starts faster and searches more slowly. `max_queue` is how many queries may wait
        while others are answered; None means any number. With `strip_location`, `metadata`, `picture`, `fields` and
        filters leave out the fields of the metadata that say where a picture was taken (see `voken.data.location`).
        With `load=False` the model is loaded by the first search, and a process that only changes the collection never
        loads it.

        Raises `ArtifactError` if there is no collection, if its model is no longer where it was, or if the collection
        was made with another model than `model`, and `ConfigError` for impossible settings.
        """
        path = find_collection(Path(path))
        _check_collection(path)
        check_device(device)
        store = Store.open(path)
        folder = Path(model) if isinstance(model, str | Path) else None
        loaded = None if model is None or isinstance(model, str | Path) else model
        options = {"device": device, "threads": threads, "once": once}
        collection = cls(
            store,
            loaded,
            folder,
            options,
            beams=beams,
            readout=readout,
            max_queue=max_queue,
            strip_location=strip_location,
        )
        if load:
            _ = collection.searcher
        return collection

    @classmethod
    @extra_errors()
    def index(
        cls,
        path: str | Path,
        pictures: str | Path | Dataset | Iterable[Path] | None = None,
        model: str | Path | PictureModel | None = None,
        *,
        encoder: str | None = None,
        prompt: str | Path | Dataset | None = None,
        split: str | None = None,
        images: str | Path | None = None,
        exclude: Sequence[str] | None = None,
        max_pixels: int | None = None,
        vectors: bool | None = None,
        model_folder: Path | None = None,
        replace: bool = False,
        remove_missing: bool = False,
        cache: str | Path | VectorCache | None = None,
        device: str = "cpu",
        threads: int = 0,
        progress: Progress = no_progress,
    ) -> IndexReport:
        """Create a collection of `pictures` at `path`, or bring the collection that is there up to date with them.

        With one argument, a folder of pictures, the collection is in its default place: `.voken` in that folder (see
        `voken.collection.default_place`). `pictures` is a folder, a data set, or paths. With `split` only that part of
        a data set is indexed ("all": all parts), and `images` is the folder of its pictures if they are elsewhere.
        `exclude` are patterns of files and folders that are left out (see `voken.data.picture_folder.list_folder`), and
        so are pictures of more than `max_pixels`. The collection remembers these three, and None means what it
        remembers. A `voken.toml` in the folder may leave out more (see `voken.data.folder_settings`).

        Only new and changed files are read, pictures whose files no longer exist are removed, and everything that is
        not indexed is reported. If more than a quarter of the files is missing, a drive may be: the pictures stay and
        are counted, unless `remove_missing`. `model` is the folder of a trained model, or the model itself; then
        `model_folder` is the folder in which searches will find it. It may be left out for an existing collection.
        Without a model, a new collection gets one of its own, which is made from its pictures without training (see
        `voken.collection.own_model`); `encoder` is then "photos", the built-in encoder and the default, the hub name or
        the folder of a CLIP or SigLIP model, or "auto", a small CLIP if the hub provides it and else "photos".
        With CLIP or SigLIP, `prompt` is the words around every query, as in "a photo of {}", or a captioned data set:
        then those with the best recall on its validation pictures.
        `vectors` stores a vector per picture, for the best read-out; by default they are stored. `replace` creates the
        collection again. `cache` is a folder of picture vectors: no picture is encoded twice.

        Raises `EmptyDataError` if no picture can be used, `ArtifactError` if `path` holds something else or was made
        with another model, `ConfigError` if it holds the pictures of another folder or if `vectors` is not what it was
        created with, `BusyError` if another process is indexing it. A collection that was created by this call is then
        removed. If the call is interrupted, or if the disk refuses (`StorageError`), the pictures that were committed
        stay, and the same call continues from there.
        """
        start = time.perf_counter()
        check_device(device)
        if pictures is None:
            pictures, path = path, default_place(Path(path))
        path = Path(path)
        is_new = replace or not artifact.is_artifact(path)
        if model is None and is_new and find_spec("torch") is None:
            raise MissingExtraError("torch, which makes the model of a new collection,", "train")
        if find_spec("PIL") is None and (model is None or isinstance(model, str | Path)):
            raise _missing_pillow(Path(model) if model else Store.open(path).snapshot().find_model())
        from voken.collection import indexing, own_model
        from voken.collection.index_lock import index_lock
        from voken.data.images import MAX_PIXELS

        if model is not None and encoder is not None:
            raise ConfigError(f"encoder {encoder}: the model in {model} has an encoder. Leave one of the two out.")
        if model is not None and prompt is not None:
            raise ConfigError(f"prompt {prompt}: that of the model in {model} cannot be changed. Leave it out.")
        with ExitStack() as locks:
            if artifact.is_artifact(path):
                locks.enter_context(index_lock(path))
            existing = None if is_new else Store.open(path)
            options = IndexOptions() if existing is None else existing.index_options
            options = _index_options(options, split, exclude, max_pixels)
            if isinstance(pictures, str | Path):
                dataset = _read_pictures(pictures, options.split or None, images, options.exclude)
            else:
                dataset = _read_pictures(pictures, split, images)
            if not len(dataset):
                raise EmptyDataError(f"{dataset.name}: there is no picture to index. Give at least one.")
            if existing is not None:
                if vectors is not None and vectors != existing.stores_vectors:
                    raise ConfigError(
                        f"{path}: was created {'with' if existing.stores_vectors else 'without'} vectors, which cannot "
                        "be changed. Create it again (--replace), or leave the option out."
                    )
                if encoder is not None:
                    own_model.check_encoder(existing, encoder)
                if prompt is not None:
                    own_model.check_prompt_is(existing, str(prompt))
                model = model or existing.snapshot().find_model()
            cache = _cache(cache)
            fitted: FittedModel | None = None
            store = existing
            if isinstance(model, str | Path):
                picture_model: PictureModel = indexing.SavedModel(Path(model), device, threads)
            elif model is not None:
                picture_model = model
            else:
                if cache is None:  # for the pictures that the model is fitted on
                    cache = _cache(locks.enter_context(TemporaryDirectory(prefix="voken-")))
                assert cache is not None
                use_threads(threads)
                is_template = isinstance(prompt, str) and "{" in prompt
                store, picture_model, fitted = own_model.new_store(
                    path,
                    dataset,
                    encoder or "photos",
                    cache=cache,
                    prompt=str(prompt) if is_template else "",
                    captioned=None if prompt is None or is_template else _read_pictures(prompt, None, None),
                    vectors=vectors is not False,
                    replace=replace,
                    max_pixels=options.max_pixels or dataset.max_pixels or MAX_PIXELS,
                    device=device,
                    threads=threads,
                    progress=progress,
                )
                locks.enter_context(index_lock(path))
            if store is None:
                saved = isinstance(picture_model, indexing.SavedModel)
                store = indexing.new_store(
                    path,
                    dataset.root,
                    picture_model,
                    vectors=vectors is not False,
                    model_folder=cast(indexing.SavedModel, picture_model).folder if saved else model_folder,
                    replace=replace,
                )
                locks.enter_context(index_lock(path))
            if options != store.index_options:
                store.remember(options)
            try:
                report = indexing.index_pictures(
                    store,
                    dataset,
                    picture_model,
                    cache=cache,
                    workers=threads,
                    compact=is_new,
                    max_pixels=options.max_pixels or dataset.max_pixels or MAX_PIXELS,
                    remove_missing=remove_missing,
                    progress=progress,
                )
            except BaseException:
                if is_new and not len(store.snapshot()):
                    shutil.rmtree(path, ignore_errors=True)
                raise
            if (again := own_model.fit_again(store, picture_model, cache=cache, progress=progress)) is not None:
                snapshot, fitted = store.snapshot(), again
                report = replace_fields(
                    report,
                    version=snapshot.version,
                    sequences=snapshot.trie.sequences,
                    bytes_per_picture=snapshot.bytes_per_picture,
                )
            return replace_fields(report, fitted=fitted, seconds=time.perf_counter() - start)

    @classmethod
    def watch(
        cls,
        path: str | Path,
        pictures: str | Path | None = None,
        model: str | Path | None = None,
        *,
        encoder: str | None = None,
        prompt: str | Path | Dataset | None = None,
        split: str | None = None,
        images: str | Path | None = None,
        device: str = "cpu",
        threads: int = 0,
        **options: Any,
    ) -> Iterator[IndexReport | VokenError]:
        """Call `index` now and whenever the folder changes, without end. Yields the report of each run with a change.

        The arguments are those of `index`. The first run raises what `index` raises. In later runs a `DataError`,
        `BusyError` or `StorageError` is yielded once, because the folder may be half written or its drive removed, and
        the next change may correct it. Raises `MissingExtraError` if watchfiles is not installed.
        """
        with extra_errors():
            from voken.collection.indexing import SavedModel
            from voken.collection.watching import folder_changes

        if pictures is None:
            pictures, path = path, default_place(Path(path))
        changes = folder_changes(_read_pictures(pictures, split, images).root, Path(path))
        replaces = options.pop("replace", False)
        loaded: list[SavedModel] = []

        def index() -> IndexReport:
            existing = None if replaces or not artifact.is_artifact(Path(path)) else Store.open(Path(path))
            folder = model
            if folder is None and existing is not None:
                folder = existing.snapshot().find_model()
            if folder is not None and (not loaded or loaded[0].folder != Path(folder)):
                # the collection's own model may have been fitted again
                loaded[:] = [SavedModel(Path(folder), device, threads)]
            known = None if folder is None else loaded[0]
            is_made = model is None and existing is None
            return cls.index(
                path,
                pictures,
                known,
                encoder=encoder if is_made else None,
                prompt=prompt if is_made else None,
                split=split,
                images=images,
                device=device,
                threads=threads,
                replace=replaces,
                **options,
            )

        if encoder is not None and artifact.is_artifact(Path(path)) and not replaces:
            from voken.collection.own_model import check_encoder

            check_encoder(Store.open(Path(path)), encoder)
        last: IndexReport | VokenError = index()
        yield last
        replaces = False

        def index_again() -> IndexReport | VokenError:
            try:
                return index()
            except (DataError, BusyError, StorageError) as error:
                return error

        for _ in changes:
            report = index_again()
            while isinstance(report, BusyError):
                if _is_news(report, last):
                    yield report
                last = report
                time.sleep(_BUSY_SECONDS)
                report = index_again()
            if _is_news(report, last):
                yield report
            last = report

    @staticmethod
    def doctor(path: str | Path, *, pictures: bool = False, progress: Progress = no_progress) -> list[Finding]:
        """Check every byte of a collection. Returns what is right, what is wrong, and what to do about it.

        With `pictures` the files of the pictures are read, too, and compared with what was indexed. Raises
        `ArtifactError` only if there is no collection.
        """
        from voken.collection.doctor import examine

        path = find_collection(Path(path))
        _check_collection(path)
        return examine(path, pictures=pictures, progress=progress)

    def __len__(self) -> int:
        return len(self._current())

    def __contains__(self, image_id: str) -> bool:
        return self._current().find(image_id) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """The folder that it is saved in."""
        return self._store.folder

    @property
    def store(self) -> Store:
        """Its files on disk."""
        return self._store

    @property
    def searcher(self) -> Searcher:
        """The searcher of this collection. Loads the model on first use."""
        return self._opened_queue().searcher

    def _opened_queue(self) -> SearchQueue:
        with self._loading:
            if self._queue is None:
                self._queue = SearchQueue(self._new_searcher(), max_queue=self._max_queue)
                return self._queue
            _ = self._queue.searcher.collection  # looks for changes
            if self._queue.searcher.is_outdated:
                self._queue.searcher = self._new_searcher()
            return self._queue

    def _new_searcher(self) -> Searcher:
        snapshot = self._store.snapshot(self._snapshot)
        model = self._search_model
        if model is None:
            model = load_model(self._model_folder or snapshot.find_model(), **self._load_options)
        settings = replace_fields(
            model.search,
            beams=model.search.beams if self._beams is None else self._beams,
            readout=self._readout or ("voken" if snapshot.vectors is None else "vector"),
        )
        return Searcher(model, snapshot, settings, store=self._store)

    @property
    def version(self) -> int:
        """The version that a search would see now. It grows with every change."""
        return self._current().version

    @property
    def readout(self) -> str:
        """How hits are ranked: "generate", "voken" or "vector"."""
        return self.searcher.read_out.name

    @property
    def fields(self) -> list[str]:
        """The fields that filters can name: `date`, `folder`, and those of the pictures' metadata."""
        return fields_of(self._current(), hides_location=self._strip_location)

    @property
    def can_encode(self) -> bool:
        """Whether this process can encode pictures: the model has an encoder, and torch or a graph to run it."""
        if self._search_model is not None:
            return find_spec("torch") is not None and hasattr(self._search_model, "encoder")
        return find_spec("torch") is not None or (
            self._load_options["device"] == "cpu"
            and find_spec("PIL") is not None
            and compiled.encodes_pictures(self._model_folder or self._store.snapshot().find_model())
        )

    @property
    def calibrated(self) -> bool:
        """Whether hits have a confidence."""
        return self.searcher.calibrated

    @property
    def wants_compaction(self) -> bool:
        """Whether there are so many changes that `compact` would make opening faster."""
        return self._store.wants_compaction

    def info(self) -> CollectionInfo:
        """What the collection is, and how many bytes each part of it takes."""
        snapshot = self._current()
        trie = snapshot.trie
        return CollectionInfo(
            pictures=len(snapshot),
            version=snapshot.version,
            added=len(snapshot.added.rows),
            removed=len(snapshot.removed),
            sequences=trie.sequences,
            levels=trie.levels,
            codebook_size=trie.codebook_size,
            root=snapshot.root,
            fields=tuple(fields_of(snapshot, hides_location=self._strip_location)),
            skipped=snapshot.skipped,
            model=snapshot.model_folders[0] if snapshot.model_folders else None,
            model_fingerprint=snapshot.model_fingerprint,
            size=snapshot.size,
        )

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        where: Sequence[str] = (),
        threshold: float | None = None,
        precision: float | None = None,
    ) -> list[Hit]:
        """At most `k` pictures for a query in words, best first.

        `where` are filters that must all hold (see `voken.collection.filters`). With `threshold` only hits of at least
        that confidence are returned; an empty list means that nothing matches. `precision` chooses the threshold above
        which that share of the hits was right on validation. Raises `ConfigError` for an empty query, an impossible
        `k`, a filter that cannot be parsed, and a threshold or a precision if the model is not calibrated for it.
        """
        (hits,) = self.search_many([query], k, where=where, threshold=threshold, precision=precision)
        return HitList(hits, self._thumbnail)

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: Sequence[str] = (),
        threshold: float | None = None,
        precision: float | None = None,
    ) -> list[list[Hit]]:
        """Like `search`, for several queries, which go through the model together."""
        return self._opened_queue().search(queries, k, self._filters(where), self._threshold(threshold, precision))

    async def asearch(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        where: Sequence[str] = (),
        threshold: float | None = None,
        precision: float | None = None,
    ) -> list[list[Hit]]:
        """Like `search_many`, without blocking the event loop. Queries that arrive together are searched together.

        Raises `BusyError` if the queue is full.
        """
        return await self._opened_queue().asearch(
            queries, k, self._filters(where), self._threshold(threshold, precision)
        )

    def similar(self, image_id: str, k: int = 10, *, where: Sequence[str] = ()) -> list[Hit]:
        """At most `k` pictures similar to one of the collection. Raises `DataError` if there is no such picture."""
        return HitList(self.searcher.similar(image_id, k, self._filters(where)), self._thumbnail)

    @extra_errors()
    def search_picture(
        self,
        picture: str | Path | BinaryIO,
        k: int = 10,
        *,
        where: Sequence[str] = (),
        max_pixels: int | None = None,
    ) -> list[Hit]:
        """At most `k` pictures similar to the picture in a file, of at most `max_pixels` (None: 100 million).

        Raises `PictureError` if the file cannot be read, `MissingExtraError` if torch is not installed.
        """
        filters = self._filters(where)
        vector = self._picture_vector(picture, max_pixels)
        return HitList(self.searcher.like_vector(self._code(vector), vector, k, filters), self._thumbnail)

    @extra_errors()
    def combine(
        self,
        query: str | None = None,
        k: int = 10,
        *,
        like: str | None = None,
        picture: str | Path | BinaryIO | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        where: Sequence[str] = (),
        max_pixels: int | None = None,
    ) -> list[Hit]:
        """At most `k` pictures for a query of several parts: "like this picture, but at night and without people".

        The parts are a `query` in words, the id `like` of a picture of the collection, the `picture` in a file, and
        words to add (`plus`) and to take away (`minus`). A word may have a weight, "dog:2"; all others have 1. The
        vectors of the parts are added (see `voken.search.combined_query`). Raises `ConfigError` if there is nothing to
        start from or nothing left, `DataError` for an unknown id, and what `search` and `search_picture` raise.
        """
        terms, filters, searcher = parse_terms(plus, minus), self._filters(where), self.searcher
        check_k(k)
        if query is not None:
            terms.insert(0, Term(query))
        vectors = [searcher.vector_of(like)] if like is not None else []
        if picture is not None:
            vectors.append(self._picture_vector(picture, max_pixels))
        if not vectors and not any(term.weight > 0 for term in terms):
            raise ConfigError("There is nothing to start from. Give a query, a picture, or words to add (plus).")
        weights = [1.0] * len(vectors) + [term.weight for term in terms]
        if terms:
            texts = [readable_text(term.text, place) for place, term in enumerate(terms)]
            vectors += list(searcher.model.query_vectors(texts))
        vector = combined(vectors, weights)
        hits = searcher.like_vector(self._code(vector), vector, k + (like is not None), filters)
        return HitList([hit for hit in hits if hit.image_id != like][:k], self._thumbnail)

    def _picture_vector(self, picture: str | Path | BinaryIO, max_pixels: int | None) -> Float[np.ndarray, " dim"]:
        model = self._encoding_model()
        from voken.data.images import MAX_PIXELS, open_image
        from voken.encoders.interface import PreparingEncoder

        picture = Path(picture) if isinstance(picture, str) else picture
        with self._encoding:
            # as it was indexed
            least_side = model.encoder.least_side if isinstance(model.encoder, PreparingEncoder) else None
        most = MAX_PIXELS if max_pixels is None else max_pixels
        image = open_image(picture, least_side=least_side, max_pixels=most)
        with self._encoding:
            (vector,) = np.asarray(model.encoder.encode_images([image]), dtype=np.float32)
        return cast(np.ndarray, vector)

    def _code(self, vector: Float[np.ndarray, " dim"]) -> Float[np.ndarray, " e"]:
        """What the tokenizer quantizes of a vector: the vector itself if it has no layers."""
        if self.searcher.model.codebooks is not None:
            return vector
        model = self._encoding_model()
        with self._encoding:
            (code,) = model.tokenizer.code_vectors(vector[None])
        return cast(np.ndarray, code)

    def newest_first(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits by falling date, as `date` filters see it. Of one second, the better hit is first.

        Hits whose pictures have been removed since are left out.
        """
        snapshot = self._current()
        rows = [(hit, row) for hit in hits if (row := snapshot.find(hit.image_id)) is not None]
        seconds = taken_seconds(snapshot, np.array([row for _, row in rows], dtype=np.int64))
        return [rows[place][0] for place in np.argsort(-seconds, kind="stable").tolist()]

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Why]:
        """Explain each hit of a search for `query` by the vokens that the generator wrote, level by level."""
        return explain.explain(self.searcher, query, hits)

    def picture(self, image_id: str) -> Picture:
        """The picture with this id. Raises `DataError` if there is none."""
        snapshot = self._current()
        row = _row_of(snapshot, image_id)
        path = snapshot.path(row)
        return Picture(
            snapshot.ids[row],
            path,
            tuple(snapshot.sequence(row).tolist()),
            self._metadata(snapshot, row),
            _folder_of(snapshot, row, path),
        )

    def metadata(self, image_id: str) -> dict[str, Any]:
        """The metadata of a picture; empty if there is no such picture."""
        snapshot = self._current()
        return self._metadata(snapshot, snapshot.find(image_id))

    def gallery(self, where: Sequence[str] = ()) -> Gallery:
        """The pictures that pass the filters, newest first. The first gallery of a version reads all their dates.

        Raises `ConfigError` for a filter that cannot be parsed.
        """
        return self._galleries.get(self._current(), tuple(self._filters(where)))

    def listed(self, gallery: Gallery, offset: int, limit: int) -> list[ListedPicture]:
        """At most `limit` pictures of a gallery, from the place `offset`."""
        return self._listed(gallery.snapshot, gallery.rows[offset : offset + limit])

    def listed_ids(self, ids: Sequence[str]) -> list[ListedPicture | None]:
        """The pictures with these ids; None in place of a picture that is not there."""
        snapshot = self._current()
        rows = [snapshot.find(image_id) for image_id in ids]
        pictures = iter(self._listed(snapshot, np.array([row for row in rows if row is not None], dtype=np.int64)))
        return [None if row is None else next(pictures) for row in rows]

    def vectors(self, ids: Sequence[str]) -> np.ndarray | None:
        """Unit vectors of pictures, one per id; None if the collection stores none, or if a picture is gone."""
        snapshot = self._current()
        rows = [snapshot.find(image_id) for image_id in ids]
        if snapshot.vectors is None or None in rows:
            return None
        vectors: np.ndarray = np.asarray(snapshot.vectors[np.array(rows, dtype=np.int64)], dtype=np.float32)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def field_values(self, name: str) -> list[tuple[str, int]]:
        """The values of a field and how many pictures have each, the most frequent first.

        `date` has years and months, `folder` every folder with those in it. Raises `ConfigError` if no picture has the
        field.
        """
        counts = field_values(self.gallery(), name, hides_location=self._strip_location)
        return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))

    def query_vectors(self, texts: Sequence[str]) -> np.ndarray | None:
        """Unit vectors of texts in the space of the pictures' vectors; None if the model has none."""
        try:
            return np.asarray(self.searcher.model.query_vectors(list(texts)), dtype=np.float32)
        except ConfigError:
            return None

    @extra_errors()
    def add(
        self,
        pictures: Sequence[str | Path],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[dict[str, Any] | None] | None = None,
        cache: str | Path | VectorCache | None = None,
        progress: Progress = no_progress,
    ) -> Change:
        """Add files in one transaction; a file whose id exists replaces that picture. Unusable files are skipped.

        `ids` and `metadata` have an entry per file. By default the id is the one that the file has in the collection,
        or else its path, relative to the collection's folder of pictures if the file is in it, else absolute. Without
        `metadata`, or where it is None, a picture keeps the metadata that it has. A file that occurs twice with the
        same id is added once. Raises `ConfigError` for a wrong number of ids or metadata, `StorageError` if the disk
        refuses, `MissingExtraError` if torch is not installed.
        """
        from voken.collection.indexing import add_pictures

        texts = None
        if metadata is not None:
            texts = [None if fields is None else metadata_text(fields) for fields in metadata]
        paths, model = [Path(path) for path in pictures], self._encoding_model()
        with self._encoding:
            change = add_pictures(
                self._store, paths, model, ids=ids, metadata=texts, cache=_cache(cache), progress=progress
            )
        self._refresh()
        return change

    def remove(self, ids: Sequence[str] = (), *, paths: Sequence[str | Path] = ()) -> Change:
        """Remove pictures, by id or by the path of their file, in one transaction. Their files stay.

        The ids and paths that no picture has are listed in `Change.absent`.
        """
        snapshot = self._store.snapshot()
        stored_paths = {
            str(path): self._store.upload_path(Path(path)) or stored_path(Path(path), snapshot.root) for path in paths
        }
        ids_of_paths = snapshot.ids_of_paths(list(stored_paths.values()))
        rows = {image_id: snapshot.find(image_id) for image_id in ids}
        stored_ids = [image_id if row is None else snapshot.ids[row] for image_id, row in rows.items()]
        change = self._store.commit(remove=[*stored_ids, *chain.from_iterable(ids_of_paths.values())])
        self._refresh()
        absent = (path for path, stored in stored_paths.items() if stored not in ids_of_paths)
        return replace_fields(change, absent=(*change.absent, *absent))

    @extra_errors()
    def add_uploads(self, files: Sequence[tuple[str, BinaryIO]], max_pixels: int) -> Change:
        """Store open files in the collection's own folder, and add them. `files` are pairs of name and open file.

        The name, which the sender chose, becomes the picture's title. Files that are not pictures of at most
        `max_pixels` are skipped. Raises what `add` raises; then nothing is stored.
        """
        from voken.collection import uploads

        accepted, skipped = uploads.check(files, max_pixels)
        if not accepted:
            return Change(self.version, skipped=tuple(skipped))
        with uploads.storing(self._store, accepted) as titles:
            ids = [path.relative_to(self._store.folder).as_posix() for path in titles]
            snapshot = self._store.snapshot()
            fields = [
                {**_stored_fields(snapshot, snapshot.find(image_id)), "title": titles[path]}
                for path, image_id in zip(titles, ids, strict=True)
            ]
            change = self.add(list(titles), ids=ids, metadata=fields)
        skipped += [Skipped(titles[Path(file.path)], file.reason) for file in change.skipped]
        return replace_fields(change, skipped=tuple(skipped))

    def delete(self, image_id: str) -> Change:
        """Remove a picture, and delete its file if it was uploaded. Raises `DataError` if there is no such picture."""
        from voken.collection import uploads

        snapshot = self._store.snapshot(self._current())
        row = _row_of(snapshot, image_id)
        with uploads.lock(self.folder) if snapshot.is_upload(row) else nullcontext():
            change = self.remove([image_id])
            after = self._store.snapshot(snapshot)
            # a file that was added under two ids must stay for the other
            if snapshot.is_upload(row) and change.removed and not after.ids_of_paths([snapshot.stored_paths[row]]):
                uploads.delete([snapshot.path(row)])
        if not change.removed:
            raise DataError(f"{image_id}: no picture of the collection has that id. A search shows the ids (--json).")
        return change

    def stored_version(self) -> int:
        """The version on disk. Raises `VokenError` if the collection can no longer be read."""
        return self._store.snapshot(self._current()).version

    def compact(self) -> bool:
        """Write the collection again as one piece, while searches continue. Returns False if nothing had changed."""
        changed = self._store.compact()
        self._refresh()
        return changed

    def watch_batches(self, watcher: Callable[[int], None]) -> None:
        """Call `watcher` with the size of every batch of queries, in the thread that answers the batch."""
        self._opened_queue().watch_batches(watcher)

    def close(self) -> None:
        """Answer the queries that are waiting, and accept no more."""
        if self._queue is not None:
            self._queue.close()

    def _current(self) -> Snapshot:
        if self._queue is not None:
            return self._opened_queue().searcher.collection
        self._snapshot = self._store.snapshot(self._snapshot)
        return self._snapshot

    def _refresh(self) -> None:
        if self._queue is not None:
            self._queue.searcher.refresh()

    def _filters(self, texts: Sequence[str]) -> Sequence[Any]:
        return parse_all(texts, hides_location=self._strip_location) if texts else ()

    def _metadata(self, snapshot: Snapshot, row: int | None) -> dict[str, Any]:
        fields = _stored_fields(snapshot, row)
        return without_location(fields) if self._strip_location else fields

    def _listed(self, snapshot: Snapshot, rows: np.ndarray) -> list[ListedPicture]:
        facts = None if snapshot.facts is None or not len(rows) else snapshot.facts[rows]
        pictures = []
        for place, (row, seconds) in enumerate(zip(rows.tolist(), taken_seconds(snapshot, rows).tolist(), strict=True)):
            path = snapshot.path(row)
            pictures.append(
                ListedPicture(
                    snapshot.ids[row],
                    path,
                    str(np.datetime64(seconds, "s")),
                    facts is not None and int(facts[place]["taken"]) != NO_DATE,
                    folder_of(snapshot.stored_paths[row]),
                    "" if facts is None else bytes(facts[place]["hash"]).hex(),
                    self._metadata(snapshot, row),
                    _folder_of(snapshot, row, path),
                )
            )
        return pictures

    def _thumbnail(self, image_id: str) -> bytes | None:
        """The picture as a small JPEG that holds nothing but pixels; None if it cannot be read, or without Pillow."""
        try:
            with self.picture(image_id).open() as file:
                image = file.image()
        except (VokenError, OSError):
            return None
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.info.clear()
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=80)
        return jpeg.getvalue()

    def _threshold(self, threshold: float | None, precision: float | None) -> float | None:
        return threshold if precision is None else self.searcher.threshold(precision)

    def _model_changed(self) -> bool:
        """Whether the collection's own model was fitted again since it was loaded to encode pictures."""
        if self._search_model is not None or self._model_folder is not None or self._picture_model is None:
            return False
        return self._store.snapshot(self._snapshot).model_fingerprint != self._picture_model.fingerprint

    def _encoding_model(self) -> PictureModel:
        if self._search_model is None and find_spec("PIL") is None:
            raise _missing_pillow(self._model_folder or self._store.snapshot().find_model())
        from voken.collection.indexing import SavedModel

        with self._encoding:
            if self._picture_model is None or self._model_changed():
                if self._search_model is not None:
                    if not hasattr(self._search_model, "encoder"):
                        raise DataError(
                            "This model has no encoder for pictures. Open the collection with its folder instead."
                        )
                    self._picture_model = self._search_model  # type: ignore[assignment] # has all of a PictureModel
                else:
                    folder = self._model_folder or self._store.snapshot().find_model()
                    self._picture_model = SavedModel(
                        folder, self._load_options["device"], self._load_options["threads"]
                    )
            return self._picture_model  # type: ignore[return-value] # it was assigned above


def info(path: str | Path) -> CollectionInfo | ModelInfo:
    """What a saved collection or model is. Raises `ArtifactError` if `path` holds neither."""
    folder = find_collection(Path(path))
    _check_collection(folder, "collection or model")
    if artifact.kind_of(folder) == COLLECTION:
        return Collection.open(folder, load=False).info()
    manifest = artifact.check(folder, kind=compiled.KIND, version=compiled.VERSION, checksums=False)
    config = artifact.read_json(folder / "config.json")
    sizes: dict[str, int] = {}
    for name, entry in manifest["files"].items():
        part = name.partition("/")[0] if "/" in name else "settings"
        sizes[part] = sizes.get(part, 0) + entry["bytes"]
    try:
        family, search = config["run"]["generator"]["family"], config["search"]
        precision = search.get("precision", "float32")
        warnings = tuple(map(str, config["validation"].get("tokenizer", {}).get("warnings", [])))
    except (AttributeError, KeyError, TypeError) as error:
        raise CorruptArtifactError(
            f"{folder / 'config.json'}: does not describe a model ({error}). Restore it from a copy."
        ) from error
    return ModelInfo(
        family=str(family),
        fingerprint=artifact.contents_digest(folder, without=compiled.FOLDER),
        engine=precision if compiled.is_compiled(folder) else None,
        search=search,
        bytes=sizes,
        warnings=warnings,
    )


@extra_errors()
def fit(
    data: str | Path | Dataset,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    images: str | Path | None = None,
    cache: str | Path | VectorCache | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress: Progress = no_progress,
) -> Model:
    """Train a model on captioned pictures and save it in `out`.

    `config` is `voken.config.preset("default")` if it is None. `voken.training.fit.fit` describes what is trained, how
    an interrupted run continues, and the errors. The other arguments are those of `Collection.index`.
    """
    from voken.config import preset
    from voken.training import fit as training

    check_device(device)
    dataset = _read_pictures(data, None, images)
    dataset = replace_fields(dataset, skipped=(*dataset.skipped, *dataset.unused_values))
    use_threads(threads)
    config = preset("default") if config is None else config
    return training.fit(dataset, Path(out), config, cache=_cache(cache), device=device, progress=progress)


@extra_errors()
def compile_model(path: str | Path, precision: str = "float32") -> None:
    """Create a model's engine again. The engine searches without torch.

    `precision` is "float32", the weights as trained, or "int8", which is smaller and faster. The fingerprint does not
    change, so collections stay valid. Raises `ConfigError` for another precision.
    """
    if precision not in ("float32", "int8"):
        raise ConfigError(f"precision: {precision!r} is not float32 or int8. Use one of them.")
    from voken.model.model import Model

    model = Model.load(Path(path))
    search = replace_fields(model.search, precision=precision)  # type: ignore[arg-type] # checked above
    replace_fields(model, search=search).save(Path(path), replace=True)


@extra_errors()
def auto_encoder(progress: Progress = no_progress) -> tuple[str, str]:
    """The encoder that "auto" stands for, which is fetched now, and why it is the built-in one; "" if it is not."""
    from voken.encoders.checkpoints import auto_encoder

    choice = auto_encoder(progress)
    return choice.name, choice.reason


def is_collection(path: str | Path) -> bool:
    """Whether something is saved in the folder `path`."""
    return artifact.is_artifact(Path(path))


def encoder_question() -> str:
    """What to ask a user who named no encoder: whether a small CLIP may be downloaded.

    It is "" if the user answered before (see `answered_encoder`), or if there is nothing to ask: without the extra
    `train`, with CLIP in the hub's cache, or while the hub does not answer.
    """
    from voken.encoders import checkpoints

    if checkpoints.answer() or find_spec("transformers") is None or find_spec("huggingface_hub") is None:
        return ""
    if checkpoints.cached(checkpoints.SMALL_CLIP) is not None or checkpoints.silence(checkpoints.SMALL_CLIP):
        return ""
    return (
        f"CLIP understands more than the built-in encoder. Download {checkpoints.SMALL_CLIP} "
        f"({checkpoints.SMALL_CLIP_SIZE}, once)?"
    )


def answer_encoder_question(yes: bool) -> None:
    """Remember the answer, for this collection and all later ones."""
    from voken.encoders import checkpoints

    checkpoints.remember("auto" if yes else "photos")


def answered_encoder() -> str:
    """The encoder of a new collection if the user names none: "auto" if the answer was yes, else "photos"."""
    from voken.encoders import checkpoints

    return checkpoints.answer() or "photos"


@extra_errors()
def pull(name: str, out: str | Path, *, revision: str | None = None) -> None:
    """Fetch a model from the Hugging Face hub into the folder `out`; see `voken.model.sharing.pull`."""
    from voken.model import sharing

    sharing.pull(name, Path(out), revision=revision)


@extra_errors()
def push(path: str | Path, name: str, *, licence: str = "", data: str = "", private: bool = False) -> str:
    """Send a saved model to the Hugging Face hub, with a card; see `voken.model.sharing.push`. Returns its address."""
    from voken.model import sharing

    return sharing.push(Path(path), name, licence=licence, data=data, private=private)


@extra_errors()
def model_card(path: str | Path, *, licence: str = "", data: str = "") -> str:
    """The card of a saved model, in Markdown: its settings, data, figures and limits."""
    from voken.model import sharing

    artifact.check(Path(path), kind=compiled.KIND, version=compiled.VERSION, checksums=False)
    return sharing.model_card(Path(path), licence=licence, data=data)


@extra_errors()
def tokenizer_report(
    model: str | Path,
    data: str | Path | Dataset,
    *,
    split: str | None = None,
    images: str | Path | None = None,
    cache: str | Path | VectorCache | None = None,
    device: str = "cpu",
    threads: int = 0,
    progress: Progress = no_progress,
) -> tuple[TokenizerReport, list[Skipped]]:
    """A report on how well a model's tokenizer suits some pictures, and the pictures that could not be used.

    The arguments are those of `Collection.index`. Raises `EmptyDataError` if no picture can be used.
    """
    from voken.encoders.cache import picture_vectors
    from voken.image_tokenizer.train import tokenizer_report
    from voken.model.model import PictureSide
    from voken.training.sides import side_of

    check_device(device)
    dataset = _read_pictures(data, split, images)
    use_threads(threads)
    picture_side = PictureSide.load(Path(model), device=device)
    encoded = picture_vectors(
        picture_side.encoder, [image.path for image in dataset.images], cache=_cache(cache), progress=progress
    )
    if not len(encoded.rows):
        raise EmptyDataError(f"{dataset.root}: none of the {len(dataset)} pictures can be read. Give others.")
    images_used = [dataset.images[row] for row in encoded.rows]
    side = side_of(images_used, encoded.vectors, picture_side.encoder.encode_texts)
    report = tokenizer_report(picture_side.tokenizer, side.images, side.texts, side.pairs[:, ::-1].copy())
    return report, encoded.skipped


@extra_errors("data")
def draw_dataset(
    name: str,
    folder: str | Path,
    *,
    seed: int = 0,
    size: int | None = None,
    demo: bool = False,
    every_licence: bool = False,
    progress: Progress = no_progress,
) -> Dataset:
    """Draw a data set of captioned pictures: "emoji", "icons" (tagged) or "icons-all" (for scale).

    `seed` draws the split. `size` is the side in pixels (by default 128 for emoji, 64 for icons). `demo` uses two of
    the nine vendors of emoji. `every_licence` adds to icons-all the icons that may not be redistributed. Raises
    `ConfigError` for another name and for an option that the data set does not have, `DataError` if npm, which fetches
    the drawings, fails.
    """
    from voken.data.sources import emoji, icons

    folder = Path(folder)
    if name not in ("emoji", "icons", "icons-all"):
        raise ConfigError(f"{name!r}: there is no such data set. Choose emoji, icons or icons-all.")
    if demo and name != "emoji":
        raise ConfigError(f"--demo: {name} has no smaller selection. Leave it out, or draw emoji.")
    if every_licence and name != "icons-all":
        raise ConfigError("--every-licence: only icons-all has this option. Leave it out, or draw icons-all.")
    if name == "emoji":
        vendors = emoji.DEMO_VENDORS if demo else tuple(emoji.VENDORS)
        return emoji.build(folder, seed=seed, size=size or 128, vendors=vendors, progress=progress)
    if name == "icons":
        return icons.build(folder, seed=seed, size=size or 64, progress=progress)
    return icons.build_all(folder, seed=seed, size=size or 64, every_licence=every_licence, progress=progress)


@extra_errors()
def unpack_dataset(
    source: str | Path,
    folder: str | Path,
    *,
    picture: str | None = None,
    caption: str | None = None,
    config: str | None = None,
    limit: int | None = None,
    progress: Progress = no_progress,
) -> Dataset:
    """Write a data set whose pictures are in archives, in Parquet files or on the Hugging Face hub as a folder.

    See `voken.data.unpacked.unpack` for the arguments and the errors.
    """
    from voken.data.unpacked import unpack

    return unpack(source, Path(folder), picture=picture, caption=caption, config=config, limit=limit, progress=progress)


def _missing_pillow(model: Path) -> MissingExtraError:
    """The error that names the smallest extra with which a model reads pictures."""
    return MissingExtraError("PIL, which reads pictures,", "pictures" if compiled.encodes_pictures(model) else "train")


def _check_collection(folder: Path, kind: str = "collection") -> None:
    """Raise `ArtifactError` if nothing is saved in `folder`, and say how a collection is made."""
    if artifact.is_artifact(folder) or folder.is_file():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no saved {kind} there. Make a collection: voken index PICTURES")
    from mimetypes import guess_type

    files = islice((name for _, _, names in os.walk(folder) for name in names), _FILES_EXAMINED)
    if any((guess_type(name)[0] or "").startswith("image/") for name in files):
        quoted = shlex.quote(str(folder))
        raise ArtifactError(
            f"{folder}: a folder of pictures, and no saved {kind} yet. Index it first: voken index {quoted}"
        )
    raise ArtifactError(
        f"{folder}: no saved {kind} there (it has no {artifact.MANIFEST}). Name the folder that `voken index` made."
    )


def use_threads(threads: int) -> None:
    """Let torch use this many threads; 0 leaves its default."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def _is_news(report: IndexReport | VokenError, last: IndexReport | VokenError) -> bool:
    if isinstance(report, VokenError) or isinstance(last, VokenError):
        return str(report) != str(last)
    return report.changes > 0 or (report.skipped, report.missing) != (last.skipped, last.missing)


def _index_options(
    remembered: IndexOptions, split: str | None, exclude: Sequence[str] | None, max_pixels: int | None
) -> IndexOptions:
    if max_pixels is not None and max_pixels < 1:
        raise ConfigError(f"max_pixels: {max_pixels} is not a number of pixels. Give 1 or more.")
    return IndexOptions(
        split=remembered.split if split is None else "" if split == "all" else split,
        exclude=remembered.exclude if exclude is None else tuple(pattern for pattern in exclude if pattern),
        max_pixels=remembered.max_pixels if max_pixels is None else max_pixels,
        described=remembered.described,
    )


def _read_pictures(
    pictures: str | Path | Dataset | Iterable[Path],
    split: str | None,
    images: str | Path | None,
    exclude: Sequence[str] = (),
) -> Dataset:
    from voken.data.captions import Dataset, read_dataset

    if isinstance(pictures, str | Path):
        dataset = read_dataset(Path(pictures), None if images is None else Path(images), exclude)
    elif isinstance(pictures, Dataset):
        dataset = pictures
    else:
        from voken.collection.indexing import dataset_of

        dataset = dataset_of(pictures)
    return dataset if split is None or split == "all" else dataset.split(split)


def _cache(cache: str | Path | VectorCache | None) -> VectorCache | None:
    if not isinstance(cache, str | Path):
        return cache
    from voken.encoders.cache import VectorCache

    return VectorCache(Path(cache))


def _folder_of(snapshot: Snapshot, row: int, path: Path) -> Path:
    """The folder that a picture's file must lie in."""
    stored = snapshot.stored_paths[row]
    if stored.startswith(UPLOAD_PREFIX) and snapshot.folder is not None:
        return snapshot.folder / PICTURES
    return path.parent if Path(stored).is_absolute() else snapshot.root


def _stored_fields(snapshot: Snapshot, row: int | None) -> dict[str, Any]:
    return {} if row is None else metadata_fields(snapshot.metadata(row))


def _row_of(snapshot: Snapshot, image_id: str) -> int:
    row = snapshot.find(image_id)
    if row is None:
        raise DataError(f"{image_id}: no picture of the collection has that id. A search shows the ids (--json).")
    return row
