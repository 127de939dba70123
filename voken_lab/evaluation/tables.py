"""Markdown tables of evaluations, as in the README and the docs.

There is one table per data set, kind of pool, protocol and cutoffs, so inductive and transductive figures are never in
the same table. It has one row per system, read-out and number of beams, over all seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voken.errors import ConfigError, EmptyDataError
from voken_lab.evaluation.machine import processor_of
from voken_lab.evaluation.protocol import Spread, spread

Record = Mapping[str, Any]
_NONE = "–"


def results_table(evaluations: Sequence[Record], *, base: str | None = None) -> str:
    """The Markdown tables of all `evaluations`, which are dictionaries from `Evaluation.to_dict`.

    Recalls and collisions are in percent, with the standard deviation if there are several seeds. If `base` is the name
    of a system, a column has each system's recall divided by that system's. "–" means that nothing was measured.

    Raises `ConfigError` if `base` does not have exactly one row in every table, `EmptyDataError` without evaluations.
    """
    if not evaluations:
        raise EmptyDataError("There is no evaluation to tabulate.")
    tables: dict[tuple[Any, ...], list[Record]] = {}
    for record in evaluations:
        place = ", ".join(part for part in (record["dataset"] or "data set not named", record.get("pool", "")) if part)
        tables.setdefault((place, record["protocol"], tuple(record["cutoffs"])), []).append(record)
    return "\n".join(
        _table(place, protocol, cutoffs, records, base) for (place, protocol, cutoffs), records in tables.items()
    )


def _table(place: str, protocol: str, cutoffs: tuple[int, ...], records: Sequence[Record], base: str | None) -> str:
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        rows.setdefault((record["system"], record["readout"], record["beams"]), []).append(record)
    spreads = {key: spread(members) for key, members in rows.items()}
    reference = _base(base, spreads, place, protocol)
    header = ["system", *(f"R@{k}" for k in cutoffs)]
    if base is not None:
        header.append(f"ratio to {_cell(base)}")
    header += [f"sequence R@{' / '.join(map(str, cutoffs))}", "collisions", "bytes/picture", "queries/s"]
    lines = [
        f"**{_cell(place)}, {protocol}**",
        "",
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 1),
    ]
    for key, summary in spreads.items():
        cells = [_label(*key), *(_recall(summary, f"recall@{k}") for k in cutoffs)]
        if base is not None:
            cells.append(" / ".join(_ratio(summary, reference, f"recall@{k}") for k in cutoffs))
        cells += [
            " / ".join(_percent(summary.mean.get(f"sequence_recall@{k}")) for k in cutoffs)
            if f"sequence_recall@{cutoffs[0]}" in summary.mean
            else _NONE,
            _recall(summary, "collision_rate"),
            _bytes(rows[key]),
            f"{summary.mean['queries_per_second']:,.3g}"
            if summary.mean["queries_per_second"] < 1000
            else f"{summary.mean['queries_per_second']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _footer(records), ""])


def _base(base: str | None, spreads: Mapping[tuple[Any, ...], Spread], place: str, protocol: str) -> Spread | None:
    if base is None:
        return None
    matches = [summary for key, summary in spreads.items() if key[0] == base]
    if len(matches) != 1:
        raise ConfigError(
            f"base: {base!r} has {len(matches)} rows in the {protocol} table of {place!r}, and must have one. "
            f"Systems there: {', '.join(sorted({key[0] for key in spreads}))}."
        )
    return matches[0]


def _label(system: str, readout: str, beams: int | None) -> str:
    ranking = {"": "", "generate": "generate", "voken": "+ voken rerank", "vector": "+ vector rerank"}[readout]
    return ", ".join(part for part in (_cell(system), ranking, f"{beams} beams" if beams else "") if part)


def _recall(summary: Spread, name: str) -> str:
    if name not in summary.mean:
        return _NONE
    deviation = summary.std[name]
    return _percent(summary.mean[name]) + (f" ± {_percent(deviation)}" if deviation is not None else "")


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f}"


def _ratio(summary: Spread, reference: Spread | None, name: str) -> str:
    if reference is None or not reference.mean.get(name):
        return _NONE
    return f"{summary.mean[name] / reference.mean[name]:.2f}"


def _bytes(records: Sequence[Record]) -> str:
    stored = {record["bytes_per_picture"] for record in records}
    values = sorted(float(value) for value in stored if value is not None)
    return " – ".join(f"{value:,.6g}" for value in values[:: max(1, len(values) - 1)]) or _NONE


def _footer(records: Sequence[Record]) -> str:
    def as_range(values: set[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    seeds = sorted({record["seed"] for record in records})
    machines = sorted({_machine(record["machine"]) for record in records})
    memories = {record["memory_bytes"] for record in records if record.get("memory_bytes")}
    memory = f" The caption memory takes {as_range(memories)} bytes beside all pictures." if memories else ""
    return (
        f"Pool {as_range({record['pool_size'] for record in records})} pictures, "
        f"{as_range({record['query_count'] for record in records})} queries; "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}; {'; '.join(machines)}.{memory}"
    )


def _machine(machine: Mapping[str, Any]) -> str:
    count = machine.get("threads")
    threads = f", {count} thread{'s' if count > 1 else ''}" if count else ""
    accelerator = f", {machine['accelerator']}" if machine.get("accelerator") else ""
    torch = f", torch {machine['torch']}" if machine.get("torch") else ""
    return _cell(f"{processor_of(machine)}{accelerator}{threads}{torch}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
