"""The beam search against brute force, with a model whose logits depend on the whole prefix."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.prefix_models import LogProbPrefixModel, NumpyPrefixModel, PrefixModel
from builders.score_sequences import score_sequences
from voken.decoding import beam, torch_expansion
from voken.decoding.beam import beam_search, beam_search_from_state
from voken.decoding.interface import StepModel
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, VokenError

KINDS = [PrefixModel, NumpyPrefixModel, LogProbPrefixModel]


def brute_force(model, text, sequences, temperature=1.0):
    scores = [model.log_prob(text, sequence, temperature) for sequence in sequences]
    order = sorted(range(len(sequences)), key=lambda leaf: (-scores[leaf], leaf))
    return order, [scores[leaf] for leaf in order]


def plain_beam_search(model, text, sequences, beams):
    """A beam search over Python tuples: the same pruning, written the obvious way."""
    best = [((), 0.0)]
    for level in range(len(sequences[0])):
        allowed = {sequence[: level + 1] for sequence in sequences}
        extended = []
        for prefix, score in best:
            logits = model.logits(text, prefix)
            total = np.log(np.exp(logits).sum())
            for voken in range(model.codebook_size):
                if (*prefix, voken) in allowed:
                    extended.append(((*prefix, voken), score + logits[voken] - total))
        best = sorted(extended, key=lambda beam: (-beam[1], beam[0]))[:beams]
    return best


@st.composite
def searches(draw):
    size, levels = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vokens = rng.integers(0, size, (draw(st.integers(1, 30)), levels))
    return draw(st.sampled_from(KINDS))(size, levels), vokens, VokenTrie.from_vokens(vokens, size)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fakes_are_step_models(kind):
    assert isinstance(kind(3, 2), StepModel)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 5, 16, 37, 64, 150]), st.integers(1, 3), st.integers(1, 40))
def test_torch_and_numpy_find_the_same(seed, size, levels, beams):
    """Wide levels and narrow, full and nearly empty, more beams than sequences."""
    rng = np.random.default_rng(seed)
    vokens = rng.integers(0, size, (int(rng.choice([1, 20, 2000])), levels))
    if rng.random() < 0.3:
        vokens[:, 0] = vokens[0, 0]
    trie = VokenTrie.from_vokens(vokens, size)
    theirs = beam_search(PrefixModel(size, levels), trie, ["a", "bc"], beams)
    for kind in (NumpyPrefixModel, LogProbPrefixModel):
        mine = beam_search(kind(size, levels), trie, ["a", "bc"], beams)
        np.testing.assert_array_equal(mine.leaf, theirs.leaf)
        np.testing.assert_array_equal(mine.vokens, theirs.vokens)
        np.testing.assert_allclose(mine.log_prob, theirs.log_prob, rtol=1e-5, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 40), st.integers(1, 700))
def test_the_best_are_chosen_alike(seed, queries, count, candidates):
    """With scores of few values nearly all are tied: the first are taken."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, rng.choice([1, 3, 100]), (queries, candidates)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -1e30
    count = min(count, candidates)
    expected = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)
    np.testing.assert_array_equal(torch_expansion._best(torch.from_numpy(scores), count).numpy(), expected)
    flat = beam._best(scores, count)
    np.testing.assert_array_equal(flat - np.arange(queries)[:, None] * candidates, expected)


def test_a_numpy_model_is_searched_without_torch():
    code = (
        "import sys, voken.decoding.beam, voken.decoding.interface, voken.decoding.trie, voken.collection.store\n"
        "print(sorted({'torch', 'PIL', 'onnxruntime', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@settings(max_examples=60, deadline=None)
@given(searches(), st.sampled_from([1.0, 0.5, 3.0]))
def test_full_width_equals_brute_force(search, temperature):
    model, vokens, trie = search
    sequences = sorted(set(map(tuple, vokens.tolist())))
    texts = ["a cat", "ship"]
    result = beam_search(model, trie, texts, len(sequences) + 3, logit_temperature=temperature)
    assert result.vokens.dtype == np.int32
    assert result.leaf.dtype == np.int64
    assert result.log_prob.dtype == np.float32
    for query, text in enumerate(texts):
        order, scores = brute_force(model, text, sequences, temperature)
        assert result.leaf[query].tolist() == [*order, -1, -1, -1]
        np.testing.assert_allclose(result.log_prob[query, : len(order)], scores, rtol=1e-4, atol=1e-4)
        assert (result.log_prob[query, len(order) :] == -np.inf).all()
        assert [tuple(s) for s in result.vokens[query, : len(order)].tolist()] == [sequences[leaf] for leaf in order]
        assert (result.vokens[query, len(order) :] == 0).all()


@settings(max_examples=60, deadline=None)
@given(searches(), st.integers(1, 6))
def test_narrow_beams_equal_a_plain_beam_search(search, beams):
    model, vokens, trie = search
    sequences = sorted(set(map(tuple, vokens.tolist())))
    result = beam_search(model, trie, ["dog"], beams)
    expected = plain_beam_search(model, "dog", sequences, beams)
    assert result.leaf[0, : len(expected)].tolist() == [sequences.index(prefix) for prefix, _ in expected]
    np.testing.assert_allclose(
        result.log_prob[0, : len(expected)], [score for _, score in expected], rtol=1e-4, atol=1e-4
    )


@settings(max_examples=30, deadline=None)
@given(searches())
def test_one_beam_is_greedy(search):
    model, vokens, trie = search
    result = beam_search(model, trie, ["x"], 1)
    prefix: tuple[int, ...] = ()
    for level in range(model.levels):
        allowed = {s[level] for s in map(tuple, vokens.tolist()) if s[:level] == prefix}
        logits = model.logits("x", prefix)
        prefix = (*prefix, max(allowed, key=lambda voken: logits[voken]))
    assert tuple(result.vokens[0, 0].tolist()) == prefix


@settings(max_examples=30, deadline=None)
@given(searches(), st.integers(1, 8))
def test_a_batch_equals_its_queries_alone(search, beams):
    model, _, trie = search
    texts = ["a", "bb", "ccc"]
    together = beam_search(model, trie, texts, beams)
    for query, text in enumerate(texts):
        alone = beam_search(model, trie, [text], beams)
        assert (alone.leaf[0] == together.leaf[query]).all()
        assert (alone.vokens[0] == together.vokens[query]).all()
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[query], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(searches(), st.integers(1, 40), st.sampled_from(KINDS))
def test_ties_go_to_the_lower_leaf(search, beams, kind):
    """With logits of a coarse grain many sums are exactly equal; uniform logits make all of them so."""
    _, vokens, trie = search
    sequences = sorted(set(map(tuple, vokens.tolist())))
    uniform = kind(trie.codebook_size, trie.levels, grain=1e9)
    result = beam_search(uniform, trie, ["t"], beams)
    count = min(beams, len(sequences))
    # Level by level the lowest nodes are kept, so the leaves are the first ones.
    assert result.leaf[0, :count].tolist() == list(range(count))
    coarse = kind(trie.codebook_size, trie.levels, grain=2.0)
    once, twice = (beam_search(coarse, trie, ["t", "u"], beams) for _ in range(2))
    assert (once.leaf == twice.leaf).all()
    for leaves, scores in zip(once.leaf, once.log_prob, strict=True):
        for (first, above), (second, below) in itertools.pairwise(zip(leaves, scores, strict=True)):
            assert above > below or second == -1 or (above == below and first < second)


def test_level_one_costs_one_beam_and_no_level_more_than_it_has_nodes():
    vokens = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 1]])
    model = PrefixModel(2, 3)
    beam_search(model, VokenTrie.from_vokens(vokens, 2), ["x"], 4)
    assert model.widths == [1, 2, 4]


@settings(max_examples=30, deadline=None)
@given(searches())
def test_score_sequences_agrees_with_the_search_and_the_model(search):
    _, _, trie = search
    model = PrefixModel(trie.codebook_size, trie.levels)
    texts = ["one", "another"]
    sequences = trie.leaf_vokens(np.arange(trie.sequences)).astype(np.int64)
    scores = score_sequences(model, model.prefill(texts), torch.from_numpy(np.stack([sequences, sequences])))
    expected = [[model.log_prob(text, tuple(s)) for s in sequences.tolist()] for text in texts]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_goes_on_from_a_state_and_leaves_it_as_it_was(kind):
    model, trie = kind(5, 3), VokenTrie.from_vokens(np.random.default_rng(3).integers(0, 5, (20, 3)), 5)
    state = model.prefill(["q"])
    first = beam_search_from_state(model, state, trie, 4)
    second = beam_search_from_state(model, state, trie, 4)
    assert (first.leaf == second.leaf).all()
    assert (first.leaf == beam_search(model, trie, ["q"], 4).leaf).all()


def test_no_texts_give_no_rows():
    result = beam_search(PrefixModel(4, 2), VokenTrie.from_vokens(np.array([[1, 2]]), 4), [], 3)
    assert result.vokens.shape == (0, 3, 2)
    assert result.leaf.shape == result.log_prob.shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_model_rules_out_is_no_answer(kind):
    class NeverZero(kind):
        def logits(self, text, prefix):
            logits = super().logits(text, prefix)
            logits[0] = -np.inf
            return logits

    trie = VokenTrie.from_vokens(np.array([[0, 1], [1, 0], [1, 1], [2, 2]]), 3)
    result = beam_search(NeverZero(3, 2), trie, ["x"], 4)
    assert sorted(result.leaf[0, :2].tolist()) == [2, 3]
    assert result.leaf[0, 2:].tolist() == [-1, -1]
    assert (result.log_prob[0, 2:] == -np.inf).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [np.nan, -np.inf])
@pytest.mark.parametrize("size", [3, 600])
def test_a_diverged_model_is_an_error(kind, wrong, size):
    class Diverged(kind):
        def converted(self, logits):
            return super().converted(logits) * wrong

    with pytest.raises(VokenError, match="diverged"):
        beam_search(Diverged(size, 2), VokenTrie.from_vokens(np.arange(600).reshape(-1, 2) % size, size), ["x"], 2)


@pytest.mark.parametrize(
    ("size", "levels", "beams", "temperature", "says"),
    [
        (4, 2, 0, 1.0, "beams 0"),
        (4, 2, 1, 0.0, "logit_temperature 0"),
        (4, 2, 1, float("nan"), "logit_temperature nan"),
        (5, 2, 1, 1.0, "2 vokens of 5"),
        (4, 3, 1, 1.0, "3 vokens of 4"),
    ],
)
def test_impossible_settings_are_refused(size, levels, beams, temperature, says):
    trie = VokenTrie.from_vokens(np.array([[0, 1]]), 4)
    with pytest.raises(ConfigError, match=says):
        beam_search(PrefixModel(size, levels), trie, ["x"], beams, logit_temperature=temperature)
