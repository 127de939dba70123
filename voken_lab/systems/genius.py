"""GENIUS (Kim et al., CVPR 2025), for text-to-image search: its generator reads only the query's vector.

It is the published method that is closest to voken's. Encoder, trie, beam search and decoder layers are voken's, so
that only what defines GENIUS differs:

    query      the text's vector goes through an MLP into prefix tokens, which the decoder attends to; no token states
    training   that vector is interpolated with the vector of the right picture, by a share drawn from Beta(α, α)
    loss       cross-entropy of the picture's vokens (L_gen); nothing ranks lists
    tokenizer  residual quantization with a contrastive loss between pictures and texts: `genius_tokenizer`

Two parts are left out: the first level, which names the modality, because the pool holds only pictures; and the joint
training of the encoder. The contrastive loss here compares the quantized picture with the text; GENIUS quantizes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from voken.artifact import read_json, write_json
from voken.config import GeneratorConfig, TokenizerConfig, from_dict
from voken.errors import ConfigError
from voken.generator.lite import DecoderLayer, by_level, decay_groups, levels_and_attention_mask, packed_positions
from voken.generator.train import GeneratorHistory, VokenPairs, train_generator
from voken.generator.vocabulary import VokenVocabulary
from voken.image_tokenizer.model import ImageTokenizer
from voken.image_tokenizer.train import PairedVectors
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int
from voken.training.sides import Side, validation_queries
from voken_lab.systems.two_tower import TextEncoder

_PAIR = "\0pair "
"""A text with this prefix stands for a training pair. No caption begins with it."""
_ROW_RMS = 0.05


class QueryEncoder(TextEncoder, Protocol):
    """The part of an `Encoder` that a query needs. Its vectors have length 1."""

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...


@dataclass(frozen=True)
class GeniusConfig:
    """Settings of the generator and its training.

    The defaults are the best of fifteen settings, within noise (docs/explanation/log.md).
    """

    prefix_tokens: int = 4
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    mix_alpha: float = 2.0
    """The share of the text's vector in a training query is drawn from Beta(α, α). With 0, no picture is mixed in."""
    copy_voken_embeddings: bool = True
    """Whether the voken rows start from the codebook or at random."""
    epochs: int = 16
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    patience: int = 5
    """Epochs without a better validation recall before training stops."""

    def training(self) -> GeneratorConfig:
        """Settings for `train_generator`, with L_gen on one-hot targets as the only loss."""
        return GeneratorConfig(
            family="lite",
            targets="one-hot",
            logit_temperature=1.0,
            discrimination="none",
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warmup=self.warmup,
            patience=self.patience,
        )


def genius_tokenizer(**changes: Any) -> TokenizerConfig:
    """Settings of GENIUS's image tokenizer, with `changes` by name.

    Of nine settings, these had the best `validation_score` (docs/explanation/log.md).
    """
    settings = TokenizerConfig(
        codebook_size=1024,
        levels=6,
        shared_codebook=False,
        layers=(),
        mixture=True,
        alignment="infonce",
        alignment_temperature=0.05,
        epochs=30,
        batch_size=512,
        learning_rate=1e-4,
    )
    return replace(settings, **changes)


@dataclass(frozen=True)
class GeniusState:
    """The query as the decoder attends to it, and a cache of the levels already written."""

    cross: tuple[tuple[Float[Tensor, "queries heads prefix _"], Float[Tensor, "queries heads prefix _"]], ...]
    """Keys and values of the prefix tokens, one pair per layer. They are computed once and shared by all beams."""
    past: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values (queries, beams, heads, levels so far, width of a head), one pair per layer."""
    level: int = 0


class GeniusGenerator(nn.Module):
    """A `Generator` (see `voken.generator.interface`) whose only input is the query's vector.

    The encoder is not saved with it: pass the same encoder to `load`. `shared` says that all levels have one codebook
    and one vocabulary. Raises `ConfigError` for impossible settings.
    """

    family = "genius"
    log_probs = False
    reads_trees = False
    has_query_point = False

    def __init__(
        self,
        encoder: QueryEncoder,
        codebooks: Float[np.ndarray, "M N e"],
        config: GeniusConfig,
        *,
        shared: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_config(config)
        self.config = config
        self._encoder = encoder
        self._training_reader: QueryEncoder | None = None
        self._pairs: PairedVectors | None = None
        levels, entries, _ = codebooks.shape
        width = config.width
        self.prefix = nn.Sequential(
            nn.Linear(encoder.dim, 2 * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * width, config.prefix_tokens * width),
        )
        self.prefix_norm = nn.LayerNorm(width)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Parameter(torch.randn(levels, width) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.vocabulary = VokenVocabulary.from_codebooks(
            codebooks,
            width,
            shared=shared,
            copy=config.copy_voken_embeddings,
            seed=seed,
            embedding_rms=_ROW_RMS,
            head_rms=_ROW_RMS,
        )
        self.bias = nn.Parameter(torch.zeros(levels, entries))

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.vocabulary.codebook_size

    @property
    def levels(self) -> int:
        """M."""
        return self.vocabulary.levels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.start.device

    def begin_training(self, pairs: PairedVectors, reader: QueryEncoder | None = None) -> None:
        """Until `end_training`, `pair_text(p)` stands for the text of pair p, mixed with its picture in training mode.

        All other texts are read with `reader`, if there is one. It may hold the vectors of the validation texts.
        """
        self._pairs, self._training_reader = pairs, reader

    def end_training(self) -> None:
        """Undo `begin_training`: from now on every query is a text for the encoder."""
        self._pairs, self._training_reader = None, None

    def query_vectors(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Unit vectors of queries. In training mode, those of training pairs are mixed with their pictures' vectors.

        The share of the text is drawn with torch's random numbers, for each query of each call.
        """
        if self._pairs is None or not any(text.startswith(_PAIR) for text in texts):
            encoded = (self._training_reader or self._encoder).encode_texts(texts)
            return torch.from_numpy(encoded).to(self.device, self.start.dtype)
        if not all(text.startswith(_PAIR) for text in texts):
            raise ConfigError("The call has both training pairs and other texts. Call once for each kind.")
        rows = self._pairs.pairs[[int(text.removeprefix(_PAIR)) for text in texts]]
        vectors = torch.from_numpy(self._pairs.texts[rows[:, 1]]).to(self.device, self.start.dtype)
        alpha = self.config.mix_alpha
        if not (self.training and alpha):
            return vectors
        pictures = torch.from_numpy(self._pairs.images[rows[:, 0]]).to(vectors)
        share = torch.distributions.Beta(alpha, alpha).sample((len(rows), 1)).to(vectors)
        return interpolated(vectors, pictures, share)

    def prefill(self, texts: Sequence[str]) -> GeniusState:
        """`encode` without gradients."""
        with torch.inference_mode():
            return self.encode(texts)

    def encode(self, texts: Sequence[str]) -> GeniusState:
        """Read the queries, with gradients for everything but the encoder."""
        prefix = self.prefix(self.query_vectors(texts)).view(len(texts), self.config.prefix_tokens, self.config.width)
        memory = self.dropout(self.prefix_norm(prefix))
        return GeniusState(tuple(layer.cross_keys(memory) for layer in self._layers()))

    def step(
        self,
        state: GeniusState,
        vokens: Int[Tensor, "queries beams"] | None,
        parents: Int[Tensor, "queries beams"] | None,
    ) -> tuple[Float[Tensor, "queries beams N"], GeniusState]:
        """The logits of one level for all beams of all queries, as in `voken.decoding.interface.StepModel`."""
        level, past = state.level, state.past
        queries = len(state.cross[0][0])
        if vokens is None or parents is None:
            hidden, past = (self.start + self.place[0]).expand(queries, 1, -1), ()
        else:
            hidden = self.vocabulary.embed(vokens, level - 1) + self.place[level]
            row = torch.arange(queries, device=self.device)[:, None]
            past = tuple((keys[row, parents], values[row, parents]) for keys, values in past)
        cache = []
        for number, layer in enumerate(self._layers()):
            hidden, pair = layer.step(hidden, past[number] if past else None, state.cross[number], None)
            cache.append(pair)
        return self._logits(hidden, level), GeniusState(state.cross, tuple(cache), level + 1)

    def teacher_forced(
        self, state: GeniusState, vokens: Int[Tensor, "queries sequences levels"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """The logits of every level of known sequences, as in `voken.generator.interface.Generator`."""
        queries, sequences, levels = vokens.shape
        written = self.vocabulary.embed_prefixes(vokens[:, :, :-1])
        hidden = packed_positions(self.start.expand(queries, 1, -1), written)
        level_of, attends = levels_and_attention_mask(sequences, levels - 1, self.device)
        hidden = self.dropout(hidden + self.place[level_of])
        for number, layer in enumerate(self._layers()):
            hidden = layer.teacher_forced(hidden, attends, state.cross[number], None)
        logits = [self._logits(part, level) for level, part in enumerate(by_level(hidden, sequences))]
        return torch.stack([part.expand(-1, sequences, -1) for part in logits], 2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices decay; norms, biases and embeddings do not."""
        return decay_groups(self)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder."""
        shape = [self.levels, self.codebook_size, 1]
        description = asdict(self.config) | {"codebooks": shape, "shared": self.vocabulary.shared}
        write_json(folder / "config.json", description)
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path, encoder: QueryEncoder) -> Self:
        """Read what `save` wrote. `encoder` reads the queries."""
        values = read_json(folder / "config.json")
        shape, shared = values.pop("codebooks"), values.pop("shared")
        # The saved rows replace these ones.
        generator = cls(encoder, np.ones(shape, np.float32), from_dict(GeniusConfig, values), shared=shared)
        generator.load_state_dict(load_file(folder / "model.safetensors"))
        return generator.eval()

    def _layers(self) -> Iterator[DecoderLayer]:
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            yield layer

    def _logits(self, hidden: Float[Tensor, "queries any width"], level: int) -> Float[Tensor, "queries any N"]:
        return self.vocabulary.logits(self.norm(hidden), level) + self.bias[level]


class CachedQueryEncoder:
    """A `QueryEncoder` that looks up the vectors of a set of texts."""

    def __init__(self, encoder: QueryEncoder, texts: Sequence[str], vectors: Float[np.ndarray, "texts dim"]) -> None:
        self._encoder, self._vectors = encoder, vectors
        self._row = {text: row for row, text in enumerate(texts)}

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return self._encoder.dim

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Look the texts up. If any of them is new, encode them all."""
        rows = [self._row.get(text, -1) for text in texts]
        return self._encoder.encode_texts(texts) if -1 in rows else self._vectors[rows]


def interpolated(
    texts: Float[Tensor, "rows dim"], images: Float[Tensor, "rows dim"], share: Float[Tensor, "rows 1"]
) -> Float[Tensor, "rows dim"]:
    """share · text + (1 - share) · picture, scaled to length 1."""
    return normalize(share * texts + (1 - share) * images, dim=-1)


def pair_text(pair: int) -> str:
    """The query that stands for a training pair while a generator trains."""
    return f"{_PAIR}{pair}"


def train_genius(
    encoder: QueryEncoder,
    train: Side,
    validation: Side,
    tokenizer: ImageTokenizer,
    config: GeniusConfig,
    *,
    seed: int,
    checkpoints: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[GeniusGenerator, GeneratorHistory]:
    """A generator of `tokenizer`'s vokens with the weights of the best epoch, and its training history.

    The best epoch is the one with the best recall of the validation captions over the validation pictures, at ten
    beams and without any picture mixed in. Each epoch draws one pair per picture. `checkpoints` is a folder for this
    run alone. Raises `EmptyDataError` without pairs.
    """
    torch.manual_seed(seed)
    generator = GeniusGenerator(
        encoder, tokenizer.codebooks, config, shared=tokenizer.config.shared_codebook, seed=seed
    ).to(tokenizer.books.device)
    texts = [pair_text(pair) for pair in range(len(train.pairs))]
    text_pairs = np.stack([train.pairs[:, 0], np.arange(len(texts))], 1)
    pairs = VokenPairs(texts, tokenizer.encode(train.images), train.concepts, text_pairs)
    queries = validation_queries(validation, tokenizer.encode(validation.images), seed)
    generator.begin_training(train.paired_vectors(), CachedQueryEncoder(encoder, validation.captions, validation.texts))
    history = train_generator(
        generator, pairs, queries, config.training(), seed=seed, checkpoints=checkpoints, progress=progress
    )
    generator.end_training()
    return generator.eval(), history


def _check_config(config: GeniusConfig) -> None:
    if min(config.prefix_tokens, config.width, config.layers, config.heads) < 1:
        raise ConfigError("genius: prefix_tokens, width, layers and heads must be 1 or more.")
    if config.width % config.heads:
        raise ConfigError(f"genius.width {config.width} is not a multiple of genius.heads {config.heads}.")
    if config.mix_alpha < 0:
        raise ConfigError(f"genius.mix_alpha is {config.mix_alpha}; a Beta distribution needs 0 or more.")
