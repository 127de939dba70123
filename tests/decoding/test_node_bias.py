"""The bias of nodes against brute force over all sequences, in numpy, in torch and over merged tries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.prefix_models import LogProbPrefixModel, NumpyPrefixModel, PrefixModel
from voken.decoding import node_bias
from voken.decoding.beam import beam_search
from voken.decoding.merged_trie import merged_trie
from voken.decoding.node_bias import NodeBias, measure_prior, prior_from, sequence_prior, squared_lengths
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError

KINDS = [PrefixModel, NumpyPrefixModel, LogProbPrefixModel]
CAPTIONS = ["a dog", "two cats", "the sea"]


def plain_prior(model, sequence):
    """The mean log-probability of each voken of `sequence` over the captions, one number at a time."""
    per_level = []
    for level, voken in enumerate(sequence):
        terms = []
        for text in CAPTIONS:
            logits = model.logits(text, sequence[:level])
            terms.append(logits[voken] - np.log(np.exp(logits).sum()))
        per_level.append(float(np.mean(terms)))
    return per_level


def plain_score(model, text, sequence, books, norm, prior):
    z = sum(book[voken] for book, voken in zip(books, sequence, strict=True))
    return model.log_prob(text, sequence) - norm * float(z @ z) - prior * sum(plain_prior(model, sequence))


@st.composite
def biased_searches(draw):
    size, levels = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vokens = rng.integers(0, size, (draw(st.integers(1, 60)), levels))
    books = rng.normal(size=(levels, size, 3)).astype(np.float32)
    weights = draw(st.sampled_from([(0.7, 0.0), (0.0, 0.9), (1.3, 1.0)]))
    return draw(st.sampled_from(KINDS))(size, levels), vokens, books, weights


@settings(max_examples=60, deadline=None)
@given(biased_searches(), st.booleans())
def test_full_width_equals_brute_force(search, merges):
    model, vokens, books, (norm, prior_weight) = search
    trie = VokenTrie.from_vokens(vokens, model.codebook_size)
    if merges:  # the second half is added later, and the first row is removed
        half = len(vokens) // 2
        if half:
            base = VokenTrie.from_vokens(vokens[:half], model.codebook_size)
            trie = merged_trie(base, np.array([0]), vokens[half:], np.arange(half, len(vokens)))
    sequences = [tuple(row) for row in trie.leaf_vokens(np.arange(trie.sequences)).tolist()]
    prior = measure_prior(model, CAPTIONS, trie) if prior_weight else None
    bias = NodeBias(norm, books if norm else None, prior_weight, prior)
    result = beam_search(model, trie, ["ship", "a cat"], len(sequences) + 1, bias=bias)
    for query, text in enumerate(["ship", "a cat"]):
        expected = [plain_score(model, text, sequence, books, norm, prior_weight) for sequence in sequences]
        by_leaf = np.full(len(sequences), np.nan)
        by_leaf[result.leaf[query, :-1]] = result.log_prob[query, :-1]
        np.testing.assert_allclose(by_leaf, expected, rtol=1e-3, atol=1e-3)
        assert (np.diff(result.log_prob[query, :-1]) <= 0).all()
    leaves = np.arange(trie.sequences)
    without = [model.log_prob("ship", sequence) for sequence in sequences]
    total = bias.of_sequences(np.array(sequences), leaves, trie)
    expected = [plain_score(model, "ship", sequence, books, norm, prior_weight) for sequence in sequences]
    np.testing.assert_allclose(without + total, expected, rtol=1e-3, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(biased_searches(), st.integers(1, 8))
def test_narrow_beams_are_pruned_by_the_corrected_score(search, beams):
    model, vokens, books, (norm, prior_weight) = search
    trie = VokenTrie.from_vokens(vokens, model.codebook_size)
    prior = measure_prior(model, CAPTIONS, trie) if prior_weight else None
    result = beam_search(model, trie, ["dog"], beams, bias=NodeBias(norm, books, prior_weight, prior))
    best = [((), 0.0)]
    sequences = sorted(set(map(tuple, vokens.tolist())))
    for level in range(model.levels):
        extended = []
        for prefix in {sequence[: level + 1] for sequence in sequences}:
            if prefix[:-1] in {kept for kept, _ in best}:
                score = plain_score(model, "dog", prefix, books[: level + 1], norm, prior_weight)
                extended.append((prefix, score))
        best = sorted(extended, key=lambda beam: (-beam[1], beam[0]))[:beams]
    assert [tuple(row) for row in result.vokens[0, : len(best)].tolist()] == [prefix for prefix, _ in best]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_in_blocks_equals_the_plain_one(kind, monkeypatch):
    monkeypatch.setattr(node_bias, "_LEAVES_AT_ONCE", 5)
    monkeypatch.setattr(node_bias, "_LOGITS_AT_ONCE", 60)
    model = kind(6, 3)
    vokens = np.random.default_rng(2).integers(0, 6, (40, 3))
    trie = VokenTrie.from_vokens(vokens, 6)
    prior = measure_prior(model, CAPTIONS, trie)
    for leaf, sequence in enumerate(trie.leaf_vokens(np.arange(trie.sequences)).tolist()):
        expected = plain_prior(model, tuple(sequence))
        for level in range(3):
            node = trie.node_of(np.array([sequence[: level + 1]]))[0]
            assert prior[level][node] == pytest.approx(expected[level], abs=1e-4)
        assert sequence_prior(prior, trie)[leaf] == pytest.approx(sum(expected), abs=1e-3)


def test_a_prior_is_looked_up_for_what_is_known_and_measured_for_what_is_new():
    class Counting(NumpyPrefixModel):
        steps = 0

        def logits(self, text, prefix):
            Counting.steps += 1
            return super().logits(text, prefix)

    model, rng = Counting(5, 3), np.random.default_rng(4)
    old, new = rng.integers(0, 5, (50, 3)), rng.integers(0, 5, (6, 3))
    trie = VokenTrie.from_vokens(old, 5)
    known = trie, measure_prior(model, CAPTIONS, trie)
    grown = VokenTrie.from_vokens(np.concatenate([old[10:], new]), 5)
    expected = measure_prior(model, CAPTIONS, grown)
    whole, Counting.steps = Counting.steps, 0
    for values, others in zip(prior_from(known, model, CAPTIONS, grown), expected, strict=True):
        np.testing.assert_allclose(values, others, atol=1e-5)
    assert 0 < Counting.steps < whole / 2
    Counting.steps = 0
    prior_from(known, model, CAPTIONS, VokenTrie.from_vokens(old[:20], 5))
    assert Counting.steps == 0


def test_the_norm_weight_turns_inner_products_into_the_order_of_the_cosine():
    """Entries of unequal length, and a query's point of unit length."""
    rng = np.random.default_rng(8)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    vectors *= (rng.uniform(0.8, 1.0, 300) / np.linalg.norm(vectors, axis=1))[:, None].astype(np.float32)

    class InnerProducts(NumpyPrefixModel):
        def logits(self, text, prefix):
            return 10 * vectors @ point

    point = rng.normal(size=6)
    point /= np.linalg.norm(point)
    trie = VokenTrie.from_vokens(np.arange(300)[:, None], 300)
    cosine = vectors @ point / np.linalg.norm(vectors, axis=1)

    def agreement(weight):
        result = beam_search(
            InnerProducts(300, 1), trie, ["x"], 20, bias=NodeBias(weight, vectors[None]) if weight else None
        )
        return len(set(result.leaf[0].tolist()) & set(np.argsort(-cosine)[:20].tolist()))

    assert agreement(4.0) > agreement(0.0)


def test_squared_lengths():
    books = np.array([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]]], dtype=np.float32)
    assert squared_lengths(books, np.array([[0, 0], [1, 1]])).tolist() == [5.0, 4.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_that_does_not_fit_is_refused(kind):
    trie = VokenTrie.from_vokens(np.array([[0, 1], [1, 1]]), 2)
    model = kind(2, 2)
    for bias, says in (
        (NodeBias(1.0, np.zeros((2, 3, 4), np.float32)), "do not fit 2 levels of 2"),
        (NodeBias(prior_weight=1.0, prior=(np.zeros(1, np.float32),)), "another trie"),
    ):
        with pytest.raises(ConfigError, match=says):
            beam_search(model, trie, ["x"], 1, bias=bias)
    with pytest.raises(ConfigError, match="norm_weight 1: the model does not hold"):
        NodeBias(1.0)
    with pytest.raises(ConfigError, match="prior_weight nan"):
        NodeBias(prior_weight=float("nan"))


def test_a_bias_of_nothing_changes_nothing():
    trie = VokenTrie.from_vokens(np.random.default_rng(1).integers(0, 4, (30, 3)), 4)
    for kind in KINDS:
        plain, biased = (beam_search(kind(4, 3), trie, ["x"], 7, bias=bias) for bias in (None, NodeBias()))
        assert (plain.leaf == biased.leaf).all()
        assert (plain.log_prob == biased.log_prob).all()


def test_torch_biases_are_copied_once_per_device():
    from voken.decoding.torch_expansion import TorchExpansion

    trie = VokenTrie.from_vokens(np.array([[0], [1]]), 2)
    bias = NodeBias(1.0, np.ones((1, 2, 2), np.float32))
    first, second = (TorchExpansion.of(trie, torch.device("cpu"), bias) for _ in range(2))
    assert first.bias is second.bias
    assert TorchExpansion.of(trie, torch.device("cpu")).bias is None
