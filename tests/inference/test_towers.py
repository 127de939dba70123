"""The graphs of CLIP and SigLIP against transformers: tiny random models of every kind, and CLIP's true shape."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from builders.tiny_hub import TEXTS, TOWER, VISION, make_clip, make_siglip, make_true_clip, save
from voken.encoders.clip import HubEncoder
from voken.encoders.interface import PreparingEncoder
from voken.encoders.preparation import PicturePreparation
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError
from voken.inference.engine import TextEncoder
from voken.inference.export import export_picture_encoder, export_text_encoder
from voken.inference.pictures import PictureGraph
from voken.inference.towers import picture_graph

WORDS = [*TEXTS, "A RED dog", "  two   cats, and (a) dog!  "]
OTHER_WRITING = ["Straße über", "犬 dog", "tab\tand\nline", "dog’s “quotes” – ½ ﬁsh"]


def clip_of_laion(folder):
    """OpenCLIP's checkpoints: the exact GELU, and patches that leave a margin of the picture."""
    model, images, tokenizer = make_clip(folder)
    text = {**model.config.text_config.to_dict(), "hidden_act": "gelu"}
    vision = {**VISION, "image_size": 30, "patch_size": 14, "hidden_act": "gelu"}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    images = CLIPImageProcessorPil(size={"shortest_edge": 34}, crop_size={"height": 30, "width": 30})
    return save(folder, model, images, tokenizer)


def siglip2(folder):
    """SigLIP 2 at a fixed size: the network of SigLIP, another activation's name, a tokenizer in lower case."""
    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *letters, "re", "red"]
    vocab = {word: row for row, word in enumerate(words)}
    tokenizer = Siglip2Tokenizer(vocab=vocab, merges=[("r", "e"), ("re", "d")], padding_side="right")
    text = {**TOWER, "vocab_size": len(vocab), "max_position_embeddings": 12}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**VISION, "image_size": 48}))
    images = SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=2)
    return save(folder, model, images, tokenizer)


KINDS = {
    "clip": ("clip", make_clip),
    "clip of laion": ("clip", clip_of_laion),
    "siglip": ("siglip", make_siglip),
    "siglip 2": ("siglip", siglip2),
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    family, make = KINDS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint")
    _, processor, _ = make(folder)
    encoder = HubEncoder.from_pretrained(str(folder), family)
    torch.manual_seed(1)
    with torch.no_grad():  # biases and norms are zeros and ones in a new model
        for weight in encoder.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    export_text_encoder(encoder, folder / "engine")
    export_picture_encoder(encoder, folder / "engine")
    return encoder, processor, folder / "engine"


def pictures():
    random = np.random.default_rng(0)
    sizes = [(32, 32), (30, 41), (200, 90), (7, 300), (20, 20), (61, 64)]
    images = [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [*images, images[1].convert("L")]


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1).detach().numpy()


def test_vectors_of_pictures_are_those_of_transformers(exported):
    encoder, processor, folder = exported
    pixels = processor(images=[picture.convert("RGB") for picture in pictures()], return_tensors="pt")
    expected = unit(encoder.model.get_image_features(pixel_values=pixels["pixel_values"]).pooler_output)
    graph = PictureGraph.load(folder)
    np.testing.assert_allclose(graph.encode_images(pictures()), expected, atol=2e-5)
    np.testing.assert_allclose(encoder.encode_images(pictures()), expected, atol=2e-5)
    assert isinstance(graph, PreparingEncoder)
    assert (graph.name, graph.fingerprint, graph.dim) == (encoder.name, encoder.fingerprint, encoder.dim)
    assert graph.encode_images([]).shape == (0, encoder.dim)


def test_pictures_are_prepared_as_transformers_does(exported):
    encoder, processor, _ = exported
    prepared = [encoder.prepare(picture) for picture in pictures()]
    assert {picture.size for picture in prepared} == {encoder.preparation.size[::-1]}
    pixels = encoder.preparation.scaled(encoder.preparation.pixels(prepared))
    expected = processor(images=[picture.convert("RGB") for picture in pictures()], return_tensors="np")
    np.testing.assert_allclose(pixels, np.stack(expected["pixel_values"]), atol=1e-6)


def test_vectors_of_texts_are_those_of_transformers(exported):
    encoder, _, folder = exported
    texts = WORDS + OTHER_WRITING
    graph = TextEncoder.load(folder)
    np.testing.assert_allclose(graph.encode_texts(texts), encoder.encode_texts(texts), atol=2e-5)
    alone = np.concatenate([graph.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(graph.encode_texts(texts), alone, atol=2e-5)


def test_int8_is_near(exported, tmp_path):
    encoder, _, _ = exported
    export_text_encoder(encoder, tmp_path, precision="int8")
    cosines = (TextEncoder.load(tmp_path).encode_texts(WORDS) * encoder.encode_texts(WORDS)).sum(1)
    assert 0.99 < cosines.min() < 1 - 1e-7  # it is rounded, and not much


def test_padding_on_the_left_is_read_as_transformers_reads_it(tmp_path):
    siglip2(tmp_path)
    encoder = HubEncoder.from_pretrained(str(tmp_path), "siglip")
    encoder.tokenizer.padding_side = "left"
    export_text_encoder(encoder, tmp_path / "engine")
    vectors = TextEncoder.load(tmp_path / "engine").encode_texts(WORDS)
    np.testing.assert_allclose(vectors, encoder.encode_texts(WORDS), atol=2e-5)


@pytest.mark.slow
def test_the_true_shape_of_clip(tmp_path):
    make_true_clip(tmp_path)
    encoder = HubEncoder.from_pretrained(str(tmp_path))
    assert (encoder.dim, encoder.max_tokens, encoder.preparation.size) == (512, 77, (224, 224))
    assert sum(weight.numel() for weight in encoder.model.parameters()) == 151_277_313
    export_picture_encoder(encoder, tmp_path / "engine")
    export_text_encoder(encoder, tmp_path / "engine")
    graph, texts = PictureGraph.load(tmp_path / "engine"), TextEncoder.load(tmp_path / "engine")
    np.testing.assert_allclose(graph.encode_images(pictures()), encoder.encode_images(pictures()), atol=1e-3)
    np.testing.assert_allclose(texts.encode_texts(WORDS), encoder.encode_texts(WORDS), atol=1e-3)


PROCESSOR = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}, "do_center_crop": True}
COLOURS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}


def test_settings_of_an_image_processor_are_read():
    plain = PicturePreparation.of_processor({**PROCESSOR, **COLOURS})
    assert (plain.resize, plain.edge, plain.crop, plain.size, plain.least_side) == (None, 8, (8, 8), (8, 8), 8)
    assert PicturePreparation.from_dict(json.loads(json.dumps(plain.to_dict()))) == plain
    pixels = np.full((1, 8, 8, 3), 51, dtype=np.uint8)
    np.testing.assert_allclose(plain.scaled(pixels)[0, :, 0, 0], [0.1 / 0.5, 0, -0.1 / 0.7], atol=1e-6)
    bare = PicturePreparation.of_processor({**PROCESSOR, "do_rescale": False, "do_normalize": False})
    np.testing.assert_array_equal(bare.scaled(pixels), np.full((1, 3, 8, 8), 51))
    for wrong in (
        {**COLOURS, "size": {"shortest_edge": 8}},  # pictures of many sizes
        {**COLOURS, "size": {"shortest_edge": 8, "longest_edge": 12}, "do_center_crop": True, "crop_size": 8},
        {**COLOURS, **PROCESSOR, "resample": 17},
        {**COLOURS, "size": {"height": -3, "width": 8}},
    ):
        with pytest.raises(ConfigError, match="image processor"):
            PicturePreparation.of_processor(wrong)


def test_what_cannot_be_exported_is_told(tmp_path):
    make_clip(tmp_path)
    encoder = HubEncoder.from_pretrained(str(tmp_path), "clip")
    encoder.model.vision_model.config.hidden_act = "silu"
    with pytest.raises(ConfigError, match=r"activation silu cannot be exported\. Search with torch"):
        picture_graph(encoder, "float32")
    encoder.model.vision_model.config.hidden_act = "gelu"
    encoder.model.vision_model.config.patch_size = 8
    with pytest.raises(ConfigError, match="32 × 32 pixels, and the network reads others"):
        picture_graph(encoder, "float32")


def test_a_damaged_header_is_told(tmp_path):
    make_clip(tmp_path)
    encoder = HubEncoder.from_pretrained(str(tmp_path), "clip")
    export_picture_encoder(encoder, tmp_path / "engine")
    path = tmp_path / "engine" / "pictures.json"
    right = json.loads(path.read_text())
    for wrong in ({"dim": "24"}, {"preparation": {}}, {"fingerprint": 3}, {"quantizer": {"code": "../x", "beams": 1}}):
        path.write_text(json.dumps({**right, **wrong}))
        with pytest.raises(CorruptArtifactError, match=r"pictures\.json: .*Create the engine again"):
            PictureGraph.load(tmp_path / "engine")
    path.write_text(json.dumps({**right, "format": 99}))
    with pytest.raises(ArtifactVersionError, match="Upgrade voken"):
        PictureGraph.load(tmp_path / "engine")
    path.write_text(json.dumps({**right, "dim": 25}))
    with pytest.raises(CorruptArtifactError, match="is expected"):
        PictureGraph.load(tmp_path / "engine").encode_images(pictures()[:1])
