"""Encoders that are used as they are, by the name that a user gives: "photos", or a CLIP or SigLIP checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from voken.config import EncoderConfig
from voken.encoders.checkpoints import UnconvertedError, fetched
from voken.encoders.interface import Encoder
from voken.encoders.prompts import check_prompt
from voken.errors import ConfigError
from voken.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch

BUILT_IN = "photos"


def encoder_settings(name: str, progress: Progress = no_progress) -> EncoderConfig:
    """The settings of an encoder: `photos` for the built-in one, else the hub name or the folder of a checkpoint.

    A checkpoint of the hub is fetched, if it is not in its cache. Raises `ConfigError` for a checkpoint that is neither
    CLIP nor SigLIP, `ArtifactError` if there is none.
    """
    if name == BUILT_IN:
        return EncoderConfig(family="photos")
    if "/" not in name and not Path(name).is_dir():
        raise ConfigError(
            f"--encoder {name}: there is no such encoder. Give photos, which is built in, auto, or the hub name or "
            "folder of a CLIP or SigLIP model, such as openai/clip-vit-base-patch32."
        )
    from voken.encoders.clip import Family, family_of

    families: dict[str, Family] = {"clip": "clip", "siglip": "siglip"}
    family = family_of(_source(name, progress))
    if family in families:
        return EncoderConfig(family=families[family], checkpoint=name)
    raise ConfigError(f"{name}: is a {family} model. Give a CLIP or SigLIP model, or photos.")


def frozen_encoder(
    settings: EncoderConfig, device: str | torch.device | None = None, *, source: str | None = None
) -> Encoder:
    """Load the encoder that `settings` describe. `source` is what transformers loads; None: the checkpoint's folder,
    into which it is fetched if it is a hub name.

    A prompt "auto" is left to the caller, who chooses it. Raises `ArtifactError` if the encoder cannot be loaded.
    """
    if settings.family == "photos":
        from voken.encoders.zero_shot import ZeroShotEncoder

        return ZeroShotEncoder(visual=settings.visual, device=device)
    if settings.family == "builtin":
        raise ConfigError("encoder.family builtin must be trained: voken fit does that.")
    from voken.encoders.clip import HubEncoder

    if source is None:
        source = _source(settings.checkpoint, no_progress)
    encoder = HubEncoder.from_pretrained(source, settings.family, device=device)
    encoder.name = settings.checkpoint
    if settings.prompt != "auto":
        encoder.prompt = check_prompt(settings.prompt)
    return encoder


def _source(checkpoint: str, progress: Progress) -> str:
    """What transformers loads for a checkpoint: its folder, into which it is fetched if it is a hub name."""
    if Path(checkpoint).is_dir():
        return checkpoint
    try:
        return str(fetched(checkpoint, progress))
    except UnconvertedError:  # transformers looks for converted weights beside the main branch
        return checkpoint
