"""Any generator over any sequences ranks pictures as brute force over all leaves does."""

import numpy as np
import pytest
from tiny_model import PrefixGenerator

from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, DataError
from voken.systems.generative import GenerativeSystem

SEQUENCES = np.array([[0, 1, 2], [3, 1, 0], [0, 1, 2], [2, 2, 2], [0, 0, 3], [3, 1, 1]], np.int32)
IDS = list("abcdef")


def system(beams=20, ids=IDS):
    return GenerativeSystem(PrefixGenerator(4, 3), VokenTrie.from_vokens(SEQUENCES, 4), ids, beams=beams)


def log_prob(text, sequence):
    total = 0.0
    for level, voken in enumerate(sequence):
        logits = PrefixGenerator(4, 3).logits(text, sequence[:level]).astype(np.float64)
        total += logits[voken] - np.log(np.exp(logits).sum())
    return total


def test_ranking_is_that_of_every_sequence_scored():
    texts = ["a dog", "two cats", "nothing at all"]
    for text, hits in zip(texts, system().search(texts, 10), strict=True):
        scores = {name: log_prob(text, tuple(row)) for name, row in zip(IDS, SEQUENCES.tolist(), strict=True)}
        expected = sorted(IDS, key=lambda name: (-round(scores[name], 4), name))
        assert [hit.image_id for hit in hits] == expected
        np.testing.assert_allclose([hit.score for hit in hits], [scores[name] for name in expected], atol=1e-4)
        assert all(hit.vokens == tuple(SEQUENCES[IDS.index(hit.image_id)]) for hit in hits)
        shared = [hit for hit in hits if hit.image_id in "ac"]
        assert shared[0].score == shared[1].score


def test_few_beams_give_few_hits_and_k_cuts():
    (hits,) = system(beams=1).search(["a dog"], 10)
    assert len({hit.vokens for hit in hits}) == 1
    assert [len(hits) for hits in system().search(["x", "y"], 2)] == [2, 2]
    assert system().search([], 3) == []


def test_what_cannot_be_asked_is_said():
    with pytest.raises(ConfigError, match="k: 0"):
        system().search(["x"], 0)
    with pytest.raises(ConfigError, match="empty"):
        system().search(["x", "  "], 1)
    with pytest.raises(ConfigError, match="beams"):
        system(beams=0)
    with pytest.raises(DataError, match="5 picture ids for 6 sequences"):
        system(ids=IDS[:5])
