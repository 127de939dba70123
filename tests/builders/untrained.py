"""The built-in encoder without training, with class vectors that need no computing, and photographs of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from voken.encoders.zero_shot import ClassVectors, ZeroShotEncoder


def quick_encoder() -> ZeroShotEncoder:
    """The real networks. The classes' vectors are random: their texts take seconds to encode."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(1000, 384)).astype(np.float32)
    return ZeroShotEncoder(ClassVectors(vectors, random.normal(size=384).astype(np.float32) / 30))


def paint_noise(folder: Path, numbers: range) -> None:
    """Write small pictures that differ much; the same number gives the same picture."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        random = np.random.default_rng(number)
        tiles = random.integers(0, 256, (2 + number % 4, 3, 3), dtype=np.uint8)
        Image.fromarray(tiles).resize((48, 40), Image.Resampling.NEAREST).save(folder / f"{number:03}.png")
