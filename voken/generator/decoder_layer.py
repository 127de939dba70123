"""A layer of the shallow voken decoder: pre-norm, with cross-attention to what stands for the query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from voken.shapes import Bool, Float


def decay_groups(decoder: nn.Module) -> list[dict[str, Any]]:
    """The weights of a decoder of these layers for an optimizer; norms, biases, embeddings and scales do not decay."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in decoder.named_parameters():
        decays = weight.ndim == 2 and not name.endswith(("bias", "norms", "place"))
        (matrices if decays else others).append(weight)
    return [
        {"name": "matrices", "params": matrices},
        {"name": "rows, norms, biases", "params": others, "weight_decay": 0.0},
    ]


class DecoderLayer(nn.Module):
    """Self-attention over the vokens written, cross-attention to the query, feed-forward; norms before each.

    `width` is a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop = dropout
        self.norms = nn.Parameter(torch.ones(3, width))
        self.self_in = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_query = nn.Linear(width, width)
        self.cross_in = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def cross_keys(self, memory: Float[Tensor, "queries tokens width"]) -> tuple[Tensor, Tensor]:
        """Keys and values (queries, heads, tokens, width of a head) of what stands for the query, for all beams."""
        keys, values = self._split(self.cross_in(memory)).chunk(2, 1)
        return keys, values

    def step(
        self,
        hidden: Float[Tensor, "queries beams width"],
        past: tuple[Tensor, Tensor] | None,
        cross: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> tuple[Float[Tensor, "queries beams width"], tuple[Tensor, Tensor]]:
        """One level of all beams; `past` is what the level before returned, beams reordered.

        `mask` is True on the query's own tokens, as (queries, 1, 1, tokens); None: all of them are.
        """
        queries, beams, width = hidden.shape
        joint = self.self_in(self._norm(hidden, 0)).view(queries, beams, 3, self.heads, 1, width // self.heads)
        query, keys, values = joint.unbind(2)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 3), torch.cat([past[1], values], 3)
        seen = scaled_dot_product_attention(query, keys, values).reshape(queries, beams, width)
        hidden = hidden + self.self_out(seen)
        return self._cross_and_feed(hidden, cross, mask), (keys, values)

    def teacher_forced(
        self,
        hidden: Float[Tensor, "queries positions width"],
        sees: Bool[Tensor, "positions positions"],
        cross: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Float[Tensor, "queries positions width"]:
        """All positions at once; a position (row of `sees`) reads those that are True in its row."""
        queries, positions, _ = hidden.shape
        joint = self.self_in(self._norm(hidden, 0)).view(queries, positions, 3, self.heads, -1)
        query, keys, values = joint.transpose(1, 3).unbind(2)
        seen = scaled_dot_product_attention(query, keys, values, attn_mask=sees)
        hidden = hidden + self.dropout(self.self_out(seen.transpose(1, 2).reshape(hidden.shape)))
        return self._cross_and_feed(hidden, cross, mask)

    def _cross_and_feed(self, hidden: Tensor, cross: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        query = self._split(self.cross_query(self._norm(hidden, 1)))
        seen = scaled_dot_product_attention(query, *cross, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = hidden + self.dropout(self.cross_out(seen))
        fed: Tensor = self.dropout(self.down(nn.functional.gelu(self.up(self._norm(hidden, 2)))))
        return hidden + fed

    def _norm(self, hidden: Tensor, which: int) -> Tensor:
        return layer_norm(hidden, hidden.shape[-1:], self.norms[which].to(hidden.dtype))

    def _split(self, hidden: Float[Tensor, "queries positions width"]) -> Tensor:
        queries, positions, _ = hidden.shape
        return hidden.view(queries, positions, -1, self.norms.shape[1] // self.heads).transpose(1, 2)
