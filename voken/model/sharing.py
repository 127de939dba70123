"""Models on the Hugging Face hub: a model folder as a repository, with a card that says what it is.

    push(Path("flickr.model"), "somebody/flickr")          # creates the repository, or adds a version
    pull("somebody/flickr", Path("flickr.model"))          # complete and checked, or absent

Only the files of the model's manifest are sent, and only files of such kinds are fetched: JSON, safetensors, ONNX, the
texts of tokenizers and an array of codebooks. Nothing that is fetched is ever unpickled, and every checksum is compared
before the folder gets its name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from voken import artifact
from voken.errors import ArtifactError, ConfigError
from voken.model.compiled import KIND, VERSION

CARD = "README.md"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
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


def push(folder: Path, name: str, *, licence: str = "", data: str = "", private: bool = False) -> str:
    """Send a saved model and its card to the hub as `name` ("user/model"). Returns its address.

    `licence` and `data`, which says what the model was trained on, are for the card. The hub's client takes the user's
    token from its login or from HF_TOKEN. Raises `ArtifactError` if there is no
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
            path_or_fileobj=model_card(folder, name, licence, data).encode(),
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


def model_card(folder: Path, name: str = "", licence: str = "", data: str = "") -> str:
    """A description of a saved model in Markdown, with the hub's heading. Raises `CorruptArtifactError`.

    `licence` is the model's, as the hub names it; `data` says what the model was trained on, which it does not record:
    a name on the hub, or a sentence.
    """
    description = artifact.read_json(Path(folder) / "config.json")
    run, validation = description.get("run", {}), description.get("validation", {})
    encoder = run.get("encoder", {})
    title = name.rpartition("/")[2] or Path(folder).name
    heading = ["library_name: voken", "tags: [text-to-image-retrieval, image-feature-extraction, voken]"]
    if licence:
        heading.append(f"license: {json.dumps(licence)}")
    if _HUB_NAME.fullmatch(data):
        heading.append(f"datasets: [{data}]")
    if _HUB_NAME.fullmatch(encoder.get("checkpoint") or ""):
        heading.append(f"base_model: {encoder['checkpoint']}")
    parts = [
        "---\n" + "\n".join(heading) + "\n---",
        f"# {title}",
        "A model of voken, which searches pictures by text: it writes every picture as a short sequence of visual "
        "tokens, and a query as the sequences of the pictures that answer it.",
        "## Use\n"
        f"```\nvoken pull {name or 'NAME'} --out {title}.model\n"
        f"voken index photos/ --model {title}.model --out photos.voken\n"
        'voken search photos.voken "two dogs on a beach"\n```',
        "## What it is\n" + _settings_table(description, _bytes(folder)),
        "## Training data\n" + _data(validation, data),
        "## Figures\n" + _figures(description),
        "## Limits\n" + _limits(description),
        f"## Licence\n{licence or 'Not stated: ask whoever sent this model'}. {_encoder_licence(encoder)}",
        "## Every setting\n<details><summary>as voken fit read them</summary>\n\n```json\n"
        f"{json.dumps(run, indent=1)}\n```\n</details>",
    ]
    return "\n\n".join(parts) + "\n"


def _settings_table(description: dict[str, Any], size: int) -> str:
    run = description.get("run", {})
    encoder, tokenizer, generator = (run.get(part, {}) for part in ("encoder", "tokenizer", "generator"))
    levels, entries = tokenizer.get("levels"), tokenizer.get("codebook_size")
    bits = description.get("validation", {}).get("tokenizer", {}).get("report", {}).get("bits")
    is_trained = description.get("validation", {}).get("generator", {}).get("best", -1) >= 0
    rows = [
        ("encoder", _encoder_name(encoder)),
        ("a picture", f"{levels} vokens of {entries}{f', {bits:.0f} bits' if bits else ''}"),
        ("generator", " ".join(filter(None, (str(generator.get("family")), generator.get("checkpoint"))))),
        ("the generator was", "trained" if is_trained else "not trained: it is quantized search over the codebooks"),
        ("beams", description.get("search", {}).get("beams")),
        ("preset", run.get("name")),
        ("protocol", run.get("protocol")),
        ("seed", run.get("seed")),
        ("size", f"{size / 1e6:,.0f} MB"),
        ("saved by", f"voken {version('voken-search')}"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {_cell(value)} |" for what, value in rows)])


def _encoder_name(encoder: dict[str, Any]) -> str:
    family = str(encoder.get("family"))
    if family not in ("builtin", "photos"):
        return f"{family}, {encoder.get('checkpoint')}"
    networks = ", ".join(f"EfficientNet-{str(name).capitalize()}" for name in encoder.get("networks") or ("lite0",))
    head = "towers trained on the captions" if family == "builtin" else "not trained, ImageNet's classes and words"
    return f"{family}: {networks}, MiniLM; {head}"


def _encoder_licence(encoder: dict[str, Any]) -> str:
    if encoder.get("family") in ("builtin", "photos"):
        return "The weights of EfficientNet-Lite and of all-MiniLM-L6-v2 have licences of their own."
    return f"The weights of {encoder.get('checkpoint') or 'the encoder'} have a licence of their own."


def _data(validation: dict[str, Any], data: str) -> str:
    counts = validation.get("pictures", {})
    named = f"{data.rstrip('.')}. " if data else ""
    if not counts:
        return named or "Not recorded."
    if "fitted" in counts:
        fitted = f"The codebooks were fitted on {counts['fitted']:,} pictures, without captions."
        return f"{named}None was trained on. {fitted}"
    known = ", ".join(f"{count:,} {_cell(side)}" for side, count in counts.items())
    return f"{named}Captioned pictures: {known}." + ("" if data else " Which ones, the model does not record.")


def _figures(description: dict[str, Any]) -> str:
    validation, search = description.get("validation", {}), description.get("search", {})
    report = validation.get("tokenizer", {}).get("report", {})
    lines = []
    for label, name in (("with vokens alone", "voken"), ("with a stored vector per picture", "vector")):
        by_weight = validation.get("search", {}).get(name) or {}
        weight = search.get(f"{name}_weight")
        recall = by_weight.get(f"{weight:g}") if isinstance(weight, int | float) else None
        if recall is not None:
            lines.append(f"- mean of R@1, R@5 and R@10 on validation, {label}: {100 * recall:.1f} %")
    for name, figures in (validation.get("calibration") or {}).items():
        if "first_hit_right" in figures and name in ("generate", "vector"):
            right, promised = 100 * figures["first_hit_right"], 100 * figures["first_hit_confidence"]
            lines.append(
                f"- confidence ({name}), where half of the validation queries have no right picture in the pool: the "
                f"first hit is right for {right:.1f} %, and its confidence is {promised:.1f} % on average"
            )
    if "collision_rate" in report:
        lines.append(f"- pictures that share their sequence, on validation: {100 * report['collision_rate']:.1f} %")
    lines += [
        f"- R@{row['cut']} on validation by exact search: {row['exact']:.1f} % with vectors, {row['quantized']:.1f} % "
        "with what the vokens stand for"
        for row in report.get("recall") or ()
    ]
    chosen = "\n\nWeights were chosen on the same validation pictures, so other pictures may be answered less well."
    return "\n".join(lines) + chosen if lines else "None were measured."


def _limits(description: dict[str, Any]) -> str:
    run, validation = description.get("run", {}), description.get("validation", {})
    lines = [
        "- It knows what its encoder and its training pictures show, in the words of their captions.",
        "- It answers every query with whatever lies nearest, right or not"
        + ("; a threshold on the confidence leaves out poor answers." if validation.get("calibration") else "."),
        "- Nobody has examined it for bias against people. Do not use it to identify or judge them.",
    ]
    if run.get("encoder", {}).get("family") in ("builtin", "photos"):
        lines.insert(1, "- Its text encoder reads English. Its picture networks learned ImageNet's thousand classes.")
    lines += [f"- {_cell(warning)}" for warning in validation.get("tokenizer", {}).get("warnings") or ()]
    return "\n".join(lines)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


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
