"""What the beam search asks of a model, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class StepModel(Protocol):
    """A model that writes voken sequences one level at a time. It owns its cache.

    A search calls `prefill` once, then `step` M times. At the first step there is one beam a query and
    `vokens` is None; afterwards `vokens[q, k]` is the voken that beam k of query q took at the level
    before, and `parents[q, k]` the index of the beam (of the step before) that it extends.
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
    def device(self) -> torch.device:
        """Where logits are computed, and where `vokens` and `parents` are expected."""
        ...

    def prefill(self, texts: Sequence[str]) -> Any:
        """Read the queries; return the state that `step` continues from."""
        ...

    def step(
        self, state: Any, vokens: Int[Tensor, "queries beams"] | None, parents: Int[Tensor, "queries beams"] | None
    ) -> tuple[Float[Tensor, "queries beams N"], Any]:
        """Logits over the N vokens of the next level, and the state to pass to the step after."""
        ...
