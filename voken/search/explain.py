"""Why a picture was found: what the generator wrote on the way to it, step by step.

    level 1   voken 17     its log-probability among all N, its rank, and how many pictures begin so
    level 2   voken 803    …

This module reads a search over again for given answers; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.search.hit import Hit
from voken.search.searcher import SearchModel, readable_text
from voken.shapes import Float32, Int64


@dataclass(frozen=True)
class Step:
    """One level of a picture's sequence, as the generator saw it."""

    voken: int
    log_prob: float
    """Of this voken after those before, among all N."""
    rank: int
    """1: the generator found no voken more likely."""
    pictures: int
    """That begin with the vokens up to this one."""


@dataclass(frozen=True)
class Why:
    """How a picture came to be answered."""

    log_prob: float
    """Of the whole sequence: the sum over its levels."""
    beam_rank: int | None
    """Of the sequence among the beams, from 1; None where another search would have found it."""
    cosine: float | None
    """Of the query's vector with the picture's, stored or rebuilt from its vokens."""
    levels: tuple[Step, ...]


def explain(model: SearchModel, collection: Snapshot, text: str, hits: Sequence[Hit], beams: int) -> list[Why]:
    """For each hit of a search for `text` with so many beams. Raises `ConfigError` for sequences of another model."""
    if not hits:
        return []
    trie = collection.trie
    vokens = np.array([hit.vokens for hit in hits], dtype=np.int64)
    if vokens.ndim != 2 or vokens.shape[1] != trie.levels:
        raise ConfigError(f"These hits have no sequences of {trie.levels} vokens: they are of another collection.")
    query = readable_text(text, 0)
    state = model.generator.prefill([query])
    found = beam_search_from_state(model.generator, state, trie, max(1, min(beams, trie.sequences)))
    place = {leaf: rank for rank, leaf in enumerate(found.leaf[0].tolist(), start=1) if leaf >= 0}
    log_probs = _log_probs(model.generator, state, vokens)
    taken = np.take_along_axis(log_probs, vokens[:, :, None], 2)[:, :, 0]
    ranks = 1 + (log_probs > taken[:, :, None]).sum(2)
    counts = _pictures_below(trie, vokens)
    leaves = trie.leaf_of(vokens).tolist()
    cosines = _cosines(model, collection, query, state, hits, vokens)
    return [
        Why(
            log_prob=float(taken[row].sum()),
            beam_rank=place.get(leaves[row]),
            cosine=cosines[row],
            levels=tuple(
                Step(voken, float(taken[row, level]), int(ranks[row, level]), int(counts[row, level]))
                for level, voken in enumerate(vokens[row].tolist())
            ),
        )
        for row in range(len(hits))
    ]


def _log_probs(generator: Any, state: Any, vokens: Int64[np.ndarray, "hits M"]) -> Float32[np.ndarray, "hits M N"]:
    """What the model writes at every level after the vokens before."""
    in_torch = generator.device is not None

    def given(array: Int64[np.ndarray, "1 hits"]) -> Any:
        if not in_torch:
            return array
        import torch

        return torch.from_numpy(array).to(generator.device)

    found = []
    logits, state = generator.step(state, None, None)
    parents = np.zeros((1, len(vokens)), dtype=np.int64)
    for level in range(vokens.shape[1]):
        row = np.asarray(logits.detach().float().cpu() if in_torch else logits, dtype=np.float64)[0]
        row = row - row.max(1, keepdims=True)
        row -= np.log(np.exp(row).sum(1, keepdims=True))
        found.append(np.broadcast_to(row, (len(vokens), row.shape[1])))
        if level + 1 < vokens.shape[1]:
            logits, state = generator.step(state, given(vokens[None, :, level]), given(parents))
            parents = np.arange(len(vokens))[None]
    return np.stack(found, axis=1)


def _pictures_below(trie: VokenTrie, vokens: Int64[np.ndarray, "hits M"]) -> Int64[np.ndarray, "hits M"]:
    """How many pictures begin with the first 1 … M vokens of each sequence."""
    counts = np.zeros(vokens.shape, dtype=np.int64)
    for level in range(1, trie.levels + 1):
        nodes = trie.node_of(vokens[:, :level])
        first, end = np.maximum(nodes, 0), np.maximum(nodes, 0) + 1
        for starts in (*trie.child_starts[level:], trie.row_starts):
            first, end = starts.firsts(first), starts.firsts(end)
        counts[:, level - 1] = np.where(nodes >= 0, end - first, 0)
    return counts


def _cosines(
    model: SearchModel,
    collection: Snapshot,
    query: str,
    state: Any,
    hits: Sequence[Hit],
    vokens: Int64[np.ndarray, "hits M"],
) -> list[float | None]:
    vector = model.query_vectors([query], state)[0]
    if collection.vectors is None:
        return [float(one) for one in model.tokenizer.decode(vokens) @ vector]
    rows = [collection.find(hit.image_id) for hit in hits]
    return [
        None if row is None else float(np.asarray(collection.vectors[np.array([row])])[0].astype(np.float32) @ vector)
        for row in rows
    ]
