"""Beam search over the sequences of a trie.

The search knows nothing about text or pictures: it asks a step model for logits, the trie for children,
and moves integers. A beam is a node of the trie. Probabilities are softmax over all N vokens of a level,
not only over those the trie allows, so a score is log p(sequence | query) whatever else is searched.

At level l it keeps min(b, nodes of level l) beams. As every node has a child, that many always exist: the
search needs no padding inside; only a result asked for more beams than there are sequences is padded.
Level 1 is reached from the root, so the first step of the model costs one beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from voken.decoding.interface import StepModel
from voken.decoding.trie import TorchTrie, VokenTrie
from voken.errors import ConfigError, VokenError

_IMPOSSIBLE = -1e30
"""Stands for log 0 inside the search, so that a node the model rules out still ranks above no node."""


@dataclass(frozen=True)
class Beams:
    """The best sequences of each query, best first; of equal ones the lower leaf first."""

    vokens: Int32[np.ndarray, "queries beams levels"]
    """The sequences; zeros where `leaf` is -1."""
    leaf: Int64[np.ndarray, "queries beams"]
    """Leaves of the trie; -1 at the end where there are fewer sequences than beams."""
    log_prob: Float32[np.ndarray, "queries beams"]
    """Sum over the levels of the log-probability of the voken; -inf where `leaf` is -1."""


def beam_search(
    model: StepModel, trie: VokenTrie, texts: Sequence[str], beams: int, *, logit_temperature: float = 1.0
) -> Beams:
    """The `beams` most probable sequences of `trie` for each text, by Eq. 9's sum of log-probabilities.

    `logit_temperature` divides the logits. Raises `ConfigError` where model and trie differ in codebook size
    or levels, or a number is out of range.
    """
    _check(model, trie, beams, logit_temperature)
    if not len(texts):
        return _nothing(0, beams, trie.levels)
    with torch.inference_mode():
        return beam_search_from_state(model, model.prefill(texts), trie, beams, logit_temperature=logit_temperature)


def beam_search_from_state(
    model: StepModel, state: Any, trie: VokenTrie, beams: int, *, logit_temperature: float = 1.0
) -> Beams:
    """The same, going on from `state` that the model's `prefill` (or a generator's `encode`) returned.

    The state is read, not changed: a trainer may search from it and then compute a loss with it.
    """
    _check(model, trie, beams, logit_temperature)
    with torch.inference_mode():
        nodes, log_prob, vokens = _search(model, state, trie.to_torch(model.device), beams, logit_temperature)
        best_first = log_prob.sort(dim=1, descending=True, stable=True).indices
        leaf = nodes.gather(1, best_first)
        log_prob = log_prob.gather(1, best_first)
        vokens = vokens.gather(1, best_first.unsqueeze(-1).expand_as(vokens))
    found = _nothing(len(leaf), beams, trie.levels)
    width = leaf.shape[1]
    possible = (log_prob > _IMPOSSIBLE).cpu().numpy()
    found.leaf[:, :width] = np.where(possible, leaf.cpu().numpy(), -1)
    found.log_prob[:, :width] = np.where(possible, log_prob.cpu().numpy(), -np.inf)
    found.vokens[:, :width] = np.where(possible[:, :, None], vokens.cpu().numpy(), 0)
    return found


def score_sequences(
    model: StepModel,
    state: Any,
    vokens: Int[Tensor, "queries sequences levels"],
    *,
    logit_temperature: float = 1.0,
) -> Float[Tensor, "queries sequences"]:
    """Log-probabilities of given sequences, step by step through the model, without a trie.

    As slow as a search; it says what a search must find. Gradients flow where the caller enables them.
    """
    queries, sequences, levels = vokens.shape
    vokens = vokens.to(model.device)
    parents = torch.zeros(queries, sequences, dtype=torch.long, device=model.device)
    logits, state = model.step(state, None, None)
    logits = logits.expand(-1, sequences, -1)
    total = torch.zeros(queries, sequences, device=model.device)
    for level in range(levels):
        log_prob = torch.log_softmax(logits.float() / logit_temperature, dim=-1)
        total = total + log_prob.gather(2, vokens[:, :, level : level + 1]).squeeze(2)
        if level + 1 < levels:
            logits, state = model.step(state, vokens[:, :, level], parents)
            parents = torch.arange(sequences, device=model.device).expand(queries, -1)
    return total


def _search(
    model: StepModel, state: Any, trie: TorchTrie, beams: int, logit_temperature: float
) -> tuple[Int[Tensor, "queries beams"], Float[Tensor, "queries beams"], Int[Tensor, "queries beams levels"]]:
    """Leaves in ascending order, their log-probabilities and vokens."""
    logits, state = model.step(state, None, None)
    queries = len(logits)
    nodes = parents = torch.zeros(queries, 1, dtype=torch.long, device=logits.device)
    log_prob = torch.zeros(queries, 1, device=logits.device)
    path = torch.zeros(queries, 1, 0, dtype=torch.long, device=logits.device)
    for level in range(trie.levels):
        if level:
            logits, state = model.step(state, path[:, :, -1], parents)
        children, is_table = trie.children(level, nodes)
        scores = _child_scores(trie, level, logits, children, is_table, logit_temperature)
        scores = (log_prob.unsqueeze(-1) + scores).flatten(1)
        chosen = _best(scores, min(beams, trie.counts[level + 1]))
        parents = chosen // children.shape[-1]
        nodes = children.flatten(1).gather(1, chosen)
        log_prob = scores.gather(1, chosen)
        voken = trie.voken_of(level + 1, nodes).unsqueeze(-1)
        path = torch.cat([path.gather(1, parents.unsqueeze(-1).expand(-1, -1, level)), voken], dim=2)
    return nodes, log_prob, path


def _child_scores(
    trie: TorchTrie,
    level: int,
    logits: Float[Tensor, "queries beams N"],
    children: Int[Tensor, "queries beams width"],
    is_table: bool,
    logit_temperature: float,
) -> Float[Tensor, "queries beams width"]:
    logits = logits.float()
    if logit_temperature != 1.0:
        logits = logits / logit_temperature
    total = logits.logsumexp(dim=-1, keepdim=True)
    if not bool(torch.isfinite(total).all()):
        raise VokenError(
            "The model's logits are not finite numbers: its training diverged or its weights are damaged. "
            "Train it again with a lower learning rate, or restore the model folder."
        )
    if not is_table:
        logits = logits.gather(2, trie.voken_of(level + 1, children.clamp(min=0)))
    return (logits - total).clamp(min=_IMPOSSIBLE).masked_fill(children < 0, -torch.inf)


def _best(scores: Float[Tensor, "queries candidates"], count: int) -> Int[Tensor, "queries count"]:
    """Positions of the `count` best candidates, ascending; of candidates tied for the last place the first.

    As candidates stand in the order of their nodes, keeping positions ascending keeps nodes ascending.
    """
    values, positions = scores.topk(min(count + 1, scores.shape[1]), dim=1)
    if scores.shape[1] > count and bool((values[:, count - 1] == values[:, count]).any()):
        last = values[:, count - 1 : count]
        above, tied = scores > last, scores == last
        wanted = count - above.sum(dim=1, keepdim=True)
        kept = above | (tied & (tied.cumsum(dim=1) <= wanted))
        return kept.nonzero()[:, 1].view(len(scores), count)
    return positions[:, :count].sort(dim=1).values


def _nothing(queries: int, beams: int, levels: int) -> Beams:
    return Beams(
        vokens=np.zeros((queries, beams, levels), dtype=np.int32),
        leaf=np.full((queries, beams), -1, dtype=np.int64),
        log_prob=np.full((queries, beams), -np.inf, dtype=np.float32),
    )


def _check(model: StepModel, trie: VokenTrie, beams: int, logit_temperature: float) -> None:
    if beams < 1:
        raise ConfigError(f"beams {beams}: must be at least 1.")
    if not 0 < logit_temperature < float("inf"):
        raise ConfigError(f"logit_temperature {logit_temperature}: must be a number above 0.")
    if (model.codebook_size, model.levels) != (trie.codebook_size, trie.levels):
        raise ConfigError(
            f"The model writes {model.levels} vokens of {model.codebook_size}, the collection holds "
            f"{trie.levels} of {trie.codebook_size}. Make the collection again with this model."
        )
