"""Watching follows what happens to a folder, whatever its folders are called, and also if it vanishes."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from builders.tiny_model import COLOURS, paint
from voken.collection import watching
from voken.collection.watching import folder_changes

SOON = 60


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr(watching, "_QUIET_MILLISECONDS", 100)
    monkeypatch.setattr(watching, "_LOOK_SECONDS", 0.2)
    (tmp_path / "in").mkdir()
    return folder_changes(tmp_path / "in", tmp_path / "in" / "my.voken")


def changes_after(changes, action):
    """What is reported once `action` has happened, which is while the watching waits."""
    timer = threading.Timer(0.5, action)
    timer.start()
    paths = next(changes)
    timer.join(SOON)
    return paths


def names_after(changes, action, name):
    """The names that are reported once `action` has happened, up to `name`."""
    names = {path.name for path in changes_after(changes, action)}
    start = time.monotonic()
    while name not in names and time.monotonic() - start < SOON:
        names |= {path.name for path in next(changes)}
    return names


def test_folders_of_every_name_are_seen_as_they_come_and_go(watched, tmp_path):
    assert next(watched) == set()  # what changed before anybody watched
    inside = tmp_path / "in"
    for name in ("2024.05", "St. Moritz", "plain"):
        paint(tmp_path / name / "deeper" / "a.png", COLOURS["red"])
        assert changes_after(watched, lambda name=name: (tmp_path / name).rename(inside / name)) == set()
        new = inside / name / "deeper" / "b.png"
        assert "b.png" in names_after(watched, lambda new=new: paint(new, COLOURS["blue"]), "b.png")
    assert changes_after(watched, lambda: (inside / "2024.05").rename(tmp_path / "out")) == set()
    assert "b.png" in names_after(watched, lambda: paint(inside / "plain" / "b.png", COLOURS["blue"]), "b.png")


def test_its_own_collection_and_hidden_files_are_not_reported(watched, tmp_path):
    for name in ("my.voken", "@eaDir", ".git"):
        (tmp_path / "in" / name).mkdir()
    assert next(watched) == set()

    def change():
        for name in ("my.voken/x.sqlite3", ".hidden", "@eaDir/thumb.jpg", ".git/x.png"):
            (tmp_path / "in" / name).write_bytes(b"x")
        paint(tmp_path / "in" / "a.png", COLOURS["red"])

    assert names_after(watched, change, "a.png") == {"a.png"}


def test_a_folder_that_vanishes_and_is_back_is_followed(watched, tmp_path):
    assert next(watched) == set()
    vanished = threading.Event()

    def leave_and_come_back():
        (tmp_path / "in").rename(tmp_path / "gone")
        vanished.wait(SOON)
        (tmp_path / "in").mkdir()

    thread = threading.Thread(target=leave_and_come_back)
    thread.start()
    while (tmp_path / "in").is_dir():
        time.sleep(0.01)
    next(watched)  # so that the caller can tell that it is gone
    vanished.set()
    thread.join()
    new = tmp_path / "in" / "b.png"
    assert "b.png" in names_after(watched, lambda: paint(new, COLOURS["blue"]), "b.png")


def test_a_folder_that_is_away_for_a_moment_is_followed(watched, tmp_path):
    """It is the same folder then, so that nobody sees that it was away."""
    (tmp_path / "in" / "sub").mkdir()
    assert next(watched) == set()

    def leave_and_come_back():
        (tmp_path / "in").rename(tmp_path / "gone")
        (tmp_path / "gone").rename(tmp_path / "in")

    for _ in range(3):
        assert changes_after(watched, leave_and_come_back) == set()
        for name in ("a.png", "sub/b.png"):
            new = tmp_path / "in" / name
            assert new.name in names_after(watched, lambda new=new: paint(new, COLOURS["blue"]), new.name)


def test_a_folder_that_is_away_when_watching_begins_is_followed(watched, tmp_path, monkeypatch):
    def list_and_unplug(folder, without):
        folders = watching_folders(folder, without)
        monkeypatch.setattr(watching, "folders_below", watching_folders)
        folder.rename(tmp_path / "gone")
        threading.Timer(0.5, (tmp_path / "gone").rename, [folder]).start()
        return folders

    watching_folders = watching.folders_below
    monkeypatch.setattr(watching, "folders_below", list_and_unplug)
    new = tmp_path / "in" / "a.png"
    while next(watched) != set() or not (tmp_path / "in").is_dir():
        pass
    assert "a.png" in names_after(watched, lambda: paint(new, COLOURS["blue"]), "a.png")


def test_names_that_are_no_text_end_nothing(watched, tmp_path):
    """The names of files are bytes on Linux, and archives from elsewhere bring such ones."""
    try:
        (tmp_path / "in" / os.fsdecode(b"\xe9t\xe9")).touch()
    except OSError:
        pytest.skip("this file system takes text alone")
    assert next(watched) == set()
    for number in range(3):
        new = tmp_path / "in" / os.fsdecode(b"\xe9%d.png" % number)
        assert changes_after(watched, new.touch) == set()
    assert "a.png" in names_after(watched, lambda: paint(tmp_path / "in" / "a.png", COLOURS["blue"]), "a.png")
    odd = tmp_path / "in" / os.fsdecode(b"\xe9")
    assert changes_after(watched, odd.mkdir) == set()
    changed = set()
    timer = threading.Timer(0.5, paint, [odd / "b.png", COLOURS["red"]])
    timer.start()
    while odd not in changed:
        changed |= next(watched)
    timer.join()


def test_what_the_system_does_not_watch_is_compared(watched, tmp_path, monkeypatch):
    def no_more(*_):
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr("watchfiles._rust_notify.RustNotify", no_more)
    inside = tmp_path / "in"
    paint(inside / "sub" / "a.png", COLOURS["red"])
    paint(inside / "my.voken" / "x.png", COLOURS["red"])
    assert next(watched) == set()
    status = (inside / "sub" / "a.png").stat()

    def change():
        paint(inside / "my.voken" / "x.png", COLOURS["blue"])
        paint(inside / "sub" / "a.png", COLOURS["blue"])
        # within the same second, as a file that is still being written
        os.utime(inside / "sub" / "a.png", ns=(status.st_mtime_ns + 1, status.st_mtime_ns + 1))

    assert changes_after(watched, change) == {inside / "sub"}
    assert changes_after(watched, (inside / "new").mkdir) == {inside, inside / "new"}
    assert changes_after(watched, (inside / "sub" / "a.png").unlink) == {inside / "sub"}
    assert changes_after(watched, lambda: inside.rename(tmp_path / "gone")) == set()


LIMITED = """
import sys, threading
from pathlib import Path
from voken.collection import watching
Path("/proc/sys/user/max_inotify_watches").write_text("3")
watching._QUIET_MILLISECONDS, watching._LOOK_SECONDS = 100, 0.2
root = Path(sys.argv[1])
changes = watching.folder_changes(root, root / "my.voken")
assert next(changes) == set()
for name in "abcdef":
    threading.Timer(0.5, (root / name / "x.png").touch).start()
    assert next(changes) == {root / name}
"""


def test_more_folders_than_the_system_watches_are_all_followed(tmp_path):
    """With the system's own limit, in a name space of its own."""
    for name in "abcdef":
        (tmp_path / name).mkdir()
    unshare = ["unshare", "--user", "--map-root-user"]
    writable = [*unshare, "sh", "-c", "echo 3 > /proc/sys/user/max_inotify_watches"]
    if shutil.which("unshare") is None or subprocess.run(writable, capture_output=True, check=False).returncode:
        pytest.skip("the limit cannot be set for one process")
    command = [*unshare, sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SOON)
    assert result.returncode == 0, result.stderr


CLOSED = """
import sys, threading, time
from pathlib import Path
from voken.collection import watching
watching._QUIET_MILLISECONDS, watching._LOOK_SECONDS = 100, 0.2
root = Path(sys.argv[1])
(root / "closed").chmod(0)
changes = watching.folder_changes(root, root / "my.voken")
assert next(changes) == set()

def after(action):
    threading.Timer(0.5, action).start()
    return next(changes)

for name in "abcd":
    assert after((root / name / "x.png").touch) == {root / name / "x.png"}
assert after(lambda: (root / "closed").chmod(0o755)) == set()
assert after((root / "closed" / "x.png").touch) == {root / "closed" / "x.png"}
assert after((root / "closed" / "deeper" / "x.png").touch) == {root / "closed" / "deeper" / "x.png"}
"""


@pytest.mark.skipif(os.name == "nt", reason="folders have no such permissions")
def test_a_folder_that_cannot_be_listed_hides_no_other(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()
    (tmp_path / "closed" / "deeper").mkdir(parents=True)
    command = [sys.executable, "-c", CLOSED, str(tmp_path)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("permissions do not bind root")
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * SOON)
    (tmp_path / "closed").chmod(0o755)
    assert result.returncode == 0, result.stderr


def test_silence_is_not_trusted_for_ever(watched, monkeypatch):
    monkeypatch.setattr(watching, "_RESCAN_SECONDS", 1.0)
    assert [next(watched) for _ in range(3)] == [set()] * 3
