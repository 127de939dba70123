"""What every search system has: the `SearchSystem` protocol, and checks of the pictures that it searches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from voken.errors import DataError, EmptyDataError
from voken.search.hit import Hit
from voken.shapes import Float, Float32


@runtime_checkable
class SearchSystem(Protocol):
    """Anything that answers texts with ranked pictures."""

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` hits, by falling score, no picture twice; equal scores are ties."""
        ...


class PoolPictures:
    """Ids and paths of a pool's pictures, in the order of the system's rows.

    Raises `EmptyDataError` without pictures, `DataError` if an id is there twice or a length differs from `rows`.
    """

    def __init__(
        self, image_ids: Sequence[str], paths: Sequence[str] | None = None, *, rows: int | None = None
    ) -> None:
        if not len(image_ids):
            raise EmptyDataError("There is no picture to search.")
        if len(set(image_ids)) != len(image_ids):
            raise DataError("A picture id is there twice. Give every picture its own id.")
        for name, count in (("paths", None if paths is None else len(paths)), ("rows", rows)):
            if count is not None and count != len(image_ids):
                raise DataError(f"{len(image_ids)} picture ids and {count} {name}: there must be one per picture.")
        self.image_ids = tuple(image_ids)
        self.paths = ("",) * len(image_ids) if paths is None else tuple(map(str, paths))

    def __len__(self) -> int:
        return len(self.image_ids)

    def hit(self, row: int, score: float, vokens: tuple[int, ...] = ()) -> Hit:
        """The picture of a row as a hit."""
        return Hit(self.image_ids[row], self.paths[row], score, vokens)


def checked_vectors(
    pictures: PoolPictures, vectors: Float[np.ndarray, "pictures dim"]
) -> Float32[np.ndarray, "pictures dim"]:
    """The vectors as contiguous float32, one row per picture.

    Raises `DataError` if there is not one finite vector per picture.
    """
    if vectors.ndim != 2 or not vectors.shape[1]:
        raise DataError(f"Picture vectors must be a (pictures, dim) array, not one of shape {vectors.shape}.")
    if len(vectors) != len(pictures):
        raise DataError(f"{len(pictures)} picture ids and {len(vectors)} vectors: there must be one per picture.")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"The vector of picture {pictures.image_ids[row]!r} is not finite. Encode it again.")
    return vectors
