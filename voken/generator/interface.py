"""The interface of generators: a step model that can also be trained and saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from voken.decoding.interface import StepModel
from voken.shapes import Float, Int


@runtime_checkable
class Generator(StepModel, Protocol):
    """A step model that can be trained and saved. Implementations are `torch.nn.Module`s.

    `step` can also continue from the state that `encode` returns. So a trainer reads the queries once, searches from
    the state (`beam_search_from_state`) and computes a loss from it (`teacher_forced`). `prefill(texts)` is
    `encode(texts)` without gradients.

    Each class also has a `load`, the inverse of `save`. `voken.model.model.FAMILIES` lists the classes.
    """

    @property
    def family(self) -> str:
        """The family's name: "lite", "t5" or "llama" for generators that `voken fit` trains."""
        ...

    @property
    def has_query_point(self) -> bool:
        """Whether states have a `query_point` (queries, e), a point in the code space near each query's picture."""
        ...

    def encode(self, texts: Sequence[str]) -> Any:
        """Read the queries and return the first state, with gradients if they are enabled."""
        ...

    def teacher_forced(
        self, state: Any, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the true vokens before it, for several sequences per query.

        Position l of the result is what `step` would return after the first l vokens of the sequence.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters in groups for a torch optimizer: "params", "name", and "weight_decay": 0.0 for those
        that must not decay (norms, biases, embeddings). The trainer sets the learning rates."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` everything that loading the generator needs, so that no network is needed."""
        ...

    def to(self, device: Any) -> Any:
        """As `torch.nn.Module.to`: move the weights to a device."""
        ...

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`: switch dropout on or off."""
        ...

    def eval(self) -> Any:
        """As `torch.nn.Module.eval`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As `torch.nn.Module.parameters`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As `torch.nn.Module.state_dict`: an interrupted run continues from it."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """As `torch.nn.Module.load_state_dict`."""
        ...
