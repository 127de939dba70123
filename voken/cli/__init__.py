"""The command line: parses arguments, calls `voken.api`, prints. Commands import heavy libraries when they run."""

from voken.cli.app import app, main

__all__ = ["app", "main"]
