"""Weights of a torch module as numpy arrays, in the orientation that graphs multiply by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from voken.shapes import Float


def array(tensor: Tensor) -> Float[np.ndarray, "*shape"]:
    """A copy in float32."""
    copied: np.ndarray = tensor.detach().float().cpu().numpy()
    return copied


def matrix(module: Any) -> Float[np.ndarray, "width out"]:
    """What a linear layer multiplies rows by. Adapters (LoRA, through peft) are added in."""
    base = getattr(module, "base_layer", module)
    weight = base.weight.detach().float()
    if hasattr(module, "get_delta_weight"):
        with torch.no_grad():
            for name in module.active_adapters:
                weight = weight + module.get_delta_weight(name).float()
    return np.ascontiguousarray(array(weight).T)


def norm_of(module: Any) -> tuple[Float[np.ndarray, " width"], float]:
    """Scale and epsilon of an RMS norm, as transformers writes them."""
    return array(module.weight), float(module.variance_epsilon)
