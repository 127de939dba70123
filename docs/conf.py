"""How Sphinx builds this site: `make docs`."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import typer
import typer.cli
from sphinx.application import Sphinx

from voken.cli import app as commands

project = "voken"
author = "voken developers"
copyright = "2026, voken developers"
release = version = importlib.metadata.version("voken-search")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = "voken"
html_static_path = ["_static"]
html_css_files = ["voken.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_copyright = False

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
copybutton_prompt_text = "$ "

# Docstrings are plain text in which `name` is code.
default_role = "literal"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
python_use_unqualified_type_names = True


def add_commands(app: Sphinx, page: str, source: list[str]) -> None:
    """Put every command, as Typer describes it, at the end of the page on commands."""
    if page == "reference/commands":
        command: Any = typer.main.get_command(commands)
        text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="voken")
        # without the summary, which shortens every description; the page's contents list the commands
        source[0] += text[text.index("## ") :].replace("Example: ", "**Example**:\n\n    ")


def mark_code(app: Sphinx, kind: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Say in reStructuredText that what a docstring indents is code. Do not repeat a module's docstring."""
    if kind == "module" and options.no_index:
        lines.clear()
    for number in range(len(lines) - 1, 1, -1):
        before = lines[number - 2]
        if lines[number].startswith("    ") and not lines[number - 1] and before and not before.startswith((" ", "- ")):
            lines[number - 1 : number - 1] = ["", "::"]


def hide_constructor(
    app: Sphinx, kind: str, name: str, value: Any, options: Any, signature: str | None, annotation: str | None
) -> tuple[str, str] | None:
    """Leave out the parameters of classes: their fields follow one by one, and objects come from other functions."""
    return ("", "") if kind == "class" and signature else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_commands)
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-process-signature", hide_constructor)
