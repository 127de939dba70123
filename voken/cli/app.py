"""The command `voken`, and its commands for collections: `index`, `add`, `remove`, `compact`, `search`, `info` …"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from voken.cli.console import (
    AsJson,
    CacheFolder,
    Device,
    ImagesFolder,
    Threads,
    Verbose,
    as_dicts,
    cache_folder,
    duration,
    print_json,
    print_next,
    print_skipped,
    printable,
    progress_bars,
    shown,
    warn,
)
from voken.cli.training import print_model, tokenizer_app, training_app
from voken.errors import ConfigError, DataError, MissingExtraError, PictureError, VokenError

if TYPE_CHECKING:
    from voken.api import Collection, CollectionInfo, Hit, IndexReport, Picture

_RESUMABLE = {"data", "fit", "index", "add", "demo", "reproduce"}


class _Commands(TyperGroup):
    """Turns voken's errors and Ctrl-C into a line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """This package's commands, then those that other packages add."""
        return [*super().list_commands(ctx), *(name for group in _added_groups() for name in group.list_commands(ctx))]

    def get_command(self, ctx: Any, name: str) -> Any:
        """Other packages are searched only if the command is not one of this package."""
        command = super().get_command(ctx, name)
        groups = [] if command is not None else _added_groups()
        return next((added for group in groups if (added := group.get_command(ctx, name)) is not None), command)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 1 for a `VokenError`, with 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except VokenError as error:
            typer.secho(f"error: {printable(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            warn("stopped." + (" The same command goes on from here." if ctx.invoked_subcommand in _RESUMABLE else ""))
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # the reader of our output has all it wanted (`voken search … | head`); Python must not flush into nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


@cache
def _added_groups() -> list[Any]:
    """Commands of installed packages that declare a Typer application as an entry point of `voken.commands`."""
    from importlib.metadata import entry_points

    return [typer.main.get_group(point.load()) for point in entry_points(group="voken.commands")]


app = typer.Typer(
    name="voken",
    cls=_Commands,
    help="Text-to-image search by generation: pictures become short sequences of visual tokens (vokens), "
    "and a language model writes the sequences that answer a query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# first, because `--help` lists commands in this order, and a collection needs a model
app.registered_commands.extend(training_app.registered_commands)
app.add_typer(tokenizer_app)

_Collection = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder that `voken index` made.")]
_OtherModel = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="The collection's model, if it was moved.", show_default=False),
]


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"voken {version('voken-search')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: voken index ~/photos --model emoji.model --out photos.voken")
def index(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, however deep, or a data set.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the collection.", show_default=False)],
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", help="Folder of a trained model. An existing collection knows its own."),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this part of a data set.")] = None,
    vectors: Annotated[
        bool, typer.Option(help="Store a vector per picture, for the best ranking; without it, a few bytes suffice.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Start again if the collection exists.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on, and follow the folder as it changes.")] = False,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make pictures searchable, or bring a collection up to date with its folder. No caption is needed.

    Only new and changed files are read; a file that was moved is recognised; pictures whose files are gone are removed.
    Pictures that cannot be read are left out and listed. Stopped at any time, the same command goes on, and what is
    there can be searched meanwhile.
    """
    from voken.api import Collection

    options: dict[str, Any] = {"split": split, "images": images, "vectors": vectors, "replace": replace}
    options |= {"cache": cache_folder(cache), "threads": threads, "device": device}
    with progress_bars() as progress:
        options["progress"] = progress
        updates = Collection.watch(out, pictures, model, **options) if watch else iter(())
        first = next(updates) if watch else Collection.index(out, pictures, model, **options)
    _print_update(out, first, as_json, verbose)
    if watch:
        typer.echo(f"Watching {shown(pictures)}. Ctrl-C ends it.", err=True)
    elif not as_json:
        print_next("search", out, "what the picture shows")
    for update in updates:
        _print_update(out, update, as_json, verbose)


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
    """Add single pictures. A picture that is in the collection already is read again.

    The next `voken index` removes those that are outside the collection's folder.
    """
    from voken.api import Collection

    opened = Collection.open(collection, model=model, threads=threads, device=device, load=False)
    with progress_bars() as progress:
        change = opened.add(files, cache=cache_folder(cache), progress=progress)
    if as_json:
        print_json(asdict(change))
    else:
        typer.echo(f"{shown(collection)}: {len(change.added):,} added, {len(change.updated):,} read again")
        print_skipped(change.skipped, verbose)
    if not change.added and not change.updated:
        raise typer.Exit(1)


@app.command(epilog="Example: voken remove photos.voken trips/2019/blurred.jpg")
def remove(
    collection: _Collection,
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURES...", help="Ids, or paths of files.")],
    as_json: AsJson = False,
) -> None:
    """Remove pictures from a collection. Their files stay; `voken index` adds those of its folder again."""
    from voken.api import Collection

    opened = Collection.open(collection, load=False)
    ids = [picture for picture in pictures if picture in opened]
    change = opened.remove(ids, paths=[picture for picture in pictures if picture not in ids])
    if as_json:
        print_json({"version": change.version, "removed": change.removed, "absent": change.absent})
    else:
        typer.echo(f"{shown(collection)}: {len(change.removed):,} removed")
        for picture in change.absent:
            warn(f"not in the collection: {printable(picture)}")
    if change.absent:
        raise typer.Exit(1)


@app.command(epilog="Example: voken compact photos.voken")
def compact(collection: _Collection) -> None:
    """Write a collection out in one piece. Happens by itself after many changes; searches go on meanwhile."""
    from voken.api import Collection

    opened = Collection.open(collection, load=False)
    start = time.perf_counter()
    changed = opened.compact()
    took = duration(time.perf_counter() - start)
    typer.echo(f"{shown(collection)}: {f'written out in {took}' if changed else 'in one piece already'}")


@app.command(epilog='Example: voken search photos.voken "two dogs on a beach" -k 5 --where "date>=2024-05"')
def search(
    collection: _Collection,
    query: Annotated[
        str | None,
        typer.Argument(metavar="QUERY", help="What the picture shows, in plain words; or a picture's file."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to return.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", "-t", min=0, max=1, help="Only pictures that are right with this probability."),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision", min=0, max=1, help="The threshold at which this share of hits was right on validation."
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
    files_only: Annotated[bool, typer.Option("--files-only", "-f", help="Print only paths, one per line.")] = False,
    readout: Annotated[
        str | None,
        typer.Option(
            help="Rank by generate (log-probability), voken (+ cosine with the rebuilt vector) or vector (+ cosine "
            "with the stored vector). (default: the best that the collection allows)"
        ),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences that the search keeps at each level. (default: the model's, at least k)"),
    ] = None,
    model: _OtherModel = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find pictures by words, by a picture, and by their metadata."""
    from voken.api import Collection

    if (query is None) == (like is None):
        raise ConfigError("Give either a QUERY, or --like with the id of a picture.")
    opened = Collection.open(
        collection, model=model, beams=beams, readout=readout, threads=threads, device=device, once=True
    )
    filters = where or []
    start = time.perf_counter()
    if like is not None:
        hits = opened.similar(like, k, where=filters)
    elif query is not None and _is_file(query):
        hits = opened.search_picture(query, k, where=filters)
    else:
        hits = opened.search(query or "", k, where=filters, threshold=threshold, precision=precision)
    seconds = time.perf_counter() - start
    if as_json:
        ranked = [
            {"rank": rank, **asdict(hit), "metadata": opened.metadata(hit.image_id)}
            for rank, hit in enumerate(hits, start=1)
        ]
        print_json({"query": query, "readout": opened.readout, "seconds": round(seconds, 4), "hits": ranked})
    elif files_only:
        # a file name need not be text; the next program must get its exact bytes
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.path) + b"\n" for hit in hits))
        sys.stdout.flush()
    elif not hits:
        typer.echo("Nothing matches." if len(opened) else "The collection is empty.", err=True)
    else:
        _print_hits(opened, hits, preview)


@app.command(epilog="Example: voken info photos.voken")
def info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A collection, or a model.")],
    skipped: Annotated[bool, typer.Option("--skipped", help="List the files that could not be used, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a collection or a model is, and how many bytes its parts take."""
    from voken import api

    described = api.info(folder)
    if isinstance(described, api.ModelInfo):
        print_model(folder, described, as_json)
        return
    size = described.size
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
        _print_info_json(folder, described, parts, skipped)
        return
    count = max(1, described.pictures)
    typer.echo(
        f"{shown(folder)}: {described.pictures:,} pictures, {described.sequences:,} sequences of {described.levels} "
        f"vokens of {described.codebook_size:,}; {len(described.skipped):,} left out"
    )
    typer.echo(f"pictures of {shown(described.root)}; filters: {', '.join(map(printable, described.fields))}")
    typer.echo(f"made with {shown(described.model) if described.model else 'a model that was not saved'}")
    if described.added or described.removed:
        typer.echo(
            f"version {described.version}: {described.added:,} added and {described.removed:,} removed since it was "
            "written out in one piece"
        )
    typer.echo(f"\n{'':<16}{'bytes':>15}{'per picture':>12}")
    for name, part in [*parts.items(), ("total", size.total)]:
        typer.echo(f"{name:<16}{part:>15,}{part / count:>12.2f}")
    if skipped:
        print_skipped(described.skipped, verbose=True)


@app.command(epilog="Example: voken doctor photos.voken")
def doctor(collection: _Collection, as_json: AsJson = False) -> None:
    """Check a collection, every byte of it, and say what is wrong and what to do. Exit code 1 if something is wrong."""
    from voken.api import Collection

    with progress_bars() as progress:
        findings = Collection.doctor(collection, progress=progress)
    wrong = any(finding.level == "wrong" for finding in findings)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        print_json({"collection": str(collection), "well": not wrong, "findings": rows})
    else:
        signs = {
            "good": ("ok    ", None),
            "note": ("note  ", typer.colors.YELLOW),
            "wrong": ("wrong ", typer.colors.RED),
        }
        for finding in findings:
            sign, colour = signs[finding.level]
            typer.secho(sign, fg=colour, nl=False)
            typer.echo(printable(finding.what) + (f" → {printable(finding.remedy)}" if finding.remedy else ""))
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
        typer.Option(
            envvar="VOKEN_TOKEN", help="Whoever knows it may add and remove pictures; without it, nobody may."
        ),
    ] = "",
    max_queue: Annotated[int, typer.Option(min=1, help="Queries that may wait; further ones must try again.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="Size of one request, in MiB.")] = 32,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another name of this server, as behind a reverse proxy. Repeatable."),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    model: _OtherModel = None,
    threads: Threads = 0,
) -> None:
    """Serve a collection: a page for people, and an HTTP interface for programs (docs/how-to/serve.md)."""
    from voken.serve.process import serve as run
    from voken.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host, port=port, token=token, max_queue=max_queue, max_body=max_body << 20, hosts=tuple(names or ())
    )
    run(collection, settings, model=model, threads=threads, open_page=open_page, report=typer.echo)


def _print_update(out: Path, report: IndexReport | DataError, as_json: bool, verbose: bool) -> None:
    if isinstance(report, DataError):
        warn(f"not updated: {printable(str(report))}")
        return
    if as_json:
        print_json(
            {
                "collection": str(out),
                "pictures": report.pictures,
                "version": report.version,
                "added": report.added,
                "updated": report.updated,
                "moved": report.moved,
                "removed": report.removed,
                "unchanged": report.unchanged,
                "sequences": report.sequences,
                "bytes_per_picture": round(report.bytes_per_picture, 2),
                "with_vectors": report.with_vectors,
                "seconds": round(report.seconds, 3),
                "skipped": as_dicts(report.skipped),
            }
        )
        return
    counts = {"added": report.added, "changed": report.updated, "moved": report.moved, "removed": report.removed}
    changes = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing has changed"
    rate = f", {report.added / report.seconds:,.0f} per second" if report.added > 2 * report.seconds > 2 else ""
    typer.echo(
        f"{shown(out)}: {report.pictures:,} pictures ({changes}), {report.sequences:,} voken sequences, "
        f"{report.bytes_per_picture:,.0f} bytes per picture, in {duration(report.seconds)}{rate}"
    )
    print_skipped(report.skipped, verbose)


def _print_info_json(folder: Path, described: CollectionInfo, parts: dict[str, int], list_skipped: bool) -> None:
    count = max(1, described.pictures)
    print_json(
        {
            "collection": str(folder),
            "pictures": described.pictures,
            "version": described.version,
            "added_since": described.added,
            "removed_since": described.removed,
            "sequences": described.sequences,
            "levels": described.levels,
            "codebook_size": described.codebook_size,
            "root": str(described.root),
            "fields": described.fields,
            "skipped": as_dicts(described.skipped) if list_skipped else len(described.skipped),
            "model": None if described.model is None else str(described.model),
            "model_fingerprint": described.model_fingerprint,
            "bytes": parts,
            "bytes_per_picture": {name: round(part / count, 3) for name, part in parts.items()},
        }
    )


def _is_file(query: str) -> bool:
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # too long for a path, or with a NUL: then it is words
        return False


def _print_hits(opened: Collection, hits: Sequence[Hit], preview: bool) -> None:
    heading = "" if hits[0].confidence is None else f"  {'confidence':>10}"
    typer.echo(f"{'rank':>4}  {'score':>8}{heading}  path")
    for rank, hit in enumerate(hits, start=1):
        confidence = "" if hit.confidence is None else f"  {100 * hit.confidence:>9.0f}%"
        typer.echo(f"{rank:>4}  {hit.score:>8.3f}{confidence}  {shown(hit.path)}")
        if preview:
            _print_preview(opened.picture(hit.image_id))


def _print_preview(picture: Picture) -> None:
    """Show the picture as well as the terminal can."""
    try:
        from rich.console import Console
        from textual_image.renderable import Image as Preview

        image = picture.image()
    except ImportError as error:
        raise MissingExtraError(f"{error.name}, which shows pictures in a terminal,", "preview") from None
    except PictureError as error:
        warn(f"      {printable(error.reason)}")
        return
    image.thumbnail((480, 480))
    Console().print(Preview(image, width=32, height="auto"))
