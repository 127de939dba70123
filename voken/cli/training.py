"""The commands for data sets and models: `voken data`, `fit`, `compile`, `tokenizer report`."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voken.cli.console import (
    AsJson,
    CacheFolder,
    Device,
    ImagesFolder,
    ModelFolder,
    Threads,
    Verbose,
    as_dicts,
    cache_folder,
    display_path,
    duration,
    parse_settings,
    print_json,
    print_next,
    print_skipped,
    printable,
    progress_bars,
    warn,
)
from voken.errors import ConfigError

if TYPE_CHECKING:
    from voken.api import Dataset, ModelInfo, TokenizerReport

training_app = typer.Typer()
tokenizer_app = typer.Typer(name="tokenizer", help="The image tokenizer (stage 1) by itself.", no_args_is_help=True)


@training_app.command(epilog="Example: voken data emoji emoji --seed 0")
def data(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="emoji, icons (tagged, for quality) or icons-all (for scale).")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to draw it in; created if it does not exist.")],
    seed: Annotated[int, typer.Option(help="Seed of the split into train, validation and test.")] = 0,
    size: Annotated[int | None, typer.Option(min=8, help="Side in pixels. (default: emoji 128, icons 64)")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Only for emoji: two vendors instead of nine.")] = False,
    every_licence: Annotated[
        bool,
        typer.Option(
            "--every-licence",
            help="Only for icons-all: also icons that may not be redistributed, for local measurements.",
        ),
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Draw a data set of captioned pictures: emoji, or icons.

    The drawings are downloaded once, with npm. The result is a folder with metadata.jsonl, split by concept.
    """
    from voken.api import draw_dataset

    with progress_bars() as progress:
        dataset = draw_dataset(
            name, folder, seed=seed, size=size, demo=demo, every_licence=every_licence, progress=progress
        )
    _print_dataset(dataset, as_json, verbose)


@training_app.command(epilog="Example: voken unpack laion-shards/ laion --limit 100000")
def unpack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A .tar or .parquet file, a folder of them, or USER/NAME on the Hugging Face hub."
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; created if it does not exist.")],
    picture: Annotated[str | None, typer.Option("--picture", help="The column of the pictures.")] = None,
    caption: Annotated[str | None, typer.Option("--caption", help="The column of the captions.")] = None,
    config: Annotated[str | None, typer.Option("--config", help="The part of a data set of the hub.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Write so many pictures and stop.")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Write a data set whose pictures are in archives, Parquet files or on the hub as a folder of pictures.

    Archives are webdataset's, as img2dataset writes them. What is damaged is named, and the rest is written.
    """
    from voken.api import unpack_dataset

    with progress_bars() as progress:
        dataset = unpack_dataset(
            source, folder, picture=picture, caption=caption, config=config, limit=limit, progress=progress
        )
    _print_dataset(dataset, as_json, verbose)


@training_app.command(epilog="Example: voken fit emoji --out emoji.model --set tokenizer.levels=6")
def fit(
    dataset: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with metadata.jsonl (each line with file_name and captions), or a Karpathy dataset_*.json.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to save the model in.", show_default=False)
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Settings to start from: default, frozen, paper, paper-lite or demo.")
    ] = "default",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, e.g. tokenizer.levels=6. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print every setting as JSON and exit.")] = False,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on captioned pictures.

    The model is trained on the train split, and settings are chosen on the validation split. If there is no validation
    split, a tenth of the concepts is set aside for it. If the command is interrupted, run it again to continue.
    """
    from voken.config import preset as named_preset

    changes = parse_settings(settings or [])
    config = named_preset(preset).override({"seed": str(seed), **changes})
    config.check_used(changes)
    if show_config:
        print_json(config.to_dict())
        return
    if dataset is None:
        raise ConfigError("DATA is missing: name the folder with metadata.jsonl. See `voken fit --help`.")
    if out is None:
        raise ConfigError("--out is missing: name the folder to save the model in.")
    from voken import api

    start = time.perf_counter()
    with progress_bars() as progress:
        model = api.fit(
            dataset,
            out,
            config,
            images=images,
            cache=cache_folder(cache),
            device=device,
            threads=threads,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    validation = model.validation
    if as_json:
        print_json(
            {
                "model": str(out),
                "fingerprint": model.fingerprint,
                "seconds": round(seconds, 3),
                "config": config.to_dict(),
                "validation": validation,
            }
        )
        return
    counts = ", ".join(f"{count:,} {side}" for side, count in validation.get("pictures", {}).items())
    typer.echo(f"{display_path(out)}: trained on {counts} pictures in {duration(seconds)}")
    if recall := _best_recall(validation.get("generator", {})):
        typer.echo(f"Mean of R@1, R@5 and R@10 on validation, by log-probability alone: {100 * recall:.1f}%")
    for warning in validation.get("tokenizer", {}).get("warnings", []):
        warn(f"The image tokenizer: {warning}")
    print_skipped([api.Skipped(**picture) for picture in validation.get("skipped", [])], verbose)
    print_next("index", "PICTURES", "--model", out, "--out", "COLLECTION")


@training_app.command(name="compile", epilog="Example: voken compile emoji.model --precision int8")
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.")],
    precision: Annotated[
        str,
        typer.Option(help="float32: the weights as trained. int8: smaller and faster, a little less exact."),
    ] = "float32",
) -> None:
    """Create a model's engine again, which searches on a CPU without torch. Collections stay valid."""
    from voken import api

    api.compile_model(model, precision)
    info = api.info(model)
    assert isinstance(info, api.ModelInfo)
    print_model(model, info, as_json=False)


@training_app.command(epilog="Example: voken pull somebody/flickr --out flickr.model")
def pull(
    name: Annotated[str, typer.Argument(metavar="USER/MODEL", help="The model's name on the Hugging Face hub.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to save the model in.", show_default=False)],
    revision: Annotated[str | None, typer.Option("--revision", help="A branch, a tag or a commit.")] = None,
) -> None:
    """Fetch a model that somebody shares on the Hugging Face hub, and check every byte of it."""
    from voken import api

    api.pull(name, out, revision=revision)
    info = api.info(out)
    assert isinstance(info, api.ModelInfo)
    print_model(out, info, as_json=False)
    print_next("index", "PICTURES", "--model", out, "--out", "COLLECTION")


@training_app.command(epilog="Example: voken push flickr.model me/flickr --licence cc-by-4.0")
def push(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.")],
    name: Annotated[
        str | None,
        typer.Argument(metavar="USER/MODEL", help="Its name on the hub. Without one only the card is printed."),
    ] = None,
    licence: Annotated[str, typer.Option("--licence", help="The model's licence, as the hub names it.")] = "",
    data: Annotated[
        str, typer.Option("--data", help="What it was trained on, for the card: a name on the hub, or a sentence.")
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
) -> None:
    """Share a model on the Hugging Face hub, with a card: its settings, data, figures and limits.

    Log in first, with `hf auth login`, or set HF_TOKEN.
    """
    from voken import api

    if name is None:
        typer.echo(api.model_card(model, licence=licence, data=data))
        return
    address = api.push(model, name, licence=licence, data=data, private=private)
    typer.echo(f"{display_path(model)}: {address}")


def _print_dataset(dataset: Dataset, as_json: bool, verbose: bool) -> None:
    """Say what was written into a folder, and what could not be."""
    counts = Counter(image.split for image in dataset.images)
    splits = {split: counts[split] for split in ("train", "validation", "test")}
    if as_json:
        print_json(
            {
                "folder": str(dataset.root),
                "pictures": len(dataset),
                "concepts": len(dataset.concepts),
                "splits": splits,
                "skipped": as_dicts(dataset.skipped),
            }
        )
        return
    parts = ", ".join(f"{count:,} {split}" for split, count in splits.items() if count)
    concepts = "" if len(dataset.concepts) == len(dataset) else f" of {len(dataset.concepts):,} concepts"
    typer.echo(f"{display_path(dataset.root)}: {len(dataset):,} pictures{concepts}{f' ({parts})' if parts else ''}")
    print_skipped(dataset.skipped, verbose)
    if splits["train"] or any(image.captions for image in dataset.images):
        print_next("fit", dataset.root, "--out", f"{dataset.root.name}.model")
    else:
        print_next("index", dataset.root)


@tokenizer_app.command(epilog="Example: voken tokenizer report --model emoji.model --data emoji")
def report(
    model: ModelFolder,
    dataset: Annotated[Path, typer.Option("--data", "-d", help="Pictures, with captions or without.")],
    split: Annotated[str | None, typer.Option("--split", help="Only this part of a data set.")] = None,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show whether the tokenizer is good enough for these pictures.

    The report shows how much of each level's codebook is used, how many pictures share a sequence, how much the rebuilt
    vectors differ, and, if there are captions, the highest recall that a search over the vokens could reach.
    """
    from voken.api import tokenizer_report

    with progress_bars() as progress:
        quality, skipped = tokenizer_report(
            model,
            dataset,
            split=split,
            images=images,
            cache=cache_folder(cache),
            device=device,
            threads=threads,
            progress=progress,
        )
    if as_json:
        print_json({**asdict(quality), "skipped": as_dicts(skipped)})
        return
    _print_quality(quality)
    print_skipped(skipped, verbose)


def print_model(folder: Path, model: ModelInfo, as_json: bool) -> None:
    """Print what a model is and how many bytes its parts take."""
    if as_json:
        print_json(
            {
                "model": str(folder),
                "fingerprint": model.fingerprint,
                "engine": model.engine,
                "search": model.search,
                "bytes": model.bytes,
                "warnings": model.warnings,
            }
        )
        return
    engine = model.engine or "none, searched with torch"
    typer.echo(printable(f"{display_path(folder)}: a {model.family} model; engine: {engine}"))
    for name, size in [*model.bytes.items(), ("total", sum(model.bytes.values()))]:
        typer.echo(printable(f"{name:<16}{size:>15,} bytes"))
    for warning in model.warnings:
        warn(printable(f"The image tokenizer: {warning}"))


def _best_recall(history: dict[str, Any]) -> float | None:
    epochs, best = history.get("epochs", []), history.get("best", -1)
    recall = epochs[best]["recall"] if epochs and best >= 0 else history.get("untrained_recall")
    return None if recall is None else float(recall)


def _print_quality(quality: TokenizerReport) -> None:
    typer.echo(f"{quality.pictures:,} pictures, {quality.sequences:,} distinct sequences of {quality.bits:.0f} bits")
    typer.echo(f"pictures that share a sequence    {100 * quality.collision_rate:.1f}%")
    typer.echo(f"mean cosine with rebuilt vectors  {quality.cosine:.3f}")
    typer.echo(f"mean squared error of the vectors {quality.reconstruction_error:.3f}")
    typer.echo("\nlevel  entries used  perplexity")
    for level in quality.levels:
        typer.echo(f"{level.level:>5}  {level.used:>5} of {level.entries:<5}{level.perplexity:>9.1f}")
    if quality.recall:
        typer.echo("\nrecall (%)  exact vectors  rebuilt from vokens (the ceiling)")
        for row in quality.recall:
            typer.echo(f"{f'R@{row.cut}':>10}  {row.exact:>13.1f}  {row.quantized:>19.1f}")
