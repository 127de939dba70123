"""The callback through which long-running work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(label, completed, total). The label says what is counted, such as "two-tower head: epochs"."""


def no_progress(label: str, completed: int, total: int) -> None:
    """Ignore all reports."""
