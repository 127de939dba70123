"""The program that counts attempts sees every kind of them, also those of other processes and in C."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import silence

NOISY = """
import os, socket, subprocess, sys
from pathlib import Path
import pytest

def test_quiet(tmp_path):
    (tmp_path / "a").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    (Path.home() / ".cache" / "voken").mkdir(parents=True)
    (Path.home() / ".cache" / "voken" / "a").write_text("x")

def test_connects():
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.7", 80), timeout=1)

def test_a_process_that_it_starts_connects():
    program = "import socket; socket.socket(socket.AF_INET6).connect_ex(('2001:db8::1', 80))"
    subprocess.run([sys.executable, "-c", program], check=True)

def test_looks_up_a_name():
    with pytest.raises(OSError):
        socket.getaddrinfo("voken.example", 80)

def test_writes_at_home():
    (Path.home() / ".device").write_text("x")

def test_cannot_write_elsewhere():
    with pytest.raises(OSError, match="Read-only"):
        (Path(sys.prefix) / "voken-was-here").write_text("x")
"""


@pytest.mark.slow
def test_every_attempt_is_named(tmp_path):
    unshare = ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(unshare, capture_output=True, check=False).returncode:
        pytest.skip("name spaces cannot be made here")
    (tmp_path / "test_noisy.py").write_text(NOISY)
    command = [sys.executable, silence.__file__, "-c", os.devnull, "--rootdir", str(tmp_path), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "6 passed" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 1
    *_, first, second, third, fourth = result.stdout.splitlines()
    assert [line.partition("::")[2].partition(":")[0] for line in (first, second, third)] == [
        "test_connects",
        "test_a_process_that_it_starts_connects",
        "test_looks_up_a_name",
    ]
    assert fourth == "~/.device was written"
    quiet = subprocess.run([*command, "-k", "test_quiet"], capture_output=True, text=True, check=False)
    assert quiet.returncode == 0, quiet.stdout
    assert quiet.stdout.splitlines()[-1].startswith("no attempt")
    assert not (Path(sys.prefix) / "voken-was-here").exists()
