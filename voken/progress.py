"""How long work tells how far it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total): `what` is a short label, done and total count its own unit."""


def no_progress(what: str, done: int, total: int) -> None:
    """Listen to nothing."""
