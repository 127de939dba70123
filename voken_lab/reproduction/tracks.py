"""The data sets of the reproduction: how each is split, and its settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from voken.config import RunConfig, preset
from voken.data.captions import SPLITS, Dataset, read_dataset
from voken.data.splits import drop_near_duplicates, resplit_clean
from voken.errors import ConfigError, DataError


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
    """Validation and test pictures whose dHash is within this many bits of a train picture's are dropped; None: all are
    used, as published figures on an official split count them."""
    queries: int | None = 1000
    """The largest number of queries; the seed draws them if there are more. None: all."""
    distinct: bool = True
    """Whether equal captions are one query. False: every caption of every picture is one, as in published tables. In
    both cases all pictures with that caption are right answers."""
    quick_settings: dict[str, str] = field(default_factory=dict)
    """Dotted settings of `--quick`."""

    def config(self, seed: int, *, quick: bool) -> RunConfig:
        """The settings of our system on this track."""
        quick_settings = self.quick_settings if quick else {}
        return preset(self.preset).override(self.settings | quick_settings | {"seed": str(seed)})

    @property
    def one_per_concept(self) -> bool:
        """Whether the pool has one picture of each concept; otherwise it has all test pictures."""
        return self.test_concepts is not None

    @property
    def pool_in_words(self) -> str:
        """How the pool is drawn, for `Conditions.pool`."""
        words = "one picture per concept" if self.one_per_concept else "all pictures"
        if self.test_concepts is None and self.distance is not None:
            words += " but near-duplicates of training pictures"
        return words if self.distinct else f"{words}, every caption a query"

    def read(self, folder: Path, images: Path | None, seed: int, *, quick: bool) -> Dataset:
        """The data set as this seed splits it; with `quick` only a sixth of the concepts.

        Dropped near-duplicates are listed in `Dataset.skipped`. Raises `DataError` if `folder` is not a data set, or
        has no test split although the track uses the data set's own.
        """
        dataset = read_dataset(folder, images)
        if self.test_concepts is None:
            return self._with_own_split(dataset, seed, quick=quick)
        test, validation = self.test_concepts, self.validation_concepts
        if quick:
            dataset = _sixth_of_concepts(dataset, seed)
            test, validation = test // 6, validation // 6
        clean, dropped = resplit_clean(
            dataset, seed=seed, test_concepts=test, validation_concepts=validation, distance=self.distance
        )
        return replace(clean, skipped=(*dataset.skipped, *dropped))

    def _with_own_split(self, dataset: Dataset, seed: int, *, quick: bool) -> Dataset:
        present = {image.split for image in dataset.images}
        for name in ("train", "test"):
            if name not in present:
                raise DataError(
                    f"{dataset.root}: no picture is in the split {name!r}, and the track {self.name} uses the data "
                    f"set's own split. Give each picture one of {', '.join(SPLITS)} in the field 'split'."
                )
        if quick:
            sides = [_sixth_of_concepts(dataset.split(name), seed).images for name in SPLITS if name in present]
            dataset = replace(dataset, images=tuple(image for side in sides for image in side))
        if self.distance is None:
            return dataset
        clean, dropped = drop_near_duplicates(dataset, distance=self.distance)
        return replace(clean, skipped=(*dataset.skipped, *dropped))


def _sixth_of_concepts(dataset: Dataset, seed: int) -> Dataset:
    """The pictures of a sixth of the concepts, at least one, drawn by `seed`."""
    names = sorted(dataset.concepts)
    count = max(1, len(names) // 6)
    drawn = {names[row] for row in np.random.default_rng(seed).permutation(len(names))[:count]}
    return replace(dataset, images=tuple(image for image in dataset.images if image.concept in drawn))


_QUICK = {
    "encoder.networks": '["lite0"]',
    "encoder.image_size": "64",
    "encoder.mirror": "false",
    "encoder.crops": "0",
    "encoder.epochs": "10",
    "tokenizer.codebook_size": "256",
    "tokenizer.levels": "4",
    "search.beams": "50",
}
_CLIP = {"encoder.family": "clip", "encoder.checkpoint": "openai/clip-vit-large-patch14-336"}

TRACKS: dict[str, Track] = {
    "emoji": Track("emoji", "default", test_concepts=400, quick_settings=_QUICK),
    "icons": Track("icons", "default", test_concepts=1000, validation_concepts=500, quick_settings=_QUICK),
    "flickr8k": Track(
        "flickr8k",
        "default",
        distance=None,
        queries=None,
        distinct=False,
        quick_settings=_QUICK,
    ),
    "rsicd": Track("rsicd", "default", queries=None, distinct=False, quick_settings=_QUICK),
    "flickr30k": Track("flickr30k", "default", _CLIP, distance=None, queries=None, distinct=False),
    "coco5k": Track("coco5k", "default", _CLIP, distance=None, queries=None, distinct=False),
}


def track(name: str) -> Track:
    """The track of that name. Raises `ConfigError` for an unknown name."""
    if name not in TRACKS:
        raise ConfigError(f"{name!r}: there is no such track. Choose from: {', '.join(TRACKS)}.")
    return TRACKS[name]
