"""The callbacks through which long-running work reports its progress, and training its epochs."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as progress(label, completed, total). The label says what is counted, such as "two-tower head: epochs"."""


def no_progress(label: str, completed: int, total: int) -> None:
    """Ignore all reports."""


EpochLog = Callable[[str, int, float, float | None], None]
"""Called as log(stage, epoch, loss, validation) at the end of each epoch of training, from epoch 1.

`loss` is the mean over the epoch; `validation` is the score by which the best epoch is chosen, None if there is none.
"""


def no_epoch_log(stage: str, epoch: int, loss: float, validation: float | None) -> None:
    """Ignore all epochs."""
