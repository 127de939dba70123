"""The options that several commands have, and functions that print to a terminal."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voken.config import user_cache
from voken.device import check_device
from voken.errors import ConfigError
from voken.json_text import json_text
from voken.progress import no_progress

if TYPE_CHECKING:
    from voken.api import Skipped
    from voken.progress import Progress

ModelFolder = Annotated[Path, typer.Option("--model", "-m", help="Folder of a trained model.", show_default=False)]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that stores picture vectors, so that no picture is encoded twice."),
]
ImagesFolder = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures, if a Karpathy .json is elsewhere.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Processor threads; 0: as many as there are cores.")]
Device = Annotated[
    str, typer.Option("--device", callback=check_device, help="Where the networks run: cpu, cuda, cuda:1, mps.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List every picture that was left out.")]
SplitName = Annotated[str, typer.Option("--split", help="Which part of the data set: train, validation or test.")]

_KINDS_SHOWN = 5


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """Settings in the form NAME=VALUE as a mapping. Raises `ConfigError`."""
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: write NAME=VALUE, e.g. --set tokenizer.levels=6.")
        values[name.strip()] = value.strip()
    return values


def cache_folder(folder: Path | None) -> Path:
    """`folder`, or by default the folder for vectors in the user's cache."""
    return user_cache("vectors") if folder is None else folder


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """One bar per kind of work on standard error while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield no_progress
        return
    # not at the top: rich takes a tenth of a second to import, and a search has no bars
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update_bar(label: str, completed: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total or None)
            elif completed < bars.tasks[bars.task_ids.index(tasks[label])].completed:
                bars.reset(tasks[label])
            bars.update(tasks[label], completed=completed, total=total or None)

        yield update_bar


def as_dicts(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """Skipped pictures as JSON objects."""
    return [asdict(picture) for picture in skipped]


def print_skipped(skipped: Sequence[Skipped], verbose: bool) -> None:
    """Print skipped pictures to standard error: all if `verbose`, else one for each of the commonest reasons."""
    if not skipped:
        return
    warn(f"{len(skipped):,} left out:")
    if verbose:
        for picture in skipped:
            typer.echo(f"  {printable(picture.path)}: {printable(picture.reason)}", err=True)
        return
    kinds = Counter(picture.reason for picture in skipped)
    first = {picture.reason: picture for picture in reversed(skipped)}
    for reason, count in kinds.most_common(_KINDS_SHOWN):
        path = printable(first[reason].path)
        typer.echo(f"  {path}{f' and {count - 1:,} more' if count > 1 else ''}: {printable(reason)}", err=True)
    if len(kinds) > _KINDS_SHOWN or max(kinds.values()) > 1:
        rest = sum(kinds.values()) - sum(count for _, count in kinds.most_common(_KINDS_SHOWN))
        more = f"… and {rest:,} for other reasons " if rest else ""
        typer.echo(f"  {more}(--verbose lists all)", err=True)


def warn(message: str) -> None:
    """Print a line to standard error, in yellow."""
    typer.secho(printable(message), fg=typer.colors.YELLOW, err=True)


def print_next(*words: object) -> None:
    """Print the command that usually comes next."""
    typer.echo(printable(f"Next: {shlex.join(['voken', *map(str, words)])}"))


def print_json(value: object) -> None:
    """Print one JSON object."""
    typer.echo(json_text(value, indent=2))


def duration(seconds: float) -> str:
    """Seconds as text, in minutes from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def printable(text: str) -> str:
    """`text` with unprintable characters replaced: file names may hold characters that move the cursor."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def display_path(path: Path | str) -> str:
    """A path to print: relative if it is in the current folder, else absolute."""
    absolute = Path(path).absolute()
    here = Path.cwd()
    return printable(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))
