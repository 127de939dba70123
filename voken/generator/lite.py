"""The `lite` family: a pretrained text encoder reads the query, a shallow decoder writes the vokens.

Deep encoder, shallow decoder: what a CPU trains in minutes and serves in milliseconds. The decoder is a
pre-norm transformer with cross-attention to the query's token states. Two settings of `GeneratorConfig`
carry what voken adds to the plain form:

- `copy_voken_embeddings` starts the voken rows, in and out, from the codebook (end of section 3.2's first
  paragraph), through a fixed orthonormal map where widths differ;
- `query_vector` gives the decoder the query's own vector t: as a token to attend to, and through the inner
  products of t, and of what the vokens so far sum to, with the entries of the level. With entries that sum
  to the picture's vector, the inner products alone rank sequences by <t, ẑ>: the decoder starts from
  quantized exact search and learns what to add;
- `memory_weight` adds to t what the training captions nearest to the query stood beside: a softmax over their
  similarity, of the vectors rebuilt from the vokens of their pictures (the cache of Zhang et al. 2022,
  "Tip-Adapter", turned from classes to sequences). In training, captions of the query's own concept are
  left out, so that the decoder sees what it will see for queries that nobody captioned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from voken.artifact import read_json, write_json
from voken.config import GeneratorConfig, from_dict
from voken.encoders.builtin import SentenceEncoder
from voken.encoders.text_reader import TextReader
from voken.encoders.two_tower import TwoTowerEncoder
from voken.errors import ConfigError
from voken.generator.decoder_layer import DecoderLayer, decay_groups
from voken.generator.shared_start import by_level, flat_positions, levels_and_sight
from voken.shapes import Bool, Float, Int


@dataclass(frozen=True)
class LiteState:
    """The query, read; and what the decoder keeps of the levels already written."""

    cross: tuple[tuple[Float[Tensor, "queries heads tokens width"], Float[Tensor, "queries heads tokens width"]], ...]
    """Keys and values of the query's tokens, a pair a layer: computed once, shared by all beams."""
    mask: Bool[Tensor, "queries 1 1 tokens"]
    aim: Float[Tensor, "queries e"]
    """Where in the code space the picture is looked for; zero without `query_vector`."""
    summed: Float[Tensor, "queries beams e"] | None = None
    """Sum of the codebook entries of each beam's vokens so far."""
    past: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values (queries, beams, heads, levels so far, width), a pair a layer."""
    level: int = 0


@dataclass(frozen=True)
class CaptionMemory:
    """What `LiteGenerator.memorize` keeps: captions seen in training, and what stood beside them."""

    texts: Sequence[str]
    vectors: Float[np.ndarray, "captions dim"]
    pictures: Float[np.ndarray, "captions e"]
    """Mean of the codes ẑ of the caption's pictures, L2-normalised."""
    own: Mapping[str, Int[np.ndarray, " rows"]]
    """For a text to train on, the rows of this memory that share a concept with it."""


class LiteGenerator(nn.Module):
    """A `Generator` (see `voken.generator.interface`) over a `TextReader`.

    The reader is not a part of what is saved: `load` is given the one it was trained with. With `tune_encoder` a
    trained copy of its sentence encoder is.
    """

    def __init__(self, reader: TextReader, codebooks: Float[np.ndarray, "M N e"], config: GeneratorConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ConfigError(f"generator.width {config.width} is not a multiple of generator.heads {config.heads}.")
        self.config = config
        self._reader: TextReader = reader
        self._training_reader: TextReader | None = None
        self.text = _tunable(reader) if config.tune_encoder else None
        levels, entries, code_dim = codebooks.shape
        width = config.width
        self.register_buffer("entries", torch.from_numpy(np.ascontiguousarray(codebooks, dtype=np.float32)))
        self.entries: Tensor
        self.read = nn.Linear(reader.text_width, width)
        self.read_norm = nn.LayerNorm(width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Parameter(torch.randn(levels, width) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        rows = _copied_rows(self.entries, width) if config.copy_voken_embeddings else _random_rows(self.entries, width)
        self.voken_in = nn.Parameter(rows.clone())
        self.voken_out = nn.Parameter(rows * 0.1 if config.query_vector else rows.clone())
        self.bias = nn.Parameter(torch.zeros(levels, entries))
        if config.query_vector:
            self.vector_in = nn.Linear(reader.dim, width)
            self.to_code = nn.Linear(reader.dim, code_dim, bias=False)
            nn.init.eye_(self.to_code.weight)
            self.similarity = nn.Parameter(torch.full((levels,), _SIMILARITY))
            self.repetition = nn.Parameter(torch.zeros(levels))
        self._own: Mapping[str, Int[np.ndarray, " rows"]] = {}
        self.register_buffer("memory_vectors", torch.zeros(0, reader.dim))
        self.register_buffer("memory_pictures", torch.zeros(0, code_dim))
        self.memory_vectors: Tensor
        self.memory_pictures: Tensor

    @property
    def codebook_size(self) -> int:
        """N."""
        return int(self.entries.shape[1])

    @property
    def levels(self) -> int:
        """M."""
        return int(self.entries.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.entries.device

    def memorize(self, memory: CaptionMemory) -> None:
        """Take the training captions in. Until `end_training`, a text of `memory.own` does not see its own rows."""
        self.memory_vectors = torch.from_numpy(memory.vectors).to(self.device)
        self.memory_pictures = torch.from_numpy(memory.pictures).to(self.device)
        self._own = memory.own

    def begin_training(self, reader: TextReader | None) -> None:
        """Read queries with `reader` until `end_training`: one that has read the training captions already."""
        self._training_reader = reader

    def end_training(self) -> None:
        """From now on every query is read afresh, and sees the whole memory."""
        self._training_reader = None
        self._own = {}

    def prefill(self, texts: Sequence[str]) -> LiteState:
        """`encode` without gradients."""
        with torch.inference_mode():
            return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> LiteState:
        """Read the queries. Only the frozen reader's part is without gradients."""
        reader = self._training_reader or self._reader
        states = reader.read_texts(texts, max_tokens=self.config.max_query_tokens)
        tokens, mask = states.tokens, states.mask
        if self.text is not None:
            ids, mask = self.text.tokenize(texts, self.config.max_query_tokens)
            tokens = self.text(ids.to(self.device), mask.to(self.device))
        tokens, mask = tokens.to(self.device, self.start.dtype), mask.to(self.device)
        vectors = states.vectors.to(self.device, self.start.dtype)
        memory = self.read(tokens)
        if self.config.query_vector:
            memory = torch.cat([self.vector_in(vectors)[:, None], memory], 1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        memory = self.dropout(self.read_norm(memory))
        cross = tuple(layer.cross_keys(memory) for layer in self._layers())
        return LiteState(cross, mask[:, None, None], self._aim(texts, vectors))

    def step(
        self,
        state: LiteState,
        vokens: Int[Tensor, "queries beams"] | None,
        parents: Int[Tensor, "queries beams"] | None,
    ) -> tuple[Float[Tensor, "queries beams N"], LiteState]:
        """As `voken.decoding.interface.StepModel`: one level for all beams of all queries."""
        queries, level = len(state.aim), state.level
        summed, past = state.summed, state.past
        if vokens is None or parents is None or summed is None:
            hidden = (self.start + self.place[0]).expand(queries, 1, -1)
            summed = torch.zeros(queries, 1, self.entries.shape[2], device=self.device)
            past = ()
        else:
            hidden = self.voken_in[level - 1][vokens] + self.place[level]
            row = torch.arange(queries, device=self.device)[:, None]
            summed = summed[row, parents] + self.entries[level - 1][vokens]
            past = tuple((keys[row, parents], values[row, parents]) for keys, values in past)
        kept = []
        for number, layer in enumerate(self._layers()):
            hidden, pair = layer.step(hidden, past[number] if past else None, state.cross[number], state.mask)
            kept.append(pair)
        logits = self._logits(self.norm(hidden), level, state.aim[:, None], summed)
        return logits, LiteState(state.cross, state.mask, state.aim, summed, tuple(kept), level + 1)

    def teacher_forced(
        self, state: LiteState, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """As `voken.generator.interface.Generator`."""
        queries, sequences, levels = vokens.shape
        level = torch.arange(levels, device=self.device)
        read = vokens[:, :, :-1]
        hidden = flat_positions(self.start.expand(queries, 1, -1), self.voken_in[level[:-1], read])
        level_of, sees = levels_and_sight(sequences, levels - 1, self.device)
        hidden = self.dropout(hidden + self.place[level_of])
        for number, layer in enumerate(self._layers()):
            hidden = layer.teacher_forced(hidden, sees, state.cross[number], state.mask)
        nothing = torch.zeros(queries, 1, self.entries.shape[2], device=self.device)
        summed = [nothing, *self.entries[level[:-1], read].cumsum(2).unbind(2)]
        logits = [
            self._logits(part, at, state.aim[:, None], summed[at])
            for at, part in enumerate(by_level(self.norm(hidden), sequences))
        ]
        return torch.stack([part.expand(-1, sequences, -1) for part in logits], 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms, biases, embeddings and scales do not."""
        return decay_groups(self)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder."""
        write_json(
            folder / "config.json", {"family": "lite"} | _plain(self.config) | {"codebooks": [*self.entries.shape]}
        )
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors"
        )

    @classmethod
    def load(cls, folder: Path, reader: TextReader) -> Self:
        """Read what `save` wrote, to read queries with `reader`."""
        values = read_json(folder / "config.json")
        shape = values.pop("codebooks")
        generator = cls(reader, np.zeros(shape, np.float32), from_dict(GeneratorConfig, values))
        weights = load_file(folder / "model.safetensors")
        generator.memory_vectors, generator.memory_pictures = weights["memory_vectors"], weights["memory_pictures"]
        generator.load_state_dict(weights)
        return generator.eval()

    def _layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def _aim(self, texts: Sequence[str], vectors: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries e"]:
        if not self.config.query_vector:
            return torch.zeros(len(vectors), self.entries.shape[2], device=self.device)
        if self.training and self.config.query_noise:
            spread = self.config.query_noise * vectors.shape[1] ** -0.5
            vectors = normalize(vectors + spread * torch.randn_like(vectors), dim=-1)
        aim: Tensor = self.to_code(vectors)
        if not (self.config.memory_weight and len(self.memory_vectors)):
            return aim
        similarity = vectors @ self.memory_vectors.to(vectors.dtype).T / self.config.memory_temperature
        for row, text in enumerate(texts):
            own = self._own.get(text)
            if own is not None:
                similarity[row, torch.from_numpy(own).to(self.device)] = -torch.inf
        # a text whose concept owns the whole memory recalls nothing
        weights = similarity.softmax(-1).nan_to_num(0.0)
        recalled: Tensor = normalize(weights @ self.memory_pictures.to(vectors.dtype), dim=-1)
        return aim + self.config.memory_weight * recalled

    def _logits(
        self,
        hidden: Float[Tensor, "queries any width"],
        level: int,
        aim: Float[Tensor, "queries 1 e"],
        summed: Float[Tensor, "queries any e"],
    ) -> Float[Tensor, "queries any N"]:
        logits = linear(hidden, self.voken_out[level], self.bias[level])
        if self.config.query_vector:
            wanted = self.similarity[level] * aim - self.repetition[level] * summed
            logits = logits + linear(wanted, self.entries[level])
        return logits


def _tunable(reader: TextReader) -> SentenceEncoder:
    if not isinstance(reader, TwoTowerEncoder):
        raise ConfigError("generator.tune_encoder needs the built-in encoder. Set it to false.")
    return reader.tunable_text()


def _copied_rows(entries: Float[Tensor, "M N e"], width: int) -> Float[Tensor, "M N width"]:
    """Codebook rows through a fixed orthonormal map, at the scale of a fresh embedding (RMS 1 a component)."""
    code_dim = entries.shape[2]
    if code_dim == width:
        rows = entries.clone()
    else:
        random = torch.Generator().manual_seed(0)
        square = torch.linalg.qr(torch.randn(max(code_dim, width), max(code_dim, width), generator=random)).Q
        rows = entries @ square[:code_dim, :width]
    return rows * _RMS / rows.pow(2).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)


def _random_rows(entries: Float[Tensor, "M N e"], width: int) -> Float[Tensor, "M N width"]:
    return torch.randn(*entries.shape[:2], width) * _RMS


_RMS = 0.05
_SIMILARITY = 10.0


def _plain(config: GeneratorConfig) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)
