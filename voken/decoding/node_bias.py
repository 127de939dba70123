"""Terms of a node's score that do not depend on the query: the generator's prior, and the length of a rebuilt vector.

    score(node) = log p(node | query) - prior_weight × Σ log p(voken | prefix) - norm_weight × ‖z(node)‖²

*The prior.* A generator learns which sequences are frequent in its training set, and wide beams collect those whatever
the query is. The mean of log p(voken | prefix) over a sample of training captions measures this prior; taking it out
leaves the part of a score that the query explains (Li et al., NAACL 2016, "A Diversity-Promoting Objective Function").

*The length.* z(node) is the sum of the codebook entries on the path. A generator that compares entries with a query's
point t ranks by <t, z>, so a long z wins over one that points the same way. With weight ½ the order is that of
-‖t - z‖²; near 0.4 it is nearly that of the cosine, if the vectors have about unit length.

Both are sums over levels: a beam search adds a node's part when it reaches the node. This module knows neither
text nor pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voken.decoding.interface import StepModel, without_gradients
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.shapes import Float, Float32, Int64, Integer

NodePrior = tuple[np.ndarray, ...]
"""For each level 1 … M: the mean of log p(last voken | the vokens before it), a float32 for each node of a trie."""
_LEAVES_AT_ONCE = 256
_LOGITS_AT_ONCE = 1 << 22
"""Largest captions × nodes × N in one step of the model while a prior is measured: 16 MB of float32."""
_LEAST_LOG_PROB = -1e4
"""Stands for log 0 in a prior, so that a mean is finite."""
_DENSE = 8
"""A level's products with all N entries are computed if they are at most so many times those that are needed: one
product of matrices is that much faster than gathered rows."""


@dataclass(frozen=True, eq=False)
class NodeBias:
    """What a beam search adds to the scores of nodes. A weight of 0 leaves its term out."""

    norm_weight: float = 0.0
    """In units of log-probability per squared length."""
    codebooks: Float32[np.ndarray, "M N e"] | None = None
    """Needed with `norm_weight`: entries that sum to the vectors."""
    prior_weight: float = 0.0
    prior: NodePrior | None = None
    """Needed with `prior_weight`: that of the trie that is searched."""

    def __post_init__(self) -> None:
        for name, weight, needed in (
            ("norm_weight", self.norm_weight, self.codebooks),
            ("prior_weight", self.prior_weight, self.prior),
        ):
            if not np.isfinite(weight):
                raise ConfigError(f"{name} {weight}: must be a finite number.")
            if weight and needed is None:
                raise ConfigError(f"{name} {weight:g}: the model does not hold what it needs. Set it to 0.")

    def check(self, trie: VokenTrie) -> None:
        """Raise `ConfigError` if it does not fit the trie."""
        if self.norm_weight:
            assert self.codebooks is not None
            if self.codebooks.shape[:2] != (trie.levels, trie.codebook_size):
                raise ConfigError(
                    f"norm_weight: codebooks of shape {self.codebooks.shape} do not fit {trie.levels} levels of "
                    f"{trie.codebook_size} vokens. Use the model that indexed the collection."
                )
        if self.prior_weight:
            assert self.prior is not None
            if [len(values) for values in self.prior] != [trie.nodes(level + 1) for level in range(trie.levels)]:
                raise ConfigError("prior_weight: the prior is that of another trie. Measure it again.")

    def of_children(
        self,
        level: int,
        path: Int64[np.ndarray, "beams level"],
        first: Int64[np.ndarray, " beams"],
        widths: Int64[np.ndarray, " beams"],
        vokens: Integer[np.ndarray, "beams width"] | None,
    ) -> Float32[np.ndarray, "beams width"]:
        """The terms of the children of nodes of `level` (0 … M - 1), to be added to their scores.

        `path` holds the nodes' vokens; their children are nodes first … first + widths - 1 of the level below, with
        `vokens`, padded to any width. None stands for all N children of every node, in order.
        """
        width = int(widths.max()) if vokens is None else vokens.shape[1]
        bias = np.zeros((len(path), width), dtype=np.float32)
        if self.norm_weight:
            bias -= np.float32(self.norm_weight) * self._gained_lengths(level, path, widths, vokens)
        if self.prior_weight:
            assert self.prior is not None
            children = first[:, None] + np.arange(width)
            bias -= np.float32(self.prior_weight) * self.prior[level].take(children, mode="clip")
        return bias

    def of_sequences(
        self, vokens: Integer[np.ndarray, "sequences M"], leaves: Int64[np.ndarray, " sequences"], trie: VokenTrie
    ) -> Float32[np.ndarray, " sequences"]:
        """The sum of the terms along each sequence; `leaves` are its leaves in `trie`, or -1: no prior is known."""
        total = np.zeros(len(vokens), dtype=np.float32)
        if self.norm_weight:
            assert self.codebooks is not None
            total -= np.float32(self.norm_weight) * squared_lengths(self.codebooks, vokens)
        if self.prior_weight:
            assert self.prior is not None
            prior = sequence_prior(self.prior, trie)[np.maximum(leaves, 0)]
            total -= np.float32(self.prior_weight) * np.where(leaves >= 0, prior, np.float32(0))
        return total

    def _gained_lengths(
        self,
        level: int,
        path: Int64[np.ndarray, "beams level"],
        widths: Int64[np.ndarray, " beams"],
        vokens: Integer[np.ndarray, "beams width"] | None,
    ) -> Float32[np.ndarray, "beams width"]:
        """‖z + c‖² - ‖z‖² = 2 <z, c> + ‖c‖² of each child."""
        assert self.codebooks is not None
        book, squares = self.codebooks[level], self._squares[level]
        summed = np.zeros((len(path), book.shape[1]), dtype=np.float32)
        for above, column in enumerate(path.T):
            summed += self.codebooks[above][column]
        if vokens is None:
            every: np.ndarray = 2 * (summed @ book.T) + squares
            return every
        needed = int(widths.sum())
        if needed * _DENSE > len(path) * len(book):
            gained: np.ndarray = np.take_along_axis(2 * (summed @ book.T) + squares, vokens.astype(np.int64), 1)
            return gained
        gained = np.zeros(vokens.shape, dtype=np.float32)
        beam, place = (np.arange(vokens.shape[1]) < widths[:, None]).nonzero()
        entries = vokens[beam, place]
        gained[beam, place] = 2 * np.einsum("ne,ne->n", summed[beam], book[entries]) + squares[entries]
        return gained

    @cached_property
    def _squares(self) -> Float32[np.ndarray, "M N"]:
        assert self.codebooks is not None
        squares: np.ndarray = np.einsum("mne,mne->mn", self.codebooks, self.codebooks)
        return squares


def squared_lengths(
    codebooks: Float[np.ndarray, "M N e"], vokens: Integer[np.ndarray, "sequences M"]
) -> Float32[np.ndarray, " sequences"]:
    """‖z‖² of each sequence, z being the sum of its entries."""
    summed = np.zeros((len(vokens), codebooks.shape[2]), dtype=np.float32)
    for book, column in zip(codebooks, vokens.T, strict=True):
        summed += book[column]
    squares: np.ndarray = np.einsum("ne,ne->n", summed, summed)
    return squares


def sequence_prior(prior: NodePrior, trie: VokenTrie) -> Float32[np.ndarray, " leaves"]:
    """The prior of each whole sequence: the sum over its nodes."""
    total = np.zeros(1, dtype=np.float32)
    for level, values in enumerate(prior):
        total = total[trie.child_offsets[level].parents(np.arange(len(values)))] + values
    return total


def measure_prior(model: StepModel, texts: Sequence[str], trie: VokenTrie) -> NodePrior:
    """The prior of every node of `trie`, as the mean over `texts` (training captions).

    It takes a step of the model for every node above the leaves and every text: with 256 texts and 1,000 pictures of
    six levels, 1.5 million steps.
    """
    prior = tuple(np.zeros(trie.nodes(level + 1), dtype=np.float32) for level in range(trie.levels))
    if not texts or not trie.sequences:
        return prior
    widest = min(_LEAVES_AT_ONCE, trie.sequences)
    at_once = max(1, min(len(texts), _LOGITS_AT_ONCE // (widest * trie.codebook_size)))
    with without_gradients(model):
        for start in range(0, len(texts), at_once):
            state = model.prefill(texts[start : start + at_once])
            for first in range(0, trie.sequences, widest):
                _add_log_probs(model, state, trie, first, min(first + widest, trie.sequences), prior)
    # a node whose leaves lie in several blocks was added once a block
    for level, values in enumerate(prior):
        values /= np.float32(len(texts)) * _blocks_of_nodes(trie, level + 1, widest)
    return prior


def prior_from(
    known: tuple[VokenTrie, NodePrior], model: StepModel, texts: Sequence[str], trie: VokenTrie
) -> NodePrior:
    """`measure_prior` of `trie`, which looks up the nodes of another trie and measures only new sequences."""
    known_trie = known[0]
    sequences = trie.leaf_vokens(np.arange(trie.sequences))
    new = sequences[known_trie.leaf_of(sequences) < 0]
    sources = [known]
    if len(new):
        new_trie = VokenTrie.from_vokens(new, trie.codebook_size)
        sources.append((new_trie, measure_prior(model, texts, new_trie)))
    prior = tuple(np.zeros(trie.nodes(level + 1), dtype=np.float32) for level in range(trie.levels))
    nodes = np.arange(trie.sequences)
    for level in range(trie.levels, 0, -1):
        for source, values in reversed(sources):  # what is known comes last, and stays
            there = source.node_of(sequences[:, :level])
            prior[level - 1][nodes[there >= 0]] = values[level - 1][there[there >= 0]]
        nodes = trie.child_offsets[level - 1].parents(nodes)
    return prior


def _add_log_probs(model: StepModel, state: Any, trie: VokenTrie, first: int, end: int, prior: NodePrior) -> None:
    """Add to `prior` the log-probabilities, summed over the texts of `state`, of the nodes above leaves first … end."""
    ranges = [(first, end)]
    for level in range(trie.levels, 0, -1):
        low, high = trie.child_offsets[level - 1].parents(np.array([ranges[0][0], ranges[0][1] - 1])).tolist()
        ranges.insert(0, (low, high + 1))
    logits, state = model.step(state, None, None)
    for level in range(trie.levels):
        nodes = np.arange(*ranges[level + 1])
        vokens = trie.vokens[level][nodes].astype(np.int64)
        parents = trie.child_offsets[level].parents(nodes) - ranges[level][0]
        prior[level][nodes] += _summed_log_probs(model, logits, parents, vokens)
        if level + 1 < trie.levels:
            logits, state = model.step(state, *_for_model(model, len(logits), vokens, parents))


def _for_model(model: StepModel, queries: int, *rows: Int64[np.ndarray, " beams"]) -> list[Any]:
    arrays = [np.repeat(row[None], queries, axis=0) for row in rows]
    if model.device is None:
        return arrays
    import torch

    return [torch.from_numpy(array).to(model.device) for array in arrays]


def _summed_log_probs(
    model: StepModel, logits: Any, parents: Int64[np.ndarray, " nodes"], vokens: Int64[np.ndarray, " nodes"]
) -> Float32[np.ndarray, " nodes"]:
    if model.device is None:
        values = logits[:, parents, vokens]
        if not model.log_probs:
            highest = logits.max(-1, keepdims=True)
            total = np.log(np.exp(logits - highest).sum(-1)) + highest[..., 0]
            values = values - total[:, parents]
    else:
        import torch

        log_probs = logits.float()
        log_probs = log_probs - log_probs.logsumexp(-1, keepdim=True)
        rows, columns = (torch.from_numpy(index).to(logits.device) for index in (parents, vokens))
        values = log_probs[:, rows, columns].cpu().numpy()
    summed: np.ndarray = np.maximum(values, _LEAST_LOG_PROB).sum(0, dtype=np.float32)
    return summed


def _blocks_of_nodes(trie: VokenTrie, level: int, widest: int) -> Float32[np.ndarray, " nodes"]:
    """The number of blocks of `widest` leaves in which each node of `level` has a leaf."""
    bounds = np.arange(trie.nodes(level) + 1)
    for starts in trie.child_offsets[level:]:
        bounds = starts.firsts(bounds)
    first, last = bounds[:-1], bounds[1:] - 1
    return (last // widest - first // widest + 1).astype(np.float32)
