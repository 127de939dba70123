"""Text-to-image search by generation. Programs start with `from voken import Collection` (see `voken.api`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from voken.api import Collection, Hit, fit

__all__ = ["Collection", "Hit", "fit"]


def __getattr__(name: str) -> Any:
    # `voken --help` must not wait for the import of numpy
    if name in __all__:
        from voken import api

        return getattr(api, name)
    raise AttributeError(f"module 'voken' has no attribute {name!r}")
