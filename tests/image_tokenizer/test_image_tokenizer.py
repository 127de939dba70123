"""Stage 1: the losses by hand, training that does what each setting says, and what is saved."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from voken.config import TokenizerConfig
from voken.decoding.quantize import nearest_sequences
from voken.errors import ConfigError, EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer, quantize
from voken.image_tokenizer.train import (
    PairedVectors,
    alignment_loss,
    commitment_loss,
    epoch_batch_size,
    kmeans_rows,
    quality_warnings,
    query_metric,
    sized_for,
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


def test_scaled_inputs_scale_the_losses_of_eqs_3_and_5():
    config = dataclasses.replace(SMALL, layers=(12,), code_dim=6, dropout=0.0, commitment_weight=0.0)
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(8, dataclasses.replace(config, input_scale="rms")).eval()
    data = clustered(20)
    images, texts = torch.from_numpy(data.images), torch.from_numpy(data.texts)
    loss, _ = tokenizer_loss(tokenizer, images, texts, torch.ones(20, dtype=torch.bool))
    # by hand, in vectors whose components have a mean square of 1
    rms = 8**0.5
    summed = quantize(tokenizer.encoder(rms * images), tokenizer.stacked_books()).entries.sum(1)
    rebuilt = tokenizer.decoder(summed)
    expected = (rebuilt - rms * images).pow(2).mean() + (rebuilt - rms * texts).pow(2).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(tokenizer.rebuild(summed), rebuilt / rms)
    assert ImageTokenizer(8, dataclasses.replace(SMALL, input_scale="rms")).scale == 1, "no MLP, no units"


def test_rows_of_kmeans_by_hand():
    images, texts = np.eye(2, 4, dtype=np.float32), np.eye(4, dtype=np.float32)[[2, 3, 2]]
    views = np.stack([np.eye(4, dtype=np.float32)[[3, 3]]])
    pairs = np.array([[0, 0], [0, 1], [1, 2]])
    random = torch.Generator().manual_seed(0)
    bare = PairedVectors(images, texts, pairs)
    assert kmeans_rows(bare, mixtures=False, random=random).tolist() == images.tolist()
    rows = kmeans_rows(dataclasses.replace(bare, views=views), mixtures=True, random=random)
    # two pictures, their other views, and the pairs with the picture, the other view and the picture again
    mixed = [[1, 0, 1, 0], [0, 0, 0, 2], [0, 1, 1, 0]]
    np.testing.assert_allclose(rows, np.concatenate([images, views[0], unit(np.array(mixed, float))]), rtol=1e-6)


def test_rows_of_kmeans_are_bounded(monkeypatch):
    data = clustered(50)
    monkeypatch.setattr("voken.image_tokenizer.train._KMEANS_ROWS", 30)
    rows = kmeans_rows(data, mixtures=True, random=torch.Generator().manual_seed(0))
    everything = np.concatenate([data.images, unit(data.images + data.texts)])
    assert rows.shape == (30, 8)
    assert (np.abs(rows[:, None] - everything).sum(2).min(1) < 1e-5).all()
    assert len(np.unique(rows, axis=0)) == 30


def test_small_sets_have_small_batches():
    assert [epoch_batch_size(pictures, 2048) for pictures in (0, 639, 6_000, 1_000_000)] == [32, 32, 300, 2048]
    assert epoch_batch_size(6_000, 64) == 64


def test_views_and_mixtures_train_the_codebooks():
    """Texts and views lie off the pictures: codebooks that never saw anything near them rebuild them badly."""
    pictures = clustered(300)
    images = np.pad(pictures.images, ((0, 0), (0, 2)))
    texts, views = (unit(images + np.eye(10)[row]) for row in (8, 9))
    data = PairedVectors(images, texts, pictures.pairs)
    config = dataclasses.replace(SMALL, epochs=0)

    def error(train, config, vectors):
        tokenizer, _ = train_tokenizer(train, data, config, seed=0)
        return ((tokenizer.decode(tokenizer.encode(vectors)) - vectors) ** 2).sum(1).mean()

    mixed = unit(images + texts)
    assert error(data, dataclasses.replace(config, mixture=True), mixed) < 0.5 * error(data, config, mixed)
    assert error(dataclasses.replace(data, views=views[None]), config, views) < 0.5 * error(data, config, views)


def test_sizes_follow_the_size_of_the_set():
    chosen = dataclasses.replace(SMALL, codebook_size=0, levels=0)
    sizes = {pictures: sized_for(chosen, pictures) for pictures in (1, 300, 1_500, 6_000, 10_000, 10**6)}
    assert {pictures: (config.codebook_size, config.levels) for pictures, config in sizes.items()} == {
        1: (16, 8),
        300: (16, 8),
        1_500: (64, 8),
        6_000: (256, 8),
        10_000: (512, 7),
        10**6: (1024, 6),
    }
    assert sized_for(SMALL, 6_000) == SMALL
    assert sized_for(dataclasses.replace(chosen, codebook_size=1000), 6_000).levels == 6
    tokenizer, _ = train_tokenizer(clustered(600), clustered(40, 1), dataclasses.replace(chosen, epochs=0), seed=0)
    assert tokenizer.encode(clustered(5, 2).images).shape == (5, 8)
    assert tokenizer.config.codebook_size == 32


def test_a_collapsed_tokenizer_is_reported_with_a_remedy():
    held_out = clustered(200, 1)
    answers = held_out.pairs[:, ::-1].copy()
    small = dataclasses.replace(SMALL, codebook_size=4, levels=1, epochs=0)
    collapsed, _ = train_tokenizer(clustered(300), held_out, small, seed=0)
    collisions, ceiling = quality_warnings(
        tokenizer_report(collapsed, held_out.images, held_out.texts, answers), dataclasses.replace(small, layers=(8,))
    )
    assert collisions.startswith("100 % of the 200 pictures share their voken sequence")
    assert "R@10" in ceiling
    for remedy in ("tokenizer.levels (1)", "tokenizer.codebook_size (4)", "tokenizer.input_scale=rms"):
        assert remedy in collisions
    large = dataclasses.replace(SMALL, codebook_size=128, levels=4, epochs=0, encoding_beams=4)
    fine, _ = train_tokenizer(clustered(2000), held_out, large, seed=0)
    assert quality_warnings(tokenizer_report(fine, held_out.images, held_out.texts, answers), large) == ()


def test_a_saved_tokenizer_of_version_0_1_0_loads(tmp_path):
    tokenizer, _ = train_tokenizer(clustered(200), clustered(40, 1), SMALL, seed=0)
    tokenizer.save(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for name in ("encoding_beams", "input_scale"):
        del values[name]
    (tmp_path / "config.json").write_text(json.dumps(values | {"mixture": 0.5}), encoding="utf-8")
    loaded = ImageTokenizer.load(tmp_path)
    assert (loaded.config.encoding_beams, loaded.config.mixture, loaded.scale) == (1, True, 1)
    images = clustered(50, 2).images
    assert (loaded.encode(images) == tokenizer.encode(images)).all()


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
        {"alignment": "infonce", "mixture": True},
        {"encoding_beams": 4},
        {"layers": (12,), "code_dim": 6, "input_scale": "rms"},
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


def test_soft_targets_put_the_vokens_of_the_beam_first():
    config = dataclasses.replace(SMALL, encoding_beams=8)
    tokenizer, _ = train_tokenizer(clustered(200), clustered(40, 1), config, seed=0)
    images = clustered(60, 5).images
    vokens = tokenizer.encode(images)
    entries, weights = tokenizer.soft_targets(images, temperature=0.1, entries=4)
    np.testing.assert_array_equal(entries[:, :, 0], vokens)
    assert (np.diff(weights, axis=2) <= 0).all()
    np.testing.assert_allclose(weights.sum(2), 1, rtol=1e-5)
    assert all(len(set(row)) == 4 for row in entries.reshape(-1, 4).tolist())
    tokenizer.config = SMALL
    assert (tokenizer.encode(images) != vokens).any(), "greedy chooses the same: no test"


def test_the_metric_is_the_root_of_the_covariance_of_queries():
    random = np.random.default_rng(0)
    mixing = random.standard_normal((5, 5))
    points = random.standard_normal((400, 5)) @ mixing + 7
    covariance = np.cov(points.T)
    metric = query_metric(points, 0.5).astype(np.float64)
    squared = metric @ metric.T
    np.testing.assert_allclose(squared / squared[0, 0], covariance / covariance[0, 0], rtol=1e-4)
    quarter = query_metric(points, 0.25).astype(np.float64)
    np.testing.assert_allclose(quarter @ quarter, metric, atol=1e-4)
    np.testing.assert_allclose(query_metric(points, 0.0), np.eye(5), atol=1e-6)
    assert (query_metric(points[:0], 0.5) == np.eye(5)).all()


def anisotropic(count, seed):
    """Pictures that differ most where captions differ least."""
    random = np.random.default_rng(seed)
    content = random.standard_normal((count, 4)).astype(np.float32)
    noise = 4 * random.standard_normal((count, 4)).astype(np.float32)
    images = np.concatenate([content, noise], axis=1) / 10
    texts = np.concatenate([content + 0.3 * random.standard_normal((count, 4)), 0.01 * noise], axis=1)
    return PairedVectors(images.astype(np.float32), unit(texts), np.stack([np.arange(count)] * 2, 1))


@pytest.mark.parametrize("beams", [1, 4])
def test_vokens_chosen_in_the_metric_keep_the_scores_of_queries(beams):
    train, held_out = anisotropic(500, 0), anisotropic(200, 1)
    lost = {}
    for power in (0.0, 0.5):
        config = dataclasses.replace(SMALL, epochs=0, query_metric=power, encoding_beams=beams)
        tokenizer, _ = train_tokenizer(train, held_out, config, seed=0)
        vokens = tokenizer.encode(held_out.images)
        rebuilt = sum(book[vokens[:, level]] for level, book in enumerate(tokenizer.codebooks))
        lost[power] = ((held_out.texts @ (held_out.images - rebuilt).T) ** 2).mean()
    assert lost[0.5] < 0.5 * lost[0.0]
    # every choice is the nearest in the metric, by a loop
    metric, books = tokenizer.metric.numpy(), tokenizer.codebooks
    if beams == 1:
        for image, sequence in zip(held_out.images[:20], vokens, strict=False):
            residual = image.copy()
            for book, voken in zip(books, sequence, strict=True):
                assert voken == (((residual - book) @ metric) ** 2).sum(1).argmin()
                residual -= book[voken]


def test_soft_targets_and_files_know_the_metric(tmp_path):
    tokenizer, _ = train_tokenizer(
        anisotropic(300, 0), anisotropic(40, 1), dataclasses.replace(SMALL, query_metric=0.5, epochs=0), seed=0
    )
    images = anisotropic(30, 2).images
    entries, _ = tokenizer.soft_targets(images, temperature=0.1, entries=3)
    assert (entries[:, :, 0] == tokenizer.encode(images)).all()
    distance = (((images[:, None] - tokenizer.codebooks[0]) @ tokenizer.metric.numpy()) ** 2).sum(2)
    assert (np.sort(entries[:, 0], axis=1) == np.sort(distance.argsort(axis=1)[:, :3], axis=1)).all()
    tokenizer.save(tmp_path)
    loaded = ImageTokenizer.load(tmp_path)
    assert (loaded.encode(images) == tokenizer.encode(images)).all()
    numpy_vokens = nearest_sequences(
        images @ tokenizer.metric.numpy(), tokenizer.codebooks @ tokenizer.metric.numpy(), SMALL.encoding_beams
    )
    assert (numpy_vokens == tokenizer.encode(images)).all()


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
    tokenizer, history = train_tokenizer(bare, bare, dataclasses.replace(SMALL, query_metric=0.5), seed=0)
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


@pytest.mark.parametrize(
    "changes",
    [
        {"levels": 0},
        {"codebook_size": 1},
        {"encoding_beams": 0},
        {"layers": (0,)},
        {"query_metric": -0.1},
        {"query_metric": 0.5, "layers": (8,)},
    ],
)
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
