"""Reports of pictures that could not be used. This module is separate so that it can be imported without Pillow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    path: str
    reason: str
