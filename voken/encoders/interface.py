"""What voken asks of an encoder. It says nothing of how pictures and texts become vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image

from voken.shapes import Float


@runtime_checkable
class Encoder(Protocol):
    """Pictures and texts as vectors of one space, compared by inner product.

    Every row returned is float32 with L2 norm 1, on the CPU, and does not depend on what else was in the call.
    """

    @property
    def name(self) -> str:
        """A short name for people, e.g. for a table's row."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hexadecimal; equal for two encoders exactly when they give the same vectors. Keys caches."""
        ...

    @property
    def dim(self) -> int:
        """Width of a vector."""
        ...

    def encode_images(self, images: Sequence[Image]) -> Float[np.ndarray, "images dim"]:
        """One vector a picture. Pictures may have any size and mode."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """One vector a text. Longer texts than the encoder reads are cut."""
        ...

    def save(self, folder: Path) -> None:
        """Write into `folder` what `voken.model.model.load_encoder` reads. The folder is created if it is missing."""
        ...
