"""One cell: a builder with its settings on one track, seed and protocol. Computed once, kept, found again.

CELL/
  cell.json          what it is, complete settings included; its hash is part of the folder's name
  evaluations.json   a row a contestant, single queries' results included, and what it cost; written last
  qrels.txt, *.run.txt   the same for TREC tools
  cases.json         some queries, what was answered first, and the sequences of the answers
  sequences.json     the pool's pictures with their sequences, where the system has any
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
from voken_lab.reproduction.arena import Arena, short_digest
from voken_lab.reproduction.contestants import BUILDERS, Order, our_config, own_settings

FORMAT = 2
"""Raised whenever a builder changes what it measures, so that no old cell is taken for a new one."""
_CASES = 40
_ROWS = "evaluations.json"


@dataclass(frozen=True)
class Cell:
    """`builder` is a name of `BUILDERS`, `settings` are dotted settings over the track's."""

    builder: str
    settings: Mapping[str, str] = field(default_factory=dict)
    protocol: Literal["inductive", "transductive"] = "inductive"

    def key(self, arena: Arena, *, quick: bool) -> dict[str, Any]:
        """Everything that its figures depend on, but for the code: JSON-ready."""
        order = Order(self.builder, self.settings, self.protocol, Path(), quick)
        made: dict[str, Any] = {"captioner": arena.captioner} if self.protocol == "transductive" else {}
        own = own_settings(arena, order)
        if own:
            made["own"] = own
        return made | {
            "format": FORMAT,
            "builder": self.builder,
            "settings": dict(sorted(self.settings.items())),
            "protocol": self.protocol,
            "quick": quick,
            "track": arena.track.name,
            "queries": arena.track.queries,
            "seed": arena.seed,
            "config": our_config(arena, order).to_dict(),
            "dataset": arena.fingerprint,
        }


def told_once(cell: Cell, arena: Arena) -> Cell:
    """A variant that changes none of the track's settings is ours."""
    if cell.builder == "variant" and arena.config.override(dict(cell.settings)) == arena.config:
        return dataclasses.replace(cell, builder="ours", settings={})
    return cell


def run_cell(cell: Cell, arena: Arena, *, quick: bool, checkpoints: str = "") -> list[dict[str, Any]]:
    """The rows of a cell, as `Evaluation.to_dict(per_query=True)`: those kept, or measured now.

    An interrupted cell goes on where its training stopped. What training leaves is removed when the rows are there.
    """
    cell = told_once(cell, arena)
    key = cell.key(arena, quick=quick)
    folder = arena.folder / _folder_name(cell, key)
    path = folder / _ROWS
    if path.exists():
        rows: list[dict[str, Any]] = artifact.read_json(path)["rows"]
        return rows
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    artifact.write_json(folder / "cell.json", key)
    begin, processor = time.perf_counter(), time.process_time()
    rows = []
    order = Order(cell.builder, cell.settings, cell.protocol, work, quick, checkpoints)
    for contestant in BUILDERS[cell.builder](arena, order):
        pool = arena.pool if contestant.vokens is None else arena.pool.with_vokens(contestant.vokens)
        found = evaluate(
            contestant.system,
            arena.queries,
            pool,
            conditions=Conditions(
                system=contestant.name,
                dataset=f"{arena.track.name} test",
                pool=arena.pool_in_words,
                protocol=cell.protocol,
                readout=contestant.readout,
                seed=arena.seed,
                beams=contestant.beams,
                bytes_per_picture=contestant.bytes_per_picture,
                config=key["config"],
            ),
            progress=arena.progress,
        )
        rows.append(found.to_dict(per_query=True))
        _write_trec(folder, found)
        if len(rows) == 1:  # of the cell's first contestant: for ours, log-probability alone
            artifact.write_json(folder / "cases.json", {"cases": _cases(found, arena)})
            if contestant.vokens is not None:
                artifact.write_json(folder / "sequences.json", {"pictures": _sequences(contestant.vokens, arena)})
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


def try_cell(cell: Cell, arena: Arena, *, quick: bool, checkpoints: str = "") -> str:
    """`run_cell`: "" where the rows are kept now, else what is missing here (weights, an extra); no folder is left."""
    try:
        run_cell(cell, arena, quick=quick, checkpoints=checkpoints)
    except (ConfigError, MissingExtraError) as error:
        shutil.rmtree(folder_of(cell, arena, quick=quick), ignore_errors=True)
        return str(error)
    return ""


def is_kept(cell: Cell, arena: Arena, *, quick: bool) -> bool:
    """Whether `run_cell` would only read."""
    return (folder_of(cell, arena, quick=quick) / _ROWS).exists()


def cost_of(cell: Cell, arena: Arena, *, quick: bool) -> dict[str, Any]:
    """What a finished cell took."""
    found: dict[str, Any] = artifact.read_json(folder_of(cell, arena, quick=quick) / _ROWS)["cost"]
    return found


def folder_of(cell: Cell, arena: Arena, *, quick: bool) -> Path:
    """Where a cell is kept."""
    cell = told_once(cell, arena)
    return arena.folder / _folder_name(cell, cell.key(arena, quick=quick))


def _cases(found: Evaluation, arena: Arena) -> list[dict[str, Any]]:
    """The first queries by id, which is a hash: as good as drawn at random, and nobody's choice."""
    paths = {image.image_id: str(image.path) for image in arena.images}
    order = sorted(range(len(found.queries)), key=lambda row: found.queries[row].query_id)[:_CASES]
    return [
        {
            "text": found.queries[row].text,
            "relevant": [{"id": name, "path": paths[name]} for name in sorted(found.queries[row].relevant)],
            "answers": [
                {"id": hit.image_id, "path": paths[hit.image_id], "score": hit.score, "vokens": list(hit.vokens)}
                for hit in found.answers[row][:5]
            ],
        }
        for row in order
    ]


def _sequences(vokens: Int[np.ndarray, "pool M"], arena: Arena) -> list[dict[str, Any]]:
    return [
        {"id": image.image_id, "path": str(image.path), "captions": list(image.captions[:2]), "vokens": sequence}
        for image, sequence in zip(arena.images, vokens.tolist(), strict=True)
    ]


def _write_trec(folder: Path, found: Evaluation) -> None:
    said = found.conditions
    words = (said.system, said.readout, str(said.beams or ""))
    name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
    write_qrels(folder / "qrels.txt", found.queries)
    write_run(folder / f"{name}.run.txt", found.queries, found.answers, tag=name)


def _folder_name(cell: Cell, key: dict[str, Any]) -> str:
    said = " ".join([cell.builder, *(f"{name} {value}" for name, value in sorted(cell.settings.items()))])
    words = re.sub(r"[^a-z0-9.]+", "-", said.lower())[:60].strip("-")
    return f"{words}-{cell.protocol}-{short_digest(json.dumps(key, sort_keys=True))}"


def _peak_megabytes() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
