"""A collection as a program uses it: open, search, add, remove.

    from voken import Collection

    photos = Collection.open("photos.voken")
    for hit in photos.search("two dogs on a beach", k=5, where=["date>=2024"]):
        print(hit.path, hit.confidence)
    photos.add(["new.jpg"])
    photos.remove(["trips/old.jpg"])

Any number of threads may search one `Collection` while others add and remove; so may other processes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np

from voken.collection.filters import Filter, fields_of, parse_all
from voken.collection.store import Store
from voken.data.skipped import Skipped
from voken.errors import DataError, MissingExtraError
from voken.progress import Progress, no_progress
from voken.search import explain
from voken.search.hit import Hit
from voken.search.searcher import Searcher, SearchModel, load_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image

    from voken.data.captions import Dataset
    from voken.encoders.cache import VectorCache
    from voken.model.model import Model

__all__ = ["Change", "Collection", "Hit", "Picture", "Why"]

Why = explain.Why


@dataclass(frozen=True)
class Picture:
    """One picture of a collection."""

    image_id: str
    path: Path
    vokens: tuple[int, ...]
    metadata: dict[str, Any]
    """What its line of metadata.jsonl said, without the captions."""

    def media_type(self) -> str | None:
        """The kind of its file, by content; None if that is no picture. Raises `OSError` if it cannot be read."""
        from voken.data.images import picture_format

        with open(self.path, "rb") as file:
            kind = picture_format(file)
        return kind.media_type if kind else None

    def image(self) -> Image:
        """The pixels, in mode RGB and upright. Raises `PictureError` if they cannot be read."""
        from voken.data.images import open_image

        return open_image(self.path)


@dataclass(frozen=True)
class Change:
    """What adding or removing did, by id."""

    version: int
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    """Were there and were replaced."""
    removed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    """Could not be used, and why."""


class Collection:
    """Pictures that can be searched by words, by pictures, and by what is known of them. Make one with `open`."""

    def __init__(self, store: Store, searcher: Searcher, model_folder: Path | None, device: str = "cpu") -> None:
        self._store = store
        self._searcher = searcher
        self._model_folder = model_folder
        self._device = device
        self._encoding = threading.Lock()
        self._model: Model | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: Path | SearchModel | None = None,
        device: str = "cpu",
        threads: int = 0,
        max_queue: int | None = None,
    ) -> Self:
        """Open a saved collection, and the model it was made with where none is given.

        `threads` 0: as many as there are cores. `max_queue` is how many queries may wait while others are answered;
        None: no bound. Raises `ArtifactError` where there is no collection, its model is no longer where it was, or
        `model` is another.
        """
        store = Store.open(Path(path))
        snapshot = store.snapshot()
        folder = snapshot.find_model() if model is None else model if isinstance(model, Path) else None
        loaded: SearchModel
        if folder is not None:
            loaded = load_model(folder, device=device, threads=threads)
        else:
            assert model is not None
            assert not isinstance(model, Path)
            loaded = model
        return cls(store, Searcher(loaded, snapshot, store=store, max_queue=max_queue), folder, device)

    @classmethod
    def create(
        cls,
        path: str | Path,
        pictures: Dataset | Iterable[Path],
        model: Path,
        *,
        vectors: bool = True,
        cache: VectorCache | None = None,
        replace: bool = False,
        device: str = "cpu",
        progress: Progress = no_progress,
    ) -> Self:
        """Index `pictures` with the model in a folder, and open the collection.

        See `voken.collection.indexing.create_collection` for the arguments and errors.
        """
        from voken.collection.indexing import create_collection

        loaded = _torch_model(model, device)
        create_collection(
            Path(path),
            pictures,
            loaded,
            vectors=vectors,
            model_folder=model,
            cache=cache,
            replace=replace,
            progress=progress,
        )
        return cls.open(path, model=model, device=device)

    def __len__(self) -> int:
        return len(self._searcher.collection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """Where it is saved."""
        return self._store.folder

    @property
    def store(self) -> Store:
        """What keeps it on disk."""
        return self._store

    @property
    def searcher(self) -> Searcher:
        """What searches it."""
        return self._searcher

    @property
    def version(self) -> int:
        """Of the pictures that a search which begins now would search; it grows with every change."""
        return self._searcher.collection.version

    @property
    def readout(self) -> str:
        """How answers are ranked: "generate", "voken" or "vector"."""
        return self._searcher.search_config.readout

    @property
    def fields(self) -> list[str]:
        """What filters may name: `date`, `folder`, and the fields of the pictures' metadata."""
        return fields_of(self._searcher.collection)

    @property
    def can_encode(self) -> bool:
        """Whether pictures can be read here: torch is installed and the model lies in a folder."""
        model = self._searcher.model if self._model_folder is None else None
        return find_spec("torch") is not None and (model is None or hasattr(model, "encoder"))

    @property
    def calibrated(self) -> bool:
        """Whether hits have a confidence."""
        return self._searcher.calibrated

    @property
    def wants_compaction(self) -> bool:
        """Whether so much has changed that `compact` would make opening faster."""
        return self._store.wants_compaction

    def search(
        self, query: str, k: int = 10, *, where: Sequence[str] = (), threshold: float | None = None
    ) -> list[Hit]:
        """At most `k` pictures for a query in words, best first.

        `where` are filters that must all hold (see `voken.collection.filters`). With `threshold` only hits whose
        confidence is at least that are answered: an empty list says that nothing matches. Raises `ConfigError` for an
        empty query, an impossible `k`, a filter that is none, and a threshold where the model is not calibrated.
        """
        return self.search_many([query], k, where=where, threshold=threshold)[0]

    def search_many(
        self, queries: Sequence[str], k: int = 10, *, where: Sequence[str] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """The same for several queries, which are read together."""
        return self._searcher.search(queries, k, parse_all(where), threshold)

    async def asearch(
        self, queries: Sequence[str], k: int = 10, *, where: Sequence[str] = (), threshold: float | None = None
    ) -> list[list[Hit]]:
        """`search_many` without blocking the event loop; what is asked at once is searched together.

        Raises `BusyError` where the queue is full.
        """
        return await self._searcher.asearch(queries, k, parse_all(where), threshold)

    def similar(self, image_id: str, k: int = 10, *, where: Sequence[str] = ()) -> list[Hit]:
        """At most `k` pictures like one of the collection. Raises `DataError` where there is no such picture."""
        return self._searcher.similar(image_id, k, parse_all(where))

    def search_picture(self, picture: str | Path | BinaryIO, k: int = 10, *, where: Sequence[str] = ()) -> list[Hit]:
        """At most `k` pictures like a file.

        Raises `PictureError` where it cannot be read, `MissingExtraError` without torch.
        """
        filters = parse_all(where)
        model = self._encoder()
        with self._encoding:
            return like_file(self._searcher, model, Path(picture) if isinstance(picture, str) else picture, k, filters)

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Why]:
        """For each hit of a search for `query`: what the generator wrote on the way to it."""
        searcher = self._searcher
        beams = max(searcher.search_config.beams, len(hits))
        return explain.explain(searcher.model, searcher.collection, query, hits, beams)

    def picture(self, image_id: str) -> Picture:
        """One picture by id. Raises `DataError` where there is none."""
        snapshot = self._searcher.collection
        row = snapshot.find(image_id)
        if row is None:
            raise DataError(f"{image_id}: no picture of the collection has that id.")
        metadata = snapshot.metadata(row)
        return Picture(
            image_id,
            snapshot.path(row),
            tuple(snapshot.sequence(row).tolist()),
            json.loads(metadata) if metadata else {},
        )

    def metadata(self, image_id: str) -> dict[str, Any]:
        """What is known of a picture; nothing where there is none."""
        snapshot = self._searcher.collection
        row = snapshot.find(image_id)
        said = "" if row is None else snapshot.metadata(row)
        return json.loads(said) if said else {}

    def add(
        self,
        pictures: Sequence[str | Path],
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
        progress: Progress = no_progress,
    ) -> Change:
        """Add files in one transaction; one whose id is there is replaced. Those that cannot be used are told.

        An id is the path relative to the collection's folder of pictures, or the whole path where it lies elsewhere.
        Raises `StorageError` where the disk refuses, `MissingExtraError` without torch.
        """
        from voken.collection.base import metadata_text
        from voken.collection.indexing import add_pictures

        told = None if metadata is None else [metadata_text(one) for one in metadata]
        model = self._encoder()
        with self._encoding:
            done, skipped = add_pictures(
                self._store, [Path(path) for path in pictures], model, ids=ids, metadata=told, progress=progress
            )
        self._searcher.refresh()
        return Change(done.version, done.added, done.updated, done.removed, skipped)

    def remove(self, ids: Sequence[str] = (), *, paths: Sequence[str | Path] = ()) -> Change:
        """Remove pictures in one transaction; their files stay. Those that are not there are passed over."""
        from voken.collection.snapshot import stored_path

        snapshot = self._store.snapshot()
        named = [stored_path(Path(path), snapshot.root) for path in paths]
        done = self._store.commit(remove=[*ids, *snapshot.ids_of_paths(named).values()])
        self._searcher.refresh()
        return Change(done.version, removed=done.removed)

    def add_uploads(self, files: Sequence[tuple[str, BinaryIO]], max_pixels: int) -> Change:
        """Store open files, each with its sender's name for it, in the collection's own folder, and add them.

        Files that are no pictures of at most `max_pixels` are skipped. Raises as `add`; then nothing is stored.
        """
        from voken.collection import uploads

        accepted, skipped = uploads.check(files, max_pixels)
        if not accepted:
            return Change(self.version, skipped=tuple(skipped))
        with uploads.stored(self._store, accepted) as titles:
            change = self.add(list(titles), metadata=[{"title": title} for title in titles.values()])
        skipped += [Skipped(titles[Path(file.path)], file.reason) for file in change.skipped]
        return replace(change, skipped=tuple(skipped))

    def delete(self, image_id: str) -> Change:
        """Remove a picture, and its file if that was uploaded. Raises `DataError` if there is no such picture."""
        from voken.collection import uploads

        path, folder = self.picture(image_id).path, self.folder
        uploaded = uploads.is_upload(path, folder)
        with uploads.locked(folder) if uploaded else nullcontext():
            change = self.remove([image_id])
            if uploaded and change.removed:
                uploads.delete([path])
        if not change.removed:
            raise DataError(f"{image_id}: no picture of the collection has that id.")
        return change

    def stored_version(self) -> int:
        """The version on the disk now. Raises `VokenError` if the collection cannot be read any more."""
        return self._store.snapshot(self._searcher.collection).version

    def compact(self) -> bool:
        """Write everything out in one piece, while searches go on; whether there was anything to write."""
        done = self._store.compact()
        self._searcher.refresh()
        return done

    def watch_batches(self, watcher: Callable[[int], None]) -> None:
        """Have `watcher` told how many queries go through the model together, by the thread that runs them."""
        self._searcher.watch_batches(watcher)

    def close(self) -> None:
        """Answer what was asked and take nothing more."""
        self._searcher.close()

    def _encoder(self) -> Model:
        with self._encoding:
            if self._model is None:
                if self._model_folder is None:
                    from voken.model.model import Model

                    model = self._searcher.model
                    if not isinstance(model, Model) and not hasattr(model, "encoder"):
                        raise DataError("This model cannot read pictures: open the collection with its folder instead.")
                    self._model = model  # type: ignore[assignment]
                else:
                    self._model = _torch_model(self._model_folder, self._device)
            return self._model  # type: ignore[return-value]


def like_file(
    searcher: Searcher, model: Model, picture: Path | BinaryIO, k: int, filters: Sequence[Filter]
) -> list[Hit]:
    """At most `k` pictures like a file, which `model` reads. Raises `PictureError` where it cannot be read."""
    from voken.data.images import open_image

    vector = np.asarray(model.encoder.encode_images([open_image(picture)]), dtype=np.float32)
    return searcher.like_vector(model.tokenizer.code_vectors(vector)[0], vector[0], k, filters)


def _torch_model(folder: Path, device: str) -> Model:
    if find_spec("torch") is None:
        raise MissingExtraError("torch, which reads pictures,", "train")
    from voken.model.model import Model

    return Model.load(folder, device=device)
