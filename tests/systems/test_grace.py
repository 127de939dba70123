"""GRACE's identifiers name each picture alone; what a generator can learn of them is what they can tell."""

import dataclasses

import numpy as np
import pytest
import torch

from voken.decoding.trie import VokenTrie
from voken.encoders.text_reader import TextStates
from voken.errors import ConfigError, EmptyDataError
from voken.training.sides import Side, TrainingInputs
from voken_lab.evaluation.protocol import Conditions, Query, evaluate
from voken_lab.systems.generative import GenerativeSystem
from voken_lab.systems.grace import (
    SCHEMES,
    PictureReader,
    cluster_paths,
    grace_settings,
    identifiers,
    picture_text,
    train_grace,
)

DIM = 12


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class VectorReader:
    """A text is a number: its vector stands in a table, its one token is that vector."""

    name, fingerprint, text_width, dim = "table", "7ab1e", DIM, DIM

    def __init__(self, table):
        self.table = torch.from_numpy(table)

    def read_texts(self, texts, *, max_tokens):
        vectors = self.table[[int(text) for text in texts]]
        return TextStates(vectors[:, None], torch.ones(len(texts), 1, dtype=torch.bool), vectors)

    def encode_texts(self, texts):
        return self.table[[int(text) for text in texts]].numpy()

    def encode_images(self, images):
        raise NotImplementedError

    def save(self, folder):
        raise NotImplementedError


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("pictures", [1, 2, 9, 11, 300])
def test_every_identifier_leads_back_to_its_picture(scheme, pictures):
    vectors = unit(np.random.default_rng(pictures).normal(size=(pictures, DIM)))
    identified = identifiers(scheme, vectors, seed=3)
    assert identified.sequences.min() >= 0
    assert identified.sequences.max() < identified.codebook_size
    assert len(set(map(tuple, identified.sequences.tolist()))) == pictures
    trie = VokenTrie.from_vokens(identified.sequences, identified.codebook_size)
    rows, counts = trie.rows_of(trie.leaf_of(identified.sequences))
    assert counts.tolist() == [1] * pictures
    assert rows.tolist() == list(range(pictures))
    again = identifiers(scheme, vectors, seed=3)
    assert (again.sequences == identified.sequences).all()


def test_numeric_identifiers_are_the_digits_of_a_running_number():
    identified = identifiers("numeric", np.ones((1234, 2), np.float32), seed=0)
    numbers = (identified.sequences * [1000, 100, 10, 1]).sum(1)
    assert sorted(numbers.tolist()) == list(range(1234))
    assert numbers.tolist() != list(range(1234))


def test_clusters_of_clusters_are_a_path():
    """Three far groups of three near groups of three: each level names one of them."""
    random = np.random.default_rng(0)
    far = np.repeat(np.eye(3), 9, 0) * 100
    near = np.tile(np.repeat(np.eye(3), 3, 0) * 10, (3, 1))
    vectors = np.concatenate([far, near, random.normal(size=(27, 1)) * 0.1], 1)
    # k-means may start badly; a seed that it finds the groups with is taken
    for seed in range(20):
        paths = cluster_paths(vectors, children=3, seed=seed).sequences
        if paths.shape[1] == 3:
            break
    assert paths.shape == (27, 3)
    groups = np.arange(27) // 9
    assert all(len(set(paths[groups == group, 0])) == 1 for group in range(3))
    assert len(set(paths[::9, 0])) == 3
    pairs = {tuple(path[:2]) for path in paths.tolist()}
    assert len(pairs) == 9


def test_equal_pictures_still_get_identifiers_of_their_own():
    paths = cluster_paths(np.ones((40, DIM), np.float32), children=3, seed=0)
    assert len(set(map(tuple, paths.sequences.tolist()))) == 40


def test_what_cannot_be_named_is_said():
    with pytest.raises(ConfigError, match="numeric, string, semantic, structured, atomic"):
        identifiers("poetic", np.ones((3, 2), np.float32), seed=0)
    with pytest.raises(EmptyDataError):
        identifiers("numeric", np.ones((0, 2), np.float32), seed=0)


def test_pictures_and_texts_are_read_together_as_apart():
    table = unit(np.random.default_rng(1).normal(size=(6, DIM)))
    pictures = unit(np.random.default_rng(2).normal(size=(3, DIM)))
    reader = PictureReader(VectorReader(table), pictures)
    read = reader.read_texts(["4", picture_text(2), "0"], max_tokens=5)
    np.testing.assert_allclose(read.vectors, np.stack([table[4], pictures[2], table[0]]))
    np.testing.assert_allclose(read.tokens[[0, 2], 0], table[[4, 0]])
    assert read.mask.tolist() == [[True], [False], [True]]
    alone = reader.read_texts([picture_text(0), picture_text(1)], max_tokens=5)
    np.testing.assert_allclose(alone.vectors, pictures[:2])
    assert not alone.mask.any()


def toy(*, shuffled=False):
    """Texts lie near their pictures: 120 to train on, 20 for validation, 20 as the pool."""
    random = np.random.default_rng(0)
    images = unit(random.normal(size=(160, DIM)))
    table = unit(images + 0.1 * random.normal(size=images.shape))
    if shuffled:
        table = table[random.permutation(160)]
    rows = {"train": np.arange(120), "validation": np.arange(120, 140)}
    sides = {
        name: Side(images[part], table[part], [str(row) for row in part], np.stack([np.arange(len(part))] * 2, 1), part)
        for name, part in rows.items()
    }
    inputs = TrainingInputs(VectorReader(table), sides["train"], sides["validation"])
    return inputs, images[140:]


def recall(inputs, pool, scheme, **options):
    settings = dataclasses.replace(
        grace_settings(), width=32, layers=1, dropout=0.0, epochs=30, patience=30, batch_size=32, learning_rate=3e-3
    )
    grace = train_grace(inputs, pool, scheme, settings, seed=0, **options)
    assert grace.history.best >= 0
    trie = VokenTrie.from_vokens(grace.pool.sequences, grace.pool.codebook_size)
    system = GenerativeSystem(grace.generator, trie, [str(row) for row in range(20)], beams=20)
    queries = [Query(str(row), str(140 + row), frozenset([str(row)])) for row in range(20)]
    evaluation = evaluate(system, queries, [str(row) for row in range(20)], conditions=Conditions("GRACE"))
    return evaluation.recall[5]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["structured", "atomic"])
def test_memorized_pictures_are_found_by_texts_never_read(scheme):
    assert recall(*toy(), scheme) > 0.6


@pytest.mark.slow
def test_shuffled_texts_fall_to_chance():
    # 5 of 20 is 0.25; three times the standard deviation of 20 queries is 0.29
    assert recall(*toy(shuffled=True), "structured") < 0.55


def test_pictures_that_train_already_are_not_named_twice():
    inputs, pool = toy()
    train = inputs.train
    seen = dataclasses.replace(
        train,
        images=np.concatenate([train.images, pool]),
        concepts=np.concatenate([train.concepts, 1000 + np.arange(20)]),
        pairs=np.concatenate([train.pairs, np.stack([120 + np.arange(20), np.arange(20)], 1)]),
    )
    settings = dataclasses.replace(grace_settings(), width=16, epochs=1)
    seen_inputs = dataclasses.replace(inputs, train=seen)
    identified = train_grace(seen_inputs, pool, "atomic", settings, seed=0, in_train=True).pool
    assert identified.codebook_size == 160
    assert identified.sequences.shape == (20, 1)
