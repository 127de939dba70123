"""What all commands share: their common options, and how they print to a terminal."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from voken.errors import ConfigError

if TYPE_CHECKING:
    from voken.api import Skipped
    from voken.progress import Progress

ModelFolder = Annotated[Path, typer.Option("--model", "-m", help="Folder of a trained model.", show_default=False)]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that stores the vectors of pictures, so that none is encoded twice."),
]
ImagesFolder = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures, if a Karpathy .json is elsewhere.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Processor threads; 0: as many as there are cores.")]
Device = Annotated[str, typer.Option("--device", help="Where the networks run: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List every picture that was left out.")]
SplitName = Annotated[str, typer.Option("--split", help="Which part of the data set: train, validation or test.")]

_SKIPPED_SHOWN = 3


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE settings as a mapping. Raises `ConfigError`."""
    values = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, e.g. --set tokenizer.levels=6.")
        values[name.strip()] = value.strip()
    return values


def cache_folder(folder: Path | None) -> Path:
    """The folder of the vector cache; by default in the user's cache folder."""
    if folder is not None:
        return folder
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "voken" / "vectors"


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """One bar per kind of work on standard error while the block runs, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    # a search has no bars, and rich takes a tenth of a second to import
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def update_bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total or None)
            elif done < bars.tasks[bars.task_ids.index(tasks[what])].completed:
                bars.reset(tasks[what])
            bars.update(tasks[what], completed=done, total=total or None)

        yield update_bar


def as_dicts(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """Skipped pictures, ready for JSON."""
    return [asdict(picture) for picture in skipped]


def print_skipped(skipped: Sequence[Skipped], verbose: bool) -> None:
    """Print the pictures that were left out to standard error: the first few, or all."""
    if not skipped:
        return
    warn(f"{len(skipped):,} left out:")
    for picture in skipped if verbose else skipped[:_SKIPPED_SHOWN]:
        typer.echo(f"  {printable(picture.path)}: {printable(picture.reason)}", err=True)
    if not verbose and len(skipped) > _SKIPPED_SHOWN:
        typer.echo(f"  … and {len(skipped) - _SKIPPED_SHOWN:,} more (--verbose lists them)", err=True)


def warn(message: str) -> None:
    """Print a line in yellow to standard error."""
    typer.secho(message, fg=typer.colors.YELLOW, err=True)


def print_next(*words: object) -> None:
    """Print the command that usually comes next."""
    typer.echo(f"Next: {shlex.join(['voken', *map(str, words)])}")


def print_json(value: object) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(value, indent=2))


def duration(seconds: float) -> str:
    """Seconds as people write them."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def printable(text: str) -> str:
    """`text` without characters that would move the cursor or cannot be printed: file names may hold any."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def shown(path: Path | str) -> str:
    """A path as people write it: relative, if it is below the current folder."""
    absolute = Path(path).absolute()
    here = Path.cwd()
    return printable(str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute))
