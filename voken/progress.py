"""How long-running work reports its progress, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(label, done, total). The label says what is counted, such as "two-tower head: epochs"."""


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore all reports."""
