"""The programs that kill writers run, and can see what they look for."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from io import BytesIO

import pytest

import kill
import kill_points
import kill_uploads
from voken import Collection
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_kill_uploads(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, kill_uploads.__file__, "--times", "3", "--json", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # what forks wants no other threads
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(out.read_text())
    assert report["counts"]["kills"] >= 3
    assert report["counts"]["pictures compared"] > 0


def test_kill_uploads_sees_what_is_lost(tmp_path):
    """Against a collection that lost an upload, and one whose upload has another content."""
    state = kill_uploads.State(tmp_path)
    state.root.mkdir()
    state.write("a.png")
    Collection.index(state.folder, state.root, kill_uploads.MODEL, threads=1)
    collection = Collection.open(state.folder, model=kill_uploads.MODEL, load=False)
    for number in (1 << 23, (1 << 23) + 1):
        file = (f"{number}.png", BytesIO(kill_uploads.picture(number)))
        collection.add_uploads([file], kill_uploads.MAX_PIXELS)
    lines = [f"upload {1 << 23}", "made", f"upload {(1 << 23) + 1}", "made"]
    assert kill_uploads.compare(state, lines, Counter()) == []
    path = state.folder / kill_uploads.upload_id(1 << 23)
    path.write_bytes(kill_uploads.picture(5))
    assert any("only file has other content" in fault for fault in kill_uploads.compare(state, [], Counter()))
    path.write_bytes(kill_uploads.picture(1 << 23))
    collection.delete(kill_uploads.upload_id(1 << 23))
    (fault,) = kill_uploads.compare(state, [], Counter())
    assert f"[{1 << 23}] are missing" in fault
