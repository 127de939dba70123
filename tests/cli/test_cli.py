"""The command line, from a folder of pictures with captions to answers, and what it says when things go wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.drawings import COLOURS, SHAPES, TINY_SETTINGS, draw
from voken.cli import app
from voken.cli.console import display_path, printable, progress_bars
from voken_lab.evaluation.trec import read_qrels, read_run


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """20 concepts, two pictures each, a few of them for validation and test; and a picture that is none."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        split = {3: "validation", 4: "test"}.get(number % 5, "train")
        for hand in range(2):
            name = f"{colour}-{shape}-{hand}.png"
            draw(np.array(COLOURS[colour]) - 20 * hand, shape).save(folder / name)
            record = {"file_name": name, "captions": [f"a {colour} {shape}", f"{shape}, {colour}"]}
            lines.append(record | {"split": split, "concept": f"{colour} {shape}"})
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines.append({"file_name": "torn.png", "text": "torn", "split": "train"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def model(data, work):
    settings = [part for setting in TINY_SETTINGS for part in ("--set", setting)]
    result = run("fit", data, "--out", work / "model", *settings, "--cache", work / "cache", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["config"]["tokenizer"]["levels"] == 3
    assert report["validation"]["pictures"] == {"train": 24, "validation": 4}
    assert [Path(one["path"]).name for one in report["validation"]["skipped"]] == ["torn.png"]
    return work / "model"


@pytest.fixture(scope="module")
def collection(data, work, model):
    result = run("index", data, "--model", model, "--out", work / "collection", "--cache", work / "cache")
    assert result.exit_code == 0, result.output
    assert "40 pictures" in result.stdout
    assert "Next: voken search" in result.stdout
    assert "1 left out" in result.stderr
    assert "torn.png" in result.stderr
    return work / "collection"


def test_search_in_its_three_forms(collection, data):
    table = run("search", collection, "a red square", "-k", 5)
    assert table.exit_code == 0, table.output
    assert len(table.stdout.splitlines()) == 6
    files = run("search", collection, "a red square", "-k", 5, "-f").stdout.splitlines()
    assert len(files) == 5
    assert all(Path(file).is_file() and Path(file).parent == data for file in files)
    report = json.loads(run("search", collection, "a red square", "-k", 5, "--json").stdout)
    assert report["readout"] == "vector"
    assert [hit["path"] for hit in report["hits"]] == files
    assert [hit["rank"] for hit in report["hits"]] == [1, 2, 3, 4, 5]
    assert all(len(hit["vokens"]) == 3 for hit in report["hits"])
    for name, line in zip(files, table.stdout.splitlines()[1:], strict=True):
        assert line.endswith(display_path(name))


def test_hits_by_date(collection, data):
    arguments = ("search", collection, "a red square", "-k", 5, "--json")
    best = json.loads(run(*arguments).stdout)["hits"]
    for age, hit in enumerate(best):
        os.utime(hit["path"], (1_700_000_000 - 86_400 * (age % 3),) * 2)
    run("index", data, "--out", collection)
    newest = json.loads(run(*arguments, "--sort", "date").stdout)["hits"]
    assert [hit["image_id"] for hit in newest] == [best[place]["image_id"] for place in (0, 3, 1, 4, 2)]
    assert [hit["rank"] for hit in newest] == [1, 2, 3, 4, 5]
    assert run("search", collection, "dot", "--sort", "size").exit_code == 2


def test_search_settings(collection, work):
    report = json.loads(run("search", collection, "dot", "--readout", "generate", "--beams", 3, "--json").stdout)
    assert report["readout"] == "generate"
    for arguments, reason in (
        ([collection, " "], "Query 1 is empty"),
        ([collection, "dot", "--readout", "best"], "is not generate, voken or vector"),
        ([work / "nothing", "dot"], "no saved collection"),
        ([collection, "dot", "--model", work / "collection"], "holds a collection, not a model"),
    ):
        result = run("search", *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""
    assert run("search", collection, "dot", "-k", 0).exit_code == 2


def test_index_without_vectors_and_of_one_split(data, work, model):
    arguments = ("index", data, "--model", model, "--out", work / "small", "--cache", work / "cache")
    report = json.loads(run(*arguments, "--split", "test", "--no-vectors", "--json").stdout)
    assert report["pictures"] == 8
    assert report["with_vectors"] is False
    assert report["skipped"] == []
    assert json.loads(run("search", work / "small", "dot", "--json").stdout)["readout"] == "voken"
    again = json.loads(run(*arguments, "--json").stdout)  # it remembers the split
    assert (again["pictures"], again["unchanged"], again["added"]) == (8, 8, 0)
    again = json.loads(run(*arguments, "--split", "all", "--json").stdout)
    assert (again["unchanged"], again["removed"]) == (8, 0)
    assert again["with_vectors"] is False
    assert again["pictures"] == 8 + again["added"] > 8
    replaced = json.loads(run(*arguments, "--replace", "--json").stdout)
    assert (replaced["added"], replaced["with_vectors"]) == (again["pictures"], True)


@pytest.mark.slow
def test_eval_writes_figures_that_trec_files_agree_with(data, work, model):
    arguments = ("eval", "--model", model, "--data", data, "--cache", work / "cache")
    result = run(*arguments, "--json", work / "figures" / "eval.json", "--trec", work / "trec", "--per-query")
    assert result.exit_code == 0, result.output
    assert "| two-tower, exact |" in result.stdout
    assert "+ vector rerank" in result.stdout
    written = json.loads((work / "figures" / "eval.json").read_text())
    rows = written["rows"]
    assert [row["readout"] for row in rows[-3:]] == ["generate", "voken", "vector"]
    assert [row["system"] for row in rows[:2]] == ["two-tower, exact", "quantized ceiling"]
    assert {row["pool_size"] for row in rows} == {4}
    assert {row["query_count"] for row in rows} == {8}
    assert all(row["config"]["tokenizer"]["levels"] == 3 and row["machine"]["cores"] for row in rows)
    qrels = read_qrels(work / "trec" / "qrels.txt")
    for name, row in zip(("two-tower-exact", "vector"), (rows[0], rows[-1]), strict=True):
        answers = read_run(work / "trec" / f"{name}.run.txt")
        expected = dict(zip(row["per_query"]["query_id"], row["per_query"]["recall"]["1"], strict=True))
        assert expected.keys() == qrels.keys()
        for query, relevant in qrels.items():  # a file shows one order of a tie, the figure is the mean over all
            assert expected[query] == float(answers[query][0][0] in relevant) or 0 < expected[query] < 1
        assert np.mean(list(expected.values())) == pytest.approx(row["recall"]["1"])
    saved = work / "figures" / "eval.json"
    report = json.loads(run("compare", saved, saved, "--row", "vector", "--row-b", "generate", "--json").stdout)
    (row,) = report["rows"]
    assert row["queries"] == 8
    assert [one["first"] for one in row["cutoffs"]] == pytest.approx(list(rows[-1]["recall"].values()))
    assert [one["second"] for one in row["cutoffs"]] == pytest.approx(list(rows[-3]["recall"].values()))
    table = run("compare", saved, saved)
    assert table.exit_code == 0
    assert table.stdout.count("**A: ") == len(rows)
    unclear = run("compare", saved, saved, "--row", "best")
    assert unclear.exit_code == 1
    assert "Rows of A: 'two-tower, exact'" in unclear.stderr
    every = run(*arguments, "--json", work / "all.json", "--all-pictures", "--beams", 2, "--limit", 5)
    assert every.exit_code == 0
    rows = json.loads((work / "all.json").read_text())["rows"]
    assert {row["pool_size"] for row in rows} == {8}
    assert {row["query_count"] for row in rows} == {5}
    assert rows[-1]["beams"] == 2
    assert rows[-1]["pool"] == "all pictures"
    missing = run("eval", "--model", model, "--data", data, "--split", "nowhere")
    assert "no picture is in split 'nowhere'" in missing.stderr


def test_tokenizer_report(data, work, model):
    arguments = ("tokenizer", "report", "--model", model, "--data", data, "--cache", work / "cache")
    report = json.loads(run(*arguments, "--json").stdout)
    assert report["pictures"] == 40
    assert [level["entries"] for level in report["levels"]] == [4, 4, 4]
    assert [row["cut"] for row in report["recall"]] == [1, 5, 10]
    text = run(*arguments, "--split", "test")
    assert "8 pictures" in text.stdout
    assert "ceiling" in text.stdout


@pytest.mark.slow
def test_fit_goes_on_after_ctrl_c_and_says_so(data, work, monkeypatch):
    import voken.training.fit

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    settings = [part for setting in TINY_SETTINGS for part in ("--set", setting)]
    arguments = ("fit", data, "--out", work / "again", *settings, "--cache", work / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(voken.training.fit, "train_generator", interrupted)
        stopped = run(*arguments)
    assert stopped.exit_code == 130
    assert "Run the same command again to continue" in stopped.stderr
    assert not (work / "again").exists()
    trained = (work / "again.work" / "encoder" / "head.safetensors").read_bytes()
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert "Next: voken index" in result.stdout
    assert (work / "again" / "encoder" / "head.safetensors").read_bytes() == trained
    assert not (work / "again.work").exists()


def test_fit_says_what_it_needs(tmp_path):
    draw(COLOURS["red"], "dot").save(tmp_path / "a.png")
    for arguments, reason in (
        ([], "DATA is missing"),
        ([tmp_path], "--out is missing"),
        ([tmp_path, "--out", tmp_path / "m"], "no picture has a caption"),
        ([tmp_path / "none", "--out", tmp_path / "m"], "no such file or folder"),
        ([tmp_path, "--set", "levels"], "write NAME=VALUE"),
        ([tmp_path, "--set", "tokenizer.depth=3"], "no such setting"),
        ([tmp_path, "--set", "tokenizer.levels=many"], "is not a whole number"),
        ([tmp_path, "--preset", "best"], "no such preset"),
    ):
        result = run("fit", *arguments)
        assert result.exit_code == 1, result.output
        assert reason in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_show_config():
    result = run("fit", "--show-config", "--preset", "paper", "--seed", 3, "--set", "tokenizer.layers=[]")
    report = json.loads(result.stdout)
    assert (report["seed"], report["tokenizer"]["layers"], report["generator"]["family"]) == (3, [], "t5")


def test_data_refuses_what_there_is_not(tmp_path):
    assert "no such data set" in run("data", "cats", tmp_path).stderr
    assert "icons has no smaller selection" in run("data", "icons", tmp_path, "--demo").stderr


@pytest.mark.parametrize(
    "command", [[], ["data"], ["fit"], ["index"], ["search"], ["eval"], ["compare"], ["tokenizer", "report"], ["demo"]]
)
def test_help_has_an_example(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    if command:
        assert f"Example: voken {command[0]}" in result.stdout


def test_help_loads_nothing_heavy():
    watched = (
        "import sys\nsys.argv = ['voken', 'fit', '--help']\n"
        "from voken.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'sqlite3'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", watched], check=True, capture_output=True, timeout=60)


def test_python_m_voken_and_a_closed_pipe():
    command = [sys.executable, "-m", "voken"]
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True, timeout=60)
    assert version.stdout.startswith("voken ")
    assert subprocess.run([*command, "search"], capture_output=True, timeout=60).returncode == 2
    with subprocess.Popen([*command, "fit", "--show-config"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as unread:
        unread.stdout.close()
        assert unread.stderr.read() == b""
        assert unread.wait(60) == 0


def test_names_cannot_garble_the_terminal(tmp_path, monkeypatch):
    assert printable("a\x1b[31m\nb\u202e") == "a\ufffd[31m\ufffdb\ufffd"
    monkeypatch.chdir(tmp_path)
    assert display_path(tmp_path / "sub" / "a.png") == "sub/a.png"
    assert display_path("/elsewhere/a.png") == "/elsewhere/a.png"


def test_bars_are_drawn_on_a_terminal_only(monkeypatch, capsys):
    with progress_bars() as progress:
        progress("work", 1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bars() as progress:
        for what, done, total in (("work", 0, 2), ("work", 2, 2), ("more", 1, 0), ("work", 1, 3)):
            progress(what, done, total)
    assert "work" in capsys.readouterr().err
