"""Filters limit a search to some pictures: `date>=2024-05`, `folder=trips/2024`, `licence=CC0`.

A filter is FIELD OP VALUE; a picture must match all filters of a search. The field `date` is when the picture was
taken, or the time of its file if that is not recorded; its value is a year, a month or a day, and `=` means within it.
`folder` is the picture's folder, relative to the folder of the collection's pictures; `=` means in this folder or
deeper. All other fields are those of metadata.jsonl. Numbers compare as numbers and texts as texts; a list matches if
one of its members does. The operators are `=`, `!=`, `<`, `<=`, `>`, `>=`, and `~`, which means "contains" and ignores
case.
"""

from __future__ import annotations

import json
import re
from calendar import isleap, monthrange
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import eq, ge, gt, le, lt
from typing import Any

import numpy as np

from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot
from voken.errors import ConfigError
from voken.shapes import Bool, Int64

DATE, FOLDER = "date", "folder"
_SYNTAX = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")
_PICTURES_EXAMINED = 2_000
"""The names of fields are collected from the metadata of this many pictures."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
"""`!=` is tested as `=`, and the result is negated."""


@dataclass(frozen=True)
class Filter:
    """One condition. Create one with `parse`."""

    field: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read FIELD OP VALUE. Raises `ConfigError` if `text` is not a filter, or if its date is not a date."""
        parts = _SYNTAX.fullmatch(text)
        if parts is None or not parts[3]:
            raise ConfigError(
                f"filter {text!r}: write FIELD=VALUE, e.g. folder=trips, date>=2024-05, licence!=CC0, title~dog."
            )
        parsed = cls(parts[1], parts[2], parts[3])
        if parsed.field == DATE:
            if parsed.operator == "~":
                raise ConfigError(f"filter {text!r}: a date cannot contain a text. Use =, <, <=, > or >=.")
            _period(parsed.value)
        if parsed.field == FOLDER and parsed.operator not in ("=", "!=", "~"):
            raise ConfigError(f"filter {text!r}: folders have no order. Use =, != or ~.")
        return parsed


def matching_rows(snapshot: Snapshot, filters: Iterable[Filter]) -> Int64[np.ndarray, " rows"]:
    """The rows of the pictures that match all `filters`, ascending."""
    rows = snapshot.rows
    for condition in filters:
        rows = rows[_matches(snapshot, rows, condition)]
    return rows


def fields_of(snapshot: Snapshot) -> list[str]:
    """The fields that filters can name: `date`, `folder`, and those of the metadata of the first pictures."""
    names: set[str] = set()
    for row in snapshot.rows[:_PICTURES_EXAMINED].tolist():
        names |= _fields(snapshot.metadata(row)).keys()
    return [DATE, FOLDER, *sorted(names - {DATE, FOLDER})]


def _matches(snapshot: Snapshot, rows: Int64[np.ndarray, " rows"], condition: Filter) -> Bool[np.ndarray, " rows"]:
    if condition.field == DATE:
        facts = snapshot.facts
        if facts is None:
            return np.zeros(len(rows), bool)
        return _dates_match(facts[rows]["taken"], condition)
    if condition.field == FOLDER:
        test = _folder_test(condition)
        return np.fromiter((test(snapshot.stored_paths[row]) for row in rows.tolist()), bool, len(rows))
    value_test = _value_test(condition)
    return np.fromiter(
        (value_test(_fields(snapshot.metadata(row)).get(condition.field)) for row in rows.tolist()), bool, len(rows)
    )


def _dates_match(dates: Int64[np.ndarray, " rows"], condition: Filter) -> Bool[np.ndarray, " rows"]:
    first, end = _period(condition.value)
    tests: dict[str, Callable[[], Any]] = {
        "=": lambda: (dates >= first) & (dates < end),
        "!=": lambda: (dates < first) | (dates >= end),
        "<": lambda: dates < first,
        "<=": lambda: dates < end,
        ">": lambda: dates >= end,
        ">=": lambda: dates >= first,
    }
    matches: np.ndarray = tests[condition.operator]()
    return matches


def _period(value: str) -> tuple[int, int]:
    """The first second of a year, month or day, and the first second after it."""
    parts = _DATE.fullmatch(value)
    try:
        if parts is None:
            raise ValueError(value)
        year, month, day = int(parts[1]), int(parts[2] or 1), int(parts[3] or 1)
        begin = datetime(year, month, day, tzinfo=UTC)
        days = 1
        if not parts[2]:
            days = 365 + isleap(year)
        elif not parts[3]:
            days = monthrange(year, month)[1]
        first = int(begin.timestamp())
        return first, first + 86_400 * days
    except ValueError:
        raise ConfigError(f"filter on date: {value!r} is not a date. Give YYYY, YYYY-MM or YYYY-MM-DD.") from None


def _folder_test(condition: Filter) -> Callable[[str], bool]:
    folder = condition.value.strip("/").removeprefix("./")

    def parent(path: str) -> str:
        return path.removeprefix(UPLOAD_PREFIX).rpartition("/")[0].strip("/")

    def within(path: str) -> bool:
        return folder in ("", ".") or f"{parent(path)}/".startswith(f"{folder}/")

    if condition.operator == "~":
        part = condition.value.casefold()
        return lambda path: part in parent(path).casefold()
    return within if condition.operator == "=" else lambda path: not within(path)


def _value_test(condition: Filter) -> Callable[[Any], bool]:
    operand_number, operand_folded = _number(condition.value), condition.value.casefold()
    compare = _COMPARE.get(condition.operator)

    def holds(value: Any) -> bool:
        if isinstance(value, list):
            return any(holds(member) for member in value)
        if value is None:
            return False
        if compare is None:  # "~"
            return operand_folded in _text(value).casefold()
        number = _number(value)
        if operand_number is not None and number is not None:
            return compare(number, operand_number)
        return compare(_text(value), condition.value)

    return (lambda value: not holds(value)) if condition.operator == "!=" else holds


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fields(metadata: str) -> dict[str, Any]:
    if not metadata:
        return {}
    fields = json.loads(metadata)
    return fields if isinstance(fields, dict) else {}


def parse_all(texts: Sequence[str]) -> tuple[Filter, ...]:
    """Parse each text. Raises `ConfigError` for the first that is not a filter."""
    return tuple(map(Filter.parse, texts))
