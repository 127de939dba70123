"""The calibration of a model, as saved with it: how scores become the probability that a hit is right.

`voken.training.choose` fills it in from validation queries; `voken.search.readouts` applies it.
"""

from __future__ import annotations

from dataclasses import dataclass

from voken.config import ReadOutName


@dataclass(frozen=True)
class Threshold:
    """The confidence at which to cut answers so that a share `precision` of the remaining hits is right."""

    precision: float
    """The share to reach. A lower confidence bound of `measured` reached it on validation."""
    confidence: float
    """Hits with at least this confidence remain."""
    measured: float
    """The share of the remaining validation hits that was right, at the calibration's prior."""
    recall: float
    """Share of the validation queries with their picture in the pool that keep a right hit."""
    silence: float
    """Share of the validation queries with their pictures removed from the pool that keep no hit."""


@dataclass(frozen=True)
class ReadOutCalibration:
    """The logistic model of one read-out, and its thresholds."""

    readout: ReadOutName
    cosine_weight: float
    """Weight of the cosine in the score. The logistic model does not hold for scores with another weight."""
    bias: float
    score: float
    """Coefficient of the score, 0 or more."""
    mass: float
    mean_cosine: float
    thresholds: tuple[Threshold, ...] = ()
    """The thresholds that were reached, by rising precision."""


@dataclass(frozen=True)
class Calibration:
    """Probabilities that hits are right, as measured on one validation set.

    They hold for texts like the captions of the training data, if the picture that a query means is in the collection
    with probability `prior`. A hit is right if the captions say so: a fitting picture of another concept counts as
    wrong. For queries without a right picture, similar pictures stayed in the pool; without them it is easier.

    They also hold for one right picture per `pool` / `right` pictures or so. If right pictures are rarer, more wrong
    pictures look right and confidences are too high; in smaller pools they are too low. See
    docs/reference/results.md for figures and `benchmarks/no_match.py` for other data.
    """

    prior: float
    """Assumed share of queries whose picture is in the pool."""
    queries: int
    concepts: int
    pool: int
    """Number of pictures searched."""
    right: float
    """Mean number of right pictures per query."""
    beams: int
    readouts: tuple[ReadOutCalibration, ...]
