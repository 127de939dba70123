"""Whether a collection is well: everything that can be checked is, and what is wrong comes with what to do about it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from voken import artifact
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.decoding.trie import VokenTrie
from voken.errors import ArtifactError, VokenError
from voken.model import compiled
from voken.progress import Progress, no_progress

_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["good", "note", "wrong"]
    """`note`: works, but somebody may want to know. `wrong`: searches fail or mislead until it is mended."""
    what: str
    remedy: str = ""


def examine(folder: Path, *, progress: Progress = no_progress) -> list[Finding]:
    """Look at all of a collection, reading every byte of it. What is wrong does not stop the looking.

    Raises `ArtifactError` only where there is no collection.
    """
    store = Store.open(folder)
    findings: list[Finding] = []
    progress("examine", 0, 5)
    try:
        problems = store.integrity()
        snapshot = store.snapshot(verify=True)
    except VokenError as error:
        return [Finding("wrong", str(error), "restore the folder from a copy, or index the pictures again")]
    if problems:
        findings.append(Finding("wrong", f"collection.sqlite3: {'; '.join(problems[:_NAMED])}", "restore a copy"))
    else:
        changes = f"{len(snapshot.added.rows):,} added and {len(snapshot.removed):,} removed since the base was written"
        findings.append(Finding("good", f"{len(snapshot):,} pictures, version {snapshot.version}; {changes}"))
        findings.append(Finding("good", "every file has the checksum it was written with"))
    progress("examine", 1, 5)
    findings += _of_rows(snapshot)
    progress("examine", 2, 5)
    findings += _of_model(snapshot)
    progress("examine", 3, 5)
    findings += _of_files(snapshot)
    progress("examine", 4, 5)
    if left := store.leftovers():
        findings.append(
            Finding("note", f"{len(left)} leftovers of a compaction that was killed", f"run: voken compact {folder}")
        )
    if store.wants_compaction:
        findings.append(
            Finding(
                "note", "so much has changed that opening takes longer than it need", f"run: voken compact {folder}"
            )
        )
    if snapshot.skipped:
        findings.append(
            Finding("note", f"{len(snapshot.skipped):,} files could not be used", f"run: voken info {folder} --skipped")
        )
    progress("examine", 5, 5)
    return findings


def _of_rows(snapshot: Snapshot) -> list[Finding]:
    """Whether ids, sequences and vectors are one collection's, and the trie is the one its sequences make."""
    found: list[Finding] = []
    rows = snapshot.rows
    ids = [snapshot.ids[row] for row in rows.tolist()]
    if len(set(ids)) != len(ids):
        found.append(Finding("wrong", f"{len(ids) - len(set(ids))} ids stand twice", "index the pictures again"))
    lost = [name for row, name in zip(rows.tolist(), ids, strict=True) if snapshot.find(name) != row]
    if lost:
        found.append(Finding("wrong", f"{len(lost)} ids are not found, {lost[0]!r} first", "index the pictures again"))
    if not len(rows):
        return [*found, Finding("note", "there is no picture in it", "run: voken index")]
    numbers, vokens = snapshot.trie.row_vokens()
    fresh = VokenTrie.from_vokens(vokens, snapshot.trie.codebook_size, numbers)
    leaves = np.arange(fresh.sequences)
    same = snapshot.trie.sequences == fresh.sequences and np.array_equal(numbers, rows)
    same = same and all(
        np.array_equal(one, other)
        for one, other in zip(snapshot.trie.rows_of(leaves), fresh.rows_of(leaves), strict=True)
    )
    if same:
        found.append(Finding("good", f"{fresh.sequences:,} voken sequences, each with its pictures"))
    else:
        found.append(Finding("wrong", "the trie is not that of the pictures' sequences", "index the pictures again"))
    if snapshot.vectors is not None:
        bad = sum(
            int((~np.isfinite(np.asarray(snapshot.vectors[part]).astype(np.float32)).all(1)).sum())
            for part in np.array_split(rows, max(1, len(rows) // 65_536))
        )
        if bad:
            found.append(Finding("wrong", f"{bad:,} vectors hold what is no number", "index the pictures again"))
    return found


def _of_model(snapshot: Snapshot) -> list[Finding]:
    try:
        folder = snapshot.find_model()
    except ArtifactError as error:
        return [Finding("wrong", str(error), "name the model when you search: --model FOLDER")]
    try:
        artifact.check(folder, kind=compiled.KIND, version=compiled.VERSION)
    except VokenError as error:
        return [Finding("wrong", str(error), "restore the model's folder from a copy")]
    if compiled.fingerprint(folder) != snapshot.model_fingerprint:
        return [
            Finding(
                "wrong",
                f"{folder}: another model than the collection was made with",
                "index the pictures again with it, or name the model they were indexed with: --model FOLDER",
            )
        ]
    found = [Finding("good", f"its model is in {folder}, whole")]
    if not compiled.is_compiled(folder):
        found.append(Finding("note", "the model has no engine, so searches need torch", f"run: voken compile {folder}"))
    return found


def _of_files(snapshot: Snapshot) -> list[Finding]:
    """Whether the pictures are still there, and as they were."""
    gone: list[str] = []
    changed: list[str] = []
    facts = None if snapshot.facts is None else snapshot.facts[snapshot.rows]
    for place, row in enumerate(snapshot.rows.tolist()):
        path = snapshot.path(row)
        try:
            now = os.stat(path)  # noqa: PTH116 -- a Path method costs twice as much, and there may be millions
        except OSError:
            gone.append(str(path))
            continue
        if facts is not None and bytes(facts["hash"][place]) != bytes(16):
            was = int(facts["size"][place]), int(facts["modified"][place])
            if was != (now.st_size, now.st_mtime_ns):
                changed.append(str(path))
    remedy = f"run: voken index {snapshot.root} --out {snapshot.folder}"
    found = []
    if gone:
        found.append(Finding("note", f"{len(gone):,} pictures are no longer where they were: {_some(gone)}", remedy))
    if changed:
        found.append(Finding("note", f"{len(changed):,} files have changed since: {_some(changed)}", remedy))
    return found or [Finding("good", "every picture's file is there and as it was")]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
