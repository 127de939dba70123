"""The benchmarks of collections that change run, at sizes that say nothing about speed."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders.tiny_model import paint_many, tiny_model
from voken.collection.indexing import create_collection
from voken.collection.store import Store


def load(name):
    path = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kill(tmp_path, capsys):
    load("kill").main(["--times", "2", "--base", "3", "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["kills"], found["lost"], found["half"], found["wrong"], found["readers_saw_half"]) == (2, 0, 0, 0, 0)
    assert found["versions_seen_by_the_reader"] >= 1
    assert "| kills | 2 |" in capsys.readouterr().out


def test_kill_sees_what_is_lost_and_what_is_half(tmp_path):
    """Against collections that were tampered with: a check that finds nothing wrong must be able to find it."""
    kill = load("kill")
    kill.make(tmp_path / "c", 3)
    groups, half, wrong = kill.groups_of(Store.open(tmp_path / "c").snapshot())
    assert (groups, half, wrong) == ({"base-0", "base-1", "base-2"}, 0, 0)
    store = Store.open(tmp_path / "c")
    store.commit(remove=["base-1/2"])
    other = kill.entry("base-9/0")
    store.commit([kill.Entry("base-2/0", "x", other.vokens, other.vector, other.facts, other.metadata)])
    assert kill.groups_of(store.snapshot()) == (groups, 1, 1)
    assert kill.changed({"a"}, ["adding", "b"]) == {"a", "b"}
    assert kill.changed({"a", "b"}, ["removing", "b"]) == {"a"}


def test_updates(tmp_path, monkeypatch):
    updates = load("updates")
    model = tiny_model(levels=3)
    create_collection(tmp_path / "c", paint_many(tmp_path / "in", 40), model)
    monkeypatch.setattr(updates, "load_model", lambda folder, threads: model)
    arguments = ["--model", "m", "--add", "3", "--remove", "4", "--queries", "4", "--rounds", "1"]
    updates.main([str(tmp_path / "c"), *arguments, "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["pictures"] == 40
    assert found["answers_alike"] == 4
    assert np.isfinite([found["until_added_is_found_s"], found["until_removed_is_not_found_s"]]).all()
    assert len(Store.open(tmp_path / "c").snapshot()) == 40  # only its copy was changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "in", "out.json"]
    shutil.rmtree(tmp_path / "c")


def run(name, *arguments):
    """As a shell would: a benchmark that forks wants no other threads."""
    script = Path(__file__).parent.parent / "benchmarks" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="processes are traced as Linux does it")
def test_kill_points(tmp_path):
    out = tmp_path / "out.json"
    done = run("kill_points", "--base", 4, "--every", 40, "--json", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    rows = {row["step"]: row for row in found["rows"]}
    assert rows["compact"]["kills"] > 2
    assert sum(row["kills"] for row in rows.values()) == sum(found["calls"].values())
    assert found["calls"].keys() & {"pwrite", "fdatasync", "fsync"}  # SQLite's own
    assert found["faults"] == []


def test_kill_points_sees_what_is_lost_and_what_is_half(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    points = load("kill_points")
    folder = tmp_path / "c"
    sys.modules["kill"].make(folder, 4)
    store, base = Store.open(folder), 4
    assert points.groups_after(base, 2) == {"base-1", "base-2", "base-3", "g2"}
    points.STORY[0].do(store)

    def judged(told, begun):
        row = points.Row("add")
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        return points.judged(tmp_path / "copy", row, base, told, begun, "here"), row

    assert judged(1, 1)[0] == []
    assert judged(0, 1)[1].made == 1
    told, row = judged(2, 2)  # the removal was told, and there is nothing of it
    assert row.lost == 1
    assert "['base-0', 'g1']" in told[0]
    store.commit(remove=["g2/1"])
    assert judged(1, 1)[1].half == 1
    (folder / "collection.sqlite3").write_bytes(b"nonsense" * 100)
    assert judged(1, 1)[1].not_opened == 1
