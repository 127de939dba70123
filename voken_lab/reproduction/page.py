"""The results of a reproduction as one HTML page.

This module reads the files that `voken_lab.reproduction.run` wrote and measures nothing. The paper's figures and
measured ones never share a column or an axis.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from voken import artifact
from voken.errors import DataError
from voken_lab.evaluation.machine import processor_of
from voken_lab.evaluation.protocol import spread
from voken_lab.pages.charts import Chart, LabelledPoint, Point, bars, lines, scatter
from voken_lab.pages.page import HitCard, PairCard, PairSection, Picture, duration, render, write_page
from voken_lab.reproduction.figure5 import pair_groups_of
from voken_lab.reproduction.results import bytes_with_memory, columns, footer, percent, recall_of, value_range
from voken_lab.reproduction.tables import COCO, FLICKR, TABLES, Record

_QUICK = "A sixth of the concepts and small settings. It shows that everything works and reproduces nothing."
_PROTOCOL = (
    "Inductive: training sees nothing of the pool’s pictures, and no text about them is used before the queries. R@K "
    "is the share of queries with a right picture among the first K hits, with the expected value for ties; ± is the "
    "standard deviation over seeds."
)
_TRANSDUCTIVE = " In the columns called transductive, training also reads captions generated for the pool."
_DIFFERENCES = (
    "In percentage points, from AVG’s row in bold or from the row that is named, over the same queries. In brackets is "
    "the p-value of a paired bootstrap that draws queries with the same right pictures together."
)
_PAPER = (
    "They are of photographs (Flickr30K and MS-COCO) and of larger encoders and language models. On another data set, "
    "compare the order of the systems and the gaps between them, not the figures."
)
_OPEN_CASES = 5
_MISSED_SHOWN = 3
_GROUPS = {
    "": "",
    "the paper says": "the paper says",
    "inductive": "measured here, inductive",
    "transductive": "measured here, transductive",
    "cost": "measured here, cost",
}
_SWEEPS = {
    "table4": ("codebook entries N", True),
    "table5": ("vokens per picture M", False),
    "table7": ("beams", False),
}
"""Title of the x axis, and whether the axis is logarithmic."""
_CUTOFFS = (1, 5, 10)


def write_report(folder: Path) -> Path:
    """Write `folder`/index.html from the tables, figures, run.json and cells in `folder`; return the page's path.

    `folder` is OUT/TRACK of a reproduction. A missing file has no section. Raises `DataError` if nothing was
    measured, `CorruptArtifactError` if a file cannot be read, `StorageError` if the disk refuses.
    """
    path = Path(folder) / "index.html"
    write_page(path, _render(_SavedRun(Path(folder))))
    return path


@dataclass(frozen=True)
class _SavedRun:
    """The files of a reproduction."""

    folder: Path

    @cached_property
    def run(self) -> dict[str, Any]:
        """run.json; empty if no run has ended."""
        return self._read("run.json") or {}

    @cached_property
    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables that have lines, by name, in the paper's order."""
        tables = {path.stem: artifact.read_json(path) for path in sorted(self.folder.glob("table*.json"))}
        # A table without comparisons is of an earlier version; the next run writes it again from its cells.
        return {name: table for name, table in tables.items() if any("comparison" in line for line in table["lines"])}

    @cached_property
    def figure4(self) -> dict[str, Any] | None:
        """The measured Figure 4. Figure 5 is drawn from our cell, which has the pictures."""
        return self._read("figure4.json")

    @property
    def track(self) -> str:
        """The track's name. Raises `DataError` if nothing was measured."""
        for saved in (*self.tables.values(), self.figure4, self._read("figure5.json")):
            if saved is not None:
                return str(saved["track"])
        raise DataError(f"{self.folder}: nothing was measured there. Run `voken reproduce` first.")

    @cached_property
    def current(self) -> dict[str, dict[str, Any]]:
        """The tables of the last run. Other tables may have other settings, so the charts leave them out."""
        written = self.run.get("written", list(self.tables))
        return {name: table for name, table in self.tables.items() if name in written}

    @cached_property
    def records(self) -> list[Record]:
        """The records of the last run's tables, of both protocols."""
        lines = [line for table in (self.current or self.tables).values() for line in table["lines"]]
        return [record for line in lines for record in (*line["inductive"], *line["transductive"])]

    @cached_property
    def our_cell(self) -> Path | None:
        """The inductive cell of our system with the first seed."""
        costs = self.run.get("costs")
        if costs is None:
            cells = sorted(self.folder.glob("seed-*/ours-inductive-*"))
        else:
            ours = [cost for cost in costs if (cost["cell"], cost["protocol"]) == ("ours", "inductive")]
            by_seed = sorted(ours, key=lambda cost: int(cost["seed"]))
            cells = [self.folder / cost["folder"] for cost in by_seed if "folder" in cost]
        return next((cell for cell in cells if (cell / "evaluations.json").exists()), None)

    def from_our_cell(self, name: str, key: str) -> list[dict[str, Any]]:
        """A list in a file of our cell; empty if there is none."""
        if self.our_cell is None or not (self.our_cell / name).exists():
            return []
        values: list[dict[str, Any]] = artifact.read_json(self.our_cell / name).get(key, [])
        return values

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return artifact.read_json(path) if path.exists() else None


def _render(saved: _SavedRun) -> str:
    track = saved.track
    pictures = saved.from_our_cell("sequences.json", "pictures")
    captions = {picture["id"]: str(picture["captions"][0]) for picture in pictures if picture["captions"]}
    ablations = _ablations(saved.current.get("table3"))
    trade_offs = _trade_offs(saved)
    return render(
        "reproduction.html",
        title=f"The paper’s tables, measured on {track}",
        lead="“Revolutionizing Text-to-Image Retrieval as Autoregressive Token-to-Token Generation” (AVG), implemented "
        f"again and measured on the data set {track}. Grey, striped columns show the paper’s figures; everything else "
        "on this page was measured here.",
        facts=list(_facts(saved)),
        about=list(_about(saved)),
        command=_command(saved.run.get("request", {})),
        left_out=saved.run.get("left out", {}),
        costs=saved.run.get("costs", []),
        is_complete=bool(saved.run),
        tables=[_TableSection.of(saved, name) for name in saved.tables],
        ablations=ablations,
        ablations_have_spread=any("±" in chart.svg for chart in ablations),
        sweeps=list(_sweeps(saved)),
        figure4=_SpeedSection.of(saved.figure4) if saved.figure4 else None,
        trade_offs=trade_offs,
        by_bytes=scatter(
            "R@10 (%) against bytes stored per picture",
            "bytes per picture (logarithmic)",
            [row.point_at(row.stored) for row in trade_offs if row.stored],
        ),
        by_speed=scatter(
            "R@10 (%) against queries per second",
            "queries per second, everything included (logarithmic)",
            [row.point_at(row.speed) for row in trade_offs if row.speed > 0],
        ),
        pair_groups=_pair_groups(pictures),
        cases=[_Case.of(case, captions) for case in saved.from_our_cell("cases.json", "cases")],
        open_cases=_OPEN_CASES,
    )


def _facts(saved: _SavedRun) -> Iterator[tuple[str, str]]:
    records = saved.records
    if records:
        yield value_range({record["pool_size"] for record in records}), "pictures in the pool"
        yield value_range({record["query_count"] for record in records}), "queries per seed"
        seeds = sorted({record["seed"] for record in records})
        yield ", ".join(map(str, seeds)), "seed" if len(seeds) == 1 else "seeds"
    yield f"{len(saved.tables)} of {len(TABLES)}", "tables of the paper"
    costs = saved.run.get("costs")
    if costs:
        yield duration(sum(cost["seconds"] for cost in costs)), "for all systems together"


def _about(saved: _SavedRun) -> Iterator[tuple[str, str]]:
    """Terms and their explanations."""
    records, costs = saved.records, saved.run.get("costs", [])
    if saved.run.get("request", {}).get("quick"):
        yield "A quick run", _QUICK
    is_transductive = any(record["protocol"] == "transductive" for record in records)
    yield "Protocol", _PROTOCOL + (_TRANSDUCTIVE if is_transductive else "")
    if any(line["comparison"] for table in saved.tables.values() for line in table["lines"]):
        yield "Differences", _DIFFERENCES
    pools = ", ".join(dict.fromkeys(f"{record['dataset']}: {record['pool']}" for record in records))
    if pools:
        yield "Pool", f"{pools}."
    yield "The paper’s figures", _PAPER
    measured = [*records, *costs, *([saved.figure4] if saved.figure4 else [])]
    yield "Machine", "; ".join(dict.fromkeys(_machine(values["machine"]) for values in measured)) + "."
    versions = ", ".join(dict.fromkeys(str(cost["voken"]) for cost in costs))
    if versions:
        yield "voken", versions


def _command(request: Mapping[str, Any]) -> str:
    """The command line of a request; "" if it is not known."""
    if not request:
        return ""
    words = ["voken", "reproduce", *request["what"]]
    for name in ("track", "data", "out", "images", "cache", "captioner", "checkpoints"):
        words += [f"--{name}", request[name]] if request.get(name) else []
    for seed in request["seeds"]:
        words += ["--seed", str(seed)]
    words += [f"--{name}" for name in ("quick", "transductive") if request.get(name)]
    for name, value in request.get("settings", ()):
        words += ["--set", f"{name}={value}"]
    return shlex.join(map(str, words))


@dataclass(frozen=True)
class _TableSection:
    """A table of the paper. A row is its cells and its CSS class; a group is a title, columns it spans, a CSS class."""

    name: str
    title: str
    heads: list[str]
    kinds: list[str]
    groups: list[tuple[str, int, str]]
    rows: list[tuple[tuple[str, ...], str]]
    notes: list[str]

    @classmethod
    def of(cls, saved: _SavedRun, name: str) -> _TableSection:
        table = saved.tables[name]
        table_columns = columns(table)
        is_compared = any(line["comparison"] for line in table["lines"])
        labels = {line["label"] for line in table["lines"]}
        missing = [line.label for line in TABLES[name].lines if line.label not in labels] if name in TABLES else []
        notes = [str(table["note"]), footer(table), f"Not measured: {', '.join(missing)}." if missing else ""]
        if name not in saved.current:
            notes.append(
                "This table is of an earlier run, which may have had other settings than the rest of the page."
            )
        groups = [(group, len(list(members))) for group, members in groupby(column.group for column in table_columns)]
        rows = zip(*(column.cells for column in table_columns), strict=True)
        return cls(
            name,
            str(table["title"]),
            # The three recalls of a head stay on one line.
            [column.head.replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}") for column in table_columns],
            [_kind(column.group) for column in table_columns],
            [(_GROUPS[group], span, _kind(group)) for group, span in groups],
            [
                (cells, "highlight" if is_compared and _is_reference(line) else "")
                for line, cells in zip(table["lines"], rows, strict=True)
            ],
            [note for note in notes if note],
        )


def _kind(group: str) -> str:
    return "paper" if group == "the paper says" else group


def _is_reference(line: Mapping[str, Any]) -> bool:
    """Whether the other rows are compared with this one."""
    first = line["inductive"][0] if line["inductive"] else {}
    is_ours = (first.get("system"), first.get("readout")) == ("AVG", "generate")
    return is_ours and not line["comparison"] and not line["compared with"]


def _ablations(table: Mapping[str, Any] | None) -> list[Chart]:
    rows = table["lines"] if table else []
    recalls = [(str(row["label"]), _recall_point(row["inductive"], 10)) for row in rows]
    measured = [(label, point.y, point.spread) for label, point in recalls if point is not None]
    if not measured:
        return []
    charts = [bars("Measured here: R@10, %", measured)]
    for name in (FLICKR, COCO):
        paper = [(str(row["label"]), row["the paper says"].get(name, (None,) * 3)[2]) for row in rows]
        values = [(label, float(value), None) for label, value in paper if value is not None]
        charts += [bars(f"The paper says ({name}): R@10, %", values, paper=True)] if values else []
    return charts


def _sweeps(saved: _SavedRun) -> Iterator[tuple[str, list[Chart]]]:
    """The title and the charts of each sweep: the measured one, then the paper's."""
    for name, (x_title, log) in _SWEEPS.items():
        if name not in saved.current:
            continue
        table = saved.current[name]
        measured: dict[str, list[Point]] = {f"R@{k}": [] for k in _CUTOFFS}
        paper: dict[str, dict[str, list[Point]]] = {}
        for line in table["lines"]:
            x = _swept_value(name, line["inductive"])
            if x is None:
                continue
            for place, k in enumerate(_CUTOFFS):
                point = _recall_point(line["inductive"], k, x)
                measured[f"R@{k}"] += [] if point is None else [point]
                for dataset, figures in line["the paper says"].items():
                    series = paper.setdefault(dataset, {f"R@{k}": [] for k in _CUTOFFS})
                    series[f"R@{k}"] += [] if figures[place] is None else [Point(x, float(figures[place]))]
        charts = [lines("Measured here, %", x_title, measured, log=log)]
        for dataset, series in paper.items():
            charts.append(lines(f"The paper says ({dataset}), %", x_title, series, log=log, paper=True))
        yield str(table["title"]), [chart for chart in charts if chart is not None]


def _swept_value(name: str, records: Sequence[Record]) -> float | None:
    """The x value of a line of a sweep."""
    if not records:
        return None
    tokenizer = records[0]["config"].get("tokenizer", {})
    values = {
        "table4": tokenizer.get("codebook_size"),
        "table5": tokenizer.get("levels"),
        "table7": records[0]["beams"],
    }
    return None if values[name] is None else float(values[name])


@dataclass(frozen=True)
class _SpeedSection:
    """Figure 4 as a chart and a table; a row is its cells and its CSS class."""

    title: str
    note: str
    chart: Chart | None
    heads: list[str]
    rows: list[tuple[list[str], str]]

    @classmethod
    def of(cls, figure: Mapping[str, Any]) -> _SpeedSection:
        sizes = figure["sizes"]
        series = {
            name: [Point(float(size), float(speeds[str(size)])) for size in sizes]
            for name, speeds in figure["queries_per_second"].items()
        }
        return cls(
            str(figure["title"]),
            f"{figure['beams']} beams. Vectors and sequences are random, so that a pool can have any size: speed does "
            f"not depend on their content. {_machine(figure['machine'])}.",
            lines("Measured here: queries per second, one at a time", "pictures (logarithmic)", series, log=True),
            ["", *(f"{size:,}" for size in sizes), "largest / smallest"],
            [
                ([name, *(f"{point.y:,.1f}" for point in line), f"{line[-1].y / line[0].y:.2f}"], "")
                for name, line in series.items()
            ],
        )


@dataclass(frozen=True)
class _TradeOff:
    """A system's recall and what it costs."""

    label: str
    recall: str
    y: float
    spread: float | None
    stored: float | None
    speed: float
    is_ours: bool

    def point_at(self, x: float) -> LabelledPoint:
        return LabelledPoint(self.label, Point(x, self.y, self.spread), self.is_ours)


def _trade_offs(saved: _SavedRun) -> list[_TradeOff]:
    rows: dict[str, _TradeOff] = {}
    tables = [saved.current[name] for name in ("table1", "table2", "table6") if name in saved.current]
    for line in [line for table in tables for line in table["lines"]]:
        records = line["inductive"]
        recall = recall_of(records, 10)
        if recall is None:
            continue
        # The same system has rows in several tables, sometimes under other labels.
        key = json.dumps([records[0][part] for part in ("system", "readout", "beams", "config")], sort_keys=True)
        mean, deviation = recall
        rows.setdefault(
            key,
            _TradeOff(
                str(line["label"]),
                percent(*recall),
                100 * mean,
                None if deviation is None else 100 * deviation,
                bytes_with_memory(records[0]),
                spread(records).mean["queries_per_second"],
                records[0]["system"].startswith("AVG"),
            ),
        )
    return list(rows.values())


def _pair_groups(pictures: Sequence[Mapping[str, Any]]) -> list[PairSection]:
    if len(pictures) < 2:
        return []
    named = [_picture(picture, " · ".join(picture["captions"])) for picture in pictures]
    levels = len(pictures[0]["vokens"])
    titles = {  # of short sequences, later ones win
        levels - 1: "All but the last voken in common",
        1: "The first voken in common, the second not",
        levels: "The same sequence",
        0: "No voken in common",
    }
    sections = []
    for group in pair_groups_of(pictures):
        longest = f"The first {group.shared} of {levels} vokens in common, the longest start that two sequences share"
        note = ""
        if group.overlap is not None:
            pairs = "1 pair" if group.total == 1 else f"{group.total:,} pairs"
            note = f"{pairs}; overlap of the captions’ words {100 * group.overlap:.1f} % on average."
        cards = tuple(PairCard(named[first], named[second], group.shared) for first, second in group.shown)
        sections.append(PairSection(titles.get(group.shared, longest), note, cards))
    return sections


@dataclass(frozen=True)
class _Case:
    """A query, its hits, and right pictures that are not among them."""

    text: str
    hits: list[HitCard]
    missed: list[Picture]
    missed_total: int
    is_success: bool
    is_first: bool

    @classmethod
    def of(cls, case: Mapping[str, Any], captions: Mapping[str, str]) -> _Case:
        relevant = {picture["id"] for picture in case["relevant"]}
        right = [hit["id"] in relevant for hit in case["answers"]]
        missed = [] if any(right) else case["relevant"]

        def named(picture: Mapping[str, Any]) -> Picture:
            return _picture(picture, captions.get(picture["id"], str(picture["id"])))

        return cls(
            str(case["text"]),
            [HitCard(named(hit), hit["score"], is_right) for hit, is_right in zip(case["answers"], right, strict=True)],
            [named(picture) for picture in missed[:_MISSED_SHOWN]],
            len(missed),
            any(right),
            any(right[:1]),
        )


def _picture(picture: Mapping[str, Any], name: str) -> Picture:
    return Picture(Path(picture["path"]), name, tuple(picture.get("vokens", ())))


def _recall_point(records: Sequence[Record], k: int, x: float = 0.0) -> Point | None:
    """R@`k` in percent."""
    recall = recall_of(records, k)
    if recall is None:
        return None
    mean, deviation = recall
    return Point(x, 100 * mean, None if deviation is None else 100 * deviation)


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [processor_of(machine)]
    threads = machine.get("threads")
    parts += [f"torch on {threads} thread{'s' if threads > 1 else ''}"] if threads else []
    parts += [str(machine["accelerator"])] if machine.get("accelerator") else []
    parts += [f"{name} {machine[name]}" for name in ("python", "torch", "numpy") if machine.get(name)]
    return ", ".join(parts)
