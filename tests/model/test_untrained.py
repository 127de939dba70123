"""Models made from vectors alone: their search is exact search of what the codes stand for."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.tiny_lite import WordReader
from voken.collection.snapshot import Snapshot
from voken.config import EncoderConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.errors import EmptyDataError
from voken.model import untrained
from voken.model.untrained import CODEBOOK_SIZE, LEVELS, fitting_rows, untrained_model
from voken.search.searcher import Searcher


class WordEncoder(WordReader):
    name, fingerprint = "words", "w0"

    def encode_texts(self, texts):
        return self.read_texts(texts, max_tokens=64).vectors.numpy()


@pytest.fixture
def few_mixtures(monkeypatch):
    monkeypatch.setattr(untrained, "_MIXTURES", 200)


def unit_rows(rows, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, WordReader.dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_model(vectors):
    return untrained_model(WordEncoder(), EncoderConfig(family="photos"), vectors)


@pytest.mark.parametrize("readout", ["generate", "voken", "vector"])
def test_a_search_ranks_as_exact_search_does(few_mixtures, readout):
    vectors = unit_rows(90)
    model = make_model(vectors)
    images = tuple(CaptionedImage(f"{row:03}", Path(f"/p/{row}.png")) for row in range(len(vectors)))
    snapshot = Snapshot.of_vectors(Dataset("p", Path("/p"), images), vectors, model)
    search = replace(Searcher(model, snapshot).search_config, readout=readout)
    texts = ["a red dog", "snow", "two words more"]
    answers = Searcher(model, snapshot, search).search(texts, 5)
    cosines = model.encoder.encode_texts(texts) @ vectors.T
    for hits, row in zip(answers, cosines, strict=True):
        assert [hit.image_id for hit in hits] == [f"{place:03}" for place in np.argsort(-row)[:5]]
        assert all(hit.confidence is None for hit in hits)


def test_log_probabilities_are_ten_times_the_inner_products_but_for_a_constant(few_mixtures):
    vectors = unit_rows(40)
    model = make_model(vectors)
    vokens = torch.from_numpy(model.tokenizer.encode(vectors)).long()
    with torch.no_grad():
        state = model.generator.encode(["a red dog"])
        logits = model.generator.teacher_forced(state, vokens[None])
    chosen = logits.log_softmax(-1).gather(-1, vokens[None, ..., None])[0, :, :, 0].sum(1).numpy()
    books = model.tokenizer.codebooks
    rebuilt = sum(books[level][vokens[:, level]] for level in range(LEVELS))
    expected = 10 * rebuilt @ model.encoder.encode_texts(["a red dog"])[0]
    assert np.ptp(chosen - expected) < 1e-4


def test_known_pictures_are_coded_nearly_exactly_and_the_mixtures_help_those_that_come_later(monkeypatch):
    known, later = unit_rows(300), unit_rows(100, seed=7)
    cosines = {}
    for mixtures in (0, 2_000):
        monkeypatch.setattr(untrained, "_MIXTURES", mixtures)
        tokenizer = make_model(known).tokenizer
        assert tokenizer.codebooks.shape == (LEVELS, CODEBOOK_SIZE, WordReader.dim)
        parts = (known, later)
        cosines[mixtures] = [(tokenizer.decode(tokenizer.encode(part)) * part).sum(1).mean() for part in parts]
    assert cosines[2_000][0] > 0.999
    assert cosines[2_000][1] > cosines[0][1] + 0.02


@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_very_few_pictures_are_enough(few_mixtures, pictures):
    vectors = unit_rows(pictures)
    tokenizer = make_model(vectors).tokenizer
    assert len(np.unique(tokenizer.encode(vectors), axis=0)) == pictures
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(vectors)), vectors, atol=1e-2)


def test_the_same_pictures_give_the_same_model_and_no_pictures_none(few_mixtures):
    vectors = unit_rows(50)
    np.testing.assert_array_equal(make_model(vectors).tokenizer.codebooks, make_model(vectors).tokenizer.codebooks)
    with pytest.raises(EmptyDataError, match="no pictures"):
        make_model(vectors[:0])


def test_codebooks_are_fitted_on_pictures_and_mixtures_of_two(monkeypatch):
    vectors = unit_rows(30)
    rows = fitting_rows(vectors, np.random.default_rng(0))
    np.testing.assert_array_equal(rows[:90], np.tile(vectors, (3, 1)))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    pairs = [np.stack(pair, 1) for pair in combinations(vectors, 2)]
    for mixture in rows[90:100]:  # each is a positive sum of some two pictures
        weights = [np.linalg.lstsq(pair, mixture, rcond=None)[0] for pair in pairs]
        errors = [np.linalg.norm(pair @ weight - mixture) for pair, weight in zip(pairs, weights, strict=True)]
        assert min(errors) < 1e-5
        assert (weights[int(np.argmin(errors))] > -1e-5).all()
    monkeypatch.setattr(untrained, "MOST_FITTED", 20)
    assert len(fitting_rows(vectors, np.random.default_rng(0))) == 3 * 20 + untrained._MIXTURES
