"""GRACE (Li et al. 2024): every picture has an identifier that is fixed before training, and a generator memorizes it.

The paper's Table 1 compares with GRACE. Here the generator, the trie and the beam search are voken's, so that only the
identifiers differ. There are five schemes:

    numeric     a number drawn at random, one decimal digit per level
    string      distinct strings of letters drawn at random, one letter per level
    atomic      a separate token for each picture
    semantic    the path in a tree of k-means clusters, ten children per node (the docids of Tay et al. 2022, "DSI")
    structured  the same with up to 256 children per node, and separate vokens for each level

The first three say nothing about a picture. In the last two, only the last number, which counts the pictures of a
cluster, says nothing. All pictures are clustered, including the pool's: the protocol allows the model to see their
pixels, but no text about them.

GRACE learns two tasks at once: to write a picture's identifier from the picture ("memorize", for the pool too), and to
write a training picture's identifier from its captions ("retrieve"). Only the first task teaches the model about the
pool. The generator reads a picture as its vector, in the space that pictures and texts share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from voken.config import GeneratorConfig
from voken.encoders.text_reader import ReaderAround, TextReader, TextStates
from voken.errors import ConfigError, EmptyDataError
from voken.generator.lite import LiteGenerator
from voken.generator.train import GeneratorHistory, ValidationQueries, VokenPairs, train_generator
from voken.image_tokenizer.model import kmeans, nearest
from voken.model.model import text_reader
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int
from voken.training.sides import TrainingInputs, validation_queries

Scheme = Literal["numeric", "string", "semantic", "structured", "atomic"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

_LETTERS = 26
_PICTURE = "\0picture "
"""A text with this prefix stands for a picture. No caption begins with it."""


@dataclass(frozen=True)
class Identifiers:
    """One sequence per picture, no sequence twice."""

    sequences: Int[np.ndarray, "pictures M"]
    codebook_size: int
    """N, the number of values at each level."""


def identifiers(scheme: Scheme, vectors: Float[np.ndarray, "pictures dim"], *, seed: int) -> Identifiers:
    """Identifiers of a scheme (see the module) for pictures with these vectors. `seed` decides every random draw.

    Raises `ConfigError` for an unknown scheme, `EmptyDataError` without pictures.
    """
    if not len(vectors):
        raise EmptyDataError("There are no pictures to assign identifiers to.")
    random = np.random.default_rng(seed)
    pictures = len(vectors)
    if scheme == "atomic":
        return Identifiers(random.permutation(pictures)[:, None].astype(np.int32), pictures)
    if scheme == "numeric":
        return Identifiers(_digits(random.permutation(pictures), 10), 10)
    if scheme == "string":
        # One in a thousand of all strings is used, so they look as arbitrary as file names.
        length = max(1, math.ceil(math.log(1000 * pictures, _LETTERS)))
        drawn = random.choice(_LETTERS**length, pictures, replace=False, shuffle=True)
        return Identifiers(_digits(drawn, _LETTERS, length), _LETTERS)
    if scheme == "semantic":
        return cluster_paths(vectors, children=10, seed=seed)
    if scheme == "structured":
        return cluster_paths(vectors, children=min(256, max(2, math.ceil(pictures**0.5))), seed=seed)
    raise ConfigError(f"{scheme!r}: no such scheme of identifiers. Choose one of: {', '.join(SCHEMES)}.")


def cluster_paths(vectors: Float[np.ndarray, "pictures dim"], *, children: int, seed: int) -> Identifiers:
    """Paths in a tree of k-means clusters, which are split until no cluster holds more than `children` pictures.

    The last value is the picture's number in its cluster. Shorter paths are padded with a value that no cluster has,
    so N is `children` + 1.
    """
    random = torch.Generator().manual_seed(seed)
    rows_of_vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
    paths: list[list[int]] = [[] for _ in range(len(vectors))]
    waiting = [np.arange(len(vectors))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= children:
            for number, row in enumerate(rows.tolist()):
                paths[row].append(number)
            continue
        cluster = _clusters(rows_of_vectors[torch.from_numpy(rows)], children, random)
        for number in np.unique(cluster).tolist():
            members = rows[cluster == number]
            for row in members.tolist():
                paths[row].append(number)
            waiting.append(members)
    length = max(map(len, paths))
    sequences = np.full((len(vectors), length), children, dtype=np.int32)
    for row, path in enumerate(paths):
        sequences[row, : len(path)] = path
    return Identifiers(sequences, children + 1)


def _clusters(vectors: torch.Tensor, children: int, random: torch.Generator) -> Int[np.ndarray, " pictures"]:
    clusters = nearest(vectors, kmeans(vectors, children, generator=random)).numpy()
    # k-means cannot split equal vectors, so they are distributed by their position.
    return clusters if len(np.unique(clusters)) > 1 else np.arange(len(vectors)) % children


def _digits(
    numbers: Int[np.ndarray, " pictures"], base: int, length: int | None = None
) -> Int[np.ndarray, "pictures M"]:
    """Numbers as digits, the most significant first."""
    length = max(1, len(np.base_repr(int(numbers.max()), base))) if length is None else length
    powers = base ** np.arange(length - 1, -1, -1, dtype=np.int64)
    return (numbers[:, None] // powers % base).astype(np.int32)


def grace_settings(**changes: int | float) -> GeneratorConfig:
    """The settings that were best on validation (docs/explanation/log.md), with `changes` by name."""
    settings = GeneratorConfig(
        family="lite",
        layers=2,
        query_vector=True,
        copy_voken_embeddings=False,
        logit_temperature=1.0,
        discrimination="none",
        epochs=6,
        patience=3,
        learning_rate=1e-3,
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TrainedGrace:
    """A generator that has memorized a pool."""

    generator: LiteGenerator
    pool: Identifiers
    validation: ValidationQueries
    """The validation captions as queries over the validation pictures' identifiers, which are memorized too."""
    history: GeneratorHistory


class PictureReader(ReaderAround):
    """A `TextReader` that also reads pictures: for a text from `picture_text` it returns the picture's vector alone."""

    def __init__(self, reader: TextReader, vectors: Float[np.ndarray, "pictures dim"]) -> None:
        super().__init__(reader)
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """As in `TextReader`; a picture has no tokens."""
        pictures = [int(text.removeprefix(_PICTURE)) if text.startswith(_PICTURE) else -1 for text in texts]
        rows = torch.tensor(pictures)
        captions = [text for text, row in zip(texts, pictures, strict=True) if row < 0]
        if not captions:
            return TextStates(
                torch.zeros(len(texts), 1, self.text_width),
                torch.zeros(len(texts), 1, dtype=torch.bool),
                self._vectors[rows],
            )
        states = self._reader.read_texts(captions, max_tokens=max_tokens)
        tokens = states.tokens.new_zeros(len(texts), *states.tokens.shape[1:])
        mask = states.mask.new_zeros(len(texts), states.mask.shape[1])
        vectors = states.vectors.new_zeros(len(texts), self.dim)
        tokens[rows < 0], mask[rows < 0], vectors[rows < 0] = states.tokens, states.mask, states.vectors
        vectors[rows >= 0] = self._vectors[rows[rows >= 0]].to(vectors)
        return TextStates(tokens, mask, vectors)


def picture_text(picture: int) -> str:
    """The text that stands for a picture in `PictureReader`."""
    return f"{_PICTURE}{picture}"


def train_grace(
    inputs: TrainingInputs,
    pool: Float[np.ndarray, "pool dim"],
    scheme: Scheme,
    settings: GeneratorConfig,
    *,
    seed: int,
    repeats: int = 8,
    in_train: bool = False,
    checkpoints: Path | None = None,
    progress: Progress = no_progress,
) -> TrainedGrace:
    """Train a generator that memorizes the pool's pictures.

    Each epoch shows every picture of the pool and of validation `repeats` times. The best epoch is the one with the
    best recall of the validation captions over the validation pictures. `in_train` says that the last pictures of the
    train side are the pool's, with generated captions, as in the transductive protocol.
    """
    train, validation = inputs.train, inputs.validation
    first_of_pool = len(train.images) - (len(pool) if in_train else 0)
    all_vectors = np.concatenate([train.images, validation.images, *([] if in_train else [pool])])
    all_identifiers = identifiers(scheme, all_vectors, seed=seed)
    pool_rows = np.arange(len(pool)) + (first_of_pool if in_train else len(all_vectors) - len(pool))
    repeated = np.union1d(np.arange(len(train.images), len(all_vectors)), pool_rows)
    rows = np.concatenate([np.arange(len(train.images)), np.tile(repeated, repeats)])
    texts = [*train.captions, *map(picture_text, range(len(all_vectors)))]
    memory_pairs = np.stack([np.arange(len(rows)), len(train.captions) + rows], 1)
    pairs = VokenPairs(texts, all_identifiers.sequences[rows], rows, np.concatenate([train.pairs, memory_pairs]))
    books = np.zeros((all_identifiers.sequences.shape[1], all_identifiers.codebook_size, pool.shape[1]), np.float32)
    torch.manual_seed(seed)
    generator = LiteGenerator(text_reader(inputs.encoder), books, settings)
    reader = inputs.caption_reader(settings.max_query_tokens) or text_reader(inputs.encoder)
    generator.begin_training(PictureReader(reader, all_vectors))
    validation_vokens = all_identifiers.sequences[len(train.images) : len(train.images) + len(validation.images)]
    queries = validation_queries(validation, validation_vokens, seed)
    history = train_generator(
        generator.to(inputs.device), pairs, queries, settings, seed=seed, checkpoints=checkpoints, progress=progress
    )
    generator.end_training()
    pool_identifiers = Identifiers(all_identifiers.sequences[pool_rows], all_identifiers.codebook_size)
    return TrainedGrace(generator.eval(), pool_identifiers, queries, history)
