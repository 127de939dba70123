"""Collections: `voken index`, `add`, `remove`, `compact`, `search`, `info`, `doctor`, `serve`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voken.cli.app import (
    AsJson,
    CacheFolder,
    Device,
    ImagesFolder,
    Threads,
    Verbose,
    app,
    as_dicts,
    duration,
    print_json,
    tell_next,
    tell_skipped,
    vector_cache,
)
from voken.cli.console import printable, progress_bars, shown
from voken.cli.training import tell_model
from voken.errors import ConfigError, DataError

if TYPE_CHECKING:
    from voken.collection.indexing import Indexed
    from voken.collection.snapshot import Snapshot
    from voken.data.captions import Dataset
    from voken.search.hit import Hit
    from voken.search.searcher import Searcher

_Collection = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder that `voken index` made.")]
_OtherModel = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="The model, where it is no longer where it was.", show_default=False),
]


@app.command(epilog="Example: voken index ~/photos --model emoji.model --out photos.voken")
def index(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, however deep, or a data set.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the collection.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Folder of a trained model. A collection that is there knows its own."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of a data set, this part only.")] = None,
    vectors: Annotated[
        bool, typer.Option(help="Keep a vector a picture, for the best ranking; without, a few bytes do.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Begin anew where a collection is there already.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and follow the folder as it changes.")] = False,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make pictures ready to be searched, or bring a collection up to date with its folder. No caption is needed.

    Only what is new or has changed is looked at; a file that moved is known again; what is gone is removed. Pictures
    that cannot be read are left out and told. Stopped at any time, the same command goes on, and what is there can
    be searched meanwhile.
    """
    from voken.collection.indexing import SavedModel, index_pictures, new_store
    from voken.collection.store import Store
    from voken.data.captions import read_dataset
    from voken.errors import EmptyDataError

    def given() -> Dataset:
        found = read_dataset(pictures, images)
        return found if split is None else found.split(split)

    dataset = given()
    fresh = replace or not (out / "manifest.json").exists()
    if fresh:
        if model is None:
            raise ConfigError(f"--model is missing: {shown(out)} is new, so name the folder of a trained model.")
        loaded = SavedModel(model, device, threads)
        store = new_store(out, dataset.root, loaded, vectors=vectors, model_folder=model, replace=replace)
    else:
        store = Store.open(out)
        loaded = SavedModel(store.snapshot().find_model() if model is None else model, device, threads)
    kept = vector_cache(cache)

    def update(dataset: Dataset) -> Indexed:
        began = time.perf_counter()
        with progress_bars() as progress:
            done = index_pictures(store, dataset, loaded, cache=kept, workers=threads, progress=progress)
            if (fresh and not watch) or store.wants_compaction:
                store.compact()
        _tell_indexed(out, store.snapshot(), done, time.perf_counter() - began, as_json, verbose)
        return done

    try:
        update(dataset)
    except EmptyDataError:
        if fresh and not len(store.snapshot()):
            import shutil

            shutil.rmtree(out, ignore_errors=True)
        raise
    if watch:
        from voken.collection.watching import watched

        typer.echo(f"Watching {shown(dataset.root)}. Ctrl-C ends it.", err=True)
        for _ in watched(dataset.root):
            try:
                update(given())
            except DataError as error:  # the folder may be half written; the next change may mend it
                typer.secho(f"not updated: {printable(str(error))}", fg=typer.colors.YELLOW, err=True)
    elif not as_json:
        tell_next("search", out, "what the picture shows")


@app.command(epilog="Example: voken add photos.voken new.jpg ~/more/*.png")
def add(
    collection: _Collection,
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Pictures, from anywhere.")],
    model: _OtherModel = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Add single pictures. One that is there already is read again.

    `voken index` would remove again those that lie outside the collection's folder.
    """
    from voken.collection.indexing import SavedModel, add_pictures
    from voken.collection.store import Store

    store = Store.open(collection)
    loaded = SavedModel(store.snapshot().find_model() if model is None else model, device, threads)
    with progress_bars() as progress:
        done, skipped = add_pictures(store, files, loaded, cache=vector_cache(cache), progress=progress)
    if as_json:
        print_json({**asdict(done), "skipped": as_dicts(skipped)})
    else:
        typer.echo(f"{shown(collection)}: {len(done.added):,} added, {len(done.updated):,} read again")
        tell_skipped(skipped, verbose)
    if not done.added and not done.updated:
        raise typer.Exit(1)


@app.command(epilog="Example: voken remove photos.voken trips/2019/blurred.jpg")
def remove(
    collection: _Collection,
    names: Annotated[list[str], typer.Argument(metavar="PICTURES...", help="Ids, or paths of files.")],
    as_json: AsJson = False,
) -> None:
    """Remove pictures from a collection. Their files stay; `voken index` adds those of its folder again."""
    from voken.collection.snapshot import stored_path
    from voken.collection.store import Store

    store = Store.open(collection)
    snapshot = store.snapshot()
    ids, absent = [], []
    for name in names:
        path = Path(name)
        found = [name] if snapshot.find(name) is not None else []
        found = found or list(snapshot.ids_of_paths([stored_path(path, snapshot.root)]).values())
        ids += found
        absent += [] if found else [name]
    done = store.commit(remove=ids)
    if as_json:
        print_json({"version": done.version, "removed": done.removed, "absent": absent})
    else:
        typer.echo(f"{shown(collection)}: {len(done.removed):,} removed")
        for name in absent:
            typer.secho(f"not there: {printable(name)}", fg=typer.colors.YELLOW, err=True)
    if absent:
        raise typer.Exit(1)


@app.command(epilog="Example: voken compact photos.voken")
def compact(collection: _Collection) -> None:
    """Write a collection out in one piece. Happens by itself when it has changed much; searches go on meanwhile."""
    from voken.collection.store import Store

    store = Store.open(collection)
    began = time.perf_counter()
    done = store.compact()
    took = duration(time.perf_counter() - began)
    typer.echo(f"{shown(collection)}: {f'written out in {took}' if done else 'in one piece already'}")


@app.command(epilog='Example: voken search photos.voken "two dogs on a beach" -k 5 --where "date>=2024-05"')
def search(
    collection: _Collection,
    query: Annotated[
        str | None,
        typer.Argument(metavar="QUERY", help="What the picture shows, in plain words; or a picture's file."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to answer.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", "-t", min=0, max=1, help="Only pictures that are right with this probability."),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision", min=0, max=1, help="The threshold at which this share of answers was right on validation."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            "-w",
            metavar="FIELD=VALUE",
            help="Only pictures with this: date>=2024-05, folder=trips, or a field of metadata.jsonl; "
            "= != < <= > >= ~ (contains). Repeatable.",
        ),
    ] = None,
    like: Annotated[
        str | None, typer.Option("--like", metavar="ID", help="Pictures like this one of the collection.")
    ] = None,
    preview: Annotated[bool, typer.Option("--preview", "-p", help="Show the pictures in the terminal.")] = False,
    files_only: Annotated[bool, typer.Option("--files-only", "-f", help="Print paths only, one a line.")] = False,
    readout: Annotated[
        str | None,
        typer.Option(
            help="Rank by generate (log-probability), voken (+ cosine with the rebuilt vector) or vector (+ cosine "
            "with the stored vector). (default: the best that the collection allows)"
        ),
    ] = None,
    beams: Annotated[
        int | None, typer.Option(min=1, help="Sequences kept while writing. (default: the model's, at least k)")
    ] = None,
    model: _OtherModel = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find pictures by words, by a picture, and by what is known of them."""
    import dataclasses

    from voken.collection.filters import parse_all
    from voken.collection.store import Store
    from voken.search.searcher import Searcher, load_model

    if readout not in (None, "generate", "voken", "vector"):
        raise ConfigError(f"--readout: {readout!r} is not generate, voken or vector.")
    if (query is None) == (like is None):
        raise ConfigError("Give a QUERY, or --like with the id of a picture: one of the two.")
    filters = parse_all(where or [])
    store = Store.open(collection)
    opened = store.snapshot()
    folder = opened.find_model() if model is None else model
    loaded = load_model(folder, device=device, threads=threads, once=True)
    searcher = Searcher(loaded, opened, store=store)
    changes: dict[str, Any] = {"readout": readout, "beams": beams}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        searcher = Searcher(loaded, opened, dataclasses.replace(searcher.search_config, **changes), store=store)
    if precision is not None:
        threshold = searcher.threshold(precision)
    began = time.perf_counter()
    if like is not None:
        hits = searcher.similar(like, k, filters)
    elif query is not None and _is_file(query):
        hits = _like_file(searcher, Path(query), folder, device, k, filters)
    else:
        (hits,) = searcher.search([query or ""], k, filters, threshold)
    seconds = time.perf_counter() - began
    _tell_hits(query, hits, searcher, seconds, as_json=as_json, files_only=files_only, preview=preview)


@app.command(epilog="Example: voken info photos.voken")
def info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A collection, or a model.")],
    skipped: Annotated[bool, typer.Option("--skipped", help="List the files that could not be used, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a collection or a model is, and where its bytes go."""
    from voken import artifact
    from voken.collection.filters import fields_of
    from voken.collection.store import KIND, Store

    if artifact.kind_of(folder) != KIND:
        tell_model(folder, as_json)
        return
    opened = Store.open(folder).snapshot()
    trie, size, count = opened.trie, opened.size, max(1, len(opened))
    parts = {
        "trie": size.trie_levels,
        "picture numbers": size.picture_numbers,
        "ids": size.ids,
        "paths": size.paths,
        "vectors": size.vectors,
        "files": size.files,
        "metadata": size.metadata,
    }
    if as_json:
        print_json(
            {
                "collection": str(folder),
                "pictures": len(opened),
                "version": opened.version,
                "added_since": len(opened.added.rows),
                "removed_since": len(opened.removed),
                "sequences": trie.sequences,
                "levels": trie.levels,
                "codebook_size": trie.codebook_size,
                "root": str(opened.root),
                "fields": fields_of(opened),
                "skipped": as_dicts(opened.skipped) if skipped else len(opened.skipped),
                "model": str(opened.model_folders[0]) if opened.model_folders else None,
                "model_fingerprint": opened.model_fingerprint,
                "bytes": parts,
                "bytes_per_picture": {name: round(part / count, 3) for name, part in parts.items()},
            }
        )
        return
    typer.echo(
        f"{shown(folder)}: {len(opened):,} pictures, {trie.sequences:,} sequences of {trie.levels} vokens of "
        f"{trie.codebook_size:,}; {len(opened.skipped):,} left out"
    )
    typer.echo(f"pictures of {shown(opened.root)}; filters: {', '.join(map(printable, fields_of(opened)))}")
    typer.echo(f"made with {shown(opened.model_folders[0]) if opened.model_folders else 'a model that was not saved'}")
    if opened.is_changed:
        typer.echo(
            f"version {opened.version}: {len(opened.added.rows):,} added and {len(opened.removed):,} removed since it "
            "was written out in one piece"
        )
    typer.echo(f"\n{'':<16}{'bytes':>15}{'a picture':>12}")
    for name, part in [*parts.items(), ("together", size.total)]:
        typer.echo(f"{name:<16}{part:>15,}{part / count:>12.2f}")
    if skipped:
        tell_skipped(opened.skipped, verbose=True)


@app.command(epilog="Example: voken doctor photos.voken")
def doctor(collection: _Collection, as_json: AsJson = False) -> None:
    """Check a collection, every byte of it, and say what is wrong and what to do. Exit code 1 where something is."""
    from voken.collection.doctor import examine

    with progress_bars() as progress:
        findings = examine(collection, progress=progress)
    wrong = any(one.level == "wrong" for one in findings)
    if as_json:
        print_json({"collection": str(collection), "well": not wrong, "findings": [asdict(one) for one in findings]})
    else:
        signs = {
            "good": ("ok    ", None),
            "note": ("note  ", typer.colors.YELLOW),
            "wrong": ("wrong ", typer.colors.RED),
        }
        for one in findings:
            sign, colour = signs[one.level]
            typer.secho(sign, fg=colour, nl=False)
            typer.echo(printable(one.what) + (f" → {printable(one.remedy)}" if one.remedy else ""))
    if wrong:
        raise typer.Exit(1)


@app.command(epilog="Example: voken serve photos.voken --open")
def serve(
    collection: _Collection,
    host: Annotated[
        str, typer.Option(help="Where to listen. 0.0.0.0: every network this machine is in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 7860,
    token: Annotated[
        str,
        typer.Option(envvar="VOKEN_TOKEN", help="Who knows it may add and remove pictures; without, nobody may."),
    ] = "",
    max_queue: Annotated[int, typer.Option(min=1, help="Queries that may wait; more are asked to come again.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="Size of one request, in MiB.")] = 32,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name this server is also known by, as behind another server. Repeatable."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    model: _OtherModel = None,
    threads: Threads = 0,
) -> None:
    """Serve a collection: a page for people, and an HTTP interface for programs (docs/serving.md)."""
    from voken.serve.process import serve as run
    from voken.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, token=token, max_queue=max_queue, max_body=max_body << 20, hosts=tuple(names or ())
    )
    run(collection, settings, model=model, threads=threads, open_page=open_page, report=typer.echo)


def _tell_indexed(out: Path, made: Snapshot, done: Indexed, seconds: float, as_json: bool, verbose: bool) -> None:
    if as_json:
        print_json(
            {
                "collection": str(out),
                "pictures": len(made),
                "version": made.version,
                "added": done.added,
                "updated": done.updated,
                "moved": done.moved,
                "removed": done.removed,
                "unchanged": done.unchanged,
                "sequences": made.trie.sequences,
                "bytes_per_picture": round(made.bytes_per_picture, 2),
                "with_vectors": made.vectors is not None,
                "seconds": round(seconds, 3),
                "skipped": as_dicts(done.skipped),
            }
        )
        return
    counts = {"added": done.added, "changed": done.updated, "moved": done.moved, "removed": done.removed}
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing has changed"
    rate = f", {done.added / seconds:,.0f} a second" if done.added > 2 * seconds > 2 else ""
    typer.echo(
        f"{shown(out)}: {len(made):,} pictures ({said}), {made.trie.sequences:,} voken sequences, "
        f"{made.bytes_per_picture:,.0f} bytes a picture, in {duration(seconds)}{rate}"
    )
    tell_skipped(done.skipped, verbose)


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL: words, then
        return False


def _like_file(searcher: Searcher, path: Path, folder: Path, device: str, k: int, filters: Sequence[Any]) -> list[Hit]:
    from voken.api import like_file
    from voken.model.model import Model

    return like_file(searcher, Model.load(folder, device=device), path, k, filters)


def _tell_hits(
    query: str | None,
    hits: Sequence[Hit],
    searcher: Searcher,
    seconds: float,
    *,
    as_json: bool,
    files_only: bool,
    preview: bool,
) -> None:
    opened = searcher.collection
    if as_json:
        rows = [opened.find(hit.image_id) for hit in hits]
        known = ["" if row is None else opened.metadata(row) for row in rows]
        ranked = [
            {"rank": rank, **asdict(hit), "metadata": json.loads(said) if said else {}}
            for rank, (hit, said) in enumerate(zip(hits, known, strict=True), start=1)
        ]
        readout = searcher.search_config.readout
        print_json({"query": query, "readout": readout, "seconds": round(seconds, 4), "hits": ranked})
    elif files_only:
        # file names need not be text; what they are is what the next program must get
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.path) + b"\n" for hit in hits))
        sys.stdout.flush()
    elif not hits:
        typer.echo("Nothing matches." if len(opened) else "The collection is empty.", err=True)
    else:
        sure = f"  {'sure':>5}" if hits[0].confidence is not None else ""
        typer.echo(f"{'rank':>4}  {'score':>8}{sure}  path")
        for rank, hit in enumerate(hits, start=1):
            sure = "" if hit.confidence is None else f"  {100 * hit.confidence:>4.0f}%"
            typer.echo(f"{rank:>4}  {hit.score:>8.3f}{sure}  {shown(hit.path)}")
            if preview:
                _show(Path(hit.path))


def _show(path: Path) -> None:
    """The picture itself, as well as the terminal can."""
    from voken.errors import MissingExtraError, PictureError

    try:
        from rich.console import Console
        from textual_image.renderable import Image as Preview

        from voken.data.images import open_image
    except ImportError as error:
        raise MissingExtraError(f"{error.name}, which shows pictures in a terminal,", "preview") from None
    try:
        picture = open_image(path)
    except PictureError as error:
        typer.secho(f"      {printable(error.reason)}", fg=typer.colors.YELLOW)
        return
    picture.thumbnail((480, 480))
    Console().print(Preview(picture, width=32, height="auto"))
