"""The curves of a training, drawn from the log that `voken fit` writes beside a model: one page, two charts a stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voken.errors import EmptyDataError
from voken.training.training_log import LogEntry, read_log
from voken_lab.pages.charts import Chart, Point, curve
from voken_lab.pages.page import duration, render


def curves_page(log: Path) -> str:
    """The HTML of the page. Raises `DataError` for a file that is no log, `EmptyDataError` for one without epochs."""
    entries = read_log(log)
    if not entries:
        raise EmptyDataError(f"{log}: no epoch was trained. A model of the default preset may need none.")
    stages = list(dict.fromkeys(entry.stage for entry in entries))
    best = {stage: _best([entry for entry in entries if entry.stage == stage]) for stage in stages}
    return render(
        "curves.html",
        title=f"Training of {log.name.removesuffix('.training.csv')}",
        lead="The loss of each epoch, and the validation score by which the best epoch is chosen.",
        facts=[
            (f"{len(entries):,}", "epochs"),
            (f"{len(stages)}", "stages"),
            (duration(max(entry.seconds for entry in entries)), "in all"),
        ],
        charts=[chart for stage in stages for chart in _charts(stage, entries)],
        rows=[((stage, entry.epoch, f"{entry.loss:.4g}", _score(entry)), "") for stage, entry in best.items()],
    )


def _charts(stage: str, entries: Sequence[LogEntry]) -> list[Chart]:
    own = [entry for entry in entries if entry.stage == stage]
    loss = [Point(entry.epoch, entry.loss) for entry in own]
    validation = [Point(entry.epoch, entry.validation) for entry in own if entry.validation is not None]
    drawn = (curve(f"{stage}: loss", "epoch", loss), curve(f"{stage}: validation", "epoch", validation))
    return [chart for chart in drawn if chart is not None]


def _best(entries: Sequence[LogEntry]) -> LogEntry:
    return max(entries, key=lambda entry: -1.0 if entry.validation is None else entry.validation)


def _score(entry: LogEntry) -> str:
    return "–" if entry.validation is None else f"{entry.validation:.4g}"
