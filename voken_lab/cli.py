"""The laboratory's commands: `voken eval`, `compare`, `reproduce` and `demo`; an entry point adds them to `voken`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from voken.cli.console import (
    AsJson,
    CacheFolder,
    Device,
    ImagesFolder,
    ModelFolder,
    SplitName,
    Threads,
    Verbose,
    as_dicts,
    cache_folder,
    display_path,
    parse_settings,
    print_json,
    print_skipped,
    progress_bars,
)

app = typer.Typer()


@app.command(name="eval", epilog="Example: voken eval --model emoji.model --data emoji --json emoji.json")
def evaluate(
    model: ModelFolder,
    data: Annotated[Path, typer.Option("--data", "-d", help="A data set with captions.", show_default=False)],
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write every figure as JSON into this file.")
    ] = None,
    split: SplitName = "test",
    all_pictures: Annotated[
        bool, typer.Option("--all-pictures", help="Search all pictures, not one picture of each concept.")
    ] = False,
    every_caption: Annotated[
        bool,
        typer.Option("--every-caption", help="Make each caption of each picture a query, as in published tables."),
    ] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="Beams of the search. (default: the model's)")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The largest number of queries. (default: all)")] = None,
    seed: Annotated[int, typer.Option(help="Draws the picture of each concept and the queries of --limit.")] = 0,
    per_query: Annotated[bool, typer.Option("--per-query", help="Put every query's result into the JSON too.")] = False,
    trec: Annotated[Path | None, typer.Option("--trec", metavar="DIR", help="Write TREC run and qrels files.")] = None,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    verbose: Verbose = False,
) -> None:
    """Measure recall; docs/explanation/protocol.md explains how.

    The rows are exact search with the encoder's vectors, the same with vectors rebuilt from vokens (the ceiling),
    exact search from the generator's query point (if it has one), and the model's three read-outs.
    """
    from voken.api import use_threads
    from voken.artifact import write_json
    from voken.data.captions import read_dataset
    from voken.encoders.cache import VectorCache
    from voken.model.model import Model
    from voken_lab.evaluation.benchmark import TWO_TOWER, benchmark
    from voken_lab.evaluation.tables import results_table
    from voken_lab.evaluation.trec import write_qrels, write_run

    dataset = read_dataset(data, images)
    use_threads(threads)
    with progress_bars() as progress:
        measured = benchmark(
            Model.load(model, device=device),
            dataset,
            split=split,
            one_per_concept=not all_pictures,
            distinct=not every_caption,
            limit=limit,
            seed=seed,
            beams=beams,
            cache=VectorCache(cache_folder(cache)),
            progress=progress,
        )
    rows = [row.to_dict(per_query=per_query) for row in measured.rows]
    if trec is not None:
        write_qrels(trec / "qrels.txt", measured.rows[0].queries)
        for row in measured.rows:
            tag = (row.conditions.readout or row.conditions.system).replace(",", "").replace(" ", "-")
            write_run(trec / f"{tag}.run.txt", row.queries, row.answers, tag=tag)
    if json_out is not None:
        json_out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            json_out,
            {
                "model": str(model),
                "data": str(data),
                "split": split,
                "pool_seed": seed,
                "rows": rows,
                "skipped": as_dicts(measured.skipped),
            },
        )
    typer.echo(results_table(rows, base=TWO_TOWER))
    print_skipped(measured.skipped, verbose)


@app.command(epilog="Example: voken compare emoji.json other.json --row vector")
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="What `voken eval --json A --per-query` wrote.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="A file with the same queries and pool, or A again.")],
    row: Annotated[
        str | None,
        typer.Option(
            "--row", help="Compare this row only: a read-out, a system, or both. (default: every row that both have)"
        ),
    ] = None,
    row_b: Annotated[str | None, typer.Option("--row-b", help="The row of B, if it differs from --row.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Resamples of the bootstrap.")] = 10_000,
    confidence: Annotated[float, typer.Option(help="Share of resamples within the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed that draws the resamples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Test whether A is better than B, or only lucky: paired bootstrap and t-test over the queries.

    Queries with the same right answers are drawn together. docs/explanation/protocol.md explains it.
    """
    from voken_lab.evaluation.comparison import compare_rows, comparison_table, pair_rows, read_rows

    pairs, unpaired = pair_rows(read_rows(first), read_rows(second), row=row, row_b=row_b)
    comparisons = [compare_rows(*pair, samples=samples, confidence=confidence, seed=seed) for pair in pairs]
    if as_json:
        print_json(
            {
                "a": str(first),
                "b": str(second),
                "rows": [comparison.to_dict() for comparison in comparisons],
                "left_out": unpaired,
            }
        )
        return
    typer.echo(comparison_table(comparisons))
    if unpaired:
        typer.echo(f"Not compared, because only one file has them: {'; '.join(unpaired)}.", err=True)


@app.command(epilog="Example: voken reproduce table1 --track emoji --data emoji --out runs")
def reproduce(
    what: Annotated[list[str], typer.Argument(metavar="WHAT...", help="table1 to table7, figure4, figure5, or all.")],
    track: Annotated[
        str,
        typer.Option(
            "--track",
            help="emoji, icons, flickr8k, rsicd, flickr30k or coco5k: protocol and settings.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", "-d", help="The data set.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of tables, runs and intermediate results.")] = Path(
        "runs"
    ),
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Can be repeated. (default: 0, 1, 2)")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use one seed, a sixth of the concepts and small settings, to see it work.")
    ] = False,
    transductive: Annotated[
        bool,
        typer.Option(
            "--transductive", help="Train on captions generated for the pool too; reported in a separate column."
        ),
    ] = False,
    captioner: Annotated[
        str, typer.Option("--captioner", help="BLIP weights that caption the pool. (default: nearest captions)")
    ] = "",
    checkpoints: Annotated[
        str, typer.Option("--checkpoints", help="Folder of the weights of t5-base, llama-7b …, or: hub.")
    ] = "",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting that replaces the track's.")
    ] = None,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that share the work.")] = 1,
) -> None:
    """Measure the paper's tables on a data set, and show the figures beside the paper's.

    Finished work is saved: the same command continues after a stop, and another table reuses what it shares.
    """
    from voken.api import use_threads
    from voken_lab.reproduction.run import Request, reproduce

    use_threads(threads)
    request = Request(
        what=tuple(what),
        track=track,
        data=data,
        out=out,
        images=images,
        seeds=tuple(seeds) if seeds else (0,) if quick else (0, 1, 2),
        quick=quick,
        transductive=transductive,
        settings=tuple(parse_settings(settings or []).items()),
        cache=cache,
        checkpoints=checkpoints,
        captioner=captioner,
        jobs=jobs,
        threads=threads,
    )
    with progress_bars() as progress:
        written = reproduce(request, print_line=lambda line: typer.secho(line, err=True), progress=progress)
    for text in written.values():
        typer.echo(text + "\n")


@app.command(epilog="Example: voken curves emoji.model.training.csv")
def curves(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The .training.csv that voken fit wrote beside a model.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("curves.html"),
) -> None:
    """Draw the curves of a training, also while it runs: the loss and the validation score of each epoch."""
    from voken_lab.pages.page import write_page
    from voken_lab.pages.training_curves import curves_page

    write_page(out, curves_page(log))
    typer.echo(f"The page: {display_path(out)}")


@app.command(epilog="Example: voken demo --out demo")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for data, model, collection and page.")] = Path(
        "demo"
    ),
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", "-p", metavar="DIR", help="Show a folder of your pictures instead of emoji."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="With --pictures: the encoder, as for `voken index`.", show_default=False)
    ] = "photos",
    seed: Annotated[int, typer.Option(help="Seed of the split and the training.")] = 0,
    threads: Threads = 0,
) -> None:
    """See it work: draw emoji, train a model on most of them, search the rest, and write one page with the results.

    Takes a few minutes on two cores. If it is stopped, the same command continues. With --pictures nothing is drawn and
    nothing is trained: your pictures are indexed as they are, and searched for what they show.
    """
    from voken.api import use_threads
    from voken_lab.demo.photographs import run as run_on_photographs
    from voken_lab.demo.run import run

    use_threads(threads)
    with progress_bars() as progress:
        if pictures is not None:
            result = run_on_photographs(pictures, out, encoder=encoder, print_line=typer.echo, progress=progress)
        else:
            result = run(out, seed=seed, print_line=typer.echo, progress=progress)
    typer.echo(f"\nThe page: {display_path(result.page)}\n\nTry next:")
    for command in result.commands:
        typer.echo(f"  {command}")
