"""The data sets of the reproduction: how each is split, and the settings that fit it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from voken.config import RunConfig, preset
from voken.data.captions import Dataset, read_dataset
from voken.data.splits import resplit_clean
from voken.errors import ConfigError


@dataclass(frozen=True)
class Track:
    """A data set and its protocol. `test_concepts` None: the data set's own split is kept, as Karpathy's."""

    name: str
    preset: str
    settings: dict[str, str] = field(default_factory=dict)
    """Dotted settings over the preset's."""
    test_concepts: int | None = None
    validation_concepts: int = 200
    distance: int | None = 2
    """Test pictures with a train picture's dHash within so many bits are dropped; None: no picture is."""
    queries: int | None = 1000
    """Drawn by the seed where there are more; None: all are asked."""
    distinct: bool = True
    """False: every caption of every picture is a query, as published tables count."""
    smaller: dict[str, str] = field(default_factory=dict)
    """Settings of `--quick`."""

    def config(self, seed: int, *, quick: bool) -> RunConfig:
        """Settings of our system on this track."""
        smaller = self.smaller if quick else {}
        return preset(self.preset).override(self.settings | smaller | {"seed": str(seed)})

    def read(self, folder: Path, images: Path | None, seed: int, *, quick: bool) -> Dataset:
        """The data set as this seed splits it; `quick` keeps a sixth of the concepts.

        Raises `DataError` where `folder` is not a data set.
        """
        dataset = read_dataset(folder, images)
        if self.test_concepts is None:
            return dataset
        wanted, validation = self.test_concepts, self.validation_concepts
        if quick:
            names = sorted(dataset.concepts)
            kept = {names[row] for row in np.random.default_rng(seed).permutation(len(names))[: len(names) // 6]}
            pictures = tuple(image for image in dataset.images if image.concept in kept)
            dataset = Dataset(dataset.name, dataset.root, pictures)
            wanted, validation = wanted // 6, validation // 6
        clean, _ = resplit_clean(
            dataset, seed=seed, test_concepts=wanted, validation_concepts=validation, distance=self.distance
        )
        return clean


_QUICK = {
    "encoder.image_size": "64",
    "encoder.epochs": "10",
    "tokenizer.codebook_size": "256",
    "tokenizer.levels": "4",
    "search.beams": "50",
}
_PHOTOGRAPHS = {"encoder.family": "clip", "encoder.checkpoint": "openai/clip-vit-large-patch14-336"}

TRACKS: dict[str, Track] = {
    "emoji": Track("emoji", "default", test_concepts=400, smaller=_QUICK),
    "icons": Track("icons", "default", test_concepts=1000, validation_concepts=500, smaller=_QUICK),
    "flickr30k": Track("flickr30k", "default", _PHOTOGRAPHS, queries=None, distinct=False),
    "coco5k": Track("coco5k", "default", _PHOTOGRAPHS, queries=None, distinct=False),
}


def track(name: str) -> Track:
    """Raises `ConfigError` naming the tracks there are."""
    if name not in TRACKS:
        raise ConfigError(f"{name!r}: no such track. There are: {', '.join(TRACKS)}.")
    return TRACKS[name]
