"""Opens collections and models whose files were changed at random: each must be used, or refused with a named error.

    python tests/stress/fuzz_folders.py --mutations 10000 --seed 0

Each mutation changes one or two files of a small collection and its model: bytes, numbers, JSON values, values in the
database, lengths, kinds of files. Most are given the right checksums again, as somebody would who means harm. Then
everything is read as `info`, `search`, `doctor` and `serve` read it. What must not happen: an exception that is not a
`VokenError`, twenty seconds of work, no end at all (three minutes, as the machine may be busy), a gigabyte of memory,
or a change outside the folder. Numbers of mutations that failed are printed, and `--only` repeats one.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import shutil
import sqlite3
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

SECONDS, HANG_SECONDS = 20, 180
MEGABYTES = 1024
_LARGE_BYTES = 1 << 20
SEALED = ("collection/base-000001", "model")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 255, 65_536, 2**31, 2**63, 10**9, 10**30, 1.5, float("nan"), "", "a", "..", "/etc/passwd",
    "../../outside/victim", "\0", "\ud800", [], [[]], {}, {"a": 1}, "x" * 5_000,
)  # fmt: skip
TABLES = {
    "settings": ("value",),
    "added": ("id", "name", "vokens", "vector", "size", "modified", "taken", "hash", "metadata", "row"),
    "removed": ("row", "place"),
    "skipped": ("path", "reason", "size", "modified"),
}
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass(frozen=True)
class Failure:
    """A mutation after which something happened that must not."""

    mutation: int
    what: str


def mutate(folder: Path, chance: random.Random) -> dict[str, str]:
    """Change one or two files below `folder`. Returns how each was changed, by its path."""
    done = {}
    for _ in range(chance.choice((1, 1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        path = chance.choice(files)
        # the many small files of a model would take most of the mutations otherwise
        if chance.random() < 0.3:
            path = chance.choice([file for file in files if file.suffix in (".json", ".sqlite3")])
        kinds = [_bytes, _number, _cut, _swap, _kind]
        if path.suffix == ".json":
            kinds += [_json] * 8
        if path.suffix == ".sqlite3":
            kinds += [_sql] * 8
        how = chance.choice(kinds)
        _unlink_from_original(path)
        how(path, chance)
        done[path.relative_to(folder).as_posix()] = how.__name__.strip("_")
    if chance.random() < 0.8:
        for part in SEALED:
            _seal(folder / part)
    return done


def _link_or_copy(source: str, target: str) -> None:
    """Copy a file. One that is so large that copying takes most of the time is linked until it is changed."""
    if Path(source).stat().st_size < _LARGE_BYTES:
        shutil.copy2(source, target)
    else:
        os.link(source, target)


def _unlink_from_original(path: Path) -> None:
    if path.stat().st_nlink > 1:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


def _bytes(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 4, 64))):
        if content:
            content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def _number(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    form = chance.choice(("<H", "<I", ">H", ">I", "<Q"))
    size = struct.calcsize(form)
    if len(content) >= size:
        # headers are at the start
        at = chance.randrange(min(len(content) - size + 1, chance.choice((128, 1 << 30))))
        content[at : at + size] = struct.pack(form, chance.choice(NUMBERS) & ((1 << 8 * size) - 1))
    path.write_bytes(content)


def _cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    at = chance.randrange(len(content) + 1)
    path.write_bytes(chance.choice((content[:at], content + bytes(at), content[:at] + content, b"")))


def _swap(path: Path, chance: random.Random) -> None:
    others = [file for file in path.parent.iterdir() if file.is_file() and not file.is_symlink()]
    path.write_bytes(chance.choice(others).read_bytes())


def _kind(path: Path, chance: random.Random) -> None:
    path.unlink()
    kind = chance.choice(("nothing", "link", "outside", "pipe", "folder", "device"))
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "nothing":
        outside = path.parents[2] / "outside" / "victim"
        path.symlink_to({"link": path.parent, "outside": outside, "device": Path("/dev/zero")}[kind])


def _json(path: Path, chance: random.Random) -> None:
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return
    for _ in range(chance.choice((1, 1, 2))):
        here = value
        while isinstance(here, (dict, list)) and here:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = chance.choice(keys)
            below = here[key]
            if not isinstance(below, (dict, list)) or not below or chance.random() < 0.2:
                action = chance.randrange(4)
                if action == 0:
                    del here[key]
                elif action == 1 and isinstance(here, dict):
                    here[str(chance.choice(ODD))] = here.pop(key)
                elif action == 2 and type(below) is int:
                    here[key] = below + chance.choice((-1, 1, 10, 10**6))
                else:
                    here[key] = chance.choice(ODD)
                break
            here = below
    path.write_text(json.dumps(value))


def _sql(path: Path, chance: random.Random) -> None:
    table = chance.choice(list(TABLES))
    column = chance.choice(TABLES[table])
    value = chance.choice((*(odd for odd in ODD if not isinstance(odd, (list, dict))), b"", b"\xff" * 8, bytes(40)))
    try:
        with closing(sqlite3.connect(path)) as connection:
            names = [row[0] for row in connection.execute("SELECT name FROM settings ORDER BY name").fetchall()]
            if table == "settings":
                text = json.dumps(chance.choice(ODD)) if chance.random() < 0.8 else value
                connection.execute("UPDATE settings SET value = ? WHERE name = ?", (text, chance.choice(names)))
            else:
                connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
            connection.commit()
    except (sqlite3.Error, OverflowError, ValueError, IndexError):
        return


def _seal(folder: Path) -> None:
    """Write the checksums of a folder's files again, if its manifest still lists them."""
    path = folder / "manifest.json"
    if not path.is_file() or path.is_symlink():  # it may be a pipe now
        return
    try:
        manifest = json.loads(path.read_text())
        for name, entry in manifest["files"].items():
            file = folder / name
            if ".." not in name and file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1:
                content = file.read_bytes()
                entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        path.write_text(json.dumps(manifest))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return


def use(folder: Path) -> None:
    """Read a collection as every command does. Raises what they raise."""
    from voken import Collection
    from voken.api import info
    from voken.errors import VokenError

    collection = folder / "collection"
    errors: list[Exception] = []
    steps: tuple[Callable[[], object], ...] = (
        lambda: info(folder / "model"),
        lambda: Collection.doctor(collection),
        lambda: _search(collection, folder / "model"),
        lambda: Collection.open(collection, load=False).remove(["p3"]),
        lambda: Collection.open(collection, load=False).compact(),
    )
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    # one that has no name counts most
    for named in sorted(errors, key=lambda error: isinstance(error, VokenError)):
        raise named


def _search(collection: Path, model: Path) -> None:
    from voken import Collection

    with Collection.open(collection, model=model, threads=1) as opened:
        for readout in ("generate", "voken", "vector"):
            with Collection.open(collection, model=opened.searcher.model, readout=readout) as again:
                hits = again.search("a red cat", 5, where=["date>=2000"])
                hits += again.search("a red cat", 5)
                for hit in hits:
                    again.picture(hit.image_id)
                    again.metadata(hit.image_id)
        opened.similar(hits[0].image_id if hits else "p1", 5)
        opened.info()


@dataclass(frozen=True)
class Outcome:
    """What some mutations led to."""

    ends: Counter[str]
    """How the use of the folder ended: "used", or the kind of error."""
    files: Counter[str]
    """How often each file was changed."""
    failures: list[Failure]


def run(original: Path, mutations: range, seed: int, *, report: Any = None) -> Outcome:
    """Try mutations of the folder `original`."""
    from voken.errors import VokenError

    ends: Counter[str] = Counter()
    files = Counter({path.relative_to(original).as_posix(): 0 for path in original.rglob("*") if path.is_file()})
    failures = []
    for number in mutations:
        chance = random.Random(f"{seed} {number}")
        with tempfile.TemporaryDirectory() as place:
            folder, outside = Path(place) / "folder", Path(place) / "outside"
            shutil.copytree(original, folder, copy_function=_link_or_copy)
            outside.mkdir()
            (outside / "victim").write_bytes(b"precious")
            before = _state(outside)
            changes = mutate(folder, chance)
            files.update(changes.keys())
            how = ", ".join(f"{kind} {path}" for path, kind in changes.items())
            if report is not None:
                report(f"{number}: {how}")
            _forget_peak()
            megabytes_before = _peak_megabytes()  # the process may have done much else
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            begin = time.process_time()
            try:
                use(folder)
                ends["used"] += 1
            except VokenError as error:
                ends[type(error).__name__] += 1
                if "\n" in str(error) or len(str(error)) > 2_000:
                    failures.append(
                        Failure(number, f"{how}: a message of {len(str(error))} characters: {str(error)[:200]}")
                    )
            except Exception:
                failures.append(Failure(number, f"{how}: {traceback.format_exc()}"))
            finally:
                faulthandler.cancel_dump_traceback_later()
            if (seconds := time.process_time() - begin) > SECONDS:
                failures.append(Failure(number, f"{how}: {seconds:.0f} seconds of work"))
            megabytes = _peak_megabytes() - megabytes_before
            if megabytes > MEGABYTES:
                failures.append(Failure(number, f"{how}: {megabytes:.0f} MB of memory"))
            if _state(outside) != before:
                failures.append(Failure(number, f"{how}: something outside was changed"))
    return Outcome(ends, files, failures)


def _state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _forget_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak_megabytes() -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024


def make_original(folder: Path) -> Path:
    """A small collection with changes, and its model."""
    import numpy as np

    from builders.saved_search import save_search  # type: ignore[import-not-found] # tests are not checked
    from voken.collection.store import Entry, FileFacts, SkippedFile, Store

    save_search(folder)
    store = Store.open(folder / "collection")
    vector = np.ones(8, np.float16) / 8**0.5
    entry = Entry("new", "new.png", np.zeros(3, np.int32), vector, FileFacts(1, 2, 3, bytes(16)), '{"a": [1, "b"]}')
    store.commit([entry], remove=["p1", "p2"], skipped=[SkippedFile("x.png", "empty file", 0, 1)])
    return folder


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="Try only the mutation with this number, and say how.")
    arguments = parser.parse_args()
    mutations = range(arguments.first, arguments.first + arguments.mutations)
    report = None
    if arguments.only is not None:
        mutations, report = range(arguments.only, arguments.only + 1), print
    with tempfile.TemporaryDirectory() as place:
        original = make_original(Path(place))
        ends: Counter[str] = Counter()
        files: Counter[str] = Counter()
        failed = 0
        for at in range(0, len(mutations), 20):
            outcome = run(original, mutations[at : at + 20], arguments.seed, report=report)
            ends += outcome.ends
            files.update(outcome.files)
            failed += len(outcome.failures)
            for failure in outcome.failures:
                print(f"\n{failure.mutation}: {failure.what}", flush=True)
            if (at + 20) % 1000 == 0:
                print(f"{at + 20} mutations", file=sys.stderr, flush=True)
    print(dict(ends))
    print(f"{len(files)} files, each changed {min(files.values())} times or more")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
