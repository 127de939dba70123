"""Which files of the package a command passes through, in the order in which they are first entered.

    python benchmarks/journeys.py --model MODEL --pictures FOLDER --captions DATASET

Three commands run in this process. A profiler records every call of a function of the package, except during imports.

query to hits              voken search
picture into a collection  voken index
captions to a model        voken fit

A file is entered twice if the call stack leaves it for another file and returns: A calls B, and B calls A.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import voken

PACKAGE = Path(voken.__file__).parent.parent


class Journey:
    """A profiler that records which of the package's files are entered."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.entered_twice: dict[str, list[str]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Record an event; the interpreter calls this for every call and return."""
        if event != "call" or _file(frame) is None:
            return
        stack: list[str] = []
        caller: FrameType | None = frame
        while caller is not None:
            if caller.f_code.co_name == "<module>" and _file(caller) is not None:
                return  # an import
            name = _file(caller)
            if name is not None and (not stack or stack[-1] != name):
                stack.append(name)
            caller = caller.f_back
        self.files.setdefault(stack[0])
        if stack[0] in stack[1:] and stack[0] not in self.entered_twice:
            self.entered_twice[stack[0]] = stack[stack.index(stack[0], 1) :: -1]


def _file(frame: FrameType) -> str | None:
    path = frame.f_code.co_filename
    if not path.startswith(str(PACKAGE)):
        return None
    name = Path(path).relative_to(PACKAGE).as_posix()
    return name if name.startswith("voken") else None


def trace(arguments: list[str]) -> Journey:
    """Run a command of the package and return its journey."""
    from voken.cli import app

    journey = Journey()
    threading.setprofile(journey)
    sys.setprofile(journey)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            app(arguments, standalone_mode=False)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return journey


def main() -> None:
    """Print the three journeys, as text or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a trained model with an engine")
    parser.add_argument("--pictures", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--captions", type=Path, required=True, help="a small data set with captions")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        collection, cache = f"{folder}/pictures.voken", f"{folder}/cache"
        index = ["index", str(options.pictures), "--model", str(options.model), "--out", collection, "--cache", cache]
        commands = {
            "picture into a collection": index,
            "query to hits": ["search", collection, "a dog on a beach"],
            "captions to a model": ["fit", str(options.captions), "--out", f"{folder}/model", "--cache", cache],
        }
        journeys = {name: trace(arguments) for name, arguments in commands.items()}
    if options.json:
        print(json.dumps({name: vars(journey) | {"files": list(journey.files)} for name, journey in journeys.items()}))
        return
    for name, journey in journeys.items():
        print(f"{name}: {len(journey.files)} files")
        for file in journey.files:
            again = journey.entered_twice.get(file)
            print(f"  {file}" + (f"    entered twice: {' > '.join(again)}" if again else ""))


if __name__ == "__main__":
    main()
