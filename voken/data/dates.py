"""When a picture was taken, as cameras, programs and people write it.

A date is a clock's time where the picture was taken: seconds since 1970 of that local time, read as if it were UTC. A
zone beside it (`+02:00`, `Z`, OffsetTimeOriginal) is that of the clock, and so changes nothing: a picture of the last
evening of December is of December, wherever it is looked at.

    parse_date("2019:05:01 10:00:00")            EXIF
    parse_date("2019-05-01T10:00:00.25+02:00")   ISO 8601: the same second
    parse_date("2019:05:01")                     the beginning of the day
    parse_date("0000:00:00 00:00:00")            None, and so are blanks
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from voken.data.metadata import metadata_fields

if TYPE_CHECKING:
    from PIL.Image import Exif

NO_DATE = -(1 << 63)
"""Stands for a date that is not recorded; then the time of the file counts."""

_DATE = re.compile(
    r"(\d{4})(?:[:./ -](\d{1,2})(?:[:./ -](\d{1,2}))?|(\d{2})(\d{2}))?"
    r"(?:[T ]\s*(\d{1,2})[:.h-]?(\d{2})(?:[:.-]?(\d{2})(?:[.,:]\d+)?)?)?"
    r"\s*(?:Z|UTC|GMT|[+-]\d{1,2}:?(?:\d{2})?)?",
    re.ASCII | re.IGNORECASE,
)
_DAY = re.compile(r"(\d{4})[:./-](\d{1,2})[:./-](\d{1,2})(?!\d)", re.ASCII)
"""What is read of a text whose time is in another form, such as "2019:05:01 3 PM"."""
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_TAKEN, _DIGITIZED, _CHANGED = 0x9003, 0x9004, 0x0132
_GPS_TIME, _GPS_DATE = 7, 29


def parse_date(text: object) -> int | None:
    """The date in a text, at its beginning if it is a day, a month or a year; None if there is none.

    A month or a day of zero is not known, and counts as the first.
    """
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    text = str(text).strip("\0 \t\r\n")
    parts = _DATE.fullmatch(text) or _DAY.match(text)
    if parts is None:
        return None
    numbers = [int(part or 0) for part in parts.groups()]
    year, month, day, short_month, short_day, hours, minutes, seconds = (*numbers, *[0] * 5)[:8]
    try:
        begin = datetime(year, month or short_month or 1, day or short_day or 1, tzinfo=UTC)
        if hours > 24 or minutes > 59 or seconds > 60:
            return None
        return int((begin + timedelta(hours=hours, minutes=minutes, seconds=seconds)).timestamp())
    except (ValueError, OverflowError):
        return None


def date_in_metadata(metadata: str) -> int | None:
    """The date in the field `date` of a picture's metadata (see `voken.data.metadata`); None if it has none."""
    value = metadata_fields(metadata).get("date") if '"date"' in metadata else None
    return parse_date(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def date_in_exif(exif: Exif) -> int | None:
    """The first usable date in EXIF data: when the picture was taken, digitized or changed, or the satellites' time.

    The satellites' time is UTC, and is turned into the time of this machine's zone.
    """
    for value in _exif_dates(exif):
        date = parse_date(value)
        if date is not None:
            return date
    gps = exif.get_ifd(_GPS_IFD)
    day = parse_date(gps.get(_GPS_DATE))
    if day is None:
        return None
    utc = datetime.fromtimestamp(day + _seconds(gps.get(_GPS_TIME)), UTC)
    return int(utc.astimezone().replace(tzinfo=UTC).timestamp())


def _exif_dates(exif: Exif) -> Iterator[Any]:
    details = exif.get_ifd(_EXIF_IFD)
    yield from (details.get(_TAKEN), exif.get(_TAKEN), details.get(_DIGITIZED), exif.get(_DIGITIZED))
    yield from (exif.get(_CHANGED), details.get(_CHANGED))


def _seconds(clock: Any) -> int:
    try:
        hours, minutes, seconds = map(float, clock)
        return int(3600 * hours + 60 * minutes + seconds)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return 0
