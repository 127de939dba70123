"""One tower: rankings that are known from the scores, and that equal brute force."""

import itertools

import numpy as np
import pytest

from voken.errors import ConfigError, DataError, EmptyDataError
from voken.search.hit import Hit
from voken_lab.evaluation.protocol import Conditions, Pool, Query, evaluate
from voken_lab.systems.one_tower import OneTower, Reranked
from voken_lab.systems.pictures import SearchSystem


class Table:
    """A scorer that looks its scores up."""

    bytes_per_picture = 12.0

    def __init__(self, scores):
        self.scores = {text: np.asarray(row) for text, row in scores.items()}
        self.queries = []

    def score(self, text, rows):
        self.queries.append((text, rows.tolist()))
        return self.scores[text][rows]


class Fixed:
    """A system whose answers are fixed."""

    def __init__(self, answers):
        self.answers = answers
        self.queries = []

    def search(self, texts, k):
        self.queries.append(k)
        return [self.answers[text][:k] for text in texts]


def answer(*names, start=9.0, step=1.0):
    return [Hit(name, f"{name}.png", start - step * place, (place,)) for place, name in enumerate(names)]


def names(hits):
    return "".join(hit.image_id for hit in hits)


def test_ranking_equals_brute_force():
    random = np.random.default_rng(0)
    ids = [f"p{row}" for row in range(40)]
    table = Table({"a": random.normal(size=40), "b": random.integers(0, 4, 40).astype(float)})
    system = OneTower(table, ids, paths=[f"{name}.png" for name in ids])
    for k in (1, 7, 40, 100):
        for text, hits in zip("ab", system.search(["a", "b"], k), strict=True):
            row_of = {hit.image_id: int(hit.image_id[1:]) for hit in hits}
            expected = sorted(range(40), key=lambda row: (-table.scores[text][row], row))[:k]
            assert [row_of[hit.image_id] for hit in hits] == expected
            assert [hit.score for hit in hits] == [table.scores[text][row] for row in expected]
            assert all(hit.path == f"{hit.image_id}.png" for hit in hits)
    assert isinstance(system, SearchSystem)
    assert system.search([], 3) == []


def test_bytes_are_the_scorers_unless_given():
    assert OneTower(Table({}), ["a"]).bytes_per_picture == 12.0
    assert OneTower(Table({}), ["a"], bytes_per_picture=3.0).bytes_per_picture == 3.0
    assert Reranked(OneTower(Table({}), ["a"]), Table({}), ["a"], depth=1).bytes_per_picture == 24.0
    assert Reranked(Fixed({}), Table({}), ["a"], depth=1).bytes_per_picture is None


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(EmptyDataError, match="no picture"):
        OneTower(Table({}), [])
    with pytest.raises(DataError, match="twice"):
        OneTower(Table({}), ["a", "a"])
    with pytest.raises(DataError, match="2 picture ids and 1 paths"):
        OneTower(Table({}), ["a", "b"], paths=["a.png"])
    with pytest.raises(ConfigError, match="k: 0"):
        OneTower(Table({"t": [1.0]}), ["a"]).search(["t"], 0)
    with pytest.raises(DataError, match="shape"):
        OneTower(type("Short", (), {"score": lambda self, text, rows: np.zeros(1)})(), ["a", "b"]).search(["t"], 1)
    with pytest.raises(DataError, match=r"not finite for 't' and the picture at row 1"):
        OneTower(Table({"t": [1.0, np.nan]}), ["a", "b"]).search(["t"], 1)


def test_the_first_hits_are_put_in_the_scorers_order_and_the_rest_follow():
    table = Table({"t": [0.1, 0.9, 0.5, 0.7, 0.99]})  # pictures a, b, c, d, e
    system = Fixed({"t": answer(*"acbed")})
    reranked = Reranked(system, table, list("abcde"), depth=3)
    hits = reranked.search(["t"], 5)[0]
    assert names(hits) == "bcaed"
    assert [hit.score for hit in hits[:3]] == [0.9, 0.5, 0.1]
    assert all(before.score > after.score for before, after in itertools.pairwise(hits))
    assert hits[0] == Hit("b", "b.png", 0.9, (2,))
    assert table.queries == [("t", [0, 2, 1])]
    assert names(reranked.search(["t"], 2)[0]) == "bc"
    assert system.queries == [5, 3]


@pytest.mark.parametrize("depth", [1, 2, 5, 9])
def test_scores_fall_and_ties_behind_stay_ties(depth):
    table = Table({"t": [-3.0, 2.0, 2.0, 0.0, 1.0]})
    tied = [Hit(name, "", score) for name, score in zip("abcde", [5.0, 4.0, 4.0, 4.0, -1.0], strict=True)]
    hits = Reranked(Fixed({"t": tied}), table, list("abcde"), depth=depth).search(["t"], 5)[0]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert names(hits) == {1: "abcde", 2: "bacde", 5: "bceda", 9: "bceda"}[depth]
    if depth == 1:
        assert scores[1] == scores[2] == scores[3]
        assert scores[0] > scores[1]


def test_a_tail_far_apart_from_the_head_still_falls():
    table = Table({"t": [-1e3, 1e3, 0.0, 0.0]})
    tail = [Hit(name, "", score) for name, score in zip("abcd", [1e6, 1e6 - 1, 1e6 - 2, -1e6], strict=True)]
    scores = [hit.score for hit in Reranked(Fixed({"t": tail}), table, list("abcd"), depth=2).search(["t"], 4)[0]]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_reranking_everything_equals_one_tower():
    random = np.random.default_rng(1)
    ids = [f"p{row}" for row in range(20)]
    table = Table({"t": random.normal(size=20)})
    first = Fixed({"t": answer(*random.permutation(ids).tolist())})
    expected = [hit.image_id for hit in OneTower(table, ids).search(["t"], 20)[0]]
    assert [hit.image_id for hit in Reranked(first, table, ids, depth=20).search(["t"], 20)[0]] == expected


def test_both_pass_the_protocols_checks():
    random = np.random.default_rng(2)
    ids = tuple(f"p{row}" for row in range(30))
    texts = [f"t{row}" for row in range(30)]
    right = {text: random.normal(size=30) for text in texts}
    for row, text in enumerate(texts):
        right[text][row] += 10  # picture `row` is the answer to text `row`, and the scorer knows it
    first = Fixed({text: answer(*random.permutation(ids).tolist(), step=1.0) for text in texts})
    queries = [Query(text, text, frozenset({f"p{row}"})) for row, text in enumerate(texts)]
    conditions = Conditions(system="made up")
    pool = Pool(ids)
    whole = evaluate(OneTower(Table(right), ids), queries, pool, conditions=conditions)
    assert whole.recall == {1: 1.0, 5: 1.0, 10: 1.0}
    half = evaluate(Reranked(first, Table(right), ids, depth=15), queries, pool, conditions=conditions)
    is_hit = [f"p{row}" in {hit.image_id for hit in first.answers[text][:15]} for row, text in enumerate(texts)]
    assert 0 < np.mean(is_hit) < 1
    assert half.recall[1] == pytest.approx(np.mean(is_hit))


def test_impossible_reranks_are_refused():
    with pytest.raises(ConfigError, match="depth: 0"):
        Reranked(Fixed({}), Table({}), ["a"], depth=0)
    with pytest.raises(ConfigError, match="k: 0"):
        Reranked(Fixed({"t": []}), Table({}), ["a"], depth=1).search(["t"], 0)
    with pytest.raises(DataError, match="'z' is a hit, but not in the scorer's pool"):
        Reranked(Fixed({"t": answer("z")}), Table({}), ["a"], depth=1).search(["t"], 1)
    assert Reranked(Fixed({"t": []}), Table({}), ["a"], depth=1).search(["t"], 1) == [[]]
