"""Models that somebody else made, to do harm: they read nothing outside their folder, and odd ones are named errors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from builders.saved_search import save_search
from voken import Collection, artifact
from voken.cli import app
from voken.errors import ArtifactError, CorruptArtifactError, VokenError
from voken.inference.engine import HEADER, Engine
from voken.model.compiled import CompiledModel
from voken.model.model import PictureSide


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_search(tmp_path_factory.mktemp("original"))


@pytest.fixture
def model(original, tmp_path):
    return Path(shutil.copytree(original / "model", tmp_path / "model"))


def seal(folder):
    """Write the checksums of a model again, as somebody would who changes its files on purpose."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": artifact.sha256(path)}
    artifact.write_json(folder / "manifest.json", {"kind": "model", "version": 1, "files": files})


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def search(model):
    CompiledModel.load(model).generator.warm_up()
    engine = CompiledModel.load(model).generator
    state = engine.prefill(["a red cat"])
    for level in range(engine.levels):
        vokens = None if level == 0 else np.zeros((1, 1), np.int64)
        log_probs, state = engine.step(state, vokens, vokens)
        assert log_probs.shape == (1, 1, engine.codebook_size)
    engine.decode(np.zeros((1, engine.levels), np.int64))
    engine.query_vectors(["a red cat"])


def test_an_honest_model_is_read(model):
    search(model)


def graph_with_weights_in(path, location):
    """A graph whose weights are said to be in the file `location`."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        weights.external_data.add(key=key, value=value)
    result = helper.make_tensor_value_info("first", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["first"])], "g", [], [result], [weights])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(made.SerializeToString())


@pytest.mark.parametrize("place", ["absolute", "parent", "link", "linked folder"])
def test_weights_outside_are_not_read(model, tmp_path, place):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(np.array([42.0, 43.0], np.float32).tobytes())
    engine = model / "engine"
    location = {"absolute": str(secret), "parent": "../../secret.bin", "link": "w.bin", "linked folder": "d/secret.bin"}
    if place == "link":
        (engine / "w.bin").symlink_to(secret)
    if place == "linked folder":
        (engine / "d").symlink_to(tmp_path)
    graph_with_weights_in(engine / "prefill.onnx", location[place])
    manifest = json.loads((model / "manifest.json").read_text())
    entry = {"bytes": (engine / "prefill.onnx").stat().st_size, "sha256": artifact.sha256(engine / "prefill.onnx")}
    rewrite(model / "manifest.json", files=manifest["files"] | {"engine/prefill.onnx": entry})
    with pytest.raises(CorruptArtifactError):
        search(model)
    # ONNX Runtime refuses them, too; if the file is inside, both read it
    with pytest.raises(CorruptArtifactError, match=r"prefill\.onnx: cannot be read"):
        Engine.load(engine).warm_up()
    shutil.copy(secret, engine / "inside.bin")
    graph_with_weights_in(engine / "prefill.onnx", "inside.bin")
    Engine.load(engine).warm_up()


HEADERS = [
    {"steps": ["../../step.onnx"]},
    {"steps": ["/etc/passwd"]},
    {"steps": "step.onnx"},
    {"steps": []},
    {"steps": [7]},
    {"linear": 1},
    {"linear": True},
    {"linear": True, "steps": []},
    {"steps": ["missing.onnx"]},
    {"levels": 10**9},
    {"levels": 2.5},
    {"codebook_size": 10**9},
    {"codebook_size": 10**30},
    {"codebook_size": True},
    {"codebook_size": "5"},
    {"family": ["lite"]},
    {"format": None},
    {"format": "1"},
    {"vectors": 3},
    {"vectors": {"file": "../../manifest.json", "max_tokens": 9, "cut": "keep end", "added": [], "stand_in": 0}},
    {"reader": None},
    {"reader": {"file": "../config.json", "max_tokens": 9, "cut": "keep end", "added": [], "stand_in": 0}},
    {"reader": {"file": "tokenizer.json", "max_tokens": 10**9, "cut": "keep end", "added": [], "stand_in": 0}},
    {"reader": {"file": "tokenizer.json", "max_tokens": 9, "cut": "keep end", "added": ["a"], "stand_in": 0}},
    {"reader": {"file": "prefill.onnx", "max_tokens": 9, "cut": "keep end", "added": [], "stand_in": 0}},
    {"codebook_size": 6},
    {"levels": 4},
]


@pytest.mark.parametrize("changes", HEADERS, ids=str)
def test_odd_engines_are_named(model, changes):
    rewrite(model / "engine" / HEADER, **changes)
    seal(model)
    with pytest.raises(ArtifactError, match=r"engine"):
        search(model)


@pytest.mark.parametrize("name", ["prefill.onnx", "tokenizer.json", "engine.json"])
def test_pipes_and_links_are_named(model, tmp_path, name):
    path = model / "engine" / name
    path.rename(tmp_path / name)
    os.mkfifo(path)
    with pytest.raises(CorruptArtifactError, match="no plain file"):
        search(model)
    with pytest.raises(CorruptArtifactError, match="not a plain file"):
        Engine.load(model / "engine").prefill(["a"])
    path.unlink()
    path.symlink_to(tmp_path / name)
    with pytest.raises(CorruptArtifactError, match="is a link"):
        search(model)


def test_a_graph_that_fails_is_named(model):
    path = model / "engine" / "prefill.onnx"
    graph_with_weights_in(path, "w.bin")
    (path.parent / "w.bin").write_bytes(bytes(8))
    seal(model)
    with pytest.raises(CorruptArtifactError, match=r"prefill\.onnx: gives"):
        search(model)


def test_a_graph_that_wants_more_is_named(model):
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, [2])
    result = helper.make_tensor_value_info("first", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Identity", ["more"], ["first"])], "g", [more], [result])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        model / "engine" / "prefill.onnx",
    )
    seal(model)
    with pytest.raises(CorruptArtifactError, match=r"prefill\.onnx: cannot be run \('more'\)"):
        search(model)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("image_tokenizer", {"codebook_size": 10**9}),
        ("image_tokenizer", {"code_dim": 10**9}),
        ("image_tokenizer", {"levels": 10**9}),
        ("image_tokenizer", {"codebook_size": "many"}),
        ("image_tokenizer", {"dim": None}),
        ("image_tokenizer", {"nothing": 1}),
        ("encoder", {"family": "pickle"}),
        ("encoder", {"family": ["clip"]}),
        ("encoder", {"family": "clip"}),
        ("encoder", {"image_features": 10**9}),
        ("encoder", {"backbones": {"": {}}}),
    ],
    ids=str,
)
def test_odd_picture_sides_are_named(model, part, changes):
    rewrite(model / part / "config.json", **changes)
    seal(model)
    with pytest.raises(ArtifactError, match=r"model"):
        PictureSide.load(model)


@pytest.mark.parametrize("content", ['{"run": 1, "search": 2}', "{}", '{"run": {}, "search": {"beams": "x"}}', "[1]"])
def test_odd_settings_are_named(original, model, content):
    (model / "config.json").write_text(content)
    seal(model)
    with pytest.raises(CorruptArtifactError, match=r"config\.json"):
        CompiledModel.load(model)
    result = CliRunner().invoke(app, ["info", str(model)])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    with pytest.raises(VokenError):
        Collection.open(original / "collection", model=model)
