"""One data set, one seed: what all systems share, so that only the systems differ.

The split, the pool and the queries; the encoder, trained once on the train side; every vector.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from voken.config import RunConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.images import open_image
from voken.encoders.cache import VectorCache, picture_vectors
from voken.progress import Progress, no_progress
from voken.shapes import Float
from voken.training.fit import prepare
from voken.training.sides import TrainingInputs, with_pool
from voken_lab.evaluation.protocol import Pool, Query, pool_of, queries_of
from voken_lab.reproduction.tracks import Track


def short_digest(made_from: str) -> str:
    """Ten characters for the name of what is kept, and found again where it was made from the same."""
    return hashlib.sha256(made_from.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Arena:
    """Nothing is computed before it is asked for; the encoder and the vectors are kept in `folder` and `cache`."""

    track: Track
    dataset: Dataset
    config: RunConfig
    """Settings of our system, which the encoder's are part of."""
    folder: Path
    cache: VectorCache
    progress: Progress = no_progress
    captioner: str = ""
    """BLIP weights that caption the pool in the transductive protocol; "": the nearest training captions do."""

    @classmethod
    def open(
        cls,
        track: Track,
        data: Path,
        out: Path,
        seed: int,
        *,
        images: Path | None = None,
        quick: bool = False,
        settings: Mapping[str, str] | None = None,
        cache: Path | None = None,
        progress: Progress = no_progress,
        captioner: str = "",
    ) -> Self:
        """The data set as the track splits it, kept where `voken reproduce` keeps it in its folder `out`.

        `settings` are dotted ones over the track's; `cache` is the folder of vectors. Raises `DataError` where `data`
        is not a data set.
        """
        return cls(
            track,
            track.read(data, images, seed, quick=quick),
            track.config(seed, quick=quick).override(dict(settings or {})),
            out / track.name / f"seed-{seed}{'-quick' if quick else ''}",
            VectorCache(cache or out / "vectors"),
            progress,
            captioner,
        )

    @property
    def seed(self) -> int:
        """Of the split, the pool and all training."""
        return self.config.seed

    @cached_property
    def fingerprint(self) -> str:
        """Of the data set; read from the disk once."""
        return self.dataset.fingerprint

    @cached_property
    def prepared(self) -> TrainingInputs:
        """Inductive: nothing of the pool is in it."""
        config = dataclasses.replace(self.config, protocol="inductive")
        made_from = json.dumps([dataclasses.asdict(config.encoder), self.fingerprint])
        work = self.folder / f"encoder-{short_digest(made_from)}.work"
        return prepare(self.dataset, config, work, cache=self.cache, progress=self.progress)

    @cached_property
    def transductive(self) -> TrainingInputs:
        """The same encoder; the train side also holds the pool's pictures, with captions made for them."""
        if not self.captioner:
            return with_pool(self.prepared, self.vectors)
        from voken_lab.systems.blip import BlipCaptioner

        pictures = [open_image(image.path) for image in self.images]
        captioner = BlipCaptioner.from_pretrained(self.captioner)
        made = captioner.caption(pictures, captions_each=5, seed=self.seed, progress=self.progress)
        return with_pool(self.prepared, self.vectors, made)

    def prepared_for(self, protocol: str) -> TrainingInputs:
        """By the name of a protocol."""
        return self.transductive if protocol == "transductive" else self.prepared

    @cached_property
    def _members(self) -> tuple[list[CaptionedImage], Float[np.ndarray, "pool dim"]]:
        test = self.dataset.split("test")
        one_each = self.track.test_concepts is not None
        drawn = set(pool_of(test, one_per_concept=one_each, seed=self.seed).image_ids)
        images = [image for image in test.images if image.image_id in drawn]
        read = picture_vectors(
            self.prepared.encoder, [image.path for image in images], cache=self.cache, progress=self.progress
        )
        return [images[row] for row in read.kept], read.vectors

    @property
    def images(self) -> list[CaptionedImage]:
        """The pool's pictures that can be read."""
        return self._members[0]

    @property
    def vectors(self) -> Float[np.ndarray, "pool dim"]:
        """Of the pool."""
        return self._members[1]

    @property
    def pool(self) -> Pool:
        """Without sequences: these are a system's own."""
        return Pool(tuple(image.image_id for image in self.images))

    @property
    def pool_in_words(self) -> str:
        """As `Conditions.pool` wants it."""
        words = "one picture per concept" if self.track.test_concepts is not None else "all pictures"
        return words if self.track.distinct else f"{words}, every caption a query"

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """At most as many as the track says."""
        found = queries_of(self.dataset.split("test"), self.pool, distinct=self.track.distinct)
        limit = self.track.queries
        if limit is None or len(found) <= limit:
            return found
        kept = np.random.default_rng(self.seed).choice(len(found), limit, replace=False)
        return tuple(found[row] for row in np.sort(kept))
