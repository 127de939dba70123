"""The benchmarks of the scan and of indexing run at a small size, and agree with what must hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import indexing
import linear

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    lines = []
    for number in range(14):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        split = "test" if number < 6 else "train"
        lines.append({"file_name": f"{number}.png", "captions": [f"a thing, number {number}"], "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def test_linear(photographs, tmp_path, capsys):
    arguments = ["--photographs", photographs, "--sizes", 1000, "--batches", 1, 4, "--rounds", 1, "--levels", 4]
    arguments += ["--opponents", "beams", "flat", "HNSW", "PQ", "IVF-PQ", "--construction", 20]
    out = tmp_path / "out.json"
    linear.main([*map(str, arguments), "--work", str(tmp_path / "work"), "--json", str(out)])
    figures = json.loads(out.read_text())["figures"]
    exact = {figure["name"]: figure["exact"] for figure in figures}
    right = {figure["name"]: figure["right"] for figure in figures}
    assert {figure["batch"] for figure in figures} == {1, 4}
    assert all(figure["search_ms"] > 0 and figure["read_ms"] > 0 for figure in figures)
    # all pictures are compared by their vectors
    assert exact["flat, float32"] == exact["scan + 1600"] == 1
    assert right["flat, float32"] == right["scan + 1600"]
    assert 0 < exact["scan"] < exact["scan + 100"] <= exact["scan + 400"]
    assert exact["IVF-PQ 64 + 100"] >= exact["IVF-PQ 64"]
    assert "| 1,000 | scan | 1 | " in capsys.readouterr().out


def test_indexing(photographs, tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--pictures", 4, "--size", 1600, 1200, "--batch", 2, "--threads", 1, "--work", tmp_path / "work"]
    indexing.main([*map(str, arguments), "--json", str(out)])
    rows = json.loads(out.read_text())["rows"]
    assert rows[indexing.PLAIN]["times_plain"] == 1
    assert rows[indexing.OURS]["least_cosine"] > 0.98
    with Image.open(tmp_path / "work" / "pictures" / "00003.jpg") as picture:
        assert picture.size == (1600, 1200)
    assert "voken index" in capsys.readouterr().out
