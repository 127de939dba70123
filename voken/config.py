"""Every setting of a run, as frozen dataclasses. A model's folder holds all of them, as JSON.

The defaults of the classes are the paper's values, or the official code's if the paper is silent
(docs/explanation/method.md lists each). `preset("default")` is what won on validation, `preset("paper")` is the paper
as it stands, and `preset("demo")` is the default sized to train in minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from voken.errors import ConfigError

MAX_TEXT_CHARACTERS = 2_000
"""The longest caption or query that is read. The rest is cut off."""

ReadOutName = Literal["generate", "voken", "vector"]
"""How hits are ranked; see `voken.search.readouts`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder turns pictures and texts into vectors of one space.

    The family "builtin" is EfficientNet-Lite0 and MiniLM with a two-tower head, which is trained on the captioned
    pictures. All settings except `checkpoint`, `prompt` and `visual` apply to it. The families "clip" and "siglip" load
    a `checkpoint` through transformers and stay frozen. The family "photos" is built in, frozen and needs no captions:
    it knows photographs from the classes of ImageNet (see `voken.encoders.zero_shot`). Only `visual` applies to it.
    """

    family: Literal["builtin", "photos", "clip", "siglip"] = "builtin"
    checkpoint: str = ""
    """Hub name or folder, for clip and siglip."""
    prompt: str = "{}"
    """clip and siglip: the words around a query, as in "a photo of {}". "auto": those with the best recall on
    validation, of `voken.encoders.prompts.PROMPTS`."""
    visual: int = 0
    """photos: how many directions of each picture network's features a picture's vector has beside what the classes
    say. A search without a trained generator makes no use of them."""
    networks: tuple[Literal["lite0", "lite2"], ...] = ("lite0",)
    """The picture networks, EfficientNet-Lite0 and -Lite2. Each gets a pair of towers of its own."""
    image_size: int = 128
    """Side in pixels of the pictures that lite0 reads. lite2 reads them 260 / 224 times as large."""
    mirror: bool = False
    """Use the mean of the features of a picture and of its mirror image. It doubles the time to encode pictures."""
    crops: int = 0
    """Random crops of each training picture that the head is trained on too, beside the picture (and its mirror
    image)."""
    text_layers: bool = False
    """Give the head the mean state of every layer of MiniLM, not only of the last."""
    dim: int = 256
    """Width of the vectors of each network. The shared space has `dim` × networks dimensions."""
    hidden: int = 512
    """Width of the hidden layer of each tower."""
    dropout: float = 0.3
    epochs: int = 30
    """Largest number of epochs; see `patience`."""
    batch_size: int = 512
    """Pictures in a batch. Small sets have smaller ones, so that an epoch has three steps."""
    captions: int = 1
    """Captions of each picture in a batch."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    temperature: float = 0.05
    """The contrastive loss divides cosines by this."""
    learn_temperature: bool = False
    """Train the temperature with the head; `temperature` is then its initial value."""
    noise: float = 0.0
    """Standard deviation of the noise that training adds to the head's standardised inputs."""
    warmup: float = 0.1
    """Share of the steps during which the learning rate rises."""
    averaging: float = 0.0
    """Decay of the running mean of the head's weights that is validated and saved; 0: no mean is taken."""
    patience: int = 4
    """Epochs without a better validation recall before training stops."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Stage 1, the image tokenizer (section 3.1 of the paper)."""

    codebook_size: int = 1024
    """N, the number of entries in a codebook. 0: by the size of the set, the largest power of two with at least 16
    training pictures per entry, between 16 and 1,024."""
    levels: int = 4
    """M, the number of vokens per picture. 0: as many as fit in 8 bytes, at most 8."""
    shared_codebook: bool = True
    """One codebook for all levels, as in the paper, or one per level."""
    layers: tuple[int, ...] = (1024, 512)
    """Hidden widths of the MLP before the quantizer; its mirror image follows the quantizer. If empty, there is no MLP:
    r_1 = v_i, as in Eq. 2."""
    code_dim: int = 768
    """e, the width of a codebook entry. Without `layers` it is the encoder's width."""
    dropout: float = 0.25
    """Dropout in the MLPs."""
    initialisation: Literal["kmeans", "random"] = "kmeans"
    """How the codebooks start: from k-means over the residuals of the train set at each level, or at random."""
    update: Literal["gradient", "ema"] = "gradient"
    """How codebooks are trained: by gradient, or as moving averages of the vectors that chose each entry."""
    ema_decay: float = 0.99
    """Decay of the moving averages."""
    commitment: Literal["code", "paper"] = "code"
    """Eq. 4 as written ("paper") has no gradient if the encoder is frozen; "code" pulls both ways at each level."""
    commitment_weight: float = 1.0
    alignment: Literal["mse", "infonce", "none"] = "mse"
    """Loss between rebuilt vectors and caption vectors (Eq. 5 is "mse")."""
    alignment_weight: float = 1.0
    alignment_temperature: float = 0.01
    """Temperature of "infonce"."""
    mixture: bool = False
    """Also train on normalised (image + caption) sums: k-means on one for every pair, and an epoch of gradients on one
    in place of every second picture. (Up to version 0.1.0 this was the share of such rows; a share is read as true.)"""
    encoding_beams: int = 1
    """Beams of the search for a picture's vokens. 1 takes the nearest entry at each level, as in Eq. 2; more find sums
    of entries that are nearer to the picture."""
    query_metric: float = 0.0
    """Without `layers`: how much the choice of vokens looks at the directions in which queries differ, more than at
    others; see `voken.image_tokenizer.train.query_metric`. 0: it keeps the vectors, ½: the scores of queries."""
    input_scale: Literal["unit", "rms"] = "unit"
    """With `layers`: the MLPs see vectors of length 1, or vectors times √dim, whose components have a mean square of 1.
    Only "rms" balances L_recon and L_align (Eqs. 3 and 5) with L_commit (Eq. 4)."""
    revive_unused: bool = True
    """Move entries that no picture chose during an epoch."""
    epochs: int = 100
    """Largest number of epochs; see `patience`. With 0 the codebooks stay as they were initialised."""
    batch_size: int = 2048
    """Largest number of pictures in a batch. A small set has smaller batches, so that an epoch has about 20 steps."""
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    patience: int = 10
    """Epochs without a better validation score before training stops."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Stage 2, the generator (section 3.2 of the paper)."""

    family: Literal["t5", "llama", "lite"] = "t5"
    checkpoint: str = ""
    """Hub name or folder for t5 and llama, or a .gguf file for llama."""
    max_query_tokens: int = 64
    """The number of tokens of a query that are read; the rest is cut off."""
    width: int = 256
    """lite: width of the decoder."""
    layers: int = 2
    """lite: layers of the decoder."""
    heads: int = 4
    """lite: attention heads; they divide `width`."""
    dropout: float = 0.2
    """lite and t5: dropout."""
    tune_encoder: bool = False
    """lite with the built-in encoder: also train a copy of the sentence encoder. Slow on a CPU."""
    query_vector: bool = False
    """lite: give the decoder the query's vector and its inner products with the codebook."""
    point_epochs: int = 0
    """lite with query_vector: largest number of epochs of L_dis over all training sequences at once, before L_gen. They
    train a perceptron that moves the query's vector."""
    point_width: int = 1024
    """Width of the perceptron's hidden layer."""
    point_learning_rate: float = 1e-3
    query_noise: float = 0.0
    """lite with query_vector: length of the noise that training adds to the query's vector, because the encoder fits
    training captions better than new queries."""
    memory_weight: float = 0.0
    """lite with query_vector: weight of the pictures of the nearest training captions; 0 stores no captions."""
    memory_temperature: float = 0.05
    """Temperature of the softmax over the captions' similarities to the query."""
    memory_size: int = 32768
    """Largest number of captions that are stored. They are drawn at random from the train split."""
    copy_voken_embeddings: bool = True
    """Start the voken rows of the vocabulary from the codebook (the paper) or at random (its ablation)."""
    lora_rank: int = 8
    """llama: rank of the adapters."""
    targets: Literal["one-hot", "soft"] = "one-hot"
    """Targets of L_gen: the picture's voken, or a distribution over near entries."""
    soft_temperature: float = 0.1
    """Soft targets are the softmax of minus the squared distance from the residual to each entry, divided by this."""
    logit_temperature: float = 0.5
    """L_gen divides logits by this, as the official code does."""
    discrimination: Literal["staged", "joint", "none"] = "joint"
    """L_dis is trained after L_gen (the official code), summed with it from the start (Eq. 10), or not at all."""
    generation_beside_discrimination: bool = False
    """If staged: keep L_gen beside L_dis, as in Eq. 10."""
    discrimination_weight: float = 1.0
    discrimination_epochs: int = 5
    """If staged: largest number of epochs of L_dis."""
    discrimination_learning_rate: float = 1e-4
    """If staged: learning rate of L_dis."""
    discrimination_beams: int = 10
    """Beams of the search that finds the candidate lists of L_dis."""
    distillation_weight: float = 0.0
    """Weight of the list-wise target from the encoder's similarities, in L_dis."""
    text_only_weight: float = 0.0
    """Weight of L_gen on captions alone; the targets are their softly quantized vectors."""
    epochs: int = 100
    """Largest number of epochs of L_gen; see `patience`. With 0 only a staged L_dis is trained."""
    batch_size: int = 128
    learning_rate: float = 1e-3
    """Learning rate of L_gen."""
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps during which the learning rate rises."""
    gradient_clip: float = 1.0
    """Largest norm of a gradient."""
    patience: int = 10
    """Epochs without a better validation recall before a stage stops."""
    autocast: bool = True
    """Compute in bf16 if the device can."""

    @property
    def moves_query_point(self) -> bool:
        """Whether a `lite` generator learns a correction of the query's vector."""
        return self.query_vector and self.point_epochs > 0


@dataclass(frozen=True)
class ReadOutWeights:
    """The weights that training chose on validation: of the cosine in the read-outs "voken" and "vector", and of the
    corrections of all scores (`voken.decoding.node_bias`). None if training did not choose one."""

    voken: float | None = None
    vector: float | None = None
    norm: float | None = None
    prior: float | None = None


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search. A model stores the weights and the calibration from its training separately."""

    beams: int = 20
    """b, the number of sequences that the beam search keeps at each level."""
    readout: ReadOutName = "generate"
    """Pictures are ranked by log-probability alone ("generate"), plus the cosine with the vector rebuilt from vokens
    ("voken") or with the stored vector ("vector"). Training ignores it and chooses weights for both cosines."""
    voken_weight: float | None = None
    """Weight of the cosine in "voken". None: the weight that training chose on validation."""
    vector_weight: float | None = None
    """The same for "vector"."""
    norm_weight: float | None = None
    """Every score loses this × the squared length of the vector that the vokens sum to, in log-probability per squared
    length. It only works without `tokenizer.layers`. None: what training chose on validation; 0 if it chose nothing."""
    prior_weight: float | None = None
    """Every score loses this × the sequence's log-probability without a query, the mean over training captions. None:
    what training chose on validation; 0 if it chose nothing."""
    precision: Literal["float32", "int8"] = "float32"
    """Precision of the weights in the saved engine (docs/reference/speed.md). Searches in torch ignore it."""

    def weights(self, chosen: ReadOutWeights) -> ReadOutWeights:
        """The weights in these settings, with those of `chosen` in place of None."""
        return ReadOutWeights(
            chosen.voken if self.voken_weight is None else self.voken_weight,
            chosen.vector if self.vector_weight is None else self.vector_weight,
            chosen.norm if self.norm_weight is None else self.norm_weight,
            chosen.prior if self.prior_weight is None else self.prior_weight,
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything that is needed to repeat a training run."""

    name: str = "paper"
    seed: int = 0
    protocol: Literal["inductive", "transductive"] = "inductive"
    """Transductive: both stages also train on the test pictures, with machine-written captions."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    search: SearchConfig = field(default_factory=SearchConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, ready for JSON. `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. An unknown setting raises `ConfigError` naming it."""
        return typing.cast(Self, from_dict(cls, values))

    def override(self, assignments: dict[str, str]) -> Self:
        """A copy with dotted settings replaced, e.g. {"tokenizer.levels": "6"}; values are parsed by their type.

        Raises `ConfigError` for an unknown setting and for a value of another type.
        """
        values = self.to_dict()
        for key, text in assignments.items():
            *parents, leaf = key.split(".")
            node: Any = values
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
                raise ConfigError(f"{key}: no such setting. `voken fit --show-config` lists them all.")
            node[leaf] = text if isinstance(node[leaf], str) else _parse(text)
        return type(self).from_dict(values)

    def check_used(self, keys: Iterable[str]) -> None:
        """Raise `ConfigError` if one of these settings ("generator.targets", …) has no effect on a training run."""
        for reason, part, names in _unused(self):
            for key in keys:
                if key in {f"{part}.{name}" for name in names.split()}:
                    raise ConfigError(f"{key} has no effect: {reason}.")


def _unused(run: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield settings that have no effect: the reason, the part of the run, and the names in it."""
    encoder, tokenizer, generator = run.encoder, run.tokenizer, run.generator
    yield "every search chooses its read-out, and training chooses weights for all", "search", "readout"
    if encoder.family == "builtin":
        yield "encoder.family is builtin", "encoder", "checkpoint prompt visual"
    else:
        fields = " ".join(field.name for field in dataclasses.fields(encoder))
        used = "family visual" if encoder.family == "photos" else "family checkpoint prompt"
        unused = " ".join(name for name in fields.split() if name not in used.split())
        yield f"encoder.family is {encoder.family}", "encoder", unused
    if not tokenizer.layers:
        yield "tokenizer.layers is empty", "tokenizer", "code_dim dropout input_scale"
    else:
        yield "tokenizer.layers is not empty", "tokenizer", "query_metric"
        yield "tokenizer.layers is not empty", "search", "norm_weight"
    if not tokenizer.epochs:
        yield (
            "tokenizer.epochs is 0",
            "tokenizer",
            "update ema_decay commitment commitment_weight alignment alignment_weight alignment_temperature "
            "revive_unused batch_size learning_rate weight_decay patience",
        )
    if tokenizer.update != "ema":
        yield f"tokenizer.update is {tokenizer.update}", "tokenizer", "ema_decay"
    if tokenizer.alignment == "none":
        yield "tokenizer.alignment is none", "tokenizer", "alignment_weight"
    if tokenizer.alignment != "infonce":
        yield f"tokenizer.alignment is {tokenizer.alignment}", "tokenizer", "alignment_temperature"
    memory = "memory_temperature memory_size"
    if generator.family == "lite":
        yield "generator.family is lite", "generator", "checkpoint lora_rank"
    else:
        point = "point_epochs point_width point_learning_rate query_noise"
        names = f"width layers heads tune_encoder query_vector {point} memory_weight {memory}"
        other = "lora_rank" if generator.family == "t5" else "dropout"
        yield f"generator.family is {generator.family}", "generator", f"{names} {other}"
    staged = generator.discrimination == "staged"
    if not generator.query_vector:
        yield (
            "generator.query_vector is false",
            "generator",
            f"point_epochs point_width point_learning_rate query_noise memory_weight {memory}",
        )
    elif not generator.point_epochs:
        yield "generator.point_epochs is 0", "generator", "point_width point_learning_rate"
    if not generator.memory_weight:
        yield "generator.memory_weight is 0", "generator", memory
    if not generator.epochs:
        beside = staged and generator.generation_beside_discrimination
        names = "" if beside else "targets soft_temperature logit_temperature text_only_weight "
        yield "generator.epochs is 0", "generator", names + "learning_rate"
    if generator.targets != "soft" and not generator.text_only_weight:
        yield f"generator.targets is {generator.targets}", "generator", "soft_temperature"
    both = "generation_beside_discrimination"
    lists = "discrimination_weight discrimination_beams distillation_weight"
    if not staged:
        reason = f"generator.discrimination is {generator.discrimination}"
        yield reason, "generator", f"discrimination_epochs discrimination_learning_rate {both}"
    if generator.discrimination == "none":
        yield "generator.discrimination is none", "generator", lists
    if staged and not generator.discrimination_epochs:
        yield "generator.discrimination_epochs is 0", "generator", f"{lists} discrimination_learning_rate {both}"
    if not generator.moves_query_point and not generator.epochs and not (staged and generator.discrimination_epochs):
        names = f"{lists} batch_size weight_decay warmup gradient_clip patience autocast"
        yield "the generator has no epochs", "generator", names


def preset(name: str) -> RunConfig:
    """A named set of settings. Raises `ConfigError` for an unknown name.

    "default"     what won on the validation splits of Flickr8k (docs/explanation/log.md)
    "frozen"      the paper's own setting on two cores: an encoder that never saw the set, and a generator trained on it
    "paper"       the paper as it stands, on T5-base: needs that checkpoint, and a GPU to be quick
    "paper-lite"  the paper's tokenizer, targets and losses with a `lite` generator, which two cores can train
    "demo"        the default, sized for the demo's few minutes
    """
    if name == "paper":
        return RunConfig(
            name,
            tokenizer=TokenizerConfig(input_scale="rms"),
            generator=GeneratorConfig(family="t5", checkpoint="t5-base"),
        )
    if name == "paper-lite":
        return RunConfig(
            name,
            tokenizer=TokenizerConfig(input_scale="rms"),
            generator=GeneratorConfig(family="lite", epochs=4, patience=2),
            search=SearchConfig(beams=100),
        )
    default = RunConfig(
        "default",
        encoder=EncoderConfig(
            networks=("lite0", "lite2"),
            image_size=224,
            mirror=True,
            crops=2,
            text_layers=True,
            epochs=45,
            batch_size=2048,
            captions=2,
            patience=10,
        ),
        tokenizer=TokenizerConfig(
            codebook_size=256,
            levels=8,
            shared_codebook=False,
            layers=(),
            alignment="none",
            mixture=True,
            query_metric=0.25,
            encoding_beams=8,
            epochs=0,
        ),
        generator=GeneratorConfig(
            family="lite",
            layers=0,
            dropout=0.3,
            query_vector=True,
            query_noise=1.0,
            memory_weight=0.8,
            targets="soft",
            logit_temperature=1.0,
            epochs=0,
            learning_rate=3e-4,
            batch_size=256,
            discrimination="none",
        ),
        search=SearchConfig(beams=100),
    )
    if name == "default":
        return default
    if name == "demo":
        tokenizer = dataclasses.replace(default.tokenizer, levels=4)
        return dataclasses.replace(default, name="demo", encoder=EncoderConfig(), tokenizer=tokenizer)
    if name == "frozen":
        return dataclasses.replace(
            default,
            name="frozen",
            encoder=EncoderConfig(family="photos", visual=256),
            tokenizer=dataclasses.replace(default.tokenizer, levels=16, query_metric=0.5),
            generator=dataclasses.replace(
                default.generator, dropout=0.4, query_noise=0.3, memory_weight=0.0, point_epochs=6
            ),
        )
    raise ConfigError(f"{name!r}: no such preset. There are: default, frozen, paper, paper-lite, demo.")


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def user_cache(name: str) -> Path:
    """The folder for one kind of cached file: `voken/NAME` in the user's cache ($XDG_CACHE_HOME, else ~/.cache)."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "voken" / name


def from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    """Build the frozen dataclass `cls` from nested dictionaries, checking names and types."""
    if cls is TokenizerConfig:
        values = _tokenizer_values(values)
    hints = typing.get_type_hints(cls)
    unknown = values.keys() - hints.keys()
    if unknown:
        raise ConfigError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}.")
    return cls(**{name: _convert(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()})


def _tokenizer_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they are named now: up to version 0.1.0, `mixture` was a share."""
    mixture = values.get("mixture")
    if isinstance(mixture, int | float) and not isinstance(mixture, bool) and 0 <= mixture <= 1:
        return values | {"mixture": mixture > 0}
    return values


def _parse(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        return from_dict(hint, value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}. Use one of them.")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if type(None) in arguments:
        return None if value is None else _convert(arguments[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    kind = _KINDS.get(hint, f"a {getattr(origin or hint, '__name__', hint)}")
    raise ConfigError(f"{where}: {value!r} is not {kind}. `voken fit --show-config` shows every setting.")
