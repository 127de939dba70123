"""Encoders that also give token states, for a generator that attends to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from voken.shapes import Bool, Float


@dataclass(frozen=True)
class TextStates:
    """What an encoder makes of texts: a state per token, and a vector per text."""

    tokens: Float[Tensor, "texts tokens width"]
    """The state of each token; behind the end of a text, any values."""
    mask: Bool[Tensor, "texts tokens"]
    """True on tokens, False behind the end of a text."""
    vectors: Float[Tensor, "texts dim"]
    """The vector of each text in the space shared with pictures, L2-normalised."""

    def rows(self, index: Tensor) -> TextStates:
        """The states of some of the texts, cut to the longest of them."""
        mask = self.mask[index]
        longest = int(mask.sum(1).max()) if len(index) else 0
        return TextStates(self.tokens[index, :longest], mask[:, :longest], self.vectors[index])


@runtime_checkable
class TextReader(Protocol):
    """Reads texts into token states and vectors. Every encoder that gives token states is a `TextReader`."""

    @property
    def text_width(self) -> int:
        """Width of a token state."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """The states of texts, without gradients, on the CPU or the reader's device."""
        ...


class RememberedTexts:
    """A reader that reads a set of texts once and then looks them up: for training with a frozen encoder.

    Token states are stored in half precision: texts × longest text in tokens × width × 2 bytes.
    """

    def __init__(self, reader: TextReader, texts: Sequence[str], *, max_tokens: int, batch_size: int = 256) -> None:
        self._reader = reader
        self._max_tokens = max_tokens
        distinct = list(dict.fromkeys(texts))
        self._row_of = {text: row for row, text in enumerate(distinct)}
        by_length = sorted(range(len(distinct)), key=lambda row: len(distinct[row]))
        batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        parts = [reader.read_texts([distinct[row] for row in batch], max_tokens=max_tokens) for batch in batches]
        longest = max((states.tokens.shape[1] for states in parts), default=0)
        tokens = torch.zeros(len(distinct), longest, reader.text_width, dtype=torch.float16)
        mask = torch.zeros(len(distinct), longest, dtype=torch.bool)
        vectors = torch.zeros(len(distinct), reader.dim)
        for batch, states in zip(batches, parts, strict=True):
            rows, length = torch.tensor(batch), states.tokens.shape[1]
            tokens[rows, :length] = states.tokens.cpu().half()
            mask[rows, :length] = states.mask.cpu()
            vectors[rows] = states.vectors.float().cpu()
        self._states = TextStates(tokens, mask, vectors)

    @property
    def text_width(self) -> int:
        """Width of a token state."""
        return self._reader.text_width

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._reader.dim

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Look the texts up. If any is new, or `max_tokens` is not the one of the lookup, read them all again."""
        rows = [self._row_of.get(text, -1) for text in texts]
        if max_tokens != self._max_tokens or -1 in rows:
            return self._reader.read_texts(texts, max_tokens=max_tokens)
        return self._states.rows(torch.tensor(rows))
