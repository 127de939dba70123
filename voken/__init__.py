"""Text-to-image search by generation. `from voken import Collection` is where a program begins (`voken.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voken.api import Collection
    from voken.search.hit import Hit

__all__ = ["Collection", "Hit"]


def __getattr__(name: str) -> Any:
    # a command line that only parses must not pay for numpy
    if name == "Collection":
        from voken.api import Collection

        return Collection
    if name == "Hit":
        from voken.search.hit import Hit

        return Hit
    raise AttributeError(f"module 'voken' has no attribute {name!r}")
