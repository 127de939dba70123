"""What `voken fit` notes down about each epoch: a CSV file, always, and events for TensorBoard if it is installed.

    emoji.model.training.csv        stage,epoch,loss,validation,seconds
                                    two-tower head,1,5.87,0.213,12.4
    emoji.model.tensorboard/        the same, as two-tower head/loss and two-tower head/validation

A line is written at the end of its epoch, so that a run can be watched. An interrupted run that continues appends; an
epoch that is trained again stands there twice, and the later line counts.
"""

from __future__ import annotations

import csv
import time
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from voken.artifact import storage_errors
from voken.data.metadata import text_lines
from voken.errors import DataError

COLUMNS = ("stage", "epoch", "loss", "validation", "seconds")


@dataclass(frozen=True)
class LogEntry:
    """What an epoch reached."""

    stage: str
    epoch: int
    loss: float
    validation: float | None
    seconds: float
    """Since the command was started."""


def read_log(path: Path) -> list[LogEntry]:
    """The epochs in a log, the last line of each. Raises `DataError`, which names the line."""
    entries: dict[tuple[str, int], LogEntry] = {}
    lines = text_lines(path)
    if next(lines, (1, ""))[1].strip() != ",".join(COLUMNS):
        raise DataError(f"{path}, line 1: this is no log of voken fit. Name the .training.csv beside a model.")
    for number, line in lines:
        cells = next(csv.reader([line.strip()]), [])
        try:
            stage, epoch, loss, validation, seconds = cells
            entry = LogEntry(stage, int(epoch), float(loss), float(validation) if validation else None, float(seconds))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: this is no epoch of a log. Remove the line.") from error
        entries[stage, entry.epoch] = entry
    return list(entries.values())


class TrainingLog:
    """An `EpochLog` beside the folder of a model. Use it as a context; it closes its files."""

    def __init__(self, model: Path, *, continues: bool) -> None:
        """`continues` appends to the log of an interrupted run."""
        self.path = model.with_name(f"{model.name}.training.csv")
        self.events = model.with_name(f"{model.name}.tensorboard")
        self._start = time.monotonic()
        self._writer: Any = None
        if not continues:
            with storage_errors(self.path):
                self.path.unlink(missing_ok=True)

    def __call__(self, stage: str, epoch: int, loss: float, validation: float | None) -> None:
        """Add a line; see `voken.progress.EpochLog`. Raises `StorageError` if the disk refuses."""
        with storage_errors(self.path):
            is_new = not self.path.exists()
            with self.path.open("a", encoding="utf-8", newline="") as file:
                out = csv.writer(file, lineterminator="\n")
                if is_new:
                    out.writerow(COLUMNS)
                seconds = time.monotonic() - self._start
                out.writerow([stage, epoch, f"{loss:.6g}", _cell(validation), f"{seconds:.1f}"])
            self._add_event(stage, epoch, loss, validation)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add_event(self, stage: str, epoch: int, loss: float, validation: float | None) -> None:
        if find_spec("tensorboard") is None:
            return
        if self._writer is None:
            with warnings.catch_warnings():  # of other packages, about their own names
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(self.events)
        self._writer.add_scalar(f"{stage}/loss", loss, epoch)
        if validation is not None:
            self._writer.add_scalar(f"{stage}/validation", validation, epoch)
        self._writer.flush()


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
