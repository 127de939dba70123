"""What training and saving ask of a generator, beyond what the beam search asks."""

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

    One state serves everything: what `encode` returns is also a state that `step` continues from, so a
    trainer reads the queries once, searches from the state (`beam_search_from_state`) and takes a loss
    from it (`teacher_forced`). `prefill(texts)` is `encode(texts)` without gradients.

    A class also has `load(folder)`, the inverse of `save`, which a protocol of values cannot state.
    """

    def encode(self, texts: Sequence[str]) -> Any:
        """Read the queries, with gradients where they are enabled. Nothing in it depends on vokens."""
        ...

    def teacher_forced(
        self, state: Any, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the true vokens before it, for several sequences a query.

        Position l of the result is what `step` would return after the first l vokens of the sequence.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trained parameters, as groups for a torch optimizer: "params", "name", and "weight_decay": 0.0
        where decay does not belong (norms, biases, embeddings). Learning rates are the trainer's."""
        ...

    def save(self, folder: Path) -> None:
        """Write everything needed to load it again, without a network, into `folder`."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on or off, as `torch.nn.Module.train`."""
        ...

    def eval(self) -> Any:
        """As `torch.nn.Module.eval`."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As `torch.nn.Module.parameters`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """As `torch.nn.Module.state_dict`, for interrupted runs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """As `torch.nn.Module.load_state_dict`."""
        ...
