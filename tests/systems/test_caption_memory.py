"""A caption memory without a generator moves queries as the generator's own does, if validation wants it."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from builders.tiny_lite import DIM, WordReader, make_lite, make_memory
from voken.config import GeneratorConfig
from voken.generator.lite import CaptionMemory
from voken.training.sides import Side
from voken_lab.systems.caption_memory import MemoryEncoder, choose_memory

TEXTS = ["a red cat", "dog", "two birds"]


class WordEncoder:
    def encode_texts(self, texts):
        return WordReader().read_texts(texts, max_tokens=64).vectors.numpy()


def test_queries_are_the_generators_query_points():
    generator = make_lite(memory_weight=0.7)
    torch.nn.init.eye_(generator.to_code.weight)  # as it is before training
    expected = normalize(generator.prefill(TEXTS).query_point, dim=1).detach().numpy()
    settings = generator.config
    encoder = MemoryEncoder(WordEncoder(), make_memory(), settings.memory_weight, settings.memory_temperature)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-6)
    assert encoder.memory_bytes == 2 * 4 * DIM * 4  # two vectors of floats for each of four captions
    without = MemoryEncoder(WordEncoder(), make_memory(), 0.0, 0.05)
    assert (without.encode_texts(TEXTS) == WordEncoder().encode_texts(TEXTS)).all()
    assert without.memory_bytes == 0


class TableEncoder:
    """Text "r" has row r of a table as its vector."""

    def __init__(self, table):
        self.table = table

    def encode_texts(self, texts):
        return self.table[[int(text) for text in texts]]


@pytest.mark.parametrize("helpful", [True, False])
def test_validation_decides_whether_the_memory_has_weight(helpful):
    random = np.random.default_rng(0)
    texts, pictures, noise = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in random.normal(size=(3, 40, 16)).astype(np.float32)
    )
    # the memory knows the validation texts: it recalls their pictures, or others
    memory = CaptionMemory(list(map(str, range(40))), texts, pictures if helpful else noise, {})
    images = pictures if helpful else texts
    side = Side(images, texts, list(map(str, range(40))), np.stack([np.arange(40)] * 2, 1), np.arange(40))
    config = GeneratorConfig(family="lite", query_vector=True, memory_weight=0.8)
    chosen = choose_memory(TableEncoder(texts), memory, config, side, images, seed=0)
    assert chosen.weight > 0 if helpful else chosen.weight == 0


def test_without_validation_texts_the_weight_is_the_configured_one():
    nothing = Side(np.eye(3, dtype=np.float32), np.zeros((0, 3), np.float32), [], np.zeros((0, 2), int), np.arange(3))
    config = GeneratorConfig(family="lite", query_vector=True, memory_weight=0.8)
    assert choose_memory(WordEncoder(), make_memory(), config, nothing, nothing.images, seed=0).weight == 0.8
