"""CLIP and SigLIP checkpoints of the Hugging Face hub: fetched once, with progress, resumed, and verified.

They lie in the hub's own cache, where other programs find them too. Only what is needed is fetched: settings, tokenizer
and weights as safetensors. The weights come last, so that a cache with weights is complete.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voken.artifact import read_json
from voken.config import user_cache
from voken.errors import ArtifactError
from voken.progress import Progress, no_progress

SMALL_CLIP = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
"""The encoder that `auto` takes: CLIP ViT-B/32, trained on LAION-2B by LAION (MIT licence)."""
SMALL_CLIP_SIZE = "about 600 MB"
_HUB_SECONDS = 5.0
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_INDEX = "model.safetensors.index.json"
_OTHERS = frozenset(
    "config.json preprocessor_config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.json "
    f"merges.txt spiece.model tokenizer.model added_tokens.json {_INDEX}".split()
)
_MEGABYTE = 1 << 20


class UnconvertedError(ArtifactError):
    """The hub's main branch of a checkpoint has only pickled weights."""


@dataclass(frozen=True)
class EncoderChoice:
    """The encoder that `auto` stands for."""

    name: str
    """As a user would write it: a hub name, or photos."""
    reason: str = ""
    """Why it is not CLIP; "" if it is."""


def auto_encoder(progress: Progress = no_progress) -> EncoderChoice:
    """A small CLIP, which is fetched now if it is not here yet, or the built-in encoder if that is impossible."""
    try:
        fetched(SMALL_CLIP, progress)
    except ArtifactError as error:
        return EncoderChoice("photos", str(error))
    return EncoderChoice(SMALL_CLIP)


def cached(name: str) -> Path | None:
    """The folder of a checkpoint in the hub's cache; None if it is not there, or not all of it. Asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return folder if _is_complete(folder) else None


def silence(name: str) -> str:
    """Why the hub does not offer a checkpoint; "" if it does."""
    try:
        _files(name)
    except ArtifactError as error:
        return str(error)
    return ""


def fetched(name: str, progress: Progress = no_progress) -> Path:
    """The folder of a checkpoint of the hub: from the cache, or else downloaded and verified.

    An interrupted download continues. Raises `ArtifactError` if the hub does not provide it, if it has no weights as
    safetensors, or if a file is not what the hub says.
    """
    folder = cached(name)
    if folder is not None:
        return folder
    from huggingface_hub import hf_hub_download

    path = Path()
    for file in _files(name):
        try:
            path = Path(hf_hub_download(name, file.rfilename, tqdm_class=_reporter(progress, file.rfilename)))
        except Exception as error:  # of the hub's client or of its client for HTTP, whichever it is
            raise ArtifactError(
                f"{name}: {file.rfilename} was not fetched ({_first_line(error)}). Run the same command again to "
                "continue, or give a folder that holds the model."
            ) from error
        _verify(name, path, file)
    if not _is_complete(path.parent):
        raise ArtifactError(f"{name}: lacks settings or weights as safetensors. Give another checkpoint, or a folder.")
    return path.parent


def answer() -> str:
    """What the user answered when asked for an encoder: "auto", "photos", or "" if nobody asked yet."""
    try:
        text = _answer_file().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return text if text in ("auto", "photos") else ""


def remember(name: str) -> None:
    """Remember an answer, so that nobody asks again. A disk that refuses is no error."""
    path = _answer_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name + "\n", encoding="utf-8")
    except OSError:
        pass


def _answer_file() -> Path:
    return user_cache("encoder")


def _files(name: str) -> list[Any]:
    """The hub's descriptions of the files of a checkpoint that are needed, the weights last."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=_HUB_SECONDS)
    except Exception as error:  # of the client for HTTP, whichever it is, or of the offline mode
        raise ArtifactError(
            f"{name}: The hub did not provide it ({_first_line(error)}). Check the name and the network, or give a "
            "folder that holds the model."
        ) from error
    files = list(info.siblings or [])
    weights = [file for file in files if _WEIGHTS.fullmatch(file.rfilename)]
    if not weights:
        raise UnconvertedError(
            f"{name}: has no weights as safetensors, and voken reads no others. Give another checkpoint, such as "
            f"{SMALL_CLIP}."
        )
    return [*(file for file in files if file.rfilename in _OTHERS), *weights]


def _is_complete(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    wanted = {"config.json", "preprocessor_config.json"}
    if _INDEX in names:
        shards = read_json(folder / _INDEX).get("weight_map", {})
        wanted |= {str(shard) for shard in shards.values()} if isinstance(shards, dict) else set()
    elif not any(_WEIGHTS.fullmatch(name) for name in names):
        return False
    return wanted <= names


def _verify(name: str, path: Path, file: Any) -> None:
    """Compare a file with the digest that the hub gives for large ones, and else with its size."""
    digest = (getattr(file.lfs, "sha256", "") or "") if file.lfs else ""
    if digest:
        with open(path, "rb") as content:
            right = hashlib.file_digest(content, "sha256").hexdigest() == digest
    else:
        right = file.size is None or path.stat().st_size == file.size
    if not right:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ArtifactError(f"{name}: {file.rfilename} arrived damaged, and was deleted. Run the same command again.")


def _reporter(progress: Progress, file: str) -> Any:
    """A class of progress bars, as the hub's client wants one, that reports megabytes."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Reporter(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*arguments, **{**options, "disable": True})
            self._completed, self._all = int(options.get("initial") or 0), int(options.get("total") or 0)

        def update(self, n: float | None = 1) -> None:
            self._completed += int(n or 0)
            progress(f"{file}: MB", self._completed // _MEGABYTE, max(1, self._all // _MEGABYTE))

    return Reporter


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
