"""Dates as cameras, programs and people write them, and what a filter on the date makes of them."""

import json
import os
from datetime import UTC, datetime

import pytest
from PIL import Image

from builders.tiny_model import tiny_model
from builders.zones import in_zone
from voken import Collection
from voken.collection.filters import Filter, matching_rows
from voken.collection.store import Store
from voken.data.dates import date_in_metadata, parse_date
from voken.data.images import date_taken

NEW_YEAR = 1735700400
"""2025-01-01 03:00 in London, and 22:00 of the day before in New York."""


def at(*parts):
    return int(datetime(*parts, tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2019:05:01 10:00:00", at(2019, 5, 1, 10)),
        ("2019:05:01 10:00:00\0", at(2019, 5, 1, 10)),
        (b"2019:05:01 10:00:00\0", at(2019, 5, 1, 10)),
        (" 2019:05:01  10:00:00 ", at(2019, 5, 1, 10)),
        ("2019:05:01 10:00:00.25", at(2019, 5, 1, 10)),
        ("2019:05:01 10:00:00,25", at(2019, 5, 1, 10)),
        ("2019-05-01 10:00:00", at(2019, 5, 1, 10)),
        ("2019/05/01 10:00", at(2019, 5, 1, 10)),
        ("2019.5.1 9:07:03", at(2019, 5, 1, 9, 7, 3)),
        ("2019-05-01T10:00:00+02:00", at(2019, 5, 1, 10)),
        ("2019-05-01T10:00:00.123456Z", at(2019, 5, 1, 10)),
        ("2019:05:01 10:00:00-0700", at(2019, 5, 1, 10)),
        ("20190501T100000", at(2019, 5, 1, 10)),
        ("20190501", at(2019, 5, 1)),
        ("2019:05:01", at(2019, 5, 1)),
        ("2019-05", at(2019, 5, 1)),
        ("2019", at(2019, 1, 1)),
        (2019, at(2019, 1, 1)),
        ("2019:00:00 00:00:00", at(2019, 1, 1)),
        ("2019:05:01 24:00:00", at(2019, 5, 2)),
        ("2019:05:01 10:00:60", at(2019, 5, 1, 10, 1)),
        ("2019:05:01 3 PM", at(2019, 5, 1)),
        ("1503", at(1503, 1, 1)),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("", None),
        (None, None),
        ("2019:13:01 10:00:00", None),
        ("2019:02:30 10:00:00", None),
        ("2019:05:01 25:00:00", None),
        ("1735700400", None),
        ("2019:05:011", None),
        ("soon", None),
        ("9999:12:31 24:00:00", None),
    ],
)
def test_forms_of_dates(text, date):
    assert parse_date(text) == date


@pytest.mark.parametrize(
    ("metadata", "date"),
    [
        ('{"date":"2001-02-03"}', at(2001, 2, 3)),
        ('{"date":1503}', at(1503, 1, 1)),
        ('{"date":true}', None),
        ('{"date":["2001"]}', None),
        ('{"title":"\\"date\\""}', None),
        ('{"other":{"date":"2001"}}', None),
        ("", None),
    ],
)
def test_dates_in_metadata(metadata, date):
    assert date_in_metadata(metadata) == date


def photograph(path, *, taken=None, digitized=None, changed=None, gps=None):
    exif = Image.Exif()
    details = exif.get_ifd(0x8769)
    for tags, tag, value in ((exif, 306, changed), (details, 0x9003, taken), (details, 0x9004, digitized)):
        if value:
            tags[tag] = value
    if gps:
        exif.get_ifd(0x8825).update({29: gps[0], 7: gps[1]})
    Image.new("RGB", (8, 8), "red").save(path, exif=exif)
    os.utime(path, (NEW_YEAR, NEW_YEAR))
    return path


D = "2019:05:01 10:00:00"


@pytest.mark.parametrize(
    "tags",
    [
        {"taken": D, "digitized": "2020:01:01 00:00:00", "changed": "2021:01:01 00:00:00"},
        {"taken": "0000:00:00 00:00:00", "changed": D},
        {"taken": "    :  :     :  :  ", "digitized": D, "changed": "2021:01:01 00:00:00"},
        {"digitized": D},
        {"changed": "2019-05-01T10:00:00Z"},
    ],
)
def test_the_first_usable_date_of_a_file_counts(tmp_path, tags):
    assert date_taken(photograph(tmp_path / "a.jpg", **tags)) == at(2019, 5, 1, 10)


def test_the_time_of_satellites_is_utc(tmp_path):
    path = photograph(tmp_path / "a.jpg", gps=("2019:05:01", (2.0, 30.0, 0.0)))
    with in_zone("America/New_York"):
        assert date_taken(path) == at(2019, 4, 30, 22, 30)
    with in_zone("UTC"):
        assert date_taken(path) == at(2019, 5, 1, 2, 30)
    path = photograph(tmp_path / "b.jpg", gps=("", (float("inf"), 0.0, 0.0)))
    assert date_taken(path) is None


def test_a_filter_knows_the_zone_of_a_files_time_and_no_zone_of_a_clocks(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    photograph(folder / "plain.jpg")
    photograph(folder / "clock.jpg", taken="2024:12:31 23:59:59")
    photograph(folder / "day.jpg", taken="2025:01:01")
    # the clock of this one shows what the file's time is in London
    photograph(folder / "same.jpg", taken="2025:01:01 03:00:00")
    photograph(folder / "told.jpg", taken="2025:01:01 03:00:00")
    lines = [{"file_name": path.name} for path in sorted(folder.glob("*.jpg"))]
    lines[-1]["date"] = "2001-02-03"
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def matching(text):
        snapshot = Store.open(tmp_path / "c").snapshot()
        rows = matching_rows(snapshot, [Filter.parse(text)])
        return {snapshot.ids[row].removesuffix(".jpg") for row in rows.tolist()}

    with in_zone("Asia/Tokyo"):
        Collection.index(tmp_path / "c", folder, tiny_model())
    for zone, new_year in (("Europe/London", {"plain"}), ("America/New_York", set())):
        with in_zone(zone):
            assert matching("date=2025") == matching("date>2024-12-31") == {"day", "same"} | new_year
            assert matching("date=2024-12") == {"clock", "plain"} - new_year
            assert matching("date=2001-02-03") == matching("metadata.date=2001-02-03") == {"told"}
            assert matching("date<2025") == matching("date!=2025") == {"clock", "told"} | ({"plain"} - new_year)
            assert matching("date>=0001-01-01") == matching("date<=9999-12-31") == matching("date!=9999")
    # a date that is written down later counts, though the file is the same
    lines[0]["date"] = 1999
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Collection.index(tmp_path / "c", folder, tiny_model())
    assert matching("date=1999") == {"clock"}
