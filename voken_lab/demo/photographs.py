"""The demo on a folder of the user's pictures: index them without training, search them, and write one page.

The pictures have no captions, so nothing says which answers are right, and no recall is measured. The queries are those
that the server's page would suggest (see `voken.serve.examples`).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from voken import Collection, artifact
from voken.api import IndexReport
from voken.encoders.cache import VectorCache
from voken.image_tokenizer.train import tokenizer_report
from voken.model.model import PictureSide
from voken.progress import Progress, no_progress
from voken.serve.examples import Examples
from voken_lab.demo.page import DemoPage, QueryCard
from voken_lab.demo.run import Demo, pair_sections, timed_step
from voken_lab.pages.page import HitCard, Picture, duration, write_page

_HITS = 8
_COMPARED = 2_000
"""So many pictures, spread evenly, are compared pair by pair."""


def run(
    pictures: Path,
    out: Path,
    *,
    encoder: str = "photos",
    print_line: Callable[[str], None] = lambda line: None,
    progress: Progress = no_progress,
) -> Demo:
    """Fill `out` with collection/, vectors/ and index.html. A second call encodes only new pictures.

    `print_line` receives a line when a step ends. Raises `EmptyDataError` if no picture can be used.
    """
    steps: list[tuple[str, float]] = []
    step = partial(timed_step, steps, print_line)

    with artifact.storage_errors(out):
        cache = VectorCache(out / "vectors")
    with step("indexing"):
        report = Collection.index(out / "collection", pictures, encoder=encoder, cache=cache, progress=progress)
    print_line(f"     {report.pictures:,} pictures, of which nothing but the files is known. Nothing was trained.")
    commands = _commands(pictures, out)
    with Collection.open(out / "collection") as collection:
        with step("queries"):
            queries = _queries(collection)
        with step("page"):
            write_page(out / "index.html", _page(collection, report, encoder, queries, steps, commands).render())
    return Demo(out / "index.html", commands, tuple(steps))


def _commands(pictures: Path, out: Path) -> tuple[str, ...]:
    commands: Sequence[Sequence[object]] = (
        ("serve", out / "collection", "--open"),
        ("search", out / "collection", "what the picture shows"),
        ("index", pictures),
    )
    return tuple(shlex.join(["voken", *map(str, words)]) for words in commands)


def _queries(collection: Collection) -> tuple[QueryCard, ...]:
    cards = []
    for text in Examples(collection).get():
        hits = collection.search(text, _HITS)
        pictures = (HitCard(Picture(Path(hit.path), Path(hit.path).stem, hit.vokens), hit.score, False) for hit in hits)
        cards.append(QueryCard(text, "chosen by code: what some of the pictures show", tuple(pictures)))
    return tuple(cards)


def _page(
    collection: Collection,
    report: IndexReport,
    encoder: str,
    queries: tuple[QueryCard, ...],
    steps: Sequence[tuple[str, float]],
    commands: tuple[str, ...],
) -> DemoPage:
    snapshot = collection.store.snapshot()
    tokenizer = PictureSide.load(snapshot.find_model()).tokenizer
    rows = snapshot.rows[:: max(1, -(-len(snapshot) // _COMPARED))]
    assert snapshot.vectors is not None  # the index above stores them
    vectors = np.asarray(snapshot.vectors[rows], dtype=np.float32)
    vokens = snapshot.vokens[snapshot.rows.searchsorted(rows)]
    paths = [(snapshot.path(row), snapshot.path(row).stem) for row in rows.tolist()]
    quality = tokenizer_report(tokenizer, vectors)
    bits = np.log2(tokenizer.codebook_size)
    return DemoPage(
        title="Your pictures as vokens",
        lead="Each picture is stored as a short sequence of visual tokens. A query is turned into the sequences of the "
        "pictures that answer it. These are your pictures. One command made this page, which stays on this machine.",
        facts=(
            (f"{report.pictures:,}", "of your pictures"),
            (f"{tokenizer.levels} × {bits:.0f} bits", "of vokens per picture"),
            (f"{report.bytes_per_picture:,.0f}", "bytes per picture in the index"),
            ("nothing", "was trained"),
            (duration(sum(seconds for _, seconds in steps)), "for all steps together"),
        ),
        queries=queries,
        recall_note="",
        rows=(),
        groups=pair_sections(paths, vokens, vectors, [name for _, name in paths]),
        usage=quality.levels,
        usage_note=f"Over {quality.pictures:,} of the pictures, on which the codebooks were fitted: "
        f"{quality.sequences:,} distinct sequences; the vector rebuilt from a picture’s vokens has a mean cosine of "
        f"{quality.cosine:.2f} with the true vector.",
        training_note="Nothing was trained, because no captions are known. The encoder "
        f"“{encoder}” turned pictures and queries into vectors; k-means on the pictures’ vectors gave the codebooks. "
        "The generator is at its starting point, which searches these codes exactly. With captions, `voken fit` "
        "trains a model for your pictures.",
        epochs=(),
        untrained_recall=0.0,
        steps=tuple(steps),
        commands=commands,
        credits=(
            "The pictures are yours. Scores compare hits of one query; without captions they are no probabilities.",
        ),
    )
