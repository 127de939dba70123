"""The searcher against a brute force over all pictures, and its answers to odd requests."""

import dataclasses
import itertools

import numpy as np
import pytest

from builders.collections import make_collection
from builders.tiny_model import paint, paint_many, tiny_model
from voken import Collection
from voken.config import ReadOutWeights, SearchConfig
from voken.errors import ArtifactError, ConfigError
from voken.model.calibration import Calibration, ReadOutCalibration, Threshold
from voken.search.searcher import Searcher

WIDE = SearchConfig(beams=100, voken_weight=2.0, vector_weight=3.0)


@pytest.fixture
def collection(tmp_path):
    return make_collection(tmp_path / "c", paint_many(tmp_path / "in", 24), tiny_model(levels=3))


def brute_force(model, collection, text, readout, voken_weight=2.0, vector_weight=3.0):
    """Every picture's score, one after another, in float64."""
    query = model.encoder.encode_texts([text])[0].astype(np.float64)
    scores = []
    for row, sequence in enumerate(np.asarray(collection.vokens)):
        score = model.generator.log_prob(text, sequence.tolist())
        if readout == "voken":
            score += voken_weight * float(model.tokenizer.decode(sequence[None])[0].astype(np.float64) @ query)
        if readout == "vector":
            score += vector_weight * float(collection.vectors[row].astype(np.float64) @ query)
        scores.append(score)
    return np.array(scores)


@pytest.mark.parametrize("readout", ["generate", "voken", "vector"])
def test_every_readout_equals_brute_force_where_the_beams_cover_all(collection, readout):
    model = tiny_model(levels=3)
    searcher = Searcher(model, collection, dataclasses.replace(WIDE, readout=readout))
    texts = ["red", "a green thing", "white and blue"]
    for text, hits in zip(texts, searcher.search(texts, 24), strict=True):
        expected = brute_force(model, collection, text, readout)
        assert len(hits) == 24
        row_of = {name: row for row, name in enumerate(collection.ids)}
        rows = [row_of[hit.image_id] for hit in hits]
        np.testing.assert_allclose([hit.score for hit in hits], expected[rows], rtol=1e-4, atol=1e-4)
        assert all(above.score >= below.score for above, below in itertools.pairwise(hits))
        for hit, row in zip(hits, rows, strict=True):
            assert hit.vokens == tuple(collection.vokens[row].tolist())
            assert hit.path == str(collection.path(row))


@pytest.mark.parametrize("readout", ["generate", "voken"])
def test_pictures_of_one_sequence_tie_exactly_and_stand_in_order(collection, readout):
    (hits,) = Searcher(tiny_model(levels=3), collection, dataclasses.replace(WIDE, readout=readout)).search(["red"], 24)
    shared = 0
    for above, below in itertools.pairwise(hits):
        if above.vokens == below.vokens:
            shared += 1
            assert above.score == below.score
            assert above.image_id < below.image_id
    assert shared >= 12  # each colour was painted twice


def test_answers_do_not_depend_on_company(collection, monkeypatch):
    model = tiny_model(levels=3)
    searcher = Searcher(model, collection)
    texts = [f"query {n} red" for n in range(7)]
    together = searcher.search(texts, 5)
    monkeypatch.setattr("voken.search.searcher._LOGITS_AT_ONCE", 1)  # one query at a time
    alone = searcher.search(texts, 5)
    for one, other in zip(together, alone, strict=True):
        assert [hit.image_id for hit in one] == [hit.image_id for hit in other]
    assert searcher.search([], 3) == []


def test_beams_widen_to_k_unless_told(collection):
    model = tiny_model(levels=3)
    narrow = SearchConfig(beams=1, readout="generate")
    leaves = collection.trie.sequences
    (wide,) = Searcher(model, collection, narrow).search(["red"], 24)
    assert len({hit.vokens for hit in wide}) == leaves
    (hits,) = Searcher(model, collection, narrow, widen=False).search(["red"], 24)
    assert len({hit.vokens for hit in hits}) == 1


def test_more_than_there_is(collection):
    (hits,) = Searcher(tiny_model(levels=3), collection).search(["red"], 10_000)
    assert sorted(hit.image_id for hit in hits) == sorted(collection.ids)


def test_one_picture(tmp_path):
    one = make_collection(tmp_path / "c", [paint(tmp_path / "a.png", (250, 0, 0))], tiny_model())
    (hits,) = Searcher(tiny_model(), one).search(["blue"], 3)
    assert [hit.image_id for hit in hits] == ["a.png"]


def test_the_default_readout_is_the_best_that_the_collection_allows(collection, tmp_path):
    model = tiny_model(levels=3)
    assert Searcher(model, collection).search_config.readout == "vector"
    plain = make_collection(tmp_path / "plain", paint_many(tmp_path / "in2", 4), model, vectors=False)
    assert Searcher(model, plain).search_config.readout == "voken"
    with pytest.raises(ConfigError, match="stored vectors"):
        Searcher(model, plain, SearchConfig(readout="vector"))


def test_weights(collection):
    model = tiny_model(levels=3)
    chosen = Searcher(model, collection, SearchConfig(beams=100, readout="vector")).search(["red"], 5)
    by_default = Searcher(model, collection, SearchConfig(beams=100, readout="vector", vector_weight=3.0)).search(
        ["red"], 5
    )
    assert chosen == by_default
    heavy = SearchConfig(beams=100, readout="vector", vector_weight=1e6)
    (hits,) = Searcher(model, collection, heavy).search(["red"], 24)
    cosines = collection.vectors.astype(np.float64) @ model.encoder.encode_texts(["red"])[0]
    assert collection.ids[int(cosines.argmax())] == hits[0].image_id
    unchosen = tiny_model(levels=3, weights=ReadOutWeights())
    with pytest.raises(ConfigError, match="voken_weight was not chosen"):
        Searcher(unchosen, collection, SearchConfig(readout="voken"))


def test_odd_requests(collection):
    searcher = Searcher(tiny_model(levels=3), collection)
    for empty in ("", "   \n\t"):
        with pytest.raises(ConfigError, match="Query 2 is empty"):
            searcher.search(["red", empty], 3)
    with pytest.raises(ConfigError, match="ask for 1 or more"):
        searcher.search(["red"], 0)
    with pytest.raises(ConfigError, match="beams"):
        Searcher(tiny_model(levels=3), collection, SearchConfig(beams=0)).search(["red"], 1)
    long = "red " * 300_000
    assert searcher.search([long], 3) == searcher.search([long[:2000]], 3)
    assert len(searcher.search(["red \ud83d broken"], 3)[0]) == 3


def test_another_model_is_refused(collection):
    with pytest.raises(ArtifactError, match="another model"):
        Searcher(tiny_model(levels=3, fingerprint="other"), collection)


def test_open_says_which_model_is_missing(tmp_path):
    make_collection(tmp_path / "c", paint_many(tmp_path / "in", 4), tiny_model(), model_folder=tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"gone, which is not there\. Name the model's folder"):
        Collection.open(tmp_path / "c")
    assert len(Collection.open(tmp_path / "c", model=tiny_model()).search("red", 2)) == 2


def calibrated_model():
    cut = (Threshold(0.5, 0.3, 0.6, 0.9, 0.1),)
    one = ReadOutCalibration("vector", 3.0, bias=-1.0, score=0.4, mass=-0.2, mean_cosine=0.0, thresholds=cut)
    other = ReadOutCalibration("generate", 0.0, bias=2.0, score=0.7, mass=0.1, mean_cosine=0.5)
    calibration = Calibration(0.5, 100, 50, 24, 1.0, 4, (one, other))
    return tiny_model(levels=3, search=SearchConfig(beams=100), calibration=calibration)


def test_hits_say_how_sure_they_are(tmp_path):
    model = calibrated_model()
    collection = make_collection(tmp_path / "c", paint_many(tmp_path / "in", 24), model)
    searcher = Searcher(model, collection)
    assert searcher.calibrated
    (hits,) = searcher.search(["red sky"], 30)
    # the same by hand: all that the beams reached, a sequence counted once
    log_prob = np.array([model.generator.log_prob("red sky", hit.vokens) for hit in hits])
    sequences = {hit.vokens: value for hit, value in zip(hits, log_prob, strict=True)}
    mass = np.log(np.exp(list(sequences.values())).sum())
    expected = 1 / (1 + np.exp(1.0 - 0.4 * np.array([hit.score for hit in hits]) + 0.2 * mass))
    np.testing.assert_allclose([hit.confidence for hit in hits], expected, rtol=1e-4)
    assert [hit.confidence for hit in hits] == sorted((hit.confidence for hit in hits), reverse=True)
    few = searcher.search(["red sky"], 2)[0]  # how many are asked for changes nothing: the beams are the same
    assert [hit.confidence for hit in few] == [hit.confidence for hit in hits[:2]]
    cut = float(np.median(expected))
    assert searcher.search(["red sky"], 30, threshold=cut)[0] == [hit for hit in hits if hit.confidence >= cut]
    assert searcher.search(["red sky"], 30, threshold=1.0)[0] == []
    assert searcher.threshold(0.4) == searcher.threshold(0.5) == 0.3
    with pytest.raises(ConfigError, match=r"no threshold reached it on validation \(0.5 were reached\)"):
        searcher.threshold(0.9)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        searcher.search(["red"], 1, threshold=1.5)
    generate = Searcher(model, collection, dataclasses.replace(model.search, readout="generate"))
    assert generate.calibrated
    assert all(0 < hit.confidence < 1 for hit in generate.search(["red sky"], 5)[0])


def test_another_weight_or_readout_has_no_confidence(tmp_path):
    model = calibrated_model()
    collection = make_collection(tmp_path / "c", paint_many(tmp_path / "in", 8), model)
    for changes in ({"readout": "voken"}, {"readout": "vector", "vector_weight": 2.5}):
        searcher = Searcher(model, collection, dataclasses.replace(model.search, **changes))
        assert not searcher.calibrated
        assert {hit.confidence for hit in searcher.search(["red"], 3)[0]} == {None}
        with pytest.raises(ConfigError, match="not calibrated for this read-out"):
            searcher.search(["red"], 3, threshold=0.1)
