"""Does the speed of a search depend on the size of the set? Ours beside a two-tower, on growing sets and a real set.

Every row times whole queries, from a text to the ids of the first ten pictures, through `voken.search.searcher`. The
opponents are a two-tower with the same text encoder, run by ONNX Runtime in the same precision, and a search over its
vectors. All rows stay loaded in one process with --threads threads and run in turn. The speed of a row is the median
over rounds; a ratio of two sizes is the median of the ratios within a round. The first call is not counted.

Growing sets (--sizes; figure 4 of the paper). Sequences are drawn as in index_size.py: "uniform" crowds no prefix,
"Zipf" many. Ours searches them with each of --models, and with a T5 of the small shape whose weights are random.
The two-tower has random unit vectors, up to --largest-flat of them.

A real set (--collection; --pictures is its data set, with the concepts). Queries are the captions of the test split of
--queries whose concept is in the collection, at most --asked of them, drawn by the seed. Every picture of the concept
is a right answer. Recall is the expected value over ties. Opponents search the collection's stored vectors, as float32:

  flat        exact: faiss on one core, a shard per core, the same over float16 (as the collection stores), and numpy
  HNSW        faiss (M 32, efConstruction 200), ef 8 … 512
  IVF-PQ      4 √n lists, 64 bytes per picture, nprobe 1 … 128
  nothing     only reads the text: no search over this encoder's vectors can be faster

"At equal recall" compares two fronts (for each recall, the fastest setting that reaches it) at the greatest R@10 that
both reach. Between neighbours on a front, the logarithm of queries/s is taken as linear in recall; below its lowest
recall a front keeps its greatest speed. One of the two fronts is always at its best point there.

    python benchmarks/scaling.py --models icons-float32.model icons-int8.model --json out.json
    python benchmarks/scaling.py --models icons-float32.model icons-int8.model --sizes --collection icons.voken \\
        --pictures icons-all --queries icons --work runs/scaling --json out.json
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from decoding import Workload, make_generator, query_texts
from index_size import DRAWS, random_vokens
from report import markdown_table, option_parser, write_report
from voken.collection.base import Base, NumberColumn
from voken.collection.snapshot import Origin, Snapshot
from voken.collection.store import Store
from voken.config import SearchConfig
from voken.data.captions import Dataset, read_dataset
from voken.decoding.trie import VokenTrie
from voken.inference.engine import Engine, TextEncoder
from voken.metrics import first_relevant, ranked_matrices, recall_at
from voken.model.compiled import CompiledModel
from voken.search.searcher import Searcher
from voken.shapes import Float32
from voken_lab.evaluation.protocol import Pool, Query, draw_queries, queries_of

SIZES = [1_000, 10_000, 100_000, 1_000_000, 10_000_000]
K = 10
BEAMS = 20
READOUTS: tuple[Literal["generate", "voken"], ...] = ("generate", "voken")
SWEPT_BEAMS = (1, 2, 5, 10, 20, 50, 100)
SWEPT_EF = (8, 16, 32, 64, 128, 256, 512)
SWEPT_PROBES = (1, 2, 4, 8, 16, 32, 64, 128)
CUTOFFS = (1, 5, 10)
SETTLE_SECONDS = 0.05
"""Pause between two rows, because threads of the previous row may still be spinning."""
EXACT = ("flat", "flat, a shard a core", "flat, float16, a shard a core", "flat, numpy")

Answer = list[tuple[str, float]]
Search = Callable[[list[str]], list[Answer]]
"""Texts to the ids and scores of their first K pictures, all texts in one batch."""
Find = Callable[[np.ndarray], tuple[Any, Any]]
"""Vectors (queries, dim) to the scores and rows of their K neighbours."""


@dataclass(frozen=True)
class GrowingRow:
    """The speed of one system over one kind of set."""

    system: str
    precision: str
    draw: str
    seconds: dict[int, dict[int, list[float]]]
    """Seconds per query in each round, by batch and then by size."""

    def speed(self, batch: int, size: int) -> float:
        """Queries per second."""
        return 1 / statistics.median(self.seconds[batch][size])

    def speed_ratio(self, batch: int) -> float:
        """Queries per second over the largest set divided by those over the smallest: the median over rounds."""
        smallest, largest = (self.seconds[batch][pick(self.seconds[batch])] for pick in (min, max))
        return statistics.median(small / large for small, large in zip(smallest, largest, strict=True))


@dataclass(frozen=True)
class Setting:
    """One system over the real set, with one setting."""

    system: str
    precision: str
    setting: int | None
    """Beams, ef or nprobe."""
    search: Search
    deep: Search
    """The same with more than K pictures: ours has ties beyond the first K, and recall counts them."""


@dataclass(frozen=True)
class Point:
    """The recall and the speed of one setting."""

    system: str
    precision: str
    setting: int | None
    recall: dict[int, float]
    seconds: list[float]
    """Seconds per query, in each round."""

    @property
    def speed(self) -> float:
        """Queries per second."""
        return 1 / statistics.median(self.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="lite models, one per precision")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="pass none to leave out the growing sets")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="of the growing sets")
    parser.add_argument("--largest-flat", type=int, default=1_000_000)
    parser.add_argument("--t5", default="small", help="shape in decoding.py")
    parser.add_argument("--collection", type=Path, help="a collection that `voken index` made with one of the models")
    parser.add_argument("--pictures", type=Path, help="the data set that was indexed")
    parser.add_argument("--queries", type=Path, help="the data set whose test captions are the queries")
    parser.add_argument("--asked", type=int, default=1000, help="the largest number of queries")
    parser.add_argument("--timed", type=int, default=40, help="queries timed per row and round, at batch 1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/scaling"), help="saves the opponents' indexes")
    parser.add_argument("--quick", action="store_true", help="tiny sets and a tiny T5, one round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.batches, options.t5 = [200, 1000], [1, 4], "tiny"
        options.rounds, options.timed = 1, 2
    models = [CompiledModel.load(folder, threads=options.threads) for folder in options.models]
    report: dict[str, Any] = {"benchmark": "scaling"}
    settings = ("sizes", "batches", "largest_flat", "t5", "asked", "timed", "rounds", "threads", "seed")
    report["workload"] = {name: getattr(options, name) for name in settings} | {"beams": BEAMS, "k": K}
    with tempfile.TemporaryDirectory() as name:
        encoders = text_encoders(options.models, models, Path(name), options.threads)
        if options.sizes:
            rows = growing_sets(models, encoders, options)
            print(growing_table(rows))
            report["growing"] = [dataclasses.asdict(row) | {"kept": speed_ratios(row)} for row in rows]
        if options.collection:
            points, description = real_set(models, encoders, options)
            print(points_table(points), figures_table(figures(points)), sep="\n\n")
            speeds = [dataclasses.asdict(point) | {"speed": point.speed} for point in points]
            report["real"] = description | {"points": speeds}
            report["figures"] = figures(points)
    write_report(options.json, report)


def text_encoders(
    folders: Sequence[Path], models: Sequence[CompiledModel], place: Path, threads: int
) -> dict[str, TextEncoder]:
    """By precision, an engine of the text encoder that the models were trained with, for the opponents."""
    from voken.encoders.two_tower import TwoTowerEncoder
    from voken.inference.export import export_text_encoder
    from voken.model.model import load_encoder

    engines = {}
    for folder, model in zip(folders, models, strict=True):
        precision: Any = model.generator.precision
        encoder = load_encoder(folder / "encoder")
        assert isinstance(encoder, TwoTowerEncoder)
        export_text_encoder(encoder, place / f"texts-{precision}", precision=precision)
        engines[precision] = TextEncoder.load(place / f"texts-{precision}", threads=threads)
    return engines


def growing_sets(
    models: Sequence[CompiledModel], encoders: dict[str, TextEncoder], options: argparse.Namespace
) -> list[GrowingRow]:
    """Time every system over every size."""
    levels, entries = models[0].generator.levels, models[0].generator.codebook_size
    searches: dict[tuple[str, str, str], dict[int, Search]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = {("ours, lite", model.generator.precision): model for model in models}
        ours |= random_t5(options, levels, entries, list(encoders), Path(folder))
        for draw in DRAWS:
            for size in options.sizes:
                random = np.random.default_rng([options.seed, size])
                trie = VokenTrie.from_vokens(random_vokens(draw, (size, levels), entries, random), entries)
                for (system, precision), model in ours.items():
                    search = over_sequences(model, trie, size)
                    searches.setdefault((system, precision, draw), {})[size] = search
                print_progress(f"{draw} {size:,}")
        dim = next(iter(encoders.values())).encode_texts(["a"]).shape[1]
        for size in [size for size in options.sizes if size <= options.largest_flat]:
            vectors = np.random.default_rng([options.seed, size]).standard_normal((size, dim), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            for name, find in exact_searches(vectors, options.threads).items():
                for precision, encoder in encoders.items():
                    search = partial(two_tower, encoder, find, NumberColumn(size))
                    searches.setdefault((f"two-tower, {name}", precision, ""), {})[size] = search
            print_progress(f"vectors {size:,}")
        return timed_in_turn(searches, options.batches, options.rounds)


def random_t5(
    options: argparse.Namespace, levels: int, entries: int, precisions: Sequence[str], folder: Path
) -> dict[tuple[str, str], CompiledModel]:
    """Engines of one T5 with random weights, by row name and precision."""
    from voken.inference.export import export_generator, t5_graphs

    workload = Workload(options.t5, levels, entries, 0, BEAMS, options.threads, ())
    generator = make_generator(workload)
    engines = {}
    for precision in precisions:
        export_generator(generator, t5_graphs, folder / precision, precision=precision)  # type: ignore[arg-type]
        engine = Engine.load(folder / precision, threads=options.threads)
        engine.warm_up()
        engines[f"ours, T5-{options.t5}", precision] = CompiledModel(engine, engine, SearchConfig(), "random")
    return engines


def over_sequences(model: CompiledModel, trie: VokenTrie, pictures: int) -> Search:
    """Our search over synthetic sequences: ids are the pictures' numbers, ranks those of the log-probability."""
    ids = NumberColumn(pictures)
    collection = Snapshot(Base(ids, ids, trie), Origin(Path(), model.fingerprint))
    return partial(ours_search, Searcher(model, collection, SearchConfig(beams=BEAMS), widen=False))


def ours_search(searcher: Searcher, texts: list[str], k: int = K) -> list[Answer]:
    """Our `Search`."""
    return [[(hit.image_id, hit.score) for hit in hits] for hits in searcher.search(texts, k)]


def two_tower(encoder: TextEncoder, find: Find, ids: Sequence[str], texts: list[str]) -> list[Answer]:
    """A two-tower's `Search`."""
    scores, rows = find(encoder.encode_texts(texts))
    return [
        [(ids[row], score) for row, score in zip(neighbours, values, strict=True) if row >= 0]
        for neighbours, values in zip(rows.tolist(), scores.tolist(), strict=True)
    ]


def exact_searches(vectors: Float32[np.ndarray, "pictures dim"], threads: int) -> dict[str, Find]:
    """Exact searches over the vectors, by the names in `EXACT`."""
    import faiss

    faiss.omp_set_num_threads(1)  # each shard has its thread; one query is the work of one thread
    half, product = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT

    def flat() -> Any:
        return faiss.IndexFlatIP(vectors.shape[1])

    def float16() -> Any:
        return faiss.IndexScalarQuantizer(vectors.shape[1], half, product)

    searches: dict[str, Find] = {
        "flat": sharded(flat, vectors, 1),
        "flat, a shard a core": sharded(flat, vectors, threads),
        "flat, float16, a shard a core": sharded(float16, vectors, threads),
        "flat, numpy": partial(by_numpy, vectors),
    }
    assert tuple(searches) == EXACT
    return searches


def sharded(make: Callable[[], Any], vectors: Float32[np.ndarray, "pictures dim"], shards: int) -> Find:
    """An exact faiss index in `shards` parts, searched at once."""
    import faiss

    parts = []
    for rows in np.array_split(vectors, shards):
        part = make()
        part.train(rows)
        part.add(rows)
        parts.append(part)
    index: Any = faiss.IndexShards(vectors.shape[1], True, True)  # type: ignore[call-arg]
    for part in parts:
        index.add_shard(part)

    # The default value keeps the parts alive: the index only refers to them.
    def find(queries: Float32[np.ndarray, "queries dim"], parts: list[Any] = parts) -> tuple[Any, Any]:
        neighbours: tuple[Any, Any] = index.search(queries, K)
        return neighbours

    return find


def by_numpy(
    vectors: Float32[np.ndarray, "pictures dim"], queries: Float32[np.ndarray, "queries dim"]
) -> tuple[Any, Any]:
    """An exact search by one matrix product, on numpy's threads."""
    scores = (vectors @ queries[0])[None] if len(queries) == 1 else queries @ vectors.T
    best = np.argpartition(scores, -K, axis=1)[:, -K:]
    values = np.take_along_axis(scores, best, 1)
    order = np.argsort(-values, axis=1)
    return np.take_along_axis(values, order, 1), np.take_along_axis(best, order, 1)


def timed_in_turn(
    searches: dict[tuple[str, str, str], dict[int, Search]], batches: Sequence[int], rounds: int
) -> list[GrowingRow]:
    """Time the same texts in every round, as many as the largest batch holds. The first round is discarded."""
    texts = query_texts(max(batches))
    rows = [
        GrowingRow(*name, {batch: {size: [] for size in sizes} for batch in batches})
        for name, sizes in searches.items()
    ]
    for number in range(-1, rounds):
        for row, sizes in zip(rows, searches.values(), strict=True):
            for batch, times in row.seconds.items():
                # The first call pays for the memory that the previous row touched, so sizes take turns to be first.
                order = [*sizes, *sizes][number % len(sizes) :][: len(sizes)]
                for size in order:
                    seconds = seconds_per_query(sizes[size], texts, batch)
                    if number >= 0:
                        times[size].append(seconds)
        print_progress(f"growing sets, round {number + 1} of {rounds}")
    return rows


def seconds_per_query(search: Search, texts: list[str], batch: int) -> float:
    """Seconds per query over all `texts`, in batches."""
    time.sleep(SETTLE_SECONDS)
    begin = time.perf_counter()
    for start in range(0, len(texts), batch):
        search(texts[start : start + batch])
    return (time.perf_counter() - begin) / len(texts)


def real_set(
    models: Sequence[CompiledModel], encoders: dict[str, TextEncoder], options: argparse.Namespace
) -> tuple[list[Point], dict[str, Any]]:
    """Measure the recall of every setting over all queries, then its speed at batch 1 over a part of them, in turn."""
    collection = Store.open(options.collection).snapshot()
    captioned, pictures = read_dataset(options.queries).split("test"), read_dataset(options.pictures)
    queries = concept_queries(captioned, pictures, collection.ids, limit=options.asked, seed=options.seed)
    texts = [query.text for query in queries]
    settings = [*our_settings(models, collection), *two_tower_settings(encoders, collection, options)]
    points = []
    for setting in settings:
        answers = [answer for text in texts for answer in setting.deep([text])]
        points.append(Point(setting.system, setting.precision, setting.setting, recall_of(answers, queries), []))
        print_progress(
            f"{setting.system} {setting.precision} {setting.setting or ''}: R@10 {points[-1].recall[10]:.3f}"
        )
    for number in range(options.rounds):
        part = [texts[(number * options.timed + place) % len(texts)] for place in range(options.timed)]
        for setting, point in zip(settings, points, strict=True):
            point.seconds.append(seconds_per_query(setting.search, part, 1))
        print_progress(f"real set, round {number + 1} of {options.rounds}")
    description = {"collection": options.collection.name, "pictures": len(collection), "queries": len(queries)}
    return points, description | {"bytes": dataclasses.asdict(collection.size)}


def concept_queries(
    captioned: Dataset, pictures: Dataset, pool: Sequence[str], *, limit: int | None, seed: int
) -> tuple[Query, ...]:
    """Captions of `captioned` whose concept some pictures of the pool show; these pictures are the right answers.

    `pool` holds ids of `pictures`. If there are more than `limit` queries, `seed` draws them.
    """
    members = set(pool)
    searched = [image for image in pictures.images if image.image_id in members]
    concepts = {image.concept for image in searched}
    with_captions = [
        dataclasses.replace(image, image_id=f"questioner: {image.image_id}")
        for image in captioned.images
        if image.concept in concepts
    ]
    without_captions = [dataclasses.replace(image, captions=()) for image in searched]
    both = Dataset(captioned.name, captioned.root, (*with_captions, *without_captions))
    queries = queries_of(both, Pool(tuple(image.image_id for image in searched)))
    return draw_queries(queries, limit, seed)


def our_settings(models: Sequence[CompiledModel], collection: Snapshot) -> list[Setting]:
    """The settings of our system: both read-outs that need no vectors, at every number of beams."""
    settings = []
    for model in models:
        for readout in READOUTS:
            for beams in SWEPT_BEAMS:
                search = SearchConfig(beams, readout)
                ours = partial(ours_search, Searcher(model, collection, search, widen=False))
                settings.append(
                    Setting(f"ours, {readout}", model.generator.precision, beams, ours, partial(ours, k=10 * K))
                )
    return settings


def two_tower_settings(
    encoders: dict[str, TextEncoder], collection: Snapshot, options: argparse.Namespace
) -> list[Setting]:
    """The settings of the opponents over the stored vectors."""
    assert collection.vectors is not None
    vectors = np.ascontiguousarray(collection.vectors, dtype=np.float32)
    finds: list[tuple[str, int | None, Find]] = [
        (name, None, find) for name, find in exact_searches(vectors, options.threads).items()
    ]
    options.work.mkdir(parents=True, exist_ok=True)
    finds += [("HNSW, faiss", ef, find) for ef, find in faiss_hnsw(vectors, options).items()]
    finds += [("IVF-PQ", probes, find) for probes, find in faiss_ivf_pq(vectors, options).items()]
    nothing = np.full((1, K), -1)
    finds.append(("nothing", None, lambda queries: (nothing, nothing)))
    settings = []
    for precision, encoder in encoders.items():
        for name, setting, find in finds:
            search = partial(two_tower, encoder, find, collection.ids)
            settings.append(Setting(name, precision, setting, search, search))
    return settings


def faiss_hnsw(vectors: Float32[np.ndarray, "pictures dim"], options: argparse.Namespace) -> dict[int, Find]:
    """Searches by ef, in one HNSW index."""
    import faiss

    def make() -> Any:
        index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 200
        return index

    parameters: Any = faiss.SearchParametersHNSW  # type: ignore[attr-defined]
    index = faiss_index("hnsw", make, vectors, options)
    return {ef: partial(index.search, k=K, params=parameters(efSearch=ef)) for ef in SWEPT_EF}


def faiss_ivf_pq(vectors: Float32[np.ndarray, "pictures dim"], options: argparse.Namespace) -> dict[int, Find]:
    """Searches by nprobe, in one IVF-PQ index without polysemous codes ("np"), which take minutes to learn."""
    import faiss

    lists = int(4 * len(vectors) ** 0.5)
    codes = math.gcd(64, vectors.shape[1])
    factory = partial(faiss.index_factory, vectors.shape[1], f"IVF{lists},PQ{codes}np", faiss.METRIC_INNER_PRODUCT)
    parameters: Any = faiss.SearchParametersIVF
    index = faiss_index("ivfpq", factory, vectors, options)
    return {probes: partial(index.search, k=K, params=parameters(nprobe=min(probes, lists))) for probes in SWEPT_PROBES}


def faiss_index(
    name: str, make: Callable[[], Any], vectors: Float32[np.ndarray, "pictures dim"], options: argparse.Namespace
) -> Any:
    """An index that an earlier run saved in --work, or a new one, built on all threads."""
    import faiss

    path = options.work / f"{options.collection.name}-{name}.faiss"
    if not path.exists():
        faiss.omp_set_num_threads(options.threads)
        begin = time.perf_counter()
        index = make()
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(path))
        print_progress(f"{name} built in {time.perf_counter() - begin:.0f} s")
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(str(path))
    if index.ntotal != len(vectors):
        raise SystemExit(f"{path} is the index of another collection. Remove it.")
    return index


def recall_of(answers: Sequence[Answer], queries: Sequence[Query]) -> dict[int, float]:
    """Recall, by cutoff."""
    ranks = first_relevant(*ranked_matrices(answers, [query.relevant for query in queries]))
    return {cutoff: float(recall_at(ranks, cutoff).mean()) for cutoff in CUTOFFS}


def front(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(R@10, queries/s) of the settings that no other beats in both, by rising recall and falling speed."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (-point.recall[K], -point.speed)):
        if not best or point.speed > best[-1][1]:
            best.append((point.recall[K], point.speed))
    return best[::-1]


def speed_at(line: Sequence[tuple[float, float]], recall: float) -> float:
    """Queries/s of a front at a recall that it reaches, interpolated as the module's docstring says."""
    recalls, speeds = zip(*line, strict=True)
    return float(np.exp(np.interp(recall, recalls, np.log(speeds))))


def figures(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The ratios of our speed to the opponents', in each precision."""
    rows = []
    for precision in dict.fromkeys(point.precision for point in points):
        row = [point for point in points if point.precision == precision]
        fastest = max((point for point in row if point.system in EXACT), key=lambda point: point.speed)
        ours = [point for point in row if point.system.startswith("ours")]
        for point in ours:
            if point.setting == BEAMS:
                times = point.speed / fastest.speed
                rows.append({"figure": f"{point.system}, {BEAMS} beams, to {fastest.system}", "times": times})
                rows[-1] |= {"precision": precision, "recall": point.recall[K], "their_recall": fastest.recall[K]}
        for opponent in ("HNSW", "IVF-PQ", ""):
            theirs = [point for point in row if not point.system.startswith("ours") and point.system != "nothing"]
            theirs = [point for point in theirs if point.system.startswith(opponent)]
            ours_front, their_front = front(ours), front(theirs)
            equal = min(ours_front[-1][0], their_front[-1][0])
            times = speed_at(ours_front, equal) / speed_at(their_front, equal)
            name = f"ours to {opponent or 'the best two-tower'} at equal recall"
            rows.append(
                {"figure": name, "times": times, "precision": precision, "recall": equal, "their_recall": equal}
            )
    return rows


def speed_ratios(row: GrowingRow) -> dict[int, float]:
    """`GrowingRow.speed_ratio` by batch."""
    return {batch: row.speed_ratio(batch) for batch in row.seconds}


def growing_table(rows: Sequence[GrowingRow]) -> str:
    """A Markdown table of queries per second by size, one line per system and batch."""
    sizes = sorted({size for row in rows for times in row.seconds.values() for size in times})
    heads = ["", "precision", "sequences", "batch", *(f"{size:,}" for size in sizes), "largest / smallest"]
    lines = []
    for row in rows:
        for batch, times in row.seconds.items():
            speeds = [f"{row.speed(batch, size):,.1f}" if size in times else "" for size in sizes]
            lines.append([row.system, row.precision, row.draw, str(batch), *speeds, f"{row.speed_ratio(batch):.3f}"])
    return markdown_table(heads, lines, text_columns=3)


def points_table(points: Sequence[Point]) -> str:
    """A Markdown table, one line per setting."""
    heads = ["", "precision", "beams, ef, nprobe", *(f"R@{cutoff}" for cutoff in CUTOFFS), "queries/s", "least … most"]
    lines = []
    for point in points:
        speeds = [1 / seconds for seconds in point.seconds]
        recalls = [f"{100 * point.recall[cutoff]:.1f}" for cutoff in CUTOFFS]
        spread = f"{min(speeds):,.0f} … {max(speeds):,.0f}"
        setting = "" if point.setting is None else str(point.setting)
        lines.append([point.system, point.precision, setting, *recalls, f"{point.speed:,.0f}", spread])
    return markdown_table(heads, lines, text_columns=2)


def figures_table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, one line per ratio."""
    heads, lines = ["", "precision", "times as fast", "R@10, ours", "R@10, theirs"], []
    for row in rows:
        recalls = [f"{100 * row[name]:.1f}" for name in ("recall", "their_recall")]
        lines.append([row["figure"], row["precision"], f"{row['times']:.2f}", *recalls])
    return markdown_table(heads, lines, text_columns=2)


def print_progress(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
