"""Which pictures a search may find, by what is known of them: `date>=2024-05`, `folder=trips/2024`, `licence=CC0`.

A filter is FIELD OP VALUE; several must all hold. `date` is when a picture was taken (or else its file's time); a value
may be a year, a month or a day, and `=` means within it. `folder` is the picture's folder below that of the collection:
`=` is in it or deeper. All other fields are those of metadata.jsonl; numbers compare as numbers, texts as texts, and a
list holds a value where one of its members does. `=`, `!=`, `<`, `<=`, `>`, `>=`, and `~`: contains, in any case.
"""

from __future__ import annotations

import json
import re
from calendar import isleap, monthrange
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot
from voken.errors import ConfigError
from voken.shapes import Bool, Int64

DATE, FOLDER = "date", "folder"
_PARSED = re.compile(r"\s*([^=!<>~]+?)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")
_FIELDS_FROM = 2_000
"""Pictures whose metadata is looked through for the names of fields."""

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@dataclass(frozen=True)
class Filter:
    """One condition. Make it with `parse`."""

    field: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Filter:
        """From FIELD OP VALUE. Raises `ConfigError` where it is not that, or a date is none."""
        found = _PARSED.fullmatch(text)
        if found is None or not found[3]:
            raise ConfigError(
                f"filter {text!r}: give FIELD=VALUE, e.g. folder=trips, date>=2024-05, licence!=CC0, title~dog."
            )
        made = cls(found[1], found[2], found[3])
        if made.field == DATE:
            if made.operator == "~":
                raise ConfigError(f"filter {text!r}: a date has no parts to contain. Use =, <, <=, > or >=.")
            _period(made.value)
        if made.field == FOLDER and made.operator not in ("=", "!=", "~"):
            raise ConfigError(f"filter {text!r}: folders have no order. Use =, != or ~.")
        return made


def matching_rows(snapshot: Snapshot, filters: Iterable[Filter]) -> Int64[np.ndarray, " rows"]:
    """The rows of the pictures that all `filters` let through, ascending."""
    rows = snapshot.rows
    for one in filters:
        rows = rows[_lets_through(snapshot, rows, one)]
    return rows


def fields_of(snapshot: Snapshot) -> list[str]:
    """What filters may name: `date`, `folder`, and the fields of some pictures' metadata."""
    found: set[str] = set()
    for row in snapshot.rows[:_FIELDS_FROM].tolist():
        found |= _fields(snapshot.metadata(row)).keys()
    return [DATE, FOLDER, *sorted(found - {DATE, FOLDER})]


def _lets_through(snapshot: Snapshot, rows: Int64[np.ndarray, " rows"], one: Filter) -> Bool[np.ndarray, " rows"]:
    if one.field == DATE:
        facts = snapshot.facts
        if facts is None:
            return np.zeros(len(rows), bool)
        return _dates(facts[rows]["taken"], one)
    if one.field == FOLDER:
        test = _folder_test(one)
        return np.fromiter((test(snapshot.stored_paths[row]) for row in rows.tolist()), bool, len(rows))
    value_test = _value_test(one)
    return np.fromiter(
        (value_test(_fields(snapshot.metadata(row)).get(one.field)) for row in rows.tolist()), bool, len(rows)
    )


def _dates(taken: Int64[np.ndarray, " rows"], one: Filter) -> Bool[np.ndarray, " rows"]:
    first, end = _period(one.value)
    tests: dict[str, Callable[[], Any]] = {
        "=": lambda: (taken >= first) & (taken < end),
        "!=": lambda: (taken < first) | (taken >= end),
        "<": lambda: taken < first,
        "<=": lambda: taken < end,
        ">": lambda: taken >= end,
        ">=": lambda: taken >= first,
    }
    found: np.ndarray = tests[one.operator]()
    return found


def _period(value: str) -> tuple[int, int]:
    """First second of a year, month or day, and the one after its last."""
    said = _DATE.fullmatch(value)
    try:
        if said is None:
            raise ValueError(value)
        year, month, day = int(said[1]), int(said[2] or 1), int(said[3] or 1)
        begin = datetime(year, month, day, tzinfo=UTC)
        days = 1
        if not said[2]:
            days = 365 + isleap(year)
        elif not said[3]:
            days = monthrange(year, month)[1]
        first = int(begin.timestamp())
        return first, first + 86_400 * days
    except ValueError:
        raise ConfigError(f"filter on date: {value!r} is no date. Give YYYY, YYYY-MM or YYYY-MM-DD.") from None


def _folder_test(one: Filter) -> Callable[[str], bool]:
    wanted = one.value.strip("/").removeprefix("./")

    def folder(name: str) -> str:
        return name.removeprefix(UPLOAD_PREFIX).rpartition("/")[0].strip("/")

    def within(name: str) -> bool:
        here = folder(name)
        return here == wanted or here.startswith(f"{wanted}/") or wanted in ("", ".")

    if one.operator == "~":
        part = one.value.casefold()
        return lambda name: part in folder(name).casefold()
    return within if one.operator == "=" else lambda name: not within(name)


def _value_test(one: Filter) -> Callable[[Any], bool]:
    number = _number(one.value)
    part = one.value.casefold()

    def holds(value: Any) -> bool:
        if isinstance(value, list):
            return any(holds(member) for member in value)
        if value is None:
            return False
        if one.operator == "~":
            return part in _text(value).casefold()
        own = _number(value)
        if number is not None and own is not None:
            return own == number if one.operator in ("=", "!=") else _ORDER[one.operator](own, number)
        text = _text(value)
        return text == one.value if one.operator in ("=", "!=") else _ORDER[one.operator](text, one.value)

    return (lambda value: not holds(value)) if one.operator == "!=" else holds


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
    said = json.loads(metadata)
    return said if isinstance(said, dict) else {}


def parse_all(texts: Sequence[str]) -> tuple[Filter, ...]:
    """Each of them. Raises `ConfigError` for the first that is none."""
    return tuple(map(Filter.parse, texts))
