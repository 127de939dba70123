"""Encoders that are used as they are, by the name that a user gives: "photos", or a CLIP or SigLIP checkpoint."""

from __future__ import annotations

from pathlib import Path

from voken.config import EncoderConfig
from voken.encoders.interface import Encoder
from voken.errors import ConfigError

BUILT_IN = "photos"


def encoder_settings(name: str) -> EncoderConfig:
    """The settings of an encoder: `photos` for the built-in one, else the hub name or the folder of a checkpoint.

    Raises `ConfigError` for a checkpoint that is neither CLIP nor SigLIP, `ArtifactError` if there is none.
    """
    if name == BUILT_IN:
        return EncoderConfig(family="photos")
    if "/" not in name and not Path(name).is_dir():
        raise ConfigError(
            f"--encoder {name}: there is no such encoder. Give photos, which is built in, or the hub name or folder "
            "of a CLIP or SigLIP model, such as openai/clip-vit-base-patch32."
        )
    from voken.encoders.clip import Family, family_of

    families: dict[str, Family] = {"clip": "clip", "siglip": "siglip"}
    family = family_of(name)
    if family in families:
        return EncoderConfig(family=families[family], checkpoint=name)
    raise ConfigError(f"{name}: is a {family} model. Give a CLIP or SigLIP model, or photos.")


def frozen_encoder(settings: EncoderConfig, device: str | None = None) -> Encoder:
    """Load the encoder that `settings` describe. Raises `ArtifactError` if it cannot be loaded."""
    if settings.family == "photos":
        from voken.encoders.zero_shot import ZeroShotEncoder

        return ZeroShotEncoder(visual=settings.visual, device=device)
    if settings.family == "builtin":
        raise ConfigError("encoder.family builtin must be trained: voken fit does that.")
    from voken.encoders.clip import HubEncoder

    return HubEncoder.from_pretrained(settings.checkpoint, settings.family, device=device)
