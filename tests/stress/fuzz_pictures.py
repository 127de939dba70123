"""Does any file stop an index, or a server? Does any take long, or much memory?

Makes --count files out of real pictures (see `hostile_files`): cut, flipped, with lying headers, bombs, loops, other
kinds of files; odd names; named pipes, devices, loops of links; and some pictures of nearly a hundred million pixels.

  index    all of them through `voken.collection.indexing`, in a process of its own, with a model of a few numbers. Each
           file must be indexed or named with a reason, whole pictures must be indexed, and what is none must not be. A
           second run must read no file again, and the doctor must find nothing wrong
  upload   all that are files through `POST /pictures` of the server, and those it takes through thumbnails. Each file
           must be taken or named with a reason; no answer may be a 5xx

A process that says nothing for --patience seconds (ten times that before its first word) has hung; one of more than
--memory MB is ended. Files that were being read at a fault are moved away, and the run goes on. Times of files are CPU
time of the thread that read them, of an upload the process's, by file. Memory is the most the process held; what it
held before it read anything is told beside.

    python tests/stress/fuzz_pictures.py --count 10000 --seed 0 --json out.json

Linux only (memory comes from /proc). As root no file is unreadable, and none is tried.
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
from hostile_files import Made, make
from PIL.Image import Image

from voken.collection.doctor import examine
from voken.collection.store import Store
from voken.config import ReadOutWeights, SearchConfig
from voken.data.captions import CaptionedImage, Dataset
from voken.data.images import list_images
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

    @classmethod
    def new(cls) -> Any:
        """Always the same; it goes for a model of whatever kind is asked for."""
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
        """The same."""
        return self.encode_texts(texts)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Vokens, by the nearest entry of each level."""
        left, found = vectors.astype(np.float32), []
        for book in self.codebooks:
            found.append((np.einsum("ne,ne->n", book, book) - 2 * left @ book.T).argmin(1))
            left = left - book[found[-1]]
        return np.stack(found, axis=1).astype(np.int32)

    def decode(self, vokens: np.ndarray) -> np.ndarray:
        """Unit vectors rebuilt."""
        return _unit(NearestSequences(self.codebooks).of_sequences(np.asarray(vokens, dtype=np.int64)))

    def code_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """What is quantized: the vectors themselves."""
        return vectors

    def prefill(self, texts: Sequence[str]) -> Any:
        """Of a step model: near a text's vector."""
        return NearestSequences(self.codebooks).prefill(self.encode_texts(texts))

    def step(self, state: Any, vokens: Any, parents: Any) -> Any:
        """Of a step model."""
        return NearestSequences(self.codebooks).step(state, vokens, parents)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


# What runs in processes of its own


def tell(**said: Any) -> None:
    """One line, whole, whatever happens next."""
    os.write(1, (json.dumps(said) + "\n").encode())


def telling(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` on a path, telling of its beginning and end."""

    def told(path: Any, *arguments: Any, **options: Any) -> Any:
        tell(begin=step, files=[str(path)])
        began = time.thread_time()
        try:
            return work(path, *arguments, **options)
        finally:
            tell(end=step, files=[str(path)], seconds=time.thread_time() - began)

    return told


def index(pictures: Path, collection: Path) -> None:
    """Index what is there, or go on; tell of every step, and in the end of what there is."""
    from voken.collection import indexing
    from voken.data import images
    from voken.encoders import two_tower  # noqa: F401 -- torch is imported before memory is looked at
    from voken.errors import EmptyDataError

    for module, name in ((indexing, "file_hash"), (indexing, "date_taken"), (images, "open_image")):
        setattr(module, name, telling(name, getattr(module, name)))
    tell(memory=resident())
    model = Colours.new()
    root = pictures.absolute()
    found = tuple(CaptionedImage(path.relative_to(root).as_posix(), path) for path in list_images(root))
    store = (
        Store.open(collection)
        if (collection / "manifest.json").exists()
        else indexing.new_store(collection, root, model)
    )
    for _ in range(2):
        with suppress(EmptyDataError):  # none could be used, and all are named
            indexing.index_pictures(store, Dataset("fuzzed", root, found), model)
        tell(through=True)
    store.compact()
    tell(most=most_resident())


def upload(listed: Path, collection: Path) -> None:
    """Send the files whose names are in a list to a server, some at a time; then ask for a thumbnail of each."""
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
    """Some files, and not too many bytes."""
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
    """A file as a form sends it, under its own name, whatever bytes that has; quotes and line ends are written so."""
    name = os.fsencode(path.name).replace(b'"', b"%22").replace(b"\n", b"%0A").replace(b"\r", b"%0D")
    head = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"'
    return b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + path.read_bytes() + b"\r\n"


def resident(process: int | str = "self") -> float:
    """Megabytes that a process holds now."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def most_resident() -> float:
    """The most that this one has held, as the system remembers it."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


ROLES = {"index": index, "upload": upload}


# What starts and watches them


@dataclass
class Watched:
    """What a process did, over all its restarts."""

    role: str
    hangs: list[list[str]] = field(default_factory=list)
    """Files that were being read, for each."""
    crashes: list[list[str]] = field(default_factory=list)
    too_large: list[list[str]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    """Errors that ended it."""
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """CPU seconds by step and file."""
    through: bool = False
    """All files were read: who reads one now reads it a second time."""
    read_again: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    """Of requests."""
    base_megabytes: float = 0.0
    most_megabytes: float = 0.0

    @property
    def faults(self) -> int:
        """Of all kinds."""
        return len(self.hangs) + len(self.crashes) + len(self.too_large) + len(self.stopped)

    def slowest(self, step: str) -> list[tuple[str, float]]:
        """Files that took longest."""
        found = sorted(self.seconds.get(step, {}).items(), key=lambda one: -one[1])
        return found[:SLOWEST]


def watched(
    role: str, source: Path, collection: Path, *, patience: float, memory: float, away: Callable[[list[str]], None]
) -> Watched:
    """Run a role to its end. At a fault the files in hand are moved `away`, and it goes on."""
    found = Watched(role)
    for _ in range(RESTARTS):
        in_hand = _run(found, source, collection, patience, memory)
        if in_hand is None:
            break
        away(in_hand)
        if not in_hand:
            break  # it would do the same again
    return found


def _run(found: Watched, source: Path, collection: Path, patience: float, memory: float) -> list[str] | None:
    """None where it came to its end; else the files that it was reading."""
    command = [sys.executable, __file__, "--role", found.role, str(source), str(collection)]
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
                    _heard(found, json.loads(line), in_hand)
            held = resident(process.pid) if process.poll() is None else 0.0
            found.most_megabytes = max(found.most_megabytes, held)
            late = time.monotonic() - last > patience
            if fault is None and (late or held > memory):
                fault = found.hangs if late else found.too_large
                process.kill()
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode("utf-8", "replace").strip()
    files = sorted(in_hand.elements())
    if fault is None and code == 0:
        return None
    if fault is not None:
        fault.append(files)
    elif code < 0:
        found.crashes.append(files)
    else:
        found.stopped.append(said[-2000:])
    return files


def _heard(found: Watched, said: dict[str, Any], in_hand: Counter[str]) -> None:
    if "begin" in said:
        in_hand.update(said["files"])
        found.read_again += said["files"] if found.through else []
    elif "end" in said:
        in_hand.subtract(said["files"])
        for name in said["files"]:
            found.seconds.setdefault(said["end"], {})[name] = said["seconds"]
        if "status" in said:
            found.answers.append(said)
    elif "through" in said:
        found.through = True
    elif "memory" in said:
        found.base_megabytes = said["memory"]
    elif "most" in said:
        found.most_megabytes = max(found.most_megabytes, said["most"])


# What is said of it


@dataclass
class Row:
    """What became of the files of one kind."""

    kind: str
    files: int = 0
    indexed: int = 0
    skipped: int = 0
    passed_over: int = 0
    unaccounted: int = 0
    """Neither indexed nor named with a reason, or both."""
    wrongly: int = 0
    """A whole picture that was not indexed, or one that is none and was."""
    taken: int = 0
    """By the server."""
    refused: int = 0
    unaccounted_upload: int = 0
    wrongly_upload: int = 0


def main(given: Sequence[str] | None = None) -> None:
    """Make, run, print tables, write JSON. Exit code 1 where a file did what none may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--near-limit", type=int, default=16, help="pictures of nearly a hundred million pixels, more")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds without a word that are a hang")
    parser.add_argument("--memory", type=float, default=6_000.0, help="MB that no process may hold")
    parser.add_argument("--no-upload", action="store_true", help="through the index alone")
    parser.add_argument("--work", type=Path, help="a folder on the disk to use (that of temporary files)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.role:
        ROLES[options.role](*options.arguments)
        return
    with tempfile.TemporaryDirectory(prefix="voken-fuzz-", dir=options.work) as folder:
        report = run(Path(folder), options)
    print(tables(report))
    command = shlex.join(["python", "tests/stress/fuzz_pictures.py", *(sys.argv[1:] if given is None else given)])
    print(f"\n`{command}`\n\n" + ", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if options.json:
        from voken.artifact import write_json

        write_json(options.json, {**report, "command": command})
    if any(report["faults"].values()):
        sys.exit(1)


def run(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in order."""
    from voken_lab.evaluation.machine import Machine

    pictures, collection, aside = work / "pictures", work / "c", work / "aside"
    aside.mkdir()
    made = list(make(pictures, options.count, options.seed, near_limit=options.near_limit))
    print(f"{len(made):,} files made", file=sys.stderr, flush=True)
    kinds = {str(one.path): one for one in made}
    moved: set[str] = set()

    def away(names: list[str]) -> None:
        for name in set(names) & kinds.keys():
            moved.add(name)
            Path(name).rename(aside / str(len(moved)))

    limits = {"patience": options.patience, "memory": options.memory, "away": away}
    indexed = watched("index", pictures, collection, **limits)
    there, skipped = contents(collection)
    rows = {kind: Row(kind) for kind in sorted({one.kind for one in made})}
    left = [one for one in made if str(one.path) not in moved]
    listed = set(map(str, list_images(pictures)))
    odd = [judge(rows[one.kind], one, listed, there, skipped) for one in left]
    wrong = [one.what for one in examine(collection) if one.level == "wrong" and "was made with" not in one.what]
    found: dict[str, Any] = {"index": indexed}
    if not options.no_upload:
        names = work / "names.json"
        names.write_text(json.dumps([str(one.path) for one in left if one.is_file]))
        sent = watched("upload", names, collection, **limits)
        found["upload"] = sent
        odd += sent_judged(rows, kinds, sent)
        wrong += [one.what for one in examine(collection) if one.level == "wrong" and "was made with" not in one.what]
    odd = [one for one in odd if one]
    statuses = Counter(f"{one['end']} {one['status']}" for run in found.values() for one in run.answers)
    return {
        "benchmark": "fuzz_pictures",
        "machine": asdict(Machine.here()),
        "settings": {name: getattr(options, name) for name in ("count", "seed", "near_limit", "patience", "memory")},
        "as_root": os.geteuid() == 0,
        "rows": [asdict(row) for row in rows.values()],
        "runs": {name: told(one, kinds) for name, one in found.items()},
        "statuses": dict(sorted(statuses.items())),
        "reasons": dict(Counter(re.sub(r"\d[\d,]*", "N", reason) for reason in skipped.values()).most_common(40)),
        "odd": odd[:200],
        "doctor": wrong,
        "faults": {
            "hangs": sum(len(one.hangs) for one in found.values()),
            "crashes": sum(len(one.crashes) for one in found.values()),
            "over the memory": sum(len(one.too_large) for one in found.values()),
            "errors that ended a run": sum(len(one.stopped) for one in found.values()),
            "unaccounted": sum(row.unaccounted + row.unaccounted_upload for row in rows.values()),
            "wrongly indexed or skipped": sum(row.wrongly + row.wrongly_upload for row in rows.values()),
            "read a second time": len(indexed.read_again),
            "answers 5xx": sum(count for name, count in statuses.items() if name.split()[1] >= "500"),
            "doctor": len(wrong),
        },
    }


def contents(collection: Path) -> tuple[set[str], dict[str, str]]:
    """Paths of the pictures of a collection; reasons by path of those it skipped."""
    snapshot = Store.open(collection).snapshot()
    return set(map(str, snapshot.paths)), {one.path: one.reason for one in snapshot.skipped}


def judge(row: Row, one: Made, listed: set[str], there: set[str], skipped: dict[str, str]) -> str:
    """Count what became of a file of the folder; what is odd about it, or nothing."""
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
    # a picture may have been made under a name that says it is none, and the other way round
    if one.fate not in ("either", fate):
        row.wrongly += 1
        return f"{one.kind}: {path!r} was {fate} ({skipped.get(path, '')}), and should be {one.fate}"
    return ""


def sent_judged(rows: dict[str, Row], kinds: dict[str, Made], sent: Watched) -> list[str]:
    """Count what became of the files that were uploaded; what is odd."""
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
            made, row = kinds[name], rows[kinds[name].kind]
            digest = blake2b(made.path.read_bytes(), digest_size=16).hexdigest()
            raw = os.fsencode(made.path.name).replace(b'"', b"%22").replace(b"\n", b"%0A").replace(b"\r", b"%0D")
            is_taken = digest in taken
            is_refused = any(
                refused.get(display_name(raw.decode(coding, "replace"))) for coding in ("utf-8", "latin-1")
            )
            row.taken += is_taken
            row.refused += is_refused and not is_taken
            if not is_taken and not is_refused:
                row.unaccounted_upload += 1
                odd.append(f"upload of {name!r} is unaccounted for: {answer['skipped']}")
            elif made.fate in ("indexed", "skipped") and is_taken != (made.fate == "indexed"):
                near = made.kind == "near the limit"  # the server takes smaller ones only
                row.wrongly_upload += not near
                odd.append("" if near else f"upload of {name!r}: {refused}, and should be {made.fate}")
    return odd


def told(one: Watched, kinds: dict[str, Made]) -> dict[str, Any]:
    """A run for the report: names with their kinds."""

    def shown(name: str) -> str:
        made = kinds.get(name)
        return f"{made.kind}: {made.path.name}".encode("utf-8", "backslashreplace").decode() if made else name

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
        for step, said in one["steps"].items():
            file, took = said["slowest"][0]
            shown = [name, step, f"{said['files']:,}", f"{1e3 * said['median']:.2f}", f"{1e3 * took:,.0f}", repr(file)]
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
