"""The demo: emoji pictures, both stages of training, a search over pictures never seen, one page that shows it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from voken import artifact
from voken.collection.indexing import create_collection
from voken.collection.snapshot import Snapshot
from voken.config import RunConfig, preset
from voken.data.captions import CaptionedImage, Dataset
from voken.data.sources import emoji
from voken.encoders.cache import VectorCache
from voken.errors import ConfigError
from voken.image_tokenizer.report import report
from voken.model.model import Model
from voken.progress import Progress, no_progress
from voken.search.searcher import Searcher
from voken.training.fit import fit
from voken_lab.demo.page import (
    Page,
    ShownEpoch,
    ShownGroup,
    ShownHit,
    ShownPair,
    ShownQuery,
    ShownRow,
    write_page,
)
from voken_lab.demo.pairs import Pair, find_pairs
from voken_lab.demo.queries import DemoQuery, demo_queries
from voken_lab.evaluation.benchmark import Benchmark, benchmark
from voken_lab.evaluation.protocol import Evaluation
from voken_lab.pages.html import Picture

_HITS = 8
_PAIRS = 3
_QUERIES = 400
"""Asked at most to measure recall: five systems answer them, and the demo is to end while one waits."""
_NAMES = {"generate": "voken, generate", "voken": "voken, + voken rerank", "vector": "voken, + vector rerank"}
_HANDS = {"noto": "Noto Emoji", "fluent-emoji-flat": "Fluent Emoji Flat"}


@dataclass(frozen=True)
class Demo:
    """What the demo left: the page, and the commands to go on with."""

    page: Path
    commands: tuple[str, ...]
    steps: tuple[tuple[str, float], ...]
    """(what, seconds)."""


def run(
    out: Path,
    *,
    seed: int = 0,
    config: RunConfig | None = None,
    make_data: Callable[[Path, int, Progress], Dataset] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> Demo:
    """Fill `out` with data/, model/, collection/ and index.html. Called again, it does only what is missing.

    `say` is told a line as each step ends. `config` (default: the preset "demo") and `make_data` (default: emoji by two
    hands) change what is trained, and on what. Raises `ConfigError` where `out` holds a model of other settings.
    """
    out = Path(out)
    config = replace(preset("demo") if config is None else config, seed=seed)
    clock = _Clock(say)
    with clock.step("data"):
        dataset = (make_data or _emoji)(out / "data", seed, progress)
    say(f"     {len(dataset):,} pictures of {len(dataset.concepts):,} concepts")
    with artifact.storage_errors(out):
        cache = VectorCache(out / "vectors")
    with clock.step("training"):
        model = _model(dataset, out / "model", config, cache, progress)
    unseen = dataset.split("test")
    with clock.step("indexing"):
        collection = create_collection(
            out / "collection", unseen, model, model_folder=out / "model", cache=cache, replace=True, progress=progress
        )
    say(f"     {len(collection):,} pictures of {len(unseen.concepts):,} concepts that training never saw")
    with clock.step("evaluation"):
        measured = benchmark(model, dataset, limit=_QUERIES, seed=seed, cache=cache, progress=progress)
    with clock.step("page"):
        commands = _commands(out)
        page = _page(model, dataset, unseen, collection, measured, clock.steps, commands, seed)
        write_page(out / "index.html", page)
    return Demo(out / "index.html", commands, tuple(clock.steps))


class _Clock:
    def __init__(self, say: Callable[[str], None]) -> None:
        self.steps: list[tuple[str, float]] = []
        self._say = say

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self.steps.append((what, seconds))
        self._say(f"{what:<12}{seconds:>6.0f} s")


def _emoji(folder: Path, seed: int, progress: Progress) -> Dataset:
    return emoji.build(folder, seed=seed, vendors=emoji.DEMO_VENDORS, progress=progress)


def _model(dataset: Dataset, folder: Path, config: RunConfig, cache: VectorCache, progress: Progress) -> Model:
    if not artifact.is_artifact(folder):
        return fit(dataset, folder, config, cache=cache, progress=progress)
    model = Model.load(folder)
    if model.config != config:
        raise ConfigError(
            f"{folder}: holds a model of other settings (seed {model.config.seed}). Remove the folder, or choose "
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
    unseen: Dataset,
    collection: Snapshot,
    measured: Benchmark,
    steps: Sequence[tuple[str, float]],
    commands: tuple[str, ...],
    seed: int,
) -> Page:
    by_id = {image.image_id: image for image in unseen.images}
    indexed = [by_id[name] for name in collection.ids]
    pictures = [
        _picture(image, tuple(sequence))
        for image, sequence in zip(indexed, np.asarray(collection.vokens).tolist(), strict=True)
    ]
    assert collection.vectors is not None
    vectors = np.asarray(collection.vectors, dtype=np.float32)
    quality = report(model.tokenizer, vectors)
    best = measured.rows[-1]
    trained = model.validation.get("pictures", {})
    return Page(
        title="Vokens: pictures found by writing",
        lead="A picture is a short sequence of visual tokens. A small language model reads words and writes the "
        "sequences of the pictures that answer them. Everything on this page was made by one command on this machine.",
        facts=(
            (f"{trained.get('train', 0):,}", "pictures trained on"),
            (f"{len(collection):,}", f"unseen pictures of {len(unseen.concepts):,} concepts searched"),
            (f"{model.tokenizer.levels} × {np.log2(model.tokenizer.codebook_size):.0f} bits", "vokens a picture"),
            (f"{100 * best.recall[10]:.0f}%", "of queries answered in the first ten"),
            (f"{sum(seconds for _, seconds in steps) / 60:.1f} min", "for all steps together"),
        ),
        queries=tuple(_answer(query, searched, by_id) for query, searched in _ask(model, collection, unseen, seed)),
        recall_note=f"{best.query_count:,} captions asked of {best.pool_size:,} pictures, one of each unseen concept. "
        "The rows in grey compare the query with every picture: by the encoder’s vectors, by those rebuilt from vokens "
        "(the ceiling), or from where the generator aims. The others write vokens.",
        rows=tuple(map(_row, measured.rows)),
        groups=_groups(pictures, indexed, collection, vectors),
        usage=quality.levels,
        usage_note=f"Over the {quality.pictures:,} unseen pictures: {quality.sequences:,} distinct sequences; "
        f"{100 * quality.collision_rate:.1f}% of the pictures share theirs with another; a vector rebuilt from its "
        f"vokens has a cosine of {quality.cosine:.2f} with the true one.",
        epochs=_epochs(model),
        untrained_recall=float(model.validation["generator"]["untrained_recall"]),
        steps=tuple(steps),
        commands=commands,
        credits=_credits(dataset),
    )


def _ask(
    model: Model, collection: Snapshot, unseen: Dataset, seed: int
) -> Iterator[tuple[DemoQuery, list[tuple[str, float, tuple[int, ...]]]]]:
    queries = demo_queries(unseen, seed=seed)
    answers = Searcher(model, collection).search([query.text for query in queries], _HITS)
    for query, hits in zip(queries, answers, strict=True):
        yield query, [(hit.image_id, hit.score, hit.vokens) for hit in hits]


def _answer(
    query: DemoQuery, hits: list[tuple[str, float, tuple[int, ...]]], by_id: dict[str, CaptionedImage]
) -> ShownQuery:
    shown = tuple(
        ShownHit(_picture(by_id[name], vokens), score, by_id[name].concept in query.concepts)
        for name, score, vokens in hits
    )
    return ShownQuery(query.text, query.origin, shown)


def _picture(image: CaptionedImage, vokens: tuple[int, ...]) -> Picture:
    return Picture(image.path, image.concept, vokens)


def _row(row: Evaluation) -> ShownRow:
    conditions = row.conditions
    name = _NAMES.get(conditions.readout, conditions.system)
    return ShownRow(
        name, row.recall, conditions.bytes_per_picture, row.queries_per_second, reference=not conditions.readout
    )


def _epochs(model: Model) -> tuple[ShownEpoch, ...]:
    history = model.validation["generator"]
    return tuple(
        ShownEpoch(epoch["stage"], epoch["epoch"], epoch["loss"], epoch["recall"], place == history["best"])
        for place, epoch in enumerate(history["epochs"])
    )


def _groups(
    pictures: Sequence[Picture], images: Sequence[CaptionedImage], collection: Snapshot, vectors: np.ndarray
) -> tuple[ShownGroup, ...]:
    families = [image.family for image in images]
    found = find_pairs(np.asarray(collection.vokens), vectors, families, count=_PAIRS)
    levels = collection.trie.levels
    longest = found.all_but_last[0].shared if found.all_but_last else 0

    def shown(pairs: Sequence[Pair]) -> tuple[ShownPair, ...]:
        return tuple(ShownPair(pictures[p.first], pictures[p.second], p.shared, p.cosine) for p in pairs)

    beginning = "All but the last voken" if longest == levels - 1 else f"The first {longest} of {levels} vokens"
    groups = (
        ShownGroup("No voken in common", "The farthest pictures by their vectors.", shown(found.nothing)),
        ShownGroup("The first voken in common", "Alike in the coarse, apart from there.", shown(found.first_only)),
        ShownGroup(
            f"{beginning} in common", "The longest beginning that two sequences share.", shown(found.all_but_last)
        ),
        ShownGroup("The same sequence", "Pictures that the vokens alone cannot tell apart.", shown(found.same)),
    )
    return tuple(group for group in groups if group.pairs or group.title != "The same sequence")


def _credits(dataset: Dataset) -> tuple[str, ...]:
    hands = dict.fromkeys((image.vendor, image.licence) for image in dataset.images if image.vendor)
    return (
        *(f"Pictures: {_HANDS.get(vendor, vendor)}, {licence}." for vendor, licence in hands),
        "Captions: names and keywords of Unicode CLDR, emojibase and emojilib. These pictures say nothing about "
        "photographs.",
    )
