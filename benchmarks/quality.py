"""Inductive, image-level recall of the read-outs beside exact search with the same vectors: three seeds, one table.

    voken data emoji emoji && voken data icons icons
    python benchmarks/quality.py emoji --json quality-emoji.json
    python benchmarks/quality.py icons --json quality-icons.json
    python benchmarks/quality.py flickr8k --json quality-flickr8k.json
    python benchmarks/quality.py dataset_flickr8k.json --images Flicker8k_Dataset --track flickr8k

With --engines float32 int8, the read-outs are also measured with the saved engines.

Split, pool and queries are those of a track of `voken reproduce`, by default of the one that has the data set's name.
The seed draws the split of emoji and icons (by concept family), and everything random in training. Tracks of
photographs use the data set's own split, all test pictures, and every caption as a query. Every model is saved in
--work, so that a run that is started again continues where it stopped.
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
from voken.data.captions import Dataset
from voken.encoders.cache import VectorCache
from voken.model.compiled import CompiledModel
from voken.model.model import Model
from voken.training.fit import fit
from voken_lab.evaluation.benchmark import TWO_TOWER, benchmark
from voken_lab.evaluation.tables import results_table
from voken_lab.reproduction.tracks import Track, track


def main() -> None:
    """Run every seed and preset, print the table, write the figures."""
    parser = option_parser(__doc__)
    add_track_options(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=["default"])
    parser.add_argument("--set", dest="settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--engines", nargs="*", default=[], choices=["float32", "int8"])
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    cache = VectorCache(arguments.work / "vectors")
    chosen = chosen_track(arguments)
    rows = []
    for seed in arguments.seeds:
        dataset = read_split(chosen, seed, arguments)
        for name in arguments.presets:
            settings = dict(item.split("=", 1) for item in arguments.settings)
            config = preset(name).override(chosen.settings | {"seed": str(seed)} | settings)
            folder = arguments.work / f"{dataset.name}-{name}-{seed}"
            model = trained_model(dataset, folder, config, cache)
            measure = partial(
                benchmark,
                model,
                dataset,
                one_per_concept=chosen.one_per_concept,
                distinct=chosen.distinct,
                limit=chosen.queries,
                seed=seed,
                cache=cache,
            )
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


def add_track_options(parser: argparse.ArgumentParser) -> None:
    """The data set, and the track whose protocol is followed."""
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--images", type=Path, help="folder of pictures, if the data set is a Karpathy file")
    parser.add_argument("--track", help="default: the data set's name")
    parser.add_argument("--queries", type=int, help="largest number, drawn by the seed (default: the track's)")


def chosen_track(arguments: argparse.Namespace) -> Track:
    """The track with these options. Raises `ConfigError` for an unknown name."""
    chosen = track(arguments.track or arguments.dataset.resolve().name)
    return chosen if arguments.queries is None else dataclasses.replace(chosen, queries=arguments.queries)


def read_split(chosen: Track, seed: int, arguments: argparse.Namespace) -> Dataset:
    """The data set as the track splits it. Prints how many pictures were left out, such as near-duplicates."""
    dataset = chosen.read(arguments.dataset, arguments.images, seed, quick=False)
    test = dataset.split("test")
    print(f"seed {seed}: {len(dataset.skipped)} pictures left out, {len(test)} in test", flush=True)
    return dataset


if __name__ == "__main__":
    main()
