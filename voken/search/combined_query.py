"""Queries of several parts: a picture or words, more of this, less of that.

    parse_term("dog:2")                                     # Term(text="dog", weight=2.0)

The vectors of the parts, all of length 1 and all in the space of the pictures' vectors, are added with their weights,
those of `minus` with a negative one. The pictures nearest to the sum are the answer. It is the arithmetic of word
vectors (Mikolov et al. 2013, "Linguistic regularities in continuous space word representations"), with pictures in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voken.errors import ConfigError
from voken.shapes import Float

MOST_TERMS = 32
"""Words to add and words to take away, together."""
_MOST_WEIGHT = 100.0
_WEIGHTED = re.compile(r"(?s)(.*?)\s*:\s*(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*")
_NOTHING = 1e-3
"""A sum shorter than this points nowhere."""


@dataclass(frozen=True)
class Term:
    """Words, and how much they count."""

    text: str
    weight: float = 1.0


def parse_term(text: str) -> Term:
    """`TEXT` or `TEXT:WEIGHT`, such as `dog:2` or `at night:0.5`. Raises `ConfigError` for an impossible weight."""
    match = _WEIGHTED.fullmatch(text)
    if match is None or not match[1].strip():
        return Term(text)
    weight = float(match[2])
    if not 0 < weight <= _MOST_WEIGHT:
        raise ConfigError(
            f"{text}: the weight of words is above 0 and at most {_MOST_WEIGHT:g}. To take words away, use minus."
        )
    return Term(match[1], weight)


def parse_terms(plus: Sequence[str], minus: Sequence[str]) -> list[Term]:
    """All terms, those of `minus` with negative weights. Raises `ConfigError` for too many, and as `parse_term`."""
    if len(plus) + len(minus) > MOST_TERMS:
        raise ConfigError(f"{len(plus) + len(minus)} words to add and take away: give at most {MOST_TERMS}.")
    taken = (parse_term(text) for text in minus)
    return [*map(parse_term, plus), *(Term(term.text, -term.weight) for term in taken)]


def combined(vectors: Sequence[Float[np.ndarray, " dim"]], weights: Sequence[float]) -> Float[np.ndarray, " dim"]:
    """The weighted sum of vectors that are first brought to length 1, at length 1.

    Raises `ConfigError` if nothing is left of it.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    total = np.asarray(weights, dtype=np.float64) @ rows
    length = float(np.linalg.norm(total))
    if length < _NOTHING:
        raise ConfigError("What is added and what is taken away cancel each other. Change one of them, or its weight.")
    return np.asarray(total / length, dtype=np.float32)
