"""A measured table: its rows from the cells' records, its JSON, and the columns that Markdown and the page show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from voken_lab.evaluation.comparison import Row, compare_rows
from voken_lab.evaluation.machine import processor_of
from voken_lab.evaluation.protocol import spread
from voken_lab.reproduction.cells import Cell
from voken_lab.reproduction.tables import COCO, FLICKR, OURS, Line, Record, Table

NO_VALUE = "–"


@dataclass(frozen=True)
class MeasuredLine:
    """A line with its records, one per seed, by protocol."""

    line: Line
    inductive: tuple[Record, ...]
    transductive: tuple[Record, ...] = ()


def cell_key(cell: Cell) -> str:
    """A text that is equal for equal cells."""
    return f"{cell.builder} {sorted(cell.settings.items())} {cell.protocol}"


def measured_lines(table: Table, results: Mapping[str, Mapping[int, list[Record]]]) -> list[MeasuredLine]:
    """The lines that have a record. `results` holds the rows of each cell, by `cell_key` and then by seed."""

    def records(line: Line, cell: Cell) -> tuple[Record, ...]:
        by_seed = sorted(results.get(cell_key(cell), {}).items())
        return tuple(record for _, rows in by_seed if (record := line.record(rows)) is not None)

    measured = [
        MeasuredLine(line, records(line, line.cell), records(line, line.transductive) if line.both_protocols else ())
        for line in table.lines
    ]
    return [row for row in measured if row.inductive or row.transductive]


def table_json(table: Table, measured: Sequence[MeasuredLine], track: str) -> dict[str, Any]:
    """Every figure of a table as JSON, without the results of single queries."""
    return {
        "table": table.name,
        "title": table.title,
        "track": track,
        "note": table.note,
        "lines": [
            {
                "label": row.line.label,
                "the paper says": {name: list(figures) for name, figures in row.line.paper.items()},
                "inductive": [_without_queries(record) for record in row.inductive],
                "transductive": [_without_queries(record) for record in row.transductive],
                "compared with": row.line.compared_with,
                "comparison": _comparison(row, _reference(row, measured)),
            }
            for row in measured
        ],
    }


Group = Literal["", "the paper says", "inductive", "transductive", "cost"]


@dataclass(frozen=True)
class Column:
    """A column of a table as text, with one cell per line. `group` says where its figures come from."""

    group: Group
    head: str
    cells: tuple[str, ...]


def columns(table: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a table in the form of `table_json`. A column without any figure is left out."""
    lines = table["lines"]
    table_columns: list[Column] = []

    def add(group: Group, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table_columns.extend(Column(group, head, tuple(row[place] for row in rows)) for place, head in enumerate(heads))

    add("", [""], [[str(line["label"])] for line in lines])
    for name in (FLICKR, COCO):
        if any(name in line["the paper says"] for line in lines):
            add(
                "the paper says",
                [f"{name} R@1 / 5 / 10"],
                [[_paper(line["the paper says"].get(name))] for line in lines],
            )
    add("inductive", ["R@1", "R@5", "R@10"], [_recalls(line["inductive"]) or [NO_VALUE] * 3 for line in lines])
    if any(line["comparison"] for line in lines):
        add("inductive", ["difference to AVG at R@10 (p)"], [[_difference(line)] for line in lines])
    heads = ["sequence-level R@1 / 5 / 10", "collisions"]
    add("inductive", heads, [_sequence_level(line["inductive"]) for line in lines])
    if any(line["transductive"] for line in lines):
        cells = [[" / ".join(_recalls(line["transductive"])) or NO_VALUE] for line in lines]
        add("transductive", ["R@1 / 5 / 10"], cells)
    measured = [line["inductive"] or line["transductive"] for line in lines]
    heads = ["beams", "bytes/picture", "with the memory", "queries/s"]
    cells = [_costs(records) for records in measured]
    if not any(record.get("memory_bytes") for records in measured for record in records):
        heads, cells = [heads[0], heads[1], heads[3]], [[beams, stored, speed] for beams, stored, _, speed in cells]
    add("cost", heads, cells)
    return tuple(table_columns)


def footer(table: Mapping[str, Any]) -> str:
    """Pool, queries, seeds and machines of a table in the form of `table_json`."""
    records = [record for line in table["lines"] for record in (*line["inductive"], *line["transductive"])]
    pool, queries = (value_range({record[name] for record in records}) for name in ("pool_size", "query_count"))
    numbers = sorted({record["seed"] for record in records})
    seeds = f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
    machines = "; ".join(sorted({processor_of(record["machine"]) for record in records}))
    tried = {int(beams) for record in records for beams in record.get("beams_tried", ())}
    chosen = f" Beams were chosen on validation among {', '.join(map(str, sorted(tried)))}." if len(tried) > 1 else ""
    return f"Pool {pool} pictures, {queries} queries per seed; {seeds}; {machines}.{chosen}"


def table_markdown(table: Mapping[str, Any]) -> str:
    """A table in the form of `table_json` as Markdown. The paper's figures and measured ones have separate columns."""
    table_columns = columns(table)
    heads, previous = [], ""
    for column in table_columns:
        # The group is named once, at its first column; transductive figures must never pass for inductive ones.
        prefix = {"the paper says": "the paper says: ", "transductive": "transductive "}.get(column.group, "")
        if column.group == "inductive" != previous:
            prefix = "**measured**, inductive "
        heads.append(prefix + column.head)
        previous = column.group
    rows = zip(*(column.cells for column in table_columns), strict=True)
    lines = [f"**{table['title']}** — {table['track']}", "", *markdown_table(heads, rows), ""]
    return "\n".join([*lines, *([table["note"], ""] if table["note"] else []), footer(table)])


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; all columns but the first are aligned to the right."""
    body = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(value.replace("|", "\\|") for value in row) + " |" for row in body]


def recall_of(records: Sequence[Record], k: int) -> tuple[float, float | None] | None:
    """Mean and standard deviation over seeds of R@`k`, between 0 and 1.

    None if nothing was measured, or if there are fewer beams than `k`, so that rank `k` has no hit (section 4.6.4 of
    the paper).
    """
    if not records or any(record["beams"] is not None and record["beams"] < k for record in records):
        return None
    over_seeds = spread(records)
    return over_seeds.mean[f"recall@{k}"], over_seeds.std[f"recall@{k}"]


def percent(mean: float, deviation: float | None) -> str:
    """A share in percent, "12.3 ± 0.4"."""
    return f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation is not None else "")


def value_range(values: set[int]) -> str:
    """A set of numbers as "1,000", or "800 to 1,000"."""
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def _reference(row: MeasuredLine, measured: Sequence[MeasuredLine]) -> MeasuredLine | None:
    """The row that the line names, or our system with the read-out "generate" if it names none."""
    if row.line.compared_with:
        return next((other for other in measured if other.line.label == row.line.compared_with), None)
    ours = [other for other in measured if other.line.cell == OURS and other.line.readout == "generate"]
    return ours[-1] if ours and ours[-1].inductive else None


def _comparison(row: MeasuredLine, reference: MeasuredLine | None) -> dict[str, Any] | None:
    """`row` minus `reference` over the seeds that both have; None if they are the same row or share no seed."""
    if reference is None or row is reference:
        return None
    records = [{record["seed"]: record for record in line.inductive} for line in (row, reference)]
    shared = records[0].keys() & records[1].keys()
    if not shared:
        return None
    rows = [
        Row(name, {seed: by_seed[seed] for seed in shared}) for name, by_seed in zip(("", " "), records, strict=True)
    ]
    return compare_rows(*rows).to_dict()


def _difference(line: Mapping[str, Any]) -> str:
    if line["comparison"] is None:
        return NO_VALUE
    last = line["comparison"]["cutoffs"][-1]
    p_value = last["bootstrap"]["p_value"]
    p_text = "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"  # ten thousand resamples cannot show a smaller value
    reference = f", to the {line['compared with']}" if line["compared with"] else ""
    return f"{100 * (last['first'] - last['second']):+.1f} ({p_text}){reference}"


def _recalls(records: Sequence[Record]) -> list[str]:
    recalls = [recall_of(records, k) for k in records[0]["cutoffs"]] if records else []
    return [NO_VALUE if recall is None else percent(*recall) for recall in recalls]


def _sequence_level(records: Sequence[Record]) -> list[str]:
    if not records or records[0]["sequence_recall"] is None:
        return [NO_VALUE, NO_VALUE]
    mean = spread(records).mean
    recalls = " / ".join(f"{100 * mean[f'sequence_recall@{k}']:.1f}" for k in records[0]["cutoffs"])
    return [recalls, f"{100 * mean['collision_rate']:.1f} %"]


def _costs(records: Sequence[Record]) -> list[str]:
    """Beams, bytes per picture without and with the caption memory, queries per second."""
    last = records[-1]
    beams = NO_VALUE if last["beams"] is None else value_range({record["beams"] for record in records})
    stored = [NO_VALUE if last["bytes_per_picture"] is None else _rounded(last["bytes_per_picture"])]
    together = bytes_with_memory(last)
    stored.append(NO_VALUE if together is None else _rounded(together))
    speed = spread(records).mean["queries_per_second"]
    return [beams, *stored, f"{speed:,.3g}" if speed < 1000 else f"{speed:,.0f}"]


def bytes_with_memory(record: Record) -> float | None:
    """Bytes per picture with its share of the caption memory, whose size depends on the training set only."""
    stored: float | None = record["bytes_per_picture"]
    return None if stored is None else stored + record.get("memory_bytes", 0) / record["pool_size"]


def _rounded(size: float) -> str:
    return f"{size:,.4g}" if size < 1000 else f"{size:,.0f}"


def _paper(figures: Sequence[float | None] | None) -> str:
    return NO_VALUE if figures is None else " / ".join(NO_VALUE if value is None else f"{value:g}" for value in figures)


def _without_queries(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "per_query"}
