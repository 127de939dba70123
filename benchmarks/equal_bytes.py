"""Recall at equal bytes per picture: our vokens beside faiss's quantizers, on the same vectors.

At each M of --levels, our tokenizer is compared with three quantizers of faiss that also take M bytes per picture: the
product quantizer (PQ), PQ behind a learned rotation (OPQ) and the residual quantizer (RQ). Ours has M levels of 256
entries (one byte and one codebook per level, the default preset's mixtures, k-means without gradient steps). All are
trained on the same train-split pictures. faiss compares codes with the query's exact vector (asymmetric search) by
inner product. The rows "unit length" compare the vectors rebuilt from the codes by cosine, as ours does.

The row "quantized ceiling" is ours under the same conditions: every picture is compared, with the encoder's vector of
the text. The rows "generate" and "+ voken rerank" are the whole system (100 beams), which also reads the query with a
trained generator and its caption memory. The split, the pool, the queries and the recall are those of quality.py, from
the track that has the data set's name or that --track names.

All codes take M bytes. "size" also counts what a collection needs besides (where each node's children start, picture
numbers, ids). The codebooks belong to no picture: 256 KB per level for ours, 256 KB in all for PQ (dim 256). --large
names a data set whose pictures are a second pool; its queries are the test captions whose concept is in that pool.

    python benchmarks/equal_bytes.py emoji --json equal-bytes-emoji.json
    python benchmarks/equal_bytes.py icons --json equal-bytes-icons.json
    python benchmarks/equal_bytes.py flickr8k --json equal-bytes-flickr8k.json

Models are saved in --work, so that a run that is started again continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from quality import add_track_options, chosen_track, read_split, trained_model
from report import option_parser, show_progress, write_report
from scaling import READOUTS, concept_queries
from voken.collection.snapshot import Snapshot
from voken.config import SearchConfig, preset
from voken.data.captions import Dataset, read_dataset
from voken.encoders.cache import VectorCache, picture_vectors
from voken.model.model import Model
from voken.search.searcher import Searcher
from voken.shapes import Float32
from voken_lab.evaluation.benchmark import CEILING, TWO_TOWER
from voken_lab.evaluation.protocol import Conditions, Pool, Query, draw_queries, evaluate, pool_of, queries_of
from voken_lab.evaluation.tables import results_table
from voken_lab.reproduction.tracks import Track
from voken_lab.systems.faiss_tower import EncodedPool, FaissTower
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower

KINDS = {"PQ": FaissTower.pq, "OPQ": FaissTower.opq, "RQ": FaissTower.rq}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every seed and size, print the tables, write JSON."""
    parser = option_parser(__doc__)
    add_track_options(parser)
    parser.add_argument("--levels", type=int, nargs="+", default=[8, 16, 32], help="bytes per picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--beams", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="RQ takes long at 32 bytes")
    parser.add_argument("--large", type=Path, help="a data set whose pictures are a second pool")
    parser.add_argument("--threads", type=int, default=0, help="of torch and faiss; 0: one per core")
    parser.add_argument("--work", type=Path, default=Path("runs/equal-bytes"))
    parser.add_argument("--cache", type=Path, help="vectors of pictures (default: in --work)")
    parser.add_argument("--quick", action="store_true", help="one seed, 2 bytes, 5 beams")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.levels, options.beams = [0], [2], 5
    use_threads(options.threads)
    cache = VectorCache(options.cache or options.work / "vectors")
    chosen = chosen_track(options)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        dataset = read_split(chosen, seed, options)
        for levels in options.levels:
            sizes = {"seed": str(seed), "tokenizer.codebook_size": "256", "tokenizer.levels": str(levels)}
            settings = dict(item.split("=", 1) for item in options.settings)
            config = preset("default").override(chosen.settings | sizes | settings)
            model = trained_model(dataset, options.work / f"{dataset.name}-{levels}-{seed}", config, cache)
            pool, queries = test_pool(dataset, chosen, seed), partial(test_queries, dataset, chosen, seed)
            new_rows = compare(model, dataset, pool, queries, cache, seed, options)
            if options.large:
                pool, test = read_dataset(options.large), dataset.split("test")
                queries = partial(concept_queries, test, pool, limit=chosen.queries, seed=seed)
                new_rows += compare(model, dataset, pool, queries, cache, seed, options)
            rows += new_rows
            print(f"\nseed {seed}, {levels} bytes", results_table(new_rows, base=TWO_TOWER), sep="\n", flush=True)
            write_report(options.json, report(rows, options))


def use_threads(threads: int) -> None:
    """Set the threads of torch and faiss."""
    if threads:
        import faiss
        import torch

        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)


def test_pool(dataset: Dataset, chosen: Track, seed: int) -> Dataset:
    """The test pictures that the track searches."""
    test = dataset.split("test")
    members = set(pool_of(test, one_per_concept=chosen.one_per_concept, seed=seed).image_ids)
    images = tuple(image for image in test.images if image.image_id in members)
    return Dataset(f"{dataset.name} test", test.root, images)


def test_queries(dataset: Dataset, chosen: Track, seed: int, ids: tuple[str, ...]) -> tuple[Query, ...]:
    """The track's queries over the test pictures with these ids."""
    queries = queries_of(dataset.split("test"), Pool(ids), distinct=chosen.distinct)
    return draw_queries(queries, chosen.queries, seed)


def compare(
    model: Model,
    dataset: Dataset,
    pool: Dataset,
    queries_over: Callable[[tuple[str, ...]], tuple[Query, ...]],
    cache: VectorCache,
    seed: int,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The rows of every system over the pictures of `pool`. `queries_over` makes the queries from the readable ids."""
    encoded = picture_vectors(model.encoder, [image.path for image in pool.images], cache=cache, progress=show_progress)
    vectors, images = encoded.vectors, tuple(pool.images[row] for row in encoded.rows)
    collection = Snapshot.of_vectors(dataclasses.replace(pool, images=images), vectors, model, keep_vectors=False)
    ids, levels = tuple(collection.ids), model.tokenizer.levels
    queries = queries_over(ids)
    train = [image.path for image in dataset.split("train").images if image.captions]
    train_vectors = picture_vectors(model.encoder, train, cache=cache, progress=show_progress).vectors
    systems: dict[tuple[str, Any], SearchSystem] = {
        (TWO_TOWER, ""): TwoTower(model.encoder, ids, vectors),
        (CEILING, ""): TwoTower.quantized(model.encoder, ids, vectors, model.tokenizer),
    }
    for kind in options.kinds:
        quantized = KINDS[kind](EncodedPool(model.encoder, ids, vectors), train_vectors, bytes=levels)
        systems[f"faiss {kind}", ""] = quantized
        systems[f"faiss {kind}, unit length", ""] = TwoTower(model.encoder, ids, unit(quantized.rebuilt()))
    for readout in READOUTS:
        search = SearchConfig(options.beams, readout)
        systems[f"voken {model.config.name}", readout] = Searcher(model, collection, search, widen=False)
    rows = []
    for (name, readout), system in systems.items():
        conditions = Conditions(
            system=name,
            dataset=pool.name,
            pool=f"{levels} bytes",
            readout=readout,
            seed=seed,
            beams=options.beams if readout else None,
            bytes_per_picture=4.0 * vectors.shape[1] if name == TWO_TOWER else levels,
        )
        result = evaluate(system, queries, ids, conditions=conditions).to_dict()
        rows.append(result | {"levels": levels, "size": dataclasses.asdict(collection.size)})
    return rows


def unit(vectors: Float32[np.ndarray, "pictures dim"]) -> Float32[np.ndarray, "pictures dim"]:
    """The vectors, scaled to length 1."""
    scaled: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Every figure, for `--json`."""
    settings = ["levels", "seeds", "settings", "beams", "kinds", "queries"]
    names = {"dataset": options.dataset.name, "track": chosen_track(options).name}
    return {
        "benchmark": "equal_bytes",
        "workload": {name: getattr(options, name) for name in settings} | names,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
