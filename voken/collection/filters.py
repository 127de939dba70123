"""Filters limit a search to some pictures: `date>=2024-05`, `folder=trips/2024`, `licence=CC0`.

A filter is FIELD OP VALUE; a picture must match all filters of a search. The operators are `=`, `!=`, `<`, `<=`, `>`,
`>=`, and `~`, which means "contains".

The field `date` is when the picture was taken: the date in its metadata, or else in its file (see `voken.data.dates`),
or else the time of the file, in the zone of the machine that searches. Its value is a year, a month or a day, and `=`
means within it. `folder` is the picture's folder, relative to that of the collection's pictures; `=` means in this
folder or deeper. All other fields are those of metadata.jsonl; `metadata.date` and `metadata.folder` are its own fields
of these two names. A field that no picture has is an error.

Values have types, and a value matches only its own type:

- Numbers compare as they are written, however long they are: `size=0.1`, `id=1234567890123456789`, `n>1e3`.
- `true` and `false` match JSON's; so do `1` and `0`.
- Texts compare as texts, even if they hold digits (`code=007` is not 7), without regard to case or to how accents are
  composed.
- A list matches if one of its members does.
- A missing value matches only `!=` and `FIELD=""`.

Double quotes make a value a text: `code="7"`, `title=" =x"`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from calendar import isleap, monthrange
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from operator import eq, ge, gt, le, lt
from typing import Any

import numpy as np

from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot
from voken.data.dates import NO_DATE
from voken.data.location import is_location, without_location
from voken.data.metadata import metadata_fields
from voken.errors import ConfigError
from voken.shapes import Bool, Int64, Shaped

DATE, FOLDER = "date", "folder"
OWN_FIELD_PREFIX = "metadata."
_OPERATOR = re.compile(r"!=|<=|>=|=|<|>|~")
_OPERATOR_CHARACTERS = "=<>~!"
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?")
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_FIELDS_NAMED = 20

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"=": eq, "!=": eq, "<": lt, "<=": le, ">": gt, ">=": ge}
"""`!=` is tested as `=`, and the result is negated."""


@dataclass(frozen=True)
class Filter:
    """One condition. Create one with `parse`."""

    field: str
    operator: str
    value: str
    is_text: bool = False
    """Whether the value was in double quotes, and so is neither a number nor true or false."""
    hides_location: bool = False
    """Whether it is an error to ask where pictures were taken."""

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read FIELD OP VALUE. Raises `ConfigError` if `text` is not a filter, or if its date is not a date."""
        operator = _OPERATOR.search(text)
        field = text[: operator.start()].strip() if operator else ""
        value = text[operator.end() :].strip() if operator else ""
        if operator is None or not field or not value or "!" in field:
            raise ConfigError(
                f"filter {text!r}: write FIELD=VALUE, e.g. folder=trips, date>=2024-05, licence!=CC0, title~dog."
            )
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        parsed = cls(field, operator[0], value[1:-1] if quoted else value, quoted)
        parsed._check(text)
        return parsed

    def _check(self, text: str) -> None:
        if not self.is_text and self.operator != "~" and self.value[0] in _OPERATOR_CHARACTERS:
            raise ConfigError(
                f"filter {text!r}: {self.operator + self.value[0]!r} is no operator. Use =, !=, <, <=, >, >= or ~. "
                f'Put a value that begins so in double quotes: {self.field}{self.operator}"{self.value}".'
            )
        if not self.value and self.operator not in ("=", "!="):
            raise ConfigError(f"filter {text!r}: an empty value stands for a missing one. Use = or !=.")
        if self.field == DATE:
            if self.operator == "~":
                raise ConfigError(f"filter {text!r}: a date cannot contain a text. Use =, <, <=, > or >=.")
            _period(self.value)
        if self.field == FOLDER and self.operator not in ("=", "!=", "~"):
            raise ConfigError(f"filter {text!r}: folders have no order. Use =, != or ~.")

    @cached_property
    def number(self) -> Decimal | None:
        """The value as a number, exactly as it is written; None if it is a text."""
        if self.is_text or not _NUMBER.fullmatch(self.value):
            return None
        try:
            return Decimal(self.value)
        except ArithmeticError:  # an exponent of more than eighteen digits
            return None

    @cached_property
    def truth(self) -> bool | None:
        """The value as true or false; None if it is neither."""
        return None if self.is_text else {"true": True, "1": True, "false": False, "0": False}.get(self.folded)

    @cached_property
    def folded(self) -> str:
        """The value for comparisons without regard to case and composition."""
        return _fold(self.value)


def matching_rows(snapshot: Snapshot, filters: Iterable[Filter]) -> Int64[np.ndarray, " rows"]:
    """The rows of the pictures that match all `filters`, ascending. Raises `ConfigError` if no picture has a field."""
    rows = snapshot.rows
    for condition in filters if len(rows) else ():
        rows = rows[_matches(snapshot, rows, condition)]
    return rows


def fields_of(snapshot: Snapshot, *, hides_location: bool = False) -> list[str]:
    """The fields that filters can name: `date`, `folder`, and those of the pictures' metadata.

    With `hides_location`, without those that say where a picture was taken.
    """
    names = [name for name in snapshot.field_names if not (hides_location and is_location(name))]
    own = {f"{OWN_FIELD_PREFIX}{name}" if name in (DATE, FOLDER) else name for name in names}
    return [DATE, FOLDER, *sorted(own)]


def _matches(snapshot: Snapshot, rows: Int64[np.ndarray, " rows"], condition: Filter) -> Bool[np.ndarray, " rows"]:
    if condition.field == DATE:
        facts = snapshot.facts
        if facts is None:
            return np.zeros(len(rows), bool)
        return _dates_match(facts[rows], condition)
    if condition.field == FOLDER:
        test = _folder_test(condition)
        return np.fromiter((test(snapshot.stored_paths[row]) for row in rows.tolist()), bool, len(rows))
    field = metadata_field(snapshot, condition.field, hides_location=condition.hides_location)
    value_test = _value_test(condition)
    values: Iterator[Any] = (metadata_fields(snapshot.metadata(row), exact=True).get(field) for row in rows.tolist())
    if condition.hides_location:
        values = map(without_location, values)
    return np.fromiter(map(value_test, values), bool, len(rows))


def metadata_field(snapshot: Snapshot, name: str, *, hides_location: bool = False) -> str:
    """The field of the metadata that a filter names. Raises `ConfigError` if no picture has it, or if it is hidden."""
    names = snapshot.field_names
    own = name.removeprefix(OWN_FIELD_PREFIX)
    if hides_location and is_location(own):
        raise ConfigError(f"filter on {name!r}: where pictures were taken is hidden here. Use another field.")
    if name in names or own in names:
        return name if name in names else own
    from difflib import get_close_matches

    fields = fields_of(snapshot, hides_location=hides_location)
    close = get_close_matches(name.casefold(), [field.casefold() for field in fields], 1)
    suggestion = next((f" Did you mean {field!r}?" for field in fields if field.casefold() in close), "")
    more = f" and {len(fields) - _FIELDS_NAMED:,} more" if len(fields) > _FIELDS_NAMED else ""
    raise ConfigError(
        f"filter on {name!r}: no picture has this field.{suggestion} The fields are "
        f"{', '.join(fields[:_FIELDS_NAMED])}{more}."
    )


def _dates_match(facts: Shaped[np.ndarray, " rows"], condition: Filter) -> Bool[np.ndarray, " rows"]:
    by_clock, by_file = _period(condition.value)
    undated = facts["taken"] == NO_DATE
    dates = np.where(undated, facts["modified"] // 1_000_000_000, facts["taken"])
    first, end = (np.where(undated, *bounds) for bounds in zip(by_file, by_clock, strict=True))
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


def _period(value: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first second of a year, month or day, and the first second after it: of clocks' dates, and of files' times.

    A clock's date is stored as if it were UTC. A file's time is an instant, which has its day in this machine's zone.
    """
    parts = _DATE.fullmatch(value)
    try:
        if parts is None:
            raise ValueError(value)
        year, month, day = int(parts[1]), int(parts[2] or 1), int(parts[3] or 1)
        begin = datetime(year, month, day, tzinfo=UTC)
    except ValueError:
        raise ConfigError(f"filter on date: {value!r} is not a date. Give YYYY, YYYY-MM or YYYY-MM-DD.") from None
    days = 1
    if not parts[2]:
        days = 365 + isleap(year)
    elif not parts[3]:
        days = monthrange(year, month)[1]
    first = int(begin.timestamp())
    end = first + 86_400 * days
    return (first, end), (_instant(first), _instant(end))


def _instant(clock: int) -> int:
    """The second since 1970 at which clocks in this machine's zone show `clock`."""
    try:
        return int(datetime.fromtimestamp(clock, UTC).replace(tzinfo=None).timestamp())
    except (ValueError, OverflowError, OSError):  # the first and the last day that Python has
        return clock


def _folder_test(condition: Filter) -> Callable[[str], bool]:
    folder = condition.folded.strip("/").removeprefix("./")

    def parent(path: str) -> str:
        return _fold(path.removeprefix(UPLOAD_PREFIX).rpartition("/")[0].strip("/"))

    def within(path: str) -> bool:
        return folder in ("", ".") or f"{parent(path)}/".startswith(f"{folder}/")

    if condition.operator == "~":
        return lambda path: condition.folded in parent(path)
    return within if condition.operator == "=" else lambda path: not within(path)


def _value_test(condition: Filter) -> Callable[[Any], bool]:
    operator, number, truth, folded = condition.operator, condition.number, condition.truth, condition.folded
    compare = _COMPARE.get(operator)

    def holds(value: Any) -> bool:
        if value is None:
            return False
        if isinstance(value, list):
            return any(map(holds, value))
        if compare is None:  # "~"
            return folded in _fold(_text(value))
        if isinstance(value, bool):
            return operator in ("=", "!=") and value is truth
        if isinstance(value, (int, Decimal)):
            return number is not None and compare(value, number)
        return compare(_fold(_text(value)), folded)

    if not condition.value:
        return _is_missing if operator == "=" else lambda value: not _is_missing(value)
    return (lambda value: not holds(value)) if operator == "!=" else holds


def _is_missing(value: Any) -> bool:
    return value is None or value in ("", [], {})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fold(text: str) -> str:
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def parse_all(texts: Sequence[str], *, hides_location: bool = False) -> tuple[Filter, ...]:
    """Parse each text. Raises `ConfigError` for the first that is not a filter."""
    return tuple(replace(Filter.parse(text), hides_location=hides_location) for text in texts)
