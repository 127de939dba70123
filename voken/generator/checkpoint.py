"""The base of generators that start from a Hugging Face checkpoint: opening it, reading queries, saving, loading.

A saved generator is a folder:

    config.json          the checkpoint's configuration
    model.safetensors    the weights, vokens included (families may add files)
    generator.json       the family, the format's version and the sizes
    tokenizer.json, …    the checkpoint's tokenizer
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voken.artifact import storage_errors, write_json
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, MissingExtraError, VokenError
from voken.generator.vocabulary import VokenVocabulary, rms
from voken.shapes import Bool, Float, Int

WEIGHTS = "model.safetensors"
_HEADER, _FORMAT = "generator.json", 1
_IMPOSSIBLE = -1e4
"""Bias, in a plain transformers model, of words that are not vokens: their probability is 0 in float32."""


@contextmanager
def checkpoint_errors(checkpoint: str | Path) -> Iterator[None]:
    """Turn any error of transformers when it opens a checkpoint into a `ConfigError` that names the remedy."""
    try:
        yield
    except Exception as error:  # tokenizers raises the bare class for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        place = "this folder" if Path(checkpoint).is_dir() else "not a folder here, and the hub did not provide it"
        raise ConfigError(
            f"{checkpoint}: {place} ({reason}). Pass a folder that holds config.json, model.safetensors and the "
            "tokenizer's files. Without a network, copy one from a machine that has it."
        ) from error


@dataclass(frozen=True)
class TokenizedQueries:
    """Tokens of queries, padded on the right. `mask` is True for tokens and False for padding."""

    tokens: Int[Tensor, "queries length"]
    mask: Bool[Tensor, "queries length"]


class QueryReader:
    """A Hugging Face tokenizer with a length limit and a separator that follows every query.

    The limit includes special tokens and the separator, which are never cut off. Padding is added here, so the
    tokenizer's padding token and side do not matter.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, separator: str = "") -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.separator = separator
        self.separator_tokens: list[int] = (
            tokenizer(separator, add_special_tokens=False)["input_ids"] if separator else []
        )
        self.max_text_tokens = max_tokens - len(self.separator_tokens)
        if self.max_text_tokens < tokenizer.num_special_tokens_to_add() + 1:
            raise ConfigError(
                f"max_query_tokens {max_tokens}: leaves no room for text after the "
                f"{len(self.separator_tokens)} tokens of the separator and the tokenizer's special tokens. Raise it."
            )

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, *, max_tokens: int, separator: str = "", **options: Any) -> Self:
        """Load the tokenizer of a hub name or folder. Raises `ConfigError` if there is none."""
        from transformers import AutoTokenizer

        with checkpoint_errors(checkpoint):
            tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), **options)
        return cls(tokenizer, max_tokens=max_tokens, separator=separator)

    def __call__(self, texts: Sequence[str], device: torch.device) -> TokenizedQueries:
        """Tokenize texts. A text that has no token (an empty one) becomes `filler_token`."""
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self.max_text_tokens)[
            "input_ids"
        ]
        rows = [row + self.separator_tokens or [self.filler_token] for row in rows]
        length = max(map(len, rows))
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = True
        return TokenizedQueries(tokens.to(device), mask.to(device))

    @property
    def filler_token(self) -> int:
        """The token that stands for a text without tokens."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            if token is not None:
                return int(token)
        return 0


@dataclass(frozen=True)
class SavedParts:
    """The parts of a saved folder that all families have."""

    header: dict[str, Any]
    """The content of generator.json."""
    config: Any
    reader: QueryReader
    vocabulary: VokenVocabulary
    """On the "meta" device."""
    weights: dict[str, Tensor]


class CheckpointGenerator(nn.Module):
    """Abstract: the part of a `Generator` that does not depend on the checkpoint's architecture."""

    family: ClassVar[str]
    log_probs = False
    reads_trees = False
    has_query_point = False

    vocabulary: VokenVocabulary
    """Subclasses set it after the checkpoint's modules, because results depend on the order of parameters."""

    def __init__(self, *, config: Any, reader: QueryReader) -> None:
        super().__init__()
        self.config = config
        self.reader = reader

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Any:
        """See `Generator.encode`."""

    @abstractmethod
    def teacher_forced(
        self, state: Any, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """See `Generator.teacher_forced`."""

    @abstractmethod
    def _header(self) -> dict[str, Any]:
        """The entries of generator.json besides the sizes that all families have."""

    @classmethod
    @abstractmethod
    def _from_saved(cls, folder: Path, saved: SavedParts, **options: Any) -> Self:
        """Build the generator from the parts that `load` has read."""

    def _weight_files(self) -> dict[str, dict[str, Tensor]]:
        """The weights to save, by file name."""
        return {WEIGHTS: self.state_dict()}

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        return self.vocabulary.codebook_size

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return self.vocabulary.levels

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.vocabulary.embeddings.device

    def prefill(self, texts: Sequence[str]) -> Any:
        """`encode` without gradients."""
        with torch.no_grad():
            return self.encode(texts)

    def forward(self, texts: Sequence[str], vokens: Int[Tensor, "pairs levels"]) -> Float[Tensor, "pairs levels N"]:
        """`teacher_forced` for pairs of a text and its sequence."""
        return self.teacher_forced(self.encode(texts), vokens.unsqueeze(1)).squeeze(1)

    def save(self, folder: Path) -> None:
        """Write the generator into `folder` (see the module); the folder is created if it is missing."""
        folder = Path(folder)
        weight_files = self._weight_files()
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.config.save_pretrained(str(folder))
            self.reader.tokenizer.save_pretrained(str(folder))
            for name, weights in weight_files.items():
                save_file({key: weight.contiguous() for key, weight in weights.items()}, folder / name)
        sizes = {
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "shared": self.vocabulary.shared,
            "tied": self.vocabulary.tied,
        }
        write_json(folder / _HEADER, {"family": self.family, "format": _FORMAT, **sizes, **self._header()})

    @classmethod
    def load(cls, folder: Path, **options: Any) -> Self:
        """Read what `save` wrote, on the CPU, without a network.

        Raises `CorruptArtifactError` if a file is missing or damaged, `ArtifactVersionError` for another family or a
        newer format.
        """
        from transformers import AutoConfig

        folder = Path(folder)
        header = _read_header(folder / _HEADER, cls.family)
        try:
            config = AutoConfig.from_pretrained(str(folder))
            # on "meta", parameters take no memory and no initialisation; the saved weights are assigned later
            with torch.device("meta"):
                vocabulary = VokenVocabulary(
                    levels=header["levels"],
                    codebook_size=header["codebook_size"],
                    width=config.hidden_size,
                    shared=header["shared"],
                    tied=header["tied"],
                )
            reader = QueryReader.from_pretrained(
                folder, max_tokens=header["max_query_tokens"], separator=header.get("separator", "")
            )
            saved = SavedParts(header, config, reader, vocabulary, load_file(folder / WEIGHTS))
            return cls._from_saved(folder, saved, **options).eval()
        except MissingExtraError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, VokenError) as error:
            raise CorruptArtifactError(f"{folder}: cannot be read ({error}). Restore it from a copy.") from error

    def _extended_vocabulary(self, words: Float[Tensor, "words width"]) -> tuple[nn.Embedding, nn.Linear]:
        """A table of the words and then the vokens, and a head over both in which words have probability 0.

        Raises `ConfigError` if there is a codebook per level: a single table cannot hold them.
        """
        if not self.vocabulary.shared:
            raise ConfigError("A model with one codebook per level has no equivalent with a single vocabulary.")
        table = nn.Embedding.from_pretrained(torch.cat([words, self.vocabulary.embeddings[0]]).detach().clone())
        head = nn.Linear(words.shape[1], len(table.weight), dtype=words.dtype, device=self.device)
        head.weight.data = torch.cat([torch.zeros_like(words), self.vocabulary.output_rows[0]]).detach().clone()
        is_word = torch.arange(len(table.weight), device=self.device) < len(words)
        head.bias.data = torch.where(is_word, _IMPOSSIBLE, 0.0)
        return table, head


def starting_vocabulary(
    checkpoint_model: Any, codebooks: Float[np.ndarray, "levels N code_dim"], *, shared: bool, copy: bool, seed: int
) -> VokenVocabulary:
    """The voken rows to start from, at the scale of the checkpoint's rows (see `VokenVocabulary.from_codebooks`)."""
    words, head = checkpoint_model.get_input_embeddings().weight, checkpoint_model.lm_head.weight
    vocabulary = VokenVocabulary.from_codebooks(
        codebooks,
        words.shape[1],
        shared=shared,
        copy=copy,
        seed=seed,
        embedding_rms=rms(words),
        head_rms=None if head is words else rms(head),
    )
    return vocabulary.to(words.dtype)


def follow_parents(state: Any, parents: Int[Tensor, "queries beams"]) -> Any:
    """The state in which every beam has the cache of the beam that it extends. Without a cache it is unchanged."""
    if state.keys is None:
        return state
    query = torch.arange(len(parents), device=parents.device).unsqueeze(1)
    return replace(state, keys=state.keys[:, query, parents], values=state.values[:, query, parents])


def _read_header(path: Path, family: str) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, saved_family = int(header["format"]), header["family"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptArtifactError(f"{path}: cannot be read ({error}). Restore the folder from a copy.") from error
    if saved_family != family:
        raise ArtifactVersionError(f"{path}: holds a {saved_family} generator, not {family}.")
    if version > _FORMAT:
        raise ArtifactVersionError(
            f"{path}: generator format {version} is newer than this voken reads ({_FORMAT}). Upgrade voken."
        )
    return dict(header)
