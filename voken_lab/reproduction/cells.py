"""A cell: one builder with its settings, on one track, seed and protocol. It is measured once and then read from disk.

CELL/
  cell.json          what the cell is, with its complete settings; their hash is part of the folder's name
  evaluations.json   one row per system, with every query's result, and the cost; written last
  qrels.txt, *.run.txt   the same results for TREC tools
  cases.json         some queries, with the first hits and their voken sequences
  sequences.json     the pool's pictures with their voken sequences, if the system has any
"""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voken import artifact
from voken.errors import ConfigError, MissingExtraError
from voken.shapes import Int
from voken_lab.evaluation.machine import Machine
from voken_lab.evaluation.protocol import Conditions, Evaluation, evaluate
from voken_lab.evaluation.trec import write_qrels, write_run
from voken_lab.reproduction.builders import BUILDERS, BuildSpec, baseline_settings, our_config
from voken_lab.reproduction.experiment import Experiment, short_digest

FORMAT = 3
"""Increase it whenever a builder changes what it measures, so that cells of older code are not used."""
_CASES = 40
_ROWS = "evaluations.json"


@dataclass(frozen=True)
class Cell:
    """What to measure: `builder` is a key of `BUILDERS`, `settings` are dotted settings that replace the track's."""

    builder: str
    settings: Mapping[str, str] = field(default_factory=dict)
    protocol: Literal["inductive", "transductive"] = "inductive"

    def spec(self, work: Path = Path()) -> BuildSpec:
        """What to build, in this working folder."""
        return BuildSpec(self.builder, self.settings, self.protocol, work)

    def key(self, experiment: Experiment) -> dict[str, Any]:
        """Everything that the cell's figures depend on except the code, JSON-ready."""
        spec = self.spec()
        baseline = baseline_settings(experiment, spec)
        return {
            **({"captioner": experiment.captioner} if self.protocol == "transductive" else {}),
            **({"own": baseline} if baseline else {}),
            "format": FORMAT,
            "builder": self.builder,
            "settings": dict(sorted(self.settings.items())),
            "protocol": self.protocol,
            "quick": experiment.quick,
            "track": experiment.track.name,
            "queries": experiment.track.queries,
            "seed": experiment.seed,
            "config": our_config(experiment, spec).to_dict(),
            "dataset": experiment.fingerprint,
        }


def canonical_cell(cell: Cell, experiment: Experiment) -> Cell:
    """The cell, or the cell of our system if it is a variant that changes none of the track's settings."""
    if cell.builder == "variant":
        ours = dataclasses.replace(cell, builder="ours", settings={})
        if our_config(experiment, cell.spec()) == our_config(experiment, ours.spec()):
            return ours
    return cell


def run_cell(cell: Cell, experiment: Experiment) -> list[dict[str, Any]]:
    """Return the cell's rows, as `Evaluation.to_dict(per_query=True)`. They are measured now if they are not on disk.

    After an interruption, training continues where it stopped. The working files are removed at the end.
    """
    cell = canonical_cell(cell, experiment)
    key = cell.key(experiment)
    folder = experiment.folder / _folder_name(cell, key)
    path = folder / _ROWS
    if path.exists():
        rows: list[dict[str, Any]] = artifact.read_json(path)["rows"]
        return rows
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    artifact.write_json(folder / "cell.json", key)
    begin, processor = time.perf_counter(), time.process_time()
    rows = []
    for built_system in BUILDERS[cell.builder](experiment, cell.spec(work)):
        evaluation = evaluate(
            built_system.system,
            experiment.queries,
            experiment.pool if built_system.vokens is None else experiment.pool.with_vokens(built_system.vokens),
            conditions=Conditions(
                system=built_system.name,
                dataset=f"{experiment.track.name} test",
                pool=experiment.pool_in_words,
                protocol=cell.protocol,
                readout=built_system.readout,
                seed=experiment.seed,
                beams=built_system.beams,
                bytes_per_picture=built_system.bytes_per_picture,
                memory_bytes=built_system.memory_bytes,
                beams_tried=built_system.beams_tried,
                config=key["config"],
            ),
            progress=experiment.progress,
        )
        rows.append(evaluation.to_dict(per_query=True))
        _write_trec(folder, evaluation)
        if len(rows) == 1:  # the cell's first system; of ours, the read-out "generate"
            artifact.write_json(folder / "cases.json", {"cases": _cases(evaluation, experiment)})
            if built_system.vokens is not None:
                artifact.write_json(
                    folder / "sequences.json", {"pictures": _sequences(built_system.vokens, experiment)}
                )
    cost = {
        "seconds": time.perf_counter() - begin,
        "processor_seconds": time.process_time() - processor,
        "peak_megabytes_of_the_process": _peak_megabytes(),
        "machine": dataclasses.asdict(Machine.here()),
        "voken": version("voken-search"),
    }
    artifact.write_json(path, {"rows": rows, "cost": cost})
    shutil.rmtree(work, ignore_errors=True)
    return rows


def try_cell(cell: Cell, experiment: Experiment) -> str:
    """Run the cell and return "". If weights or an extra are missing on this machine, say which and leave no folder."""
    try:
        run_cell(cell, experiment)
    except (ConfigError, MissingExtraError) as error:
        shutil.rmtree(folder_of(cell, experiment), ignore_errors=True)
        return str(error)
    return ""


def is_measured(cell: Cell, experiment: Experiment) -> bool:
    """Whether the cell's rows are on disk, so that `run_cell` only reads them."""
    return (folder_of(cell, experiment) / _ROWS).exists()


def cost_of(cell: Cell, experiment: Experiment) -> dict[str, Any]:
    """The time and the memory that a measured cell needed, as in its evaluations.json."""
    cost: dict[str, Any] = artifact.read_json(folder_of(cell, experiment) / _ROWS)["cost"]
    return cost


def folder_of(cell: Cell, experiment: Experiment) -> Path:
    """The cell's folder on disk."""
    cell = canonical_cell(cell, experiment)
    return experiment.folder / _folder_name(cell, cell.key(experiment))


def _cases(evaluation: Evaluation, experiment: Experiment) -> list[dict[str, Any]]:
    """The first queries in the order of their ids. An id is a hash, so nobody chose these queries."""
    paths = {image.image_id: str(image.path) for image in experiment.pool_images}
    first = sorted(zip(evaluation.queries, evaluation.answers, strict=True), key=lambda pair: pair[0].query_id)[:_CASES]
    return [
        {
            "text": query.text,
            "relevant": [{"id": image_id, "path": paths[image_id]} for image_id in sorted(query.relevant)],
            "answers": [
                {"id": hit.image_id, "path": paths[hit.image_id], "score": hit.score, "vokens": list(hit.vokens)}
                for hit in hits[:5]
            ],
        }
        for query, hits in first
    ]


def _sequences(vokens: Int[np.ndarray, "pool M"], experiment: Experiment) -> list[dict[str, Any]]:
    return [
        {"id": image.image_id, "path": str(image.path), "captions": list(image.captions[:2]), "vokens": sequence}
        for image, sequence in zip(experiment.pool_images, vokens.tolist(), strict=True)
    ]


def _write_trec(folder: Path, evaluation: Evaluation) -> None:
    conditions = evaluation.conditions
    tag = _slug(f"{conditions.system} {conditions.readout} {conditions.beams or ''}", "")
    write_qrels(folder / "qrels.txt", evaluation.queries)
    write_run(folder / f"{tag}.run.txt", evaluation.queries, evaluation.answers, tag=tag)


def _folder_name(cell: Cell, key: dict[str, Any]) -> str:
    words = " ".join([cell.builder, *(f"{name} {value}" for name, value in sorted(cell.settings.items()))])
    return f"{_slug(words, '.')[:60].strip('-')}-{cell.protocol}-{short_digest(json.dumps(key, sort_keys=True))}"


def _slug(text: str, punctuation: str) -> str:
    return re.sub(rf"[^a-z0-9{punctuation}]+", "-", text.lower()).strip("-")


def _peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
