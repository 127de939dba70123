"""T5, Flan-T5 and mT5 as generators: the encoder of transformers, and its decoder's weights in a loop written here.

The decoder runs over (queries, sequences, positions). Cross-attention treats the beams of a query as further
positions, so its keys and values are computed once per query and never copied per beam. Self-attention is
per sequence, with a cache that is reordered by the beams' parents.

The decoder starts from the checkpoint's start token and reads vokens through `VokenVocabulary`. There is no end
token: a sequence always has M vokens. T5 does not scale attention; a tied v1.0 head scales its input by
d_model^-0.5 (Raffel et al. 2020; transformers' `scale_decoder_outputs`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from voken.errors import ConfigError
from voken.generator.checkpoint import (
    CheckpointGenerator,
    QueryReader,
    SavedParts,
    TokenizedQueries,
    checkpoint_errors,
    follow_parents,
    starting_vocabulary,
)
from voken.generator.lite import by_level, levels_and_attention_mask, packed_positions
from voken.generator.vocabulary import VokenVocabulary
from voken.shapes import Bool, Float, Int

_QUERIES_PER_PASS = 16
"""Fewer queries per pass would need less padding, but the matrix products would become too small to be fast."""


@dataclass(frozen=True)
class T5State:
    """What the decoder attends to: the queries, and the cache of its self-attention."""

    cross_keys: tuple[Float[Tensor, "queries heads length head_dim"], ...]
    """One tensor per layer, shared by the beams of a query."""
    cross_values: tuple[Float[Tensor, "queries heads length head_dim"], ...]
    mask: Bool[Tensor, "queries 1 1 length"]
    keys: Float[Tensor, "layers queries beams heads past head_dim"] | None = None
    values: Float[Tensor, "layers queries beams heads past head_dim"] | None = None

    @property
    def past(self) -> int:
        """The number of positions that the decoder has processed."""
        return 0 if self.keys is None else self.keys.shape[4]


class T5Generator(CheckpointGenerator):
    """A T5 checkpoint that writes voken sequences. Implements `Generator`. All its weights are trained."""

    family = "t5"

    def __init__(
        self, *, encoder: Any, decoder: Any, config: Any, reader: QueryReader, vocabulary: VokenVocabulary, scale: float
    ) -> None:
        super().__init__(config=config, reader=reader)
        self.encoder = encoder
        self.decoder = decoder
        # the encoder holds the word table of both, so that no tensor is in the state dict twice
        self.decoder.embed_tokens = None
        self.vocabulary = vocabulary
        self.scale = scale

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        codebooks: Float[np.ndarray, "levels N code_dim"],
        *,
        shared: bool = True,
        copy_embeddings: bool = True,
        seed: int = 0,
        max_query_tokens: int = 64,
        dropout: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Start from a T5-like checkpoint (a hub name or a folder) and an image tokenizer's codebooks.

        With `shared` there is one set of voken rows for all levels, otherwise one per level. With `copy_embeddings` the
        rows start from the codebooks, otherwise at random; both use `seed`. `dropout` replaces the checkpoint's.
        Raises `ConfigError` if the checkpoint cannot be opened or has another architecture.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        with checkpoint_errors(checkpoint):
            config = AutoConfig.from_pretrained(str(checkpoint))
        if config.model_type not in {"t5", "mt5"}:
            raise ConfigError(
                f"{checkpoint}: is a {config.model_type} checkpoint; the t5 generator takes T5, Flan-T5 and mT5."
            )
        if dropout is not None:
            config.dropout_rate = dropout
        with checkpoint_errors(checkpoint):
            model = AutoModelForSeq2SeqLM.from_pretrained(str(checkpoint), config=config, dtype=dtype)
        return cls(
            encoder=model.encoder,
            decoder=model.decoder,
            config=model.config,
            reader=QueryReader.from_pretrained(checkpoint, max_tokens=max_query_tokens),
            vocabulary=starting_vocabulary(model, codebooks, shared=shared, copy=copy_embeddings, seed=seed),
            scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
        )

    def encode(self, texts: Sequence[str]) -> T5State:
        """Run the encoder once and project its output to the keys and values of every decoder layer."""
        queries = self.reader(texts, self.device)
        hidden = self._read(queries)
        attentions = [block.layer[1].EncDecAttention for block in self.decoder.block]
        return T5State(
            cross_keys=tuple(_heads(attention.k(hidden), self.config) for attention in attentions),
            cross_values=tuple(_heads(attention.v(hidden), self.config) for attention in attentions),
            mask=queries.mask[:, None, None, :],
        )

    def step(
        self, state: T5State, vokens: Int[Tensor, "queries beams"] | None, parents: Int[Tensor, "queries beams"] | None
    ) -> tuple[Float[Tensor, "queries beams N"], T5State]:
        """One level for all beams; see `StepModel`."""
        level = state.past
        if vokens is None or parents is None:
            embedded = self._start(len(state.mask), 1)
        else:
            embedded = self.vocabulary.embed(vokens, level - 1).unsqueeze(2)
            state = follow_parents(state, parents)
        hidden, state = self._decode(embedded, state)
        return self.vocabulary.logits(hidden[:, :, 0], level), state

    def teacher_forced(
        self, state: T5State, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the vokens before it; see `Generator`."""
        queries, sequences, levels = vokens.shape
        start = self._start(queries, 1).squeeze(1)
        embedded = packed_positions(start, self.vocabulary.embed_prefixes(vokens[:, :, :-1]))
        level, attends = levels_and_attention_mask(sequences, levels - 1, embedded.device)
        bias = self._position_attention().compute_bias(levels, levels, device=embedded.device)[
            :, :, level[:, None], level
        ]
        bias = bias.masked_fill(~attends, -torch.inf)
        hidden, _ = self._decode(embedded.unsqueeze(1), replace(state, keys=None, values=None), bias)
        logits = [self.vocabulary.logits(part, at) for at, part in enumerate(by_level(hidden.squeeze(1), sequences))]
        return torch.stack([part.expand(-1, sequences, -1) for part in logits], 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The checkpoint's matrices, its word table and norms (without decay), and the vokens (without decay)."""
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in [*self.encoder.named_parameters(), *self.decoder.named_parameters()]:
            decays = parameter.ndim > 1 and "embed" not in name and "bias" not in name
            (matrices if decays else others).append(parameter)
        return [
            {"name": "matrices", "params": matrices},
            {"name": "words and norms", "params": others, "weight_decay": 0.0},
            {"name": "vokens", "params": list(self.vocabulary.parameters()), "weight_decay": 0.0},
        ]

    def to_transformers(self) -> Any:
        """A plain transformers model with the same weights, to run or compare with `generate`.

        Voken v is word V + v, where V is the size of the checkpoint's word table. Words that are not vokens have
        probability 0, so the softmax is over vokens, as here. Raises `ConfigError` if there is a codebook per
        level, because the softmax then differs by level. The model cannot be saved: transformers does not write the
        bias of its head.
        """
        words = self.encoder.embed_tokens.weight
        table, head = self._extended_vocabulary(words)
        model = _untrained(copy.deepcopy(self.config)).to(words.dtype)
        weights = {f"encoder.{name}": weight for name, weight in self.encoder.state_dict().items()}
        weights |= {f"decoder.{name}": weight for name, weight in self.decoder.state_dict().items()}
        model.load_state_dict(weights, strict=False)
        model.set_input_embeddings(table)
        model.lm_head = head
        model.config.vocab_size = len(table.weight)
        return model.to(self.device).train(self.training)

    def _header(self) -> dict[str, Any]:
        return {"scale": self.scale, "max_query_tokens": self.reader.max_tokens}

    @classmethod
    def _from_saved(cls, folder: Path, saved: SavedParts, **options: Any) -> Self:
        with torch.device("meta"):
            model = _untrained(saved.config)
        generator = cls(
            encoder=model.encoder,
            decoder=model.decoder,
            config=saved.config,
            reader=saved.reader,
            vocabulary=saved.vocabulary,
            scale=saved.header["scale"],
        )
        generator.load_state_dict(saved.weights, assign=True)
        return generator

    def _read(self, queries: TokenizedQueries) -> Float[Tensor, "queries length width"]:
        """The encoder's output. On a CPU, queries of similar length are read together, which saves most padding."""
        lengths = queries.mask.sum(dim=1)
        order = lengths.argsort()
        parts = []
        for rows in order.split(_QUERIES_PER_PASS if lengths.device.type == "cpu" else len(order)):
            longest = int(lengths[rows].max())
            tokens, mask = queries.tokens[rows, :longest], queries.mask[rows, :longest]
            hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            parts.append(nn.functional.pad(hidden, (0, 0, 0, queries.tokens.shape[1] - longest)))
        return torch.cat(parts)[order.argsort()]

    def _position_attention(self) -> Any:
        """The self-attention whose position bias all decoder layers use."""
        return self.decoder.block[0].layer[0].SelfAttention

    def _start(self, queries: int, sequences: int) -> Float[Tensor, "queries sequences 1 width"]:
        token = torch.tensor(self.config.decoder_start_token_id, device=self.device)
        embedded: Tensor = self.encoder.embed_tokens(token)
        return embedded.expand(queries, sequences, 1, -1)

    def _decode(
        self,
        embedded: Float[Tensor, "queries sequences new width"],
        state: T5State,
        bias: Float[Tensor, "1 heads new seen"] | None = None,
    ) -> tuple[Float[Tensor, "queries sequences new width"], T5State]:
        """Run `new` more positions of every sequence through the decoder.

        `bias` is added in self-attention; by default each position attends to itself and to earlier ones.
        """
        queries, sequences, new, _ = embedded.shape
        past = state.past
        if bias is None:
            bias = self._position_attention().compute_bias(
                new, past + new, device=embedded.device, past_seen_tokens=past
            )
            future = torch.ones(new, past + new, dtype=torch.bool, device=embedded.device).triu(past + 1)
            bias = bias.masked_fill(future, -torch.inf)
        rate = self.config.dropout_rate if self.training else 0.0
        keys, values = [], []
        hidden = self.decoder.dropout(embedded)
        for number, block in enumerate(self.decoder.block):
            self_attention, cross, feed_forward = block.layer
            attention = self_attention.SelfAttention
            normed = self_attention.layer_norm(hidden).flatten(0, 1)
            key, value = _heads(attention.k(normed), self.config), _heads(attention.v(normed), self.config)
            if state.keys is not None and state.values is not None:
                key = torch.cat([state.keys[number].flatten(0, 1), key], dim=2)
                value = torch.cat([state.values[number].flatten(0, 1), value], dim=2)
            keys.append(key)
            values.append(value)
            query = _heads(attention.q(normed), self.config)
            mixed = scaled_dot_product_attention(
                query, key, value, attn_mask=bias.to(query.dtype), dropout_p=rate, scale=1.0
            )
            mixed = attention.o(mixed.transpose(1, 2).flatten(2)).view_as(hidden)
            hidden = hidden + self_attention.dropout(mixed)

            attention = cross.EncDecAttention
            query = _heads(attention.q(cross.layer_norm(hidden).flatten(1, 2)), self.config)
            mixed = scaled_dot_product_attention(
                query,
                state.cross_keys[number],
                state.cross_values[number],
                attn_mask=state.mask,
                dropout_p=rate,
                scale=1.0,
            )
            mixed = attention.o(mixed.transpose(1, 2).flatten(2)).view_as(hidden)
            hidden = hidden + cross.dropout(mixed)
            hidden = feed_forward(hidden)
        hidden = self.decoder.dropout(self.decoder.final_layer_norm(hidden)) * self.scale
        cache_shape = (len(keys), queries, sequences, *keys[0].shape[1:])
        state = replace(state, keys=torch.stack(keys).view(cache_shape), values=torch.stack(values).view(cache_shape))
        return hidden, state


def _untrained(config: Any) -> Any:
    from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration

    return (MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration)(config)


def _heads(projected: Float[Tensor, "rows length inner"], config: Any) -> Float[Tensor, "rows heads length head_dim"]:
    heads: Tensor = projected.unflatten(-1, (config.num_heads, config.d_kv))
    return heads.transpose(1, 2)
