"""A model of a few numbers with the interfaces of a real one: colours as vectors, words as colours.

The generator's logits depend on the text and on the whole prefix, so that wrong beam ancestry would show.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from voken.config import ReadOutWeights, RunConfig, SearchConfig, TokenizerConfig
from voken.image_tokenizer.model import ImageTokenizer
from voken.model.calibration import Calibration

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "grey": (90, 90, 90),
}


def unit(rows):
    rows = np.asarray(rows, dtype=np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


class ColourEncoder:
    """A picture is its mean colour, a text the mean of the colours it names; both around grey."""

    name, fingerprint, dim = "colours", "c010", 3

    def encode_images(self, images):
        means = [np.asarray(image.convert("RGB"), dtype=np.float32).mean((0, 1)) - 100 for image in images]
        return unit(means)

    def encode_texts(self, texts):
        known = [[COLOURS[word] for word in text.split() if word in COLOURS] or [(110, 100, 100)] for text in texts]
        return unit([np.mean(colours, axis=0) - 100 for colours in known])

    def save(self, folder):
        raise NotImplementedError


class PrefixGenerator:
    """A step model: logits are a fixed random function of the text and the prefix."""

    device = torch.device("cpu")
    log_probs = reads_trees = False

    def __init__(self, codebook_size, levels):
        self.codebook_size, self.levels = codebook_size, levels

    def logits(self, text, prefix):
        seed = zlib.crc32(repr((text, tuple(prefix))).encode())
        return np.random.default_rng(seed).normal(size=self.codebook_size).astype(np.float32)

    def log_prob(self, text, sequence):
        total = 0.0
        for level, voken in enumerate(sequence):
            logits = self.logits(text, sequence[:level]).astype(np.float64)
            total += logits[voken] - np.log(np.exp(logits).sum())
        return total

    def prefill(self, texts):
        return [(text, [()]) for text in texts]

    def step(self, state, vokens, parents):
        grown = state
        if vokens is not None:
            grown = [
                (text, [(*beams[p], v) for v, p in zip(row, parent, strict=True)])
                for (text, beams), row, parent in zip(state, vokens.tolist(), parents.tolist(), strict=True)
            ]
        logits = np.stack([np.stack([self.logits(text, beam) for beam in beams]) for text, beams in grown])
        return torch.from_numpy(logits), grown


@dataclass(frozen=True)
class TinyModel:
    """What search and collections use of `voken.model.model.Model`."""

    encoder: ColourEncoder
    tokenizer: ImageTokenizer
    generator: PrefixGenerator
    search: SearchConfig = field(default_factory=lambda: SearchConfig(beams=4))
    weights: ReadOutWeights = field(default_factory=lambda: ReadOutWeights(2.0, 3.0))
    calibration: Calibration | None = None
    prior_captions: tuple[str, ...] = ()
    config: RunConfig = field(default_factory=RunConfig)
    fingerprint: str = "f1f2f3"

    @property
    def codebooks(self):
        return self.tokenizer.codebooks

    def query_vectors(self, texts, state=None):
        return self.encoder.encode_texts(texts)


def tiny_model(levels=2, entries=4, **others):
    torch.manual_seed(0)
    config = TokenizerConfig(codebook_size=entries, levels=levels, layers=(), code_dim=3)
    tokenizer = ImageTokenizer(3, config).eval()
    return TinyModel(ColourEncoder(), tokenizer, PrefixGenerator(entries, levels), **others)


def paint(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def paint_many(folder, count, seed=0):
    """Pictures of random colours, two of each colour, named so that order and colour have nothing in common."""
    random = np.random.default_rng(seed)
    colours = [tuple(int(c) for c in random.integers(0, 256, 3)) for _ in range(count // 2)] * 2
    return [paint(folder / f"p{place:03d}.png", colour) for place, colour in enumerate(colours)]
