"""Explains hits: how likely the generator thought each voken of a picture, level by level.

    level 1   voken 17     its log-probability among all N, its rank, and how many pictures begin with it
    level 2   voken 803    …

The hits of a search are scored again; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.decoding.beam import Beams, beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.search.hit import Hit
from voken.search.readouts import Candidates, ReadOut
from voken.search.searcher import Searcher
from voken.shapes import Float, Int64


@dataclass(frozen=True)
class Step:
    """One level of a picture's sequence, as the generator saw it."""

    voken: int
    log_prob: float
    """Log-probability of this voken after the ones before it, among all N."""
    rank: int
    """Rank of this voken among all N; 1 if none was more likely."""
    pictures: int
    """The number of pictures whose sequence begins with the vokens up to this one."""


@dataclass(frozen=True)
class Why:
    """How a picture became a hit."""

    log_prob: float
    """Log-probability of the whole sequence: the sum over its levels."""
    correction: float
    """What the search adds to it for the sequence's prior and the length of its vector; 0 if their weights are 0."""
    beam_rank: int | None
    """Rank of the sequence among the beams, from 1; None if no beam reaches it."""
    cosine: float | None
    """Cosine of the query's vector with the picture's (stored, or rebuilt from vokens); None if the picture is gone."""
    levels: tuple[Step, ...]


def explain(searcher: Searcher, text: str, hits: Sequence[Hit]) -> list[Why]:
    """How each hit of a search for `text` became one. Raises `ConfigError` if their sequences have another length."""
    if not hits:
        return []
    pool, model = searcher.pool(), searcher.model
    trie = pool.trie
    vokens = np.array([hit.vokens for hit in hits], dtype=np.int64)
    if vokens.ndim != 2 or vokens.shape[1] != trie.levels:
        raise ConfigError(f"These hits have no sequences of {trie.levels} vokens: they are of another collection.")
    search = searcher.prepare([text], len(hits))
    state = model.generator.prefill(search.texts)
    bias = searcher.corrections.of(trie)
    count = max(1, min(search.key.beams, trie.sequences))
    beams = beam_search_from_state(model.generator, state, trie, count, bias=bias)
    rank_of_leaf = {leaf: rank for rank, leaf in enumerate(beams.leaf[0].tolist(), start=1) if leaf >= 0}
    log_probs = _log_probs(model.generator, state, vokens)
    voken_log_probs = np.take_along_axis(log_probs, vokens[:, :, None], 2)[:, :, 0]
    ranks = 1 + (log_probs > voken_log_probs[:, :, None]).sum(2)
    counts = _pictures_below(trie, vokens)
    leaves = trie.leaf_of(vokens)
    # a picture that has left the collection since has no leaf
    corrections = np.zeros(len(vokens)) if bias is None else bias.of_sequences(vokens, leaves, trie)
    read_out = ReadOut("voken" if pool.snapshot.vectors is None else "vector", 1.0)
    beams_of_hits = Beams(vokens[None], leaves[None], voken_log_probs.sum(1)[None])
    candidates = Candidates.of(trie, beams_of_hits.leaf[0], beams_of_hits.log_prob[0])
    (cosines,) = read_out.cosines(pool, beams_of_hits, [candidates], model.query_vectors(search.texts, state))
    cosine_of_row = dict(zip(candidates.rows.tolist(), cosines.tolist(), strict=True))
    return [
        Why(
            log_prob=float(voken_log_probs[place].sum()),
            correction=float(corrections[place]),
            beam_rank=rank_of_leaf.get(int(leaves[place])),
            cosine=None if (row := pool.snapshot.find(hit.image_id)) is None else cosine_of_row.get(row),
            levels=tuple(
                Step(voken, float(voken_log_probs[place, level]), int(ranks[place, level]), int(counts[place, level]))
                for level, voken in enumerate(hit.vokens)
            ),
        )
        for place, hit in enumerate(hits)
    ]


def _log_probs(generator: Any, state: Any, vokens: Int64[np.ndarray, "hits M"]) -> Float[np.ndarray, "hits M N"]:
    """The log-probabilities of all vokens at every level, after the vokens before it."""
    in_torch = generator.device is not None

    def on_device(array: Int64[np.ndarray, "1 hits"]) -> Any:
        if not in_torch:
            return array
        import torch

        return torch.from_numpy(array).to(generator.device)

    levels = []
    logits, state = generator.step(state, None, None)
    parents = np.zeros((1, len(vokens)), dtype=np.int64)
    for level in range(vokens.shape[1]):
        row = np.asarray(logits.detach().float().cpu() if in_torch else logits, dtype=np.float64)[0]
        row = row - row.max(1, keepdims=True)
        row -= np.log(np.exp(row).sum(1, keepdims=True))
        levels.append(np.broadcast_to(row, (len(vokens), row.shape[1])))
        if level + 1 < vokens.shape[1]:
            logits, state = generator.step(state, on_device(vokens[None, :, level]), on_device(parents))
            parents = np.arange(len(vokens))[None]
    return np.stack(levels, axis=1)


def _pictures_below(trie: VokenTrie, vokens: Int64[np.ndarray, "hits M"]) -> Int64[np.ndarray, "hits M"]:
    """The number of pictures whose sequence begins with the first 1 … M vokens of each sequence."""
    counts = np.zeros(vokens.shape, dtype=np.int64)
    for level in range(1, trie.levels + 1):
        nodes = trie.node_of(vokens[:, :level])
        first, end = np.maximum(nodes, 0), np.maximum(nodes, 0) + 1
        for starts in (*trie.child_offsets[level:], trie.row_offsets):
            first, end = starts.firsts(first), starts.firsts(end)
        counts[:, level - 1] = np.where(nodes >= 0, end - first, 0)
    return counts
