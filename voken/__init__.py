"""Text-to-image search by generation. `from voken import Collection` is where a program begins (`voken.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voken.api import Collection, Hit, fit

__all__ = ["Collection", "Hit", "fit"]


def __getattr__(name: str) -> Any:
    # a command line that only parses must not import numpy
    if name in __all__:
        from voken import api

        return getattr(api, name)
    raise AttributeError(f"module 'voken' has no attribute {name!r}")
