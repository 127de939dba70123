"""Is the tokenizer good enough? Figures to look at before stage 2 is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voken.errors import EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer
from voken.metrics import FirstRelevant, collision_rate, first_relevant_by_product, recall_at
from voken.shapes import Float, Int


@dataclass(frozen=True)
class LevelUsage:
    """How one level's codebook is used by a set of pictures."""

    level: int
    """1 … M."""
    used: int
    """Entries chosen at least once."""
    entries: int
    """N."""
    perplexity: float
    """exp of the entropy of the choices, 1 … N: as many entries, used equally, would carry as much."""


@dataclass(frozen=True)
class RecallCeiling:
    """Text-to-image recall (%) by exact search, with the vectors themselves and with their reconstruction.

    No generator that ranks by what the vokens hold can be expected to pass `quantized` by much.
    """

    cut: int
    exact: float
    quantized: float


@dataclass(frozen=True)
class TokenizerReport:
    """What `report` found."""

    pictures: int
    sequences: int
    """Distinct voken sequences."""
    collision_rate: float
    """Share of pictures whose sequence is not theirs alone."""
    reconstruction_error: float
    """Mean squared distance of a vector to its reconstruction; vectors have length 1, so 2 is a right angle."""
    cosine: float
    """Mean cosine of a vector with its reconstruction."""
    bits: float
    """M · log2 N, what a sequence takes."""
    levels: tuple[LevelUsage, ...]
    recall: tuple[RecallCeiling, ...]
    """Empty without texts."""


def report(
    tokenizer: ImageTokenizer,
    images: Float[np.ndarray, "images dim"],
    texts: Float[np.ndarray, "texts dim"] | None = None,
    relevant: Int[np.ndarray, "answers 2"] | None = None,
    cuts: tuple[int, ...] = (1, 5, 10),
) -> TokenizerReport:
    """Figures over a set of pictures it was not trained on. Rows of `relevant` are (text, right picture).

    Recall counts a text as answered at K when one of its right pictures is among the best K; pictures that
    tie, as those of one sequence do, count by their expected place. Raises `EmptyDataError` without pictures.
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
