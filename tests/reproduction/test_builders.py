"""Builders over vectors that are drawn: the two-tower and faiss's codes with the caption memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from voken.config import preset
from voken.training.sides import Side, TrainingInputs
from voken_lab.evaluation.protocol import Conditions, Pool, Query, evaluate
from voken_lab.reproduction.builders import BuildSpec, approximate, two_tower
from voken_lab.reproduction.tracks import TRACKS

TRAIN, VALIDATION, POOL, DIM = 400, 40, 60, 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class TableEncoder:
    """Text "r" has row r of a table as its vector."""

    name, fingerprint, dim = "table", "7ab1e", DIM

    def __init__(self, table):
        self.table = table

    def encode_texts(self, texts):
        return self.table[[int(text) for text in texts]]


@pytest.fixture
def experiment():
    """Texts lie in one place of the space, and their pictures in another; only the captions' pictures tell where.

    Twenty kinds of pictures: a caption's vector tells its kind, which is far from the vectors of such pictures.
    """
    random = np.random.default_rng(0)
    total = TRAIN + VALIDATION + POOL
    kind = np.arange(total) % 20
    kinds_of_texts, kinds_of_pictures = random.normal(size=(2, 20, DIM))
    texts = unit(kinds_of_texts[kind] + 0.1 * random.normal(size=(total, DIM)))
    pictures = unit(kinds_of_pictures[kind] + 0.1 * random.normal(size=(total, DIM)))

    def side(rows):
        pairs = np.stack([np.arange(len(rows))] * 2, 1)
        return Side(pictures[rows], texts[rows], [str(row) for row in rows], pairs, kind[rows])

    rows = np.arange(total)
    train, validation = side(rows[:TRAIN]), side(rows[TRAIN : TRAIN + VALIDATION])
    inputs = TrainingInputs(TableEncoder(texts), train, validation)
    ids = tuple(f"picture {row}" for row in rows[-POOL:])
    queries = [
        Query(
            str(row),
            str(row),
            frozenset(ids[other - rows[-POOL]] for other in rows[-POOL:] if kind[other] == kind[row]),
        )
        for row in rows[-POOL:]
    ]
    return SimpleNamespace(
        track=TRACKS["emoji"],
        config=preset("default"),
        quick=False,
        seed=0,
        inputs=inputs,
        inputs_for=lambda protocol: inputs,
        pool=Pool(ids),
        pool_vectors=pictures[-POOL:],
        queries=queries,
    )


def recalls(experiment, builder):
    built = list(builder(experiment, BuildSpec("", {}, "inductive", Path())))
    found = {
        each.name: evaluate(each.system, experiment.queries, experiment.pool, conditions=Conditions(each.name)).recall[
            1
        ]
        for each in built
    }
    return {each.name: each for each in built}, found


def test_the_two_tower_has_the_same_memory(experiment):
    built, found = recalls(experiment, two_tower)
    assert list(built) == ["two-tower, exact", "two-tower + caption memory, exact"]
    memory = built["two-tower + caption memory, exact"]
    assert memory.memory_bytes == TRAIN * 2 * DIM * 4
    assert memory.bytes_per_picture == built["two-tower, exact"].bytes_per_picture == 4 * DIM
    assert found["two-tower + caption memory, exact"] > found["two-tower, exact"] + 0.3


def test_product_codes_have_the_same_memory(experiment):
    pytest.importorskip("faiss")
    built, found = recalls(experiment, approximate)
    for kind in ("PQ", "OPQ"):
        alone, memory = f"two-tower, faiss {kind}", f"two-tower, faiss {kind} + caption memory"
        assert built[memory].bytes_per_picture == built[alone].bytes_per_picture == 8
        assert built[memory].memory_bytes == TRAIN * 2 * DIM * 4
        assert built[alone].memory_bytes == 0
        assert found[memory] > found[alone] + 0.3
        index = built[alone].system
        rebuilt = index.rebuilt_from_codes(experiment.pool_vectors)
        np.testing.assert_allclose(rebuilt, index.rebuilt(), atol=1e-6)  # of the very vectors that it holds
        assert built[memory].system.index is index.index


def test_without_a_memory_in_the_settings_there_is_no_such_row(experiment):
    experiment.config = experiment.config.override({"generator.memory_weight": "0"})
    assert list(recalls(experiment, two_tower)[0]) == ["two-tower, exact"]
