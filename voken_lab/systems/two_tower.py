"""The two-tower system: queries and pictures are vectors of one space, and a query is compared with every picture.

CLIP is one of these systems in the tables. Over vectors rebuilt from vokens, the system is the *quantized ceiling*: the
recall of a search that knows only each picture's vokens but compares all sequences, instead of writing likely ones.

The search is exact. This module does not know how texts become vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np

from voken.errors import DataError
from voken.search.hit import Hit
from voken.search.searcher import check_k
from voken.shapes import Float, Float32, Int
from voken_lab.systems.pictures import PoolPictures, checked_vectors

_SCORES_PER_BLOCK = 2**23
"""32 MiB of float32."""


class TextEncoder(Protocol):
    """The part of an `Encoder` that queries need."""

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """One vector per text, in the space of the pictures' vectors."""
        ...


class Quantizer(Protocol):
    """The part of an `ImageTokenizer` that the quantized ceiling needs."""

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"]:
        """One codebook per level."""
        ...

    def encode(self, vectors: Float[np.ndarray, "pictures dim"]) -> Int[np.ndarray, "pictures M"]:
        """The vokens of each vector."""
        ...

    def decode(self, vokens: Int[np.ndarray, "pictures M"]) -> Float[np.ndarray, "pictures dim"]:
        """The vectors rebuilt from vokens."""
        ...


class TwoTower:
    """Exact search by inner product, in float32.

    Equal vectors are scored once, so they tie exactly. Otherwise a matrix product could round equal rows differently,
    and the order of pictures with equal vectors would depend on their place in memory. Hits of equal score come in the
    order of the pictures.

    `bytes_per_picture` is what must be stored for a picture besides its id.

    Raises `EmptyDataError` without pictures, `DataError` if lengths differ, an id is there twice, or a vector is not
    finite.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        *,
        paths: Sequence[str] | None = None,
        vokens: Int[np.ndarray, "pictures M"] | None = None,
        bytes_per_picture: float | None = None,
    ) -> None:
        self._pictures = PoolPictures(image_ids, paths, rows=None if vokens is None else len(vokens))
        vectors = checked_vectors(self._pictures, vectors)
        self._encoder = encoder
        self.vokens = vokens
        self._vokens = ((),) * len(image_ids) if vokens is None else tuple(map(tuple, vokens.tolist()))
        self._rows, self._order, self._starts = _distinct_rows(vectors)
        self.bytes_per_picture = 4.0 * vectors.shape[1] if bytes_per_picture is None else bytes_per_picture

    @classmethod
    def quantized(
        cls,
        encoder: TextEncoder,
        image_ids: Sequence[str],
        vectors: Float[np.ndarray, "pictures dim"],
        tokenizer: Quantizer,
        *,
        paths: Sequence[str] | None = None,
    ) -> Self:
        """The quantized ceiling: each vector is replaced by the one rebuilt from its vokens, at unit length.

        Pictures that share a sequence share a vector, and so tie. `bytes_per_picture` counts M vokens of log2 N bits.
        """
        vokens = np.asarray(tokenizer.encode(np.asarray(vectors, dtype=np.float32)))
        # Each sequence is rebuilt once, because a network may round equal inputs differently within a batch.
        sequences, sequence_of = np.unique(vokens, axis=0, return_inverse=True)
        rebuilt = unit_rows(np.asarray(tokenizer.decode(sequences.astype(np.int32)), dtype=np.float32))
        levels, entries = tokenizer.codebooks.shape[:2]
        return cls(
            encoder,
            image_ids,
            rebuilt[sequence_of.reshape(-1)],
            paths=paths,
            vokens=vokens,
            bytes_per_picture=sequence_bytes(levels, entries),
        )

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text the `k` pictures of largest inner product (all of them if there are fewer), best first.

        Raises `ConfigError` for `k` under 1.
        """
        check_k(k)
        if not texts:
            return []
        queries = read_queries(self._encoder, texts, self._rows.shape[1])
        step = max(1, _SCORES_PER_BLOCK // len(self._rows))
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), step):
            scores = queries[start : start + step] @ self._rows.T
            hits.extend(self._best(row, k) for row in scores)
        return hits

    def _best(self, scores: Float[np.ndarray, " distinct"], k: int) -> list[Hit]:
        place = len(scores) - min(k, len(scores))
        cut = np.partition(scores, place)[place]
        candidates = np.flatnonzero(scores >= cut)
        counts = self._starts[candidates + 1] - self._starts[candidates]
        starts = np.repeat(self._starts[candidates], counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pictures = self._order[starts + within]
        values = np.repeat(scores[candidates], counts)
        best = np.lexsort((pictures, -values))[:k]
        return [
            self._pictures.hit(picture, value, self._vokens[picture])
            for picture, value in zip(pictures[best].tolist(), values[best].tolist(), strict=True)
        ]


def sequence_bytes(levels: int, entries: int) -> float:
    """Bytes of M values of log2 N bits, rounded up. docs/reference/speed.md says what else a collection stores."""
    return levels * math.ceil(math.log2(max(entries, 2))) / 8


def read_queries(encoder: TextEncoder, texts: Sequence[str], dim: int) -> Float32[np.ndarray, "texts dim"]:
    """The texts' vectors as contiguous float32. Raises `DataError` if they are not `dim` wide, or not finite."""
    queries = np.ascontiguousarray(encoder.encode_texts(texts), dtype=np.float32)
    if queries.shape != (len(texts), dim):
        raise DataError(
            f"The encoder returned vectors of shape {queries.shape} for {len(texts)} texts; the pictures' vectors are "
            f"{dim} wide. Use the encoder that the pictures were encoded with."
        )
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise DataError(f"The encoder returned a vector that is not finite for the text {texts[row]!r}.")
    return queries


def unit_rows(rows: Float[np.ndarray, "rows dim"]) -> Float[np.ndarray, "rows dim"]:
    """The rows, scaled to length 1; rows of zeros stay."""
    scaled: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _distinct_rows(
    vectors: Float[np.ndarray, "pictures dim"],
) -> tuple[Float[np.ndarray, "distinct dim"], Int[np.ndarray, " pictures"], Int[np.ndarray, " offsets"]]:
    """The distinct rows; the pictures listed row by row; where each row's pictures start in that list."""
    # Rows are compared as bytes, which sort far faster than floats. + 0.0 turns −0.0 into 0.0, so equal rows have equal
    # bytes.
    keys = (vectors + np.float32(0.0)).view(np.dtype((np.void, vectors.itemsize * vectors.shape[1]))).reshape(-1)
    _, first, row_of = np.unique(keys, return_index=True, return_inverse=True)
    row_of = row_of.reshape(-1)
    order = np.argsort(row_of, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=len(first)))])
    return vectors[first], order, starts
