"""The command `voken`, and its commands for collections: `index`, `add`, `remove`, `compact`, `search`, `info` …"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    display_path,
    duration,
    print_json,
    print_next,
    print_skipped,
    printable,
    progress_bars,
    warn,
)
from voken.cli.training import print_model, tokenizer_app, training_app
from voken.errors import ConfigError, DataError, MissingExtraError, PictureError, StorageError, VokenError
from voken.extras import extra_errors

if TYPE_CHECKING:
    from voken.api import Collection, CollectionInfo, FittedModel, Hit, IndexReport, Picture

_RESUMABLE = {"data", "fit", "index", "add", "demo", "reproduce"}
_LARGER_EXTRAS = {"data": "data", "demo": "data"}
"""The extras of commands that need more than the extra `train`."""


class _Commands(TyperGroup):
    """The group of all commands. It reports voken's errors and Ctrl-C in one line, with an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names of this package's commands, then of those that other packages add."""
        return [*super().list_commands(ctx), *(name for group in _added_groups() for name in group.list_commands(ctx))]

    def get_command(self, ctx: Any, name: str) -> Any:
        """A command by name. Other packages are loaded only if this package has no such command."""
        command = super().get_command(ctx, name)
        with extra_errors(_LARGER_EXTRAS.get(name)):
            groups = [] if command is not None else _added_groups()
        return next((added for group in groups if (added := group.get_command(ctx, name)) is not None), command)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit with 1 for an error that a user can cause, with 130 for Ctrl-C."""
        try:
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError:
                with extra_errors(_LARGER_EXTRAS.get(ctx.invoked_subcommand)):
                    raise
        except VokenError as error:
            _print_error(error)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            warn(
                "stopped."
                + (" Run the same command again to continue." if ctx.invoked_subcommand in _RESUMABLE else "")
            )
            raise typer.Exit(130) from None
        except OSError as error:
            raise typer.Exit(_exit_code(error)) from None


def _print_error(error: Exception) -> None:
    typer.secho(f"error: {printable(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)


def _exit_code(error: OSError) -> int:
    """Report an error of the system in one line, and return the exit code."""
    if error.filename is None:
        _discard_output()
    if isinstance(error, BrokenPipeError):  # the reader has closed it (`voken search … | head`)
        return 0
    if error.filename is None:
        _print_error(StorageError(f"the output cannot be written ({error.strerror or error}). Send it elsewhere."))
    else:
        path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else error.filename
        _print_error(StorageError(f"{path}: {error.strerror}. Correct that and run the command again."))
    return 1


def _discard_output() -> None:
    """Write what is printed nowhere, because the output is full or closed: Python must not fail to flush it at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@cache
def _added_groups() -> list[Any]:
    """The commands of other packages, which declare a Typer application as an entry point `voken.commands`."""
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
# `--help` lists commands in this order; a model comes before a collection
app.registered_commands.extend(training_app.registered_commands)
app.add_typer(tokenizer_app)

_Collection = Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder that `voken index` created.")]
_OtherModel = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="The collection's model, if it was moved.", show_default=False),
]


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    try:
        try:
            app()
        except SystemExit as end:
            if sys.argv[1:2] == ["search"] and not end.code:
                _exit_at_once()
            raise
    except OSError as error:  # `voken --help > /dev/full`
        sys.exit(_exit_code(error))


def _exit_at_once() -> None:
    """End the process with success. To take the graphs and the word list apart costs a sixth of a search over CLIP."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _open_standard_streams() -> None:
    """Replace closed streams by ones that lead nowhere: the next file opened would get their number, and the output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))


def _print_version(version_requested: bool) -> None:
    if version_requested:
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


@app.command(epilog="Example: voken index ~/photos")
def index(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, with its subfolders, or a data set.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the collection. (default: .voken in PICTURES, or in your data folder if that cannot be "
            "written to)",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            help="Folder of a trained model. (default: the collection's, or a new one made from the pictures)",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="NAME",
            help="Without --model, what understands pictures and words: photos (built in, needs no network), the hub "
            "name or the folder of a CLIP or SigLIP model, or auto: a small CLIP if the hub provides it, else photos. "
            "(default: photos; in a terminal you are asked once whether to download CLIP)",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            metavar="TEMPLATE or DATA",
            help="With CLIP or SigLIP, the words around every query, as in 'a photo of {}', or a captioned data set: "
            "then the words with the best recall on its validation pictures. (default: queries as they are typed)",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Only this part of a data set; all: everything. It is remembered.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="PATTERN",
            help="Leave out files and folders whose name or path matches, as in drafts, *.gif or 2019/*/raw. "
            "Repeatable, and remembered.",
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option("--max-pixels", min=1, help="Leave out larger pictures. It is remembered. (default: 100 million)"),
    ] = None,
    remove_missing: Annotated[
        bool,
        typer.Option("--remove-missing", help="Remove pictures whose files are gone, even if they are very many."),
    ] = False,
    vectors: Annotated[
        bool | None,
        typer.Option(
            "--vectors/--no-vectors",
            help="Store a vector per picture, for the best ranking. Without it a picture takes only a few bytes. "
            "(default: store them)",
            show_default=False,
        ),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Create the collection again if it exists.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running, and update the collection whenever the folder changes.")
    ] = False,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Make pictures searchable, or bring a collection up to date with its folder. No captions are needed.

    Only new and changed files are read, moved files are recognised, and pictures whose files no longer exist are
    removed. If more than a quarter of the files are missing, they stay: a drive may not be mounted. Everything in the
    folder that is not indexed is counted. If the command is interrupted, run it again to continue; pictures that are
    indexed already can be searched meanwhile.

    Without a model one is made from the pictures in a moment. Nothing is trained then: it knows photographs of things,
    animals and places. A model that was trained on captions like your queries finds more (voken fit).
    """
    from voken.api import Collection, IndexReport, default_place, is_collection

    place = out is None
    out = default_place(pictures) if out is None else out
    if model is None and encoder in (None, "auto") and (replace or not is_collection(out)):
        encoder = _new_encoder(encoder, ask=not as_json)
    options: dict[str, Any] = {"split": split, "images": images, "vectors": vectors, "replace": replace}
    options |= {"cache": cache_folder(cache), "threads": threads, "device": device}
    options |= {"exclude": exclude, "max_pixels": max_pixels, "remove_missing": remove_missing, "encoder": encoder}
    options |= {"prompt": prompt}
    with progress_bars() as progress:
        options["progress"] = progress
        updates = Collection.watch(out, pictures, model, **options) if watch else iter(())
        first = next(updates) if watch else Collection.index(out, pictures, model, **options)
    _print_update(out, first, as_json, verbose)
    if watch:
        typer.echo(f"Watching {display_path(pictures)}. Ctrl-C ends it.", err=True)
    elif not as_json:
        print_next("search", pictures if place and pictures.is_dir() else out, "what the picture shows")
    for update in updates:
        _print_update(out, update, as_json, verbose)
    if isinstance(first, IndexReport) and first.missing:
        raise typer.Exit(1)


def _new_encoder(encoder: str | None, *, ask: bool) -> str:
    """The encoder of a new collection: what the user named or answers, without `auto`."""
    from voken import api

    if encoder is None:
        if ask and sys.stdin.isatty() and sys.stderr.isatty() and (question := api.encoder_question()):
            api.answer_encoder_question(typer.confirm(question, default=False, err=True))
        encoder = api.answered_encoder()
    if encoder != "auto":
        return encoder
    with progress_bars() as progress:
        encoder, reason = api.auto_encoder(progress)
    if reason:
        warn(f"{reason} The built-in encoder is used.")
    return encoder


@app.command(epilog="Example: voken add photos.voken new.jpg ~/more/*.png")
def add(
    folder: _Collection,
    files: Annotated[list[Path], typer.Argument(metavar="FILES...", help="Pictures, in any folder.")],
    model: _OtherModel = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Add single pictures. A picture that is in the collection already is read again.

    The next `voken index` removes added pictures that are outside the folder of the collection's pictures.
    """
    from voken.api import Collection

    collection = Collection.open(folder, model=model, threads=threads, device=device, load=False)
    with progress_bars() as progress:
        change = collection.add(files, cache=cache_folder(cache), progress=progress)
    if as_json:
        print_json(asdict(change))
    else:
        typer.echo(f"{display_path(folder)}: {len(change.added):,} added, {len(change.updated):,} read again")
        print_skipped(change.skipped, verbose)
    if not change.added and not change.updated:
        raise typer.Exit(1)


@app.command(epilog="Example: voken remove photos.voken trips/2019/blurred.jpg")
def remove(
    folder: _Collection,
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURES...", help="Ids, or paths of files.")],
    as_json: AsJson = False,
) -> None:
    """Remove pictures from a collection. Their files stay; `voken index` adds those in its folder again."""
    from voken.api import Collection

    collection = Collection.open(folder, load=False)
    ids = [picture for picture in pictures if picture in collection]
    change = collection.remove(ids, paths=[picture for picture in pictures if picture not in ids])
    if as_json:
        print_json({"version": change.version, "removed": change.removed, "absent": change.absent})
    else:
        typer.echo(f"{display_path(folder)}: {len(change.removed):,} removed")
        for picture in change.absent:
            warn(f"not in the collection: {picture}")
    if change.absent:
        raise typer.Exit(1)


@app.command(epilog="Example: voken compact photos.voken")
def compact(folder: _Collection) -> None:
    """Write a collection again as one piece. This happens by itself after many changes. Searches continue meanwhile."""
    from voken.api import Collection

    collection = Collection.open(folder, load=False)
    start = time.perf_counter()
    changed = collection.compact()
    seconds = duration(time.perf_counter() - start)
    typer.echo(f"{display_path(folder)}: {f'compacted in {seconds}' if changed else 'nothing to compact'}")


@app.command(epilog='Example: voken search photos.voken "two dogs on a beach" -k 5 --where "date>=2024-05"')
def search(
    folder: _Collection,
    query: Annotated[
        str | None,
        typer.Argument(
            metavar="QUERY", help="What the picture shows, in plain words, or the file of a similar picture."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to return.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", "-t", min=0, max=1, help="Only pictures that are right with at least this probability."
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision", min=0, max=1, help="Use the threshold at which this share of hits was right on validation."
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            "-w",
            metavar="FIELD=VALUE",
            help="Only pictures that match: date>=2024-05, folder=trips, or a field of metadata.jsonl. "
            "Operators: = != < <= > >= ~ (contains). Repeatable.",
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like", metavar="ID", help="Find pictures similar to this one of the collection, or to this file."
        ),
    ] = None,
    plus: Annotated[
        list[str] | None,
        typer.Option(
            "--plus",
            metavar="WORDS",
            help='More of this: "at night", or with a weight "at night:2". Repeatable, with QUERY, --like or alone.',
        ),
    ] = None,
    minus: Annotated[
        list[str] | None, typer.Option("--minus", metavar="WORDS", help="Less of this. Repeatable.")
    ] = None,
    sort: Annotated[
        Literal["score", "date"],
        typer.Option("--sort", help="The order of the pictures: the best or the newest first."),
    ] = "score",
    preview: Annotated[bool, typer.Option("--preview", "-p", help="Show the pictures in the terminal.")] = False,
    files_only: Annotated[bool, typer.Option("--files-only", "-f", help="Print only paths, one per line.")] = False,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="Like -f, but end each path with a NUL, for xargs -0.")
    ] = False,
    readout: Annotated[
        str | None,
        typer.Option(
            help="How hits are ranked: generate (log-probability), voken (and cosine with the vector rebuilt from the "
            "vokens) or vector (and cosine with the stored vector). (default: the best that the collection allows)"
        ),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sequences that the beam search holds at each level. (default: the model's setting, at least k)"
        ),
    ] = None,
    model: _OtherModel = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Find pictures by words or by a similar picture, with more of this (--plus) and less of that (--minus). Filters
    limit the search by metadata.
    """
    from voken.api import Collection

    if query is not None and like is not None:
        raise ConfigError("Give either QUERY, or --like with the id of a picture. Words beside it: --plus.")
    if query is None and like is None and not plus:
        raise ConfigError("Give QUERY, or --like with the id of a picture, or --plus.")
    by_picture = query is not None and _names_picture(query)
    if like is not None or by_picture or plus or minus:
        for name, value in (
            ("--threshold", threshold),
            ("--precision", precision),
            ("--readout", readout),
            ("--beams", beams),
        ):
            if value is not None:
                other = "with --plus or --minus" if plus or minus else "by a picture"
                raise ConfigError(f"{name}: only a search by words has it, not one {other}. Leave it out.")
    collection = Collection.open(
        folder, model=model, beams=beams, readout=readout, threads=threads, device=device, once=True
    )
    filters = where or []
    start = time.perf_counter()
    file = query if by_picture else None
    if like is not None and like not in collection and Path(like).expanduser().is_file():
        file, like = str(Path(like).expanduser()), None
    if plus or minus:
        words = None if by_picture else query
        hits = collection.combine(words, k, like=like, picture=file, plus=plus or (), minus=minus or (), where=filters)
    elif like is not None:
        hits = collection.similar(like, k, where=filters)
    elif file is not None:
        hits = collection.search_picture(file, k, where=filters)
    else:
        hits = collection.search(query or "", k, where=filters, threshold=threshold, precision=precision)
    seconds = time.perf_counter() - start
    if sort == "date":
        hits = collection.newest_first(hits)
    if as_json:
        ranked = [
            {"rank": rank, **asdict(hit), "metadata": collection.metadata(hit.image_id)}
            for rank, hit in enumerate(hits, start=1)
        ]
        print_json({"query": query, "readout": collection.readout, "seconds": round(seconds, 4), "hits": ranked})
    elif null or (files_only and not sys.stdout.isatty()):
        # the exact bytes: a file name need not be valid UTF-8
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.path) + (b"\0" if null else b"\n") for hit in hits))
        sys.stdout.flush()
    elif files_only:  # a name may hold characters that command a terminal
        for hit in hits:
            typer.echo(printable(hit.path))
    elif not hits:
        typer.echo("Nothing matches." if len(collection) else "The collection is empty.", err=True)
    else:
        _print_hits(collection, hits, preview)


@app.command(epilog="Example: voken info photos.voken")
def info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A collection, or a model.")],
    skipped: Annotated[bool, typer.Option("--skipped", help="List the files that could not be used, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Describe a collection or a model, and show how many bytes its parts take."""
    from voken import api

    info = api.info(folder)
    if isinstance(info, api.ModelInfo):
        print_model(folder, info, as_json)
        return
    size = info.size
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
        _print_info_json(folder, info, parts, skipped)
        return
    count = max(1, info.pictures)
    typer.echo(
        f"{display_path(folder)}: {info.pictures:,} pictures, {info.sequences:,} sequences of {info.levels} "
        f"vokens of {info.codebook_size:,}; {len(info.skipped):,} left out"
    )
    typer.echo(f"pictures of {display_path(info.root)}; filters: {', '.join(map(printable, info.fields))}")
    typer.echo(f"made with {display_path(info.model) if info.model else 'a model that was not saved'}")
    if info.added or info.removed:
        typer.echo(
            f"version {info.version}: {info.added:,} added and {info.removed:,} removed since the last compaction"
        )
    typer.echo(f"\n{'':<16}{'bytes':>15}{'per picture':>12}")
    for name, part in [*parts.items(), ("total", size.total)]:
        typer.echo(f"{name:<16}{part:>15,}{part / count:>12.2f}")
    if skipped:
        print_skipped(info.skipped, verbose=True)


@app.command(epilog="Example: voken doctor photos.voken")
def doctor(
    folder: _Collection,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Read the files of the pictures, too: have they changed?")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a collection, and say what is wrong and what to do. Exit code 1 if something is wrong."""
    from voken.api import Collection

    with progress_bars() as progress:
        findings = Collection.doctor(folder, pictures=pictures, progress=progress)
    wrong = any(finding.level == "wrong" for finding in findings)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        print_json({"collection": str(folder), "well": not wrong, "findings": rows})
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
    folder: _Collection,
    host: Annotated[
        str, typer.Option(help="The address to listen on. 0.0.0.0: all networks of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on. 0: any free port.")] = 7860,
    token: Annotated[
        str,
        typer.Option(
            envvar="VOKEN_TOKEN", help="Clients that send it may add and remove pictures. Without a token nobody may."
        ),
    ] = "",
    max_queue: Annotated[int, typer.Option(min=1, help="Queries that may wait. Further queries are refused.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, metavar="MIB", help="The largest request, in MiB.")] = 32,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="Another name of this server, for example behind a reverse proxy. Repeatable."),
    ] = None,
    strip_location: Annotated[
        bool,
        typer.Option(
            "--strip-location",
            help="Send pictures without the place, the time and the camera that their files tell, and no field of "
            "their metadata that says where they were taken (gps…, latitude, location …).",
        ),
    ] = False,
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Send pictures whose files are links out of their folder, too.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    model: _OtherModel = None,
    threads: Threads = 0,
) -> None:
    """Serve a collection: a page for people, and an HTTP interface for programs (docs/how-to/serve.md)."""
    from voken.serve.process import serve as run
    from voken.serve.settings import ServeSettings

    settings = ServeSettings(
        host=host,
        port=port,
        token=token,
        max_queue=max_queue,
        max_body=max_body << 20,
        hosts=tuple(names or ()),
        strip_location=strip_location,
        follow_links=follow_links,
    )

    def report(line: str) -> None:
        try:
            typer.echo(printable(line))
        except OSError:  # a server serves without an output, too
            _discard_output()

    run(folder, settings, model=model, threads=threads, open_page=open_page, report=report, warn=warn)


def _print_update(out: Path, report: IndexReport | VokenError, as_json: bool, verbose: bool) -> None:
    if isinstance(report, VokenError):
        warn(f"not updated: {report}")
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
                "missing": report.missing,
                "unchanged": report.unchanged,
                "sequences": report.sequences,
                "bytes_per_picture": round(report.bytes_per_picture, 2),
                "with_vectors": report.with_vectors,
                "fitted": None if report.fitted is None else asdict(report.fitted),
                "seconds": round(report.seconds, 3),
                "skipped": as_dicts(report.skipped),
            }
        )
        return
    counts = {"added": report.added, "changed": report.updated, "moved": report.moved, "removed": report.removed}
    changes = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing has changed"
    rate = f", {report.added / report.seconds:,.0f} per second" if report.added > 2 * report.seconds > 2 else ""
    typer.echo(
        f"{display_path(out)}: {report.pictures:,} pictures ({changes}), {report.sequences:,} voken sequences, "
        f"{report.bytes_per_picture:,.0f} bytes per picture, in {duration(report.seconds)}{rate}"
    )
    if report.fitted is not None:
        _print_fitted(report.fitted)
    print_skipped(report.skipped, verbose)
    if report.missing:
        warn(
            f"The files of {report.missing:,} pictures are missing. The pictures stay, because a drive may not be "
            "mounted. If you deleted them, run the command again with --remove-missing."
        )


def _print_fitted(model: FittedModel) -> None:
    about = {"photos": "the built-in encoder “photos”, which knows photographs of things, animals and places"}
    prompt = "" if model.prompt == "{}" else f", which reads queries as “{printable(model.prompt)}”"
    typer.echo(f"encoder: {about.get(model.encoder, printable(model.encoder))}{prompt}")
    typer.echo(
        f"codebooks: {model.levels} of {model.codebook_size} entries, fitted on {model.pictures:,} pictures. Nothing "
        "was trained, and hits have no confidence."
    )


def _print_info_json(folder: Path, info: CollectionInfo, parts: dict[str, int], list_skipped: bool) -> None:
    count = max(1, info.pictures)
    print_json(
        {
            "collection": str(folder),
            "pictures": info.pictures,
            "version": info.version,
            "added_since": info.added,
            "removed_since": info.removed,
            "sequences": info.sequences,
            "levels": info.levels,
            "codebook_size": info.codebook_size,
            "root": str(info.root),
            "fields": info.fields,
            "skipped": as_dicts(info.skipped) if list_skipped else len(info.skipped),
            "model": None if info.model is None else str(info.model),
            "model_fingerprint": info.model_fingerprint,
            "bytes": parts,
            "bytes_per_picture": {name: round(part / count, 3) for name, part in parts.items()},
        }
    )


def _names_picture(query: str) -> bool:
    """Whether a query is the file of a picture and not words. Raises `DataError` if it can only be one, but is missing.

    A bare word is never a file, even if there is a file of that name: `./word` is one.
    """
    from mimetypes import guess_type

    has_separator = os.sep in query or (os.altsep is not None and os.altsep in query)
    try:
        path = Path(query).expanduser()
        if path.is_dir() and has_separator:
            raise DataError(f"{query}: is a folder. Give the file of one picture, or say what the picture shows.")
        if path.is_file() and (has_separator or path.suffix):
            return True
    except (OSError, ValueError, RuntimeError):  # too long for a path, a NUL, or a home that is unknown
        return False
    if (guess_type(query)[0] or "").startswith("image/"):
        raise DataError(f"{query}: there is no such file. Correct the path, or say in words what the picture shows.")
    return False


def _print_hits(collection: Collection, hits: Sequence[Hit], preview: bool) -> None:
    heading = "" if hits[0].confidence is None else f"  {'confidence':>10}"
    typer.echo(f"{'rank':>4}  {'score':>8}{heading}  path")
    for rank, hit in enumerate(hits, start=1):
        confidence = "" if hit.confidence is None else f"  {100 * hit.confidence:>9.0f}%"
        typer.echo(f"{rank:>4}  {hit.score:>8.3f}{confidence}  {display_path(hit.path)}")
        if preview:
            _print_preview(collection.picture(hit.image_id))


def _print_preview(picture: Picture) -> None:
    """Show a picture, in the best way that the terminal supports."""
    try:
        from rich.console import Console
        from textual_image.renderable import Image as Preview

        image = picture.image()
    except ImportError as error:
        raise MissingExtraError(f"{error.name}, which shows pictures in a terminal,", "preview") from None
    except PictureError as error:
        warn(f"      {error.reason}")
        return
    image.thumbnail((480, 480))
    Console().print(Preview(image, width=32, height="auto"))
