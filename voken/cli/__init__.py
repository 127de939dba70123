"""The command line: parse, call, print. What is heavy is imported by the command that needs it."""

# each module registers its commands, in the order that `voken --help` lists them
from voken.cli import training, collections  # isort: skip
from voken.cli.app import app, main

__all__ = ["app", "collections", "main", "training"]
