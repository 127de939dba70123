"""Texts as the graphs read them: token numbers one after another, without padding, and where each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.errors import CorruptArtifactError
from voken.inference.runtime import value
from voken.shapes import Int

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class PackedTokens:
    """Token numbers of texts, one after another, and where each stands (see `voken.inference.positions`)."""

    rows: list[list[int]]
    mask: Int[np.ndarray, "queries length"]

    def inputs(self) -> dict[str, Any]:
        """What `voken.inference.positions.PackedTexts` declares, and each token's place in its text."""
        lengths = np.array([len(row) for row in self.rows], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        length = self.mask.shape[1]
        within = np.arange(length)
        offset = np.concatenate([within[:size] for size in lengths])
        arrays = {
            "tokens": np.concatenate([np.asarray(row, dtype=np.int64) for row in self.rows]),
            "place": np.minimum(starts[:, None] + within, int(lengths.sum()) - 1),
            "unplace": offset + np.repeat(np.arange(len(self.rows)) * length, lengths),
            "offset": offset,
            "last": starts + lengths - 1,
            "mask": self.mask,
        }
        return {name: value(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class TextPacker:
    """A tokenizer with a limit."""

    tokenizer: Tokenizer
    max_tokens: int
    keeps_end: bool
    """Whether a text that is too long keeps its end mark behind its first tokens, as the sentence encoder's does."""
    added: list[int]
    stand_in: int

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Self:
        """Read the tokenizer that `settings` name. Raises `CorruptArtifactError` where it cannot be read."""
        from tokenizers import Tokenizer

        path = folder / settings["file"]
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises the bare class
            raise CorruptArtifactError(f"{path}: cannot be read ({error}). Make the engine again.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        keeps_end = settings["cut"] == "keep end"
        if not keeps_end:
            tokenizer.enable_truncation(settings["max_tokens"])
        return cls(tokenizer, settings["max_tokens"], keeps_end, settings["added"], settings["stand_in"])

    def pack(self, texts: Sequence[str]) -> PackedTokens:
        """Tokenize; a text without any token becomes one special token."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        if self.keeps_end:
            rows = [row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]] for row in rows]
        rows = [row + self.added or [self.stand_in] for row in rows]
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int32)
        return PackedTokens(rows, mask)
