"""The beams that a search keeps between two levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """Arrays of the backend that searches: numpy's or torch's. Beams stand in the order of their nodes."""

    nodes: Any
    """int64 (queries, beams): nodes of the level reached."""
    log_prob: Any
    """float32 (queries, beams): summed over the levels so far."""
    parents: Any
    """int64 (queries, beams): the beam of the level before that each extends."""
    path: Any
    """int64 (queries, beams, level): the vokens taken so far."""


IMPOSSIBLE = -1e30
"""Stands for log 0 inside the search, so that a node the model rules out still ranks above no node."""

DIVERGED = (
    "The model's logits are not finite numbers: its training diverged or its weights are damaged. "
    "Train it again with a lower learning rate, or restore the model folder."
)
