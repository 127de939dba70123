"""`voken reproduce`: the tables and figures of the paper, on one track, from one command that can be stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voken import artifact
from voken.encoders.cache import VectorCache
from voken.errors import ConfigError
from voken.progress import Progress, no_progress
from voken.reproduction import figure4
from voken.reproduction.arena import Arena
from voken.reproduction.cells import Cell, cost_of, folder_of, is_kept, run_cell, try_cell
from voken.reproduction.page import write_report
from voken.reproduction.processes import in_processes
from voken.reproduction.tables import TABLES, Record, as_json, as_markdown, cell_name, filled
from voken.reproduction.tracks import Track, track

FIGURE = "figure4"
QUICK_TABLES = ("table1", "table3", "table7")


@dataclass(frozen=True)
class Request:
    """What to reproduce. `what` are names of tables, "figure4", or "all"; Figure 5 is part of the page."""

    what: tuple[str, ...]
    track: str
    data: Path
    out: Path
    images: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """A sixth of the concepts, small settings, and of "all" three tables and Figure 4 only: for a look, and for CI."""
    transductive: bool = False
    """Also the second protocol, in its own column."""
    settings: tuple[tuple[str, str], ...] = ()
    """Dotted settings over the track's."""
    cache: Path | None = None
    captioner: str = ""
    """BLIP weights that caption the pool, with `transductive`; "": the nearest training captions."""
    checkpoints: str = ""
    """Folder of the backbones' weights, or "hub" where it can be reached."""
    jobs: int = 1
    """Processes that train and measure cells at once, with `threads` each; see `in_processes`."""
    threads: int = 0
    """0: the processor's, shared out."""


def reproduce(
    request: Request, *, tell: Callable[[str], None] = lambda line: None, progress: Progress = no_progress
) -> dict[str, str]:
    """Measure what is not measured yet, and write `OUT/TRACK/tableN.md` and `.json`, and at the end all of them as
    the page `OUT/TRACK/index.html`, which is told. Returns the Markdown by table.

    Every cell is kept in `OUT/TRACK/seed-S/`: the same call goes on where it was stopped, and another table finds
    what it shares. What cannot be built here (weights that are not at hand, a missing extra) has no row, and is told.
    Raises `ConfigError` for a table or track that there is not.
    """
    names = _names(request)
    chosen = track(request.track)
    folder = request.out / request.track
    cells: list[Cell] = []
    for name in names:
        cells += [
            cell
            for cell in (TABLES[name].cells() if name in TABLES else ())
            if cell not in cells and (request.transductive or cell.protocol == "inductive")
        ]
    # a cell is told by the first row it fills
    labels = {
        cell_name(cell): line.label
        for name in reversed(names)
        if name in TABLES
        for line in reversed(TABLES[name].lines)
        for cell in (line.cell, line.transductive)
    }
    arenas = [_arena(request, chosen, seed, progress) for seed in request.seeds]
    results: dict[str, dict[int, list[Record]]] = {}
    costs: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    once = [line.cell for name in names if name in TABLES for line in TABLES[name].lines if line.once]
    wanted = [(place, cell) for place in range(len(arenas)) for cell in cells if place == 0 or cell not in once]
    there = [(place, cell) for place, cell in wanted if is_kept(cell, arenas[place], quick=request.quick)]
    for place, cell, missing in _measured(request, arenas, wanted, labels, tell):
        arena, said = arenas[place], " ".join([cell.builder, *cell.settings.values()])
        if missing:
            if said not in absent:
                tell(f"left out: {said}: {missing}")
            absent[said] = missing
            continue
        results.setdefault(cell_name(cell), {})[arena.seed] = run_cell(cell, arena, quick=request.quick)
        kept = folder_of(cell, arena, quick=request.quick)
        which = {"cell": said, "seed": arena.seed, "protocol": cell.protocol, "folder": str(kept.relative_to(folder))}
        costs.append(which | cost_of(cell, arena, quick=request.quick))
        if (place, cell) not in there:
            _write(names, results, folder, request.track)
    written = _write(names, results, folder, request.track)
    if FIGURE in names:
        written[FIGURE] = _figure(arenas[0], folder, quick=request.quick, tell=tell)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(request).items()}
    run = {"request": asked, "written": list(written), "costs": costs, "left out": absent}
    artifact.write_json(folder / "run.json", run)
    if written:
        tell(f"page: {write_report(folder)}")
    return written


def _arena(request: Request, chosen: Track, seed: int, progress: Progress) -> Arena:
    return Arena(
        chosen,
        chosen.read(request.data, request.images, seed, quick=request.quick),
        chosen.config(seed, quick=request.quick).override(dict(request.settings)),
        request.out / request.track / f"seed-{seed}{'-quick' if request.quick else ''}",
        VectorCache(request.cache or request.out / "vectors"),
        progress,
        request.captioner,
    )


def _measured(
    request: Request,
    arenas: Sequence[Arena],
    wanted: Sequence[tuple[int, Cell]],
    labels: Mapping[str, str],
    tell: Callable[[str], None],
) -> Iterator[tuple[int, Cell, str]]:
    """As `in_processes`, in one process or several."""
    quick, checkpoints = request.quick, request.checkpoints
    if request.jobs > 1:
        left: dict[Path, tuple[int, Cell]] = {}  # by folder: cells of two names may be one
        for place, cell in wanted:
            if not is_kept(cell, arenas[place], quick=quick):
                left.setdefault(folder_of(cell, arenas[place], quick=quick), (place, cell))
        threads = request.threads or max(1, (os.cpu_count() or 1) // request.jobs)
        several = in_processes(
            arenas, list(left.values()), jobs=request.jobs, threads=threads, quick=quick, checkpoints=checkpoints
        )
        for number, (place, cell, missing) in enumerate(several if left else (), start=1):
            tell(f"{number} of {len(left)} done: seed {arenas[place].seed}, {_said(cell, labels)}")
            yield place, cell, missing
        for place, cell in wanted:
            if (place, cell) not in left.values():
                yield place, cell, try_cell(cell, arenas[place], quick=quick, checkpoints=checkpoints)
        return
    missing_here: set[str] = set()
    for number, (place, cell) in enumerate(wanted, start=1):
        if cell_name(cell) in missing_here:
            continue
        tell(f"{number} of {len(wanted)}: seed {arenas[place].seed}, {_said(cell, labels)}")
        missing = try_cell(cell, arenas[place], quick=quick, checkpoints=checkpoints)
        if missing:
            missing_here.add(cell_name(cell))
        yield place, cell, missing


def _said(cell: Cell, labels: Mapping[str, str]) -> str:
    return f"{labels[cell_name(cell)]}, {cell.protocol}"


def _names(request: Request) -> tuple[str, ...]:
    if "all" in request.what:
        return (*(QUICK_TABLES if request.quick else TABLES), FIGURE)
    for name in request.what:
        if name not in TABLES and name != FIGURE:
            raise ConfigError(f"{name!r}: no such table. There are: {', '.join(TABLES)}, {FIGURE}, all.")
    return tuple(dict.fromkeys(request.what))


def _figure(arena: Arena, folder: Path, *, quick: bool, tell: Callable[[str], None]) -> str:
    """Measured once: what is there is found again."""
    path = folder / f"{FIGURE}.json"
    if not path.exists():
        tell("queries a second against the size of the pool")
        work = arena.folder / f"{FIGURE}.work"
        work.mkdir(parents=True, exist_ok=True)
        artifact.write_json(path, figure4.measure(arena, work, quick=quick))
        shutil.rmtree(work, ignore_errors=True)
    text = figure4.as_markdown(artifact.read_json(path))
    (folder / f"{FIGURE}.md").write_text(text + "\n", encoding="utf-8")
    return text


def _write(
    names: Sequence[str], results: dict[str, dict[int, list[Record]]], folder: Path, track_name: str
) -> dict[str, str]:
    """After every cell that is new, so that a run of hours can be watched. Tests of all rows take seconds."""
    written = {}
    for name in names:
        if name not in TABLES:
            continue
        measured = filled(TABLES[name], results)
        if not measured:
            continue
        text = as_markdown(TABLES[name], measured, track_name)
        (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
        artifact.write_json(folder / f"{name}.json", as_json(TABLES[name], measured, track_name))
        written[name] = text
    return written
