"""The parts of training that all networks share: schedule, steps, patience, checkpoints, and the best weights.

This module does not know what is trained. The caller computes losses and validation scores:

    loop = TrainingLoop(model, optimizer, epochs=30, steps_per_epoch=len(batches), schedule="cosine", patience=4)
    for epoch in loop.epochs():
        for batch in batches:
            loop.step(loss_of(batch))
        loop.record_score(score_of(loop.evaluation_model))
    loop.restore_best()

A checkpoint consists of safetensors and JSON files, never pickles. It is complete or absent.
"""

from __future__ import annotations

import copy
import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voken import artifact
from voken.errors import ResumeError
from voken.shapes import Int

_KIND, _VERSION = "training state", 1
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1

Schedule = Literal["constant", "linear", "cosine"]


class TrainingLoop:
    """Epochs and steps of one network, early stopping, and the weights of the best epoch.

    Epochs are numbered from 0; -1 stands for the network before its first epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        epochs: int,
        steps_per_epoch: int,
        schedule: Schedule,
        patience: int | None,
        warmup: float = 0.0,
        gradient_clip: float | None = None,
        averaging: float = 0.0,
    ) -> None:
        """`patience` is how many epochs may pass without a better score before training stops; None never stops early.

        `averaging` is the decay of a running mean of the weights, which is evaluated and returned instead of the
        weights themselves; 0 uses the weights themselves.
        """
        self.model, self.optimizer = model, optimizer
        self.steps_per_epoch = steps_per_epoch
        self.steps_taken = 0
        self.best_epoch = -1
        self.best_score = -math.inf
        self.best_weights: dict[str, Tensor] = {}
        self._epochs, self._epoch = epochs, -1
        self._schedule: Schedule = schedule
        self._warmup, self._clip, self._patience = warmup, gradient_clip, patience
        self._mean = _RunningMean(model, averaging) if averaging else None

    @property
    def steps(self) -> int:
        """The number of steps in all epochs."""
        return self._epochs * self.steps_per_epoch

    @property
    def evaluation_model(self) -> nn.Module:
        """The network in evaluation mode, with the running mean of its weights if there is one."""
        return (self.model if self._mean is None else self._mean.model).eval()

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch until patience runs out, with the network in training mode.

        The first epoch is the one that `steps_taken` has reached.
        """
        for epoch in range(self.steps_taken // self.steps_per_epoch, self._epochs):
            if self._should_stop_early(epoch):
                return
            self._epoch = epoch
            self.model.train()
            yield epoch

    def step(self, loss: Tensor) -> float:
        """Update the weights once, and return the loss as a number."""
        factor = learning_rate_factor(self.steps_taken, self.steps, self._schedule, self._warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer.defaults["lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self._clip is not None:
            trained = (weight for weight in self.model.parameters() if weight.requires_grad)
            nn.utils.clip_grad_norm_(trained, self._clip)
        self.optimizer.step()
        if self._mean is not None:
            self._mean.update(self.model)
        self.steps_taken += 1
        return float(loss.detach())

    def record_score(self, score: float | None) -> bool:
        """Record the validation score of the last epoch, or of the untrained network before the first epoch.

        Returns True if its weights are the best so far. If there is no validation, `score` is None and the last epoch
        is the best.
        """
        if score is not None and not score > self.best_score:
            return False
        self.best_epoch, self.best_score = self._epoch, self.best_score if score is None else score
        weights = trained_weights(self.model if self._mean is None else self._mean.model)
        self.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        return True

    def restore_best(self) -> None:
        """Load the weights of the best epoch into the network, and put it in evaluation mode."""
        self.model.load_state_dict(self.best_weights, strict=False)
        self.model.eval()

    def _should_stop_early(self, epoch: int) -> bool:
        epochs_without_gain = epoch - 1 - self.best_epoch
        return self._patience is not None and 0 < epochs_without_gain >= self._patience


def autocast(device: torch.device, enabled: bool = True) -> AbstractContextManager[Any]:
    """Compute in bf16 where the device does so natively. Elsewhere on a CPU it would be slower than float32."""
    if not enabled or (device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def learning_rate_factor(step: int, steps: int, schedule: Schedule, warmup: float) -> float:
    """Factor of the learning rate at a step: it rises linearly over the first `warmup` share of steps, then falls to 0.

    It falls along a line or a cosine. The linear schedule rounds the warm-up down to a whole step, the cosine schedule
    rounds it to the nearest one; changing either would change trained weights.
    """
    if schedule == "constant":
        return 1.0
    rising = max(1, int(warmup * steps) if schedule == "linear" else round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    falling = max(1, steps - rising)
    if schedule == "linear":
        return max(0.0, (steps - step) / falling)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / falling))


def adamw(
    model: nn.Module, *, learning_rate: float, weight_decay: float, fused: bool | None = None
) -> torch.optim.Optimizer:
    """AdamW for the weights of a network that are not frozen. Matrices decay; biases, norms and scales do not."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    decayed, plain = [w for w in trained if w.ndim > 1], [w for w in trained if w.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


class CaptionsByImage:
    """The captions of every image that has any. Rows of `pairs` are (image, caption)."""

    def __init__(self, pairs: Int[np.ndarray, "pairs 2"]) -> None:
        ordered = pairs[np.argsort(pairs[:, 0], kind="stable")]
        self.images, self._first, self.counts = np.unique(ordered[:, 0], return_index=True, return_counts=True)
        self._captions = ordered[:, 1]

    def at(self, offsets: Int[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
        """For each image, its caption at that offset, which must be below the image's count."""
        captions: np.ndarray = self._captions[self._first + offsets]
        return captions


def one_caption_per_image(pairs: Int[np.ndarray, "pairs 2"], random: np.random.Generator) -> Int[np.ndarray, "rows 2"]:
    """One row (image, caption) per image, drawn at random and in random order."""
    shuffled = pairs[random.permutation(len(pairs))]
    _, first = np.unique(shuffled[:, 0], return_index=True)
    rows: np.ndarray = shuffled[first][random.permutation(len(first))]
    return rows


def save_checkpoint(folder: Path, loop: TrainingLoop, position: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder`. `position` says how far the run is, in values that JSON can hold."""
    with artifact.writing(folder, kind=_KIND, version=_VERSION, replace=True) as partial:
        save_file(_separate(trained_weights(loop.model)), partial / "model.safetensors")
        save_file(_separate(loop.best_weights), partial / "best.safetensors")
        state = loop.optimizer.state_dict()["state"]
        tensors = {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}
        save_file(
            {key: torch.as_tensor(value).detach().clone() for key, value in tensors.items()},
            partial / "optimizer.safetensors",
        )
        artifact.write_json(partial / "place.json", position)


def load_position(folder: Path) -> dict[str, Any] | None:
    """The position of the interrupted run, or None if there is no checkpoint."""
    if not artifact.is_artifact(folder):
        return None
    artifact.check(folder, kind=_KIND, version=_VERSION)
    return artifact.read_json(folder / "place.json")


def load_weights(folder: Path, model: nn.Module) -> dict[str, Tensor]:
    """Load the saved weights into `model`, and return the best weights so far."""
    weights = load_file(folder / "model.safetensors")
    if weights.keys() != trained_weights(model).keys():
        raise ResumeError(f"{folder}: is the checkpoint of another model. Remove the folder to start again.")
    model.load_state_dict(weights, strict=False)
    return load_file(folder / "best.safetensors")


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the saved optimizer state into `optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes, and all buffers. Frozen weights are left out, so checkpoints stay small."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def keep_freed_memory() -> bool:
    """Tell glibc not to return memory to the kernel for the rest of this process. Returns True if glibc accepts.

    By default glibc returns large freed blocks, and every new large tensor needs fresh pages. On a CPU these take
    a tenth to a quarter of a T5 step (`benchmarks/training_step.py`), and no measurable part of the small steps of
    `lite`. With other C libraries this function does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))


class _RunningMean:
    """An exponential running mean of a network's weights. Its decay is lower during the first updates."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self._updates += 1
        share = 1 - min(self._decay, self._updates / (self._updates + 10))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, share)


def _separate(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without shared memory, which safetensors refuses: tied weights are copied once per name."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in weights.items():
        shared = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        separate[name] = tensor.detach().clone() if shared else tensor.detach().contiguous()
    return separate
