"""The pictures of one version in the order in which people look at them: newest first, by month and by folder.

    gallery = Gallery.of(snapshot)
    gallery.months                    ("2024-05", 132), ("2024-04", 8), …
    gallery.page(0, 100)              rows of the snapshot
    gallery.subfolders("trips")       trips/2023 (41 pictures), trips/2024 (12)

A gallery knows nothing about searches, and reads no picture.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Self

import numpy as np

from voken.collection.filters import DATE, FOLDER, Filter, matching_rows, metadata_field
from voken.collection.snapshot import UPLOAD_PREFIX, Snapshot
from voken.data.dates import NO_DATE
from voken.data.metadata import metadata_fields
from voken.shapes import Int64

_VALUES_COUNTED = 100_000
_NANOSECONDS = 1_000_000_000
_GALLERIES = 8


@dataclass(frozen=True)
class Subfolder:
    """A folder in a folder, and how many pictures are in it or deeper."""

    path: str
    pictures: int
    has_subfolders: bool


@dataclass(frozen=True, eq=False)
class Gallery:
    """The pictures that pass some filters, newest first; pictures of the same second in the order of their ids."""

    snapshot: Snapshot
    rows: Int64[np.ndarray, " pictures"]
    """Row numbers, newest first."""
    seconds: Int64[np.ndarray, " pictures"]
    """When each was taken: seconds since 1970 on the clock of that place, as if it were UTC."""

    @classmethod
    def of(cls, snapshot: Snapshot, filters: Iterable[Filter] = ()) -> Self:
        """The pictures that pass all `filters`. Raises `ConfigError` if no picture has a field."""
        rows = matching_rows(snapshot, filters)
        seconds = taken_seconds(snapshot, rows)
        order = np.argsort(-seconds, kind="stable")
        return cls(snapshot, rows[order], seconds[order])

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def months(self) -> tuple[tuple[str, int], ...]:
        """Each month with pictures, newest first, and how many it has."""
        if not len(self):
            return ()
        months = (self.seconds.astype("datetime64[s]").astype("datetime64[M]")).astype(np.int64)
        starts = np.flatnonzero(np.diff(months, prepend=months[0] + 1))
        counts = np.diff(starts, append=len(months))
        names = [str(np.datetime64(int(month), "M")) for month in months[starts]]
        return tuple(zip(names, counts.tolist(), strict=True))

    def page(self, offset: int, limit: int) -> Sequence[int]:
        """The rows of at most `limit` pictures, from the place `offset`."""
        rows: Sequence[int] = self.rows[offset : offset + limit].tolist()
        return rows

    @cached_property
    def folders(self) -> dict[str, int]:
        """Every folder with pictures in it or deeper, and how many. The top has the empty text as its path."""
        direct = Counter(folder_of(self.snapshot.stored_paths[row]) for row in self.rows.tolist())
        totals: Counter[str] = Counter()
        for folder, count in direct.items():
            totals[""] += count
            parts = folder.split("/") if folder else []
            for depth in range(1, len(parts) + 1):
                totals["/".join(parts[:depth])] += count
        return dict(totals)

    def subfolders(self, parent: str) -> list[Subfolder]:
        """The folders directly in `parent`, by name. The empty text is the folder of the collection's pictures."""
        return [Subfolder(path, self.folders[path], path in self._children) for path in self._children.get(parent, ())]

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for path in sorted(self.folders, key=lambda path: (path.casefold(), path)):
            if path:
                children.setdefault(path.rpartition("/")[0], []).append(path)
        return children


def taken_seconds(snapshot: Snapshot, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
    """When pictures were taken, or when their files changed: seconds on a clock, as if it were UTC."""
    facts = snapshot.facts
    if facts is None or not len(rows):
        return np.zeros(len(rows), np.int64)
    values = facts[rows]
    seconds: np.ndarray = values["taken"].astype(np.int64)
    unknown = np.flatnonzero(seconds == NO_DATE)
    for place in unknown.tolist():
        seconds[place] = _local_clock(int(values["modified"][place]) // _NANOSECONDS)
    return seconds


def _local_clock(instant: int) -> int:
    """What clocks in this machine's zone show at an instant, as seconds."""
    try:
        return int(datetime.fromtimestamp(instant).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError, OSError):
        return 0


def folder_of(stored_path: str) -> str:
    """The folder of a picture, as the filter `folder` names it; the empty text for the top."""
    return stored_path.removeprefix(UPLOAD_PREFIX).rpartition("/")[0].strip("/")


def field_values(gallery: Gallery, name: str, *, hides_location: bool = False) -> Counter[str]:
    """How many pictures have each value of a field, as a filter would name it. Raises `ConfigError` for no field.

    Counts at most 100,000 different values. Lists count once for each member; objects are left out.
    """
    snapshot, rows = gallery.snapshot, gallery.rows.tolist()
    if name == FOLDER:
        return Counter({path: count for path, count in gallery.folders.items() if path})
    if name == DATE:
        counts: Counter[str] = Counter(dict(gallery.months))
        for month, count in gallery.months:
            counts[month[:-3]] += count
        return counts
    own, values = metadata_field(snapshot, name, hides_location=hides_location), Counter[str]()
    for row in rows:
        value = metadata_fields(snapshot.metadata(row), exact=True).get(own)
        for member in value if isinstance(value, list) else [value]:
            text = _filter_value(member)
            if text and (text in values or len(values) < _VALUES_COUNTED):
                values[text] += 1
    return values


def _filter_value(value: object) -> str:
    """A value as a filter writes it; the empty text for what no filter can name."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list) or value is None:
        return ""
    return str(value).strip()


class Galleries:
    """The galleries of a collection's newest version, of which it holds a few. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[str, int] | None = None
        self._galleries: dict[tuple[Filter, ...], Gallery] = {}

    def get(self, snapshot: Snapshot, filters: tuple[Filter, ...]) -> Gallery:
        """The gallery of `snapshot` for these filters. Raises `ConfigError` if no picture has a field."""
        with self._lock:
            if self._key != snapshot.key:
                self._key = snapshot.key
                self._galleries.clear()
            if filters not in self._galleries:
                gallery = Gallery.of(snapshot, filters)
                while len(self._galleries) >= _GALLERIES:
                    self._galleries.pop(next(iter(self._galleries)))
                self._galleries[filters] = gallery
            return self._galleries[filters]
