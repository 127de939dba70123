"""One version of a collection, as a search sees it: pictures and their voken sequences, which never change.

What the last compaction wrote (`voken.collection.base`) is memory-mapped; what was added since is in memory. A picture
is identified by a row number, which is valid until the next compaction. The numbers of removed pictures are not used
again before that.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from voken import artifact
from voken.collection.base import (
    FACTS,
    AppendedRows,
    AppendedTextColumn,
    Base,
    Lookup,
    NumberColumn,
    TextColumn,
    column,
)
from voken.data.metadata import metadata_fields
from voken.data.paths import absolute_path, relative_path
from voken.data.skipped import Skipped
from voken.decoding.merged_trie import merged_trie, places_of
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, CorruptArtifactError, DataError, EmptyDataError
from voken.shapes import Float16, Float32, Int32, Int64, Shaped

if TYPE_CHECKING:
    from voken.data.captions import Dataset
    from voken.model.model import Model

UPLOAD_PREFIX = "\0"
"""Begins the stored path of an uploaded picture, in the collection's own folder. No file name can hold it."""


@dataclass(frozen=True)
class CollectionSize:
    """Bytes of a collection's arrays, in memory or in its files; file headers are not counted."""

    pictures: int
    trie_levels: int
    """The nodes of every level of the trie, and where their children start."""
    picture_numbers: int
    """The numbers of the pictures of each sequence."""
    ids: int
    """0 if the ids are the row numbers."""
    paths: int
    """0 if the paths are the ids."""
    vectors: int
    """0 if they are not stored."""
    files: int = 0
    """Size, time and hash of each file; they show whether it has changed."""
    metadata: int = 0

    @property
    def index(self) -> int:
        """What a search reads: trie, picture numbers and vectors."""
        return self.trie_levels + self.picture_numbers + self.vectors

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.index + self.ids + self.paths + self.files + self.metadata


class Fingerprinted(Protocol):
    """The part of a model by which a collection recognises it."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; equal for models that give pictures the same vokens."""
        ...


@dataclass(frozen=True, eq=False)
class AddedPictures:
    """The pictures added since the base was written, in the order of their rows."""

    rows: Int64[np.ndarray, " added"]
    ids: tuple[str, ...]
    stored_paths: tuple[str, ...]
    vokens: Int32[np.ndarray, "added M"]
    vectors: Float16[np.ndarray, "added dim"] | None
    facts: Shaped[np.ndarray, " added"]
    metadata: tuple[str, ...]
    """A JSON object per picture; the empty text if it has no metadata."""

    @classmethod
    def empty(cls, levels: int) -> Self:
        """No pictures."""
        return cls(np.zeros(0, np.int64), (), (), np.zeros((0, levels), np.int32), None, np.zeros(0, FACTS), ())

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row numbers by id."""
        return dict(zip(self.ids, self.rows.tolist(), strict=True))


@dataclass(frozen=True)
class Origin:
    """Where the pictures and the model of a collection are."""

    root: Path
    """The folder that stored paths are relative to."""
    model_fingerprint: str
    folder: Path | None = None
    """The folder that the collection is saved in; None for a collection in memory."""
    model_folders: tuple[Path, ...] = ()
    """The folders that may hold its model, the likeliest first."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of a collection. Create one in memory with `of_vectors`, or read one with `Store.snapshot`."""

    base: Base
    origin: Origin
    version: int = 0
    """Grows with every change."""
    uid: str = ""
    """Identifies the collection: one that replaces it in the same folder has another uid."""
    removed: Int64[np.ndarray, " removed"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of the base, ascending."""
    removed_places: Int64[np.ndarray, " removed"] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Their places in the base's trie."""
    additions: AddedPictures | None = None
    """None if there are none."""
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    """Pictures that could not be used, and why."""

    @cached_property
    def added(self) -> AddedPictures:
        """The pictures added since the base was written; may be empty."""
        return self.additions or AddedPictures.empty(self.base.trie.levels)

    @property
    def key(self) -> tuple[str, int]:
        """The uid and the version: equal only for the same version of the same collection."""
        return self.uid, self.version

    def __len__(self) -> int:
        return len(self.base) - len(self.removed) + len(self.added.rows)

    @property
    def is_changed(self) -> bool:
        """Whether pictures were added or removed since the base was written."""
        return bool(len(self.removed) or len(self.added.rows))

    @cached_property
    def rows(self) -> Int64[np.ndarray, " pictures"]:
        """The row numbers of the pictures, ascending."""
        return np.concatenate([np.delete(np.arange(len(self.base)), self.removed), self.added.rows])

    @cached_property
    def ids(self) -> Sequence[str]:
        """Ids by row."""
        return self._by_row(self.base.ids, self.added.ids)

    @cached_property
    def stored_paths(self) -> Sequence[str]:
        """Paths by row, as `stored_path` gives them; those of uploads begin with `UPLOAD_PREFIX`."""
        return self._by_row(self.base.stored_paths, self.added.stored_paths)

    def _by_row(self, base: TextColumn | NumberColumn, added: tuple[str, ...]) -> Sequence[str]:
        return AppendedTextColumn(base, dict(zip(self.added.rows.tolist(), added, strict=True))) if added else base

    @cached_property
    def trie(self) -> VokenTrie:
        """The voken sequences, with the row numbers of the pictures of each."""
        if not self.is_changed:
            return self.base.trie
        try:
            return merged_trie(self.base.trie, np.sort(self.removed_places), self.added.vokens, self.added.rows)
        except (IndexError, ValueError) as error:
            raise self._contradiction(error) from error

    @cached_property
    def vectors(self) -> Float16[np.ndarray, "pictures dim"] | AppendedRows | None:
        """The stored vector of each picture, by row; None if the collection stores none."""
        base, added = self.base.vectors, self.added
        if base is None or added.vectors is None:
            return base
        return AppendedRows(base, added.vectors, added.rows)

    @cached_property
    def facts(self) -> Shaped[np.ndarray, " pictures"] | AppendedRows | None:
        """Size, time and hash of each file, by row; None if the collection does not record its files."""
        base, added = self.base.facts, self.added
        return AppendedRows(base, added.facts, added.rows) if base is not None and len(added.rows) else base

    @property
    def root(self) -> Path:
        """The pictures' folder."""
        return self.origin.root

    @property
    def folder(self) -> Path | None:
        """The folder that the collection is saved in; None for a collection in memory."""
        return self.origin.folder

    @property
    def model_folders(self) -> tuple[Path, ...]:
        """The folders that may hold its model, the likeliest first."""
        return self.origin.model_folders

    @property
    def model_fingerprint(self) -> str:
        """The fingerprint of the model that it was made with."""
        return self.origin.model_fingerprint

    def path(self, row: int) -> Path:
        """The path of a picture's file. Raises `CorruptArtifactError` if an upload is said to lie elsewhere."""
        stored = self.stored_paths[row]
        if stored.startswith(UPLOAD_PREFIX) and self.folder is not None:
            return artifact.plain_path(self.folder, stored[len(UPLOAD_PREFIX) :])
        return self.root / stored

    @property
    def paths(self) -> list[Path]:
        """The paths of all pictures' files, in the order of `rows`."""
        return [self.path(row) for row in self.rows.tolist()]

    def is_upload(self, row: int) -> bool:
        """Whether a picture was uploaded, so that the collection has the only copy of its file."""
        return self.stored_paths[row].startswith(UPLOAD_PREFIX)

    def metadata(self, row: int) -> str:
        """The JSON object of a picture's metadata; the empty text if it has none."""
        if row < len(self.base):
            return "" if self.base.metadata is None else self.base.metadata[row]
        return self.added.metadata[int(self.added.rows.searchsorted(row))]

    @cached_property
    def field_names(self) -> frozenset[str]:
        """The names of all fields in the pictures' metadata, and in that of pictures removed since the compaction."""
        return self.base.field_names.union(*map(metadata_fields, self.added.metadata))

    def find(self, image_id: str) -> int | None:
        """The row of the picture with this id, or None.

        An id in another composition of the same letters is found, too: a name from a Mac has é as two characters.
        """
        row = self._row_of(image_id)
        if row is None and not image_id.isascii():
            forms = dict.fromkeys(unicodedata.normalize(form, image_id) for form in ("NFC", "NFD"))
            return next((row for row in map(self._row_of, forms) if row is not None), None)
        return row

    def _row_of(self, image_id: str) -> int | None:
        row = self.added.row_of.get(image_id)
        if row is not None:
            return row
        row = self.base.row_of(image_id)
        return None if row in self._removed else row

    def ids_of_paths(self, stored_paths: Sequence[str]) -> dict[str, list[str]]:
        """The ids that each file has, by its stored path; its own path first. A path that no picture has is left out.

        A file has several ids if it was added under several.
        """
        ids: dict[str, list[str]] = {}
        for path in dict.fromkeys(stored_paths):
            row = self.find(path)
            if row is not None and self.stored_paths[row] == path:
                ids[path] = [self.ids[row]]
        if self.base.stored_paths is not self.base.ids or self.added.ids != self.added.stored_paths:
            wanted = set(stored_paths)
            for row in self.rows.tolist():
                path = self.stored_paths[row]
                if path in wanted and self.ids[row] not in ids.get(path, ()):
                    ids.setdefault(path, []).append(self.ids[row])
        return ids

    @cached_property
    def _removed(self) -> frozenset[int | None]:
        return frozenset(self.removed.tolist())

    @cached_property
    def vokens(self) -> Int32[np.ndarray, "pictures M"]:
        """The voken sequences of all pictures in the order of `rows`, unpacked from the trie on first use.

        They take 4 · M bytes of memory per picture; for a few leaves use `trie.leaf_vokens`.
        """
        try:
            vokens = self.trie.row_vokens()[1] if self.is_changed else self.trie.image_vokens()
        except (IndexError, ValueError) as error:
            raise self._contradiction(error) from error
        if len(vokens) != len(self):
            raise self._contradiction(f"{len(vokens)} sequences of {len(self)} pictures")
        return vokens

    def sequence(self, row: int) -> Int32[np.ndarray, " M"]:
        """The vokens of one picture. Reads the row numbers of the whole base: 40 ms for ten million pictures."""
        if row >= len(self.base):
            vokens: np.ndarray = self.added.vokens[self.added.rows.searchsorted(row)]
            return vokens
        trie = self.base.trie
        try:
            leaf = trie.row_offsets.parents(places_of(trie, np.array([row])))
        except IndexError as error:
            raise self._contradiction(error) from error
        sequence: np.ndarray = trie.leaf_vokens(leaf)[0]
        return sequence

    def check_rows(self, rows: Int64[np.ndarray, " rows"]) -> None:
        """Raise `CorruptArtifactError` if a row number, which the trie holds, is that of no picture."""
        if len(rows) and rows.max() >= len(self.ids):
            raise self._contradiction(f"row {rows.max()} of {len(self.ids)}")

    def _contradiction(self, why: object) -> CorruptArtifactError:
        return CorruptArtifactError(
            f"{self.folder}: its trie and its pictures do not belong together ({why}). Index the pictures again."
        )

    @property
    def size(self) -> CollectionSize:
        """The bytes of each part."""
        trie = self.trie
        return CollectionSize(
            pictures=len(self),
            trie_levels=trie.nbytes - trie.row_nbytes,
            picture_numbers=trie.row_nbytes,
            ids=_nbytes(self.ids),
            paths=0 if self.base.stored_paths is self.base.ids else _nbytes(self.stored_paths),
            vectors=_nbytes(self.vectors),
            files=_nbytes(self.facts),
            metadata=_nbytes(self.base.metadata) + sum(map(len, self.added.metadata)),
        )

    @property
    def bytes_per_picture(self) -> float:
        """Bytes per picture without its id and path: its share of the trie, its number and its vector."""
        return self.size.index / max(1, len(self))

    @classmethod
    def of_vectors(
        cls, pictures: Dataset, vectors: Float32[np.ndarray, "pictures dim"], model: Model, *, keep_vectors: bool = True
    ) -> Self:
        """A collection in memory, of pictures whose vectors the model's encoder has computed.

        Raises `EmptyDataError` if there are no pictures, `DataError` for a repeated id or a wrong number of vectors.
        """
        if not len(pictures):
            raise EmptyDataError("There is no picture to index.")
        if len(vectors) != len(pictures):
            raise DataError(f"{len(pictures)} pictures and {len(vectors)} vectors: give one vector per picture.")
        ids = [image.image_id for image in pictures.images]
        refuse_repeats(ids)
        stored_paths = [stored_path(image.path, pictures.root) for image in pictures.images]
        id_column = column(ids)
        base = Base(
            ids=id_column,
            stored_paths=id_column if stored_paths == ids else column(stored_paths),
            trie=VokenTrie.from_vokens(model.tokenizer.encode(vectors), model.tokenizer.codebook_size),
            vectors=vectors.astype(np.float16) if keep_vectors else None,
            lookup=Lookup.of(ids),
        )
        return cls(base, Origin(absolute_path(pictures.root), model.fingerprint))

    def check_model(self, model: Fingerprinted) -> None:
        """Raise `ArtifactError` if the collection was not made with `model`."""
        if model.fingerprint != self.model_fingerprint:
            place = self.folder or "The collection"
            its_model = f" ({self.model_folders[0]})" if self.model_folders else ""
            raise ArtifactError(
                f"{place}: was made with another model (fingerprint {self.model_fingerprint[:12]}, this model's is "
                f"{model.fingerprint[:12]}). Search with that model{its_model}, or index the pictures again with this "
                "model."
            )

    def find_model(self) -> Path:
        """The folder of the model that it was made with. Raises `ArtifactError` if the model is not there."""
        for folder in self.model_folders:
            if artifact.is_artifact(folder):
                return folder
        model = self.model_folders[0] if self.model_folders else "a model that was not saved"
        raise ArtifactError(
            f"{self.folder}: was made with {model}, which is not there. Name the model's folder (--model)."
        )


def stored_path(path: Path, root: Path) -> str:
    """A picture's path as a collection stores it: relative to `root` if it is in that folder, else absolute."""
    inside = relative_path(path, root)
    return absolute_path(path).as_posix() if inside is None else inside


def refuse_repeats(ids: Sequence[str]) -> None:
    """Raise `DataError` if an id occurs more than once. Uses eight bytes of memory per id, however long the ids are."""
    hashes = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    hashes.sort()
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for image_id in ids if suspects else ():
        if hash(image_id) in suspects:
            if image_id in seen:
                raise DataError(f"Picture id {image_id!r} occurs twice. Give every picture its own id.")
            seen.add(image_id)


def _nbytes(part: Any) -> int:
    return 0 if part is None else int(part.nbytes)
