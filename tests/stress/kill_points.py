"""Is anything lost when a process that changes a collection is killed right before any one of its system calls?

`kill.py` kills at random moments and before the steps that Python takes; this program also kills inside SQLite. A
writer goes through a short story: it adds groups of pictures, removes some, does both in one change, and compacts,
twice. It is traced (ptrace), and killed with SIGKILL right before the n-th system call that can change a file (write,
sync, truncate, rename, unlink, mkdir, creating open), for every n. The collection that a kill leaves is opened and
compared:

- every reported change is there; the change in flight is there whole or not at all, additions and removals alike;
- each picture has the vokens, vector and metadata that its id implies, a search finds it, the doctor finds nothing
  wrong;
- another change and another compaction work, and leave no unneeded file in the folder.

With --recovery, if a kill leaves a journal to roll back, the next process that opens the collection is killed as well,
before each of its own calls. The page cache outlives a process: this says nothing about power cuts.

    python tests/stress/kill_points.py --recovery --json out.json

Linux, on x86-64 or arm64.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kill import GROUP, answers, entry, groups_of, make
from voken.collection.doctor import examine
from voken.collection.store import FILE, Store
from voken_lab.evaluation.machine import Machine

_TRACEME, _SYSCALL, _SETOPTIONS, _SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _EXITKILL = 1, 0x100000
_ENTRY = 1
_CALLS = {
    "x86_64": {
        1: "write", 18: "pwrite", 20: "writev", 26: "msync", 40: "sendfile", 74: "fsync", 75: "fdatasync",
        76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink",
        257: "openat", 258: "mkdirat", 263: "unlinkat", 264: "renameat", 285: "fallocate", 316: "renameat2",
        326: "copy_file_range",
    },
    "aarch64": {
        34: "mkdirat", 35: "unlinkat", 38: "renameat", 45: "truncate", 46: "ftruncate", 47: "fallocate", 56: "openat",
        64: "write", 66: "writev", 68: "pwrite", 71: "sendfile", 82: "fsync", 83: "fdatasync", 227: "msync",
        276: "renameat2", 285: "copy_file_range",
    },
}  # fmt: skip
"""By number: what can change a file. An open counts if it may create or truncate a file."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _SyscallInfo(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("padding", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("number", ctypes.c_uint64),
        ("arguments", ctypes.c_uint64 * 6),
        ("more", ctypes.c_uint64 * 2),
    )


@dataclass(frozen=True)
class Run:
    """What a traced process did."""

    lines: list[str]
    """The complete lines that it wrote."""
    call: str
    """The call right before which it was killed; empty if it finished."""


def traced(work: Callable[[Callable[[str], None]], None], point: int) -> Run:
    """Do `work` in a process of its own, killed right before its `point`-th call that can change a file.

    `work` gets a function that reports a line. Raises `SystemExit` if processes cannot be traced, or if `work` fails.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            work(lambda line: _whole_line(theirs, line))
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    os.waitpid(child, 0)
    if _libc.ptrace(_SETOPTIONS, child, None, ctypes.c_void_p(_SYSGOOD | _EXITKILL)):
        os.kill(child, signal.SIGKILL)
        raise SystemExit(f"Processes cannot be traced here ({os.strerror(ctypes.get_errno())}).")
    call, status = _until(child, point)
    with open(ours, "rb") as source:
        lines = source.read().decode().split("\n")[:-1]
    if not call and status:
        raise SystemExit(f"The process that was to be killed ended by itself: {status}")
    return Run(lines, call)


def _until(child: int, point: int) -> tuple[str, int]:
    """Trace the child. Returns the call it was killed at, or an empty string and its exit status."""
    calls = _CALLS[platform.machine()]
    info = _SyscallInfo()
    passed_on = 0
    while True:
        _libc.ptrace(_SYSCALL, child, None, ctypes.c_void_p(passed_on))
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            return "", status
        stopped = os.WSTOPSIG(status)
        passed_on = 0 if stopped in (signal.SIGTRAP | 0x80, signal.SIGTRAP) else stopped
        if stopped != signal.SIGTRAP | 0x80:
            continue
        _libc.ptrace(_SYSCALL_INFO, child, ctypes.c_void_p(ctypes.sizeof(info)), ctypes.byref(info))
        name = calls.get(info.number, "") if info.op == _ENTRY else ""
        if not name or (name == "openat" and not info.arguments[2] & (os.O_CREAT | os.O_TRUNC)):
            continue
        point -= 1
        if point == 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return name, 0


def _whole_line(pipe: int, line: str) -> None:
    os.write(pipe, f"{line}\n".encode())


# The story


@dataclass(frozen=True)
class Step:
    """One change; a step that adds and removes nothing is a compaction."""

    name: str
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()

    def do(self, store: Store) -> None:
        """Apply the step, in one transaction."""
        if self.added or self.removed:
            entries = [entry(name) for group in sorted(self.added) for name in members(group)]
            store.commit(entries, remove=[name for group in sorted(self.removed) for name in members(group)])
        else:
            store.compact()

    def of(self, groups: frozenset[str]) -> frozenset[str]:
        """The groups after this step."""
        return (groups | self.added) - self.removed


STORY = (
    Step("add", added=frozenset({"g1", "g2"})),
    Step("remove", removed=frozenset({"g1", "base-0"})),
    Step("compact"),
    Step("add and remove", added=frozenset({"g3", "g4"}), removed=frozenset({"g2", "base-1", "base-2"})),
    Step("remove again", removed=frozenset({"g3"})),
    Step("compact again"),
)
AFTERWARDS = Step("afterwards", added=frozenset({"last"}))


def members(group: str) -> list[str]:
    """Ids of the pictures of a group."""
    return [f"{group}/{place}" for place in range(GROUP)]


def write(folder: Path, tell: Callable[[str], None]) -> None:
    """The writer: reports the beginning and the end of each step."""
    store = Store.open(folder)
    for step in STORY:
        tell(f"begin {step.name}")
        step.do(store)
        tell(f"done {step.name}")


def recover(folder: Path, tell: Callable[[str], None]) -> None:
    """The next process: opens the collection."""
    Store.open(folder).snapshot()
    tell("opened")


def groups_after(base: int, steps: int) -> frozenset[str]:
    """The groups after the first `steps` steps of the story."""
    groups = frozenset(f"base-{number}" for number in range(base))
    for step in STORY[:steps]:
        groups = step.of(groups)
    return groups


# The comparison


@dataclass
class Row:
    """What the kills in one step left."""

    step: str
    kills: int = 0
    completed: int = 0
    """The step in flight was there, complete."""
    not_completed: int = 0
    journals: int = 0
    """Left to be rolled back."""
    lost: int = 0
    half: int = 0
    wrong: int = 0
    not_opened: int = 0
    stuck: int = 0
    """The next change failed, or left an unneeded file in the folder."""
    open_ms_most: float = 0.0

    @property
    def faults(self) -> int:
        """How many faults of all kinds."""
        return self.lost + self.half + self.wrong + self.not_opened + self.stuck


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, print, write JSON. The exit code is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=20, help="groups in the collection at the beginning")
    parser.add_argument("--recovery", action="store_true", help="also kill the process that rolls back a journal")
    parser.add_argument("--every", type=int, default=1, help="kill at every n-th call only")
    parser.add_argument("--work", type=Path, help="a folder on the disk to use (that of temporary files)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if platform.machine() not in _CALLS or sys.platform != "linux":
        raise SystemExit(f"System calls of {sys.platform} on {platform.machine()} are not known here.")
    with tempfile.TemporaryDirectory(prefix="voken-", dir=options.work) as folder:
        rows, faults, calls = run(Path(folder), options)
    print(table(rows))
    print("\n".join(f"- {fault}" for fault in faults[:20]))
    command = shlex.join(["python", *sys.argv])
    machine = asdict(Machine.here())
    print(f"\n`{command}`\n\n" + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json:
        report = {"benchmark": "kill_points", "machine": machine, "command": command, "base": options.base}
        report |= {"rows": [asdict(row) for row in rows], "faults": faults, "calls": calls}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if faults:
        sys.exit(1)


def run(work: Path, options: argparse.Namespace) -> tuple[list[Row], list[str], dict[str, int]]:
    """Kill at every point. Returns the counts by step, the faults, and how often each call was hit."""
    pristine, folder, as_left = work / "pristine", work / "c", work / "kept"
    make(pristine, options.base)
    rows = {name: Row(name) for name in ("opening", *(step.name for step in STORY), "recovery")}
    faults: list[str] = []
    calls: dict[str, int] = {}
    for point in range(1, sys.maxsize, options.every):
        restore(pristine, folder)
        killed = traced(lambda tell: write(folder, tell), point)
        if not killed.call:
            break
        calls[killed.call] = calls.get(killed.call, 0) + 1
        finished = sum(line.startswith("done ") for line in killed.lines)
        begun = sum(line.startswith("begin ") for line in killed.lines)
        row = rows[STORY[finished].name if begun > finished else "opening" if not begun else STORY[begun - 1].name]
        where = f"{row.step}, before call {point} ({killed.call})"
        if options.recovery and has_journal(folder):
            restore(folder, as_left)
            faults += recovered(as_left, folder, rows["recovery"], options.base, finished, begun, where)
            restore(as_left, folder)
        faults += judged(folder, row, options.base, finished, begun, where)
        if point % 50 == 1:
            print(f"{point} points, {row.step}", file=sys.stderr, flush=True)
    return list(rows.values()), faults, calls


def recovered(as_left: Path, folder: Path, row: Row, base: int, finished: int, begun: int, where: str) -> Iterator[str]:
    """Faults after the process that opens the collection next is killed as well, at each of its points."""
    for point in range(1, sys.maxsize):
        restore(as_left, folder)
        killed = traced(lambda tell: recover(folder, tell), point)
        if not killed.call:
            return
        yield from judged(folder, row, base, finished, begun, f"{where}, opened, before call {point} ({killed.call})")


def judged(folder: Path, row: Row, base: int, finished: int, begun: int, where: str) -> list[str]:
    """Count what a kill left. Returns the faults."""
    row.kills += 1
    row.journals += has_journal(folder)
    before, after = groups_after(base, finished), groups_after(base, begun)
    faults: list[str] = []
    try:
        begin = time.perf_counter()
        snapshot = Store.open(folder).snapshot()
        row.open_ms_most = max(row.open_ms_most, 1e3 * (time.perf_counter() - begin))
        groups, half, wrong = groups_of(snapshot)
        doctor = [one.what for one in examine(folder) if one.level == "wrong" and "was made with" not in one.what]
        is_found = answers(folder, snapshot)
    except Exception as error:  # any error counts
        row.not_opened += 1
        return [f"{where}: {error!r}"]
    if groups not in (before, after):
        row.lost += 1
        faults.append(f"{where}: there are {sorted(groups ^ before)} more or less than reported")
    row.completed += begun > finished and groups == after != before
    row.not_completed += begun > finished and groups == before != after
    row.half += half
    row.wrong += wrong + len(doctor) + (not is_found)
    if half or wrong or doctor or not is_found:
        faults.append(f"{where}: {half} half groups, {wrong} pictures that are others, {doctor}, found: {is_found}")
    try:
        left = goes_on(folder, frozenset(groups))
    except Exception as error:
        left = repr(error)
    row.stuck += bool(left)
    return [*faults, *([f"{where}, afterwards: {left}"] if left else [])]


def goes_on(folder: Path, groups: frozenset[str]) -> str:
    """What is wrong with the next change and compaction; empty if nothing is."""
    store = Store.open(folder)
    AFTERWARDS.do(store)
    store.compact()
    there, half, wrong = groups_of(Store.open(folder).snapshot(verify=True))
    names = sorted(path.name for path in folder.iterdir() if path.name.lstrip(".").startswith("base-"))
    well = there == AFTERWARDS.of(groups) and not half and not wrong and len(names) == 1 and not has_journal(folder)
    return "" if well else f"{sorted(there)}, {half} half, {wrong} wrong, {names}"


def has_journal(folder: Path) -> bool:
    """Whether SQLite left a journal to roll back."""
    journal = folder / f"{FILE}-journal"
    return journal.exists() and journal.stat().st_size > 0


def restore(source: Path, folder: Path) -> None:
    """Replace `folder` by a copy of `source`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)


def table(rows: list[Row]) -> str:
    """A Markdown table with a line per step and one for the sum."""
    heads = list(Row.__dataclass_fields__)
    lines = [["killed in", *(name.replace("_", " ") for name in heads[1:])], ["---", *["---:"] * (len(heads) - 1)]]
    total = Row("all")
    for row in rows:
        for name in heads[1:-1]:
            setattr(total, name, getattr(total, name) + getattr(row, name))
        total.open_ms_most = max(total.open_ms_most, row.open_ms_most)
    for row in [*rows, total]:
        counts: list[Any] = [getattr(row, name) for name in heads[1:-1]]
        lines.append([row.step, *(f"{count:,}" for count in counts), f"{row.open_ms_most:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
