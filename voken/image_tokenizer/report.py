"""Figures on the quality of a tokenizer, to look at before stage 2 is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voken.errors import EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer
from voken.metrics import FirstRelevant, collision_rate, first_relevant_by_product, recall_at
from voken.shapes import Float, Int


@dataclass(frozen=True)
class LevelUsage:
    """Use of one level's codebook by a set of pictures."""

    level: int
    """1 … M."""
    used: int
    """Number of entries chosen at least once."""
    entries: int
    """N."""
    perplexity: float
    """exp of the entropy of the choices, 1 … N: this many entries, used equally often, carry the same information."""


@dataclass(frozen=True)
class RecallCeiling:
    """Text-to-image recall (%) by exact search over the vectors themselves and over their reconstruction.

    A generator ranks by vokens alone, so it is unlikely to exceed `quantized` by much.
    """

    cut: int
    exact: float
    quantized: float


@dataclass(frozen=True)
class TokenizerReport:
    """Figures of one tokenizer over one set of pictures."""

    pictures: int
    sequences: int
    """Distinct voken sequences."""
    collision_rate: float
    """Share of the pictures that share their sequence with another picture."""
    reconstruction_error: float
    """Mean squared distance of a vector to its reconstruction. Vectors have length 1, so 2 means a right angle."""
    cosine: float
    """Mean cosine of a vector with its reconstruction."""
    bits: float
    """M · log2 N, the size of a sequence in bits."""
    levels: tuple[LevelUsage, ...]
    recall: tuple[RecallCeiling, ...]
    """Empty without texts."""


def tokenizer_report(
    tokenizer: ImageTokenizer,
    images: Float[np.ndarray, "images dim"],
    texts: Float[np.ndarray, "texts dim"] | None = None,
    relevant: Int[np.ndarray, "answers 2"] | None = None,
    cuts: tuple[int, ...] = (1, 5, 10),
) -> TokenizerReport:
    """Figures over pictures that the tokenizer was not trained on. Rows of `relevant` are (text, right picture).

    Recall follows the rules of `voken.metrics`. Raises `EmptyDataError` without pictures.
    """
    if not len(images):
        raise EmptyDataError("no pictures to report on.")
    vokens = tokenizer.encode(images)
    rebuilt = tokenizer.decode(vokens)
    recall: tuple[RecallCeiling, ...] = ()
    if texts is not None and relevant is not None and len(relevant):
        queries, query = np.unique(relevant[:, 0], return_inverse=True)
        answers = np.stack([query, relevant[:, 1]], 1)
        exact, quantized = (first_relevant_by_product(texts[queries], pool, answers) for pool in (images, rebuilt))
        recall = tuple(RecallCeiling(cut, _percent(exact, cut), _percent(quantized, cut)) for cut in cuts)
    return TokenizerReport(
        pictures=len(images),
        sequences=len(np.unique(vokens, axis=0)),
        collision_rate=collision_rate(vokens),
        reconstruction_error=float(((rebuilt - images) ** 2).sum(1).mean()),
        cosine=float((rebuilt * images).sum(1).mean()),
        bits=float(tokenizer.levels * np.log2(tokenizer.codebook_size)),
        levels=tuple(_usage(level, column, tokenizer.codebook_size) for level, column in enumerate(vokens.T, 1)),
        recall=recall,
    )


def _percent(first: FirstRelevant, cut: int) -> float:
    return float(100 * recall_at(first, cut).sum() / len(first.above))


def _usage(level: int, vokens: Int[np.ndarray, " images"], entries: int) -> LevelUsage:
    shares = np.bincount(vokens, minlength=entries) / len(vokens)
    positive = shares[shares > 0]
    return LevelUsage(level, len(positive), entries, float(np.exp(-(positive * np.log(positive)).sum())))
