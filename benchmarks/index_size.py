"""How large is the index of a growing collection, how fast is it built, and what do opening it and look-ups cost?

Sequences are synthetic: "uniform" draws every voken with the same probability, so that few pictures share anything
beyond level 2; "Zipf" draws the voken of rank r with probability ∝ 1/r at every level, so that prefixes are crowded and
many sequences are shared. Real pictures lie between the two. The ids of synthetic pictures are their numbers, which
need no bytes; paths are the ids. No vectors are stored. `--collection` adds a folder that `voken index` saved, with
its ids and vectors.

Building is measured in this process's CPU time on one thread, from a matrix of int32 in memory, without saving.
Opening is timed in a new process each round, with files in the page cache; imports are timed separately. Memory is that
of the whole process (VmRSS): after the folder was opened, and after ten sequences were looked up with their pictures.

    python benchmarks/index_size.py --json out.json
    python benchmarks/index_size.py --sizes 1000 100000 --collection runs/icons.voken
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32

from report import markdown_table, option_parser, write_report

SIZES = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
DRAWS: tuple[Literal["uniform", "Zipf"], ...] = ("uniform", "Zipf")
LOOKED_UP = 10


@dataclass(frozen=True)
class Tokenizer:
    """What a collection needs of an image tokenizer."""

    levels: int
    codebook_size: int
    codebooks: Float32[np.ndarray, "M N e"]


@dataclass(frozen=True)
class Opening:
    """Time and memory of opening a collection in a new process."""

    import_seconds: float
    open_seconds: float
    imported_megabytes: float
    opened_megabytes: float
    looked_up_megabytes: float


@dataclass(frozen=True)
class Row:
    """The measurements of one collection."""

    pictures: int
    draw: str
    sequences: int
    build_seconds: list[float]
    """CPU seconds of each round."""
    size: dict[str, int]
    """Bytes by part (`CollectionSize`)."""
    opened: list[Opening]

    @property
    def sequences_per_second(self) -> float:
        """Rows of the voken matrix per second of building the trie, the median over rounds."""
        return self.pictures / statistics.median(self.build_seconds)


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--collection", type=Path, nargs="*", default=[], help="saved collections to measure as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--open", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        print(json.dumps(dataclasses.asdict(open_here(arguments.open))))
        return
    rows = []
    for pictures in arguments.sizes:
        for draw in DRAWS:
            random = np.random.default_rng([arguments.seed, pictures])
            vokens = random_vokens(draw, (pictures, arguments.levels), arguments.codebook_size, random)
            rows.append(measure_synthetic(draw, vokens, arguments.codebook_size, arguments.rounds))
            print(f"{draw} {pictures:,}: done", file=sys.stderr, flush=True)
    rows += [measure_saved(folder, arguments.rounds) for folder in arguments.collection]
    print(table(rows))
    write_report(arguments.json, report(rows, arguments))


def random_vokens(
    draw: Literal["uniform", "Zipf"], shape: tuple[int, int], codebook_size: int, random: np.random.Generator
) -> Int32[np.ndarray, "pictures levels"]:
    """Voken sequences; the module's docstring explains "uniform" and "Zipf"."""
    if draw == "uniform":
        return random.integers(0, codebook_size, shape, dtype=np.int32)
    odds = 1 / np.arange(1, codebook_size + 1)
    columns = [random.choice(codebook_size, shape[0], p=odds / odds.sum()).astype(np.int32) for _ in range(shape[1])]
    return np.stack(columns, axis=1)


def measure_synthetic(draw: str, vokens: Int32[np.ndarray, "pictures levels"], codebook_size: int, rounds: int) -> Row:
    """Build a collection of these sequences, save it in a temporary folder and open it."""
    from voken.collection.base import Base, NumberColumn
    from voken.collection.store import Store

    seconds, trie = time_builds(vokens, codebook_size, rounds)
    with tempfile.TemporaryDirectory(prefix="voken-") as folder:
        ids = NumberColumn(len(vokens))
        where = Path(folder) / "collection"
        codebooks = np.zeros((1, codebook_size, 1), np.float32).repeat(trie.levels, 0)
        tokenizer = Tokenizer(trie.levels, codebook_size, codebooks)
        Store.create(where, root=where, fingerprint="none", tokenizer=tokenizer, base=Base(ids, ids, trie))
        size = dataclasses.asdict(Store.open(where).snapshot().size)
        opened = [open_in_new_process(where) for _ in range(rounds)]
    return Row(len(vokens), draw, trie.sequences, seconds, size, opened)


def measure_saved(folder: Path, rounds: int) -> Row:
    """Build the index of a saved collection again, and open the collection."""
    from voken.collection.store import Store

    collection = Store.open(folder).snapshot()
    seconds, trie = time_builds(collection.vokens, collection.trie.codebook_size, rounds)
    opened = [open_in_new_process(folder) for _ in range(rounds)]
    return Row(len(collection), folder.name, trie.sequences, seconds, dataclasses.asdict(collection.size), opened)


def time_builds(
    vokens: Int32[np.ndarray, "pictures levels"], codebook_size: int, rounds: int
) -> tuple[list[float], Any]:
    """Build the trie in every round; return the CPU seconds of each round, and the trie."""
    from voken.decoding.trie import VokenTrie

    seconds, trie = [], None
    for _ in range(rounds):
        trie = None
        begin = time.process_time()
        trie = VokenTrie.from_vokens(vokens, codebook_size)
        seconds.append(time.process_time() - begin)
    return seconds, trie


def open_in_new_process(folder: Path) -> Opening:
    """Open the collection in a new process."""
    command = [sys.executable, __file__, "--open", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"opening {folder} failed:\n{result.stderr}")
    return Opening(**json.loads(result.stdout))


def open_here(folder: Path) -> Opening:
    """Open the collection in this process, which has not imported anything of voken yet."""
    begin = time.perf_counter()
    from voken.collection.store import Store

    imported, imported_megabytes = time.perf_counter(), resident_megabytes()
    collection = Store.open(folder).snapshot()
    opened, opened_megabytes = time.perf_counter(), resident_megabytes()
    leaves = np.random.default_rng(0).integers(0, collection.trie.sequences, LOOKED_UP)
    collection.trie.leaf_vokens(leaves)
    for row in collection.trie.rows_of(leaves)[0].tolist():
        collection.path(row)
    return Opening(
        import_seconds=imported - begin,
        open_seconds=opened - imported,
        imported_megabytes=imported_megabytes,
        opened_megabytes=opened_megabytes,
        looked_up_megabytes=resident_megabytes(),
    )


def resident_megabytes() -> float:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def table(rows: list[Row]) -> str:
    """A Markdown table, one line per collection. Bytes are per picture; their sum does not count vectors."""
    heads = ["pictures", "", "sequences", "trie", "picture numbers", "ids", "paths", "sum", "vectors"]
    heads += ["sequences/s", "least … most", "open", "least … most", "memory", "after a look-up"]
    lines = []
    for row in rows:
        parts = [row.size[part] / row.pictures for part in ("trie_levels", "picture_numbers", "ids", "paths")]
        rates = [row.pictures / seconds / 1e6 for seconds in row.build_seconds]
        times = [1000 * opening.open_seconds for opening in row.opened]
        lines.append(
            [
                f"{row.pictures:,}",
                row.draw,
                f"{row.sequences:,}",
                *(f"{part:.2f}" for part in (*parts, sum(parts), row.size["vectors"] / row.pictures)),
                f"{row.sequences_per_second / 1e6:.1f} M",
                f"{min(rates):.1f} … {max(rates):.1f}",
                f"{statistics.median(times):.1f} ms",
                f"{min(times):.1f} … {max(times):.1f}",
                f"{statistics.median(opening.opened_megabytes for opening in row.opened):.0f} MB",
                f"{statistics.median(opening.looked_up_megabytes for opening in row.opened):.0f} MB",
            ]
        )
    return markdown_table(heads, lines, text_columns=2)


def report(rows: list[Row], arguments: argparse.Namespace) -> dict[str, Any]:
    """Every figure, for `--json`."""
    return {
        "benchmark": "index_size",
        "workload": {
            "levels": arguments.levels,
            "codebook_size": arguments.codebook_size,
            "rounds": arguments.rounds,
            "seed": arguments.seed,
            "looked_up": LOOKED_UP,
        },
        "rows": [dataclasses.asdict(row) | {"sequences_per_second": row.sequences_per_second} for row in rows],
    }


if __name__ == "__main__":
    main()
