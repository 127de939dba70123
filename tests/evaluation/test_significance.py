"""The paired tests against scipy and against full enumeration."""

import itertools

import numpy as np
import pytest
from scipy import stats

from voken.errors import ConfigError, DataError
from voken.search.hit import Hit
from voken_lab.evaluation.protocol import Conditions, Query, evaluate
from voken_lab.evaluation.significance import compare, paired_bootstrap, paired_t_test


@pytest.mark.parametrize(("queries", "shift"), [(2, 0.1), (10, 0.0), (200, 0.05), (1000, 0.3)])
def test_t_test_is_scipys(queries, shift):
    generator = np.random.default_rng(queries)
    first = generator.random(queries) + shift
    second = generator.random(queries)
    ours, theirs = paired_t_test(first, second), stats.ttest_rel(first, second)
    assert ours.t == pytest.approx(theirs.statistic)
    assert ours.p_value == pytest.approx(theirs.pvalue, rel=1e-8)
    assert ours.degrees == theirs.df
    assert ours.difference == pytest.approx((first - second).mean())


def test_t_test_without_variance():
    same = np.ones(5)
    assert (paired_t_test(same, same).t, paired_t_test(same, same).p_value) == (0.0, 1.0)
    better = paired_t_test(same, np.zeros(5))
    assert (better.t, better.p_value) == (np.inf, 0.0)


def test_bootstrap_matches_every_possible_resample():
    differences = np.array([1.0, 0.0, -1.0, 1.0, 0.5, 0.0])
    means = np.array([np.mean(draw) for draw in itertools.product(differences, repeat=6)])
    observed = differences.mean()
    exact = (np.abs(means - observed) >= observed - 1e-12).mean()
    result = paired_bootstrap(differences, np.zeros(6), samples=40_000, seed=3)
    assert result.difference == pytest.approx(observed)
    assert result.p_value == pytest.approx(exact, abs=0.01)
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.035)


def test_bootstrap_interval_is_scipys():
    generator = np.random.default_rng(0)
    first, second = generator.random(80), generator.random(80) * 0.9
    theirs = stats.bootstrap((first - second,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    ours = paired_bootstrap(first, second, samples=20_000)
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.004)


def test_groups_are_drawn_whole():
    generator = np.random.default_rng(0)
    by_picture = generator.normal(size=30)
    per_query = np.repeat(by_picture, 5)
    groups = np.repeat(np.arange(30), 5).tolist()
    whole = paired_bootstrap(per_query, np.zeros(150), groups=groups, samples=20_000)
    pictures_alone = paired_bootstrap(by_picture, np.zeros(30), samples=20_000)
    as_if_independent = paired_bootstrap(per_query, np.zeros(150), samples=20_000)
    width = whole.high - whole.low
    assert width == pytest.approx(pictures_alone.high - pictures_alone.low, rel=0.05)
    assert width == pytest.approx(5**0.5 * (as_if_independent.high - as_if_independent.low), rel=0.1)


def test_bootstrap_repeats_and_never_says_zero():
    first, second = np.ones(20), np.zeros(20)
    result = paired_bootstrap(first, second, samples=99)
    assert result == paired_bootstrap(first, second, samples=99)
    assert result.p_value == 1 / 100
    assert paired_bootstrap(first, first).p_value == 1.0


def test_wrong_input_is_refused():
    with pytest.raises(DataError, match="paired test"):
        paired_t_test(np.ones(3), np.ones(4))
    with pytest.raises(DataError, match="at least 2"):
        paired_t_test(np.ones(1), np.ones(1))
    with pytest.raises(DataError, match="2 groups for 3 queries"):
        paired_bootstrap(np.ones(3), np.ones(3), groups=[1, 2])
    with pytest.raises(ConfigError, match="samples"):
        paired_bootstrap(np.ones(3), np.ones(3), samples=0)
    with pytest.raises(ConfigError, match="confidence"):
        paired_bootstrap(np.ones(3), np.ones(3), confidence=95)


class Fixed:
    def __init__(self, right):
        self.right = right

    def search(self, texts, k):
        return [[Hit("a", "", 1.0)] if text in self.right else [] for text in texts]


def evaluated(right, *, count=6, **changes):
    queries = [Query(f"q{i}", str(i), frozenset({"a"} if i % 2 else {"b", "a"})) for i in range(count)]
    return evaluate(Fixed(right), queries, ["a", "b"], conditions=Conditions(system="s", **changes), cutoffs=(1,))


def test_compare_takes_two_evaluations_of_the_same_queries():
    better, worse = evaluated({"0", "1", "2", "3"}), evaluated({"0"})
    result = compare(better, worse, 1)
    assert result.difference == pytest.approx(0.5)
    # Even queries have one set of right answers and gain 1 of 3, odd ones another and gain 2 of 3: two groups to draw.
    assert (result.low, result.high) == pytest.approx((1 / 3, 2 / 3))
    assert compare(worse, better, 1).difference == pytest.approx(-0.5)
    with pytest.raises(DataError, match="different queries"):
        compare(better, evaluated({"0"}, count=5), 1)
    with pytest.raises(ConfigError, match="transductive"):
        compare(better, evaluated({"0"}, protocol="transductive"), 1)
    with pytest.raises(ConfigError, match="R@5 was not measured"):
        compare(better, worse, 5)
