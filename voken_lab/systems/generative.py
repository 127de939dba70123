"""Search with any generator over any sequences, for GRACE, IRGen and similar systems.

This module does not know where the sequences come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voken.decoding.beam import beam_search
from voken.decoding.interface import StepModel
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.search.hit import Hit
from voken.search.readouts import Candidates
from voken.search.searcher import check_k, readable_text
from voken_lab.systems.pictures import PoolPictures

_LOGITS_AT_ONCE = 1 << 24


class GenerativeSystem:
    """Pictures ranked by the log-probability of their sequences.

    `trie` holds the pool's sequences; row i of it is picture `image_ids[i]`. Pictures that share a sequence have the
    same score and come in the pool's order. A search returns at most `beams` sequences, so there may be fewer than k
    hits. Raises `DataError` if ids and rows do not match, `ConfigError` for less than one beam.
    """

    def __init__(
        self,
        generator: StepModel,
        trie: VokenTrie,
        image_ids: Sequence[str],
        *,
        beams: int,
        paths: Sequence[str] | None = None,
    ) -> None:
        self._pictures = PoolPictures(image_ids, paths, rows=trie.images)
        if beams < 1:
            raise ConfigError(f"beams must be at least 1, not {beams}.")
        self._generator = generator
        self._trie = trie
        self._beams = min(beams, trie.sequences)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` pictures, best first. Raises `ConfigError` for a `k` under 1 and an empty text."""
        check_k(k)
        queries = [readable_text(text, place) for place, text in enumerate(texts)]
        step = max(1, _LOGITS_AT_ONCE // (self._beams * self._trie.codebook_size))
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), step):
            beams = beam_search(self._generator, self._trie, queries[start : start + step], self._beams)
            hits += [self._ranked(*row, k) for row in zip(beams.leaf, beams.log_prob, strict=True)]
        return hits

    def _ranked(self, leaves: np.ndarray, scores: np.ndarray, k: int) -> list[Hit]:
        pictures = Candidates.of(self._trie, leaves, scores)
        best = pictures.best(pictures.log_prob, k)
        rows, ranked = pictures.rows[best].tolist(), pictures.log_prob[best].tolist()
        vokens = map(tuple, self._trie.leaf_vokens(pictures.leaves[best]).tolist())
        return list(map(self._pictures.hit, rows, ranked, vokens))
