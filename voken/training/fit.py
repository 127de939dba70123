"""Train a model on captioned pictures: the encoder, stage 1, stage 2, the rerank weights, and then the calibration.

Training uses only the train split, and every choice uses only the validation split. Test pictures are not opened,
except by the transductive protocol. Each part is saved in a work folder beside the model as soon as it is finished, and
the generator also while it trains. If a run is interrupted, the same call continues it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voken import artifact
from voken.config import ReadOutWeights, RunConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.skipped import Skipped
from voken.encoders.builtin import PictureFeatures, SentenceEncoder, feature_counts
from voken.encoders.cache import VectorCache, picture_vectors
from voken.encoders.clip import HubEncoder
from voken.encoders.frozen import frozen_encoder
from voken.encoders.prompts import choose_prompt
from voken.encoders.two_tower import PairedFeatures, TwoTowerEncoder, train_two_tower
from voken.errors import ConfigError, EmptyDataError, ResumeError
from voken.generator.interface import Generator
from voken.generator.lite import LiteGenerator
from voken.generator.train import SoftTargets, ValidationQueries, VokenPairs, train_generator
from voken.image_tokenizer.model import ImageTokenizer
from voken.image_tokenizer.train import quality_warnings, tokenizer_report, train_tokenizer
from voken.model.calibration import Calibration
from voken.model.model import FAMILIES, Model, text_reader
from voken.optimisation import keep_freed_memory
from voken.progress import EpochLog, Progress, no_epoch_log, no_progress
from voken.search.corrections import Corrections
from voken.shapes import Float
from voken.training.choose import calibrate, choose_weights, read_outs, validation_answers
from voken.training.corrections import (
    choose_corrections,
    choose_memory_weight,
    exact_scores,
    prior_captions,
    recall_by_beams,
)
from voken.training.sides import (
    Side,
    TrainingInputs,
    caption_memory,
    query_rows,
    side_of,
    split_sides,
    validation_queries,
    with_pool,
)
from voken.training.training_log import TrainingLog

_SOFT_ENTRIES = 32
_POINT_PICTURES = 32_768
"""Largest number of training pictures on whose vectors the query point is trained before there are vokens."""
_POINT_EPOCHS_ON_VOKENS = 3
"""A query point that was trained on vectors is trained for this part of its epochs on vokens."""


def fit(
    dataset: Dataset,
    out: Path,
    config: RunConfig,
    *,
    cache: VectorCache | None = None,
    device: str | torch.device | None = None,
    progress: Progress = no_progress,
) -> Model:
    """Train a model on `dataset` and save it in `out`.

    If the data set has no validation split, a tenth of its training concepts becomes one. The pictures' vectors are
    stored in `cache`, by default in the work folder. Raises `ConfigError` if `out` exists and is not an empty folder,
    `EmptyDataError` if no picture has a caption, `SplitLeakError` if a concept is in two splits, and `ResumeError` if
    the work folder holds a different run. What each epoch reached is written beside `out` (`TrainingLog`).
    """
    keep_freed_memory()
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: already exists. Remove it or choose another folder.")
    continues = out.with_name(f"{out.name}.work").exists()
    work = _open_work_folder(out, dataset, config)
    with TrainingLog(out, continues=continues) as log:
        inputs = prepare(dataset, config, work, cache=cache, device=device, progress=progress, log=log)
        model = fit_stages(inputs, config, work, progress=progress, log=log).save(out)
    shutil.rmtree(work, ignore_errors=True)
    return model


def prepare(
    dataset: Dataset,
    config: RunConfig,
    work: Path,
    *,
    cache: VectorCache | None = None,
    device: str | torch.device | None = None,
    progress: Progress = no_progress,
    log: EpochLog = no_epoch_log,
) -> TrainingInputs:
    """The encoder and both sides of the split as vectors; see `fit`. The built-in encoder is trained first.

    The trained encoder is saved in `work`, and the same call loads it from there. Of the settings, only
    `config.encoder`, `config.seed` and `config.protocol` are read.
    """
    torch_device = torch.device(device or "cpu")
    train, validation = split_sides(dataset, config.seed)
    cache = VectorCache(work / "vectors") if cache is None else cache
    inputs = _fit_encoder(train, validation, config, work, cache, torch_device, progress, log)
    inputs = replace(inputs, device=torch_device, skipped=(*dataset.skipped, *inputs.skipped))
    if config.protocol == "transductive":
        paths = [image.path for image in dataset.split("test").images]
        pool = picture_vectors(inputs.encoder, paths, cache=cache, progress=progress)
        inputs = replace(with_pool(inputs, pool.vectors), skipped=(*inputs.skipped, *pool.skipped))
    return inputs


def fit_stages(
    inputs: TrainingInputs,
    config: RunConfig,
    work: Path,
    *,
    reranks: bool = True,
    progress: Progress = no_progress,
    log: EpochLog = no_epoch_log,
) -> Model:
    """Train both stages, then choose the corrections, the rerank weights and the calibration. The model is not saved.

    Finished parts are stored in `work`, and the same call continues from there. Without `reranks` no validation query
    is searched: the model has only the read-out "generate", and its hits have no confidence.
    """
    keep_freed_memory()
    train, validation = inputs.train, inputs.validation
    start = _fit_query_point(inputs, config, work, progress, log)
    tokenizer, tokenizer_history = _fit_tokenizer(inputs, start, config, work, progress, log)
    queries = validation_queries(validation, tokenizer.encode(validation.images), config.seed)
    generator, generator_history = _fit_generator(inputs, tokenizer, start, queries, config, work, progress, log)
    if isinstance(generator, LiteGenerator):
        generator.begin_training(inputs.reader_for(config.generator))  # reads each caption once
    memory = choose_memory_weight(generator, queries) if reranks and isinstance(generator, LiteGenerator) else {}
    model = Model(config, inputs.encoder, tokenizer, generator, config.search, {})
    weights = config.search.weights(ReadOutWeights(0.0, 0.0))
    calibration: Calibration | None = None
    recalls: dict[str, Any] = {}
    calibration_report: dict[str, Any] = {}
    correction_report: dict[str, Any] = {}
    beams_report: dict[str, float] = {}
    captions = prior_captions(train.captions, config.seed)
    if reranks:
        # an untrained generator has no prior, and if the weight is 0 none is needed
        has_prior = config.search.prior_weight != 0 and (
            generator_history["best"] >= 0 or config.search.prior_weight is not None
        )
        scores = exact_scores(model, queries, captions if has_prior else (), seed=config.seed)
        chosen, correction_report = choose_corrections(config.search, scores)
        corrections = Corrections(generator, model.codebooks, captions, chosen)
        beams_report = {str(beams): recall for beams, recall in recall_by_beams(model, queries, corrections)}
        answers = validation_answers(model, validation, corrections)
        weights, recalls = choose_weights(config.search, answers)
        weights = replace(weights, norm=chosen.norm, prior=chosen.prior)
        read_out_answers = {read_out: answers[name] for name, read_out in read_outs(weights).items()}
        calibration, calibration_report = calibrate(read_out_answers, beams=config.search.beams, seed=config.seed)
    if isinstance(generator, LiteGenerator):
        generator.end_training()
    quality = tokenizer_report(tokenizer, validation.images, validation.texts, validation.pairs[:, ::-1].copy())
    reports = {
        "tokenizer": tokenizer_history
        | {"report": asdict(quality), "warnings": list(quality_warnings(quality, tokenizer.config))},
        "generator": generator_history,
        "memory": memory,
        "corrections": correction_report,
        "beams": beams_report,
        "search": recalls,
        "calibration": calibration_report,
        "pictures": {"train": len(train.images), "validation": len(validation.images)},
        "skipped": [asdict(item) for item in inputs.skipped],
    }
    return replace(
        model,
        weights=weights,
        calibration=calibration,
        validation=reports,
        prior_captions=captions if weights.prior else (),
    )


def _fit_encoder(
    train: Dataset,
    validation: Dataset,
    config: RunConfig,
    work: Path,
    cache: VectorCache,
    device: torch.device,
    progress: Progress,
    log: EpochLog,
) -> TrainingInputs:
    if config.encoder.family != "builtin":
        encoder = frozen_encoder(config.encoder, device, source=config.encoder.checkpoint)
        encoded = [
            _encode(side, encoder.encode_images, encoder.fingerprint, cache, progress) for side in (train, validation)
        ]
        if config.encoder.prompt == "auto" and isinstance(encoder, HubEncoder):
            _choose_prompt(encoder, *encoded[1][:2], config.seed)
        sides = [side_of(images, vectors, encoder.encode_texts) for images, vectors, _ in encoded]
        return TrainingInputs(encoder, sides[0], sides[1], (*encoded[0][2], *encoded[1][2]))
    settings = config.encoder
    pictures = PictureFeatures(settings.image_size, settings.networks, mirror=settings.mirror, device=device)
    sentences = SentenceEncoder(device=device)
    images, views, skipped = _encode_views(train, pictures, settings.crops, cache, progress)
    encoded = [
        (images, pictures.of_views(views), skipped),
        _encode(validation, pictures.encode, pictures.fingerprint, cache, progress),
    ]
    read = partial(sentences.encode, every_layer=settings.text_layers)
    sides = [side_of(images, features, read) for images, features, _ in encoded]
    folder = work / "encoder"
    if not artifact.is_artifact(folder):
        run = train_two_tower(
            replace(_paired_features(sides[0]), views=views, networks=feature_counts(settings.networks)),
            config.encoder,
            seed=config.seed,
            validation=_paired_features(sides[1]) if len(sides[1].pairs) else None,
            device=device,
            progress=progress,
            log=log,
        )
        with artifact.writing(folder, kind="encoder", version=1) as unfinished:
            TwoTowerEncoder(run.head, pictures=pictures, sentences=sentences, device=device).save(unfinished)
    two_tower = TwoTowerEncoder.load(folder, device=device)
    sides = [
        replace(side, images=two_tower.project_images(side.images), texts=two_tower.project_texts(side.texts))
        for side in sides
    ]
    if views.shape[1] > 1:
        sides[0] = replace(sides[0], views=np.stack([two_tower.project_images(view) for view in views.swapaxes(0, 1)]))
    return TrainingInputs(two_tower, sides[0], sides[1], (*encoded[0][2], *encoded[1][2]))


def _encode_views(
    train: Dataset, pictures: PictureFeatures, crops: int, cache: VectorCache, progress: Progress
) -> tuple[list[CaptionedImage], Float[np.ndarray, "images views features"], list[Skipped]]:
    count = pictures.view_count(crops)
    if count == 1:
        images, features, skipped = _encode(train, pictures.encode, pictures.fingerprint, cache, progress)
    else:
        encode = partial(pictures.encode_views, crops=crops)
        images, features, skipped = _encode(train, encode, pictures.views_fingerprint(crops), cache, progress)
    return images, features.reshape(len(images), count, pictures.dim), skipped


def _choose_prompt(
    encoder: HubEncoder, images: Sequence[CaptionedImage], vectors: Float[np.ndarray, "images dim"], seed: int
) -> None:
    """Choose the words around queries on at most a thousand captions of the validation pictures."""
    unread = side_of(images, vectors, lambda captions: np.zeros((len(captions), vectors.shape[1]), np.float32))
    rows = query_rows(unread, seed)
    pairs = unread.pairs[np.isin(unread.pairs[:, 1], rows)]
    pairs[:, 1] = np.searchsorted(rows, pairs[:, 1])
    choose_prompt(encoder, [unread.captions[row] for row in rows], vectors, pairs)


def _encode(
    dataset: Dataset, encode: Callable[..., Any], fingerprint: str, cache: VectorCache, progress: Progress
) -> tuple[list[CaptionedImage], Float[np.ndarray, "images dim"], list[Skipped]]:
    encoded = cache.encode_files([image.path for image in dataset.images], encode, fingerprint, progress=progress)
    if not len(encoded.rows):
        first = "; ".join(f"{item.path}: {item.reason}" for item in encoded.skipped[:3])
        raise EmptyDataError(f"{dataset.root}: none of the {len(encoded.skipped)} pictures could be read ({first}).")
    return [dataset.images[row] for row in encoded.rows], encoded.vectors, encoded.skipped


def _paired_features(side: Side) -> PairedFeatures:
    return PairedFeatures(side.images, side.texts, side.pairs, side.concepts.tolist())


def _fit_query_point(
    inputs: TrainingInputs, config: RunConfig, work: Path, progress: Progress, log: EpochLog
) -> LiteGenerator | None:
    """A generator whose query point was trained before there are vokens, on the pictures' own vectors.

    Its only codebook has an entry for each picture, so that a sequence is a picture. It says where the queries' points
    will lie, for the metric of the tokenizer, and the generator's training starts from its perceptron. None if the
    settings have no such metric, or no query point that moves.
    """
    settings, train, validation = config.generator, inputs.train, inputs.validation
    if not (config.tokenizer.query_metric and settings.family == "lite" and settings.moves_query_point):
        return None
    settings = replace(settings, layers=0, memory_weight=0.0, epochs=0, discrimination="none", targets="one-hot")
    pictures = np.arange(len(train.images))
    if len(pictures) > _POINT_PICTURES:
        pictures = np.sort(np.random.default_rng(config.seed).permutation(len(pictures))[:_POINT_PICTURES])
    row_of = np.full(len(train.images), -1)
    row_of[pictures] = np.arange(len(pictures))
    pairs = np.stack([row_of[train.pairs[:, 0]], train.pairs[:, 1]], 1)
    pairs = pairs[pairs[:, 0] >= 0]
    rows = np.arange(len(pictures) + len(validation.images), dtype=np.int32)[:, None]
    codebook = np.concatenate([train.images[pictures], validation.images])[None]
    torch.manual_seed(config.seed)
    generator = LiteGenerator(text_reader(inputs.encoder), codebook, settings)
    generator.begin_training(inputs.reader_for(settings))
    train_generator(
        generator.to(inputs.device),
        VokenPairs(train.captions, rows[: len(pictures)], train.related[pictures], pairs),
        validation_queries(validation, rows[len(pictures) :], config.seed),
        settings,
        seed=config.seed,
        checkpoints=work / "query_point",
        progress=progress,
        log=lambda _, *values: log("query point, on vectors", *values),
    )
    return generator.eval()


def _fit_tokenizer(
    inputs: TrainingInputs,
    start: LiteGenerator | None,
    config: RunConfig,
    work: Path,
    progress: Progress,
    log: EpochLog,
) -> tuple[ImageTokenizer, dict[str, Any]]:
    folder = work / "image_tokenizer"
    if not artifact.is_artifact(folder):
        train, validation = inputs.train.paired_vectors(), inputs.validation.paired_vectors()
        if start is not None:  # queries search with their points
            train, validation = (
                replace(pairs, texts=_points(start, side.captions))
                for pairs, side in ((train, inputs.train), (validation, inputs.validation))
            )
        tokenizer, history = train_tokenizer(
            train,
            validation,
            config.tokenizer,
            seed=config.seed,
            device=inputs.device,
            progress=progress,
            log=log,
        )
        with artifact.writing(folder, kind="image tokenizer", version=1) as unfinished:
            tokenizer.save(unfinished)
            artifact.write_json(unfinished / "history.json", asdict(history))
    return ImageTokenizer.load(folder).to(inputs.device), artifact.read_json(folder / "history.json")


@torch.inference_mode()
def _points(generator: LiteGenerator, captions: Sequence[str]) -> Float[np.ndarray, "captions e"]:
    """The query points of captions, without related captions."""
    points: np.ndarray = generator.query_points(captions, generator.read_vectors(captions)).float().cpu().numpy()
    return points


def _fit_generator(
    inputs: TrainingInputs,
    tokenizer: ImageTokenizer,
    start: LiteGenerator | None,
    queries: ValidationQueries,
    config: RunConfig,
    work: Path,
    progress: Progress,
    log: EpochLog,
) -> tuple[Generator, dict[str, Any]]:
    settings, train = config.generator, inputs.train
    vokens = tokenizer.encode(train.images)
    torch.manual_seed(config.seed)
    generator = make_generator(inputs, tokenizer, config)
    generator.to(inputs.device)
    if start is not None:
        assert isinstance(generator, LiteGenerator)
        generator.take_query_point(start)
        settings = replace(settings, point_epochs=max(1, settings.point_epochs // _POINT_EPOCHS_ON_VOKENS))

    def soft(vectors: Float[np.ndarray, "rows dim"]) -> SoftTargets:
        return SoftTargets(
            *tokenizer.soft_targets(vectors, temperature=settings.soft_temperature, entries=_SOFT_ENTRIES)
        )

    pairs = VokenPairs(
        train.captions,
        vokens,
        train.related,
        train.pairs,
        soft=soft(train.images) if settings.targets == "soft" else None,
        text_soft=soft(train.texts) if settings.text_only_weight else None,
        text_vectors=train.texts if settings.distillation_weight else None,
        rebuilt_vectors=tokenizer.decode(vokens) if settings.distillation_weight else None,
    )
    history = train_generator(
        generator,
        pairs,
        queries,
        settings,
        seed=config.seed,
        checkpoints=work / "generator",
        progress=progress,
        prior_weight=config.search.prior_weight or 0.0,
        log=log,
    )
    if isinstance(generator, LiteGenerator):
        generator.end_training()
    return generator, asdict(history)


def make_generator(inputs: TrainingInputs, tokenizer: ImageTokenizer, config: RunConfig) -> Generator:
    """An untrained generator of the configured family, ready to be trained on `inputs`."""
    settings = config.generator
    generator = FAMILIES[settings.family].start(config, tokenizer.codebooks, inputs.encoder)
    if isinstance(generator, LiteGenerator):
        generator.begin_training(inputs.reader_for(settings))
        if settings.memory_weight:
            images = torch.from_numpy(inputs.train.images).to(tokenizer.books.device)
            with torch.inference_mode():
                codes = tokenizer.quantize(images).entries.sum(1).cpu().numpy()
            generator.memorize(caption_memory(inputs.train, codes, size=settings.memory_size, seed=config.seed))
    return generator


def _open_work_folder(out: Path, dataset: Dataset, config: RunConfig) -> Path:
    work = out.with_name(f"{out.name}.work")
    run = {"config": config.to_dict(), "dataset": dataset.fingerprint}
    with artifact.storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
    path = work / "run.json"
    if path.exists() and artifact.read_json(path) != json.loads(json.dumps(run)):
        raise ResumeError(
            f"{work}: holds an interrupted run with other settings or data. Start it with the same ones, "
            "or remove the folder to start again."
        )
    artifact.write_json(path, run)
    return work
