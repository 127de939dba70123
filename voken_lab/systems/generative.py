"""Search with any generator over any sequences, for GRACE, IRGen and similar systems.

This module does not know where the sequences come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from voken.config import SearchConfig
from voken.decoding.beam import beam_search
from voken.decoding.interface import StepModel
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.generator.interface import Generator
from voken.generator.train import ValidationQueries, validation_recall
from voken.search.corrections import Corrections
from voken.search.hit import Hit
from voken.search.readouts import Candidates
from voken.search.searcher import check_k, readable_text
from voken.shapes import Float
from voken.training.corrections import choose_corrections, exact_scores, prior_captions
from voken_lab.systems.pictures import PoolPictures

_LOGITS_AT_ONCE = 1 << 24
BEAMS = (10, 20, 50, 100)
"""The numbers of beams that are tried on validation."""


@dataclass(frozen=True)
class BeamChoice:
    """The number of beams with the best validation recall, and the recalls of all that were tried."""

    beams: int
    recalls: Mapping[int, float]

    @classmethod
    def of(cls, recalls: Mapping[int, float], default: int) -> Self:
        """The best of `recalls`; if equal, the fewest beams. `default` if none were tried."""
        return cls(max(sorted(recalls), key=lambda beams: recalls[beams], default=default), recalls)


def beams_to_try(sequences: int) -> tuple[int, ...]:
    """Those of `BEAMS` that a search of so many sequences can tell apart: the first, and all that do not reach all."""
    return tuple(beams for beams in BEAMS if beams == BEAMS[0] or beams < sequences)


def choose_search(
    generator: Generator,
    codebooks: Float[np.ndarray, "M N e"] | None,
    validation: ValidationQueries,
    captions: Sequence[str],
    search: SearchConfig,
    *,
    seed: int,
) -> tuple[Corrections, BeamChoice]:
    """What training chooses for our own generator: the weights of the prior and of the norm, and then the beams.

    `codebooks` are entries that sum to the pictures' vectors, if the generator's sequences have such entries;
    `captions` are those of the train split.
    """
    drawn = prior_captions(captions, seed)
    scores = exact_scores(_Scored(generator, codebooks), validation, drawn, seed=seed)
    weights, _ = choose_corrections(search, scores)
    corrections = Corrections(generator, codebooks, drawn, weights)
    tried = beams_to_try(len(np.unique(validation.vokens, axis=0))) if validation.texts else ()
    recalls = {beams: validation_recall(generator, validation, beams, bias=corrections.of) for beams in tried}
    return corrections, BeamChoice.of(recalls, search.beams)


@dataclass(frozen=True)
class _Scored:
    generator: Generator
    codebooks: Float[np.ndarray, "M N e"] | None


class GenerativeSystem:
    """Pictures ranked by the log-probability of their sequences.

    `trie` holds the pool's sequences; row i of it is picture `image_ids[i]`. Pictures that share a sequence have the
    same score and come in the pool's order. A search returns at most `beams` sequences, so there may be fewer than k
    hits. `corrections` change the scores as they do in a search of our own. Raises `DataError` if ids and rows do not
    match, `ConfigError` for less than one beam.
    """

    def __init__(
        self,
        generator: StepModel,
        trie: VokenTrie,
        image_ids: Sequence[str],
        *,
        beams: int,
        paths: Sequence[str] | None = None,
        corrections: Corrections | None = None,
    ) -> None:
        self._pictures = PoolPictures(image_ids, paths, rows=trie.images)
        if beams < 1:
            raise ConfigError(f"beams must be at least 1, not {beams}.")
        self._generator = generator
        self._trie = trie
        self._beams = min(beams, trie.sequences)
        self._corrections = corrections

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` pictures, best first. Raises `ConfigError` for a `k` under 1 and an empty text."""
        check_k(k)
        queries = [readable_text(text, place) for place, text in enumerate(texts)]
        step = max(1, _LOGITS_AT_ONCE // (self._beams * self._trie.codebook_size))
        hits: list[list[Hit]] = []
        bias = None if self._corrections is None else self._corrections.of(self._trie)
        for start in range(0, len(queries), step):
            beams = beam_search(self._generator, self._trie, queries[start : start + step], self._beams, bias=bias)
            hits += [self._ranked(*row, k) for row in zip(beams.leaf, beams.log_prob, strict=True)]
        return hits

    def _ranked(self, leaves: np.ndarray, scores: np.ndarray, k: int) -> list[Hit]:
        pictures = Candidates.of(self._trie, leaves, scores)
        best = pictures.best(pictures.log_prob, k)
        rows, ranked = pictures.rows[best].tolist(), pictures.log_prob[best].tolist()
        vokens = map(tuple, self._trie.leaf_vokens(pictures.leaves[best]).tolist())
        return list(map(self._pictures.hit, rows, ranked, vokens))
