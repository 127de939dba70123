"""A few of the histories of `histories.py`, and what they would see."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import histories
from voken.collection import indexing

HISTORIES = os.environ.get("VOKEN_HISTORIES", "6")


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("setpriv") is None, reason="permissions would not bind root"
)
def test_histories():
    command = [sys.executable, histories.__file__, "--histories", HISTORIES]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # what forks wants no other threads
    assert result.returncode == 0, result.stderr
    counts = {name: int(value.replace(",", "")) for name, value in re.findall(r"\| (.+) \| (.+) \|", result.stdout)}
    assert counts["histories"] >= int(HISTORIES)
    assert counts["comparisons"] > counts["histories"]
    assert counts["kills"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_a_difference_is_seen(monkeypatch):
    """Against collections that were changed behind the dictionary's back."""
    monkeypatch.setattr(indexing, "_FEW_PICTURES", indexing._FEW_PICTURES)  # a history changes it
    for change in ("remove", "add", "describe"):
        history = histories.Histories()
        history.create("red", few=10, outside="blue", watched=False)
        try:
            history._compare(history._observed())
            if change == "remove":
                history._opened().remove(["a.png"])
            elif change == "add":
                history._opened().add([history.work / "elsewhere" / "x.png"])
            else:
                history._opened().add([history.root / "a.png"], metadata=[{"n": 1}])
            with pytest.raises(AssertionError):
                history._compare(history._observed())
            with pytest.raises(AssertionError):
                history.compact(kill=0)
        finally:
            history.teardown()
