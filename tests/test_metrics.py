"""Metrics against brute force over every order of the ties, hand-worked cases and ir_measures."""

import doctest
import itertools
from fractions import Fraction

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Qrel, R, ScoredDoc, Success

from voken import metrics
from voken.errors import ConfigError, DataError
from voken.metrics import (
    collision_rate,
    first_relevant,
    first_relevant_by_product,
    ranked_matrices,
    recall_at,
    reciprocal_rank_at,
    sequence_recall,
)


def orders(scores):
    """Every order of the pictures that respects the scores, each as likely as any other."""
    return [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]


def brute_recall(scores, relevant, k):
    every = orders(scores)
    return Fraction(sum(any(relevant[i] for i in order[:k]) for order in every), len(every))


def brute_reciprocal_rank(scores, relevant, k):
    every = orders(scores)
    total = Fraction(0)
    for order in every:
        ranks = [rank for rank, i in enumerate(order, start=1) if relevant[i] and rank <= k]
        total += Fraction(1, ranks[0]) if ranks else 0
    return total / len(every)


pictures = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(pictures, st.integers(1, 8))
def test_expected_recall_is_the_mean_over_every_order_of_the_ties(pool, k):
    scores = np.array([[float(score) for score, _ in pool]])
    relevant = np.array([[right for _, right in pool]])
    assert recall_at(first_relevant(scores, relevant), k)[0] == pytest.approx(
        float(brute_recall(scores[0], relevant[0], k))
    )


@settings(deadline=None, max_examples=60)
@given(pictures, st.integers(1, 8))
def test_reciprocal_rank_is_the_mean_over_every_order_of_the_ties(pool, k):
    scores = np.array([[float(score) for score, _ in pool]])
    relevant = np.array([[right for _, right in pool]])
    result = reciprocal_rank_at(first_relevant(scores, relevant), k)[0]
    assert result == pytest.approx(float(brute_reciprocal_rank(scores[0], relevant[0], k)))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_an_exact_search_in_blocks_equals_one_matrix(block, monkeypatch):
    monkeypatch.setattr("voken.metrics._QUERIES_PER_BLOCK", block)
    random = np.random.default_rng(0)
    queries, pool = random.integers(-2, 3, (7, 3)), random.integers(-2, 3, (20, 3))
    answers = np.argwhere(random.random((7, 20)) < 0.1)
    relevant = np.zeros((7, 20), dtype=bool)
    relevant[tuple(answers.T)] = True
    in_blocks, whole = first_relevant_by_product(queries, pool, answers), first_relevant(queries @ pool.T, relevant)
    for name in ("above", "tied", "relevant"):
        np.testing.assert_array_equal(getattr(in_blocks, name), getattr(whole, name))


def test_hand_worked_ties():
    scores = np.array([[9.0, 5.0, 5.0, 5.0, 5.0, 1.0]] * 4)
    relevant = np.zeros((4, 6), dtype=bool)
    relevant[0, 0] = True  # above every tie
    relevant[1, 2] = True  # one of four tied at ranks 2 to 5
    relevant[2, [2, 4]] = True  # two of the four
    relevant[3, 5] = True  # below them
    ranks = first_relevant(scores, relevant)
    assert recall_at(ranks, 1).tolist() == [1, 0, 0, 0]
    assert recall_at(ranks, 3) == pytest.approx([1, 2 / 4, 1 - (2 / 4) * (1 / 3), 0])
    assert recall_at(ranks, 5) == pytest.approx([1, 1, 1, 0])
    assert recall_at(ranks, 6) == pytest.approx([1, 1, 1, 1])


def test_a_system_without_opinion_gets_what_chance_gets():
    scores = np.zeros((1, 1000))
    relevant = np.zeros((1, 1000), dtype=bool)
    relevant[0, 17] = True
    assert recall_at(first_relevant(scores, relevant), 10)[0] == pytest.approx(10 / 1000)


def test_pictures_that_were_not_returned_count_nothing():
    scores = np.array([[1.0, -np.inf, -np.inf]])
    assert recall_at(first_relevant(scores, np.array([[False, True, True]])), 3).tolist() == [0.0]
    empty_scores, empty_right = ranked_matrices([[], []], [{"a"}, {"b"}])
    assert recall_at(first_relevant(empty_scores, empty_right), 5).tolist() == [0.0, 0.0]


def test_lists_of_unequal_length_are_padded():
    scores, right = ranked_matrices([[("a", 2.0), ("b", 1.0)], [("c", 3.0)]], [{"b", "z"}, {"c"}])
    assert scores.tolist() == [[2.0, 1.0], [3.0, -np.inf]]
    assert right.tolist() == [[False, True], [True, False]]


def test_recall_is_what_ir_measures_calls_success_where_nothing_ties():
    generator = np.random.default_rng(0)
    scores = generator.permuted(np.arange(12.0) * np.ones((40, 1)), axis=1)
    relevant = generator.random((40, 12)) < 0.15
    relevant[:, 0] |= ~relevant.any(axis=1)
    run = [ScoredDoc(f"q{q}", f"d{d}", float(scores[q, d])) for q in range(40) for d in range(12)]
    qrels = [Qrel(f"q{q}", f"d{d}", int(relevant[q, d])) for q in range(40) for d in range(12)]
    theirs = ir_measures.calc_aggregate([Success @ 1, Success @ 5, Success @ 10, RR @ 10, R @ 5], qrels, run)
    for k in (1, 5, 10):
        assert recall_at(first_relevant(scores, relevant), k).mean() == pytest.approx(theirs[Success @ k])
    ranks = first_relevant(scores, relevant)
    assert reciprocal_rank_at(ranks, 10).mean() == pytest.approx(theirs[RR @ 10])
    # With several right answers TREC's R@K is another thing: the share of them that was found.
    assert recall_at(ranks, 5).mean() > theirs[R @ 5]


def test_sequence_recall_counts_distinct_sequences():
    ranked = [["x", "x", "x", "y", "z"], ["z", "z"], []]
    relevant = [{"y"}, {"y", "z"}, {"x"}]
    assert sequence_recall(ranked, relevant, 1).tolist() == [0, 1, 0]
    assert sequence_recall(ranked, relevant, 2).tolist() == [1, 1, 0]


def test_collision_rate_is_the_share_of_pictures_not_of_sequences():
    vokens = np.array([[1, 2], [1, 2], [1, 2], [2, 1], [0, 0]], dtype=np.int32)
    assert collision_rate(vokens) == 3 / 5
    assert collision_rate(np.array([[1], [2]])) == 0.0


def test_wrong_input_is_refused():
    right = np.array([[True, False]])
    with pytest.raises(DataError, match="query 0, picture 1 is NaN"):
        first_relevant(np.array([[1.0, np.nan]]), right)
    with pytest.raises(DataError, match="shape"):
        first_relevant(np.array([[1.0]]), right)
    with pytest.raises(ConfigError, match="K of 1 or more"):
        recall_at(first_relevant(np.array([[1.0, 0.0]]), right), 0)
    with pytest.raises(ConfigError, match="K of 1 or more"):
        sequence_recall([["x"]], [{"x"}], 0)
    with pytest.raises(DataError, match="2 answers for 1 queries"):
        ranked_matrices([[], []], [set()])
    with pytest.raises(DataError, match="2 answers for 1 queries"):
        sequence_recall([[], []], [set()], 1)
    with pytest.raises(DataError, match="vokens must have the shape"):
        collision_rate(np.zeros((0, 4), dtype=np.int32))


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(metrics)
    assert result.attempted > 0
    assert result.failed == 0
