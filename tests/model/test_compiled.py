"""A saved model searched without torch gives what it gives in torch, from Python and from the command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.saved_search import PICTURES, make_collection, make_model, save_search
from builders.tiny_lite import DIM, LEVELS, SIZE
from voken import Collection
from voken.cli import app
from voken.collection.store import Store
from voken.config import SearchConfig
from voken.errors import ArtifactError, ArtifactVersionError, BusyError, CorruptArtifactError
from voken.model.compiled import CompiledModel
from voken.search.batching import SearchQueue
from voken.search.searcher import Searcher, load_model

TEXTS = ["a red cat", "two small birds on the hill under rain", "dog", "a blue dog on the hill"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_search(tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("readout", ["generate", "voken", "vector"])
@pytest.mark.parametrize("layers", [(), (12,)])
def test_hits_are_those_of_torch(tmp_path, readout, layers):
    model = make_model(layers=layers).save(tmp_path / "model")
    collection = make_collection(model)
    compiled = CompiledModel.load(tmp_path / "model")
    search = SearchConfig(beams=7, readout=readout)
    expected, compiled_hits = (Searcher(one, collection, search).search(TEXTS, 5) for one in (model, compiled))
    for wanted, hits in zip(expected, compiled_hits, strict=True):
        assert [hit.image_id for hit in hits] == [hit.image_id for hit in wanted]
        assert [hit.vokens for hit in hits] == [hit.vokens for hit in wanted]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in wanted], atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_64_threads_and_an_event_loop_get_what_one_caller_gets(saved, tmp_path, precision):
    """Queries of unlike lengths, with two values of k, in whatever batches come about."""
    model = make_model(precision=precision).save(tmp_path / "model")
    compiled = CompiledModel.load(tmp_path / "model")
    assert model.fingerprint == compiled.fingerprint
    searcher = Searcher(compiled, Store.open(saved / "collection").snapshot())
    words = ["a", "red", "cat", "two", "small", "birds", "on", "the", "hill", "under", "rain", "dog", "blue"]
    random = np.random.default_rng(0)
    queries = [(" ".join(random.choice(words, random.integers(1, 12))), int(random.integers(1, 3))) for _ in range(256)]
    alone = [searcher.search([text], k)[0] for text, k in queries]

    async def together():
        return await asyncio.gather(*(queue.asearch([text], k) for text, k in queries))

    sizes = []
    queue = SearchQueue(searcher)
    answer = queue._batcher._run
    queue._batcher._run = lambda key, texts: sizes.append(len(texts)) or answer(key, texts)
    with ThreadPoolExecutor(64) as threads:
        from_threads = list(threads.map(lambda one: queue.search([one[0]], one[1]), queries))
    for answers in (from_threads, asyncio.run(together())):
        for (hits,), wanted in zip(answers, alone, strict=True):
            assert [hit.image_id for hit in hits] == [hit.image_id for hit in wanted]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in wanted], atol=1e-4)
    assert sum(sizes) == 2 * len(queries)
    assert max(sizes) > 8
    queue.close()
    with pytest.raises(BusyError):
        queue.search(["dog"], 1)


def test_opening_takes_the_engine_on_a_cpu_and_torch_where_there_is_none(saved, tmp_path):
    assert isinstance(Collection.open(saved / "collection").searcher.model, CompiledModel)
    assert isinstance(load_model(saved / "model"), CompiledModel)
    without = tmp_path / "model"
    shutil.copytree(saved / "model", without)
    shutil.rmtree(without / "engine")
    with pytest.raises(CorruptArtifactError, match="engine"):  # a manifest names what is there
        load_model(without)
    with pytest.raises(ArtifactError):
        load_model(tmp_path / "nothing")


def test_without_torch_a_missing_model_is_not_a_question_of_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ArtifactError) as raised:
        load_model(tmp_path / "nothing")
    assert "only torch" not in str(raised.value)


def test_another_precision_searches_the_same_collection(saved, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(saved / "model", model)
    before = CompiledModel.load(model)
    result = CliRunner().invoke(app, ["compile", str(model), "--precision", "int8"])
    assert result.exit_code == 0, result.output
    assert "engine: int8" in result.output
    after = CompiledModel.load(model)
    assert (before.generator.precision, after.generator.precision) == ("float32", "int8")
    assert after.fingerprint == before.fingerprint
    collection = Store.open(saved / "collection").snapshot()
    exact, rounded = (Searcher(one, collection).search(TEXTS, 20) for one in (before, after))
    shared = [
        {a.image_id for a in one} & {b.image_id for b in other} for one, other in zip(exact, rounded, strict=True)
    ]
    assert np.mean([len(ids) for ids in shared]) > 14


def test_other_weights_are_another_model(saved, tmp_path):
    model = make_model()
    model.generator.bias.data.add_(1.0)
    other = model.save(tmp_path / "model")
    assert other.fingerprint != CompiledModel.load(saved / "model").fingerprint
    with pytest.raises(ArtifactError, match="another model"):
        Searcher(CompiledModel.load(tmp_path / "model"), Store.open(saved / "collection").snapshot())


def test_damage_and_newer_formats_are_named(saved, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(saved / "model", model)
    with open(model / "engine" / "prefill.weights", "ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptArtifactError, match=r"prefill\.weights"):
        CompiledModel.load(model)
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ArtifactVersionError, match="99"):
        CompiledModel.load(model)


def test_the_command_line_searches_without_torch(saved):
    program = f"""
import sys
from voken.cli import app
try:
    app(["search", {str(saved / "collection")!r}, "a red cat", "-k", "3", "--json"])
except SystemExit as end:
    assert end.code == 0, end.code
wrong = {{"torch", "transformers", "onnx", "PIL", "jaxtyping", "rich.progress"}} & sys.modules.keys()
assert not wrong, wrong
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["hits"]) == 3


def test_info_says_where_the_bytes_go(saved):
    shown = CliRunner().invoke(app, ["info", str(saved / "collection"), "--json"])
    report = json.loads(shown.output)
    assert (report["pictures"], report["levels"], report["codebook_size"]) == (PICTURES, LEVELS, SIZE)
    assert report["bytes"]["vectors"] == PICTURES * DIM * 2
    for kind in ("collection", "model"):
        shown = CliRunner().invoke(app, ["info", str(saved / kind)])
        assert shown.exit_code == 0, shown.output
        assert "total" in shown.output
    report = json.loads(CliRunner().invoke(app, ["info", str(saved / "model"), "--json"]).output)
    assert report["engine"] == "float32"
    assert sum(report["bytes"].values()) == sum(
        path.stat().st_size for path in (saved / "model").rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    wrong = CliRunner().invoke(app, ["info", str(saved)])
    assert wrong.exit_code == 1
    assert "no saved collection or model there" in wrong.output


def test_an_impossible_precision_is_refused(saved):
    result = CliRunner().invoke(app, ["compile", str(saved / "model"), "--precision", "int4"])
    assert result.exit_code == 1
    assert "float32 or int8" in result.output
