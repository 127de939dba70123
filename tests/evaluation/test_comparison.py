"""Two saved evaluations compared: the same figures as in memory and as scipy's, and what is refused."""

import json

import numpy as np
import pytest
from scipy import stats

from voken.errors import ConfigError, DataError
from voken.search.hit import Hit
from voken_lab.evaluation.comparison import compare_rows, comparison_table, pair_rows, read_rows
from voken_lab.evaluation.protocol import Conditions, Query, evaluate
from voken_lab.evaluation.significance import compare


class Answering:
    """Finds the right answer of a text with the chance given, at one of the first six places."""

    def __init__(self, chance, seed):
        self.chance, self.seed = chance, seed

    def search(self, texts, k):
        return [self.answer(text) for text in texts]

    def answer(self, text):
        random = np.random.default_rng([self.seed, int(text)])
        names = [f"p{(int(text) // 3 + step) % 20}" for step in range(1, 6)]
        if random.random() < self.chance:
            names.insert(int(random.integers(0, 6)), f"p{int(text) // 3}")
        return [Hit(name, "", float(-rank)) for rank, name in enumerate(names)]


def queries_of_seed(seed, count=60):
    """Three texts a picture, in an order of the seed's own."""
    order = np.random.default_rng(seed).permutation(count)
    return [Query(f"q{i}", str(i), frozenset({f"p{i // 3}"})) for i in order]


def evaluated(chance, *, seed=0, queries=None, cutoffs=(1, 5), pictures=20, **conditions):
    conditions = {"system": "ours", "dataset": "made up", "seed": seed} | conditions
    return evaluate(
        Answering(chance, int(100 * chance) + seed),
        queries or queries_of_seed(seed),
        [f"p{i}" for i in range(pictures)],
        conditions=Conditions(**conditions),
        cutoffs=cutoffs,
    )


def write(path, evaluations, per_query=True):
    path.write_text(json.dumps({"rows": [one.to_dict(per_query=per_query) for one in evaluations]}))
    return path


def compared(tmp_path, first, second, **settings):
    """Both written, read, and their first rows compared."""
    paths = write(tmp_path / "a.json", first), write(tmp_path / "b.json", second)
    return compare_rows(*(read_rows(path)[0] for path in paths), **settings)


def test_files_say_what_the_evaluations_in_memory_say(tmp_path):
    first, second = evaluated(0.8), evaluated(0.5)
    comparison = compared(tmp_path, [first], [second], samples=2000, seed=5)
    assert (comparison.queries, comparison.groups, comparison.seeds) == (60, 20, (0,))
    for row in comparison.cutoffs:
        assert row.bootstrap == compare(first, second, row.k, samples=2000, seed=5)
        theirs = stats.ttest_rel(first.recall_per_query[row.k], second.recall_per_query[row.k])
        assert row.t_test.t == pytest.approx(theirs.statistic)
        assert row.t_test.p_value == pytest.approx(theirs.pvalue)
        assert (row.first, row.second) == pytest.approx((first.recall[row.k], second.recall[row.k]))
    assert comparison.cutoffs[1].bootstrap.difference > 0.1


def test_the_interval_is_scipys_bootstrap_over_groups(tmp_path):
    first, second = evaluated(0.8), evaluated(0.5)
    comparison = compared(tmp_path, [first], [second], samples=20_000)
    by_picture = {}
    for query, one, other in zip(first.queries, first.recall_per_query[5], second.recall_per_query[5], strict=True):
        by_picture.setdefault(query.relevant, []).append(one - other)
    means = np.mean(list(by_picture.values()), axis=1)  # three queries each, so the mean of means is the mean
    theirs = stats.bootstrap((means,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    ours = comparison.cutoffs[1].bootstrap
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.01)


def test_queries_are_paired_by_id_in_whatever_order(tmp_path):
    queries = queries_of_seed(0)
    first, second = evaluated(0.8, queries=queries), evaluated(0.5, queries=queries[::-1])
    straight = compared(tmp_path, [first], [evaluated(0.5, queries=queries)])
    assert compared(tmp_path, [first], [second]) == straight


def test_seeds_are_pooled_and_their_groups_kept_apart(tmp_path):
    first, second = ([evaluated(chance, seed=seed) for seed in (0, 1, 2)] for chance in (0.8, 0.5))
    comparison = compared(tmp_path, first, second[::-1])
    assert (comparison.queries, comparison.groups, comparison.seeds) == (180, 60, (0, 1, 2))
    differences = [
        one - other
        for left, right in zip(first, second, strict=True)
        for one, other in zip(left.recall_per_query[5], right.recall_per_query[5], strict=True)
    ]
    assert comparison.cutoffs[1].bootstrap.difference == pytest.approx(np.mean(differences))
    assert comparison.cutoffs[1].t_test.p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    with pytest.raises(ConfigError, match=r"seeds \[0, 1, 2\] and ours \[0, 1\]"):
        compared(tmp_path, first, second[:2])


def test_only_cutoffs_that_both_measured(tmp_path):
    comparison = compared(tmp_path, [evaluated(0.8, cutoffs=(1, 5, 10))], [evaluated(0.5, cutoffs=(5, 20))])
    assert [row.k for row in comparison.cutoffs] == [5]
    with pytest.raises(ConfigError, match="share no cutoff"):
        compared(tmp_path, [evaluated(0.8, cutoffs=(1,))], [evaluated(0.5, cutoffs=(5,))])


def test_what_cannot_be_compared_is_refused(tmp_path):
    ours = evaluated(0.8)
    with pytest.raises(ConfigError, match="is inductive and ours transductive"):
        compared(tmp_path, [ours], [evaluated(0.5, protocol="transductive")])
    with pytest.raises(DataError, match="60 and 30 queries"):
        compared(tmp_path, [ours], [evaluated(0.5, queries=queries_of_seed(0)[:30])])
    with pytest.raises(DataError, match="20 and 21 pictures"):
        compared(tmp_path, [ours], [evaluated(0.5, pictures=21)])
    other_answers = [Query(q.query_id, q.text, q.relevant | {"p0"}) for q in queries_of_seed(0)]
    with pytest.raises(DataError, match="different queries or pools"):
        compared(tmp_path, [ours], [evaluated(0.5, queries=other_answers)])
    with pytest.raises(DataError, match="--per-query"):
        compare_rows(*read_rows(write(tmp_path / "c.json", [ours], per_query=False)) * 2)


def test_files_of_an_older_voken_are_refused_and_broken_ones_too(tmp_path):
    record = evaluated(0.8).to_dict(per_query=True)
    del record["per_query"]["group"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="older voken"):
        compare_rows(*read_rows(path) * 2)
    record["per_query"]["group"] = ["g"]
    path.write_text(json.dumps([record]))
    with pytest.raises(DataError, match="do not fit together"):
        compare_rows(*read_rows(path) * 2)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": [1]}', '"text"', "\xff"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.json: .*voken eval"):
        read_rows(path)


def test_missing_files_and_doubles_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_rows(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="ours is there twice with seed 0"):
        read_rows(write(tmp_path / "a.json", [evaluated(0.8), evaluated(0.5)]))


@pytest.fixture
def table(tmp_path):
    """Rows as `voken eval` writes them: two systems, then a model's two read-outs, at a number of beams."""

    def rows(model, beams):
        evaluations = [
            evaluated(0.6, system="two-tower, exact"),
            evaluated(0.5, system="ceiling"),
            evaluated(0.7, system=model, readout="generate", beams=beams),
            evaluated(0.8, system=model, readout="vector", beams=beams),
        ]
        return read_rows(write(tmp_path / "rows.json", evaluations))

    return rows


def names(pairs):
    return [(one.name, other.name) for one, other in pairs]


def test_rows_meet_their_like(table):
    ours, theirs = table("voken a", 20), table("voken b", 100)
    pairs, alone = pair_rows(ours, theirs[1:])
    assert names(pairs) == [
        ("ceiling", "ceiling"),
        ("voken a, generate", "voken b, generate"),
        ("voken a, vector", "voken b, vector"),
    ]
    assert alone == ["two-tower, exact"]
    assert names(pair_rows(ours[:1], theirs[1:2])[0]) == [("two-tower, exact", "ceiling")]


def test_rows_are_chosen_by_readout_system_or_name(table):
    ours = table("voken a", 20)
    for row in ("vector", "voken a, vector", "VECTOR"):
        assert names(pair_rows(ours, ours, row=row)[0]) == [("voken a, vector", "voken a, vector")]
    chosen, alone = pair_rows(ours, ours, row="vector", row_b="two-tower, exact")
    assert (names(chosen), alone) == ([("voken a, vector", "two-tower, exact")], [])
    with pytest.raises(ConfigError, match=r"'voken a' fits 2 rows of A. Rows of A: 'voken a, generate'; 'voken a, vec"):
        pair_rows(ours, ours, row="voken a")
    with pytest.raises(ConfigError, match=r"'voken' fits no rows of A. Rows of A: 'two-tower, exact'; 'ceiling'"):
        pair_rows(ours, ours, row="voken")
    with pytest.raises(ConfigError, match="'best' fits no rows of B"):
        pair_rows(ours, ours, row="vector", row_b="best")
    with pytest.raises(ConfigError, match="with --row"):
        pair_rows(ours, ours, row_b="vector")


def test_rows_of_one_readout_are_told_apart_by_what_differs(table):
    both = (*table("voken a", 20), *table("voken b", 20)[2:])
    assert names(pair_rows(both, both[4:])[0]) == [(f"voken b, {one}",) * 2 for one in ("generate", "vector")]
    with pytest.raises(ConfigError, match=r"No row of A has a partner.*'voken c, generate'.*Rows of B: "):
        pair_rows(table("voken c", 20)[2:], both)


def test_names_say_beams_and_pool_where_these_differ(tmp_path):
    evaluations = [evaluated(0.6, readout="voken", beams=beams, pool=pool) for beams in (5, 9) for pool in ("x", "y")]
    rows = read_rows(write(tmp_path / "a.json", [*evaluations, evaluated(0.5, system="other", pool="x")]))
    expected = [f"ours, voken, {beams} beams, {pool}" for beams in (5, 9) for pool in ("x", "y")]
    assert [row.name for row in rows] == [*expected, "other"]
    assert pair_rows(rows, rows, row=expected[2])[0][0][0] is rows[2]


def test_the_table_and_its_json(tmp_path):
    comparison = compared(tmp_path, [evaluated(1.0, cutoffs=(20,))], [evaluated(0.0, cutoffs=(20,))], samples=9999)
    lines = comparison_table([comparison]).splitlines()
    assert lines[0] == "**A: ours; B: ours**"
    assert lines[2] == "| | A | B | A − B | 95% interval | bootstrap p | t-test p |"
    assert lines[4] == "| R@20 | 100.0 | 0.0 | +100.0 | +100.0 … +100.0 | 0.0001 | < 0.0001 |"
    assert lines[6] == "60 queries in 20 groups, 9,999 resamples; seed 0."
    report = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert report["cutoffs"][0]["t_test"] == {"difference": 1.0, "t": None, "degrees": 59, "p_value": 0.0}
