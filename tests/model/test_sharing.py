"""Models pushed to and pulled from a hub that is a folder."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner

from builders.saved_search import make_model
from voken.cli import app
from voken.errors import ArtifactError, ConfigError, StorageError
from voken.model.model import Model
from voken.model.sharing import model_card, pull, push


class FolderHub:
    """The calls of huggingface_hub that voken makes, on folders `root/user/model`, with its rules for patterns."""

    def __init__(self, root):
        self.root = root
        self.private = {}

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        (self.root / name).mkdir(parents=True, exist_ok=True)
        self.private[name] = private
        return f"https://hub.example/{name}"

    def upload_file(self, *, path_or_fileobj, path_in_repo, repo_id, commit_message):
        (self.root / repo_id / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(self, *, folder_path, repo_id, allow_patterns, commit_message):
        self._copy(folder_path, self.root / repo_id, allow_patterns)

    def download(self, name, *, revision, local_dir, allow_patterns):
        if not (self.root / name).is_dir():
            raise huggingface_hub.errors.RepositoryNotFoundError.__base__(f"404 Client Error for {name}")
        self._copy(self.root / name, Path(local_dir), allow_patterns)
        (Path(local_dir) / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)

    def _copy(self, source, target, patterns):
        for path in Path(source).rglob("*"):
            name = path.relative_to(source).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "m"
    return folder, make_model().save(folder).fingerprint


def test_a_model_comes_back_as_it_was_pushed(tmp_path, hub, saved):
    folder, fingerprint = saved
    (folder.parent / "m" / "notes.pkl").write_bytes(b"not part of the model")
    try:
        assert push(folder, "me/m", licence="cc-by-4.0", private=True) == "https://hub.example/me/m"
    finally:
        (folder / "notes.pkl").unlink()
    assert hub.private == {"me/m": True}
    assert not (hub.root / "me/m/notes.pkl").exists()
    pull("me/m", tmp_path / "copy")
    assert Model.load(tmp_path / "copy").fingerprint == fingerprint
    assert 'license: "cc-by-4.0"' in (tmp_path / "copy" / "README.md").read_text()
    assert not (tmp_path / "copy" / ".cache").exists()
    with pytest.raises(ArtifactError, match="already exists"):
        pull("me/m", tmp_path / "copy")


def test_from_pretrained_fetches_once(hub, saved, tmp_path):
    folder, fingerprint = saved
    assert Model.from_pretrained(str(folder)).fingerprint == fingerprint
    assert Model.load(folder).push_to_hub("me/other").endswith("me/other")
    assert Model.from_pretrained("me/other").fingerprint == fingerprint
    shutil.rmtree(hub.root)
    assert Model.from_pretrained("me/other").fingerprint == fingerprint
    with pytest.raises(ArtifactError, match=r"me/none: the hub refused or cannot be reached"):
        Model.from_pretrained("me/none")


def test_what_is_no_intact_model_leaves_nothing(hub, saved, tmp_path):
    folder, _ = saved
    push(folder, "me/m")
    weights = next((hub.root / "me/m/generator").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=r"me/m: holds no intact model of voken \(me/m/generator"):
        pull("me/m", tmp_path / "copy")
    (hub.root / "me" / "text").mkdir()
    with pytest.raises(ArtifactError, match="holds no intact model of voken"):
        pull("me/text", tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "hub") == []
    with pytest.raises(ConfigError, match="Write USER/MODEL"):
        pull("text", tmp_path / "copy")
    with pytest.raises(ArtifactError):
        push(tmp_path, "me/m")


def test_a_full_disk_is_no_fault_of_the_hub(tmp_path, monkeypatch, hub):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StorageError, match="the disk is full"):
        pull("me/m", tmp_path / "copy")


def test_the_card_says_what_the_model_is(saved):
    card = model_card(saved[0], "me/m", "mit", "nlphuji/flickr30k")
    assert card.startswith("---\nlibrary_name: voken\n")
    for part in (
        'license: "mit"',
        "datasets: [nlphuji/flickr30k]",
        "| a picture | ",
        "| saved by | voken ",
        "have licences of their own",
        "```json",
        "# m\n",
        "voken pull me/m --out m.model",
        "## Training data",
        "## Figures",
        "## Limits",
    ):
        assert part in card
    assert "Not stated: ask" in model_card(saved[0])


def test_the_command_line_pushes_and_pulls(tmp_path, hub, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["push", str(saved[0])]).stdout.startswith("---\nlibrary_name")
    pushed = run(app, ["push", str(saved[0]), "me/m", "--licence", "mit"])
    assert pushed.exit_code == 0, pushed.output
    assert "https://hub.example/me/m" in pushed.stdout
    pulled = run(app, ["pull", "me/m", "--out", "copy"])
    assert pulled.exit_code == 0, pulled.output
    assert "Next: voken index PICTURES --model copy --out COLLECTION" in pulled.stdout
    missing = run(app, ["pull", "me/none", "--out", "copy2"])
    assert missing.exit_code == 1
    assert "the hub refused or cannot be reached" in missing.stderr


def test_the_card_of_a_trained_model_has_its_figures_and_no_markup_of_others(tmp_path):
    run = {
        "name": "mine | <b>\n# x",
        "encoder": {"family": "clip", "checkpoint": "openai/clip-vit-base-patch32"},
        "tokenizer": {"levels": 8, "codebook_size": 256},
        "generator": {"family": "t5", "checkpoint": "t5-small"},
    }
    validation = {
        "tokenizer": {
            "report": {
                "bits": 64.0,
                "collision_rate": 0.025,
                "recall": [{"cut": 1, "exact": 28.477, "quantized": 23.15}],
            },
            "warnings": ["It loses much."],
        },
        "generator": {"best": 3},
        "search": {"voken": {"0.25": 0.4823}, "vector": {"32": 0.522}},
        "calibration": {"vector": {"first_hit_right": 0.1325, "first_hit_confidence": 0.0896}},
        "pictures": {"train": 6000, "validation": 1000},
    }
    search = {"beams": 100, "voken_weight": 0.25, "vector_weight": 32.0}
    (tmp_path / "config.json").write_text(json.dumps({"run": run, "search": search, "validation": validation}))
    card = model_card(tmp_path, "me/m", "other: {", "Flickr8k, the train split")
    heading = yaml.safe_load(card.split("---\n")[1])
    assert heading["license"] == "other: {"
    assert heading["base_model"] == "openai/clip-vit-base-patch32"
    assert "datasets" not in heading
    for line in (
        "| encoder | clip, openai/clip-vit-base-patch32 |",
        "| a picture | 8 vokens of 256, 64 bits |",
        "| the generator was | trained |",
        "| preset | mine \\| <b> # x |",
        "Flickr8k, the train split. Captioned pictures: 6,000 train, 1,000 validation.",
        "- mean of R@1, R@5 and R@10 on validation, with vokens alone: 48.2 %",
        "- mean of R@1, R@5 and R@10 on validation, with a stored vector per picture: 52.2 %",
        "- pictures that share their sequence, on validation: 2.5 %",
        "- R@1 on validation by exact search: 28.5 % with vectors, 23.1 % with what the vokens stand for",
        "- It loses much.",
    ):
        assert line in card.splitlines()
    assert "the first hit is right for 13.2 %, and its confidence is 9.0 % on average" in card
