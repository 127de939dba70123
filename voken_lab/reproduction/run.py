"""`voken reproduce`: the paper's tables and figures on one track. A run can be stopped and continued at any time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from voken import artifact
from voken.data.skipped import Skipped
from voken.encoders.cache import VectorCache
from voken.errors import ConfigError
from voken.progress import Progress, no_progress
from voken_lab.reproduction import figure4, figure5
from voken_lab.reproduction.cells import Cell, canonical_cell, cost_of, folder_of, is_measured, run_cell, try_cell
from voken_lab.reproduction.experiment import Experiment
from voken_lab.reproduction.page import write_report
from voken_lab.reproduction.processes import measure_in_processes
from voken_lab.reproduction.results import cell_key, measured_lines, table_json, table_markdown
from voken_lab.reproduction.tables import OURS, TABLES, Line, Record, cells_of
from voken_lab.reproduction.tracks import track

FIGURES = {"figure4": (), "figure5": (Line("AVG", OURS, first_seed_only=True),)}
"""The figures, with the lines whose cells they show."""
QUICK_TABLES = ("table1", "table3", "table7")

PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to reproduce. `what` holds names of tables, "figure4", "figure5", or "all"."""

    what: tuple[str, ...]
    track: str
    data: Path
    out: Path
    images: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    """Use a sixth of the concepts and small settings, to see it work; "all" is then three tables and both figures."""
    transductive: bool = False
    """Also measure the transductive protocol, in a column of its own."""
    settings: tuple[tuple[str, str], ...] = ()
    """Dotted settings that replace the track's."""
    cache: Path | None = None
    captioner: str = ""
    """BLIP weights that caption the pool if `transductive`; "": the nearest training captions are used."""
    checkpoints: str = ""
    """Folder of the backbones' weights, or "hub" to download them."""
    jobs: int = 1
    """Number of processes that measure cells, each with `threads` threads; see `measure_in_processes`."""
    threads: int = 0
    """0: the processes share the processor's cores."""

    def names(self) -> tuple[str, ...]:
        """The tables and figures, each once. Raises `ConfigError` for an unknown name."""
        if "all" in self.what:
            return (*(QUICK_TABLES if self.quick else TABLES), *FIGURES)
        for name in self.what:
            if name not in TABLES and name not in FIGURES:
                choices = ", ".join([*TABLES, *FIGURES, "all"])
                raise ConfigError(f"{name!r}: there is no such table or figure. Choose from: {choices}.")
        return tuple(dict.fromkeys(self.what))

    def experiment(self, seed: int, progress: Progress) -> Experiment:
        """The experiment of a seed. Raises `ConfigError` for an unknown track, `DataError` if `data` is no data set."""
        chosen = track(self.track)
        return Experiment(
            chosen,
            chosen.read(self.data, self.images, seed, quick=self.quick),
            chosen.config(seed, quick=self.quick).override(dict(self.settings)),
            self.out / chosen.name / f"seed-{seed}{'-quick' if self.quick else ''}",
            VectorCache(self.cache or self.out / "vectors"),
            progress,
            self.captioner,
            self.checkpoints,
            self.quick,
        )


def reproduce(
    request: Request, *, print_line: PrintLine = lambda line: None, progress: Progress = no_progress
) -> dict[str, str]:
    """Measure what is not measured yet; write OUT/TRACK/tableN.md and .json, figureN.md and .json and index.html.

    Cells are saved in OUT/TRACK/seed-S/: the same call continues where it was stopped, and tables share cells. A
    system that cannot be built on this machine (no weights, a missing extra) has no row; `print_line` reports it.
    Returns the Markdown by table. Raises `ConfigError` for an unknown table or track.
    """
    names = request.names()
    folder = request.out / track(request.track).name
    lines = [line for name in names for line in (TABLES[name].lines if name in TABLES else FIGURES[name])]
    left_out: dict[int, tuple[Skipped, ...]] = {}

    @cache
    def experiment_of(seed: int) -> Experiment:
        experiment = request.experiment(seed, progress)
        left_out[seed] = skipped = experiment.dataset.skipped
        if skipped:
            print_line(f"seed {seed}: {len(skipped)} pictures left out, such as {skipped[0].path}: {skipped[0].reason}")
        return experiment

    runner = _CellRunner(request, lines, experiment_of, print_line)
    results: dict[str, dict[int, list[Record]]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for experiment, cell, is_new in runner.cells():
        results.setdefault(cell_key(cell), {})[experiment.seed] = run_cell(cell, experiment)
        cell_folder = str(folder_of(cell, experiment).relative_to(folder))
        if cell_folder not in costs:  # two names can mean the same cell
            name = _cell_name(canonical_cell(cell, experiment))
            origin = {"cell": name, "seed": experiment.seed, "protocol": cell.protocol, "folder": cell_folder}
            costs[cell_folder] = origin | cost_of(cell, experiment)
        if is_new:  # so that a run of hours can be watched
            _write_tables(names, results, folder)
    written = _write_tables(names, results, folder)
    for name in FIGURES:
        if name in names:
            experiment = experiment_of(request.seeds[0])
            figure = _figure4(experiment, print_line) if name == "figure4" else _figure5(experiment)
            written[name] = figure4.as_markdown(figure) if name == "figure4" else figure5.as_markdown(figure)
            _write(folder, name, figure, written[name])
    request_json = {name: str(value) if isinstance(value, Path) else value for name, value in vars(request).items()}
    artifact.write_json(
        folder / "run.json",
        {
            "request": request_json,
            "written": list(written),
            "costs": list(costs.values()),
            "left out": runner.left_out,
            "pictures left out": {str(seed): [vars(item) for item in skipped] for seed, skipped in left_out.items()},
        },
    )
    if written:
        print_line(f"page: {write_report(folder)}")
    return written


class _CellRunner:
    """Runs the cells of `lines`; `left_out` says why a cell could not be built, by the cell's name."""

    def __init__(
        self,
        request: Request,
        lines: Sequence[Line],
        experiment_of: Callable[[int], Experiment],
        print_line: PrintLine,
    ) -> None:
        self.left_out: dict[str, str] = {}
        self._request = request
        self._experiment_of = experiment_of
        self._print_line = print_line
        cells = [cell for cell in cells_of(lines) if request.transductive or cell.protocol == "inductive"]
        # Messages name a cell by the first row that it fills.
        self._labels = {
            cell_key(cell): line.label for line in reversed(lines) for cell in (line.cell, line.transductive)
        }
        every_seed = [line.cell for line in lines if not line.first_seed_only]
        first_only = [line.cell for line in lines if line.first_seed_only and line.cell not in every_seed]
        self._seeds_and_cells = [
            (seed, cell)
            for seed in request.seeds
            for cell in cells
            if seed == request.seeds[0] or cell not in first_only
        ]

    def cells(self) -> Iterator[tuple[Experiment, Cell, bool]]:
        """Yield each (experiment, cell) once its rows are on disk, and whether they are new."""
        return self._in_turn() if self._request.jobs == 1 else self._in_parallel()

    def _in_turn(self) -> Iterator[tuple[Experiment, Cell, bool]]:
        for number, (seed, cell) in enumerate(self._seeds_and_cells, start=1):
            if _cell_name(cell) in self.left_out:
                continue
            experiment = self._experiment_of(seed)
            self._print_line(f"{number} of {len(self._seeds_and_cells)}: {self._describe(seed, cell)}")
            is_new = not is_measured(cell, experiment)
            missing = try_cell(cell, experiment) if is_new else ""
            if missing:
                self._leave_out(cell, missing)
            else:
                yield experiment, cell, is_new

    def _in_parallel(self) -> Iterator[tuple[Experiment, Cell, bool]]:
        experiments = {seed: self._experiment_of(seed) for seed, _ in self._seeds_and_cells}
        unmeasured: dict[Path, list[tuple[int, Cell]]] = {}  # by folder: two names can mean the same cell
        for seed, cell in self._seeds_and_cells:
            if is_measured(cell, experiments[seed]):
                yield experiments[seed], cell, False
            else:
                unmeasured.setdefault(folder_of(cell, experiments[seed]), []).append((seed, cell))
        if not unmeasured:
            return
        jobs = self._request.jobs
        threads = self._request.threads or max(1, (os.cpu_count() or 1) // jobs)
        firsts = [same[0] for same in unmeasured.values()]
        finished = measure_in_processes(experiments, firsts, jobs=jobs, threads=threads)
        for number, (seed, cell, missing) in enumerate(finished, start=1):
            self._print_line(f"{number} of {len(unmeasured)} done: {self._describe(seed, cell)}")
            if missing:
                self._leave_out(cell, missing)
                continue
            for _, same in unmeasured[folder_of(cell, experiments[seed])]:
                yield experiments[seed], same, True

    def _leave_out(self, cell: Cell, reason: str) -> None:
        name = _cell_name(cell)
        if name not in self.left_out:
            self._print_line(f"left out: {name}: {reason}")
            self.left_out[name] = reason

    def _describe(self, seed: int, cell: Cell) -> str:
        return f"seed {seed}, {self._labels[cell_key(cell)]}, {cell.protocol}"


def _cell_name(cell: Cell) -> str:
    return " ".join([cell.builder, *cell.settings.values()])


def _figure4(experiment: Experiment, print_line: PrintLine) -> dict[str, Any]:
    """Figure 4, measured once and then read from disk as a cell is."""
    path = experiment.folder / f"figure4-{figure4.key(experiment)}.json"
    if not path.exists():
        print_line("queries per second against the size of the pool")
        work = path.with_suffix(".work")
        work.mkdir(parents=True, exist_ok=True)
        artifact.write_json(path, figure4.measure(experiment, work))
        shutil.rmtree(work, ignore_errors=True)
    figure: dict[str, Any] = artifact.read_json(path)
    return figure


def _figure5(experiment: Experiment) -> dict[str, Any]:
    pictures = artifact.read_json(folder_of(OURS, experiment) / "sequences.json")["pictures"]
    return figure5.measure(pictures, experiment.track.name)


def _write_tables(names: Sequence[str], results: dict[str, dict[int, list[Record]]], folder: Path) -> dict[str, str]:
    """Write every table that has a measured row; return the Markdown by table. Testing every row takes seconds."""
    written = {}
    for name in names:
        measured = measured_lines(TABLES[name], results) if name in TABLES else []
        if measured:
            table = table_json(TABLES[name], measured, folder.name)
            written[name] = table_markdown(table)
            _write(folder, name, table, written[name])
    return written


def _write(folder: Path, name: str, values: dict[str, Any], markdown: str) -> None:
    artifact.write_json(folder / f"{name}.json", values)
    (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
