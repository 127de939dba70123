"""JSON as strict readers take it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voken.json_text import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_only_numbers_that_json_lacks_become_null(value):
    def plain(value):
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return None if value in (float("inf"), -float("inf")) or value != value else value

    for indent in (None, 2):
        text = json_text(value, indent=indent)
        assert text.isascii()
        assert json.loads(text, parse_constant=pytest.fail) == plain(value)
