"""The rows of benchmarks/decoding.py answer the same question: a speed is worth nothing otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import decoding
from voken.decoding.trie import VokenTrie

TEXTS = ["a small dog sits on the old bridge", "one red boat", "the tall woman waits near a rusty lamp and some trees"]


def answers(names, workload, folder):
    rows = [decoding.ROWS[name] for name in names]
    decoding.prepare(rows, workload, folder)
    assert decoding.read_workload(folder) == workload
    for row in rows:
        row.setup(folder, workload)
    return {row.name: row.search(TEXTS) for row in rows}


def workload_of(**changes):
    sizes = {"levels": 3, "codebook_size": 9, "sequences": 60, "beams": 6, "threads": 1, "batches": (1, 2)}
    return decoding.Workload(shape="tiny", **sizes | changes)


@pytest.mark.slow
def test_ours_rank_as_transformers(tmp_path):
    ours = ["ours, engine float32", "ours, torch"]
    theirs = [decoding.REFERENCE, "transformers, the same, vokens only"]
    answers_by_row = answers([*ours, *theirs], workload_of(), tmp_path)
    trie = VokenTrie.load(tmp_path / "trie")
    for name, answer in answers_by_row.items():
        same = decoding.agreement(answer, answers_by_row[decoding.REFERENCE])
        assert (same.same_first, same.overlap, same.same_ranking) == (1, 1, 1), name
        assert same.greatest_difference < decoding.TIE
        for vokens, scores in answer:
            assert vokens.shape == (6, 3)
            assert (trie.leaf_of(vokens) >= 0).all()
            assert (np.diff(scores) <= 0).all()
    # The rankings would agree for any two programs if all queries had one answer.
    assert len({tuple(map(tuple, vokens.tolist())) for vokens, _ in answers_by_row[decoding.REFERENCE]}) > 1


@pytest.mark.parametrize("vokens_only", [False, True])
def test_ctranslate2_has_the_same_weights(tmp_path, vokens_only):
    """Where every sequence is somebody's, nothing is forbidden, and its answers are those of a constrained search."""
    pytest.importorskip("ctranslate2")
    everything = workload_of(levels=2, codebook_size=5, sequences=400, beams=7)
    row = decoding.CTranslate2("CTranslate2 float32", "float32", vokens_only=vokens_only)
    ours = answers(["ours, torch"], everything, tmp_path)["ours, torch"]
    row.prepare(decoding.make_generator(everything), tmp_path)
    row.setup(tmp_path, everything)
    assert VokenTrie.load(tmp_path / "trie").sequences == 25
    same = decoding.agreement(ours, row.search(TEXTS))
    assert (same.same_first, same.overlap, same.same_ranking) == (1, 1, 1)


def test_scores_need_not_be_asked_for(tmp_path):
    row = decoding.ROWS[decoding.REFERENCE]
    scored = answers([row.name], workload_of(), tmp_path)[row.name]
    bare = row.search(TEXTS, scores=False)
    assert all((a == b).all() for (a, _), (b, _) in zip(scored, bare, strict=True))


def test_agreement_sees_a_wrong_answer():
    right = (np.array([[1, 2], [3, 4], [5, 6]], np.int32), np.array([-1.0, -2.0, -3.0], np.float32))
    tied = (np.array([[1, 2], [3, 4], [7, 7]], np.int32), np.array([-1.0, -2.0, -3.00001], np.float32))
    swapped = (np.array([[3, 4], [1, 2], [5, 6]], np.int32), np.array([-1.0, -2.0, -3.0], np.float32))
    lost = (np.array([[1, 2], [3, 4], [7, 7]], np.int32), np.array([-1.0, -2.0, -3.5], np.float32))
    assert decoding.agreement([tied], [right]).same_ranking == 1
    assert decoding.agreement([tied], [right]).overlap == pytest.approx(2 / 3)
    assert decoding.agreement([lost], [right]).same_ranking == 0
    assert decoding.agreement([swapped, right], [right, right]) == decoding.Agreement(0.5, 1.0, 0.5, 1.0)


def test_children_are_those_of_the_sequences():
    sequences = sorted({tuple(row) for row in np.random.default_rng(0).integers(0, 4, (30, 3)).tolist()})
    children = decoding.children_of_prefixes(np.array(sequences), 100)
    expected = {}
    for sequence in sequences:
        words = tuple(voken + 100 for voken in sequence)
        for level in range(3):
            expected.setdefault(words[:level], set()).add(words[level])
    assert {prefix: below.tolist() for prefix, below in children.items()} == {
        prefix: sorted(below) for prefix, below in expected.items()
    }


def test_operations_are_those_torch_counts(tmp_path):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    workload = workload_of(levels=4, codebook_size=32, beams=5, sequences=500)
    row = decoding.ROWS["ours, torch"]
    (tokens,) = decoding.prepare([row], workload, tmp_path)[:1]
    row.setup(tmp_path, workload)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted
        row.search(decoding.query_texts(1))
    assert counter.get_total_flops() == pytest.approx(decoding.operations(workload, tokens), rel=1e-6)


@pytest.mark.slow
def test_quick_run(tmp_path):
    names = ["ours, engine int8", "transformers"]
    command = [
        sys.executable,
        decoding.__file__,
        "--quick",
        "--threads",
        "1",
        "--json",
        str(tmp_path / "out.json"),
        "--rows",
        *names,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out.json").read_text())["shapes"]["tiny"]["rows"]
    assert list(rows) == names
    assert all(seconds > 0 for row in rows.values() for times in row["seconds_a_query"].values() for seconds in times)
    assert rows[names[0]]["agreement"]["overlap"] > 0.5
    assert all(f"| {name} |" in result.stdout for name in names)
