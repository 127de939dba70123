"""T5, Flan-T5 and mT5 as generators: a transformers encoder, its decoder's weights, our own decoder loop.

The decoder runs over (queries, sequences, positions). Cross-attention treats the beams of a query as further
positions, so that its keys and values are computed once a query and never copied a beam. Self-attention is
per sequence, with a cache that follows the beams' parents.

The decoder starts from the checkpoint's own start token, reads vokens through `VokenVocabulary`, and there is
no end token: a sequence always has M vokens. T5 does not scale attention; a tied v1.0 head scales its input by
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from voken.artifact import storage_errors
from voken.errors import ConfigError, CorruptArtifactError, VokenError
from voken.generator.checkpoint import opening
from voken.generator.header import read_header, write_header
from voken.generator.queries import QueryReader, TokenizedQueries
from voken.generator.shared_start import by_level, flat_positions, levels_and_sight
from voken.generator.vocabulary import VokenVocabulary, rms
from voken.shapes import Bool, Float, Int

_WEIGHTS = "model.safetensors"
_READ_AT_ONCE = 16
"""Queries; fewer would pad less, and make the products of matrices too small to be fast."""
_NEVER = -1e4
"""Bias of words that are no vokens in `to_transformers`: probability 0 in float32, without infinities."""


@dataclass(frozen=True)
class T5State:
    """Queries as the decoder sees them, and the decoder's own past."""

    cross_keys: tuple[Float[Tensor, "queries heads length head_dim"], ...]
    """One a layer; a query's beams share them."""
    cross_values: tuple[Float[Tensor, "queries heads length head_dim"], ...]
    mask: Bool[Tensor, "queries 1 1 length"]
    keys: Float[Tensor, "layers queries beams heads past head_dim"] | None = None
    values: Float[Tensor, "layers queries beams heads past head_dim"] | None = None

    @property
    def past(self) -> int:
        """How many positions of the decoder have run."""
        return 0 if self.keys is None else self.keys.shape[4]


class T5StepModel(nn.Module):
    """A T5 checkpoint that writes voken sequences. Implements `Generator`. All of it is trained."""

    def __init__(
        self, *, encoder: Any, decoder: Any, config: Any, reader: QueryReader, vocabulary: VokenVocabulary, scale: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        # The encoder holds the table of words for both, so that no tensor is in the state dict twice.
        self.decoder.embed_tokens = None
        self.vocabulary = vocabulary
        self.config = config
        self.reader = reader
        self._scale = scale

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

        `shared`: one set of voken rows for all levels, else one a level. `copy_embeddings` starts the rows from
        the codebooks, else they start at random (`seed` in either case). `dropout` replaces the checkpoint's.
        Raises `ConfigError` where the checkpoint cannot be opened or is of another architecture.
        """
        from transformers import AutoConfig, AutoModelForSeq2SeqLM

        with opening(checkpoint):
            config = AutoConfig.from_pretrained(str(checkpoint))
        if config.model_type not in {"t5", "mt5"}:
            raise ConfigError(
                f"{checkpoint}: is a {config.model_type} checkpoint; the t5 generator takes T5, Flan-T5 and mT5."
            )
        if dropout is not None:
            config.dropout_rate = dropout
        with opening(checkpoint):
            model = AutoModelForSeq2SeqLM.from_pretrained(str(checkpoint), config=config, dtype=dtype)
        words, head = model.get_input_embeddings().weight, model.lm_head.weight
        vocabulary = VokenVocabulary.from_codebooks(
            codebooks,
            config.d_model,
            shared=shared,
            copy=copy_embeddings,
            seed=seed,
            embedding_rms=rms(words),
            head_rms=None if head is words else rms(head),
        )
        return cls(
            encoder=model.encoder,
            decoder=model.decoder,
            config=model.config,
            reader=QueryReader.from_pretrained(checkpoint, max_tokens=max_query_tokens),
            vocabulary=vocabulary.to(dtype),
            scale=config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0,
        )

    @property
    def codebook_size(self) -> int:
        """N: how many vokens there are at each level."""
        return self.vocabulary.codebook_size

    @property
    def levels(self) -> int:
        """M: how many vokens a sequence has."""
        return self.vocabulary.levels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vocabulary.embeddings.device

    def encode(self, texts: Sequence[str]) -> T5State:
        """Run the encoder once and project its output to every decoder layer's keys and values."""
        queries = self.reader(texts, self.device)
        hidden = self._read(queries)
        attentions = [block.layer[1].EncDecAttention for block in self.decoder.block]
        return T5State(
            cross_keys=tuple(_heads(attention.k(hidden), self.config) for attention in attentions),
            cross_values=tuple(_heads(attention.v(hidden), self.config) for attention in attentions),
            mask=queries.mask[:, None, None, :],
        )

    def prefill(self, texts: Sequence[str]) -> T5State:
        """`encode` without gradients."""
        with torch.no_grad():
            return self.encode(texts)

    def step(
        self, state: T5State, vokens: Int[Tensor, "queries beams"] | None, parents: Int[Tensor, "queries beams"] | None
    ) -> tuple[Float[Tensor, "queries beams N"], T5State]:
        """One level for all beams; see `StepModel`."""
        level = state.past
        if vokens is None or parents is None:
            embedded = self._start(len(state.mask), 1)
        else:
            embedded = self.vocabulary.embed(vokens, level - 1).unsqueeze(2)
            state = _follow(state, parents)
        hidden, state = self._decode(embedded, state)
        return self.vocabulary.logits(hidden[:, :, 0], level), state

    def teacher_forced(
        self, state: T5State, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the vokens before it; see `Generator`."""
        queries, sequences, levels = vokens.shape
        start = self._start(queries, 1).squeeze(1)
        embedded = flat_positions(start, self.vocabulary.embed_prefixes(vokens[:, :, :-1]))
        level, sees = levels_and_sight(sequences, levels - 1, embedded.device)
        bias = self._own_attention().compute_bias(levels, levels, device=embedded.device)[:, :, level[:, None], level]
        bias = bias.masked_fill(~sees, -torch.inf)
        hidden, _ = self._decode(embedded.unsqueeze(1), replace(state, keys=None, values=None), bias)
        logits = [self.vocabulary.logits(part, at) for at, part in enumerate(by_level(hidden.squeeze(1), sequences))]
        return torch.stack([part.expand(-1, sequences, -1) for part in logits], 2)

    def forward(self, texts: Sequence[str], vokens: Int[Tensor, "pairs levels"]) -> Float[Tensor, "pairs levels N"]:
        """`teacher_forced` for pairs of a text and its sequence."""
        return self.teacher_forced(self.encode(texts), vokens.unsqueeze(1)).squeeze(1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices of the checkpoint; its word table and norms (no decay); the vokens (no decay)."""
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

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors, generator.json and the tokenizer's files into `folder`."""
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.config.save_pretrained(str(folder))
            self.reader.save(folder)
            save_file({name: weight.contiguous() for name, weight in self.state_dict().items()}, folder / _WEIGHTS)
        settings = {
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "shared": self.vocabulary.shared,
            "tied": self.vocabulary.tied,
            "scale": self._scale,
            "max_query_tokens": self.reader.max_tokens,
        }
        write_header(folder, "t5", settings)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, on the CPU, without a network.

        Raises `CorruptArtifactError` for missing or unfit files, `ArtifactVersionError` for a newer format.
        """
        from transformers import AutoConfig

        folder = Path(folder)
        header = read_header(folder, "t5")
        try:
            config = AutoConfig.from_pretrained(str(folder))
            weights = load_file(folder / _WEIGHTS)
            # Without memory or initialisation: every parameter is assigned from the file below.
            with torch.device("meta"):
                model = _untrained(config)
                vocabulary = VokenVocabulary(
                    levels=header["levels"],
                    codebook_size=header["codebook_size"],
                    width=config.d_model,
                    shared=header["shared"],
                    tied=header["tied"],
                )
            loaded = cls(
                encoder=model.encoder,
                decoder=model.decoder,
                config=config,
                reader=QueryReader.from_pretrained(folder, max_tokens=header["max_query_tokens"]),
                vocabulary=vocabulary,
                scale=header["scale"],
            )
            loaded.load_state_dict(weights, assign=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, VokenError) as error:
            raise CorruptArtifactError(f"{folder}: cannot be read ({error}). Restore it from a copy.") from error
        return loaded.eval()

    def to_transformers(self) -> Any:
        """A plain transformers model with the same weights, to run or compare with `generate`.

        Voken v is word V + v, where V is the size of the checkpoint's own table. Words that are no vokens have
        probability 0, so its softmax is over vokens as here. Raises `ConfigError` with a codebook a level, whose
        softmax differs by level. In memory only: the head has a bias, which transformers would not save.
        """
        if not self.vocabulary.shared:
            raise ConfigError("A model with one codebook a level has no equal with one vocabulary.")
        words = self.encoder.embed_tokens.weight
        model = _untrained(copy.deepcopy(self.config)).to(words.dtype)
        weights = {f"encoder.{name}": weight for name, weight in self.encoder.state_dict().items()}
        weights |= {f"decoder.{name}": weight for name, weight in self.decoder.state_dict().items()}
        model.load_state_dict(weights, strict=False)
        rows = self.vocabulary.output_rows[0]
        table = nn.Embedding.from_pretrained(torch.cat([words, self.vocabulary.embeddings[0]]).detach().clone())
        head = nn.Linear(self.config.d_model, len(table.weight), dtype=words.dtype, device=self.device)
        head.weight.data = torch.cat([torch.zeros_like(words), rows]).detach().clone()
        head.bias.data = torch.where(torch.arange(len(table.weight), device=self.device) < len(words), _NEVER, 0.0)
        model.set_input_embeddings(table)
        model.lm_head = head
        model.config.vocab_size = len(table.weight)
        return model.to(self.device).train(self.training)

    def _read(self, queries: TokenizedQueries) -> Float[Tensor, "queries length width"]:
        """The encoder's output; on a CPU in parts of like length, which saves most of the work on padding."""
        length = queries.mask.sum(dim=1)
        order = length.argsort()
        parts = []
        for rows in order.split(_READ_AT_ONCE if length.device.type == "cpu" else len(order)):
            longest = int(length[rows].max())
            tokens, mask = queries.tokens[rows, :longest], queries.mask[rows, :longest]
            hidden = self.encoder(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
            parts.append(nn.functional.pad(hidden, (0, 0, 0, queries.tokens.shape[1] - longest)))
        return torch.cat(parts)[order.argsort()]

    def _own_attention(self) -> Any:
        """The self-attention that holds the position biases of all decoder layers."""
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
        """Run `new` further positions of every sequence through the decoder.

        `bias` of the self-attention; by default each position sees the ones before it.
        """
        queries, sequences, new, _ = embedded.shape
        past = state.past
        if bias is None:
            bias = self._own_attention().compute_bias(new, past + new, device=embedded.device, past_seen_tokens=past)
            future = torch.ones(new, past + new, dtype=torch.bool, device=embedded.device).triu(past + 1)
            bias = bias.masked_fill(future, -torch.inf)
        rate = self.config.dropout_rate if self.training else 0.0
        keys, values = [], []
        hidden = self.decoder.dropout(embedded)
        for number, block in enumerate(self.decoder.block):
            own, cross, feed_forward = block.layer
            attention = own.SelfAttention
            normed = own.layer_norm(hidden).flatten(0, 1)
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
            hidden = hidden + own.dropout(mixed)

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
        hidden = self.decoder.dropout(self.decoder.final_layer_norm(hidden)) * self._scale
        cache_shape = (len(keys), queries, sequences, *keys[0].shape[1:])
        state = replace(state, keys=torch.stack(keys).view(cache_shape), values=torch.stack(values).view(cache_shape))
        return hidden, state


def _untrained(config: Any) -> Any:
    from transformers import MT5ForConditionalGeneration, T5ForConditionalGeneration

    return (MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration)(config)


def _heads(projected: Float[Tensor, "rows length inner"], config: Any) -> Float[Tensor, "rows heads length head_dim"]:
    heads: Tensor = projected.unflatten(-1, (config.num_heads, config.d_kv))
    return heads.transpose(1, 2)


def _follow(state: T5State, parents: Int[Tensor, "queries beams"]) -> T5State:
    """Give every beam the past of the beam it extends."""
    if state.keys is None or state.values is None:
        raise ValueError("the first step of a search has no parents")
    query = torch.arange(len(parents), device=parents.device).unsqueeze(1)
    return replace(state, keys=state.keys[:, query, parents], values=state.values[:, query, parents])
