"""The step of a beam search for models that return tensors, over a trie unpacked on their device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from voken.decoding.interface import DIVERGED, IMPOSSIBLE, BeamState
from voken.decoding.node_bias import NodeBias
from voken.decoding.trie import VokenTrie
from voken.errors import VokenError
from voken.shapes import Float, Int, Shaped

_MOST_DENSE_ENTRIES = 1 << 22
"""Entries of the largest dense table of level 2 (16 MB). Larger levels are searched like the deeper ones."""
_LEAST_DENSE_FILL = 0.125
"""Smallest filled share of a table of level 2; an emptier table costs more time and memory than lists of children."""


@dataclass(frozen=True, eq=False)
class TorchExpansion:
    """Expands many nodes at once. It holds a `VokenTrie` as plain arrays on a device, 8 bytes per node."""

    counts: tuple[int, ...]
    """Nodes of levels 0 … M."""
    vokens: tuple[Int[Tensor, " _"], ...]
    """For each level 1 … M: the voken of each node."""
    child_offsets: tuple[Int[Tensor, " _"], ...]
    """For each level 0 … M - 1: children of node n are nodes child_offsets[n] … child_offsets[n + 1] - 1 below."""
    first: Int[Tensor, " N"]
    """Node of level 1 for each voken; -1 if no sequence starts with it."""
    second: Int[Tensor, "nodes N"] | None
    """Node of level 2 for each node of level 1 and voken, -1 if there is none. None if no table is used."""
    bias: TorchBias | None = None

    @classmethod
    def of(cls, trie: VokenTrie, device: torch.device | str, bias: NodeBias | None = None) -> TorchExpansion:
        """The arrays of `trie` and `bias` on `device`, unpacked once for as long as the trie and the bias live."""
        unpacked = _UNPACKED.setdefault(trie, {})
        if str(device) not in unpacked:
            unpacked[str(device)] = cls._unpack(trie, device)
        expansion = unpacked[str(device)]
        if bias is None:
            return expansion
        biases = _UNPACKED_BIASES.setdefault(bias, {})
        if str(device) not in biases:
            biases[str(device)] = TorchBias.of(bias, device)
        return replace(expansion, bias=biases[str(device)])

    @classmethod
    def _unpack(cls, trie: VokenTrie, device: torch.device | str) -> Self:

        def on(array: Shaped[np.ndarray, "*shape"]) -> Tensor:
            return torch.from_numpy(array.astype(np.int32)).to(device)

        first = _table(trie, 0)
        dense = trie.levels > 1 and trie.nodes(1) * trie.codebook_size <= _MOST_DENSE_ENTRIES
        dense = dense and trie.nodes(2) >= _LEAST_DENSE_FILL * trie.nodes(1) * trie.codebook_size
        return cls(
            counts=tuple(trie.nodes(level) for level in range(trie.levels + 1)),
            vokens=tuple(on(np.asarray(column)) for column in trie.vokens),
            child_offsets=tuple(on(offsets.expanded()) for offsets in trie.child_offsets),
            first=on(first[0]),
            second=on(_table(trie, 1)) if dense else None,
        )

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return len(self.vokens)

    def root(self, queries: int) -> BeamState:
        """See `Expansion`."""
        zeros = torch.zeros(queries, 1, dtype=torch.long, device=self.first.device)
        return BeamState(zeros, zeros.float(), zeros, zeros.unsqueeze(-1)[:, :, :0])

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
        """See `Expansion`. `log_probs` is ignored: the sum is computed in any case."""
        children, is_table = self.children(level, state.nodes)
        scores = self._child_scores(level, logits, children, is_table, temperature)
        if self.bias is not None:
            vokens = None if is_table else self.voken_of(level + 1, children.clamp(min=0))
            scores = scores + self.bias.of_children(level, state.path, children.clamp(min=0), vokens)
        scores = (state.log_prob.unsqueeze(-1) + scores).flatten(1)
        chosen = _best(scores, min(beams, self.counts[level + 1]))
        parents = chosen // children.shape[-1]
        nodes = children.flatten(1).gather(1, chosen)
        voken = self.voken_of(level + 1, nodes).unsqueeze(-1)
        path = torch.cat([state.path.gather(1, parents.unsqueeze(-1).expand(-1, -1, level)), voken], dim=2)
        return BeamState(nodes, scores.gather(1, chosen), parents, path)

    def as_numpy(self, state: BeamState) -> BeamState:
        """See `Expansion`."""
        return BeamState(*(array.cpu().numpy() for array in (state.nodes, state.log_prob, state.parents, state.path)))

    def children(
        self, level: int, nodes: Int[Tensor, "queries beams"]
    ) -> tuple[Int[Tensor, "queries beams width"], bool]:
        """The children of nodes of `level` (0 … M - 1), as nodes of the level below, padded with -1.

        The second value is True if the width is N and column v holds the child with voken v. Otherwise the children
        come first and the padding last. In both cases children ascend along the width.
        """
        if level == 0:
            return self.first.long().expand(*nodes.shape, -1), True
        if level == 1 and self.second is not None:
            return self.second[nodes].long(), True
        offsets = self.child_offsets[level]
        start = offsets[nodes].long().unsqueeze(-1)
        end = offsets[nodes + 1].long().unsqueeze(-1)
        width = int((end - start).max())
        child = start + torch.arange(width, device=start.device)
        return torch.where(child < end, child, -1), False

    def voken_of(self, level: int, nodes: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The last voken of nodes of `level` (1 … M)."""
        return self.vokens[level - 1][nodes].long()

    def _child_scores(
        self,
        level: int,
        logits: Float[Tensor, "queries beams N"],
        children: Int[Tensor, "queries beams width"],
        is_table: bool,
        temperature: float,
    ) -> Float[Tensor, "queries beams width"]:
        logits = logits.float()
        if temperature != 1.0:
            logits = logits / temperature
        total = logits.logsumexp(dim=-1, keepdim=True)
        if not bool(torch.isfinite(total).all()):
            raise VokenError(DIVERGED)
        if not is_table:
            logits = logits.gather(2, self.voken_of(level + 1, children.clamp(min=0)))
        return (logits - total).clamp(min=IMPOSSIBLE).masked_fill(children < 0, -torch.inf)


@dataclass(frozen=True, eq=False)
class TorchBias:
    """A `NodeBias` on a device."""

    norm_weight: float
    codebooks: Float[Tensor, "M N e"] | None
    prior_weight: float
    prior: tuple[Float[Tensor, " _"], ...]

    @classmethod
    def of(cls, bias: NodeBias, device: torch.device | str) -> Self:
        """Copy its arrays to `device`."""
        codebooks = None
        if bias.norm_weight:
            codebooks = torch.from_numpy(np.array(bias.codebooks, dtype=np.float32)).to(device)
        prior = (bias.prior or ()) if bias.prior_weight else ()
        tensors = tuple(torch.from_numpy(np.array(values)).to(device) for values in prior)
        return cls(bias.norm_weight, codebooks, bias.prior_weight, tensors)

    def of_children(
        self,
        level: int,
        path: Int[Tensor, "queries beams level"],
        children: Int[Tensor, "queries beams width"],
        vokens: Int[Tensor, "queries beams width"] | None,
    ) -> Float[Tensor, "queries beams width"]:
        """See `NodeBias.of_children`. Without `vokens`, column v of `children` is the child with voken v."""
        bias = torch.zeros(children.shape, device=children.device)
        if self.codebooks is not None:
            book = self.codebooks[level]
            summed = torch.zeros(*path.shape[:2], book.shape[1], device=book.device)
            for above in range(level):
                summed = summed + self.codebooks[above][path[:, :, above]]
            gained = 2 * (summed @ book.T) + book.square().sum(1)
            bias = bias - self.norm_weight * (gained if vokens is None else gained.gather(2, vokens))
        if self.prior:
            bias = bias - self.prior_weight * self.prior[level][children]
        return bias


def _best(scores: Float[Tensor, "queries candidates"], count: int) -> Int[Tensor, "queries count"]:
    """Positions of the `count` best candidates, ascending; of those tied for the last place, the first ones.

    Candidates are in the order of their nodes, so ascending positions are ascending nodes.
    """
    values, positions = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    if scores.shape[1] > count and bool((values[:, count - 1] == values[:, count]).any()):
        last = values[:, count - 1 : count]
        above, tied = scores > last, scores == last
        remaining = count - above.sum(dim=1, keepdim=True)
        is_best = above | (tied & (tied.cumsum(dim=1) <= remaining))
        return is_best.nonzero()[:, 1].view(len(scores), count)
    return positions[:, :count].sort(dim=1).values


def _table(trie: VokenTrie, level: int) -> Int[np.ndarray, "nodes N"]:
    """For each node of `level`, the child with each voken; -1 if there is none."""
    table = np.full((trie.nodes(level), trie.codebook_size), -1, dtype=np.int32)
    parent = np.repeat(np.arange(len(table)), np.diff(trie.child_offsets[level].expanded()))
    table[parent, trie.vokens[level]] = np.arange(trie.nodes(level + 1), dtype=np.int32)
    return table


_UNPACKED: WeakKeyDictionary[VokenTrie, dict[str, TorchExpansion]] = WeakKeyDictionary()
_UNPACKED_BIASES: WeakKeyDictionary[NodeBias, dict[str, TorchBias]] = WeakKeyDictionary()
