"""How likely a hit is right: a probability for each hit, and thresholds that keep a stated precision.

A search always answers, also where nothing matches. On the validation side it is known which hits are right, so a
logistic model of what a search sees anyway says how often such hits were. It looks at

    score         what the hits are ranked by: log p(Y|q) + weight × cosine. With its weight at 0 or more, a hit is
                  never given less than one below it: cutting at a threshold leaves the beginning of the answer.
    mass          the log of the probability on all sequences found. Where many are likely, one says less.
    mean cosine   of the query with what was found, each sequence counted by its probability. Not in the read-out
                  "vector", whose score holds the cosine with the picture itself: there it added nothing.

The last two are the same for all hits of an answer. The cases are the validation queries twice: over the validation
pool as it is, and with their right pictures taken out of it. `prior` says how much of the weight the first have.
Thresholds are chosen on concepts that the weights were not fitted on (cross-fitting), by a lower bound.

This module knows neither models nor collections; it takes arrays of what was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from voken.errors import ConfigError
from voken.shapes import Bool, Float, Int

Readout = Literal["generate", "voken", "vector"]

HITS = 10
"""The calibration is fitted on so many of the first hits of each answer."""
PRECISIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds are chosen for these."""
MIN_QUERIES = 50
MIN_CONCEPTS = 10
"""With a right hit: fewer say nothing about others."""
_FOLDS = 5
_RIDGE = 1.0
"""On weights of standardised features, with a weight of 1 a hit; without it, few hits could be told apart perfectly."""
_MIN_COUNT = 10
"""Concepts that a threshold must rest on: of many cuts some look good by luck, those with the fewest hits first."""
_Z = 1.96
"""Of a one-sided bound that fails once in 40; as the best of many cuts is taken, of thresholds more fail."""


@dataclass(frozen=True)
class Threshold:
    """Where to cut answers so that `precision` of the hits left are right. The other figures are validation's."""

    precision: float
    """What was asked for: a lower bound of `measured` reached it."""
    confidence: float
    """Hits of this confidence or more are kept."""
    measured: float
    """Share of the kept hits that was right, at the prior."""
    recall: float
    """Share of queries whose picture was there that kept a right hit."""
    silence: float
    """Share of queries whose pictures were taken out that kept none: told honestly that nothing matches."""


@dataclass(frozen=True)
class ReadoutCalibration:
    """The logistic model of one read-out, and its thresholds."""

    readout: Readout
    cosine_weight: float
    """Of the cosine in the score. Another weight ranks by another score, which this one says nothing about."""
    bias: float
    score: float
    """Weight of the score, 0 or more."""
    mass: float
    mean_cosine: float
    thresholds: tuple[Threshold, ...] = ()
    """By rising precision, those that were reached."""

    def confidence(
        self,
        log_prob: Float[np.ndarray, "*queries hits"],
        cosine: Float[np.ndarray, "*queries hits"],
        shared: Int[np.ndarray, "*queries hits"] | None = None,
    ) -> Float[np.ndarray, "*queries hits"]:
        """As `Calibration.confidence`."""
        score, mass, mean = np.moveaxis(_features(log_prob, cosine, shared, self.cosine_weight), -1, 0)
        # one number after another, not as a product of matrices: equal scores get equal confidences to the bit
        logit = self.score * score + (self.bias + self.mass * mass + self.mean_cosine * mean)
        found: np.ndarray = np.where(np.isfinite(log_prob), _sigmoid(logit), 0.0)
        return found


@dataclass(frozen=True)
class Calibration:
    """Probabilities that hits are right, as they were on one validation set.

    What they hold for: texts like the captions of the training data, asked by someone whose picture is there with
    probability `prior`; "right" is what the captions say, so that a fitting picture of another concept counts as
    wrong. Where a picture is not there, its near relations still are: pools without them are easier.

    They also hold for one right picture in about `pool` / `right` pictures. Where right pictures are rarer, wrong ones
    find more occasions to look right, and it is too high; in smaller pools it is too low. docs/results.md has figures;
    `benchmarks/no_match.py` measures them for other data.
    """

    prior: float
    """Of the queries, those whose picture was there."""
    queries: int
    concepts: int
    pool: int
    """Pictures searched."""
    right: float
    """Mean number of right pictures a query."""
    beams: int
    readouts: tuple[ReadoutCalibration, ...]

    def of(self, readout: Readout) -> ReadoutCalibration:
        """One read-out's. Raises `ConfigError` where it was not calibrated."""
        for one in self.readouts:
            if one.readout == readout:
                return one
        raise ConfigError(f"readout {readout!r} was not calibrated.")

    def holds(self, readout: Readout, cosine_weight: float) -> bool:
        """Whether hits of a search with this weight of the cosine can be given a confidence."""
        return any(one.readout == readout and one.cosine_weight == cosine_weight for one in self.readouts)

    def confidence(
        self,
        readout: Readout,
        log_prob: Float[np.ndarray, "*queries hits"],
        cosine: Float[np.ndarray, "*queries hits"],
        shared: Int[np.ndarray, "*queries hits"] | None = None,
    ) -> Float[np.ndarray, "*queries hits"]:
        """The probability, 0 to 1, that each picture found for a query is right; it never rises as the score falls.

        *All* that was found is needed, before the best are picked: a row's entries are every picture on the leaves
        that the beams reached. `log_prob` is of their sequences, −inf for no picture (confidence 0); `cosine` of the
        query's vector with the stored one in the read-out "vector", with the one rebuilt from the vokens otherwise,
        "generate" included; `shared` how many pictures have a picture's sequence (None: one each).

        >>> one = ReadoutCalibration("generate", 0.0, bias=1.0, score=0.5, mass=-0.5, mean_cosine=0.0)
        >>> found = Calibration(0.5, 100, 50, 50, 1.0, 20, (one,))
        >>> found.confidence("generate", np.log([0.5, 0.5]), np.zeros(2)).round(3).tolist()
        [0.658, 0.658]

        Raises `ConfigError` where the read-out was not calibrated.
        """
        return self.of(readout).confidence(log_prob, cosine, shared)

    def threshold(self, readout: Readout, precision: float) -> float | None:
        """The confidence from which on at least this share of hits was right; None where no threshold reached it.

        Between two entries of the table the stricter one holds. Raises `ConfigError` for a precision that is not
        between 0 and 1, and where the read-out was not calibrated.
        """
        if not 0 < precision <= 1:
            raise ConfigError(f"precision {precision}: a share of right hits is above 0 and at most 1.")
        reached = (one.confidence for one in self.of(readout).thresholds if one.precision >= precision)
        return next(reached, None)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a search of one pool found for some queries, and what would have been right."""

    log_prob: Float[np.ndarray, "queries pictures"]
    """Of each picture's sequence; −inf where no beam reached it."""
    cosine: Float[np.ndarray, "queries pictures"]
    leaf: Int[np.ndarray, " pictures"]
    """Which sequence a picture has."""
    relevant: Bool[np.ndarray, "queries pictures"]
    concepts: Int[np.ndarray, " pictures"]

    @property
    def groups(self) -> Int[np.ndarray, " queries"]:
        """The concept that a query asks for, the first of several; queries of one are not independent."""
        found: np.ndarray = self.concepts[self.relevant.argmax(1)]
        return found

    @property
    def shared(self) -> Int[np.ndarray, "queries pictures"]:
        """How many pictures that were found have a picture's sequence; 1 where it was not found."""
        numbers, leaf = np.unique(self.leaf, return_inverse=True)
        counts = np.zeros((len(self.log_prob), len(numbers)), np.int64)
        rows, columns = np.nonzero(np.isfinite(self.log_prob))
        np.add.at(counts, (rows, leaf[columns]), 1)
        found: np.ndarray = np.maximum(counts[:, leaf], 1)
        return found

    def without_right(self) -> Answers:
        """The same search where every query's right pictures are not in the pool: nothing matches.

        It has the beams that are left. A search that never met those pictures would have as many beams more, at the
        end where they are least likely.
        """
        none = np.zeros_like(self.relevant)
        return replace(self, log_prob=np.where(self.relevant, -np.inf, self.log_prob), relevant=none)


@dataclass(frozen=True, eq=False)
class Cases:
    """The first hits of every query, its pictures there and taken out, best first; a row an answer."""

    features: Float[np.ndarray, "answers hits features"]
    right: Bool[np.ndarray, "answers hits"]
    found: Bool[np.ndarray, "answers hits"]
    """False where fewer were found."""
    present: Bool[np.ndarray, " answers"]
    """Whether the query's pictures were there."""
    groups: Int[np.ndarray, " answers"]

    @classmethod
    def of(cls, answers: Answers, cosine_weight: float, hits: int = HITS) -> Cases:
        """Both cases of every query."""
        parts = []
        for there, case in ((True, answers), (False, answers.without_right())):
            features = _features(case.log_prob, case.cosine, case.shared, cosine_weight)
            score = np.where(np.isfinite(case.log_prob), features[:, :, 0], -np.inf)
            best = np.argsort(-score, axis=1, kind="stable")[:, :hits]
            found = np.isfinite(np.take_along_axis(score, best, 1))
            parts.append(
                (
                    np.where(found[:, :, None], np.take_along_axis(features, best[:, :, None], 1), 0.0),
                    np.take_along_axis(case.relevant, best, 1) & found,
                    found,
                    np.full(len(best), there),
                    answers.groups,
                )
            )
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def weights(self, prior: float) -> Float[np.ndarray, "answers hits"]:
        """Of the hits: `prior` on answers whose pictures were there, a mean of 1."""
        weights = np.where(self.present, prior, 1 - prior)[:, None] * self.found
        scaled: np.ndarray = weights * (self.found.sum() / weights.sum())
        return scaled


def calibrate(
    answers: dict[Readout, Answers],
    cosine_weights: dict[Readout, float],
    *,
    beams: int,
    prior: float = 0.5,
    precisions: Sequence[float] = PRECISIONS,
    seed: int = 0,
) -> tuple[Calibration | None, dict[str, Any]]:
    """Fit every read-out on the same validation queries; the second is what to tell, ready for JSON.

    None where there are too few queries, or too few concepts with a right hit: `said["none"]` has the reason.
    Raises `ConfigError` for a prior that is not between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior {prior}: the share of queries whose picture is there is between 0 and 1.")
    cases = {readout: Cases.of(found, cosine_weights[readout]) for readout, found in answers.items()}
    reason = _too_little(cases)
    if reason:
        return None, {"none": reason}
    made: list[ReadoutCalibration] = []
    said: dict[str, Any] = {}
    for readout, case in cases.items():
        one, told = _calibrated(case, readout, cosine_weights[readout], prior, precisions, seed)
        made.append(one)
        said[readout] = told
    first = next(iter(answers.values()))
    calibration = Calibration(
        prior=prior,
        queries=len(first.relevant),
        concepts=len(np.unique(first.groups)),
        pool=first.relevant.shape[1],
        right=float(first.relevant.sum(1).mean()),
        beams=beams,
        readouts=tuple(made),
    )
    return calibration, said


def logistic(
    features: Float[np.ndarray, "rows features"],
    right: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    *,
    ridge: float = _RIDGE,
) -> Float[np.ndarray, " coefficients"]:
    """The bias, then a weight a feature: the least weighted log loss + ridge/2 × ‖weights‖², by Newton's method.

    The ridge is on the weights of features scaled to a deviation of 1; a feature that never varies gets 0.
    """
    total = weights.sum()
    mean = weights @ features / total
    spread = np.sqrt(weights @ (features - mean) ** 2 / total)
    varies = spread > 1e-9 * np.maximum(np.abs(mean), 1.0)
    scale = np.where(varies, spread, 1.0)
    rows = np.hstack([np.ones((len(features), 1)), (features - mean) / scale * varies])
    penalty = np.full(rows.shape[1], ridge)
    penalty[0] = 0.0
    share = np.clip(weights @ right / total, 1e-6, 1 - 1e-6)
    found = np.zeros(rows.shape[1])
    found[0] = np.log(share / (1 - share))

    def loss(candidate: Float[np.ndarray, " coefficients"]) -> float:
        logit = rows @ candidate
        return float(weights @ (np.logaddexp(0, logit) - right * logit) + candidate**2 @ penalty / 2)

    for _ in range(100):
        guess = _sigmoid(rows @ found)
        gradient = rows.T @ (weights * (guess - right)) + penalty * found
        curvature = (rows * (weights * guess * (1 - guess))[:, None]).T @ rows + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        before = loss(found)
        while loss(found - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found - step
        if np.abs(step).max() < 1e-9:
            break
    slopes = np.where(varies, found[1:] / scale, 0.0)
    return np.concatenate([[found[0] - slopes @ mean], slopes])


def wilson_lower(share: Float[np.ndarray, " cuts"], count: Float[np.ndarray, " cuts"]) -> Float[np.ndarray, " cuts"]:
    """A lower bound of a share seen in `count` independent cases (Wilson 1927), one-sided, 97.5%."""
    square = _Z**2
    centre = share + square / (2 * count)
    width = _Z * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    bound: np.ndarray = (centre - width) / (1 + square / count)
    return bound


def choose_thresholds(
    cases: Cases,
    confidence: Float[np.ndarray, "answers hits"],
    prior: float,
    precisions: Sequence[float] = PRECISIONS,
) -> tuple[Threshold, ...]:
    """For each precision the lowest confidence from which on a lower bound of the precision reaches it, if any does.

    The bound takes the hits of one concept for a single observation (Kish's effective number of them): captions of one
    picture are right and wrong together. `confidence` must come from weights that did not see the cases.
    """
    weights = cases.weights(prior)
    flat = cases.found.reshape(-1)
    given, right, weight = (array.reshape(-1)[flat] for array in (confidence, cases.right, weights))
    group = np.broadcast_to(cases.groups[:, None], cases.found.shape).reshape(-1)[flat]
    order = np.argsort(-given, kind="stable")
    given, right, weight, group = given[order], right[order], weight[order], group[order]
    kept = np.cumsum(weight)
    precision = np.cumsum(weight * right) / kept
    count = kept**2 / _running_squares(weight, group)
    reached = wilson_lower(np.minimum(precision, 1.0), count)
    cut = np.append(given[1:] < given[:-1], True)  # a threshold cannot part hits of equal confidence
    found = []
    for wanted in sorted(precisions):
        cuts = np.flatnonzero((reached >= wanted) & (count >= _MIN_COUNT) & cut)
        if len(cuts):
            last = int(cuts[-1])
            recall, silence = recall_and_silence(cases, confidence, float(given[last]))
            found.append(Threshold(float(wanted), float(given[last]), float(precision[last]), recall, silence))
    return tuple(found)


def recall_and_silence(
    cases: Cases, confidence: Float[np.ndarray, "answers hits"], threshold: float
) -> tuple[float, float]:
    """Of queries whose picture was there, those that keep a right hit; of the others, those that keep none."""
    kept = (confidence >= threshold) & cases.found
    recall = (kept & cases.right).any(1)[cases.present].mean()
    silence = (~kept.any(1))[~cases.present].mean()
    return float(recall), float(silence)


def _calibrated(
    cases: Cases, readout: Readout, cosine_weight: float, prior: float, precisions: Sequence[float], seed: int
) -> tuple[ReadoutCalibration, dict[str, Any]]:
    weights = cases.weights(prior)
    _, group = np.unique(cases.groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group] % _FOLDS
    held_out = np.zeros(cases.found.shape)
    constant = np.zeros(cases.found.shape)
    for number in range(_FOLDS):
        inside = fold == number
        made = _fit(cases, readout, weights, ~inside)
        held_out[inside] = _sigmoid(made[0] + cases.features[inside] @ made[1:])
        constant[inside] = (weights * cases.right)[~inside].sum() / weights[~inside].sum()
    bias, score, mass, mean_cosine = _fit(cases, readout, weights, np.full(len(fold), True)).tolist()
    thresholds = choose_thresholds(cases, held_out, prior, precisions)
    one = ReadoutCalibration(readout, cosine_weight, bias, score, mass, mean_cosine, thresholds)
    first = weights[:, :1]
    told = {
        "log_loss": _log_loss(held_out, cases, weights),
        "log_loss_of_a_constant": _log_loss(constant, cases, weights),
        "first_hit_confidence": float((first * held_out[:, :1]).sum() / first.sum()),
        "first_hit_right": float((first * cases.right[:, :1]).sum() / first.sum()),
    }
    return one, told


def _fit(
    cases: Cases, readout: Readout, weights: Float[np.ndarray, "answers hits"], rows: Bool[np.ndarray, " answers"]
) -> Float[np.ndarray, " coefficients"]:
    """Bias and three weights, that of the score 0 or more."""
    used = rows[:, None] & cases.found
    allowed = np.array([True, True, readout != "vector"])
    for mask in (allowed, allowed & [False, True, True]):
        found = logistic(cases.features[used] * mask, cases.right[used], weights[used])
        if found[1] >= 0:
            break
    return found


def _too_little(cases: dict[Readout, Cases]) -> str:
    """Why there can be no calibration, if so."""
    queries = min((len(case.groups) // 2 for case in cases.values()), default=0)
    if queries < MIN_QUERIES:
        return f"{queries} validation queries are too few to calibrate with: at least {MIN_QUERIES} are needed."
    concepts = min(len(np.unique(case.groups[case.right.any(1)])) for case in cases.values())
    if concepts < MIN_CONCEPTS:
        return (
            f"{concepts} validation concepts with a right hit are too few to calibrate with: at least {MIN_CONCEPTS} "
            "are needed."
        )
    return ""


def _features(
    log_prob: Float[np.ndarray, "*queries hits"],
    cosine: Float[np.ndarray, "*queries hits"],
    shared: Int[np.ndarray, "*queries hits"] | None,
    cosine_weight: float,
) -> Float[np.ndarray, "*queries hits 3"]:
    """Score, mass and mean cosine; a sequence counts once, however many pictures share it."""
    found = np.isfinite(log_prob)
    given = np.where(found, log_prob, 0.0).astype(np.float64)
    each = np.where(found, log_prob, -np.inf).astype(np.float64) - (0.0 if shared is None else np.log(shared))
    top = np.max(each, axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    parts = np.exp(each - top)
    total = np.maximum(parts.sum(-1, keepdims=True), np.finfo(np.float64).tiny)
    mean = (parts * cosine).sum(-1, keepdims=True) / total
    score = given + cosine_weight * cosine
    return np.stack([score, *np.broadcast_arrays(top + np.log(total), mean, score)[:2]], -1)


def _running_squares(weight: Float[np.ndarray, " hits"], group: Int[np.ndarray, " hits"]) -> Float[np.ndarray, " hits"]:
    """Σ over groups of (their weight among the first 1, 2 … hits)²."""
    by_group = np.argsort(group, kind="stable")
    within = np.cumsum(weight[by_group])
    starts = np.flatnonzero(np.append(True, group[by_group][1:] != group[by_group][:-1]))
    offset = np.repeat((within - weight[by_group])[starts], np.diff(np.append(starts, len(group))))
    until = np.empty(len(weight))
    until[by_group] = within - offset
    found: np.ndarray = np.cumsum(until**2 - (until - weight) ** 2)
    return found


def _log_loss(
    confidence: Float[np.ndarray, "answers hits"], cases: Cases, weights: Float[np.ndarray, "answers hits"]
) -> float:
    safe = np.clip(confidence, 1e-12, 1 - 1e-12)
    loss = -np.where(cases.right, np.log(safe), np.log1p(-safe))
    return float((weights * loss).sum() / weights.sum())


def _sigmoid(logit: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    value: np.ndarray = np.exp(-np.logaddexp(0.0, -logit))
    return value
