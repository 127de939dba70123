"""A trained model without torch: the engine in a model folder, for queries and, with CLIP or SigLIP, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken import artifact
from voken.config import ReadOutWeights, SearchConfig, from_dict
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError
from voken.inference.engine import HEADER, PICTURES_HEADER, Engine
from voken.model.calibration import Calibration
from voken.shapes import Float32

if TYPE_CHECKING:
    from voken.inference.pictures import EngineTokenizer, PictureGraph

KIND, VERSION = "model", 1
"""Kind and version of a model folder (see `voken.model.model`)."""
FOLDER = "engine"
"""The folder of the engine in a model folder. A model's fingerprint leaves it out, because it is derived from the other
folders: an engine of another precision searches the same collections."""


@dataclass(frozen=True)
class CompiledModel:
    """A model with the parts that `voken.search.searcher.Searcher` needs."""

    generator: Engine
    tokenizer: Engine
    """The same engine: it also rebuilds vectors from vokens."""
    search: SearchConfig
    fingerprint: str
    weights: ReadOutWeights = field(default_factory=ReadOutWeights)
    calibration: Calibration | None = None
    prior_captions: tuple[str, ...] = ()
    """See `voken.model.model.Model.prior_captions`."""

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0, once: bool = False) -> Self:
        """Open the engine of a model folder. With `once`, the process answers a single query.

        Checks the sizes of files, but not their checksums (`voken.model.model.Model.load` checks both).
        Raises `ArtifactError` if there is no model or it has no engine, `CorruptArtifactError` for damaged files.
        """
        folder = Path(folder)
        artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        if not is_compiled(folder):
            raise ArtifactError(f"{folder}: has no engine. Create it with: voken compile {folder}")
        description = artifact.read_json(folder / "config.json")
        try:
            search, weights, calibration = search_from_dict(description["search"])
            captions = prior_captions_from(description)
        except (AttributeError, KeyError, TypeError, ConfigError) as error:
            raise CorruptArtifactError(f"{folder / 'config.json'}: does not describe a model ({error}).") from error
        engine = Engine.load(folder / FOLDER, threads=threads, once=once)
        fingerprint = artifact.contents_digest(folder, without=FOLDER)
        return cls(engine, engine, search, fingerprint, weights, calibration, captions)

    @property
    def codebooks(self) -> Float32[np.ndarray, "M N e"] | None:
        """See `voken.model.model.Model.codebooks`."""
        return self.generator.codebooks

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float32[np.ndarray, "texts dim"]:
        """See `voken.model.model.Model.query_vectors`."""
        return self.generator.query_vectors(texts, state)


@dataclass(frozen=True)
class CompiledPictureSide:
    """The part of a model that encodes pictures, as `voken.model.model.PictureSide`, from its engine."""

    encoder: PictureGraph
    tokenizer: EngineTokenizer
    fingerprint: str

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Self:
        """Open the picture side of a model folder. Checks the sizes of files, but not their checksums.

        Raises `ArtifactError` if there is no model, `CorruptArtifactError` for damaged files.
        """
        from voken.inference.pictures import EngineTokenizer, PictureGraph

        folder = Path(folder)
        artifact.check(folder, kind=KIND, version=VERSION, checksums=False)
        fingerprint = artifact.contents_digest(folder, without=FOLDER)
        encoder = PictureGraph.load(folder / FOLDER, threads=threads)
        return cls(encoder, EngineTokenizer.load(folder / FOLDER, threads=threads), fingerprint)


def search_from_dict(values: dict[str, Any]) -> tuple[SearchConfig, ReadOutWeights, Calibration | None]:
    """The inverse of `voken.model.model.search_to_dict`. Raises `ConfigError` for values that it cannot write."""
    chosen_in_training = ("voken_weight", "vector_weight", "norm_weight", "prior_weight", "calibration")
    settings = {name: value for name, value in values.items() if name not in chosen_in_training}
    weights = {name: values.get(f"{name}_weight") for name in ("voken", "vector", "norm", "prior")}
    calibration = values.get("calibration")
    return (
        from_dict(SearchConfig, settings),
        from_dict(ReadOutWeights, weights),
        None if calibration is None else from_dict(Calibration, calibration),
    )


def prior_captions_from(description: dict[str, Any]) -> tuple[str, ...]:
    """The captions in a model's config.json with which its prior is measured. Raises `ConfigError`."""
    captions = description.get("prior_captions", [])
    if not (isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)):
        raise ConfigError("prior_captions is not a list of texts.")
    return tuple(captions)


def is_compiled(folder: Path) -> bool:
    """Whether a model folder has an engine."""
    return (Path(folder) / FOLDER / HEADER).is_file()


def encodes_pictures(folder: Path) -> bool:
    """Whether a model folder has an engine that encodes pictures."""
    return is_compiled(folder) and (Path(folder) / FOLDER / PICTURES_HEADER).is_file()
