"""Compare two saved evaluations query by query: is one system better, or was it lucky?

This module reads what `voken eval --json FILE --per-query` writes, or any JSON file with one
`Evaluation.to_dict(per_query=True)`, a list of them, or a list of them under "rows". The statistics come from
`voken_lab.evaluation.significance`.

A *row* is one line of a results table: a system and read-out over its seeds. Seeds are pooled: a query of two seeds
counts twice, and queries are resampled together only within a seed. That is right if each seed draws its own test set.
If the seeds are trainings that are evaluated on the same queries, the interval is over these queries *and* trainings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from voken.errors import ConfigError, DataError
from voken_lab.evaluation.significance import Bootstrap, TTest, paired_bootstrap, paired_t_test

Record = Mapping[str, Any]

_IDENTITY = ("system", "readout", "beams", "dataset", "pool", "protocol")
_REQUIRED = ("system", "dataset", "protocol", "seed", "cutoffs", "recall", "pool_size", "query_count")


@dataclass(frozen=True)
class Row:
    """One line of a saved table: the records that differ by seed only.

    `name` is the system and read-out, and whatever else distinguishes it from the file's other rows.
    """

    name: str
    records: Mapping[int, Record] = field(repr=False)
    """By seed, each as `Evaluation.to_dict` returns it."""

    @property
    def system(self) -> str:
        """The system that answered."""
        return str(self._any["system"])

    @property
    def short_name(self) -> str:
        """The read-out, or the system if it has only one."""
        return str(self._any.get("readout") or self.system)

    @property
    def protocol(self) -> str:
        """Inductive or transductive."""
        return str(self._any["protocol"])

    @property
    def _any(self) -> Record:
        return next(iter(self.records.values()))


@dataclass(frozen=True)
class CutoffComparison:
    """R@`k` of both rows, between 0 and 1, and two tests of the difference first − second."""

    k: int
    first: float
    second: float
    bootstrap: Bootstrap
    t_test: TTest


@dataclass(frozen=True)
class Comparison:
    """The comparison of two rows over the same queries. `queries` and `groups` are summed over the seeds."""

    first: str
    second: str
    seeds: tuple[int, ...]
    queries: int
    groups: int
    """Number of sets of queries with the same right answers. The bootstrap draws such sets."""
    cutoffs: tuple[CutoffComparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON can hold them; an infinite t becomes None."""
        values = dataclasses.asdict(self)
        for cutoff in values["cutoffs"]:
            if not np.isfinite(cutoff["t_test"]["t"]):
                cutoff["t_test"]["t"] = None
        return values


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a JSON file, in its order.

    Raises `DataError` if the file does not exist, holds no evaluations, or holds a row twice with the same seed.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(
            f"{path}: is not JSON ({error}). Write it with `voken eval --json FILE --per-query`."
        ) from error
    if isinstance(content, dict):
        content = content.get("rows", [content])
    if not isinstance(content, list) or not content or not all(map(_is_record, content)):
        raise DataError(f"{path}: holds no evaluations. Write it with `voken eval --json FILE --per-query`.")
    rows: dict[tuple[Any, ...], dict[int, Record]] = {}
    for record in content:
        identity = tuple(record.get(part) for part in _IDENTITY)
        by_seed = rows.setdefault(identity, {})
        if record["seed"] in by_seed:
            raise DataError(
                f"{path}: {_row_name(identity, [])} is there twice with seed {record['seed']}. Remove one of them."
            )
        by_seed[record["seed"]] = record
    return tuple(Row(_row_name(identity, list(rows)), by_seed) for identity, by_seed in rows.items())


def pair_rows(
    first: Sequence[Row], second: Sequence[Row], *, row: str | None = None, row_b: str | None = None
) -> tuple[list[tuple[Row, Row]], list[str]]:
    """The pairs of rows to compare, and the names of the rows that have no partner.

    `row` and `row_b` select one row of each side by its name, system or read-out; `row_b` defaults to `row`. Without
    them each row is paired with the row of the same read-out or system. If several rows have the same, rows are paired
    by their full names. If each side has only one row, these two are paired.

    Raises `ConfigError`, listing the rows, if a name fits none or several, or if no row has a partner.
    """
    if row is not None or row_b is not None:
        if row is None:
            raise ConfigError("--row-b names a row of B; name a row of A too, with --row.")
        return [(_selected(first, row, "A"), _selected(second, row if row_b is None else row_b, "B"))], []
    if len(first) == len(second) == 1:
        return [(first[0], second[0])], []
    are_short_names_unique = all(len({row.short_name for row in rows}) == len(rows) for rows in (first, second))
    left, right = (
        {row.short_name if are_short_names_unique else row.name: row for row in rows} for rows in (first, second)
    )
    pairs = [(row_a, right[name]) for name, row_a in left.items() if name in right]
    if not pairs:
        raise ConfigError(
            f"No row of A has a partner in B. Name one of each with --row and --row-b. {_list_rows(first, 'A')} "
            f"{_list_rows(second, 'B')}"
        )
    unpaired = [
        row.name for rows, others in ((left, right), (right, left)) for key, row in rows.items() if key not in others
    ]
    return pairs, unpaired


def compare_rows(
    first: Row, second: Row, *, samples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """R@K of `first` minus `second` at every cutoff that both measured.

    Queries are paired by id within a seed; those with the same right answers are resampled together. The t-test treats
    queries as independent, which they are not: it is included for comparison with other work.

    Raises `ConfigError` if protocols or seeds differ, or no cutoff is shared. Raises `DataError` if results of single
    queries are missing, or if queries, right answers or pool sizes differ.
    """
    if first.protocol != second.protocol:
        raise ConfigError(
            f"{first.name} is {first.protocol} and {second.name} {second.protocol}: they answer different questions "
            "and cannot be compared."
        )
    if first.records.keys() != second.records.keys():
        raise ConfigError(
            f"{first.name} has the seeds {sorted(first.records)} and {second.name} {sorted(second.records)}. "
            "Compare over the same seeds."
        )
    seeds = sorted(first.records)
    pairs = [(first.records[number], second.records[number]) for number in seeds]
    cutoffs = sorted(set.intersection(*(set(record["cutoffs"]) for pair in pairs for record in pair)))
    if not cutoffs:
        raise ConfigError(f"{first.name} and {second.name} share no cutoff. Evaluate both at the same ones.")
    recalls: dict[int, tuple[list[float], list[float]]] = {k: ([], []) for k in cutoffs}
    groups: list[tuple[int, str]] = []
    for number, (left, right) in zip(seeds, pairs, strict=True):
        results_a, results_b = (_per_query(row.name, record) for row, record in ((first, left), (second, right)))
        if left["pool_size"] != right["pool_size"] or results_a.group != results_b.group:
            raise DataError(
                f"{first.name} and {second.name}, seed {number}: asked different queries or pools "
                f"({len(results_a.group)} and {len(results_b.group)} queries, {left['pool_size']} and "
                f"{right['pool_size']} pictures). Evaluate both on one pool."
            )
        groups += [(number, key) for key in results_a.group.values()]
        for k, columns in recalls.items():
            columns[0].extend(results_a.recall[k][query_id] for query_id in results_a.group)
            columns[1].extend(results_b.recall[k][query_id] for query_id in results_a.group)
    comparisons = []
    for k, columns in recalls.items():
        a, b = np.asarray(columns[0]), np.asarray(columns[1])
        bootstrap = paired_bootstrap(a, b, groups=groups, samples=samples, confidence=confidence, seed=seed)
        comparisons.append(CutoffComparison(k, float(a.mean()), float(b.mean()), bootstrap, paired_t_test(a, b)))
    return Comparison(first.name, second.name, tuple(seeds), len(groups), len(set(groups)), tuple(comparisons))


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown tables, one per pair of rows, with a line per cutoff. Figures other than p-values are in percent."""
    return "\n".join(map(_table, comparisons))


@dataclass(frozen=True)
class _PerQuery:
    """Groups, and recalls per cutoff, keyed by query id."""

    group: dict[str, str]
    recall: dict[int, dict[str, float]]


def _per_query(name: str, record: Record) -> _PerQuery:
    results = record.get("per_query")
    if results is None:
        raise DataError(f"{name}: has no results of single queries. Evaluate again with --per-query.")
    if "group" not in results:
        raise DataError(
            f"{name}: was written by an older voken, which did not record which queries have the same right answers. "
            "Evaluate again with --per-query."
        )
    query_ids = results["query_id"]
    columns = {int(k): column for k, column in results["recall"].items()}
    lengths = {len(query_ids), len(results["group"]), *map(len, columns.values())}
    if len(lengths) > 1 or len(set(query_ids)) != len(query_ids) or not set(record["cutoffs"]) <= columns.keys():
        raise DataError(f"{name}: its results of single queries do not fit together. Evaluate again with --per-query.")
    return _PerQuery(
        group=dict(zip(query_ids, results["group"], strict=True)),
        recall={k: dict(zip(query_ids, map(float, column), strict=True)) for k, column in columns.items()},
    )


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and all(name in value for name in _REQUIRED)


def _row_name(identity: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> str:
    """System and read-out. If several rows of the file share these, also whatever else differs between the rows."""
    parts = [part for part in identity[:2] if part]
    for place, part in enumerate(identity[2:], start=2):
        if part and len({other[place] for other in among}) > 1 and _has_double(identity, among):
            parts.append(f"{part} beams" if _IDENTITY[place] == "beams" else str(part))
    return ", ".join(parts)


def _has_double(identity: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> bool:
    return sum(other[:2] == identity[:2] for other in among) > 1


def _selected(rows: Sequence[Row], name: str, file: str) -> Row:
    name_key = name.casefold()
    matches = [row for row in rows if row.name.casefold() == name_key]
    matches = matches or [row for row in rows if name_key in (row.system.casefold(), row.short_name.casefold())]
    if len(matches) != 1:
        raise ConfigError(f"{name!r} fits {len(matches) or 'no'} rows of {file}. {_list_rows(matches or rows, file)}")
    return matches[0]


def _list_rows(rows: Sequence[Row], file: str) -> str:
    return f"Rows of {file}: {'; '.join(repr(row.name) for row in rows)}."


def _table(comparison: Comparison) -> str:
    seeds = f"seed{'s' if len(comparison.seeds) > 1 else ''} {', '.join(map(str, comparison.seeds))}"
    first_bootstrap = comparison.cutoffs[0].bootstrap
    confidence = 100 * first_bootstrap.confidence
    lines = [
        f"**A: {comparison.first}; B: {comparison.second}**",
        "",
        f"| | A | B | A − B | {confidence:g}% interval | bootstrap p | t-test p |",
        "|---|" + "---:|" * 6,
    ]
    for row in comparison.cutoffs:
        test = row.bootstrap
        cells = [
            f"R@{row.k}",
            f"{100 * row.first:.1f}",
            f"{100 * row.second:.1f}",
            f"{100 * test.difference:+.1f}",
            f"{100 * test.low:+.1f} … {100 * test.high:+.1f}",
            _p_value(test.p_value),
            _p_value(row.t_test.p_value),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    counts = f"{comparison.queries:,} queries in {comparison.groups:,} groups, {first_bootstrap.samples:,} resamples"
    return "\n".join([*lines, "", f"{counts}; {seeds}.", ""])


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.00005 else f"{value:.4f}"
