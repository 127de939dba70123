"""The programs that kill writers run, and can see what they look for."""

import json
import shutil
import subprocess
import sys

import pytest

import kill
import kill_points
from voken.collection.store import Store


@pytest.mark.slow
def test_kill(tmp_path, capsys):
    kill.main(["--times", "2", "--base", "3", "--json", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["kills"], report["lost"], report["half"], report["wrong"], report["readers_saw_half"]) == (
        2,
        0,
        0,
        0,
        0,
    )
    assert report["versions_seen_by_the_reader"] >= 1
    assert "| kills | 2 |" in capsys.readouterr().out


def test_kill_sees_what_is_lost_and_what_is_half(tmp_path):
    """Against collections that were tampered with: a check that finds nothing wrong must be able to find it."""
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are traced as Linux does it")
def test_kill_points(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, kill_points.__file__, "--base", "4", "--every", "40", "--json", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # what forks wants no other threads
    assert result.returncode == 0, result.stderr
    report = json.loads(out.read_text())
    rows = {row["step"]: row for row in report["rows"]}
    assert rows["compact"]["kills"] > 2
    assert sum(row["kills"] for row in rows.values()) == sum(report["calls"].values())
    assert report["calls"].keys() & {"pwrite", "fdatasync", "fsync"}  # SQLite's own
    assert report["faults"] == []


def test_kill_points_sees_what_is_lost_and_what_is_half(tmp_path):
    folder = tmp_path / "c"
    kill.make(folder, 4)
    store, base = Store.open(folder), 4
    assert kill_points.groups_after(base, 2) == {"base-1", "base-2", "base-3", "g2"}
    kill_points.STORY[0].do(store)

    def judged(finished, begun):
        row = kill_points.Row("add")
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        return kill_points.judged(tmp_path / "copy", row, base, finished, begun, "here"), row

    assert judged(1, 1)[0] == []
    assert judged(0, 1)[1].completed == 1
    faults, row = judged(2, 2)  # the removal was reported, and it did not happen
    assert row.lost == 1
    assert "['base-0', 'g1']" in faults[0]
    store.commit(remove=["g2/1"])
    assert judged(1, 1)[1].half == 1
    (folder / "collection.sqlite3").write_bytes(b"nonsense" * 100)
    assert judged(1, 1)[1].not_opened == 1
