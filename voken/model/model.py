"""A trained model: encoder, image tokenizer, generator and search settings, saved as one folder.

MODEL/
  config.json        every setting of the run, the rerank weights, the results on validation
  encoder/           what `load_encoder` reads
  image_tokenizer/   config.json, model.safetensors
  generator/         the files of the generator's family
  engine/            the same model for searches without torch (see `voken.inference.export`), if it has graphs
  manifest.json      format, version and a checksum of every file, written last
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.functional import normalize

from voken import artifact
from voken.config import ReadOutWeights, RunConfig, SearchConfig, user_cache
from voken.encoders.clip import HubEncoder
from voken.encoders.interface import Encoder
from voken.encoders.text_reader import TextReader
from voken.encoders.two_tower import TwoTowerEncoder
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.errors import ArtifactError, ArtifactVersionError, ConfigError, CorruptArtifactError, StorageError
from voken.generator.interface import Generator
from voken.generator.lite import LiteGenerator
from voken.generator.llama import LlamaGenerator, Lora
from voken.generator.t5 import T5Generator
from voken.image_tokenizer.model import ImageTokenizer
from voken.inference.export import (
    ExportedEncoder,
    GeneratorGraphs,
    export_generator,
    lite_graphs,
    llama_graphs,
    t5_graphs,
)
from voken.model.calibration import Calibration
from voken.model.compiled import FOLDER, KIND, VERSION, prior_captions_from, search_from_dict
from voken.shapes import Float

_WIDTHS = {"dim", "codebook_size", "levels", "code_dim", "width", "image_features", "text_features"}
"""Settings that are the side of a matrix of weights."""


@dataclass(frozen=True)
class PictureSide:
    """The part of a model that encodes pictures, which is all that indexing needs."""

    encoder: Encoder
    tokenizer: ImageTokenizer
    fingerprint: str
    """See `Model.fingerprint`."""

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Load it from a model folder, after checking every checksum. `device` None is the CPU.

        Raises `ArtifactError` if there is no model, `CorruptArtifactError` if a byte differs.
        """
        folder = Path(folder)
        artifact.check(folder, kind=KIND, version=VERSION)
        with _unreadable(folder):
            for part in ("encoder", "image_tokenizer"):
                _check_sizes(folder / part)
            encoder = load_encoder(folder / "encoder", device=str(device or "cpu"))
            tokenizer = ImageTokenizer.load(folder / "image_tokenizer").to(device or "cpu")
        return cls(encoder, tokenizer, artifact.contents_digest(folder, without=FOLDER))


@dataclass(frozen=True)
class Model:
    """A whole model in torch, for pictures and for queries."""

    config: RunConfig
    """The settings of its training."""
    encoder: Encoder
    tokenizer: ImageTokenizer
    generator: Generator
    search: SearchConfig
    """The search settings that are used unless a caller passes others."""
    validation: dict[str, Any]
    """What training did and its results on validation, ready for JSON."""
    weights: ReadOutWeights = field(default_factory=ReadOutWeights)
    """Weights of the read-outs, chosen on validation."""
    calibration: Calibration | None = None
    """How likely a hit is right; None if the validation set was too small to measure it."""
    prior_captions: tuple[str, ...] = ()
    """Training captions with which a search measures the generator's prior; none if its weight is 0."""
    fingerprint: str = ""
    """A hexadecimal digest of the saved files; empty until the model is saved."""

    @property
    def has_query_point(self) -> bool:
        """Whether the generator maps each query to a point in the pictures' space, near which its picture lies."""
        return self.generator.has_query_point and not self.tokenizer.config.layers

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"] | None:
        """The entries that sum to the vectors of pictures; None if the tokenizer's layers come in between."""
        return None if self.tokenizer.config.layers else self.tokenizer.codebooks

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space. Read-outs compare them with the pictures' vectors.

        If the model `has_query_point`, the vector is that point, read from `state` (the generator's `prefill` of the
        texts) if there is one. Otherwise it is the encoder's vector of the text.
        """
        if self.has_query_point:
            state = self.generator.prefill(texts) if state is None else state
            return normalize(state.query_point.float(), dim=1).cpu().numpy()
        return self.encoder.encode_texts(texts)

    def save(self, folder: Path, *, replace: bool = False) -> Self:
        """Write the folder, complete or not at all, and return the model with its fingerprint.

        Raises `ArtifactError` if something exists there that may not be replaced, `StorageError` if the disk fails.
        """
        family = FAMILIES[self.generator.family]
        parts = (("encoder", self.encoder), ("image_tokenizer", self.tokenizer), ("generator", self.generator))
        with artifact.writing(folder, kind=KIND, version=VERSION, replace=replace) as partial:
            for name, part in parts:
                (partial / name).mkdir()
                try:
                    part.save(partial / name)
                except SafetensorError as error:  # it is no OSError, whatever the disk says
                    raise StorageError(
                        f"{folder}: cannot be written ({error}). Free some space or correct the permissions, and run "
                        "the same command again."
                    ) from error
            description = {
                "run": self.config.to_dict(),
                "search": search_to_dict(self.search, self.weights, self.calibration),
                "validation": self.validation,
                "prior_captions": list(self.prior_captions),
            }
            artifact.write_json(partial / "config.json", description)
            if family.can_export(self.encoder):
                export_generator(
                    self.generator,
                    family.graphs,
                    partial / FOLDER,
                    precision=self.search.precision,
                    encoder=self.encoder,
                    tokenizer=self.tokenizer,
                )
        return dataclasses.replace(self, fingerprint=artifact.contents_digest(folder, without=FOLDER))

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote, after checking every checksum. `device` None is the CPU.

        Raises `ArtifactError` if there is no model, `CorruptArtifactError` if a byte differs.
        """
        folder = Path(folder)
        pictures = PictureSide.load(folder, device=device)
        description = artifact.read_json(folder / "config.json")
        try:
            config = RunConfig.from_dict(description["run"])
            search, weights, calibration = search_from_dict(description["search"])
            captions = prior_captions_from(description)
            validation = description["validation"]
        except (AttributeError, KeyError, TypeError, ConfigError) as error:
            raise CorruptArtifactError(f"{folder / 'config.json'}: does not describe a model ({error}).") from error
        with _unreadable(folder):
            _check_sizes(folder / "generator")
            generator = FAMILIES[config.generator.family].load(folder / "generator", pictures.encoder)
        generator.to(device or "cpu")
        parts = (config, pictures.encoder, pictures.tokenizer, generator)
        return cls(*parts, search, validation, weights, calibration, captions, pictures.fingerprint)

    @classmethod
    def from_pretrained(cls, name: str, *, revision: str | None = None, device: str | None = None) -> Self:
        """Load a model from a folder, or from the hub by name ("user/model"), which is fetched once.

        Models from the hub are kept in the user's cache. Raises what `load` and `voken.model.sharing.pull` raise.
        """
        if artifact.is_artifact(Path(name)):
            return cls.load(Path(name), device=device)
        from voken.model.sharing import pull

        folder = user_cache("models") / (name if revision is None else f"{name}@{revision.replace('/', '-')}")
        if not artifact.is_artifact(folder):
            pull(name, folder, revision=revision)
        return cls.load(folder, device=device)

    def push_to_hub(self, name: str, *, licence: str = "", data: str = "", private: bool = False) -> str:
        """Send the model and a card to the hub as `name`. Returns its address; see `voken.model.sharing.push`."""
        from tempfile import TemporaryDirectory

        from voken.model.sharing import push

        with TemporaryDirectory(prefix="voken-") as folder:
            self.save(Path(folder) / "model")
            return push(Path(folder) / "model", name, licence=licence, data=data, private=private)


@contextmanager
def _unreadable(folder: Path) -> Iterator[None]:
    """Raise `CorruptArtifactError` for whatever settings and weights that do not fit each other make torch raise."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptArtifactError(f"{folder}: cannot be read ({reason}). Restore it from a copy.") from error
    except ConfigError as error:
        raise CorruptArtifactError(f"{folder}: cannot be read ({error}) Restore it from a copy.") from error


def _check_sizes(part: Path) -> None:
    """Raise `CorruptArtifactError` if a part's settings describe more weights than its files can hold.

    A settings file of a few bytes must not fill the memory.
    """
    path = part / "config.json"
    settings = artifact.read_json(path) if path.exists() else {}
    room = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
    for name, value in settings.items():
        if name in _WIDTHS and isinstance(value, int) and value > room:
            raise CorruptArtifactError(f"{path}: {name} is {value}, more than its weights. Restore it from a copy.")
    # without layers, a tokenizer's entries are as wide as its vectors
    entries, width = settings.get("codebook_size"), settings.get("code_dim" if settings.get("layers") else "dim")
    if isinstance(entries, int) and isinstance(width, int) and entries * width > room:
        raise CorruptArtifactError(
            f"{path}: a codebook of {entries} × {width} is more than its weights. Restore it from a copy."
        )


def search_to_dict(search: SearchConfig, weights: ReadOutWeights, calibration: Calibration | None) -> dict[str, Any]:
    """The entry "search" of a model's config.json, in which the chosen weights are among the settings."""
    used = search.weights(weights)
    return dataclasses.asdict(search) | {
        "voken_weight": used.voken,
        "vector_weight": used.vector,
        "norm_weight": used.norm,
        "prior_weight": used.prior,
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
    }


@dataclass(frozen=True)
class GeneratorFamily:
    """How to create, load and export generators of one family. Each generator has its `save`."""

    start: Callable[[RunConfig, Float[np.ndarray, "levels N code_dim"], Encoder], Generator]
    """Create an untrained generator from settings, the image tokenizer's codebooks and the model's encoder."""
    load: Callable[[Path, Encoder], Generator]
    """Load what `Generator.save` wrote, on the CPU."""
    graphs: Callable[[Any, Encoder | None], GeneratorGraphs]
    """The graphs of the generator's engine."""
    reads_with_encoder: bool = False
    """Whether it reads queries with the model's encoder, not with a checkpoint's tokenizer."""

    def can_export(self, encoder: Encoder) -> bool:
        """Whether a generator of this family can be exported from a model with `encoder`."""
        return not self.reads_with_encoder or isinstance(encoder, ExportedEncoder)


def _start_t5(config: RunConfig, codebooks: Float[np.ndarray, "levels N code_dim"], encoder: Encoder) -> Generator:
    options = _checkpoint_options(config)
    return T5Generator.from_pretrained(_checkpoint(config), codebooks, dropout=config.generator.dropout, **options)


def _start_llama(config: RunConfig, codebooks: Float[np.ndarray, "levels N code_dim"], encoder: Encoder) -> Generator:
    checkpoint = Path(_checkpoint(config))
    is_file = checkpoint.suffix == ".gguf"
    return LlamaGenerator.from_pretrained(
        str(checkpoint.parent if is_file else checkpoint),
        codebooks,
        lora=Lora(rank=config.generator.lora_rank),
        gguf_file=checkpoint.name if is_file else None,
        **_checkpoint_options(config),
    )


def _checkpoint_options(config: RunConfig) -> dict[str, Any]:
    """The options of the families that start from a checkpoint."""
    return {
        "shared": config.tokenizer.shared_codebook,
        "copy_embeddings": config.generator.copy_voken_embeddings,
        "seed": config.seed,
        "max_query_tokens": config.generator.max_query_tokens,
    }


def _checkpoint(config: RunConfig) -> str:
    if not config.generator.checkpoint:
        raise ConfigError(
            f"generator.family {config.generator.family} starts from a checkpoint. Set generator.checkpoint to a "
            "hub name (such as t5-base) or to a folder."
        )
    return config.generator.checkpoint


FAMILIES = {
    "lite": GeneratorFamily(
        lambda config, codebooks, encoder: LiteGenerator(text_reader(encoder), codebooks, config.generator),
        lambda folder, encoder: LiteGenerator.load(folder, text_reader(encoder)),
        lite_graphs,
        reads_with_encoder=True,
    ),
    "t5": GeneratorFamily(_start_t5, lambda folder, encoder: T5Generator.load(folder), t5_graphs),
    "llama": GeneratorFamily(_start_llama, lambda folder, encoder: LlamaGenerator.load(folder), llama_graphs),
}
"""Every family of generators, by `GeneratorConfig.family`."""
_ENCODERS: dict[str, Callable[..., Encoder]] = {
    "builtin": TwoTowerEncoder.load,
    "photos": ZeroShotEncoder.load,
    "clip": HubEncoder.load,
    "siglip": HubEncoder.load,
}


def load_encoder(folder: Path, *, device: str | None = None) -> Encoder:
    """Read an encoder of any family from the folder that its `save` wrote.

    Raises `ArtifactError` if there is none, `CorruptArtifactError` if its description cannot be read,
    `ArtifactVersionError` for a family that this voken does not know.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ArtifactError(f"{folder}: no saved encoder there (it has no config.json).")
    family = artifact.read_json(folder / "config.json").get("family")
    if family not in _ENCODERS:
        raise ArtifactVersionError(f"{folder}: holds an encoder of the unknown family {family!r}. Upgrade voken.")
    return _ENCODERS[family](folder, device=device)


def text_reader(encoder: Encoder) -> TextReader:
    """The encoder as the `TextReader` that `lite` needs. Raises `ConfigError` if it gives no token states."""
    if not isinstance(encoder, TextReader):
        raise ConfigError(f"The encoder {encoder.name} gives no token states, so lite cannot read with it. Use t5.")
    return encoder
