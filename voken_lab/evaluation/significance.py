"""Whether one system is better than another on the same queries, or was lucky.

Both tests are paired: they look at the difference of each query. The bootstrap draws whole groups of queries
again where groups are given: captions of one picture rise and fall together, and counting them as independent
makes differences look surer than they are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from voken.errors import ConfigError, DataError
from voken.shapes import Float
from voken_lab.evaluation.protocol import Evaluation


@dataclass(frozen=True)
class Bootstrap:
    """Mean difference first − second, its percentile interval, and the two-sided p of "no difference"."""

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    samples: int


@dataclass(frozen=True)
class TTest:
    """Student's paired t-test: mean difference first − second, t, degrees of freedom, two-sided p."""

    difference: float
    t: float
    degrees: int
    p_value: float


def compare(
    first: Evaluation, second: Evaluation, k: int, *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Bootstrap:
    """Paired bootstrap of R@`k` of two evaluations. Queries with the same right answers are drawn together.

    Raises `DataError` where they did not answer the same queries over pools of one size, `ConfigError` where their
    protocols differ or `k` was not measured.
    """
    if first.conditions.protocol != second.conditions.protocol:
        raise ConfigError(
            "An inductive and a transductive evaluation answer different questions, and are not compared."
        )
    if first.queries != second.queries or first.pool_size != second.pool_size:
        raise DataError("The two evaluations asked different queries or pools. Evaluate both on one pool.")
    if k not in first.recall_per_query or k not in second.recall_per_query:
        raise ConfigError(f"R@{k} was not measured in both. Add {k} to the cutoffs.")
    return paired_bootstrap(
        first.recall_per_query[k],
        second.recall_per_query[k],
        groups=[query.relevant for query in first.queries],
        samples=samples,
        confidence=confidence,
        seed=seed,
    )


def paired_bootstrap(
    first: Float[np.ndarray, " queries"],
    second: Float[np.ndarray, " queries"],
    *,
    groups: Sequence[Hashable] | None = None,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Bootstrap:
    """Resample queries (or whole `groups` of them) with replacement, `samples` times.

    The interval is the percentile one. p is the share of resamples, shifted to a mean of no difference, that lie as
    far from 0 as the observed difference or farther, the observed one counted in: never 0.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"samples {samples} must be 1 or more, and confidence {confidence} between 0 and 1.")
    differences = _differences(first, second, at_least=1)
    sums, sizes = _by_group(differences, groups)
    # Groups alike are interchangeable, so drawing how often each kind comes up is the same and far cheaper.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 2**22 // len(kinds))
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.multinomial(len(sums), counts / counts.sum(), size=size)
        means[start : start + size] = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    observed = float(differences.mean())
    # Sums of the same numbers in another order differ in the last bits; that must not decide "as far or farther".
    extreme = np.abs(means - observed) >= abs(observed) - 1e-12
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Bootstrap(
        difference=observed,
        low=float(low),
        high=float(high),
        confidence=confidence,
        p_value=float((extreme.sum() + 1) / (samples + 1)),
        samples=samples,
    )


def paired_t_test(first: Float[np.ndarray, " queries"], second: Float[np.ndarray, " queries"]) -> TTest:
    """Student's t-test of the per-query differences, at least two of them.

    Where every difference is the same, t is 0 with p 1 for a difference of 0, and infinite with p 0 otherwise.
    """
    differences = _differences(first, second, at_least=2)
    degrees = len(differences) - 1
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if np.ptp(differences) == 0:
        t = 0.0 if mean == 0 else math.copysign(math.inf, mean)
    else:
        t = mean / (deviation / math.sqrt(len(differences)))
    # P(|T| > t) = I_x(ν/2, 1/2) with x = ν / (ν + t²).
    p_value = incomplete_beta(degrees / 2, 0.5, 0.0 if math.isinf(t) else degrees / (degrees + t * t))
    return TTest(difference=mean, t=t, degrees=degrees, p_value=p_value)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) for a, b > 0 and x in [0, 1].

    By its continued fraction (DLMF 8.17.22), evaluated with Lentz's method on the side where it converges fast.

    >>> round(incomplete_beta(2, 3, 0.5), 4)
    0.6875
    """
    if not (a > 0 and b > 0 and 0 <= x <= 1):
        raise ConfigError(f"I_x(a, b) needs a, b > 0 and x in [0, 1], not a={a}, b={b}, x={x}.")
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    tiny = 1e-300
    fraction, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, 10_000):
        m = term // 2
        if term == 1:
            coefficient = 1.0
        elif term % 2 == 0:
            coefficient = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        else:
            coefficient = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1.0 + coefficient * denominator
        numerator = 1.0 + coefficient / numerator
        denominator = 1.0 / (denominator if abs(denominator) > tiny else tiny)
        numerator = numerator if abs(numerator) > tiny else tiny
        fraction *= numerator * denominator
        if abs(numerator * denominator - 1.0) < 1e-15:
            break
    return math.exp(log_front) * (fraction - 1.0)


def _differences(
    first: Float[np.ndarray, " queries"], second: Float[np.ndarray, " queries"], *, at_least: int
) -> Float[np.ndarray, " queries"]:
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < at_least:
        raise DataError(
            f"A paired test needs two results for each of at least {at_least} queries, "
            f"not arrays of shape {first.shape} and {second.shape}."
        )
    differences: Float[np.ndarray, " queries"] = first - second
    return differences


def _by_group(
    differences: Float[np.ndarray, " queries"], groups: Sequence[Hashable] | None
) -> tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    if groups is None:
        return differences, np.ones(len(differences))
    if len(groups) != len(differences):
        raise DataError(f"{len(groups)} groups for {len(differences)} queries.")
    numbers: dict[Hashable, int] = {}
    members = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.bincount(members, weights=differences), np.bincount(members).astype(np.float64)
