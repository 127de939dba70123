"""The trie as it is stored: the step of a beam search for models that give numpy arrays. No torch anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.decoding.kept import DIVERGED, IMPOSSIBLE, Kept
from voken.decoding.trie import VokenTrie
from voken.errors import VokenError
from voken.shapes import Float32, Int64

_GROUPED = 16
"""Candidates of which only the best is looked at first. The width of many candidates is a multiple of it."""
_LOWEST = np.finfo(np.float32).min
_IMPOSSIBLE = np.float32(IMPOSSIBLE)


@dataclass(frozen=True, eq=False)
class NumpyTrie:
    """Expands many nodes at once, straight from a `VokenTrie`'s arrays, mapped or not."""

    trie: VokenTrie

    def root(self, queries: int) -> Kept:
        """One beam a query, at the root."""
        nothing = np.zeros((queries, 1), dtype=np.int64)
        return Kept(nothing, nothing.astype(np.float32), nothing, nothing[:, :, None][:, :, :0])

    def expand(
        self, level: int, kept: Kept, logits: Any, beams: int, *, temperature: float = 1.0, log_probs: bool = False
    ) -> Kept:
        """The best `beams` children of `kept`, which are nodes of `level` (0 … M - 1).

        `logits` are the model's (queries, beams, N) for them, float32; `log_probs` says that their exponentials sum
        to 1 already, which saves the pass over all N. Raises `VokenError` where they are not finite.
        """
        queries, width, entries = logits.shape
        rows = logits.reshape(-1, entries)
        if temperature != 1.0:
            rows = rows / np.float32(temperature)
        total = None if log_probs and temperature == 1.0 else _log_of_summed(rows)
        start, end = self.trie.child_starts[level].ranges(kept.nodes.reshape(-1))
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
        scores += kept.log_prob.reshape(-1, 1)
        if narrowest < widest:
            scores[np.arange(widest, dtype=np.int32) >= widths.astype(np.int32)[:, None]] = -np.inf
        flat = _best(scores.reshape(queries, -1), min(beams, self.trie.nodes(level + 1)))
        beam = flat // widest
        place = flat - beam * widest
        path = np.empty((*flat.shape, level + 1), dtype=np.int64)
        path[:, :, :level] = kept.path.reshape(queries * width, level)[beam]
        path[:, :, level] = place if voken is None else voken.reshape(-1)[flat]
        parents = beam - np.arange(0, queries * width, width)[:, None]
        return Kept(start[beam] + place, scores.reshape(-1)[flat], parents, path)

    def fetched(self, kept: Kept) -> Kept:
        """The same: these are numpy arrays."""
        return kept


def _log_of_summed(rows: Float32[np.ndarray, "rows N"]) -> Float32[np.ndarray, "rows 1"]:
    """log Σ exp of each row. Raises `VokenError` where that is not finite."""
    highest = rows.max(axis=1, keepdims=True)
    if not np.isfinite(highest).all():
        raise VokenError(DIVERGED)
    shifted = rows - highest
    np.exp(shifted, out=shifted)
    total: np.ndarray = np.log(shifted.sum(axis=1, keepdims=True)) + highest
    return total


def _best(scores: Float32[np.ndarray, "queries candidates"], count: int) -> Int64[np.ndarray, "queries count"]:
    """Places (in the flattened array) of each query's `count` best candidates, ascending; of those tied the first.

    As candidates stand in the order of their nodes, keeping places ascending keeps nodes ascending. Raises `VokenError`
    where a score is no number or too great to be one.
    """
    queries, candidates = scores.shape
    groups = candidates // _GROUPED
    # the count-th best group is no better than the count-th best candidate, and few candidates reach it
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
    kept: np.ndarray = places[np.sort(order[start[:, None] + np.arange(count)], axis=1)]
    return kept
