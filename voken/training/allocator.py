"""Keep freed memory for the next tensor, where the C library is glibc.

By default glibc hands large freed blocks back to the kernel, and every new large tensor pays for fresh pages.
On a CPU a training step that makes the same large tensors again and again pays for that each time: a tenth to a
quarter of a T5 step by `benchmarks/training_step.py`, nothing that shows in the small steps of `lite`. Nothing happens
on other C libraries.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to return memory to the kernel for the rest of this process. True where it took it."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
