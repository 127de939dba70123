"""Beam search over the sequences of a trie.

The search knows nothing about text or pictures: it asks a step model for logits and the trie for children, and moves
integers. A beam is a node of the trie. The softmax is over all N vokens of a level, not only over those that the trie
allows, so a score is log p(sequence | query), whichever other sequences the trie holds. A `NodeBias` adds to it terms
of the nodes that do not depend on the query.

At level l the search keeps min(b, nodes of level l) beams. Every node has a child, so there are always that many
beams, and only a result with more beams than sequences is padded. The search starts with a single beam, the root, so
the first step of the model is cheap.

Children are scored and chosen in numpy here, or by `voken.decoding.torch_expansion` for a model in torch, which is
imported only then.

A model that is linear (`voken.decoding.interface.LinearModel`) takes no steps. `voken.decoding.linear` then finds the
best sequences exactly, as a search with any number of beams would; only over more than two million sequences there are
beams, which read the same table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.decoding.interface import (
    DIVERGED,
    IMPOSSIBLE,
    BeamState,
    Expansion,
    LinearModel,
    StepModel,
    without_gradients,
)
from voken.decoding.linear import MOST_LEAVES, MOST_LEAVES_ONCE, LeafCodes, TableModel, best_leaves
from voken.decoding.node_bias import NodeBias
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError, VokenError
from voken.shapes import Float32, Int32, Int64

_GROUPED = 16
"""Candidates per group; only the best of a group is compared at first. Long lists are padded to a multiple of it."""
_LOWEST = np.finfo(np.float32).min
_IMPOSSIBLE = np.float32(IMPOSSIBLE)
_MAX_NODES_PER_BEAM = 1.5
"""Most nodes of a level that a look-ahead reads, per beam. Beyond that, reading nodes that the search would prune costs
more than it saves."""


@dataclass(frozen=True)
class Beams:
    """The best sequences of each query, best first; with equal scores, the lower leaf first."""

    vokens: Int32[np.ndarray, "queries beams levels"]
    """The sequences; zeros if `leaf` is -1."""
    leaf: Int64[np.ndarray, "queries beams"]
    """Leaves of the trie; -1 at the end if there are fewer sequences than beams."""
    log_prob: Float32[np.ndarray, "queries beams"]
    """Log-probability of the sequence, a sum over its levels, plus the bias of its nodes; -inf if `leaf` is -1."""


def beam_search(
    model: StepModel,
    trie: VokenTrie,
    texts: Sequence[str],
    beams: int,
    *,
    logit_temperature: float = 1.0,
    bias: NodeBias | None = None,
) -> Beams:
    """The `beams` most probable sequences of `trie` for each text, by the sum of log-probabilities in Eq. 9.

    `logit_temperature` divides the logits. `bias` is added to the scores, so it also decides which beams are kept.
    Raises `ConfigError` if model, bias and trie differ in codebook size or levels, or if a number is out of range.
    """
    _check(model, trie, beams, logit_temperature, bias)
    if not len(texts):
        return _no_beams(0, beams, trie.levels)
    with without_gradients(model):
        state = model.prefill(texts)
        return beam_search_from_state(model, state, trie, beams, logit_temperature=logit_temperature, bias=bias)


def beam_search_from_state(
    model: StepModel,
    state: Any,
    trie: VokenTrie,
    beams: int,
    *,
    logit_temperature: float = 1.0,
    bias: NodeBias | None = None,
) -> Beams:
    """`beam_search` from a `state` that the model's `prefill` (or a generator's `encode`) returned.

    The state is not changed: a trainer may search from it, and then compute a loss from it.
    """
    _check(model, trie, beams, logit_temperature, bias)
    with without_gradients(model):
        linear = _Linear.of(model, state, logit_temperature, bias)
        if linear is None:
            leaves = _search(model, state, trie, beams, logit_temperature, bias)
        elif trie.sequences <= linear.most_leaves:
            return _best_sequences(linear.table, trie, beams, linear.bias)
        else:
            leaves = _search(TableModel(linear.table), 0, trie, beams, 1.0, linear.bias)
    best_first = np.argsort(-leaves.log_prob, axis=1, kind="stable")
    log_prob = np.take_along_axis(leaves.log_prob, best_first, 1)
    possible = log_prob > IMPOSSIBLE
    result = _no_beams(len(log_prob), beams, trie.levels)
    width = log_prob.shape[1]
    result.leaf[:, :width] = np.where(possible, np.take_along_axis(leaves.nodes, best_first, 1), -1)
    result.log_prob[:, :width] = np.where(possible, log_prob, -np.inf)
    vokens = np.take_along_axis(leaves.path, best_first[:, :, None], 1)
    result.vokens[:, :width] = np.where(possible[:, :, None], vokens, 0)
    return result


@dataclass(frozen=True)
class _Linear:
    """The queries of a model that is linear."""

    table: Float32[np.ndarray, "queries M N"]
    """The log-probabilities of every level."""
    bias: NodeBias | None
    most_leaves: int
    """Leaves of the largest trie that is scanned."""

    @classmethod
    def of(cls, model: StepModel, state: Any, temperature: float, bias: NodeBias | None) -> _Linear | None:
        """None if the model is not linear, or has a bias of its own beside a given one.

        Also None on a GPU, where the beams of many queries take less time than a scan on the processor.
        """
        if not isinstance(model, LinearModel) or (model.device is not None and model.device.type != "cpu"):
            return None
        if model.node_bias is not None and (bias is not None or temperature != 1.0):
            return None
        table = model.level_logits(state)
        if table is None:
            return None
        if not model.log_probs or temperature != 1.0:
            rows = table.reshape(-1, table.shape[2])
            if temperature != 1.0:
                rows = rows / np.float32(temperature)
            table = (rows - _log_sum_exp(rows)).reshape(table.shape)
        return cls(table, model.node_bias or bias, MOST_LEAVES_ONCE if model.answers_once else MOST_LEAVES)


def _best_sequences(
    table: Float32[np.ndarray, "queries M N"], trie: VokenTrie, beams: int, bias: NodeBias | None
) -> Beams:
    """The best sequences of a linear model, by an exact search."""
    result = _no_beams(len(table), beams, trie.levels)
    if not trie.sequences:
        return result
    leaf, log_prob = best_leaves(table, trie, min(beams, trie.sequences), bias)
    possible = log_prob > IMPOSSIBLE
    width = leaf.shape[1]
    result.leaf[:, :width] = np.where(possible, leaf, -1)
    result.log_prob[:, :width] = np.where(possible, log_prob, -np.inf)
    vokens = LeafCodes.of(trie).vokens(leaf.reshape(-1)).reshape(*leaf.shape, -1)
    result.vokens[:, :width] = np.where(possible[:, :, None], vokens, 0)
    return result


def _search(
    model: StepModel, state: Any, trie: VokenTrie, count: int, logit_temperature: float, bias: NodeBias | None
) -> BeamState:
    """The beams at the leaves, in ascending order of leaves, as numpy arrays."""
    logits, state = model.step(state, None, None)
    expansion = _expansion(model, trie, bias)
    beams = expansion.root(len(logits))
    ahead = None
    for level in range(trie.levels):
        if level and ahead is None:
            ahead = _LookAhead.read(model, state, trie, beams, level)
        if ahead is not None:
            logits = ahead.at(level, beams)
        elif level:
            logits, state = model.step(state, beams.path[:, :, -1], beams.parents)
        beams = expansion.expand(level, beams, logits, count, temperature=logit_temperature, log_probs=model.log_probs)
    return expansion.as_numpy(beams)


def _expansion(model: StepModel, trie: VokenTrie, bias: NodeBias | None) -> Expansion:
    if model.device is None:
        return NumpyExpansion(trie, bias)
    from voken.decoding.torch_expansion import TorchExpansion

    return TorchExpansion.of(trie, model.device, bias)


@dataclass(frozen=True)
class _LookAhead:
    """Logits of a model at the beams of one query, and at all nodes below those beams.

    If few nodes are left below the beams, one pass of the model over all of them replaces a step per level. With
    300,000 sequences and N = 1,024, nearly every node of level 2 has only one child, and so has that child. This saves
    time for a model whose steps mostly read its weights. The result of the search is the same.
    """

    level: int
    nodes: tuple[Int64[np.ndarray, " nodes"], ...]
    """The nodes of `level`, and of each deeper level except the last."""
    logits: Float32[np.ndarray, "1 nodes N"]

    @classmethod
    def read(cls, model: Any, state: Any, trie: VokenTrie, beams: BeamState, level: int) -> _LookAhead | None:
        """Run the model over `beams`, nodes of `level`, and all nodes below; None if it cannot or saves no time."""
        if not model.reads_trees or len(beams.nodes) != 1:
            return None
        nodes = [beams.nodes[0]]
        vokens, parents, before = [beams.path[0, :, -1]], [], 0
        for below in range(level, trie.levels - 1):
            start, end = trie.child_offsets[below].ranges(nodes[-1])
            counts = end - start
            total = int(counts.sum())
            if total > _MAX_NODES_PER_BEAM * len(nodes[0]):
                return None
            parents.append(before + np.repeat(np.arange(len(counts)), counts))
            before += len(counts)
            nodes.append(np.repeat(start - (counts.cumsum() - counts), counts) + np.arange(total))
            vokens.append(trie.vokens[below][nodes[-1]].astype(np.int64))
        if not parents:  # the last step
            return None
        logits = model.step_tree(state, np.concatenate(vokens)[None], beams.parents, np.concatenate(parents))
        return cls(level, tuple(nodes), logits)

    def at(self, level: int, beams: BeamState) -> Float32[np.ndarray, "1 beams N"]:
        """The logits of `beams`, which are nodes of `level`."""
        place = level - self.level
        before = sum(map(len, self.nodes[:place]))
        return self.logits[:, before + self.nodes[place].searchsorted(beams.nodes[0])]


@dataclass(frozen=True, eq=False)
class NumpyExpansion:
    """Expands many nodes at once, directly from the trie's arrays, mapped or not."""

    trie: VokenTrie
    bias: NodeBias | None = None

    def root(self, queries: int) -> BeamState:
        """See `Expansion`."""
        zeros = np.zeros((queries, 1), dtype=np.int64)
        return BeamState(zeros, zeros.astype(np.float32), zeros, zeros[:, :, None][:, :, :0])

    def expand(
        self,
        level: int,
        state: BeamState,
        logits: Any,
        beams: int,
        *,
        temperature: float = 1.0,
        log_probs: bool = False,
    ) -> BeamState:
        """See `Expansion`. With log-probabilities, no sum over all N is needed."""
        queries, width, entries = logits.shape
        rows = logits.reshape(-1, entries)
        if temperature != 1.0:
            rows = rows / np.float32(temperature)
        total = None if log_probs and temperature == 1.0 else _log_sum_exp(rows)
        start, end = self.trie.child_offsets[level].ranges(state.nodes.reshape(-1))
        widths = end - start
        narrowest, widest = int(widths.min()), int(widths.max())
        if narrowest == entries:
            voken = None
            scores = rows.copy() if total is None else rows - total
        else:
            if widest >= _GROUPED:
                widest = -(-widest // _GROUPED) * _GROUPED
            below = self.trie.vokens[level]
            voken = below.take(start[:, None] + np.arange(widest), mode="clip")
            scores = rows.take(voken + np.arange(0, rows.size, entries)[:, None], mode="clip")
            if total is not None:
                scores -= total
        np.maximum(scores, _IMPOSSIBLE, out=scores)
        scores += state.log_prob.reshape(-1, 1)
        if self.bias is not None:
            scores += self.bias.of_children(level, state.path.reshape(queries * width, level), start, widths, voken)
        if narrowest < widest:
            scores[np.arange(widest, dtype=np.int32) >= widths.astype(np.int32)[:, None]] = -np.inf
        flat = _best(scores.reshape(queries, -1), min(beams, self.trie.nodes(level + 1)))
        beam = flat // widest
        place = flat - beam * widest
        path = np.empty((*flat.shape, level + 1), dtype=np.int64)
        path[:, :, :level] = state.path.reshape(queries * width, level)[beam]
        path[:, :, level] = place if voken is None else voken.reshape(-1)[flat]
        parents = beam - np.arange(0, queries * width, width)[:, None]
        return BeamState(start[beam] + place, scores.reshape(-1)[flat], parents, path)

    def as_numpy(self, state: BeamState) -> BeamState:
        """See `Expansion`."""
        return state


def _log_sum_exp(rows: Float32[np.ndarray, "rows N"]) -> Float32[np.ndarray, "rows 1"]:
    """log Σ exp of each row. Raises `VokenError` if a result is not finite."""
    highest = rows.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise VokenError(DIVERGED)
    shifted = rows - highest
    np.exp(shifted, out=shifted)
    total: np.ndarray = np.log(shifted.sum(axis=1, keepdims=True)) + highest
    return total


def _best(scores: Float32[np.ndarray, "queries candidates"], count: int) -> Int64[np.ndarray, "queries count"]:
    """Places (in the flattened array) of each query's `count` best candidates, ascending; if tied, the first ones.

    Candidates are in the order of their nodes, so ascending places are ascending nodes. Raises `VokenError` if a score
    is NaN or +inf.
    """
    queries, candidates = scores.shape
    groups = candidates // _GROUPED
    # the count-th best of the groups' bests is at most the count-th best candidate, and few candidates reach it
    grouped = candidates % _GROUPED == 0 and groups >= count
    bests = scores.reshape(queries, _GROUPED, groups).max(axis=1) if grouped else scores
    if not bests.max() < np.inf:
        raise VokenError(DIVERGED)
    if candidates == count:
        return np.arange(queries * count).reshape(queries, count)
    least = np.partition(bests, bests.shape[1] - count, axis=1)[:, bests.shape[1] - count, None]
    np.maximum(least, _LOWEST, out=least)
    places = (scores >= least).reshape(-1).nonzero()[0]
    if len(places) == queries * count:
        return places.reshape(queries, count)
    query = places // candidates
    order = np.lexsort((-scores.reshape(-1)[places], query))
    start = query.searchsorted(np.arange(queries))
    best: np.ndarray = places[np.sort(order[start[:, None] + np.arange(count)], axis=1)]
    return best


def _no_beams(queries: int, beams: int, levels: int) -> Beams:
    return Beams(
        vokens=np.zeros((queries, beams, levels), dtype=np.int32),
        leaf=np.full((queries, beams), -1, dtype=np.int64),
        log_prob=np.full((queries, beams), -np.inf, dtype=np.float32),
    )


def _check(model: StepModel, trie: VokenTrie, beams: int, logit_temperature: float, bias: NodeBias | None) -> None:
    if beams < 1:
        raise ConfigError(f"beams {beams}: must be at least 1.")
    if not 0 < logit_temperature < float("inf"):
        raise ConfigError(f"logit_temperature {logit_temperature}: must be a number above 0.")
    if (model.codebook_size, model.levels) != (trie.codebook_size, trie.levels):
        raise ConfigError(
            f"The model writes {model.levels} vokens of {model.codebook_size}, but the collection holds "
            f"{trie.levels} of {trie.codebook_size}. Create the collection again with this model."
        )
    if bias is not None:
        bias.check(trie)
