"""GENIUS: its steps against its teacher-forced pass, its interpolation against numpy, and what it can learn."""

from __future__ import annotations

import dataclasses
import itertools
import zlib

import numpy as np
import pytest
import torch

from builders.generator_checks import check_steps_equal_the_teacher_forced_pass
from voken.config import TokenizerConfig
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, EmptyDataError
from voken.generator.interface import Generator
from voken.generator.train import validation_recall
from voken.image_tokenizer.train import PairedVectors, train_tokenizer
from voken.training.sides import Side, validation_queries
from voken_lab.systems.generative import GenerativeSystem
from voken_lab.systems.genius import (
    CachedQueryEncoder,
    GeniusConfig,
    GeniusGenerator,
    genius_tokenizer,
    interpolated,
    pair_text,
    train_genius,
)

LEVELS, SIZE, DIM = 3, 5, 8
TEXTS = ["a red cat", "dog", "two small birds on the hill", "a"]
SMALL = GeniusConfig(prefix_tokens=3, width=12, layers=2, heads=3, dropout=0.2)
SETTINGS = {
    "one book a level": ({}, False),
    "one book for all": ({}, True),
    "random rows": ({"copy_voken_embeddings": False}, False),
    "two tokens, one layer, as wide as the codes": ({"prefix_tokens": 2, "layers": 1, "width": 8, "heads": 2}, False),
}


class FixedEncoder:
    """A text's vector depends on the whole text; it counts what it reads."""

    dim = DIM

    def __init__(self) -> None:
        self.read = 0

    def encode_texts(self, texts):
        self.read += len(texts)
        vectors = np.stack([np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM) for text in texts])
        return unit(vectors)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_model(name: str = "one book a level", **changes) -> GeniusGenerator:
    settings, shared = SETTINGS[name]
    torch.manual_seed(1)
    codebooks = np.random.default_rng(5).normal(size=(LEVELS, SIZE, DIM)).astype(np.float32)
    codebooks = np.repeat(codebooks[:1], LEVELS, 0) if shared else codebooks
    config = dataclasses.replace(SMALL, **(settings | changes))
    model = GeniusGenerator(FixedEncoder(), codebooks, config, shared=shared)
    for weight in model.parameters():  # away from the start, where much is zero or one
        weight.data.add_(torch.randn(weight.shape) * 0.3)
    return model.eval()


def make_vectors(seed: int = 4) -> PairedVectors:
    """Six pictures, seven texts; a text of two pictures, a picture of two texts."""
    random = np.random.default_rng(seed)
    pairs = np.array([[0, 0], [1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [5, 6], [0, 3]])
    return PairedVectors(unit(random.normal(size=(6, DIM))), unit(random.normal(size=(7, DIM))), pairs)


def every_sequence() -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(SIZE), repeat=LEVELS)))


def sequence_scores(model: GeniusGenerator, texts: list[str], sequences: torch.Tensor) -> np.ndarray:
    vokens = sequences.expand(len(texts), *sequences.shape)
    with torch.no_grad():
        logits = model.teacher_forced(model.encode(texts), vokens)
    return logits.double().log_softmax(-1).gather(-1, vokens[..., None]).squeeze(-1).sum(-1).numpy()


def test_it_is_a_generator():
    assert isinstance(make_model(), Generator)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_equal_the_teacher_forced_pass(name):
    check_steps_equal_the_teacher_forced_pass(make_model(name), TEXTS)


def test_a_step_leaves_the_state_it_was_given():
    model = make_model()
    vokens, parents = torch.tensor([[1, 2]]), torch.tensor([[0, 0]])
    with torch.no_grad():
        start = model.prefill(["dog"])
        one, first = model.step(start, None, None)
        two, _ = model.step(first, vokens, parents)
        torch.testing.assert_close(model.step(start, None, None)[0], one)
        torch.testing.assert_close(model.step(first, vokens, parents)[0], two)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_level_does_not_see_the_vokens_from_it_on(name):
    model = make_model(name)
    with torch.no_grad():
        sequences = torch.tensor([[[0, 1, 2], [0, 1, 4], [0, 3, 2]]])
        logits = model.teacher_forced(model.encode(TEXTS[:1]), sequences)[0]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits[0, :2], logits[2, :2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits[0, 2], logits[2, 2])


@pytest.mark.parametrize("name", SETTINGS)
def test_search_at_full_width_equals_brute_force(name):
    model = make_model(name)
    images = every_sequence()[np.random.default_rng(0).permutation(SIZE**LEVELS)[:60]].numpy()
    trie = VokenTrie.from_vokens(images, SIZE)
    scores = sequence_scores(model, TEXTS, torch.from_numpy(trie.leaf_vokens(np.arange(60))).long())
    result = beam_search(model, trie, TEXTS, beams=60)
    np.testing.assert_array_equal(result.leaf, np.argsort(-scores, axis=1, kind="stable"))
    np.testing.assert_allclose(result.log_prob, -np.sort(-scores, axis=1), rtol=1e-4, atol=1e-4)


def test_nothing_of_a_query_is_read_but_its_vector():
    model = make_model()
    model._encoder = CachedQueryEncoder(model._encoder, ["other words"], model._encoder.encode_texts(["dog"]))
    sequences = every_sequence()
    np.testing.assert_array_equal(
        sequence_scores(model, ["other words"], sequences), sequence_scores(model, ["dog"], sequences)
    )
    assert not np.allclose(sequence_scores(model, ["cat"], sequences), sequence_scores(model, ["dog"], sequences))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_model_is_the_same(tmp_path, name):
    model = make_model(name)
    model.save(tmp_path)
    loaded = GeniusGenerator.load(tmp_path, FixedEncoder())
    assert loaded.config == model.config
    assert not loaded.training
    scores = [sequence_scores(which, TEXTS, every_sequence()) for which in (model, loaded)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_gets_a_gradient_and_is_in_one_group(name):
    model = make_model(name).train()
    vokens = every_sequence().expand(len(TEXTS), -1, -1)
    model.teacher_forced(model.encode(TEXTS), vokens).log_softmax(-1)[..., 0].sum().backward()
    for weight_name, weight in model.named_parameters():
        assert weight.grad is not None, weight_name
        assert bool(weight.grad.abs().sum() > 0), weight_name
    groups = model.parameter_groups()
    held = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(held) == sorted(id(weight) for weight in model.parameters())
    decayed = {id(weight) for group in groups if group.get("weight_decay", 1) for weight in group["params"]}
    names = {weight_name for weight_name, weight in model.named_parameters() if id(weight) in decayed}
    assert "prefix.0.weight" in names
    assert not any("bias" in name or "norm" in name or "vocabulary" in name or "place" in name for name in names)


def test_interpolation_by_hand():
    texts, images = (unit(np.random.default_rng(seed).normal(size=(4, DIM))) for seed in (0, 1))
    share = np.array([[0.0], [1.0], [0.3], [0.5]], np.float32)
    vectors = interpolated(*map(torch.from_numpy, (texts, images, share))).numpy()
    for row in range(4):
        mixed = share[row] * texts[row].astype(np.float64) + (1 - share[row]) * images[row]
        np.testing.assert_allclose(vectors[row], mixed / np.linalg.norm(mixed), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_training_queries_lie_between_text_and_its_own_picture(alpha):
    """The share is recovered from each vector by least squares, and spread as numpy's Beta(alpha, alpha)."""
    model, known = make_model(mix_alpha=alpha), make_vectors()
    model.begin_training(known)
    model.train()
    torch.manual_seed(0)
    pairs = np.tile(np.arange(len(known.pairs)), 500)
    vectors = model.query_vectors([pair_text(pair) for pair in pairs]).numpy().astype(np.float64)
    shares = []
    for pair, vector in zip(pairs, vectors, strict=True):
        image, text = known.pairs[pair]
        ends = np.stack([known.texts[text], known.images[image]], 1).astype(np.float64)
        weights, *_ = np.linalg.lstsq(ends, vector, rcond=None)
        np.testing.assert_allclose(ends @ weights, vector, atol=1e-5)
        assert (weights > -1e-5).all()
        shares.append(weights[0] / weights.sum())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    drawn = np.random.default_rng(0).beta(alpha, alpha, 4000)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert abs(np.quantile(shares, quantile) - np.quantile(drawn, quantile)) < 0.05


def test_nothing_is_mixed_but_in_training():
    model, known = make_model(), make_vectors()
    pairs = [pair_text(pair) for pair in range(len(known.pairs))]
    as_they_are = known.texts[known.pairs[:, 1]]
    model.begin_training(known)
    np.testing.assert_array_equal(model.query_vectors(pairs).numpy(), as_they_are)
    model.train()
    assert not np.allclose(model.query_vectors(pairs).numpy(), as_they_are)
    np.testing.assert_array_equal(model.query_vectors(TEXTS).numpy(), FixedEncoder().encode_texts(TEXTS))
    with pytest.raises(ConfigError, match="Call once for each kind"):
        model.query_vectors([*pairs, "dog"])
    model.end_training()
    read = model.query_vectors([pair_text(0)]).numpy()
    np.testing.assert_array_equal(read, FixedEncoder().encode_texts([pair_text(0)]))


def test_without_alpha_nothing_is_mixed():
    model, known = make_model(mix_alpha=0.0).train(), make_vectors()
    model.begin_training(known)
    np.testing.assert_array_equal(model.query_vectors([pair_text(3)]).numpy(), known.texts[[3]])


def test_remembered_vectors_are_looked_up():
    encoder = FixedEncoder()
    remembered = CachedQueryEncoder(encoder, ["x", "y"], np.eye(2, DIM, dtype=np.float32))
    np.testing.assert_array_equal(remembered.encode_texts(["y", "x", "y"]), np.eye(2, DIM)[[1, 0, 1]])
    assert encoder.read == 0
    np.testing.assert_array_equal(remembered.encode_texts(["x", "new"]), encoder.encode_texts(["x", "new"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, r"genius\.width 12 is not a multiple of genius\.heads 5"),
        ({"prefix_tokens": 0}, "1 or more"),
        ({"mix_alpha": -1.0}, "mix_alpha is -1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_model(**changes)


# A toy world: a concept is a direction, pictures and captions lie around it.

CONCEPTS, EACH = 24, 6
TOY = GeniusConfig(
    prefix_tokens=2, width=32, layers=1, heads=2, dropout=0.1, epochs=25, batch_size=32, learning_rate=5e-3, patience=0
)


class ToyEncoder:
    """Reads "concept c, caption i" as a point near the direction of c."""

    dim = 16

    def __init__(self) -> None:
        self.directions = unit(np.random.default_rng(7).normal(size=(CONCEPTS, self.dim)))

    def encode_texts(self, texts):
        rows = []
        for text in texts:
            concept, caption = (int(part.split()[1]) for part in text.split(", "))
            noise = np.random.default_rng([concept, caption]).normal(size=self.dim)
            rows.append(self.directions[concept] + 0.05 * noise)
        return unit(np.array(rows))


def make_side(seed: int, captions_from: int, *, shuffled: bool = False) -> Side:
    """Every concept is on both sides, with other pictures and captions; `shuffled`: each picture gets any caption."""
    encoder, random = ToyEncoder(), np.random.default_rng(seed)
    concepts = np.arange(CONCEPTS * EACH) % CONCEPTS
    images = unit(encoder.directions[concepts] + 0.05 * random.normal(size=(len(concepts), encoder.dim)))
    captions = [f"concept {row % CONCEPTS}, caption {captions_from + row // CONCEPTS}" for row in range(len(concepts))]
    described = random.permutation(len(concepts)) if shuffled else np.arange(len(concepts))
    pairs = np.stack([np.arange(len(concepts)), described], 1)
    return Side(images, encoder.encode_texts(captions), captions, pairs, concepts)


def make_tokenizer(train: Side):
    config = genius_tokenizer(codebook_size=12, levels=2, epochs=3)
    return train_tokenizer(train.paired_vectors(), train.paired_vectors(), config, seed=0)[0]


def concept_recall(model: GeniusGenerator, tokenizer, side: Side) -> float:
    """Share of captions whose first hit shows their concept; 1 / 24 by chance."""
    trie = VokenTrie.from_vokens(tokenizer.encode(side.images), tokenizer.codebook_size)
    ids = [f"{concept} {row}" for row, concept in enumerate(side.concepts)]
    hits = GenerativeSystem(model, trie, ids, beams=10).search(list(side.captions), 1)
    concepts = [int(text.split()[1].rstrip(",")) for text in side.captions]
    return float(np.mean([int(hit[0].image_id.split()[0]) == c for hit, c in zip(hits, concepts, strict=True)]))


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_it_learns_and_keeps_the_best_epoch(alpha):
    train, validation = make_side(0, 0), make_side(1, 100)
    tokenizer = make_tokenizer(train)
    config = dataclasses.replace(TOY, mix_alpha=alpha)
    model, history = train_genius(ToyEncoder(), train, validation, tokenizer, config, seed=0)
    assert not model.training
    queries = validation_queries(validation, tokenizer.encode(validation.images), 0)
    assert validation_recall(model, queries) == pytest.approx(history.epochs[history.best].recall)
    assert history.epochs[history.best].recall == max(record.recall for record in history.epochs)
    assert concept_recall(model, tokenizer, make_side(2, 200)) > 0.9


def test_with_shuffled_captions_it_is_at_chance():
    """The last epoch is judged: validation with true captions would keep whatever is luckiest."""
    train = make_side(0, 0, shuffled=True)
    nothing = dataclasses.replace(make_side(1, 100), captions=[], pairs=np.zeros((0, 2), np.int64))
    nothing = dataclasses.replace(nothing, texts=nothing.texts[:0])
    tokenizer = make_tokenizer(make_side(0, 0))
    config = dataclasses.replace(TOY, mix_alpha=0.0)
    model, _ = train_genius(ToyEncoder(), train, nothing, tokenizer, config, seed=0)
    assert concept_recall(model, tokenizer, make_side(2, 200)) < 0.25


def test_a_seed_gives_one_model():
    train, validation = make_side(0, 0), make_side(1, 100)
    tokenizer, config = make_tokenizer(train), dataclasses.replace(TOY, epochs=2)
    models = [train_genius(ToyEncoder(), train, validation, tokenizer, config, seed=seed)[0] for seed in (3, 3, 4)]
    weights = [model.prefix[0].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_pairs_there_is_nothing_to_learn():
    train = make_side(0, 0)
    empty = dataclasses.replace(train, pairs=np.zeros((0, 2), np.int64))
    with pytest.raises(EmptyDataError, match="no training pairs"):
        train_genius(ToyEncoder(), empty, train, make_tokenizer(train), TOY, seed=0)


def test_the_tokenizers_settings_can_be_changed():
    assert isinstance(genius_tokenizer(levels=6), TokenizerConfig)
    assert genius_tokenizer(levels=6).levels == 6
    assert genius_tokenizer().alignment == "infonce"
