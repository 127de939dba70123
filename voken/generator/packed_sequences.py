"""Several sequences of one query, packed into a single run of positions that share the first one.

    sequences  a b c, a d e, f g h       positions  start  a a f  b d g

No voken has been written at the first position, so it is the same for all sequences and is computed once. Then come
the first vokens of all sequences, then the second ones. The last voken of a sequence is never read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from voken.shapes import Bool, Float, Int


def packed_positions(
    start: Float[Tensor, "queries 1 width"], written: Float[Tensor, "queries sequences written width"]
) -> Float[Tensor, "queries positions width"]:
    """One run of 1 + sequences * written positions per query."""
    return torch.cat([start, written.transpose(1, 2).flatten(1, 2)], 1)


def levels_and_attention_mask(
    sequences: int, written: int, device: torch.device
) -> tuple[Int[Tensor, " positions"], Bool[Tensor, "positions positions"]]:
    """How many vokens stand before each position, and which positions (columns) each position (row) attends to.

    A position attends to the start, to itself and to the earlier positions of its sequence.
    """
    position = torch.arange(sequences * written, device=device)
    level = torch.nn.functional.pad(1 + position // sequences, (1, 0))
    sequence = torch.nn.functional.pad(position % sequences, (1, 0), value=-1)
    same_sequence = (sequence[:, None] == sequence) | (sequence < 0)
    return level, same_sequence & (level[:, None] >= level)


def by_level(
    packed: Float[Tensor, "queries positions width"], sequences: int
) -> tuple[Float[Tensor, "queries _ width"], ...]:
    """The positions of each level: one of the first level, `sequences` of each level after it."""
    written = (packed.shape[1] - 1) // sequences
    parts: tuple[Tensor, ...] = packed.split([1] + [sequences] * written, dim=1)
    return parts
