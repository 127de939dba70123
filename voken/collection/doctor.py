"""Checks a collection completely, and says what to do about each fault."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from voken import artifact
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.data.images import file_hash
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, PictureError, VokenError
from voken.model import compiled
from voken.progress import Progress, no_progress

_PATHS_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Literal["good", "note", "wrong"]
    """`note`: searches work. `wrong`: searches fail or mislead until it is repaired."""
    what: str
    """The state that the check found, as a sentence."""
    remedy: str = ""


def examine(folder: Path, *, pictures: bool = False, progress: Progress = no_progress) -> list[Finding]:
    """Check every byte of a collection. A fault does not end the checks.

    The pictures' files are judged by size and time, and only with `pictures` by their content. Raises `ArtifactError`
    only if there is no collection.
    """
    store = Store.open(folder)
    progress("examine", 0, 5)
    try:
        problems = store.integrity()
        snapshot = store.snapshot(verify=True)
    except VokenError as error:
        return [Finding("wrong", str(error), "restore the folder from a copy, or index the pictures again")]
    if problems:
        findings = [
            Finding(
                "wrong", f"collection.sqlite3: {'; '.join(problems[:_PATHS_SHOWN])}", "restore the file from a copy"
            )
        ]
    else:
        changes = f"{len(snapshot.added.rows):,} added and {len(snapshot.removed):,} removed since the base was written"
        findings = [
            Finding("good", f"{len(snapshot):,} pictures, version {snapshot.version}; {changes}"),
            Finding("good", "every file has the checksum it was written with"),
        ]
    check_files = partial(_check_files, contents=pictures)
    checks: tuple[Callable[[Snapshot], list[Finding]], ...] = (_check_rows, _check_model, check_files)
    for step, check in enumerate(checks, start=1):
        progress("examine", step, 5)
        try:
            findings += check(snapshot)
        except (IndexError, ValueError, VokenError) as error:
            findings.append(Finding("wrong", f"the files contradict one another ({error})", "index the pictures again"))
    progress("examine", 4, 5)
    if leftovers := store.leftovers():
        what = f"{len(leftovers)} leftovers of compactions that were killed"
        findings.append(Finding("note", what, f"run: voken compact {folder}"))
    if store.wants_compaction:
        what = "opening is slow because there are many changes"
        findings.append(Finding("note", what, f"run: voken compact {folder}"))
    if snapshot.skipped:
        what = f"{len(snapshot.skipped):,} files could not be used"
        findings.append(Finding("note", what, f"run: voken info {folder} --skipped"))
    progress("examine", 5, 5)
    return findings


def _check_rows(snapshot: Snapshot) -> list[Finding]:
    """Check that the ids are unique, that the trie holds the pictures' sequences, and that vectors are finite."""
    findings: list[Finding] = []
    again = "index the pictures again"
    rows = snapshot.rows
    ids = [snapshot.ids[row] for row in rows.tolist()]
    if len(set(ids)) != len(ids):
        findings.append(Finding("wrong", f"{len(ids) - len(set(ids))} ids occur twice", again))
    missing = [image_id for row, image_id in zip(rows.tolist(), ids, strict=True) if snapshot.find(image_id) != row]
    if missing:
        what = f"{len(missing)} ids cannot be looked up, the first is {missing[0]!r}"
        findings.append(Finding("wrong", what, again))
    if not len(rows):
        return [*findings, Finding("note", "the collection has no pictures", "run: voken index")]
    trie = snapshot.trie
    numbers, vokens = trie.row_vokens()
    rebuilt = VokenTrie.from_vokens(vokens, trie.codebook_size, numbers)
    leaves = np.arange(rebuilt.sequences)
    same = trie.sequences == rebuilt.sequences and np.array_equal(numbers, rows)
    if same and all(map(np.array_equal, trie.rows_of(leaves), rebuilt.rows_of(leaves))):
        findings.append(Finding("good", f"{rebuilt.sequences:,} voken sequences, each with its pictures"))
    else:
        findings.append(Finding("wrong", "the trie does not match the pictures' sequences", again))
    if snapshot.vectors is not None:
        bad = sum(
            int((~np.isfinite(np.asarray(snapshot.vectors[part]).astype(np.float32)).all(1)).sum())
            for part in np.array_split(rows, max(1, len(rows) // 65_536))
        )
        if bad:
            findings.append(Finding("wrong", f"{bad:,} vectors hold NaN or infinity", again))
    return findings


def _check_model(snapshot: Snapshot) -> list[Finding]:
    try:
        folder = snapshot.find_model()
    except ArtifactError as error:
        return [Finding("wrong", str(error), "name the model when you search: --model FOLDER")]
    try:
        artifact.check(folder, kind=compiled.KIND, version=compiled.VERSION)
    except VokenError as error:
        return [Finding("wrong", str(error), "restore the model's folder from a copy")]
    if artifact.contents_digest(folder, without=compiled.FOLDER) != snapshot.model_fingerprint:
        return [
            Finding(
                "wrong",
                f"{folder}: this is not the model that the collection was made with",
                "index the pictures again with this model, or name the right one when you search: --model FOLDER",
            )
        ]
    findings = [Finding("good", f"its model in {folder} is complete")]
    if not compiled.is_compiled(folder):
        what = "the model has no engine, so searches need torch"
        findings.append(Finding("note", what, f"run: voken compile {folder}"))
    return findings


def _check_files(snapshot: Snapshot, *, contents: bool) -> list[Finding]:
    """Check that the pictures' files exist and have not changed, by size and time or by `contents`."""
    gone: list[str] = []
    changed: list[str] = []
    other: list[str] = []
    facts = None if snapshot.facts is None else snapshot.facts[snapshot.rows]
    for place, row in enumerate(snapshot.rows.tolist()):
        path = snapshot.path(row)
        try:
            status = os.stat(path)  # noqa: PTH116 -- a Path method costs twice as much, and there may be millions
        except OSError:
            gone.append(str(path))
            continue
        if facts is not None and bytes(facts["hash"][place]) != bytes(16):
            recorded = int(facts["size"][place]), int(facts["modified"][place])
            if recorded != (status.st_size, status.st_mtime_ns) and not contents:
                changed.append(str(path))
            elif contents and not _has_content(path, bytes(facts["hash"][place])):
                other.append(str(path))
    remedy = f"run: voken index {snapshot.root} --out {snapshot.folder}"
    findings = []
    if gone:
        what = f"{len(gone):,} files of pictures no longer exist: {_first(gone)}"
        findings.append(Finding("note", what, remedy))
    if changed:
        findings.append(Finding("note", f"{len(changed):,} files of pictures have changed: {_first(changed)}", remedy))
    if other:
        # the next `voken index` would not look into a file of the same size and time
        what = f"{len(other):,} files of pictures have other content, or cannot be read: {_first(other)}"
        findings.append(Finding("note", what, f"run: voken index {snapshot.root} --out {snapshot.folder} --replace"))
    how = "content" if contents else "size and time"
    return findings or [Finding("good", f"every picture's file exists and has the {how} that it was indexed with")]


def _has_content(path: Path, digest: bytes) -> bool:
    try:
        return file_hash(path) == digest.hex()
    except PictureError:
        return False


def _first(paths: list[str]) -> str:
    more = f" and {len(paths) - _PATHS_SHOWN:,} more" if len(paths) > _PATHS_SHOWN else ""
    return ", ".join(paths[:_PATHS_SHOWN]) + more
