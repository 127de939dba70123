"""A generator without a decoder: how fast is the exact scan, and how much does it find, beside faiss?

The model is one without training (`voken index FOLDER`): the encoder `photos`, --levels codebooks of 256 entries. Its
pictures are the photographs of --photographs, a captioned data set, and as many others as a size needs. Those are
drawn: each is a mixture of two photographs that are not in the test split, and noise. Codebooks are fitted on these
photographs. The queries are one caption of each photograph of the test split.

  scan          the search of `voken.decoding.linear`: --levels bytes per picture
  scan + n      the same, whose n best pictures are ordered by their stored vectors in float16, as a search does if
                vectors are stored (n is 100 there)
  beams         the scan's model with a step per level, as an engine of an older voken has: what a scan replaces
  flat          faiss over all vectors: exact; float16 with 2 × dim bytes per picture, or float32
  HNSW          faiss, M 32, efConstruction --construction, float32; efSearch is the number after it
  PQ, OPQ       faiss fast scan over all pictures, with as many bytes per picture as ours
  IVF-PQ        faiss fast scan in 4 √n lists, with as many bytes per picture and 8 more for its number; nprobe is the
                number after it; "+ 100" orders the 100 best by vectors in float16
  IVF-OPQ       the same after a rotation

Every row answers the same texts and returns ten pictures, in one process with one thread, in turn; a figure is the
median over rounds. "Search" leaves out the reading of the text, which is the same for all and has a column of its own;
"together" is the sum. "Right" is the share of the captions whose photograph is among the ten; "exact" is the share of
the ten pictures nearest by cosine that are. `--clock cpu` counts processor time, for a machine with other work.

    python benchmarks/linear.py --photographs flickr8k --json linear.json
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

from decoding import CLOCKS
from report import markdown_table, option_parser, show_progress, write_report
from voken.decoding.beam import beam_search_from_state
from voken.decoding.node_bias import NodeBias
from voken.decoding.trie import VokenTrie
from voken.inference.engine import Engine
from voken.shapes import Float16, Float32, Int64, UInt8

K, BEAMS, ENTRIES = 10, 100, 256
COMPARED = (100, 200, 400, 800, 1600)
"""Pictures that are compared by their vectors."""
NOISE = 0.5
"""Length of the noise in a drawn picture's vector, before it is scaled to unit length."""
EF, PROBES = (16, 32, 64, 128, 256), (4, 16, 64)
OPPONENTS = ("beams", "flat", "HNSW", "PQ", "OPQ", "IVF-PQ", "IVF-OPQ")

Find = Callable[[Any], np.ndarray]
"""Read queries to the pictures found, (queries, K or more), best first; -1 stands for none."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of the largest set. The photographs that are asked for come first."""

    vectors: Float32[np.ndarray, "pictures dim"]
    codes: UInt8[np.ndarray, "pictures M"]
    captions: list[str]
    """One of each photograph that is asked for, in their order."""


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
    right: float
    exact: float
    search_ms: float
    read_ms: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--photographs", type=Path, required=True, help="a captioned data set with a test split")
    parser.add_argument("--sizes", type=int, nargs="+", default=[54_000, 353_094])
    parser.add_argument("--levels", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--timed", type=int, default=64, help="queries that are timed")
    parser.add_argument("--queries", type=int, default=1000, help="queries whose recall is measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--opponents", nargs="*", choices=OPPONENTS, default=OPPONENTS)
    parser.add_argument("--construction", type=int, default=200, help="efConstruction of HNSW")
    parser.add_argument("--trained", type=int, default=100_000, help="pictures that faiss is trained on")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--work", type=Path, default=Path("runs/linear"), help="keeps pictures, engines and indexes")
    options = parser.parse_args(arguments)
    set_threads()
    options.work.mkdir(parents=True, exist_ok=True)
    pictures = drawn_pictures(max(options.sizes), options)
    figures: list[Figure] = []
    for size in options.sizes:
        some = Pictures(pictures.vectors[:size], pictures.codes[:size], pictures.captions)
        new = measure(rows_of(some, options), some, options)
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


def drawn_pictures(count: int, options: argparse.Namespace) -> Pictures:
    """The photographs and the drawn pictures. Writes the engines `scan` and `beams` beside them."""
    from voken.data.captions import read_dataset

    dataset = read_dataset(options.photographs)
    asked = dataset.split("test").images
    captions = [image.captions[0] for image in asked]
    drawn = options.work / f"pictures-{count}-{options.levels}.npz"
    if drawn.exists():
        with np.load(drawn) as arrays:
            return Pictures(arrays["vectors"].astype(np.float32), arrays["codes"], captions)
    import torch

    from voken.config import EncoderConfig
    from voken.encoders.cache import VectorCache, picture_vectors
    from voken.encoders.frozen import frozen_encoder
    from voken.generator.lite import LiteGenerator
    from voken.image_tokenizer.model import nearest_sequences
    from voken.inference.export import export_generator, lite_graphs
    from voken.model.untrained import untrained_model

    random = np.random.default_rng(0)
    settings = EncoderConfig(family="photos")
    encoder = frozen_encoder(settings)
    of_test = {image.path for image in asked}
    images = [*asked, *(image for image in dataset.images if image.path not in of_test)]
    cache = VectorCache(options.work / "vectors")
    encoded = picture_vectors(encoder, [image.path for image in images], cache=cache, progress=show_progress)
    if len(encoded.vectors) < len(images):
        raise SystemExit(f"{options.photographs}: {len(images) - len(encoded.vectors)} pictures cannot be read.")
    seen = encoded.vectors[len(asked) :]
    vectors = np.empty((count, encoder.dim), dtype=np.float32)
    real = min(count, len(images))
    vectors[:real] = encoded.vectors[:real]
    for start in range(real, count, 1 << 14):
        part = vectors[start : start + (1 << 14)]
        share = random.random((len(part), 1), dtype=np.float32) ** 2
        one, other = seen[random.integers(0, len(seen), (2, len(part)))]
        noise = random.standard_normal(part.shape, dtype=np.float32) * np.float32(NOISE * encoder.dim**-0.5)
        part[:] = (1 - share) * one + share * other + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    model = untrained_model(encoder, settings, seen, levels=options.levels)

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
    np.savez(drawn, vectors=vectors.astype(np.float16), codes=codes)
    return Pictures(vectors, codes, captions)


def rows_of(pictures: Pictures, options: argparse.Namespace) -> list[Row]:
    """All rows over these pictures."""
    import faiss

    library: Any = faiss  # whose stubs lack the parameters of a search
    engine = Engine.load(options.work / "scan", threads=1)
    trie = VokenTrie.from_vokens(pictures.codes, ENTRIES)
    size = trie.nbytes / trie.images
    vectors, stored = pictures.vectors, pictures.vectors.astype(np.float16)
    dim, stored_size = vectors.shape[1], 2.0 * vectors.shape[1]
    rows = [Row("scan", size, engine.prefill, our_find(engine, trie, BEAMS, None))]
    for count in COMPARED:
        rows.append(Row(f"scan + {count}", size + stored_size, engine.prefill, our_find(engine, trie, count, stored)))
    if "beams" in options.opponents:
        steps = Engine.load(options.work / "beams", threads=1)
        rows.append(Row("beams", size, steps.prefill, our_find(steps, trie, BEAMS, None)))
    read = engine.query_vectors
    if "flat" in options.opponents:
        for name, key, each in (("flat, float16", "SQfp16", 2), ("flat, float32", "Flat", 4)):
            index = saved_index(key, vectors, options)
            rows.append(Row(name, float(each * dim), read, faiss_find(index, None)))
    if "HNSW" in options.opponents:
        index = saved_index("HNSW32,Flat", vectors, options)
        parameters = library.SearchParametersHNSW
        rows += [Row(f"HNSW {ef}", 4.0 * dim + 32 * 8, read, faiss_find(index, parameters(efSearch=ef))) for ef in EF]
    bytes_of_codes = float(options.levels)
    fast = f"PQ{2 * options.levels}x4fs"
    rotation = f"OPQ{2 * options.levels}_{dim}"
    for name, key in (("PQ", fast), ("OPQ", f"{rotation},{fast}")):
        if name in options.opponents:
            index = saved_index(key, vectors, options)
            rows.append(Row(name, bytes_of_codes, read, faiss_find(index, None)))
    lists = f"IVF{max(1, int(4 * len(vectors) ** 0.5))}"
    for name, key in (("IVF-PQ", f"{lists},{fast}"), ("IVF-OPQ", f"{rotation},{lists},{fast}")):
        if name in options.opponents:
            index = saved_index(key, vectors, options)
            ordered = library.IndexRefine(index, saved_index("SQfp16", vectors, options))
            for probes in PROBES:
                few = library.SearchParametersIVF(nprobe=probes)
                if name == "IVF-OPQ":
                    few = library.SearchParametersPreTransform(index_params=few)
                rows.append(Row(f"{name} {probes}", bytes_of_codes + 8, read, faiss_find(index, few)))
                refine = library.IndexRefineSearchParameters(k_factor=COMPARED[0] / K, base_index_params=few)
                rows.append(
                    Row(
                        f"{name} {probes} + {COMPARED[0]}",
                        bytes_of_codes + 8 + stored_size,
                        read,
                        faiss_find(ordered, refine),
                    )
                )
    return rows


def saved_index(key: str, vectors: Float32[np.ndarray, "pictures dim"], options: argparse.Namespace) -> Any:
    """The index that faiss's `index_factory` makes for `key`, over these vectors. It is built once, and kept."""
    import faiss

    path = options.work / f"{key.replace(',', '-')}-{len(vectors)}-{options.construction}.faiss"
    if path.exists():
        return faiss.read_index(str(path))
    index: Any = faiss.index_factory(vectors.shape[1], key, faiss.METRIC_INNER_PRODUCT)
    if key.startswith("HNSW"):
        index.hnsw.efConstruction = options.construction
    begin = time.perf_counter()
    index.train(vectors[:: max(1, len(vectors) // options.trained)])
    index.add(vectors)
    print(f"{key} over {len(vectors):,}: built in {time.perf_counter() - begin:.0f} s", flush=True)
    faiss.write_index(index, str(path))
    return index


def our_find(engine: Engine, trie: VokenTrie, count: int, stored: Float16[np.ndarray, "pictures dim"] | None) -> Find:
    """Our search: the pictures of the `count` best sequences, ordered by `stored` vectors if there are any."""
    bias = NodeBias(4.0, engine.codebooks)

    def find(state: Any) -> np.ndarray:
        leaves = beam_search_from_state(engine, state, trie, min(count, trie.sequences), bias=bias).leaf
        rows = [trie.rows_of(row[row >= 0])[0] for row in leaves]
        if stored is not None:
            points = engine.query_vectors([], state)
            rows = [row[best(stored[row].astype(np.float32) @ point)] for row, point in zip(rows, points, strict=True)]
        return np.stack([row[:K] for row in rows])

    return find


def best(cosines: Float32[np.ndarray, " some"]) -> Int64[np.ndarray, " K"]:
    """The places of the K greatest, best first."""
    places = np.argpartition(cosines, -K)[-K:]
    return np.asarray(places[np.argsort(-cosines[places])])


def faiss_find(index: Any, parameters: Any) -> Find:
    """A search of faiss."""
    return lambda queries: index.search(queries, K, params=parameters)[1]


def measure(rows: list[Row], pictures: Pictures, options: argparse.Namespace) -> list[Figure]:
    """Time the rows in turn, the first round not counted, and measure what they find."""
    nearest = nearest_pictures(rows[0], pictures, options.queries)
    recalls = {row.name: recalls_of(row, pictures, nearest) for row in rows}
    texts = pictures.captions[: options.timed]
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
            speeds = 1e3 * median(times[row.name]), 1e3 * median(reading[row.name])
            size = len(pictures.vectors)
            figures.append(Figure(size, row.name, batch, row.bytes_per_picture, *recalls[row.name], *speeds))
    return figures


def nearest_pictures(ours: Row, pictures: Pictures, queries: int) -> Int64[np.ndarray, "queries K"]:
    """The ten pictures nearest to each query by cosine."""
    texts, parts = pictures.captions[:queries], []
    for start in range(0, len(texts), 32):
        points = ours.read(texts[start : start + 32]).query_point
        parts.append(np.argpartition(-(points @ pictures.vectors.T), K, axis=1)[:, :K])
    return np.concatenate(parts)


def recalls_of(row: Row, pictures: Pictures, nearest: Int64[np.ndarray, "queries K"]) -> tuple[float, float]:
    """The shares of captions whose photograph is found, and of the nearest pictures that are."""
    right, exact = [], []
    for start in range(0, len(nearest), 32):
        state = row.read(pictures.captions[start : min(start + 32, len(nearest))])
        for query, found in enumerate(row.find(state), start=start):
            right.append(query in found.tolist())
            exact.append(len(set(found.tolist()) & set(nearest[query].tolist())) / K)
    return float(np.mean(right)), float(np.mean(exact))


def table(figures: list[Figure]) -> str:
    """One line per size, row and batch."""
    heads = ["pictures", "system", "batch", "bytes", "right", "exact", "search ms", "text ms", "queries/s together"]
    return markdown_table(
        heads,
        [
            [
                f"{figure.pictures:,}",
                figure.name,
                str(figure.batch),
                f"{figure.bytes_per_picture:.0f}",
                f"{figure.right:.3f}",
                f"{figure.exact:.3f}",
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
