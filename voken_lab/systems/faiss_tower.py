"""The two-tower with a faiss index instead of exact search: an approximate search, or one over compressed vectors.

It shows the cost and the recall of a two-tower at scale, with as many bytes per picture as voken or at the same speed.
Every index compares by inner product, as `TwoTower` does. Codes are compared with the query's vector, not with the
query's code (asymmetric distances).

This module needs the extra `bench`. faiss manages its own threads: `faiss.omp_set_num_threads`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from voken.errors import ConfigError, DataError, MissingExtraError
from voken.search.hit import Hit
from voken.search.searcher import check_k
from voken.shapes import Float, Float32
from voken_lab.systems.pictures import PoolPictures, checked_vectors
from voken_lab.systems.two_tower import TextEncoder, read_queries

_ENTRIES = 256
"""A byte of a code chooses one of so many centroids. Each centroid needs a training vector."""
_LIST_ID_BYTES = 8
"""Size of a picture's number in an inverted list."""
_HNSW_NODE_BYTES = 12
"""Size of the place where a picture's links start, and of its highest layer."""


class EncodedPool:
    """A pool's pictures with their vectors, and an encoder of queries in the same space.

    Raises the errors of `TwoTower` for its pictures.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        paths: Sequence[str] | None = None,
    ) -> None:
        self.encoder = encoder
        self.pictures = PoolPictures(image_ids, paths)
        self.vectors = checked_vectors(self.pictures, vectors)


class FaissTower:
    """Search by inner product in a faiss index. Create it with `flat`, `hnsw`, `ivf_pq`, `pq`, `opq` or `rq`.

    Hits are sorted by falling score, and hits of equal score by the order of the pictures. Equal codes have equal
    scores; scores of equal float vectors may differ in the last bit (`TwoTower` prevents that). There are fewer than
    `k` hits if the index returns fewer, as `ivf_pq` does if the lists that it visits hold fewer pictures.

    `bytes_per_picture` is what the index stores per picture: the vector or the code; for `hnsw` also the slots of its
    links (4 bytes each, used or not, on every layer) and 12 bytes for their place; for `ivf_pq` also its number in its
    list (8 bytes). Ids and shared data (codebooks, the rotation, the centres of the lists) are not counted.

    The constructors take the pool and, if codes are learned, `training`: vectors of *other* pictures, such
    as the train split's. They raise the errors of `TwoTower` for the pictures, `ConfigError` for impossible sizes,
    `DataError` for training vectors that are not finite or of another width, and `MissingExtraError` without faiss.
    """

    def __init__(self, pool: EncodedPool, index: Any, bytes_per_picture: float) -> None:
        """`index` is any faiss index by inner product that holds the pool's vectors, in their order."""
        if index.ntotal != len(pool.pictures):
            raise DataError(f"{len(pool.pictures)} picture ids and {index.ntotal} rows: there must be one per picture.")
        self.index = index
        self.bytes_per_picture = bytes_per_picture
        self._encoder = pool.encoder
        self._pictures = pool.pictures

    @classmethod
    def flat(
        cls,
        pool: EncodedPool,
    ) -> Self:
        """Exact: every vector is compared, as in `TwoTower`."""
        faiss = _faiss()
        index = faiss.IndexFlatIP(pool.vectors.shape[1])
        index.add(pool.vectors)
        return cls(pool, index, 4.0 * pool.vectors.shape[1])

    @classmethod
    def hnsw(
        cls,
        pool: EncodedPool,
        *,
        m: int = 32,
        ef_construction: int = 200,
        ef_search: int = 64,
    ) -> Self:
        """A graph of neighbours over whole vectors (Malkov and Yashunin 2020).

        Each picture has `m` links on each layer, and 2·`m` on the lowest. `ef_construction` and `ef_search` are the
        numbers of candidates that are followed while building and while searching. faiss follows at least k.
        """
        faiss = _faiss()
        for name, value, least in (("m", m, 2), ("ef_construction", ef_construction, 1), ("ef_search", ef_search, 1)):
            if value < least:
                raise ConfigError(f"{name}: {value} is too small; give {least} or more.")
        index = faiss.IndexHNSWFlat(pool.vectors.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = ef_construction
        index.hnsw.efSearch = ef_search
        index.add(pool.vectors)
        links = 4 * index.hnsw.neighbors.size() / len(pool.vectors)
        size = 4.0 * pool.vectors.shape[1] + links + _HNSW_NODE_BYTES
        return cls(pool, index, size)

    @classmethod
    def ivf_pq(
        cls,
        pool: EncodedPool,
        training: Float[np.ndarray, "training dim"],
        *,
        lists: int,
        bytes: int,
        nprobe: int,
    ) -> Self:
        """Inverted lists: each picture is in the list of its nearest centre, as a product code of its residual.

        There are `lists` lists, and a code has `bytes` bytes. A query visits the `nprobe` lists whose centres have the
        largest inner product with it (Jégou, Douze and Schmid 2011).
        """
        faiss = _faiss()
        if not 1 <= nprobe <= lists:
            raise ConfigError(f"nprobe: {nprobe} of {lists} lists; it must be between 1 and the number of lists.")
        training = _checked_training(training, pool.vectors, bytes, at_least=max(lists, _ENTRIES))
        _check_divides(bytes, pool.vectors)
        dim, product = pool.vectors.shape[1], faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFPQ(faiss.IndexFlatIP(dim), dim, lists, bytes, 8, product)
        index.nprobe = nprobe
        return cls._train_and_fill(pool, index, training, float(bytes + _LIST_ID_BYTES))

    @classmethod
    def pq(
        cls,
        pool: EncodedPool,
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
    ) -> Self:
        """Product codes: the vector is cut into `bytes` parts of one byte each (Jégou, Douze and Schmid 2011)."""
        return cls._product_codes(pool, training, bytes, rotated=False)

    @classmethod
    def opq(
        cls,
        pool: EncodedPool,
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
    ) -> Self:
        """Product codes after a learned rotation, which balances the parts (Ge, He, Ke and Sun 2013)."""
        return cls._product_codes(pool, training, bytes, rotated=True)

    @classmethod
    def rq(
        cls,
        pool: EncodedPool,
        training: Float[np.ndarray, "training dim"],
        *,
        bytes: int,
        beams: int = 16,
    ) -> Self:
        """Residual codes: each of `bytes` levels codes the residual of the levels before (Chen, Guan and Wang 2010).

        `beams` encodings of a picture are followed at once (faiss' default is 5), and the best is stored.
        """
        faiss = _faiss()
        if beams < 1:
            raise ConfigError(f"beams: {beams} is too small; give 1 or more.")
        training = _checked_training(training, pool.vectors, bytes)
        index = faiss.IndexResidualQuantizer(pool.vectors.shape[1], bytes, 8, faiss.METRIC_INNER_PRODUCT)
        index.rq.max_beam_size = beams
        return cls._train_and_fill(pool, index, training, float(bytes))

    @classmethod
    def _product_codes(
        cls,
        pool: EncodedPool,
        training: Float[np.ndarray, "training dim"],
        bytes: int,
        *,
        rotated: bool,
    ) -> Self:
        faiss = _faiss()
        training = _checked_training(training, pool.vectors, bytes)
        _check_divides(bytes, pool.vectors)
        index = faiss.IndexPQ(pool.vectors.shape[1], bytes, 8, faiss.METRIC_INNER_PRODUCT)
        if rotated:
            index = faiss.IndexPreTransform(faiss.OPQMatrix(pool.vectors.shape[1], bytes), index)
        return cls._train_and_fill(pool, index, training, float(bytes))

    @classmethod
    def _train_and_fill(
        cls, pool: EncodedPool, index: Any, training: Float32[np.ndarray, "training dim"], bytes_per_picture: float
    ) -> Self:
        index.train(training)
        index.add(pool.vectors)
        return cls(pool, index, bytes_per_picture)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` pictures of large inner product, best first.

        Raises `ConfigError` for `k` under 1, `DataError` if the encoder's vectors do not fit or are not finite.
        """
        check_k(k)
        if not texts:
            return []
        queries = read_queries(self._encoder, texts, self.index.d)
        scores, rows = self.index.search(queries, min(k, self.index.ntotal))
        return [self._hits(*answer) for answer in zip(scores, rows, strict=True)]

    def rebuilt(self) -> Float32[np.ndarray, "pictures dim"]:
        """The vectors that the index compares queries with: the pictures', or those rebuilt from their codes."""
        faiss, index = _faiss(), self.index
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map(True)
        vectors: np.ndarray = index.reconstruct_n(0, index.ntotal)
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map(False)
        return vectors

    def rebuilt_from_codes(self, vectors: Float[np.ndarray, "rows dim"]) -> Float32[np.ndarray, "rows dim"]:
        """Other vectors as the index would see them: coded and rebuilt with what it learned."""
        codes = self.index.sa_encode(np.ascontiguousarray(vectors, dtype=np.float32))
        decoded: np.ndarray = self.index.sa_decode(codes)
        return decoded

    def with_encoder(self, encoder: TextEncoder) -> Self:
        """The same index, searched with another encoder of queries in the same space."""
        other = copy.copy(self)
        other._encoder = encoder
        return other

    def _hits(self, scores: Float32[np.ndarray, " hits"], rows: np.ndarray) -> list[Hit]:
        scores, rows = scores[rows >= 0], rows[rows >= 0]  # −1 pads answers that are too short
        order = np.lexsort((rows, -scores))
        return list(map(self._pictures.hit, rows[order].tolist(), scores[order].tolist()))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("faiss", "bench") from None
    return faiss


def _checked_training(
    training: Float[np.ndarray, "training dim"],
    vectors: Float32[np.ndarray, "pictures dim"],
    code_bytes: int,
    *,
    at_least: int = _ENTRIES,
) -> Float32[np.ndarray, "training dim"]:
    if code_bytes < 1:
        raise ConfigError(f"bytes: {code_bytes} bytes per picture; give 1 or more.")
    if training.ndim != 2 or training.shape[1] != vectors.shape[1]:
        raise DataError(
            f"Training vectors of shape {training.shape} for pictures' vectors of width {vectors.shape[1]}. "
            "Encode both with one encoder."
        )
    if len(training) < at_least:
        raise ConfigError(
            f"training: {len(training)} vectors for {at_least} centroids. Give {at_least} or more, or take fewer lists."
            if at_least > _ENTRIES
            else f"training: {len(training)} vectors; one byte per part needs {at_least} or more. Give more of them."
        )
    training = np.ascontiguousarray(training, dtype=np.float32)
    if not np.isfinite(training).all():
        raise DataError("A training vector is not finite. Encode the pictures again.")
    return training


def _check_divides(code_bytes: int, vectors: Float32[np.ndarray, "pictures dim"]) -> None:
    dim = vectors.shape[1]
    if dim % code_bytes:
        possible = ", ".join(str(size) for size in range(1, dim + 1) if dim % size == 0)
        raise ConfigError(
            f"bytes: {code_bytes} parts do not divide vectors of width {dim}. Possible: {possible}. Or use rq."
        )
