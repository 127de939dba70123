"""The interface of encoders, which turn pictures and texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image

from voken.shapes import Float


class PictureEncoder(Protocol):
    """Turns pictures into vectors: the part of an `Encoder` that indexing needs."""

    @property
    def name(self) -> str:
        """A short name to show, such as in a table."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal, the key of caches. Two encoders share it if and only if they give the same vectors."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """One vector per picture. Pictures may have any size and mode."""
        ...


@runtime_checkable
class Encoder(PictureEncoder, Protocol):
    """Turns pictures and texts into vectors of one space, which are compared by inner product.

    Every row returned is float32 with L2 norm 1, on the CPU, and does not depend on the other rows of the call.
    """

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """One vector per text. A text that is too long for the encoder is cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` what `voken.model.model.load_encoder` reads. The folder is created if it is missing."""
        ...


@runtime_checkable
class PreparingEncoder(Protocol):
    """An encoder that first cuts every picture down to what it reads. Threads that decode pictures can do that."""

    @property
    def least_side(self) -> int:
        """A picture whose shorter side has this many pixels has every detail that is read."""
        ...

    def prepare(self, image: Image) -> Image:
        """The part of a picture that is read, in its final size. Call it once for a picture."""
        ...

    def encode_prepared(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """`encode_images` of pictures that `prepare` returned."""
        ...


@runtime_checkable
class TwoStepEncoder(Protocol):
    """An encoder with a small head over features that take nearly all the time to compute and do not depend on it."""

    def features_fingerprint(self) -> str:
        """The key of caches of features."""
        ...

    def features_of_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images features"]:
        """The features of pictures."""
        ...

    def project_images(self, features: Float[np.ndarray, "images features"]) -> Float[np.ndarray, "images dim"]:
        """The vectors of pictures by their features."""
        ...
