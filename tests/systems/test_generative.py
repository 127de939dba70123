"""Search with any generator: against brute force over all leaves, with shared sequences and with few beams."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from builders.prefix_models import PrefixModel
from builders.tiny_lite import SIZE as LITE_SIZE
from builders.tiny_lite import make_codebooks, make_lite
from voken.config import MAX_TEXT_CHARACTERS, ReadOutWeights, SearchConfig
from voken.decoding.node_bias import squared_lengths
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, DataError
from voken.generator.train import ValidationQueries, validation_recall
from voken.search.corrections import Corrections
from voken_lab.systems import generative
from voken_lab.systems.generative import BeamChoice, GenerativeSystem, beams_to_try, choose_search
from voken_lab.systems.pictures import SearchSystem

SIZE, LEVELS, PICTURES = 4, 3, 40
TEXTS = ["a red cat", "dog", "two birds"]
IDS = [f"picture {row}" for row in range(PICTURES)]


def make_sequences() -> np.ndarray:
    """Drawn with repetition: of 40 pictures some share a sequence."""
    every = np.array(list(itertools.product(range(SIZE), repeat=LEVELS)))
    return every[np.random.default_rng(1).integers(len(every), size=PICTURES)]


def make_system(sequences: np.ndarray | None = None, *, beams: int = 200, **options) -> GenerativeSystem:
    sequences = make_sequences() if sequences is None else sequences
    trie = VokenTrie.from_vokens(sequences, SIZE)
    return GenerativeSystem(PrefixModel(SIZE, LEVELS), trie, IDS[: len(sequences)], beams=beams, **options)


def test_it_is_a_search_system():
    assert isinstance(make_system(), SearchSystem)


def test_the_ranking_is_that_of_brute_force_over_all_leaves():
    sequences = make_sequences()
    assert len(np.unique(sequences, axis=0)) < PICTURES
    model = PrefixModel(SIZE, LEVELS)
    for text, hits in zip(TEXTS, make_system().search(TEXTS, PICTURES), strict=True):
        scores = np.array([model.log_prob(text, tuple(sequence)) for sequence in sequences.tolist()])
        order = np.argsort(-scores, kind="stable")  # equal sequences have equal sums, and so the pool's order
        assert [hit.image_id for hit in hits] == [IDS[row] for row in order]
        np.testing.assert_allclose([hit.score for hit in hits], scores[order], rtol=1e-5)
        assert [hit.vokens for hit in hits] == [tuple(sequence) for sequence in sequences[order].tolist()]


def test_pictures_of_one_sequence_tie_in_the_pools_order():
    system = make_system(np.array([[1, 2, 3], [0, 0, 0], [1, 2, 3], [1, 2, 3]]))
    for hits in system.search(TEXTS, 10):
        assert len(hits) == 4
        shared = [hit for hit in hits if hit.vokens == (1, 2, 3)]
        assert [hit.image_id for hit in shared] == [IDS[0], IDS[2], IDS[3]]
        assert len({hit.score for hit in shared}) == 1


def test_k_cuts_within_a_shared_sequence():
    system = make_system(np.array([[1, 2, 3]] * 5))
    assert [hit.image_id for hit in system.search(["dog"], 2)[0]] == IDS[:2]


def test_few_beams_give_few_hits():
    """Three beams find three sequences: their pictures and no others come, however many are asked for."""
    sequences = np.array([[first, second, 0] for first in range(SIZE) for second in range(SIZE)])
    system = make_system(sequences, beams=3)
    assert [len(hits) for hits in system.search(TEXTS, 10)] == [3, 3, 3]
    assert [len(hits) for hits in system.search(TEXTS, 2)] == [2, 2, 2]


def test_k_does_not_widen_the_beams():
    """The first hits are the same whatever k is."""
    system = make_system(beams=4)
    for few, many in zip(system.search(TEXTS, 2), system.search(TEXTS, 40), strict=True):
        assert many[:2] == few


def test_texts_in_blocks_are_answered_as_alone(monkeypatch):
    whole = make_system().search(TEXTS, 5)
    monkeypatch.setattr(generative, "_LOGITS_AT_ONCE", 1)
    for one, together in zip(make_system().search(TEXTS, 5), whole, strict=True):
        assert [hit.image_id for hit in one] == [hit.image_id for hit in together]


def test_paths_come_with_the_hits():
    system = make_system(np.array([[1, 2, 3], [0, 0, 0]]), paths=["one.png", "two.png"])
    assert {(hit.image_id, hit.path) for hit in system.search(["dog"], 2)[0]} == {
        (IDS[0], "one.png"),
        (IDS[1], "two.png"),
    }


def test_long_and_padded_texts_are_cut():
    long = "a" * (MAX_TEXT_CHARACTERS + 50)
    hits, cut = make_system().search([f"  {long} ", long[:MAX_TEXT_CHARACTERS]], 5)
    assert [hit.image_id for hit in hits] == [hit.image_id for hit in cut]


def test_nothing_asked_is_nothing_found():
    assert make_system().search([], 5) == []


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ConfigError, match="k: 0"):
        make_system().search(["dog"], 0)
    with pytest.raises(ConfigError, match="empty"):
        make_system().search(["dog", " \t"], 5)
    with pytest.raises(ConfigError, match="beams must be at least 1, not 0"):
        make_system(beams=0)


def test_ids_and_sequences_must_match():
    trie = VokenTrie.from_vokens(make_sequences(), SIZE)
    with pytest.raises(DataError, match="39 picture ids and 40 rows"):
        GenerativeSystem(PrefixModel(SIZE, LEVELS), trie, IDS[:39], beams=5)
    with pytest.raises(DataError, match="one per picture"):
        GenerativeSystem(PrefixModel(SIZE, LEVELS), trie, IDS, beams=5, paths=["a.png"])


def test_the_best_number_of_beams_is_chosen_and_the_fewest_of_equals():
    assert BeamChoice.of({50: 0.4, 10: 0.3, 20: 0.4}, 7).beams == 20
    assert BeamChoice.of({}, 7).beams == 7
    assert beams_to_try(3) == (10,)
    assert beams_to_try(51) == (10, 20, 50)
    assert beams_to_try(1000) == (10, 20, 50, 100)


def test_corrections_change_the_order_as_they_say():
    """The longer the rebuilt vector, the lower the score; with a large weight nothing else counts."""
    codebooks = make_codebooks()
    sequences = np.array(list(itertools.product(range(LITE_SIZE), repeat=len(codebooks))))[::7]
    trie, ids = VokenTrie.from_vokens(sequences, LITE_SIZE), list(map(str, range(len(sequences))))
    generator = make_lite()
    corrections = Corrections(generator, codebooks, (), ReadOutWeights(norm=1e4))
    system = GenerativeSystem(generator, trie, ids, beams=len(ids), corrections=corrections)
    (hits,) = system.search(["a red cat"], len(ids))
    shortest_first = np.argsort(squared_lengths(codebooks, sequences))
    assert [int(hit.image_id) for hit in hits] == shortest_first.tolist()


def test_a_rival_is_searched_as_well_as_validation_can_make_it():
    random = np.random.default_rng(2)
    generator, codebooks = make_lite(), make_codebooks()
    vokens = random.integers(0, LITE_SIZE, (40, 3))
    texts = [f"query {number}" for number in range(60)]
    queries = ValidationQueries(texts, vokens, np.stack([np.arange(60), random.integers(0, 40, 60)], 1))
    captions = [f"caption {number}" for number in range(9)]
    corrections, choice = choose_search(generator, codebooks, queries, captions, SearchConfig(), seed=0)
    assert list(choice.recalls) == list(beams_to_try(len(np.unique(vokens, axis=0))))
    assert choice.recalls[choice.beams] == max(choice.recalls.values())
    for beams, recall in choice.recalls.items():
        assert recall == validation_recall(generator, queries, beams, bias=corrections.of)
    # right answers are drawn at random here; whatever is chosen, it finds no less than no correction does
    assert validation_recall(generator, queries, 40, bias=corrections.of) >= validation_recall(generator, queries, 40)
    nothing = ValidationQueries([], vokens, np.zeros((0, 2), int))
    assert choose_search(generator, None, nothing, captions, SearchConfig(beams=9), seed=0)[1] == BeamChoice(9, {})
