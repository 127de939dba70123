"""The `lite` family: a pretrained text encoder reads the query, a shallow decoder writes the vokens.

With a shallow decoder, a CPU can train it in minutes and search with it in milliseconds. The decoder is a pre-norm
transformer with cross-attention to the query's token states. Four settings of `GeneratorConfig` extend it:

- `copy_voken_embeddings` initialises the voken rows, for input and output, from the codebook (end of the first
  paragraph of section 3.2), through a fixed orthonormal map if the widths differ.
- `query_vector` gives the decoder the query's vector t: as a token to attend to, and through the inner products of t,
  and of the sum of the entries so far, with the entries of the level. If entries sum to the picture's vector ẑ, the
  inner products alone rank sequences by <t, ẑ>. So the decoder starts as an exact search of quantized vectors, and
  learns corrections; its output rows start at zero.
- `point_epochs` adds to t what a perceptron makes of it. The perceptron starts at zero and is trained by L_dis over all
  sequences of the training set at once. As long as the voken rows of the output are zero, log p(Y|q) is Σ s_l·<t, c_l>
  less a constant of the query, so the softmax over every sequence is one product of matrices.
- `memory_weight` adds to t the pictures of the training captions nearest to the query: the mean of the vectors rebuilt
  from the pictures' vokens, weighted by a softmax over the captions' similarities (the cache of Zhang et al. 2022,
  "Tip-Adapter", with sequences in place of classes). In training, captions of the query's concept are left out, so
  that the decoder sees what it will see for a query without such captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, normalize, scaled_dot_product_attention

from voken.artifact import read_json, write_json
from voken.config import GeneratorConfig, from_dict
from voken.encoders.builtin import SentenceEncoder
from voken.encoders.text_reader import TextReader
from voken.encoders.two_tower import TwoTowerEncoder
from voken.errors import ConfigError
from voken.shapes import Bool, Float, Int

_ROW_RMS = 0.05
"""Root mean square of the entries of a voken row before training."""
_SIMILARITY = 10.0
"""Factor of the inner products with the query's vector before training."""
COSINE = 0.4
"""With this × s as the weight of ‖ẑ‖², s·<t, ẑ> ranks nearly as the cosine does, for vectors of about unit length."""


@dataclass(frozen=True)
class LiteState:
    """The queries as the decoder sees them, and its cache of the levels so far."""

    cross: tuple[tuple[Float[Tensor, "queries heads tokens width"], Float[Tensor, "queries heads tokens width"]], ...]
    """Keys and values of the query's tokens, one pair per layer. They are computed once and shared by all beams."""
    mask: Bool[Tensor, "queries 1 1 tokens"]
    query_point: Float[Tensor, "queries e"]
    """A point in the code space, near which the picture should lie; zero without `query_vector`."""
    summed: Float[Tensor, "queries beams e"] | None = None
    """Sum of the codebook entries of each beam's vokens so far."""
    past: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values (queries, beams, heads, levels so far, width), one pair per layer."""
    level: int = 0


@dataclass(frozen=True)
class CaptionMemory:
    """Captions of the train split and their pictures, for `LiteGenerator.memorize`."""

    texts: Sequence[str]
    vectors: Float[np.ndarray, "captions dim"]
    pictures: Float[np.ndarray, "captions e"]
    """The mean of the rebuilt vectors ẑ of each caption's pictures, L2-normalised."""
    related_rows: Mapping[str, Int[np.ndarray, " rows"]]
    """For each training text, the rows of this memory that share a concept with it."""


def packed_positions(
    start: Float[Tensor, "queries 1 width"], written: Float[Tensor, "queries sequences written width"]
) -> Float[Tensor, "queries positions width"]:
    """The sequences of each query in a single run of 1 + sequences * written positions, which share the first position.

        sequences  a b c, a d e, f g h       positions  start  a a f  b d g

    The first position precedes every voken, so it is the same for all sequences and is computed once. Then come the
    first vokens of all sequences, then the second vokens. The last voken of a sequence is not needed.
    """
    return torch.cat([start, written.transpose(1, 2).flatten(1, 2)], 1)


def levels_and_attention_mask(
    sequences: int, written: int, device: torch.device
) -> tuple[Int[Tensor, " positions"], Bool[Tensor, "positions positions"]]:
    """The level (0 … M - 1) that each position predicts, and which positions (columns) each position (row) attends to.

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
    """The positions that predict each level: one for the first level, `sequences` for each deeper level."""
    written = (packed.shape[1] - 1) // sequences
    parts: tuple[Tensor, ...] = packed.split([1] + [sequences] * written, dim=1)
    return parts


def decay_groups(decoder: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups of a decoder of `DecoderLayer`s: matrices decay; norms, biases, embeddings and scales do not."""
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
    """Self-attention over the vokens so far, cross-attention to the query, and feed-forward, each after a norm.

    `width` must be a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
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
        """Keys and values (queries, heads, tokens, head width) of the query's tokens, shared by all beams."""
        keys, values = self._split(self.cross_in(memory)).chunk(2, 1)
        return keys, values

    def step(
        self,
        hidden: Float[Tensor, "queries beams width"],
        past: tuple[Tensor, Tensor] | None,
        cross: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> tuple[Float[Tensor, "queries beams width"], tuple[Tensor, Tensor]]:
        """One level of all beams; `past` is the keys and values of the previous call, with the beams reordered.

        `mask` (queries, 1, 1, tokens) is True for the query's tokens and False for padding; None means no padding.
        """
        queries, beams, width = hidden.shape
        joint = self.self_in(self._norm(hidden, 0)).view(queries, beams, 3, self.heads, 1, width // self.heads)
        query, keys, values = joint.unbind(2)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 3), torch.cat([past[1], values], 3)
        mixed = scaled_dot_product_attention(query, keys, values).reshape(queries, beams, width)
        hidden = hidden + self.self_out(mixed)
        return self._cross_and_feed_forward(hidden, cross, mask), (keys, values)

    def teacher_forced(
        self,
        hidden: Float[Tensor, "queries positions width"],
        attends: Bool[Tensor, "positions positions"],
        cross: tuple[Tensor, Tensor],
        mask: Tensor | None,
    ) -> Float[Tensor, "queries positions width"]:
        """All positions at once. A position attends to those that are True in its row of `attends`."""
        queries, positions, _ = hidden.shape
        joint = self.self_in(self._norm(hidden, 0)).view(queries, positions, 3, self.heads, -1)
        query, keys, values = joint.transpose(1, 3).unbind(2)
        mixed = scaled_dot_product_attention(query, keys, values, attn_mask=attends)
        hidden = hidden + self.dropout(self.self_out(mixed.transpose(1, 2).reshape(hidden.shape)))
        return self._cross_and_feed_forward(hidden, cross, mask)

    def _cross_and_feed_forward(self, hidden: Tensor, cross: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        query = self._split(self.cross_query(self._norm(hidden, 1)))
        mixed = scaled_dot_product_attention(query, *cross, attn_mask=mask).transpose(1, 2).flatten(2)
        hidden = hidden + self.dropout(self.cross_out(mixed))
        change: Tensor = self.dropout(self.down(nn.functional.gelu(self.up(self._norm(hidden, 2)))))
        return hidden + change

    def _norm(self, hidden: Tensor, number: int) -> Tensor:
        return layer_norm(hidden, hidden.shape[-1:], self.norms[number].to(hidden.dtype))

    def _split(self, hidden: Float[Tensor, "queries positions width"]) -> Tensor:
        queries, positions, _ = hidden.shape
        return hidden.view(queries, positions, -1, self.norms.shape[1] // self.heads).transpose(1, 2)


class LiteGenerator(nn.Module):
    """A `Generator` (see `voken.generator.interface`) over a `TextReader`.

    `save` does not write the reader: `load` takes the reader that the generator was trained with. With `tune_encoder`,
    `save` writes the trained copy of the sentence encoder.
    """

    family = "lite"
    log_probs = False
    reads_trees = False
    answers_once = False
    node_bias = None

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
        copies = config.copy_voken_embeddings
        rows = _copied_rows(self.entries, width) if copies else torch.randn(levels, entries, width) * _ROW_RMS
        self.voken_in = nn.Parameter(rows.clone())
        self.voken_out = nn.Parameter(torch.zeros_like(rows) if config.query_vector else rows.clone())
        self.bias = nn.Parameter(torch.zeros(levels, entries))
        if config.query_vector:
            self.vector_in = nn.Linear(reader.dim, width)
            self.to_code = nn.Linear(reader.dim, code_dim, bias=False)
            nn.init.eye_(self.to_code.weight)
            self.similarity = nn.Parameter(torch.full((levels,), _SIMILARITY))
            self.repetition = nn.Parameter(torch.zeros(levels))
        if config.moves_query_point:
            self.point_in = nn.Linear(reader.dim, config.point_width)
            self.point_out = nn.Linear(config.point_width, code_dim, bias=False)
            nn.init.zeros_(self.point_out.weight)
        self.length_weight = COSINE
        """What `point_scores` takes off for long vectors. Training sets it; a search has its own correction."""
        self._related_rows: Mapping[str, Int[np.ndarray, " rows"]] = {}
        self.register_buffer("memory_vectors", torch.zeros(0, reader.dim))
        self.register_buffer("memory_pictures", torch.zeros(0, code_dim))
        self.memory_vectors: Tensor
        self.memory_pictures: Tensor

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        return int(self.entries.shape[1])

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return int(self.entries.shape[0])

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.entries.device

    @property
    def has_query_point(self) -> bool:
        """Whether states have a `query_point` other than zero."""
        return self.config.query_vector

    def memorize(self, memory: CaptionMemory) -> None:
        """Store the training captions. Until `end_training`, the rows related to a text are hidden from it."""
        self.memory_vectors = torch.from_numpy(memory.vectors).to(self.device)
        self.memory_pictures = torch.from_numpy(memory.pictures).to(self.device)
        self._related_rows = memory.related_rows

    def take_query_point(self, other: LiteGenerator) -> None:
        """Start from the perceptron of another generator over the same vectors."""
        self.point_in.load_state_dict(other.point_in.state_dict())
        self.point_out.load_state_dict(other.point_out.state_dict())

    def begin_training(self, reader: TextReader | None) -> None:
        """Until `end_training`, read queries with `reader`, which caches the training captions."""
        self._training_reader = reader

    def end_training(self) -> None:
        """From now on, read all queries with the encoder and search the whole memory for them."""
        self._training_reader = None
        self._related_rows = {}

    def prefill(self, texts: Sequence[str]) -> LiteState:
        """`encode` without gradients."""
        with torch.inference_mode():
            return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> LiteState:
        """Read the queries. The frozen reader runs without gradients, the rest with them."""
        reader = self._training_reader or self._reader
        states = reader.read_texts(texts, max_tokens=self.config.max_query_tokens)
        tokens, mask = states.tokens, states.mask
        if self.text is not None:
            ids, mask = self.text.tokenize(texts, self.config.max_query_tokens)
            tokens = self.text(ids.to(self.device), mask.to(self.device))
        tokens, mask = tokens.to(self.device, self.start.dtype), mask.to(self.device)
        vectors = self._noisy(states.vectors.to(self.device, self.start.dtype))
        memory = self.read(tokens)
        if self.config.query_vector:
            memory = torch.cat([self.vector_in(vectors)[:, None], memory], 1)
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        memory = self.dropout(self.read_norm(memory))
        cross = tuple(layer.cross_keys(memory) for layer in self._layers())
        return LiteState(cross, mask[:, None, None], self._query_point(texts, vectors))

    def read_vectors(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """The vectors of texts, from which `query_points` starts."""
        reader = self._training_reader or self._reader
        blocks = [texts[start : start + 256] for start in range(0, len(texts), 256)]
        parts = [reader.read_texts(block, max_tokens=self.config.max_query_tokens).vectors for block in blocks]
        return torch.cat([part.to(self.device, self.start.dtype) for part in parts])

    def query_points(self, texts: Sequence[str], vectors: Float[Tensor, "texts dim"]) -> Float[Tensor, "texts e"]:
        """The query points of texts whose vectors are known, as `encode` computes them."""
        return self._query_point(texts, self._noisy(vectors))

    def step(
        self,
        state: LiteState,
        vokens: Int[Tensor, "queries beams"] | None,
        parents: Int[Tensor, "queries beams"] | None,
    ) -> tuple[Float[Tensor, "queries beams N"], LiteState]:
        """One level for all beams of all queries; see `voken.decoding.interface.StepModel`."""
        queries, level = len(state.query_point), state.level
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
        past_with_level = []
        for number, layer in enumerate(self._layers()):
            hidden, pair = layer.step(hidden, past[number] if past else None, state.cross[number], state.mask)
            past_with_level.append(pair)
        logits = self._logits(self.norm(hidden), level, state.query_point[:, None], summed)
        return logits, LiteState(state.cross, state.mask, state.query_point, summed, tuple(past_with_level), level + 1)

    @property
    def is_linear(self) -> bool:
        """Whether logits do not depend on the vokens before: the decoder's output and the repetition have no weight."""
        return self.config.query_vector and not (bool(self.voken_out.any()) or bool(self.repetition.any()))

    def level_logits(self, state: LiteState) -> Float[np.ndarray, "queries levels N"] | None:
        """See `voken.decoding.interface.LinearModel`."""
        if not self.is_linear:
            return None
        with torch.no_grad():
            products = (state.query_point @ self.entries.flatten(0, 1).T).view(-1, *self.bias.shape)
            logits = self.bias + self.similarity[:, None] * products
        table: np.ndarray = logits.float().cpu().numpy()
        return table

    def teacher_forced(
        self, state: LiteState, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """Logits at every level given the vokens before it; see `voken.generator.interface.Generator`."""
        queries, sequences, levels = vokens.shape
        level = torch.arange(levels, device=self.device)
        written = vokens[:, :, :-1]
        hidden = packed_positions(self.start.expand(queries, 1, -1), self.voken_in[level[:-1], written])
        level_of_position, attends = levels_and_attention_mask(sequences, levels - 1, self.device)
        hidden = self.dropout(hidden + self.place[level_of_position])
        for number, layer in enumerate(self._layers()):
            hidden = layer.teacher_forced(hidden, attends, state.cross[number], state.mask)
        zero = torch.zeros(queries, 1, self.entries.shape[2], device=self.device)
        summed = [zero, *self.entries[level[:-1], written].cumsum(2).unbind(2)]
        logits = [
            self._logits(part, at, state.query_point[:, None], summed[at])
            for at, part in enumerate(by_level(self.norm(hidden), sequences))
        ]
        return torch.stack([part.expand(-1, sequences, -1) for part in logits], 2)

    @property
    def ranks_by_point(self) -> bool:
        """Whether the decoder adds nothing to the inner products, so that `point_scores` rank as a search does."""
        added = (self.voken_out, self.bias, *((self.repetition,) if self.config.query_vector else ()))
        return self.config.query_vector and not any(bool(part.any()) for part in added)

    def point_scores(
        self,
        points: Float[Tensor, "queries e"],
        vokens: Int[Tensor, "sequences levels"],
        *,
        length_weight: float | None = None,
    ) -> Float[Tensor, "queries sequences"]:
        """What `query_vector` adds to the score of each sequence: Σ s_l·<t, c_l>, less a weight × the mean s × ‖ẑ‖².

        As long as `ranks_by_point`, these are the scores of a search (see
        `voken.decoding.node_bias`) up to a term of each query.
        """
        weight = self.length_weight if length_weight is None else length_weight
        mean = self.similarity.mean()
        with torch.no_grad():
            scaled = self._sums(self.similarity[:, None, None] * self.entries, vokens)
            lengths = self._sums(self.entries, vokens).square().sum(1)
            factor = mean.clone()
        # a gradient for each level's factor would cost more than all the rest, so all levels get that of their mean
        return (points @ scaled.T - weight * factor * lengths) * (mean / factor)

    def _sums(
        self, books: Float[Tensor, "levels N e"], vokens: Int[Tensor, "sequences levels"]
    ) -> Float[Tensor, "sequences e"]:
        places = vokens + self.codebook_size * torch.arange(self.levels, device=vokens.device)
        return nn.functional.embedding_bag(places, books.flatten(0, 1), mode="sum")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """See `decay_groups`."""
        return decay_groups(self)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder."""
        write_json(folder / "config.json", asdict(self.config) | {"codebooks": [*self.entries.shape]})
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, reader: TextReader) -> Self:
        """Read what `save` wrote. Pass the `reader` that the generator was trained with."""
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

    def _noisy(self, vectors: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries dim"]:
        if not (self.training and self.config.query_vector and self.config.query_noise):
            return vectors
        spread = self.config.query_noise * vectors.shape[1] ** -0.5
        return normalize(vectors + spread * torch.randn_like(vectors), dim=-1)

    def _query_point(self, texts: Sequence[str], vectors: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries e"]:
        if not self.config.query_vector:
            return torch.zeros(len(vectors), self.entries.shape[2], device=self.device)
        point: Tensor = self.to_code(vectors)
        if self.config.moves_query_point:
            inside = self.point_in(self.dropout(vectors * vectors.shape[1] ** 0.5))
            point = normalize(point + self.point_out(self.dropout(nn.functional.gelu(inside))), dim=-1)
        if not (self.config.memory_weight and len(self.memory_vectors)):
            return point
        similarity = vectors @ self.memory_vectors.to(vectors.dtype).T / self.config.memory_temperature
        for row, text in enumerate(texts):
            related = self._related_rows.get(text)
            if related is not None:
                similarity[row, torch.from_numpy(related).to(self.device)] = -torch.inf
        # if a text's concept fills the whole memory, nothing is recalled
        weights = similarity.softmax(-1).nan_to_num(0.0)
        recalled: Tensor = normalize(weights @ self.memory_pictures.to(vectors.dtype), dim=-1)
        return point + self.config.memory_weight * recalled

    def _logits(
        self,
        hidden: Float[Tensor, "queries any width"],
        level: int,
        query_point: Float[Tensor, "queries 1 e"],
        summed: Float[Tensor, "queries any e"],
    ) -> Float[Tensor, "queries any N"]:
        logits = linear(hidden, self.voken_out[level], self.bias[level])
        if self.config.query_vector:
            missing = self.similarity[level] * query_point - self.repetition[level] * summed
            logits = logits + linear(missing, self.entries[level])
        return logits


def _tunable(reader: TextReader) -> SentenceEncoder:
    if not isinstance(reader, TwoTowerEncoder):
        raise ConfigError("generator.tune_encoder needs the built-in encoder. Set it to false.")
    return reader.tunable_text()


def _copied_rows(entries: Float[Tensor, "M N e"], width: int) -> Float[Tensor, "M N width"]:
    """Codebook rows through a fixed orthonormal map, at the scale of random rows."""
    code_dim = entries.shape[2]
    if code_dim == width:
        rows = entries.clone()
    else:
        random = torch.Generator().manual_seed(0)
        square = torch.linalg.qr(torch.randn(max(code_dim, width), max(code_dim, width), generator=random)).Q
        rows = entries @ square[:code_dim, :width]
    return rows * _ROW_RMS / rows.pow(2).mean((1, 2), keepdim=True).sqrt().clamp_min(1e-12)
