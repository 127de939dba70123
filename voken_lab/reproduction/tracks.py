"""The data sets of the reproduction: how each is split, and its settings."""

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
    """A data set and its protocol. If `test_concepts` is None, the data set's own split is used, such as Karpathy's."""

    name: str
    preset: str
    settings: dict[str, str] = field(default_factory=dict)
    """Dotted settings that replace the preset's."""
    test_concepts: int | None = None
    validation_concepts: int = 200
    distance: int | None = 2
    """Test pictures whose dHash is within this many bits of a train picture's are dropped; None: all are used."""
    queries: int | None = 1000
    """The largest number of queries; the seed draws them if there are more. None: all."""
    distinct: bool = True
    """Whether equal captions are one query. False: every caption of every picture is one, as in published tables."""
    quick_settings: dict[str, str] = field(default_factory=dict)
    """Dotted settings of `--quick`."""

    def config(self, seed: int, *, quick: bool) -> RunConfig:
        """The settings of our system on this track."""
        quick_settings = self.quick_settings if quick else {}
        return preset(self.preset).override(self.settings | quick_settings | {"seed": str(seed)})

    def read(self, folder: Path, images: Path | None, seed: int, *, quick: bool) -> Dataset:
        """The data set as this seed splits it; with `quick` only a sixth of the concepts.

        Raises `DataError` if `folder` is not a data set.
        """
        dataset = read_dataset(folder, images)
        if self.test_concepts is None:
            return dataset
        test, validation = self.test_concepts, self.validation_concepts
        if quick:
            names = sorted(dataset.concepts)
            sixth = {names[row] for row in np.random.default_rng(seed).permutation(len(names))[: len(names) // 6]}
            pictures = tuple(image for image in dataset.images if image.concept in sixth)
            dataset = Dataset(dataset.name, dataset.root, pictures)
            test, validation = test // 6, validation // 6
        clean, _ = resplit_clean(
            dataset, seed=seed, test_concepts=test, validation_concepts=validation, distance=self.distance
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
    "emoji": Track("emoji", "default", test_concepts=400, quick_settings=_QUICK),
    "icons": Track("icons", "default", test_concepts=1000, validation_concepts=500, quick_settings=_QUICK),
    "flickr30k": Track("flickr30k", "default", _PHOTOGRAPHS, queries=None, distinct=False),
    "coco5k": Track("coco5k", "default", _PHOTOGRAPHS, queries=None, distinct=False),
}


def track(name: str) -> Track:
    """The track of that name. Raises `ConfigError` for an unknown name."""
    if name not in TRACKS:
        raise ConfigError(f"{name!r}: there is no such track. Choose from: {', '.join(TRACKS)}.")
    return TRACKS[name]
