"""Corrections and the memory's weight are chosen by validation recall, and by nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from builders.tiny_lite import make_lite, make_whole_model
from voken.config import ReadOutWeights, SearchConfig
from voken.decoding.node_bias import squared_lengths
from voken.decoding.trie import VokenTrie
from voken.generator.train import ValidationQueries, validation_recall
from voken.metrics import FirstRelevant
from voken.search.corrections import Corrections
from voken.training.corrections import (
    ExactScores,
    choose_corrections,
    choose_memory_weight,
    exact_scores,
    prior_captions,
    recall_by_beams,
)


def disturbed(norm=0.0, prior=0.0, *, pictures=60, seed=0):
    """Scores that are right but for multiples of the lengths and of the prior that were added to them."""
    rng = np.random.default_rng(seed)
    right = rng.normal(size=(pictures, pictures)) + 4 * np.eye(pictures)
    lengths, frequent = rng.uniform(0.3, 1.2, pictures), rng.normal(size=pictures) * 3
    return ExactScores(right + norm * lengths + prior * frequent, np.eye(pictures, dtype=bool), lengths, frequent)


def test_what_was_added_is_taken_out():
    scores = disturbed(norm=8.0, prior=0.75)
    weights, report = choose_corrections(SearchConfig(), scores)
    assert weights.norm == pytest.approx(8.0, rel=0.3)
    assert weights.prior == pytest.approx(0.75, abs=0.26)
    assert scores.recall(weights.norm, weights.prior) > scores.recall(0.0, 0.0) + 0.1
    assert report["queries"] == 60
    assert max(entry["recall"] for entry in report["recalls"]) == scores.recall(weights.norm, weights.prior)


def test_a_grid_goes_on_until_the_best_is_inside():
    scores = disturbed(prior=3.0)
    weights, report = choose_corrections(SearchConfig(norm_weight=0.0), scores)
    assert weights.prior == pytest.approx(3.0, rel=0.35)
    assert weights.prior < max(entry["prior"] for entry in report["recalls"])


def test_nothing_to_correct_gives_nothing():
    scores = disturbed()
    flat = dataclasses.replace(scores, log_prob=np.eye(60))
    assert choose_corrections(SearchConfig(), flat)[0] == ReadOutWeights(norm=0.0, prior=0.0)
    none = ExactScores(np.eye(3), np.eye(3, dtype=bool))
    assert choose_corrections(SearchConfig(), none)[0] == ReadOutWeights(norm=0.0, prior=0.0)
    empty = ExactScores(np.zeros((0, 3)), np.zeros((0, 3), bool))
    assert choose_corrections(SearchConfig(), empty)[0] == ReadOutWeights(norm=0.0, prior=0.0)


def test_a_set_weight_stays():
    weights, report = choose_corrections(SearchConfig(norm_weight=1.5), disturbed(norm=8.0, prior=0.75))
    assert weights.norm == 1.5
    assert {entry["norm"] for entry in report["recalls"]} == {1.5}


def queries_of(model, captions=30):
    rng = np.random.default_rng(2)
    vokens = rng.integers(0, 5, (25, 3))
    relevant = np.stack([np.arange(captions), rng.integers(0, 25, captions)], 1)
    return ValidationQueries([f"query {number}" for number in range(captions)], vokens, relevant)


def test_without_a_decoder_exact_scores_need_no_search():
    model = make_whole_model(SearchConfig())
    generator = model.generator
    for added in (generator.voken_out, generator.bias, generator.repetition):
        torch.nn.init.zeros_(added)
    queries = queries_of(model)
    assert generator.ranks_by_point
    scores = exact_scores(model, queries, [])
    torch.nn.init.constant_(generator.bias, 1.0)  # the same for all vokens, so that no score changes
    assert not generator.ranks_by_point
    searched = exact_scores(model, queries, [])
    np.testing.assert_array_equal(scores.relevant, searched.relevant)
    np.testing.assert_allclose(scores.squared_length, searched.squared_length)
    centred = (part - part.mean(1, keepdims=True) for part in (scores.log_prob, searched.log_prob))
    np.testing.assert_allclose(*centred, atol=1e-3)


def test_exact_scores_are_those_of_the_model(monkeypatch):
    model = make_whole_model(SearchConfig(beams=3))
    queries = queries_of(model)
    monkeypatch.setattr("voken.training.corrections._LOGITS_AT_ONCE", 1000)
    scores = exact_scores(model, queries, ["a", "b"])
    assert scores.log_prob.shape == (30, 25)
    lengths = squared_lengths(model.tokenizer.codebooks, queries.vokens)
    np.testing.assert_allclose(scores.squared_length, lengths, rtol=1e-5)
    trie = VokenTrie.from_vokens(queries.vokens, 5)
    for norm, prior in ((0.0, 0.0), (1.3, 0.0), (0.0, 0.5)):
        weights = ReadOutWeights(norm=norm, prior=prior)
        corrections = Corrections(model.generator, model.codebooks, ["a", "b"], weights)
        by_search = validation_recall(model.generator, queries, trie.sequences, bias=corrections.of)
        assert scores.recall(norm, prior) == pytest.approx(by_search, abs=1e-6)
    assert exact_scores(model, queries, []).prior is None
    layered = make_whole_model(SearchConfig(), layers=(6,))
    assert exact_scores(layered, queries, []).squared_length is None


def test_few_queries_are_drawn_if_there_are_many_sequences(monkeypatch):
    model = make_whole_model(SearchConfig())
    monkeypatch.setattr("voken.training.corrections._SCORES", 100)
    monkeypatch.setattr("voken.training.corrections._LEAST_QUERIES", 7)
    first, second = (exact_scores(model, queries_of(model), [], seed=3) for _ in range(2))
    assert len(first.log_prob) == len(first.relevant) == 7
    assert (first.log_prob == second.log_prob).all()
    whole = exact_scores(model, dataclasses.replace(queries_of(model)), [], seed=4)
    assert not np.array_equal(whole.log_prob, first.log_prob)


@pytest.mark.parametrize(
    ("best", "right"),
    [
        (0.0, {0.0: 50, 0.35: 40, 0.7: 30}),
        (0.35, {0.0: 40, 0.35: 60, 0.7: 50}),
        (0.7, {0.0: 40, 0.35: 50, 0.7: 60}),
        (0.0, {0.0: 50, 0.35: 52, 0.7: 53}),  # within two standard errors: 3 of 100 queries more, error 1.7
        (0.7, {0.0: 50, 0.35: 52, 0.7: 55}),  # 5 of 100 more, error 2.2
    ],
)
def test_a_memory_is_kept_only_if_it_is_better_than_chance(best, right, monkeypatch):
    generator = make_lite(memory_weight=0.7)
    weights = []

    def ranks(model, validation, beams):
        weights.append(model.config.memory_weight)
        found = np.arange(100) < right[weights[-1]]
        return FirstRelevant(np.where(found, 0, 100), np.ones(100, np.int64), np.ones(100, np.int64))

    monkeypatch.setattr("voken.training.corrections.validation_ranks", ranks)
    report = choose_memory_weight(generator, queries_of(None))
    assert weights == [0.0, 0.35, 0.7]
    assert generator.config.memory_weight == best
    assert len(generator.memory_vectors) == (4 if best else 0)
    assert report == {f"{weight:g}": count / 100 for weight, count in right.items()}


def test_a_generator_without_memory_has_nothing_to_choose():
    assert choose_memory_weight(make_lite(), queries_of(None)) == {}


def test_prior_captions_are_a_draw():
    captions = [f"caption {number}" for number in range(500)]
    drawn = prior_captions(captions, 1)
    assert len(set(drawn)) == 64
    assert set(drawn) < set(captions)
    assert drawn == prior_captions(captions, 1) != prior_captions(captions, 2)
    assert prior_captions(captions[:3], 1) == tuple(captions[:3])


def test_recall_by_beams_ends_at_the_sequences():
    model = make_whole_model(SearchConfig())
    corrections = Corrections(model.generator, None, (), ReadOutWeights())
    report = dict(recall_by_beams(model, queries_of(model), corrections))
    assert list(report) == [10, 20]
    assert report[10] == validation_recall(model.generator, queries_of(model), 10)
