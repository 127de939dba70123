"""The memory of a search: bounded by its queries, beams and texts, and given back afterwards."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from builders.collections import make_collection
from builders.tiny_model import PrefixGenerator, paint_many, tiny_model
from voken.config import SearchConfig
from voken.search.searcher import Searcher


class RecordingGenerator(PrefixGenerator):
    """Records how much it reads at once."""

    def __init__(self):
        super().__init__(4, 2)
        self.batches = []

    def prefill(self, texts):
        self.batches.append((len(texts), max(map(len, texts))))
        return super().prefill(texts)


@pytest.mark.parametrize(
    ("lengths", "most"), [([1_500] * 64, 10), ([10] * 64, 64), ([10] * 30 + [2_000] + [10] * 30, 30), ([5_000] * 3, 8)]
)
def test_long_queries_are_read_a_few_at_once(tmp_path, lengths, most):
    model = dataclasses.replace(tiny_model(), generator=RecordingGenerator())
    collection = make_collection(tmp_path / "c", paint_many(tmp_path / "in", 8), tiny_model())
    searcher = Searcher(model, collection, SearchConfig(beams=4, readout="generate"))
    texts = [f"{number} red".ljust(length, "x") for number, length in enumerate(lengths)]
    answers = searcher.search(texts, 3)
    batches = list(model.generator.batches)
    assert sum(queries for queries, _ in batches) == len(texts)
    assert max(queries for queries, _ in batches) == min(most, len(texts))
    assert all(queries * longest <= 1 << 14 for queries, longest in batches)
    assert answers == [searcher.search([text], 3)[0] for text in texts]


def test_many_beams_are_searched_for_a_few_queries_at_once(tmp_path, monkeypatch):
    model = dataclasses.replace(tiny_model(), generator=RecordingGenerator())
    collection = make_collection(tmp_path / "c", paint_many(tmp_path / "in", 8), tiny_model())
    searcher = Searcher(model, collection, SearchConfig(beams=4, readout="generate"))
    beams = min(4, collection.trie.sequences)
    monkeypatch.setattr("voken.search.searcher._LOGITS_AT_ONCE", 5 * beams * 4)
    searcher.search(["red"] * 17, 3)
    assert [queries for queries, _ in model.generator.batches] == [5, 5, 5, 2]


# A process of its own, because what other tests have freed may be given back, or used, while this one measures.
_RUN_GRAPH = """
import sys
from pathlib import Path

import numpy as np

from voken.inference.engine import LoadedGraph, ort_value, session_options


def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


graph = LoadedGraph.load(Path(sys.argv[1]), session_options())
graph.run({"count": ort_value(np.array([1]))})
before = resident()
(result,) = graph.run({"count": ort_value(np.array([1 << 25]))}).values()
assert result.numpy() == -(1 << 25)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_graph_gives_its_memory_back(tmp_path):
    """A graph with 256 MB between its input and its output."""
    one = helper.make_tensor("v", TensorProto.FLOAT, [1], [1])
    nodes = [
        helper.make_node("ConstantOfShape", ["count"], ["ones"], value=one),
        helper.make_node("Neg", ["ones"], ["less"]),
        helper.make_node("ReduceSum", ["less"], ["sum"], keepdims=0),
    ]
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [1])
    total = helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [count], [total]), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )
    onnx.save(made, tmp_path / "g.onnx")
    run = subprocess.run([sys.executable, "-c", _RUN_GRAPH, str(tmp_path / "g.onnx")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64
