"""Decoder-only models of the Llama architecture as generators, tuned through LoRA.

A query is a prompt: its text, then an optional separator. The checkpoint's own forward pass reads the prompt
once; its keys and values stay (queries, length) and every beam attends to them and to its own past, so nothing
of the prompt is copied a beam. Prompts are padded on the right, where a causal model cannot see, and vokens
take the rotary positions that follow each prompt's own length.

The checkpoint is frozen but for LoRA adapters (Hu et al. 2021, through peft) and the voken rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voken.artifact import storage_errors
from voken.errors import ConfigError, CorruptArtifactError, MissingExtraError, VokenError
from voken.generator.checkpoint import opening
from voken.generator.header import read_header, write_header
from voken.generator.queries import QueryReader
from voken.generator.vocabulary import VokenVocabulary, rms
from voken.shapes import Bool, Float, Int

_WEIGHTS = "model.safetensors"
_ADAPTER = "adapter.safetensors"
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NEVER = -1e4
"""Bias of words that are no vokens in `to_transformers`: probability 0 in float32, without infinities."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of every linear layer: W + (alpha / rank)·B·A, with B zero at first."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05


@dataclass(frozen=True)
class LlamaState:
    """The prompts' keys and values, and every beam's own past."""

    prompt_keys: tuple[Float[Tensor, "queries kv_heads length head_dim"], ...]
    """One a layer; a query's beams share them."""
    prompt_values: tuple[Float[Tensor, "queries kv_heads length head_dim"], ...]
    mask: Bool[Tensor, "queries length"]
    last: Float[Tensor, "queries width"]
    """What the model thinks after the prompt's last token: level 1 is predicted from it."""
    keys: Float[Tensor, "layers queries beams kv_heads past head_dim"] | None = None
    values: Float[Tensor, "layers queries beams kv_heads past head_dim"] | None = None

    @property
    def past(self) -> int:
        """How many vokens have been read."""
        return 0 if self.keys is None else self.keys.shape[4]


class LlamaStepModel(nn.Module):
    """A Llama checkpoint that writes voken sequences. Implements `Generator`."""

    def __init__(
        self, *, transformer: Any, reader: QueryReader, vocabulary: VokenVocabulary, lora: Lora | None
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.config = transformer.config
        self.reader = reader
        self.vocabulary = vocabulary
        self.lora = lora
        self.transformer.requires_grad_(False)
        if lora is not None:
            _adapt(self.transformer, lora)

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

        `lora` None trains the voken rows alone. The other options are those of `T5StepModel.from_pretrained`.
        Raises `ConfigError` where the checkpoint cannot be opened or is of another architecture, and
        `MissingExtraError` where LoRA is asked for and peft is not installed.
        """
        from transformers import AutoModelForCausalLM

        options = {} if gguf_file is None else {"gguf_file": gguf_file}
        with opening(checkpoint):
            model = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype=dtype, **options)
        if model.config.model_type != "llama":
            raise ConfigError(
                f"{checkpoint}: is a {model.config.model_type} checkpoint; the llama generator takes the Llama "
                "architecture only (Llama 1 to 3, SmolLM2, TinyLlama)."
            )
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        vocabulary = VokenVocabulary.from_codebooks(
            codebooks,
            model.config.hidden_size,
            shared=shared,
            copy=copy_embeddings,
            seed=seed,
            embedding_rms=rms(words),
            head_rms=None if head is words else rms(head),
        )
        torch.manual_seed(seed)
        return cls(
            transformer=model.model,
            reader=QueryReader.from_pretrained(checkpoint, max_tokens=max_query_tokens, separator=separator, **options),
            vocabulary=vocabulary.to(dtype),
            lora=lora,
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

    def encode(self, texts: Sequence[str]) -> LlamaState:
        """Run the prompts once and keep their keys and values."""
        queries = self.reader(texts, self.device)
        read = self.transformer(input_ids=queries.tokens, attention_mask=queries.mask.long(), use_cache=True)
        last = queries.mask.sum(dim=1) - 1
        return LlamaState(
            prompt_keys=tuple(layer.keys for layer in read.past_key_values.layers),
            prompt_values=tuple(layer.values for layer in read.past_key_values.layers),
            mask=queries.mask,
            last=read.last_hidden_state[torch.arange(len(last), device=last.device), last],
        )

    def prefill(self, texts: Sequence[str]) -> LlamaState:
        """`encode` without gradients."""
        with torch.no_grad():
            return self.encode(texts)

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
        hidden, state = self._decode(embedded, _follow(state, parents))
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

    def forward(self, texts: Sequence[str], vokens: Int[Tensor, "pairs levels"]) -> Float[Tensor, "pairs levels N"]:
        """`teacher_forced` for pairs of a text and its sequence."""
        return self.teacher_forced(self.encode(texts), vokens.unsqueeze(1)).squeeze(1)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The adapters, and the vokens (no decay)."""
        adapters = [parameter for parameter in self.transformer.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [{"name": "adapters", "params": adapters}] if adapters else []
        return [*groups, {"name": "vokens", "params": list(self.vocabulary.parameters()), "weight_decay": 0.0}]

    def save(self, folder: Path) -> None:
        """Write config.json, the weights, the adapters apart, generator.json and the tokenizer's files."""
        folder = Path(folder)
        weights = {name.replace(".base_layer.", "."): weight for name, weight in self.state_dict().items()}
        adapter = {name: weights.pop(name).contiguous() for name in list(weights) if ".lora_" in name}
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.config.save_pretrained(str(folder))
            self.reader.save(folder)
            save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / _WEIGHTS)
            if self.lora is not None:
                save_file(adapter, folder / _ADAPTER)
        lora = self.lora
        settings = {
            "levels": self.levels,
            "codebook_size": self.codebook_size,
            "shared": self.vocabulary.shared,
            "tied": self.vocabulary.tied,
            "max_query_tokens": self.reader.max_tokens,
            "separator": self.reader.separator,
            "lora": None if lora is None else {"rank": lora.rank, "alpha": lora.alpha, "dropout": lora.dropout},
        }
        write_header(folder, "llama", settings)

    @classmethod
    def load(cls, folder: Path, *, merge: bool = True) -> Self:
        """Read what `save` wrote, on the CPU, without a network.

        `merge` adds the adapters into the weights: steps are faster, peft is not needed, and only the voken rows
        could be trained on. Without it the adapters stay trainable. Raises as `T5StepModel.load` does.
        """
        from transformers import AutoConfig
        from transformers.models.llama.modeling_llama import LlamaModel, LlamaRotaryEmbedding

        folder = Path(folder)
        header = read_header(folder, "llama")
        try:
            lora = Lora(**header["lora"]) if header["lora"] else None
            config = AutoConfig.from_pretrained(str(folder))
            weights = load_file(folder / _WEIGHTS)
            adapter = load_file(folder / _ADAPTER) if lora is not None else {}
            # Without memory or initialisation: every parameter is assigned from the files below.
            with torch.device("meta"):
                transformer = LlamaModel(config)
                vocabulary = VokenVocabulary(
                    levels=header["levels"],
                    codebook_size=header["codebook_size"],
                    width=config.hidden_size,
                    shared=header["shared"],
                    tied=header["tied"],
                )
            # Its frequencies are computed, not saved.
            transformer.rotary_emb = LlamaRotaryEmbedding(config)
            if lora is not None and merge:
                weights = _merged(weights, adapter, lora)
            loaded = cls(
                transformer=transformer,
                reader=QueryReader.from_pretrained(
                    folder, max_tokens=header["max_query_tokens"], separator=header["separator"]
                ),
                vocabulary=vocabulary,
                lora=None,
            )
            loaded.load_state_dict(weights, assign=True)
            loaded.transformer.requires_grad_(False)
            if lora is not None and not merge:
                _adapt(loaded.transformer, lora)
                loaded.lora = lora
                loaded.load_state_dict(adapter, strict=False)
        except MissingExtraError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, VokenError) as error:
            raise CorruptArtifactError(f"{folder}: cannot be read ({error}). Restore it from a copy.") from error
        return loaded.eval()

    def to_transformers(self) -> Any:
        """A plain transformers model with the same weights, to run or compare with `generate`.

        As `T5StepModel.to_transformers`: voken v is word V + v, other words have probability 0. It shares the
        layers (and the adapters in them) with this model.
        """
        from transformers import LlamaForCausalLM

        if not self.vocabulary.shared:
            raise ConfigError("A model with one codebook a level has no equal with one vocabulary.")
        words = self.transformer.embed_tokens.weight
        table = nn.Embedding.from_pretrained(torch.cat([words, self.vocabulary.embeddings[0]]).detach().clone())
        head = nn.Linear(self.config.hidden_size, len(table.weight), dtype=words.dtype, device=self.device)
        head.weight.data = torch.cat([torch.zeros_like(words), self.vocabulary.output_rows[0]]).detach().clone()
        head.bias.data = torch.where(torch.arange(len(table.weight), device=self.device) < len(words), _NEVER, 0.0)
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

    def _decode(
        self, embedded: Float[Tensor, "queries sequences new width"], state: LlamaState
    ) -> tuple[Float[Tensor, "queries sequences new width"], LlamaState]:
        """Run `new` further positions of every sequence through the layers."""
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
        """Attention over the prompt's keys, which all sequences share, and the sequence's own, as one softmax."""
        prompt_key, prompt_value = state.prompt_keys[number], state.prompt_values[number]
        length = prompt_key.shape[2]
        # Heads that share a key head stand beside each other: (queries, sequences, kv heads, group, new, head_dim).
        query = query.unflatten(2, (key.shape[2], -1)) * scaling
        to_prompt = torch.einsum("qshgnd,qhld->qshgnl", query, prompt_key)
        to_prompt = to_prompt.masked_fill(~state.mask[:, None, None, None, None, :], -torch.inf)
        to_own = torch.einsum("qshgnd,qshtd->qshgnt", query, key).masked_fill(future, -torch.inf)
        weights = torch.softmax(torch.cat([to_prompt, to_own], dim=-1), dim=-1, dtype=torch.float32).to(value.dtype)
        weights = nn.functional.dropout(weights, self.config.attention_dropout, self.training)
        mixed = torch.einsum("qshgnl,qhld->qsnhgd", weights[..., :length], prompt_value)
        mixed = mixed + torch.einsum("qshgnt,qshtd->qsnhgd", weights[..., length:], value)
        return mixed.flatten(3)


def _rotated(
    heads: Float[Tensor, "queries sequences heads new head_dim"],
    cosine: Float[Tensor, "queries 1 1 new head_dim"],
    sine: Float[Tensor, "queries 1 1 new head_dim"],
) -> Float[Tensor, "queries sequences heads new head_dim"]:
    """Rotary positions (Su et al. 2021) with the halves paired, as Llama's weights expect."""
    left, right = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-right, left], dim=-1) * sine


def _follow(state: LlamaState, parents: Int[Tensor, "queries beams"]) -> LlamaState:
    """Give every beam the past of the beam it extends; after level 1 there is none yet."""
    if state.keys is None or state.values is None:
        return state
    query = torch.arange(len(parents), device=parents.device).unsqueeze(1)
    return replace(state, keys=state.keys[:, query, parents], values=state.values[:, query, parents])


def _adapt(transformer: nn.Module, lora: Lora) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingExtraError("peft", "train") from error
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(_ADAPTED))
    inject_adapter_in_model(config, transformer)


def _merged(weights: dict[str, Tensor], adapter: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    merged = dict(weights)
    for name, down in adapter.items():
        module, found, rest = name.partition(".lora_A.")
        if found:
            up = adapter[f"{module}.lora_B.{rest}"]
            weight = weights[f"{module}.weight"]
            change = (lora.alpha / lora.rank) * (up.float() @ down.float())
            merged[f"{module}.weight"] = (weight.float() + change).to(weight.dtype)
    return merged
