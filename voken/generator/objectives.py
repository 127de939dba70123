"""What stage 2 is trained on: pairs of texts and voken sequences, the losses, and the lists that L_dis ranks.

L_gen is Eq. 7 and L_dis Eq. 9 of the paper; the other losses go beyond it. All losses are means over queries, computed
in float32 and differentiable in the logits. Nothing here knows the pictures themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy

from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.generator.interface import Generator
from voken.optimisation import one_caption_per_image
from voken.shapes import Bool, Float, Int


@dataclass(frozen=True)
class SoftTargets:
    """A distribution over codebook entries at each level of each row, cut to the K most probable entries."""

    entries: Int[np.ndarray, "rows M K"]
    weights: Float[np.ndarray, "rows M K"]


@dataclass(frozen=True)
class VokenPairs:
    """Training pairs. Row p of `pairs` says that text `pairs[p, 1]` describes picture `pairs[p, 0]`."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "images M"]
    concepts: Int[np.ndarray, " images"]
    """Pictures of one concept are never negatives of each other's texts."""
    pairs: Int[np.ndarray, "pairs 2"]
    soft: SoftTargets | None = None
    """Soft targets of the pictures; None: one-hot."""
    text_soft: SoftTargets | None = None
    """Soft targets of the texts' own vectors, for text-only training; None: no such training."""
    text_vectors: Float[np.ndarray, "texts dim"] | None = None
    """With `rebuilt_vectors`, the teacher of list-wise distillation; None: no teacher."""
    rebuilt_vectors: Float[np.ndarray, "images dim"] | None = None

    def draw(self, random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
        """One row per picture that has a text, with one of its texts, in random order."""
        return one_caption_per_image(self.pairs, random)


@dataclass(frozen=True)
class ValidationQueries:
    """Queries over a pool with all their right answers, by which the generator is judged while it trains."""

    texts: Sequence[str]
    vokens: Int[np.ndarray, "pool M"]
    relevant: Int[np.ndarray, "answers 2"]
    """Rows (query, picture of the pool)."""


def generation_loss(
    logits: Float[Tensor, "pairs M N"], vokens: Int[Tensor, "pairs M"], *, temperature: float = 1.0
) -> Tensor:
    """L_gen, Eq. 7: minus the log-probability of the picture's vokens, summed over its M levels.

    `temperature` divides the logits, as in the official code; the softmax is over voken rows only.
    """
    return cross_entropy((logits.float() / temperature).flatten(0, 1), vokens.flatten(), reduction="sum") / len(vokens)


def soft_generation_loss(
    logits: Float[Tensor, "pairs M N"],
    entries: Int[Tensor, "pairs M K"],
    weights: Float[Tensor, "pairs M K"],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """L_gen with a distribution over entries as its target: cross-entropy, summed over levels.

    With all weight on the picture's own voken it equals `generation_loss`.
    """
    log_prob = (logits.float() / temperature).log_softmax(-1).gather(-1, entries)
    return -(weights * log_prob).sum() / len(entries)


def sequence_log_prob(
    logits: Float[Tensor, "queries sequences M N"], vokens: Int[Tensor, "queries sequences M"]
) -> Float[Tensor, "queries sequences"]:
    """s_j, the score of a sequence in Eq. 9: the sum of its vokens' log-probabilities."""
    return logits.float().log_softmax(-1).gather(-1, vokens[..., None]).squeeze(-1).sum(-1)


def discrimination_loss(
    scores: Float[Tensor, "queries sequences"], usable: Bool[Tensor, "queries sequences"]
) -> Tensor:
    """L_dis, Eq. 9: one softmax over the list, the positive in column 0; unusable columns are left out."""
    scores = scores.masked_fill(~usable, float("-inf"))
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def distillation_loss(
    scores: Float[Tensor, "queries sequences"],
    teacher: Float[Tensor, "queries sequences"],
    usable: Bool[Tensor, "queries sequences"],
) -> Tensor:
    """Cross-entropy of the list's softmax against the softmax of a teacher's scores over the same list."""
    log_prob = scores.masked_fill(~usable, -1e4).log_softmax(1)
    target = teacher.masked_fill(~usable, float("-inf")).softmax(1)
    return -(target * log_prob).sum(1).mean()


@dataclass(frozen=True)
class Candidates:
    """One list per query. Column 0 is the positive; other right answers and padding are not usable."""

    vokens: Int[np.ndarray, "queries columns M"]
    rows: Int[np.ndarray, "queries columns"]
    """A picture that has the sequence; in column 0 the query's own."""
    usable: Bool[np.ndarray, "queries columns"]


class CandidateSearch:
    """Beam search over the training sequences for the lists of L_dis (Eq. 8). Built once per training set."""

    def __init__(self, pairs: VokenPairs, codebook_size: int) -> None:
        self._pairs = pairs
        self.trie = VokenTrie.from_vokens(pairs.vokens, codebook_size)
        self._leaf_of_image = self.trie.leaf_of(pairs.vokens)
        self._first_image = np.unique(self._leaf_of_image, return_index=True)[1]
        self._leaves = self.trie.sequences
        self._right = np.unique(pairs.concepts.astype(np.int64) * self._leaves + self._leaf_of_image)

    def find(self, model: Generator, state: Any, images: Int[np.ndarray, " queries"], beams: int) -> Candidates:
        """Lists of at most `beams` for queries whose positives are `images`, from the model's `state`.

        As in the official code, the positive comes first and beams equal to it are dropped. Beams that hold another
        picture of the same concept are right answers too, and are therefore not used as negatives.
        """
        leaf = beam_search_from_state(model, state, self.trie, beams).leaf
        positive = self._leaf_of_image[images][:, None]
        key = self._pairs.concepts[images].astype(np.int64)[:, None] * self._leaves + leaf
        usable = (leaf >= 0) & (leaf != positive) & ~np.isin(key, self._right)
        # The positive replaces the last beam, so a list is never longer than the number of beams.
        leaf, usable = leaf[:, : beams - 1], usable[:, : beams - 1]
        rows = np.concatenate([images[:, None], self._first_image[leaf.clip(0)]], 1)
        usable = np.concatenate([np.ones((len(images), 1), bool), usable], 1)
        return Candidates(self._pairs.vokens[rows], rows, usable)
