"""How much of their voken sequences every two pictures share: what the pairs of the paper's Figure 5 are found by."""

from __future__ import annotations

import numpy as np

from voken.shapes import Int


def shared_vokens(
    vokens: Int[np.ndarray, "pictures M"],
) -> tuple[Int[np.ndarray, "pictures pictures"], Int[np.ndarray, "pictures pictures"]]:
    """For every pair: at how many levels it has the same voken, and how many vokens both begin with.

    Holds some arrays of pictures × pictures: meant for some thousands.
    """
    size, levels = vokens.shape
    alike = np.zeros((size, size), dtype=np.int16)
    shared = np.zeros((size, size), dtype=np.int16)
    beginning = np.ones((size, size), dtype=bool)
    for level in range(levels):
        equal = vokens[:, level, None] == vokens[None, :, level]
        alike += equal
        beginning &= equal
        shared += beginning
    return alike, shared
