"""How much do additions and removals cost in a large collection, and how much do they slow its searches?

On a copy of COLLECTION (hard links: its base is never changed), a searcher answers queries. Then --add pictures are
added in one change, and --remove others removed in another. Measured: each change; the time until a search of the
running searcher returns what was added, and no longer returns what was removed; query times on the changed collection
and, in turn, on a compacted copy of it, which equals a new build; opening before and after; the compaction.

The added pictures are copies of pictures in the collection under new ids, with a little noise on the vector and the
sequence that follows from it. Encoding is not measured: its time belongs to `voken index`. Queries are captions of
--data, or built-in phrases.

    python benchmarks/updates.py icons.voken --data icons --add 1000 --remove 1000 --json out.json
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from report import option_parser, write_report
from voken.collection.snapshot import Snapshot
from voken.collection.store import Entry, FileFacts, Store
from voken.search.searcher import Searcher, load_model

PHRASES = [f"{what} {how}" for what in ("a dog", "an arrow", "a cup", "two people") for how in ("in red", "outline")]


def main(arguments: list[str] | None = None) -> None:
    """Change, search, print, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--model", type=Path, help="needed if the model was moved")
    parser.add_argument("--data", type=Path, help="a data set whose captions are the queries")
    parser.add_argument("--fill", type=int, default=0, help="first fill the copy with noisy pictures up to this number")
    parser.add_argument("--add", type=int, default=1000)
    parser.add_argument("--remove", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="voken-", dir=options.collection.parent) as work:
        figures = run(options, Path(work))
    for name, value in figures.items():
        figure = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        print(f"| {name.replace('_', ' ')} | {figure} |")
    write_report(options.json, figures)


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Every figure, by name."""
    copy, fresh = work / "changed", work / "fresh"
    shutil.copytree(options.collection, copy, copy_function=link_or_copy)
    store = Store.open(copy)
    fill(store, options.fill, options.seed)
    before = store.snapshot()
    model = load_model(options.model or before.find_model(), threads=options.threads)
    searcher = Searcher(model, before, store=store)
    queries = texts(options.data, options.queries, options.seed)
    random = np.random.default_rng(options.seed)
    removed = [before.ids[row] for row in random.choice(before.rows, options.remove, replace=False).tolist()]
    entries = copies(store, before, options.add, random)
    figures: dict[str, Any] = {
        "pictures": len(before),
        "open_ms_before": 1000 * seconds_of(lambda: Store.open(copy).snapshot()),
    }

    figures["add_s"] = seconds_of(lambda: store.commit(entries))
    new = entries[0]
    figures["until_added_is_found_s"] = seconds_until(lambda: new.image_id in nearest_ids(searcher, new))
    removed_id = removed[0]
    row = before.find(removed_id)
    assert row is not None
    target = Entry(removed_id, "", before.sequence(row), vector_of(before, row), FileFacts(0, 0))
    assert removed_id in nearest_ids(searcher, target)
    figures["remove_s"] = seconds_of(lambda: store.commit(remove=removed))
    figures["until_removed_is_not_found_s"] = seconds_until(lambda: removed_id not in nearest_ids(searcher, target))
    changed = store.snapshot()
    assert len(changed) == len(before) + options.add - options.remove
    figures["open_ms_changed"] = 1000 * statistics.median(
        seconds_of(lambda: Store.open(copy).snapshot().trie) for _ in range(5)
    )

    shutil.copytree(copy, fresh, copy_function=link_or_copy)
    fresh_store = Store.open(fresh)
    figures["compaction_s"] = seconds_of(fresh_store.compact)
    compacted = fresh_store.snapshot()
    assert not compacted.is_changed
    searchers = {
        "changed": Searcher(model, changed, store=store),
        "fresh": Searcher(model, compacted, store=fresh_store),
    }
    answers = {name: searcher.search(queries[:50], 10) for name, searcher in searchers.items()}
    figures["answers_alike"] = sum(
        [hit.image_id for hit in a] == [hit.image_id for hit in b]
        for a, b in zip(answers["changed"], answers["fresh"], strict=True)
    )
    times: dict[str, list[float]] = {name: [] for name in searchers}
    for _ in range(options.rounds):
        for query in queries:
            for name, searcher in searchers.items():
                times[name].append(seconds_of(partial(searcher.search, [query], 10)))
    for name, query_times in times.items():
        figures[f"query_ms_{name}"] = 1000 * statistics.median(query_times)
    ratios = [a / b for a, b in zip(times["changed"], times["fresh"], strict=True)]
    figures["query_ratio"] = statistics.median(ratios)
    return figures


def fill(store: Store, size: int, seed: int) -> None:
    """Fill the collection with noisy copies until it has `size` pictures, in one base."""
    random = np.random.default_rng(seed + 1)
    while (missing := size - len(snapshot := store.snapshot())) > 0:
        pictures = len(snapshot)
        entries = copies(store, snapshot, min(missing, 20_000), random)
        ids = [f"fill/{pictures + place}" for place in range(len(entries))]
        renamed = zip(entries, ids, strict=True)
        store.commit([dataclasses.replace(entry, image_id=name, stored_path=name) for entry, name in renamed])
        store.compact()


def link_or_copy(source: str, destination: str) -> str:
    """Link a file that never changes; copy the database and the manifest. Returns the destination."""
    if source.endswith((".sqlite3", ".json")):
        return str(shutil.copy2(source, destination))
    os.link(source, destination)
    return destination


def copies(store: Store, snapshot: Snapshot, count: int, random: np.random.Generator) -> list[Entry]:
    """New pictures, each a little different from a picture of the collection."""
    rows = random.choice(snapshot.rows, count)
    books = store.codebooks()
    vectors = np.stack([vector_of(snapshot, row) for row in rows.tolist()]).astype(np.float32)
    vectors += random.normal(size=vectors.shape).astype(np.float32) * 0.2 / vectors.shape[1] ** 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if vectors.shape[1] == books.shape[2]:
        residuals, sequences = vectors.copy(), []
        for book in books:
            nearest = ((book**2).sum(1) - 2 * residuals @ book.T).argmin(1)
            residuals -= book[nearest]
            sequences.append(nearest)
        vokens = np.stack(sequences, axis=1).astype(np.int32)
    else:  # only the tokenizer's layers could encode them: keep the sequences of the originals
        vokens = np.stack([snapshot.sequence(row) for row in rows.tolist()])
    facts = FileFacts(1, 2)
    return [
        Entry(f"new/{place:06d}.png", f"new/{place:06d}.png", vokens[place], vectors[place].astype(np.float16), facts)
        for place in range(count)
    ]


def vector_of(snapshot: Snapshot, row: int) -> Any:
    """The stored vector of a picture."""
    assert snapshot.vectors is not None
    return np.asarray(snapshot.vectors[np.array([row])])[0]


def nearest_ids(searcher: Searcher, entry: Entry) -> set[str]:
    """Ids of the hundred pictures that a search finds nearest to a picture."""
    assert entry.vector is not None
    vector = entry.vector.astype(np.float32)
    return {hit.image_id for hit in searcher.like_vector(vector, vector, 100)}


def seconds_until(condition: Callable[[], bool]) -> float:
    """Seconds until `condition()` is true, called again and again; infinity after half a minute."""
    begin = time.perf_counter()
    while not condition():
        if time.perf_counter() - begin > 30:
            return float("inf")
    return time.perf_counter() - begin


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def texts(data: Path | None, count: int, seed: int) -> list[str]:
    """The queries."""
    if data is None:
        return (PHRASES * (count // len(PHRASES) + 1))[:count]
    from voken.data.captions import read_dataset

    captions = sorted({caption for image in read_dataset(data).images for caption in image.captions})
    rows = np.random.default_rng(seed).choice(len(captions), min(count, len(captions)), replace=False)
    return [captions[row] for row in rows.tolist()]


if __name__ == "__main__":
    main()
