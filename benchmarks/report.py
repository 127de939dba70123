"""Shared by all benchmarks: options, tables, and a report that names the machine and the command."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with --json, for `write_report`. Its --help shows the benchmark's docstring as it is written."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and the machine")
    return parser


def conditions() -> dict[str, Any]:
    """The machine, and the command that repeats this run."""
    from voken_lab.evaluation.machine import Machine  # here: some benchmarks measure what an import costs

    return {"machine": dataclasses.asdict(Machine.here()), "command": shlex.join(["python", *sys.argv])}


def write_report(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the conditions and `figures`, which may override them, as JSON; without a path write nothing."""
    from voken.artifact import write_json

    if path:
        write_json(path, conditions() | dict(figures))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A Markdown table; the columns after the first `text_columns` hold numbers and are aligned to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(heads) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def show_progress(label: str, count: int, total: int) -> None:
    """Show progress on one line if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r{label}: {count}/{total}   ", end="", file=sys.stderr, flush=True)
