"""The command line on a folder of pictures alone: no model, no captions, no place for the collection."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from builders.untrained import paint_noise, quick_encoder
from voken.cli import app
from voken.encoders import frozen
from voken.model import untrained

ENCODER = quick_encoder()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(frozen, "frozen_encoder", lambda settings, device=None: ENCODER)
    monkeypatch.setattr(untrained, "_MIXTURES", 300)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_index_and_search_need_a_folder_and_nothing_else(tmp_path):
    paint_noise(tmp_path / "photos", range(4))
    result = run("index", "photos")
    assert result.exit_code == 0, result.output
    first, encoder, books, following = result.stdout.splitlines()
    assert first.startswith("photos/.voken: 4 pictures (4 added), 4 voken sequences")
    assert "the built-in encoder" in encoder
    assert "fitted on 4 pictures. Nothing was trained" in books
    assert following == "Next: voken search photos 'what the picture shows'"
    assert result.stderr == ""
    again = run("index", "photos", "--json")
    assert json.loads(again.stdout)["unchanged"] == 4
    assert json.loads(again.stdout)["fitted"] is None
    hits = json.loads(run("search", "photos", "a dog on a beach", "-k", "2", "--json").stdout)["hits"]
    assert len(hits) == 2
    assert hits[0]["confidence"] is None
    assert json.loads(run("info", "photos", "--json").stdout)["pictures"] == 4
    assert run("doctor", "photos").exit_code == 0
    paint_noise(tmp_path / "more", range(10, 11))
    assert run("add", "photos", "more/010.png").exit_code == 0
    assert "1 removed" in run("remove", "photos", "more/010.png").stdout
    assert run("compact", "photos").exit_code == 0


def test_the_second_index_loads_neither_torch_nor_the_encoder(tmp_path):
    paint_noise(tmp_path / "photos", range(2))
    assert run("index", "photos").exit_code == 0
    code = (
        "import sys; from voken.api import Collection; Collection.index('photos'); "
        "Collection.open('photos', once=True).search('dog', 1); print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_a_named_place_and_a_named_encoder(tmp_path):
    paint_noise(tmp_path / "photos", range(3))
    result = run("index", "photos", "--out", "c", "--encoder", "photos", "--json")
    assert json.loads(result.stdout)["fitted"] == {
        "encoder": "photos",
        "prompt": "{}",
        "levels": 16,
        "codebook_size": 256,
        "pictures": 3,
    }
    assert not (tmp_path / "photos" / ".voken").exists()
    assert (
        run("index", "photos", "--out", "c").stdout.splitlines()[-1] == "Next: voken search c 'what the picture shows'"
    )
    refused = run("index", "photos", "--out", "c", "--encoder", "some/model")
    assert refused.exit_code == 1
    assert "was made with the encoder photos" in refused.stderr


def test_a_folder_that_was_not_indexed_says_so(tmp_path):
    paint_noise(tmp_path / "photos", range(1))
    result = run("search", "photos", "dog")
    assert result.exit_code == 1
    assert "a folder of pictures, and no saved collection yet. Index it first: voken index photos" in result.stderr
