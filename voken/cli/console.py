"""What a terminal sees beside results: progress bars, and text that a stranger's file names cannot garble."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from voken.progress import Progress as Listener
from voken.progress import no_progress


@contextmanager
def progress_bars() -> Iterator[Listener]:
    """Bars on standard error while the block runs, one for each kind of work; none where it is no terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    # a search has no bars, and rich takes a tenth of a second to import
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def listen(what: str, done: int, total: int) -> None:
            known = what in tasks
            if not known:
                tasks[what] = bars.add_task(what, total=total or None)
            elif done < bars.tasks[bars.task_ids.index(tasks[what])].completed:
                bars.reset(tasks[what])
            bars.update(tasks[what], completed=done, total=total or None)

        yield listen


def printable(text: str) -> str:
    """`text` without characters that would move the cursor or could not be written."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shown(path: Path | str) -> str:
    """A path as a person reads it: from here, where it lies below the current folder."""
    absolute = Path(path).absolute()
    here = Path.cwd()
    return printable(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))
