"""Other people's checkpoints: a hub name or a folder, and what to say when it cannot be opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voken.errors import ConfigError


@contextmanager
def opening(checkpoint: str | Path) -> Iterator[None]:
    """Turn whatever transformers raises for a checkpoint it cannot open into `ConfigError` naming the remedy."""
    try:
        yield
    except Exception as error:  # tokenizers raises the bare class for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "this folder" if Path(checkpoint).is_dir() else "neither a folder here nor a checkpoint the hub gave"
        raise ConfigError(
            f"{checkpoint}: {where} ({reason}). Pass a folder that holds config.json, model.safetensors and the "
            "tokenizer's files; without a network, copy one from a machine that has it."
        ) from error
