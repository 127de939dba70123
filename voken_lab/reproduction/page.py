"""What a reproduction found, as one HTML page that needs nothing beside it.

It reads what `voken_lab.reproduction.run` wrote and measures nothing. Figures of the paper and measured ones never
share a column or an axis.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from voken import artifact
from voken.errors import DataError
from voken_lab.evaluation.machine import processor_of
from voken_lab.evaluation.protocol import spread
from voken_lab.pages.html import Picture, chips, document, half, image, section, table, write_html
from voken_lab.reproduction import charts
from voken_lab.reproduction.charts import Mark, Point, bars, lines, scatter
from voken_lab.reproduction.figure5 import PairGroup, pair_groups_of
from voken_lab.reproduction.results import columns, footer, recall_of
from voken_lab.reproduction.tables import TABLES, Record

_QUICK = "A sixth of the concepts and small settings: it shows that everything works, and reproduces nothing."
_TRANSDUCTIVE = "; in the columns called transductive, training also reads captions made for the pool"
_DIFFERENCES = (
    "In percentage points, from AVG’s row in bold or the one named, over the same queries; in brackets the p value of "
    "a paired bootstrap, which draws queries with the same right pictures together."
)
_OPEN_CASES = 5
_RIGHT_SHOWN = 3
_GROUPS = {
    "": "",
    "the paper says": "the paper says",
    "inductive": "measured here, inductive",
    "transductive": "measured here, transductive",
    "cost": "measured here, cost",
}
_SWEEPS = {
    "table4": ("codebook entries N", True),
    "table5": ("vokens a picture M", False),
    "table7": ("beams", False),
}
"""Title of the x axis, and whether it is logarithmic."""


def write_report(folder: Path) -> Path:
    """Write `folder`/index.html from the tables (tableN.json), figure4.json, run.json and cells in `folder`, OUT/TRACK
    of a reproduction, and return its path.

    What is not there, as a table not asked for, has no section. Raises `DataError` where there is nothing measured,
    `CorruptArtifactError` where a file cannot be read, `StorageError` where the disk refuses.
    """
    path = Path(folder) / "index.html"
    write_html(path, _render(_Found(Path(folder))))
    return path


@dataclass(frozen=True)
class _Found:
    """What lies in the folder."""

    folder: Path

    @cached_property
    def run(self) -> dict[str, Any]:
        """Empty where no run came to its end."""
        return self._held("run.json") or {}

    @cached_property
    def tables(self) -> dict[str, dict[str, Any]]:
        """By name, in the paper's order; each has lines."""
        read = {}
        for path in sorted(self.folder.glob("table*.json")):
            saved = artifact.read_json(path)
            # without comparisons it is of an earlier version: asked for again, it is written anew from its cells
            if any("comparison" in line for line in saved["lines"]):
                read[path.stem] = saved
        return read

    @cached_property
    def figure(self) -> dict[str, Any] | None:
        """The paper's Figure 4. Figure 5 is drawn from our cell, which has the pictures."""
        return self._held("figure4.json")

    @property
    def track(self) -> str:
        """Raises `DataError` where nothing was measured."""
        for saved in (*self.tables.values(), self.figure, self._held("figure5.json")):
            if saved is not None:
                return str(saved["track"])
        raise DataError(f"{self.folder}: nothing was measured there. Run `voken reproduce` first.")

    @cached_property
    def current(self) -> dict[str, dict[str, Any]]:
        """The tables of the last run; others may be of other settings, and are not drawn together with these."""
        named = self.run.get("written", list(self.tables))
        return {name: saved for name, saved in self.tables.items() if name in named}

    @cached_property
    def records(self) -> list[Record]:
        """Of the last run's tables, both protocols."""
        shown = self.current or self.tables
        return [
            record
            for saved in shown.values()
            for line in saved["lines"]
            for record in (*line["inductive"], *line["transductive"])
        ]

    @cached_property
    def ours(self) -> Path | None:
        """The cell of our system as it is, inductive, of the first seed."""
        costs = self.run.get("costs")
        if costs is None:
            cells = sorted(self.folder.glob("seed-*/ours-inductive-*"))
        else:
            named = [cost for cost in costs if (cost["cell"], cost["protocol"]) == ("ours", "inductive")]
            first = sorted(named, key=lambda cost: int(cost["seed"]))
            cells = [self.folder / cost["folder"] for cost in first if "folder" in cost]
        return next((cell for cell in cells if (cell / "evaluations.json").exists()), None)

    def _held(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        return artifact.read_json(path) if path.exists() else None

    def of_ours(self, name: str, key: str) -> list[dict[str, Any]]:
        """A list that our cell holds; empty where it does not."""
        if self.ours is None or not (self.ours / name).exists():
            return []
        held: list[dict[str, Any]] = artifact.read_json(self.ours / name).get(key, [])
        return held


def _render(found: _Found) -> str:
    track = found.track
    pictures = found.of_ours("sequences.json", "pictures")
    cases = found.of_ours("cases.json", "cases")
    sections = [
        section("about", "What this is", "", _about(found)),
        *(_table_section(found, name) for name in found.tables),
        _ablations(found),
        _sweeps(found),
        _figure(found.figure) if found.figure else "",
        _trade_offs(found),
        _pairs(pictures) if len(pictures) > 1 else "",
        _cases(cases, pictures) if cases else "",
    ]
    return document(
        f"The paper’s tables, measured on {track}",
        "“Revolutionizing Text-to-Image Retrieval as Autoregressive Token-to-Token Generation” (AVG), implemented "
        f"again and measured on the data set {track}. Grey, striped columns are what the paper says; all else on this "
        "page was measured here.",
        facts=_facts(found),
        sections=filter(None, sections),
        style=charts.STYLE + _STYLE,
    )


def _facts(found: _Found) -> Iterator[tuple[str, str]]:
    records = found.records
    if records:
        yield _range({record["pool_size"] for record in records}), "pictures in the pool"
        yield _range({record["query_count"] for record in records}), "queries a seed"
        seeds = sorted({record["seed"] for record in records})
        yield ", ".join(map(str, seeds)), "seed" if len(seeds) == 1 else "seeds"
    yield f"{len(found.tables)} of {len(TABLES)}", "tables of the paper"
    costs = found.run.get("costs")
    if costs:
        yield _duration(sum(cost["seconds"] for cost in costs)), "for all systems together"


def _about(found: _Found) -> str:
    records, asked = found.records, found.run.get("request", {})
    transductive = any(record["protocol"] == "transductive" for record in records)
    protocol = (
        "Inductive: training sees nothing of the pool’s pictures, and no text about them is used before the queries "
        f"are asked{_TRANSDUCTIVE if transductive else ''}. R@K is the share of queries with a right picture among the "
        "first K, ties counted by their expectation; ± is the standard deviation over seeds."
    )
    lines = []
    if asked.get("quick"):
        lines.append(("A quick run", _QUICK))
    lines.append(("Protocol", protocol))
    if any(line["comparison"] for saved in found.tables.values() for line in saved["lines"]):
        lines.append(("Differences", _DIFFERENCES))
    pools = ", ".join(dict.fromkeys(f"{record['dataset']}: {record['pool']}" for record in records))
    if pools:
        lines.append(("Pool", pools + "."))
    lines.append(
        (
            "The paper’s figures",
            "They are of Flickr30K and MS-COCO, photographs, and of larger encoders and language models. On another "
            "data set compare the order of the systems and the gaps between them, not the figures.",
        )
    )
    costs = found.run.get("costs", [])
    ran = [one["machine"] for one in (*records, *costs, *([found.figure] if found.figure else []))]
    lines.append(("Machine", "; ".join(dict.fromkeys(map(_machine, ran))) + "."))
    versions = ", ".join(dict.fromkeys(str(cost["voken"]) for cost in costs))
    if versions:
        lines.append(("voken", versions))
    shown = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines)
    body = f'<dl class="about">{shown}</dl>{_command(asked)}{_left_out(found)}{_costs(costs)}'
    if not found.run:
        body += "<p>The run has not come to its end: tables may lack rows, and costs are not known yet.</p>"
    return body


def _command(asked: Mapping[str, Any]) -> str:
    if not asked:
        return ""
    words = ["voken", "reproduce", *asked["what"], "--track", asked["track"], "--data", asked["data"]]
    words += ["--out", asked["out"]]
    for name in ("images", "cache", "captioner", "checkpoints"):
        words += [f"--{name}", asked[name]] if asked.get(name) else []
    for seed in asked["seeds"]:
        words += ["--seed", str(seed)]
    words += [f"--{name}" for name in ("quick", "transductive") if asked.get(name)]
    for name, value in asked.get("settings", ()):
        words += ["--set", f"{name}={value}"]
    return f"<h3>The command</h3><pre><code>{escape(shlex.join(map(str, words)))}</code></pre>"


def _left_out(found: _Found) -> str:
    absent: dict[str, str] = found.run.get("left out", {})
    if not absent:
        return ""
    rows = "".join(f"<li><b>{escape(name)}</b>: {escape(reason)}</li>" for name, reason in absent.items())
    return f"<h3>Left out, and why</h3><ul>{rows}</ul>"


def _costs(costs: Sequence[Mapping[str, Any]]) -> str:
    if not costs:
        return ""
    rows = [
        (
            [
                str(cost["cell"]),
                str(cost["protocol"]),
                str(cost["seed"]),
                _duration(cost["seconds"]),
                _duration(cost["processor_seconds"]),
                f"{cost['peak_megabytes_of_the_process']:,.0f}",
            ],
            "",
        )
        for cost in costs
    ]
    head = ["system", "protocol", "seed", "time", "processor time", "peak of the process, MB"]
    processor = _duration(sum(cost["processor_seconds"] for cost in costs))
    return (
        f"<details><summary>What each system took: {processor} of processor time together</summary>"
        f"{table(head, rows)}</details>"
    )


def _table_section(found: _Found, name: str) -> str:
    saved = found.tables[name]
    shown = columns(saved)
    kinds = ["paper" if column.group == "the paper says" else column.group for column in shown]
    groups = [(_GROUPS[group], len(list(run))) for group, run in groupby(column.group for column in shown)]
    compared = any(line["comparison"] for line in saved["lines"])
    rows = [
        (cells, "kept" if compared and _is_reference(line) else "")
        for line, cells in zip(saved["lines"], zip(*(column.cells for column in shown), strict=True), strict=True)
    ]
    heads = [column.head.replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}") for column in shown]
    body = table(heads, rows, groups=groups, kinds=kinds)
    labels = {line["label"] for line in saved["lines"]}
    missing = [line.label for line in TABLES[name].lines if line.label not in labels] if name in TABLES else []
    notes = [str(saved["note"]), footer(saved), f"Not measured: {', '.join(missing)}." if missing else ""]
    if name not in found.current:
        notes.append("This table is of an earlier run, maybe of other settings than the rest of the page.")
    small = "".join(f'<p class="origin">{escape(note)}</p>' for note in notes if note)
    return section(name, str(saved["title"]), "", body + small)


def _is_reference(line: Mapping[str, Any]) -> bool:
    """The row the others are compared with."""
    mine = line["inductive"]
    ours = bool(mine) and (mine[0]["system"], mine[0]["readout"]) == ("AVG", "generate")
    return ours and not line["comparison"] and not line["compared with"]


def _ablations(found: _Found) -> str:
    saved = found.current.get("table3")
    if saved is None:
        return ""
    measured = []
    for line in saved["lines"]:
        recall = _percent(line["inductive"], 10)
        if recall is not None:
            measured.append((str(line["label"]), recall.y, recall.spread))
    if not measured:
        return ""
    drawn = bars("Measured here: R@10, %", measured)
    for name in ("flickr30k", "coco5k"):
        said = [
            (str(line["label"]), float(line["the paper says"][name][2]), None)
            for line in saved["lines"]
            if name in line["the paper says"] and line["the paper says"][name][2] is not None
        ]
        drawn += bars(f"The paper says ({name}): R@10, %", said, paper=True) if said else ""
    one_seed = all(deviation is None for _, _, deviation in measured)
    note = "What is lost without a part of the method (Table 3). " + (
        "One seed: there is no spread to show." if one_seed else "The dark line is a standard deviation to either side."
    )
    return section("ablations", "Ablations", note, f'<div class="panels">{drawn}</div>')


def _sweeps(found: _Found) -> str:
    shown = ""
    for name, (x_title, log) in _SWEEPS.items():
        saved = found.current.get(name)
        if saved is None:
            continue
        measured: dict[str, list[Point]] = {"R@1": [], "R@5": [], "R@10": []}
        paper: dict[str, dict[str, list[Point]]] = {}
        for line in saved["lines"]:
            x = _place(name, line["inductive"])
            if x is None:
                continue
            for place, k in enumerate((1, 5, 10)):
                recall = _percent(line["inductive"], k)
                if recall is not None:
                    measured[f"R@{k}"].append(Point(x, recall.y, recall.spread))
                for data, figures in line["the paper says"].items():
                    said = paper.setdefault(data, {"R@1": [], "R@5": [], "R@10": []})
                    if figures[place] is not None:
                        said[f"R@{k}"].append(Point(x, float(figures[place])))
        drawn = lines("Measured here, %", x_title, measured, log=log)
        for data, said in paper.items():
            drawn += lines(f"The paper says ({data}), %", x_title, said, log=log, paper=True)
        shown += f'<h3>{escape(str(saved["title"]))}</h3><div class="panels">{drawn}</div>'
    note = "Measured here, and beside it the paper’s, on axes of their own: heights of two panels do not compare."
    return section("sweeps", "Sweeps", note, shown) if shown else ""


def _figure(saved: Mapping[str, Any]) -> str:
    sizes, speeds = saved["sizes"], saved["queries_per_second"]
    series = {
        name: [Point(float(size), float(by_size[str(size)])) for size in sizes] for name, by_size in speeds.items()
    }
    drawn = lines("Measured here: queries a second, one at a time", "pictures (logarithmic)", series, log=True)
    head = ["", *(f"{size:,}" for size in sizes), "largest / smallest"]
    rows = [
        ([name, *(f"{point.y:,.1f}" for point in line), f"{line[-1].y / line[0].y:.2f}"], "")
        for name, line in series.items()
    ]
    note = (
        f"{saved['beams']} beams; vectors and sequences are random, so that a pool can have any size: speed does not "
        f"depend on what they say. {_machine(saved['machine'])}."
    )
    body = f'<div class="panels">{drawn}</div>{table(head, rows)}'
    return section("figure4", str(saved["title"]), escape(note), body)


def _place(name: str, records: Sequence[Record]) -> float | None:
    """Where a line of a sweep stands on the x axis."""
    if not records:
        return None
    tokenizer = records[0]["config"].get("tokenizer", {})
    value = {
        "table4": tokenizer.get("codebook_size"),
        "table5": tokenizer.get("levels"),
        "table7": records[0]["beams"],
    }[name]
    return None if value is None else float(value)


def _trade_offs(found: _Found) -> str:
    seen: set[str] = set()
    rows: list[tuple[str, Point, float | None, float, bool]] = []
    for name in ("table1", "table2", "table6"):
        for line in found.current.get(name, {"lines": []})["lines"]:
            records = line["inductive"]
            recall = _percent(records, 10)
            if recall is None:
                continue
            # our rows stand in several tables, sometimes by other names
            known = json.dumps([records[0][part] for part in ("system", "readout", "beams", "config")], sort_keys=True)
            if known in seen:
                continue
            seen.add(known)
            stored, speed = records[0]["bytes_per_picture"], spread(records).mean["queries_per_second"]
            rows.append((str(line["label"]), recall, stored, speed, records[0]["system"].startswith("AVG")))
    if not rows:
        return ""
    by_bytes = [Mark(name, Point(b, p.y, p.spread), ours) for name, p, b, _, ours in rows if b is not None and b > 0]
    by_speed = [Mark(name, Point(s, p.y, p.spread), ours) for name, p, _, s, ours in rows if s > 0]
    body = scatter("R@10 (%) against bytes stored a picture", "bytes a picture (logarithmic)", by_bytes)
    unknown = [name for name, _, b, _, _ in rows if b is None or b <= 0]
    if unknown:
        body += f'<p class="origin">Not drawn, as what they store is not known: {escape(", ".join(unknown))}.</p>'
    body += scatter("R@10 (%) against queries a second", "queries a second, all of it (logarithmic)", by_speed)
    cells = [
        ([name, _said(p), "–" if b is None else f"{b:,.4g}", f"{s:,.4g}"], "kept" if ours else "")
        for name, p, b, s, ours in rows
    ]
    head = ["system", "R@10 %", "bytes a picture", "queries a second"]
    body += f"<details><summary>The figures</summary>{table(head, cells)}</details>"
    note = (
        "Every system measured under the inductive protocol. Filled: AVG; rings: other systems. Up is better; so is "
        "left in the first plot, and right in the second."
    )
    return section("trade-offs", "What recall costs", note, body)


def _pairs(pictures: Sequence[Mapping[str, Any]]) -> str:
    levels = len(pictures[0]["vokens"])
    shown = [_shown(picture, " · ".join(picture["captions"])) for picture in pictures]
    body = ""
    for group in pair_groups_of(pictures):
        pairs = "".join(
            f'<li class="pair">{half(shown[one], group.shared)}{half(shown[other], group.shared)}</li>'
            for one, other in group.shown
        )
        listed = f'<ul class="pairs">{pairs}</ul>' if pairs else ""
        body += f'<h3>{_pairs_title(group, levels)}</h3><p class="origin">{_pairs_said(group)}</p>{listed}'
    note = (
        "As in Figure 5 of the paper: pictures of the pool, which AVG never saw, with the sequences it gave them. The "
        "rule for which stand here: pictures in the order of the SHA-256 of their ids, the first pairs that fit, no "
        "picture twice. Neither picture nor caption has a say. The overlap of the captions’ words is that of all pairs "
        "of a group: where vokens carry meaning, it grows with what two sequences share."
    )
    return section("vokens", "What vokens say", note, body)


def _pairs_title(group: PairGroup, levels: int) -> str:
    if group.shared == 0:
        return "No voken in common"
    if group.shared == levels:
        return "The same sequence"
    if group.shared == 1:
        return "The first voken in common, the second not"
    if group.shared == levels - 1:
        return "All but the last voken in common"
    return f"The first {group.shared} of {levels} vokens in common, the longest beginning that two sequences share"


def _pairs_said(group: PairGroup) -> str:
    if group.overlap is None:
        return "There is no such pair."
    pairs = "1 pair" if group.total == 1 else f"{group.total:,} pairs"
    return f"{pairs}; overlap of the captions’ words {100 * group.overlap:.1f} % on average."


def _cases(cases: Sequence[Mapping[str, Any]], pictures: Sequence[Mapping[str, Any]]) -> str:
    captions = {picture["id"]: str(picture["captions"][0]) for picture in pictures if picture["captions"]}
    right = [[hit["id"] in {one["id"] for one in case["relevant"]} for hit in case["answers"]] for case in cases]
    first, answered = sum(any(marks[:1]) for marks in right), sum(map(any, right))
    body = ""
    for title, wanted in (("A right picture among the first five", True), ("None among the first five", False)):
        shown = [_case(case, marks, captions) for case, marks in zip(cases, right, strict=True) if any(marks) == wanted]
        body += f"<h3>{title}: {len(shown)} of {len(cases)}</h3>{''.join(shown[:_OPEN_CASES])}"
        if shown[_OPEN_CASES:]:
            more = "".join(shown[_OPEN_CASES:])
            body += f"<details><summary>{len(shown) - _OPEN_CASES} more</summary>{more}</details>"
    note = (
        f"The first {len(cases)} queries by their id, which is a hash, so nobody chose them; AVG, log-probability "
        f"alone, the first seed. {answered} of {len(cases)} ({100 * answered / len(cases):.0f} %) have a right picture "
        f"among the first five, {first} ({100 * first / len(cases):.0f} %) at the first place. ✓ marks a right "
        "picture; where there is none, the right one stands at the end."
    )
    return section("cases", "Successes and failures", note, body)


def _case(case: Mapping[str, Any], marks: Sequence[bool], captions: Mapping[str, str]) -> str:
    hits = ""
    for hit, is_right in zip(case["answers"], marks, strict=True):
        mark = '<b class="right" title="a right answer">✓</b> ' if is_right else ""
        picture = _shown(hit, captions.get(hit["id"], str(hit["id"])))
        hits += (
            f'<li class="hit{" is-right" if is_right else ""}">{image(picture)}'
            f'<span class="name">{mark}{escape(picture.name)}</span>'
            f'<span class="score">score {hit["score"]:.2f}</span>{chips(picture.vokens)}</li>'
        )
    missed = "" if any(marks) else "".join(_missed(one, captions) for one in case["relevant"][:_RIGHT_SHOWN])
    more = len(case["relevant"]) - _RIGHT_SHOWN
    origin = "" if hits else '<p class="origin">Nothing was answered.</p>'
    if missed and more > 0:
        origin += f'<p class="origin">{_RIGHT_SHOWN} of {len(case["relevant"])} right pictures are shown.</p>'
    return (
        f'<article class="query"><h4>“{escape(str(case["text"]))}”</h4>{origin}<ol class="hits">{hits}{missed}</ol>'
        "</article>"
    )


def _missed(picture: Mapping[str, Any], captions: Mapping[str, str]) -> str:
    shown = _shown(picture, captions.get(picture["id"], str(picture["id"])))
    return (
        f'<li class="hit missed">{image(shown)}<span class="name">{escape(shown.name)}</span>'
        '<span class="score">right, and missed</span></li>'
    )


def _shown(picture: Mapping[str, Any], name: str) -> Picture:
    return Picture(Path(picture["path"]), name, tuple(picture.get("vokens", ())))


def _percent(records: Sequence[Record], k: int) -> Point | None:
    """R@`k` in percent, as a point that has no place yet."""
    found = recall_of(records, k)
    if found is None:
        return None
    mean, deviation = found
    return Point(0.0, 100 * mean, None if deviation is None else 100 * deviation)


def _said(point: Point) -> str:
    return f"{point.y:.1f}" + (f" ± {point.spread:.1f}" if point.spread is not None else "")


def _range(values: set[int]) -> str:
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [processor_of(machine)]
    parts += [f"torch on {machine['threads']}"] if machine.get("threads") else []
    parts += [str(machine["accelerator"])] if machine.get("accelerator") else []
    parts += [f"{name} {machine[name]}" for name in ("python", "torch", "numpy") if machine.get(name)]
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


_STYLE = """
body{max-width:1400px}
h4{margin:0 0 6px;font-size:1.05rem}
.about{display:grid;grid-template-columns:minmax(90px,auto) 1fr;gap:6px 18px;margin:8px 0;max-width:86ch}
.about dt{font-weight:600}.about dd{margin:0;color:var(--soft)}
th.paper,td.paper{background:repeating-linear-gradient(135deg,transparent 0 5px,var(--line) 5px 6px);color:var(--soft);
font-style:italic}
main table{font-size:.88rem}
main th,main td{padding:6px 10px}
thead th{white-space:normal;min-width:62px}
thead th[colspan]{text-align:left;white-space:nowrap}
th:first-child,td:first-child{position:sticky;left:0;background:var(--card)}
pre{white-space:pre-wrap}
thead th{vertical-align:bottom}
.hit.missed{border:1px dashed var(--soft)}
details{margin:8px 0}
@media (max-width:640px){td:first-child{white-space:normal;min-width:104px}
.about{grid-template-columns:1fr;gap:0}.about dd{margin-bottom:8px}}
"""
