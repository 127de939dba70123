"""One version of a collection: pictures with their voken sequences, as a search sees them. Immutable.

What was written out in one piece (`voken.collection.base`) is mapped; what was added since is in memory. A picture is
a row number, which stays its own until the collection is compacted; rows of removed pictures are holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from voken import artifact
from voken.collection.base import FACTS, Base, Lookup, column
from voken.collection.grown import GrownRows, GrownTexts
from voken.collection.size import CollectionSize
from voken.data.skipped import Skipped
from voken.decoding.merged_trie import merged_trie, places_of
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, DataError, EmptyDataError
from voken.shapes import Float16, Float32, Int32, Int64, Shaped

if TYPE_CHECKING:
    from voken.data.captions import Dataset
    from voken.model.model import Model

OWN = "\0"
"""Begins the name of a picture that lies in the collection's own folder: no path can hold it."""


class Fingerprinted(Protocol):
    """What a collection knows a model by."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; equal for models that give pictures the same vokens."""
        ...


@dataclass(frozen=True, eq=False)
class Added:
    """Pictures that came after the base was written, in the order of their rows."""

    rows: Int64[np.ndarray, " added"]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    vokens: Int32[np.ndarray, "added M"]
    vectors: Float16[np.ndarray, "added dim"] | None
    facts: Shaped[np.ndarray, " added"]
    metadata: tuple[str, ...]
    """JSON objects; empty where there is nothing to say."""

    @classmethod
    def none(cls, levels: int) -> Self:
        """No picture."""
        nothing = np.zeros(0, np.int64)
        return cls(nothing, (), (), np.zeros((0, levels), np.int32), None, np.zeros(0, FACTS), ())

    @cached_property
    def row_of(self) -> dict[str, int]:
        """By id."""
        return dict(zip(self.ids, self.rows.tolist(), strict=True))


@dataclass(frozen=True)
class Origin:
    """Where pictures and model of a collection lie."""

    root: Path
    """The folder that `names` start from."""
    model_fingerprint: str
    folder: Path | None = None
    """Where the collection is saved; None in memory."""
    model_folders: tuple[Path, ...] = ()
    """Where the model it was made with may lie."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Make one with `of_vectors` (in memory), or by `voken.collection.store.Store`."""

    base: Base
    origin: Origin
    version: int = 0
    """Grows with every change."""
    uid: str = ""
    """Of the collection: one that was put in its place has another."""
    removed: Int64[np.ndarray, " removed"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of the base, ascending."""
    removed_places: Int64[np.ndarray, " removed"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Where these stand in the base's trie."""
    more: Added | None = None
    """What was added since the base was written."""
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """Pictures that could not be used, and why."""

    @cached_property
    def added(self) -> Added:
        """What was added since the base was written, maybe nothing."""
        return self.more or Added.none(self.base.trie.levels)

    @property
    def key(self) -> tuple[str, int]:
        """Equal only for one version of one collection."""
        return self.uid, self.version

    def __len__(self) -> int:
        return len(self.base) - len(self.removed) + len(self.added.rows)

    @property
    def is_changed(self) -> bool:
        """Whether there is more to it than the base."""
        return bool(len(self.removed) or len(self.added.rows))

    @cached_property
    def rows(self) -> Int64[np.ndarray, " pictures"]:
        """Row numbers of the pictures, ascending."""
        kept = np.delete(np.arange(len(self.base)), self.removed)
        return np.concatenate([kept, self.added.rows])

    @cached_property
    def ids(self) -> Sequence[str]:
        """By row."""
        added = self.added
        more = dict(zip(added.rows.tolist(), added.ids, strict=True))
        return GrownTexts(self.base.ids, more, _length(added.ids), self.base.ids.nbytes) if more else self.base.ids

    @cached_property
    def names(self) -> Sequence[str]:
        """Paths by row, relative to the pictures' folder; absolute where a picture lies elsewhere."""
        added = self.added
        more = dict(zip(added.rows.tolist(), added.names, strict=True))
        return (
            GrownTexts(self.base.names, more, _length(added.names), self.base.names.nbytes) if more else self.base.names
        )

    @cached_property
    def trie(self) -> VokenTrie:
        """The voken sequences; its row numbers are these."""
        if not self.is_changed:
            return self.base.trie
        return merged_trie(self.base.trie, np.sort(self.removed_places), self.added.vokens, self.added.rows)

    @cached_property
    def vectors(self) -> Float16[np.ndarray, "pictures dim"] | GrownRows | None:
        """What a rerank by stored vectors needs, by row; None where they were not kept."""
        base, added = self.base.vectors, self.added
        if base is None or added.vectors is None:
            return base
        return GrownRows(base, added.vectors, added.rows)

    @cached_property
    def facts(self) -> Shaped[np.ndarray, " pictures"] | GrownRows | None:
        """Size, time and hash of each file by row; None where nobody looked."""
        base, added = self.base.facts, self.added
        return GrownRows(base, added.facts, added.rows) if base is not None and len(added.rows) else base

    @property
    def root(self) -> Path:
        """The pictures' folder."""
        return self.origin.root

    @property
    def folder(self) -> Path | None:
        """Where the collection is saved; None in memory."""
        return self.origin.folder

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """Where the model it was made with may lie."""
        return self.origin.model_folders

    @property
    def model_fingerprint(self) -> str:
        """Of the model it was made with."""
        return self.origin.model_fingerprint

    def path(self, row: int) -> Path:
        """Where the file of a picture lies."""
        return self.placed(self.names[row])

    def placed(self, name: str) -> Path:
        """Where the file of that name lies."""
        if name.startswith(OWN) and self.folder is not None:
            return self.folder / name[len(OWN) :]
        return self.root / name

    @property
    def paths(self) -> list[Path]:
        """Where the files of all pictures lie, in the order of `rows`."""
        return [self.path(row) for row in self.rows.tolist()]

    def metadata(self, row: int) -> str:
        """The JSON object that was given with a picture; "" for none."""
        if row < len(self.base):
            return "" if self.base.metadata is None else self.base.metadata[row]
        return self.added.metadata[int(self.added.rows.searchsorted(row))]

    def find(self, image_id: str) -> int | None:
        """The row of the picture with that id; None where there is none."""
        row = self.added.row_of.get(image_id)
        if row is not None:
            return row
        row = self.base.row_of(image_id)
        if row is None or row in self._removed:
            return None
        return row

    def ids_of_names(self, names: Sequence[str]) -> list[str]:
        """The ids of the pictures with these names; a name that no picture has gives none."""
        found, others = [], []
        for name in names:
            row = self.find(name)
            if row is not None and self.names[row] == name:
                found.append(name)
            elif self.base.names is not self.base.ids or self.added.ids != self.added.names:
                others.append(name)
        wanted = set(others)
        return found + [self.ids[row] for row in self.rows.tolist() if wanted and self.names[row] in wanted]

    @cached_property
    def _removed(self) -> frozenset[int]:
        return frozenset(self.removed.tolist())

    @cached_property
    def vokens(self) -> Int32[np.ndarray, "pictures M"]:
        """The voken sequences of all pictures in the order of `rows`, unpacked from the trie when first asked for.

        Takes 4 · M bytes a picture in memory; the sequences of a few leaves come cheaper from `trie.leaf_vokens`.
        """
        return self.trie.row_vokens()[1] if self.is_changed else self.trie.image_vokens()

    def sequence(self, row: int) -> Int32[np.ndarray, " M"]:
        """The vokens of one picture. Reads the row numbers of all the base, 40 ms at ten million."""
        if row >= len(self.base):
            found: np.ndarray = self.added.vokens[self.added.rows.searchsorted(row)]
            return found
        trie = self.base.trie
        leaf = trie.row_starts.parents(places_of(trie, np.array([row])))
        sequence: np.ndarray = trie.leaf_vokens(leaf)[0]
        return sequence

    @property
    def size(self) -> CollectionSize:
        """Bytes by part."""
        trie = self.trie
        return CollectionSize(
            pictures=len(self),
            trie_levels=trie.nbytes - trie.row_nbytes,
            picture_numbers=trie.row_nbytes,
            ids=_nbytes(self.ids),
            paths=0 if self.base.names is self.base.ids else _nbytes(self.names),
            vectors=_nbytes(self.vectors),
            files=_nbytes(self.facts),
            metadata=_nbytes(self.base.metadata) + _length(self.added.metadata),
        )

    @property
    def bytes_per_picture(self) -> float:
        """Bytes stored for a picture beside its id and path: its part of the trie, its number, and its vector."""
        return self.size.index / max(1, len(self))

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
        refuse_twice(ids)
        names = [relative_name(image.path, pictures.root) for image in pictures.images]
        made = column(ids)
        base = Base(
            ids=made,
            names=made if names == ids else column(names),
            trie=VokenTrie.from_vokens(model.tokenizer.encode(vectors), model.tokenizer.codebook_size),
            vectors=vectors.astype(np.float16) if keep_vectors else None,
            lookup=Lookup.of(ids),
        )
        return cls(base, Origin(pictures.root.absolute(), model.fingerprint))

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


def relative_name(path: Path, root: Path) -> str:
    """How a picture's path is stored: relative to the pictures' folder where it lies in it."""
    absolute = path.absolute()
    try:
        return absolute.relative_to(root.absolute()).as_posix()
    except ValueError:
        return absolute.as_posix()


def refuse_twice(ids: Sequence[str]) -> None:
    """Raise `DataError` where an id is there more than once. Takes eight bytes an id, however long they are."""
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for name in ids if suspects else ():
        if hash(name) in suspects:
            if name in seen:
                raise DataError(f"Picture id {name!r} stands twice. Give every picture its own id.")
            seen.add(name)


def _length(texts: Sequence[str]) -> int:
    return sum(map(len, texts))


def _nbytes(part: Any) -> int:
    return 0 if part is None else int(part.nbytes)
