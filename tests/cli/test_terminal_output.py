"""What names and metadata hold never commands the terminal, whichever command prints them."""

import json
import sys

import pytest
from typer.testing import CliRunner

from builders.tiny_model import paint, tiny_model
from voken import Collection, api
from voken.cli import app

EVIL = "\x1b]0;owned\x07\x9b2J\u202e\r"
"""Sets the title of the window, erases the screen in one byte, turns the direction of writing, overwrites the line."""
COMMANDS = {character for character in EVIL if not character.isprintable()}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take such names")


def printed(*arguments):
    """Everything that a command prints."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments]).output


@pytest.fixture
def folders(tmp_path, monkeypatch):
    pictures, collection, model = (tmp_path / f"{name}{EVIL}" for name in ("pictures", "c", "m"))
    paint(pictures / f"a{EVIL}.jpg", (200, 30, 30))
    (pictures / f"b{EVIL}.jpg").write_bytes(b"no picture")
    line = {"file_name": f"a{EVIL}.jpg", f"field{EVIL}": f"value{EVIL}", "text": f"caption{EVIL}"}
    (pictures / "metadata.jsonl").write_text(json.dumps(line))
    monkeypatch.setattr(api, "load_model", lambda folder, **options: tiny_model())
    model.mkdir()
    (model / "manifest.json").write_text("{}")
    Collection.index(collection, pictures, tiny_model(), model_folder=model)
    return pictures, collection, model


def test_no_command_prints_what_commands_a_terminal(folders, monkeypatch):
    pictures, collection, model = folders
    searched = printed("search", collection, "red")
    assert "a\ufffd]0;owned\ufffd\ufffd2J\ufffd\ufffd.jpg" in searched
    report = Collection.open(collection).info()
    outputs = [
        searched,
        printed("search", collection, "red", "--where", f"x{EVIL}=1"),
        printed("search", collection, "red", "--where", f"field{EVIL}>"),
        printed("search", collection, "--like", f"none{EVIL}"),
        printed("search", collection, f"./none{EVIL}.jpg"),
        printed("search", collection, "red", "--json"),
        printed("search", pictures, "red"),
        printed("info", collection, "--skipped"),
        printed("info", collection, "--json"),
        printed("info", f"none{EVIL}"),
        printed("doctor", collection),
        printed("remove", collection, f"none{EVIL}"),
        printed("compact", collection),
        printed("index", pictures, "--out", model),
        printed("index", f"none{EVIL}", "--out", collection),
        printed("fit", f"none{EVIL}", "--out", model),
        printed("data", f"none{EVIL}", model),
        printed("eval", "--model", model, "--data", f"none{EVIL}"),
        printed("compare", f"none{EVIL}", f"none{EVIL}"),
        printed("serve", f"none{EVIL}"),
    ]
    monkeypatch.setattr(Collection, "index", lambda *arguments, **options: index_report(report.skipped))
    outputs += [printed("index", pictures, "--out", collection, *more) for more in ([], ["--verbose"], ["--json"])]
    for output in outputs:
        assert output.strip()
        assert not COMMANDS & {*output}, output


def index_report(skipped):
    return api.IndexReport(
        pictures=1, version=1, added=1, updated=0, moved=0, removed=0, unchanged=0, sequences=1,
        bytes_per_picture=1.0, with_vectors=True, seconds=0.1, skipped=skipped, missing=1,
    )  # fmt: skip


def test_a_model_from_elsewhere_prints_no_command(tmp_path, monkeypatch):
    described = api.ModelInfo(f"lite{EVIL}", "0", None, {}, {f"part{EVIL}": 1})
    monkeypatch.setattr(api, "info", lambda folder: described)
    output = printed("info", tmp_path / f"m{EVIL}")
    assert "a lite\ufffd" in output
    assert not COMMANDS & {*output}, output
