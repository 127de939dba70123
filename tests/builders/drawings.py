"""Drawn shapes in plain colours, and settings that train on them in seconds."""

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
SHAPES = ("square", "stripe", "corner", "dot", "frame")
TINY_SETTINGS = [
    "encoder.image_size=32", "encoder.hidden=16", "encoder.dim=16", "encoder.epochs=2", "encoder.batch_size=16",
    "tokenizer.codebook_size=4", "tokenizer.levels=3", "generator.epochs=1", "generator.width=16",
    "generator.layers=1", "generator.heads=2", "generator.batch_size=16",
]  # fmt: skip


def draw(colour, shape):
    pixels = np.full((24, 24, 3), 255, np.uint8)
    where = {
        "square": np.s_[4:20, 4:20],
        "stripe": np.s_[9:15, :],
        "corner": np.s_[:12, :12],
        "dot": np.s_[10:14, 10:14],
        "frame": np.s_[:, 2:6],
    }
    pixels[where[shape]] = colour
    return Image.fromarray(pixels)
