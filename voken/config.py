"""Every setting of a run, as frozen dataclasses. A run's folder holds all of them, as JSON.

The defaults of the classes are the paper's values; where the paper is silent, the official code's
(docs/method.md lists each). `preset("default")` is what won on validation, `preset("paper")` is the
paper as it stands, `preset("demo")` is the default sized to train in minutes on two cores.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from voken.errors import ConfigError

MAX_TEXT_CHARACTERS = 2_000
"""Of a caption or a query. The rest is not read."""

ReadOutName = Literal["generate", "voken", "vector"]
"""How hits are ranked; see `voken.search.readouts`."""


@dataclass(frozen=True)
class EncoderConfig:
    """Which encoder turns pictures and texts into vectors of one space.

    `family` "builtin" is EfficientNet-Lite0 + MiniLM with a two-tower head trained on the pairs at hand;
    "clip" and "siglip" load `checkpoint` (a hub name or a folder) through transformers and stay frozen.
    """

    family: Literal["builtin", "clip", "siglip"] = "builtin"
    checkpoint: str = ""
    image_size: int = 128
    """Side in pixels of the built-in encoder's input; checkpoints bring their own."""
    dim: int = 256
    """Width of the shared space of the built-in pair."""
    hidden: int = 512
    dropout: float = 0.3
    epochs: int = 30
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    temperature: float = 0.05
    learn_temperature: bool = False
    noise: float = 0.0
    """Standard deviation of the noise added to the standardised inputs of the two-tower head while it trains."""
    warmup: float = 0.1
    averaging: float = 0.0
    """Decay of the running mean of the head's weights that is validated and kept; 0: the weights as they are."""
    patience: int = 4
    """Epochs without a better validation recall before the two-tower head stops training."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Stage 1, the image tokenizer (section 3.1 of the paper)."""

    codebook_size: int = 1024
    """N, entries of a codebook."""
    levels: int = 4
    """M, vokens of a picture."""
    shared_codebook: bool = True
    """One codebook for all levels (the paper), or one a level."""
    layers: tuple[int, ...] = (1024, 512)
    """Hidden widths of the MLP before the quantizer; its mirror follows. Empty: r_1 = v_i, as Eq. 2 is written."""
    code_dim: int = 768
    """e, width of a codebook entry; with no `layers` it is the encoder's own width."""
    dropout: float = 0.25
    initialisation: Literal["kmeans", "random"] = "kmeans"
    update: Literal["gradient", "ema"] = "gradient"
    ema_decay: float = 0.99
    commitment: Literal["code", "paper"] = "code"
    """Eq. 4 as written ("paper") has no gradient where the encoder is frozen; "code" pulls both ways per level."""
    commitment_weight: float = 1.0
    alignment: Literal["mse", "infonce", "none"] = "mse"
    alignment_weight: float = 1.0
    alignment_temperature: float = 0.01
    mixture: float = 0.0
    """Share of the training rows that are (image + caption) mixtures instead of image vectors."""
    revive_unused: bool = True
    """Re-seed entries that no picture chose for an epoch."""
    epochs: int = 100
    batch_size: int = 2048
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    patience: int = 10


@dataclass(frozen=True)
class GeneratorConfig:
    """Stage 2, the generator (section 3.2 of the paper)."""

    family: Literal["t5", "llama", "lite"] = "t5"
    checkpoint: str = ""
    """Hub name or folder for t5 and llama, or a .gguf file for llama; lite reads with the built-in sentence encoder."""
    max_query_tokens: int = 64
    width: int = 256
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    tune_encoder: bool = False
    """lite with the built-in encoder: train a copy of the sentence encoder too. Slow on a CPU."""
    query_vector: bool = False
    """lite only: give the decoder the query's own vector and its inner products with the codebook."""
    query_noise: float = 0.0
    """lite with query_vector: length of the noise added to it in training, where it is surer than for new queries."""
    memory_weight: float = 0.0
    """lite with query_vector: weight of what the nearest training captions stood beside; 0 keeps no captions."""
    memory_temperature: float = 0.05
    memory_size: int = 32768
    """Captions kept at most, drawn at random from those of the train split."""
    copy_voken_embeddings: bool = True
    """Start the voken rows of the vocabulary from the codebook (the paper) or at random (its ablation)."""
    lora_rank: int = 8
    """llama only."""
    targets: Literal["one-hot", "soft"] = "one-hot"
    soft_temperature: float = 0.1
    """Temperature of the soft targets: softmax of minus the squared distance of the residual to each entry."""
    logit_temperature: float = 0.5
    """Logits are divided by this in L_gen, as the official code does."""
    discrimination: Literal["staged", "joint", "none"] = "joint"
    """L_dis after L_gen has ended (official code), summed with it from the start (Eq. 10), or not at all."""
    discrimination_weight: float = 1.0
    discrimination_epochs: int = 5
    discrimination_learning_rate: float = 1e-4
    discrimination_beams: int = 10
    distillation_weight: float = 0.0
    """Weight of the list-wise target from the encoder's own similarities, in L_dis."""
    text_only_weight: float = 0.0
    """Weight of L_gen on captions alone, their own vectors quantized softly as targets."""
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    gradient_clip: float = 1.0
    patience: int = 10
    autocast: bool = True
    """bf16 autocast where the device has it."""


@dataclass(frozen=True)
class ReadOutWeights:
    """Weights of the cosine in the two read-outs that have one; None if not chosen."""

    voken: float | None = None
    vector: float | None = None


@dataclass(frozen=True)
class SearchConfig:
    """What a caller asks of a search. What training chose and calibrated stands beside it in the model."""

    beams: int = 20
    """b, sequences that the beam search keeps at each level."""
    readout: ReadOutName = "generate"
    """Log-probability alone; + cosine with the vector rebuilt from vokens; + cosine with a stored vector."""
    voken_weight: float | None = None
    """Weight of the cosine in "voken". None: the weight that training chose on validation."""
    vector_weight: float | None = None
    """The same for "vector"."""
    precision: Literal["float32", "int8"] = "float32"
    """Of the weights in the saved engine (docs/speed.md). A search in torch, as on a GPU, does not use it."""

    def weights(self, chosen: ReadOutWeights) -> ReadOutWeights:
        """The weights in these settings, and for those that they leave open the `chosen` ones."""
        return ReadOutWeights(
            chosen.voken if self.voken_weight is None else self.voken_weight,
            chosen.vector if self.vector_weight is None else self.vector_weight,
        )


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run needs to be repeated."""

    name: str = "paper"
    seed: int = 0
    protocol: Literal["inductive", "transductive"] = "inductive"
    """Transductive: both stages also train on the test pictures, with captions made for them (docs/protocol.md)."""
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
        """A copy with dotted settings replaced, e.g. {"tokenizer.levels": "6"}; values are parsed by their type."""
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


def preset(name: str) -> RunConfig:
    """A named set of settings. Raises `ConfigError` for an unknown name.

    "default"     what won on the validation splits of emoji and tagged icons (docs/log.md)
    "paper"       the paper as it stands, on T5-base: needs that checkpoint, and a GPU to be quick
    "paper-lite"  the paper's tokenizer, targets and losses on the `lite` family: what two cores can train
    "demo"        the default, sized for the demo's few minutes
    """
    if name == "paper":
        return RunConfig(name, generator=GeneratorConfig(family="t5", checkpoint="t5-base"))
    if name == "paper-lite":
        return RunConfig(
            name,
            generator=GeneratorConfig(family="lite", epochs=4, patience=2),
            search=SearchConfig(beams=100),
        )
    default = RunConfig(
        "default",
        tokenizer=TokenizerConfig(
            codebook_size=1024,
            levels=6,
            shared_codebook=False,
            layers=(),
            alignment="none",
            mixture=0.5,
            epochs=0,
        ),
        generator=GeneratorConfig(
            family="lite",
            layers=1,
            dropout=0.3,
            query_vector=True,
            query_noise=1.0,
            memory_weight=0.8,
            targets="soft",
            logit_temperature=1.0,
            epochs=0,
            learning_rate=3e-4,
            batch_size=256,
            discrimination="staged",
            discrimination_epochs=1,
        ),
        search=SearchConfig(beams=100),
    )
    if name == "default":
        return default
    if name == "demo":
        tokenizer = dataclasses.replace(default.tokenizer, codebook_size=256, levels=4)
        return dataclasses.replace(default, name="demo", tokenizer=tokenizer)
    raise ConfigError(f"{name!r}: no such preset. There are: default, paper, paper-lite, demo.")


def from_dict(cls: type[Any], values: dict[str, Any]) -> Any:
    """Build the frozen dataclass `cls` from nested dictionaries, checking names and types."""
    hints = typing.get_type_hints(cls)
    unknown = values.keys() - hints.keys()
    if unknown:
        raise ConfigError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}.")
    return cls(**{name: _convert(hints[name], value, f"{cls.__name__}.{name}") for name, value in values.items()})


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
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}.")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if type(None) in arguments:
        return None if value is None else _convert(arguments[0], value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {value!r} is not a {getattr(hint, '__name__', hint)}.")
