"""How a picture becomes the pixels that a network of CLIP's kind reads. In Pillow and numpy, so it needs no torch.

It does what the image processor of a checkpoint does, as transformers does it with Pillow, but in two steps: `prepare`
cuts a picture down to the size that is read, which the threads that decode can do; `pixels` stacks many of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.errors import ConfigError
from voken.shapes import Float32, Shaped

if TYPE_CHECKING:
    from PIL.Image import Image

_BILINEAR = 2
_MOST_PIXELS = 1 << 13
"""No network reads pictures with a side of more pixels."""


@dataclass(frozen=True)
class PicturePreparation:
    """Resize, crop, and scale of values. Sizes are (height, width)."""

    resize: tuple[int, int] | None
    """The size that a picture is resized to, without regard to its proportions. None: it keeps them; see `edge`."""
    edge: int
    """Else its shorter side is resized to this; 0: it is not resized."""
    crop: tuple[int, int] | None
    """The part around its centre that is read. What a picture lacks is black."""
    resample: int
    """Pillow's number of the filter."""
    scale: tuple[float, ...]
    """Per channel, what values from 0 to 255 are multiplied by."""
    shift: tuple[float, ...]
    """Per channel, what is then added."""

    def __post_init__(self) -> None:
        sides = [side for size in (self.resize, self.crop) if size is not None for side in size]
        if not sides or not all(0 < side <= _MOST_PIXELS for side in (*sides, self.edge or 1)):
            raise ConfigError("The image processor does not give pictures of one size, which the network needs.")
        if self.resample not in range(6) or not len(self.scale) == len(self.shift) == 3:
            raise ConfigError("The image processor has a filter or colours that voken does not know.")

    @classmethod
    def of_processor(cls, settings: dict[str, Any]) -> Self:
        """What an image processor of CLIP or SigLIP does, by its `preprocessor_config.json`.

        Raises `ConfigError` if pictures would not all have the same size.
        """
        size = settings.get("size") if settings.get("do_resize", True) else None
        size = size if isinstance(size, dict) else {}
        if size.get("longest_edge"):
            raise ConfigError("The image processor limits the longer side of pictures, which voken does not know.")
        rescale = float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 1.0
        normalizes = settings.get("do_normalize", True)
        colours = (settings["image_mean"], settings["image_std"]) if normalizes else (0.0, 1.0)
        mean, std = (np.broadcast_to(np.asarray(values, dtype=np.float64), 3) for values in colours)
        return cls(
            resize=_sides(size),
            edge=int(size.get("shortest_edge") or 0),
            crop=_sides(settings.get("crop_size")) if settings.get("do_center_crop") else None,
            resample=int(settings.get("resample", _BILINEAR)),
            scale=tuple((rescale / std).tolist()),
            shift=tuple((-mean / std).tolist()),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `to_dict` gave. Raises `ConfigError`, `TypeError` or `KeyError` for anything else."""
        resize, crop = (None if values[name] is None else _pair(values[name]) for name in ("resize", "crop"))
        scale, shift = (tuple(float(value) for value in values[name]) for name in ("scale", "shift"))
        return cls(resize, int(values["edge"]), crop, int(values["resample"]), scale, shift)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a prepared picture."""
        size = self.crop or self.resize
        assert size is not None
        return size

    @property
    def least_side(self) -> int:
        """The shorter side that a picture must at least have, so that no detail is lost which would be read."""
        return self.edge or max(self.resize or self.size)

    def prepare(self, image: Image) -> Image:
        """The part of a picture that is read, in its final size. Call it once for a picture."""
        image = image.convert("RGB")
        width, height = image.size
        if self.resize is not None:
            image = image.resize(self.resize[::-1], self.resample)
        elif self.edge:
            longer = int(self.edge * max(width, height) / min(width, height))
            size = (self.edge, longer) if width <= height else (longer, self.edge)
            image = image.resize(size, self.resample)
        if self.crop is None or image.size == self.crop[::-1]:
            return image
        top, left = (image.height - self.crop[0]) // 2, (image.width - self.crop[1]) // 2
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def pixels(self, prepared: Sequence[Image]) -> Shaped[np.ndarray, "images height width 3"]:
        """Prepared pictures as bytes."""
        return np.stack([np.asarray(image, dtype=np.uint8) for image in prepared])

    def scaled(self, pixels: Shaped[np.ndarray, "images height width 3"]) -> Float32[np.ndarray, "images 3 h w"]:
        """The numbers that a network reads, channels first."""
        scale, shift = (np.array(values, dtype=np.float32) for values in (self.scale, self.shift))
        return np.ascontiguousarray((pixels * scale + shift).transpose(0, 3, 1, 2))


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    return (int(size["height"]), int(size["width"])) if isinstance(size, dict) and size.get("height") else None


def _pair(values: Any) -> tuple[int, int]:
    height, width = (int(value) for value in values)
    return height, width
