"""Random histories of a folder of pictures and its collection, compared with a plain dictionary after every step.

    python tests/stress/histories.py --histories 2000 --seed 0

A history writes, copies, renames, touches and deletes pictures, changes their metadata and permissions, takes the
folder away and gives it back, indexes, adds, removes, uploads, compacts, moves the collection, and restarts the process
that holds it open. Files of the folder and uploads are added under ids of their own, too. Some changes are killed at a
step on the disk. From time to time another process watches the folder: it must hear of every change, and it is killed,
too. The dictionary `Histories.pictures` says what the collection must hold: the content, the fields and the file of
every id. Only for two of several equal pictures is there a choice: which of them a new name belongs to.

Permissions do not bind root, so this program gives up the right to pass over them (setpriv) before it starts.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import tiny_model as tiny  # type: ignore[import-not-found] # tests are not checked
from kill import die_at
from voken import Collection, api
from voken.collection import indexing, watching
from voken.collection.doctor import examine
from voken.collection.snapshot import UPLOAD_PREFIX
from voken.collection.store import Store
from voken.errors import BusyError, ConfigError, EmptyDataError, VokenError
from voken.search import searcher

ACCENTED = unicodedata.normalize("NFD", "été")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A disk in memory: most of the time would go into waiting for the real one."""
PATHS = ("a.png", "b c.png", "sub/a.png", "sub/d.png", f"{ACCENTED}/e.png", "2024.05/f.png")
COLOURS = {name: tiny.COLOURS[name] for name in ("blue", "red", "white")}
"""Few, so that several pictures are equal."""
OUTSIDE = ("x.png", "y.png")
GIVEN_IDS = ("first", "sub/second")
"""Ids that pictures are added under, whatever their files are called."""
MARKER = "marker.txt"
"""A file that is no picture. A process that watches has seen all that happened before the marker changed."""
HEARD_SECONDS, DONE_SECONDS = 15, 60
"""How long a process that watches may need to see a change, and to bring the collection up to date."""
BROKEN = "broken"
MAX_PIXELS = 10_000
COUNTS: Counter[str] = Counter()

Fields = dict[str, Any]
paths = st.sampled_from(PATHS)
colours = st.sampled_from(sorted(COLOURS))
contents = st.sampled_from([*sorted(COLOURS), *sorted(COLOURS), BROKEN])
kills = st.sampled_from([0] * 8 + [1, 2, 3, 4, 6, 8, 11])
"""0: not killed; else before which step on the disk."""
waits = st.sampled_from([0.0, 0.005, 0.02, 0.04, 0.06, 0.1])
"""Seconds between a change of the folder and the kill of the process that watches it."""
places = st.integers(0, 20)
numbers = st.integers(0, 3)


@dataclass(frozen=True)
class Picture:
    """What the collection holds of a picture."""

    content: str
    fields: str
    """Its metadata, as JSON with sorted keys."""
    path: str
    """Its file: relative to the folder of pictures, below `UPLOAD_PREFIX`, or absolute."""

    @property
    def is_upload(self) -> bool:
        """Whether its file is in the collection's own folder."""
        return self.path.startswith(UPLOAD_PREFIX)


@dataclass
class File:
    """A file in the folder of pictures."""

    content: str
    readable: bool = True


def as_text(fields: Fields) -> str:
    """Fields in one form."""
    return json.dumps(fields, sort_keys=True)


def png(content: str) -> bytes:
    """The bytes of a file."""
    if content == BROKEN:
        return b"no picture"
    target = BytesIO()
    Image.new("RGB", (8, 8), COLOURS[content]).save(target, "PNG")
    return target.getvalue()


EMPTY = as_text({})
MODEL = tiny.tiny_model(levels=2, entries=8)
BYTES = {content: png(content) for content in (*COLOURS, BROKEN)}
VECTORS = {name: MODEL.encoder.encode_images([Image.new("RGB", (8, 8), colour)])[0] for name, colour in COLOURS.items()}
VOKENS = {name: MODEL.tokenizer.encode(vector[None])[0].tolist() for name, vector in VECTORS.items()}
CONTENT_OF_VECTOR = {vector.astype(np.float16).tobytes(): content for content, vector in VECTORS.items()}
UPLOADS = {
    f"pictures/{digest[:2]}/{digest}.png": content
    for content in COLOURS
    for digest in [blake2b(BYTES[content], digest_size=16).hexdigest()]
}
ID_OF_UPLOAD = {content: name for name, content in UPLOADS.items()}


class Histories(RuleBasedStateMachine):
    """One history."""

    def __init__(self) -> None:
        super().__init__()
        COUNTS["histories"] += 1
        if COUNTS["histories"] % 100 == 0:
            print(dict(COUNTS), file=sys.stderr, flush=True)
        self.work = Path(tempfile.mkdtemp(prefix="voken-history-", dir=MEMORY))
        self.root, self.folder = self.work / "photos", self.work / "c"
        self.root.mkdir()
        (self.work / "elsewhere").mkdir()
        self.files: dict[str, File] = {}
        self.outside: dict[str, str] = {}
        self.listed: dict[str, Fields] | None = None
        """The lines of metadata.jsonl; None if there is no such file."""
        self.closed: set[str] = set()
        """Subfolders that cannot be listed."""
        self.away = False
        self.pictures: dict[str, Picture] = {}
        self.time = 1_700_000_000
        self.opened: Collection | None = None
        self.watcher: Watcher | None = None
        self.is_changed = False
        """Whether the folder was changed since the process that watches it was last compared."""

    def teardown(self) -> None:
        """Compare once more, from the beginning, and delete everything."""
        self._stop_watching()
        try:
            if self.folder.is_dir():
                wrong = [
                    one.what for one in examine(self.folder) if one.level == "wrong" and "was made with" not in one.what
                ]
                assert not wrong, wrong
        finally:
            if self.opened is not None:
                self.opened.close()
            for path in self.work.rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o755)
            shutil.rmtree(self.work)

    # The folder

    @initialize(
        content=colours,
        few=st.sampled_from([1, 10]),
        outside=st.sampled_from(sorted(COLOURS)),
        watched=st.sampled_from([False, False, True]),
    )
    def create(self, content: str, few: int, outside: str, watched: bool) -> None:
        """Every history begins with a collection of one picture."""
        indexing._FEW_PICTURES = few
        self.few = few
        for name in OUTSIDE:
            self.outside[name] = outside
            self._write(self.work / "elsewhere" / name, outside)
        self._write(self.root / "a.png", content)
        self.files["a.png"] = File(content)
        Collection.index(self.folder, self.root, MODEL, threads=1)
        self.pictures = {"a.png": Picture(content, EMPTY, "a.png")}
        self.opened = Collection.open(self.folder, model=MODEL)
        if watched:
            self.watch()

    def _write(self, path: Path, content: str) -> None:
        self.time += 7
        path.parent.mkdir(parents=True, exist_ok=True)
        # at once, as a process that watches the folder may look at any moment
        partial = self.work / "partial"
        partial.write_bytes(BYTES[content])
        os.utime(partial, (self.time, self.time))
        partial.replace(path)
        self.is_changed = True

    def _reachable(self, name: str) -> bool:
        return not self.away and name.rpartition("/")[0] not in self.closed

    @rule(name=paths, content=contents)
    def write(self, name: str, content: str) -> None:
        """Create or replace a file."""
        if self._reachable(name):
            self._write(self.root / name, content)
            self.files[name] = File(content)

    @rule(name=paths, other=paths)
    def rename(self, name: str, other: str) -> None:
        """Rename a file, perhaps onto another one."""
        if name in self.files and name != other and self._reachable(name) and self._reachable(other):
            (self.root / other).parent.mkdir(exist_ok=True)
            (self.root / name).replace(self.root / other)
            self.files[other] = self.files.pop(name)
            self.is_changed = True

    @rule(name=paths, other=paths)
    def copy(self, name: str, other: str) -> None:
        """Copy a file, perhaps onto another one."""
        if name in self.files and self.files[name].readable and self._reachable(name):
            self.write(other, self.files[name].content)

    @rule(name=paths)
    def touch(self, name: str) -> None:
        """Change a file's time alone."""
        if name in self.files and self._reachable(name):
            self.time += 7
            os.utime(self.root / name, (self.time, self.time))
            self.is_changed = True

    @rule(name=paths)
    def unlink(self, name: str) -> None:
        """Delete a file."""
        if name in self.files and self._reachable(name):
            (self.root / name).unlink()
            del self.files[name]
            self.is_changed = True

    @rule(name=paths)
    def change_permission(self, name: str) -> None:
        """Forbid or allow reading a file."""
        if name in self.files and self._reachable(name):
            file = self.files[name]
            file.readable = not file.readable
            (self.root / name).chmod(0o644 if file.readable else 0)
            self.is_changed = True

    @rule(name=st.sampled_from(sorted({name.rpartition("/")[0] for name in PATHS} - {""})))
    def change_folder_permission(self, name: str) -> None:
        """Forbid or allow listing a subfolder."""
        if not self.away and (self.root / name).exists():
            (self.root / name).chmod(0o755 if name in self.closed else 0)
            self.closed ^= {name}
            self.is_changed = True

    @rule(lines=st.none() | st.dictionaries(paths, numbers, max_size=5))
    def describe(self, lines: dict[str, int] | None) -> None:
        """Write or delete metadata.jsonl, which then lists the pictures."""
        if self.away:
            return
        self.is_changed = True
        target = self.root / "metadata.jsonl"
        if lines is None:
            target.unlink(missing_ok=True)
            self.listed = None
            return
        self.listed = {name: {"n": number} for name, number in lines.items()}
        text = "".join(json.dumps({"file_name": name, **line}) + "\n" for name, line in self.listed.items())
        (self.work / "partial").write_text(text)
        (self.work / "partial").replace(target)

    @rule()
    def take_away_or_give_back(self) -> None:
        """The drive with the pictures is unplugged, or comes back."""
        aside = self.work / "aside"
        if self.away:
            aside.rename(self.root)
        else:
            self.root.rename(aside)
        self.away = not self.away
        self.is_changed = True

    @rule()
    def give_back(self) -> None:
        """The drive comes back, if it is away, so that it is there most of the time."""
        if self.away:
            self.take_away_or_give_back()

    @rule()
    def move_folder(self) -> None:
        """The folder of pictures gets another name; the next index follows it."""
        if not self.away:
            self._stop_watching()
            new = self.work / f"photos{len(list(self.work.iterdir()))}{self.time}"
            self.root.rename(new)
            self.root = new

    # The collection

    def _after_index(self, remove_missing: bool) -> Expected | None:
        """What the collection may hold after an index; None if the index must be refused and change nothing."""
        before = self.pictures
        if self.away:
            return None
        names = self.files if self.listed is None else self.listed
        present = {name: self.files[name] for name in names if name in self.files and self._reachable(name)}
        if not present:
            return None
        store = Store.open(self.folder)
        if self.root != store.snapshot().root:
            known = [picture.path for picture in before.values() if not picture.is_upload]
            if 2 * sum(path in present for path in known) <= len(known):
                return None
        keep = self.listed is None and not store.index_options.described
        stay = {
            name
            for name, picture in before.items()
            if picture.is_upload or (picture.path in PATHS and not self._reachable(picture.path))
        }
        gone = set(before) - stay - set(present)
        after: dict[str, set[Picture]] = {name: {before[name]} for name in stay}
        fresh: dict[str, list[str]] = {}
        unreadable: set[str] = set()
        perhaps: set[str] = set()
        """Pictures of files that cannot be read, if somebody tries."""
        for name, file in present.items():
            old = before.get(name)
            if not file.readable:
                if old is not None:
                    after[name] = {old}
                unreadable.add(name)
            elif file.content != BROKEN:
                fields = EMPTY if self.listed is None else as_text(self.listed[name])
                if old is None:
                    fresh.setdefault(file.content, []).append(name)
                elif keep:
                    fields = old.fields
                after[name] = {Picture(file.content, fields, name)}
        for name in {name for name in gone if before[name].path in unreadable}:
            if before[name].path in before:
                perhaps.add(name)  # nobody opens a file whose size and time are known
            else:
                after[name] = {before[name]}
                gone.remove(name)
        # a file that is gone and whose content has a new name was renamed
        unclear: set[str] = set()
        most = least = {name for name in gone if not self._exists(before[name].path)}
        for content, new in fresh.items():
            sources = {name for name in gone if before[name].content == content}
            if keep and sources:
                fields_of_sources = {before[name].fields for name in sources}
                fields_of_sources |= {EMPTY} if len(new) > len(sources - perhaps) else set()
                after |= {name: {Picture(content, fields, name) for fields in fields_of_sources} for name in new}
            if len(new) < len(sources):  # which of them was renamed, nobody knows
                unclear |= sources
            most, least = most - (sources - unclear), least - sources
        few = max(self.few, 0.25 * len(before))
        optional = set(perhaps)
        if not remove_missing and len(most) > few:
            optional |= (most if len(least) <= few else unclear) - set(after)
            after |= {name: {before[name]} for name in most}
        return Expected(after, optional)

    def _exists(self, path: str) -> bool:
        return path in self.files or path not in PATHS

    def _observed(self) -> dict[str, Picture]:
        snapshot = Store.open(self.folder).snapshot()
        assert snapshot.vectors is not None
        pictures = {}
        for row, vokens in zip(snapshot.rows.tolist(), snapshot.vokens.tolist(), strict=True):
            content = CONTENT_OF_VECTOR[np.asarray(snapshot.vectors[row]).tobytes()]
            assert vokens == VOKENS[content]
            fields = json.loads(snapshot.metadata(row) or "{}")
            pictures[snapshot.ids[row]] = Picture(content, as_text(fields), snapshot.stored_paths[row])
        assert len(pictures) == len(snapshot)
        return pictures

    def _change(self, work: Callable[[], object], expected: Expected | None, kill: int) -> None:
        """Do `work`, and compare. With `kill` it is done by a process that is killed, before or after its end."""
        before = self.pictures
        if kill == 0:
            COUNTS["changes"] += 1
            if expected is None:
                try:
                    work()
                except VokenError:
                    COUNTS["refused"] += 1
                else:
                    raise AssertionError("this was not refused")
            elif expected.after or expected.optional:
                work()
            else:
                try:
                    work()
                except EmptyDataError:
                    COUNTS["emptied"] += 1
        else:
            COUNTS["kills" if killed(work, kill) else "ended before the kill"] += 1
        self._accept(expected, before if kill else None)

    def _accept(self, expected: Expected | None, before: dict[str, Picture] | None = None) -> None:
        """Compare the collection with what it may hold; with `before`, each picture may also be as it was."""
        observed = self._observed()
        assert not (wrong := self._differences(observed, expected, before)), wrong
        self.pictures = observed
        self._compare(observed)

    def _differences(
        self, observed: dict[str, Picture], expected: Expected | None, before: dict[str, Picture] | None = None
    ) -> list[tuple[str, Picture | None, set[Picture | None]]]:
        """The ids whose picture is not one that is allowed, with what it is, and what is allowed."""
        if expected is None:
            expected = Expected({name: {picture} for name, picture in self.pictures.items()})
        wrong = []
        for name in {*observed, *expected.after, *(before or ())}:
            allowed: set[Picture | None] = {*expected.after.get(name, {None})}
            allowed |= set() if before is None else {before.get(name)}
            allowed |= {None, self.pictures.get(name)} if name in expected.optional else set()
            if observed.get(name) not in allowed:
                wrong.append((name, observed.get(name), allowed))
        return wrong

    @rule(remove_missing=st.booleans(), kill=kills)
    def index(self, remove_missing: bool, kill: int) -> None:
        """Bring the collection up to date with the folder."""
        self._change(lambda: self._index(remove_missing), self._after_index(remove_missing), kill)

    def _index(self, remove_missing: bool) -> None:
        end = time.monotonic() + DONE_SECONDS
        while True:
            try:
                Collection.index(self.folder, self.root, MODEL, remove_missing=remove_missing, threads=1)
                return
            except BusyError:  # the process that watches is indexing
                if self.watcher is None or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    @rule(kill=kills)
    def index_again(self, kill: int) -> None:
        """The same, so that it happens more often."""
        self.index(False, kill)

    @rule(names=st.lists(paths, min_size=1, max_size=3, unique=True), number=st.none() | numbers, kill=kills)
    def add(self, names: list[str], number: int | None, kill: int) -> None:
        """Add files of the folder, with fields or without."""
        if self.away or self.root != Store.open(self.folder).snapshot().root:
            return
        expected = {name: {picture} for name, picture in self.pictures.items()}
        for name in names:
            content = self._usable_content(name)
            ids = [one for one, picture in self.pictures.items() if picture.path == name]
            if len(ids) > 1 and name not in ids:
                return  # under which of them, nobody knows
            image_id = name if name in ids or not ids else ids[0]
            if content is not None:
                fields_now = self._fields(image_id) if number is None else as_text({"n": number})
                expected[image_id] = {Picture(content, fields_now, name)}
        fields = None if number is None else [{"n": number}] * len(names)
        files = [self.root / name for name in names]
        self._change(lambda: self._opened().add(files, metadata=fields), Expected(expected), kill)

    def _usable_content(self, name: str) -> str | None:
        """The content of a file of the folder, if it is a picture that can be read."""
        file = self.files.get(name)
        if file is None or not file.readable or not self._reachable(name) or file.content == BROKEN:
            return None
        return file.content

    def _fields(self, image_id: str) -> str:
        """The fields of a picture; none if there is none of this id."""
        return self.pictures[image_id].fields if image_id in self.pictures else EMPTY

    @rule(name=paths, image_id=st.sampled_from(GIVEN_IDS), number=st.none() | numbers, kill=kills)
    def add_as(self, name: str, image_id: str, number: int | None, kill: int) -> None:
        """Add a file of the folder under another id."""
        if self.away or self.root != Store.open(self.folder).snapshot().root:
            return
        self._add_as(self.root / name, name, self._usable_content(name), image_id, number, kill)

    @rule(content=colours, image_id=st.sampled_from(GIVEN_IDS), number=st.none() | numbers, kill=kills)
    def add_upload_as(self, content: str, image_id: str, number: int | None, kill: int) -> None:
        """Add an uploaded file again, under another id."""
        path = self.folder / ID_OF_UPLOAD[content]
        stored = f"{UPLOAD_PREFIX}{ID_OF_UPLOAD[content]}"
        self._add_as(path, stored, content if path.exists() else None, image_id, number, kill)

    def _add_as(
        self, path: Path, stored: str, content: str | None, image_id: str, number: int | None, kill: int
    ) -> None:
        expected = {name: {picture} for name, picture in self.pictures.items()}
        if content is not None:
            fields = self._fields(image_id) if number is None else as_text({"n": number})
            expected[image_id] = {Picture(content, fields, stored)}
        metadata = None if number is None else [{"n": number}]
        work = lambda: self._opened().add([path], ids=[image_id], metadata=metadata)  # noqa: E731
        self._change(work, Expected(expected), kill)

    @rule(name=st.sampled_from(OUTSIDE), kill=kills)
    def add_from_elsewhere(self, name: str, kill: int) -> None:
        """Add a file of another folder."""
        path = self.work / "elsewhere" / name
        expected = {name: {picture} for name, picture in self.pictures.items()}
        expected[str(path)] = {Picture(self.outside[name], self._fields(str(path)), str(path))}
        self._change(lambda: self._opened().add([path]), Expected(expected), kill)

    @rule(content=contents, title=st.sampled_from(["one.png", "two.png"]), kill=kills)
    def upload(self, content: str, title: str, kill: int) -> None:
        """Send a picture."""
        expected = {name: {picture} for name, picture in self.pictures.items()}
        image_id = ID_OF_UPLOAD.get(content)
        if image_id is not None:
            fields = as_text({**json.loads(self._fields(image_id)), "title": title})
            expected[image_id] = {Picture(content, fields, f"{UPLOAD_PREFIX}{image_id}")}
        work = lambda: self._opened().add_uploads([(title, BytesIO(BYTES[content]))], MAX_PIXELS)  # noqa: E731
        self._change(work, Expected(expected), kill)

    @rule(chosen=st.lists(places, min_size=1, max_size=3), kill=kills)
    def remove(self, chosen: list[int], kill: int) -> None:
        """Remove pictures by id, one of them twice."""
        if not self.pictures:
            return
        names = [sorted(self.pictures)[place % len(self.pictures)] for place in chosen]
        expected = {name: {picture} for name, picture in self.pictures.items() if name not in names}
        self._change(lambda: self._opened().remove([*names, names[0], "nothing"]), Expected(expected), kill)

    @rule(place=places, kill=kills)
    def delete(self, place: int, kill: int) -> None:
        """Delete a picture; its file only if it was sent."""
        if not self.pictures:
            return
        name = sorted(self.pictures)[place % len(self.pictures)]
        expected = {other: {picture} for other, picture in self.pictures.items() if other != name}
        path = self.pictures[name].path
        self._change(lambda: self._opened().delete(name), Expected(expected), kill)
        if path.startswith(UPLOAD_PREFIX) and not kill:
            is_needed = any(picture.path == path for picture in self.pictures.values())
            assert (self.folder / path.removeprefix(UPLOAD_PREFIX)).exists() == is_needed

    @rule(name=paths, kill=kills)
    def remove_path(self, name: str, kill: int) -> None:
        """Remove pictures by the path of their file."""
        if self.away or self.root != Store.open(self.folder).snapshot().root:
            return
        expected = {other: {picture} for other, picture in self.pictures.items() if picture.path != name}
        self._change(lambda: self._opened().remove(paths=[self.root / name]), Expected(expected), kill)

    @rule(kill=kills)
    def compact(self, kill: int) -> None:
        """Write the collection again."""
        same = Expected({name: {picture} for name, picture in self.pictures.items()})
        self._change(lambda: self._opened().compact(), same, kill)

    def _opened(self) -> Collection:
        assert self.opened is not None
        return self.opened

    @rule(move=st.booleans())
    def restart(self, move: bool) -> None:
        """The process that holds the collection open ends, and another one begins, perhaps after a move."""
        self._opened().close()
        if move:
            self._stop_watching()
            self.time += 7
            self.folder = self.folder.rename(self.work / f"c{self.time}")
        self.opened = Collection.open(self.folder, model=MODEL)
        self._compare(self._observed())

    # Watching

    @rule()
    def watch(self) -> None:
        """Another process begins to watch the folder, if none does."""
        if self.watcher is not None:
            return
        expected = self._after_index(False)
        self.watcher = Watcher(self.folder, self.root)
        COUNTS["watchers"] += 1
        if expected is None or not (expected.after or expected.optional):
            assert self.watcher.ended()  # the first index raises what `voken index` raises
            self.watcher = None
        else:
            self.watcher.wait_for_index(None)
        self.is_changed = False
        self._accept(expected)

    @rule(name=paths, content=contents, wait=waits)
    def kill_watcher(self, name: str, content: str, wait: float) -> None:
        """A file changes, and the process that watches is killed soon after."""
        if self.watcher is None or not self._reachable(name):
            return
        before = self.pictures
        self.write(name, content)
        time.sleep(wait)
        self._stop_watching()
        COUNTS["watchers killed"] += 1
        self._accept(self._after_index(False), before)

    @invariant()
    def heard(self) -> None:
        """The process that watches has brought the collection to the state of a fresh index."""
        if self.watcher is None:
            return
        if self.away:
            self._accept(None)
            return
        expected = self._after_index(False)
        if self.is_changed and self._differences(self._observed(), expected):
            # it must hear of the change itself
            end = time.monotonic() + HEARD_SECONDS
            while wrong := self._differences(self._observed(), expected):
                assert time.monotonic() < end, ("not heard", wrong)
                time.sleep(0.005)
            COUNTS["changes heard"] += 1
        self.time += 7
        (self.root / MARKER).write_text(str(self.time))
        self.watcher.wait_for_index(str(self.time))
        self.is_changed = False
        COUNTS["compared while watched"] += 1
        self._accept(expected)

    def _stop_watching(self) -> None:
        if self.watcher is not None:
            self.watcher.kill()
            self.watcher = None

    def _compare(self, observed: dict[str, Picture]) -> None:
        """The collection and a search answer what the dictionary says, and no file of the user has changed."""
        COUNTS["comparisons"] += 1
        assert observed == self.pictures
        opened = self._opened()
        hits = opened.search("red", 200) if self.pictures else []
        assert {hit.image_id for hit in hits} == set(self.pictures)
        fields = {name: json.loads(picture.fields) for name, picture in self.pictures.items()}
        try:
            hits = opened.search("blue", 200, where=["n=1"])
        except ConfigError:
            assert not any("n" in one for one in fields.values())
        else:
            assert {hit.image_id for hit in hits} == {name for name, one in fields.items() if one.get("n") == 1}
        for picture in self.pictures.values():
            if picture.is_upload:
                name = picture.path.removeprefix(UPLOAD_PREFIX)
                assert UPLOADS[name] == picture.content
                assert (self.folder / name).read_bytes() == BYTES[picture.content]
        root = self.work / "aside" if self.away else self.root
        for name, file in self.files.items():
            if file.readable and name.rpartition("/")[0] not in self.closed:
                assert (root / name).read_bytes() == BYTES[file.content]


@dataclass(frozen=True)
class Expected:
    """What a collection may hold after a change."""

    after: dict[str, set[Picture]]
    """Every picture that must be there, and what is allowed for it."""
    optional: frozenset[str] | set[str] = frozenset()
    """Pictures that may be as they were, or gone."""


class Watcher:
    """A process that runs `Collection.watch`, faster than people need it."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._reports, theirs = os.pipe()
        self._child = os.fork()
        self._text = ""
        if self._child == 0:
            code = 1
            try:
                self._watch(folder, root, theirs)
            except VokenError:
                code = 0
            finally:
                os._exit(code)
        os.close(theirs)

    @staticmethod
    def _watch(folder: Path, root: Path, reports: int) -> None:
        watching._QUIET_MILLISECONDS, watching._LOOK_SECONDS, api._BUSY_SECONDS = 10, 0.02, 0.02
        index = Collection.index

        def reporting(path: Path, pictures: Path, _: object, **options: Any) -> Any:
            try:
                marker = (root / MARKER).read_text() or "-"
            except OSError:
                marker = "-"
            try:
                return index(path, pictures, MODEL, **options)
            finally:
                os.write(reports, f"{marker}\n".encode())

        setattr(Collection, "index", reporting)  # noqa: B010 # in this process alone; mypy refuses the plain assignment
        for _ in Collection.watch(folder, root, root / "no model is read", threads=1):
            pass

    def wait_for_index(self, marker: str | None) -> None:
        """Wait for the end of an index that began after the marker had this text, or of any."""
        end = time.monotonic() + DONE_SECONDS
        while True:
            *lines, self._text = self._text.split("\n")
            if marker in lines or (marker is None and lines):
                return
            readable, _, _ = select.select([self._reports], [], [], max(0.0, end - time.monotonic()))
            assert readable, "the folder is no longer watched"
            more = os.read(self._reports, 1 << 16).decode()
            assert more, "the process that watches has ended"
            self._text += more

    def ended(self) -> bool:
        """Whether it has ended by an error of voken's."""
        _, status = os.waitpid(self._child, 0)
        os.close(self._reports)
        return status == 0

    def kill(self) -> None:
        """Kill it."""
        os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(self._reports)


def killed(work: Callable[[], object], kill: int) -> bool:
    """Do `work` in a process that is killed before its `kill`-th step on the disk.

    Returns False if it ended before. Raises `AssertionError` if `work` fails by an error that is not voken's.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            faulthandler.dump_traceback_later(20, exit=True)
            die_at(kill)
            work()
            code = 0
        except VokenError:
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the work that was to be killed failed"
    return False


def run(count: int, start: int, steps: int, shrink: bool = True) -> Counter[str]:
    """Try `count` histories of at most `steps` steps, and return the counts.

    Raises what a history raises; with `shrink` it is shortened before.
    """
    COUNTS.clear()
    few, refresh = indexing._FEW_PICTURES, searcher._REFRESH_SECONDS
    searcher._REFRESH_SECONDS = 0.0  # what another process has changed is seen at once
    machine = seed(start)(Histories)
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=count,
                stateful_step_count=steps,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
            ),
        )
    finally:
        indexing._FEW_PICTURES, searcher._REFRESH_SECONDS = few, refresh
    return COUNTS


def main(arguments: list[str] | None = None) -> None:
    """Try histories, and print what was counted. A difference ends the program, with a short history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--as-it-is", action="store_true", help="do not shorten a history that shows a difference")
    options = parser.parse_args(arguments)
    if os.geteuid() == 0 and "CAP_DAC_OVERRIDE" not in os.environ.get("VOKEN_WITHOUT", ""):
        rights = "-dac_override,-dac_read_search"
        os.environ["VOKEN_WITHOUT"] = "CAP_DAC_OVERRIDE"
        os.execvp(
            "setpriv",
            ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", sys.executable, __file__, *sys.argv[1:]],
        )
    begin = time.perf_counter()
    counts = run(options.histories, options.seed, options.steps, not options.as_it_is)
    counts["seconds"] = round(time.perf_counter() - begin)
    print("\n".join(f"| {name} | {value:,} |" for name, value in counts.items()))


if __name__ == "__main__":
    main()
