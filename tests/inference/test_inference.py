"""Engines against the torch generators they were written from: same weights, texts of unlike lengths, many widths."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from builders import tiny_llama, tiny_t5
from builders.tiny_lite import DIM, SETTINGS, SIZE, make_lite, make_lite_over
from builders.tiny_llama import make_llama
from builders.tiny_t5 import make_t5
from voken.config import EncoderConfig
from voken.decoding.beam import beam_search
from voken.decoding.interface import LinearModel, StepModel
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder, TwoTowerHead
from voken.encoders.zero_shot import ClassVectors, ZeroShotEncoder
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, MissingExtraError
from voken.generator.lite import LiteGenerator
from voken.generator.llama import Lora
from voken.generator.t5 import T5Generator
from voken.inference.engine import HEADER, Engine
from voken.inference.export import export_generator, lite_graphs, t5_graphs
from voken.model.model import FAMILIES

TEXTS = ["a red cat", "two small birds on the hill under rain", "dog", "a blue dog on the hill"]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(3)
    head = TwoTowerHead(EncoderConfig(dim=DIM, hidden=16)).eval()
    head.text_towers[0].mean.normal_(0, 0.02)
    head.text_towers[0].std.uniform_(0.03, 0.06)
    return TwoTowerEncoder(head)


def exported(generator, folder, **options):
    export_generator(generator, FAMILIES[generator.family].graphs, folder, **options)
    return Engine.load(folder)


def assert_same_search(generator, engine, *, images=25, tolerance=2e-4):
    trie = VokenTrie.from_vokens(
        np.random.default_rng(2).integers(0, generator.codebook_size, (images, generator.levels)),
        generator.codebook_size,
    )
    assert isinstance(engine, StepModel)
    assert (engine.levels, engine.codebook_size) == (generator.levels, generator.codebook_size)
    for texts in (TEXTS, TEXTS[1:2], TEXTS[:1] * 3):
        for beams in (1, 3, images):
            expected, result = (beam_search(model, trie, texts, beams) for model in (generator, engine))
            np.testing.assert_allclose(result.log_prob, expected.log_prob, atol=tolerance)
            assert (result.leaf == expected.leaf).all()
            assert (result.vokens == expected.vokens).all()


@pytest.mark.parametrize("kind", tiny_t5.KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_t5_searches_alike(tmp_path, kind, shared):
    generator = make_t5(tmp_path, kind, shared=shared)
    engine = exported(generator, tmp_path / "engine")
    assert_same_search(generator, engine)
    names = {path.name for path in (tmp_path / "engine").glob("step*.onnx")}
    assert len(names) == (1 if shared else generator.levels)


@pytest.mark.parametrize("kind", tiny_llama.KINDS)
@pytest.mark.parametrize("shared", [True, False])
def test_llama_searches_alike(tmp_path, kind, shared):
    generator = make_llama(tmp_path, kind, shared=shared)
    assert_same_search(generator, exported(generator, tmp_path / "engine"))


def test_llama_with_adapters_and_a_separator(tmp_path):
    generator = make_llama(tmp_path, "untied", lora=Lora(rank=3, alpha=5), separator=" picture :")
    assert_same_search(generator, exported(generator, tmp_path / "engine"))


@pytest.mark.parametrize("name", SETTINGS)
def test_lite_searches_alike(tmp_path, encoder, name):
    generator = make_lite_over(encoder, **SETTINGS[name])
    engine = exported(generator, tmp_path / "engine", encoder=encoder)
    assert_same_search(generator, engine)
    has_point = generator.config.query_vector
    state = generator.prefill(TEXTS)
    expected = (
        torch.nn.functional.normalize(state.query_point, dim=1).numpy() if has_point else encoder.encode_texts(TEXTS)
    )
    np.testing.assert_allclose(engine.query_vectors(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(engine.query_vectors(TEXTS, engine.prefill(TEXTS)), expected, atol=1e-5)


LINEAR = {
    "no layers": {"layers": 0},
    "layers": {"layers": 1},
    "perceptron": {"layers": 0, "point_epochs": 1},
    "memory": {"layers": 0, "memory_weight": 0.7},
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_linear_generator_needs_no_steps(tmp_path, encoder, name, precision):
    generator = make_lite_over(encoder, linear=True, query_vector=True, **LINEAR[name])
    assert generator.is_linear
    engine = exported(generator, tmp_path / "engine", encoder=encoder, precision=precision)
    assert not list((tmp_path / "engine").glob("step*"))
    assert json.loads((tmp_path / "engine" / HEADER).read_text())["format"] == 2
    engine.warm_up()
    assert isinstance(engine, LinearModel)
    if precision == "int8":
        return
    assert_same_search(generator, engine)
    state, torch_state = engine.prefill(TEXTS), generator.prefill(TEXTS)
    table = engine.level_logits(state)
    logits = generator.level_logits(torch_state)
    vokens = parents = None
    for level in range(generator.levels):  # the steps agree with the table, and the engine's with those of torch
        rows, state = engine.step(state, vokens, parents)
        with torch.inference_mode():
            on_device = [None if part is None else torch.from_numpy(part) for part in (vokens, parents)]
            torch_rows, torch_state = generator.step(torch_state, *on_device)
        beams = 1 if vokens is None else 2
        assert rows.shape == (len(TEXTS), beams, generator.codebook_size)
        np.testing.assert_array_equal(rows, np.repeat(table[:, level, None], beams, axis=1))
        np.testing.assert_allclose(rows, torch_rows.log_softmax(-1), atol=2e-4)
        expected = np.repeat(logits[:, level, None], beams, axis=1)
        np.testing.assert_allclose(torch_rows, expected, atol=2e-4)
        vokens = np.array([[level, 1]] * len(TEXTS))
        parents = np.array([[0, 0]] * len(TEXTS)) if level == 0 else np.array([[1, 0]] * len(TEXTS))


def test_a_generator_that_reads_the_vokens_before_is_not_linear(encoder):
    for settings in ({}, {"query_vector": True}, {"query_vector": True, "layers": 0}):
        generator = make_lite_over(encoder, **settings)
        assert not generator.is_linear
        assert generator.level_logits(generator.prefill(TEXTS)) is None
    generator = make_lite_over(encoder, linear=True, query_vector=True)
    generator.repetition.data[1] = 0.1
    assert not generator.is_linear


def test_the_engine_of_a_linear_generator_that_an_older_voken_wrote(tmp_path, encoder, monkeypatch):
    generator = make_lite_over(encoder, linear=True, query_vector=True, layers=0)
    with monkeypatch.context() as older:
        older.setattr(LiteGenerator, "is_linear", False)
        exported(generator, tmp_path / "engine", encoder=encoder)
    header = json.loads((tmp_path / "engine" / HEADER).read_text())
    del header["linear"]
    assert header["format"] == 1
    (tmp_path / "engine" / HEADER).write_text(json.dumps(header))
    engine = Engine.load(tmp_path / "engine")
    assert engine.level_logits(engine.prefill(TEXTS)) is None
    trie = VokenTrie.from_vokens(np.random.default_rng(2).integers(0, SIZE, (25, generator.levels)), SIZE)
    expected, result = (beam_search(model, trie, TEXTS, 25) for model in (generator, engine))
    np.testing.assert_allclose(result.log_prob, expected.log_prob, atol=2e-4)
    assert (result.leaf == expected.leaf).all()


def test_lite_over_two_networks_and_every_layer_searches_alike(tmp_path):
    torch.manual_seed(3)
    config = EncoderConfig(dim=DIM // 2, hidden=16, networks=("lite0", "lite2"), text_layers=True)
    encoder = TwoTowerEncoder(TwoTowerHead(config))
    for tower in encoder.head.text_towers:
        tower.mean.normal_(0, 0.02)
        tower.std.uniform_(0.03, 0.06)
    engine = exported(generator := make_lite_over(encoder, query_vector=True), tmp_path / "engine", encoder=encoder)
    assert_same_search(generator, engine)
    plain = exported(make_lite_over(encoder, query_vector=False), tmp_path / "plain", encoder=encoder)
    np.testing.assert_allclose(plain.query_vectors(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_lite_with_a_tuned_encoder(tmp_path, encoder):
    generator = make_lite_over(encoder, tune_encoder=True)
    for weight in generator.text.parameters():
        weight.data.mul_(1.01)
    assert_same_search(generator, exported(generator, tmp_path / "engine", encoder=encoder))


def test_queries_that_are_too_long_or_empty_are_cut_alike(tmp_path, encoder):
    long = " ".join(["a red cat on the hill"] * 40)
    makes = [lambda **o: make_t5(tmp_path / "t5", **o), lambda **o: make_llama(tmp_path / "llama", **o)]
    makes.append(lambda **o: make_lite_over(encoder, **o))
    for number, make in enumerate(makes):
        generator = make(max_query_tokens=9)
        engine = exported(generator, tmp_path / str(number), encoder=encoder)
        trie = VokenTrie.from_vokens(np.zeros((1, generator.levels), int), generator.codebook_size)
        texts = [long, "dog", "x"] + ([] if isinstance(generator, LiteGenerator) else [""])
        expected, result = (beam_search(model, trie, texts, 1).log_prob for model in (generator, engine))
        np.testing.assert_allclose(result, expected, atol=2e-4)


@pytest.mark.parametrize("family", ["t5", "llama", "lite"])
def test_int8_is_close(tmp_path, encoder, family):
    options = {}
    if family == "t5":
        generator = make_t5(tmp_path, codebooks=np.random.default_rng(0).normal(size=(3, 6, 16)).astype(np.float32))
    elif family == "llama":
        generator = make_llama(tmp_path)
    else:
        generator, options = make_lite_over(encoder, query_vector=False), {"encoder": encoder}
    exact = exported(generator, tmp_path / "exact", **options)
    rounded = exported(generator, tmp_path / "rounded", precision="int8", **options)
    trie = VokenTrie.from_vokens(
        np.random.default_rng(2).integers(0, generator.codebook_size, (25, generator.levels)), generator.codebook_size
    )
    result, expected = (beam_search(engine, trie, TEXTS, trie.sequences) for engine in (rounded, exact))
    by_leaf = np.argsort(result.leaf, axis=1), np.argsort(expected.leaf, axis=1)
    scores = [
        np.take_along_axis(one.log_prob, order, 1) for one, order in zip((result, expected), by_leaf, strict=True)
    ]
    spread = scores[1].std(axis=1).mean()
    error = np.abs(scores[0] - scores[1]).mean()
    assert 0 < error < 0.1 * spread, (error, spread)


def test_a_large_memory_is_searched_by_its_nearest_captions_in_int8(tmp_path, encoder, monkeypatch):
    generator = make_lite_over(encoder, memory_weight=0.7, memory=300)
    whole = exported(generator, tmp_path / "whole", precision="int8", encoder=encoder).query_vectors(TEXTS)
    monkeypatch.setattr("voken.inference.lite.RECALLED", 290)
    nearest = exported(generator, tmp_path / "nearest", precision="int8", encoder=encoder).query_vectors(TEXTS)
    np.testing.assert_allclose(nearest, whole, atol=0.02)
    monkeypatch.setattr("voken.inference.lite.RECALLED", 1)
    one = exported(generator, tmp_path / "one", precision="int8", encoder=encoder).query_vectors(TEXTS)
    assert np.abs(one - whole).max() > 0.05


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_query_does_not_depend_on_its_batch(tmp_path, encoder, precision):
    """In int8 rows are rounded by themselves; what is left is the order in which attention adds."""
    engine = exported(make_lite_over(encoder), tmp_path / "engine", precision=precision, encoder=encoder)
    trie = VokenTrie.from_vokens(np.random.default_rng(2).integers(0, SIZE, (25, 3)), SIZE)
    together = beam_search(engine, trie, TEXTS, 6)
    for row, text in enumerate(TEXTS):
        alone = beam_search(engine, trie, [text], 6)
        assert (alone.leaf[0] == together.leaf[row]).all()
        np.testing.assert_allclose(alone.log_prob[0], together.log_prob[row], atol=1e-5)


def test_text_vectors_beside_a_generator_that_reads_by_itself(tmp_path, encoder):
    engine = exported(make_t5(tmp_path), tmp_path / "engine", encoder=encoder)
    texts = [*TEXTS, " ".join(["word"] * 300)]
    np.testing.assert_allclose(engine.query_vectors(texts), encoder.encode_texts(texts), atol=1e-5)


def test_text_vectors_of_the_encoder_without_training(tmp_path):
    random = np.random.default_rng(4)
    classes, centre = random.normal(size=(1000, 384)), random.normal(size=384) / 30
    encoder = ZeroShotEncoder(ClassVectors(classes.astype(np.float32), centre.astype(np.float32)))
    engine = exported(make_t5(tmp_path), tmp_path / "engine", encoder=encoder)
    np.testing.assert_allclose(engine.query_vectors(TEXTS), encoder.encode_texts(TEXTS), atol=1e-5)


def test_without_text_vectors_the_remedy_is_named(tmp_path):
    engine = exported(make_t5(tmp_path), tmp_path / "engine")
    with pytest.raises(ConfigError, match="read-out 'generate'"):
        engine.query_vectors(["a"])


def test_what_has_no_graph_is_refused(tmp_path):
    generator = make_lite()
    assert not FAMILIES["lite"].can_export(None)
    with pytest.raises(ConfigError, match="Search with torch"):
        export_generator(generator, lite_graphs, tmp_path / "engine")


def test_a_checkpoint_without_a_fast_tokenizer_is_refused(tmp_path):
    generator = make_t5(tmp_path)
    generator.reader.tokenizer = object()
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        export_generator(generator, t5_graphs, tmp_path / "engine")


def test_a_missing_onnx_names_its_extra(tmp_path, monkeypatch):
    generator = make_t5(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"voken-search\[train\]"):
        export_generator(generator, t5_graphs, tmp_path / "engine")


def test_damage_is_named(tmp_path):
    export_generator(make_t5(tmp_path), t5_graphs, tmp_path / "engine")
    folder = tmp_path / "engine"
    good = (folder / "step.onnx").read_bytes()
    (folder / "step.onnx").write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptArtifactError, match=r"step\.onnx"):
        Engine.load(folder).warm_up()
    (folder / "step.onnx").write_bytes(good)
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptArtifactError, match=r"tokenizer\.json"):
        Engine.load(folder).prefill(["a"])
    (folder / "tokenizer.json").write_text(tokenizer)
    header = json.loads((folder / HEADER).read_text())
    (folder / HEADER).write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(ArtifactVersionError, match="99"):
        Engine.load(folder)
    (folder / HEADER).write_text(json.dumps({"format": 1}))
    with pytest.raises(CorruptArtifactError, match=r"engine\.json"):
        Engine.load(folder)


def test_searching_imports_no_torch(tmp_path):
    generator = make_t5(tmp_path)
    export_generator(generator, t5_graphs, tmp_path / "engine")
    assert isinstance(generator, T5Generator)
    program = f"""
import sys
from pathlib import Path
import numpy as np
from voken.decoding.beam import beam_search
from voken.decoding.trie import VokenTrie
from voken.inference.engine import Engine
engine = Engine.load(Path({str(tmp_path / "engine")!r}))
trie = VokenTrie.from_vokens(np.zeros((1, engine.levels), int), engine.codebook_size)
assert beam_search(engine, trie, ["a red cat"], 1).leaf.tolist() == [[0]]
wrong = {{"torch", "transformers", "onnx"}} & sys.modules.keys()
assert not wrong, wrong
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_looking_ahead_changes_nothing(tmp_path, family):
    """One pass for what is left where that is little; the same sequences and scores either way."""
    generator = make_t5(tmp_path) if family == "t5" else make_llama(tmp_path)
    engine = exported(generator, tmp_path / "engine")
    steps, trees = [], []
    step, step_tree = engine.step, engine.step_tree
    engine.step = lambda *given: steps.append(1) or step(*given)
    engine.step_tree = lambda *given: trees.append(given[1].shape[1]) or step_tree(*given)
    taken = set()
    for images in (1, 3, 12, 25, 200):
        vokens = np.random.default_rng(images).integers(0, generator.codebook_size, (images, generator.levels))
        trie = VokenTrie.from_vokens(vokens, generator.codebook_size)
        for beams in (1, 2, 5, trie.sequences):
            steps.clear()
            trees.clear()
            expected, result = (beam_search(model, trie, TEXTS[:1], beams) for model in (generator, engine))
            assert (result.leaf == expected.leaf).all()
            np.testing.assert_allclose(result.log_prob, expected.log_prob, atol=2e-4)
            taken.add((len(steps), len(trees)))
            beam_search(engine, trie, TEXTS[:2], beams)
            assert len(trees) <= 1  # of one query only
    assert taken == {(generator.levels - 2, 1), (generator.levels, 0)}
