import numpy as np

from voken.shapes import UInt, UInt8

def candidates(
    codes: tuple[UInt[np.ndarray, " leaves"], ...],
    tables: UInt8[np.ndarray, "queries places entries"],
    count: int,
    slack: int,
    width: int = ...,
) -> list[bytes]:
    """For each query: the leaves whose sum of entries is at most the `count`-th smallest sum plus `slack`.

    The leaves are ascending, int32. `codes` has an array of 8 or 16 bits for each place; a code is taken modulo the
    number of entries, which is a power of two. Entries are at most 127. `width` is the number of bytes in a vector of
    the kernel (1, 32 or 64); that of this processor is the default. Raises `ValueError` for anything else.
    """

def processor_width() -> int:
    """The bytes in a vector of the widest kernel that this processor has: 64 (AVX-512 VBMI), 32 (AVX2) or 1."""
