"""What filters match, by type, and which are refused."""

import json
from decimal import Decimal
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.tiny_model import paint, tiny_model
from voken import Collection
from voken.collection.filters import Filter, _value_test, fields_of, matching_rows
from voken.collection.indexing import index_pictures, new_store
from voken.collection.store import Store
from voken.data.captions import read_dataset
from voken.data.metadata import metadata_fields, metadata_text
from voken.errors import ConfigError


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def write_pictures(folder, records, prefix=""):
    """A picture per record, `0.png`, `1.png` …, with its metadata."""
    lines = []
    for place, fields in enumerate(records):
        name = f"{prefix}{place}.png"
        paint(folder / name, (place, 3, 4))
        lines.append(json.dumps({"file_name": name} | fields))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return read_dataset(folder)


def rows_of(snapshot, *texts):
    return matching_rows(snapshot, map(Filter.parse, texts)).tolist()


FIELDS = [
    {"n": 3, "name": "Ålesund", "tags": ["sea", "Ships"], "ok": True, "id": 1234567890123456789, "title": "NaN"},
    {"n": 10.5, "name": "b", "tags": [], "ok": False, "id": 1234567890123456788, "code": "007"},
    {"n": "12", "name": "a", "ok": 1, "price": 0.1, "title": "=7"},
    {"n": 10**400, "name": normalize("NFD", "ÅLESUND"), "ok": "True", "date": "2001-02-03", "folder": "Album A"},
    {"tags": [3, "3"], "code": 7, "deep": {"a": 1}},
]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("in")
    Collection.index(folder / "c", write_pictures(folder, FIELDS), model)
    return Store.open(folder / "c").snapshot()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        # numbers, exactly
        ("n=3", [0]),
        ("n=3.0", [0]),
        ("n=3e0", [0]),
        ("n>3", [1, 3]),
        ("n>1", [0, 1, 2, 3]),
        ("n>=10.5", [1, 2, 3]),
        ("n<12", [0, 1]),
        ("n!=3", [1, 2, 3, 4]),
        ("n>1e399", [3]),
        ("n<1e401", [0, 1, 2, 3]),
        ("n=1e99999999999999999999", []),
        ("id=1234567890123456789", [0]),
        ("id=1234567890123456788", [1]),
        ("id>1234567890123456788", [0]),
        ("price=0.1", [2]),
        ("price=0.10", [2]),
        ("price<0.1000000000000000001", [2]),
        ("price=.1", [2]),
        ("tags=3", [4]),
        ("price=nan", []),
        ("price=1_0", []),
        # texts
        ("n=12", [2]),
        ("n>11", [2, 3]),
        ("code=7", [4]),
        ("code=007", [1]),
        ('code="7"', []),
        ('code="007"', [1]),
        ("title=NaN", [0]),
        ("title=nan", [0]),
        ("title!=NaN", [1, 2, 3, 4]),
        ('title="=7"', [2]),
        ("name=Ålesund", [0, 3]),
        ("name=åLESUND", [0, 3]),
        ("name~ÅLES", [0, 3]),
        (f"name~{normalize('NFD', 'åles')}", [0, 3]),
        ("name>a", [0, 1, 3]),
        ("name=a=b", []),
        ("name~=", []),
        ("tags=sea", [0]),
        ("tags=SHIPS", [0]),
        ("tags~ship", [0]),
        ("tags!=sea", [1, 2, 3, 4]),
        ("deep~a", [4]),
        # true and false
        ("ok=true", [0, 3]),
        ("ok=True", [0, 3]),
        ("ok=1", [0, 2]),
        ("ok=false", [1]),
        ("ok=0", [1]),
        ('ok="true"', [3]),
        ("ok!=true", [1, 2, 4]),
        ("ok>0", [2, 3]),
        # missing
        ('price=""', [0, 1, 3, 4]),
        ('price!=""', [2]),
        ('tags=""', [1, 2, 3]),
        # the data set's own fields of these names
        ("metadata.date=2001-02-03", [3]),
        ("metadata.folder=album a", [3]),
        ("metadata.n=3", [0]),
        ("folder=Album A", []),
        (" n = 3 ", [0]),
    ],
)
def test_values_match_by_type(snapshot, text, rows):
    assert rows_of(snapshot, text) == rows


NUMBERS = st.integers() | st.decimals(allow_nan=False, allow_infinity=False, places=3) | st.floats(allow_nan=False)


@settings(deadline=None)
@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), NUMBERS)
def test_numbers_compare_as_decimals_do(value, operand):
    if isinstance(operand, float) and operand in (float("inf"), -float("inf")):
        return
    stored = metadata_fields(metadata_text({"x": value}), exact=True)["x"]
    left, right = Decimal(str(value)), Decimal(str(operand))
    expected = {
        "=": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }
    for operator, holds in expected.items():
        assert _value_test(Filter.parse(f"x{operator}{operand}"))(stored) == holds


@pytest.mark.parametrize("text", ["licnese=CC0", "licnese!=CC0", 'licnese=""', "NAME=a", "metadata.x=1", "metadata.=1"])
def test_a_field_that_no_picture_has_is_an_error_that_lists_the_fields(snapshot, text):
    with pytest.raises(ConfigError, match="no picture has this field") as caught:
        rows_of(snapshot, text)
    assert "The fields are date, folder, code, deep, id, metadata.date, metadata.folder, n, name" in str(caught.value)
    assert ("Did you mean 'name'?" in str(caught.value)) == text.startswith("NAME")


def test_the_fields_are_those_of_all_pictures(tmp_path, model):
    folder = tmp_path / "in"
    records = [{"common": place} for place in range(2_100)]
    records[-1] |= {"rare": "x"}
    paint(folder / "0.png", (1, 2, 3))
    dataset = write_pictures(folder, records[-2:])
    store = new_store(tmp_path / "c", folder, model)
    index_pictures(store, dataset, model)
    for _ in range(2):
        assert fields_of(store.snapshot()) == ["date", "folder", "common", "rare"]
        assert fields_of(Store.open(tmp_path / "c").snapshot()) == ["date", "folder", "common", "rare"]
        store.compact()
    # a base of an earlier version does not hold them
    header = next((tmp_path / "c").glob("base-*")) / "base.json"
    saved = json.loads(header.read_text())
    assert saved.pop("fields") == ["common", "rare"]
    manifest = header.with_name("manifest.json")
    header.write_text(json.dumps(saved))
    listed = json.loads(manifest.read_text())
    listed["files"].pop("base.json")
    manifest.write_text(json.dumps(listed))
    assert fields_of(Store.open(tmp_path / "c").snapshot()) == ["date", "folder", "common", "rare"]


def test_a_collection_without_pictures_takes_every_filter(tmp_path, model):
    (tmp_path / "in").mkdir()
    store = new_store(tmp_path / "c", tmp_path / "in", model)
    assert rows_of(store.snapshot(), "whatever=1") == []


def test_folders_are_compared_without_regard_to_case_and_composition(tmp_path, model):
    folder = tmp_path / "in"
    records = write_pictures(folder, [{}, {}], prefix=normalize("NFD", "Été 2024/Brücke/"))
    Collection.index(tmp_path / "c", records, model)
    snapshot = Store.open(tmp_path / "c").snapshot()
    for text in ("folder=Été 2024", "folder=été 2024/brücke", "folder~BRÜCKE", 'folder="Été 2024"', "folder!=ete 2024"):
        assert rows_of(snapshot, text) == [0, 1]
    assert rows_of(snapshot, "folder=Été") == rows_of(snapshot, "folder!=ÉTÉ 2024") == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "write FIELD=VALUE"),
        ("date", "write FIELD=VALUE"),
        ("=x", "write FIELD=VALUE"),
        ("date=", "write FIELD=VALUE"),
        ("a!b=c", "write FIELD=VALUE"),
        ("title!~dog", "write FIELD=VALUE"),
        ("date=yesterday", "'yesterday' is not a date"),
        ("date>=2024-13", "'2024-13' is not a date"),
        ("date=0000", "'0000' is not a date"),
        ('date=""', "'' is not a date"),
        ("date~20", "cannot contain a text"),
        ("folder>a", "folders have no order"),
        ("code==7", "'==' is no operator.* double quotes: code=\"=7\""),
        ("year=>2020", "'=>' is no operator"),
        ("year=<2020", "'=<' is no operator"),
        ("year<>2020", "'<>' is no operator"),
        ("title=~dog", "'=~' is no operator"),
        ("year>==2020", "'>==' is no operator"),
        ("year>= =2020", "'>==' is no operator"),
        ('year>""', "an empty value stands for a missing one"),
        ('title~""', "an empty value stands for a missing one"),
    ],
)
def test_what_is_no_filter_is_an_error(text, says):
    with pytest.raises(ConfigError, match=says):
        Filter.parse(text)


def test_the_parts_of_a_filter():
    assert Filter.parse("date=9999") == Filter("date", "=", "9999")
    assert Filter.parse(' a b >= "c d" ') == Filter("a b", ">=", "c d", is_text=True)
    assert Filter.parse("title~<b>") == Filter("title", "~", "<b>")
    assert Filter.parse('title="') == Filter("title", "=", '"')
