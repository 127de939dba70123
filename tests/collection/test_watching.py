"""Watching follows what happens to a folder, whatever its folders are called, and also if it vanishes."""

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
    monkeypatch.setattr(watching, "_RESCAN_SECONDS", 1.0)
    (tmp_path / "in").mkdir()
    return folder_changes(tmp_path / "in", tmp_path / "in" / "my.voken")


def names_after(changes, action, name):
    """The names that are reported once `action` has happened, which is while the watching waits, up to `name`."""
    timer = threading.Timer(0.5, action)
    timer.start()
    start, names = time.monotonic(), set()
    while name not in names and time.monotonic() - start < SOON:
        names |= {path.name for path in next(changes)}
    timer.join()
    return names


def test_folders_of_every_name_are_seen_as_they_come_and_go(watched, tmp_path):
    assert next(watched) == set()  # what changed before anybody watched
    inside = tmp_path / "in"
    for name in ("2024.05", "St. Moritz", "plain"):
        paint(tmp_path / name / "a.png", COLOURS["red"])
        assert name in names_after(watched, lambda name=name: (tmp_path / name).rename(inside / name), name)
    assert "2024.05" in names_after(watched, lambda: (inside / "2024.05").rename(tmp_path / "out"), "2024.05")
    assert "b.png" in names_after(watched, lambda: paint(inside / "plain" / "b.png", COLOURS["blue"]), "b.png")


def test_its_own_collection_and_hidden_files_are_not_reported(watched, tmp_path):
    (tmp_path / "in" / "my.voken").mkdir()
    assert next(watched) == set()

    def change():
        for name in ("my.voken/x.sqlite3", ".hidden", "@eaDir/thumb.jpg"):
            (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"x")
        paint(tmp_path / "in" / "a.png", COLOURS["red"])

    assert names_after(watched, change, "a.png") <= {"a.png", "@eaDir"}


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


def test_silence_is_not_trusted_for_ever(watched):
    assert [next(watched) for _ in range(3)] == [set()] * 3
