"""The record of how likely a hit is right, as it is saved with a model.

`voken.training.choose` fills it in from validation queries; `voken.search.readouts` applies it.
"""

from __future__ import annotations

from dataclasses import dataclass

from voken.config import ReadOutName


@dataclass(frozen=True)
class Threshold:
    """The confidence at which to cut answers so that a share `precision` of the remaining hits is right."""

    precision: float
    """The wanted share. A lower bound of `measured` reached it on validation."""
    confidence: float
    """Hits with this confidence or more remain."""
    measured: float
    """The share of the remaining validation hits that was right, at the calibration's prior."""
    recall: float
    """Of the validation queries whose picture was in the pool: the share that keeps a right hit."""
    silence: float
    """Of the validation queries whose pictures were taken out of the pool: the share that keeps no hit."""


@dataclass(frozen=True)
class ReadOutCalibration:
    """The logistic model of one read-out, and its thresholds."""

    readout: ReadOutName
    cosine_weight: float
    """Weight of the cosine in the score. Another weight gives other scores, for which this model does not hold."""
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

    They hold for texts like the captions of the training data, from someone whose picture is in the collection with
    probability `prior`. "Right" is what the captions say: a fitting picture of another concept counts as wrong. The
    queries without a right picture still had its near relatives in the pool; a pool without those is easier.

    They also hold for one right picture in about `pool` / `right` pictures. If right pictures are rarer, more wrong
    ones look right and the confidence is too high; in smaller pools it is too low. See
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
