"""A search reaches no network, and writes nothing but the folders that it is given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders.saved_search import save_search

# sockets are counted by the operating system, because ONNX Runtime would open them without Python
WATCHED = """
import os, threading, time
sockets, ended = set(), threading.Event()

def watch():
    while not ended.wait(0.001):
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{{number}}")
            except OSError:
                continue
            if target.startswith("socket:"):
                sockets.add(target)

watcher = threading.Thread(target=watch)
watcher.start()
from voken import Collection
assert len(Collection.open({collection!r}, once=True).search("a red cat", 3)) == 3
time.sleep(3)
ended.set()
watcher.join()
print(len(sockets))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_search(tmp_path_factory.mktemp("silence"))


def search_in(home: Path, collection: Path) -> int:
    """Search in a process of its own, and return how many sockets it opened. Its home is `home`, which is empty."""
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    program = WATCHED.format(collection=str(collection))
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts sockets in /proc")
def test_a_search_opens_no_socket_and_writes_no_file(saved, tmp_path):
    files = {path: path.stat().st_mtime_ns for path in saved.rglob("*")}
    assert search_in(tmp_path / "home", saved / "collection") == 0
    assert list((tmp_path / "home").rglob("*")) == []
    assert {path: path.stat().st_mtime_ns for path in saved.rglob("*")} == files
