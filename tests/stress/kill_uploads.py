"""Is anything lost when the processes that upload pictures and that watch a folder are killed, at any moment?

One process uploads pictures, deletes uploads and compacts, and reports each change before it begins and after it is
done. Another one watches the folder of pictures (`Collection.watch`), while pictures are written, renamed and deleted
there. Both are killed with SIGKILL, together or one alone, after a random time; every other uploader is killed before
a step on the disk that is drawn. Then, before the next two begin with what the last ones left:

- every reported upload and deletion is there; the one in flight is there whole or not at all;
- every upload that the collection lists has its file, byte by byte, and its title;
- every picture has the vokens and the vector of its content, and the doctor finds nothing wrong;
- `voken index` brings the collection to what the folder holds, keeps every upload, and changes no file of the folder.

    python tests/stress/kill_uploads.py --times 300 --seed 0 --json out.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from histories import EMPTY, HEARD_SECONDS, MEMORY, MODEL, Watcher
from kill import die_at
from voken import Collection
from voken.collection.doctor import examine
from voken.collection.snapshot import UPLOAD_PREFIX
from voken.collection.store import PICTURES, Store
from voken.errors import VokenError
from voken_lab.evaluation.machine import Machine

PATHS = tuple(f"{folder}{name}.png" for folder in ("", "trip/", "2024.05/") for name in "abcd")
POINTS = 60
"""An uploader that is killed before a step on the disk is killed before one of its first so many."""
MAX_PIXELS = 10_000


def picture(number: int) -> bytes:
    """A file of the colour with this number."""
    target = BytesIO()
    Image.new("RGB", (8, 8), colour(number)).save(target, "PNG")
    return target.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    """A colour per number below 2²⁴, as far apart as can be."""
    mixed = number * 0x9E3779 & 0xFFFFFF
    return mixed >> 16, mixed >> 8 & 0xFF, mixed & 0xFF


def digest(number: int) -> bytes:
    """The hash of a picture's content."""
    return blake2b(picture(number), digest_size=16).digest()


def upload_id(number: int) -> str:
    """The id of the uploaded picture with this number."""
    name = digest(number).hex()
    return f"{PICTURES}/{name[:2]}/{name}.png"


@dataclasses.dataclass
class State:
    """What the folder and the collection must hold: numbers of pictures."""

    work: Path
    files: dict[str, int] = dataclasses.field(default_factory=dict)
    uploads: frozenset[int] = frozenset()
    numbers: dict[bytes, int] = dataclasses.field(default_factory=dict)
    """The number of every picture that there ever was, by the hash of its content."""
    last_file: int = 0
    last_upload: int = 1 << 23
    time: int = 1_700_000_000

    @property
    def root(self) -> Path:
        """The folder of pictures."""
        return self.work / "photos"

    @property
    def folder(self) -> Path:
        """The collection."""
        return self.work / "c"

    def write(self, path: str) -> None:
        """Write a new picture at once."""
        self.last_file, self.time = self.last_file + 1, self.time + 1
        self.numbers[digest(self.last_file)] = self.last_file
        partial, target = self.work / "partial", self.root / path
        partial.write_bytes(picture(self.last_file))
        os.utime(partial, (self.time, self.time))
        target.parent.mkdir(exist_ok=True)
        partial.replace(target)
        self.files[path] = self.last_file

    def change_folder(self, draw: random.Random) -> None:
        """Write, rename or delete a picture."""
        path = draw.choice(PATHS)
        if path not in self.files or draw.random() < 0.4:
            self.write(path)
        elif draw.random() < 0.5 and len(self.files) > 1:
            (self.root / path).unlink()
            del self.files[path]
        else:
            other = draw.choice(PATHS)
            (self.root / other).parent.mkdir(exist_ok=True)
            (self.root / path).replace(self.root / other)
            self.files[other] = self.files.pop(path)


def main(arguments: list[str] | None = None) -> None:
    """Kill, compare, print, write JSON. The exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="voken-", dir=MEMORY) as work:
        counts, faults = run(State(Path(work)), options.times, options.seed)
    print("\n".join(f"| {name} | {value:,} |" for name, value in counts.items()))
    print("\n".join(f"- {fault}" for fault in faults[:20]))
    if options.json:
        machine = dataclasses.asdict(Machine.here())
        report = {"counts": counts, "faults": faults, "machine": machine, "command": sys.argv}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if faults:
        sys.exit(1)


def run(state: State, times: int, seed: int) -> tuple[Counter[str], list[str]]:
    """All kills on one collection, one after another. Returns what was counted, and the faults."""
    state.root.mkdir()
    for path in PATHS[:6]:
        state.write(path)
    Collection.index(state.folder, state.root, MODEL, threads=1)
    counts = Counter[str]()
    faults: list[str] = []
    draw = random.Random(seed)
    for number in range(times):
        lines, who = kill_once(state, draw)
        counts["kills"] += len(who)
        counts.update(f"killed: {name}" for name in who)
        faults += [f"kill {number} ({', '.join(who)}): {fault}" for fault in compare(state, lines, counts)]
        if number % 50 == 49:
            print(dict(counts), file=sys.stderr, flush=True)
    return counts, faults


def kill_once(state: State, draw: random.Random) -> tuple[list[str], list[str]]:
    """Let the two work, and kill them. Returns what the uploader reported, and who was killed."""
    watcher = Watcher(state.folder, state.root)
    watcher.wait_for_index(None)
    point = draw.randint(1, POINTS) if draw.random() < 0.5 else 0
    seed = draw.randrange(1 << 30)
    uploader = Uploader(lambda tell: upload(state, seed, point, tell))
    end = time.monotonic() + (HEARD_SECONDS if point else draw.expovariate(4))
    while time.monotonic() < end and not uploader.has_ended():
        state.change_folder(draw)
        time.sleep(draw.choice([0.0, 0.01, 0.05]))
    who = draw.choice([["uploader", "watcher"], ["watcher", "uploader"], ["uploader"]])
    for name in who:
        (uploader if name == "uploader" else watcher).kill()
    if len(who) == 1:
        # the other one goes on, and ends at rest
        state.time += 1
        (state.root / "marker.txt").write_text(str(state.time))
        watcher.wait_for_index(str(state.time))
        watcher.kill()
    return uploader.lines(), who


class Uploader:
    """A process that does `work`, which gets a function that reports a line."""

    def __init__(self, work: Callable[[Callable[[str], None]], None]) -> None:
        self._ours, theirs = os.pipe()
        self._child, self._ended = os.fork(), False
        if self._child == 0:
            try:
                work(lambda line: _whole_line(theirs, line))
            finally:
                os._exit(1)
        os.close(theirs)

    def has_ended(self) -> bool:
        """Whether it was killed. Raises `AssertionError` if it has ended otherwise."""
        if not self._ended:
            child, status = os.waitpid(self._child, os.WNOHANG)
            self._ended = child != 0
            assert not self._ended or os.WIFSIGNALED(status), "the uploader ended by itself"
        return self._ended

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if not self.has_ended():
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            self._ended = True

    def lines(self) -> list[str]:
        """The complete lines that it reported."""
        with open(self._ours, "rb") as source:
            return source.read().decode().split("\n")[:-1]


def _whole_line(pipe: int, line: str) -> None:
    os.write(pipe, f"{line}\n".encode())


def upload(state: State, seed: int, point: int, tell: Callable[[str], None]) -> None:
    """Upload, delete and compact without end."""
    collection = Collection.open(state.folder, model=MODEL, load=False)
    draw, uploads = random.Random(seed), set(state.uploads)
    if point:
        die_at(point)
    last = state.last_upload
    while True:
        chance = draw.random()
        if chance < 0.1:
            collection.compact()
        elif chance < 0.4 and uploads:
            gone = draw.choice(sorted(uploads))
            tell(f"delete {gone}")
            collection.delete(upload_id(gone))
            uploads.remove(gone)
            tell("made")
        else:
            new = list(range(last + 1, last + 1 + draw.randint(1, 3)))
            last = new[-1]
            tell(f"upload {' '.join(map(str, new))}")
            collection.add_uploads([(f"{one}.png", BytesIO(picture(one))) for one in new], MAX_PIXELS)
            uploads.update(new)
            tell("made")


def after(uploads: frozenset[int], line: str) -> frozenset[int]:
    """The uploads after a reported change."""
    kind, *numbers = line.split()
    changed = frozenset(map(int, numbers))
    return uploads | changed if kind == "upload" else uploads - changed


def compare(state: State, lines: list[str], counts: Counter[str]) -> list[str]:
    """Compare the collection with what was reported, and bring it up to date. Returns the faults."""
    faults: list[str] = []
    flight = ""
    for line in lines:
        if line == "made":
            state.uploads, flight = after(state.uploads, flight), ""
            counts["uploads and deletions reported"] += 1
        else:
            flight = line
            for number in map(int, line.split()[1:]):
                state.numbers[digest(number)] = number
                state.last_upload = max(state.last_upload, number)
    try:
        uploads, faults = observed(state, None)
        if uploads != state.uploads:
            completed = after(state.uploads, flight) if flight else state.uploads
            counts["in flight, completed"] += uploads == completed
            if uploads != completed:
                lost, more = sorted(state.uploads - uploads), sorted(uploads - state.uploads)
                faults.append(f"of the uploads {lost} are missing, and {more} are more than reported; {flight!r}")
        elif flight:
            counts["in flight, not made"] += 1
        state.uploads = uploads
        Collection.index(state.folder, state.root, MODEL, remove_missing=True, threads=1)
        again, more_faults = observed(state, state.files)
        faults += more_faults
        if again != uploads:
            faults.append(f"an index changed the uploads: {sorted(again ^ uploads)}")
    except (VokenError, OSError, AssertionError) as error:
        faults.append(repr(error))
    for path, number in state.files.items():
        if (state.root / path).read_bytes() != picture(number):
            faults.append(f"{path}: the user's file was changed")
    counts["pictures compared"] += len(state.files) + len(state.uploads)
    return faults


def observed(state: State, files: dict[str, int] | None) -> tuple[frozenset[int], list[str]]:
    """The uploads in the collection, and its faults; `files` None: the folder's pictures are not compared."""
    faults = []
    snapshot = Store.open(state.folder).snapshot(verify=True)
    assert snapshot.vectors is not None
    assert snapshot.facts is not None
    uploads, there = set(), {}
    for place, row in enumerate(snapshot.rows.tolist()):
        image_id, metadata = snapshot.ids[row], snapshot.metadata(row)
        number = state.numbers.get(bytes(snapshot.facts[row]["hash"]))
        if number is None:
            faults.append(f"{image_id}: the hash of no picture")
            continue
        vector = MODEL.encoder.encode_images([Image.new("RGB", (8, 8), colour(number))])
        same = snapshot.vokens[place].tolist() == MODEL.tokenizer.encode(vector)[0].tolist()
        if not same or not np.array_equal(snapshot.vectors[row], vector[0].astype(np.float16)):
            faults.append(f"{image_id}: vokens or vector of another picture")
        if snapshot.stored_paths[row].startswith(UPLOAD_PREFIX):
            uploads.add(number)
            if image_id != upload_id(number) or json.loads(metadata) != {"title": f"{number}.png"}:
                faults.append(f"{image_id}: has the fields {metadata}")
            if (state.folder / image_id).read_bytes() != picture(number):
                faults.append(f"{image_id}: its only file has other content")
        else:
            there[image_id] = number
            if (metadata or EMPTY) != EMPTY:
                faults.append(f"{image_id}: has the fields {metadata}")
    if files is not None and there != files:
        faults.append(f"after an index: {there} instead of {files}")
    faults += [one.what for one in examine(state.folder) if one.level == "wrong" and "was made with" not in one.what]
    return frozenset(uploads), faults


if __name__ == "__main__":
    main()
