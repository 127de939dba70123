"""What the beam search asks of a model, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from voken.shapes import Float, Int


@runtime_checkable
class StepModel(Protocol):
    """A model that writes voken sequences one level at a time. It owns its cache.

    A search calls `prefill` once, then `step` M times. At the first step there is one beam a query and
    `vokens` is None; afterwards `vokens[q, k]` is the voken that beam k of query q took at the level
    before, and `parents[q, k]` the index of the beam (of the step before) that it extends.

    There are two kinds, told apart by `device`. A torch model takes and gives tensors on its device. A numpy model has
    no device (None): it takes int64 arrays and gives float32 ones, and torch is not imported to search with it.
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
        """The `torch.device` where logits are computed and `vokens` and `parents` expected; None of a numpy model."""
        ...

    @property
    def log_probs(self) -> bool:
        """Whether `step` gives log-probabilities, which need no softmax, instead of logits."""
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
