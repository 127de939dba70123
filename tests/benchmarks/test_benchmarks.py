"""The benchmarks of scaling and equal bytes run, and agree with independent answers; plots are drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import equal_bytes
import plots
import quality
import scaling
import updates
from builders.collections import make_collection
from builders.tiny_model import paint_many, tiny_model
from voken.collection.store import Store
from voken.config import preset
from voken.data.captions import CaptionedImage, Dataset, read_dataset
from voken.errors import ConfigError
from voken.training.fit import fit

SETTINGS = {
    "encoder.image_size": "32",
    "encoder.epochs": "1",
    "encoder.hidden": "16",
    "encoder.dim": "16",
    "generator.width": "16",
    "generator.heads": "2",
}
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A hundred concepts, four pictures each: enough for faiss, whose byte needs 256 pictures to train on."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    lines = []
    for number in range(100):
        words = f"{NUMBERS[number // 10]} {NUMBERS[number % 10]}"
        split = "test" if number < 10 else "validation" if number < 15 else "train"
        for hand in range(4):
            name = f"{number}-{hand}.png"
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
            captions = [f"picture {words}", f"{words}, seen by hand {hand}"]
            lines.append({"file_name": name, "captions": captions, "split": split, "concept": words})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def artifacts(pictures, tmp_path_factory):
    """A model and its collection, saved."""
    folder = tmp_path_factory.mktemp("made")
    config = preset("demo").override(SETTINGS | {"tokenizer.codebook_size": "16", "tokenizer.levels": "2"})
    model = fit(read_dataset(pictures), folder / "model", config)
    make_collection(folder / "collection", read_dataset(pictures), model, model_folder=folder / "model")
    return folder


@pytest.mark.slow
def test_scaling(pictures, artifacts, tmp_path, capsys):
    out = tmp_path / "scaling.json"
    arguments = ["--quick", "--threads", "1", "--models", artifacts / "model", "--collection", artifacts / "collection"]
    arguments += ["--pictures", pictures, "--queries", pictures, "--asked", "16", "--work", tmp_path, "--json", out]
    scaling.main(list(map(str, arguments)))
    report = json.loads(out.read_text())
    assert {row["system"] for row in report["growing"]} >= {"ours, lite", "ours, T5-tiny", "two-tower, flat"}
    assert all(row["seconds"]["1"].keys() == {"200", "1000"} for row in report["growing"])
    points = report["real"]["points"]
    exact = [point["recall"] for point in points if point["system"] in scaling.EXACT]
    assert len(exact) == 4
    assert all(recall == pytest.approx(exact[0]) for recall in exact)
    assert exact[0]["10"] > 0
    # 512 is more than there are pictures: nothing is missed
    assert [p["recall"] for p in points if p["system"].startswith("HNSW") and p["setting"] == 512] == [exact[0]]
    assert next(point["recall"]["10"] for point in points if point["system"] == "nothing") == 0
    assert "ours to HNSW at equal recall" in capsys.readouterr().out
    draw(out, tmp_path, {"scaling-growing-1", "scaling-growing-4", "scaling-recall-float32"})


@pytest.mark.slow
def test_equal_bytes(pictures, tmp_path):
    out = tmp_path / "bytes.json"
    arguments = ["--quick", pictures, "--track", "flickr8k", "--threads", "1"]
    arguments += ["--work", tmp_path / "work", "--json", out]
    arguments += ["--set", *(f"{name}={value}" for name, value in SETTINGS.items())]
    equal_bytes.main(list(map(str, arguments)))
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 10
    assert {row["bytes_per_picture"] for row in rows} == {2, 128}  # two networks' vectors of 16 floats
    # the set's own test split: four pictures of ten concepts, and both captions of each
    assert {(row["pool_size"], row["query_count"]) for row in rows} == {(40, 80)}
    draw(out, tmp_path, {f"bytes-{pictures.name}-test"})


@pytest.mark.slow
def test_quality_follows_a_track(pictures, tmp_path, monkeypatch):
    out = tmp_path / "quality.json"
    settings = SETTINGS | {"tokenizer.codebook_size": "16", "tokenizer.levels": "2", "search.beams": "5"}
    arguments = [pictures, "--track", "flickr8k", "--seeds", "0", "--work", tmp_path / "work", "--json", out]
    arguments += ["--set", *(f"{name}={value}" for name, value in settings.items())]
    monkeypatch.setattr("sys.argv", ["quality.py", *map(str, arguments)])
    quality.main()
    rows = json.loads(out.read_text())["rows"]
    assert [row["readout"] for row in rows[-3:]] == ["generate", "voken", "vector"]
    assert {(row["pool_size"], row["query_count"]) for row in rows} == {(40, 80)}
    assert {row["pool"] for row in rows} == {"all pictures, every caption a query"}
    monkeypatch.setattr("sys.argv", ["quality.py", str(pictures)])
    with pytest.raises(ConfigError, match=f"'{pictures.name}': there is no such track"):
        quality.main()


def test_updates(tmp_path, monkeypatch):
    model = tiny_model(levels=3)
    make_collection(tmp_path / "c", paint_many(tmp_path / "in", 40), model)
    monkeypatch.setattr(updates, "load_model", lambda folder, threads: model)
    arguments = ["--model", "m", "--add", "3", "--remove", "4", "--queries", "4", "--rounds", "1"]
    updates.main([str(tmp_path / "c"), *arguments, "--json", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["pictures"] == 40
    assert report["answers_alike"] == 4
    assert np.isfinite([report["until_added_is_found_s"], report["until_removed_is_not_found_s"]]).all()
    assert len(Store.open(tmp_path / "c").snapshot()) == 40  # only its copy was changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "in", "out.json"]
    shutil.rmtree(tmp_path / "c")


def test_queries_are_of_concepts_that_are_there():
    def images(*rows):
        return Dataset("d", Path(), tuple(CaptionedImage(i, Path(i), c, concept=k) for i, c, k in rows))

    captioned = images(("a", ("a dog", "pet"), "dog"), ("b", ("A  Dog",), "hound"), ("c", ("a cat",), "cat"))
    there = images(
        ("a", ("not asked",), "dog"), ("x", (), "dog"), ("y", (), "hound"), ("z", (), "cat"), ("w", (), "sky")
    )
    queries = scaling.concept_queries(captioned, there, ["a", "x", "y"], limit=None, seed=0)
    assert {query.text: query.relevant for query in queries} == {"a dog": {"a", "x", "y"}, "pet": {"a", "x"}}


def test_fronts_are_compared_between_their_points():

    def points(system, *pairs):
        return [scaling.Point(system, "float32", 20, {10: recall}, [1 / speed]) for recall, speed in pairs]

    ours = points("ours, generate", (0.2, 400.0), (0.4, 100.0), (0.3, 50.0))
    theirs = points("HNSW, faiss", (0.1, 90.0), (0.3, 80.0)) + points("flat", (0.3, 20.0))
    assert scaling.front(ours) == [(0.2, 400.0), (0.4, 100.0)]
    # at 0.3, half way between ours: the geometric mean of 400 and 100
    times = {row["figure"]: row["times"] for row in scaling.figures([*ours, *theirs, *points("IVF-PQ", (0.1, 10.0))])}
    assert times["ours to HNSW at equal recall"] == pytest.approx(200 / 80)
    assert times["ours to IVF-PQ at equal recall"] == pytest.approx(400 / 10)
    assert times["ours to the best two-tower at equal recall"] == pytest.approx(200 / 80)
    row = scaling.GrowingRow("ours", "float32", "", {1: {10: [1.0, 2.0, 4.0], 1000: [2.0, 2.0, 5.0]}})
    assert row.speed_ratio(1) == pytest.approx(0.8)


@pytest.mark.slow
def test_plots_of_the_other_benchmarks(tmp_path):
    machine = {"cpu": "a processor", "cores": 2, "threads": 1, "numpy": "2"}
    size = dict.fromkeys(("trie_levels", "picture_numbers", "ids", "paths"), 30)
    reports = {
        "index_size": {"rows": [{"pictures": 10, "draw": "Zipf", "size": size, "opened": [{"open_seconds": 0.1}]}]},
        "decoding": {
            "shapes": {"tiny": {"workload": {"beams": 5}, "rows": {"ours": {"seconds_a_query": {"1": [0.1, 0.2]}}}}}
        },
        "training_step": {"rows": {"lite": {"times_naive": 5.0, "cpu_times_naive": 4.0}}},
        "cold_start": {"rows": {"voken search": {"seconds": 0.5, "cpu_seconds": 0.4}}},
    }
    expected = {"bytes", "opening"}, {"tiny"}, {"times"}, {"seconds"}
    for (name, report), names in zip(reports.items(), expected, strict=True):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"benchmark": name, "machine": machine} | report), encoding="utf-8")
        draw(path, tmp_path / name, {f"{name}-{plot}" for plot in names})


def draw(report, folder, names):
    """Draw it twice: the plots named are there, say the machine, and do not change."""
    drawn = []
    for _ in range(2):
        plots.main([str(report), "--out", str(folder / "plots")])
        drawn.append({path.stem: path.read_text() for path in (folder / "plots").glob("*.svg")})
    assert drawn[0].keys() == names
    assert drawn[0] == drawn[1]
    assert all("Measured on" in svg for svg in drawn[0].values())
