"""The interface of encoders, which turn pictures and texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image

from voken.shapes import Float


@runtime_checkable
class Encoder(Protocol):
    """Turns pictures and texts into vectors of one space, which are compared by inner product.

    Every row returned is float32 with L2 norm 1, on the CPU, and does not depend on the other rows of the call.
    """

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

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """One vector per text. A text that is too long for the encoder is cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` what `voken.model.model.load_encoder` reads. The folder is created if it is missing."""
        ...
