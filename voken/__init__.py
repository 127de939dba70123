"""Text-to-image search by generation. Programs start with `from voken import Collection` (see `voken.api`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime would write files into the home folder and look up its maker's server. It reads this when it is loaded;
# processes that this one starts inherit it. `voken.inference.engine` covers a program that loaded it before voken
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from voken.api import Collection, Hit, fit

__all__ = ["Collection", "Hit", "fit"]


def __getattr__(name: str) -> Any:
    # `voken --help` must not wait for the import of numpy
    if name in __all__:
        from voken import api

        return getattr(api, name)
    raise AttributeError(f"module 'voken' has no attribute {name!r}")
