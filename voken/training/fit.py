"""From captioned pictures to a model: encoder, stage 1, stage 2, the rerank weights and the calibration, in that order.

Only the train split trains and only the validation split chooses; test pictures are not even opened. Each
part is saved in a work folder beside the model as soon as it is done, and the generator as it goes, so that
the same call goes on where an interrupted one stopped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from voken import artifact
from voken.config import RunConfig, SearchConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.skipped import Skipped
from voken.data.splits import check_disjoint, one_per_concept, split_by_concept
from voken.decoding.beam import beam_search_from_state
from voken.decoding.trie import VokenTrie
from voken.encoders import Encoder, load_encoder
from voken.encoders.builtin import PictureFeatures, SentenceEncoder
from voken.encoders.cache import VectorCache
from voken.encoders.clip import HubEncoder
from voken.encoders.picture_vectors import picture_vectors
from voken.encoders.text_reader import RememberedTexts
from voken.encoders.two_tower import PairedFeatures, TwoTowerEncoder, train_two_tower
from voken.errors import ConfigError, EmptyDataError, ResumeError
from voken.generator.interface import Generator
from voken.generator.lite import CaptionMemory, LiteGenerator
from voken.generator.llama import LlamaStepModel, Lora
from voken.generator.pairs import SoftTargets, ValidationQueries, VokenPairs
from voken.generator.t5 import T5StepModel
from voken.generator.train import train_generator
from voken.image_tokenizer.model import ImageTokenizer
from voken.image_tokenizer.report import report
from voken.image_tokenizer.train import PairedVectors, train_tokenizer
from voken.model.model import Model, text_reader
from voken.progress import Progress, no_progress
from voken.search.confidence import Answers, Readout, calibrate
from voken.shapes import Float, Int
from voken.training.allocator import keep_freed_memory

_VALIDATION_QUERIES = 1000
_SOFT_ENTRIES = 32
_REMEMBER_BYTES = 2 << 30
_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


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

    A data set without splits gets a validation split of a tenth, by concept. Vectors of pictures are kept in
    `cache`, by default one in the work folder. Raises `EmptyDataError` without captioned pictures,
    `SplitLeakError` if a concept is on two sides, `ResumeError` if an interrupted run was another one.
    """
    keep_freed_memory()
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: already exists. Remove it or choose another folder.")
    work = _open_work_folder(out, dataset, config)
    prepared = prepare(dataset, config, work, cache=cache, device=device, progress=progress)
    model = fit_stages(prepared, config, work, progress=progress).save(out)
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
) -> Prepared:
    """The encoder, trained if it is the built-in one, and both sides of the split as vectors; see `fit`.

    The encoder is kept in `work`, where the same call finds it again. Only `config.encoder`, `config.seed` and
    `config.protocol` count.
    """
    place = torch.device(device or "cpu")
    train, validation, skipped = _sides(dataset, config.seed)
    vectors = VectorCache(work / "vectors") if cache is None else cache
    prepared = _fit_encoder(train, validation, config, work, vectors, place, progress)
    prepared = replace(prepared, device=place, skipped=(*skipped, *prepared.skipped))
    if config.protocol == "transductive":
        pool = dataset.split("test")
        paths = [image.path for image in pool.images]
        read = picture_vectors(prepared.encoder, paths, cache=vectors, progress=progress)
        prepared = replace(with_made_captions(prepared, read.vectors), skipped=(*prepared.skipped, *read.skipped))
    return prepared


def fit_stages(
    prepared: Prepared, config: RunConfig, work: Path, *, reranks: bool = True, progress: Progress = no_progress
) -> Model:
    """Both stages, the rerank weights and the calibration, on pictures and captions that are vectors already; the
    model is not saved.

    What is done is kept in `work`, where the same call goes on from it. Without `reranks` the model is for the read-out
    "generate" alone and its hits have no confidence: nothing is searched on validation.
    """
    keep_freed_memory()
    encoder, train, validation = prepared.encoder, prepared.train, prepared.validation
    tokenizer, tokenizer_said = _fit_tokenizer(train, validation, config, work, prepared.device, progress)
    generator, generator_said = _fit_generator(prepared, tokenizer, config, work, progress)
    model = Model(config, encoder, tokenizer, generator, config.search, {})
    search = _with_weights(model.search, 0.0, 0.0)
    search_said: dict[str, Any] = {}
    calibration_said: dict[str, Any] = {}
    if reranks:
        answers = validation_answers(model, validation)
        search, search_said = choose_weights(model.search, answers)
        search, calibration_said = with_calibration(search, answers, config.seed)
    quality = report(tokenizer, validation.images, validation.texts, validation.pairs[:, ::-1].copy())
    said = {
        "tokenizer": tokenizer_said | {"report": asdict(quality)},
        "generator": generator_said,
        "search": search_said,
        "calibration": calibration_said,
        "pictures": {"train": len(train.images), "validation": len(validation.images)},
        "skipped": [asdict(item) for item in prepared.skipped],
    }
    return replace(model, search=search, validation=said)


@dataclass(frozen=True)
class Side:
    """One side of a split as the stages see it: vectors, and which caption belongs to which picture."""

    images: Float[np.ndarray, "images dim"]
    texts: Float[np.ndarray, "texts dim"]
    captions: Sequence[str]
    pairs: Int[np.ndarray, "pairs 2"]
    """Rows (picture, caption)."""
    concepts: Int[np.ndarray, " images"]

    def paired(self) -> PairedVectors:
        """As stage 1 takes it."""
        return PairedVectors(self.images, self.texts, self.pairs)


@dataclass(frozen=True)
class Prepared:
    """What the two stages start from."""

    encoder: Encoder
    train: Side
    validation: Side
    skipped: tuple[Skipped, ...] = ()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _readers: dict[int, RememberedTexts | None] = field(default_factory=dict, repr=False)

    def remembered(self, max_tokens: int) -> RememberedTexts | None:
        """Token states of all training captions, if they fit: the frozen reader reads each text once for all runs."""
        if max_tokens not in self._readers:
            self._readers[max_tokens] = _remembered(self.encoder, self.train, max_tokens)
        return self._readers[max_tokens]


def with_made_captions(
    prepared: Prepared,
    pool: Float[np.ndarray, "pool dim"],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    each: int = 5,
) -> Prepared:
    """The transductive protocol: train also on the pictures `pool`, with captions made for them.

    `captions` are a captioner's, some a picture (see `voken_lab.systems.blip`), as in the official code; None takes the
    `each` training captions nearest to each picture. Each of these pictures is a concept of its own; the encoder is
    not trained again.
    """
    train = prepared.train
    if captions is None:
        used = np.unique(train.pairs[:, 1])
        similarity = pool @ train.texts[used].T
        nearest = used[np.argsort(-similarity, axis=1, kind="stable")[:, :each]]
        added = [(row, caption) for row, found in enumerate(nearest.tolist()) for caption in found]
        texts, words = train.texts, list(train.captions)
    else:
        number = {caption: row for row, caption in enumerate(train.captions)}
        for caption in (caption for own in captions for caption in own):
            number.setdefault(caption, len(number))
        added = [(row, number[caption]) for row, own in enumerate(captions) for caption in dict.fromkeys(own)]
        words = list(number)
        new = words[len(train.captions) :]
        texts = np.concatenate([train.texts, prepared.encoder.encode_texts(new)]) if new else train.texts
    pairs = np.array(added, np.int64).reshape(-1, 2)
    pairs[:, 0] += len(train.images)
    made = Side(
        images=np.concatenate([train.images, pool]),
        texts=texts,
        captions=words,
        pairs=np.concatenate([train.pairs, pairs]),
        concepts=np.concatenate([train.concepts, train.concepts.max() + 1 + np.arange(len(pool))]),
    )
    return replace(prepared, train=made, _readers={})


def side_of(
    images: Sequence[CaptionedImage], vectors: Float[np.ndarray, "images dim"], encode_texts: Callable[..., Any]
) -> Side:
    """Captions numbered once each, and encoded."""
    captions = list(dict.fromkeys(caption for image in images for caption in image.captions))
    number = {caption: row for row, caption in enumerate(captions)}
    pairs = [(row, number[caption]) for row, image in enumerate(images) for caption in dict.fromkeys(image.captions)]
    concepts = {concept: row for row, concept in enumerate(dict.fromkeys(image.concept for image in images))}
    texts = encode_texts(captions) if captions else np.zeros((0, vectors.shape[1]), np.float32)
    return Side(
        vectors,
        texts,
        captions,
        np.array(pairs, np.int64).reshape(-1, 2),
        np.array([concepts[image.concept] for image in images], np.int64),
    )


def caption_memory(train: Side, codes: Float[np.ndarray, "images e"], *, size: int, seed: int) -> CaptionMemory:
    """The training captions (at most `size`, drawn by `seed`) with the mean code of their pictures."""
    used = np.unique(train.pairs[:, 1])
    if len(used) > size:
        used = np.sort(np.random.default_rng(seed).choice(used, size, replace=False))
    row_of = np.full(len(train.captions), -1)
    row_of[used] = np.arange(len(used))
    kept = train.pairs[row_of[train.pairs[:, 1]] >= 0]
    pictures = np.zeros((len(used), codes.shape[1]), np.float32)
    np.add.at(pictures, row_of[kept[:, 1]], codes[kept[:, 0]])
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True).clip(1e-12)
    rows_of_concept: dict[int, set[int]] = {}
    for picture, caption in kept:
        rows_of_concept.setdefault(int(train.concepts[picture]), set()).add(int(row_of[caption]))
    own: dict[str, set[int]] = {}
    for picture, caption in train.pairs:
        shared = rows_of_concept.get(int(train.concepts[picture]), set())
        own.setdefault(train.captions[caption], set()).update(shared)
    return CaptionMemory(
        [train.captions[caption] for caption in used],
        train.texts[used],
        pictures,
        {text: np.array(sorted(rows), np.int64) for text, rows in own.items()},
    )


def validation_answers(model: Model, validation: Side) -> dict[Readout, Answers]:
    """What the model finds for at most a thousand validation captions among the validation pictures, by read-out.

    The read-outs differ in the cosines: with rebuilt vectors, or in "vector" with the pictures' own.
    """
    tokenizer = model.tokenizer
    asked = _drawn_queries(validation, model.config.seed)
    vokens = tokenizer.encode(validation.images)
    trie = VokenTrie.from_vokens(vokens, tokenizer.codebook_size)
    leaf_of_image = trie.leaf_of(vokens)
    log_prob = np.full((len(asked), trie.sequences), -np.inf, np.float32)
    queries = np.zeros((len(asked), validation.images.shape[1]), np.float32)
    for start in range(0, len(asked), 64):
        texts = [validation.captions[row] for row in asked[start : start + 64]]
        state = model.generator.prefill(texts)
        queries[start : start + 64] = model.query_vectors(texts, state)
        found = beam_search_from_state(model.generator, state, trie, min(model.search.beams, trie.sequences))
        rows = np.arange(start, start + len(texts))[:, None]
        log_prob[rows, found.leaf] = found.log_prob
    relevant = np.zeros((len(asked), len(vokens)), bool)
    kept = validation.pairs[np.isin(validation.pairs[:, 1], asked)]
    relevant[np.searchsorted(asked, kept[:, 1]), kept[:, 0]] = True
    rebuilt = Answers(
        log_prob[:, leaf_of_image],
        queries @ tokenizer.decode(vokens).T,
        leaf_of_image,
        relevant,
        validation.concepts,
    )
    return {"generate": rebuilt, "voken": rebuilt, "vector": replace(rebuilt, cosine=queries @ validation.images.T)}


def choose_weights(search: SearchConfig, answers: dict[Readout, Answers]) -> tuple[SearchConfig, dict[str, Any]]:
    """Weights of the two reranks (docs/protocol.md), by validation recall; those already given are kept.

    Returns the search settings, and the recall of each weight tried.
    """
    if not len(answers["voken"].relevant):
        return _with_weights(search, 0.0, 0.0), {}
    said: dict[str, Any] = {}
    chosen: dict[str, float] = {}
    reranks: tuple[Readout, ...] = ("voken", "vector")
    for name in reranks:
        one = answers[name]
        recalls = [_mean_recall(one.log_prob + weight * one.cosine, one.relevant) for weight in _WEIGHTS]
        said[name] = dict(zip(map(str, _WEIGHTS), recalls, strict=True))
        chosen[f"{name}_weight"] = _WEIGHTS[int(np.argmax(recalls))]
    return _with_weights(search, **chosen), said


def with_calibration(
    search: SearchConfig, answers: dict[Readout, Answers], seed: int
) -> tuple[SearchConfig, dict[str, Any]]:
    """The same settings with the confidence of hits, for the weights that are chosen, and what to tell of it."""
    weights: dict[Readout, float] = {
        "generate": 0.0,
        "voken": search.voken_weight or 0.0,
        "vector": search.vector_weight or 0.0,
    }
    calibration, said = calibrate(answers, weights, beams=search.beams, seed=seed)
    return replace(search, calibration=calibration), said


def _with_weights(search: SearchConfig, voken_weight: float, vector_weight: float) -> SearchConfig:
    return replace(
        search,
        voken_weight=voken_weight if search.voken_weight is None else search.voken_weight,
        vector_weight=vector_weight if search.vector_weight is None else search.vector_weight,
    )


def _mean_recall(scores: Float[np.ndarray, "queries pool"], relevant: np.ndarray) -> float:
    """Mean of R@1, R@5 and R@10; a tie counts at its share of the places."""
    best = np.where(relevant, scores, -np.inf).max(1)
    above = (scores > best[:, None]).sum(1)
    tied = (scores == best[:, None]).sum(1)
    found = np.isfinite(best)
    return float(np.mean([np.where(found, np.clip((cut - above) / tied, 0, 1), 0).mean() for cut in (1, 5, 10)]))


def _sides(dataset: Dataset, seed: int) -> tuple[Dataset, Dataset, list[Skipped]]:
    captioned = [image for image in dataset.images if image.captions]
    if not captioned:
        raise EmptyDataError(
            f"{dataset.root}: no picture has a caption, so there is nothing to train on. Give captions in "
            "metadata.jsonl, or index the pictures with a model that is already trained."
        )
    names = {image.split for image in dataset.images}
    if "validation" not in names:
        seen = replace(dataset, images=tuple(image for image in dataset.images if image.split in ("", "train")))
        held_out = tuple(image for image in dataset.images if image.split == "test")
        drawn = split_by_concept(seen, seed=seed, fractions=(0.9, 0.1, 0.0))
        dataset = replace(dataset, images=(*drawn.images, *held_out))
    check_disjoint(dataset)
    return dataset.split("train"), one_per_concept(dataset.split("validation"), seed), list(dataset.skipped)


def _fit_encoder(
    train: Dataset,
    validation: Dataset,
    config: RunConfig,
    work: Path,
    cache: VectorCache,
    device: torch.device,
    progress: Progress,
) -> Prepared:
    if config.encoder.family != "builtin":
        encoder: Encoder = HubEncoder.from_pretrained(config.encoder.checkpoint, config.encoder.family, device=device)
        read = [
            _read(side, encoder.encode_images, encoder.fingerprint, cache, progress) for side in (train, validation)
        ]
        sides = [side_of(images, vectors, encoder.encode_texts) for images, vectors, _ in read]
        return Prepared(encoder, sides[0], sides[1], (*read[0][2], *read[1][2]))
    pictures, sentences = PictureFeatures(config.encoder.image_size, device=device), SentenceEncoder(device=device)
    read = [_read(side, pictures.encode, pictures.fingerprint, cache, progress) for side in (train, validation)]
    sides = [side_of(images, features, sentences.encode) for images, features, _ in read]
    folder = work / "encoder"
    if not artifact.is_artifact(folder):
        run = train_two_tower(
            _features(sides[0]),
            config.encoder,
            seed=config.seed,
            validation=_features(sides[1]) if len(sides[1].pairs) else None,
            device=device,
            progress=progress,
        )
        with artifact.writing(folder, kind="encoder", version=1) as partial:
            TwoTowerEncoder(run.head, pictures=pictures, sentences=sentences, device=device).save(partial)
    loaded = load_encoder(folder, device=str(device))
    assert isinstance(loaded, TwoTowerEncoder)
    sides = [
        replace(side, images=loaded.project_images(side.images), texts=loaded.project_texts(side.texts))
        for side in sides
    ]
    return Prepared(loaded, sides[0], sides[1], (*read[0][2], *read[1][2]))


def _read(
    dataset: Dataset, encode: Callable[..., Any], fingerprint: str, cache: VectorCache, progress: Progress
) -> tuple[list[CaptionedImage], Float[np.ndarray, "images dim"], list[Skipped]]:
    done = cache.encode_files([image.path for image in dataset.images], encode, fingerprint, progress=progress)
    if not len(done.kept):
        first = "; ".join(f"{item.path}: {item.reason}" for item in done.skipped[:3])
        raise EmptyDataError(f"{dataset.root}: none of {len(done.skipped)} pictures could be read ({first}).")
    return [dataset.images[row] for row in done.kept], done.vectors, done.skipped


def _features(side: Side) -> PairedFeatures:
    return PairedFeatures(side.images, side.texts, side.pairs, side.concepts.tolist())


def _fit_tokenizer(
    train: Side, validation: Side, config: RunConfig, work: Path, device: torch.device, progress: Progress
) -> tuple[ImageTokenizer, dict[str, Any]]:
    folder = work / "image_tokenizer"
    if not artifact.is_artifact(folder):
        tokenizer, history = train_tokenizer(
            train.paired(), validation.paired(), config.tokenizer, seed=config.seed, device=device, progress=progress
        )
        with artifact.writing(folder, kind="image tokenizer", version=1) as partial:
            tokenizer.save(partial)
            artifact.write_json(partial / "history.json", asdict(history))
    return ImageTokenizer.load(folder).to(device), artifact.read_json(folder / "history.json")


def _fit_generator(
    prepared: Prepared, tokenizer: ImageTokenizer, config: RunConfig, work: Path, progress: Progress
) -> tuple[Generator, dict[str, Any]]:
    settings, train = config.generator, prepared.train
    vokens = tokenizer.encode(train.images)
    rebuilt = tokenizer.decode(vokens)
    torch.manual_seed(config.seed)
    generator = make_generator(prepared, tokenizer, config)
    if isinstance(generator, torch.nn.Module):
        generator.to(prepared.device)

    def soft(vectors: Float[np.ndarray, "rows dim"]) -> SoftTargets:
        return SoftTargets(*tokenizer.soft_targets(vectors, temperature=settings.soft_temperature, keep=_SOFT_ENTRIES))

    pairs = VokenPairs(
        train.captions,
        vokens,
        train.concepts,
        train.pairs,
        soft=soft(train.images) if settings.targets == "soft" else None,
        text_soft=soft(train.texts) if settings.text_only_weight else None,
        text_vectors=train.texts if settings.distillation_weight else None,
        rebuilt_vectors=rebuilt if settings.distillation_weight else None,
    )
    history = train_generator(
        generator,
        pairs,
        validation_queries(prepared.validation, tokenizer.encode(prepared.validation.images), config.seed),
        settings,
        seed=config.seed,
        checkpoints=work / "generator",
        progress=progress,
    )
    if isinstance(generator, LiteGenerator):
        generator.end_training()
    return generator, asdict(history)


def make_generator(prepared: Prepared, tokenizer: ImageTokenizer, config: RunConfig) -> Generator:
    """An untrained generator of the family that the settings name, with the codebook copied in."""
    train = prepared.train
    settings, shared = config.generator, config.tokenizer.shared_codebook
    if settings.family == "t5":
        return T5StepModel.from_pretrained(
            _checkpoint(config),
            tokenizer.codebooks,
            shared=shared,
            copy_embeddings=settings.copy_voken_embeddings,
            seed=config.seed,
            max_query_tokens=settings.max_query_tokens,
            dropout=settings.dropout,
        )
    if settings.family == "llama":
        checkpoint = Path(_checkpoint(config))
        single = checkpoint.suffix == ".gguf"
        return LlamaStepModel.from_pretrained(
            str(checkpoint.parent if single else checkpoint),
            tokenizer.codebooks,
            shared=shared,
            copy_embeddings=settings.copy_voken_embeddings,
            seed=config.seed,
            max_query_tokens=settings.max_query_tokens,
            lora=Lora(rank=settings.lora_rank),
            gguf_file=checkpoint.name if single else None,
        )
    generator = LiteGenerator(text_reader(prepared.encoder), tokenizer.codebooks, settings)
    generator.begin_training(prepared.remembered(settings.max_query_tokens))
    if settings.memory_weight:
        with torch.inference_mode():
            summed = tokenizer.quantize(torch.from_numpy(train.images).to(tokenizer.books.device)).entries.sum(1)
        codes = summed.cpu().numpy()
        generator.memorize(caption_memory(train, codes, size=settings.memory_size, seed=config.seed))
    return generator


def validation_queries(validation: Side, vokens: Int[np.ndarray, "images M"], seed: int) -> ValidationQueries:
    """At most a thousand captions of the validation pictures, drawn by `seed`, as queries over those pictures."""
    asked = _drawn_queries(validation, seed)
    kept = validation.pairs[np.isin(validation.pairs[:, 1], asked)]
    relevant = np.stack([np.searchsorted(asked, kept[:, 1]), kept[:, 0]], 1)
    return ValidationQueries([validation.captions[row] for row in asked], vokens, relevant)


def _drawn_queries(validation: Side, seed: int) -> Int[np.ndarray, " captions"]:
    asked = np.unique(validation.pairs[:, 1])
    if len(asked) > _VALIDATION_QUERIES:
        asked = np.sort(np.random.default_rng(seed).choice(asked, _VALIDATION_QUERIES, replace=False))
    return asked


def _remembered(encoder: Encoder, train: Side, max_tokens: int) -> RememberedTexts | None:
    """Token states of all training captions, if they fit: the frozen reader then reads each text only once."""
    reader = text_reader(encoder)
    longest = max((len(caption.split()) for caption in train.captions), default=0)
    tokens = min(max_tokens, 2 * longest + 2)
    if len(train.captions) * tokens * reader.text_width * 2 > _REMEMBER_BYTES:
        return None
    return RememberedTexts(reader, train.captions, max_tokens=max_tokens)


def _checkpoint(config: RunConfig) -> str:
    if not config.generator.checkpoint:
        raise ConfigError(
            f"generator.family {config.generator.family} starts from a checkpoint: set generator.checkpoint to a "
            "hub name (such as t5-base) or to a folder."
        )
    return config.generator.checkpoint


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
