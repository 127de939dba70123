"""The names that signatures write shapes with, such as `Float[np.ndarray, "queries dim"]`.

They are jaxtyping's for type checkers, and if jaxtyping has been imported already, as in the tests, which check shapes
at run time. Otherwise nothing reads them: annotations stay text, and a search does not wait for the import, which takes
as long as numpy's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Float16, Float32, Int, Int32, Int64, Integer, Shaped, UInt, UInt8, UInt32, UInt64
else:
    Bool = Float = Float16 = Float32 = Int = Int32 = Int64 = Integer = Shaped = UInt = UInt8 = UInt32 = UInt64 = None

__all__ = [
    "Bool",
    "Float",
    "Float16",
    "Float32",
    "Int",
    "Int32",
    "Int64",
    "Integer",
    "Shaped",
    "UInt",
    "UInt8",
    "UInt32",
    "UInt64",
]
