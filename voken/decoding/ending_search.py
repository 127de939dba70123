"""Beam search over sequences of different lengths, each of which ends with an end token.

It is the search of `transformers.generate` with a list of allowed tokens: of the 2b best extensions of b beams, those
that end are finished if they are among the first b, and the b best others are continued. So a finished sequence takes
no beam from the others. The search ends when nothing is left to continue.

The trie holds the sequences filled up with end tokens to one length. This module knows neither text nor pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voken.decoding.beam import Beams
from voken.decoding.interface import IMPOSSIBLE, StepModel
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.shapes import Bool, Float32, Int64


@dataclass(frozen=True)
class _Extensions:
    """The best extensions of the beams, best first."""

    score: Float32[np.ndarray, "queries extensions"]
    """-inf if there are fewer."""
    beam: Int64[np.ndarray, "queries extensions"]
    node: Int64[np.ndarray, "queries extensions"]
    token: Int64[np.ndarray, "queries extensions"]

    def chosen(self, places: Int64[np.ndarray, "queries some"]) -> _Extensions:
        """Those at `places`."""
        arrays = (self.score, self.beam, self.node, self.token)
        return _Extensions(*(np.take_along_axis(array, places, axis=1) for array in arrays))


@dataclass
class _Finished:
    """The finished sequences of a query."""

    scores: list[float] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)


def ending_beam_search(
    model: StepModel, trie: VokenTrie, texts: Sequence[str], beams: int, end: int, *, length_penalty: float = 0.0
) -> Beams:
    """The `beams` best sequences that were reached for each text.

    `model` is a numpy model that returns log-probabilities. A score is their sum up to the end token, divided by the
    number of tokens to the power of `length_penalty`.

    Raises `ConfigError` if model and trie do not fit, or for fewer beams than 1.
    """
    if beams < 1:
        raise ConfigError(f"beams {beams}: must be at least 1.")
    if (model.codebook_size, model.levels) != (trie.codebook_size, trie.levels):
        raise ConfigError(
            f"The model writes up to {model.levels} tokens of {model.codebook_size}, but the identifiers have up to "
            f"{trie.levels} of {trie.codebook_size}. Make the identifiers with this model."
        )
    finished = [_Finished() for _ in texts]
    if len(texts) and trie.sequences:
        _search(model, trie, texts, beams, end, length_penalty, finished)
    return _beams_of(finished, trie, beams, end)


def _search(
    model: StepModel,
    trie: VokenTrie,
    texts: Sequence[str],
    beams: int,
    end: int,
    length_penalty: float,
    finished: list[_Finished],
) -> None:
    queries = len(texts)
    log_probs, state = model.step(model.prefill(texts), None, None)
    nodes = np.zeros((queries, 1), dtype=np.int64)
    scores = np.zeros((queries, 1), dtype=np.float32)
    paths: Int64[np.ndarray, "queries beams level"] = np.zeros((queries, 1, 0), dtype=np.int64)
    for level in range(trie.levels):
        best = _extensions(trie, level, nodes, scores, log_probs, 2 * beams)
        possible = best.score > IMPOSSIBLE
        ends = (best.token == end) | (level + 1 == trie.levels)
        first = np.arange(best.score.shape[1]) < beams
        for query, place in np.argwhere(possible & ends & first).tolist():
            path = [*paths[query, best.beam[query, place]].tolist(), int(best.token[query, place])]
            finished[query].scores.append(float(best.score[query, place]) / len(path) ** length_penalty)
            finished[query].paths.append(path)
        goes_on = possible & ~ends
        width = min(beams, int(goes_on.sum(axis=1).max()))
        if not width:
            return
        # stable, so that the best come first
        places = np.argsort(~goes_on, axis=1, kind="stable")[:, :width]
        kept = best.chosen(places)
        alive = np.take_along_axis(goes_on, places, axis=1)
        scores, nodes = np.where(alive, kept.score, -np.inf).astype(np.float32), np.where(alive, kept.node, 0)
        followed = np.take_along_axis(paths, kept.beam[:, :, None], axis=1)
        paths = np.concatenate([followed, kept.token[:, :, None]], axis=2)
        log_probs, state = model.step(state, kept.token, kept.beam)


def _extensions(
    trie: VokenTrie,
    level: int,
    nodes: Int64[np.ndarray, "queries beams"],
    scores: Float32[np.ndarray, "queries beams"],
    log_probs: Float32[np.ndarray, "queries beams N"],
    count: int,
) -> _Extensions:
    """The `count` best extensions of beams at nodes of `level`; all if there are fewer."""
    queries, width = nodes.shape
    start, stop = trie.child_offsets[level].ranges(nodes.reshape(-1))
    counts = stop - start
    offsets = np.arange(int(counts.max()))
    token = trie.vokens[level].take(start[:, None] + offsets, mode="clip").astype(np.int64)
    rows: Any = log_probs.reshape(queries * width, -1)
    total = np.maximum(np.take_along_axis(rows, token, axis=1), np.float32(IMPOSSIBLE)) + scores.reshape(-1, 1)
    is_child: Bool[np.ndarray, "rows children"] = offsets < counts[:, None]
    flat = np.where(is_child, total, -np.inf).astype(np.float32).reshape(queries, -1)
    if count < flat.shape[1]:
        some = np.sort(np.argpartition(-flat, count - 1, axis=1)[:, :count], axis=1)
    else:
        some = np.broadcast_to(np.arange(flat.shape[1]), flat.shape)
    order = np.argsort(-np.take_along_axis(flat, some, axis=1), axis=1, kind="stable")
    places = np.take_along_axis(some, order, axis=1)
    beam, child = np.divmod(places, len(offsets))
    first = np.take_along_axis(start.reshape(queries, width), beam, axis=1)
    tokens = np.take_along_axis(token.reshape(queries, -1), places, axis=1)
    return _Extensions(np.take_along_axis(flat, places, axis=1), beam, first + child, tokens)


def _beams_of(finished: list[_Finished], trie: VokenTrie, beams: int, end: int) -> Beams:
    """The best of the finished sequences."""
    vokens = np.zeros((len(finished), beams, trie.levels), dtype=np.int32)
    leaf = np.full((len(finished), beams), -1, dtype=np.int64)
    log_prob = np.full((len(finished), beams), -np.inf, dtype=np.float32)
    for query, of_query in enumerate(finished):
        best = np.argsort(-np.array(of_query.scores), kind="stable")[:beams]
        for place, number in enumerate(best.tolist()):
            path = of_query.paths[number]
            vokens[query, place] = path + [end] * (trie.levels - len(path))
            log_prob[query, place] = of_query.scores[number]
        leaf[query, : len(best)] = trie.leaf_of(vokens[query, : len(best)])
    return Beams(vokens, leaf, log_prob)
