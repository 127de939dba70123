"""Search with any generator over any sequences: what GRACE, IRGen and the like share with voken's own search.

It does not know where the sequences come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voken.decoding.beam import beam_search
from voken.decoding.interface import StepModel
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, DataError
from voken.search.hit import Hit
from voken.search.searcher import ranked, readable_text

_LOGITS_AT_ONCE = 1 << 24


class GenerativeSystem:
    """Pictures ranked by the log-probability of their sequences.

    `trie` holds the pool's sequences; row i of it is picture `image_ids[i]`. Pictures that share a sequence have one
    score and come in the pool's order. `beams` bounds how many sequences are found, and so may give fewer hits
    than asked for. Raises `DataError` where ids and rows do not match, `ConfigError` for less than one beam.
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
        if len(image_ids) != trie.images or (paths is not None and len(paths) != len(image_ids)):
            raise DataError(f"{len(image_ids)} picture ids for {trie.images} sequences: there must be one a picture.")
        if beams < 1:
            raise ConfigError(f"beams: {beams}; at least 1 is needed.")
        self._generator = generator
        self._trie = trie
        self._image_ids = tuple(image_ids)
        self._paths = ("",) * len(image_ids) if paths is None else tuple(map(str, paths))
        self._beams = min(beams, trie.sequences)

    def search(self, texts: list[str], k: int) -> list[list[Hit]]:
        """For each text at most `k` pictures, best first. Raises `ConfigError` for a `k` under 1 and an empty text."""
        if k < 1:
            raise ConfigError(f"k: {k} pictures a query; ask for 1 or more.")
        read = [readable_text(text, place) for place, text in enumerate(texts)]
        step = max(1, _LOGITS_AT_ONCE // (self._beams * self._trie.codebook_size))
        hits: list[list[Hit]] = []
        for start in range(0, len(read), step):
            found = beam_search(self._generator, self._trie, read[start : start + step], self._beams)
            hits += [self._ranked(*row, k) for row in zip(found.leaf, found.log_prob, strict=True)]
        return hits

    def _ranked(self, leaves: np.ndarray, scores: np.ndarray, k: int) -> list[Hit]:
        found = ranked(self._trie, leaves[leaves >= 0], scores[leaves >= 0], k)
        return [Hit(self._image_ids[row], self._paths[row], score, vokens) for row, score, vokens, _ in found]
