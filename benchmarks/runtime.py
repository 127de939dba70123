"""Which library multiplies fastest at the sizes of a beam search? torch, ONNX Runtime or OpenVINO, float32 or int8.

A chain of --layers feed-forward layers (width → 4 · width → width, ReLU), as a T5 decoder has, on 1 row (level 1), 20
(the beams of a query), 200 and 640 (the beams of 32 queries), random weights of a fixed seed. All libraries get the
same numbers and are asked in turn; medians over rounds. int8 of ONNX Runtime is `voken.inference.graph`'s: weights
rounded by column, inputs by row. torch's and OpenVINO's int8 round the inputs of a whole batch by one scale: torch
dynamically (`torch.ao.quantization.quantize_dynamic`), OpenVINO by fixed scales in the graph, found beforehand.

    python benchmarks/runtime.py --json out.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voken.inference.graph import Graph, Precision
from voken.inference.runtime import LoadedGraph, session_options, value
from voken.shapes import Float32
from voken_lab.evaluation.machine import Machine

ROWS = (1, 20, 200, 640)
Chain = list[tuple[np.ndarray, np.ndarray]]
"""(width, inner) and (inner, width) of each layer."""
Run = Callable[[np.ndarray], np.ndarray]
"""(rows, width) to the same."""


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    random = np.random.default_rng(0)
    shapes = (options.width, 4 * options.width), (4 * options.width, options.width)
    weights = [
        [random.standard_normal(s, dtype=np.float32) / np.float32(s[0] ** 0.5) for s in shapes]
        for _ in range(options.layers)
    ]
    chain: Chain = [(up, down) for up, down in weights]
    inputs = {rows: random.standard_normal((rows, options.width), dtype=np.float32) for rows in ROWS}
    runs = libraries(chain, inputs[200], options.threads)
    expected = {rows: exact(chain, given) for rows, given in inputs.items()}
    found: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in ROWS} for name in runs}
    errors = {name: max(error(run(inputs[rows]), expected[rows]) for rows in ROWS) for name, run in runs.items()}
    for _ in range(options.rounds):
        for rows in ROWS:
            for name, run in runs.items():
                began = time.perf_counter()
                run(inputs[rows])
                found[name][rows].append(time.perf_counter() - began)
    flops = 2 * options.layers * 8 * options.width**2
    rates = {
        name: {rows: flops * rows / statistics.median(times) / 1e9 for rows, times in by_rows.items()}
        for name, by_rows in found.items()
    }
    print(f"| GFLOP/s at rows | {' | '.join(map(str, ROWS))} | relative error |\n|---|{'---:|' * (len(ROWS) + 1)}")
    for name, by_rows in rates.items():
        print(f"| {name} | {' | '.join(f'{rate:.0f}' for rate in by_rows.values())} | {errors[name]:.4f} |")
    if options.json:
        report = {"benchmark": "runtime", "machine": dataclasses.asdict(Machine.here()), "threads": options.threads}
        options.json.write_text(
            json.dumps(report | {"rates": rates, "errors": errors}, indent=2) + "\n", encoding="utf-8"
        )


def exact(chain: Chain, rows: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
    """In numpy."""
    for up, down in chain:
        rows = np.maximum(rows @ up, 0) @ down
    return rows


def error(found: Float32[np.ndarray, "rows width"], expected: Float32[np.ndarray, "rows width"]) -> float:
    """Relative to the size of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def libraries(chain: Chain, sample: Float32[np.ndarray, "rows width"], threads: int) -> dict[str, Run]:
    """Each library with the chain loaded."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            "torch float32": torch_chain(chain, threads, int8=False),
            "torch int8": torch_chain(chain, threads, int8=True),
            "ONNX Runtime float32": onnx_chain(chain, threads, "float32", Path(folder)),
            "ONNX Runtime int8": onnx_chain(chain, threads, "int8", Path(folder)),
            "OpenVINO float32": openvino_chain(chain, threads, Path(folder) / "float32.onnx", None),
            "OpenVINO int8": openvino_chain(chain, threads, Path(folder) / "int8.onnx", sample),
        }
        for run in runs.values():  # files are mapped: everything is read before the folder goes
            for rows in ROWS:
                run(np.resize(sample, (rows, sample.shape[1])))
    return runs


def torch_chain(chain: Chain, threads: int, *, int8: bool) -> Run:
    """Linear layers; int8 by torch's dynamic quantization."""
    import torch

    torch.set_num_threads(threads)
    layers: list[torch.nn.Module] = []
    for up, down in chain:
        for matrix in (up, down):
            layer = torch.nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
            layer.weight.data = torch.from_numpy(matrix.T.copy())
            layers.append(layer)
        layers.insert(-1, torch.nn.ReLU())
    model: Any = torch.nn.Sequential(*layers).eval()
    if int8:
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    def run(rows: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
        with torch.inference_mode():
            result: np.ndarray = model(torch.from_numpy(rows)).numpy()
        return result

    return run


def onnx_chain(chain: Chain, threads: int, precision: Precision, folder: Path) -> Run:
    """The graph as voken writes it."""
    graph = Graph(precision)
    rows = graph.input("rows", "float32", ["rows", chain[0][0].shape[0]])
    graph.rows_of(rows)
    for up, down in chain:
        rows = graph.linear(graph.op("Relu", graph.linear(rows, up)), down, positive=True)
    graph.output("out", rows, ["rows", chain[0][0].shape[0]])
    path = folder / f"chain-{precision}.onnx"
    graph.save(path, path.with_suffix(".weights"))
    loaded = LoadedGraph.load(path, session_options(threads))

    def run(given: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
        result: np.ndarray = loaded.run({"rows": value(given)})["out"].numpy()
        return result

    return run


def openvino_chain(chain: Chain, threads: int, path: Path, sample: Float32[np.ndarray, "rows width"] | None) -> Run:
    """An ONNX graph of plain operators; with `sample`, in int8 by scales that it gives."""
    import onnx
    import openvino
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, f"c{len(constants)}"))
        return constants[-1].name

    def op(kind: str, *names: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(names), [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def product(rows: str, matrix: Float32[np.ndarray, "a b"], given: Float32[np.ndarray, "rows a"] | None) -> str:
        if given is None:
            return op("MatMul", rows, constant(matrix))
        zero = constant(np.array(0, dtype=np.int8))
        scale = constant(np.array(np.abs(given).max() / 127, dtype=np.float32))
        rows = op("DequantizeLinear", op("QuantizeLinear", rows, scale, zero), scale, zero)
        columns = (np.abs(matrix).max(axis=0) / 127).astype(np.float32)
        rounded = constant(np.round(matrix / columns).astype(np.int8))
        zeros = constant(np.zeros(matrix.shape[1], dtype=np.int8))
        return op("MatMul", rows, op("DequantizeLinear", rounded, constant(columns), zeros, axis=1))

    name = "rows"
    for up, down in chain:
        name = op("Relu", product(name, up, sample))
        inside = None if sample is None else np.maximum(sample @ up, 0)
        name = product(name, down, inside)
        sample = None if inside is None else inside @ down
    width = chain[0][0].shape[0]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["rows", width]) for end in ("rows", name)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def run(given: Float32[np.ndarray, "rows width"]) -> Float32[np.ndarray, "rows width"]:
        request.infer([given], share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return run


if __name__ == "__main__":
    main()
