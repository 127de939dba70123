"""The exact search of linear models, against brute force and against a beam search at full width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.linear_models import LinearNumpyModel, LinearTorchModel, StepsOnly
from voken.decoding import beam, linear
from voken.decoding.beam import beam_search, beam_search_from_state
from voken.decoding.interface import LinearModel, StepModel
from voken.decoding.linear import LeafBias, LeafCodes, best_leaves, leaf_lengths
from voken.decoding.merged_trie import merged_trie
from voken.decoding.nearest import NearestSequences
from voken.decoding.node_bias import NodeBias, measure_prior, squared_lengths
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, VokenError

KINDS = [LinearNumpyModel, LinearTorchModel]
TEXTS = ["ship", "a cat", "two dogs", "x", "the sea"]


@st.composite
def tries(draw, most=500):
    """A trie, plain or merged: crowded (equal sequences) or sparse, with all vokens equally frequent or few of them."""
    size, levels = draw(st.integers(1, 20)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(1, most))
    vokens = rng.integers(0, size, (rows, levels))
    if draw(st.booleans()):
        vokens = np.minimum(vokens, rng.geometric(0.4, (rows, levels)) - 1)
    half = rows // 2
    if not half or draw(st.booleans()):
        return VokenTrie.from_vokens(vokens, size)
    dead = rng.permutation(half)[: draw(st.integers(0, half))]
    return merged_trie(VokenTrie.from_vokens(vokens[:half], size), dead, vokens[half:], np.arange(half, rows))


def brute_force(table, trie, bias):
    """All leaves, best first, and their scores: the sum of a query's table in float64, plus the bias."""
    vokens = trie.leaf_vokens(np.arange(trie.sequences)).astype(np.int64)
    scores = np.zeros(len(vokens))
    for level, column in enumerate(vokens.T):
        scores += table[level].astype(np.float64)[column]
    if bias is not None:
        scores += bias.of_sequences(vokens, np.arange(len(vokens)), trie).astype(np.float64)
    order = np.lexsort((np.arange(len(scores)), -scores.astype(np.float32)))
    return order, scores[order]


SCANS = ["numpy"] if linear._scan is None else ["numpy", 1, 32, 64]


@pytest.fixture(autouse=True, params=SCANS)
def scan(request, monkeypatch):
    """Each scan: by numpy, and by the compiled kernels that this processor has."""
    if request.param == "numpy":
        monkeypatch.setattr(linear, "_scan", None)
        monkeypatch.setattr(linear, "_MOST_CODES", 1 << 16)
        return
    compiled, width = linear._scan, request.param
    if width > compiled.processor_width():
        pytest.skip(f"this processor has no vectors of {width} bytes")

    class OneKernel:
        @staticmethod
        def best_leaves(*arguments):
            return compiled.best_leaves(*arguments, width)

    monkeypatch.setattr(linear, "_scan", OneKernel)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that small tries have several blocks, and codes of several levels."""
    monkeypatch.setattr(linear, "_LEAVES_AT_ONCE", 48)
    monkeypatch.setattr(linear, "_VECTORS_AT_ONCE", 7)
    monkeypatch.setattr(linear, "_GROUPED", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fakes_are_linear_models(kind):
    model = kind(3, 2)
    assert isinstance(model, StepModel)
    assert isinstance(model, LinearModel)
    assert not isinstance(StepsOnly(model), LinearModel)


@settings(max_examples=150, deadline=None)
@given(tries(), st.integers(1, 600), st.integers(1, 5), st.sampled_from([0.0, 1.0, 3.0]))
def test_the_best_leaves_are_those_of_brute_force(trie, count, queries, grain):
    model = LinearNumpyModel(trie.codebook_size, trie.levels, grain=grain)
    _, table = model.prefill(TEXTS[:queries])
    count = min(count, trie.sequences)
    leaves, scores = best_leaves(table, trie, count)
    for query in range(queries):
        order, expected = brute_force(table[query], trie, None)
        assert leaves[query].tolist() == order[:count].tolist()
        assert scores[query].tolist() == expected[:count].astype(np.float32).tolist()


@pytest.mark.parametrize(("size", "levels"), [(256, 6), (100, 5), (1000, 3), (16, 7)])
@pytest.mark.parametrize("norm", [0.0, 0.5])
@pytest.mark.parametrize("grain", [0.0, 0.5])
def test_the_best_of_many_leaves_are_those_of_brute_force(size, levels, norm, grain):
    rng = np.random.default_rng(size)
    # more than two blocks of the compiled scan, and a rest; crowded, so that many scores are nearly equal
    trie = VokenTrie.from_vokens(np.minimum(rng.geometric(6 / size, (17_000, levels)), size) - 1, size)
    books = rng.normal(size=(levels, size, 4)).astype(np.float32) / 4
    bias = NodeBias(norm, books) if norm else None
    _, table = LinearNumpyModel(size, levels, grain=grain).prefill(TEXTS)
    leaves, scores = best_leaves(table, trie, 40, bias)
    for query in range(len(TEXTS)):
        order, expected = brute_force(table[query], trie, bias)
        np.testing.assert_allclose(scores[query], expected[:40], rtol=1e-5, atol=1e-4)
        if bias is None:
            assert leaves[query].tolist() == order[:40].tolist()


def test_an_entry_far_below_all_others_or_no_differences_at_all():
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 9, (400, 4)), 9)
    _, table = LinearNumpyModel(9, 4).prefill(TEXTS)
    for lowest in (-np.inf, -1e9, np.float32(table.max())):
        changed = table.copy()
        changed[:, 0, 3] = lowest
        leaves, _ = best_leaves(changed, trie, 6)
        for query in range(len(TEXTS)):
            order, _ = brute_force(np.maximum(changed[query], np.float32(-1e30)), trie, None)
            assert leaves[query].tolist() == order[:6].tolist()
    flat = np.full_like(table, -3.0)
    assert best_leaves(flat, trie, 6)[0].tolist() == [list(range(6))] * len(TEXTS)


@settings(max_examples=80, deadline=None)
@given(tries(), st.integers(1, 30), st.sampled_from([(0.7, 0.0), (0.0, 0.9), (1.3, 1.0), (0.0, 0.0)]))
def test_the_bias_counts(trie, count, weights):
    model = LinearNumpyModel(trie.codebook_size, trie.levels)
    _, table = model.prefill(TEXTS)
    books = np.random.default_rng(3).normal(size=(trie.levels, trie.codebook_size, 5)).astype(np.float32)
    prior = measure_prior(model, ["a dog", "snow"], trie)
    bias = NodeBias(weights[0], books, weights[1], prior)
    count = min(count, trie.sequences)
    leaves, scores = best_leaves(table, trie, count, bias)
    for query in range(len(TEXTS)):
        order, expected = brute_force(table[query], trie, bias)
        np.testing.assert_allclose(scores[query], expected[:count], rtol=1e-5, atol=1e-4)
        by_leaf = np.empty(len(order))
        by_leaf[order] = expected
        np.testing.assert_allclose(by_leaf[leaves[query]], expected[:count], rtol=1e-5, atol=1e-4)
        assert len(set(leaves[query].tolist())) == count


@settings(max_examples=60, deadline=None)
@given(tries(most=120), st.sampled_from(KINDS), st.sampled_from([0.0, 0.6]), st.sampled_from([1.0, 0.5]))
def test_it_equals_a_beam_search_at_full_width(trie, kind, norm, temperature):
    model = kind(trie.codebook_size, trie.levels)
    books = np.random.default_rng(3).normal(size=(trie.levels, trie.codebook_size, 5)).astype(np.float32)
    bias = NodeBias(norm, books)
    width = trie.sequences + 2
    options = {"logit_temperature": temperature, "bias": bias}
    result = beam_search(model, trie, TEXTS, width, **options)
    assert not model.steps
    expected = beam_search(StepsOnly(model), trie, TEXTS, width, **options)
    assert model.steps
    np.testing.assert_allclose(result.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    for query in range(len(TEXTS)):
        by_leaf = dict(zip(expected.leaf[query].tolist(), expected.log_prob[query].tolist(), strict=True))
        same = [by_leaf[leaf] for leaf in result.leaf[query].tolist()]
        np.testing.assert_allclose(same, expected.log_prob[query], rtol=1e-4, atol=1e-4)
    exists = result.leaf >= 0
    assert exists.sum(axis=1).tolist() == [trie.sequences] * len(TEXTS)
    assert (result.vokens[exists] == trie.leaf_vokens(result.leaf[exists])).all()
    assert not result.vokens[~exists].any()
    assert (result.log_prob[~exists] == -np.inf).all()


def test_a_narrow_search_returns_what_beams_miss():
    # the best sequence has the worst first voken, which a single beam does not keep
    table = np.log(np.array([[[0.6, 0.4], [0.5, 0.5]]], dtype=np.float32))
    trie = VokenTrie.from_vokens(np.array([[0, 0], [1, 1]]), 2)
    books = np.array([[[0.0], [1.0]], [[2.0], [-1.0]]], dtype=np.float32)
    bias = NodeBias(0.2, books)  # the squared lengths are 4 and 0, but 0 and 1 after level 1

    class Fixed(LinearNumpyModel):
        def prefill(self, texts):
            return 0, table

    model = Fixed(2, 2)
    assert beam_search(StepsOnly(model), trie, ["x"], 1, bias=bias).leaf.tolist() == [[0]]
    assert beam_search(model, trie, ["x"], 1, bias=bias).leaf.tolist() == [[1]]


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lower_leaf(kind):
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 3, (300, 5)), 3)
    result = beam_search(kind(3, 5, grain=100.0), trie, TEXTS, 7)
    assert result.leaf.tolist() == [list(range(7))] * len(TEXTS)


def test_together_equals_alone():
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 9, (400, 4)), 9)
    model = LinearNumpyModel(9, 4)
    together = beam_search(model, trie, TEXTS, 6)
    for place, text in enumerate(TEXTS):
        alone = beam_search(model, trie, [text], 6)
        assert (alone.leaf[0] == together.leaf[place]).all()
        assert (alone.log_prob[0] == together.log_prob[place]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [4, 400])
def test_values_that_are_not_finite_are_an_error(kind, value, rows):
    class Diverged(kind):
        def table(self, text):
            table = super().table(text)
            table[1, 4] = value
            return table

    trie = VokenTrie.from_vokens(np.arange(rows * 3).reshape(-1, 3) % 9, 9)
    for model in (Diverged(9, 3), StepsOnly(Diverged(9, 3))):
        with pytest.raises(VokenError, match="not finite"):
            beam_search(model, trie, ["x"], 3)


def test_a_bias_that_is_not_finite_is_an_error():
    trie = VokenTrie.from_vokens(np.arange(60).reshape(-1, 2) % 9, 9)
    prior = tuple(np.full(trie.nodes(level), np.nan, np.float32) for level in (1, 2))
    with pytest.raises(VokenError, match="not finite"):
        beam_search(LinearNumpyModel(9, 2), trie, ["x"], 3, bias=NodeBias(prior_weight=1.0, prior=prior))


@pytest.mark.parametrize("rows", [10, 400])
def test_sequences_of_probability_0_are_left_out(rows):
    class OnlyOne(LinearNumpyModel):
        def table(self, text):
            table = super().table(text)
            table[0, 1:] = -np.inf
            return table

    vokens = np.random.default_rng(0).integers(0, 4, (rows, 4))
    vokens[0] = 0
    trie = VokenTrie.from_vokens(vokens, 4)
    possible = int((trie.leaf_vokens(np.arange(trie.sequences))[:, 0] == 0).sum())
    model = OnlyOne(4, 4)
    for searched in (model, StepsOnly(model)):
        result = beam_search(searched, trie, ["x"], trie.sequences)
        assert (result.leaf[0] >= 0).sum() == possible
        assert np.isfinite(result.log_prob[0, :possible]).all()


@pytest.mark.parametrize("once", [False, True])
def test_a_trie_that_is_too_large_to_scan_is_searched_by_beams_over_the_table(monkeypatch, once):
    monkeypatch.setattr(beam, "MOST_LEAVES_ONCE" if once else "MOST_LEAVES", 99)

    def refuse(*given):
        raise AssertionError("scanned")

    monkeypatch.setattr(beam, "best_leaves", refuse)
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 9, (300, 4)), 9)
    model = LinearNumpyModel(9, 4)
    model.answers_once = once
    result, expected = (beam_search(kind, trie, TEXTS, 5) for kind in (model, StepsOnly(model)))
    assert (result.leaf == expected.leaf).all()
    assert (result.log_prob == expected.log_prob).all()
    small = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 9, (90, 4)), 9)
    with pytest.raises(AssertionError, match="scanned"):
        beam_search(model, small, TEXTS, 5)


def test_an_empty_trie_has_no_sequences():
    result = beam_search(LinearNumpyModel(4, 2), VokenTrie.empty(2, 4), ["x"], 3)
    assert result.leaf.tolist() == [[-1, -1, -1]]


def test_another_size_is_an_error():
    with pytest.raises(ConfigError, match="writes 2 vokens of 4"):
        beam_search(LinearNumpyModel(4, 2), VokenTrie.from_vokens(np.array([[1, 2, 3]]), 4), ["x"], 3)


@pytest.mark.parametrize("most", [1 << 8, 1 << 16])
@pytest.mark.parametrize(("size", "levels", "rows"), [(256, 3, 40_000), (256, 4, 100), (1000, 3, 500), (2, 9, 300)])
def test_codes_hold_the_sequences(monkeypatch, size, levels, rows, most):
    monkeypatch.setattr(linear, "_MOST_CODES", most)
    trie = VokenTrie.from_vokens(np.random.default_rng(1).integers(0, size, (rows, levels)), size)
    codes = LeafCodes.of(trie)
    assert codes.levels_per_code == {(256, 40_000): most >> 15 or 1, (2, 300): 8}.get((size, rows), 1)
    leaves = np.arange(trie.sequences)
    assert (codes.vokens(leaves) == trie.leaf_vokens(leaves)).all()
    assert LeafCodes.of(trie) is codes


@settings(max_examples=60, deadline=None)
@given(tries())
def test_a_merged_trie_reuses_the_codes_and_lengths_of_its_base(trie):
    books = np.random.default_rng(3).normal(size=(trie.levels, trie.codebook_size, 5)).astype(np.float32)
    other = books + 1
    vokens = trie.leaf_vokens(np.arange(trie.sequences))
    codes = LeafCodes.of(trie)
    assert (codes.vokens(np.arange(trie.sequences)) == vokens).all()
    for chosen in (books, other, books):
        np.testing.assert_allclose(leaf_lengths(chosen, trie), squared_lengths(chosen, vokens), rtol=1e-4, atol=1e-5)
    assert leaf_lengths(books, trie) is leaf_lengths(books, trie)
    if trie.base is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LeafCodes, "_unpack", None)  # the base's codes are there
            linear._CODES.pop(trie)
            again = LeafCodes.of(trie)
        assert all((one == two).all() for one, two in zip(codes.codes, again.codes, strict=True))


@pytest.mark.parametrize("most_leaves", [0, 10**6])
def test_similar_pictures_are_searched_exactly(monkeypatch, most_leaves):
    monkeypatch.setattr(beam, "MOST_LEAVES", most_leaves)
    rng = np.random.default_rng(1)
    books = rng.normal(size=(4, 6, 5)).astype(np.float32)
    trie = VokenTrie.from_vokens(rng.integers(0, 6, (300, 4)), 6)
    walker = NearestSequences(books)
    assert isinstance(walker, LinearModel)
    points = rng.normal(size=(6, 5)).astype(np.float32)
    result = beam_search_from_state(walker, walker.prefill(points), trie, trie.sequences)
    expected = beam_search_from_state(StepsOnly(walker), walker.prefill(points), trie, trie.sequences)
    np.testing.assert_allclose(result.log_prob, expected.log_prob, rtol=1e-4, atol=1e-4)
    assert (result.leaf == expected.leaf).mean() > 0.99
    narrow = beam_search_from_state(walker, walker.prefill(points), trie, 3)
    assert (narrow.leaf == result.leaf[:, :3]).all() == bool(most_leaves)


@pytest.mark.parametrize("size", [2, 30])  # by inner products of entries, and by vectors
def test_lengths_are_those_of_the_sums(size):
    rng = np.random.default_rng(1)
    trie = VokenTrie.from_vokens(rng.integers(0, size, (300, 6)), size)
    books = rng.normal(size=(6, size, 8)).astype(np.float32)
    bias = LeafBias.of(NodeBias(2.0, books), trie)
    vokens = trie.leaf_vokens(np.arange(trie.sequences))
    expected = [-2 * float(np.square(books[range(6), row].sum(0)).sum()) for row in vokens.tolist()]
    np.testing.assert_allclose(bias.greatest + bias.below, expected, rtol=1e-5)
