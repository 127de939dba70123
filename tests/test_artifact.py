"""Saved folders: complete or absent, whatever happens while they are written; checked when read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from voken import artifact
from voken.errors import ArtifactError, ArtifactVersionError, CorruptArtifactError, StorageError

FILES = {"weights.bin": bytes(range(256)) * 9, "nested/settings.json": b'{"a": 1}', "empty": b""}


def save(folder: Path, files: dict[str, bytes] = FILES, *, version: int = 3, replace: bool = False) -> None:
    with artifact.writing(folder, kind="thing", version=version, replace=replace) as partial:
        for name, content in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            (partial / name).write_bytes(content)


def save_half(folder: Path, ending: BaseException) -> None:
    with artifact.writing(folder, kind="thing", version=3, replace=True) as partial:
        (partial / "weights.bin").write_bytes(b"half")
        raise ending


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the manifest."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name != "manifest.json"}


def test_what_is_saved_is_there_with_its_checksums(tmp_path):
    save(tmp_path / "new" / "thing")
    assert contents(tmp_path / "new" / "thing") == FILES
    manifest = artifact.check(tmp_path / "new" / "thing", kind="thing", version=3)
    assert manifest["kind"] == "thing"
    assert manifest["version"] == 3
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["thing"]


def test_an_exception_in_the_middle_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        save_half(tmp_path / "thing", ZeroDivisionError())
    assert list(tmp_path.iterdir()) == []


def test_an_exception_in_the_middle_leaves_the_old_one(tmp_path):
    save(tmp_path / "thing")
    with pytest.raises(KeyboardInterrupt):
        save_half(tmp_path / "thing", KeyboardInterrupt())
    assert contents(tmp_path / "thing") == FILES
    artifact.check(tmp_path / "thing", kind="thing", version=3)
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_replacing_leaves_only_the_new_files(tmp_path):
    save(tmp_path / "thing")
    save(tmp_path / "thing", {"other": b"new"}, replace=True)
    assert contents(tmp_path / "thing") == {"other": b"new"}
    artifact.check(tmp_path / "thing", kind="thing", version=3)
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_an_old_one_is_not_replaced_unasked(tmp_path):
    save(tmp_path / "thing")
    with pytest.raises(ArtifactError, match=r"thing: already exists\. Remove it or choose another folder\.$"):
        save(tmp_path / "thing", {"other": b"new"})
    assert contents(tmp_path / "thing") == FILES


@pytest.mark.parametrize("replace", [False, True])
def test_a_foreign_folder_is_never_overwritten(tmp_path, replace):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "summer.jpg").write_bytes(b"dear")
    with pytest.raises(ArtifactError, match=r"photos: already exists.*not something voken saved"):
        save(tmp_path / "photos", replace=replace)
    assert contents(tmp_path / "photos") == {"summer.jpg": b"dear"}


@pytest.mark.parametrize("replace", [False, True])
def test_a_foreign_file_is_never_overwritten(tmp_path, replace):
    (tmp_path / "thing").write_bytes(b"dear")
    with pytest.raises(ArtifactError, match="already exists"):
        save(tmp_path / "thing", replace=replace)
    assert (tmp_path / "thing").read_bytes() == b"dear"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "thing").mkdir()
    save(tmp_path / "thing")
    assert contents(tmp_path / "thing") == FILES


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name]])
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_byte_is_found_and_its_file_named(tmp_path, name, place):
    save(tmp_path / "thing")
    damaged = bytearray(FILES[name])
    damaged[place] ^= 1
    (tmp_path / "thing" / name).write_bytes(damaged)
    with pytest.raises(CorruptArtifactError, match=f"{name}: differs from what was saved\\. Restore"):
        artifact.check(tmp_path / "thing", kind="thing", version=3)


def test_without_checksums_only_sizes_are_compared(tmp_path):
    save(tmp_path / "thing")
    (tmp_path / "thing" / "weights.bin").write_bytes(FILES["weights.bin"][::-1])
    artifact.check(tmp_path / "thing", kind="thing", version=3, checksums=False)
    (tmp_path / "thing" / "weights.bin").write_bytes(FILES["weights.bin"][:-1])
    with pytest.raises(CorruptArtifactError, match=r"weights\.bin"):
        artifact.check(tmp_path / "thing", kind="thing", version=3, checksums=False)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    save(tmp_path / "thing")
    (tmp_path / "thing" / name).unlink()
    with pytest.raises(CorruptArtifactError, match=f"{name}: missing"):
        artifact.check(tmp_path / "thing", kind="thing", version=3)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"kind": "thing"}'])
def test_a_damaged_manifest_is_named(tmp_path, content):
    save(tmp_path / "thing")
    (tmp_path / "thing" / "manifest.json").write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json.*Create the folder again"):
        artifact.check(tmp_path / "thing", kind="thing", version=3)


def test_another_kind_is_refused(tmp_path):
    save(tmp_path / "thing")
    with pytest.raises(ArtifactVersionError, match="holds a thing, not a model"):
        artifact.check(tmp_path / "thing", kind="model", version=3)


def test_a_newer_format_is_refused_and_an_older_one_read(tmp_path):
    save(tmp_path / "thing", version=3)
    with pytest.raises(ArtifactVersionError, match=r"format 3 is newer .*\(2\)\. Upgrade voken"):
        artifact.check(tmp_path / "thing", kind="thing", version=2)
    assert artifact.check(tmp_path / "thing", kind="thing", version=4)["version"] == 3


def test_what_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, says in (("file", "is a file"), ("folder", "no saved thing there"), ("nowhere", "no saved thing there")):
        with pytest.raises(ArtifactError, match=f"{name}: {says}"):
            artifact.check(tmp_path / name, kind="thing", version=1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_full_at_the_last_moment_leaves_the_old_one(tmp_path, monkeypatch, code):
    save(tmp_path / "thing")

    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=r"thing.*the disk is full.*Free some space and run the same command again"):
        save(tmp_path / "thing", {"other": b"new"}, replace=True)
    monkeypatch.undo()
    assert contents(tmp_path / "thing") == FILES
    artifact.check(tmp_path / "thing", kind="thing", version=3)
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_rename_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    save(tmp_path / "thing")
    rename = Path.replace

    def refuse(self, target):
        if ".partial-" in self.name and Path(target).name == "thing":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StorageError, match="cannot write there"):
        save(tmp_path / "thing", {"other": b"new"}, replace=True)
    assert contents(tmp_path / "thing") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


_FILL_A_SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from voken import artifact
from voken.errors import StorageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with artifact.writing(Path(sys.argv[1]), kind="thing", version=3, replace=True) as partial:
        (partial / "weights.bin").write_bytes(bytes(1_000_000))
except StorageError as error:
    print(error)
"""


def test_a_system_that_takes_no_more_bytes_leaves_the_old_one(tmp_path):
    """A real refusal by the kernel (EFBIG), in a process of its own."""
    save(tmp_path / "thing")
    result = subprocess.run(
        [sys.executable, "-c", _FILL_A_SMALL_DISK, str(tmp_path / "thing")], capture_output=True, text=True, check=True
    )
    assert f"{tmp_path / 'thing'}: the disk is full (File too large)" in result.stdout
    assert contents(tmp_path / "thing") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


_KILL_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
from voken import artifact

with artifact.writing(Path(sys.argv[1]), kind="thing", version=3, replace=True) as partial:
    (partial / "weights.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_the_middle_leaves_the_old_one(tmp_path):
    save(tmp_path / "thing")
    result = subprocess.run([sys.executable, "-c", _KILL_IN_THE_MIDDLE, str(tmp_path / "thing")], check=False)
    assert result.returncode < 0
    assert contents(tmp_path / "thing") == FILES
    artifact.check(tmp_path / "thing", kind="thing", version=3)
    save(tmp_path / "thing", {"other": b"new"}, replace=True)
    assert contents(tmp_path / "thing") == {"other": b"new"}


def test_other_refusals_are_not_swallowed(tmp_path):
    with pytest.raises(OSError, match="odd"), artifact.storage_errors(tmp_path):
        raise OSError(errno.EIO, "odd")


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "settings.json"
    artifact.write_json(path, {"name": "Čapek", "n": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Čapek", "n": 1}
    assert artifact.read_json(path) == {"name": "Čapek", "n": 1}
    with pytest.raises(TypeError):
        artifact.write_json(path, {"name": object()})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError, match=r"settings\.json: the disk is full"):
        artifact.write_json(path, {"n": 2})
    assert artifact.read_json(path)["n"] == 1
    assert [item.name for item in tmp_path.iterdir()] == ["settings.json"]


def test_a_database_whose_schema_is_no_text_is_damaged(tmp_path):
    """SQLite's message quotes it, and Python cannot read that message."""
    path = tmp_path / "store.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE pictures (id)")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = CAST(? AS TEXT)", (b"CREATE TABLE \x87a\x87 \x87(id",))
    connection.commit()
    connection.close()
    with (
        pytest.raises(CorruptArtifactError, match="is damaged: its description of the tables is no text"),
        artifact.open_database(path, damaged="is damaged: {why}", read_only=True),
    ):
        pass
