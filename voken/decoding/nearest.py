"""A step model that leads a beam search to the sequences near a point: finds similar pictures without text or network.

The "logit" of a voken is minus the amount by which its entry changes the squared distance between the point and the sum
of the entries so far. A beam's score is therefore minus that distance, up to a constant per query (Eqs. 1 to 3 in
reverse). It runs in numpy. As the distance is -2 <point, sum> + ‖sum‖² and a constant, the model is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voken.decoding.node_bias import NodeBias
from voken.shapes import Float32, Int64


@dataclass(frozen=True, eq=False)
class NearestSequences:
    """A `StepModel` whose queries are points in the codebooks' space, not texts."""

    codebooks: Float32[np.ndarray, "M N e"]
    answers_once: bool = False
    """See `LinearModel`."""
    log_probs = True
    """True, so that the search does not normalise the scores: they are distances."""
    reads_trees = False
    device = None

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        return int(self.codebooks.shape[1])

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return int(self.codebooks.shape[0])

    def prefill(self, texts: Any) -> Any:
        """The state of `step` for points (queries, e): the level, and the residual of each beam."""
        points: Float32[np.ndarray, "queries e"] = np.asarray(texts, dtype=np.float32)
        return 0, points[:, None, :]

    def step(
        self,
        state: Any,
        vokens: Int64[np.ndarray, "queries beams"] | None,
        parents: Int64[np.ndarray, "queries beams"] | None,
    ) -> tuple[Float32[np.ndarray, "queries beams N"], Any]:
        """See `StepModel`."""
        level, residuals = state
        if vokens is not None and parents is not None:
            residuals = np.take_along_axis(residuals, parents[:, :, None], 1) - self.codebooks[level - 1][vokens]
        book = self.codebooks[level]
        # ‖r‖² - ‖r - c‖² = 2 r·c - ‖c‖²
        gains = 2 * (residuals @ book.T) - np.einsum("ne,ne->n", book, book)
        return gains.astype(np.float32), (level + 1, residuals)

    @cached_property
    def node_bias(self) -> NodeBias:
        """Minus the squared length of the sum."""
        return NodeBias(1.0, self.codebooks)

    def level_logits(self, state: Any) -> Float32[np.ndarray, "queries M N"]:
        """See `LinearModel`; `state` is that of `prefill`."""
        _, points = state
        products: np.ndarray = 2 * (points @ self.codebooks.reshape(-1, self.codebooks.shape[2]).T)
        return products.reshape(-1, self.levels, self.codebook_size)

    def of_sequences(self, vokens: Int64[np.ndarray, "queries M"]) -> Float32[np.ndarray, "queries e"]:
        """The points that sequences represent: the sums of their entries."""
        entries = [book[vokens[:, level]] for level, book in enumerate(self.codebooks)]
        return np.asarray(np.sum(entries, axis=0), dtype=np.float32)
