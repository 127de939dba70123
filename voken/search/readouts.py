"""Read-outs rank the pictures that the beams reached, and say how likely each is right.

    generate   log p(Y|q) alone, less the corrections of `voken.decoding.node_bias` if the model has any
    voken      + weight × cosine of the query's vector with the vector rebuilt from the picture's vokens
    vector     + weight × cosine of the query's vector with the picture's stored vector

Only "vector" distinguishes pictures that share a sequence; the other two give them equal scores.

A confidence comes from a logistic model of three features of a search, which `voken.training.choose` fits:

    score         log p(Y|q) + weight × cosine. Its coefficient is 0 or more, so a hit never has a lower confidence
                  than a hit ranked below it, and cutting at a threshold leaves the beginning of the answer.
    mass          the log of the total probability of the sequences reached. The more of them are likely, the less
                  one likely sequence means.
    mean cosine   of the query with the sequences reached, weighted by their probabilities. It has no coefficient in
                  "vector": the score already holds the cosine with the picture itself.

The last two are the same for all hits of an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.config import ReadOutName
from voken.decoding.beam import Beams
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.model.calibration import Calibration, ReadOutCalibration
from voken.shapes import Float, Int, Int64


class VectorBuilder(Protocol):
    """The part of an `ImageTokenizer` that a read-out needs."""

    def decode(self, vokens: Int[np.ndarray, "sequences M"]) -> Float[np.ndarray, "sequences dim"]:
        """Unit vectors rebuilt from voken sequences."""
        ...


@dataclass(frozen=True, eq=False)
class Pool:
    """The pictures that one search sees: a version of the collection, and the trie of those that its filters allow."""

    snapshot: Snapshot
    trie: VokenTrie
    tokenizer: VectorBuilder


@dataclass(frozen=True, eq=False)
class Candidates:
    """The pictures on the leaves that the beams of one query reached, leaf after leaf."""

    beam: Int64[np.ndarray, " pictures"]
    """The beam that reached the picture."""
    leaves: Int64[np.ndarray, " pictures"]
    rows: Int64[np.ndarray, " pictures"]
    log_prob: Float[np.ndarray, " pictures"]
    """Log-probability of the picture's sequence, with the corrections that do not depend on the query."""
    shared: Int64[np.ndarray, " pictures"]
    """The number of pictures with this picture's sequence, itself included."""

    @classmethod
    def of(cls, trie: VokenTrie, leaf: Int64[np.ndarray, " beams"], log_prob: Float[np.ndarray, " beams"]) -> Self:
        """Build them from one query's row of `Beams`."""
        reached = np.flatnonzero(leaf >= 0)
        rows, counts = trie.rows_of(leaf[reached])
        beam = np.repeat(reached, counts)
        return cls(beam, leaf[beam], rows, log_prob[beam].astype(np.float64), np.repeat(counts, counts))

    def best(self, scores: Float[np.ndarray, " pictures"], k: int) -> Int64[np.ndarray, " best"]:
        """Places of the `k` pictures with the highest scores, best first; if scores are equal, the lower row first."""
        return np.lexsort((self.rows, -scores))[:k]


@dataclass(frozen=True)
class ReadOut:
    """One way to rank candidates."""

    name: ReadOutName
    weight: float = 0.0
    """Weight of the cosine in the score."""
    calibration: ReadOutCalibration | None = None

    @classmethod
    def calibrated(cls, name: ReadOutName, weight: float, calibration: Calibration | None) -> Self:
        """A read-out with the part of `calibration` that was fitted for its name and weight, if any."""
        parts = () if calibration is None else calibration.readouts
        matching = (part for part in parts if (part.readout, part.cosine_weight) == (name, weight))
        return cls(name, weight, next(matching, None))

    @property
    def needs_cosines(self) -> bool:
        """Whether scores or confidences depend on the cosines."""
        return self.weight != 0 or self.calibration is not None

    @property
    def uses_stored_vectors(self) -> bool:
        """Whether cosines are computed with the pictures' stored vectors instead of vectors rebuilt from vokens."""
        return self.name == "vector"

    def cosines(
        self,
        pool: Pool,
        beams: Beams,
        candidates: Sequence[Candidates],
        queries: Float[np.ndarray, "queries dim"],
    ) -> Iterable[Float[np.ndarray, " pictures"]]:
        """For each query, the cosines of its vector with its candidates."""
        return (stored_cosines if self.uses_stored_vectors else rebuilt_cosines)(pool, beams, candidates, queries)

    def score(
        self, log_prob: Float[np.ndarray, "*queries pictures"], cosine: Float[np.ndarray, "*queries pictures"]
    ) -> Float[np.ndarray, "*queries pictures"]:
        """The scores that pictures are ranked by."""
        return log_prob + self.weight * cosine

    def confidence(
        self,
        log_prob: Float[np.ndarray, "*queries pictures"],
        cosine: Float[np.ndarray, "*queries pictures"],
        shared: Int[np.ndarray, "*queries pictures"] | None = None,
    ) -> Float[np.ndarray, "*queries pictures"]:
        """The probability, 0 to 1, that each picture is right; it never rises as the score falls.

        Pass *all* candidates of a query, not only the best. `log_prob` is that of their sequences; −inf stands for no
        picture, which has confidence 0. `cosine` is with the stored vectors in "vector", otherwise with the rebuilt
        ones, in "generate" too. `shared` is the number of pictures with a picture's sequence (None: always 1).

        >>> part = ReadOutCalibration("generate", 0.0, bias=1.0, score=0.5, mass=-0.5, mean_cosine=0.0)
        >>> ReadOut("generate", 0.0, part).confidence(np.log([0.5, 0.5]), np.zeros(2)).round(3).tolist()
        [0.658, 0.658]

        Raises `ConfigError` if the read-out is not calibrated.
        """
        calibration = self.calibration
        if calibration is None:
            raise ConfigError(f"The read-out {self.name!r} is not calibrated for a weight of {self.weight:g}.")
        score, mass, mean = np.moveaxis(self.features(log_prob, cosine, shared), -1, 0)
        # term by term, not as a product of matrices, so that equal scores give equal confidences to the last bit
        shared_by_all = calibration.bias + calibration.mass * mass + calibration.mean_cosine * mean
        logit = calibration.score * score + shared_by_all
        confidence: np.ndarray = np.where(np.isfinite(log_prob), sigmoid(logit), 0.0)
        return confidence

    def features(
        self,
        log_prob: Float[np.ndarray, "*queries pictures"],
        cosine: Float[np.ndarray, "*queries pictures"],
        shared: Int[np.ndarray, "*queries pictures"] | None = None,
    ) -> Float[np.ndarray, "*queries pictures 3"]:
        """Score, mass and mean cosine. A sequence counts once, no matter how many pictures share it."""
        exists = np.isfinite(log_prob)
        picture = np.where(exists, log_prob, 0.0).astype(np.float64)
        each = np.where(exists, log_prob, -np.inf).astype(np.float64) - (0.0 if shared is None else np.log(shared))
        top = np.max(each, axis=-1, keepdims=True, initial=-np.inf)
        top = np.where(np.isfinite(top), top, 0.0)
        parts = np.exp(each - top)
        total = np.maximum(parts.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
        mean = (parts * cosine).sum(-1, keepdims=True) / total
        score = self.score(picture, cosine)
        return np.stack([score, *np.broadcast_arrays(top + np.log(total), mean, score)[:2]], -1)

    def threshold(self, precision: float) -> float | None:
        """The lowest confidence at which at least this share of hits was right; None if there is no such threshold.

        A precision between two thresholds gets the stricter one. Raises `ConfigError` for a precision
        that is not between 0 and 1.
        """
        if not 0 < precision <= 1:
            raise ConfigError(f"precision {precision}: a share of right hits is above 0 and at most 1.")
        thresholds = () if self.calibration is None else self.calibration.thresholds
        return next((threshold.confidence for threshold in thresholds if threshold.precision >= precision), None)


def stored_cosines(
    pool: Pool, beams: Beams, candidates: Sequence[Candidates], queries: Float[np.ndarray, "queries dim"]
) -> Iterable[Float[np.ndarray, " pictures"]]:
    """Cosines with the vectors that the collection stores. It must store vectors."""
    vectors = pool.snapshot.vectors
    assert vectors is not None
    for pictures, query in zip(candidates, queries, strict=True):
        yield np.asarray(vectors[pictures.rows]).astype(np.float32) @ query


def rebuilt_cosines(
    pool: Pool, beams: Beams, candidates: Sequence[Candidates], queries: Float[np.ndarray, "queries dim"]
) -> Iterable[Float[np.ndarray, " pictures"]]:
    """Cosines with the vectors that the tokenizer rebuilds from the sequences; all pictures of a leaf share theirs."""
    # each sequence is rebuilt once: a network may round the same input differently at another place of a batch
    leaves, place = np.unique(beams.leaf, return_inverse=True)
    sequences = pool.trie.leaf_vokens(np.maximum(leaves, 0))
    rebuilt = pool.tokenizer.decode(sequences)[place.reshape(beams.leaf.shape)]
    for pictures, cosine in zip(candidates, np.einsum("qd,qbd->qb", queries, rebuilt), strict=True):
        yield cosine[pictures.beam]


def sigmoid(logit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1 / (1 + exp(-logit)), without overflow."""
    value: np.ndarray = np.exp(-np.logaddexp(0.0, -logit))
    return value
