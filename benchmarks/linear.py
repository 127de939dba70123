"""A generator without a decoder: how fast is the exact scan, beside the beams it replaces and beside faiss?

The model is one without training (`voken index FOLDER`): the encoder `photos`, --levels codebooks of 256 entries, 100
sequences per query. Its pictures are drawn: each is a mixture of two rows of --vectors (pictures' vectors of this
encoder; without it, the vectors of captions), and noise. Codebooks are fitted on these rows; codes are the nearest
entry at each level. Nothing here says how well photographs are found.

  scan          the search of `voken.decoding.linear`
  beams         the same model with a step per level, as an engine of an older voken has: what a scan replaces
  flat          faiss over the vectors in float16: exact, 2 × dim bytes per picture
  HNSW          faiss, M 32, efConstruction --construction; ef is the number after it
  IVF-PQ        faiss, 4 √n lists and as many bytes per picture as ours has levels; the number after it is nprobe

Every row answers the same texts and returns ten pictures, in one process with one thread, in turn; a figure is the
median over rounds. "Search" leaves out the reading of the text, which is the same for all and has a row of its own;
"together" is the sum. Recall is the share of the ten pictures nearest by cosine that are among a row's ten.
`--clock cpu` counts processor time, for a machine with other work.

    python benchmarks/linear.py --json linear.json
    python benchmarks/linear.py --sizes 1000 --quick
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from decoding import CLOCKS, query_texts
from report import markdown_table, option_parser, write_report
from voken.decoding.beam import beam_search_from_state
from voken.decoding.node_bias import NodeBias
from voken.decoding.trie import VokenTrie
from voken.inference.engine import Engine
from voken.shapes import Float32, UInt8

K, BEAMS, ENTRIES = 10, 100, 256
CAPTIONS = 4096
NOISE = 0.5
"""Length of the noise in a picture's vector, before it is scaled to unit length."""
EF, PROBES = (16, 64, 256), (4, 16, 64)

Find = Callable[[Any], np.ndarray]
"""Read queries to the pictures found, (queries, K or more), best first."""


@dataclass(frozen=True)
class Row:
    """A system at one size."""

    name: str
    bytes_per_picture: float
    read: Callable[[list[str]], Any]
    find: Find


@dataclass(frozen=True)
class Figure:
    """What was measured of a row."""

    pictures: int
    name: str
    batch: int
    bytes_per_picture: float
    recall: float
    search_ms: float
    read_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 54_000, 353_094])
    parser.add_argument("--vectors", type=Path, help="a .npy file of unit vectors of the encoder photos")
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--opponents", nargs="*", choices=["flat", "HNSW", "IVF-PQ"], default=["flat", "HNSW", "IVF-PQ"]
    )
    parser.add_argument("--construction", type=int, default=200, help="efConstruction of HNSW")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--work", type=Path, default=Path("runs/linear"), help="keeps the pictures and the engines")
    parser.add_argument("--quick", action="store_true", help="few queries, one round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.batches = 1, [1, 4]
    set_threads()
    options.work.mkdir(parents=True, exist_ok=True)
    vectors, codes = drawn_pictures(max(options.sizes), options)
    figures: list[Figure] = []
    for size in options.sizes:
        new = measure(rows_of(vectors[:size], codes[:size], options), vectors[:size], options)
        print(table(new), flush=True)
        figures += new
        workload = {name: str(value) for name, value in vars(options).items()}
        write_report(options.json, {"workload": workload, "figures": [vars(figure) for figure in figures]})


def set_threads() -> None:
    """One thread for every library."""
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def drawn_pictures(
    count: int, options: argparse.Namespace
) -> tuple[Float32[np.ndarray, "pictures dim"], UInt8[np.ndarray, "pictures M"]]:
    """Vectors and codes of pictures. Writes the engines `scan` and `beams` beside them."""
    kept = options.work / f"pictures-{count}-{options.levels}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return arrays["vectors"].astype(np.float32), arrays["codes"]
    import torch

    from voken.config import EncoderConfig
    from voken.encoders.frozen import frozen_encoder
    from voken.generator.lite import LiteGenerator
    from voken.image_tokenizer.model import nearest_sequences
    from voken.inference.export import export_generator, lite_graphs
    from voken.model import untrained

    random = np.random.default_rng(0)
    settings = EncoderConfig(family="photos")
    encoder = frozen_encoder(settings)
    if options.vectors:
        seen = np.load(options.vectors, allow_pickle=False)
    else:
        captions = query_texts(CAPTIONS + max(options.batches))[max(options.batches) :]
        seen = np.concatenate([encoder.encode_texts(captions[at : at + 64]) for at in range(0, CAPTIONS, 64)])
    vectors = np.empty((count, encoder.dim), dtype=np.float32)
    for start in range(0, count, 1 << 14):
        part = vectors[start : start + (1 << 14)]
        share = random.random((len(part), 1), dtype=np.float32) ** 2
        one, other = seen[random.integers(0, len(seen), (2, len(part)))]
        noise = random.standard_normal(part.shape, dtype=np.float32) * np.float32(NOISE * encoder.dim**-0.5)
        part[:] = (1 - share) * one + share * other + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    untrained.LEVELS = options.levels
    model = untrained.untrained_model(encoder, settings, seen)

    class WithSteps(LiteGenerator):
        is_linear = False

    export_generator(model.generator, lite_graphs, options.work / "scan", encoder=encoder, tokenizer=model.tokenizer)
    model.generator.__class__ = WithSteps
    export_generator(model.generator, lite_graphs, options.work / "beams", encoder=encoder, tokenizer=model.tokenizer)
    books = model.tokenizer.stacked_books()
    codes = np.empty((count, options.levels), dtype=np.uint8)
    with torch.inference_mode():
        for start in range(0, count, 1 << 13):
            some = torch.from_numpy(vectors[start : start + (1 << 13)])
            codes[start : start + (1 << 13)] = nearest_sequences(some, books, 1).numpy()
    np.savez(kept, vectors=vectors.astype(np.float16), codes=codes)
    return vectors, codes


def rows_of(
    vectors: Float32[np.ndarray, "pictures dim"], codes: UInt8[np.ndarray, "pictures M"], options: argparse.Namespace
) -> list[Row]:
    """All rows over these pictures."""
    import faiss

    engines = {name: Engine.load(options.work / name, threads=1) for name in ("scan", "beams")}
    trie = VokenTrie.from_vokens(codes, ENTRIES)
    size = trie.nbytes / trie.images
    rows = [Row(name, size, engine.prefill, our_find(engine, trie)) for name, engine in engines.items()]
    vector = engines["scan"].query_vectors
    dim, product = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    if "flat" in options.opponents:
        index: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, product)
        index.train(vectors)
        index.add(vectors)
        rows.append(Row("flat, float16", 2.0 * dim, vector, faiss_find(index, None)))
    if "HNSW" in options.opponents:
        index = faiss.IndexHNSWFlat(dim, 32, product)
        index.hnsw.efConstruction = options.construction
        index.add(vectors)
        parameters: Any = faiss.SearchParametersHNSW  # type: ignore[attr-defined]
        rows += [Row(f"HNSW {ef}", 4.0 * dim + 32 * 8, vector, faiss_find(index, parameters(efSearch=ef))) for ef in EF]
    if "IVF-PQ" in options.opponents:
        lists = max(1, int(4 * len(vectors) ** 0.5))
        index = faiss.index_factory(dim, f"IVF{lists},PQ{options.levels}np", product)
        index.train(vectors[:: max(1, len(vectors) // (40 * lists))])
        index.add(vectors)
        probes: Any = faiss.SearchParametersIVF
        rows += [
            Row(f"IVF-PQ {count}", options.levels + 8.0, vector, faiss_find(index, probes(nprobe=count)))
            for count in PROBES
        ]
    return rows


def our_find(engine: Engine, trie: VokenTrie) -> Find:
    """Our search: the pictures of the best sequences."""
    bias = NodeBias(4.0, engine.codebooks)

    def find(state: Any) -> np.ndarray:
        leaves = beam_search_from_state(engine, state, trie, min(BEAMS, trie.sequences), bias=bias).leaf
        return np.stack([trie.rows_of(row[row >= 0])[0][:K] for row in leaves])

    return find


def faiss_find(index: Any, parameters: Any) -> Find:
    """A search of faiss."""
    return lambda queries: index.search(queries, K, params=parameters)[1]


def measure(rows: list[Row], vectors: Float32[np.ndarray, "pictures dim"], options: argparse.Namespace) -> list[Figure]:
    """Time the rows in turn. The first round is not counted."""
    texts = query_texts(max(options.batches))
    queries = rows[0].read(texts).query_point
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    nearest = np.argsort(-(queries @ vectors.T), axis=1)[:, :K]
    clock = CLOCKS[options.clock]
    figures = []
    for batch in options.batches:
        blocks = [texts[at : at + batch] for at in range(0, len(texts), batch)]
        times: dict[str, list[float]] = {row.name: [] for row in rows}
        reading: dict[str, list[float]] = {row.name: [] for row in rows}
        for number in range(-1, options.rounds):
            for row in rows:
                time.sleep(0.02)
                begin = clock()
                states = [row.read(block) for block in blocks]
                middle = clock()
                for state in states:
                    row.find(state)
                end = clock()
                if number >= 0:
                    reading[row.name].append((middle - begin) / len(texts))
                    times[row.name].append((end - middle) / len(texts))
        for row in rows:
            answers = np.concatenate([row.find(row.read(block)) for block in blocks])
            hits = [len(set(one) & set(other)) for one, other in zip(answers.tolist(), nearest.tolist(), strict=True)]
            speeds = 1e3 * median(times[row.name]), 1e3 * median(reading[row.name])
            figures.append(
                Figure(len(vectors), row.name, batch, row.bytes_per_picture, sum(hits) / nearest.size, *speeds)
            )
    return figures


def table(figures: list[Figure]) -> str:
    """One line per size, row and batch."""
    heads = ["pictures", "system", "batch", "bytes", "recall", "search ms", "text ms", "queries/s together"]
    return markdown_table(
        heads,
        [
            [
                f"{figure.pictures:,}",
                figure.name,
                str(figure.batch),
                f"{figure.bytes_per_picture:.0f}",
                f"{figure.recall:.2f}",
                f"{figure.search_ms:.2f}",
                f"{figure.read_ms:.2f}",
                f"{1e3 / (figure.search_ms + figure.read_ms):.0f}",
            ]
            for figure in figures
        ],
        text_columns=2,
    )


if __name__ == "__main__":
    main()
