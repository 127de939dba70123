"""Encoders that also show what they read: token states, for a generator that attends to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from voken.shapes import Bool, Float


@dataclass(frozen=True)
class TextStates:
    """Texts as an encoder sees them."""

    tokens: Float[Tensor, "texts tokens width"]
    """The state of each token; what stands behind a text's end is arbitrary."""
    mask: Bool[Tensor, "texts tokens"]
    """True on a text's own tokens."""
    vectors: Float[Tensor, "texts dim"]
    """The text's vector in the space shared with pictures, L2-normalised."""

    def rows(self, index: Tensor) -> TextStates:
        """The states of some of the texts, cut to the longest of them."""
        mask = self.mask[index]
        longest = int(mask.sum(1).max()) if len(index) else 0
        return TextStates(self.tokens[index, :longest], mask[:, :longest], self.vectors[index])


@runtime_checkable
class TextReader(Protocol):
    """Reads texts into token states and vectors. Every encoder that has token states is one."""

    @property
    def text_width(self) -> int:
        """Width of a token state."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """States of the texts, without gradients, on the CPU or the reader's device."""
        ...


class RememberedTexts:
    """A reader that has read a known set of texts once and looks them up: for training with a frozen encoder.

    Token states are kept in half precision: `bytes_needed` says beforehand what that takes.
    """

    def __init__(self, reader: TextReader, texts: Sequence[str], *, max_tokens: int, batch_size: int = 256) -> None:
        self._reader = reader
        self._max_tokens = max_tokens
        distinct = list(dict.fromkeys(texts))
        self._row = {text: row for row, text in enumerate(distinct)}
        by_length = sorted(range(len(distinct)), key=lambda row: len(distinct[row]))
        batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        read = [reader.read_texts([distinct[row] for row in batch], max_tokens=max_tokens) for batch in batches]
        longest = max((states.tokens.shape[1] for states in read), default=0)
        tokens = torch.zeros(len(distinct), longest, reader.text_width, dtype=torch.float16)
        mask = torch.zeros(len(distinct), longest, dtype=torch.bool)
        vectors = torch.zeros(len(distinct), reader.dim)
        for batch, states in zip(batches, read, strict=True):
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
        """Look the texts up; if one is new, or another length is asked for, read them all afresh."""
        rows = [self._row.get(text, -1) for text in texts]
        if max_tokens != self._max_tokens or -1 in rows:
            return self._reader.read_texts(texts, max_tokens=max_tokens)
        return self._states.rows(torch.tensor(rows))
