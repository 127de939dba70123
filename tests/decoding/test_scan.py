"""The compiled scan against numpy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

scan = pytest.importorskip("voken.decoding._scan", reason="it was not compiled: there is no compiler here")


def drawn(places, leaves, entries=256, queries=3, dtype=np.uint8, biased=False, grain=1 / 64):
    """Codes, and the tables of queries whose numbers are whole steps, so that bytes are exact and ties frequent."""
    rng = np.random.default_rng(leaves)
    codes = [rng.integers(0, entries, leaves).astype(dtype) for _ in range(places)]
    steps = rng.integers(0, 256, (queries, places + biased, entries)).astype(np.uint8)
    numbers = 3.0 - grain * steps[:, :places]
    top, bias = 3.0 * places, None
    if biased:
        codes.append(rng.integers(0, 256, leaves).astype(np.uint8))
        steps[:, -1] = np.arange(entries).clip(0, 255)
        bias, top = (-grain * codes[-1]).astype(np.float32), top + 7
    return [tuple(codes), steps, numbers, np.tile([top, grain], (queries, 1)), bias, 7.0 if biased else 0.0]


def brute_force(codes, numbers, bias, greatest, count):
    """The leaves of the `count` best scores and those equal to the last, and their scores."""
    scores = np.zeros(len(codes[0]))
    for row, column in zip(numbers, codes[: len(numbers)], strict=True):
        scores += row[column]
    if bias is not None:
        scores += bias.astype(np.float64) + greatest
    leaves = np.flatnonzero(scores >= np.sort(scores)[-min(count, len(scores))])
    return leaves.tolist(), scores[leaves].tolist()


@pytest.mark.parametrize("width", [1, 32, 64])
@pytest.mark.parametrize("places", [1, 2, 5, 200])
@pytest.mark.parametrize("leaves", [1, 255, 256, 9000, 20_001])
@pytest.mark.parametrize("biased", [False, True])
def test_it_finds_the_best_leaves(width, places, leaves, biased):
    if width > scan.processor_width():
        pytest.skip(f"this processor has no vectors of {width} bytes")
    arrays = drawn(places, leaves, biased=biased)
    for count in (1, 7, 300):
        for result, numbers in zip(scan.best_leaves(*arrays, count, width), arrays[2], strict=True):
            best, scores = np.frombuffer(result[0], dtype=np.int32).tolist(), np.frombuffer(result[1]).tolist()
            assert (best, scores) == brute_force(arrays[0], numbers, *arrays[4:], count)


@pytest.mark.parametrize("change", ["lower steps", "a saturated byte"])
def test_bounds_that_are_not_tight_give_the_same_leaves(change):
    arrays = drawn(4, 5000)
    expected = scan.best_leaves(*arrays, 20)
    arrays[1] = arrays[1] // 3 if change == "lower steps" else np.minimum(arrays[1], 40)
    assert scan.best_leaves(*arrays, 20) == expected


def test_codes_of_16_bits_and_of_8_together():
    arrays = drawn(3, 3000, entries=1024, dtype=np.uint16, biased=True)
    result = scan.best_leaves(*arrays, 10)[0]
    expected, _ = brute_force(arrays[0], arrays[2][0], *arrays[4:], 10)
    assert np.frombuffer(result[0], dtype=np.int32).tolist() == expected


def test_a_code_without_an_entry_reads_none_of_another_array():
    arrays = drawn(2, 1000, entries=512, dtype=np.uint16)
    wrapped = tuple(column + np.uint16(512) for column in arrays[0])
    assert scan.best_leaves(wrapped, *arrays[1:], 5) == scan.best_leaves(*arrays, 5)


def test_leaves_in_rising_order_of_their_scores_are_all_kept_until_better_ones_come():
    arrays = drawn(1, 25_600, queries=1)
    arrays[1][:] = np.arange(256)
    arrays[2] = 3.0 - arrays[1] / 64
    arrays[0] = (np.repeat(np.arange(255, -1, -1), 100).astype(np.uint8),)
    ((leaves, _),) = scan.best_leaves(*arrays, 250)
    assert np.frombuffer(leaves, dtype=np.int32).tolist() == list(range(25_300, 25_600))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, (np.zeros(9, dtype=np.uint8), np.zeros(8, dtype=np.uint8))),
        (0, (np.zeros(50),) * 2),
        (0, (np.zeros(50, dtype=np.uint8),) * 3),
        (0, (np.zeros(50, dtype=np.uint8),) * 300),
        (0, ()),
        (1, np.zeros((1, 2, 100), dtype=np.uint8)),
        (1, np.zeros((1, 2, 256), dtype=np.float32)),
        (2, np.zeros((2, 2, 256))),
        (3, np.zeros((1, 3))),
        (4, np.zeros(50, dtype=np.float32)),
        (6, 0),
        (7, 16),
    ],
)
def test_what_does_not_fit_is_an_error(place, value):
    arguments = [*drawn(2, 50, queries=1), 3, 1]
    scan.best_leaves(*arguments)
    arguments[place] = value
    with pytest.raises(ValueError, match=r"shapes and types|places; 1 to 257|no kernel for vectors of 16 bytes"):
        scan.best_leaves(*arguments)
