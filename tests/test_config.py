"""Settings: there and back through JSON, overridden by name, refused by name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from voken.config import EncoderConfig, GeneratorConfig, RunConfig, SearchConfig, TokenizerConfig, preset, user_cache
from voken.errors import ConfigError


def test_there_and_back_through_json():
    config = RunConfig(
        name="mine",
        seed=7,
        encoder=EncoderConfig(family="clip", checkpoint="some/folder"),
        tokenizer=TokenizerConfig(levels=6, layers=(), mixture=True),
        generator=GeneratorConfig(family="lite", dropout=0.0),
        search=SearchConfig(voken_weight=2.5),
    )
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert RunConfig.from_dict({}) == RunConfig()


def test_what_is_not_given_keeps_its_default():
    config = RunConfig.from_dict({"tokenizer": {"layers": [8, 4]}})
    assert config == RunConfig(tokenizer=TokenizerConfig(layers=(8, 4)))


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("seed", "12", 12),
        ("name", "run two", "run two"),
        ("name", "3", "3"),
        ("tokenizer.levels", "6", 6),
        ("tokenizer.layers", "[512, 256]", (512, 256)),
        ("tokenizer.layers", "[]", ()),
        ("tokenizer.shared_codebook", "false", False),
        ("tokenizer.update", "ema", "ema"),
        ("tokenizer.commitment_weight", "1", 1.0),
        ("tokenizer.mixture", "true", True),
        ("tokenizer.mixture", "0.5", True),  # a share, up to version 0.1.0
        ("tokenizer.mixture", "0", False),
        ("generator.learning_rate", "3e-4", 3e-4),
        ("search.voken_weight", "null", None),
        ("search.voken_weight", "2", 2.0),
    ],
)
def test_an_override_is_parsed_by_its_type(key, text, expected):
    config = RunConfig(search=SearchConfig(voken_weight=9.0)).override({key: text})
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_an_override_changes_nothing_else():
    config = RunConfig().override({"tokenizer.levels": "6", "generator.width": "32"})
    assert config == RunConfig(tokenizer=TokenizerConfig(levels=6), generator=GeneratorConfig(width=32))
    assert RunConfig().override({}) == RunConfig()


@pytest.mark.parametrize("key", ["levels", "tokenizer.level", "tokenizer", "tokenizer.levels.x", "", "seed.x", "a.b.c"])
def test_an_unknown_override_is_named(key):
    with pytest.raises(ConfigError, match=f"^{key}: no such setting"):
        RunConfig().override({key: "1"})


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("tokenizer.levels", "many", "TokenizerConfig.levels: 'many' is not a whole number"),
        ("tokenizer.levels", "2.5", "2.5 is not a whole number"),
        ("tokenizer.levels", "true", "True is not a whole number"),
        ("tokenizer.shared_codebook", "1", "1 is not true or false"),
        ("tokenizer.commitment_weight", "true", "True is not a number"),
        ("tokenizer.commitment_weight", "null", "None is not a number"),
        ("tokenizer.mixture", "1.5", "1.5 is not true or false"),
        ("tokenizer.update", "adam", "TokenizerConfig.update: 'adam' is not one of 'gradient', 'ema'"),
        ("tokenizer.layers", "512", "512 is not a tuple"),
        ("tokenizer.layers", '["wide"]', "'wide' is not a whole number"),
        ("search.voken_weight", "heavy", "'heavy' is not a number"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(key, text, says):
    with pytest.raises(ConfigError, match=says.replace("[", r"\[")):
        RunConfig().override({key: text})


def test_an_unknown_name_in_a_file_is_named():
    with pytest.raises(ConfigError, match="TokenizerConfig has no setting depth, height"):
        RunConfig.from_dict({"tokenizer": {"height": 1, "depth": 2}})


@pytest.mark.parametrize("value", [3, "x", [1], None])
def test_a_section_that_is_no_section_is_refused(value):
    with pytest.raises(ConfigError, match=r"RunConfig\.tokenizer"):
        RunConfig.from_dict({"tokenizer": value})


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3


def test_light_modules_do_not_import_torch():
    modules = "voken.config, voken.errors, voken.artifact, voken.data.captions, voken.data.images, voken.data.splits"
    script = f"import sys, {modules}; print(sorted({{'torch', 'transformers'}} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("changes", "key", "reason"),
    [
        ({}, "generator.targets", "generator.epochs is 0"),
        ({}, "generator.logit_temperature", "generator.epochs is 0"),
        ({"generator.epochs": "3", "generator.targets": "one-hot"}, "generator.soft_temperature", "targets is one-hot"),
        ({}, "tokenizer.commitment_weight", "tokenizer.epochs is 0"),
        ({}, "tokenizer.code_dim", "tokenizer.layers is empty"),
        ({}, "generator.lora_rank", "family is lite"),
        ({"generator.family": "t5"}, "generator.width", "family is t5"),
        ({"generator.family": "llama"}, "generator.dropout", "family is llama"),
        ({"generator.memory_weight": "0"}, "generator.memory_size", "memory_weight is 0"),
        ({"generator.discrimination": "none"}, "generator.patience", "the generator has no epochs"),
        ({"encoder.family": "clip"}, "encoder.image_size", "encoder.family is clip"),
        ({"encoder.family": "photos"}, "encoder.checkpoint", "encoder.family is photos"),
        ({"encoder.family": "photos"}, "encoder.epochs", "encoder.family is photos"),
        ({}, "encoder.visual", "encoder.family is builtin"),
        ({"tokenizer.layers": "[8]"}, "tokenizer.query_metric", "tokenizer.layers is not empty"),
        ({}, "search.readout", "every search chooses its read-out"),
    ],
)
def test_a_setting_without_effect_is_refused(changes, key, reason):
    config = preset("default").override(changes)
    with pytest.raises(ConfigError, match=f"{key} has no effect: .*{reason}"):
        config.check_used(["seed", key])


def test_settings_with_an_effect_are_accepted():
    lite = preset("paper-lite").override(
        {
            "generator.query_vector": "true",
            "generator.memory_weight": "1",
            "generator.point_epochs": "3",
            "generator.targets": "soft",
        }
    )
    values = {part: values for part, values in lite.to_dict().items() if isinstance(values, dict)}
    unused = {"encoder.checkpoint", "tokenizer.ema_decay", "tokenizer.alignment_temperature", "generator.checkpoint"}
    unused |= {"generator.lora_rank", "generator.discrimination_epochs", "generator.discrimination_learning_rate"}
    unused |= {"generator.generation_beside_discrimination"}
    unused |= {"search.readout", "search.norm_weight", "encoder.visual", "encoder.prompt", "tokenizer.query_metric"}
    lite.check_used({f"{part}.{name}" for part in values for name in values[part]} - unused)
    preset("default").check_used(["tokenizer.levels", "generator.epochs", "generator.layers", "search.beams"])


def test_user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("npm") == tmp_path / "voken" / "npm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache("npm") == tmp_path / "home" / ".cache" / "voken" / "npm"
