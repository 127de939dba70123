"""How much disk and memory does a collection need, and how long does a first search with a filter take?

Collections hold random sequences and vectors of the model's sizes, and ids such as cameras give to files; they have no
metadata. Each is searched in a new process. Measured: the memory of that process, and the part of it that is not mapped
from files; a search without a filter, the first with a filter, and another with the same filter.

    python benchmarks/collection_memory.py MODEL --sizes 10000 100000 1000000 --json out.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from report import option_parser, write_report
from voken.collection.base import FACTS, Base, Lookup, column
from voken.collection.filters import parse_all
from voken.collection.store import Store
from voken.decoding.trie import VokenTrie
from voken.search.searcher import Searcher, load_model

FILTERS = ("date>=2020", "folder=2015")


def main(arguments: list[str] | None = None) -> None:
    """Create collections, search them, print, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--no-vectors", action="store_true", help="store only the sequences, a few bytes per picture")
    parser.add_argument("--search", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.search:
        print(json.dumps(measure_search(options.model, Path(options.search[0]), options.search[1])))
        return
    rows = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="voken-") as work:
            folder = Path(work) / "c"
            create_collection(folder, options.model, size, vectors=not options.no_vectors)
            disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            command = [sys.executable, __file__, str(options.model), "--search", str(folder)]
            costs = {
                filter_: json.loads(
                    subprocess.run([*command, filter_], check=True, capture_output=True, text=True).stdout
                )
                for filter_ in FILTERS
            }
        rows.append({"pictures": size, "disk_bytes": disk, "filters": costs})
        for filter_, cost in costs.items():
            print(f"| {size:,} | {disk / size:,.0f} bytes per picture | {filter_} | {cost} |")
    write_report(options.json, {"rows": rows})


def create_collection(folder: Path, model: Path, count: int, *, vectors: bool) -> None:
    """Create a collection for `model` of pictures that do not exist."""
    from voken.model.model import Model  # imported here, because the process that searches does not need torch

    tokenizer = Model.load(model).tokenizer
    random = np.random.default_rng(0)
    names = [f"{2010 + place * 14 // count}/{place % 12 + 1:02d}/IMG_{place:07d}.jpg" for place in range(count)]
    facts = np.zeros(count, FACTS)
    facts["taken"] = np.linspace(1.26e9, 1.7e9, count)
    vokens = random.integers(0, tokenizer.codebook_size, (count, tokenizer.levels))
    ids = column(names)
    base = Base(
        ids,
        ids,
        VokenTrie.from_vokens(vokens, tokenizer.codebook_size),
        random.normal(size=(count, tokenizer.dim)).astype(np.float16) if vectors else None,
        facts,
        lookup=Lookup.of(names),
    )
    fingerprint = load_model(model).fingerprint
    Store.create(
        folder,
        root=folder,
        fingerprint=fingerprint,
        tokenizer=tokenizer,
        vectors=tokenizer.dim if vectors else 0,
        model_folder=model,
        base=base,
    )


def measure_search(model: Path, folder: Path, filter_: str) -> dict[str, Any]:
    """Time and memory of opening and searching in this process, which has done nothing before."""
    store = Store.open(folder)
    begin = time.perf_counter()
    snapshot = store.snapshot()
    open_seconds = time.perf_counter() - begin
    searcher = Searcher(load_model(model, threads=1), snapshot, store=store)
    where = parse_all([filter_])
    searcher.search(["a red boat"], 10)
    times = [milliseconds(searcher, "a blue boat", ()), *(milliseconds(searcher, "a blue boat", where) for _ in "12")]
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, anonymous = (int(status[name].split()[0]) >> 10 for name in ("VmRSS", "RssAnon"))
    return {
        "open_ms": round(1000 * open_seconds, 1),
        "resident_mb": resident,
        "own_mb": anonymous,
        "search_ms": times[0],
        "first_filtered_ms": times[1],
        "filtered_ms": times[2],
    }


def milliseconds(searcher: Searcher, text: str, where: Any) -> float:
    """Milliseconds of one search."""
    begin = time.perf_counter()
    searcher.search([text], 10, where)
    return round(1000 * (time.perf_counter() - begin), 1)


if __name__ == "__main__":
    main()
