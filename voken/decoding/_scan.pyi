import numpy as np

from voken.shapes import Float, Float32, UInt, UInt8

def best_leaves(
    codes: tuple[UInt[np.ndarray, " leaves"], ...],
    steps: UInt8[np.ndarray, "queries places entries"],
    numbers: Float[np.ndarray, "queries places entries"],
    scales: Float[np.ndarray, "queries 2"],
    bias: Float32[np.ndarray, " leaves"] | None,
    greatest_bias: float,
    count: int,
    width: int = ...,
    /,
) -> list[tuple[bytes, bytes]]:
    """For each query: the leaves with the `count` greatest scores, and those that are equal to the last in float32.

    The leaves are ascending, int32; the second part are their scores, float64. A score is the sum of the `numbers` of
    a leaf's codes and, if there is a `bias`, of that and `greatest_bias`. `codes` has an array of 8 or 16 bits for each
    place; a code is taken modulo the number of entries, which is a power of two. `steps` are lower bounds of how far
    the numbers of a place are below the greatest one; with a bias they have one place more, and so have the codes.
    `scales` are the greatest possible score and what a step stands for. `width` is the number of bytes in a
    vector of the kernel (1, 32 or 64); that of this processor is the default. Raises `ValueError` for other arrays.
    """

def processor_width() -> int:
    """The bytes in a vector of the widest kernel that this processor has: 64 (AVX-512 VBMI), 32 (AVX2) or 1."""
