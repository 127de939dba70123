"""The benchmarks of scaling, equal bytes and stores run, and say what independent answers say; plots are drawn."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voken.collection.indexing import create_collection
from voken.config import preset
from voken.data.captions import CaptionedImage, Dataset, read_dataset
from voken.training.fit import fit
from voken_lab.reproduction import tracks
from voken_lab.reproduction.tracks import Track

FOLDER = Path(__file__).parents[1] / "benchmarks"
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
def benchmarks():
    """Modules of the folder, which import each other by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


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
def made(pictures, tmp_path_factory):
    """A model and its collection, saved."""
    folder = tmp_path_factory.mktemp("made")
    config = preset("demo").override(SETTINGS | {"tokenizer.codebook_size": "16", "tokenizer.levels": "2"})
    model = fit(read_dataset(pictures), folder / "model", config)
    create_collection(folder / "collection", read_dataset(pictures), model, model_folder=folder / "model")
    return folder


def test_scaling(benchmarks, pictures, made, tmp_path, capsys):
    out = tmp_path / "scaling.json"
    arguments = ["--quick", "--threads", "1", "--models", made / "model", "--collection", made / "collection"]
    arguments += ["--pictures", pictures, "--queries", pictures, "--asked", "16", "--work", tmp_path, "--json", out]
    benchmarks("scaling").main(list(map(str, arguments)))
    report = json.loads(out.read_text())
    assert {row["system"] for row in report["growing"]} >= {"ours, lite", "ours, T5-tiny", "two-tower, flat"}
    assert all(row["seconds"]["1"].keys() == {"200", "1000"} for row in report["growing"])
    points = report["real"]["points"]
    exact = [point["recall"] for point in points if point["system"] in benchmarks("scaling").EXACT]
    assert len(exact) == 4
    assert all(recall == pytest.approx(exact[0]) for recall in exact)
    assert exact[0]["10"] > 0
    # 512 is more than there are pictures: nothing is missed
    assert [p["recall"] for p in points if p["system"].startswith("HNSW") and p["setting"] == 512] == [exact[0]]
    assert next(point["recall"]["10"] for point in points if point["system"] == "nothing") == 0
    assert "ours to HNSW at equal recall" in capsys.readouterr().out
    draw(benchmarks, out, tmp_path, {"scaling-growing-1", "scaling-growing-4", "scaling-recall-float32"})


def test_equal_bytes(benchmarks, pictures, tmp_path):
    out = tmp_path / "bytes.json"
    arguments = ["--quick", pictures, "--test-concepts", "10", "--validation-concepts", "5", "--queries", "8"]
    arguments += ["--distance", "0", "--threads", "1", "--work", tmp_path / "work", "--json", out]
    arguments += ["--set", *(f"{name}={value}" for name, value in SETTINGS.items())]
    benchmarks("equal_bytes").main(list(map(str, arguments)))
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == 10
    assert {row["bytes_per_picture"] for row in rows} == {2, 64}
    assert len({row["query_count"] for row in rows}) == 1
    draw(benchmarks, out, tmp_path, {f"bytes-{pictures.name}-test"})


def test_queries_are_of_concepts_that_are_there(benchmarks):
    def images(*rows):
        return Dataset("d", Path(), tuple(CaptionedImage(i, Path(i), c, concept=k) for i, c, k in rows))

    asked = images(("a", ("a dog", "pet"), "dog"), ("b", ("A  Dog",), "hound"), ("c", ("a cat",), "cat"))
    there = images(
        ("a", ("not asked",), "dog"), ("x", (), "dog"), ("y", (), "hound"), ("z", (), "cat"), ("w", (), "sky")
    )
    queries = benchmarks("scaling").concept_queries(asked, there, ["a", "x", "y"], limit=None, seed=0)
    assert {query.text: query.relevant for query in queries} == {"a dog": {"a", "x", "y"}, "pet": {"a", "x"}}


def test_fronts_are_compared_between_their_points(benchmarks):
    scaling = benchmarks("scaling")

    def points(system, *pairs):
        return [scaling.Point(system, "float32", 20, {10: recall}, [1 / speed]) for recall, speed in pairs]

    ours = points("ours, generate", (0.2, 400.0), (0.4, 100.0), (0.3, 50.0))
    theirs = points("HNSW, faiss", (0.1, 90.0), (0.3, 80.0)) + points("flat", (0.3, 20.0))
    assert scaling.front(ours) == [(0.2, 400.0), (0.4, 100.0)]
    # at 0.3, half way between ours: the geometric mean of 400 and 100
    found = {one["figure"]: one["times"] for one in scaling.figures([*ours, *theirs, *points("IVF-PQ", (0.1, 10.0))])}
    assert found["ours to HNSW at equal recall"] == pytest.approx(200 / 80)
    assert found["ours to IVF-PQ at equal recall"] == pytest.approx(400 / 10)
    assert found["ours to the best two-tower at equal recall"] == pytest.approx(200 / 80)
    row = scaling.GrowingRow("ours", "float32", "", {1: {10: [1.0, 2.0, 4.0], 1000: [2.0, 2.0, 5.0]}})
    assert row.kept(1) == pytest.approx(0.8)


def test_plots_of_the_other_benchmarks(benchmarks, tmp_path):
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
        draw(benchmarks, path, tmp_path / name, {f"{name}-{plot}" for plot in names})


def draw(benchmarks, report, folder, names):
    """Draw it twice: the plots named are there, say the machine, and do not change."""
    plots = benchmarks("plots")
    drawn = []
    for _ in range(2):
        plots.main([str(report), "--out", str(folder / "plots")])
        drawn.append({path.stem: path.read_text() for path in (folder / "plots").glob("*.svg")})
    assert drawn[0].keys() == names
    assert drawn[0] == drawn[1]
    assert all("Measured on" in svg for svg in drawn[0].values())


STORES = ["sqlite", "sqlite, all, WAL", "arrays + log", *(["lance", "lance, synced"] if find_spec("lance") else [])]


@pytest.mark.parametrize("name", STORES)
def test_stores_hold_what_a_dict_holds(benchmarks, tmp_path, name):
    candidates = benchmarks("store_candidates")
    records, make = candidates.Records.of, candidates.CANDIDATES[name]
    make(tmp_path).create(records(np.arange(40), vectors=True))
    expected = {one: row for row, one in enumerate(records(np.arange(40), vectors=True).ids)}
    reader, writer = make(tmp_path), make(tmp_path)
    writer.open(write=True)
    reader.open()
    assert not reader.newer()
    for first, gone in ((40, [3, 41]), (60, [62, 0, 39])):
        added = records(np.arange(first, first + 5), vectors=True)
        writer.add(added)
        writer.remove(records(np.array(gone), vectors=False).ids)
        expected |= {one: first + place for place, one in enumerate(added.ids)}
        expected = {one: seed for one, seed in expected.items() if seed not in gone}
    writer.close()
    assert reader.newer()
    changes = reader.open()
    assert changes.removed.tolist() == [0, 3, 39]
    assert changes.ids == [one for one, seed in expected.items() if seed >= 40]
    numbers = records(np.array(list(expected.values())), vectors=True).numbers
    assert np.array_equal(changes.vokens, numbers["vokens"][-len(changes.ids) :])
    # of the base and added, out of order
    rows, seeds = [46, 5, 40, 38], [63, 5, 40, 38]
    assert reader.get(rows).digest == records(np.array(seeds), vectors=True).digest
    reader.close()


def test_a_log_cut_anywhere_holds_whole_commits(benchmarks, tmp_path):
    stores, candidates = benchmarks("stores"), benchmarks("store_candidates")
    story = stores.Story(base=20, largest=9, seed=0)
    store = candidates.CANDIDATES["arrays + log"](tmp_path)
    store.create(candidates.Records.of(np.arange(20), vectors=True))
    store.open(write=True)
    log = tmp_path / "changes.log"
    ends = [0]
    for commit in range(1, 6):
        story.do(commit, store)
        ends.append(log.stat().st_size)
    store.close()
    whole = log.read_bytes()
    cuts = [0, *np.random.default_rng(0).integers(0, len(whole), 40).tolist(), ends[2], ends[3] - 1, len(whole)]
    for cut in cuts:
        log.write_bytes(whole[:cut])
        commits = sum(end <= cut for end in ends) - 1
        assert story.seen(store.open()) == commits
        store.close()
    # a byte that changed ends the log before it; what is written next follows the last whole commit
    log.write_bytes(whole[: ends[3] + 20] + b"?" + whole[ends[3] + 21 :])
    store.open(write=True)
    story.do(4, store)
    store.close()
    assert log.read_bytes() == whole[: ends[4]]


def test_what_was_never_committed_so_is_told(benchmarks):
    stores, changes = benchmarks("stores"), benchmarks("store_candidates").Changes
    story = stores.Story(base=20, largest=9, seed=0)
    assert [story.seen(story.after(commits)) for commits in range(6)] == list(range(6))
    there = story.after(5)
    assert story.seen(changes(there.ids[:-1], there.vokens[:-1], there.removed)) is None
    assert story.seen(changes(there.ids, there.vokens, there.removed[:-1])) is None
    assert story.seen(changes(there.ids, there.vokens[::-1], there.removed)) is None


def test_stores(benchmarks, tmp_path, capsys):
    out = tmp_path / "stores.json"
    arguments = ["--sizes", "1000", "--rounds", "1", "--write-rounds", "1", "--seconds", "0", "--kills", "1"]
    arguments += ["--candidates", "sqlite", "arrays + log", "--work", str(tmp_path), "--json", str(out)]
    benchmarks("stores").main(arguments)
    report = json.loads(out.read_text())
    assert [row["candidate"] for row in report["rows"]] == ["sqlite", "arrays + log"]
    for row in report["rows"]:
        # 25 of 1, 4 of 100 and 2 of 1,000; ten removals of ten
        assert (row["changed"][0]["added"], row["changed"][0]["removed"]) == (2425, 100)
        assert row["opened"][0]["added"] == 0
        assert row["base_bytes"] > 1000 * 1024
    for kills in report["kills"]:
        assert kills["kills"] == 1
        assert (kills["missing"], kills["half"], kills["failures"]) == (0, 0, 0)
    assert "commits/s" in capsys.readouterr().out


def test_a_reader_meets_a_writer(benchmarks, tmp_path):
    for one in benchmarks("stores").meetings(tmp_path, ["sqlite"], 0.1, seed=0):
        assert one.versions > 0
        assert (one.half, one.backwards, one.errors) == (0, 0, [])
        assert all([one.writer, one.writer_alone, one.reader, one.reader_alone])


def test_the_search_of_genius_keeps_what_was_best(benchmarks, pictures, tmp_path, monkeypatch, capsys):
    benchmark = benchmarks("genius")
    settings = SETTINGS | {"tokenizer.codebook_size": "16", "tokenizer.levels": "2"}
    tiny = Track("tiny", "default", settings, test_concepts=20, validation_concepts=20, distance=None)
    monkeypatch.setitem(tracks.TRACKS, "tiny", tiny)
    monkeypatch.setattr(benchmark, "VALUES", {"learning_rate": (1e-3, 1e-6), "layers": (1, 2)})
    saved, out = tmp_path / "genius.json", tmp_path / "runs"
    where = ["--out", str(out), "--json", str(saved)]
    benchmark.main([str(pictures), "--track", "tiny", *where, "--settings", "learning_rate", "layers"])
    report = json.loads(saved.read_text())
    rows = report["rows"]
    assert [row["settings"]["learning_rate"] for row in rows[:2]] == [1e-3, 1e-6]
    assert len(rows) == 3
    best = max(row["recall"] for row in rows)
    assert [row for row in rows if row["best so far"]][-1]["recall"] == best
    kept = max(rows[:2], key=lambda row: row["recall"])["settings"]["learning_rate"]
    assert rows[2]["settings"] == {"learning_rate": kept, "layers": 1}
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert {path.name for path in (out / "tiny").iterdir()} == {"seed-0"}
