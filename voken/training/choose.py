"""Choose the rerank weights and calibrate confidences, both on validation queries and after both stages are trained.

A search always returns hits, even if no picture matches. The validation side says which hits are right, so a logistic
model can learn how often hits like these are right (`voken.search.readouts` lists the features that it sees). Each
validation query gives two cases: one search of the whole validation pool, and one without the query's right pictures.
`prior` is the share of the total weight that the searches of the whole pool have. Thresholds are chosen by a lower
bound, on concepts that the coefficients were not fitted on (cross-fitting).
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
from voken.search.corrections import Corrections
from voken.search.readouts import ReadOut, sigmoid
from voken.shapes import Bool, Float, Int
from voken.training.sides import Side, query_rows

_WEIGHTS = (0.0, *(2 ** (half / 2) for half in range(-4, 15)))
"""The rerank weights that are tried first: 0, and ¼ to 128 in steps of √2."""
_LARGEST_WEIGHT = 2.0**14
"""While the largest weight is the best, a larger one is tried, up to this one."""
HITS = 10
"""The fit uses this many of the first hits of each answer."""
PRECISIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""A threshold is chosen for each of these precisions."""
MIN_QUERIES = 50
MIN_CONCEPTS = 10
"""A calibration needs right hits of this many concepts. Fewer say nothing about other concepts."""
_FOLDS = 5
_RIDGE = 1.0
"""Penalty on the coefficients of standardised features, if the mean weight of a hit is 1. Without it, the coefficients
could grow without limit when a few hits are separated perfectly."""
_MIN_CONCEPTS_ABOVE = 10
"""A threshold needs at least this many concepts above it: of many cuts, those with few hits look good by luck first."""
_Z = 1.96
"""Quantile of a one-sided bound that fails once in 40. Thresholds fail more often: the best of many cuts is used."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a search of one pool returned for some queries, and which pictures are right."""

    log_prob: Float[np.ndarray, "queries pictures"]
    """Log-probability of each picture's sequence; −inf if no beam reached it."""
    cosine: Float[np.ndarray, "queries pictures"]
    leaf: Int[np.ndarray, " pictures"]
    """Number of each picture's sequence."""
    relevant: Bool[np.ndarray, "queries pictures"]
    concepts: Int[np.ndarray, " pictures"]

    @property
    def groups(self) -> Int[np.ndarray, " queries"]:
        """The concept of each query's first right picture. Queries of one concept are not independent."""
        groups: np.ndarray = self.concepts[self.relevant.argmax(1)]
        return groups

    @property
    def shared(self) -> Int[np.ndarray, "queries pictures"]:
        """For each picture that was reached, how many such pictures have its sequence; 1 for every other picture."""
        numbers, leaf = np.unique(self.leaf, return_inverse=True)
        counts = np.zeros((len(self.log_prob), len(numbers)), np.int64)
        rows, columns = np.nonzero(np.isfinite(self.log_prob))
        np.add.at(counts, (rows, leaf[columns]), 1)
        shared: np.ndarray = np.maximum(counts[:, leaf], 1)
        return shared

    def without_right_pictures(self) -> Answers:
        """The same answers with every query's right pictures removed, so that nothing matches.

        Only the remaining beams are left. A real search without those pictures would fill the free beams with the
        least likely sequences.
        """
        nothing = np.zeros_like(self.relevant)
        return replace(self, log_prob=np.where(self.relevant, -np.inf, self.log_prob), relevant=nothing)


@dataclass(frozen=True, eq=False)
class Cases:
    """The first hits of every query, best first, once with its right pictures in the pool and once without them.

    Each row is one answer.
    """

    features: Float[np.ndarray, "answers hits features"]
    right: Bool[np.ndarray, "answers hits"]
    is_hit: Bool[np.ndarray, "answers hits"]
    """False for the padding of an answer that has fewer hits."""
    present: Bool[np.ndarray, " answers"]
    """Whether the query's right pictures were in the pool."""
    groups: Int[np.ndarray, " answers"]

    @classmethod
    def of(cls, answers: Answers, read_out: ReadOut, hits: int = HITS) -> Cases:
        """Both cases of every query: with its right pictures in the pool, and without them."""
        parts = []
        for present, case in ((True, answers), (False, answers.without_right_pictures())):
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
        """Weights of the hits, with a mean of 1. `prior` is the weight of answers with their pictures in the pool."""
        weights = np.where(self.present, prior, 1 - prior)[:, None] * self.is_hit
        scaled: np.ndarray = weights * (self.is_hit.sum() / weights.sum())
        return scaled


def validation_answers(
    model: Model, validation: Side, corrections: Corrections | None = None
) -> dict[ReadOutName, Answers]:
    """Per read-out, the model's answers to at most a thousand validation captions over the validation pictures.

    The scores hold the `corrections`. The read-outs differ in their cosines: "vector" compares queries with the
    pictures' vectors, the others compare them with the vectors rebuilt from vokens.
    """
    tokenizer = model.tokenizer
    captions = query_rows(validation, model.config.seed)
    vokens = tokenizer.encode(validation.images)
    trie = VokenTrie.from_vokens(vokens, tokenizer.codebook_size)
    leaf_of_image = trie.leaf_of(vokens)
    bias = None if corrections is None else corrections.of(trie)
    log_prob = np.full((len(captions), trie.sequences), -np.inf, np.float32)
    queries = np.zeros((len(captions), validation.images.shape[1]), np.float32)
    for start in range(0, len(captions), 64):
        texts = [validation.captions[row] for row in captions[start : start + 64]]
        state = model.generator.prefill(texts)
        queries[start : start + 64] = model.query_vectors(texts, state)
        count = min(model.search.beams, trie.sequences)
        beams = beam_search_from_state(model.generator, state, trie, count, bias=bias)
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
    """Choose the weights of the two reranks by validation recall. A weight that is set in `search` is not changed.

    The grid goes on until its best weight is not its largest: the best may be far from what any other data had.

    The second value is the recall of each weight that was tried, per read-out.
    """
    recalls: dict[str, dict[str, float]] = {}
    best: dict[ReadOutName, float] = {"voken": 0.0, "vector": 0.0}
    for name in best:
        answer = answers[name]
        if len(answer.relevant):
            by_weight: dict[float, float] = {}
            weights = list(_WEIGHTS)
            for weight in weights:  # it grows
                score = ReadOut(name, weight).score(answer.log_prob, answer.cosine)
                by_weight[weight] = mean_recall(first_relevant(score, answer.relevant))
                best[name] = max(by_weight, key=lambda tried: (by_weight[tried], -tried))
                if weight == weights[-1] == best[name] < _LARGEST_WEIGHT:
                    weights.append(weight * 2**0.5)
            recalls[name] = {f"{weight:g}": recall for weight, recall in by_weight.items()}
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

    The calibration is None if there are too few queries, or too few concepts with a right hit; then `report["none"]`
    is the reason. Raises `ConfigError` for a prior that is not between 0 and 1.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior {prior}: the share of queries with a right picture must be between 0 and 1.")
    cases = {read_out: Cases.of(answer, read_out) for read_out, answer in answers.items()}
    reason = _reason_against_calibration(list(cases.values()))
    if reason:
        return None, {"none": reason}
    parts: list[ReadOutCalibration] = []
    report: dict[str, Any] = {}
    for read_out, case in cases.items():
        part, report[read_out.name] = _calibrate_read_out(case, read_out, prior, precisions, seed)
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

    They are computed by Newton's method. The ridge applies to the coefficients of features scaled to a standard
    deviation of 1. A feature that never varies gets the coefficient 0.
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
    """One-sided 97.5% lower bound of a share that was observed in `count` independent cases (Wilson 1927)."""
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
    """For each of `precisions`, the lowest confidence above which a lower bound of the precision reaches it, if any.

    The bound treats the hits of one concept as a single observation (Kish's effective sample size), because captions
    of one picture are right or wrong together. `confidence` must come from coefficients fitted on other cases.
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
    lower_bound = wilson_lower(np.minimum(precision, 1.0), count)
    can_cut = np.append(values[1:] < values[:-1], True)  # a threshold cannot separate hits of equal confidence
    thresholds = []
    for target in sorted(precisions):
        cuts = np.flatnonzero((lower_bound >= target) & (count >= _MIN_CONCEPTS_ABOVE) & can_cut)
        if len(cuts):
            last = int(cuts[-1])
            recall, silence = recall_and_silence(cases, confidence, float(values[last]))
            thresholds.append(Threshold(float(target), float(values[last]), float(precision[last]), recall, silence))
    return tuple(thresholds)


def recall_and_silence(
    cases: Cases, confidence: Float[np.ndarray, "answers hits"], threshold: float
) -> tuple[float, float]:
    """Recall and silence of the hits whose confidence is at least `threshold`.

    Recall is the share of queries with a right hit, if their pictures are in the pool. Silence is the share of queries
    without any hit, if their pictures are not in the pool.
    """
    passes = (confidence >= threshold) & cases.is_hit
    recall = (passes & cases.right).any(1)[cases.present].mean()
    silence = (~passes.any(1))[~cases.present].mean()
    return float(recall), float(silence)


def _calibrate_read_out(
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
    """The bias and the three coefficients. The coefficient of the score is 0 or more."""
    hits = rows[:, None] & cases.is_hit
    # The mean cosine adds nothing if the score already contains the cosine with the picture's own vector.
    allowed = np.array([True, True, not read_out.uses_stored_vectors])
    for mask in (allowed, allowed & [False, True, True]):
        coefficients = logistic(cases.features[hits] * mask, cases.right[hits], weights[hits])
        if coefficients[1] >= 0:
            break
    return coefficients


def _reason_against_calibration(cases: list[Cases]) -> str:
    """Why these cases are too few to calibrate with; empty if they suffice."""
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
    """After each hit, the sum over groups of the square of the group's weight so far."""
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
