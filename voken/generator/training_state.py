"""An interrupted training run on disk: safetensors and JSON, complete or absent. No pickle.

It holds the weights, the optimizer's state and the place in the run. As every random choice of the trainer
is derived from (seed, stage, epoch, step), nothing else is needed to go on as if never stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voken import artifact
from voken.errors import ResumeError

_KIND, _VERSION = "training state", 1


def save_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    place: dict[str, Any],
) -> None:
    """Replace the state in `folder`. `place` is anything JSON can hold; `best` the weights to keep in the end."""
    with artifact.writing(folder, kind=_KIND, version=_VERSION, replace=True) as partial:
        save_file(_separate(trained_weights(model)), partial / "model.safetensors")
        save_file(_separate(best), partial / "best.safetensors")
        save_file(_flatten(optimizer.state_dict()["state"]), partial / "optimizer.safetensors")
        artifact.write_json(partial / "place.json", place)


def load_place(folder: Path) -> dict[str, Any] | None:
    """Where the interrupted run was; None if there is none."""
    if not artifact.is_artifact(folder):
        return None
    artifact.check(folder, kind=_KIND, version=_VERSION)
    return artifact.read_json(folder / "place.json")


def load_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Put the saved weights into `model`; return the best weights so far."""
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != trained_weights(model).keys():
        raise ResumeError(f"{folder}: was written for another model. Remove it to start again.")
    model.load_state_dict(weights, strict=False)
    return load_file(folder / "best.safetensors")


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved optimizer state into `optimizer`."""
    state = optimizer.state_dict()
    state["state"] = _unflatten(load_file(folder / "optimizer.safetensors"))
    optimizer.load_state_dict(state)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Buffers and the weights that training changes; a frozen base model is not copied into every state."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights stand under several names; safetensors refuses shared memory."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        separate[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
    return separate


def _flatten(state: dict[int, dict[str, Any]]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().clone()
        for number, values in state.items()
        for name, value in values.items()
    }


def _unflatten(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    return state
