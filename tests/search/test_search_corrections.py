"""Searches with corrected scores: against brute force, saved and loaded, after changes and under filters."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from builders.collections import make_collection
from builders.tiny_lite import make_whole_model
from builders.tiny_model import paint_many, tiny_model
from voken.config import ReadOutWeights, SearchConfig
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, CorruptArtifactError
from voken.inference.engine import Engine
from voken.model.calibration import Calibration, ReadOutCalibration
from voken.model.compiled import CompiledModel, search_from_dict
from voken.model.model import Model, search_to_dict
from voken.search import explain
from voken.search.corrections import Corrections
from voken.search.searcher import Searcher

CAPTIONS = ("red", "a blue thing", "grey and white")
BOTH = ReadOutWeights(2.0, 3.0, norm=0.8, prior=0.6)


@pytest.fixture
def collection(tmp_path):
    return make_collection(tmp_path / "c", paint_many(tmp_path / "in", 24), tiny_model(levels=3))


def brute_force(model, collection, text, norm, prior):
    scores = {}
    for name, row in zip(collection.ids, np.asarray(collection.vokens).tolist(), strict=True):
        z = sum(book[voken] for book, voken in zip(model.codebooks, row, strict=True))
        without_query = np.mean([model.generator.log_prob(caption, row) for caption in CAPTIONS])
        scores[name] = model.generator.log_prob(text, row) - norm * float(z @ z) - prior * without_query
    return scores


@pytest.mark.parametrize(("norm", "prior"), [(0.8, 0.0), (0.0, 0.6), (0.8, 0.6)])
def test_the_corrected_scores_are_those_of_brute_force(collection, norm, prior):
    model = tiny_model(levels=3, weights=ReadOutWeights(2.0, 3.0, norm, prior), prior_captions=CAPTIONS)
    searcher = Searcher(model, collection, SearchConfig(beams=100, readout="generate"))
    (hits,) = searcher.search(["white and red"], 24)
    expected = brute_force(model, collection, "white and red", norm, prior)
    assert len(hits) == 24
    np.testing.assert_allclose(
        [hit.score for hit in hits], [expected[hit.image_id] for hit in hits], rtol=1e-4, atol=1e-4
    )
    for hit, why in zip(hits, explain.explain(searcher, "white and red", hits), strict=True):
        assert why.log_prob + why.correction == pytest.approx(hit.score, abs=1e-4)


def test_a_set_weight_replaces_the_chosen_one_and_ends_the_confidence(collection):
    part = ReadOutCalibration("generate", 0.0, 0.1, 0.2, 0.0, 0.0)
    calibration = Calibration(0.5, 60, 30, 24, 1.0, 100, (part,))
    model = tiny_model(levels=3, weights=BOTH, prior_captions=CAPTIONS, calibration=calibration)
    wide = SearchConfig(beams=100, readout="generate")
    assert Searcher(model, collection, wide).calibrated
    plain = Searcher(model, collection, dataclasses.replace(wide, norm_weight=0.0, prior_weight=0.0))
    assert not plain.calibrated
    (hits,) = plain.search(["red"], 24)
    for hit in hits:
        assert hit.score == pytest.approx(model.generator.log_prob("red", hit.vokens), abs=1e-4)
    assert all(why.correction == 0 for why in explain.explain(plain, "red", hits))


def test_a_filter_and_a_change_measure_nothing_that_is_known():
    class Counted:
        texts = 0

    model = tiny_model(levels=3)
    prefill = model.generator.prefill

    def counted(texts):
        Counted.texts += len(texts)
        return prefill(texts)

    model.generator.prefill = counted
    rng = np.random.default_rng(0)
    vokens = rng.integers(0, 4, (20, 3))
    corrections = Corrections(model.generator, model.codebooks, CAPTIONS, BOTH)
    whole = VokenTrie.from_vokens(vokens, 4)
    bias = corrections.of(whole)
    assert corrections.of(whole) is bias
    assert Counted.texts == 3
    part = VokenTrie.from_vokens(vokens[::3], 4)
    leaves = whole.leaf_of(vokens[::3])
    np.testing.assert_allclose(
        corrections.of(part).of_sequences(vokens[::3], part.leaf_of(vokens[::3]), part),
        bias.of_sequences(vokens[::3], leaves, whole),
        atol=1e-5,
    )
    assert Counted.texts == 3
    corrections.of(VokenTrie.from_vokens(np.concatenate([vokens, [[3, 3, 3]], [[0, 3, 3]]]), 4))
    assert Counted.texts in (3, 6)


def test_without_weights_there_is_no_bias():
    model = tiny_model()
    trie = VokenTrie.from_vokens(np.zeros((1, 2), np.int64), 4)
    assert Corrections(model.generator, None, (), ReadOutWeights(2.0, 3.0)).of(trie) is None
    assert Corrections(model.generator, None, (), ReadOutWeights(norm=0.0, prior=0.0)).of(trie) is None


def test_what_a_weight_needs_is_asked_for_at_once(collection):
    model = tiny_model(levels=3)
    with pytest.raises(ConfigError, match=r"search.prior_weight 0.5: the model has no captions"):
        Searcher(model, collection, SearchConfig(prior_weight=0.5))
    with pytest.raises(ConfigError, match=r"search.norm_weight 2: the model does not say.*voken compile"):
        Corrections(model.generator, None, (), ReadOutWeights(norm=2.0))


def test_corrections_survive_json_and_old_models_have_none():
    everything = SearchConfig(), BOTH, None
    assert search_from_dict(json.loads(json.dumps(search_to_dict(*everything)))) == everything
    old = {"beams": 20, "readout": "voken", "voken_weight": 2.0, "vector_weight": 3.0, "precision": "float32"}
    assert search_from_dict(old)[1] == ReadOutWeights(2.0, 3.0)
    pinned = SearchConfig(norm_weight=0.0)
    assert pinned.weights(BOTH) == dataclasses.replace(BOTH, norm=0.0)


@pytest.mark.parametrize("layers", [(), (6,)])
def test_a_saved_model_and_its_engine_correct_alike(layers, tmp_path):
    weights = BOTH if not layers else dataclasses.replace(BOTH, norm=0.0)
    model = dataclasses.replace(
        make_whole_model(SearchConfig(beams=200), layers=layers), weights=weights, prior_captions=CAPTIONS
    )
    model.save(tmp_path / "model")
    trie = VokenTrie.from_vokens(np.random.default_rng(3).integers(0, 5, (40, 3)), 5)
    sequences, leaves = trie.leaf_vokens(np.arange(trie.sequences)), np.arange(trie.sequences)
    totals = []
    for loaded in (model, Model.load(tmp_path / "model"), CompiledModel.load(tmp_path / "model")):
        assert (loaded.weights, loaded.prior_captions) == (weights, CAPTIONS)
        corrections = Corrections(loaded.generator, loaded.codebooks, loaded.prior_captions, loaded.weights)
        bias = corrections.of(trie)
        assert bias is not None
        totals.append(bias.of_sequences(sequences, leaves, trie))
        assert (loaded.codebooks is None) == bool(layers)
    np.testing.assert_allclose(totals[1], totals[0], atol=1e-4)
    np.testing.assert_allclose(totals[2], totals[0], atol=1e-3)
    assert np.ptp(totals[0]) > 0.1


def test_damaged_codebooks_of_an_engine_are_named(tmp_path):
    make_whole_model(SearchConfig()).save(tmp_path / "model")
    engine = tmp_path / "model" / "engine"
    for damaged in (np.zeros((3, 4, 8), np.float32), np.full((3, 5, 8), np.nan, np.float32)):
        np.save(engine / "codebooks.npy", damaged)
        with pytest.raises(CorruptArtifactError, match=r"codebooks.npy: does not fit the engine"):
            Engine.load(engine).codebooks  # noqa: B018
