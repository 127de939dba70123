"""A small one-tower that needs no hub: a cross-encoder over frozen features of pictures and frozen states of texts.

A text's token states and a few tokens computed from a picture's features attend to each other in one or two layers, as
in the co-attention of ViLBERT (Lu et al. 2019, section 3.1). The result is one number per pair, which is added to the
pair's cosine in the two-tower. Training teaches the model to rank a text's picture above those that the two-tower
confuses with it.

The pool's tokens are computed once, when the scorer is created, and a text's tokens once per query.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from voken import artifact
from voken.config import from_dict
from voken.encoders.text_reader import TextReader
from voken.errors import ConfigError, CorruptArtifactError, DataError, EmptyDataError
from voken.metrics import first_relevant, recall_at
from voken.optimisation import TrainingLoop, adamw, one_caption_per_image
from voken.progress import Progress, no_progress
from voken.shapes import Bool, Float, Int

_KIND = "cross-encoder"
_VERSION = 1
_BASE_WEIGHTS = (0.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
_SCORES_PER_BLOCK = 1 << 23
_BATCHES_SORTED_TOGETHER = 16
"""The rows of so many batches are sorted by length together."""


@dataclass(frozen=True)
class CrossEncoderConfig:
    """Settings of the model and its training. With the defaults, training takes minutes on one core."""

    width: int = 192
    heads: int = 4
    layers: int = 1
    picture_tokens: int = 6
    """Number of tokens that are computed from a picture's features."""
    max_tokens: int = 32
    """Number of tokens of a text that are read."""
    dropout: float = 0.1
    feature_dropout: float = 0.3
    """Share of a picture's features dropped in training, as in the two-tower head."""
    base_in_training: float = 0.0
    """Weight of the two-tower's cosine in the trained logit. The two-tower is more confident about pairs that it was
    trained on than about new ones. If both are trained on the same pairs, use 0: the cosine then has no part in it."""
    hard_negatives: int = 6
    """Wrong pictures per pair, drawn from the `nearest` pictures to its text in the two-tower."""
    random_negatives: int = 2
    """Wrong pictures per pair, drawn from all pictures."""
    nearest: int = 64
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    gradient_clip: float = 1.0
    patience: int = 2
    """Epochs without a better validation recall before training stops."""
    validation_texts: int = 500
    """Validation texts that are searched for after each epoch, drawn by the seed."""
    validation_depth: int = 50
    """Number of the two-tower's first hits that are reranked in validation."""


@dataclass(frozen=True)
class MatchingPairs:
    """Pictures and texts, their vectors in the two-tower, and which of them belong together.

    Raises `EmptyDataError` without pairs, `ConfigError` if numbers of rows differ.
    """

    features: Float[np.ndarray, "images features"]
    """The cross-encoder's inputs: from `TwoTowerEncoder.features_of_images`, for example, or the same as `images`."""
    images: Float[np.ndarray, "images dim"]
    """Unit vectors of the pictures."""
    texts: Float[np.ndarray, "texts dim"]
    """Unit vectors of the captions, in the same space."""
    captions: Sequence[str]
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (picture, caption)."""
    concepts: Sequence[str | int]
    """One concept per picture. Pictures of a concept that a text describes are never negatives of that text."""

    def __post_init__(self) -> None:
        if not len(self.pairs):
            raise EmptyDataError("No picture has a caption, so there is nothing to match pictures and texts by.")
        counts = {"features": self.features, "vectors": self.images, "concepts": self.concepts}
        if len({len(rows) for rows in counts.values()}) > 1:
            numbers = ", ".join(f"{len(rows)} {name}" for name, rows in counts.items())
            raise ConfigError(f"{numbers} of pictures: there must be one of each per picture.")
        if len(self.captions) != len(self.texts):
            raise ConfigError(
                f"{len(self.captions)} captions and {len(self.texts)} vectors: there must be one per caption."
            )


@dataclass(frozen=True)
class MatchingEpoch:
    """Loss and validation recalls of one epoch. Recalls are between 0 and 1, or NaN without validation pairs."""

    epoch: int
    """Counts from 1; 0 stands for the two-tower alone, before training."""
    loss: float
    recall_1: float
    recall_5: float
    recall_10: float
    base_weight: float
    """The weight of the two-tower's cosine that gave these recalls, the best of those tried."""

    @property
    def recall(self) -> float:
        """Mean of the three recalls, by which the best epoch is chosen."""
        return (self.recall_1 + self.recall_5 + self.recall_10) / 3


@dataclass(frozen=True)
class CrossEncoderRun:
    """A trained model, with the weights of the best epoch and in evaluation mode, and the history of its training."""

    model: CrossEncoder
    history: tuple[MatchingEpoch, ...]
    best: MatchingEpoch


class CrossEncoder(nn.Module):
    """Computes logits of pairs from pictures' features and texts' token states.

    Before training its part of a logit is 0 for every pair, so pairs are ranked as the two-tower ranks them.
    """

    mean: Tensor
    std: Tensor
    base_weight: Tensor

    def __init__(self, config: CrossEncoderConfig, *, features: int, text_width: int) -> None:
        super().__init__()
        _check_config(config)
        self.config = config
        width = config.width
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("base_weight", torch.tensor(max(config.base_in_training, 1.0)))
        self.feature_drop = nn.Dropout(config.feature_dropout)
        self.picture_in = nn.Linear(features, 2 * width)
        self.picture_out = nn.Linear(2 * width, config.picture_tokens * width)
        self.text_in = nn.Linear(text_width, width)
        self.summary = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.layers = nn.ModuleList(_CoAttention(width, config.heads, config.dropout) for _ in range(config.layers))
        self.text_norm = nn.LayerNorm(width)
        self.picture_norm = nn.LayerNorm(width)
        self.up = nn.Linear(3 * width, width)
        self.down = nn.Linear(width, 1)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.summary.device

    def picture_tokens(self, features: Float[Tensor, "images features"]) -> Float[Tensor, "images tokens width"]:
        """The tokens of pictures."""
        inputs = self.feature_drop((features - self.mean) / self.std)
        spread: Tensor = self.picture_out(functional.gelu(self.picture_in(inputs)))
        return spread.view(len(features), self.config.picture_tokens, self.config.width)

    def text_tokens(
        self, states: Float[Tensor, "texts tokens text_width"], mask: Bool[Tensor, "texts tokens"]
    ) -> tuple[Float[Tensor, "texts more width"], Bool[Tensor, "texts more"]]:
        """The tokens of texts, with a summary token in front, and their mask."""
        tokens = torch.cat([self.summary.expand(len(states), 1, -1), self.text_in(states)], dim=1)
        return tokens, functional.pad(mask, (1, 0), value=True)

    def forward(
        self,
        texts: Float[Tensor, "texts more width"],
        mask: Bool[Tensor, "texts more"],
        pictures: Float[Tensor, "texts pictures tokens width"],
    ) -> Float[Tensor, "texts pictures"]:
        """The cross-encoder's part of the logits: each text with its row of pictures."""
        rows, pictures_per_text = pictures.shape[:2]
        text_states, picture_states = texts, pictures.flatten(0, 1)
        visible = _repeat_rows(mask, pictures_per_text)
        for layer in self.layers:
            text_states, picture_states = layer(text_states, picture_states, visible)
        weights = visible.unsqueeze(-1).to(text_states.dtype)
        text = (self.text_norm(text_states) * weights).sum(1) / weights.sum(1)
        picture = self.picture_norm(picture_states).mean(1)
        matched = functional.gelu(self.up(torch.cat([text, picture, text * picture], dim=-1)))
        logits: Tensor = self.down(matched).view(rows, pictures_per_text)
        return logits

    def save(self, folder: Path, *, replace: bool = False) -> None:
        """Write the folder that `load` reads. Raises `ArtifactError` if `folder` exists and may not be replaced."""
        description = {
            "config": dataclasses.asdict(self.config),
            "features": len(self.mean),
            "text_width": self.text_in.in_features,
        }
        weights = {name: value.cpu().contiguous() for name, value in self.state_dict().items()}
        with artifact.writing(Path(folder), kind=_KIND, version=_VERSION, replace=replace) as partial:
            save_file(weights, partial / "model.safetensors")
            artifact.write_json(partial / "config.json", description)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Self:
        """Read what `save` wrote. Raises `ArtifactError` as `voken.artifact.check` does."""
        folder = Path(folder)
        artifact.check(folder, kind=_KIND, version=_VERSION)
        description = artifact.read_json(folder / "config.json")
        try:
            config = from_dict(CrossEncoderConfig, description["config"])
            model = cls(config, features=description["features"], text_width=description["text_width"])
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, ConfigError) as error:
            raise CorruptArtifactError(
                f"{folder}: the saved cross-encoder cannot be read ({error}). Restore it from a copy or train it again."
            ) from error
        return model.eval().to(torch.device(device or "cpu"))


class CrossEncoderScorer:
    """A trained model bound to a pool: a `PairScorer` (see `voken_lab.systems.one_tower`).

    A score is the logit: the model's part plus the weighted cosine of the two-tower's vectors. `reader` is the reader
    that the model was trained with. `features` and `vectors` are those of the pool, like `features` and `images` of
    `MatchingPairs`. The pool's tokens are computed once, here, and stay on the model's device.

    Raises `ConfigError` if widths differ from training, `DataError` if numbers of pictures differ.
    """

    def __init__(
        self,
        model: CrossEncoder,
        reader: TextReader,
        features: Float[np.ndarray, "images features"],
        vectors: Float[np.ndarray, "images dim"],
        *,
        batch_size: int = 256,
    ) -> None:
        if len(features) != len(vectors):
            raise DataError(
                f"{len(features)} rows of features and {len(vectors)} vectors: there must be one per picture."
            )
        if features.ndim != 2 or features.shape[1] != len(model.mean) or reader.text_width != model.text_in.in_features:
            raise ConfigError(
                f"The cross-encoder was trained on {len(model.mean)} features per picture and token states of width "
                f"{model.text_in.in_features}, not {features.shape[1:]} and {reader.text_width}. "
                "Use the encoder that it was trained with."
            )
        if vectors.shape[1] != reader.dim:
            raise ConfigError(f"The reader's vectors have the width {reader.dim}, the pictures' {vectors.shape[1]}.")
        self._model = model.eval()
        self._reader = reader
        self._batch_size = batch_size
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(model.device)
        self._tokens = _picture_tokens(model, features)
        self.bytes_per_picture = 4.0 * (features.shape[1] + vectors.shape[1])

    @torch.inference_mode()
    def score(self, text: str, rows: Int[np.ndarray, " pictures"]) -> Float[np.ndarray, " pictures"]:
        """Logits of the text with the pictures at `rows`, float32."""
        model, device = self._model, self._model.device
        states = self._reader.read_texts([text], max_tokens=model.config.max_tokens)
        tokens, mask = model.text_tokens(states.tokens.float().to(device), states.mask.to(device))
        vector = states.vectors[0].float().to(device)
        scores = []
        for part in torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(device).split(self._batch_size):
            logits = model(tokens, mask, self._tokens[part][None])[0]
            scores.append(logits + model.base_weight * (self._vectors[part] @ vector))
        return torch.cat(scores).cpu().numpy() if scores else np.zeros(0, dtype=np.float32)


def train_cross_encoder(
    reader: TextReader,
    train: MatchingPairs,
    config: CrossEncoderConfig,
    *,
    seed: int,
    validation: MatchingPairs | None = None,
    device: str | torch.device | None = None,
    progress: Progress = no_progress,
) -> CrossEncoderRun:
    """Train a model. The same seed gives the same model on the same machine.

    Each epoch uses every captioned picture once, with one of its captions and new random negatives. The loss is the
    cross-entropy of the right picture among them. The optimizer is AdamW; its learning rate rises linearly and then
    falls to zero along a cosine.

    With `validation`, its texts are searched for in all its pictures after every epoch, and the two-tower's first hits
    are reranked with each of a few weights of the cosine. The result is the best epoch with its best weight, and
    training stops after `config.patience` epochs without a better one. Without `validation`, the result is the last
    epoch, and the cosine has the weight `base_in_training`, but at least 1.

    `reader` reads each caption whenever it is drawn: pass a `CachedTextReader` if memory allows.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _Training(reader, train, config, seed, validation, torch.device(device or "cpu"), progress).run()


class _CoAttention(nn.Module):
    """Texts attend to pictures and pictures to texts, in parallel; then each has a feed-forward layer.

    In the first layer several pictures share one text, whose projections are computed once for all of them.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.text_norm = nn.LayerNorm(width)
        self.picture_norm = nn.LayerNorm(width)
        self.text_in = nn.Linear(width, 3 * width)
        self.picture_in = nn.Linear(width, 3 * width)
        self.text_out = nn.Linear(width, width)
        self.picture_out = nn.Linear(width, width)
        self.text_feed = _FeedForward(width, dropout)
        self.picture_feed = _FeedForward(width, dropout)
        self.drop = nn.Dropout(dropout)

    def forward(self, texts: Tensor, pictures: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        times = len(pictures) // max(1, len(texts))
        text_queries, text_keys, text_values = self._split(_repeat_rows(self.text_in(self.text_norm(texts)), times))
        picture_queries, picture_keys, picture_values = self._split(self.picture_in(self.picture_norm(pictures)))
        attend, mask = functional.scaled_dot_product_attention, visible[:, None, None, :]
        for_texts = attend(text_queries, picture_keys, picture_values)
        for_pictures = attend(picture_queries, text_keys, text_values, attn_mask=mask)
        texts = _repeat_rows(texts, times) + self.drop(self.text_out(for_texts.transpose(1, 2).flatten(2)))
        pictures = pictures + self.drop(self.picture_out(for_pictures.transpose(1, 2).flatten(2)))
        return texts + self.text_feed(texts), pictures + self.picture_feed(pictures)

    def _split(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (rows, heads, tokens, width of a head) each."""
        rows, length, width = states.shape
        parts = states.view(rows, length, 3, self.heads, width // (3 * self.heads)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1], parts[2]


class _FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.drop(self.down(functional.gelu(self.up(self.norm(states)))))
        return result


class _Training:
    def __init__(
        self,
        reader: TextReader,
        train: MatchingPairs,
        config: CrossEncoderConfig,
        seed: int,
        validation: MatchingPairs | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.reader, self.train, self.config, self.device, self.progress = reader, train, config, device, progress
        self.random = np.random.default_rng(seed)
        self.negatives = _Negatives(train, config)
        self.validation = None if validation is None else _Validation(reader, validation, config, seed)
        features = np.ascontiguousarray(train.features, dtype=np.float32)
        self.model = CrossEncoder(config, features=features.shape[1], text_width=reader.text_width)
        self.model.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        self.model.std.copy_(torch.from_numpy(features.std(axis=0)).clamp_min(1e-6))
        self.model.to(device)
        self.features = torch.from_numpy(features)
        self.lengths = np.array([len(caption) for caption in train.captions])
        self.images, self.texts = (torch.from_numpy(rows.astype(np.float32)) for rows in (train.images, train.texts))

    def run(self) -> CrossEncoderRun:
        config, model = self.config, self.model
        pictures = len(np.unique(self.train.pairs[:, 0]))
        batches = len(self._batches(math.ceil(pictures / config.batch_size)))
        loop = TrainingLoop(
            model,
            adamw(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay, fused=True),
            epochs=config.epochs,
            steps_per_epoch=batches,
            schedule="cosine",
            warmup=config.warmup,
            patience=config.patience,
            gradient_clip=config.gradient_clip,
        )
        history = [self._validate(loop, 0, math.nan)]
        for epoch in loop.epochs():
            losses = []
            for rows in self._batches(batches):
                losses.append(loop.step(self._loss(rows)))
                self.progress("cross-encoder: batches", loop.steps_taken, loop.steps)
            history.append(self._validate(loop, epoch + 1, float(np.mean(losses))))
        loop.restore_best()
        return CrossEncoderRun(model, tuple(history), history[loop.best_epoch + 1])

    def _batches(self, count: int) -> list[Int[np.ndarray, "rows 2"]]:
        """An epoch's rows in batches of captions of similar length, so that there is little padding."""
        batches: list[np.ndarray] = []
        for rows in np.array_split(
            one_caption_per_image(self.train.pairs, self.random), math.ceil(count / _BATCHES_SORTED_TOGETHER)
        ):
            ordered = rows[np.argsort(self.lengths[rows[:, 1]], kind="stable")]
            batches += np.array_split(ordered, math.ceil(len(rows) / self.config.batch_size))
        return [batches[row] for row in self.random.permutation(len(batches))]

    def _loss(self, rows: Int[np.ndarray, "rows 2"]) -> Tensor:
        config, model = self.config, self.model
        wrong = self.negatives.draw(rows[:, 1], self.random)
        candidates = torch.from_numpy(np.concatenate([rows[:, :1], wrong.clip(0)], axis=1))
        captions = [self.train.captions[row] for row in rows[:, 1]]
        states = self.reader.read_texts(captions, max_tokens=config.max_tokens)
        tokens, mask = model.text_tokens(states.tokens.float().to(self.device), states.mask.to(self.device))
        distinct, place = candidates.unique(return_inverse=True)
        pictures = model.picture_tokens(self.features[distinct].to(self.device))
        logits = model(tokens, mask, pictures[place.to(self.device)])
        if config.base_in_training:
            cosines = torch.einsum("rd,rcd->rc", self.texts[torch.from_numpy(rows[:, 1])], self.images[candidates])
            logits = logits + config.base_in_training * cosines.to(self.device)
        absent = functional.pad(torch.from_numpy(wrong < 0), (1, 0), value=False).to(self.device)
        targets = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        return functional.cross_entropy(logits.masked_fill(absent, -torch.inf), targets)

    def _validate(self, loop: TrainingLoop, epoch: int, loss: float) -> MatchingEpoch:
        if self.validation is None:
            loop.record_score(None)
            return MatchingEpoch(epoch, loss, math.nan, math.nan, math.nan, float(self.model.base_weight))
        recalls, weight = self.validation.best(self.model)
        self.model.base_weight.fill_(weight)
        result = MatchingEpoch(epoch, loss, *recalls, weight)
        loop.record_score(result.recall)
        return result


class _Negatives:
    """Wrong pictures for a text: some that the two-tower ranks high, some at random."""

    def __init__(self, data: MatchingPairs, config: CrossEncoderConfig) -> None:
        self._answers = _Answers(data)
        self._config = config
        self._pictures = len(data.images)
        self._nearest = np.full((len(data.texts), min(config.nearest, self._pictures)), -1, dtype=np.int32)
        used = np.unique(data.pairs[:, 1])
        step = max(1, _SCORES_PER_BLOCK // self._pictures)
        for start in range(0, len(used), step):
            rows = used[start : start + step]
            scores = data.texts[rows] @ data.images.T
            scores[self._answers.right(rows)] = -np.inf
            count = self._nearest.shape[1]
            best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            self._nearest[rows] = np.where(np.isfinite(np.take_along_axis(scores, best, 1)), best, -1)

    def draw(self, texts: Int[np.ndarray, " rows"], random: np.random.Generator) -> Int[np.ndarray, "rows negatives"]:
        """Rows of pictures per text. −1 stands for a draw of a right answer, or of an unused place in `_nearest`."""
        config = self._config
        places = random.integers(0, self._nearest.shape[1], (len(texts), config.hard_negatives))
        hard = np.take_along_axis(self._nearest[texts], places, axis=1).astype(np.int64)
        drawn = random.integers(0, self._pictures, (len(texts), config.random_negatives))
        right = np.take_along_axis(self._answers.right(texts), drawn, axis=1)
        return np.concatenate([hard, np.where(right, -1, drawn)], axis=1)


class _Answers:
    """The right answers to texts: all pictures of the concepts that they describe."""

    def __init__(self, data: MatchingPairs) -> None:
        self._concept = np.unique(np.asarray(data.concepts), return_inverse=True)[1].reshape(-1)
        described = np.unique(np.stack([data.pairs[:, 1], self._concept[data.pairs[:, 0]]], axis=1), axis=0)
        self._concepts = described[:, 1]
        self._starts = np.searchsorted(described[:, 0], np.arange(len(data.texts) + 1))
        self._count = int(self._concept.max()) + 1

    def right(self, texts: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, "rows pictures"]:
        """Whether each picture answers each text."""
        shown = np.zeros((len(texts), self._count), dtype=bool)
        for row, text in enumerate(texts.tolist()):
            shown[row, self._concepts[self._starts[text] : self._starts[text + 1]]] = True
        return np.take(shown, self._concept, axis=1)


class _Validation:
    """Recall over the validation pool when the two-tower's first hits are reranked."""

    def __init__(self, reader: TextReader, data: MatchingPairs, config: CrossEncoderConfig, seed: int) -> None:
        texts = np.unique(data.pairs[:, 1])
        drawn = np.random.default_rng(seed).permutation(texts)[: config.validation_texts].tolist()
        chosen = np.array(sorted(drawn, key=lambda row: len(data.captions[row])))
        self._reader, self._config = reader, config
        self._captions = [data.captions[row] for row in chosen]
        self._features = data.features
        scores = data.texts[chosen] @ data.images.T
        depth = min(max(config.validation_depth, 10), len(data.images))
        self._candidates = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        self._cosines = np.take_along_axis(scores, self._candidates, axis=1)
        self._right = np.take_along_axis(_Answers(data).right(chosen), self._candidates, axis=1)

    def best(self, model: CrossEncoder) -> tuple[tuple[float, float, float], float]:
        """R@1, R@5 and R@10 at the weight of the cosine that gives the largest mean of them, and that weight."""
        logits = self._logits(model.eval())
        # Of weights with equal recall, `max` takes the first: the largest, which ranks most like the two-tower.
        results = [(self._recalls(logits + weight * self._cosines), weight) for weight in reversed(_BASE_WEIGHTS)]
        return max(results, key=lambda result: sum(result[0]))

    @torch.inference_mode()
    def _logits(self, model: CrossEncoder) -> Float[np.ndarray, "texts depth"]:
        pictures = _picture_tokens(model, self._features)
        parts = []
        for start in range(0, len(self._captions), 8):
            states = self._reader.read_texts(self._captions[start : start + 8], max_tokens=model.config.max_tokens)
            tokens, mask = model.text_tokens(states.tokens.float().to(model.device), states.mask.to(model.device))
            rows = torch.from_numpy(self._candidates[start : start + 8]).to(model.device)
            parts.append(model(tokens, mask, pictures[rows]).cpu().numpy())
        return np.concatenate(parts)

    def _recalls(self, scores: Float[np.ndarray, "texts depth"]) -> tuple[float, float, float]:
        first = first_relevant(scores, self._right)
        at_1, at_5, at_10 = (float(recall_at(first, cutoff).mean()) for cutoff in (1, 5, 10))
        return at_1, at_5, at_10


@torch.inference_mode()
def _picture_tokens(model: CrossEncoder, features: Float[np.ndarray, "images features"]) -> Tensor:
    parts = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).split(1024)
    return torch.cat([model.picture_tokens(part.to(model.device)) for part in parts])


def _repeat_rows(rows: Tensor, times: int) -> Tensor:
    return rows.unsqueeze(1).expand(-1, times, *rows.shape[1:]).flatten(0, 1)


def _check_config(config: CrossEncoderConfig) -> None:
    if min(config.width, config.heads, config.layers, config.picture_tokens, config.epochs, config.batch_size) < 1:
        raise ConfigError("cross-encoder: width, heads, layers, picture_tokens, epochs, batch_size must be 1 or more.")
    if config.width % config.heads:
        raise ConfigError(f"cross-encoder: width {config.width} is not a multiple of heads, {config.heads}.")
    if config.hard_negatives + config.random_negatives < 1 or config.nearest < 1:
        raise ConfigError("cross-encoder: hard_negatives and random_negatives are both 0, or nearest is under 1.")
    if config.base_in_training < 0:
        raise ConfigError(f"cross-encoder: base_in_training is {config.base_in_training}; it must be 0 or more.")
