"""What `voken search -f` writes: the exact bytes to a program, and nothing that commands a terminal to a person."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from builders.saved_search import save_search

NAME = "\x1b]0;owned\x07\x1b[2J\nname\udcff.png"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A program that is `voken` with one picture of an evil name in its collection."""
    saved = save_search(tmp_path_factory.mktemp("output"))
    return f"""
import sys
from pathlib import Path
from voken.collection.snapshot import Snapshot
Snapshot.path = lambda self, row: Path("/pictures") / {NAME!r}
from voken.cli import app
app(["search", {str(saved / "collection")!r}, "a red cat", "-k", "1", *sys.argv[1:]])
"""


def test_a_program_gets_the_exact_bytes(program):
    for options, end in ((["-f"], b"\n"), (["-0"], b"\0"), (["-f", "-0"], b"\0")):
        output = subprocess.run([sys.executable, "-c", program, *options], capture_output=True, check=True).stdout
        assert output == b"/pictures/" + os.fsencode(NAME) + end


@pytest.mark.parametrize("options", [["-f"], []])
def test_a_terminal_gets_no_commands(program, options):
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", program, *options], stdout=theirs)
    os.close(theirs)
    output = b""
    try:
        while block := os.read(ours, 65_536):
            output += block
    except OSError:  # Linux's way to say that the other side has closed
        pass
    os.close(ours)
    assert process.wait() == 0
    assert b"name" in output
    assert b"\x1b" not in output
    assert b"\x07" not in output
