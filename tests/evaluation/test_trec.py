"""TREC files, read back by us and by ir_measures."""

import doctest
import resource

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import Success

from voken.errors import DataError, StorageError
from voken.metrics import first_relevant, ranked_matrices, recall_at
from voken.search.hit import Hit
from voken_lab.evaluation import trec
from voken_lab.evaluation.protocol import Query
from voken_lab.evaluation.trec import decode_id, encode_id, read_qrels, read_run, write_qrels, write_run

ODD = ["plain.jpg", "my photos/a b.jpg", "50% off", "tab\tand\nline", "日本.png", "bad\udcff", "#1", "%20", "\u00a0"]


@given(st.text(min_size=1))
def test_any_id_becomes_one_ascii_word_and_comes_back(name):
    word = encode_id(name)
    assert word.isascii()
    assert len(word.split()) == 1
    assert decode_id(word) == name


def test_odd_ids_stay_distinct():
    assert len({encode_id(name) for name in ODD}) == len(ODD)
    assert [decode_id(encode_id(name)) for name in ODD] == ODD
    with pytest.raises(DataError, match="empty id"):
        encode_id("")


def test_files_come_back_as_they_were(tmp_path):
    queries = [Query("q 1", "x", frozenset(ODD[:3])), Query("q2", "y", frozenset({"日本.png"}))]
    answers = [[Hit(name, "", 1.0 - i / 8) for i, name in enumerate(ODD)], []]
    write_run(tmp_path / "run", queries, answers, tag="our system")
    write_qrels(tmp_path / "qrels", queries)
    assert read_run(tmp_path / "run") == {"q 1": [(name, 1.0 - i / 8) for i, name in enumerate(ODD)]}
    assert read_qrels(tmp_path / "qrels") == {query.query_id: query.relevant for query in queries}
    assert (tmp_path / "run").read_text().splitlines()[1] == "q%201 Q0 my%20photos/a%20b.jpg 2 0.875 our%20system"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["qrels", "run"]


def test_ir_measures_finds_the_same_recall_in_the_files(tmp_path):
    generator = np.random.default_rng(1)
    names = [f"set {i % 3}/picture {i}.png" for i in range(30)]
    queries, answers = [], []
    for number in range(50):
        right = generator.choice(names, size=generator.integers(1, 4), replace=False)
        queries.append(Query(f"q{number}", "", frozenset(right.tolist())))
        ranking = generator.choice(names, size=generator.integers(1, 25), replace=False).tolist()
        answers.append([Hit(name, "", float(-rank) / 7) for rank, name in enumerate(ranking)])
    answers[7] = []
    write_run(tmp_path / "run", queries, answers)
    write_qrels(tmp_path / "qrels", queries)
    theirs = ir_measures.calc_aggregate(
        [Success @ 1, Success @ 5, Success @ 10],
        list(ir_measures.read_trec_qrels(str(tmp_path / "qrels"))),
        list(ir_measures.read_trec_run(str(tmp_path / "run"))),
    )
    scores, relevant = ranked_matrices(
        [[(hit.image_id, hit.score) for hit in hits] for hits in answers], [query.relevant for query in queries]
    )
    for k in (1, 5, 10):
        assert theirs[Success @ k] == pytest.approx(recall_at(first_relevant(scores, relevant), k).mean())


@pytest.mark.parametrize(
    "scores",
    [
        [0.5, 0.5, 0.5, 0.25],
        [0.0, 0.0, 0.0, -1e-50],
        [1.0, 1.0 - 1e-12, 1.0 - 2e-12],  # different numbers, one 32-bit float
        [123456.789, 123456.788, 123456.788, -3.0],
    ],
)
def test_written_scores_fall_strictly_even_as_32_bit_floats(tmp_path, scores):
    hits = [Hit(f"z{9 - i}" if i % 2 else f"a{i}", "", score) for i, score in enumerate(scores)]
    write_run(tmp_path / "run", [Query("q", "", frozenset({"a0"}))], [hits])
    lines = [line.split() for line in (tmp_path / "run").read_text().splitlines()]
    written = np.array([line[4] for line in lines]).astype(np.float32)
    assert (np.diff(written) < 0).all()
    assert np.allclose(written, scores, rtol=1e-6, atol=1e-40)
    assert [line[2] for line in lines] == [hit.image_id for hit in hits]
    assert [line[3] for line in lines] == [str(rank) for rank in range(1, len(hits) + 1)]
    by_tool = sorted(ir_measures.read_trec_run(str(tmp_path / "run")), key=lambda doc: -doc.score)
    assert [doc.doc_id for doc in by_tool] == [hit.image_id for hit in hits]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    queries = [Query("q", "", frozenset({"a"}))]
    write_run(tmp_path / "run", queries, [[Hit("a", "", 1.0)]])
    before = (tmp_path / "run").read_bytes()
    with pytest.raises(DataError, match="score of -inf"):
        write_run(tmp_path / "run", queries, [[Hit("a", "", -np.inf)]])
    with pytest.raises(DataError, match="2 answers for 1 queries"):
        write_run(tmp_path / "run", queries, [[], []])
    assert (tmp_path / "run").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    queries = [Query(f"q{i}", "", frozenset({"a"})) for i in range(5_000)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(StorageError, match="the disk is full"):
            write_qrels(tmp_path / "qrels", queries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path):
    write_qrels(tmp_path / "runs" / "emoji" / "qrels", [Query("q", "", frozenset({"a"}))])
    assert read_qrels(tmp_path / "runs" / "emoji" / "qrels") == {"q": frozenset({"a"})}


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_run, "q Q0 a 1 0.5 tag\nq Q0 a 1\n", "line 2: 4 fields, but there must be 6"),
        (read_run, "q Q0 a 1 high tag\n", "line 1: 'high' is not a score"),
        (read_qrels, "q 0 a 1\n\nq 0 b\n", "line 3: 3 fields, but there must be 4"),
        (read_qrels, "q 0 a yes\n", "line 1: 'yes' is not a whole number"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path, read, text, message):
    path = tmp_path / "broken"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read(path)


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_run(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not text"):
        read_qrels(tmp_path / "binary")


def test_judgements_of_zero_are_not_right_answers(tmp_path):
    (tmp_path / "qrels").write_text("q 0 a 0\nq 0 b 2\n")
    assert read_qrels(tmp_path / "qrels") == {"q": frozenset({"b"})}


def test_the_examples_of_the_docstrings_hold():
    result = doctest.testmod(trec)
    assert result.attempted > 0
    assert result.failed == 0
