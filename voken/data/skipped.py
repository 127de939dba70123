"""A picture that could not be used. In a file of its own, so that a list of them can be read without Pillow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skipped:
    """A picture that was left out, and why."""

    path: str
    reason: str
