"""Models on the Hugging Face hub: a model folder as a repository, with a card that says what it is.

    push(Path("flickr.model"), "somebody/flickr")          # creates the repository, or adds a version
    pull("somebody/flickr", Path("flickr.model"))          # complete and checked, or absent

Only the files of the model's manifest are sent, and only files of such kinds are fetched: JSON, safetensors, ONNX, the
texts of tokenizers and an array of codebooks. Nothing that is fetched is ever unpickled, and every checksum is compared
before the folder gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from voken import artifact
from voken.errors import ArtifactError, ConfigError
from voken.model.compiled import KIND, VERSION

CARD = "README.md"
_KINDS = (
    "*.json",
    "*.safetensors",
    "*.onnx",
    "*.weights",
    "*.txt",
    "*.model",
    "codebooks.npy",
    "*/codebooks.npy",
    "*/code_books.npy",
    "*/metric.npy",
    CARD,
)


def push(folder: Path, name: str, *, licence: str = "", private: bool = False) -> str:
    """Send a saved model and its card to the hub as `name` ("user/model"). Returns its address.

    The hub's client takes the user's token from its login or from HF_TOKEN. Raises `ArtifactError` if there is no
    intact model, or if the hub refuses; `ConfigError` for a name that is none.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    manifest = artifact.check(folder, kind=KIND, version=VERSION)
    _check_name(name)
    hub = HfApi()
    with _hub_errors(name):
        address = str(hub.create_repo(name, private=private, exist_ok=True))
        hub.upload_file(
            path_or_fileobj=model_card(folder, name, licence).encode(),
            path_in_repo=CARD,
            repo_id=name,
            commit_message="The model's card",
        )
        hub.upload_folder(
            folder_path=folder,
            repo_id=name,
            allow_patterns=[*manifest["files"], artifact.MANIFEST],
            commit_message="A model of voken",
        )
    return address


def pull(name: str, folder: Path, *, revision: str | None = None) -> None:
    """Fetch a model from the hub into `folder`, which must not exist. `revision` is a branch, a tag or a commit.

    An interrupted download continues. Raises `ArtifactError` if the hub does not provide it or if it is no intact model
    of voken; then there is no `folder`.
    """
    from huggingface_hub import snapshot_download

    folder = Path(folder)
    _check_name(name)
    if folder.exists():
        raise ArtifactError(f"{folder}: already exists. Remove it or choose another folder.")
    partial = folder.with_name(f".{folder.name}.download")
    with artifact.storage_errors(folder):
        partial.mkdir(parents=True, exist_ok=True)
        with _hub_errors(name):
            snapshot_download(name, revision=revision, local_dir=partial, allow_patterns=list(_KINDS))
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # what the client notes down
        try:
            artifact.check(partial, kind=KIND, version=VERSION)
        except ArtifactError as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = str(error).replace(str(partial), name)
            raise ArtifactError(f"{name}: holds no intact model of voken ({reason})") from error
        partial.rename(folder)


def model_card(folder: Path, name: str = "", licence: str = "") -> str:
    """A description of a saved model in Markdown, with the hub's heading. Raises `CorruptArtifactError`."""
    description = artifact.read_json(Path(folder) / "config.json")
    run, validation = description.get("run", {}), description.get("validation", {})
    encoder, tokenizer, generator = (run.get(part, {}) for part in ("encoder", "tokenizer", "generator"))
    title = name.rpartition("/")[2] or Path(folder).name
    heading = ["library_name: voken", "tags: [text-to-image-retrieval, image-feature-extraction, voken]"]
    if licence:
        heading.append(f"license: {licence}")
    parts = [
        "---\n" + "\n".join(heading) + "\n---",
        f"# {title}",
        "A model of voken, which searches pictures by text: it writes every "
        "picture as a short sequence of visual tokens, and a query as the sequences of the pictures that answer it.",
        "## Use\n"
        f"```\nvoken pull {name or 'NAME'} --out {title}.model\n"
        f"voken index photos/ --model {title}.model --out photos.voken\n"
        'voken search photos.voken "two dogs on a beach"\n```',
        "## What it is\n" + _settings_table(encoder, tokenizer, generator, run),
        "## Training data\n" + _data(validation),
        "## Figures\n" + _figures(validation),
        "## Limits\n"
        "It knows what its encoder and its training pictures show, in the words of their captions. It answers every "
        "query with whatever lies nearest, right or not. Nobody has examined it for bias against people.",
        f"## Licence\n{licence or 'Not stated: ask whoever sent this model'}. The encoder's weights have a licence of "
        "their own.",
    ]
    return "\n\n".join(parts) + "\n"


def _settings_table(
    encoder: dict[str, Any], tokenizer: dict[str, Any], generator: dict[str, Any], run: dict[str, Any]
) -> str:
    shape = f"{tokenizer.get('levels')} vokens of {tokenizer.get('codebook_size')}"
    rows = [
        ("encoder", encoder.get("checkpoint") or encoder.get("family")),
        ("a picture", shape),
        ("generator", " ".join(filter(None, (str(generator.get("family")), generator.get("checkpoint"))))),
        ("preset", run.get("name")),
        ("protocol", run.get("protocol")),
        ("seed", run.get("seed")),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {_cell(value)} |" for what, value in rows)])


def _data(validation: dict[str, Any]) -> str:
    counts = validation.get("pictures", {})
    if not counts:
        return "Not recorded."
    if "fitted" in counts:
        return f"None was trained on. The codebooks were fitted on {counts['fitted']:,} pictures, without captions."
    known = ", ".join(f"{count:,} {_cell(side)}" for side, count in counts.items())
    return f"Captioned pictures: {known}. Which ones, the model does not record."


def _figures(validation: dict[str, Any]) -> str:
    report = validation.get("tokenizer", {}).get("report", {})
    lines = []
    if "collision_rate" in report:
        lines.append(f"- pictures that share their sequence, on validation: {100 * report['collision_rate']:.1f} %")
    recall = report.get("recall") or ()
    lines += [
        f"- R@{row['cut']} on validation by exact search: {row['exact']:.1f} % with vectors, {row['quantized']:.1f} % "
        "with what the vokens stand for"
        for row in recall
    ]
    return "\n".join(lines) or "None were measured."


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _check_name(name: str) -> None:
    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"{name}: is no name on the hub. Write USER/MODEL.")


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Raise `ArtifactError` for whatever the hub's client raises."""
    try:
        yield
    except Exception as error:  # of the hub's client or of its client for HTTP, whichever it is
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(
            f"{name}: the hub refused or cannot be reached ({reason}). Check the name, the network, and for a private "
            "model the login (hf auth login)."
        ) from error
