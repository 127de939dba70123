"""Where networks run: the name of a device, checked before anything is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from voken.errors import ConfigError, MissingExtraError


def check_device(name: str) -> str:
    """`name` itself, if networks can run there. Loads torch only if it is not "cpu".

    Raises `ConfigError` if this machine, or its torch, has no such device, and `MissingExtraError` without torch.
    """
    if name == "cpu":
        return name
    if find_spec("torch") is None:
        raise MissingExtraError(f"torch, which a search on {name!r} needs,", "train")
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device {name!r}: there is no such kind of device. Use cpu, cuda, cuda:1 or mps.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ConfigError(
                f"device {name!r}: torch finds no GPU. Use cpu, or install a torch with CUDA and the GPU's driver."
            )
        if (device.index or 0) >= count:
            raise ConfigError(f"device {name!r}: this machine has {count} GPUs. Use cuda:0 to cuda:{count - 1}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r}: torch finds no Apple GPU. Use cpu.")
    return name
