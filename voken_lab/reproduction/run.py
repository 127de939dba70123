"""`voken reproduce`: the tables and figures of the paper, on one track, from one command that can be stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from voken import artifact
from voken.errors import ConfigError
from voken.progress import Progress, no_progress
from voken_lab.reproduction import figure4, figure5
from voken_lab.reproduction.arena import Arena
from voken_lab.reproduction.cells import Cell, cost_of, folder_of, is_kept, run_cell, told_once, try_cell
from voken_lab.reproduction.page import write_report
from voken_lab.reproduction.processes import in_processes
from voken_lab.reproduction.tables import OURS, TABLES, Line, Record, as_json, as_markdown, cell_name, cells_of, filled
from voken_lab.reproduction.tracks import track

FIGURES = {"figure4": (), "figure5": (Line("AVG", OURS, once=True),)}
"""With the cells that they show."""
QUICK_TABLES = ("table1", "table3", "table7")


@dataclass(frozen=True)
class Request:
    """What to reproduce. `what` are names of tables, "figure4", "figure5", or "all"."""

    what: tuple[str, ...]
    track: str
    data: Path
    out: Path
    images: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """A sixth of the concepts, small settings, and of "all" three tables and both figures: for a look, and for CI."""
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
    lines = [line for name in names for line in (TABLES[name].lines if name in TABLES else FIGURES[name])]
    cells = [cell for cell in cells_of(lines) if request.transductive or cell.protocol == "inductive"]
    # a cell is told by the first row it fills
    labels = {cell_name(cell): line.label for line in reversed(lines) for cell in (line.cell, line.transductive)}
    always = [line.cell for line in lines if not line.once]
    once = [line.cell for line in lines if line.once and line.cell not in always]
    wanted = [(seed, cell) for seed in request.seeds for cell in cells if seed == request.seeds[0] or cell not in once]

    @cache
    def arena_of(seed: int) -> Arena:
        return Arena.open(
            chosen,
            request.data,
            request.out,
            seed,
            images=request.images,
            quick=request.quick,
            settings=dict(request.settings),
            cache=request.cache,
            progress=progress,
            captioner=request.captioner,
        )

    results: dict[str, dict[int, list[Record]]] = {}
    costs: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for arena, cell, new in _measured(request, wanted, arena_of, labels, absent, tell):
        results.setdefault(cell_name(cell), {})[arena.seed] = run_cell(cell, arena, quick=request.quick)
        kept = str(folder_of(cell, arena, quick=request.quick).relative_to(folder))
        if kept not in costs:  # cells of two names may be one
            words = _words(told_once(cell, arena))
            which = {"cell": words, "seed": arena.seed, "protocol": cell.protocol, "folder": kept}
            costs[kept] = which | cost_of(cell, arena, quick=request.quick)
        if new:
            _write(names, results, folder, request.track)
    written = _write(names, results, folder, request.track)
    if "figure4" in names:
        written["figure4"] = _figure4(arena_of(request.seeds[0]), folder, quick=request.quick, tell=tell)
    if "figure5" in names:
        written["figure5"] = _figure5(arena_of(request.seeds[0]), folder, quick=request.quick)
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(request).items()}
    run = {"request": asked, "written": list(written), "costs": list(costs.values()), "left out": absent}
    artifact.write_json(folder / "run.json", run)
    if written:
        tell(f"page: {write_report(folder)}")
    return written


def _measured(
    request: Request,
    wanted: Sequence[tuple[int, Cell]],
    arena_of: Callable[[int], Arena],
    labels: Mapping[str, str],
    absent: dict[str, str],
    tell: Callable[[str], None],
) -> Iterator[tuple[Arena, Cell, bool]]:
    """Every pair (seed, cell) as soon as its rows are kept, and whether they are new.

    What cannot be built is told, and `absent` says why.
    """
    quick, checkpoints = request.quick, request.checkpoints

    def built(cell: Cell, missing: str) -> bool:
        if missing and _words(cell) not in absent:
            tell(f"left out: {_words(cell)}: {missing}")
            absent[_words(cell)] = missing
        return not missing

    if request.jobs > 1:
        arenas = {seed: arena_of(seed) for seed, _ in wanted}
        left: dict[Path, list[tuple[int, Cell]]] = {}  # by folder: cells of two names may be one
        for seed, cell in wanted:
            if is_kept(cell, arenas[seed], quick=quick):
                yield arenas[seed], cell, False
            else:
                left.setdefault(folder_of(cell, arenas[seed], quick=quick), []).append((seed, cell))
        if not left:
            return
        threads = request.threads or max(1, (os.cpu_count() or 1) // request.jobs)
        firsts = [alike[0] for alike in left.values()]
        done = in_processes(arenas, firsts, jobs=request.jobs, threads=threads, quick=quick, checkpoints=checkpoints)
        for number, (seed, cell, missing) in enumerate(done, start=1):
            tell(f"{number} of {len(left)} done: seed {seed}, {_said(cell, labels)}")
            if built(cell, missing):
                for _, alike in left[folder_of(cell, arenas[seed], quick=quick)]:
                    yield arenas[seed], alike, True
        return
    for number, (seed, cell) in enumerate(wanted, start=1):
        if _words(cell) in absent:
            continue
        arena = arena_of(seed)
        tell(f"{number} of {len(wanted)}: seed {seed}, {_said(cell, labels)}")
        new = not is_kept(cell, arena, quick=quick)
        if built(cell, try_cell(cell, arena, quick=quick, checkpoints=checkpoints) if new else ""):
            yield arena, cell, new


def _words(cell: Cell) -> str:
    return " ".join([cell.builder, *cell.settings.values()])


def _said(cell: Cell, labels: Mapping[str, str]) -> str:
    return f"{labels[cell_name(cell)]}, {cell.protocol}"


def _names(request: Request) -> tuple[str, ...]:
    if "all" in request.what:
        return (*(QUICK_TABLES if request.quick else TABLES), *FIGURES)
    for name in request.what:
        if name not in TABLES and name not in FIGURES:
            raise ConfigError(f"{name!r}: no such table. There are: {', '.join([*TABLES, *FIGURES])}, all.")
    return tuple(dict.fromkeys(request.what))


def _figure4(arena: Arena, folder: Path, *, quick: bool, tell: Callable[[str], None]) -> str:
    """Measured once, as a cell is: what the same settings gave is found again."""
    kept = arena.folder / f"figure4-{figure4.key(arena, quick=quick)}.json"
    if not kept.exists():
        tell("queries a second against the size of the pool")
        work = kept.with_suffix(".work")
        work.mkdir(parents=True, exist_ok=True)
        artifact.write_json(kept, figure4.measure(arena, work, quick=quick))
        shutil.rmtree(work, ignore_errors=True)
    found = artifact.read_json(kept)
    return _write_figure(folder, found, figure4.as_markdown(found))


def _figure5(arena: Arena, folder: Path, *, quick: bool) -> str:
    pictures = artifact.read_json(folder_of(OURS, arena, quick=quick) / "sequences.json")["pictures"]
    found = figure5.measure(pictures, arena.track.name)
    return _write_figure(folder, found, figure5.as_markdown(found))


def _write_figure(folder: Path, found: dict[str, Any], text: str) -> str:
    artifact.write_json(folder / f"{found['figure']}.json", found)
    (folder / f"{found['figure']}.md").write_text(text + "\n", encoding="utf-8")
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
