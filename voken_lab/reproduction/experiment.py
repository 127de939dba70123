"""One data set with one seed, and everything that the compared systems share.

They share the split, the pool, the queries, the encoder (trained once on the train side) and every vector, so that
only the systems differ.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from voken.config import RunConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.images import open_image
from voken.encoders.cache import VectorCache, picture_vectors
from voken.progress import Progress, no_progress
from voken.shapes import Float
from voken.training.fit import prepare
from voken.training.sides import TrainingInputs, with_pool
from voken_lab.evaluation.protocol import Pool, Query, draw_queries, pool_of, queries_of
from voken_lab.reproduction.tracks import Track


def short_digest(text: str) -> str:
    """Ten hexadecimal digits that end the name of a folder or file whose content `text` determines."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Experiment:
    """What the systems on one data set share with one seed; every part is computed when it is first used.

    The encoder is saved in `folder`, vectors in `cache`.
    """

    track: Track
    dataset: Dataset
    config: RunConfig
    """Settings of our system, the encoder's among them."""
    folder: Path
    cache: VectorCache
    progress: Progress = no_progress
    captioner: str = ""
    """BLIP weights that caption the pool in the transductive protocol; "": the nearest training captions are used."""
    checkpoints: str = ""
    """Folder of the backbones' weights, or "hub"."""
    quick: bool = False
    """Whether the baselines train for a few epochs only."""

    @property
    def seed(self) -> int:
        """The seed of the split, the pool and all training."""
        return self.config.seed

    @cached_property
    def fingerprint(self) -> str:
        """The data set's fingerprint."""
        return self.dataset.fingerprint

    @cached_property
    def inputs(self) -> TrainingInputs:
        """The training data of the inductive protocol: it holds nothing of the pool."""
        config = dataclasses.replace(self.config, protocol="inductive")
        inputs = json.dumps([dataclasses.asdict(config.encoder), self.fingerprint])
        work = self.folder / f"encoder-{short_digest(inputs)}.work"
        return prepare(self.dataset, config, work, cache=self.cache, progress=self.progress)

    @cached_property
    def transductive_inputs(self) -> TrainingInputs:
        """The same encoder; the train side also holds the pool's pictures, with captions generated for them."""
        captions = None
        if self.captioner:
            from voken_lab.systems.blip import BlipCaptioner

            pictures = [open_image(image.path) for image in self.pool_images]
            captioner = BlipCaptioner.from_pretrained(self.captioner)
            captions = captioner.caption(pictures, captions_each=5, seed=self.seed, progress=self.progress)
        return with_pool(self.inputs, self.pool_vectors, captions)

    def with_encoder(self, settings: Mapping[str, str]) -> Experiment:
        """The same data, pool and queries with another encoder. The same settings return the same experiment."""
        config = self.config.override(dict(settings))
        key = json.dumps(dataclasses.asdict(config.encoder))
        return self._with_other_encoders.setdefault(key, dataclasses.replace(self, config=config))

    @cached_property
    def _with_other_encoders(self) -> dict[str, Experiment]:
        return {}

    def inputs_for(self, protocol: str) -> TrainingInputs:
        """The training data of a protocol."""
        return self.transductive_inputs if protocol == "transductive" else self.inputs

    @cached_property
    def _readable_pool(self) -> tuple[list[CaptionedImage], Float[np.ndarray, "pool dim"]]:
        test = self.dataset.split("test")
        drawn = set(pool_of(test, one_per_concept=self.track.one_per_concept, seed=self.seed).image_ids)
        images = [image for image in test.images if image.image_id in drawn]
        encoded = picture_vectors(
            self.inputs.encoder, [image.path for image in images], cache=self.cache, progress=self.progress
        )
        return [images[row] for row in encoded.rows], encoded.vectors

    @property
    def pool_images(self) -> list[CaptionedImage]:
        """The pictures searched: those of the pool that can be read."""
        return self._readable_pool[0]

    @property
    def pool_dataset(self) -> Dataset:
        """The pool's pictures as a data set."""
        return Dataset(self.dataset.name, self.dataset.root, tuple(self.pool_images))

    @property
    def pool_vectors(self) -> Float[np.ndarray, "pool dim"]:
        """The encoder's vectors of the pool's pictures."""
        return self._readable_pool[1]

    @property
    def pool(self) -> Pool:
        """The pool without voken sequences, which differ from system to system."""
        return Pool(tuple(image.image_id for image in self.pool_images))

    @property
    def pool_in_words(self) -> str:
        """How the pool was drawn, in words, for `Conditions.pool`."""
        return self.track.pool_in_words

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """The queries, drawn by the seed if there are more than the track's limit."""
        queries = queries_of(self.dataset.split("test"), self.pool, distinct=self.track.distinct)
        return draw_queries(queries, self.track.queries, self.seed)
