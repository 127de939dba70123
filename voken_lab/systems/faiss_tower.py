"""The two-tower with an index of faiss in place of exact search: approximate, or over compressed vectors.

What a two-tower costs and reaches at scale, to stand beside voken at equal bytes or equal speed. Every index compares
by inner product, as `TwoTower` does; codes are compared with the query's own vector, not with its code (asymmetric).

Needs the extra `bench`. Threads are faiss's own: `faiss.omp_set_num_threads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from voken.errors import ConfigError, DataError, MissingExtraError
from voken.search.hit import Hit
from voken.shapes import Float, Float32
from voken_lab.systems.two_tower import TextEncoder, checked_pictures, read_queries

_ENTRIES = 256
"""A byte of a code chooses one of so many centroids, each of which needs a training vector."""
_LIST_ID = 8
"""Bytes of a picture's number in an inverted list."""
_HNSW_NODE = 12
"""Bytes that say where a picture's links start, and on which layer it tops."""


class FaissTower:
    """Search by inner product in an index of faiss. Made by `flat`, `hnsw`, `ivf_pq`, `pq`, `opq` or `rq`.

    Hits come by falling score, those of equal score in the order of the pictures. Equal codes have equal scores; equal
    whole vectors may differ in the last bit, which `TwoTower` sees to. There are fewer than `k` hits where the index
    finds fewer, as `ivf_pq` does when the lists it looks into hold fewer.

    `bytes_per_picture` is what the index keeps for each picture: its vector or code, and beside it for `hnsw` the
    slots of its links (4 bytes each, filled or not, on every layer it stands on) and 12 bytes that say where they are,
    and for `ivf_pq` its number in its list (8 bytes). What belongs to no single picture is not counted: codebooks, the
    rotation, the lists' centres. Nor are ids.

    The constructors take the pictures' vectors, and where codes are learned, `training`: vectors of *other* pictures,
    as the train split's. They raise what `TwoTower` does for the pictures, `ConfigError` for impossible sizes,
    `DataError` for training vectors that are not finite or not of the pictures' width, and `MissingExtraError`
    without faiss.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        index: Any,
        *,
        bytes_per_picture: float,
        paths: Sequence[str] | None = None,
    ) -> None:
        """`index` is any index of faiss by inner product that holds the pictures, in the order of their ids."""
        for what, count in (("picture ids", len(image_ids)), ("paths", index.ntotal if paths is None else len(paths))):
            if count != index.ntotal:
                raise DataError(f"{count} {what} and {index.ntotal} vectors: there must be one a picture.")
        self.index = index
        self.bytes_per_picture = bytes_per_picture
        self._encoder = encoder
        self._image_ids = tuple(image_ids)
        self._paths = ("",) * len(image_ids) if paths is None else tuple(map(str, paths))

    @classmethod
    def flat(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        *,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Exact: every vector compared, as `TwoTower` does."""
        faiss = _faiss()
        vectors = checked_pictures(image_ids, vectors, paths=paths)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        return cls(encoder, image_ids, index, bytes_per_picture=4.0 * vectors.shape[1], paths=paths)

    @classmethod
    def hnsw(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """A graph of neighbours over whole vectors (Malkov and Yashunin 2020).

        `m` links a picture on each layer, 2·`m` on the lowest; `ef_construction` and `ef_search` are how many
        candidates are followed while building and searching, the latter at least k.
        """
        faiss = _faiss()
        vectors = checked_pictures(image_ids, vectors, paths=paths)
        for name, value, least in (("m", m, 2), ("ef_construction", ef_construction, 1), ("ef_search", ef_search, 1)):
            if value < least:
                raise ConfigError(f"{name}: {value} is too small; give {least} or more.")
        index = faiss.IndexHNSWFlat(vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = ef_construction
        index.hnsw.efSearch = ef_search
        index.add(vectors)
        links = 4 * index.hnsw.neighbors.size() / len(vectors)
        size = 4.0 * vectors.shape[1] + links + _HNSW_NODE
        return cls(encoder, image_ids, index, bytes_per_picture=size, paths=paths)

    @classmethod
    def ivf_pq(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        training: Float[np.ndarray, "training dim"],
        *,
        lists: int,
        bytes: int,
        nprobe: int,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Pictures in `lists` lists by their nearest centre, as product codes of what the centre leaves, `bytes` long.

        A query looks into the `nprobe` lists of largest inner product (Jégou, Douze and Schmid 2011).
        """
        faiss = _faiss()
        vectors = checked_pictures(image_ids, vectors, paths=paths)
        if not 1 <= nprobe <= lists:
            raise ConfigError(
                f"nprobe: {nprobe} of {lists} lists; there must be 1 or more, and no more than there are."
            )
        training = _training(training, vectors, bytes, at_least=max(lists, _ENTRIES))
        _divides(bytes, vectors)
        dim, product = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, bytes, 8, product)
        index.nprobe = nprobe
        return cls._filled(encoder, image_ids, index, training, vectors, float(bytes + _LIST_ID), paths)

    @classmethod
    def pq(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Product codes: the vector cut into `bytes` parts, a byte for each (Jégou, Douze and Schmid 2011)."""
        return cls._product_codes(encoder, image_ids, vectors, training, bytes, paths, rotated=False)

    @classmethod
    def opq(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Product codes behind a learned rotation, which makes the parts alike (Ge, He, Ke and Sun 2013)."""
        return cls._product_codes(encoder, image_ids, vectors, training, bytes, paths, rotated=True)

    @classmethod
    def rq(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
        beams: int = 16,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """Residual codes: `bytes` levels, each a byte for what the levels before left (Chen, Guan and Wang 2010).

        `beams` encodings of a picture are followed at once, where faiss itself takes 5; the best is kept.
        """
        faiss = _faiss()
        vectors = checked_pictures(image_ids, vectors, paths=paths)
        if beams < 1:
            raise ConfigError(f"beams: {beams} is too small; give 1 or more.")
        training = _training(training, vectors, bytes)
        index = faiss.IndexResidualQuantizer(vectors.shape[1], bytes, 8, faiss.METRIC_INNER_PRODUCT)
        index.rq.max_beam_size = beams
        return cls._filled(encoder, image_ids, index, training, vectors, float(bytes), paths)

    @classmethod
    def _product_codes(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        training: Float[np.ndarray, "training dim"],
        bytes: int,
        paths: Sequence[str] | None,
        *,
        rotated: bool,
    ) -> Self:
        faiss = _faiss()
        vectors = checked_pictures(image_ids, vectors, paths=paths)
        training = _training(training, vectors, bytes)
        _divides(bytes, vectors)
        index = faiss.IndexPQ(vectors.shape[1], bytes, 8, faiss.METRIC_INNER_PRODUCT)
        if rotated:
            index = faiss.IndexPreTransform(faiss.OPQMatrix(vectors.shape[1], bytes), index)
        return cls._filled(encoder, image_ids, index, training, vectors, float(bytes), paths)

    @classmethod
    def _filled(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        index: Any,
        training: Float32[np.ndarray, "training dim"],
        vectors: Float32[np.ndarray, "pictures dim"],
        bytes_per_picture: float,
        paths: Sequence[str] | None,
    ) -> Self:
        index.train(training)
        index.add(vectors)
        return cls(encoder, image_ids, index, bytes_per_picture=bytes_per_picture, paths=paths)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` pictures of large inner product, best first.

        Raises `ConfigError` for `k` under 1, `DataError` where the encoder's vectors do not fit or are not finite.
        """
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        if not texts:
            return []
        queries = read_queries(self._encoder, texts, self.index.d)
        found = self.index.search(queries, min(k, self.index.ntotal))
        return [self._hits(scores, rows) for scores, rows in zip(*found, strict=True)]

    def rebuilt(self) -> Float32[np.ndarray, "pictures dim"]:
        """The vectors that the index compares queries with: the pictures' own, or what their codes rebuild."""
        faiss, index = _faiss(), self.index
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map(True)
        vectors: np.ndarray = index.reconstruct_n(0, index.ntotal)
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map(False)
        return vectors

    def _hits(self, scores: Float32[np.ndarray, " found"], rows: np.ndarray) -> list[Hit]:
        scores, rows = scores[rows >= 0], rows[rows >= 0]  # −1 fills up what was not found
        order = np.lexsort((rows, -scores))
        return [
            Hit(self._image_ids[row], self._paths[row], score, ())
            for row, score in zip(rows[order].tolist(), scores[order].tolist(), strict=True)
        ]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "bench") from None
    return faiss


def _training(
    training: Float[np.ndarray, "training dim"],
    vectors: Float32[np.ndarray, "pictures dim"],
    code: int,
    *,
    at_least: int = _ENTRIES,
) -> Float32[np.ndarray, "training dim"]:
    if code < 1:
        raise ConfigError(f"bytes: {code} bytes a picture; give 1 or more.")
    if training.ndim != 2 or training.shape[1] != vectors.shape[1]:
        raise DataError(
            f"Training vectors of shape {training.shape} for pictures' vectors of width {vectors.shape[1]}. "
            "Encode both with one encoder."
        )
    if len(training) < at_least:
        raise ConfigError(
            f"training: {len(training)} vectors for {at_least} centroids. Give {at_least} or more, or take fewer lists."
            if at_least > _ENTRIES
            else f"training: {len(training)} vectors; a byte a part needs {at_least} or more. Give more of them."
        )
    training = np.ascontiguousarray(training, dtype=np.float32)
    if not np.isfinite(training).all():
        raise DataError("A training vector is not finite. Encode the pictures again.")
    return training


def _divides(code: int, vectors: Float32[np.ndarray, "pictures dim"]) -> None:
    dim = vectors.shape[1]
    if dim % code:
        possible = ", ".join(str(size) for size in range(1, dim + 1) if dim % size == 0)
        raise ConfigError(
            f"bytes: {code} parts do not divide vectors of width {dim}. Possible: {possible}. Or take rq."
        )
