"""Several sequences of one query as one run of positions that share the first.

    sequences  a b c, a d e, f g h       positions  start  a a f  b d g

Nothing is written yet at the first position, so it is the same for all of them and is computed once; then come the
first vokens of all sequences, then the second ones. The last voken is never read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voken.shapes import Bool, Float, Int


def flat_positions(
    start: Float[Tensor, "queries 1 width"], written: Float[Tensor, "queries sequences written width"]
) -> Float[Tensor, "queries positions width"]:
    """One run of 1 + sequences * written positions a query."""
    return torch.cat([start, written.transpose(1, 2).flatten(1, 2)], 1)


def levels_and_sight(
    sequences: int, written: int, device: torch.device
) -> tuple[Int[Tensor, " positions"], Bool[Tensor, "positions positions"]]:
    """How many vokens stand before each position, and which positions (columns) each (row) sees.

    A position sees the start, itself and the earlier ones of its own sequence.
    """
    position = torch.arange(sequences * written, device=device)
    level = torch.nn.functional.pad(1 + position // sequences, (1, 0))
    sequence = torch.nn.functional.pad(position % sequences, (1, 0), value=-1)
    own = (sequence[:, None] == sequence) | (sequence < 0)
    return level, own & (level[:, None] >= level)


def by_level(
    flat: Float[Tensor, "queries positions width"], sequences: int
) -> tuple[Float[Tensor, "queries _ width"], ...]:
    """The positions of each level: one of the first, then `sequences` each."""
    written = (flat.shape[1] - 1) // sequences
    parts: tuple[Tensor, ...] = flat.split([1] + [sequences] * written, dim=1)
    return parts
