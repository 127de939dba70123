"""Tests of whether one system is better than another on the same queries, or was lucky.

Both tests are paired: they use the difference for each query. If groups are passed, the bootstrap resamples whole
groups of queries. Results for captions of one picture are correlated, and treating them as independent would make
differences look more certain than they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from voken.errors import ConfigError, DataError, MissingExtraError
from voken.shapes import Float
from voken_lab.evaluation.protocol import Evaluation


@dataclass(frozen=True)
class Bootstrap:
    """Mean difference first − second, its percentile interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float
    samples: int


@dataclass(frozen=True)
class TTest:
    """Student's paired t-test: mean difference first − second, t, degrees of freedom, two-sided p-value."""

    difference: float
    t: float
    degrees: int
    p_value: float


def compare(
    first: Evaluation, second: Evaluation, k: int, *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Bootstrap:
    """Paired bootstrap of R@`k` of two evaluations. Queries with the same right answers are drawn together.

    Raises `DataError` if their queries or the sizes of their pools differ, `ConfigError` if their protocols differ or
    `k` was not measured.
    """
    if first.conditions.protocol != second.conditions.protocol:
        raise ConfigError(
            "An inductive and a transductive evaluation answer different questions and cannot be compared."
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

    The interval is the percentile interval. For p, the resampled means are shifted to a mean of 0; p is the share of
    them that is at least as far from 0 as the observed difference. The observed difference is counted as one of them,
    so p is never 0.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ConfigError(f"samples {samples} must be 1 or more, and confidence {confidence} between 0 and 1.")
    differences = _differences(first, second, at_least=1)
    sums, sizes = _by_group(differences, groups)
    # Groups of equal sum and size are interchangeable: it is far cheaper to draw how often each kind occurs.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 2**22 // len(kinds))
    for start in range(0, samples, block):
        size = min(block, samples - start)
        drawn = generator.multinomial(len(sums), counts / counts.sum(), size=size)
        means[start : start + size] = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    observed = float(differences.mean())
    # Sums of the same numbers in another order differ in the last bits, which must not decide the comparison.
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
    """Student's t-test of the differences per query, at least two of them. Raises `MissingExtraError` without scipy.

    If all differences are equal, the result is t = 0 and p = 1 if they are 0, and an infinite t and p = 0 otherwise.
    """
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtraError("scipy", "bench") from None
    differences = _differences(first, second, at_least=2)
    degrees = len(differences) - 1
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if np.ptp(differences) == 0:
        t = 0.0 if mean == 0 else float(np.copysign(np.inf, mean))
    else:
        t = mean / (deviation / len(differences) ** 0.5)
    return TTest(difference=mean, t=t, degrees=degrees, p_value=float(2 * stats.t.sf(abs(t), degrees)))


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
