"""CLIP and SigLIP: tiny random models in the format of the real ones, against transformers called directly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Siglip2Config

from builders.tiny_hub import TEXTS, make_clip, make_siglip
from voken.encoders.clip import HubEncoder
from voken.encoders.frozen import encoder_settings
from voken.encoders.interface import Encoder
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError
from voken.model.model import load_encoder


@pytest.fixture(scope="module", params=["clip", "siglip"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, {"clip": make_clip, "siglip": make_siglip}[request.param](folder)


@pytest.fixture
def encoder(checkpoint):
    return HubEncoder.from_pretrained(str(checkpoint[1]), checkpoint[0])


def pictures():
    random = np.random.default_rng(0)
    sizes = [(32, 32), (50, 40), (40, 90)]
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [*images, images[0].convert("L")]


def unit(rows):
    return (rows / rows.norm(dim=-1, keepdim=True)).detach().numpy()


def test_pictures_equal_a_direct_forward_pass(checkpoint, encoder):
    family, _, (model, processor, _) = checkpoint
    pixels = processor(images=[picture.convert("RGB") for picture in pictures()], return_tensors="pt")["pixel_values"]
    pooled = model.eval().vision_model(pixel_values=pixels).pooler_output
    expected = unit(model.visual_projection(pooled) if family == "clip" else pooled)
    vectors = encoder.encode_images(pictures())
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert vectors.shape == (4, encoder.dim)
    assert vectors.dtype == np.float32
    assert encoder.dim == {"clip": 24, "siglip": 32}[family]


def test_texts_equal_a_direct_forward_pass(checkpoint, encoder):
    family, _, (model, _, tokenizer) = checkpoint
    rows = []
    for text in TEXTS:
        if family == "clip":
            ids = tokenizer(text, truncation=True, max_length=16)["input_ids"]
            states = model.eval().text_model(input_ids=torch.tensor([ids]))
            rows.append(model.text_projection(states.last_hidden_state[:, ids.index(1)]))
        else:
            ids = tokenizer(text, truncation=True, max_length=12)["input_ids"]
            ids += [tokenizer.pad_token_id] * (12 - len(ids))
            rows.append(model.eval().text_model(input_ids=torch.tensor([ids])).pooler_output)
    vectors = encoder.encode_texts(TEXTS)
    np.testing.assert_allclose(vectors, unit(torch.cat(rows)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_rows_do_not_depend_on_their_batch(encoder):
    encoder.batch_size = 3
    for encode, rows in ((encoder.encode_images, pictures()), (encoder.encode_texts, TEXTS)):
        alone = np.concatenate([encode([row]) for row in rows])
        np.testing.assert_allclose(encode(rows), alone, atol=1e-5)
        assert encode([]).shape == (0, encoder.dim)


def test_token_states_come_with_the_same_vectors(encoder):
    read = encoder.read_texts(TEXTS, max_tokens=64)
    assert read.tokens.shape == (4, read.mask.shape[1], encoder.text_width)
    np.testing.assert_allclose(read.vectors.numpy(), encoder.encode_texts(TEXTS), atol=1e-5)


def test_a_saved_encoder_is_whole_and_the_same(encoder, tmp_path):
    encoder.save(tmp_path / "saved")
    loaded = load_encoder(tmp_path / "saved")
    assert isinstance(loaded, Encoder)
    assert (loaded.name, loaded.dim, loaded.fingerprint) == (encoder.name, encoder.dim, encoder.fingerprint)
    np.testing.assert_array_equal(loaded.encode_images(pictures()), encoder.encode_images(pictures()))
    np.testing.assert_array_equal(loaded.encode_texts(TEXTS), encoder.encode_texts(TEXTS))


def test_the_fingerprint_follows_the_weights(checkpoint, encoder):
    other = HubEncoder.from_pretrained(str(checkpoint[1]), checkpoint[0])
    assert other.fingerprint == encoder.fingerprint
    changed = HubEncoder.from_pretrained(str(checkpoint[1]), checkpoint[0])
    next(changed.model.parameters()).data.add_(1)
    assert changed.fingerprint != encoder.fingerprint


def test_a_saved_encoder_that_changed_is_refused(encoder, tmp_path):
    encoder.save(tmp_path / "saved")
    weights = tmp_path / "saved" / "checkpoint" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptArtifactError, match="saved"):
        load_encoder(tmp_path / "saved")
    weights.write_bytes(whole[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(CorruptArtifactError, match="weights"):
        load_encoder(tmp_path / "saved")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_an_incomplete_folder_is_told(checkpoint, tmp_path, missing):
    family, folder, _ = checkpoint
    for file in folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match="does not hold all of the model"):
        HubEncoder.from_pretrained(str(tmp_path), family)


def test_another_family_is_refused(checkpoint):
    family, folder, _ = checkpoint
    with pytest.raises(ConfigError, match=f"is a {family} model"):
        HubEncoder.from_pretrained(str(folder), "siglip" if family == "clip" else "clip")


def test_a_hub_name_without_the_hub_says_to_pass_a_folder():
    with pytest.raises(ArtifactError, match="Pass a folder that holds the model"):
        HubEncoder.from_pretrained("some-one/no-such-model", "clip")


def test_a_description_without_its_parts_is_told(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"family": "clip", "name": "x"}))
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        load_encoder(tmp_path)


def test_siglip_2_for_any_proportions_names_the_fixed_sizes(tmp_path):
    Siglip2Config().save_pretrained(tmp_path)
    for read in (
        lambda: encoder_settings(str(tmp_path)),
        lambda: HubEncoder.from_pretrained(str(tmp_path), "siglip"),
    ):
        with pytest.raises(ConfigError, match=r"NaFlex.*google/siglip2-base-patch16-224"):
            read()
