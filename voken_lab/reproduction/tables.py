"""The paper's tables: which cells fill which row, and what the paper says there.

Paper figures are R@1, R@5, R@10 in percent on Flickr30K (or MS-COCO 5K), at 40 beams in Table 1 and 10 in Tables 3
to 6; docs/protocol.md says how to read them. They stand in columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from voken_lab.evaluation.comparison import Row, compare_rows
from voken_lab.evaluation.machine import processor_of
from voken_lab.evaluation.protocol import spread
from voken_lab.reproduction.cells import Cell
from voken_lab.reproduction.contestants import TOKENS_ALONE

Record = dict[str, Any]
Figures = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Line:
    """A row: the cell that measures it, which of the cell's contestants it is, and the paper's figures by track."""

    label: str
    cell: Cell
    system: str = ""
    """"": the cell's first contestant."""
    readout: str | None = None
    beams: int | None = None
    paper: dict[str, Figures] = field(default_factory=dict)
    both: bool = False
    """Measured under the transductive protocol too."""
    once: bool = False
    """Measured with the first seed alone: what takes most of an hour."""
    against: str = ""
    """Label of the row it is compared with, where that is not our system with log-probability alone."""

    @property
    def transductive(self) -> Cell:
        """The same cell under the other protocol."""
        return replace(self.cell, protocol="transductive")

    def picked(self, rows: Iterable[Record]) -> Record | None:
        """The row's record among those of its cell."""
        for row in rows:
            if (
                (not self.system or row["system"] == self.system)
                and (self.readout is None or row["readout"] == self.readout)
                and (self.beams is None or row["beams"] == self.beams)
            ):
                return row
        return None


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    name: str
    title: str
    lines: tuple[Line, ...]
    note: str = ""


def cells_of(lines: Iterable[Line]) -> list[Cell]:
    """Without repeats, in order."""
    found: list[Cell] = []
    for line in lines:
        wanted = [line.cell]
        if line.both:
            wanted.append(line.transductive)
        found += [cell for cell in wanted if cell not in found]
    return found


OURS = Cell("ours")
_FLICKR, _COCO = "flickr30k", "coco5k"


def _variant(*settings: Mapping[str, str]) -> Cell:
    """Our system with these settings; later ones win."""
    return Cell("variant", {name: value for each in settings for name, value in each.items()})


_UNALIGNED = {"tokenizer.mixture": "0", "tokenizer.alignment": "none"}
_RANDOM_ROWS = {"generator.copy_voken_embeddings": "false"}
_NO_LISTS = {"generator.discrimination": "none"}


def _grace(scheme: str, flickr: Figures | None, coco: Figures | None) -> Line:
    paper = {name: figures for name, figures in ((_FLICKR, flickr), (_COCO, coco)) if figures}
    return Line(f"GRACE ({scheme} id)", Cell("grace", {"scheme": scheme}), paper=paper, both=True)


_PLAIN = TOKENS_ALONE | {
    "generator.targets": "one-hot",
    "generator.layers": "2",
    "generator.epochs": "12",
    "generator.patience": "3",
    "generator.learning_rate": "0.001",
    "generator.discrimination": "staged",
    "generator.discrimination_epochs": "2",
}
"""The generator as the paper has it: trained by L_gen, then L_dis, from tokens alone."""


_PLAIN_LINE = Line("plain generator", _variant(_PLAIN), readout="generate")


def _plain_without(what: str, settings: Mapping[str, str]) -> Line:
    plain = _PLAIN_LINE.label
    return Line(f"{plain}, without {what}", _variant(_PLAIN, settings), readout="generate", against=plain)


_OUR_PAPER: dict[str, Figures] = {_FLICKR: (62.8, 85.4, 91.2), _COCO: (31.3, 58.0, 66.5)}
_TEN_BEAMS: Figures = (62.3, 83.5, 86.6)
_SIZES: dict[int, Figures] = {
    256: (60.8, 82.0, 84.8),
    512: (61.1, 82.8, 86.1),
    1024: _TEN_BEAMS,
    2048: (61.2, 83.0, 86.0),
}
_LEVELS: dict[int, Figures] = {
    2: (45.7, 73.1, 80.6),
    4: _TEN_BEAMS,
    6: (63.2, 84.0, 86.7),
    8: (62.1, 82.6, 85.2),
    10: (64.1, 84.2, 87.1),
}
_BEAMS: dict[int, Figures] = {
    1: (44.2, None, None),
    5: (60.6, 78.1, None),
    10: _TEN_BEAMS,
    20: (62.7, 85.1, 90.2),
    30: (62.7, 85.5, 91.1),
    40: (62.8, 85.4, 91.2),
    50: (62.8, 85.4, 91.1),
}

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "table1",
            "Table 1. Generative systems",
            (
                _grace("numeric", (22.5, 28.9, 29.4), (0.03, 0.14, 0.28)),
                _grace("string", (30.5, 39.0, 40.4), (0.12, 0.37, 0.88)),
                _grace("semantic", (22.9, 34.9, 37.4), (13.3, 30.4, 35.9)),
                _grace("structured", (37.4, 59.5, 66.2), (16.7, 39.2, 50.3)),
                _grace("atomic", None, None),
                Line(
                    "IRGen",
                    Cell("irgen"),
                    paper={_FLICKR: (49.0, 68.9, 72.5), _COCO: (29.6, 50.7, 56.3)},
                    both=True,
                ),
                Line("GENIUS-style", Cell("genius"), both=True),
                Line("AVG, generate", OURS, readout="generate", paper=_OUR_PAPER, both=True),
                Line("AVG, + voken rerank", OURS, readout="voken", both=True),
                Line("AVG, + vector rerank", OURS, readout="vector", both=True),
            ),
            "The atomic identifier is no generative one (section 4.1 of the paper); the paper gives no figures for it.",
        ),
        Table(
            "table2",
            "Table 2. Three paradigms",
            (
                Line("one-tower, BLIP", Cell("blip"), paper={_FLICKR: (87.6, 97.7, 99.0)}),
                Line("two-tower, first 50 reranked by BLIP", Cell("blip"), system="two-tower + BLIP"),
                Line("one-tower, cross-encoder", Cell("one-tower")),
                Line(
                    "two-tower, first 50 reranked by it",
                    Cell("one-tower"),
                    system="two-tower + cross-encoder",
                ),
                Line("two-tower, exact (paper: CLIP)", Cell("two-tower"), paper={_FLICKR: (58.4, 81.5, 88.1)}),
                *(
                    Line(f"two-tower, faiss {kind}", Cell("approximate"), system=f"two-tower, faiss {kind}")
                    for kind in ("flat", "HNSW", "IVF-PQ", "PQ", "OPQ")
                ),
                Line("AVG, generate", OURS, readout="generate", paper={_FLICKR: (62.8, 85.4, 91.2)}),
                Line("AVG, + voken rerank", OURS, readout="voken"),
                Line("AVG, + vector rerank", OURS, readout="vector"),
            ),
            "The paper's CLIP row is CLIP's image-to-text row of MS-COCO; zero-shot, CLIP has 68.7 / 90.6 / 95.2 on "
            "Flickr30K.",
        ),
        Table(
            "table3",
            "Table 3. Ablations",
            (
                Line("AVG", OURS, readout="generate", paper={_FLICKR: _TEN_BEAMS}),
                Line(
                    "without cross-modal alignment",
                    _variant(_UNALIGNED),
                    readout="generate",
                    paper={_FLICKR: (56.8, 76.5, 79.2)},
                ),
                Line(
                    "without voken embeddings",
                    _variant(_RANDOM_ROWS),
                    readout="generate",
                    paper={_FLICKR: (62.4, 82.7, 85.8)},
                ),
                Line(
                    "without discriminative loss",
                    _variant(_NO_LISTS),
                    readout="generate",
                    paper={_FLICKR: (60.1, 81.9, 85.0)},
                ),
                Line(
                    "without caption memory (ours alone has it)",
                    _variant({"generator.memory_weight": "0"}),
                    readout="generate",
                ),
                Line(
                    "without query vector and memory (ours alone has them)",
                    _variant(TOKENS_ALONE),
                    readout="generate",
                ),
                _PLAIN_LINE,
                _plain_without("cross-modal alignment", _UNALIGNED),
                _plain_without("voken embeddings", _RANDOM_ROWS),
                _plain_without("discriminative loss", _NO_LISTS),
            ),
            "Alignment is the mixture codebook in the default preset, and L_align in the paper's. The default preset "
            "starts as quantized search for the query's vector and trains one epoch of L_dis; the plain generator has "
            "no query vector and no memory and learns L_gen one-hot, then L_dis. Its ablations are compared with it.",
        ),
        Table(
            "table4",
            "Table 4. Codebook size N",
            tuple(
                Line(
                    f"N = {size:,}",
                    _variant({"tokenizer.codebook_size": str(size)}),
                    readout="generate",
                    paper={_FLICKR: paper},
                )
                for size, paper in _SIZES.items()
            ),
        ),
        Table(
            "table5",
            "Table 5. Voken length M",
            tuple(
                Line(
                    f"M = {levels}",
                    _variant({"tokenizer.levels": str(levels)}),
                    readout="generate",
                    paper={_FLICKR: paper},
                )
                for levels, paper in _LEVELS.items()
            ),
        ),
        Table(
            "table6",
            "Table 6. Backbones",
            (
                Line("lite (frozen MiniLM, 1 layer)", OURS, readout="generate"),
                Line("lite, 4 layers", _variant({"generator.layers": "4"}), readout="generate"),
                Line("T5-base", Cell("backbone", {"name": "t5-base"}), paper={_FLICKR: _TEN_BEAMS}),
                Line("T5-large", Cell("backbone", {"name": "t5-large"}), paper={_FLICKR: (64.0, 84.5, 87.6)}),
                Line("T5-XL", Cell("backbone", {"name": "t5-3b"}), paper={_FLICKR: (64.6, 84.9, 88.0)}),
                Line("LLaMA-7b, LoRA", Cell("backbone", {"name": "llama-7b"}), paper={_FLICKR: (54.8, 80.8, 85.9)}),
                Line("SmolLM2-135M, LoRA", Cell("backbone", {"name": "smollm2-135m"}), once=True),
            ),
            "A backbone whose weights are not at hand (--checkpoints) has no row. SmolLM2 has two epochs and one seed, "
            "which is what a processor can do.",
        ),
        Table(
            "table7",
            "Table 7. Beams",
            tuple(
                Line(
                    f"{count} beam{'s' if count > 1 else ''}",
                    OURS,
                    readout="generate",
                    beams=count,
                    paper={_FLICKR: paper},
                )
                for count, paper in _BEAMS.items()
            ),
        ),
    )
}


@dataclass(frozen=True)
class Measured:
    """A line with its records: one a seed, inductive and transductive apart."""

    line: Line
    inductive: tuple[Record, ...]
    transductive: tuple[Record, ...] = ()


def filled(table: Table, results: dict[str, dict[int, list[Record]]]) -> list[Measured]:
    """The lines that were measured. `results` holds the rows of each cell (by `cell_name`) and seed."""
    found = []
    for line in table.lines:
        inductive = _picked(line, results.get(cell_name(line.cell), {}))
        transductive = _picked(line, results.get(cell_name(line.transductive), {})) if line.both else ()
        if inductive or transductive:
            found.append(Measured(line, inductive, transductive))
    return found


def cell_name(cell: Cell) -> str:
    """The same for equal cells."""
    return f"{cell.builder} {sorted(cell.settings.items())} {cell.protocol}"


def _picked(line: Line, by_seed: dict[int, list[Record]]) -> tuple[Record, ...]:
    picked = (line.picked(rows) for _, rows in sorted(by_seed.items()))
    return tuple(row for row in picked if row is not None)


def as_json(table: Table, measured: Sequence[Measured], track: str) -> dict[str, Any]:
    """Every figure of a table, without single queries' results."""
    return {
        "table": table.name,
        "title": table.title,
        "track": track,
        "note": table.note,
        "lines": [
            {
                "label": one.line.label,
                "the paper says": {name: list(figures) for name, figures in one.line.paper.items()},
                "inductive": [_without_queries(record) for record in one.inductive],
                "transductive": [_without_queries(record) for record in one.transductive],
                "compared with": one.line.against,
                "comparison": _comparison(one, _compared_with(one, measured)),
            }
            for one in measured
        ],
    }


Group = Literal["", "the paper says", "inductive", "transductive", "cost"]


@dataclass(frozen=True)
class Column:
    """A column of a table as text, a cell a line. `group` says whose figures these are."""

    group: Group
    head: str
    cells: tuple[str, ...]


def columns(saved: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a table as `as_json` gives it: what every rendering of it shows.

    A column that would be empty is left out: of a data set the paper says nothing about, of a protocol not measured.
    """
    lines = saved["lines"]
    papers = [name for name in (_FLICKR, _COCO) if any(name in line["the paper says"] for line in lines)]
    compared = any(line["comparison"] for line in lines)
    other = any(line["transductive"] for line in lines)
    heads: list[tuple[Group, str]] = [("", ""), *(("the paper says", f"{name} R@1 / 5 / 10") for name in papers)]
    heads += [("inductive", "R@1"), ("inductive", "R@5"), ("inductive", "R@10")]
    heads += [("inductive", "difference to AVG at R@10 (p)")] if compared else []
    heads += [("inductive", "sequence-level R@1 / 5 / 10"), ("inductive", "collisions")]
    heads += [("transductive", "R@1 / 5 / 10")] if other else []
    heads += [("cost", "beams"), ("cost", "bytes/picture"), ("cost", "queries/s")]
    rows = []
    for line in lines:
        cells = [str(line["label"]), *(_paper(line["the paper says"].get(name)) for name in papers)]
        cells += _recalls(line["inductive"]) or ["–"] * 3
        cells += [_difference(line["comparison"], line["compared with"])] if compared else []
        cells += _sequence_level(line["inductive"])
        cells += [" / ".join(_recalls(line["transductive"])) or "–"] if other else []
        rows.append(cells + _costs(line["inductive"] or line["transductive"]))
    return tuple(Column(group, head, tuple(row[place] for row in rows)) for place, (group, head) in enumerate(heads))


def footer(saved: Mapping[str, Any]) -> str:
    """Pool, queries, seeds and machine of a table as `as_json` gives it."""
    records = [record for line in saved["lines"] for record in (*line["inductive"], *line["transductive"])]
    pools = sorted({record["pool_size"] for record in records})
    asked = sorted({record["query_count"] for record in records})
    seeds = ", ".join(map(str, sorted({record["seed"] for record in records})))
    machines = sorted({processor_of(record["machine"]) for record in records})
    sizes, counts = (" to ".join(f"{value:,}" for value in sorted({all_[0], all_[-1]})) for all_ in (pools, asked))
    return f"Pool {sizes} pictures, {counts} queries a seed; seeds {seeds}; {'; '.join(machines)}."


def as_markdown(table: Table, measured: Sequence[Measured], track: str) -> str:
    """A line a row: what the paper says, and beside it what was measured, never mixed."""
    saved = as_json(table, measured, track)
    shown = columns(saved)
    heads, before = [], ""
    for column in shown:
        # once where the paper's columns end; the transductive ones must never pass for the others
        said = {"the paper says": "the paper says: ", "transductive": "transductive "}.get(column.group, "")
        if column.group == "inductive" != before:
            said = "**measured**, inductive "
        heads.append(said + column.head)
        before = column.group
    lines = [
        f"**{table.title}** — {track}",
        "",
        markdown_row(heads),
        markdown_row(["---", *["---:"] * (len(heads) - 1)]),
    ]
    lines += map(markdown_row, zip(*(column.cells for column in shown), strict=True))
    return "\n".join([*lines, "", *([table.note, ""] if table.note else []), footer(saved)])


def _compared_with(one: Measured, measured: Sequence[Measured]) -> Measured | None:
    """The row its line names, or our system with log-probability alone."""
    if one.line.against:
        return next((other for other in measured if other.line.label == one.line.against), None)
    ours = [other for other in measured if other.line.cell == OURS and other.line.readout == "generate"]
    return ours[-1] if ours and ours[-1].inductive else None


def _comparison(one: Measured, other: Measured | None) -> dict[str, Any] | None:
    """`one` less `other`, over the seeds of both; None where it is the same row, or there are none."""
    if other is None or one is other:
        return None
    mine, theirs = ({record["seed"]: record for record in row.inductive} for row in (one, other))
    shared = mine.keys() & theirs.keys()
    if not shared:
        return None
    rows = [Row(name, {seed: records[seed] for seed in shared}) for name, records in (("", mine), (" ", theirs))]
    return compare_rows(*rows).to_dict()


def _difference(found: dict[str, Any] | None, other: str) -> str:
    if found is None:
        return "–"
    last = found["cutoffs"][-1]
    p_value = last["bootstrap"]["p_value"]
    # ten thousand resamples cannot tell smaller ones apart
    said = "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"
    return f"{100 * (last['first'] - last['second']):+.1f} ({said})" + (f", to the {other}" if other else "")


def recall_of(records: Sequence[Record], k: int) -> tuple[float, float | None] | None:
    """R@`k` between 0 and 1 over seeds: mean and standard deviation. None where nothing was measured, or where there
    are fewer beams than `k`, and so no hit at that rank (section 4.6.4).
    """
    if not records or (records[0]["beams"] is not None and records[0]["beams"] < k):
        return None
    found = spread(records)
    return found.mean[f"recall@{k}"], found.std[f"recall@{k}"]


def _recalls(records: Sequence[Record]) -> list[str]:
    found = [recall_of(records, k) for k in records[0]["cutoffs"]] if records else []
    return ["–" if one is None else _percent(*one) for one in found]


def _sequence_level(records: Sequence[Record]) -> list[str]:
    if not records or records[0]["sequence_recall"] is None:
        return ["–", "–"]
    found = spread(records).mean
    recalls = " / ".join(f"{100 * found[f'sequence_recall@{k}']:.1f}" for k in records[0]["cutoffs"])
    return [recalls, f"{100 * found['collision_rate']:.1f} %"]


def _costs(records: Sequence[Record]) -> list[str]:
    last = records[-1]
    beams = "–" if last["beams"] is None else str(last["beams"])
    stored = "–" if last["bytes_per_picture"] is None else f"{last['bytes_per_picture']:,.4g}"
    speed = spread(records).mean["queries_per_second"]
    return [beams, stored, f"{speed:,.3g}" if speed < 1000 else f"{speed:,.0f}"]


def _paper(figures: Sequence[float | None] | None) -> str:
    return "–" if figures is None else " / ".join("–" if value is None else f"{value:g}" for value in figures)


def _percent(mean: float, deviation: float | None) -> str:
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def markdown_row(values: Sequence[str]) -> str:
    """Of a table; a bar within a cell is escaped."""
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _without_queries(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "per_query"}
