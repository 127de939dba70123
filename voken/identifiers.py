"""Constrained beam search for any T5 or Llama that writes identifiers: documents, products, semantic ids.

    from voken.identifiers import Decoder, export_checkpoint

    export_checkpoint("my-t5", "engine", longest=8)          # once; needs the extra `train`
    decoder = Decoder.load("engine")                         # needs no torch
    products = decoder.identifiers(token_rows, end=1)        # a list of lists of the checkpoint's own tokens
    (answers,) = decoder.search(["red shoes"], products, beams=10)
    for answer in answers:
        print(answer.rows, answer.log_prob, answer.tokens)

The answers and scores equal those of `transformers.generate` with `prefix_allowed_tokens_fn`, the same number of beams
and `length_penalty=0`: a score is a sum of log-probabilities over the whole vocabulary of the checkpoint. The set of
identifiers is apart from the model: it can be filtered and changed without a new engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.decoding.beam import beam_search
from voken.decoding.ending_search import ending_beam_search
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.inference.engine import Engine
from voken.shapes import Int64

if TYPE_CHECKING:
    from voken.inference.graph import Precision


@dataclass(frozen=True)
class Answer:
    """An identifier that a search reached."""

    tokens: tuple[int, ...]
    """Its tokens, with the end token if it has one."""
    log_prob: float
    """The score: log p(tokens | text), by default."""
    rows: tuple[int, ...]
    """The rows that have this identifier, ascending."""


@dataclass(frozen=True, eq=False)
class Identifiers:
    """A set of identifiers, each with a row number. Nothing changes it: filters and changes return another one."""

    trie: VokenTrie
    """The identifiers, filled up with end tokens to one length."""
    end: int | None
    """The token that ends an identifier; None if all have the same length without one."""

    @classmethod
    def of(
        cls, tokens: Sequence[Sequence[int]], *, longest: int, vocabulary_size: int, end: int | None = None
    ) -> Identifiers:
        """Identifiers in the order of their rows, from 0. Two rows may have the same one.

        Each has `longest` tokens or, with `end`, at most so many, of which the last is `end`. Raises `ConfigError` for
        others, and for tokens that are not in the vocabulary.
        """
        matrix = _matrix(tokens, longest, end, first_row=0)
        if not len(matrix):
            return cls(VokenTrie.empty(longest, vocabulary_size), end)
        _check_tokens(matrix, vocabulary_size, first_row=0)
        return cls(VokenTrie.from_vokens(matrix, vocabulary_size), end)

    def __len__(self) -> int:
        """The number of rows."""
        return self.trie.images

    @property
    def rows(self) -> list[int]:
        """The row numbers, ascending."""
        rows: list[int] = self.trie.row_vokens()[0].tolist()
        return rows

    def only(self, rows: Iterable[int]) -> Identifiers:
        """The set of these rows, as if there were no others: a filter. Rows that it does not have are left out."""
        numbers, tokens = self.trie.row_vokens()
        return self._of_rows(tokens, numbers, np.isin(numbers, _row_array(rows)))

    def without(self, rows: Iterable[int]) -> Identifiers:
        """The set without these rows. The others have the numbers that they had."""
        numbers, tokens = self.trie.row_vokens()
        return self._of_rows(tokens, numbers, ~np.isin(numbers, _row_array(rows)))

    def plus(self, tokens: Sequence[Sequence[int]], first_row: int | None = None) -> Identifiers:
        """The set and more identifiers. Their rows follow the last one, or begin at `first_row`, which is greater.

        Raises `ConfigError` as `of` does.
        """
        numbers, known = self.trie.row_vokens()
        following = int(numbers[-1]) + 1 if len(numbers) else 0
        first = following if first_row is None else first_row
        if first < following:
            raise ConfigError(f"first_row {first}: rows up to {following - 1} are there. Give a greater number.")
        matrix = _matrix(tokens, self.trie.levels, self.end, first_row=first)
        _check_tokens(matrix, self.trie.codebook_size, first_row=first)
        added = np.arange(first, first + len(matrix))
        every, rows = np.concatenate([known, matrix]), np.concatenate([numbers, added])
        return self._of_rows(every, rows, np.ones(len(rows), dtype=bool))

    def _of_rows(self, tokens: np.ndarray, numbers: Int64[np.ndarray, " rows"], chosen: np.ndarray) -> Identifiers:
        if not chosen.any():
            return replace(self, trie=VokenTrie.empty(self.trie.levels, self.trie.codebook_size))
        return replace(self, trie=VokenTrie.from_vokens(tokens[chosen], self.trie.codebook_size, numbers[chosen]))


class Decoder:
    """An exported checkpoint: reads texts and writes identifiers. Several threads may use it at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 0) -> Self:
        """Open what `export_checkpoint` wrote. Needs no torch. `threads` 0 means all cores of the process.

        Raises `CorruptArtifactError` if a file is missing or damaged.
        """
        return cls(Engine.load(Path(folder), threads=threads))

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens of the checkpoint."""
        return self._engine.codebook_size

    @property
    def longest(self) -> int:
        """The greatest number of tokens of an identifier, the end token included."""
        return self._engine.levels

    def identifiers(self, tokens: Sequence[Sequence[int]], *, end: int | None = None) -> Identifiers:
        """A set of identifiers for this decoder; see `Identifiers.of`."""
        return Identifiers.of(tokens, longest=self.longest, vocabulary_size=self.vocabulary_size, end=end)

    def search(
        self, texts: Sequence[str], identifiers: Identifiers, beams: int = 10, *, length_penalty: float = 0.0
    ) -> list[list[Answer]]:
        """For each text: at most `beams` identifiers, best first.

        With an end token, a score is divided by the number of tokens to the power of `length_penalty`, as in
        transformers. Raises `ConfigError` if the identifiers were made for another decoder.
        """
        trie, end = identifiers.trie, identifiers.end
        if not trie.sequences:
            return [[] for _ in texts]
        if end is None:
            found = beam_search(self._engine, trie, texts, beams)
        else:
            found = ending_beam_search(self._engine, trie, texts, beams, end, length_penalty=length_penalty)
        answers = []
        for leaves, scores in zip(found.leaf, found.log_prob.tolist(), strict=True):
            reached = leaves[leaves >= 0]
            rows, counts = trie.rows_of(reached)
            by_leaf = np.split(rows, counts.cumsum()[:-1])
            answers.append(
                [
                    Answer(_cut(sequence, end), score, tuple(of_leaf.tolist()))
                    for sequence, score, of_leaf in zip(
                        trie.leaf_vokens(reached).tolist(), scores, by_leaf, strict=False
                    )
                ]
            )
        return answers


def export_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    longest: int,
    precision: Precision = "float32",
    max_text_tokens: int = 64,
    separator: str = "",
) -> None:
    """Write the engine of a T5, Flan-T5, mT5 or Llama checkpoint into `folder`. Needs the extra `train`.

    `checkpoint` is a folder that `save_pretrained` wrote, or a name of the hub. `longest` is the greatest number of
    tokens of an identifier, the end token included. A text is cut after `max_text_tokens`; `separator` follows it,
    which a Llama may need to know that the text has ended. "int8" is about twice as fast, and its scores are close.
    Raises `ConfigError` if the checkpoint cannot be opened or has another architecture.
    """
    from voken.inference.checkpoints import checkpoint_generator
    from voken.inference.export import export_generator

    generator, graphs_of = checkpoint_generator(
        checkpoint, longest=longest, max_tokens=max_text_tokens, separator=separator
    )
    export_generator(generator, graphs_of, Path(folder), precision=precision)


def _matrix(tokens: Sequence[Sequence[int]], longest: int, end: int | None, first_row: int) -> np.ndarray[Any, Any]:
    """Identifiers as rows of one length."""
    if end is None and isinstance(tokens, np.ndarray) and tokens.ndim == 2 and tokens.shape[1] == longest:
        return tokens.astype(np.int64)
    matrix = np.full((len(tokens), longest), 0 if end is None else end, dtype=np.int64)
    for number, row in enumerate(tokens):
        if end is None and len(row) != longest:
            raise ConfigError(
                f"Identifier {first_row + number} has {len(row)} tokens, not {longest}. Name the end token if lengths "
                "differ, or export the checkpoint with this length."
            )
        if end is not None and (not len(row) or row[-1] != end or list(row).index(end) < len(row) - 1):
            raise ConfigError(
                f"Identifier {first_row + number} does not end with its first end token ({end}). Append it once."
            )
        if len(row) > longest:
            raise ConfigError(
                f"Identifier {first_row + number} has {len(row)} tokens, more than {longest}. Export the checkpoint "
                "with a greater `longest`."
            )
        matrix[number, : len(row)] = row
    return matrix


def _check_tokens(matrix: np.ndarray, vocabulary_size: int, first_row: int) -> None:
    wrong = np.argwhere((matrix < 0) | (matrix >= vocabulary_size))
    if len(wrong):
        row, place = wrong[0]
        raise ConfigError(
            f"Identifier {first_row + row}: token {matrix[row, place]} is not in 0 … {vocabulary_size - 1}. Use the "
            "checkpoint's own tokens."
        )


def _row_array(rows: Iterable[int]) -> Int64[np.ndarray, " rows"]:
    return np.fromiter(rows, dtype=np.int64)


def _cut(sequence: list[int], end: int | None) -> tuple[int, ...]:
    """A sequence without what it was filled up with."""
    if end is None or end not in sequence:
        return tuple(sequence)
    return tuple(sequence[: sequence.index(end) + 1])
