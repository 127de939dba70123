"""Residual quantization in numpy equals that in torch, and exhaustive search at full width."""

import itertools

import numpy as np
import pytest
import torch

from voken.decoding.quantize import nearest_sequences
from voken.image_tokenizer import model


def drawn(points, levels, entries, width, seed=0):
    random = np.random.default_rng(seed)
    books = random.normal(size=(levels, entries, width)) * 0.6 ** np.arange(levels)[:, None, None]
    return random.normal(size=(points, width)).astype(np.float32), books.astype(np.float32)


@pytest.mark.parametrize("beams", [1, 3, 8])
def test_sequences_are_those_of_torch(monkeypatch, beams):
    points, books = drawn(200, 6, 32, 24)
    expected = model.nearest_sequences(torch.from_numpy(points), torch.from_numpy(books), beams).numpy()
    monkeypatch.setattr("voken.decoding.quantize._FLOATS_PER_BLOCK", 5_000)  # many blocks
    np.testing.assert_array_equal(nearest_sequences(points, books, beams), expected)
    assert nearest_sequences(points[:0], books, beams).shape == (0, 6)


def test_enough_beams_find_the_nearest_sum_of_all():
    points, books = drawn(40, 3, 5, 4, seed=1)
    every = np.array(list(itertools.product(range(5), repeat=3)))
    sums = sum(books[level][every[:, level]] for level in range(3))
    nearest = ((points[:, None] - sums) ** 2).sum(2).argmin(1)
    np.testing.assert_array_equal(nearest_sequences(points, books, 25), every[nearest])
