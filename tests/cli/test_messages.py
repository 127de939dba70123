"""Whatever a user does wrong ends in one sentence with a remedy, and never in a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from builders.tiny_model import paint, tiny_model
from voken import Collection, api, fit
from voken.cli import app
from voken.cli.app import _names_picture
from voken.config import preset
from voken.device import check_device
from voken.errors import ArtifactError, ConfigError, DataError, MissingExtraError, VokenError
from voken.extras import extra_errors

VOKEN = [sys.executable, "-m", "voken"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence_of(result, exit_code=1):
    """The only line that a failed command prints."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.jpg", "trips/b.jpg"):
        paint(tmp_path / "My Photos" / name, (200, 30, 30))
    return tmp_path / "My Photos"


@pytest.fixture
def collection(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(api, "load_model", lambda folder, **options: tiny_model())
    Collection.index(tmp_path / "c", pictures, tiny_model(), model_folder=tmp_path / "m")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "manifest.json").write_text("{}")
    return tmp_path / "c"


# ---- what is no collection ----


@pytest.mark.parametrize(
    "command", [("search",), ("info",), ("doctor",), ("serve",), ("compact",), ("add",), ("remove",)]
)
def test_a_folder_of_pictures_is_to_be_indexed_first(pictures, command):
    more = ("x",) if command[0] in ("search", "add", "remove") else ()
    sentence = sentence_of(run(*command, pictures, *more))
    assert "a folder of pictures, and no saved collection" in sentence
    assert f"voken index '{pictures}'" in sentence


def test_a_folder_that_is_missing_or_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    assert "no saved collection there (it has no manifest.json)" in sentence_of(run("search", tmp_path, "x"))
    sentence = sentence_of(run("info", tmp_path / "none"))
    assert "no saved collection or model there. Make a collection: voken index" in sentence
    assert "is a file" in sentence_of(run("search", tmp_path / "notes.txt", "x"))
    with pytest.raises(ArtifactError, match="no saved collection there"):
        Collection.open(tmp_path / "none")


# ---- a query that is a picture, or looks like one ----


def test_a_query_that_looks_like_a_missing_picture(collection, pictures):
    for query in (pictures / "gone.jpg", "gone.JPG", "my cat.png", "~/gone.webp"):
        assert "there is no such file" in sentence_of(run("search", collection, query))
    assert "is a folder" in sentence_of(run("search", collection, f"{pictures}/trips"))
    assert run("search", collection, "-k", 1, "a cat").exit_code == 0


def test_words_are_words_even_if_a_file_has_that_name(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    Path("cat").write_text("a list for shopping")
    paint(Path("dog.png"), (0, 0, 0))
    Path("dog.png").rename("dog")
    assert [_names_picture(query) for query in ("cat", "dog", "trips", "and/or", "x" * 10_000, "\0")] == [False] * 6
    assert [_names_picture(query) for query in ("./dog", "a.jpg", "trips/b.jpg", "./cat")] == [True] * 4
    for query in ("./trips", "trips/", "b.jpg"):
        with pytest.raises(DataError, match=r"is a folder|no such file"):
            _names_picture(query)


@pytest.mark.parametrize(
    ("option", "value"), [("--threshold", 0.99), ("--precision", 0.9), ("--readout", "voken"), ("--beams", 3)]
)
def test_options_that_a_search_by_picture_has_not(collection, pictures, option, value):
    for words in (("--like", "a.jpg"), (pictures / "a.jpg",)):
        assert f"{option}: only a search by words has it" in sentence_of(
            run("search", collection, *words, option, value)
        )
    assert run("search", collection, "--like", "a.jpg").exit_code == 0


def test_a_query_of_nothing_visible_is_empty(collection):
    for query in ("", " ", "\u200b", "\u200b\u2060 \ufeff", "\t\n"):
        assert "is empty" in sentence_of(run("search", collection, query))


# ---- devices and checkpoints ----


@pytest.mark.parametrize(
    ("name", "says"),
    [("cuda", "finds no GPU"), ("cuda:7", "finds no GPU"), ("mps", "no Apple GPU"), ("gpu", "no such kind of device")],
)
def test_a_device_that_is_not_there(collection, pictures, tmp_path, monkeypatch, name, says):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for command in (("search", collection, "x"), ("index", pictures, "--out", tmp_path / "d"), ("fit", pictures)):
        sentence = sentence_of(run(*command, "--device", name))
        assert sentence.startswith(f"device '{name}': ")
        assert says in sentence
    for call in (
        lambda: Collection.open(collection, device=name),
        lambda: Collection.index(collection, pictures, device=name),
        lambda: fit(pictures, tmp_path / "m", device=name),
    ):
        with pytest.raises(ConfigError, match=says):
            call()


def test_a_gpu_that_is_there(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [check_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match=r"has 2 GPUs\. Use cuda:0 to cuda:1"):
        check_device("cuda:2")


def test_clip_needs_a_checkpoint(tmp_path):
    lines = []
    for number in range(20):
        paint(tmp_path / f"{number}.png", (number * 12, 0, 0))
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"red {number}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    sentence = sentence_of(run("fit", tmp_path, "--out", tmp_path / "m", "--set", "encoder.family=clip"))
    assert sentence.startswith("encoder.checkpoint is missing: name the folder or the hub name of a clip model, e.g.")
    config = preset("default").override({"encoder.family": "siglip"})
    with pytest.raises(ConfigError, match="of a siglip model"):
        fit(tmp_path, tmp_path / "n", config)


# ---- without the extras ----

WITHOUT_EXTRAS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import builders.search_only
from typer.testing import CliRunner
from voken.cli import app
answers = []
for command in json.loads(sys.argv[2]):
    result = CliRunner().invoke(app, command)
    answers.append([result.exit_code, result.stdout, result.stderr, repr(result.exception)])
print(json.dumps(answers))
"""


def test_a_search_only_installation_names_the_extra(collection, pictures, tmp_path):
    expected = {
        ("index", pictures, "--out", tmp_path / "d", "--model", tmp_path): "train",
        ("index", pictures, "--out", tmp_path / "d", "--watch"): "train",
        ("add", collection, pictures / "a.jpg"): "train",
        ("search", collection, "x", "--device", "cuda"): "train",
        ("fit", pictures, "--out", tmp_path / "m"): "train",
        ("compile", tmp_path): "train",
        ("tokenizer", "report", "--model", tmp_path, "--data", pictures): "train",
        ("data", "emoji", tmp_path / "e"): "data",
        ("demo", "--out", tmp_path / "demo"): "data",
        ("eval", "--model", tmp_path, "--data", pictures): "train",
        ("reproduce", "table1", "--track", "emoji", "--data", pictures, "--out", tmp_path / "r"): "train",
        ("serve", collection): "serve",
    }
    commands = json.dumps([[str(word) for word in command] for command in expected])
    tests = str(Path(__file__).parents[1])
    answered = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, tests, commands], capture_output=True, text=True, timeout=300
    )
    assert answered.returncode == 0, answered.stderr
    for (command, extra), (code, stdout, stderr, exception) in zip(
        expected.items(), json.loads(answered.stdout), strict=True
    ):
        assert code == 1, (command, stderr, exception)
        assert stdout == "", command
        (line,) = stderr.splitlines()
        assert line.startswith("error: "), command
        assert line.endswith(f'is not installed. Install it with: pip install "voken-search[{extra}]"'), command


def test_modules_that_no_extra_brings_are_bugs():
    with pytest.raises(ModuleNotFoundError) as caught, extra_errors():
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")
    assert not isinstance(caught.value, MissingExtraError)
    with pytest.raises(MissingExtraError, match=r"voken-search\[bench\]"), extra_errors("data"):
        raise ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats")
    with pytest.raises(MissingExtraError, match=r"PIL, .*voken-search\[data\]"), extra_errors("data"):
        raise ModuleNotFoundError("No module named 'PIL'", name="PIL")


# ---- the output ----


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
@pytest.mark.parametrize("arguments", [("fit", "--show-config"), ("--help",), ("--version",)])
def test_an_output_that_is_full(arguments):
    with open("/dev/full", "wb") as full:
        result = subprocess.run([*VOKEN, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr == "error: the output cannot be written (No space left on device). Send it elsewhere.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a file that is always full")
def test_a_server_serves_without_an_output():
    program = (
        "from voken.cli import app\n"
        "import voken.serve.process as process\n"
        "def serve(folder, settings, *, report, **options):\n"
        "    report('Serving')\n"
        "    raise SystemExit(7)\n"
        "process.serve = serve\n"
        "app(['serve', 'c'])\n"
    )
    with open("/dev/full", "wb") as full:
        result = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, timeout=120)
    assert (result.returncode, result.stderr) == (7, b"")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_fault(closed, tmp_path):
    # the first file that a process opens gets the number of a closed stream, and what is printed
    program = (
        "import os, sys\n"
        f"for number in {closed}: os.close(number)\n"
        f"os.execv({VOKEN[0]!r}, [*{VOKEN!r}, 'info', {str(tmp_path / 'none')!r}])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stdout == ""
    assert (result.stderr == "") == (2 in closed)
    assert "Traceback" not in result.stderr
    program = program.replace("'info'", "'--version'")
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows names the fault in another way")
def test_what_the_system_refuses_names_the_file(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")

    def refused(*arguments, **options):
        (tmp_path / "file" / "inside").read_text()

    monkeypatch.setattr(Collection, "index", refused)
    sentence = sentence_of(run("index", pictures, "--out", tmp_path / "d"))
    assert sentence == f"{tmp_path / 'file' / 'inside'}: Not a directory. Correct that and run the command again."


# ---- one sentence, and then what to do ----


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        (("index", "{none}", "--out", "{out}", "--model", "{m}"), "Correct the path"),
        (("index", "{notes}", "--out", "{out}", "--model", "{m}"), "Give one of these"),
        (("index", "{pictures}", "--out", "{out}", "--model", "{m}", "--images", "{none}"), "Correct the path"),
        (("index", "{pictures}", "--out", "{out}", "--model", "{m}", "--images", "{pictures}"), "Leave --images out"),
        (("index", "{pictures}", "--out", "{out}", "--model", "{m}", "--split", "test"), "field 'split'"),
        (("index", "{pictures}", "--out", "{c}", "--cache", "{notes}"), "Choose another folder"),
        (("search", "{c}", "x", "--readout", "best"), "Use one of them"),
        (("search", "{c}", "--like", "none"), "shows the ids"),
        (("search", "{c}", "x", "--like", "a.jpg"), "Give either"),
        (("fit", "{none}", "--out", "{out}"), "Correct the path"),
        (("fit", "{pictures}", "--out", "{out}"), "Give captions"),
        (("fit", "{pictures}", "--out", "{out}", "--set", "tokenizer.levels=a"), "--show-config"),
        (("eval", "--model", "{m}", "--data", "{none}"), "Correct the path"),
        (("data", "photos", "{out}"), "Choose emoji"),
    ],
)
def test_every_refusal_says_what_to_do(command, remedy, collection, pictures, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    folders = {name: tmp_path / name for name in ("m", "c", "out", "none")}
    folders |= {"notes": tmp_path / "notes.txt", "pictures": pictures}
    sentence = sentence_of(run(*(word.format(**folders) for word in command)))
    assert remedy in sentence
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.partial-*"))


def test_a_collection_that_cannot_be_created(pictures, tmp_path):
    (tmp_path / "notes.txt").write_text("no folder")
    before = sorted(tmp_path.rglob("*"))
    for place in (tmp_path / "notes.txt" / "x", tmp_path / ("x" * 250), pictures, tmp_path / "notes.txt"):
        with pytest.raises(VokenError, match="hoose another folder") as caught:
            Collection.index(place, pictures, tiny_model(), model_folder=tmp_path / "m")
        assert str(caught.value).startswith(f"{place}: ")
    assert sorted(tmp_path.rglob("*")) == before
