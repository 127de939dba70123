"""What validation queries choose once both stages are trained: the rerank weights, and the calibration of confidences.

A search always answers, even if nothing matches. On the validation side it is known which hits are right, so a
logistic model learns how often such hits were (`voken.search.readouts` says which features it sees). The cases are the
validation queries twice: over the validation pool as it is, and with their right pictures taken out of it. `prior` says
how much of the weight the first half has. Thresholds are chosen on concepts that the coefficients were not fitted on
(cross-fitting), by a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from voken.config import ReadOutName, ReadOutWeights, SearchConfig
from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.metrics import first_relevant, mean_recall
from voken.model.calibration import Calibration, ReadOutCalibration, Threshold
from voken.model.model import Model
from voken.search.readouts import ReadOut, sigmoid
from voken.shapes import Bool, Float, Int
from voken.training.sides import Side, query_rows

_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Rerank weights that are tried."""
HITS = 10
"""The fit uses this many of the first hits of each answer."""
PRECISIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds are chosen for these."""
MIN_QUERIES = 50
MIN_CONCEPTS = 10
"""Concepts with a right hit. Fewer say nothing about others."""
_FOLDS = 5
_RIDGE = 1.0
"""On coefficients of standardised features, with a mean weight of 1 per hit. Without it, a few hits could be separated
perfectly."""
_MIN_COUNT = 10
"""Concepts that a threshold must rest on: of many cuts some look good by luck, first those with the fewest hits."""
_Z = 1.96
"""Of a one-sided bound that fails once in 40. The best of many cuts is taken, so more than that fail of thresholds."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a search of one pool returned for some queries, and what would have been right."""

    log_prob: Float[np.ndarray, "queries pictures"]
    """Of each picture's sequence; −inf if no beam reached it."""
    cosine: Float[np.ndarray, "queries pictures"]
    leaf: Int[np.ndarray, " pictures"]
    """Which sequence a picture has."""
    relevant: Bool[np.ndarray, "queries pictures"]
    concepts: Int[np.ndarray, " pictures"]

    @property
    def groups(self) -> Int[np.ndarray, " queries"]:
        """The concept that a query asks for, the first of several. Queries of one concept are not independent."""
        groups: np.ndarray = self.concepts[self.relevant.argmax(1)]
        return groups

    @property
    def shared(self) -> Int[np.ndarray, "queries pictures"]:
        """How many of the pictures reached have a picture's sequence; 1 for a picture that was not reached."""
        numbers, leaf = np.unique(self.leaf, return_inverse=True)
        counts = np.zeros((len(self.log_prob), len(numbers)), np.int64)
        rows, columns = np.nonzero(np.isfinite(self.log_prob))
        np.add.at(counts, (rows, leaf[columns]), 1)
        shared: np.ndarray = np.maximum(counts[:, leaf], 1)
        return shared

    def without_right(self) -> Answers:
        """The same search if every query's right pictures were not in the pool, so that nothing matches.

        It has the beams that remain. A search that never met those pictures would have as many beams more, at the
        end, where they are least likely.
        """
        nothing = np.zeros_like(self.relevant)
        return replace(self, log_prob=np.where(self.relevant, -np.inf, self.log_prob), relevant=nothing)


@dataclass(frozen=True, eq=False)
class Cases:
    """The first hits of every query, with its pictures in the pool and without them, best first. A row is an answer."""

    features: Float[np.ndarray, "answers hits features"]
    right: Bool[np.ndarray, "answers hits"]
    is_hit: Bool[np.ndarray, "answers hits"]
    """False if the answer has fewer hits."""
    present: Bool[np.ndarray, " answers"]
    """Whether the query's pictures were in the pool."""
    groups: Int[np.ndarray, " answers"]

    @classmethod
    def of(cls, answers: Answers, read_out: ReadOut, hits: int = HITS) -> Cases:
        """Both cases of every query."""
        parts = []
        for present, case in ((True, answers), (False, answers.without_right())):
            features = read_out.features(case.log_prob, case.cosine, case.shared)
            score = np.where(np.isfinite(case.log_prob), features[:, :, 0], -np.inf)
            best = np.argsort(-score, axis=1, kind="stable")[:, :hits]
            is_hit = np.isfinite(np.take_along_axis(score, best, 1))
            parts.append(
                (
                    np.where(is_hit[:, :, None], np.take_along_axis(features, best[:, :, None], 1), 0.0),
                    np.take_along_axis(case.relevant, best, 1) & is_hit,
                    is_hit,
                    np.full(len(best), present),
                    answers.groups,
                )
            )
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def weights(self, prior: float) -> Float[np.ndarray, "answers hits"]:
        """Of the hits: `prior` on the answers whose pictures were in the pool, and a mean of 1."""
        weights = np.where(self.present, prior, 1 - prior)[:, None] * self.is_hit
        scaled: np.ndarray = weights * (self.is_hit.sum() / weights.sum())
        return scaled


def validation_answers(model: Model, validation: Side) -> dict[ReadOutName, Answers]:
    """The model's answers to at most a thousand validation captions over the validation pictures, per read-out.

    The read-outs differ in their cosines: "vector" compares with the pictures' vectors, the others with rebuilt ones.
    """
    tokenizer = model.tokenizer
    captions = query_rows(validation, model.config.seed)
    vokens = tokenizer.encode(validation.images)
    trie = VokenTrie.from_vokens(vokens, tokenizer.codebook_size)
    leaf_of_image = trie.leaf_of(vokens)
    log_prob = np.full((len(captions), trie.sequences), -np.inf, np.float32)
    queries = np.zeros((len(captions), validation.images.shape[1]), np.float32)
    for start in range(0, len(captions), 64):
        texts = [validation.captions[row] for row in captions[start : start + 64]]
        state = model.generator.prefill(texts)
        queries[start : start + 64] = model.query_vectors(texts, state)
        beams = beam_search_from_state(model.generator, state, trie, min(model.search.beams, trie.sequences))
        rows = np.arange(start, start + len(texts))[:, None]
        log_prob[rows, beams.leaf] = beams.log_prob
    relevant = np.zeros((len(captions), len(vokens)), bool)
    pairs = validation.pairs[np.isin(validation.pairs[:, 1], captions)]
    relevant[np.searchsorted(captions, pairs[:, 1]), pairs[:, 0]] = True
    rebuilt = Answers(
        log_prob[:, leaf_of_image],
        queries @ tokenizer.decode(vokens).T,
        leaf_of_image,
        relevant,
        validation.concepts,
    )
    return {"generate": rebuilt, "voken": rebuilt, "vector": replace(rebuilt, cosine=queries @ validation.images.T)}


def choose_weights(
    search: SearchConfig, answers: dict[ReadOutName, Answers]
) -> tuple[ReadOutWeights, dict[str, dict[str, float]]]:
    """Choose the weights of the two reranks by validation recall. Weights in the settings stay.

    Also returns the recall of each weight that was tried, per read-out.
    """
    recalls: dict[str, dict[str, float]] = {}
    best: dict[ReadOutName, float] = {"voken": 0.0, "vector": 0.0}
    for name in best:
        answer = answers[name]
        if len(answer.relevant):
            scores = (ReadOut(name, weight).score(answer.log_prob, answer.cosine) for weight in _WEIGHTS)
            by_weight = [mean_recall(first_relevant(score, answer.relevant)) for score in scores]
            recalls[name] = dict(zip(map(str, _WEIGHTS), by_weight, strict=True))
            best[name] = _WEIGHTS[int(np.argmax(by_weight))]
    return search.weights(ReadOutWeights(best["voken"], best["vector"])), recalls


def read_outs(weights: ReadOutWeights) -> dict[ReadOutName, ReadOut]:
    """The three read-outs with these weights."""
    return {
        "generate": ReadOut("generate"),
        "voken": ReadOut("voken", weights.voken or 0.0),
        "vector": ReadOut("vector", weights.vector or 0.0),
    }


def calibrate(
    answers: dict[ReadOut, Answers],
    *,
    beams: int,
    prior: float = 0.5,
    precisions: Sequence[float] = PRECISIONS,
    seed: int = 0,
) -> tuple[Calibration | None, dict[str, Any]]:
    """Fit every read-out on the same validation queries. The second value is a report, ready for JSON.

    The calibration is None if there are too few queries, or too few concepts with a right hit; `report["none"]` has the
    reason. Raises `ConfigError` for a prior that is not between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior {prior}: the share of queries whose picture is there is between 0 and 1.")
    cases = {read_out: Cases.of(answer, read_out) for read_out, answer in answers.items()}
    reason = _too_little(list(cases.values()))
    if reason:
        return None, {"none": reason}
    parts: list[ReadOutCalibration] = []
    report: dict[str, Any] = {}
    for read_out, case in cases.items():
        part, report[read_out.name] = _calibrate_one(case, read_out, prior, precisions, seed)
        parts.append(part)
    first = next(iter(answers.values()))
    calibration = Calibration(
        prior=prior,
        queries=len(first.relevant),
        concepts=len(np.unique(first.groups)),
        pool=first.relevant.shape[1],
        right=float(first.relevant.sum(1).mean()),
        beams=beams,
        readouts=tuple(parts),
    )
    return calibration, report


def logistic(
    features: Float[np.ndarray, "rows features"],
    right: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    *,
    ridge: float = _RIDGE,
) -> Float[np.ndarray, " coefficients"]:
    """The bias, then a coefficient per feature, that minimise the weighted log loss + ridge/2 × ‖coefficients‖².

    By Newton's method. The ridge is on the coefficients of features scaled to a deviation of 1. A feature that never
    varies gets 0.
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
    coefficients = np.zeros(rows.shape[1])
    coefficients[0] = np.log(share / (1 - share))

    def loss(candidate: Float[np.ndarray, " coefficients"]) -> float:
        logit = rows @ candidate
        return float(weights @ (np.logaddexp(0, logit) - right * logit) + candidate**2 @ penalty / 2)

    for _ in range(100):
        guess = sigmoid(rows @ coefficients)
        gradient = rows.T @ (weights * (guess - right)) + penalty * coefficients
        curvature = (rows * (weights * guess * (1 - guess))[:, None]).T @ rows + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        before = loss(coefficients)
        while loss(coefficients - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        coefficients = coefficients - step
        if np.abs(step).max() < 1e-9:
            break
    slopes = np.where(varies, coefficients[1:] / scale, 0.0)
    return np.concatenate([[coefficients[0] - slopes @ mean], slopes])


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

    The bound counts the hits of one concept as a single observation (Kish's effective sample size): captions of one
    picture are right and wrong together. `confidence` must come from coefficients that were fitted on other cases.
    """
    weights = cases.weights(prior)
    flat = cases.is_hit.reshape(-1)
    values, right, weight = (array.reshape(-1)[flat] for array in (confidence, cases.right, weights))
    group = np.broadcast_to(cases.groups[:, None], cases.is_hit.shape).reshape(-1)[flat]
    order = np.argsort(-values, kind="stable")
    values, right, weight, group = values[order], right[order], weight[order], group[order]
    total = np.cumsum(weight)
    precision = np.cumsum(weight * right) / total
    count = total**2 / _running_squares(weight, group)
    reached = wilson_lower(np.minimum(precision, 1.0), count)
    can_cut = np.append(values[1:] < values[:-1], True)  # a threshold cannot separate hits of equal confidence
    thresholds = []
    for wanted in sorted(precisions):
        cuts = np.flatnonzero((reached >= wanted) & (count >= _MIN_COUNT) & can_cut)
        if len(cuts):
            last = int(cuts[-1])
            recall, silence = recall_and_silence(cases, confidence, float(values[last]))
            thresholds.append(Threshold(float(wanted), float(values[last]), float(precision[last]), recall, silence))
    return tuple(thresholds)


def recall_and_silence(
    cases: Cases, confidence: Float[np.ndarray, "answers hits"], threshold: float
) -> tuple[float, float]:
    """The share of queries with their picture in the pool that keep a right hit, and of the others that keep none."""
    remains = (confidence >= threshold) & cases.is_hit
    recall = (remains & cases.right).any(1)[cases.present].mean()
    silence = (~remains.any(1))[~cases.present].mean()
    return float(recall), float(silence)


def _calibrate_one(
    cases: Cases, read_out: ReadOut, prior: float, precisions: Sequence[float], seed: int
) -> tuple[ReadOutCalibration, dict[str, float]]:
    weights = cases.weights(prior)
    _, group = np.unique(cases.groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group] % _FOLDS
    held_out = np.zeros(cases.is_hit.shape)
    constant = np.zeros(cases.is_hit.shape)
    for number in range(_FOLDS):
        inside = fold == number
        coefficients = _fit(cases, read_out, weights, ~inside)
        held_out[inside] = sigmoid(coefficients[0] + cases.features[inside] @ coefficients[1:])
        constant[inside] = (weights * cases.right)[~inside].sum() / weights[~inside].sum()
    bias, score, mass, mean_cosine = _fit(cases, read_out, weights, np.full(len(fold), True)).tolist()
    thresholds = choose_thresholds(cases, held_out, prior, precisions)
    part = ReadOutCalibration(read_out.name, read_out.weight, bias, score, mass, mean_cosine, thresholds)
    first = weights[:, :1]
    report = {
        "log_loss": _log_loss(held_out, cases, weights),
        "log_loss_of_a_constant": _log_loss(constant, cases, weights),
        "first_hit_confidence": float((first * held_out[:, :1]).sum() / first.sum()),
        "first_hit_right": float((first * cases.right[:, :1]).sum() / first.sum()),
    }
    return part, report


def _fit(
    cases: Cases, read_out: ReadOut, weights: Float[np.ndarray, "answers hits"], rows: Bool[np.ndarray, " answers"]
) -> Float[np.ndarray, " coefficients"]:
    """The bias and three coefficients, that of the score 0 or more."""
    used = rows[:, None] & cases.is_hit
    # the mean cosine added nothing where the score holds the cosine with the picture itself
    allowed = np.array([True, True, not read_out.uses_stored_vectors])
    for mask in (allowed, allowed & [False, True, True]):
        coefficients = logistic(cases.features[used] * mask, cases.right[used], weights[used])
        if coefficients[1] >= 0:
            break
    return coefficients


def _too_little(cases: list[Cases]) -> str:
    """Why there can be no calibration; empty if there can be."""
    queries = min((len(case.groups) // 2 for case in cases), default=0)
    if queries < MIN_QUERIES:
        return f"{queries} validation queries are too few to calibrate with: at least {MIN_QUERIES} are needed."
    concepts = min(len(np.unique(case.groups[case.right.any(1)])) for case in cases)
    if concepts < MIN_CONCEPTS:
        return (
            f"{concepts} validation concepts with a right hit are too few to calibrate with: at least {MIN_CONCEPTS} "
            "are needed."
        )
    return ""


def _running_squares(weight: Float[np.ndarray, " hits"], group: Int[np.ndarray, " hits"]) -> Float[np.ndarray, " hits"]:
    """Σ over groups of (their weight among the first 1, 2 … hits)²."""
    by_group = np.argsort(group, kind="stable")
    within = np.cumsum(weight[by_group])
    starts = np.flatnonzero(np.append(True, group[by_group][1:] != group[by_group][:-1]))
    offset = np.repeat((within - weight[by_group])[starts], np.diff(np.append(starts, len(group))))
    until = np.empty(len(weight))
    until[by_group] = within - offset
    squares: np.ndarray = np.cumsum(until**2 - (until - weight) ** 2)
    return squares


def _log_loss(
    confidence: Float[np.ndarray, "answers hits"], cases: Cases, weights: Float[np.ndarray, "answers hits"]
) -> float:
    safe = np.clip(confidence, 1e-12, 1 - 1e-12)
    loss = -np.where(cases.right, np.log(safe), np.log1p(-safe))
    return float((weights * loss).sum() / weights.sum())
