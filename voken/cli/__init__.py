"""The command line: parse, call, print. What is heavy is imported by the command that needs it."""

from voken.cli.app import app, main

__all__ = ["app", "main"]
