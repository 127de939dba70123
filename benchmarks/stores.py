"""What should hold the changes of a collection: Lance, SQLite, or plain arrays with a log of our own?

A picture's record is an id (33 bytes), a path, 6 vokens, a float16 vector of 512, size and time of its file, a hash of
16 bytes and a little JSON. A collection has a base that is made once; then pictures are added and removed, a commit at
a time, by one process, while others read. The trie over the base is mapped from its own files whatever holds the rest,
and is left out. All candidates do the same through one interface (`Store`):

  sqlite              base: mapped arrays; changes: one SQLite file, rollback journal, synchronous=FULL
  sqlite, extra       the same with synchronous=EXTRA
  sqlite, WAL         the same with a write-ahead log, synchronous=FULL
  sqlite, all         base and changes in one SQLite file, rollback journal, synchronous=EXTRA
  sqlite, all, WAL    the same with a write-ahead log, synchronous=FULL
  lance               base and changes in a Lance dataset, as it comes (format "stable", a B-tree over ids)
  lance, synced       the same; we write its files to the disk before and after each commit
  arrays + log        base: mapped arrays; changes: a log of our own (length, CRC-32, payload), fdatasync, and a torn
                      tail is cut off by the next writer

What "committed" means. SQLite and the log wait for the disk. With FULL and a rollback journal, SQLite does not wait for
the directory that the journal was deleted from: a power failure can undo the last commit, never halve it; EXTRA waits.
Lance (pylance 14.0.2) never waits for the disk (strace sees no fsync): what it acknowledged survives the process, not
the power. "lance, synced" is what can be done from outside: data files reach the disk before the commit names them, the
manifest after.

  opening     in a new process each time, files in the page cache; imports of the store's library are told apart, those
              of numpy and voken left out. Ready means: ids and vokens of all pictures added, rows of all removed, one
              record of the base. Once without changes, once with all that were written here. CPU time (of all
              threads; × and spread are its) is what to trust where the machine is shared
  writing     commits of 1, 100 and 1,000 pictures, and of 10 removals, by a process that keeps the store open
  reading     1,000 records at random in one call, and in calls of 10; asking whether there is something new
  together    one process commits, as fast as it can or with a rest of 100 ms after each commit; another opens the
              store, rests for 10 ms, opens it again; each of them alone, and both at once. A row is to be compared
              with itself: where commits are quick, more is there to be opened
  kills       a writer tells of every commit and is killed at a random moment; the next one opens what it left, compares
              all that is there with what must be there, and goes on. A kill leaves the page cache: it shows torn and
              half commits and stores that do not open, not what a power failure loses

Candidates take turns, every other round backwards. × is to "sqlite" (the first candidate) within the same run.

    python benchmarks/stores.py --json out.json
    python benchmarks/stores.py --sizes 10000 --large --kills 20
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from store_candidates import CANDIDATES, DIM, LEVELS, Changes, Records, Store, seed_of, sync

from voken.shapes import Int64

FORKING = multiprocessing.get_context("forkserver")
SIZES = [10_000, 100_000]
LARGE = 1_000_000
WRITES = {"1 added": (1, 25), "100 added": (100, 4), "1,000 added": (1000, 2)}
"""Pictures a commit, commits a round."""
REMOVED, REMOVALS = 10, 10
"""Pictures a removal, removals a round."""
READ, AT_ONCE, ASKED = 1000, 10, 200
SMALL_BASE = 2_000
"""Pictures of the base, where processes meet and are killed."""
RESTS, PAUSE, MEETING_BATCH = (0.0, 0.1), 0.01, 30
LARGEST_BATCH, KILL_WINDOW, KILLS_A_FOLDER, LOOKED_AT = 1000, 0.25, 10, 5
APART = 4096
"""Between the first numbers of two batches of a `Story`."""


@dataclass(frozen=True)
class Story:
    """Commits 1, 2, 3 … that can be told from what they leave behind.

    An odd commit adds a batch of at least three. The even one after it removes the first two of that batch, and one
    more picture of the base.
    """

    base: int
    largest: int
    seed: int

    def batch(self, commit: int) -> Int64[np.ndarray, " pictures"]:
        """The numbers of the pictures that an odd commit adds; small batches are as likely as large ones."""
        drawn = random.Random(f"{self.seed} {commit}").uniform(0, 1)
        count = int(3 * (self.largest / 3) ** drawn)
        return self.base + commit * APART + np.arange(count)

    def do(self, commit: int, store: Store) -> None:
        """Write one commit."""
        if commit % 2:
            store.add(Records.of(self.batch(commit), vectors=True))
        else:
            gone = [*self.batch(commit - 1)[:2], (commit // 2 - 1) % self.base]
            store.remove(Records.of(np.array(gone), vectors=False).ids)

    def after(self, commits: int) -> Changes:
        """What must be there."""
        kept = [self.batch(odd)[2 if odd < commits else 0 :] for odd in range(1, commits + 1, 2)]
        records = Records.of(np.concatenate([np.zeros(0, np.int64), *kept]), vectors=False)
        return Changes(records.ids, records.numbers["vokens"], np.arange(min(commits // 2, self.base)))

    def seen(self, changes: Changes) -> int | None:
        """After which commit the store is as `changes` say; None where it is so after none of them."""
        last = (max(map(seed_of, changes.ids)) - self.base) // APART if changes.ids else 0
        return next((n for n in (last, last + 1) if self.after(n).digest == changes.digest), None)


# What runs in processes of its own


def create(folder: Path, candidate: str, *, pictures: int, vectors: bool) -> dict[str, Any]:
    """Make a store in `folder`, new."""
    folder.mkdir(parents=True)
    base = Records.of(np.arange(pictures), vectors=vectors)
    begin = time.perf_counter()
    CANDIDATES[candidate](folder).create(base)
    return {"seconds": time.perf_counter() - begin}


def opening(folder: Path, candidate: str, *, seed: int) -> dict[str, Any]:
    """Open in this process, which has imported nothing of the store; then read."""
    store = CANDIDATES[candidate](folder)
    began = _clocks()
    for library in store.libraries:
        importlib.import_module(library)
    imported = _clocks()
    changes = store.open()
    store.get([store.pictures - 1])
    opened = _clocks()
    there = np.setdiff1d(np.arange(store.pictures + len(changes.ids)), changes.removed, assume_unique=True)
    rows = np.random.default_rng(seed).choice(there, READ).tolist()
    times = [time.perf_counter()]
    read = store.get(rows)
    times.append(time.perf_counter())
    for start in range(0, READ, AT_ONCE):
        store.get(rows[start : start + AT_ONCE])
    times.append(time.perf_counter())
    news = [store.newer() for _ in range(ASKED)]
    times.append(time.perf_counter())
    store.close()
    thousand, tens, asking = np.diff(times).tolist()
    return {
        "import_seconds": imported[0] - began[0],
        "import_cpu_seconds": imported[1] - began[1],
        "open_seconds": opened[0] - imported[0],
        "open_cpu_seconds": opened[1] - imported[1],
        "at_once_seconds": thousand,
        "tens_seconds": tens,
        "newer_seconds": asking / ASKED,
        "newer": any(news),
        "added": len(changes.ids),
        "removed": len(changes.removed),
        "digest": changes.digest + read.digest,
    }


def writing(folder: Path, candidate: str, *, number: int) -> dict[str, Any]:
    """Seconds of every commit of round `number`, by kind."""
    store = CANDIDATES[candidate](folder)
    store.open(write=True)
    vectors = store.get([store.pictures - 1]).dim > 0
    first = store.pictures + number * sum(size * commits for size, commits in WRITES.values())
    seconds: dict[str, list[float]] = {}
    for kind, (size, commits) in WRITES.items():
        for _ in range(commits):
            records = Records.of(np.arange(first, first + size), vectors=vectors)
            first += size
            seconds.setdefault(kind, []).append(_timed(store.add, records))
    # the last row of the base stays: each round looks at it
    shuffled = np.random.default_rng(0).permutation(store.pictures - 1)
    for removal in range(number * REMOVALS, (number + 1) * REMOVALS):
        ids = Records.of(shuffled[removal * REMOVED : (removal + 1) * REMOVED], vectors=False).ids
        seconds.setdefault(f"{REMOVED} removed", []).append(_timed(store.remove, ids))
    store.close()
    return {"seconds": seconds}


def telling(
    asker: Connection, folder: Path, candidate: str, *, story: Story, seconds: float = 0, rest: float = 0
) -> None:
    """Open, say what is there, wait for a word; then go on with the story, for some seconds or until it is killed.

    In the second case (without `seconds`) the number of every commit is said when it returned. "commit" of what is said
    first is None where what is there was never committed so; "intact", whether the last records are those added.
    """
    store = CANDIDATES[candidate](folder)
    for library in store.libraries:
        importlib.import_module(library)
    begin = time.perf_counter()
    changes = store.open(write=True)
    opened = time.perf_counter() - begin
    commit = story.seen(changes)
    newest = changes.ids[-LOOKED_AT:]
    rows = range(store.pictures + len(changes.ids) - len(newest), store.pictures + len(changes.ids))
    expected = Records.of(np.array([seed_of(one) for one in newest], np.int64), vectors=True)
    intact = not newest or store.get(rows).digest == expected.digest
    asker.send({"open_seconds": opened, "commit": commit, "intact": intact})
    asker.recv()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while commit is not None and (not seconds or time.perf_counter() < end):
        commit += 1
        times.append(_timed(story.do, commit, store))
        if not seconds:
            asker.send(commit)
        time.sleep(rest)
    store.close()
    asker.send({"seconds": times})


def watching(asker: Connection, folder: Path, candidate: str, *, story: Story, seconds: float) -> None:
    """Wait for a word; then open the store again and again, for some seconds."""
    make = CANDIDATES[candidate]
    make(folder).open()
    asker.send({})
    asker.recv()
    times: list[float] = []
    versions: list[int | None] = []
    errors: list[str] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        store = make(folder)
        begin = time.perf_counter()
        try:
            changes = store.open()
        except Exception as error:  # whatever it is, it is what is counted
            errors.append(repr(error))
        else:
            times.append(time.perf_counter() - begin)
            store.close()
            versions.append(story.seen(changes))
        time.sleep(PAUSE)
    whole = [version for version in versions if version is not None]
    asker.send(
        {
            "seconds": times,
            "half": len(versions) - len(whole),
            "backwards": sum(later < earlier for earlier, later in itertools.pairwise(whole)),
            "versions": len(set(whole)),
            "errors": errors,
        }
    )


ROLES = {role.__name__: role for role in (create, opening, writing)}


def _clocks() -> tuple[float, float]:
    """The clock, and this process's CPU time; of all its threads."""
    return time.perf_counter(), time.process_time()


def _timed(do: Callable[..., None], *arguments: Any) -> float:
    begin = time.perf_counter()
    do(*arguments)
    return time.perf_counter() - begin


# What starts them


@dataclass(frozen=True)
class Row:
    """One candidate with a base of one size."""

    candidate: str
    pictures: int
    vectors: bool
    create_seconds: float
    base_bytes: int
    """On the disk, before any change."""
    bytes: int
    """After all changes."""
    opened: list[dict[str, Any]]
    """What `opening` said in each round, before any change."""
    changed: list[dict[str, Any]]
    """The same after all changes."""
    writes: list[dict[str, list[float]]]
    """Of each round: seconds of every commit, by kind."""

    @property
    def name(self) -> str:
        """What its size is called."""
        return f"{self.pictures:,}{'' if self.vectors else ', no vectors'}"

    def rates(self, kind: str) -> list[float]:
        """Commits a second, in each round."""
        return [1 / statistics.median(one[kind]) for one in self.writes]


@dataclass(frozen=True)
class Together:
    """A writer and a reader, alone and together: seconds of commits and of openings."""

    candidate: str
    rest: float
    """Seconds that the writer rests after a commit."""
    writer_alone: list[float]
    reader_alone: list[float]
    writer: list[float]
    reader: list[float]
    half: int
    """Times that the reader saw what was never committed so."""
    backwards: int
    """Times that it saw an older version than before."""
    versions: int
    errors: list[str]


@dataclass(frozen=True)
class Kills:
    """What a candidate left behind when its writer was killed."""

    candidate: str
    kills: int = 0
    acknowledged: int = 0
    """Commits, over all kills."""
    missing: int = 0
    """Acknowledged commits that were gone."""
    half: int = 0
    """Kills that left what was never committed so, or records that differ from those added."""
    unacknowledged: int = 0
    """Kills that left a whole commit that was not acknowledged yet, as it may be."""
    failures: int = 0
    """Times that the store did not open."""
    open_seconds: tuple[float, ...] = ()


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="pictures of the base")
    parser.add_argument("--large", action="store_true", help=f"also {LARGE:,} pictures, without vectors")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="of opening and reading")
    parser.add_argument("--write-rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="that reader and writer run, alone and together")
    parser.add_argument("--kills", type=int, default=100, help="of each candidate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure (that of temporary files)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.child:
        spec = json.loads(options.child)
        role = ROLES[spec.pop("role")]
        print(json.dumps(role(Path(spec.pop("folder")), spec.pop("candidate"), **spec)))
        return
    if any(name.startswith("lance") for name in options.candidates) and importlib.util.find_spec("lance") is None:
        parser.error("Lance is not here: pip install pylance, or name --candidates without it.")
    candidates = options.candidates
    # those that talk are forked from one process that has imported all; Lance warns of that once, and is not used there
    libraries = {library for name in candidates for library in CANDIDATES[name](Path()).libraries}
    FORKING.set_forkserver_preload(["store_candidates", *sorted(libraries)])
    with tempfile.TemporaryDirectory(prefix="voken-stores-", dir=options.work) as folder:
        work = Path(folder)
        bases = [(pictures, True) for pictures in options.sizes] + [(LARGE, False)] * options.large
        rows = [row for base in bases for row in grown(work, candidates, *base, options.rounds, options.write_rounds)]
        together = meetings(work, candidates, options.seconds, options.seed) if options.seconds else []
        killed = kills(work, candidates, options.kills, options.seed) if options.kills else []
    told = report(rows, together, killed, options)
    tables = [opening_table(rows), writing_table(rows)] if rows else []
    tables += [together_table(together)] if together else []
    tables += [kills_table(killed)] if killed else []
    command = shlex.join(["python", "benchmarks/stores.py", *(sys.argv[1:] if given is None else given)])
    print("\n\n".join([*tables, f"`{command}`", ", ".join(f"{key} {value}" for key, value in told["machine"].items())]))
    if options.json:
        from voken.artifact import write_json

        write_json(options.json, told)


def done(role: Callable[..., Any], folder: Path, candidate: str, **parameters: Any) -> dict[str, Any]:
    """What a new process says that does one of `ROLES`."""
    spec = {"role": role.__name__, "folder": str(folder), "candidate": candidate, **parameters}
    command = [sys.executable, __file__, "--child", json.dumps(spec)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{candidate}: {role.__name__} failed:\n{ended.stderr}")
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


def turns(candidates: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Candidates take turns, every other round backwards."""
    for number in range(rounds):
        yield from ((number, name) for name in (candidates if number % 2 == 0 else reversed(candidates)))


def grown(
    work: Path, candidates: Sequence[str], pictures: int, vectors: bool, rounds: int, write_rounds: int
) -> list[Row]:
    """Make a base, open it, write changes, open it again; of every candidate."""
    folders = {name: work / f"{pictures}-{place}" for place, name in enumerate(candidates)}
    made = {name: done(create, folders[name], name, pictures=pictures, vectors=vectors) for name in candidates}
    base_bytes = {name: disk_bytes(folder) for name, folder in folders.items()}
    opened: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    changed: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    writes: dict[str, list[dict[str, list[float]]]] = {name: [] for name in candidates}
    for number, name in turns(candidates, rounds):
        opened[name].append(done(opening, folders[name], name, seed=number))
    for number, name in turns(candidates, write_rounds):
        writes[name].append(done(writing, folders[name], name, number=number)["seconds"])
    all_bytes = {name: disk_bytes(folder) for name, folder in folders.items()}
    for number, name in turns(candidates, rounds):
        changed[name].append(done(opening, folders[name], name, seed=number))
    for said in (opened, changed):
        if len({tuple(one["digest"] for one in said[name]) for name in candidates}) > 1:
            raise SystemExit("Candidates do not agree on what is there: one of them is written wrongly.")
    rows = [
        Row(
            candidate=name,
            pictures=pictures,
            vectors=vectors,
            create_seconds=made[name]["seconds"],
            base_bytes=base_bytes[name],
            bytes=all_bytes[name],
            opened=opened[name],
            changed=changed[name],
            writes=writes[name],
        )
        for name in candidates
    ]
    for folder in folders.values():
        shutil.rmtree(folder)
    print(f"{pictures:,}: done", file=sys.stderr, flush=True)
    return rows


def disk_bytes(folder: Path) -> int:
    """What its files take, in blocks of the file system; waits until they are all there."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        sync(path)
    return sum(path.stat().st_blocks * 512 for path in files)


def meetings(work: Path, candidates: Sequence[str], seconds: float, seed: int) -> list[Together]:
    """A writer alone, with a reader, and the reader alone."""
    story = Story(SMALL_BASE, MEETING_BATCH, seed)
    found = []
    for place, name in enumerate(candidates):
        folder = work / f"together-{place}"
        done(create, folder, name, pictures=SMALL_BASE, vectors=True)
        reader = partial(Conversation, watching, folder, name, story=story, seconds=seconds)
        for rest in RESTS:
            writer = partial(Conversation, telling, folder, name, story=story, seconds=seconds, rest=rest)
            (wrote_alone,), (watched_alone,) = at_once(writer), at_once(reader)
            wrote, watched = at_once(writer, reader)
            found.append(
                Together(
                    candidate=name,
                    rest=rest,
                    writer_alone=wrote_alone["seconds"],
                    reader_alone=watched_alone["seconds"],
                    writer=wrote["seconds"],
                    reader=watched["seconds"],
                    half=watched["half"],
                    backwards=watched["backwards"],
                    versions=watched["versions"],
                    errors=watched["errors"],
                )
            )
        shutil.rmtree(folder)
        print(f"{name}: read while written", file=sys.stderr, flush=True)
    return found


def at_once(*start: Callable[[], Conversation]) -> list[dict[str, Any]]:
    """Start processes, let them go when all are ready, and collect what they say in the end."""
    processes = [one() for one in start]
    for process in processes:
        if process.heard() is None:
            raise SystemExit("A process that was to meet another one failed to open its store; see above.")
    for process in processes:
        process.go()
    return [process.rest()[-1] for process in processes]


class Conversation:
    """A process that says things, and waits for one word."""

    def __init__(self, role: Callable[..., None], *arguments: Any, **parameters: Any) -> None:
        self._ours, theirs = FORKING.Pipe()
        self._process = FORKING.Process(target=role, args=(theirs, *arguments), kwargs=parameters, daemon=True)
        self._process.start()
        theirs.close()

    def heard(self) -> Any:
        """What it says next; None where it ended, even in the middle of saying it."""
        try:
            return self._ours.recv()
        except (EOFError, OSError):
            return None

    def go(self) -> None:
        """Say the word."""
        self._ours.send("go")

    def kill(self) -> None:
        """End it, wherever it is."""
        self._process.kill()

    def rest(self) -> list[Any]:
        """Wait for its end: all that it still said."""
        said = list(iter(self.heard, None))
        self._process.join()
        self._process.close()
        self._ours.close()
        return said


def kills(work: Path, candidates: Sequence[str], count: int, seed: int) -> list[Kills]:
    """Kill writers of every candidate `count` times, at the same seeded moments after they begin to write."""
    victims = {name: Victim(work / f"kills-{place}", name, seed) for place, name in enumerate(candidates)}
    moments = random.Random(seed)
    drawn = [moments.uniform(0, KILL_WINDOW) for _ in range(count)]
    for number, name in turns(candidates, count):
        victims[name].go_on(drawn[number], last=number == count - 1 or number % KILLS_A_FOLDER == KILLS_A_FOLDER - 1)
        if number % 10 == 9 and name == candidates[0]:
            print(f"{number + 1} of {count} kills", file=sys.stderr, flush=True)
    return [victim.found for victim in victims.values()]


class Victim:
    """A store whose writers are killed one after another, each going on with what the last one left."""

    def __init__(self, folder: Path, candidate: str, seed: int) -> None:
        self.found = Kills(candidate)
        self._folder = folder
        self._pristine = folder.with_name(f"{folder.name}-pristine")
        self._story = Story(SMALL_BASE, LARGEST_BATCH, seed)
        self._acknowledged: int | None = None
        """The last commit told of by the last writer; None in a new folder."""

    def go_on(self, moment: float, *, last: bool) -> None:
        """Judge what was left, write, be killed after `moment` seconds; where it is the folder's last, judge again."""
        if self._acknowledged is None:
            self._renew()
        if self._run(moment) and last:
            self._run(None)
        if last:
            self._acknowledged = None

    def _renew(self) -> None:
        if not self._pristine.exists():
            done(create, self._pristine, self.found.candidate, pictures=SMALL_BASE, vectors=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._pristine, self._folder)

    def _run(self, moment: float | None) -> bool:
        """Whether it went on; where it could not, the folder is given up."""
        writer = Conversation(telling, self._folder, self.found.candidate, story=self._story)
        left = writer.heard()
        if left and moment is not None:
            writer.go()
            time.sleep(moment)
        writer.kill()
        numbers = writer.rest()
        commit = self._judged(left) if left else None
        self._acknowledged = None if commit is None else max([commit, *numbers])
        self._count(failures=self.found.failures + (not left))
        if moment is not None and commit is not None:
            self._count(kills=self.found.kills + 1, acknowledged=self.found.acknowledged + len(numbers))
        return commit is not None

    def _judged(self, left: dict[str, Any]) -> int | None:
        """Count what is wrong with what was left: the commit it is at, None where there is no such commit."""
        found, before, commit = self.found, self._acknowledged or 0, left["commit"]
        whole = commit is not None and commit <= before + 1 and left["intact"]
        self._count(
            missing=found.missing + max(0, before - (before if commit is None else commit)),
            half=found.half + (not whole),
            unacknowledged=found.unacknowledged + (commit == before + 1),
        )
        if self._acknowledged is not None:
            self._count(open_seconds=(*found.open_seconds, left["open_seconds"]))
        return None if commit is None else int(commit)

    def _count(self, **changed: Any) -> None:
        self.found = dataclasses.replace(self.found, **changed)


# What is said of it


def opening_table(rows: list[Row]) -> str:
    """Markdown: bytes, opening, reading."""
    heads = ["pictures", "", "bytes a picture", "an added one", "import"]
    for what in ("open", "open, changed"):
        heads += [what, "CPU", "least … most", "×"]
    heads += [f"{READ:,} records", "×", f"{AT_ONCE} records", "×", "newer?"]
    lines = [heads, ["---:", "---", *["---:"] * (len(heads) - 2)]]
    for row in rows:
        first = _first(rows, row)
        added = row.changed[0]["added"]
        line = [row.name, row.candidate, f"{row.base_bytes / row.pictures:,.0f}"]
        line += [f"{(row.bytes - row.base_bytes) / added:,.0f}"]
        line += [f"{1e3 * _median(row.opened + row.changed, 'import_cpu_seconds'):,.0f} ms"]
        for ours, firsts in ((row.opened, first.opened), (row.changed, first.changed)):
            cpu = [1e3 * one["open_cpu_seconds"] for one in ours]
            line += [f"{1e3 * _median(ours, 'open_seconds'):,.1f} ms", f"{statistics.median(cpu):,.1f} ms"]
            line += [f"{min(cpu):,.1f} … {max(cpu):,.1f}", _ratio(ours, firsts, "open_cpu_seconds")]
        for key, shown in (("at_once_seconds", 1e3), ("tens_seconds", 1e3 * AT_ONCE / READ)):
            line += [f"{shown * _median(row.changed, key):,.2f} ms", _ratio(row.changed, first.changed, key)]
        lines.append([*line, f"{1e6 * _median(row.changed, 'newer_seconds'):,.0f} µs"])
    return _markdown(lines)


def writing_table(rows: list[Row]) -> str:
    """Markdown: commits a second, from the median commit of a round; median and spread over rounds."""
    kinds = list(rows[0].writes[0])
    heads = ["pictures", "commits/s", *(head for kind in kinds for head in (kind, "least … most", "×"))]
    lines = [heads, ["---:", "---", *["---:"] * (len(heads) - 2)]]
    for row in rows:
        line = [row.name, row.candidate]
        for kind in kinds:
            rates, firsts = row.rates(kind), _first(rows, row).rates(kind)
            ratio = statistics.median(ours / theirs for ours, theirs in zip(rates, firsts, strict=True))
            line += [f"{statistics.median(rates):,.1f}", f"{min(rates):,.1f} … {max(rates):,.1f}", f"{ratio:.2f}"]
        lines.append(line)
    return _markdown(lines)


def together_table(together: list[Together]) -> str:
    """Markdown: what reader and writer do to each other."""
    heads = ["one writes, one reads", "rest", "a commit, alone", "with a reader", "longest", "an opening, alone"]
    heads += ["with a writer", "longest", "half versions", "backwards", "errors", "versions seen"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in together:
        times: list[float] = []
        for alone, with_other in ((one.writer_alone, one.writer), (one.reader_alone, one.reader)):
            times += [statistics.median(alone), statistics.median(with_other), max(with_other)]
        counts = [one.half, one.backwards, len(one.errors), one.versions]
        shown = [one.candidate, f"{one.rest * 1e3:,.0f} ms"]
        lines.append([*shown, *(f"{seconds * 1e3:,.1f} ms" for seconds in times), *map(str, counts)])
    return _markdown(lines)


def kills_table(killed: list[Kills]) -> str:
    """Markdown: what kills left."""
    heads = ["killed", "kills", "commits acknowledged", "of them missing", "half or damaged", "not opened"]
    heads += ["whole, not acknowledged", "open after", "longest"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in killed:
        counts = [one.kills, one.acknowledged, one.missing, one.half, one.failures, one.unacknowledged]
        middle, most = (f"{1e3 * of(one.open_seconds or [0]):,.1f} ms" for of in (statistics.median, max))
        lines.append([one.candidate, *(f"{count:,}" for count in counts), middle, most])
    return _markdown(lines)


def _first(rows: list[Row], row: Row) -> Row:
    """The first candidate with the same base: what ratios are to."""
    return next(one for one in rows if one.name == row.name)


def _median(said: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(one[key] for one in said))


def _ratio(ours: list[dict[str, Any]], firsts: list[dict[str, Any]], key: str) -> str:
    """The median over rounds of the ratios within a round."""
    return f"{statistics.median(a[key] / b[key] for a, b in zip(ours, firsts, strict=True)):.2f}"


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(
    rows: list[Row], together: list[Together], killed: list[Kills], options: argparse.Namespace
) -> dict[str, Any]:
    """Every figure, for `--json`."""
    import sqlite3
    from importlib import metadata

    from voken_lab.evaluation.machine import Machine

    lance = importlib.util.find_spec("lance") is not None
    versions = {name: metadata.version(name) for name in ("pylance", "pyarrow") if lance}
    return {
        "benchmark": "stores",
        "workload": {
            "levels": LEVELS,
            "dim": DIM,
            "writes_a_round": WRITES,
            "removals_a_round": [REMOVED, REMOVALS],
            "together": {"pictures": SMALL_BASE, "largest_batch": MEETING_BATCH, "seconds": options.seconds},
            "kills": {"pictures": SMALL_BASE, "largest_batch": LARGEST_BATCH, "window": KILL_WINDOW},
            "kills_a_folder": KILLS_A_FOLDER,
            "rounds": options.rounds,
            "write_rounds": options.write_rounds,
            "seed": options.seed,
        },
        "machine": dataclasses.asdict(Machine.here()) | {"sqlite": sqlite3.sqlite_version, **versions},
        "rows": [dataclasses.asdict(row) for row in rows],
        "together": [dataclasses.asdict(one) for one in together],
        "kills": [dataclasses.asdict(one) for one in killed],
    }


if __name__ == "__main__":
    main()
