"""Decoder-only models of the Llama architecture as generators, trained through LoRA.

A query is a prompt: its text, then an optional separator. The forward pass of transformers reads the prompt once.
Every beam attends to the prompt's keys and values (queries, length) and to its own past, so nothing of the prompt is
copied per beam. Prompts are padded on the right, where a causal model cannot see, and the rotary positions of vokens
continue from the length of each prompt.

Only LoRA adapters (Hu et al. 2021, through peft) and the voken rows are trained; the checkpoint is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from voken.errors import ConfigError, MissingExtraError
from voken.generator.checkpoint import (
    WEIGHTS,
    CheckpointGenerator,
    QueryReader,
    SavedParts,
    checkpoint_errors,
    follow_parents,
    starting_vocabulary,
)
from voken.generator.vocabulary import VokenVocabulary
from voken.shapes import Bool, Float, Int

_ADAPTER = "adapter.safetensors"
_ADAPTED_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """Settings of the low-rank adapters of every linear layer: W + (alpha / rank)·B·A, where B starts at zero."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class LlamaState:
    """The prompts' keys and values, and the past of every beam."""

    prompt_keys: tuple[Float[Tensor, "queries kv_heads length head_dim"], ...]
    """One tensor per layer, shared by the beams of a query."""
    prompt_values: tuple[Float[Tensor, "queries kv_heads length head_dim"], ...]
    mask: Bool[Tensor, "queries length"]
    last: Float[Tensor, "queries width"]
    """The output at the prompt's last token, which predicts level 1."""
    keys: Float[Tensor, "layers queries beams kv_heads past head_dim"] | None = None
    values: Float[Tensor, "layers queries beams kv_heads past head_dim"] | None = None

    @property
    def past(self) -> int:
        """The number of vokens that have been processed."""
        return 0 if self.keys is None else self.keys.shape[4]


class LlamaGenerator(CheckpointGenerator):
    """A Llama checkpoint that writes voken sequences. Implements `Generator`.

    `load` merges the adapters into the weights. `load(folder, merge=False)` leaves them separate, so that they can be
    trained further.
    """

    family = "llama"

    def __init__(
        self, *, transformer: Any, reader: QueryReader, vocabulary: VokenVocabulary, lora: Lora | None
    ) -> None:
        super().__init__(config=transformer.config, reader=reader)
        self.transformer = transformer
        self.vocabulary = vocabulary
        self.lora = lora
        self.transformer.requires_grad_(False)
        if lora is not None:
            _add_adapters(self.transformer, lora)

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
        separator: str = "",
        lora: Lora | None = None,
        gguf_file: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Start from a Llama checkpoint (a hub name or a folder; `gguf_file` names a file in it).

        With `lora` None only the voken rows are trained. The other options are those of `T5Generator.from_pretrained`.
        Raises `ConfigError` if the checkpoint cannot be opened or has another architecture, and
        `MissingExtraError` if `lora` is set and peft is not installed.
        """
        from transformers import AutoModelForCausalLM

        options = {} if gguf_file is None else {"gguf_file": gguf_file}
        with checkpoint_errors(checkpoint):
            model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=dtype, **options)
        if model.config.model_type != "llama":
            raise ConfigError(
                f"{checkpoint}: is a {model.config.model_type} checkpoint; the llama generator takes the Llama "
                "architecture only (Llama 1 to 3, SmolLM2, TinyLlama)."
            )
        vocabulary = starting_vocabulary(model, codebooks, shared=shared, copy=copy_embeddings, seed=seed)
        torch.manual_seed(seed)
        return cls(
            transformer=model.model,
            reader=QueryReader.from_pretrained(checkpoint, max_tokens=max_query_tokens, separator=separator, **options),
            vocabulary=vocabulary,
            lora=lora,
        )

    def encode(self, texts: Sequence[str]) -> LlamaState:
        """Run the prompts once; their keys and values are the state."""
        queries = self.reader(texts, self.device)
        outputs = self.transformer(input_ids=queries.tokens, attention_mask=queries.mask.long(), use_cache=True)
        last = queries.mask.sum(dim=1) - 1
        return LlamaState(
            prompt_keys=tuple(layer.keys for layer in outputs.past_key_values.layers),
            prompt_values=tuple(layer.values for layer in outputs.past_key_values.layers),
            mask=queries.mask,
            last=outputs.last_hidden_state[torch.arange(len(last), device=last.device), last],
        )

    def step(
        self,
        state: LlamaState,
        vokens: Int[Tensor, "queries beams"] | None,
        parents: Int[Tensor, "queries beams"] | None,
    ) -> tuple[Float[Tensor, "queries beams N"], LlamaState]:
        """One level for all beams; see `StepModel`."""
        if vokens is None or parents is None:
            return self.vocabulary.logits(state.last.unsqueeze(1), 0), state
        level = state.past
        embedded = self.vocabulary.embed(vokens, level).unsqueeze(2)
        hidden, state = self._decode(embedded, follow_parents(state, parents))
        return self.vocabulary.logits(hidden[:, :, 0], level + 1), state

    def teacher_forced(
        self, state: LlamaState, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the vokens before it; see `Generator`."""
        hidden = state.last[:, None, None, :].expand(-1, vokens.shape[1], -1, -1)
        if self.levels > 1:
            embedded = self.vocabulary.embed_prefixes(vokens[:, :, :-1])
            deeper, _ = self._decode(embedded, replace(state, keys=None, values=None))
            hidden = torch.cat([hidden, deeper], dim=2)
        return self.vocabulary.sequence_logits(hidden)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The adapters, and the vokens (without decay)."""
        adapters = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"name": "adapters", "params": adapters}] if adapters else []
        return [*groups, {"name": "vokens", "params": list(self.vocabulary.parameters()), "weight_decay": 0.0}]

    def to_transformers(self) -> Any:
        """A plain transformers model with the same weights, to run or compare with `generate`.

        See `T5Generator.to_transformers`: voken v is word V + v, and other words have probability 0. The result shares
        its layers, including adapters, with this generator.
        """
        from transformers import LlamaForCausalLM

        table, head = self._extended_vocabulary(self.transformer.embed_tokens.weight)
        config = type(self.config).from_dict({**self.config.to_dict(), "vocab_size": len(table.weight)})
        config.tie_word_embeddings = False
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.model.layers = self.transformer.layers
        model.model.norm = self.transformer.norm
        model.model.rotary_emb = self.transformer.rotary_emb
        model.set_input_embeddings(table)
        model.lm_head = head
        return model.train(self.training)

    def _header(self) -> dict[str, Any]:
        lora = None if self.lora is None else asdict(self.lora)
        return {"max_query_tokens": self.reader.max_tokens, "separator": self.reader.separator, "lora": lora}

    def _weight_files(self) -> dict[str, dict[str, Tensor]]:
        weights = {name.replace(".base_layer.", "."): weight for name, weight in self.state_dict().items()}
        adapter = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
        return {WEIGHTS: weights} | ({} if self.lora is None else {_ADAPTER: adapter})

    @classmethod
    def _from_saved(cls, folder: Path, saved: SavedParts, *, merge: bool = True, **options: Any) -> Self:
        """See `load`. With `merge`, steps are faster and need no peft, but only the voken rows can be trained."""
        from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

        lora = Lora(**saved.header["lora"]) if saved.header["lora"] else None
        adapter = load_file(folder / _ADAPTER) if lora is not None else {}
        with torch.device("meta"):
            transformer = LlamaModel(saved.config)
        # its frequencies are computed, not saved
        transformer.rotary_emb = LlamaRotaryEmbedding(saved.config)
        generator = cls(transformer=transformer, reader=saved.reader, vocabulary=saved.vocabulary, lora=None)
        weights = saved.weights if lora is None or not merge else _merged(saved.weights, adapter, lora)
        generator.load_state_dict(weights, assign=True)
        generator.transformer.requires_grad_(False)
        if lora is not None and not merge:
            _add_adapters(generator.transformer, lora)
            generator.lora = lora
            generator.load_state_dict(adapter, strict=False)
        return generator

    def _decode(
        self, embedded: Float[Tensor, "queries sequences new width"], state: LlamaState
    ) -> tuple[Float[Tensor, "queries sequences new width"], LlamaState]:
        """Run `new` more positions of every sequence through the layers."""
        past, new = state.past, embedded.shape[2]
        positions = state.mask.sum(dim=1, keepdim=True) + torch.arange(past, past + new, device=embedded.device)
        cosine, sine = self.transformer.rotary_emb(embedded, position_ids=positions)
        cosine, sine = cosine[:, None, None], sine[:, None, None]
        future = torch.ones(new, past + new, dtype=torch.bool, device=embedded.device).triu(past + 1)
        hidden = embedded
        keys, values = [], []
        for number, layer in enumerate(self.transformer.layers):
            attention = layer.self_attn
            normed = layer.input_layernorm(hidden)
            split = (-1, attention.head_dim)
            query = _rotated(attention.q_proj(normed).unflatten(-1, split).transpose(2, 3), cosine, sine)
            key = _rotated(attention.k_proj(normed).unflatten(-1, split).transpose(2, 3), cosine, sine)
            value = attention.v_proj(normed).unflatten(-1, split).transpose(2, 3)
            if state.keys is not None and state.values is not None:
                key = torch.cat([state.keys[number], key], dim=3)
                value = torch.cat([state.values[number], value], dim=3)
            keys.append(key)
            values.append(value)
            mixed = self._attend(query, key, value, number, state, future, attention.scaling)
            hidden = hidden + attention.o_proj(mixed)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.transformer.norm(hidden), replace(state, keys=torch.stack(keys), values=torch.stack(values))

    def _attend(
        self,
        query: Float[Tensor, "queries sequences heads new head_dim"],
        key: Float[Tensor, "queries sequences kv_heads seen head_dim"],
        value: Float[Tensor, "queries sequences kv_heads seen head_dim"],
        number: int,
        state: LlamaState,
        future: Bool[Tensor, "new seen"],
        scaling: float,
    ) -> Float[Tensor, "queries sequences new inner"]:
        """Attention with one softmax over the keys of the prompt, which all sequences share, and of the sequence."""
        prompt_key, prompt_value = state.prompt_keys[number], state.prompt_values[number]
        length = prompt_key.shape[2]
        # heads that share a key head are adjacent: (queries, sequences, kv heads, group, new, head_dim)
        query = query.unflatten(2, (key.shape[2], -1)) * scaling
        to_prompt = torch.einsum("qshgnd,qhld->qshgnl", query, prompt_key)
        to_prompt = to_prompt.masked_fill(~state.mask[:, None, None, None, None, :], -torch.inf)
        to_sequence = torch.einsum("qshgnd,qshtd->qshgnt", query, key).masked_fill(future, -torch.inf)
        weights = torch.softmax(torch.cat([to_prompt, to_sequence], dim=-1), dim=-1, dtype=torch.float32).to(
            value.dtype
        )
        weights = nn.functional.dropout(weights, self.config.attention_dropout, self.training)
        mixed = torch.einsum("qshgnl,qhld->qsnhgd", weights[..., :length], prompt_value)
        mixed = mixed + torch.einsum("qshgnt,qshtd->qsnhgd", weights[..., length:], value)
        return mixed.flatten(3)


def _rotated(
    heads: Float[Tensor, "queries sequences heads new head_dim"],
    cosine: Float[Tensor, "queries 1 1 new head_dim"],
    sine: Float[Tensor, "queries 1 1 new head_dim"],
) -> Float[Tensor, "queries sequences heads new head_dim"]:
    """Apply rotary positions (Su et al. 2021), pairing the two halves of a head as Llama's weights expect."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-right, left], dim=-1) * sine


def _add_adapters(transformer: nn.Module, lora: Lora) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(_ADAPTED_LAYERS)
    )
    inject_adapter_in_model(config, transformer)


def _merged(weights: dict[str, Tensor], adapter: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    merged = dict(weights)
    for name, down in adapter.items():
        module, is_down, rest = name.partition(".lora_A.")
        if is_down:
            up = adapter[f"{module}.lora_B.{rest}"]
            weight = weights[f"{module}.weight"]
            change = (lora.alpha / lora.rank) * (up.float() @ down.float())
            merged[f"{module}.weight"] = (weight.float() + change).to(weight.dtype)
    return merged
