"""The words around a query of CLIP and SigLIP: applied in torch and in the engine, and chosen on captioned pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from builders.tiny_hub import make_clip, make_siglip
from builders.untrained import paint_noise
from voken import Collection
from voken.collection.store import Store
from voken.config import EncoderConfig, preset
from voken.data.captions import read_dataset
from voken.encoders.clip import HubEncoder
from voken.encoders.prompts import PROMPTS, check_prompt, choose_prompt, with_prompt
from voken.errors import ConfigError, CorruptArtifactError, EmptyDataError
from voken.model import untrained
from voken.model.model import load_encoder
from voken.training.fit import prepare

KINDS = {"clip": make_clip, "siglip": make_siglip}


@pytest.fixture(params=list(KINDS))
def checkpoint(request, tmp_path, monkeypatch):
    monkeypatch.setattr(untrained, "_MIXTURES", 200)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    KINDS[request.param](folder)
    return folder


def test_a_template_is_the_text_typed_with_it(checkpoint, tmp_path):
    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    plain, prompted = (HubEncoder.from_pretrained(str(checkpoint), family) for _ in range(2))
    prompted.prompt = "a red {}!"
    texts, typed = ["dog", "", "{} cat"], ["a red dog!", "a red !", "a red {} cat!"]
    np.testing.assert_array_equal(prompted.encode_texts(texts), plain.encode_texts(typed))
    states, expected = prompted.read_texts(texts, max_tokens=12), plain.read_texts(typed, max_tokens=12)
    torch.testing.assert_close(states.tokens, expected.tokens, rtol=0, atol=0)
    assert prompted.fingerprint == plain.fingerprint  # pictures are encoded once for all templates
    prompted.save(tmp_path / "saved")
    assert load_encoder(tmp_path / "saved").prompt == "a red {}!"
    description = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(description | {"prompt": "no place"}))
    with pytest.raises(CorruptArtifactError, match="where the query goes"):
        load_encoder(tmp_path / "saved")


def test_searches_with_and_without_torch_put_the_query_in_the_template(checkpoint, tmp_path):
    paint_noise(tmp_path / "photos", range(8))
    plain, prompted = tmp_path / "plain", tmp_path / "prompted"
    Collection.index(plain, tmp_path / "photos", encoder=str(checkpoint))
    report = Collection.index(prompted, tmp_path / "photos", encoder=str(checkpoint), prompt="a red {}")
    assert report.fitted.prompt == "a red {}"
    with Collection.open(plain) as one, Collection.open(prompted) as other:
        typed, short = one.search("a red dog", 8), other.search("dog", 8)
        assert [hit.image_id for hit in typed] == [hit.image_id for hit in short]
        np.testing.assert_allclose([hit.score for hit in typed], [hit.score for hit in short], atol=1e-4)
        assert [hit.score for hit in one.search("dog", 8)] != pytest.approx([hit.score for hit in short], abs=1e-3)
        combined = other.combine("dog", 8, plus=["cat"])
        assert [hit.image_id for hit in combined] == [
            hit.image_id for hit in one.combine("a red dog", 8, plus=["a red cat"])
        ]


class TypedEncoder:
    """An encoder with a vector for each whole text, drawn by the text."""

    def __init__(self):
        self.prompt, self.prompt_choice = "{}", None

    def encode_texts(self, texts):
        rows = [
            np.random.default_rng(list(text.encode())).standard_normal(6) for text in with_prompt(self.prompt, texts)
        ]
        return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def recall(encoder, template, captions, pictures, right, cut):
    """R@cut by sorting, one query at a time."""
    encoder.prompt = template
    hits = 0
    for caption, row in zip(encoder.encode_texts(captions), right, strict=True):
        hits += row in np.argsort(-(pictures @ caption))[:cut]
    return hits / len(captions)


def test_the_best_template_is_chosen():
    encoder, random = TypedEncoder(), np.random.default_rng(0)
    captions, right = [f"thing {number}" for number in range(40)], random.permutation(40)
    encoder.prompt = PROMPTS[3]  # pictures lie near the captions in this template
    pictures = np.zeros((40, 6), np.float32)
    pictures[right] = encoder.encode_texts(captions) + 0.2 * random.standard_normal((40, 6))
    counted = []
    choice = choose_prompt(encoder, captions, pictures, np.stack([right, np.arange(40)], 1), counted.append)
    assert choice.template == encoder.prompt == PROMPTS[3]
    assert counted == list(range(1, len(PROMPTS) + 1))
    for template in PROMPTS:
        expected = [recall(TypedEncoder(), template, captions, pictures, right, cut) for cut in (1, 5, 10)]
        assert choice.recalls[template] == pytest.approx(expected)
    assert choose_prompt(encoder, captions[:1], pictures[:1], np.array([[0, 0]])).template == PROMPTS[0]


def captioned(folder):
    """Twelve pictures; the captions of the train and test splits fit nothing."""
    paint_noise(folder, range(12))
    splits = ["validation"] * 8 + ["train"] * 2 + ["test"] * 2
    names = [f"{number:03}.png" for number in range(12)]
    rows = [
        {"file_name": name, "text": f"{chr(97 + number)} dog", "split": split}
        for number, (name, split) in enumerate(zip(names, splits, strict=True))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return names


def test_a_captioned_set_chooses_the_template_of_a_new_collection(checkpoint, tmp_path):
    names = captioned(tmp_path / "captioned")
    paint_noise(tmp_path / "photos", range(20, 24))
    out = tmp_path / "photos.voken"
    report = Collection.index(out, tmp_path / "photos", encoder=str(checkpoint), prompt=tmp_path / "captioned")
    model = Store.open(out).snapshot().find_model()
    saved = json.loads((model / "encoder" / "config.json").read_text())
    encoder = HubEncoder.from_pretrained(str(checkpoint), saved["family"])
    pictures = encoder.encode_images([Image.open(tmp_path / "captioned" / name) for name in names[:8]])
    captions = [f"{chr(97 + number)} dog" for number in range(8)]
    for template, recalls in saved["prompts_on_validation"].items():
        expected = [recall(encoder, template, captions, pictures, range(8), cut) for cut in (1, 5, 10)]
        assert recalls == pytest.approx(expected)
    means = {template: sum(recalls) for template, recalls in saved["prompts_on_validation"].items()}
    assert set(means) == set(PROMPTS)
    assert means[saved["prompt"]] == max(means.values())
    assert saved["prompt"] == report.fitted.prompt
    assert json.loads((model / "config.json").read_text())["run"]["encoder"]["prompt"] == saved["prompt"]
    assert load_encoder(model / "encoder").prompt_choice.recalls.keys() == means.keys()
    (tmp_path / "captioned" / "metadata.jsonl").unlink()
    with pytest.raises(EmptyDataError, match="has a caption"):
        Collection.index(out, tmp_path / "photos", encoder=str(checkpoint), prompt=tmp_path / "captioned", replace=True)


def test_training_chooses_the_template_too(checkpoint, tmp_path):
    names = captioned(tmp_path / "captioned")
    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    encoder = EncoderConfig(family=family, checkpoint=str(checkpoint), prompt="auto")
    inputs = prepare(
        read_dataset(tmp_path / "captioned"), replace(preset("default"), encoder=encoder), tmp_path / "work"
    )
    assert len(inputs.validation.images) == len(names) - 4
    chosen = inputs.encoder.prompt_choice
    assert inputs.encoder.prompt == chosen.template
    typed = HubEncoder.from_pretrained(str(checkpoint), family)
    expected = typed.encode_texts(with_prompt(chosen.template, inputs.validation.captions))
    np.testing.assert_allclose(inputs.validation.texts, expected, atol=1e-6)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "", "a\n{}", "{}" + "x" * 300])
def test_a_template_has_one_place(template):
    with pytest.raises(ConfigError, match="where the query goes"):
        check_prompt(template)


def test_what_has_no_template_says_so(checkpoint, tmp_path):
    paint_noise(tmp_path / "photos", range(4))
    out = tmp_path / "photos.voken"
    with pytest.raises(ConfigError, match="only CLIP and SigLIP"):
        Collection.index(out, tmp_path / "photos", prompt="a photo of {}")
    with pytest.raises(ConfigError, match="where the query goes"):
        Collection.index(out, tmp_path / "photos", encoder=str(checkpoint), prompt="{a photo}")
    assert not out.exists()
    Collection.index(out, tmp_path / "photos", encoder=str(checkpoint), prompt="a photo of {}")
    assert Collection.index(out, tmp_path / "photos", prompt="a photo of {}").unchanged == 4
    with pytest.raises(ConfigError, match="read as a photo of"):
        Collection.index(out, tmp_path / "photos", prompt="an image of {}")
    model = Store.open(out).snapshot().find_model()
    with pytest.raises(ConfigError, match="cannot be changed"):
        Collection.index(tmp_path / "other", tmp_path / "photos", model, prompt="a photo of {}")
