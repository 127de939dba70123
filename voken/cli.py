"""The command line: parse, call, print. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from voken.console import printable, progress_bars, shown
from voken.errors import ConfigError, VokenError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from voken.data.skipped import Skipped
    from voken.encoders.cache import VectorCache
    from voken.image_tokenizer.report import TokenizerReport

_RESUMING = {"data", "fit", "index", "demo", "reproduce"}
_SKIPPED_SHOWN = 3


class _Commands(TyperGroup):
    """Turns what voken raises on purpose, and Ctrl-C, into a line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; 1 for a `VokenError`, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except VokenError as error:
            typer.secho(f"error: {printable(' '.join(str(error).split()))}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            again = " The same command goes on from here." if ctx.invoked_subcommand in _RESUMING else ""
            typer.secho(f"stopped.{again}", fg=typer.colors.YELLOW, err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # whoever read us has what it wanted (`voken search … | head`); Python must not flush into nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


app = typer.Typer(
    name="voken",
    cls=_Commands,
    help="Text-to-image search by generation: pictures become short sequences of visual tokens (vokens), "
    "and a language model writes the sequences that answer a query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokenizer_app = typer.Typer(name="tokenizer", help="The image tokenizer (stage 1) by itself.", no_args_is_help=True)
app.add_typer(tokenizer_app)

_Model = Annotated[Path, typer.Option("--model", "-m", help="Folder of a trained model.", show_default=False)]
_Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Folder that keeps vectors of pictures, so that none is encoded twice."),
]
_Images = Annotated[
    Path | None, typer.Option("--images", help="Folder of the pictures, where a Karpathy .json lies elsewhere.")
]
_Threads = Annotated[int, typer.Option("--threads", min=0, help="Processor threads; 0: as many as there are cores.")]
_Device = Annotated[str, typer.Option("--device", help="Where the networks run: cpu, cuda, cuda:1, mps.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]
_Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List every picture that was left out.")]
_Split = Annotated[str, typer.Option("--split", help="Which part of the data set: train, validation or test.")]


def main() -> None:
    """The entry point."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"voken {version('voken-search')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: voken data emoji emoji --seed 0")
def data(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="emoji, icons (tagged, for quality) or icons-all (for scale).")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to draw it; made if it is not there.")],
    seed: Annotated[int, typer.Option(help="Draws the split into train, validation and test.")] = 0,
    size: Annotated[int | None, typer.Option(min=8, help="Side in pixels. (default: emoji 128, icons 64)")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="emoji only: two hands instead of nine.")] = False,
    every_licence: Annotated[
        bool,
        typer.Option("--every-licence", help="icons-all only: also what may not be passed on, to measure at home."),
    ] = False,
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Draw a data set of captioned pictures: emoji, or icons.

    The drawings come by npm once and are kept; the result is a folder with metadata.jsonl, split by concept.
    """
    from voken.data.sources import emoji, icons

    if name not in ("emoji", "icons", "icons-all"):
        raise ConfigError(f"{name!r}: no such data set. There are: emoji, icons, icons-all.")
    if demo and name != "emoji":
        raise ConfigError(f"--demo: {name} has no smaller selection; only emoji has.")
    if every_licence and name != "icons-all":
        raise ConfigError("--every-licence: only icons-all has it.")
    with progress_bars() as progress:
        if name == "emoji":
            vendors = emoji.DEMO_VENDORS if demo else tuple(emoji.VENDORS)
            made = emoji.build(folder, seed=seed, size=size or 128, vendors=vendors, progress=progress)
        elif name == "icons":
            made = icons.build(folder, seed=seed, size=size or 64, progress=progress)
        else:
            made = icons.build_all(folder, seed=seed, size=size or 64, every_licence=every_licence, progress=progress)
    splits = {split: sum(image.split == split for image in made.images) for split in ("train", "validation", "test")}
    if as_json:
        _print_json(
            {
                "folder": str(made.root),
                "pictures": len(made),
                "concepts": len(made.concepts),
                "splits": splits,
                "skipped": _as_dicts(made.skipped),
            }
        )
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in splits.items() if count)
    typer.echo(f"{shown(made.root)}: {len(made):,} pictures of {len(made.concepts):,} concepts ({counts})")
    _tell_skipped(made.skipped, verbose)
    if splits["train"]:
        _tell_next("fit", made.root, "--out", f"{made.root.name}.model")


@app.command(epilog="Example: voken fit emoji --out emoji.model --set tokenizer.levels=6")
def fit(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with metadata.jsonl (file_name and captions a line), or a Karpathy dataset_*.json.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to save the model in.", show_default=False)
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: default, paper, paper-lite or demo.")
    ] = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, e.g. tokenizer.levels=6. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print every setting as JSON and leave.")] = False,
    images: _Images = None,
    cache: _Cache = None,
    threads: _Threads = 0,
    device: _Device = "cpu",
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Train a model on captioned pictures.

    The train split trains and the validation split chooses (a tenth is set aside where there is none).
    Stopped at any time, the same command goes on from where it was.
    """
    from voken.config import preset as named

    config = named(preset).override({"seed": str(seed), **_assignments(settings or [])})
    if show_config:
        _print_json(config.to_dict())
        return
    if dataset is None:
        raise ConfigError("DATA is missing: name the folder with metadata.jsonl. `voken fit --help` says more.")
    if out is None:
        raise ConfigError("--out is missing: name the folder to save the model in.")
    from voken.data.captions import read_dataset
    from voken.fit import fit as train

    given = read_dataset(dataset, images)
    _use_threads(threads)
    began = time.perf_counter()
    with progress_bars() as progress:
        model = train(given, out, config, cache=_cache(cache), device=device, progress=progress)
    seconds = time.perf_counter() - began
    said = model.validation
    skipped = [_skipped(one) for one in said.get("skipped", [])]
    if as_json:
        _print_json(
            {
                "model": str(out),
                "fingerprint": model.fingerprint,
                "seconds": round(seconds, 3),
                "config": config.to_dict(),
                "validation": said,
            }
        )
        return
    pictures = said.get("pictures", {})
    counts = ", ".join(f"{count:,} {side}" for side, count in pictures.items())
    typer.echo(f"{shown(out)}: trained on {counts} pictures in {_duration(seconds)}")
    if recall := _best_recall(said):
        typer.echo(f"Mean of R@1, R@5 and R@10 on validation, by log-probability alone: {100 * recall:.1f}%")
    _tell_skipped(skipped, verbose)
    _tell_next("index", "PICTURES", "--model", out, "--out", "COLLECTION")


@app.command(epilog="Example: voken index ~/photos --model emoji.model --out photos.voken")
def index(
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A folder of pictures, however deep, or a data set.")
    ],
    model: _Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to save the collection in.", show_default=False)],
    split: Annotated[str | None, typer.Option("--split", help="Of a data set, this part only.")] = None,
    vectors: Annotated[
        bool, typer.Option(help="Keep a vector a picture, for the best ranking; without, a few bytes do.")
    ] = True,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a collection that is there already.")] = False,
    images: _Images = None,
    cache: _Cache = None,
    threads: _Threads = 0,
    device: _Device = "cpu",
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Make pictures ready to be searched. No caption is needed or read.

    Pictures that cannot be read are left out and counted. Stopped at any time, the same command goes on.
    """
    from voken.collection.indexing import create_collection
    from voken.data.captions import read_dataset
    from voken.evaluation.metrics import collision_rate
    from voken.model import Model

    given = read_dataset(pictures, images)
    if split is not None:
        given = given.split(split)
    _use_threads(threads)
    began = time.perf_counter()
    with progress_bars() as progress:
        made = create_collection(
            out,
            given,
            Model.load(model, device=device),
            vectors=vectors,
            model_folder=model,
            cache=_cache(cache),
            replace=replace,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    if as_json:
        _print_json(
            {
                "collection": str(out),
                "pictures": len(made),
                "sequences": made.trie.sequences,
                "collision_rate": collision_rate(made.vokens),
                "bytes_per_picture": round(made.bytes_per_picture, 2),
                "with_vectors": made.vectors is not None,
                "seconds": round(seconds, 3),
                "skipped": _as_dicts(made.skipped),
            }
        )
        return
    typer.echo(
        f"{shown(out)}: {len(made):,} pictures, {made.trie.sequences:,} voken sequences, "
        f"{made.bytes_per_picture:,.0f} bytes a picture, in {_duration(seconds)}"
    )
    _tell_skipped(made.skipped, verbose)
    _tell_next("search", out, "what the picture shows")


@app.command(epilog='Example: voken search photos.voken "two dogs on a beach" -k 5')
def search(
    collection: Annotated[Path, typer.Argument(metavar="COLLECTION", help="Folder that `voken index` saved.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What the picture shows, in plain words.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many pictures to answer.")] = 10,
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
    files_only: Annotated[bool, typer.Option("--files-only", "-f", help="Print paths only, one a line.")] = False,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The model, where it is no longer where it was.")
    ] = None,
    threads: _Threads = 0,
    device: _Device = "cpu",
    as_json: _Json = False,
) -> None:
    """Find pictures by words."""
    import dataclasses

    from voken.collection.store import Store
    from voken.search import Searcher, load_model

    if readout not in (None, "generate", "voken", "vector"):
        raise ConfigError(f"--readout: {readout!r} is not generate, voken or vector.")
    opened = Store.open(collection).snapshot()
    loaded = load_model(opened.find_model() if model is None else model, device=device, threads=threads, once=True)
    searcher = Searcher(loaded, opened)
    changes: dict[str, Any] = {"readout": readout, "beams": beams}
    changes = {name: value for name, value in changes.items() if value is not None}
    if changes:
        searcher = Searcher(loaded, opened, dataclasses.replace(searcher.search_config, **changes))
    began = time.perf_counter()
    (hits,) = searcher.search([query], k)
    seconds = time.perf_counter() - began
    if as_json:
        ranked = [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, start=1)]
        _print_json(
            {
                "query": query,
                "readout": searcher.search_config.readout,
                "seconds": round(seconds, 4),
                "hits": ranked,
            }
        )
    elif files_only:
        # file names need not be text; what they are is what the next program must get
        sys.stdout.buffer.write(b"".join(os.fsencode(hit.path) + b"\n" for hit in hits))
        sys.stdout.flush()
    else:
        typer.echo(f"{'rank':>4}  {'score':>8}  path")
        for rank, hit in enumerate(hits, start=1):
            typer.echo(f"{rank:>4}  {hit.score:>8.3f}  {shown(hit.path)}")


@app.command(epilog="Example: voken info photos.voken")
def info(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A collection, or a model.")],
    as_json: _Json = False,
) -> None:
    """Say what a collection or a model is, and where its bytes go."""
    from voken import artifact
    from voken.collection.store import KIND, Store

    if artifact.kind_of(folder) != KIND:
        _tell_model(folder, as_json)
        return
    opened = Store.open(folder).snapshot()
    trie, size = opened.trie, opened.size
    parts = {
        "trie": size.trie_levels,
        "picture numbers": size.picture_numbers,
        "ids": size.ids,
        "paths": size.paths,
        "vectors": size.vectors,
    }
    if as_json:
        _print_json(
            {
                "collection": str(folder),
                "pictures": len(opened),
                "sequences": trie.sequences,
                "levels": trie.levels,
                "codebook_size": trie.codebook_size,
                "skipped": len(opened.skipped),
                "model": str(opened.model_folders[0]) if opened.model_folders else None,
                "model_fingerprint": opened.model_fingerprint,
                "bytes": parts,
                "bytes_per_picture": {name: round(part / len(opened), 3) for name, part in parts.items()},
            }
        )
        return
    typer.echo(
        f"{shown(folder)}: {len(opened):,} pictures, {trie.sequences:,} sequences of {trie.levels} vokens of "
        f"{trie.codebook_size:,}; {len(opened.skipped):,} left out"
    )
    typer.echo(f"made with {shown(opened.model_folders[0]) if opened.model_folders else 'a model that was not saved'}")
    typer.echo(f"\n{'':<16}{'bytes':>15}{'a picture':>12}")
    for name, part in [*parts.items(), ("together", size.total)]:
        typer.echo(f"{name:<16}{part:>15,}{part / len(opened):>12.2f}")


@app.command(name="compile", epilog="Example: voken compile emoji.model --precision int8")
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.")],
    precision: Annotated[
        str, typer.Option(help="float32: as trained. int8: smaller, faster, a little less exact (docs/speed.md).")
    ] = "float32",
) -> None:
    """Make a model's engine anew: what a search on a CPU runs, without torch. Collections stay valid."""
    import dataclasses

    from voken.model import Model

    if precision not in ("float32", "int8"):
        raise ConfigError(f"--precision: {precision!r} is not float32 or int8.")
    loaded = Model.load(model)
    search = dataclasses.replace(loaded.search, precision=precision)  # type: ignore[arg-type]
    dataclasses.replace(loaded, search=search).save(model, replace=True)
    _tell_model(model, as_json=False)


@app.command(name="eval", epilog="Example: voken eval --model emoji.model --data emoji --json emoji.json")
def evaluate(
    model: _Model,
    dataset: Annotated[Path, typer.Option("--data", "-d", help="A data set with captions.", show_default=False)],
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write every figure as JSON into this file.")
    ] = None,
    split: _Split = "test",
    all_pictures: Annotated[
        bool, typer.Option("--all-pictures", help="All pictures are the pool, not one of each concept.")
    ] = False,
    every_caption: Annotated[
        bool,
        typer.Option("--every-caption", help="Each caption of each picture is a query, as published tables count."),
    ] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search. (default: the model's)")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask this many queries at most. (default: all)")] = None,
    seed: Annotated[int, typer.Option(help="Draws the one picture of each concept, and the queries of --limit.")] = 0,
    per_query: Annotated[bool, typer.Option("--per-query", help="Put every query's result into the JSON too.")] = False,
    trec: Annotated[Path | None, typer.Option("--trec", metavar="DIR", help="Write TREC run and qrels files.")] = None,
    images: _Images = None,
    cache: _Cache = None,
    threads: _Threads = 0,
    device: _Device = "cpu",
    verbose: _Verbose = False,
) -> None:
    """Measure recall, as docs/protocol.md says.

    Rows: exact search with the encoder's vectors, the same with vectors rebuilt from vokens (the ceiling), exact search
    from where the generator aims (if it does), and the model's three read-outs.
    """
    from voken.artifact import write_json
    from voken.data.captions import read_dataset
    from voken.evaluation.benchmark import TWO_TOWER, benchmark
    from voken.evaluation.tables import results_table
    from voken.evaluation.trec import write_qrels, write_run
    from voken.model import Model

    given = read_dataset(dataset, images)
    _use_threads(threads)
    with progress_bars() as progress:
        found = benchmark(
            Model.load(model, device=device),
            given,
            split=split,
            one_per_concept=not all_pictures,
            distinct=not every_caption,
            limit=limit,
            seed=seed,
            beams=beams,
            cache=_cache(cache),
            progress=progress,
        )
    rows = [row.to_dict(per_query=per_query) for row in found.rows]
    if trec is not None:
        write_qrels(trec / "qrels.txt", found.rows[0].queries)
        for row in found.rows:
            tag = (row.conditions.readout or row.conditions.system).replace(",", "").replace(" ", "-")
            write_run(trec / f"{tag}.run.txt", row.queries, row.answers, tag=tag)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            json_out,
            {
                "model": str(model),
                "data": str(dataset),
                "split": split,
                "pool_seed": seed,
                "rows": rows,
                "skipped": _as_dicts(found.skipped),
            },
        )
    typer.echo(results_table(rows, base=TWO_TOWER))
    _tell_skipped(found.skipped, verbose)


@app.command(epilog="Example: voken compare emoji.json other.json --row vector")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="What `voken eval --json A --per-query` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same queries and pool; or A again.")],
    row: Annotated[
        str | None,
        typer.Option(
            "--row", help="Compare this row only: a read-out, a system, or both. (default: each with its like)"
        ),
    ] = None,
    row_b: Annotated[str | None, typer.Option("--row-b", help="The row of B, where it is not that of --row.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Resamples of the bootstrap.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Share of resamples within the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Draws the resamples.")] = 0,
    as_json: _Json = False,
) -> None:
    """Say whether A is better than B, or was lucky: paired bootstrap and t-test over the queries.

    Queries with the same right answers are drawn together. docs/protocol.md says more.
    """
    from voken.evaluation.comparison import compare_rows, comparison_table, pair_rows, read_rows

    pairs, alone = pair_rows(read_rows(first), read_rows(second), row=row, row_b=row_b)
    found = [compare_rows(*pair, samples=samples, confidence=confidence, seed=seed) for pair in pairs]
    if as_json:
        _print_json({"a": str(first), "b": str(second), "rows": [one.to_dict() for one in found], "left_out": alone})
        return
    typer.echo(comparison_table(found))
    if alone:
        typer.echo(f"In one of the files only, left out: {'; '.join(alone)}.", err=True)


@tokenizer_app.command(epilog="Example: voken tokenizer report --model emoji.model --data emoji")
def report(
    model: _Model,
    dataset: Annotated[Path, typer.Option("--data", "-d", help="Pictures, with captions or without.")],
    split: Annotated[str | None, typer.Option("--split", help="Of a data set, this part only.")] = None,
    images: _Images = None,
    cache: _Cache = None,
    threads: _Threads = 0,
    device: _Device = "cpu",
    as_json: _Json = False,
    verbose: _Verbose = False,
) -> None:
    """Say whether the tokenizer is good enough for these pictures.

    How each level's codebook is used, how many pictures share a sequence, what is lost in rebuilding, and, with
    captions, the recall that a search over the vokens could reach.
    """
    from voken.data.captions import read_dataset
    from voken.encoders.picture_vectors import picture_vectors
    from voken.errors import EmptyDataError
    from voken.fit import side_of
    from voken.image_tokenizer.report import report as measure
    from voken.model import Model

    given = read_dataset(dataset, images)
    if split is not None:
        given = given.split(split)
    _use_threads(threads)
    loaded = Model.load(model, device=device)
    with progress_bars() as progress:
        encoded = picture_vectors(
            loaded.encoder, [image.path for image in given.images], cache=_cache(cache), progress=progress
        )
    if not len(encoded.kept):
        raise EmptyDataError(f"{given.root}: none of the {len(given)} pictures can be read.")
    side = side_of([given.images[row] for row in encoded.kept], encoded.vectors, loaded.encoder.encode_texts)
    found = measure(loaded.tokenizer, side.images, side.texts, side.pairs[:, ::-1].copy())
    if as_json:
        _print_json({**asdict(found), "skipped": _as_dicts(encoded.skipped)})
        return
    _print_report(found)
    _tell_skipped(encoded.skipped, verbose)


@app.command(epilog="Example: voken reproduce table1 --track emoji --data emoji --out runs")
def reproduce(
    what: Annotated[list[str], typer.Argument(metavar="WHAT...", help="table1 to table7, figure4, or all.")],
    track: Annotated[
        str,
        typer.Option("--track", help="emoji, icons, flickr30k or coco5k: protocol and settings.", show_default=False),
    ],
    dataset: Annotated[Path, typer.Option("--data", "-d", help="The data set.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of tables, runs and what is kept.")] = Path("runs"),
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="May be given again. (default: 0, 1, 2)")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, a sixth of the concepts, small settings: to see it work.")
    ] = False,
    transductive: Annotated[
        bool, typer.Option("--transductive", help="Train on captions made for the pool too, in a column of its own.")
    ] = False,
    captioner: Annotated[
        str, typer.Option("--captioner", help="BLIP weights that caption the pool. (default: nearest captions)")
    ] = "",
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", help="Folder of the weights of t5-base, llama-7b …, or: hub.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting over the track's.")
    ] = None,
    images: _Images = None,
    cache: _Cache = None,
    threads: _Threads = 0,
) -> None:
    """Measure the paper's tables on a data set: what the paper says, and beside it what this machine finds.

    Everything finished is kept: stopped at any time, the same command goes on, and another table finds what it shares.
    """
    from voken.reproduction.run import Request, reproduce

    _use_threads(threads)
    request = Request(
        what=tuple(what),
        track=track,
        data=dataset,
        out=out,
        images=images,
        seeds=tuple(seeds) if seeds else (0,) if quick else (0, 1, 2),
        quick=quick,
        transductive=transductive,
        settings=tuple(_assignments(settings or []).items()),
        cache=cache,
        checkpoints=checkpoints,
        captioner=captioner,
    )
    with progress_bars() as progress:
        written = reproduce(request, tell=lambda line: typer.secho(line, err=True), progress=progress)
    for text in written.values():
        typer.echo(text + "\n")


@app.command(epilog="Example: voken demo --out demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for data, model, collection and page.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the split and the training.")] = 0,
    threads: _Threads = 0,
) -> None:
    """See it work: draw emoji, train both stages, search emoji never seen, and write one page with the answers.

    Takes some minutes on two cores. Stopped at any time, the same command goes on.
    """
    from voken.demo.run import run

    _use_threads(threads)
    with progress_bars() as progress:
        made = run(out, seed=seed, say=typer.echo, progress=progress)
    typer.echo(f"\nThe page: {shown(made.page)}\n\nGo on with:")
    for command in made.commands:
        typer.echo(f"  {command}")


def _assignments(settings: list[str]) -> dict[str, str]:
    assignments = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, e.g. --set tokenizer.levels=6.")
        assignments[name.strip()] = value.strip()
    return assignments


def _cache(folder: Path | None) -> VectorCache:
    from voken.encoders.cache import VectorCache

    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(base) if base else Path.home() / ".cache") / "voken" / "vectors"
    return VectorCache(folder)


def _use_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _best_recall(said: dict[str, Any]) -> float | None:
    history = said.get("generator", {})
    epochs, best = history.get("epochs", []), history.get("best", -1)
    recall = epochs[best]["recall"] if epochs and best >= 0 else history.get("untrained_recall")
    return None if recall is None else float(recall)


def _skipped(one: dict[str, str]) -> Skipped:
    from voken.data.skipped import Skipped

    return Skipped(**one)


def _as_dicts(skipped: Sequence[Skipped]) -> list[dict[str, str]]:
    return [asdict(one) for one in skipped]


def _tell_skipped(skipped: Sequence[Skipped], verbose: bool) -> None:
    """What was left out, on standard error: the first few, or all."""
    if not skipped:
        return
    typer.secho(f"{len(skipped):,} left out:", fg=typer.colors.YELLOW, err=True)
    for one in skipped if verbose else skipped[:_SKIPPED_SHOWN]:
        typer.echo(f"  {printable(one.path)}: {printable(one.reason)}", err=True)
    if not verbose and len(skipped) > _SKIPPED_SHOWN:
        typer.echo(f"  … and {len(skipped) - _SKIPPED_SHOWN:,} more (--verbose lists them)", err=True)


def _tell_model(folder: Path, as_json: bool) -> None:
    from voken import artifact
    from voken.inference import compiled

    manifest = artifact.check(folder, kind=compiled.KIND, version=compiled.VERSION, checksums=False)
    described = artifact.read_json(folder / "config.json")
    parts: dict[str, int] = {}
    for name, entry in manifest["files"].items():
        part = name.partition("/")[0] if "/" in name else "settings"
        parts[part] = parts.get(part, 0) + entry["bytes"]
    engine = described["search"].get("precision", "float32") if compiled.is_compiled(folder) else None
    if as_json:
        _print_json(
            {
                "model": str(folder),
                "fingerprint": compiled.fingerprint(folder),
                "engine": engine,
                "search": described["search"],
                "bytes": parts,
            }
        )
        return
    generator = described["run"]["generator"]["family"]
    typer.echo(f"{shown(folder)}: a {generator} model; engine: {engine or 'none, searched with torch'}")
    for name, part in [*parts.items(), ("together", sum(parts.values()))]:
        typer.echo(f"{name:<16}{part:>15,} bytes")


def _tell_next(*words: object) -> None:
    typer.echo(f"Next: {shlex.join(['voken', *map(str, words)])}")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_report(found: TokenizerReport) -> None:
    typer.echo(f"{found.pictures:,} pictures, {found.sequences:,} distinct sequences of {found.bits:.0f} bits")
    typer.echo(f"pictures that share a sequence    {100 * found.collision_rate:.1f}%")
    typer.echo(f"mean cosine with the rebuilt      {found.cosine:.3f}")
    typer.echo(f"mean squared error of the rebuilt {found.reconstruction_error:.3f}")
    typer.echo("\nlevel  entries used  perplexity")
    for level in found.levels:
        typer.echo(f"{level.level:>5}  {level.used:>5} of {level.entries:<5}{level.perplexity:>9.1f}")
    if found.recall:
        typer.echo("\nrecall (%)  exact vectors  rebuilt from vokens (the ceiling)")
        for row in found.recall:
            typer.echo(f"{f'R@{row.cut}':>10}  {row.exact:>13.1f}  {row.quantized:>19.1f}")
