"""Queries of several parts: their vectors are added, and the pictures nearest to the sum are the answer."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.saved_search import save_search
from voken import Collection
from voken.cli import app
from voken.errors import ConfigError, DataError
from voken.search.combined_query import Term, combined, parse_term, parse_terms


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return save_search(tmp_path_factory.mktemp("combined")) / "collection"


@pytest.mark.parametrize(
    ("text", "words", "weight"),
    [
        ("dog", "dog", 1),
        ("dog:2", "dog", 2),
        ("at night : 0.5", "at night", 0.5),
        ("a:b:.25", "a:b", 0.25),
        ("at 10:30:1", "at 10:30", 1),
        ("note: red", "note: red", 1),
        (":2", ":2", 1),
        ("a dog:2 dogs", "a dog:2 dogs", 1),
    ],
)
def test_words_may_have_a_weight(text, words, weight):
    assert parse_term(text) == Term(words, weight)


def test_impossible_terms_are_refused():
    for text in ("dog:0", "dog:101", "dog:0.0"):
        with pytest.raises(ConfigError, match="above 0 and at most 100"):
            parse_term(text)
    with pytest.raises(ConfigError, match="at most 32"):
        parse_terms(["dog"] * 30, ["cat"] * 3)
    assert parse_terms(["dog:2"], ["cat:3"]) == [Term("dog", 2), Term("cat", -3)]


def test_vectors_of_any_length_count_alike():
    one, other = np.array([3.0, 0.0]), np.array([0.0, 0.01])
    np.testing.assert_allclose(combined([one, other], [1, 2]), np.array([1, 2]) / 5**0.5, atol=1e-6)
    with pytest.raises(ConfigError, match="cancel each other"):
        combined([one, one], [1, -1])


def expected(photos, like, words, k):
    """Exact search over the stored vectors."""
    searcher = photos.searcher
    snapshot = searcher.collection
    rows = np.asarray(snapshot.vectors[snapshot.rows], dtype=np.float64)
    total = np.zeros(rows.shape[1])
    if like is not None:
        own = rows[snapshot.find(like)]
        total += own / np.linalg.norm(own)
    for text, weight in words:
        total += weight * searcher.model.query_vectors([text])[0]
    order = np.argsort(-(rows @ total))
    names = [snapshot.ids[row] for row in snapshot.rows[order].tolist()]
    return [name for name in names if name != like][:k]


def test_answers_are_those_of_exact_search(collection):
    with Collection.open(collection, beams=60) as photos:
        cases = [
            ({"like": "p3", "plus": ["at night:2"], "minus": ["a cat"]}, "p3", [("at night", 2), ("a cat", -1)]),
            ({"query": "a red dog", "minus": ["a cat:0.5"]}, None, [("a red dog", 1), ("a cat", -0.5)]),
            ({"plus": ["dog:2", "hill"]}, None, [("dog", 2), ("hill", 1)]),
            ({"like": "p3", "query": "a bird"}, "p3", [("a bird", 1)]),
        ]
        answers = []
        for options, like, words in cases:
            hits = photos.combine(k=8, **options)
            assert [hit.image_id for hit in hits] == expected(photos, like, words, 8)
            answers.append([hit.image_id for hit in hits])
        assert len({tuple(answer) for answer in answers}) == 4
        alone = photos.combine("a red dog", 8, where=["folder=nowhere"])
        assert alone == []


def test_what_cannot_be_answered_is_told(collection):
    with Collection.open(collection) as photos:
        with pytest.raises(ConfigError, match="nothing to start from"):
            photos.combine(minus=["people"])
        with pytest.raises(DataError, match="no picture of the collection has that id"):
            photos.combine(like="absent", plus=["dog"])
        with pytest.raises(ConfigError, match="is empty"):
            photos.combine("dog", plus=["  "])
        with pytest.raises(ConfigError, match="ask for 1 or more"):
            photos.combine("dog", 0, plus=["cat"])


def run(*arguments):
    return CliRunner().invoke(app, ["search", *map(str, arguments)])


def test_the_command_line_adds_and_takes_away(collection):
    done = run(collection, "--like", "p3", "--plus", "at night:2", "--minus", "a cat", "--json", "-k", "5")
    assert done.exit_code == 0, done.output
    with Collection.open(collection) as photos:
        wanted = photos.combine(like="p3", plus=["at night:2"], minus=["a cat"], k=5)
    assert [hit["image_id"] for hit in json.loads(done.stdout)["hits"]] == [hit.image_id for hit in wanted]
    assert run(collection, "--plus", "dog:2", "--plus", "hill", "-f").exit_code == 0
    for arguments, message in (
        (["--minus", "people"], "or --plus"),
        (["dog", "--plus", "cat", "--threshold", "0.5"], "not one with --plus or --minus"),
        (["dog", "--like", "p3", "--plus", "cat"], "Words beside it: --plus"),
        (["dog", "--plus", "cat:0"], "above 0 and at most 100"),
    ):
        refused = run(collection, *arguments)
        assert refused.exit_code == 1
        assert message in " ".join(refused.stderr.split())
