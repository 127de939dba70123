"""The fuzzing benchmark runs, and can see what it looks for."""

import json
import subprocess
import sys
import time

import pytest

import fuzz_pictures
import hostile_files
from voken.data.images import open_image
from voken.errors import PictureError


@pytest.mark.slow
def test_a_small_run(tmp_path):
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        fuzz_pictures.__file__,
        "--count",
        "40",
        "--near-limit",
        "0",
        "--json",
        str(out),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(out.read_text())
    rows = {row["kind"]: row for row in report["rows"]}
    assert sum(row["files"] for row in rows.values()) > 40
    assert all(row["indexed"] + row["skipped"] + row["passed_over"] == row["files"] for row in rows.values())
    assert rows["no plain file"]["indexed"] == 2
    assert rows["no plain file"]["skipped"] >= 5
    assert rows["whole"]["indexed"] == rows["whole"]["taken"] == rows["whole"]["files"] > 0
    assert report["statuses"]["upload 200"] >= 2
    assert not any(report["faults"].values())


@pytest.mark.slow
def test_hangs_and_crashes_are_seen(tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys, time\n"
        "print(json.dumps({'begin': 'read', 'files': ['a.png']}), flush=True)\n"
        "what = open(sys.argv[3]).read()\n"
        "if what == 'hang': time.sleep(600)\n"
        "if what == 'crash': os.abort()\n"
        "if what == 'hold': kept = bytearray(os.urandom(1 << 20)) * 400; time.sleep(600)\n"
        "if what == 'stop': sys.exit('broken')\n"
    )
    monkeypatch.setattr(fuzz_pictures, "__file__", str(child))
    moved = []
    for what, kind in (("hang", "hangs"), ("crash", "crashes"), ("hold", "too_large"), ("stop", "stopped")):
        (tmp_path / "what").write_text(what)

        def away(names, what=what):
            moved.append((what, names))
            (tmp_path / "what").write_text("end")

        patience = 1.5 if what == "hang" else 60
        limits = {"patience": patience, "memory": 300, "away": away}
        watch = fuzz_pictures.watched("index", tmp_path / "what", tmp_path / "c", **limits)
        assert watch.faults == 1
        assert len(getattr(watch, kind)) == 1
        assert moved[-1] == (what, ["a.png"])


def test_what_became_of_a_file_is_judged(tmp_path):
    file = fuzz_pictures.HostileFile(tmp_path / "x.png", "whole", "indexed")
    name, row = str(file.path), fuzz_pictures.Row("whole")
    assert fuzz_pictures.judge(row, file, {name}, {name}, {}) == ""
    assert "is unaccounted for" in fuzz_pictures.judge(row, file, {name}, set(), {})
    assert "is unaccounted for" in fuzz_pictures.judge(row, file, {name}, set(), {name: ""})
    assert "should be indexed" in fuzz_pictures.judge(row, file, {name}, set(), {name: "torn"})
    assert (row.unaccounted, row.wrongly, row.indexed) == (2, 1, 1)


def test_files_are_what_their_kind_says_at_any_time(tmp_path, monkeypatch):
    """Against the reader itself: whole pictures of every format, and nothing but those; the clock changes no byte."""
    files = list(fuzz_pictures.make(tmp_path, 120, 1, near_limit=0))
    assert {one.kind for one in files} == {*hostile_files.KINDS, "no plain file"}
    for one in files:
        if one.fate == "indexed":
            assert open_image(one.path).mode == "RGB"
        if one.fate == "skipped":
            with pytest.raises(PictureError):
                open_image(one.path)
    tomorrow = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    again = list(fuzz_pictures.make(tmp_path / "again", 120, 1, near_limit=0))
    assert [one.path.relative_to(tmp_path) for one in files] == [
        one.path.relative_to(tmp_path / "again") for one in again
    ]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(files[:120], again[:120], strict=True))
