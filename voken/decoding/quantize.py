"""Residual quantization in numpy: what `voken.image_tokenizer.model.nearest_sequences` does in torch, for processes
without it. Of two sequences that are equally near to the last digit, they may choose differently.

    >>> codebooks = np.array([[[0.0], [10.0]], [[0.0], [1.0]]], dtype=np.float32)   # two levels, two entries
    >>> nearest_sequences(np.array([[11.0]], dtype=np.float32), codebooks, 1).tolist()   # 11 = 10 + 1
    [[1, 1]]
"""

from __future__ import annotations

import numpy as np

from voken.shapes import Float32, Int32

_FLOATS_PER_BLOCK = 1 << 21
"""8 MB of floats for the distances of a block, and as much for its residuals."""


def nearest_sequences(
    points: Float32[np.ndarray, "n e"], codebooks: Float32[np.ndarray, "M N e"], beams: int
) -> Int32[np.ndarray, "n M"]:
    """For each point, a sequence of entries whose sum is near to it, by beam search over the levels.

    Every level keeps the `beams` beginnings that leave the smallest residuals. At the last level, of equally near
    entries the first one is chosen. A point's sequence does not depend on the others.
    """
    levels, entries, width = codebooks.shape
    block = max(1, _FLOATS_PER_BLOCK // (beams * max(entries, width)))
    vokens = np.zeros((len(points), levels), dtype=np.int32)
    for start in range(0, len(points), block):
        vokens[start : start + block] = _block(points[start : start + block], codebooks, beams)
    return vokens


def _block(
    points: Float32[np.ndarray, "n e"], codebooks: Float32[np.ndarray, "M N e"], beams: int
) -> Int32[np.ndarray, "n M"]:
    rows = np.arange(len(points))[:, None]
    residuals = points[:, None]
    errors = np.zeros((len(points), 1), dtype=np.float32)  # ‖residual‖² − ‖point‖² of every beam
    vokens = np.zeros((len(points), 1, 0), dtype=np.int32)
    for level, codebook in enumerate(codebooks):
        entries = len(codebook)
        distances = np.einsum("ne,ne->n", codebook, codebook) - 2 * (residuals @ codebook.T)
        reached = (errors[..., None] + distances).reshape(len(points), -1)
        last = beams == 1 or level == len(codebooks) - 1
        kept = 1 if last else min(beams, reached.shape[1])
        chosen = reached.argmin(1)[:, None] if last else np.argpartition(reached, kept - 1, axis=1)[:, :kept]
        beam, entry = chosen // entries, chosen % entries
        errors = np.take_along_axis(reached, chosen, 1)
        residuals = residuals[rows, beam] - codebook[entry]
        vokens = np.concatenate([vokens[rows, beam], entry[..., None].astype(np.int32)], axis=2)
    return vokens[:, 0]
