"""The exact search against a plain sort and faiss; the quantized ceiling by hand."""

import faiss
import numpy as np
import pytest

from voken.errors import ConfigError, DataError, EmptyDataError
from voken_lab.evaluation.protocol import Conditions, Pool, Query, evaluate
from voken_lab.systems import two_tower
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower


class Lookup:
    """Texts that are numbers, encoded as rows of a matrix."""

    def __init__(self, vectors):
        self.vectors = np.asarray(vectors)

    def encode_texts(self, texts):
        return self.vectors[[int(text) for text in texts]]


class RoundingQuantizer:
    """Two levels of two entries over 2-d vectors: the sign of each coordinate."""

    codebooks = np.zeros((2, 2, 2), dtype=np.float32)

    def encode(self, vectors):
        return (vectors > 0).astype(np.int32)

    def decode(self, vokens):
        return (vokens * 2.0 - 1.0).astype(np.float32) * 3.0


def unit(generator, rows, dim):
    vectors = generator.normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 700, 2**23])
def test_search_is_a_sort_of_all_inner_products(monkeypatch, block):
    monkeypatch.setattr(two_tower, "_SCORES_PER_BLOCK", block)
    generator = np.random.default_rng(0)
    pictures, queries = unit(generator, 300, 16), unit(generator, 7, 16)
    names = [f"p{i}" for i in range(300)]
    system = TwoTower(Lookup(queries), names, pictures, paths=[f"{name}.png" for name in names])
    assert isinstance(system, SearchSystem)
    all_hits = system.search([str(i) for i in range(7)], 11)
    index = faiss.IndexFlatIP(16)
    index.add(pictures)
    scores, rows = index.search(queries, 11)
    exact = queries.astype(np.float64) @ pictures.T.astype(np.float64)
    for query, hits in enumerate(all_hits):
        assert [hit.image_id for hit in hits] == [names[row] for row in np.argsort(-exact[query])[:11]]
        assert [hit.image_id for hit in hits] == [names[row] for row in rows[query]]
        assert [hit.score for hit in hits] == pytest.approx(scores[query].tolist(), abs=1e-6)
        assert all(hit.path == f"{hit.image_id}.png" and hit.vokens == () for hit in hits)


@pytest.mark.parametrize("pictures", [7, 33, 97, 997])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_equal_vectors_tie_exactly_and_come_in_order(pictures, count):
    # A plain matrix product fails this at several of these sizes: it rounds equal rows differently by their place.
    generator = np.random.default_rng(pictures)
    few = unit(generator, 5, 384)
    which = np.arange(pictures) % 5
    names = [str(i) for i in range(pictures)]
    for hits in TwoTower(Lookup(unit(generator, 7, 384)), names, few[which]).search(names[:count], pictures):
        by_score: dict[float, list[int]] = {}
        for hit in hits:
            by_score.setdefault(hit.score, []).append(int(hit.image_id))
        assert list(by_score) == sorted(by_score, reverse=True)
        assert sorted(by_score.values()) == [list(range(first, pictures, 5)) for first in range(5)]


def test_negative_zero_is_zero():
    system = TwoTower(Lookup([[1.0, 1.0]]), ["a", "b"], np.array([[0.0, 1.0], [-0.0, 1.0]], dtype=np.float32))
    (hits,) = system.search(["0"], 2)
    assert [hit.image_id for hit in hits] == ["a", "b"]
    assert hits[0].score == hits[1].score


def test_more_asked_for_than_there_is():
    system = TwoTower(Lookup([[1.0, 0.0]]), ["a", "b"], np.eye(2, dtype=np.float32))
    assert [hit.image_id for hit in system.search(["0"], 50)[0]] == ["a", "b"]
    assert [hit.image_id for hit in system.search(["0"], 1)[0]] == ["a"]
    assert system.search([], 5) == []
    assert system.bytes_per_picture == 8.0


def test_quantized_ceiling_ranks_by_the_rebuilt_vectors():
    vectors = np.array([[0.9, 0.1], [0.2, 0.8], [-0.9, 0.1], [-0.5, -0.5]], dtype=np.float32)
    system = TwoTower.quantized(Lookup([[1.0, 0.0]]), ["a", "b", "c", "d"], vectors, RoundingQuantizer())
    (hits,) = system.search(["0"], 4)
    half = 0.5**0.5
    assert [(hit.image_id, hit.vokens) for hit in hits] == [("a", (1, 1)), ("b", (1, 1)), ("c", (0, 1)), ("d", (0, 0))]
    assert [hit.score for hit in hits] == pytest.approx([half, half, -half, -half])
    assert hits[0].score == hits[1].score
    assert system.bytes_per_picture == 2 / 8  # two levels of one bit


def test_quantized_ceiling_is_scored_with_expected_ties():
    vectors = np.array([[0.9, 0.1], [0.2, 0.8], [-0.9, 0.1]], dtype=np.float32)
    quantizer = RoundingQuantizer()
    queries = [Query("q", "0", frozenset({"b"}))]
    encoder, names = Lookup([[1.0, 0.5]]), ("a", "b", "c")
    ceiling = evaluate(
        TwoTower.quantized(encoder, names, vectors, quantizer),
        queries,
        Pool(names, quantizer.encode(vectors)),
        conditions=Conditions(system="quantized ceiling"),
        cutoffs=(1, 2),
    )
    assert ceiling.recall == {1: 0.5, 2: 1.0}
    assert ceiling.sequence_recall == {1: 1.0, 2: 1.0}
    assert ceiling.collision_rate == pytest.approx(2 / 3)


def test_a_rebuilt_vector_of_zero_length_is_no_error():
    class Zero(RoundingQuantizer):
        def decode(self, vokens):
            return np.zeros((len(vokens), 2), dtype=np.float32)

    system = TwoTower.quantized(Lookup([[1.0, 0.0]]), ["a", "b"], np.eye(2, dtype=np.float32), Zero())
    assert [hit.score for hit in system.search(["0"], 2)[0]] == [0.0, 0.0]


def test_wrong_input_is_refused():
    encoder, eye = Lookup(np.eye(3)), np.eye(2, dtype=np.float32)
    with pytest.raises(EmptyDataError, match="no picture"):
        TwoTower(encoder, [], np.zeros((0, 2), dtype=np.float32))
    with pytest.raises(DataError, match="3 picture ids and 2 vectors"):
        TwoTower(encoder, ["a", "b", "c"], eye)
    with pytest.raises(DataError, match="2 picture ids and 1 paths"):
        TwoTower(encoder, ["a", "b"], eye, paths=["a.png"])
    with pytest.raises(DataError, match="2 picture ids and 1 rows"):
        TwoTower(encoder, ["a", "b"], eye, vokens=np.array([[1]]))
    with pytest.raises(DataError, match="is there twice"):
        TwoTower(encoder, ["a", "a"], eye)
    with pytest.raises(DataError, match=r"shape \(2,\)"):
        TwoTower(encoder, ["a", "b"], np.ones(2, dtype=np.float32))
    with pytest.raises(DataError, match="picture 'b' is not finite"):
        TwoTower(encoder, ["a", "b"], np.array([[1.0, 0.0], [np.nan, 1.0]], dtype=np.float32))
    system = TwoTower(encoder, ["a", "b"], eye)
    with pytest.raises(DataError, match="2 wide"):
        system.search(["0"], 1)
    with pytest.raises(ConfigError, match="1 or more"):
        system.search(["0"], 0)
    with pytest.raises(DataError, match="not finite for the text '0'"):
        TwoTower(Lookup([[np.inf, 0.0]]), ["a", "b"], eye).search(["0"], 1)
