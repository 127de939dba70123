"""BLIP: tiny random models in the format of the real ones, against transformers called directly, pair by pair."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, CLIPConfig

from builders.tiny_blip import PIECES, save_blip
from voken.errors import ArtifactError, ConfigError, DataError, EmptyDataError, PictureError
from voken_lab.systems.blip import BlipCaptioner, BlipScorer, CaptionStyle
from voken_lab.systems.one_tower import OneTower

ENC = PIECES.index("[ENC]")
TEXTS = ["a red dog", "cat", "the blue cat runs on the grass and a dog runs on the red grass", ""]


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    return save_blip(BlipForImageTextRetrieval, tmp_path_factory.mktemp("matcher"))


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return save_blip(BlipForConditionalGeneration, tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = []
    for row, size in enumerate([(32, 32), (50, 40), (40, 90), (8, 8), (64, 64)]):
        paths.append(folder / f"{row}.png")
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def opened(paths):
    return [Image.open(path).convert("RGB") for path in paths]


@torch.no_grad()
def plain_scores(model, images, texts, text, paths, first=None):
    scores = []
    for picture in opened(paths):
        pixels = images(images=picture, return_tensors="pt")["pixel_values"]
        ids = texts(text, truncation=True, max_length=35, return_tensors="pt")["input_ids"]
        if first is not None:
            ids[0, 0] = first
        scores.append(float(model(input_ids=ids, pixel_values=pixels).itm_score.softmax(-1)[0, 1]))
    return np.array(scores)


@pytest.mark.parametrize("first", [None, ENC])
def test_scores_equal_a_plain_forward_pass_of_each_pair(matcher, pictures, first):
    folder, model, images, texts = matcher
    pool = BlipScorer.from_pretrained(str(folder), batch_size=2, first_token=first).bind(pictures)
    expected = np.array([plain_scores(model, images, texts, text, pictures, first) for text in TEXTS])
    assert np.ptp(expected, axis=0).min() > 0.01  # the texts matter
    assert np.ptp(expected, axis=1).min() > 0.01  # the pictures matter
    for text, row in zip(TEXTS, expected, strict=True):
        np.testing.assert_allclose(pool.score(text, np.arange(5)), row, atol=1e-5)
        np.testing.assert_allclose(pool.score(text, np.array([3, 0])), row[[3, 0]], atol=1e-5)
        assert pool.score(text, np.arange(0)).shape == (0,)


def test_the_two_first_tokens_differ(matcher, pictures):
    folder = str(matcher[0])
    scores = [BlipScorer.from_pretrained(folder, first_token=first).bind(pictures[:1]) for first in (None, ENC)]
    rows = np.array([0])
    assert abs(scores[0].score("a dog", rows) - scores[1].score("a dog", rows))[0] > 1e-3


def test_a_picture_is_read_once_and_only_when_asked_for(matcher, pictures, monkeypatch):
    scorer = BlipScorer.from_pretrained(str(matcher[0]), batch_size=2)
    pool = scorer.bind(pictures)
    read = []
    monkeypatch.setattr(scorer, "read_images", lambda images: read.append(len(images)) or real(images))
    real = BlipScorer.read_images.__get__(scorer)
    pool.score("a dog", np.array([4, 1, 4]))
    pool.score("a cat", np.array([1, 4, 0]))
    progress = []
    pool.encode(progress=lambda *call: progress.append(call))
    pool.score("red", np.arange(5))
    assert read == [2, 1, 2]
    assert progress == [("BLIP: pictures", 2, 2)]


def test_half_precision_keeps_half_the_bytes(matcher, pictures):
    scorer = BlipScorer.from_pretrained(str(matcher[0]))
    whole, half = scorer.bind(pictures), scorer.bind(pictures, half=True)
    rows = np.arange(5)
    np.testing.assert_allclose(half.score("a red dog", rows), whole.score("a red dog", rows), atol=0.02)
    assert whole.bytes_per_picture == 4 * 17 * 24 == 2 * half.bytes_per_picture  # 4 × 4 patches and one more
    assert half._states[0].nbytes == half.bytes_per_picture


def test_the_whole_pool_is_ranked_by_probability(matcher, pictures):
    folder, model, images, texts = matcher
    ids = [path.stem for path in pictures]
    system = OneTower(BlipScorer.from_pretrained(str(folder)).bind(pictures), ids)
    for text, hits in zip(TEXTS, system.search(TEXTS, 5), strict=True):
        expected = plain_scores(model, images, texts, text, pictures)
        assert [hit.image_id for hit in hits] == [ids[row] for row in np.argsort(-expected)]
        assert all(0 <= hit.score <= 1 for hit in hits)


def test_pools_that_cannot_be_scored(matcher, pictures, tmp_path):
    scorer = BlipScorer.from_pretrained(str(matcher[0]))
    with pytest.raises(EmptyDataError, match="no picture"):
        scorer.bind([])
    with pytest.raises(DataError, match="there are 5"):
        scorer.bind(pictures).score("a dog", np.array([5]))
    (tmp_path / "torn.png").write_bytes(pictures[0].read_bytes()[:40])
    with pytest.raises(PictureError, match=r"torn\.png"):
        scorer.bind([pictures[0], tmp_path / "torn.png"]).score("a dog", np.arange(2))


def plain_captions(model, images, texts, paths, **how):
    pixels = images(images=opened(paths), return_tensors="pt")["pixel_values"]
    tokens = model.generate(pixel_values=pixels, min_new_tokens=2, max_new_tokens=8, **how)
    return [text.strip() for text in texts.batch_decode(tokens, skip_special_tokens=True)]


def test_a_beams_captions_equal_plain_generate(writer, pictures):
    folder, model, images, texts = writer
    captioner = BlipCaptioner.from_pretrained(str(folder), batch_size=2)
    style = CaptionStyle("beam", beams=4, min_tokens=2, max_tokens=8)
    expected = [
        plain_captions(model, images, texts, [path], num_beams=4, num_return_sequences=3, do_sample=False)
        for path in pictures
    ]
    progress = []
    captions = captioner.caption(
        opened(pictures), captions_each=3, style=style, progress=lambda *call: progress.append(call)
    )
    assert captions == expected
    assert len({text for texts_of_one in captions for text in texts_of_one}) > 3
    assert progress == [("BLIP: captions", done, 5) for done in (2, 4, 5)]
    assert captioner.caption([], style=style) == []


def test_sampled_captions_equal_plain_generate_with_the_same_seed(writer, pictures):
    folder, model, images, texts = writer
    captioner = BlipCaptioner.from_pretrained(str(folder), batch_size=3)
    style = CaptionStyle(top_p=0.8, min_tokens=2, max_tokens=8)
    torch.manual_seed(11)
    before = torch.rand(1)
    torch.manual_seed(11)
    captions = captioner.caption(opened(pictures), captions_each=2, seed=4, style=style)
    torch.testing.assert_close(torch.rand(1), before)
    assert captions == captioner.caption(opened(pictures), captions_each=2, seed=4, style=style)
    assert captions != captioner.caption(opened(pictures), captions_each=2, seed=5, style=style)
    for start in (0, 3):
        torch.manual_seed(int(np.random.SeedSequence([4, start]).generate_state(1)[0]))
        expected = plain_captions(
            model,
            images,
            texts,
            pictures[start : start + 3],
            num_return_sequences=2,
            do_sample=True,
            top_p=0.8,
            top_k=0,
        )
        assert [text for texts_of_one in captions[start : start + 3] for text in texts_of_one] == expected


def test_impossible_settings_are_refused(matcher, writer):
    with pytest.raises(ConfigError, match="first_token is 99"):
        BlipScorer.from_pretrained(str(matcher[0]), first_token=99)
    with pytest.raises(ConfigError, match="batch_size"):
        BlipScorer.from_pretrained(str(matcher[0]), batch_size=0)
    captioner = BlipCaptioner.from_pretrained(str(writer[0]))
    with pytest.raises(ConfigError, match="captions_each must be at least 1, not 0"):
        captioner.caption([], captions_each=0)
    for wrong in ({"method": "greedy"}, {"top_p": 0.0}, {"beams": 0}, {"min_tokens": 9, "max_tokens": 3}):
        with pytest.raises(ConfigError):
            CaptionStyle(**wrong)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer"])
def test_an_incomplete_folder_is_told(matcher, tmp_path, missing):
    for file in matcher[0].iterdir():
        if not file.name.startswith(missing):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match="does not hold the whole model"):
        BlipScorer.from_pretrained(str(tmp_path))


def test_pickled_weights_are_never_read(matcher, tmp_path):
    _, model, images, texts = matcher
    for part in (model.config, images, texts):
        part.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors"):
        BlipScorer.from_pretrained(str(tmp_path))


def test_damaged_weights_are_told(matcher, tmp_path):
    for file in matcher[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 200 if file.name == "model.safetensors" else None])
    with pytest.raises(ArtifactError, match="does not hold the whole model"):
        BlipScorer.from_pretrained(str(tmp_path))


def test_a_checkpoint_trained_for_something_else_is_refused(matcher, writer, tmp_path):
    with pytest.raises(ConfigError, match=r"no weights for .* like Salesforce/blip-itm"):
        BlipScorer.from_pretrained(str(writer[0]))
    with pytest.raises(ConfigError, match=r"no weights for .* like Salesforce/blip-image-captioning"):
        BlipCaptioner.from_pretrained(str(matcher[0]))
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a clip model, not blip"):
        BlipScorer.from_pretrained(str(tmp_path))


def test_a_hub_name_without_the_hub_says_to_pass_a_folder():
    for kind in (BlipScorer, BlipCaptioner):
        with pytest.raises(ArtifactError, match=r"some-one/no-such-model: .*Pass a folder that holds the model"):
            kind.from_pretrained("some-one/no-such-model")
