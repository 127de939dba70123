"""How long does one search take from the shell, everything included, beside another image-search command line?

Every run is a new process, timed from its start to its end. Rows are interleaved; the table shows medians over rounds.
The first round is discarded, so that files are in the page cache, and the bytecode of modules on the disk, as after an
installation: the process is cold, the disk is not. CPU time (user + system) and peak memory come from the kernel
(wait4). On a shared machine the CPU time is more reliable. The floor is the time that Python takes to start and to
import what every search without torch needs.

    python benchmarks/cold_start.py COLLECTION --peer rclip='COMMAND' --json out.json

Each round has another query, which replaces {query} in a peer's command: some peers cache their answers.

A peer of equal size can be prepared as follows. rclip (4.0.8 needs Python 3.12) reads its model from the folder
RCLIP_DATADIR, so that it runs without a model hub. `--write-peer FOLDER` writes 1,000 pictures of noise into
FOLDER/pictures and two models into FOLDER/data: a random CLIP text tower with the layers of voken's sentence encoder (6
layers, width 384; 29.8 M parameters with CLIP's vocabulary; its time does not depend on the weights' values), and an
image tower that only serves to index. CLIP's word list comes with the package open_clip_torch. Both command lines
search the same pictures:

    python benchmarks/cold_start.py --write-peer peer
    voken index peer/pictures --model MODEL --out peer/collection
    python3.12 -m venv peer/venv && peer/venv/bin/pip install rclip==4.0.8
    pip download --no-deps --dest peer open_clip_torch
    unzip -j peer/open_clip_torch-*.whl 'open_clip/bpe_simple_vocab*' -d peer/data/tokenizer
    export RCLIP_DATADIR=$PWD/peer/data
    (cd peer/pictures && ../venv/bin/rclip red)             # indexes
    python benchmarks/cold_start.py peer/collection \\
        --peer "rclip=env -C peer/pictures $PWD/peer/venv/bin/rclip --no-indexing {query}"
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import markdown_table, option_parser, write_report

VOKEN, FLOOR = "voken search", "import onnxruntime, tokenizers"
QUERIES = [f"{thing} {place}" for thing in ("a dog", "two cats", "red boats") for place in ("at sea", "on a hill")]

PICTURES = 1000
LAYERS, WIDTH, HEADS, CONTEXT, WORDS, SHARED_DIM = 6, 384, 6, 77, 49_408, 512
MODEL_FOLDER = "ViT-B-32-256-datacomp_s34b_b86k"
LEGAL_FILES = ("LICENSE", "OPENAI-CLIP-MIT.txt", "README.md", "THIRD_PARTY_NOTICES.md")  # rclip requires them


@dataclass(frozen=True)
class Run:
    """One process: seconds by the clock, seconds of processor time, and peak memory.

    The kernel counts a child's memory from what this process holds when it starts the child. That is about 20 MB,
    because nothing large is imported here before the last run.
    """

    seconds: float
    cpu_seconds: float
    peak_megabytes: float


def main() -> None:
    """Measure, print a table, write JSON; or write the files of a peer."""
    parser = option_parser(__doc__)
    parser.add_argument("collection", type=Path, nargs="?", help="what `voken index` saved")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="may be repeated")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write-peer", type=Path, metavar="FOLDER", help="write a peer's pictures and model, and exit")
    options = parser.parse_args()
    if options.write_peer:
        write_peer(options.write_peer)
        return
    if options.collection is None:
        parser.error("pass a COLLECTION, or --write-peer FOLDER")
    rows = commands(options.collection, options.peer)
    rounds: dict[str, list[Run]] = {name: [] for name in rows}
    for number in range(-1, options.rounds):
        query = QUERIES[number % len(QUERIES)] + (f" {number}" if number >= 0 else "")
        for name, command in rows.items():
            run = time_command([word.replace("{query}", query) for word in command])
            if number >= 0:
                rounds[name].append(run)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(table(rounds, list(rows)[len(rows) - len(options.peer) :]))
    write_report(options.json, report(rounds, rows))


def commands(collection: Path, peers: list[str]) -> dict[str, list[str]]:
    """The command of each row: ours, the floors, then the peers."""
    rows = {VOKEN: [str(Path(sysconfig.get_path("scripts")) / "voken"), "search", str(collection), "{query}"]}
    for code in ("pass", FLOOR, "import torch"):
        rows[code] = [sys.executable, "-c", code]
    for peer in peers:
        name, equals, command = peer.partition("=")
        if not equals or name in rows:
            raise SystemExit(f"--peer {peer}: expected NAME=COMMAND, each name once.")
        rows[name] = shlex.split(command)
    return rows


def time_command(command: list[str]) -> Run:
    """Run `command` to its end. A command that fails ends the benchmark, with its output."""
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=_environment()
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{shlex.join(command)} failed:\n{output.read().decode(errors='replace')}")
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _environment() -> dict[str, str]:
    """That of this process, but Python may keep bytecode: pip compiles what it installs, a checkout is not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def table(rounds: dict[str, list[Run]], peers: list[str]) -> str:
    """A Markdown table, one line per row: medians, and their ratios to the floor and to the fastest peer."""
    fastest_peer = min((_median(rounds[name], "seconds") for name in peers), default=0.0)
    heads = ["", "ms", "least … most", "× floor", "× quickest peer", "CPU ms", "× floor", "peak MB"]
    lines = []
    for name, runs in rounds.items():
        milliseconds = [run.seconds * 1e3 for run in runs]
        median, cpu = _median(runs, "seconds"), _median(runs, "cpu_seconds")
        lines.append(
            [
                f"`{name}`",
                f"{median * 1e3:,.0f}",
                f"{min(milliseconds):,.0f} … {max(milliseconds):,.0f}",
                f"{median / _median(rounds[FLOOR], 'seconds'):.2f}",
                f"{median / fastest_peer:.2f}" if fastest_peer else "",
                f"{cpu * 1e3:,.0f}",
                f"{cpu / _median(rounds[FLOOR], 'cpu_seconds'):.2f}",
                f"{_median(runs, 'peak_megabytes'):,.0f}",
            ]
        )
    return markdown_table(heads, lines)


def report(rounds: dict[str, list[Run]], rows: dict[str, list[str]]) -> dict[str, Any]:
    """Every figure and every command."""
    fields = [field.name for field in dataclasses.fields(Run)]
    return {
        "benchmark": "cold_start",
        "rows": {
            name: {
                "command": shlex.join(rows[name]),
                **{field: _median(runs, field) for field in fields},
                "times_floor": _median(runs, "seconds") / _median(rounds[FLOOR], "seconds"),
                "cpu_times_floor": _median(runs, "cpu_seconds") / _median(rounds[FLOOR], "cpu_seconds"),
                "rounds": [dataclasses.asdict(run) for run in runs],
            }
            for name, runs in rounds.items()
        },
    }


def _median(runs: list[Run], field: str) -> float:
    values: list[float] = [getattr(run, field) for run in runs]
    return statistics.median(values)


def write_peer(folder: Path) -> None:
    """Write pictures to search, and rclip's data folder without CLIP's word list; see the module's docstring."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    pictures, data = folder / "pictures", folder / "data"
    for new_folder in (pictures, data / MODEL_FOLDER, data / "tokenizer"):
        new_folder.mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        noise = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(pictures / f"{number:04}.png")
    for name in LEGAL_FILES:
        (data / name).touch()
    write_text_tower(data / MODEL_FOLDER / "textual.onnx")
    write_image_tower(data / MODEL_FOLDER / "visual.onnx")
    print(f"{pictures}: {PICTURES} pictures; {data}: a model. `--help` shows the next steps.", file=sys.stderr)


def write_text_tower(path: Path) -> None:
    """Write a random CLIP text tower (layer norm first, causal) with the plain operators that exporters write."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    nodes: list[Any] = []
    weights: list[Any] = []

    def weight(array: Any) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random_weight(*shape: int) -> str:
        return weight((random.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32))

    def apply(kind: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        name = to or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def linear(rows: str, width: int, out: int) -> str:
        return apply("Add", apply("MatMul", rows, random_weight(width, out)), random_weight(out))

    def norm(rows: str) -> str:
        ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
        return apply("LayerNormalization", rows, weight(ones), weight(zeros), epsilon=1e-5)

    def heads(rows: str, order: list[int]) -> str:
        split = apply("Reshape", rows, weight(np.array([0, CONTEXT, HEADS, WIDTH // HEADS])))
        return apply("Transpose", split, perm=order)

    mask = weight(np.triu(np.full((CONTEXT, CONTEXT), -np.inf, dtype=np.float32), 1))
    rows = apply("Add", apply("Gather", random_weight(WORDS, WIDTH), "input"), random_weight(CONTEXT, WIDTH))
    for _ in range(LAYERS):
        normed = norm(rows)
        query, key, value = (linear(normed, WIDTH, WIDTH) for _ in range(3))
        products = apply("MatMul", heads(query, [0, 2, 1, 3]), heads(key, [0, 2, 3, 1]))
        scaled = apply("Mul", products, weight(np.float32((WIDTH // HEADS) ** -0.5)))
        attended = apply("MatMul", apply("Softmax", apply("Add", scaled, mask)), heads(value, [0, 2, 1, 3]))
        joined = apply(
            "Reshape", apply("Transpose", attended, perm=[0, 2, 1, 3]), weight(np.array([0, CONTEXT, WIDTH]))
        )
        rows = apply("Add", rows, linear(joined, WIDTH, WIDTH))
        rows = apply("Add", rows, linear(apply("Gelu", linear(norm(rows), WIDTH, 4 * WIDTH)), 4 * WIDTH, WIDTH))
    end = apply("Unsqueeze", apply("ArgMax", "input", axis=1), weight(np.array([-1])))  # the end token is the last word
    last = apply("Squeeze", apply("GatherND", norm(rows), end, batch_dims=1), weight(np.array([1])))
    apply("MatMul", last, random_weight(WIDTH, SHARED_DIM), to="output")
    _save(path, nodes, weights, ("input", TensorProto.INT64, ["texts", CONTEXT]))


def write_image_tower(path: Path) -> None:
    """Write an image tower that only serves to index: a picture's mean colour times a matrix."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    matrix = numpy_helper.from_array(np.random.default_rng(0).standard_normal((3, SHARED_DIM), np.float32), "matrix")
    mean = helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0)
    product = helper.make_node("MatMul", ["mean", "matrix"], ["output"])
    _save(path, [mean, product], [axes, matrix], ("input", TensorProto.FLOAT, ["pictures", 3, "height", "width"]))


def _save(path: Path, nodes: list[Any], weights: list[Any], input_info: tuple[str, int, list[Any]]) -> None:
    import onnx
    from onnx import TensorProto, helper

    result = helper.make_tensor_value_info("output", TensorProto.FLOAT, [input_info[2][0], SHARED_DIM])
    graph = helper.make_graph(nodes, path.stem, [helper.make_tensor_value_info(*input_info)], [result], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


if __name__ == "__main__":
    main()
