"""A picture that could not be used. It has a file of its own so that reading a list of them needs no picture reader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    path: str
    reason: str
