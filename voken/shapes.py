"""The types in which signatures write the shapes of arrays, such as `Float[np.ndarray, "queries dim"]`.

Type checkers see jaxtyping's types. At run time these names are jaxtyping's only if something else has imported it, as
the tests do, which check shapes. Otherwise annotations are never evaluated, and a search does not wait for an import
that takes as long as numpy's.
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
