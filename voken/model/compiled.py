"""A trained model as a search needs it, without torch: the engine in a model's folder, and how it is best searched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from voken import artifact
from voken.config import SearchConfig, from_dict
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError
from voken.inference.engine import HEADER, Engine
from voken.shapes import Float32

KIND, VERSION = "model", 1
"""Of a model's folder (see `voken.model.model`)."""
FOLDER = "engine"
"""Where in a model's folder its engine lies."""


@dataclass(frozen=True)
class CompiledModel:
    """What `voken.search.searcher.Searcher` asks of a model."""

    generator: Engine
    tokenizer: Engine
    """The same engine: it also rebuilds vectors from vokens."""
    search: SearchConfig
    fingerprint: str

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0, once: bool = False) -> Self:
        """Open the engine of a model's folder; `once` is for a process that asks one query.

        Sizes are checked, checksums are not (`voken.model.model.Model.load` does that).
        Raises `ArtifactError` if there is no model or it has no engine, `CorruptArtifactError` for damaged files.
        """
        folder = Path(folder)
        artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        if not is_compiled(folder):
            raise ArtifactError(f"{folder}: has no engine. Make it with: voken compile {folder}")
        described = artifact.read_json(folder / "config.json")
        try:
            search = from_dict(SearchConfig, described["search"])
        except (KeyError, ConfigError) as error:
            raise CorruptArtifactError(f"{folder / 'config.json'}: does not describe a model ({error}).") from error
        engine = Engine.load(folder / FOLDER, threads=threads, once=once)
        return cls(engine, engine, search, fingerprint(folder))

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float32[np.ndarray, "texts dim"]:
        """As `voken.model.model.Model.query_vectors`."""
        return self.generator.query_vectors(texts, state)


def is_compiled(folder: Path) -> bool:
    """Whether a model's folder has an engine."""
    return (Path(folder) / FOLDER / HEADER).is_file()


def fingerprint(folder: Path) -> str:
    """Hexadecimal; of the files that decide which vokens a picture has and which are written for a query.

    The engine is made from them and does not count: another precision searches the same collections.
    """
    files = artifact.read_json(Path(folder) / artifact.MANIFEST)["files"]
    counted = {name: entry["sha256"] for name, entry in files.items() if "/" in name and not name.startswith(FOLDER)}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:32]
