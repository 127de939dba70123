"""Encoders that also give token states, for a generator that attends to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


class ReaderAround:
    """The base of a `TextReader` that asks another one for what it does not know."""

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader

    @property
    def text_width(self) -> int:
        """Width of a token state."""
        return self._reader.text_width

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._reader.dim
