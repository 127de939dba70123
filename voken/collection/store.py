"""A collection: pictures made ready to be searched, as a folder that is complete or absent.

    config.json          counts, the model it was made with and where it lies, what was skipped
    ids.* · paths.*      a text each picture (see `text_column`); paths are relative to the pictures' folder. No ids
                         where they are 0, 1, 2 …, no paths where they are the ids
    trie/                the voken sequences and who has them (see `voken.decoding.trie`)
    vectors.npy          float16 (pictures, dim), only where a rerank by stored vectors is wanted

Everything large is mapped into memory, so that opening reads nothing but `config.json` and file sizes. Opening
imports nothing that reads pictures or runs a model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from voken import artifact
from voken.collection.number_column import NumberColumn
from voken.collection.size import CollectionSize
from voken.collection.text_column import TextColumn
from voken.data.skipped import Skipped
from voken.decoding.trie import VokenTrie
from voken.errors import (
    ArtifactError,
    ArtifactVersionError,
    CorruptArtifactError,
    DataError,
    EmptyDataError,
    StorageError,
)
from voken.progress import Progress, no_progress
from voken.shapes import Float16, Float32, Int32

if TYPE_CHECKING:
    from voken.data.captions import Dataset
    from voken.encoders.cache import VectorCache
    from voken.model import Model

KIND, VERSION = "collection", 2
_REASONS_SHOWN = 3


class Fingerprinted(Protocol):
    """What a collection knows a model by."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; equal for models that give pictures the same vokens."""
        ...


@dataclass(frozen=True, eq=False)
class Collection:
    """Pictures with their voken sequences. Row i of every attribute is picture i.

    Make one with `create` (on disk), `of_vectors` (in memory) or `open`.
    """

    ids: TextColumn | NumberColumn
    root: Path
    """The folder that `names` start from."""
    names: TextColumn | NumberColumn
    """Paths of the pictures, relative to `root`; absolute where a picture lies elsewhere. `ids` itself where equal."""
    trie: VokenTrie
    vectors: Float16[np.ndarray, "pictures dim"] | None
    """What a rerank by stored vectors needs; None where they were not kept."""
    model_fingerprint: str
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """Pictures that could not be used, and why."""
    folder: Path | None = None
    """Where it is saved; None in memory."""
    model_folders: tuple[Path, ...] = ()
    """Where the model it was made with may lie."""

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, row: int) -> Path:
        """Where the file of a picture lies."""
        return self.root / self.names[row]

    @property
    def paths(self) -> list[Path]:
        """Where the files of all pictures lie."""
        return [self.root / name for name in self.names]

    @cached_property
    def vokens(self) -> Int32[np.ndarray, "pictures M"]:
        """The voken sequences of all pictures, unpacked from the trie when first asked for.

        Takes 4 · M bytes a picture in memory; the sequences of a few leaves come cheaper from `trie.leaf_vokens`.
        """
        return self.trie.image_vokens()

    @property
    def size(self) -> CollectionSize:
        """Bytes by part."""
        return CollectionSize(
            pictures=len(self),
            trie_levels=self.trie.nbytes - self.trie.row_nbytes,
            picture_numbers=self.trie.row_nbytes,
            ids=self.ids.nbytes,
            paths=0 if self.names is self.ids else self.names.nbytes,
            vectors=0 if self.vectors is None else self.vectors.nbytes,
        )

    @property
    def bytes_per_picture(self) -> float:
        """Bytes stored for a picture beside its id and path: its part of the trie, its number, and its vector."""
        return self.size.index / len(self)

    @classmethod
    def of_vectors(
        cls, pictures: Dataset, vectors: Float32[np.ndarray, "pictures dim"], model: Model, *, keep_vectors: bool = True
    ) -> Self:
        """A collection in memory, of pictures whose vectors (by the model's encoder) are at hand.

        Raises `EmptyDataError` without pictures, `DataError` where an id stands twice or the rows do not match.
        """
        if not len(pictures):
            raise EmptyDataError("There is no picture to index.")
        if len(vectors) != len(pictures):
            raise DataError(f"{len(pictures)} pictures and {len(vectors)} vectors: there must be one a picture.")
        ids = [image.image_id for image in pictures.images]
        twice = _stands_twice(ids)
        if twice is not None:
            raise DataError(f"Picture id {twice!r} stands twice. Give every picture its own id.")
        names = [_relative(image.path, pictures.root) for image in pictures.images]
        column = _column(ids)
        return cls(
            ids=column,
            root=pictures.root.absolute(),
            names=column if names == ids else _column(names),
            trie=VokenTrie.from_vokens(model.tokenizer.encode(vectors), model.tokenizer.codebook_size),
            vectors=vectors.astype(np.float16) if keep_vectors else None,
            model_fingerprint=model.fingerprint,
        )

    @classmethod
    def create(
        cls,
        folder: Path,
        pictures: Dataset | Iterable[Path],
        model: Model,
        *,
        vectors: bool = True,
        model_folder: Path | None = None,
        cache: VectorCache | None = None,
        replace: bool = False,
        progress: Progress = no_progress,
    ) -> Self:
        """Encode and tokenize `pictures`, save the collection in `folder`, and open it.

        Pictures that cannot be read are left out and stand in `skipped`. Ids of bare paths are the paths relative to
        the folder they share. `vectors` keeps a float16 vector a picture, for the best read-out; `model_folder`
        is remembered, so that a search finds its model. With `cache`, a run that was stopped goes on where it was.

        Raises `EmptyDataError` where no picture can be used, `ArtifactError` where `folder` is taken (`replace`
        allows an older collection), `StorageError` where the disk refuses; then nothing is left behind.
        """
        from voken.data.captions import Dataset
        from voken.encoders.picture_vectors import picture_vectors

        folder = Path(folder)
        if artifact.is_artifact(folder):
            kind = artifact.read_json(folder / artifact.MANIFEST).get("kind")
            if not replace or kind != KIND:
                raise ArtifactError(f"{folder}: a saved {kind} is there already. Remove it or choose another folder.")
        dataset = pictures if isinstance(pictures, Dataset) else _dataset(pictures)
        if not len(dataset):
            raise EmptyDataError(f"{dataset.name}: there is no picture to index.")
        files = [image.path for image in dataset.images]
        encoded = picture_vectors(model.encoder, files, cache=cache, progress=progress)
        skipped = (*dataset.skipped, *encoded.skipped)
        if not len(encoded.kept):
            raise EmptyDataError(_all_skipped(dataset, encoded.skipped))
        kept = Dataset(dataset.name, dataset.root, tuple(dataset.images[row] for row in encoded.kept))
        made = cls.of_vectors(kept, encoded.vectors, model, keep_vectors=vectors)
        dataclasses.replace(made, skipped=skipped).save(folder, model_folder=model_folder, replace=replace)
        return cls.open(folder)

    def save(self, folder: Path, *, model_folder: Path | None = None, replace: bool = False) -> None:
        """Write it as the folder `folder`, whole or not at all; the arguments and errors are those of `create`."""
        folder = Path(folder)
        model = None if model_folder is None else Path(model_folder).absolute()
        with artifact.writing(folder, kind=KIND, version=VERSION, replace=replace) as partial, _full_disk(folder):
            if isinstance(self.ids, TextColumn):
                self.ids.save(partial, "ids")
            if self.names is not self.ids:
                TextColumn.of(self.names).save(partial, "paths")
            if self.vectors is not None:
                np.save(partial / "vectors.npy", self.vectors, allow_pickle=False)
            self.trie.save(partial / "trie")
            artifact.write_json(
                partial / "config.json",
                {
                    "pictures": len(self),
                    "sequences": self.trie.sequences,
                    "levels": self.trie.levels,
                    "codebook_size": self.trie.codebook_size,
                    "ids_are_numbers": isinstance(self.ids, NumberColumn),
                    "paths_are_ids": self.names is self.ids,
                    "with_vectors": self.vectors is not None,
                    "root": str(self.root),
                    "root_relative": os.path.relpath(self.root, folder.absolute()),
                    "model": "" if model is None else str(model),
                    "model_relative": "" if model is None else os.path.relpath(model, folder.absolute()),
                    "model_fingerprint": self.model_fingerprint,
                    "skipped": [asdict(one) for one in self.skipped],
                },
            )

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> Self:
        """Map a saved collection. `verify` reads all of it and compares checksums; otherwise only sizes are.

        Raises `ArtifactError` if there is none, `ArtifactVersionError`, or `CorruptArtifactError`.
        """
        folder = Path(folder)
        manifest = artifact.check(folder, kind=KIND, version=VERSION, checksums=verify)
        if manifest["version"] < VERSION:
            raise ArtifactVersionError(
                f"{folder}: collection format {manifest['version']}, made by an older voken. Index the pictures again."
            )
        config = artifact.read_json(folder / "config.json")
        try:
            count = int(config["pictures"])
            ids = NumberColumn(count) if config["ids_are_numbers"] else TextColumn.load(folder, "ids", count)
            names = ids if config["paths_are_ids"] else TextColumn.load(folder, "paths", count)
            trie = VokenTrie.load(folder / "trie")
            vectors = _map(folder / "vectors.npy") if config["with_vectors"] else None
            if {trie.images, count if vectors is None else len(vectors)} != {count}:
                raise CorruptArtifactError(f"{folder}: its parts are not of one collection. Make the collection again.")
            absolute, relative = Path(config["root"]), folder / config["root_relative"]
            model = config["model"]
            models = (Path(model), folder / config["model_relative"]) if model else ()
            skipped = _skipped(config["skipped"])
            fingerprint = str(config["model_fingerprint"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{folder / 'config.json'}: is not what was saved there ({error!r}). Make the collection again."
            ) from error
        return cls(
            ids=ids,
            # a collection and its pictures may have moved together
            root=absolute if absolute.is_dir() else relative.resolve() if relative.is_dir() else absolute,
            names=names,
            trie=trie,
            vectors=vectors,
            model_fingerprint=fingerprint,
            skipped=skipped,
            folder=folder,
            model_folders=models,
        )

    def check_model(self, model: Fingerprinted) -> None:
        """Raise `ArtifactError` where `model` is not the one that the collection was made with."""
        if model.fingerprint != self.model_fingerprint:
            where = self.folder or "The collection"
            named = f" ({self.model_folders[0]})" if self.model_folders else ""
            raise ArtifactError(
                f"{where}: was made with another model (fingerprint {self.model_fingerprint[:12]}, this model's is "
                f"{model.fingerprint[:12]}). Search with that model{named}, or index the pictures again with this one."
            )

    def find_model(self) -> Path:
        """The folder of the model it was made with. Raises `ArtifactError` where that is no longer there."""
        for folder in self.model_folders:
            if artifact.is_artifact(folder):
                return folder
        where = self.model_folders[0] if self.model_folders else "a model that was not saved"
        raise ArtifactError(
            f"{self.folder}: was made with {where}, which is not there. Name the model's folder (--model)."
        )


def _column(texts: Sequence[str]) -> TextColumn | NumberColumn:
    numbers = NumberColumn(len(texts))
    return numbers if all(map(eq, texts, numbers)) else TextColumn.of(texts)


def _stands_twice(ids: Sequence[str]) -> str | None:
    """An id that is there more than once. Eight bytes an id, however long they are."""
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for name in ids if suspects else ():
        if hash(name) in suspects:
            if name in seen:
                return name
            seen.add(name)
    return None


def _skipped(listed: list[dict[str, str]]) -> tuple[Skipped, ...]:
    return tuple(Skipped(**one) for one in listed)


def _dataset(paths: Iterable[Path]) -> Dataset:
    """Bare paths as a data set without captions; an id is the path from the folder that all share."""
    from voken.data.captions import CaptionedImage, Dataset

    absolute = list(dict.fromkeys(Path(path).absolute() for path in paths))
    if not absolute:
        raise EmptyDataError("There is no picture to index.")
    root = Path(os.path.commonpath([path.parent for path in absolute]))
    images = tuple(CaptionedImage(path.relative_to(root).as_posix(), path) for path in absolute)
    return Dataset(root.name or str(root), root, images)


def _relative(path: Path, root: Path) -> str:
    absolute = path.absolute()
    try:
        return absolute.relative_to(root.absolute()).as_posix()
    except ValueError:
        return absolute.as_posix()


def _all_skipped(dataset: Dataset, skipped: Sequence[Skipped]) -> str:
    shown = "; ".join(f"{one.path}: {one.reason}" for one in skipped[:_REASONS_SHOWN])
    more = f"; and {len(skipped) - _REASONS_SHOWN} more" if len(skipped) > _REASONS_SHOWN else ""
    count = f"None of the {len(skipped)} pictures" if len(skipped) > 1 else "The only picture"
    return f"{dataset.root}: {count} could be used ({shown}{more}). Give pictures that a viewer can open."


def _map(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        return array
    except (OSError, ValueError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the collection again.") from error


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """numpy says that a disk is full by an OSError without a number, which `storage_errors` cannot know."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise StorageError(
                f"{folder}: the disk took only a part ({error}). Free some space and run the same command again; "
                "what was saved before is untouched."
            ) from error
        raise
