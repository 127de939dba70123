"""Does a collection lose anything when the process that changes it is killed, at any moment?

A writer adds groups of pictures, removes groups and compacts, and reports each change once `Store` has returned. It is
killed with SIGKILL after a random time (--times), or right before the n-th time that Python opens a file for writing,
renames or removes a file, makes a folder or opens the database, for every n until a compaction has finished (--points).
Then the collection is opened and compared with the reports:

- every reported change is there; the change in flight is there whole or not at all;
- no group is there in part, and every picture has the vokens, vector and metadata that its id implies;
- the doctor finds nothing wrong, and a search finds a picture.

Meanwhile another process opens version after version and looks for incomplete groups. Each writer goes on with what the
last one left. The page cache outlives a process, so this says nothing about power cuts (docs/reference/speed.md).

    python tests/stress/kill.py --times 300 --points --seed 0 --json out.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from voken.collection.base import FACTS, Base, Lookup, TextColumn, column
from voken.collection.doctor import examine
from voken.collection.snapshot import Snapshot
from voken.collection.store import Entry, FileFacts, Store
from voken.decoding.beam import beam_search_from_state
from voken.decoding.nearest import NearestSequences
from voken.decoding.trie import VokenTrie
from voken_lab.evaluation.machine import Machine

LEVELS, ENTRIES, DIM = 4, 64, 16
GROUP = 5
"""Pictures per group; a group is added and removed as a whole."""
COMPACTED_EVERY = 12
"""How many changes lie between two compactions."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """What a collection needs of an image tokenizer."""

    levels: int
    codebook_size: int
    codebooks: np.ndarray


def main(arguments: list[str] | None = None) -> None:
    """Kill, compare, print, write JSON. The exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=300, help="kills at random moments")
    parser.add_argument(
        "--points", action="store_true", help="also kill before each step that Python takes on the disk"
    )
    parser.add_argument("--base", type=int, default=2_000, help="groups in the collection at the beginning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.write:
        write(Path(options.write[0]), int(options.write[1]), int(options.write[2]))
        return
    if options.read:
        read(Path(options.read))
        return
    with tempfile.TemporaryDirectory(prefix="voken-") as folder:
        counts = run(Path(folder) / "c", options.times, options.points, options.base, options.seed)
    print("\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in counts.items()))
    if options.json:
        machine = dataclasses.asdict(Machine.here())
        options.json.write_text(json.dumps(counts | {"machine": machine, "command": sys.argv}, indent=2) + "\n")
    if counts["lost"] or counts["half"] or counts["wrong"] or counts["readers_saw_half"]:
        sys.exit(1)


def run(folder: Path, times: int, points: bool, base: int, seed: int) -> dict[str, Any]:
    """All kills on one collection, one after another; returns what was counted."""
    make(folder, base)
    expected = {f"base-{group}" for group in range(base)}
    counts: Counter[str] = Counter(kills=0, changes_told=0, lost=0, half=0, wrong=0, in_flight_made=0, in_flight_not=0)
    opening: list[float] = []
    chance = random.Random(seed)
    with subprocess.Popen(
        [sys.executable, __file__, "--read", str(folder)], stdout=subprocess.PIPE, text=True
    ) as reader:
        for number in range(times):
            expected = kill_once(folder, expected, counts, opening, seed * 1_000_000 + number, chance.expovariate(4), 0)
        point, through = 0, not points
        while not through:
            point += 1
            before = counts["changes_told"]
            expected = kill_once(folder, expected, counts, opening, seed * 1_000_000 + 500_000 + point, 60.0, point)
            through = counts["changes_told"] - before > COMPACTED_EVERY
        reader.terminate()
        assert reader.stdout is not None
        seen = [int(word) for word in reader.stdout.read().split()]
    return {
        **counts,
        "points": point,
        "opening_ms_median": round(1000 * float(np.median(opening)), 1),
        "opening_ms_most": round(1000 * max(opening), 1),
        "versions_seen_by_the_reader": seen[0] if seen else 0,
        "readers_saw_half": seen[1] if seen else -1,
    }


def kill_once(
    folder: Path, expected: set[str], counts: Counter[str], opening: list[float], seed: int, delay: float, point: int
) -> set[str]:
    """Start a writer, kill it, and compare. Returns the groups that are in the collection."""
    command = [sys.executable, __file__, "--write", str(folder), str(seed), str(point)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline()]  # it has opened the collection
        if point == 0:
            time.sleep(delay)
            os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
    lines_told = [line.split() for line in lines[1:] if line.endswith("\n")]
    phase = "compaction" if lines_told and lines_told[-1][0] == "compacting" else "change"
    counts["kills"] += 1
    counts[f"killed_in_{phase}"] += 1
    flight: list[str] = []
    for words in lines_told:
        if words[0] in ("adding", "removing"):
            flight = words
        elif words[0] == "made":
            expected = changed(expected, flight)
            counts["changes_told"] += 1
            flight = []
    begin = time.perf_counter()
    snapshot = Store.open(folder).snapshot()
    opening.append(time.perf_counter() - begin)
    there, half, wrong = groups_of(snapshot)
    counts["half"] += half
    counts["wrong"] += wrong + int(not answers(folder, snapshot))
    counts["wrong"] += sum(
        one.level == "wrong" and "its model" not in one.what and "was made with" not in one.what
        for one in examine(folder)
    )
    if there != expected:
        after = changed(expected, flight)
        counts["lost"] += int(there != after)
        counts["in_flight_made"] += int(there == after)
    elif flight:
        counts["in_flight_not"] += 1
    return there


def changed(groups: set[str], words: list[str]) -> set[str]:
    """The groups after a change."""
    if not words:
        return groups
    return groups | set(words[1:]) if words[0] == "adding" else groups - set(words[1:])


def groups_of(snapshot: Snapshot) -> tuple[set[str], int, int]:
    """The groups of a snapshot, how many are incomplete, and how many pictures differ from what their ids imply."""
    rows = snapshot.rows
    ids = [snapshot.ids[row] for row in rows.tolist()]
    counts = Counter(name.rpartition("/")[0] for name in ids)
    assert snapshot.vectors is not None
    vectors = np.asarray(snapshot.vectors[rows])
    wrong = 0
    for place, name in enumerate(ids):
        one = entry(name)
        assert one.vector is not None
        same = np.array_equal(snapshot.vokens[place], one.vokens) and np.array_equal(vectors[place], one.vector)
        wrong += not (same and snapshot.metadata(int(rows[place])) == one.metadata)
    return set(counts), sum(count != GROUP for count in counts.values()), wrong


def answers(folder: Path, snapshot: Snapshot) -> bool:
    """Whether a search for a picture's own sequence finds the picture."""
    if not len(snapshot):
        return True
    walker = NearestSequences(Store.open(folder).codebooks())
    row = int(snapshot.rows[-1])
    sequence = snapshot.sequence(row)[None].astype(np.int64)
    # at full width, as codebooks that were drawn at random may hide the nearest from a narrow search
    every = snapshot.trie.sequences
    beams = beam_search_from_state(walker, walker.prefill(walker.of_sequences(sequence)), snapshot.trie, every)
    return row in snapshot.trie.rows_of(beams.leaf[0][beams.leaf[0] >= 0])[0].tolist()


def entry(name: str) -> Entry:
    """A picture whose vokens, vector and metadata follow from its id."""
    draw = np.random.default_rng(np.frombuffer(name.encode(), np.uint8))
    vokens = draw.integers(0, ENTRIES, LEVELS).astype(np.int32)
    vector = draw.normal(size=DIM).astype(np.float16)
    return Entry(name, name, vokens, vector, FileFacts(1, 2), json.dumps({"of": name}))


def make(folder: Path, groups: int) -> None:
    """Create a collection of `groups` groups."""
    entries = [entry(f"base-{group}/{place}") for group in range(groups) for place in range(GROUP)]
    ids = column([one.image_id for one in entries])
    vectors = np.stack([one.vector for one in entries if one.vector is not None])
    base = Base(
        ids,
        ids,
        VokenTrie.from_vokens(np.stack([one.vokens for one in entries]), ENTRIES),
        vectors,
        np.zeros(len(entries), FACTS),
        TextColumn.of([one.metadata for one in entries]),
        Lookup.of(ids),
    )
    books = np.random.default_rng(0).normal(size=(LEVELS, ENTRIES, DIM)).astype(np.float32)
    tokenizer = Tokenizer(LEVELS, ENTRIES, books)
    Store.create(folder, root=folder, fingerprint="none", tokenizer=tokenizer, vectors=DIM, base=base)


def write(folder: Path, seed: int, point: int) -> None:
    """The writer: prints each change before it begins and after it is done."""
    store = Store.open(folder)
    draw = random.Random(seed)
    groups = sorted(groups_of_ids(store.snapshot()))
    print("opened", flush=True)
    if point:
        die_at(point)
    for number in range(100_000):
        if number % COMPACTED_EVERY == COMPACTED_EVERY - 1:
            print("compacting", flush=True)
            store.compact()
            print("compacted", flush=True)
        elif draw.random() < 0.5 and len(groups) > 1:
            gone = draw.sample(groups, min(len(groups) - 1, draw.randint(1, 3)))
            print("removing", *gone, flush=True)
            store.commit(remove=[f"{group}/{place}" for group in gone for place in range(GROUP)])
            print("made", flush=True)
            groups = [group for group in groups if group not in gone]
        else:
            new = [f"g{seed}-{number}-{place}" for place in range(draw.randint(1, 4))]
            print("adding", *new, flush=True)
            store.commit([entry(f"{group}/{place}") for group in new for place in range(GROUP)])
            print("made", flush=True)
            groups += new
        if point and number > COMPACTED_EVERY + 1:
            return  # a round has fewer points than that


def groups_of_ids(snapshot: Snapshot) -> set[str]:
    """The groups of the pictures in a snapshot."""
    return {snapshot.ids[row].rpartition("/")[0] for row in snapshot.rows.tolist()}


def die_at(point: int) -> None:
    """Kill this process right before the `point`-th step that Python takes on the disk."""
    left = point

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        steps = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "sqlite3.connect", "os.replace")
        writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if event in steps or writes:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def read(folder: Path) -> None:
    """The reader: opens versions until SIGTERM, then prints how many it saw and how many held half a group."""
    versions: set[int] = set()
    half, ended = 0, False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    store, snapshot = Store.open(folder), None
    while not ended:
        snapshot = store.snapshot(snapshot)
        if snapshot.version not in versions:
            versions.add(snapshot.version)
            counts = Counter(snapshot.ids[row].rpartition("/")[0] for row in snapshot.rows.tolist())
            half += any(count != GROUP for count in counts.values())
            half += snapshot.trie.images != len(snapshot)
        time.sleep(0.005)
    print(len(versions), half, flush=True)


if __name__ == "__main__":
    main()
