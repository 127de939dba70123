"""A trained model: encoder, image tokenizer, generator and the weights of the read-outs, saved as one folder.

MODEL/
  config.json        every setting of the run, the rerank weights, what validation said
  encoder/           what `voken.encoders.load_encoder` reads
  image_tokenizer/   config.json, model.safetensors
  generator/         the generator's own files
  engine/            the same for a search without torch (see `voken.inference.export`), where there are graphs for it
  manifest.json      format, version and a checksum of every file, written last
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.nn.functional import normalize

from voken import artifact
from voken.config import RunConfig, SearchConfig, from_dict
from voken.encoders import Encoder, load_encoder
from voken.encoders.text_reader import TextReader
from voken.errors import ConfigError, CorruptArtifactError
from voken.generator.interface import Generator
from voken.generator.lite import LiteGenerator
from voken.generator.llama import LlamaStepModel
from voken.generator.t5 import T5StepModel
from voken.image_tokenizer.model import ImageTokenizer
from voken.inference.export import can_export, export_generator
from voken.model.compiled import FOLDER, KIND, VERSION, fingerprint
from voken.shapes import Float


@dataclass(frozen=True)
class Model:
    """Everything that pictures and queries go through, in torch."""

    config: RunConfig
    """The settings it was trained with."""
    encoder: Encoder
    tokenizer: ImageTokenizer
    generator: Generator
    search: SearchConfig
    """How it is best searched: the weights of the two reranks are those chosen on validation."""
    validation: dict[str, Any]
    """What training did and what validation said, ready for JSON."""
    fingerprint: str = ""
    """Hexadecimal; of the saved files. Empty until saved."""

    @property
    def aims(self) -> bool:
        """Whether the generator looks for a place in the pictures' own space."""
        generator = self.generator
        return (
            isinstance(generator, LiteGenerator) and generator.config.query_vector and not self.tokenizer.config.layers
        )

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space, which the two reranks compare with the pictures'.

        Where the generator `aims`, it is that place, read from `state` (the generator's `prefill` of the texts)
        if given; otherwise the encoder's own.
        """
        if self.aims:
            state = self.generator.prefill(texts) if state is None else state
            return normalize(state.aim.float(), dim=1).cpu().numpy()
        return self.encoder.encode_texts(texts)

    def save(self, folder: Path, *, replace: bool = False) -> Self:
        """Write the folder, complete or not at all; return the model with its fingerprint.

        Raises `ArtifactError` if something is there that may not be replaced, `StorageError` if the disk refuses.
        """
        with artifact.writing(folder, kind=KIND, version=VERSION, replace=replace) as partial:
            for name, part in (("encoder", self.encoder), ("image_tokenizer", self.tokenizer)):
                (partial / name).mkdir()
                part.save(partial / name)
            (partial / "generator").mkdir()
            self.generator.save(partial / "generator")
            described = {
                "run": self.config.to_dict(),
                "search": asdict(self.search),
                "validation": self.validation,
            }
            artifact.write_json(partial / "config.json", described)
            if can_export(self.generator, self.encoder):
                export_generator(
                    self.generator,
                    partial / FOLDER,
                    precision=self.search.precision,
                    encoder=self.encoder,
                    tokenizer=self.tokenizer,
                )
        return type(self)(
            self.config,
            self.encoder,
            self.tokenizer,
            self.generator,
            self.search,
            self.validation,
            fingerprint(folder),
        )

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote, after checking every checksum. `device` None is the CPU.

        Raises `ArtifactError` if there is no model, `CorruptArtifactError` if a byte differs.
        """
        folder = Path(folder)
        artifact.check(folder, kind=KIND, version=VERSION)
        described = artifact.read_json(folder / "config.json")
        try:
            config = RunConfig.from_dict(described["run"])
            search = from_dict(SearchConfig, described["search"])
            validation = described["validation"]
        except (KeyError, ConfigError) as error:
            raise CorruptArtifactError(f"{folder / 'config.json'}: does not describe a model ({error}).") from error
        place = torch.device(device or "cpu")
        encoder = load_encoder(folder / "encoder", device=str(place))
        tokenizer = ImageTokenizer.load(folder / "image_tokenizer").to(place)
        generator = load_generator(folder / "generator", config, encoder)
        if isinstance(generator, torch.nn.Module):
            generator.to(place)
        return cls(config, encoder, tokenizer, generator, search, validation, fingerprint(folder))


def load_generator(folder: Path, config: RunConfig, encoder: Encoder) -> Generator:
    """Read a generator of the family that `config` names; `lite` reads its queries with `encoder`."""
    family = config.generator.family
    if family == "t5":
        return T5StepModel.load(folder)
    if family == "llama":
        return LlamaStepModel.load(folder)
    return LiteGenerator.load(folder, text_reader(encoder))


def text_reader(encoder: Encoder) -> TextReader:
    """The encoder as a reader of texts, which `lite` needs; `ConfigError` if it has no token states."""
    if not isinstance(encoder, TextReader):
        raise ConfigError(f"the encoder {encoder.name} shows no token states, so lite cannot read with it. Use t5.")
    return encoder
