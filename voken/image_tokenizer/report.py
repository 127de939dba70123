"""Is the tokenizer good enough? Figures to look at before stage 2 is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voken.errors import EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer
from voken.shapes import Float, Int

_BLOCK = 1024


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
    _, sizes = np.unique(vokens, axis=0, return_counts=True)
    recall: tuple[RecallCeiling, ...] = ()
    if texts is not None and relevant is not None and len(relevant):
        exact, quantized = (_recall(texts, pool, relevant, cuts) for pool in (images, rebuilt))
        recall = tuple(
            RecallCeiling(cut, before, after) for cut, before, after in zip(cuts, exact, quantized, strict=True)
        )
    return TokenizerReport(
        pictures=len(images),
        sequences=len(sizes),
        collision_rate=float(sizes[sizes > 1].sum() / len(images)),
        reconstruction_error=float(((rebuilt - images) ** 2).sum(1).mean()),
        cosine=float((rebuilt * images).sum(1).mean()),
        bits=float(tokenizer.levels * np.log2(tokenizer.codebook_size)),
        levels=tuple(_usage(level, column, tokenizer.codebook_size) for level, column in enumerate(vokens.T, 1)),
        recall=recall,
    )


def _usage(level: int, vokens: Int[np.ndarray, " images"], entries: int) -> LevelUsage:
    shares = np.bincount(vokens, minlength=entries) / len(vokens)
    positive = shares[shares > 0]
    return LevelUsage(level, len(positive), entries, float(np.exp(-(positive * np.log(positive)).sum())))


def _recall(
    texts: Float[np.ndarray, "texts dim"],
    pool: Float[np.ndarray, "images dim"],
    relevant: Int[np.ndarray, "answers 2"],
    cuts: tuple[int, ...],
) -> list[float]:
    hits = np.zeros(len(cuts))
    asked = np.unique(relevant[:, 0])
    for start in range(0, len(asked), _BLOCK):
        block = asked[start : start + _BLOCK]
        similarity = texts[block] @ pool.T
        answers = relevant[np.isin(relevant[:, 0], block)]
        row = np.searchsorted(block, answers[:, 0])
        best = np.full(len(block), -np.inf, similarity.dtype)
        np.maximum.at(best, row, similarity[row, answers[:, 1]])
        above = (similarity > best[:, None]).sum(1)
        tied = (similarity == best[:, None]).sum(1)
        right = np.zeros(len(block))
        np.add.at(right, row, similarity[row, answers[:, 1]] == best[row])
        hits += [_chance(above, tied, right, cut).sum() for cut in cuts]
    return [float(100 * hit / len(asked)) for hit in hits]


def _chance(above: np.ndarray, tied: np.ndarray, right: np.ndarray, cut: int) -> np.ndarray:
    """That at least one of `right` pictures among `tied` stands in the places left below `above`."""
    places = np.clip(cut - above, 0, tied)
    missed = np.ones(len(above))
    for drawn in range(int(places.max(initial=0))):
        drawing = drawn < places
        missed[drawing] *= np.clip((tied - right - drawn)[drawing], 0, None) / (tied - drawn)[drawing]
    return np.where(places > 0, 1.0 - missed, 0.0)
