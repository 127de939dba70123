"""Stage 1: the losses by hand, training that does what each setting says, and what is saved."""

import dataclasses

import numpy as np
import pytest
import torch

from voken.config import TokenizerConfig
from voken.errors import ConfigError, EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer, quantize
from voken.image_tokenizer.train import (
    PairedVectors,
    alignment_loss,
    commitment_loss,
    tokenizer_loss,
    tokenizer_report,
    train_tokenizer,
    validation_score,
)

SMALL = TokenizerConfig(
    codebook_size=16, levels=3, layers=(), shared_codebook=False, epochs=4, batch_size=64, learning_rate=1e-3
)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clustered(count, seed=0, dim=8):
    """Pictures in twelve clusters, each with a caption near it."""
    random = np.random.default_rng(seed)
    centres = unit(np.random.default_rng(99).standard_normal((12, dim)))
    which = random.integers(12, size=count)
    images = unit(centres[which] + 0.1 * random.standard_normal((count, dim)))
    texts = unit(centres[which] + 0.2 * random.standard_normal((count, dim)))
    return PairedVectors(images, texts, np.stack([np.arange(count)] * 2, 1))


def test_commitment_loss_of_the_paper_by_hand():
    # v = 11; ẑ^(1) = 10, ẑ^(2) = 11: 1² + 0²
    codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]], requires_grad=True)
    coded = torch.tensor([[11.0]], requires_grad=True)
    loss = commitment_loss(quantize(coded, codebooks), coded, "paper")
    assert float(loss.detach()) == pytest.approx(1.0)
    loss.backward()
    assert codebooks.grad is None, "Eq. 4 stops the gradient at the codebook"
    assert coded.grad.tolist() == [[2.0]]


def test_commitment_loss_of_the_code_by_hand():
    # level 1: (10 − 11)² = 1, level 2: (1 − 1)² = 0; a quarter of each again
    codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]], requires_grad=True)
    coded = torch.tensor([[11.0]])
    loss = commitment_loss(quantize(coded, codebooks), coded, "code")
    assert float(loss.detach()) == pytest.approx(1.25)
    loss.backward()
    assert codebooks.grad[0, 1, 0] < 0, "the entry moves up towards the vector"


def test_alignment_losses_by_hand():
    rebuilt, texts = torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert float(alignment_loss(rebuilt, texts, SMALL)) == pytest.approx(0.5)
    contrast = dataclasses.replace(SMALL, alignment="infonce", alignment_temperature=1.0)
    assert float(alignment_loss(torch.eye(2), torch.eye(2), contrast)) == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)


def test_total_loss_is_the_sum_of_its_terms():
    tokenizer = ImageTokenizer(8, SMALL)
    data = clustered(20)
    images, texts = torch.from_numpy(data.images), torch.from_numpy(data.texts)
    total, quantized = tokenizer_loss(tokenizer, images, texts, torch.ones(20, dtype=torch.bool))
    rebuilt = quantized.entries.sum(1)
    parts = torch.nn.functional.mse_loss(rebuilt, images) + torch.nn.functional.mse_loss(rebuilt, texts)
    torch.testing.assert_close(total, parts + commitment_loss(quantized, images, "code"))


def test_straight_through_gives_the_encoder_the_gradient_of_the_sum():
    config = dataclasses.replace(SMALL, layers=(12,), code_dim=6, commitment_weight=0.0, alignment="none", dropout=0.0)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(8, config).eval()
    images = torch.randn(5, 8)
    coded = tokenizer.code(images)
    summed = tokenizer.quantize_coded(coded).entries.sum(1).detach().requires_grad_()
    loss = torch.nn.functional.mse_loss(tokenizer.rebuild(summed), images)
    (at_sum,) = torch.autograd.grad(loss, summed)
    weight = tokenizer.encoder[0].weight
    (expected,) = torch.autograd.grad(coded, weight, at_sum)
    total, _ = tokenizer_loss(tokenizer, images, images, torch.zeros(5, dtype=torch.bool))
    (got,) = torch.autograd.grad(total, weight)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shared_codebook": True},
        {"layers": (12,), "code_dim": 6},
        {"update": "ema"},
        {"alignment": "infonce", "mixture": 0.3},
        {"commitment": "paper", "initialisation": "random", "alignment": "none"},
    ],
)
def test_every_setting_trains_and_is_deterministic(changes):
    config = dataclasses.replace(SMALL, **changes)
    first, history = train_tokenizer(clustered(200), clustered(40, 1), config, seed=3)
    second, _ = train_tokenizer(clustered(200), clustered(40, 1), config, seed=3)
    assert len(history.validation_scores) == len(history.losses) + 1
    vokens = first.encode(clustered(40, 1).images)
    assert vokens.dtype == np.int32
    assert (vokens == second.encode(clustered(40, 1).images)).all()
    rebuilt = first.decode(vokens)
    np.testing.assert_allclose(np.linalg.norm(rebuilt, axis=1), 1, rtol=1e-5)


def test_training_beats_random_codebooks():
    config = dataclasses.replace(SMALL, initialisation="random", epochs=0)
    random, _ = train_tokenizer(clustered(300), clustered(60, 1), config, seed=0)
    trained, _ = train_tokenizer(clustered(300), clustered(60, 1), SMALL, seed=0)
    images = clustered(100, 2).images
    error = [((model.decode(model.encode(images)) - images) ** 2).sum(1).mean() for model in (random, trained)]
    assert error[1] < 0.5 * error[0]


def test_unused_entries_are_seeded_again():
    data = clustered(300)
    config = dataclasses.replace(SMALL, initialisation="random", epochs=3, learning_rate=1e-4, patience=5)
    unrevived, _ = train_tokenizer(data, clustered(60, 1), dataclasses.replace(config, revive_unused=False), seed=0)
    revived, _ = train_tokenizer(data, clustered(60, 1), config, seed=0)
    used = [len(np.unique(model.encode(data.images)[:, 0])) for model in (unrevived, revived)]
    assert used[1] > used[0]


def test_a_picture_is_coded_the_same_alone_and_among_others():
    tokenizer, _ = train_tokenizer(clustered(200), clustered(40, 1), SMALL, seed=0)
    images = clustered(50, 2).images
    together = tokenizer.encode(images)
    assert (np.concatenate([tokenizer.encode(image[None]) for image in images]) == together).all()
    assert tokenizer.encode(images[:0]).shape == (0, 3)
    assert tokenizer.decode(together[:0]).shape == (0, 8)


def test_soft_targets_against_a_loop():
    tokenizer, _ = train_tokenizer(clustered(200), clustered(40, 1), SMALL, seed=0)
    image = clustered(1, 5).images
    entries, weights = tokenizer.soft_targets(image, temperature=0.1, entries=16)
    residual = image[0].astype(np.float64)
    for level, codebook in enumerate(tokenizer.codebooks.astype(np.float64)):
        expected = np.exp(-((residual - codebook) ** 2).sum(1) / 0.1)
        expected /= expected.sum()
        np.testing.assert_allclose(weights[0, level], expected[entries[0, level]], rtol=1e-3, atol=1e-6)
        assert (np.diff(weights[0, level]) <= 0).all()
        residual = residual - codebook[entries[0, level, 0]]
    assert (entries[0, :, 0] == tokenizer.encode(image)[0]).all()


def test_saved_and_loaded_are_equal(tmp_path):
    config = dataclasses.replace(SMALL, layers=(12,), code_dim=6)
    tokenizer, _ = train_tokenizer(clustered(200), clustered(40, 1), config, seed=0)
    tokenizer.save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    images = clustered(50, 2).images
    assert loaded.config == config
    assert (loaded.encode(images) == tokenizer.encode(images)).all()
    assert (loaded.decode(loaded.encode(images)) == tokenizer.decode(tokenizer.encode(images))).all()


def test_pictures_without_captions_train_too():
    data = clustered(100)
    bare = PairedVectors(data.images, data.texts[:0], np.zeros((0, 2), np.int64))
    tokenizer, history = train_tokenizer(bare, bare, SMALL, seed=0)
    assert history.validation_scores[history.best_epoch] == pytest.approx(
        -((tokenizer.decode(tokenizer.encode(data.images)) - data.images) ** 2).sum(1).mean()
    )


def test_validation_score_counts_ties_at_their_middle():
    class Fixed:
        def encode(self, images):
            return images

        def decode(self, vokens):
            return np.array([[1, 0], [1, 0], [0, 1]], np.float32)

    data = PairedVectors(np.zeros((3, 2), np.float32), np.array([[1, 0.1]], np.float32), np.array([[0, 0]]))
    assert validation_score(Fixed(), data) == pytest.approx(1 / 1.5)


def test_report_on_a_hand_made_set():
    tokenizer = ImageTokenizer(2, dataclasses.replace(SMALL, codebook_size=4, levels=1, layers=()))
    with torch.no_grad():
        tokenizer.books.copy_(torch.tensor([[[1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0]]]))
    images = unit(np.array([[1, 0.1], [1, -0.1], [0.1, 1], [-1, 0.05]]))
    texts = unit(np.array([[1.0, -0.2], [0, 1]]))
    got = tokenizer_report(tokenizer, images, texts, np.array([[0, 1], [1, 2]]), cuts=(1, 2))
    assert (got.pictures, got.sequences, got.collision_rate, got.bits) == (4, 3, 0.5, 2.0)
    assert got.levels[0].used == 3
    assert got.levels[0].perplexity == pytest.approx(np.exp(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25))))
    # text 0 finds its picture exactly, but quantized it ties with another: an even chance at 1, sure at 2
    assert [(line.exact, line.quantized) for line in got.recall] == [(100, 75), (100, 100)]


@pytest.mark.parametrize("changes", [{"levels": 0}, {"codebook_size": 1}, {"mixture": 1.0}, {"layers": (0,)}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ConfigError):
        ImageTokenizer(8, dataclasses.replace(SMALL, **changes))


def test_wrong_widths_and_nothing_to_train_on_are_refused():
    tokenizer = ImageTokenizer(8, SMALL)
    with pytest.raises(ConfigError, match="width 8"):
        tokenizer.encode(np.zeros((2, 9), np.float32))
    with pytest.raises(ConfigError, match="have 3 levels"):
        tokenizer.decode(np.zeros((2, 4), np.int32))
    data = clustered(10)
    empty = PairedVectors(data.images[:0], data.texts, data.pairs[:0])
    with pytest.raises(EmptyDataError):
        train_tokenizer(empty, data, SMALL, seed=0)
    with pytest.raises(EmptyDataError):
        tokenizer_report(tokenizer, data.images[:0])
