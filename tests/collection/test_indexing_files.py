"""A folder may hold anything: each file with a picture's name is indexed, or named with a reason, and stops no run."""

import os
import shutil
import socket

import pytest

from builders.tiny_model import paint, tiny_model
from voken.collection.indexing import add_pictures, index_pictures, new_store
from voken.data.captions import read_dataset
from voken.data.images import MAX_BYTES

NAMES = [
    b"second\nline.png",
    b"\x1b[31mred\x07\x7f.png",
    b"no-utf-8-\xff\xfe.png",
    b"half-\xed\xa0\x80-a-pair.png",
    b"x" * 251 + b".png",
    b"'\"`$(reboot);&|*?.PNG",
    b" .png",
    b"--out.png",
    "é́‮𝄞.png".encode(),
]
NO_FILES = {
    "pipe.png": "a named pipe, not a file",
    "socket.png": "a socket, not a file",
    "device.png": "a device, not a file",
    "to-pipe.png": "a named pipe, not a file",
    "loop.png": "cannot be read (Too many levels of symbolic links)",
    "nowhere.png": "cannot be read (No such file or directory)",
    "sparse.png": f"{MAX_BYTES + 1:,} bytes, over the limit of {MAX_BYTES:,}",
    "empty.png": "empty file",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pictures = tmp_path / "in"
    paint(pictures / "folder.png" / "in.png", (9, 8, 7))
    (pictures / "linked.png").symlink_to("folder.png/in.png")
    for number, name in enumerate(NAMES):
        shutil.copy(paint(tmp_path / "one.png", (number, 2, 3)), os.fsencode(pictures) + b"/" + name)
    os.mkfifo(pictures / "pipe.png")
    monkeypatch.chdir(pictures)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
    for name, target in (("device", "/dev/zero"), ("to-pipe", "pipe.png"), ("loop", "loop.png"), ("nowhere", "none")):
        (pictures / f"{name}.png").symlink_to(target)
    (pictures / "to-folder.png").symlink_to("folder.png")
    (pictures / "up").symlink_to("..")
    for name, size in (("sparse", MAX_BYTES + 1), ("empty", 0)):
        (pictures / f"{name}.png").touch()
        os.truncate(pictures / f"{name}.png", size)
    return pictures


def test_every_file_is_indexed_or_named(folder, tmp_path):
    model = tiny_model()
    store = new_store(tmp_path / "c", folder, model)
    report = index_pictures(store, read_dataset(folder), model)
    links = dict.fromkeys(("to-folder.png", "up"), "a link to a folder, which is not followed")
    assert {os.path.relpath(one.path, folder): one.reason for one in report.skipped} == NO_FILES | links
    expected = {os.fsdecode(name) for name in NAMES} | {"folder.png/in.png", "linked.png"}
    for _ in range(2):
        snapshot = store.snapshot()
        assert {snapshot.ids[row] for row in snapshot.rows.tolist()} == expected
        assert all(path.exists() for path in snapshot.paths)
        assert store.compact() or not snapshot.is_changed


def test_a_second_run_reads_none_of_them_again(folder, tmp_path, monkeypatch):
    model = tiny_model()
    store = new_store(tmp_path / "c", folder, model)
    first = index_pictures(store, read_dataset(folder), model)
    read = []
    monkeypatch.setattr("voken.collection.indexing.file_hash", read.append)
    second = index_pictures(store, read_dataset(folder), model)
    assert (read, second.changes, second.unchanged) == ([], 0, first.added)
    assert second.skipped == first.skipped


def test_what_is_no_file_is_not_added(folder, tmp_path):
    model = tiny_model()
    store = new_store(tmp_path / "c", folder, model)
    report = add_pictures(store, [folder / name for name in (*NO_FILES, "linked.png")], model)
    assert report.added == ("linked.png",)
    assert {os.path.relpath(one.path, folder): one.reason for one in report.skipped} == NO_FILES
