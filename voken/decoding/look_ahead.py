"""Where few sequences are left below the beams, their vokens are known: one pass reads them all, not a step a level.

At 300,000 sequences of N = 1,024 nearly every node of level 2 has one child, and that has one. A model whose time goes
to reading its weights reads them once less. What is searched, and how it is pruned, stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.decoding.kept import Kept
from voken.decoding.trie import VokenTrie
from voken.shapes import Float32, Int64

_MOST = 1.5
"""Nodes of a level a beam; more, and what would be pruned costs more than the pass saves."""


@dataclass(frozen=True)
class Ahead:
    """What a model writes at some beams of one query, and at everything below them."""

    level: int
    nodes: tuple[Int64[np.ndarray, " nodes"], ...]
    """Of `level`, and of each level below but the last."""
    logits: Float32[np.ndarray, "1 nodes N"]

    def at(self, level: int, kept: Kept) -> Float32[np.ndarray, "1 beams N"]:
        """The logits of `kept`, which are nodes of `level`."""
        place = level - self.level
        before = sum(map(len, self.nodes[:place]))
        return self.logits[:, before + self.nodes[place].searchsorted(kept.nodes[0])]


def look_ahead(model: Any, state: Any, trie: VokenTrie, kept: Kept, level: int) -> Ahead | None:
    """Read `kept`, nodes of `level`, with all that is below; None where that would not pay, or the model cannot.

    A model can if it `reads_trees` (see `voken.inference.engine.Engine.step_tree`).
    """
    if not model.reads_trees or len(kept.nodes) != 1:
        return None
    nodes = [kept.nodes[0]]
    vokens, extended, before = [kept.path[0, :, -1]], [], 0
    for below in range(level, trie.levels - 1):
        start, end = trie.child_starts[below].ranges(nodes[-1])
        counts = end - start
        total = int(counts.sum())
        if total > _MOST * len(nodes[0]):
            return None
        extended.append(before + np.repeat(np.arange(len(counts)), counts))
        before += len(counts)
        nodes.append(np.repeat(start - (counts.cumsum() - counts), counts) + np.arange(total))
        vokens.append(trie.vokens[below][nodes[-1]].astype(np.int64))
    if not extended:  # the last step
        return None
    logits = model.step_tree(state, np.concatenate(vokens)[None], kept.parents, np.concatenate(extended))
    return Ahead(level, tuple(nodes), logits)
