"""The fields of a picture, and values that JSON, SQLite or Python refuse."""

import datetime
import json
from decimal import Decimal
from pathlib import PurePosixPath

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from voken.data.captions import read_dataset
from voken.data.metadata import metadata_fields, metadata_text
from voken.errors import DataError

HUGE = "9" * 5_000
"""More digits than Python turns into a number."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None, exclude_categories=())),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(st.characters(codec=None, exclude_categories=())), VALUES, max_size=4))
def test_whatever_is_stored_is_json_that_every_reader_takes(fields):
    text = metadata_text(fields)
    text.encode()
    if fields:
        assert json.loads(text, parse_constant=pytest.fail).keys() == metadata_fields(text).keys()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), st.text() | st.integers() | st.booleans() | st.none(), max_size=4))
def test_plain_values_are_read_back_as_they_were(fields):
    assert metadata_fields(metadata_text(fields)) == fields


@pytest.mark.parametrize(
    ("line", "stored"),
    [
        (r'{"t": "cut \ud83d"}', {"t": "cut ?"}),
        (r'{"deep": [{"\ud83d": ["\udc00 x"]}]}', {"deep": [{"?": ["? x"]}]}),
        ('{"n": NaN, "m": 1}', {"m": 1}),
        ('{"n": [NaN, Infinity, -Infinity, 1]}', {"n": [None, None, None, 1]}),
        ('{"n": ' + "9" * 400 + "}", {"n": int("9" * 400)}),
        ('{"n": ' + HUGE + "}", {"n": HUGE}),
        ('{"n": 1e400, "m": -0.5}', {"n": "1e400", "m": -0.5}),
    ],
)
def test_one_odd_value_stops_nothing(tmp_path, line, stored):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    first = line.replace("{", '{"file_name": "a.png", ', 1)
    (tmp_path / "metadata.jsonl").write_text(f'{first}\n{{"file_name": "b.png", "n": 2}}')
    odd, plain = read_dataset(tmp_path).images
    assert metadata_fields(odd.metadata) == stored
    assert plain.metadata == '{"n":2}'


def test_values_of_other_libraries(tmp_path):
    fields = {
        "f": np.float32(0.5),
        "i": np.int64(3),
        "nan": np.float64("nan"),
        "a": np.array([1, 2]),
        "d": datetime.date(2020, 1, 2),
        "p": PurePosixPath("a/b"),
        "t": (1, "x"),
        "huge": 10**5_000,
        "decimal": Decimal("1.5"),
    }
    assert metadata_fields(metadata_text(fields)) == {
        "f": 0.5,
        "i": 3,
        "nan": None,
        "a": [1, 2],
        "d": "2020-01-02",
        "p": "a/b",
        "t": [1, "x"],
        "huge": hex(10**5_000),
        "decimal": 1.5,
    }


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return {"deep": value}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"x": {1, 2}}, "a set cannot be stored"),
        ({"x": b"bytes"}, "a bytes cannot be stored"),
        ({(1, 2): 3}, "keys must be str"),
        (["x"], "a list is not a dictionary"),
        (nested(100_000), "it is nested too deeply"),
    ],
)
def test_what_json_has_no_form_for_is_an_error(fields, says):
    with pytest.raises(DataError, match=says):
        metadata_text(fields)


@pytest.mark.parametrize("text", ["", "[1]", "{", "3", "[" * 100_000])
def test_what_is_no_object_has_no_fields(text):
    assert metadata_fields(text) == {}


def test_exact_numbers_are_those_in_the_text():
    text = '{"a": 0.10, "b": 1e400, "c": 1e99999999999999999999, "d": NaN, "e": 7}'
    assert metadata_fields(text, exact=True) == {
        "a": Decimal("0.10"),
        "b": Decimal("1e400"),
        "c": "1e99999999999999999999",
        "d": None,
        "e": 7,
    }
