"""The documentation is true: its commands run, they print what a page shows, and its links lead somewhere.

A page is one session of a reader, from top to bottom, in a home folder of its own:

    photos/           27 pictures in animals/, food/, trips/2023/, trips/2024/; one for README; one broken file
    photos.voken      a collection of them, unless the page indexes them itself (README, the tutorial)
    model             a true model with random weights and an invented calibration; demo/model is the same
    demo/data         pictures with captions and fields; captioned is the same; a.json, b.json: evaluations of it
    more/ other/      pictures that are in no collection, and fox-drawn.png

What runs: in a `console` fence every line that begins with "$ "; in other fences every line that begins with "voken";
every `python` fence. A comment before a fence excludes it, `<!-- not run: REASON -->`, or some of its commands,
`<!-- not run: voken reproduce: REASON -->`; voken's command line must still accept their options. These do not run as
they stand: `voken fit` only prints its settings; servers listen on a free port, answer a request, and stop at the end
of the page; `--watch` sees a new picture and is stopped.

A command must print each line shown below it in a `console` fence, except for numbers and paths; `…` stands for
omitted text. A `json` fence after a command shows keys of its answer, with values of the right types.
"""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from builders.tiny_lite import make_whole_model
from voken.cli import app
from voken.config import SearchConfig
from voken.model.calibration import Calibration, ReadOutCalibration

ROOT = Path(__file__).parents[1]
SERVING = "docs/how-to/serve.md"
TUTORIAL = "docs/tutorial/your-pictures.md"
PAGES = ("README.md", TUTORIAL, "docs/how-to/recipes.md", SERVING, "docs/how-to/operate.md")
MAKES_ITS_COLLECTION = ("README.md", TUTORIAL)
SOON = 60
"""Seconds after which something hangs."""
PORT = "7860"
PHOTOS = {
    "animals": (2022, "fox raccoon tiger horse zebra elephant owl whale crab rabbit eagle"),
    "food": (2024, "lemon banana strawberry hamburger cupcake pineapple"),
    "trips/2023": (2023, "sailboat high-speed-train ferris-wheel sunset snow-capped-mountain"),
    "trips/2024": (2024, "airplane-departure bus roller-coaster parachute passenger-ship"),
}
SUFFIXES = (".png", ".jpg", ".webp")


@dataclass(frozen=True)
class Command:
    """One line of a shell, what the page shows below it, and what its answer looks like."""

    line: int
    text: str
    run: bool
    shown: list = field(default_factory=list)
    shape: list = field(default_factory=list)
    """One element if a `json` fence follows, else none."""


@dataclass(frozen=True)
class Block:
    """A fence of a page."""

    line: int
    language: str
    lines: list
    mark: tuple | None
    """From the comment before it: the command that does not run ("" for all), and the reason."""

    @property
    def text(self):
        return "\n".join(self.lines)


def blocks(page):
    """The fences of a page in order."""
    fences, fence, mark = [], None, None
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        if fence is not None:
            if line.startswith("```"):
                fences.append(fence)
                fence, mark = None, None
            else:
                fence.lines.append(line)
        elif line.startswith("```"):
            fence = Block(number, line[3:].strip(), [], mark)
        else:
            comment = re.fullmatch(r"<!-- not run: (?:(voken [^:]*): )?(.+) -->", line)
            mark = (comment[1] or "", comment[2]) if comment else None
    assert fence is None, f"{page}: a fence is not closed"
    return fences


def commands(block):
    """The commands of a fence, with the lines shown below each."""
    lines = []
    for number, line in enumerate(block.lines, start=block.line + 1):
        prompt = "$ " if block.language == "console" else ""
        if line.startswith(prompt) if prompt else line.startswith("voken"):
            text = line.removeprefix(prompt)
            run = block.mark is None or bool(block.mark[0] and not text.startswith(block.mark[0]))
            lines.append(Command(number, text, run))
        elif lines and prompt and line.strip():
            lines[-1].shown.append(line)
    return lines


def steps_of(page):
    """The commands and programs of a page, in order."""
    steps = []
    for block in blocks(page):
        if block.language == "python":
            if block.mark is None:
                steps.append(block)
        elif block.language == "json" and steps and isinstance(steps[-1], Command):
            steps[-1].shape.append(json.loads(block.text))
        elif block.language in ("", "sh", "console"):
            steps += commands(block)
    return steps


def skeleton(line):
    """A line without its numbers and paths, which differ between runs."""
    words = [
        "PATH" if "/" in word or word.rstrip(":,").endswith(SUFFIXES) else re.sub(r"[-+−]?\d[\d,.]*", "0", word)
        for word in line.split()
    ]
    return " ".join(words)


def missing_line(shown, printed):
    """The first shown line that was not printed, or None."""
    skeletons = [skeleton(line) for line in printed.splitlines()]
    for line in shown:
        start = skeleton(line.removesuffix("…"))
        if not any(text.startswith(start) if line.endswith("…") else text == start for text in skeletons):
            return line
    return None


def assert_shape(shown, real, where="answer"):
    """The real answer has every shown key, with a value of the same type."""
    if isinstance(shown, dict):
        assert isinstance(real, dict), f"{where}: {real!r}"
        for key, value in shown.items():
            assert key in real, f"{where}: no {key!r} among {list(real)}"
            assert_shape(value, real[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert isinstance(real, list), f"{where}: {real!r}"
        assert len(real) >= bool(shown), f"{where}: empty"
        for element in shown:
            assert_shape(element, real[0], f"{where}[0]")
    elif isinstance(shown, int | float) and not isinstance(shown, bool):
        assert isinstance(real, int | float), f"{where}: {real!r}"
        assert not isinstance(real, bool), where
    else:
        assert type(shown) is type(real), f"{where}: {real!r}"


def operators(text):
    """The words of a command, and whether it needs a shell (pipes, redirections, other programs)."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    return words, any(set(word) <= set("|<>&();") for word in words) or words[0] != "voken"


def parts(words):
    """The commands between semicolons."""
    ends = [place for place, word in enumerate(words) if word == ";"]
    return [shlex.join(words[at + 1 : end]) for at, end in zip([-1, *ends], [*ends, len(words)], strict=True)]


def make_model(folder):
    """Random weights, in the true format, that say of every hit that it is right with some probability."""
    weights = {"generate": 0.0, "voken": 2.0, "vector": 3.0}
    readouts = tuple(ReadOutCalibration(name, weight, -1.0, 0.05, 0.0, 0.0) for name, weight in weights.items())
    calibration = Calibration(0.5, 50, 50, 50, 1.0, 7, readouts)
    make_whole_model(SearchConfig(beams=7), calibration=calibration).save(folder)


def draw(path, random, year=2024):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = random.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((24, 24), Image.Resampling.NEAREST).save(path)
    taken = datetime(year, 7, 1, 12, tzinfo=UTC).timestamp()
    os.utime(path, (taken, taken))


def draw_data(folder, random):
    """Each concept in a family of its own, drawn twice, all in the test split."""
    lines = []
    for concept in ("health worker", "field worker", "red square", "green dot", "blue stripe", "fish"):
        for vendor in ("noto", "fluent"):
            name = f"images/{vendor}/{concept.replace(' ', '-')}.png"
            draw(folder / name, random)
            captions = [f"a {concept}", f"{concept}, drawn"]
            lines.append(
                {"file_name": name, "captions": captions, "split": "test", "concept": concept, "vendor": vendor}
            )
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The files that all pages start with, and the cache that they share."""
    home = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(0)
    for folder, (year, names) in PHOTOS.items():
        for name in names.split():
            draw(home / "photos" / folder / f"{name}.png", random, year)
    for name in ("photos/dog.jpg", "more/camera.png", "more/mouse.png", "other/new.jpg", "fox-drawn.png"):
        draw(home / name, random)
    (home / "photos" / "notes.png").write_bytes(b"no picture")
    (home / "shards").mkdir()
    with tarfile.open(home / "shards" / "00000.tar", "w") as archive:
        for key in ("000000000", "000000001"):
            archive.add(home / "fox-drawn.png", f"{key}.png")
            caption = tarfile.TarInfo(f"{key}.txt")
            caption.size = 5
            archive.addfile(caption, io.BytesIO(b"a fox"))
    draw_data(home / "demo" / "data", random)
    make_model(home / "demo" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.chdir(home)
        invoke(shlex.split("voken eval --model demo/model --data demo/data --per-query --json a.json"))
    shutil.copy(home / "a.json", home / "b.json")
    return home


@pytest.fixture
def home(prepared, tmp_path, monkeypatch):
    """A reader's home folder, which is the current folder."""
    shutil.copytree(prepared / "photos", tmp_path / "photos")
    for name in ("more", "other", "shards", "demo/data"):
        shutil.copytree(prepared / name, tmp_path / name)
    for name in ("fox-drawn.png", "a.json", "b.json"):
        shutil.copy(prepared / name, tmp_path / name)
    for link, target in (("model", prepared / "demo" / "model"), ("demo/model", prepared / "demo" / "model")):
        (tmp_path / link).symlink_to(target, target_is_directory=True)
    (tmp_path / "captioned").symlink_to("demo/data", target_is_directory=True)
    shim = tmp_path / "bin" / "voken"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m voken "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(prepared / "cache"))
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("BROWSER", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("VOKEN_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expanded(words):
    """The words as a shell would pass them on."""
    return [str(Path(word).expanduser()) if word.startswith("~") else word for word in words]


def invoke(words):
    """Run voken in this process, where slow imports are done; returns what it printed."""
    words = expanded(words[1:])
    if words[0] == "fit":
        words.append("--show-config")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.output


class Session:
    """A reader of one page; servers run until its end."""

    def __init__(self):
        self.port = PORT
        self.running = []

    def run(self, step):
        if isinstance(step, Block):
            # as a program starts
            exec(compile(self._mapped(step.text), "<page>", "exec"), {"__name__": "__main__"})
            return
        if not step.run:
            self._check_options(step.text)
            return
        printed = self._run(self._mapped(step.text))
        line = missing_line(step.shown, printed)
        assert line is None, f"not printed: {line}\nbut:\n{printed}"
        for shape in step.shape:
            assert_shape(shape, json.loads(printed))

    def close(self):
        for process in self.running:
            process.terminate()
        for process in self.running:
            with process:
                assert process.wait(SOON) == 0

    def _mapped(self, text):
        return text.replace(f":{PORT}", f":{self.port}")

    def _run(self, text):
        words, shell = operators(text)
        names = [word for word in words if "=" not in word or word.startswith("-")]
        if names[:2] == ["voken", "serve"]:
            return self._serve(dict(word.split("=", 1) for word in words[: words.index("voken")]), names[2:])
        if "--watch" in words:
            return self._watch(words)
        if ";" in words:
            return "".join(self._run(part) for part in parts(words))
        if not shell:
            return invoke(shlex.split(text, comments=True))
        result = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {text}"], capture_output=True, text=True, timeout=SOON, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def _check_options(self, text):
        """Check that voken accepts a command that does not run."""
        words, _ = operators(text)
        if words[0] == "voken":
            command, words = typer.main.get_command(app), shlex.split(text, comments=True)[1:]
            with contextlib.suppress(typer.Exit):  # of --version
                context = command.make_context("voken", words)
                while hasattr(command, "commands"):
                    name, command, words = command.resolve_command(context, words)
                    context = command.make_context(name, words, parent=context)

    def _serve(self, variables, options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        if "--port" in options:
            del options[options.index("--port") : options.index("--port") + 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "voken", "serve", *options, "--port", self.port],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables},
        )
        self.running.append(process)
        line = process.stdout.readline()
        assert line.startswith("Serving "), line + process.stdout.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=SOON) as answer:
            assert json.load(answer)["status"] == "ok"
        return line

    def _watch(self, words):
        # a shell takes Ctrl-C away from its background jobs, and the tests may be one
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from voken.cli import main\nmain()\n"
        )
        words = expanded(words[1:])
        printed, new_line = [], threading.Condition()
        with subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:

            def listen():
                for line in process.stdout:
                    with new_line:
                        printed.append(line)
                        new_line.notify()

            def wait_for(text):
                with new_line:
                    assert new_line.wait_for(lambda: any(text in line for line in printed), SOON), printed

            listener = threading.Thread(target=listen)
            listener.start()
            try:
                wait_for("Watching ")
                # the watch starts a moment after this line
                for copy in range(SOON):
                    shutil.copy("photos/animals/fox.png", f"photos/animals/fox-{copy}.png")
                    with new_line:
                        if new_line.wait_for(lambda: any("added)" in line for line in printed), 5):
                            break
            finally:
                process.send_signal(signal.SIGINT)
                listener.join(SOON)
            assert process.wait(SOON) == 130
            return "".join(printed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Image.Image.getdata is deprecated")  # textual-image's, of Pillow
@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_do_can_be_done(page, home):
    if page not in MAKES_ITS_COLLECTION:
        invoke(shlex.split("voken index photos --model model --out photos.voken"))
    if page == SERVING and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    steps, session = steps_of(page), Session()
    assert steps, f"{page}: no command to run"
    with contextlib.closing(session):
        for step in steps:
            printed = io.StringIO()
            try:
                with contextlib.redirect_stdout(printed):
                    session.run(step)
            except BaseException as error:
                text = step.text.partition("\n")[0]
                raise AssertionError(f"{page}, line {step.line}: {text}\n{error!r}\n{printed.getvalue()}") from error


def slug(heading):
    """The anchor that a heading gets."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


def prose(path):
    """A page without its fences and code."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def markdown():
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", markdown(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{target}: no such file"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}: no such heading"


def test_pages_that_the_code_names_exist():
    sources = [path for folder in ("voken", "voken_lab", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    pages = {page for path in sources for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))}
    assert pages
    assert sorted(page for page in pages if not (ROOT / page).exists()) == []


def test_options_that_are_named_exist():
    def options(command):
        names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        if not hasattr(command, "list_commands"):
            return names
        context = typer.Context(command)
        return names.union(*(options(command.get_command(context, name)) for name in command.list_commands(context)))

    known = options(typer.main.get_command(app)) | {"--help"}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            if code.startswith(("voken", "-")):
                named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", code))
                assert named <= known, f"{page}: `{code}`: {sorted(named - known)}"


def test_every_command_has_a_recipe():
    def names(command, words):
        below = getattr(command, "commands", {})
        return [full for name, part in below.items() for full in names(part, [*words, name])] or [" ".join(words)]

    known, text = (
        names(typer.main.get_command(app), ["voken"]),
        (ROOT / "docs" / "how-to" / "recipes.md").read_text(encoding="utf-8"),
    )
    assert "voken tokenizer report" in known
    assert [name for name in known if name not in text] == []


def test_the_doctor_can_say_what_is_explained():
    text = (ROOT / "docs" / "how-to" / "operate.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^## What the doctor says$(.*?)(?:^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    sources = [*(ROOT / "voken" / "collection").glob("*.py"), ROOT / "voken" / "artifact.py"]
    messages = re.sub(r'"\s*f?"', "", " ".join(path.read_text(encoding="utf-8") for path in sources))
    phrases = [
        code for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE) for code in row[1:-1].split("` `")
    ]
    assert len(phrases) > 10
    for phrase in phrases:
        assert phrase in messages, phrase


@pytest.mark.parametrize("package", ["voken", "voken_lab"])
def test_the_tree_has_a_line_for_each_room(package):
    text = (ROOT / "docs" / "explanation" / "tree.md").read_text(encoding="utf-8")
    (table,) = re.findall(rf"^\| `{package}/` .*\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    rooms = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (ROOT / package).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE)) == rooms - {"__init__.py", "__main__.py"}


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    # not in this process, where signatures are changed to be checked (conftest.py)
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "dirhtml", ROOT / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        timeout=5 * SOON,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    commands = (tmp_path / "site" / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert "voken reproduce" in commands


def test_a_line_that_is_not_printed_is_found():
    printed = "photos.voken: 3 pictures (2 added), in 1 s\n   1   -0.5   7%  photos/a b.png\n"
    assert (
        missing_line(["photos.voken: 27 pictures (27 added)…", "  12  +45.1  99%  x/y.jpg"], printed)
        == "  12  +45.1  99%  x/y.jpg"
    )
    assert missing_line(["photos.voken: 27 pictures (27 added), in 0 s", "…"], printed) is None
    assert missing_line(["photos.voken: 27 pictures (27 gone), in 0 s"], printed) is not None
    with pytest.raises(AssertionError, match="no 'k'"):
        assert_shape({"a": [{"k": 1}]}, {"a": [{"b": 1}]})
    with pytest.raises(AssertionError):
        assert_shape({"a": 1}, {"a": "1"})
