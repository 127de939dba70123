"""The train side and the validation side of a data set, as vectors and pairs that both stages are trained on.

This module trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from voken.config import GeneratorConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.skipped import Skipped
from voken.data.splits import check_disjoint, one_per_concept, split_by_concept
from voken.encoders.interface import Encoder
from voken.encoders.text_reader import ReaderAround, TextReader, TextStates
from voken.errors import EmptyDataError
from voken.generator.lite import CaptionMemory
from voken.generator.train import ValidationQueries
from voken.image_tokenizer.train import PairedVectors
from voken.model.model import text_reader
from voken.shapes import Float, Int

_VALIDATION_QUERIES = 1000
_TOKEN_STATE_BYTES = 2 << 30
"""The token states of the training captions are held in memory if they take at most this much."""


@dataclass(frozen=True)
class Side:
    """One side of a split: vectors of pictures and captions, and which caption belongs to which picture."""

    images: Float[np.ndarray, "images dim"]
    texts: Float[np.ndarray, "texts dim"]
    captions: Sequence[str]
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (picture, caption)."""
    concepts: Int[np.ndarray, " images"]
    families: Int[np.ndarray, " images"] | None = None
    """Groups of concepts that are too similar to be negatives of each other (see `CaptionedImage.family`). None: every
    concept is a family of its own."""
    views: Float[np.ndarray, "views images dim"] | None = None
    """Vectors of other views of each picture, such as its mirror image and crops."""

    @property
    def related(self) -> Int[np.ndarray, " images"]:
        """The family of each picture if families are known, or else its concept."""
        return self.concepts if self.families is None else self.families

    def paired_vectors(self) -> PairedVectors:
        """The part that stage 1 is trained on."""
        return PairedVectors(self.images, self.texts, self.pairs, self.views)


class CachedTextReader(ReaderAround):
    """A `TextReader` that reads a set of texts once and then looks them up, for training with a frozen encoder.

    Token states are stored in half precision. They take (texts × tokens of the longest text × width × 2) bytes.
    """

    def __init__(self, reader: TextReader, texts: Sequence[str], *, max_tokens: int, batch_size: int = 256) -> None:
        super().__init__(reader)
        self._max_tokens = max_tokens
        distinct = list(dict.fromkeys(texts))
        self._row_of = {text: row for row, text in enumerate(distinct)}
        by_length = sorted(range(len(distinct)), key=lambda row: len(distinct[row]))
        batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
        parts = [reader.read_texts([distinct[row] for row in batch], max_tokens=max_tokens) for batch in batches]
        longest = max((states.tokens.shape[1] for states in parts), default=0)
        tokens = torch.zeros(len(distinct), longest, reader.text_width, dtype=torch.float16)
        mask = torch.zeros(len(distinct), longest, dtype=torch.bool)
        vectors = torch.zeros(len(distinct), reader.dim)
        for batch, states in zip(batches, parts, strict=True):
            rows, length = torch.tensor(batch), states.tokens.shape[1]
            tokens[rows, :length] = states.tokens.cpu().half()
            mask[rows, :length] = states.mask.cpu()
            vectors[rows] = states.vectors.float().cpu()
        self._states = TextStates(tokens, mask, vectors)

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Look the texts up. If any text is new, or `max_tokens` differs from the constructor's, read all of them."""
        rows = [self._row_of.get(text, -1) for text in texts]
        if max_tokens != self._max_tokens or -1 in rows:
            return self._reader.read_texts(texts, max_tokens=max_tokens)
        mask = self._states.mask[rows]
        longest = int(mask.sum(1).max()) if rows else 0
        return TextStates(self._states.tokens[rows, :longest], mask[:, :longest], self._states.vectors[rows])


class KnownVectors(ReaderAround):
    """A `TextReader` that looks the vectors of known texts up, for generators without a decoder: their token states
    are zeros."""

    def __init__(self, reader: TextReader, texts: Sequence[str], vectors: Float[np.ndarray, "texts dim"]) -> None:
        super().__init__(reader)
        self._vectors = torch.from_numpy(vectors).float()
        self._row_of = {text: row for row, text in enumerate(texts)}

    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Look the texts up. If any text is new, read all of them."""
        rows = [self._row_of.get(text, -1) for text in texts]
        if -1 in rows:
            return self._reader.read_texts(texts, max_tokens=max_tokens)
        tokens = torch.zeros(len(texts), 1, self.text_width)
        return TextStates(tokens, torch.ones(len(texts), 1, dtype=torch.bool), self._vectors[rows])


@dataclass(frozen=True)
class TrainingInputs:
    """What the two stages are trained with: the encoder and both sides of the split."""

    encoder: Encoder
    train: Side
    validation: Side
    skipped: tuple[Skipped, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _readers: dict[int, CachedTextReader | None] = field(default_factory=dict, repr=False)

    @cached_property
    def _known_vectors(self) -> KnownVectors:
        captions = [*self.train.captions, *self.validation.captions]
        return KnownVectors(
            text_reader(self.encoder), captions, np.concatenate([self.train.texts, self.validation.texts])
        )

    def reader_for(self, config: GeneratorConfig) -> TextReader | None:
        """What a `lite` generator reads captions with in training; None: the encoder itself."""
        return self.caption_reader(config.max_query_tokens) if config.layers else self._known_vectors

    def caption_reader(self, max_tokens: int) -> CachedTextReader | None:
        """A reader that holds the token states of all captions, or None if they take too much memory.

        The same reader is returned each time, so the frozen encoder reads each caption only once for all trainings.
        """
        if max_tokens not in self._readers:
            reader = text_reader(self.encoder)
            captions = [*self.train.captions, *self.validation.captions]
            longest = max((len(caption.split()) for caption in captions), default=0)
            tokens = min(max_tokens, 2 * longest + 2)
            fits = len(captions) * tokens * reader.text_width * 2 <= _TOKEN_STATE_BYTES
            self._readers[max_tokens] = CachedTextReader(reader, captions, max_tokens=max_tokens) if fits else None
        return self._readers[max_tokens]


def split_sides(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """The train split, and the validation split with one picture per concept.

    If the data set has no validation split, a tenth of the training concepts, drawn by `seed`, becomes one. Raises
    `EmptyDataError` if there are no captions and `SplitLeakError` if a concept is in two splits.
    """
    if not any(image.captions for image in dataset.images):
        raise EmptyDataError(
            f"{dataset.root}: no picture has a caption, so there is nothing to train on. Give captions in "
            "metadata.jsonl, or index the pictures with a model that is already trained."
        )
    if "validation" not in {image.split for image in dataset.images}:
        training = replace(dataset, images=tuple(image for image in dataset.images if image.split in ("", "train")))
        held_out = tuple(image for image in dataset.images if image.split == "test")
        drawn = split_by_concept(training, seed=seed, fractions=(0.9, 0.1, 0.0))
        dataset = replace(dataset, images=(*drawn.images, *held_out))
    check_disjoint(dataset)
    return dataset.split("train"), one_per_concept(dataset.split("validation"), seed)


def side_of(
    images: Sequence[CaptionedImage], vectors: Float[np.ndarray, "images dim"], encode_texts: Callable[..., Any]
) -> Side:
    """A side made of `images` and their vectors. Each distinct caption is encoded once."""
    captions = list(dict.fromkeys(caption for image in images for caption in image.captions))
    row_of = {caption: row for row, caption in enumerate(captions)}
    pairs = [(row, row_of[caption]) for row, image in enumerate(images) for caption in dict.fromkeys(image.captions)]
    concepts = {concept: row for row, concept in enumerate(dict.fromkeys(image.concept for image in images))}
    families = {family: row for row, family in enumerate(dict.fromkeys(image.family for image in images))}
    texts = encode_texts(captions) if captions else np.zeros((0, vectors.shape[1]), np.float32)
    return Side(
        vectors,
        texts,
        captions,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array([concepts[image.concept] for image in images], np.int64),
        np.array([families[image.family] for image in images], np.int64),
    )


def with_pool(
    inputs: TrainingInputs,
    pool: Float[np.ndarray, "pool dim"],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    per_picture: int = 5,
) -> TrainingInputs:
    """Inputs of the transductive protocol, which also trains on the pool's pictures, with generated captions.

    `captions` holds a few captions per picture, written by a captioner (see `voken_lab.systems.blip`), as in the
    official code. If it is None, each picture gets the `per_picture` training captions nearest to it. Every picture
    of the pool is a concept and a family of its own, and has no other views. The encoder is not trained again.
    """
    train = inputs.train
    if captions is None:
        used = np.unique(train.pairs[:, 1])
        similarity = pool @ train.texts[used].T
        nearest = used[np.argsort(-similarity, axis=1, kind="stable")[:, :per_picture]]
        pool_pairs = [(row, caption) for row, rows in enumerate(nearest.tolist()) for caption in rows]
        texts, all_captions = train.texts, list(train.captions)
    else:
        row_of = {caption: row for row, caption in enumerate(train.captions)}
        for caption in (caption for texts_of_picture in captions for caption in texts_of_picture):
            row_of.setdefault(caption, len(row_of))
        pool_pairs = [(row, row_of[text]) for row, texts in enumerate(captions) for text in dict.fromkeys(texts)]
        all_captions = list(row_of)
        new_captions = all_captions[len(train.captions) :]
        texts = train.texts
        if new_captions:
            texts = np.concatenate([texts, inputs.encoder.encode_texts(new_captions)])
    pairs = np.array(pool_pairs, np.int64).reshape(-1, 2)
    pairs[:, 0] += len(train.images)
    same_views = None if train.views is None else np.broadcast_to(pool, (len(train.views), *pool.shape))
    extended = Side(
        images=np.concatenate([train.images, pool]),
        texts=texts,
        captions=all_captions,
        pairs=np.concatenate([train.pairs, pairs]),
        concepts=_with_own_groups(train.concepts, len(pool)),
        families=None if train.families is None else _with_own_groups(train.families, len(pool)),
        views=None if same_views is None else np.concatenate([train.views, same_views], 1),
    )
    return replace(inputs, train=extended, _readers={})


def _with_own_groups(groups: Int[np.ndarray, " images"], count: int) -> Int[np.ndarray, " more"]:
    return np.concatenate([groups, groups.max() + 1 + np.arange(count)])


def caption_memory(train: Side, codes: Float[np.ndarray, "images e"], *, size: int, seed: int) -> CaptionMemory:
    """A memory of the training captions (at most `size`, drawn by `seed`), each with the mean code of its pictures.

    In training, a text does not see the captions of its own pictures' families.
    """
    used = np.unique(train.pairs[:, 1])
    if len(used) > size:
        used = np.sort(np.random.default_rng(seed).choice(used, size, replace=False))
    row_of = np.full(len(train.captions), -1)
    row_of[used] = np.arange(len(used))
    pairs = train.pairs[row_of[train.pairs[:, 1]] >= 0]
    pictures = np.zeros((len(used), codes.shape[1]), np.float32)
    np.add.at(pictures, row_of[pairs[:, 1]], codes[pairs[:, 0]])
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True).clip(1e-12)
    related = train.related
    rows_of_family: dict[int, set[int]] = {}
    for picture, caption in pairs:
        rows_of_family.setdefault(int(related[picture]), set()).add(int(row_of[caption]))
    hidden: dict[str, set[int]] = {}
    for picture, caption in train.pairs:
        rows = rows_of_family.get(int(related[picture]), set())
        hidden.setdefault(train.captions[caption], set()).update(rows)
    return CaptionMemory(
        [train.captions[caption] for caption in used],
        train.texts[used],
        pictures,
        {text: np.array(sorted(rows), np.int64) for text, rows in hidden.items()},
    )


def query_rows(validation: Side, seed: int) -> Int[np.ndarray, " captions"]:
    """At most a thousand captions of the validation pictures, drawn by `seed`, in ascending order."""
    rows = np.unique(validation.pairs[:, 1])
    if len(rows) > _VALIDATION_QUERIES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _VALIDATION_QUERIES, replace=False))
    return rows


def validation_queries(validation: Side, vokens: Int[np.ndarray, "images M"], seed: int) -> ValidationQueries:
    """The captions of `query_rows` as queries over the validation pictures."""
    rows = query_rows(validation, seed)
    pairs = validation.pairs[np.isin(validation.pairs[:, 1], rows)]
    relevant = np.stack([np.searchsorted(rows, pairs[:, 1]), pairs[:, 0]], 1)
    return ValidationQueries([validation.captions[row] for row in rows], vokens, relevant)
