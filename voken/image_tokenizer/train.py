"""Train the image tokenizer (L_tokenizer = L_recon + L_commit + L_align, Eqs. 3 to 6), and report on its quality."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from voken.config import TokenizerConfig
from voken.errors import EmptyDataError
from voken.image_tokenizer.model import ImageTokenizer, Quantized, residual_kmeans
from voken.metrics import FirstRelevant, collision_rate, first_relevant_by_product, recall_at
from voken.optimisation import CaptionsByImage, TrainingLoop
from voken.progress import EpochLog, Progress, no_epoch_log, no_progress
from voken.shapes import Float, Int

_STEPS_PER_EPOCH, _SMALLEST_BATCH = 20, 32
_MOST_COLLISIONS, _LEAST_CEILING, _CEILING_CUT = 0.2, 0.9, 10
_SEQUENCE_BITS, _MOST_LEVELS = 64, 8
_KMEANS_ROWS = 1 << 18
"""512 MB of vectors of width 512."""


@dataclass(frozen=True)
class PairedVectors:
    """Vectors of pictures and of their captions, in one space.

    Row p of `pairs` says that caption `pairs[p, 1]` belongs to picture `pairs[p, 0]`. A picture may have several
    captions, or none.
    """

    images: Float[np.ndarray, "images dim"]
    texts: Float[np.ndarray, "texts dim"]
    pairs: Int[np.ndarray, "pairs 2"]
    views: Float[np.ndarray, "views images dim"] | None = None
    """Vectors of other views of each picture, such as its mirror image and crops."""


@dataclass(frozen=True)
class TokenizerHistory:
    """Loss and validation score of each epoch, and the epoch that gave the final weights."""

    losses: tuple[float, ...]
    validation_scores: tuple[float, ...]
    """`validation_score` before the first epoch and after each epoch."""
    best_epoch: int


_LEAST_VARIANCE = 1e-6
"""Least variance of the queries in a direction, in parts of the greatest: no direction is quite forgotten."""


@dataclass(frozen=True)
class LevelUsage:
    """How a set of pictures uses the codebook of one level."""

    level: int
    """1 … M."""
    used: int
    """Number of entries chosen at least once."""
    entries: int
    """N."""
    perplexity: float
    """exp of the entropy of the choices, 1 … N: so many entries, used equally often, would carry the same information.
    """


@dataclass(frozen=True)
class RecallCeiling:
    """Text-to-image recall (%) at `cut`, by exact search over the vectors themselves and over their reconstructions.

    A generator ranks by vokens alone, so its recall is unlikely to exceed `quantized` by much.
    """

    cut: int
    exact: float
    quantized: float


@dataclass(frozen=True)
class TokenizerReport:
    """Quality of one tokenizer on one set of pictures."""

    pictures: int
    sequences: int
    """Distinct voken sequences."""
    collision_rate: float
    """Share of the pictures that share their sequence with another picture."""
    reconstruction_error: float
    """Mean squared distance between a vector and its reconstruction. Both have length 1, so 2 means a right angle."""
    cosine: float
    """Mean cosine between a vector and its reconstruction."""
    bits: float
    """M · log2 N, the size of a sequence in bits."""
    levels: tuple[LevelUsage, ...]
    recall: tuple[RecallCeiling, ...]
    """Empty without texts."""


def train_tokenizer(
    train: PairedVectors,
    validation: PairedVectors,
    config: TokenizerConfig,
    *,
    seed: int,
    device: torch.device | None = None,
    progress: Progress = no_progress,
    log: EpochLog = no_epoch_log,
) -> tuple[ImageTokenizer, TokenizerHistory]:
    """Train the codebooks, and the MLPs if there are any. The result has the weights with the best `validation_score`.

    Each epoch uses every picture once, in one of its views, with one of its captions drawn at random (the official
    code uses all its captions). On one device, the same seed gives the same tokenizer. Raises `EmptyDataError` without
    training pictures.
    """
    if not len(train.images):
        raise EmptyDataError("The image tokenizer has no training pictures. Check the splits of the data set.")
    config = sized_for(config, len(train.images))
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tokenizer = ImageTokenizer(train.images.shape[1], config).to(device)
    captions = _CaptionVectors(train, random)
    images = torch.from_numpy(train.images).to(device)
    if tokenizer.metric is not None:
        queries = train.texts[np.unique(train.pairs[:, 1])]
        tokenizer.metric.copy_(torch.from_numpy(query_metric(queries, config.query_metric)))
    if config.initialisation == "kmeans":
        rows = torch.from_numpy(kmeans_rows(train, mixtures=config.mixture, random=random)).to(device)
        _initialise(tokenizer, rows, random, progress)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batch_size = epoch_batch_size(len(images), config.batch_size)
    views = None if train.views is None else torch.from_numpy(train.views).to(device)
    loop = TrainingLoop(
        tokenizer,
        optimizer,
        epochs=config.epochs,
        steps_per_epoch=math.ceil(len(images) / batch_size),
        schedule="constant",
        patience=config.patience,
    )
    losses, scores = [], [validation_score(tokenizer, validation)]
    loop.record_score(scores[0])
    averages = _MovingAverages(tokenizer, config.ema_decay) if config.update == "ema" else None
    for epoch in loop.epochs():
        rows = images if views is None else _drawn_views(images, views, random)
        losses.append(_train_epoch(loop, tokenizer, rows, captions.draw(), averages, batch_size, random))
        scores.append(validation_score(tokenizer, validation))
        progress("tokenizer", epoch + 1, config.epochs)
        loop.record_score(scores[-1])
        log("image tokenizer", epoch + 1, losses[-1], scores[-1])
    loop.restore_best()
    return tokenizer, TokenizerHistory(tuple(losses), tuple(scores), loop.best_epoch + 1)


def sized_for(config: TokenizerConfig, pictures: int) -> TokenizerConfig:
    """The settings with sizes for so many training pictures in place of 0.

    N is the largest power of two with at least 16 pictures per entry, between 16 and 1,024: more entries learn the
    pictures by heart. M is the number of levels that fit in 8 bytes, at most 8.

    >>> sized = sized_for(TokenizerConfig(codebook_size=0, levels=0), 6_000)
    >>> sized.codebook_size, sized.levels
    (256, 8)
    """
    size = config.codebook_size or min(max(1 << max(pictures // 16, 1).bit_length() - 1, 16), 1024)
    levels = config.levels or min(_SEQUENCE_BITS // max((size - 1).bit_length(), 1), _MOST_LEVELS)
    return replace(config, codebook_size=size, levels=levels)


def epoch_batch_size(pictures: int, largest: int) -> int:
    """The batch size of an epoch over `pictures` with at least about 20 steps, if batches of 32 allow as many.

    >>> epoch_batch_size(100_000, 2048), epoch_batch_size(6_000, 2048), epoch_batch_size(100, 2048)
    (2048, 300, 32)
    """
    return min(largest, max(_SMALLEST_BATCH, pictures // _STEPS_PER_EPOCH))


def kmeans_rows(data: PairedVectors, *, mixtures: bool, random: torch.Generator) -> Float[np.ndarray, "rows dim"]:
    """What k-means is trained on: all pictures, all their other views, and a mixture for every pair if asked for.

    A mixture is the normalised sum of a caption and a view of its picture. The captions of a picture take its views in
    turn. If there are more than `_KMEANS_ROWS` rows, so many are drawn.
    """
    views = data.images[None] if data.views is None else np.concatenate([data.images[None], data.views])
    own = len(views) * len(data.images)
    total = own + (len(data.pairs) if mixtures else 0)
    rows = np.arange(total)
    if total > _KMEANS_ROWS:
        rows = np.sort(torch.randperm(total, generator=random)[:_KMEANS_ROWS].numpy())
    view, image = np.divmod(rows[rows < own], len(data.images))
    parts = [views[view, image]]
    pair = rows[rows >= own] - own
    if len(pair):
        image, caption = data.pairs[pair].T
        mixed = views[pair % len(views), image] + data.texts[caption]
        parts.append(mixed / np.linalg.norm(mixed, axis=1, keepdims=True).clip(1e-12))
    return np.concatenate(parts).astype(np.float32, copy=False)


def query_metric(points: Float[np.ndarray, "queries dim"], power: float) -> Float[np.ndarray, "dim dim"]:
    """The matrix in whose metric vokens are chosen: C to the power `power`, where C is the covariance of `points`.

    A query with the point p ranks pictures by <p, v>. If v is replaced by v̂, the squared error is <p, v - v̂>². Its mean
    over queries is (v - v̂)ᵀ C (v - v̂), but for what it adds to the scores of all queries alike. So power ½ loses as
    little as it can of the scores of these queries, and 0 of the vectors. New queries also differ where these hardly
    do, which speaks for a lower power. Guo et al. (ICML 2020, "Accelerating Large-Scale Inference with Anisotropic
    Vector Quantization") weigh errors of scores too, without knowing the queries. Without points it is the identity.
    """
    if not len(points):
        return np.eye(points.shape[1], dtype=np.float32)
    centred = (points - points.mean(axis=0)).astype(np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    values /= max(values[-1], 1e-12)
    root = (directions * values.clip(_LEAST_VARIANCE) ** power) @ directions.T
    return np.ascontiguousarray(root, dtype=np.float32)


def tokenizer_loss(
    tokenizer: ImageTokenizer, images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], paired: Tensor
) -> tuple[Tensor, Quantized]:
    """Eq. 6 for a batch of vectors. `paired` is True for rows of `texts` that are a caption of the row's picture.

    All three terms are means over rows and dimensions, as in the official code. Vectors are compared in the MLPs'
    units, that is, times `tokenizer.scale`.
    """
    config, squared_scale = tokenizer.config, tokenizer.scale**2
    coded = tokenizer.code(images)
    quantized = tokenizer.quantize_coded(coded)
    summed = quantized.entries.sum(1)
    # The straight-through estimator is over the sum: one per level would give later levels no gradient.
    straight_through = summed + coded - coded.detach() if tokenizer.config.layers else summed
    rebuilt = tokenizer.rebuild(straight_through)
    loss = squared_scale * nn.functional.mse_loss(rebuilt, images)
    loss = loss + config.commitment_weight * commitment_loss(quantized, coded, config.commitment)
    if config.alignment != "none" and paired.any():
        unit = squared_scale if config.alignment == "mse" else 1.0  # InfoNCE compares cosines
        loss = loss + unit * config.alignment_weight * alignment_loss(rebuilt[paired], texts[paired], config)
    return loss, quantized


def commitment_loss(quantized: Quantized, coded: Float[Tensor, "n e"], form: str) -> Tensor:
    """Eq. 4 ("paper"), or the official code's two-sided form at each level ("code")."""
    if form == "paper":
        partial = quantized.entries.cumsum(1).detach()
        return (coded[:, None] - partial).pow(2).mean((0, 2)).sum()
    entries, residuals = quantized.entries, quantized.residuals
    towards_residual = (entries - residuals.detach()).pow(2).mean((0, 2)).sum()
    towards_entry = (entries.detach() - residuals).pow(2).mean((0, 2)).sum()
    return towards_residual + 0.25 * towards_entry


def alignment_loss(rebuilt: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], config: TokenizerConfig) -> Tensor:
    """Eq. 5 ("mse"), or InfoNCE between rebuilt vectors and captions, with the batch's other captions as negatives."""
    if config.alignment == "mse":
        return nn.functional.mse_loss(rebuilt, texts)
    similarity = nn.functional.normalize(rebuilt, dim=1) @ nn.functional.normalize(texts, dim=1).T
    target = torch.arange(len(rebuilt), device=rebuilt.device)
    return nn.functional.cross_entropy(similarity / config.alignment_temperature, target)


def tokenizer_report(
    tokenizer: ImageTokenizer,
    images: Float[np.ndarray, "images dim"],
    texts: Float[np.ndarray, "texts dim"] | None = None,
    relevant: Int[np.ndarray, "answers 2"] | None = None,
    cuts: tuple[int, ...] = (1, 5, 10),
) -> TokenizerReport:
    """Quality of a tokenizer on pictures that it was not trained on. Rows of `relevant` are (text, right picture).

    Recall follows the rules of `voken.metrics`. Raises `EmptyDataError` without pictures.
    """
    if not len(images):
        raise EmptyDataError("There are no pictures to report on.")
    vokens = tokenizer.encode(images)
    rebuilt = tokenizer.decode(vokens)
    recall: tuple[RecallCeiling, ...] = ()
    if texts is not None and relevant is not None and len(relevant):
        queries, query = np.unique(relevant[:, 0], return_inverse=True)
        answers = np.stack([query, relevant[:, 1]], 1)
        exact, quantized = (first_relevant_by_product(texts[queries], pool, answers) for pool in (images, rebuilt))
        recall = tuple(RecallCeiling(cut, _percent(exact, cut), _percent(quantized, cut)) for cut in cuts)
    return TokenizerReport(
        pictures=len(images),
        sequences=len(np.unique(vokens, axis=0)),
        collision_rate=collision_rate(vokens),
        reconstruction_error=float(((rebuilt - images) ** 2).sum(1).mean()),
        cosine=float((rebuilt * images).sum(1).mean()),
        bits=float(tokenizer.levels * np.log2(tokenizer.codebook_size)),
        levels=tuple(_usage(level, column, tokenizer.codebook_size) for level, column in enumerate(vokens.T, 1)),
        recall=recall,
    )


def quality_warnings(report: TokenizerReport, config: TokenizerConfig) -> tuple[str, ...]:
    """What makes a tokenizer unfit for the pictures of `report`, each with what to change; empty if it is fit.

    That is, more than 20 % collisions, or a ceiling under 0.9 of exact search at R@10.
    """
    remedies = [f"Raise tokenizer.levels ({config.levels}) or tokenizer.codebook_size ({config.codebook_size})"]
    if config.layers and config.input_scale == "unit":
        remedies.append("set tokenizer.input_scale=rms")
    if config.encoding_beams == 1:
        remedies.append("set tokenizer.encoding_beams=8")
    remedy = ", or ".join(remedies) + ", and train again."
    warnings = []
    if report.collision_rate > _MOST_COLLISIONS:
        warnings.append(
            f"{100 * report.collision_rate:.0f} % of the {report.pictures:,} pictures share their voken sequence with "
            f"another picture, and a search over vokens cannot tell those apart. {remedy}"
        )
    for line in report.recall:
        if line.cut == _CEILING_CUT and line.quantized < _LEAST_CEILING * line.exact:
            warnings.append(
                f"R@{line.cut} over vectors rebuilt from vokens is {line.quantized:.1f} %, and {line.exact:.1f} % over "
                f"the vectors themselves: the vokens lose too much. {remedy}"
            )
    return tuple(warnings)


class _CaptionVectors:
    """Draws the vector of one caption per picture."""

    def __init__(self, data: PairedVectors, random: torch.Generator) -> None:
        self._texts = torch.from_numpy(data.texts)
        self._captions = CaptionsByImage(data.pairs)
        self._pictures = len(data.images)
        self._random = random

    def draw(self) -> tuple[Tensor, Tensor]:
        """A caption vector per picture, 0 for pictures without captions, and whether each picture has one."""
        captions = self._captions
        counts = torch.from_numpy(captions.counts)
        picks = (torch.rand(self._pictures, generator=self._random)[captions.images] * counts).long()
        texts = torch.zeros((self._pictures, self._texts.shape[1]))
        texts[captions.images] = self._texts[captions.at(picks.clamp_max(counts - 1).numpy())]
        has_caption = torch.zeros(self._pictures, dtype=torch.bool)
        has_caption[captions.images] = True
        return texts, has_caption


class _MovingAverages:
    """Sets each entry to an exponential moving average of the residuals that are nearest to it."""

    def __init__(self, tokenizer: ImageTokenizer, decay: float) -> None:
        self._decay = decay
        self._counts = torch.ones(tokenizer.books.shape[:2], device=tokenizer.books.device)
        self._sums = tokenizer.books.detach().clone()

    def update(self, tokenizer: ImageTokenizer, quantized: Quantized) -> None:
        counts, sums = torch.zeros_like(self._counts), torch.zeros_like(self._sums)
        for level in range(tokenizer.levels):
            book = 0 if tokenizer.config.shared_codebook else level
            chosen = quantized.vokens[:, level]
            counts[book] += torch.bincount(chosen, minlength=tokenizer.codebook_size)
            sums[book].index_add_(0, chosen, quantized.residuals[:, level].detach())
        self._counts.lerp_(counts, 1 - self._decay)
        self._sums.lerp_(sums, 1 - self._decay)
        tokenizer.books.data.copy_(self._sums / self._counts.clamp_min(1e-3)[..., None])


def _initialise(tokenizer: ImageTokenizer, rows: Tensor, random: torch.Generator, progress: Progress) -> None:
    with torch.no_grad():
        _measure_batch_norm(tokenizer, rows)
        coded = torch.cat([tokenizer.code(part) for part in rows.split(4096)])
        config = tokenizer.config
        books = residual_kmeans(
            coded,
            config.levels,
            config.codebook_size,
            shared=config.shared_codebook,
            generator=random,
            metric=tokenizer.metric,
            progress=progress,
        )
        tokenizer.books.copy_(books)


def _measure_batch_norm(tokenizer: ImageTokenizer, rows: Tensor) -> None:
    """Save the statistics of `rows` in batch norm, and leave the tokenizer in evaluation mode.

    K-means then starts from the codes that evaluation will see, without dropout.
    """
    tokenizer.eval()
    layers = [module for module in tokenizer.encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    usual = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = None  # the mean over all batches
    if layers:
        for part in rows.split(4096):
            if len(part) > 1:
                tokenizer.code(part)
    for layer, momentum in zip(layers, usual, strict=True):
        layer.momentum = momentum
    tokenizer.eval()


def _drawn_views(images: Tensor, views: Tensor, random: torch.Generator) -> Tensor:
    """One view per picture, drawn from the picture's own vector and its other views."""
    every = torch.cat([images[None], views])
    drawn = torch.randint(len(every), (len(images),), generator=random).to(images.device)
    return every[drawn, torch.arange(len(images), device=images.device)]


def _train_epoch(
    loop: TrainingLoop,
    tokenizer: ImageTokenizer,
    images: Tensor,
    captions: tuple[Tensor, Tensor],
    averages: _MovingAverages | None,
    batch_size: int,
    random: torch.Generator,
) -> float:
    config, (texts, has_caption) = tokenizer.config, captions
    used = torch.zeros(tokenizer.books.shape[:2], dtype=torch.bool, device=images.device)
    total, last_batch = 0.0, None
    for batch in torch.randperm(len(images), generator=random).split(batch_size):
        if len(batch) < 2 and config.layers:
            continue  # batch norm needs more than one row
        rows, row_texts = images[batch], texts[batch].to(images.device)
        paired = has_caption[batch].to(images.device)
        if config.mixture:
            mixed = (torch.rand(len(batch), generator=random) < 0.5).to(images.device) & paired
            rows = torch.where(mixed[:, None], nn.functional.normalize(rows + row_texts, dim=1), rows)
        loss, quantized = tokenizer_loss(tokenizer, rows, row_texts, paired)
        total += loop.step(loss) * len(batch)
        if averages is not None:  # the averages replace the optimizer's update of the codebooks
            averages.update(tokenizer, quantized)
        for level in range(tokenizer.levels):
            used[0 if config.shared_codebook else level, quantized.vokens[:, level]] = True
        last_batch = quantized
    if config.revive_unused and last_batch is not None:
        _revive_unused(tokenizer, used, last_batch, random)
    return total / len(images)


def _revive_unused(tokenizer: ImageTokenizer, used: Tensor, quantized: Quantized, random: torch.Generator) -> None:
    """Move each entry that no row chose in this epoch to the residual of a random row of the last batch."""
    for book, level in enumerate([0] if tokenizer.config.shared_codebook else range(tokenizer.levels)):
        unused = (~used[book]).nonzero()[:, 0]
        if len(unused):
            rows = torch.randint(len(quantized.vokens), (len(unused),), generator=random)
            tokenizer.books.data[book, unused] = quantized.residuals[rows, level].detach()


def validation_score(tokenizer: ImageTokenizer, validation: PairedVectors) -> float:
    """Quality of the rebuilt vectors for search: the mean reciprocal rank of each caption's best picture.

    Pictures that share a sequence tie, and each has the middle rank of the tie. Without captions the score is minus
    the mean squared error of the reconstruction. Without pictures it is 0.
    """
    if not len(validation.images):
        return 0.0
    rebuilt = tokenizer.decode(tokenizer.encode(validation.images))
    if not len(validation.pairs):
        return -float(((rebuilt - validation.images) ** 2).sum(1).mean())
    captions, query = np.unique(validation.pairs[:, 1], return_inverse=True)
    answers = np.stack([query, validation.pairs[:, 0]], 1)
    first = first_relevant_by_product(validation.texts[captions], rebuilt, answers)
    return float((1.0 / (first.above + (first.tied + 1) / 2)).mean())


def _percent(first: FirstRelevant, cut: int) -> float:
    return float(100 * recall_at(first, cut).sum() / len(first.above))


def _usage(level: int, vokens: Int[np.ndarray, " images"], entries: int) -> LevelUsage:
    shares = np.bincount(vokens, minlength=entries) / len(vokens)
    positive = shares[shares > 0]
    return LevelUsage(level, len(positive), entries, float(np.exp(-(positive * np.log(positive)).sum())))
