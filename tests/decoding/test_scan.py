"""The compiled scan against numpy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

scan = pytest.importorskip("voken.decoding._scan", reason="it was not compiled: there is no compiler here")


def drawn(places, leaves, entries=256, queries=3, dtype=np.uint8):
    rng = np.random.default_rng(leaves)
    codes = tuple(rng.integers(0, entries, leaves).astype(dtype) for _ in range(places))
    return codes, rng.integers(0, 128, (queries, places, entries)).astype(np.uint8)


def expected_leaves(codes, table, count, slack):
    sums = sum(row[column].astype(np.int64) for row, column in zip(table, codes, strict=True))
    return np.flatnonzero(sums <= np.sort(sums)[min(count, len(sums)) - 1] + slack).tolist()


@pytest.mark.parametrize("width", [1, 32, 64])
@pytest.mark.parametrize("places", [1, 2, 5, 200])
@pytest.mark.parametrize("leaves", [1, 255, 256, 9000, 20_001])
def test_it_keeps_the_leaves_near_the_best(width, places, leaves):
    if width > scan.processor_width():
        pytest.skip(f"this processor has no vectors of {width} bytes")
    codes, tables = drawn(places, leaves)
    for count, slack in [(1, 0), (7, 3), (300, 20)]:
        results = scan.candidates(codes, tables, count, slack, width)
        for result, table in zip(results, tables, strict=True):
            assert np.frombuffer(result, dtype=np.int32).tolist() == expected_leaves(codes, table, count, slack)


def test_codes_of_16_bits_and_of_8_together():
    codes, tables = drawn(4, 3000, entries=1024, dtype=np.uint16)
    codes = (*codes[:3], codes[3].astype(np.uint8))
    (first, *_) = scan.candidates(codes, tables, 10, 2)
    assert np.frombuffer(first, dtype=np.int32).tolist() == expected_leaves(codes, tables[0], 10, 2)


def test_a_code_without_an_entry_reads_none_of_another_array():
    codes, tables = drawn(2, 1000, entries=512, dtype=np.uint16)
    wrapped = tuple(column + np.uint16(512) for column in codes)
    assert scan.candidates(wrapped, tables, 5, 1) == scan.candidates(codes, tables, 5, 1)


def test_leaves_in_falling_order_of_their_sums_are_all_kept_until_better_ones_come():
    codes = (np.repeat(np.arange(255, -1, -1), 100).astype(np.uint8),)
    tables = (np.arange(256) // 2).astype(np.uint8)[None, None]
    (result,) = scan.candidates(codes, tables, 300, 1)
    assert np.frombuffer(result, dtype=np.int32).tolist() == expected_leaves(codes, tables[0], 300, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": np.full((1, 2, 256), 128, dtype=np.uint8)}, "greater than 127"),
        ({"tables": np.zeros((1, 2, 100), dtype=np.uint8)}, "power of two"),
        ({"tables": np.zeros((1, 3, 256), dtype=np.uint8)}, "tables are bytes"),
        ({"tables": np.zeros((1, 2, 256), dtype=np.float32)}, "tables are bytes"),
        ({"count": 0}, "tables are bytes"),
        ({"slack": -1}, "tables are bytes"),
        ({"codes": (np.zeros(9, dtype=np.uint8), np.zeros(8, dtype=np.uint8))}, "of one length"),
        ({"codes": (np.zeros(9, dtype=np.float64),) * 2}, "8 or 16 bits"),
        ({"width": 16}, "vectors of 16 bytes"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    codes, tables = drawn(2, 50, queries=1)
    given = {"codes": codes, "tables": tables, "count": 3, "slack": 2, "width": 1} | change
    with pytest.raises(ValueError, match=message):
        scan.candidates(*given.values())
