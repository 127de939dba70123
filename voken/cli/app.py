"""The command `voken` itself: what all commands share in reading their options and in telling what happened."""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from voken.cli.console import printable
from voken.errors import ConfigError, VokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voken.data.skipped import Skipped
    from voken.encoders.cache import VectorCache

_RESUMING = {"data", "fit", "index", "add", "demo", "reproduce"}
_SKIPPED_SHOWN = 3


class _Commands(TyperGroup):
    """Turns what voken raises on purpose, and Ctrl-C, into a line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """This package's commands, then those of the packages that add some."""
        return [*super().list_commands(ctx), *(name for group in _added_groups() for name in group.list_commands(ctx))]

    def get_command(self, ctx: Any, name: str) -> Any:
        """Other packages are looked for only when the command is not one of this package."""
        command = super().get_command(ctx, name)
        added = () if command is not None else _added_groups()
        return next((one for group in added if (one := group.get_command(ctx, name)) is not None), command)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 1 for a `VokenError`, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except VokenError as error:
            typer.secho(f"error: {printable(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            again = " The same command goes on from here." if ctx.invoked_subcommand in _RESUMING else ""
            typer.secho(f"stopped.{again}", fg=typer.colors.YELLOW, err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # whoever read us has what it wanted (`voken search … | head`); Python must not flush into nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


@cache
def _added_groups() -> list[Any]:
    """Commands of installed packages that declare a Typer application as an entry point of `voken.commands`."""
    from importlib.metadata import entry_points

    return [typer.main.get_group(found.load()) for found in entry_points(group="voken.commands")]


app = typer.Typer(
    name="voken",
    cls=_Commands,
    help="Text-to-image search by generation: pictures become short sequences of visual tokens (vokens), "
    "and a language model writes the sequences that answer a query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelFolder = Annotated[Path, typer.Option("--model", "-m", help="Folder of a trained model.", show_default=False)]
CacheFolder = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps vectors of pictures, so that none is encoded twice."),
]
ImagesFolder = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures, where a Karpathy .json lies elsewhere.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, help="Processor threads; 0: as many as there are cores.")]
Device = Annotated[str, typer.Option("--device", help="Where the networks run: cpu, cuda, cuda:1, mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List every picture that was left out.")]
SplitName = Annotated[str, typer.Option("--split", help="Which part of the data set: train, validation or test.")]


def main() -> None:
    """The entry point."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"voken {version('voken-search')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def assignments(settings: list[str]) -> dict[str, str]:
    """NAME=VALUE settings as a mapping. Raises `ConfigError`."""
    assignments = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, e.g. --set tokenizer.levels=6.")
        assignments[name.strip()] = value.strip()
    return assignments


def vector_cache(folder: Path | None) -> VectorCache:
    """The cache in a folder; by default in the user's own cache folder."""
    from voken.encoders.cache import VectorCache

    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(base) if base else Path.home() / ".cache") / "voken" / "vectors"
    return VectorCache(folder)


def use_threads(threads: int) -> None:
    """0: as many as torch takes by itself."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def skipped_of(one: dict[str, str]) -> Skipped:
    """From what was saved as JSON."""
    from voken.data.skipped import Skipped

    return Skipped(**one)


def as_dicts(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    """Ready for JSON."""
    return [asdict(one) for one in skipped]


def tell_skipped(skipped: Sequence[Skipped], verbose: bool) -> None:
    """What was left out, on standard error: the first few, or all."""
    if not skipped:
        return
    typer.secho(f"{len(skipped):,} left out:", fg=typer.colors.YELLOW, err=True)
    for one in skipped if verbose else skipped[:_SKIPPED_SHOWN]:
        typer.echo(f"  {printable(one.path)}: {printable(one.reason)}", err=True)
    if not verbose and len(skipped) > _SKIPPED_SHOWN:
        typer.echo(f"  … and {len(skipped) - _SKIPPED_SHOWN:,} more (--verbose lists them)", err=True)


def tell_next(*words: object) -> None:
    """The command that goes on from here."""
    typer.echo(f"Next: {shlex.join(['voken', *map(str, words)])}")


def duration(seconds: float) -> str:
    """As a person says it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def print_json(value: object) -> None:
    """One object, on standard output."""
    typer.echo(json.dumps(value, indent=2))
