"""The lists that L_dis ranks (Eq. 8): a beam search over the training sequences, the positive put first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.generator.interface import Generator
from voken.generator.pairs import VokenPairs
from voken.shapes import Bool, Int


@dataclass(frozen=True)
class Candidates:
    """One list a query. Column 0 is the positive; other right answers and padding are not usable."""

    vokens: Int[np.ndarray, "queries columns M"]
    rows: Int[np.ndarray, "queries columns"]
    """A picture that has the sequence; the query's own in column 0."""
    usable: Bool[np.ndarray, "queries columns"]


class CandidateSearch:
    """Finds the lists. Built once for a training set."""

    def __init__(self, pairs: VokenPairs, codebook_size: int) -> None:
        self._pairs = pairs
        self.trie = VokenTrie.from_vokens(pairs.vokens, codebook_size)
        self._leaf_of_image = self.trie.leaf_of(pairs.vokens)
        self._first_image = np.unique(self._leaf_of_image, return_index=True)[1]
        self._leaves = self.trie.sequences
        self._right = np.unique(pairs.concepts.astype(np.int64) * self._leaves + self._leaf_of_image)

    def find(self, model: Generator, state: Any, images: Int[np.ndarray, " queries"], beams: int) -> Candidates:
        """Lists of at most `beams` for queries whose positives are `images`, from the model's `state`.

        As in the official code the positive stands first and beams equal to it are dropped. Beams that hold
        another picture of the same concept are right too, and so are no negatives.
        """
        found = beam_search_from_state(model, state, self.trie, beams)
        leaf = found.leaf
        positive = self._leaf_of_image[images][:, None]
        key = self._pairs.concepts[images].astype(np.int64)[:, None] * self._leaves + leaf
        usable = (leaf >= 0) & (leaf != positive) & ~np.isin(key, self._right)
        # the positive takes the place of the last beam, so a list is never longer than the beams
        leaf, usable = leaf[:, : beams - 1], usable[:, : beams - 1]
        rows = np.concatenate([images[:, None], self._first_image[leaf.clip(0)]], 1)
        usable = np.concatenate([np.ones((len(images), 1), bool), usable], 1)
        return Candidates(self._pairs.vokens[rows], rows, usable)


def as_tensors(candidates: Candidates, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(vokens, usable) on the device."""
    return (
        torch.from_numpy(candidates.vokens).long().to(device),
        torch.from_numpy(candidates.usable).to(device),
    )
