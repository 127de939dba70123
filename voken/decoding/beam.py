"""Beam search over the sequences of a trie.

The search knows nothing about text or pictures: it asks a step model for logits, the trie for children,
and moves integers. A beam is a node of the trie. Probabilities are softmax over all N vokens of a level,
not only over those the trie allows, so a score is log p(sequence | query) whatever else is searched.

At level l it keeps min(b, nodes of level l) beams. As every node has a child, that many always exist: the
search needs no padding inside; only a result asked for more beams than there are sequences is padded.
Level 1 is reached from the root, so the first step of the model costs one beam.

How children are scored and chosen is the trie's part (`NumpyTrie`, `TorchTrie`), by where the model's logits lie;
torch is imported only to search with a torch model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from voken.decoding.interface import StepModel
from voken.decoding.kept import IMPOSSIBLE, Kept
from voken.decoding.look_ahead import look_ahead
from voken.decoding.numpy_trie import NumpyTrie
from voken.decoding.trie import VokenTrie
from voken.errors import ConfigError
from voken.shapes import Float, Float32, Int, Int32, Int64

if TYPE_CHECKING:
    from torch import Tensor


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
    with _without_gradients(model):
        return beam_search_from_state(model, model.prefill(texts), trie, beams, logit_temperature=logit_temperature)


def beam_search_from_state(
    model: StepModel, state: Any, trie: VokenTrie, beams: int, *, logit_temperature: float = 1.0
) -> Beams:
    """The same, going on from `state` that the model's `prefill` (or a generator's `encode`) returned.

    The state is read, not changed: a trainer may search from it and then compute a loss with it.
    """
    _check(model, trie, beams, logit_temperature)
    with _without_gradients(model):
        kept = _search(model, state, trie, beams, logit_temperature)
    best_first = np.argsort(-kept.log_prob, axis=1, kind="stable")
    log_prob = np.take_along_axis(kept.log_prob, best_first, 1)
    possible = log_prob > IMPOSSIBLE
    found = _nothing(len(log_prob), beams, trie.levels)
    width = log_prob.shape[1]
    found.leaf[:, :width] = np.where(possible, np.take_along_axis(kept.nodes, best_first, 1), -1)
    found.log_prob[:, :width] = np.where(possible, log_prob, -np.inf)
    vokens = np.take_along_axis(kept.path, best_first[:, :, None], 1)
    found.vokens[:, :width] = np.where(possible[:, :, None], vokens, 0)
    return found


def score_sequences(
    model: StepModel,
    state: Any,
    vokens: Int[Tensor, "queries sequences levels"],
    *,
    logit_temperature: float = 1.0,
) -> Float[Tensor, "queries sequences"]:
    """Log-probabilities of given sequences, step by step through the model, without a trie.

    Of a torch model. As slow as a search; it says what a search must find. Gradients flow where the caller enables
    them.
    """
    import torch

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


def _search(model: StepModel, state: Any, trie: VokenTrie, beams: int, logit_temperature: float) -> Kept:
    """Leaves in ascending order, their log-probabilities and vokens, as numpy arrays."""
    logits, state = model.step(state, None, None)
    backend = NumpyTrie(trie) if model.device is None else trie.to_torch(model.device)
    log_probs = model.log_probs
    kept = backend.root(len(logits))
    ahead = None
    for level in range(trie.levels):
        if level and ahead is None:
            ahead = look_ahead(model, state, trie, kept, level)
        if ahead is not None:
            logits = ahead.at(level, kept)
        elif level:
            logits, state = model.step(state, kept.path[:, :, -1], kept.parents)
        kept = backend.expand(level, kept, logits, beams, temperature=logit_temperature, log_probs=log_probs)
    return backend.fetched(kept)


def _without_gradients(model: StepModel) -> AbstractContextManager[Any]:
    if model.device is None:
        return nullcontext()
    import torch

    return torch.inference_mode()


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
