"""Encoders by the name that a user gives."""

import json

import numpy as np
import pytest

from builders.tiny_hub import make_clip, make_siglip
from builders.untrained import paint_noise
from voken import Collection
from voken.data.images import open_image
from voken.encoders.clip import HubEncoder
from voken.encoders.frozen import encoder_settings, frozen_encoder
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.errors import ArtifactError, ConfigError
from voken.model import untrained


def test_photos_is_built_in():
    settings = encoder_settings("photos")
    assert (settings.family, settings.checkpoint) == ("photos", "")
    assert isinstance(frozen_encoder(settings), ZeroShotEncoder)


@pytest.mark.parametrize(("family", "make"), [("clip", make_clip), ("siglip", make_siglip)])
def test_a_folder_is_indexed_and_searched_with_a_checkpoint(tmp_path, monkeypatch, family, make):
    monkeypatch.setattr(untrained, "_MIXTURES", 200)
    checkpoint, folder = tmp_path / "checkpoint", tmp_path / "photos"
    checkpoint.mkdir()
    make(checkpoint)
    settings = encoder_settings(str(checkpoint))
    assert (settings.family, settings.checkpoint) == (family, str(checkpoint))
    paint_noise(folder, range(5))
    assert Collection.index(folder, encoder=str(checkpoint)).fitted.encoder == str(checkpoint)
    with Collection.open(folder) as photos:
        found = [hit.image_id for hit in photos.search("a cat", 5)]
    encoder = HubEncoder.from_pretrained(str(checkpoint), family)
    names = [f"{number:03}.png" for number in range(5)]
    vectors = encoder.encode_images([open_image(folder / name) for name in names])
    cosines = vectors @ encoder.encode_texts(["a cat"])[0]
    assert found == [names[place] for place in np.argsort(-cosines)]


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--encoder clp: there is no such encoder\. Give photos"):
        encoder_settings("clp")
    with pytest.raises(ArtifactError, match="nobody/nothing: The hub did not provide it"):
        encoder_settings("nobody/nothing")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"is a bert model\. Give a CLIP or SigLIP model, or photos"):
        encoder_settings(str(tmp_path))
    with pytest.raises(ConfigError, match="voken fit"):
        frozen_encoder(encoder_settings("photos").__class__(family="builtin"))
