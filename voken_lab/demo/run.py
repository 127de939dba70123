"""The demo: draw emoji, train a model on most of them, search the rest, and write one page that shows the results."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from voken import Collection, artifact
from voken.collection.snapshot import Snapshot
from voken.collection.store import Store
from voken.config import RunConfig, preset
from voken.data.captions import Dataset
from voken.data.sources import emoji
from voken.encoders.cache import VectorCache
from voken.errors import ConfigError
from voken.image_tokenizer.train import tokenizer_report
from voken.model.model import Model
from voken.progress import Progress, no_progress
from voken.search.searcher import Searcher
from voken.shapes import Float, Int
from voken.training.fit import fit
from voken_lab.demo.page import DemoPage, EpochRow, QueryCard, RecallRow
from voken_lab.demo.pairs import Pair, find_pairs
from voken_lab.demo.queries import demo_queries
from voken_lab.evaluation.benchmark import Benchmark, benchmark
from voken_lab.pages.page import HitCard, PairCard, PairSection, Picture, write_page

_HITS = 8
_PAIRS = 3
_QUERIES = 400
"""The largest number of queries that measure recall, so that a user can wait for the demo to end."""
_READOUTS = {"generate": "voken, generate", "voken": "voken, + voken rerank", "vector": "voken, + vector rerank"}
_VENDORS = {"noto": "Noto Emoji", "fluent-emoji-flat": "Fluent Emoji Flat"}


@dataclass(frozen=True)
class Demo:
    """The result of the demo: the page, and commands to try next."""

    page: Path
    commands: tuple[str, ...]
    steps: tuple[tuple[str, float], ...]
    """(name, seconds)."""


@contextmanager
def timed_step(steps: list[tuple[str, float]], print_line: Callable[[str], None], name: str) -> Iterator[None]:
    """Time the block, append (name, seconds) to `steps` and print it."""
    begin = time.perf_counter()
    yield
    steps.append((name, time.perf_counter() - begin))
    print_line(f"{name:<12}{steps[-1][1]:>6.0f} s")


def run(
    out: Path,
    *,
    seed: int = 0,
    config: RunConfig | None = None,
    make_data: Callable[[Path, int, Progress], Dataset] | None = None,
    print_line: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> Demo:
    """Fill `out` with data/, model/, collection/ and index.html. A second call does only what is missing.

    `print_line` receives a line when a step ends. `config` holds the settings of the training (default: the preset
    "demo"); `make_data` creates the data set (default: emoji of two vendors). Raises `ConfigError` if `out` holds a
    model with other settings.
    """
    out = Path(out)
    config = replace(preset("demo") if config is None else config, seed=seed)
    steps: list[tuple[str, float]] = []
    step = partial(timed_step, steps, print_line)

    with step("data"):
        dataset = (make_data or _emoji)(out / "data", seed, progress)
    print_line(f"     {len(dataset):,} pictures of {len(dataset.concepts):,} concepts")
    with artifact.storage_errors(out):
        cache = VectorCache(out / "vectors")
    with step("training"):
        model = _model(dataset, out / "model", config, cache, progress)
    unseen = dataset.split("test")
    with step("indexing"):
        Collection.index(
            out / "collection", unseen, model, model_folder=out / "model", cache=cache, replace=True, progress=progress
        )
        collection = Store.open(out / "collection").snapshot()
    print_line(f"     {len(collection):,} pictures of {len(unseen.concepts):,} concepts that training never saw")
    with step("evaluation"):
        evaluation = benchmark(model, dataset, limit=_QUERIES, seed=seed, cache=cache, progress=progress)
    with step("page"):
        commands = _commands(out)
        page = _page(model, dataset, collection, evaluation, steps, commands, seed)
        write_page(out / "index.html", page.render())
    return Demo(out / "index.html", commands, tuple(steps))


def _emoji(folder: Path, seed: int, progress: Progress) -> Dataset:
    return emoji.build(folder, seed=seed, vendors=emoji.DEMO_VENDORS, progress=progress)


def _model(dataset: Dataset, folder: Path, config: RunConfig, cache: VectorCache, progress: Progress) -> Model:
    if not artifact.is_artifact(folder):
        return fit(dataset, folder, config, cache=cache, progress=progress)
    model = Model.load(folder)
    if model.config != config:
        raise ConfigError(
            f"{folder} holds a model with other settings (seed {model.config.seed}). Remove the folder, or choose "
            "another --out."
        )
    return model


def _commands(out: Path) -> tuple[str, ...]:
    commands: Sequence[Sequence[object]] = (
        ("search", out / "collection", "a smiling animal"),
        ("index", "PICTURES", "--model", out / "model", "--out", "my.voken"),
        ("search", "my.voken", "what the picture shows"),
        ("eval", "--model", out / "model", "--data", out / "data", "--json", out / "eval.json"),
        ("tokenizer", "report", "--model", out / "model", "--data", out / "data", "--split", "test"),
    )
    return tuple(shlex.join(["voken", *map(str, words)]) for words in commands)


def _page(
    model: Model,
    dataset: Dataset,
    collection: Snapshot,
    evaluation: Benchmark,
    steps: Sequence[tuple[str, float]],
    commands: tuple[str, ...],
    seed: int,
) -> DemoPage:
    unseen = dataset.split("test")
    assert collection.vectors is not None
    quality = tokenizer_report(model.tokenizer, np.asarray(collection.vectors, dtype=np.float32))
    best = evaluation.rows[-1]
    generator = model.validation["generator"]
    return DemoPage(
        title="Vokens: search by writing",
        lead="A picture is stored as a short sequence of visual tokens. A small language model reads a query and "
        "writes the sequences of the pictures that answer it. One command made everything on this page.",
        facts=(
            (f"{model.validation.get('pictures', {}).get('train', 0):,}", "training pictures"),
            (f"{len(collection):,}", f"unseen pictures of {len(unseen.concepts):,} concepts searched"),
            (f"{model.tokenizer.levels} × {np.log2(model.tokenizer.codebook_size):.0f} bits", "of vokens per picture"),
            (f"{100 * best.recall[10]:.0f} %", "of queries have a right picture among the first ten"),
            (f"{sum(seconds for _, seconds in steps) / 60:.1f} min", "for all steps together"),
        ),
        queries=_queries(model, collection, unseen, seed),
        recall_note=f"{best.query_count:,} captions as queries, {best.pool_size:,} pictures, one of each unseen "
        "concept. The systems in grey compare the query with every picture: with the encoder’s vectors, with vectors "
        "rebuilt from vokens (the ceiling), or starting from the generator’s query point. The others write vokens.",
        rows=tuple(
            RecallRow(
                _READOUTS.get(row.conditions.readout, row.conditions.system),
                row.recall,
                row.conditions.bytes_per_picture,
                row.queries_per_second,
                is_reference=not row.conditions.readout,
            )
            for row in evaluation.rows
        ),
        groups=_groups(unseen, collection),
        usage=quality.levels,
        usage_note=f"Over the {quality.pictures:,} unseen pictures: {quality.sequences:,} distinct sequences; "
        f"{100 * quality.collision_rate:.1f} % of the pictures share theirs with another picture; the vector rebuilt "
        f"from a picture’s vokens has a mean cosine of {quality.cosine:.2f} with the true vector.",
        training_note=_training_note(model),
        epochs=tuple(
            EpochRow(epoch["stage"], epoch["epoch"], epoch["loss"], epoch["recall"], place == generator["best"])
            for place, epoch in enumerate(generator["epochs"])
        ),
        untrained_recall=float(generator["untrained_recall"]),
        steps=tuple(steps),
        commands=commands,
        credits=_credits(dataset),
    )


def _training_note(model: Model) -> str:
    """What training changed, in words; with most presets it changes less than a reader expects."""
    encoder, tokenizer, generator = model.config.encoder, model.config.tokenizer, model.config.generator
    history = model.validation["generator"]
    epochs = len(history["epochs"])
    sentences = []
    if encoder.family == "builtin":
        sentences.append(f"The head of the two-tower encoder was trained for {encoder.epochs} epochs.")
    trained = f", then training for {tokenizer.epochs} epochs" if tokenizer.epochs else " alone"
    sentences.append(f"The codebooks come from k-means{trained}.")
    if generator.query_vector:
        memory = ", helped by a memory of the training captions" if generator.memory_weight else ""
        sentences.append(f"Before any training, the generator is a quantized search for the query’s vector{memory}.")
    if not epochs:
        sentences.append("The generator was not trained.")
    elif history["best"] < 0:
        sentences.append(
            f"It was then trained for {'one epoch' if epochs == 1 else f'{epochs} epochs'}. Its recall on the "
            "validation pictures did not rise, so this training was discarded: the model’s generator is untrained."
        )
    else:
        sentences.append(
            "It was then trained, and the epoch with the best recall on the validation pictures was chosen."
        )
    sentences.append("Recall below is the mean of R@1, R@5 and R@10 by log-probability alone.")
    return " ".join(sentences)


def _queries(model: Model, collection: Snapshot, unseen: Dataset, seed: int) -> tuple[QueryCard, ...]:
    images = {image.image_id: image for image in unseen.images}
    queries = demo_queries(unseen, seed=seed)
    results = Searcher(model, collection).search([query.text for query in queries], _HITS)
    cards = []
    for query, hits in zip(queries, results, strict=True):
        images_and_hits = [(images[hit.image_id], hit) for hit in hits]
        hit_cards = (
            HitCard(Picture(image.path, image.concept, hit.vokens), hit.score, image.concept in query.concepts)
            for image, hit in images_and_hits
        )
        cards.append(QueryCard(query.text, query.origin, tuple(hit_cards)))
    return tuple(cards)


def _groups(unseen: Dataset, collection: Snapshot) -> tuple[PairSection, ...]:
    by_id = {image.image_id: image for image in unseen.images}
    images = [by_id[image_id] for image_id in collection.ids]
    pictures = [(image.path, image.concept) for image in images]
    vectors = np.asarray(collection.vectors, dtype=np.float32)
    return pair_sections(pictures, np.asarray(collection.vokens), vectors, [image.family for image in images])


def pair_sections(
    paths_and_names: Sequence[tuple[Path, str]],
    vokens: Int[np.ndarray, "pictures M"],
    vectors: Float[np.ndarray, "pictures dim"],
    families: Sequence[str],
) -> tuple[PairSection, ...]:
    """Pairs of pictures by what their sequences share, where there are such pairs; see `find_pairs`."""
    groups = find_pairs(vokens, vectors, families, count=_PAIRS)
    levels = vokens.shape[1]
    pictures = [
        Picture(path, name, tuple(sequence))
        for (path, name), sequence in zip(paths_and_names, vokens.tolist(), strict=True)
    ]
    longest = groups.all_but_last[0].shared if groups.all_but_last else 0
    start = "All but the last voken" if longest == levels - 1 else f"The first {longest} of {levels} vokens"

    def section(title: str, explanation: str, pairs: Sequence[Pair]) -> PairSection:
        cards = (PairCard(pictures[pair.first], pictures[pair.second], pair.shared, pair.cosine) for pair in pairs)
        return PairSection(title, explanation, tuple(cards))

    sections = (
        section("No voken in common", "The pictures whose vectors are farthest apart.", groups.nothing),
        section("The first voken in common", "Similar at a coarse level, different in detail.", groups.first_only),
        section(f"{start} in common", "The longest start that two sequences share.", groups.all_but_last),
        section("The same sequence", "Pictures that vokens alone cannot tell apart.", groups.same),
    )
    return tuple(section for section in sections if section.pairs)


def _credits(dataset: Dataset) -> tuple[str, ...]:
    licences = dict.fromkeys((image.vendor, image.licence) for image in dataset.images if image.vendor)
    return (
        *(f"Pictures: {_VENDORS.get(vendor, vendor)}, {licence}." for vendor, licence in licences),
        "Captions: names and keywords of Unicode CLDR, emojibase and emojilib. Results on emoji do not carry over to "
        "photographs.",
    )
