"""Which queries are asked, and how answers become numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from voken.data.captions import CaptionedImage, Dataset
from voken.errors import ConfigError, DataError, EmptyDataError
from voken.search.hit import Hit
from voken_lab.evaluation.machine import Machine
from voken_lab.evaluation.protocol import Conditions, Pool, Query, evaluate, pool_of, queries_of, spread

HERE = Conditions(system="scripted", dataset="toy")


def dataset(*rows):
    """Rows of (image_id, concept, captions)."""
    return Dataset("toy", Path(), tuple(CaptionedImage(i, Path(i), tuple(c), "test", k) for i, k, c in rows))


class Scripted:
    """A system that gives the same full ranking for a text each time, cut to k; counts what it was asked."""

    def __init__(self, rankings, vokens=None):
        self.rankings = rankings
        self.vokens = vokens or {}
        self.batches = []

    def search(self, texts, k):
        self.batches.append((len(texts), k))
        return [
            [Hit(name, "", score, self.vokens.get(name, ())) for name, score in self.rankings[text][:k]]
            for text in texts
        ]


def test_queries_are_the_distinct_captions_with_every_right_picture():
    images = dataset(
        ("cat-1", "cat", ["Cat", "pet"]),
        ("cat-2", "cat", ["cat ", "kitty"]),
        ("dog-1", "dog", ["dog", "PET"]),
        ("sun-1", "sun", ["", "  "]),
    )
    queries = queries_of(images, pool_of(images))
    assert {query.text: set(query.relevant) for query in queries} == {
        "Cat": {"cat-1", "cat-2"},
        "pet": {"cat-1", "cat-2", "dog-1"},
        "kitty": {"cat-1", "cat-2"},
        "dog": {"dog-1"},
    }
    assert len({query.query_id for query in queries}) == 4


def test_query_ids_follow_the_text_alone():
    one = dataset(("a", "a", ["A  red car"]), ("b", "b", ["tree"]))
    other = dataset(("x", "x", ["tree"]), ("y", "y", ["a red Car"]))
    first = {query.text.casefold(): query.query_id for query in queries_of(one, pool_of(one))}
    second = {query.text.casefold(): query.query_id for query in queries_of(other, pool_of(other))}
    assert first == second


def test_one_picture_of_a_concept_keeps_its_captions():
    images = dataset(*[(f"c{c}-{v}", f"c{c}", [f"word {c} {v}"]) for c in range(20) for v in range(5)])
    pool = pool_of(images, one_per_concept=True, seed=1)
    assert len(pool) == 20
    assert {name.split("-")[0] for name in pool.image_ids} == {f"c{c}" for c in range(20)}
    queries = queries_of(images, pool)
    assert len(queries) == 100
    assert all(len(query.relevant) == 1 and query.relevant <= set(pool.image_ids) for query in queries)
    backwards = Dataset("toy", Path(), images.images[::-1])
    assert set(pool_of(backwards, one_per_concept=True, seed=1).image_ids) == set(pool.image_ids)
    assert pool_of(images, one_per_concept=True, seed=2) != pool


def test_every_caption_is_a_query_and_a_shared_one_has_all_its_pictures():
    images = dataset(("a", "", ["a man", "A  man"]), ("b", "", ["a man", "a dog"]), ("c", "", ["A dog", " "]))
    queries = queries_of(images, pool_of(images), distinct=False)
    assert [(query.text, set(query.relevant)) for query in queries] == [
        ("a man", {"a", "b"}),
        ("A  man", {"a", "b"}),
        ("a man", {"a", "b"}),
        ("a dog", {"b", "c"}),
        ("A dog", {"b", "c"}),
    ]
    assert len({query.query_id for query in queries}) == 5
    # a picture outside the pool is no right answer
    assert [set(query.relevant) for query in queries_of(images, Pool(("b",)), distinct=False)] == [{"b"}, {"b"}]


def test_pools_and_queries_that_make_no_sense_are_refused():
    images = dataset(("a", "", []), ("b", "", ["b"]))
    with pytest.raises(EmptyDataError, match="no picture"):
        Pool(())
    with pytest.raises(DataError, match="'a' is in the pool twice"):
        Pool(("a", "b", "a"))
    with pytest.raises(DataError, match="one row of M vokens"):
        Pool(("a", "b"), np.zeros((3, 4), dtype=np.int32))
    with pytest.raises(DataError, match=r"not in 'toy', e\.g\. 'z'"):
        queries_of(images, Pool(("a", "z")))
    with pytest.raises(EmptyDataError, match="has a caption"):
        queries_of(images, Pool(("a",)))


def test_image_and_sequence_level_by_hand():
    # a and b share a sequence, and so a score; c and d have their own.
    pool = Pool(("a", "b", "c", "d")).with_vokens(np.array([[1, 1], [1, 1], [2, 1], [2, 2]], dtype=np.int32))
    ranking = [("c", 3.0), ("a", 2.0), ("b", 2.0), ("d", 1.0)]
    queries = [Query("q1", "one", frozenset({"a"})), Query("q2", "two", frozenset({"c", "d"}))]
    system = Scripted({"one": ranking, "two": ranking}, {"a": (1, 1), "c": (2, 1)})
    result = evaluate(system, queries, pool, conditions=HERE, cutoffs=(1, 2, 3), k=4)
    assert result.recall_per_query[1].tolist() == [0, 1]
    assert result.recall_per_query[2].tolist() == [0.5, 1]
    assert result.recall_per_query[3].tolist() == [1, 1]
    assert result.sequence_recall_per_query is not None
    assert result.sequence_recall_per_query[2].tolist() == [1, 1]
    assert result.recall == {1: 0.5, 2: 0.75, 3: 1.0}
    assert result.sequence_recall == {1: 0.5, 2: 1.0, 3: 1.0}
    assert result.reciprocal_rank == pytest.approx(((1 / 2 + 1 / 3) / 2 + 1) / 2)
    assert result.collision_rate == 0.5
    assert (result.pool_size, result.query_count) == (4, 2)
    assert result.queries_per_second > 0


def test_a_tie_longer_than_the_answer_is_asked_for_until_it_ends():
    names = [f"p{i}" for i in range(200)]
    tied = [("top", 2.0), *((name, 1.0) for name in names), ("last", 0.0)]
    system = Scripted({"tied": tied, "clear": [("last", 1.0), ("top", 0.5)]})
    queries = [Query("q1", "tied", frozenset({"p150"})), Query("q2", "clear", frozenset({"last"}))]
    result = evaluate(system, queries, ["top", *names, "last"], conditions=HERE, cutoffs=(1, 5), k=20)
    assert result.recall_per_query[5] == pytest.approx([4 / 200, 1.0])
    assert result.sequence_recall is None
    assert result.collision_rate is None
    # The first text untimed, then both, then only the tied one, deeper each time, up to the pool.
    assert system.batches == [(1, 20), (2, 20), (1, 80), (1, 202)]


def test_few_distinct_sequences_are_asked_for_deeper():
    names = tuple(f"p{i}" for i in range(40))
    vokens = np.array([[i // 20] for i in range(40)])
    ranking = [(name, -float(i)) for i, name in enumerate(names)]
    queries = [Query("q", "x", frozenset({"p39"}))]
    result = evaluate(Scripted({"x": ranking}), queries, Pool(names, vokens), conditions=HERE, cutoffs=(1, 2), k=5)
    assert result.recall == {1: 0.0, 2: 0.0}
    assert result.sequence_recall == {1: 0.0, 2: 1.0}


def test_a_query_without_an_answer_counts_zero():
    queries = [Query("q1", "x", frozenset({"a"})), Query("q2", "y", frozenset({"a"}))]
    system = Scripted({"x": [("a", 1.0)], "y": []})
    assert evaluate(system, queries, ["a", "b"], conditions=HERE).recall == {1: 0.5, 5: 0.5, 10: 0.5}


def test_batches_and_progress():
    queries = [Query(f"q{i}", str(i), frozenset({"a"})) for i in range(5)]
    system = Scripted({str(i): [("a", 1.0)] for i in range(5)})
    progress = []
    evaluate(system, queries, ["a"], conditions=HERE, batch_size=2, progress=lambda *args: progress.append(args))
    assert progress == [("queries", 2, 5), ("queries", 4, 5), ("queries", 5, 5)]


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([("a", 1.0), ("a", 0.5)], "'a' is in the answer twice"),
        ([("elsewhere", 1.0)], "'elsewhere' is not in the pool"),
        ([("a", 1.0), ("b", 2.0)], "scores must fall"),
        ([("a", float("nan"))], "scores must fall and not be NaN"),
    ],
)
def test_a_system_that_breaks_its_contract_is_not_scored(hits, message):
    with pytest.raises(DataError, match=message):
        evaluate(Scripted({"x": hits}), [Query("q", "x", frozenset({"a"}))], ["a", "b"], conditions=HERE)


def test_vokens_of_another_tokenizer_are_noticed():
    pool = Pool(("a",), np.array([[1, 2]]))
    with pytest.raises(DataError, match="Use one tokenizer"):
        evaluate(
            Scripted({"x": [("a", 1.0)]}, {"a": (2, 1)}), [Query("q", "x", frozenset({"a"}))], pool, conditions=HERE
        )


def test_answers_of_the_wrong_number_are_noticed():
    class TooMany:
        def search(self, texts, k):
            return [[Hit("a", "", 1.0), Hit("b", "", 0.5)] for _ in texts]

    class TooFew:
        def search(self, texts, k):
            return []

    queries = [Query("q", "x", frozenset({"a"}))]
    with pytest.raises(DataError, match="at most 1 were requested"):
        evaluate(TooMany(), queries, ["a", "b"], conditions=HERE, cutoffs=(1,), k=1)
    with pytest.raises(DataError, match="0 answers to 1 queries"):
        evaluate(TooFew(), queries, ["a", "b"], conditions=HERE)


def test_requests_that_cannot_be_measured_are_refused():
    query = Query("q", "x", frozenset({"a"}))
    system = Scripted({"x": [("a", 1.0)]})
    with pytest.raises(EmptyDataError, match="no queries"):
        evaluate(system, [], ["a"], conditions=HERE)
    with pytest.raises(ConfigError, match="Ask for at least 10"):
        evaluate(system, [query], ["a"], conditions=HERE, k=5)
    with pytest.raises(ConfigError, match="cutoffs"):
        evaluate(system, [query], ["a"], conditions=HERE, cutoffs=(0, 1))
    with pytest.raises(DataError, match="Two queries have the same id"):
        evaluate(system, [query, query], ["a"], conditions=HERE)
    with pytest.raises(DataError, match="'b' outside the pool"):
        evaluate(system, [Query("q", "x", frozenset({"a", "b"}))], ["a"], conditions=HERE)
    with pytest.raises(DataError, match="no right answer"):
        evaluate(system, [Query("q", "x", frozenset())], ["a"], conditions=HERE)
    with pytest.raises(ConfigError, match="protocol"):
        Conditions(system="s", protocol="mixed")
    with pytest.raises(ConfigError, match="readout"):
        Conditions(system="s", readout="both")


def evaluated(seed, right, **changes):
    """An evaluation of four queries, the first `right` of which find their picture."""
    queries = [Query(f"q{i}", str(i), frozenset({"a"})) for i in range(4)]
    system = Scripted({str(i): [("a", 1.0)] if i < right else [] for i in range(4)})
    return evaluate(system, queries, ["a"], conditions=Conditions(system="s", seed=seed, **changes), cutoffs=(1,))


def test_the_record_is_json_and_says_under_what_it_was_made():
    result = evaluated(3, 2, beams=20, bytes_per_picture=5.0, readout="generate", config={"name": "demo"})
    record = json.loads(json.dumps(result.to_dict(per_query=True)))
    assert record["recall"] == {"1": 0.5}
    expected = {"seed": 3, "beams": 20, "protocol": "inductive", "readout": "generate", "pool_size": 1}
    assert expected.items() <= record.items()
    assert record["config"] == {"name": "demo"}
    assert record["machine"] == json.loads(json.dumps(vars(Machine.here())))
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["torch"]
    groups = record["per_query"].pop("group")
    assert len(groups) == 4
    assert len(set(groups)) == 1  # one right answer to them all
    assert record["per_query"] == {"query_id": ["q0", "q1", "q2", "q3"], "recall": {"1": [1.0, 1.0, 0.0, 0.0]}}
    assert "per_query" not in result.to_dict()


def test_spread_over_seeds():
    summary = spread([evaluated(0, 1), evaluated(1, 2), evaluated(2, 4).to_dict()])
    assert summary.seeds == (0, 1, 2)
    assert summary.mean["recall@1"] == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert summary.std["recall@1"] == pytest.approx(0.3818813)  # sqrt(((1/3)² + (1/12)² + (5/12)²) / 2)
    assert "sequence_recall@1" not in summary.mean
    assert spread([evaluated(0, 1)]).std["recall@1"] is None


def test_beams_that_were_chosen_on_validation_may_differ_by_seed():
    tried = {"10": 0.5, "20": 0.6}
    chosen = [evaluated(0, 1, beams=20, beams_tried=tried), evaluated(1, 2, beams=10, beams_tried=tried)]
    assert spread(chosen).mean["recall@1"] == pytest.approx(0.375)
    with pytest.raises(ConfigError, match="different beams"):
        spread([*chosen, evaluated(2, 1, beams=10)])


def test_spread_never_merges_what_differs_by_more_than_the_seed():
    with pytest.raises(ConfigError, match=r"different protocol \('inductive', 'transductive'\)"):
        spread([evaluated(0, 1), evaluated(1, 1, protocol="transductive")])
    with pytest.raises(ConfigError, match="different readout"):
        spread([evaluated(0, 1, readout="generate"), evaluated(1, 1, readout="vector")])
    with pytest.raises(ConfigError, match="different pool"):
        spread([evaluated(0, 1, pool="full"), evaluated(1, 1, pool="one picture per concept")])
    with pytest.raises(ConfigError, match="different beams"):
        spread([evaluated(0, 1, beams=10), evaluated(1, 1, beams=20)])
    with pytest.raises(ConfigError, match="a seed occurs twice"):
        spread([evaluated(0, 1), evaluated(0, 2)])
    with pytest.raises(EmptyDataError, match="no evaluation"):
        spread([])
