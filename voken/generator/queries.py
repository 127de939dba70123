"""Query texts as token numbers, right-padded, through a checkpoint's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from voken.errors import ConfigError
from voken.generator.checkpoint import opening
from voken.shapes import Bool, Int


@dataclass(frozen=True)
class TokenizedQueries:
    """Token numbers of queries and which of them are real (not padding, which is on the right)."""

    tokens: Int[Tensor, "queries length"]
    mask: Bool[Tensor, "queries length"]


class QueryReader:
    """A Hugging Face tokenizer, a length limit, and a text put after every query.

    The limit counts special tokens and the separator, which are never cut off. Padding is done here, so the
    tokenizer needs no padding token and its padding side does not matter.
    """

    def __init__(self, tokenizer: Any, *, max_tokens: int, separator: str = "") -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.separator = separator
        self._separator_tokens: list[int] = (
            tokenizer(separator, add_special_tokens=False)["input_ids"] if separator else []
        )
        self._text_limit = max_tokens - len(self._separator_tokens)
        if self._text_limit < tokenizer.num_special_tokens_to_add() + 1:
            raise ConfigError(
                f"max_query_tokens {max_tokens}: leaves no room for the text beside "
                f"{max_tokens - self._text_limit} tokens of separator and the tokenizer's own. Raise it."
            )

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, *, max_tokens: int, separator: str = "", **options: Any) -> Self:
        """Read the tokenizer of a hub name or folder. Raises `ConfigError` where there is none."""
        from transformers import AutoTokenizer

        with opening(checkpoint):
            tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), **options)
        return cls(tokenizer, max_tokens=max_tokens, separator=separator)

    def __call__(self, texts: Sequence[str], device: torch.device) -> TokenizedQueries:
        """Tokenize. A text without any token (an empty one) becomes one special token."""
        rows: list[list[int]] = self.tokenizer(list(texts), truncation=True, max_length=self._text_limit)["input_ids"]
        rows = [row + self._separator_tokens or [self._stand_in()] for row in rows]
        length = max(map(len, rows))
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = True
        return TokenizedQueries(tokens.to(device), mask.to(device))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))

    def _stand_in(self) -> int:
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id):
            if token is not None:
                return int(token)
        return 0
