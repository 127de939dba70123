"""Checkpoints of the hub: from its cache, downloaded and verified, or not at all. No test asks the network."""

import hashlib
import importlib
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from builders.tiny_hub import make_clip
from builders.untrained import paint_noise
from voken import Collection, api
from voken.config import EncoderConfig
from voken.encoders import checkpoints, frozen
from voken.encoders.checkpoints import SMALL_CLIP, auto_encoder, cached, fetched, silence
from voken.errors import ArtifactError
from voken.model import untrained
from voken.progress import no_progress

OFFLINE = "it is offline"
command_line = importlib.import_module("voken.cli.app")  # the package has an attribute of that name


class Hub:
    """A hub that holds the files of a folder, and a cache laid out as the true one."""

    def __init__(self, folder, cache):
        self.folder, self.cache = folder, cache
        self.fetched, self.damage = [], ""
        self.extra = [SimpleNamespace(rfilename="pytorch_model.bin", size=1, lfs=None)]

    def model_info(self, name, **options):
        files = []
        for path in sorted(self.folder.iterdir(), reverse=True):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = SimpleNamespace(sha256=digest) if path.suffix == ".safetensors" else None
            files.append(SimpleNamespace(rfilename=path.name, size=path.stat().st_size, lfs=lfs))
        return SimpleNamespace(siblings=[*files, *self.extra])

    def download(self, name, file, *, tqdm_class):
        self.fetched.append(file)
        snapshot = self.snapshot(name)
        shutil.copy(self.folder / file, snapshot / file)
        if file == self.damage:
            (snapshot / file).write_bytes((snapshot / file).read_bytes()[:-1] + b"?!")
        with tqdm_class(total=3 << 20, unit="B", name="a bar", initial=1 << 20) as bar:
            bar.update(2 << 20)
        return str(snapshot / file)

    def snapshot(self, name):
        place = self.cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text("abc")
        (place / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
        return place / "snapshots" / "abc"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    make_clip(tmp_path / "there")
    hub = Hub(tmp_path / "there", tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, **options: hub.model_info(name))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hub


@pytest.fixture
def silent(hub, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(OFFLINE)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    return hub


def test_a_checkpoint_is_fetched_once_with_progress(hub):
    reports = []
    assert cached(SMALL_CLIP) is None
    folder = fetched(SMALL_CLIP, lambda *report: reports.append(report))
    assert hub.fetched[-1] == "model.safetensors"  # the cache is complete once it has them
    assert "pytorch_model.bin" not in hub.fetched
    assert reports[-1] == ("model.safetensors: MB", 3, 3)
    count = len(hub.fetched)
    assert fetched(SMALL_CLIP) == cached(SMALL_CLIP) == folder
    assert len(hub.fetched) == count


def test_an_interrupted_download_continues(hub):
    folder = fetched(SMALL_CLIP)
    (folder / "model.safetensors").unlink()
    assert cached(SMALL_CLIP) is None
    assert fetched(SMALL_CLIP) == folder


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_deleted(hub, file):
    hub.damage = file
    with pytest.raises(ArtifactError, match=rf"{file} arrived damaged, and was deleted\. Run the same command again"):
        fetched(SMALL_CLIP)
    assert not (hub.snapshot(SMALL_CLIP) / file).exists()
    hub.damage = ""
    assert (fetched(SMALL_CLIP) / file).exists()


def test_pickled_weights_are_not_fetched(hub):
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no weights as safetensors, and voken reads no others"):
        fetched(SMALL_CLIP)
    assert hub.fetched == []
    # transformers may know of converted weights; it loads no others either
    assert frozen._source(SMALL_CLIP, no_progress) == SMALL_CLIP
    unsafe = hub.folder.parent / "unsafe"
    unsafe.mkdir()
    make_clip(unsafe)
    torch.save(load_file(unsafe / "model.safetensors"), unsafe / "pytorch_model.bin")
    (unsafe / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="does not hold all of the model"):
        frozen.frozen_encoder(EncoderConfig(family="clip", checkpoint=str(unsafe)))


def test_auto_takes_clip_if_it_can(hub):
    assert silence(SMALL_CLIP) == ""
    assert (auto_encoder().name, auto_encoder().reason) == (SMALL_CLIP, "")


def test_auto_takes_the_built_in_encoder_and_says_why(silent):
    choice = auto_encoder()
    assert choice.name == "photos"
    assert OFFLINE in choice.reason
    assert OFFLINE in silence(SMALL_CLIP)
    with pytest.raises(ArtifactError, match=f"did not provide it .{OFFLINE}.. Check the name and the network"):
        fetched(SMALL_CLIP)


def test_a_cached_checkpoint_needs_no_hub(hub, monkeypatch, tmp_path):
    fetched(SMALL_CLIP)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    monkeypatch.setattr(untrained, "_MIXTURES", 200)
    paint_noise(tmp_path / "photos", range(3))
    assert Collection.index(tmp_path / "photos", encoder="auto").fitted.encoder == SMALL_CLIP
    assert Collection.index(tmp_path / "photos", encoder=SMALL_CLIP).unchanged == 3


class Terminal:
    """What the command line sees of a terminal, and the user's answers."""

    def __init__(self, monkeypatch, answer):
        self.questions = []
        stream = SimpleNamespace(isatty=lambda: True)
        monkeypatch.setattr(command_line, "sys", SimpleNamespace(stdin=stream, stderr=stream))
        monkeypatch.setattr(command_line.typer, "confirm", lambda text, **_: self.questions.append(text) or answer)


@pytest.mark.parametrize(("answer", "encoder"), [(True, SMALL_CLIP), (False, "photos")])
def test_a_terminal_is_asked_once(hub, monkeypatch, answer, encoder):
    terminal = Terminal(monkeypatch, answer)
    assert command_line._new_encoder(None, ask=False) == "photos"
    assert terminal.questions == []
    for _ in range(2):
        assert command_line._new_encoder(None, ask=True) == encoder
    assert len(terminal.questions) == 1
    assert "Download laion/CLIP" in terminal.questions[0]


def test_nobody_is_asked_while_the_hub_is_silent(silent, monkeypatch, capsys):
    terminal = Terminal(monkeypatch, True)
    assert command_line._new_encoder(None, ask=True) == "photos"
    assert (terminal.questions, api.answered_encoder()) == ([], "photos")
    assert capsys.readouterr().err == ""
    assert command_line._new_encoder("auto", ask=True) == "photos"
    assert f"({OFFLINE})" in (told := capsys.readouterr().err)
    assert "The built-in encoder is used." in told


def test_an_answer_that_cannot_be_read_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert checkpoints.answer() == ""
    checkpoints.remember("auto")
    assert checkpoints.answer() == "auto"
    checkpoints._answer_file().write_bytes(b"\xff\xfe")
    assert checkpoints.answer() == ""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoints.remember("auto")
    assert checkpoints.answer() == ""
