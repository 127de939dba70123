"""For every test: no network, one thread, and the shapes written in signatures are checked."""

from __future__ import annotations

import os
import re

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported anywhere

from beartype import beartype
from jaxtyping import install_import_hook


def check_shapes(function):
    """The type checker of the import hook: beartype on the arrays of a signature; the rest is mypy's."""
    hints = function.__annotations__
    function.__annotations__ = {
        name: hint for name, hint in hints.items() if re.search(r"\[(Tensor|np\.ndarray),", str(hint))
    }
    return beartype(function)


install_import_hook(["voken", "voken_lab"], f"{__name__}.{check_shapes.__name__}")

import torch  # noqa: E402 - after the hook and the variable above

torch.set_num_threads(1)
