"""Does any file stop the indexing or the server, take long, or need much memory?

Makes --count files from real pictures (see `hostile_files`): truncated, with flipped bits, lying headers, bombs, loops,
other kinds of files; odd names; named pipes, devices, loops of links; and pictures of nearly a hundred million pixels.

  index    `voken.collection.indexing` gets all of them, in a process of its own, with a model of a few numbers. Each
           file must be indexed or listed with a reason; a whole picture must be indexed, and what is no picture must
           not. A second run must read no file again, and the doctor must find nothing wrong
  upload   `POST /pictures` of the server gets all plain files; those it accepts are fetched as thumbnails. Each file
           must be accepted or listed with a reason; no response may be a 5xx

A process that prints nothing for --patience seconds (ten times that before its first line) counts as hung; one that
holds more than --memory MB is killed. The files it was reading are moved away, and the run goes on. The time of a file
is the CPU time of the thread that read it; of an upload, the CPU time of the process, divided by the files. The table
shows the most memory that the process held, and what it held before it read anything.

    python tests/stress/fuzz_pictures.py --count 10000 --seed 0 --json out.json

Linux only (memory comes from /proc). Root can read every file, so a run as root tries no unreadable one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from hostile_files import HostileFile, make
from voken.collection.doctor import examine
from voken.collection.store import Store
from voken.config import ReadOutWeights, SearchConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.picture_folder import list_folder
from voken.decoding.nearest import NearestSequences

LEVELS, ENTRIES, SIDE = 3, 64, 4
RESTARTS = 50
"""Faults after which a run is given up."""
SLOWEST = 5
FILES_A_REQUEST, REQUEST_BYTES = 20, 8 << 20
TOKEN = "fuzz"
POLLED = 0.05


@dataclass(frozen=True)
class Colours:
    """A model of a few numbers: a picture is SIDE × SIDE mean colours, a text is noise.

    It has what indexing, a search and the server ask of a model.
    """

    codebooks: np.ndarray
    name: str = "colours"
    fingerprint: str = "c0105"
    dim: int = 3 * SIDE * SIDE
    levels: int = LEVELS
    codebook_size: int = ENTRIES
    device: None = None
    log_probs: bool = False
    reads_trees: bool = False
    calibration: None = None
    prior_captions: tuple[str, ...] = ()

    @classmethod
    def new(cls) -> Any:
        """The same model each time."""
        draw = np.random.default_rng(0)
        return cls((draw.normal(size=(LEVELS, ENTRIES, 3 * SIDE * SIDE)) / 8).astype(np.float32))

    @property
    def weights(self) -> ReadOutWeights:
        """Of the read-outs."""
        return ReadOutWeights(1.0, 1.0)

    @property
    def search(self) -> SearchConfig:
        """How it is searched by default."""
        return SearchConfig(beams=8)

    @property
    def encoder(self) -> Colours:
        """Pictures to vectors."""
        return self

    @property
    def tokenizer(self) -> Colours:
        """Vectors to vokens."""
        return self

    @property
    def generator(self) -> Colours:
        """Texts to vokens."""
        return self

    def encode_images(self, images: Sequence[Image]) -> np.ndarray:
        """Unit vectors."""
        small = [np.asarray(image.resize((SIDE, SIDE)), dtype=np.float32).reshape(-1) - 127 for image in images]
        return _unit(np.stack(small))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors."""
        seeds = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
        return _unit(np.stack([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]))

    def query_vectors(self, texts: Sequence[str], state: Any = None) -> np.ndarray:
        """Unit vectors of the texts."""
        return self.encode_texts(texts)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Vokens, by the nearest entry of each level."""
        left, vokens = vectors.astype(np.float32), []
        for book in self.codebooks:
            vokens.append((np.einsum("ne,ne->n", book, book) - 2 * left @ book.T).argmin(1))
            left = left - book[vokens[-1]]
        return np.stack(vokens, axis=1).astype(np.int32)

    def decode(self, vokens: np.ndarray) -> np.ndarray:
        """Unit vectors rebuilt."""
        return _unit(NearestSequences(self.codebooks).of_sequences(np.asarray(vokens, dtype=np.int64)))

    def code_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """The vectors that are quantized: those of the encoder, unchanged."""
        return vectors

    def prefill(self, texts: Sequence[str]) -> Any:
        """See `StepModel`: sequences near a text's vector are likely."""
        return NearestSequences(self.codebooks).prefill(self.encode_texts(texts))

    def step(self, state: Any, vokens: Any, parents: Any) -> Any:
        """See `StepModel`."""
        return NearestSequences(self.codebooks).step(state, vokens, parents)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


# What runs in processes of its own


def tell(**event: Any) -> None:
    """Write one line in one call, so that it is whole even if the process dies next."""
    os.write(1, (json.dumps(event) + "\n").encode())


def telling(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, which takes a path, with an event before and after each call."""

    def run_report(path: Any, *arguments: Any, **options: Any) -> Any:
        tell(begin=step, files=[str(path)])
        began = time.thread_time()
        try:
            return work(path, *arguments, **options)
        finally:
            tell(end=step, files=[str(path)], seconds=time.thread_time() - began)

    return run_report


def index(pictures: Path, collection: Path) -> None:
    """Index the folder twice, or go on with an interrupted run; announce every step and the memory used."""
    from voken.collection import indexing
    from voken.data import images
    from voken.encoders import two_tower  # noqa: F401 -- torch is imported before memory is looked at
    from voken.errors import EmptyDataError

    for module, name in ((indexing, "file_hash"), (indexing, "date_taken"), (images, "open_image")):
        setattr(module, name, telling(name, getattr(module, name)))
    tell(memory=resident())
    model = Colours.new()
    root = pictures.absolute()
    captioned = tuple(CaptionedImage(path.relative_to(root).as_posix(), path) for path in list_folder(root).pictures)
    store = (
        Store.open(collection)
        if (collection / "manifest.json").exists()
        else indexing.new_store(collection, root, model)
    )
    for _ in range(2):
        with suppress(EmptyDataError):  # none could be used, and all are named
            indexing.index_pictures(store, Dataset("fuzzed", root, captioned), model)
        tell(through=True)
    store.compact()
    tell(most=most_resident())


def upload(listed: Path, collection: Path) -> None:
    """Upload the files of a JSON list in batches, and fetch a thumbnail of each accepted one."""
    from starlette.testclient import TestClient

    from voken import Collection
    from voken.serve.app import create_app
    from voken.serve.settings import ServeSettings

    collected = Collection.open(collection, model=Colours.new())
    thumbnails = collection.with_name("thumbnails")
    app = create_app(collected, ServeSettings(token=TOKEN, thumbnail_folder=thumbnails, max_body=16 << 20))
    paths = [Path(name) for name in json.loads(listed.read_text())]
    tell(memory=resident())
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        for files in batches([path for path in paths if path.exists()]):
            boundary = b"----fuzz"
            body = b"".join(part(path, boundary) for path in files) + b"--" + boundary + b"--\r\n"
            headers = {
                "Authorization": f"Bearer {TOKEN}",
                "Content-Type": f"multipart/form-data; boundary={boundary.decode()}",
            }
            names = list(map(str, files))
            tell(begin="upload", files=names)
            began = time.process_time()
            answer = client.post("/pictures", content=body, headers=headers)
            seconds = (time.process_time() - began) / len(files)
            tell(end="upload", files=names, seconds=seconds, status=answer.status_code, answer=answer.text)
            if answer.status_code == 200:
                for one in (*answer.json()["added"], *answer.json()["updated"]):
                    tell(begin="thumbnail", files=[one])
                    began = time.process_time()
                    small = client.get(f"/pictures/{one}", params={"thumbnail": 64})
                    seconds = time.process_time() - began
                    tell(end="thumbnail", files=[one], seconds=seconds, status=small.status_code, answer="")
    collected.close()
    tell(most=most_resident())


def batches(paths: list[Path]) -> Iterator[list[Path]]:
    """Batches limited in files and in bytes."""
    batch: list[Path] = []
    size = 0
    for path in paths:
        length = path.stat().st_size
        if batch and (len(batch) == FILES_A_REQUEST or size + length > REQUEST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch


def part(path: Path, boundary: bytes) -> bytes:
    """The multipart section of a file, under its real name; quotes and line ends are percent-encoded."""
    name = os.fsencode(path.name).replace(b'"', b"%22").replace(b"\n", b"%0A").replace(b"\r", b"%0D")
    head = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"'
    return b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + path.read_bytes() + b"\r\n"


def resident(process: int | str = "self") -> float:
    """Megabytes that a process holds now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def most_resident() -> float:
    """Megabytes: the most that this process has held."""
    match = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else 0.0


ROLES = {"index": index, "upload": upload}


# The process that starts and watches them


@dataclass
class Watched:
    """What happened in a process, over all its restarts."""

    role: str
    hangs: list[list[str]] = field(default_factory=list)
    """For each hang, the files that were being read."""
    crashes: list[list[str]] = field(default_factory=list)
    too_large: list[list[str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Errors that ended it."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """CPU seconds by step and file."""
    through: bool = False
    """Whether all files have been read: reading another one would be a second time."""
    read_again: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Responses to requests."""
    base_megabytes: float = 0.0
    most_megabytes: float = 0.0

    @property
    def faults(self) -> int:
        """How many faults of all kinds."""
        return len(self.hangs) + len(self.crashes) + len(self.too_large) + len(self.stopped)

    def slowest(self, step: str) -> list[tuple[str, float]]:
        """Files that took longest."""
        by_time = sorted(self.seconds.get(step, {}).items(), key=lambda one: -one[1])
        return by_time[:SLOWEST]


def watched(
    role: str, source: Path, collection: Path, *, patience: float, memory: float, away: Callable[[list[str]], None]
) -> Watched:
    """Run a role to its end. At a fault the files in hand are moved `away`, and it goes on."""
    watch = Watched(role)
    for _ in range(RESTARTS):
        in_hand = _run(watch, source, collection, patience, memory)
        if in_hand is None:
            break
        away(in_hand)
        if not in_hand:
            break  # it would do the same again
    return watch


def _run(watch: Watched, source: Path, collection: Path, patience: float, memory: float) -> list[str] | None:
    """Run the process once. Returns None if it finished, else the files that it was reading."""
    command = [sys.executable, __file__, "--role", watch.role, str(source), str(collection)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    in_hand: Counter[str] = Counter()
    fault: list[list[str]] | None = None
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        rest, last, open_end = b"", time.monotonic() + 9 * patience, True
        while open_end:
            if select.select([pipe], [], [], POLLED)[0]:
                new = os.read(pipe, 1 << 16)
                open_end, last = bool(new), time.monotonic()
                *lines, rest = (rest + new).split(b"\n")
                for line in lines:
                    _heard(watch, json.loads(line), in_hand)
            held = resident(process.pid) if process.poll() is None else 0.0
            watch.most_megabytes = max(watch.most_megabytes, held)
            late = time.monotonic() - last > patience
            if fault is None and (late or held > memory):
                fault = watch.hangs if late else watch.too_large
                process.kill()
        code = process.wait()
        errors.seek(0)
        error_text = errors.read().decode("utf-8", "replace").strip()
    files = sorted(in_hand.elements())
    if fault is None and code == 0:
        return None
    if fault is not None:
        fault.append(files)
    elif code < 0:
        watch.crashes.append(files)
    else:
        watch.stopped.append(error_text[-2000:])
    return files


def _heard(watch: Watched, event: dict[str, Any], in_hand: Counter[str]) -> None:
    if "begin" in event:
        in_hand.update(event["files"])
        watch.read_again += event["files"] if watch.through else []
    elif "end" in event:
        in_hand.subtract(event["files"])
        for name in event["files"]:
            watch.seconds.setdefault(event["end"], {})[name] = event["seconds"]
        if "status" in event:
            watch.answers.append(event)
    elif "through" in event:
        watch.through = True
    elif "memory" in event:
        watch.base_megabytes = event["memory"]
    elif "most" in event:
        watch.most_megabytes = max(watch.most_megabytes, event["most"])


# The report


@dataclass
class Row:
    """What became of the files of one kind."""

    kind: str
    files: int = 0
    indexed: int = 0
    skipped: int = 0
    passed_over: int = 0
    unaccounted: int = 0
    """Neither indexed nor listed with a reason, or both."""
    wrongly: int = 0
    """A whole picture that was not indexed, or another file that was."""
    taken: int = 0
    """Accepted by the server."""
    refused: int = 0
    unaccounted_upload: int = 0
    wrongly_upload: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, run, print tables, write JSON. The exit code is 1 if any file caused a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--near-limit", type=int, default=16, help="pictures of nearly a hundred million pixels, more")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds without output after which a process has hung"
    )
    parser.add_argument("--memory", type=float, default=6_000.0, help="MB that a process may hold")
    parser.add_argument("--no-upload", action="store_true", help="index only")
    parser.add_argument("--work", type=Path, help="a folder on the disk to use (that of temporary files)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        ROLES[options.role](*options.arguments)
        return
    with tempfile.TemporaryDirectory(prefix="voken-fuzz-", dir=options.work) as folder:
        report = run(Path(folder), options)
    print(tables(report))
    command = shlex.join(
        ["python", "tests/stress/fuzz_pictures.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    print(f"\n`{command}`\n\n" + ", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if options.json:
        from voken.artifact import write_json

        write_json(options.json, {**report, "command": command})
    if any(report["faults"].values()):
        sys.exit(1)


def run(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; returns the report."""
    from voken_lab.evaluation.machine import Machine

    pictures, collection, aside = work / "pictures", work / "c", work / "aside"
    aside.mkdir()
    files = list(make(pictures, options.count, options.seed, near_limit=options.near_limit))
    print(f"{len(files):,} files made", file=sys.stderr, flush=True)
    kinds = {str(one.path): one for one in files}
    moved: set[str] = set()

    def away(names: list[str]) -> None:
        for name in set(names) & kinds.keys():
            moved.add(name)
            Path(name).rename(aside / str(len(moved)))

    limits = {"patience": options.patience, "memory": options.memory, "away": away}
    indexed = watched("index", pictures, collection, **limits)
    there, skipped = contents(collection)
    rows = {kind: Row(kind) for kind in sorted({one.kind for one in files})}
    left = [one for one in files if str(one.path) not in moved]
    listed = set(map(str, list_folder(pictures).pictures))
    odd = [judge(rows[one.kind], one, listed, there, skipped) for one in left]
    wrong = [one.what for one in examine(collection) if one.level == "wrong" and "was made with" not in one.what]
    runs: dict[str, Any] = {"index": indexed}
    if not options.no_upload:
        names = work / "names.json"
        names.write_text(json.dumps([str(one.path) for one in left if one.is_file]))
        sent = watched("upload", names, collection, **limits)
        runs["upload"] = sent
        odd += sent_judged(rows, kinds, sent)
        wrong += [one.what for one in examine(collection) if one.level == "wrong" and "was made with" not in one.what]
    odd = [one for one in odd if one]
    statuses = Counter(f"{one['end']} {one['status']}" for run in runs.values() for one in run.answers)
    return {
        "benchmark": "fuzz_pictures",
        "machine": asdict(Machine.here()),
        "settings": {name: getattr(options, name) for name in ("count", "seed", "near_limit", "patience", "memory")},
        "as_root": os.geteuid() == 0,
        "rows": [asdict(row) for row in rows.values()],
        "runs": {name: run_report(one, kinds) for name, one in runs.items()},
        "statuses": dict(sorted(statuses.items())),
        "reasons": dict(Counter(re.sub(r"\d[\d,]*", "N", reason) for reason in skipped.values()).most_common(40)),
        "odd": odd[:200],
        "doctor": wrong,
        "faults": {
            "hangs": sum(len(one.hangs) for one in runs.values()),
            "crashes": sum(len(one.crashes) for one in runs.values()),
            "over the memory": sum(len(one.too_large) for one in runs.values()),
            "errors that ended a run": sum(len(one.stopped) for one in runs.values()),
            "unaccounted": sum(row.unaccounted + row.unaccounted_upload for row in rows.values()),
            "wrongly indexed or skipped": sum(row.wrongly + row.wrongly_upload for row in rows.values()),
            "read a second time": len(indexed.read_again),
            "answers 5xx": sum(count for name, count in statuses.items() if name.split()[1] >= "500"),
            "doctor": len(wrong),
        },
    }


def contents(collection: Path) -> tuple[set[str], dict[str, str]]:
    """Paths of the pictures of a collection, and the reasons for skipped files, by path."""
    snapshot = Store.open(collection).snapshot()
    return set(map(str, snapshot.paths)), {one.path: one.reason for one in snapshot.skipped}


def judge(row: Row, one: HostileFile, listed: set[str], there: set[str], skipped: dict[str, str]) -> str:
    """Count what happened to a file of the folder. Returns what is wrong with that; empty if nothing is."""
    path = str(one.path)
    row.files += 1
    row.indexed += path in there
    row.skipped += path in skipped
    row.passed_over += path not in listed
    fates = [path in there, path in skipped and bool(skipped[path]), path not in listed]
    if sum(fates) != 1:
        row.unaccounted += 1
        return f"{one.kind}: {path!r} is unaccounted for"
    fate = ("indexed", "skipped", "passed over")[fates.index(True)]
    # a picture may have the suffix of something else, and something else that of a picture
    if one.fate not in ("either", fate):
        row.wrongly += 1
        return f"{one.kind}: {path!r} was {fate} ({skipped.get(path, '')}), and should be {one.fate}"
    return ""


def sent_judged(rows: dict[str, Row], kinds: dict[str, HostileFile], sent: Watched) -> list[str]:
    """Count what happened to the uploaded files. Returns what is wrong with that."""
    from voken.collection.uploads import display_name

    odd = []
    for one in sent.answers:
        if one["end"] != "upload":
            continue
        if one["status"] != 200:
            if one["status"] >= 500:
                odd.append(f"{one['status']} {one['answer']}: {one['files']}")
            continue
        answer = json.loads(one["answer"])
        taken = {Path(name).stem for name in (*answer["added"], *answer["updated"])}
        refused = {skip["path"]: skip["reason"] for skip in answer["skipped"]}
        for name in one["files"]:
            file, row = kinds[name], rows[kinds[name].kind]
            digest = blake2b(file.path.read_bytes(), digest_size=16).hexdigest()
            raw = os.fsencode(file.path.name).replace(b'"', b"%22").replace(b"\n", b"%0A").replace(b"\r", b"%0D")
            is_taken = digest in taken
            is_refused = any(
                refused.get(display_name(raw.decode(coding, "replace"))) for coding in ("utf-8", "latin-1")
            )
            row.taken += is_taken
            row.refused += is_refused and not is_taken
            if not is_taken and not is_refused:
                row.unaccounted_upload += 1
                odd.append(f"upload of {name!r} is unaccounted for: {answer['skipped']}")
            elif file.fate in ("indexed", "skipped") and is_taken != (file.fate == "indexed"):
                near = file.kind == "near the limit"  # the server takes smaller ones only
                row.wrongly_upload += not near
                odd.append("" if near else f"upload of {name!r}: {refused}, and should be {file.fate}")
    return odd


def run_report(one: Watched, kinds: dict[str, HostileFile]) -> dict[str, Any]:
    """A run as the report shows it: files are named with their kinds."""

    def shown(name: str) -> str:
        file = kinds.get(name)
        return f"{file.kind}: {file.path.name}".encode("utf-8", "backslashreplace").decode() if file else name

    steps = {}
    for step, seconds in one.seconds.items():
        slowest = [(shown(name), took) for name, took in one.slowest(step)]
        steps[step] = {"files": len(seconds), "median": statistics.median(seconds.values()), "slowest": slowest}
    return {
        "base_megabytes": round(one.base_megabytes, 1),
        "most_megabytes": round(one.most_megabytes, 1),
        "steps": steps,
        "hangs": [list(map(shown, names)) for names in one.hangs],
        "crashes": [list(map(shown, names)) for names in one.crashes],
        "too_large": [list(map(shown, names)) for names in one.too_large],
        "stopped": one.stopped,
    }


def tables(report: dict[str, Any]) -> str:
    """Markdown: kinds, runs, faults."""
    heads = list(Row.__dataclass_fields__)
    lines = [[name.replace("_", " ") for name in heads], ["---", *["---:"] * (len(heads) - 1)]]
    lines += [[str(row[name]) for name in heads] for row in report["rows"]]
    runs = [["run", "step", "files", "median ms", "slowest ms", "it is", "MB before", "MB at most"]]
    runs.append(["---", "---", "---:", "---:", "---:", "---", "---:", "---:"])
    for name, one in report["runs"].items():
        for step, step_report in one["steps"].items():
            file, took = step_report["slowest"][0]
            shown = [
                name,
                step,
                f"{step_report['files']:,}",
                f"{1e3 * step_report['median']:.2f}",
                f"{1e3 * took:,.0f}",
                repr(file),
            ]
            runs.append([*shown, f"{one['base_megabytes']:,.0f}", f"{one['most_megabytes']:,.0f}"])
    faults = [["faults", ""], ["---", "---:"], *([name, str(count)] for name, count in report["faults"].items())]
    parts = [*(markdown(part) for part in (lines, runs, faults)), f"Answers: {report['statuses']}"]
    if report["as_root"]:
        parts.append("Run as root: no file is unreadable, and none was tried.")
    return "\n\n".join([*parts, *(f"- {one}" for one in report["odd"][:20])])


def markdown(lines: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
