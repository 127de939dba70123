"""Data sets and models: `voken data`, `fit`, `compile`, `tokenizer report`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from voken.cli.app import (
    AsJson,
    CacheFolder,
    Device,
    ImagesFolder,
    ModelFolder,
    Threads,
    Verbose,
    app,
    as_dicts,
    assignments,
    duration,
    print_json,
    skipped_of,
    tell_next,
    tell_skipped,
    use_threads,
    vector_cache,
)
from voken.cli.console import progress_bars, shown
from voken.errors import ConfigError

if TYPE_CHECKING:
    from voken.image_tokenizer.report import TokenizerReport

tokenizer_app = typer.Typer(name="tokenizer", help="The image tokenizer (stage 1) by itself.", no_args_is_help=True)
app.add_typer(tokenizer_app)


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
    as_json: AsJson = False,
    verbose: Verbose = False,
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
        print_json(
            {
                "folder": str(made.root),
                "pictures": len(made),
                "concepts": len(made.concepts),
                "splits": splits,
                "skipped": as_dicts(made.skipped),
            }
        )
        return
    counts = ", ".join(f"{count:,} {split}" for split, count in splits.items() if count)
    typer.echo(f"{shown(made.root)}: {len(made):,} pictures of {len(made.concepts):,} concepts ({counts})")
    tell_skipped(made.skipped, verbose)
    if splits["train"]:
        tell_next("fit", made.root, "--out", f"{made.root.name}.model")


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
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on captioned pictures.

    The train split trains and the validation split chooses (a tenth is set aside where there is none).
    Stopped at any time, the same command goes on from where it was.
    """
    from voken.config import preset as named

    config = named(preset).override({"seed": str(seed), **assignments(settings or [])})
    if show_config:
        print_json(config.to_dict())
        return
    if dataset is None:
        raise ConfigError("DATA is missing: name the folder with metadata.jsonl. `voken fit --help` says more.")
    if out is None:
        raise ConfigError("--out is missing: name the folder to save the model in.")
    from voken.data.captions import read_dataset
    from voken.training.fit import fit as train

    given = read_dataset(dataset, images)
    use_threads(threads)
    began = time.perf_counter()
    with progress_bars() as progress:
        model = train(given, out, config, cache=vector_cache(cache), device=device, progress=progress)
    seconds = time.perf_counter() - began
    said = model.validation
    skipped = [skipped_of(one) for one in said.get("skipped", [])]
    if as_json:
        print_json(
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
    typer.echo(f"{shown(out)}: trained on {counts} pictures in {duration(seconds)}")
    if recall := _best_recall(said):
        typer.echo(f"Mean of R@1, R@5 and R@10 on validation, by log-probability alone: {100 * recall:.1f}%")
    tell_skipped(skipped, verbose)
    tell_next("index", "PICTURES", "--model", out, "--out", "COLLECTION")


@app.command(name="compile", epilog="Example: voken compile emoji.model --precision int8")
def compile_model(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model.")],
    precision: Annotated[
        str, typer.Option(help="float32: as trained. int8: smaller, faster, a little less exact (docs/speed.md).")
    ] = "float32",
) -> None:
    """Make a model's engine anew: what a search on a CPU runs, without torch. Collections stay valid."""
    import dataclasses

    from voken.model.model import Model

    if precision not in ("float32", "int8"):
        raise ConfigError(f"--precision: {precision!r} is not float32 or int8.")
    loaded = Model.load(model)
    search = dataclasses.replace(loaded.search, precision=precision)  # type: ignore[arg-type]
    dataclasses.replace(loaded, search=search).save(model, replace=True)
    tell_model(model, as_json=False)


@tokenizer_app.command(epilog="Example: voken tokenizer report --model emoji.model --data emoji")
def report(
    model: ModelFolder,
    dataset: Annotated[Path, typer.Option("--data", "-d", help="Pictures, with captions or without.")],
    split: Annotated[str | None, typer.Option("--split", help="Of a data set, this part only.")] = None,
    images: ImagesFolder = None,
    cache: CacheFolder = None,
    threads: Threads = 0,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Say whether the tokenizer is good enough for these pictures.

    How each level's codebook is used, how many pictures share a sequence, what is lost in rebuilding, and, with
    captions, the recall that a search over the vokens could reach.
    """
    from voken.data.captions import read_dataset
    from voken.encoders.cache import picture_vectors
    from voken.errors import EmptyDataError
    from voken.image_tokenizer.report import report as measure
    from voken.model.model import Model
    from voken.training.sides import side_of

    given = read_dataset(dataset, images)
    if split is not None:
        given = given.split(split)
    use_threads(threads)
    loaded = Model.load(model, device=device)
    with progress_bars() as progress:
        encoded = picture_vectors(
            loaded.encoder, [image.path for image in given.images], cache=vector_cache(cache), progress=progress
        )
    if not len(encoded.kept):
        raise EmptyDataError(f"{given.root}: none of the {len(given)} pictures can be read.")
    side = side_of([given.images[row] for row in encoded.kept], encoded.vectors, loaded.encoder.encode_texts)
    found = measure(loaded.tokenizer, side.images, side.texts, side.pairs[:, ::-1].copy())
    if as_json:
        print_json({**asdict(found), "skipped": as_dicts(encoded.skipped)})
        return
    _print_report(found)
    tell_skipped(encoded.skipped, verbose)


def _best_recall(said: dict[str, Any]) -> float | None:
    history = said.get("generator", {})
    epochs, best = history.get("epochs", []), history.get("best", -1)
    recall = epochs[best]["recall"] if epochs and best >= 0 else history.get("untrained_recall")
    return None if recall is None else float(recall)


def tell_model(folder: Path, as_json: bool) -> None:
    """What `voken info` says of a model."""
    from voken import artifact
    from voken.model import compiled

    manifest = artifact.check(folder, kind=compiled.KIND, version=compiled.VERSION, checksums=False)
    described = artifact.read_json(folder / "config.json")
    parts: dict[str, int] = {}
    for name, entry in manifest["files"].items():
        part = name.partition("/")[0] if "/" in name else "settings"
        parts[part] = parts.get(part, 0) + entry["bytes"]
    engine = described["search"].get("precision", "float32") if compiled.is_compiled(folder) else None
    if as_json:
        print_json(
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
