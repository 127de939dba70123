"""The main paths give no warning, and leave no file and no socket open: Python's development mode makes both errors.

They reach no address but those of this machine, and write nothing but the folders that they are given and the
documented cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from builders.drawings import COLOURS, SHAPES, TINY_SETTINGS, draw

_LEFT_OUT = ("ORT_", "XDG_", "HF_", "TORCHINDUCTOR_")
# one process for all, because torch takes seconds to import
PROGRAM = """
import gc, http.client, json, os, signal, socket, sys, threading, time
from voken.cli import app

# the operating system's own lists, because libraries open sockets without Python
elsewhere, ended = set(), threading.Event()

def watch_addresses():
    while not ended.wait(0.002):
        sockets = set()
        for number in os.listdir("/proc/self/fd"):
            try:
                sockets.add(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        for table in ("tcp", "tcp6", "udp", "udp6"):
            try:
                with open(f"/proc/self/net/{table}") as source:
                    lines = source.read().splitlines()[1:]
            except OSError:
                continue
            for words in map(str.split, lines):
                address = words[2].partition(":")[0]
                here = address[-2:] == "7F" or not address.strip("0") or address == "0" * 24 + "01000000"
                if not here and f"socket:[{words[9]}]" in sockets:
                    elsewhere.add(f"{table} {words[2]}")

watcher = threading.Thread(target=watch_addresses)
watcher.start()

def run(*arguments):
    print("$ voken", *arguments, flush=True)
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
    gc.collect()

data, work, settings = sys.argv[1], sys.argv[2], sys.argv[3:]
model, collection = f"{work}/m", f"{work}/c"
run("fit", data, "--out", model, "--cache", f"{work}/cache", *settings)
run("index", data, "--model", model, "--out", collection, "--cache", f"{work}/cache")
run("search", collection, "a red square", "-k", 3)
run("search", collection, f"{data}/0.png", "-k", 3, "--json")
run("add", collection, f"{data}/0.png")
run("remove", collection, "1.png")
run("index", data, "--out", collection, "--cache", f"{work}/cache")
run("compact", collection)
run("doctor", collection)
run("info", collection)

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
statuses = []

def ask(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Host": "localhost", "Authorization": "Bearer t", **headers})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    statuses.append(answer.status)
    return content

def client():
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        search = json.dumps({"query": "a red square", "k": 2, "why": True})
        ask("POST", "/search", search, {"Content-Type": "application/json"})
        for path in ("/", "/about", "/metrics", "/pictures/0.png", "/pictures/0.png?thumbnail=32"):
            ask("GET", path)
        picture = open(f"{data}/2.png", "rb")
        form = b"--x\\r\\nContent-Disposition: form-data; name=NAME; filename=a.png\\r\\n\\r\\n" + picture.read()
        picture.close()
        form += b"\\r\\n--x--\\r\\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        ask("POST", "/search/picture", form.replace(b"NAME", b"file"), kind)
        added = json.loads(ask("POST", "/pictures", form.replace(b"NAME", b"files"), kind))["added"]
        ask("DELETE", f"/pictures/{added[0]}")
    finally:
        os.kill(os.getpid(), signal.SIGINT)

asking = threading.Thread(target=client)
asking.start()
run("serve", collection, "--port", port, "--token", "t")
asking.join()
ended.set()
watcher.join()
print(json.dumps({"statuses": statuses, "elsewhere": sorted(elsewhere)}))
"""


@pytest.mark.slow
def test_the_main_paths_give_no_warning(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    lines = []
    for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        draw(np.array(COLOURS[colour]), shape).save(data / f"{number}.png")
        split = "validation" if number % 5 == 3 else "train"
        lines.append({"file_name": f"{number}.png", "text": f"a {colour} {shape}", "split": split})
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = [part for setting in TINY_SETTINGS for part in ("--set", setting)]
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_LEFT_OUT)}
    environment |= {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    result = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", PROGRAM, data, tmp_path, *settings],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr, result.stderr
    assert "Exception ignored" not in result.stderr, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"statuses": [200] * 9, "elsewhere": []}
    written = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert {Path(path).parts[:2] for path in written} <= {(".cache", "voken")}
    # torch makes an empty folder for its compiler, which is never used, with the first optimizer
    left = [path.name for path in (tmp_path / "temporary").rglob("*") if not path.name.startswith("torchinductor_")]
    assert left == []
    beside = {path.name for path in tmp_path.iterdir()} - {"m.tensorboard"}  # written if TensorBoard is installed
    assert beside == {"c", "cache", "data", "home", "m", "m.training.csv", "temporary"}
