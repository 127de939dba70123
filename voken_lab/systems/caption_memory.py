"""Queries that a caption memory moves towards the pictures of similar training captions.

The memory is that of the `lite` generator (`voken.generator.lite`): here it serves systems without a generator, so that
they can be compared with ours on equal terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from voken.config import GeneratorConfig
from voken.decoding.interface import StepModel
from voken.generator.lite import CaptionMemory, LiteGenerator
from voken.metrics import first_relevant, mean_recall
from voken.shapes import Float
from voken.training.sides import Side, validation_queries
from voken_lab.systems.two_tower import TextEncoder, unit_rows

_SHARES = (0.0, 0.5, 1.0)
"""Shares of the configured weight that are tried, as for our generator."""


@dataclass(frozen=True)
class MemoryEncoder:
    """The encoder's vector of a text, plus `weight` × the unit mean of the remembered pictures of similar captions.

    The mean is weighted by a softmax over cosines between captions, divided by `temperature`. Vectors have length 1.
    """

    encoder: TextEncoder
    memory: CaptionMemory
    weight: float
    temperature: float

    @property
    def memory_bytes(self) -> int:
        """What the memory stores; 0 if it has no weight."""
        return self.memory.vectors.nbytes + self.memory.pictures.nbytes if self.weight else 0

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """One unit vector per text."""
        vectors = np.asarray(self.encoder.encode_texts(texts), dtype=np.float32)
        if not self.weight:
            return vectors
        similarity = vectors @ self.memory.vectors.T / np.float32(self.temperature)
        shares = np.exp(similarity - similarity.max(axis=1, keepdims=True))
        return unit_rows(vectors + np.float32(self.weight) * unit_rows(shares @ self.memory.pictures))


def memory_bytes_of(generator: StepModel) -> int:
    """What the caption memory of a generator stores; 0 if it has none."""
    if not (isinstance(generator, LiteGenerator) and generator.config.memory_weight):
        return 0
    return generator.memory_vectors.nbytes + generator.memory_pictures.nbytes


def choose_memory(
    encoder: TextEncoder,
    memory: CaptionMemory,
    config: GeneratorConfig,
    validation: Side,
    compared: Float[np.ndarray, "images dim"],
    *,
    seed: int,
) -> MemoryEncoder:
    """The encoder with a share of the configured weight (none, half or all), the one with the best validation recall.

    `compared` holds the vectors of the validation pictures as the system compares them with queries, for example
    rebuilt from codes. If equal, the smaller share.
    """
    queries = validation_queries(validation, np.zeros((len(compared), 1), np.int32), seed)
    relevant = np.zeros((len(queries.texts), len(compared)), bool)
    relevant[queries.relevant[:, 0], queries.relevant[:, 1]] = True

    def recall(weighted: MemoryEncoder) -> float:
        return mean_recall(first_relevant(weighted.encode_texts(queries.texts) @ compared.T, relevant))

    choices = [
        MemoryEncoder(encoder, memory, share * config.memory_weight, config.memory_temperature) for share in _SHARES
    ]
    return max(choices, key=recall) if queries.texts else choices[-1]
