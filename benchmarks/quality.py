"""Inductive, image-level recall of the read-outs beside exact search with the same vectors: three seeds, one table.

    voken data emoji emoji && voken data icons icons
    python benchmarks/quality.py emoji --json quality-emoji.json
    python benchmarks/quality.py icons --test-concepts 1000 --validation-concepts 500 --json quality-icons.json

With --engines float32 int8, the read-outs are also measured with the saved engines.

A seed draws the split (by concept family) and everything random in training. Test pictures with a near-duplicate
in train (dHash within --distance bits) are dropped; the pool is one picture of each test concept. Every model is
saved in --work, so that a run that is started again continues where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

from report import option_parser, show_progress, write_report
from voken.artifact import is_artifact
from voken.config import RunConfig, preset
from voken.data.captions import Dataset, read_dataset
from voken.data.splits import resplit_clean
from voken.encoders.cache import VectorCache
from voken.model.compiled import CompiledModel
from voken.model.model import Model
from voken.training.fit import fit
from voken_lab.evaluation.benchmark import TWO_TOWER, benchmark
from voken_lab.evaluation.tables import results_table


def main() -> None:
    """Run every seed and preset, print the table, write the figures."""
    parser = option_parser(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=["default"])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--test-concepts", type=int, default=400)
    parser.add_argument("--validation-concepts", type=int, default=200)
    parser.add_argument("--distance", type=int, default=2)
    parser.add_argument("--queries", type=int, default=None, help="largest number, drawn by the seed (default: all)")
    parser.add_argument("--engines", nargs="*", default=[], choices=["float32", "int8"])
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    cache = VectorCache(arguments.work / "vectors")
    rows = []
    for seed in arguments.seeds:
        dataset = split(read_dataset(arguments.dataset), seed, arguments)
        for name in arguments.presets:
            config = preset(name).override(
                {"seed": str(seed)} | dict(item.split("=", 1) for item in arguments.settings)
            )
            folder = arguments.work / f"{dataset.name}-{name}-{seed}"
            model = trained_model(dataset, folder, config, cache)
            measure = partial(benchmark, model, dataset, seed=seed, limit=arguments.queries, cache=cache)
            results = [measure(reference=name == arguments.presets[0])]
            results += [measure(reference=False, searched=engine(model, folder, each)) for each in arguments.engines]
            rows += [row.to_dict() for result in results for row in result.rows]
            print(f"\nseed {seed}, {name}", results_table(rows, base=TWO_TOWER), sep="\n", flush=True)
            write_report(arguments.json, {"rows": rows})


def trained_model(dataset: Dataset, folder: Path, config: RunConfig, cache: VectorCache) -> Model:
    """The model that an earlier run saved in `folder`, or a new one."""
    if is_artifact(folder):
        return Model.load(folder)
    return fit(dataset, folder, config, cache=cache, progress=show_progress)


def engine(model: Model, folder: Path, precision: Literal["float32", "int8"]) -> CompiledModel:
    """The model's engine in a precision, which is saved beside the model."""
    engine_folder = folder.with_name(f"{folder.name}-{precision}")
    search = dataclasses.replace(model.search, precision=precision)
    dataclasses.replace(model, search=search).save(engine_folder, replace=True)
    return CompiledModel.load(engine_folder)


def split(dataset: Dataset, seed: int, arguments: argparse.Namespace) -> Dataset:
    """Draw the split, drop near-duplicates, and print their number."""
    clean, dropped = resplit_clean(
        dataset,
        seed=seed,
        test_concepts=arguments.test_concepts,
        validation_concepts=arguments.validation_concepts,
        distance=arguments.distance,
    )
    concepts = len(clean.split("test").concepts)
    print(f"seed {seed}: {len(dropped)} near-duplicates dropped, {concepts} test concepts", flush=True)
    return clean


if __name__ == "__main__":
    main()
