"""The interfaces between the parts of a beam search: the step model, the beams between levels, the expansion."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from voken.shapes import Float, Float32, Int

if TYPE_CHECKING:
    from voken.decoding.node_bias import NodeBias

IMPOSSIBLE = -1e30
"""Stands for log 0 inside the search, so that a node with probability 0 still ranks above padding, which is -inf."""
DIVERGED = (
    "The model's logits are not finite numbers: its training diverged or its weights are damaged. "
    "Train it again with a lower learning rate, or restore the model folder."
)


@runtime_checkable
class StepModel(Protocol):
    """A model that writes voken sequences one level at a time. Its cache is part of the state that it returns.

    A search calls `prefill` once, then `step` M times. At the first step there is one beam per query and `vokens` is
    None. Afterwards `vokens[q, k]` is the last voken of beam k of query q, and `parents[q, k]` is the index of the
    previous step's beam that it extends.

    A torch model takes and returns tensors on its `device`. A numpy model has `device` None, takes int64 arrays and
    returns float32 arrays, and its search never imports torch.
    """

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        ...

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        ...

    @property
    def device(self) -> Any:
        """The `torch.device` of logits, `vokens` and `parents`; None for a numpy model."""
        ...

    @property
    def log_probs(self) -> bool:
        """Whether `step` returns log-probabilities, which need no softmax, instead of logits."""
        ...

    @property
    def reads_trees(self) -> bool:
        """Whether the model also has `step_tree` (see `voken.inference.engine.Engine`)."""
        ...

    def prefill(self, texts: Sequence[str]) -> Any:
        """Read the queries; return the state that `step` continues from."""
        ...

    def step(
        self,
        state: Any,
        vokens: Int[Any, "queries beams"] | None,
        parents: Int[Any, "queries beams"] | None,
    ) -> tuple[Float[Any, "queries beams N"], Any]:
        """Logits over the N vokens of the next level, and the state for the next step."""
        ...


@runtime_checkable
class LinearModel(Protocol):
    """A `StepModel` that may be linear: what `step` returns at a level is the same, whatever the vokens before it are.

    A sequence's score is then a sum over levels of entries of one table, and no step needs to run. Terms that depend on
    the vokens before, but not on the query, may be added.
    """

    @property
    def answers_once(self) -> bool:
        """Whether the model answers a single query, so that nothing should be prepared for later ones."""
        ...

    @property
    def node_bias(self) -> NodeBias | None:
        """What the steps add to `level_logits`, if it depends on the vokens and not on the query; None if nothing."""
        ...

    def level_logits(self, state: Any) -> Float32[np.ndarray, "queries M N"] | None:
        """What `step` would return at each level, less `node_bias`, as a numpy array on any device.

        None if the model is not linear.
        """
        ...


@dataclass(frozen=True)
class BeamState:
    """The beams between two levels, as numpy or torch arrays, in the order of their nodes."""

    nodes: Any
    """int64 (queries, beams): nodes of the current level."""
    log_prob: Any
    """float32 (queries, beams): log-probability summed over the levels so far, plus the bias of the nodes."""
    parents: Any
    """int64 (queries, beams): index of the previous level's beam that each beam extends."""
    path: Any
    """int64 (queries, beams, level): the vokens so far."""


class Expansion(Protocol):
    """One level of the search over a trie: score the children of all beams and keep the best."""

    def root(self, queries: int) -> BeamState:
        """One beam per query, at the root."""
        ...

    def expand(
        self, level: int, state: BeamState, logits: Any, beams: int, *, temperature: float, log_probs: bool
    ) -> BeamState:
        """The best `beams` children of `state`, whose nodes are of `level` (0 … M - 1).

        `logits` (queries, beams, N), float32, are the model's for `state`; `log_probs` says that they are
        log-probabilities already. Raises `VokenError` if they are not finite.
        """
        ...

    def as_numpy(self, state: BeamState) -> BeamState:
        """The same beams as numpy arrays."""
        ...


def without_gradients(model: StepModel) -> AbstractContextManager[Any]:
    """A context in which a torch model computes no gradients; nothing for a numpy model."""
    if model.device is None:
        return nullcontext()
    import torch

    return torch.inference_mode()
