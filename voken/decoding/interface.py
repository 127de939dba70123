"""What the parts of a beam search know of each other: the step model, the beams between two levels, the expansion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from voken.shapes import Float, Int

IMPOSSIBLE = -1e30
"""Stands for log 0 inside the search, so that a node that the model rules out still ranks above no node."""
DIVERGED = (
    "The model's logits are not finite numbers: its training diverged or its weights are damaged. "
    "Train it again with a lower learning rate, or restore the model folder."
)


@runtime_checkable
class StepModel(Protocol):
    """A model that writes voken sequences one level at a time. It owns its cache.

    A search calls `prefill` once, then `step` M times. At the first step there is one beam per query and `vokens` is
    None. Afterwards `vokens[q, k]` is the voken that beam k of query q took at the level before, and `parents[q, k]` is
    the index of the beam (of the step before) that it extends.

    There are two kinds, which `device` distinguishes. A torch model takes and returns tensors on its device. A numpy
    model has no device (None): it takes int64 arrays and returns float32 ones, and its search never imports torch.
    """

    @property
    def codebook_size(self) -> int:
        """N: how many vokens there are at each level."""
        ...

    @property
    def levels(self) -> int:
        """M: how many vokens a sequence has."""
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
        """Logits over the N vokens of the next level, and the state to pass to the step after."""
        ...


@dataclass(frozen=True)
class BeamState:
    """The beams between two levels, as arrays of numpy or of torch, in the order of their nodes."""

    nodes: Any
    """int64 (queries, beams): nodes of the level reached."""
    log_prob: Any
    """float32 (queries, beams): summed over the levels so far."""
    parents: Any
    """int64 (queries, beams): the beam of the level before that each extends."""
    path: Any
    """int64 (queries, beams, level): the vokens taken so far."""


class Expansion(Protocol):
    """One level of the search over a trie: the children of all beams are scored, and the best ones taken."""

    def root(self, queries: int) -> BeamState:
        """One beam per query, at the root."""
        ...

    def expand(
        self, level: int, state: BeamState, logits: Any, beams: int, *, temperature: float, log_probs: bool
    ) -> BeamState:
        """The best `beams` children of `state`, whose nodes are of `level` (0 … M - 1).

        `logits` are the model's (queries, beams, N) for them, float32; `log_probs` says that their exponentials already
        sum to 1. Raises `VokenError` if they are not finite.
        """
        ...

    def as_numpy(self, state: BeamState) -> BeamState:
        """The same beams as numpy arrays."""
        ...
