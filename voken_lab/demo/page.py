"""One HTML page with everything in it: pictures as data, no script, nothing fetched from anywhere.

It knows what a page shows, and nothing of how it was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from voken.image_tokenizer.report import LevelUsage
from voken_lab.pages.html import Html, Picture, chips, document, half, image, section, table, write_html


@dataclass(frozen=True)
class ShownHit:
    """One answer. `right` None: nobody said whether it is."""

    picture: Picture
    score: float
    right: bool | None


@dataclass(frozen=True)
class ShownQuery:
    """A query and its answers, best first."""

    text: str
    origin: str
    hits: tuple[ShownHit, ...]


@dataclass(frozen=True)
class ShownRow:
    """A row of the table of recalls; recalls are shares between 0 and 1."""

    name: str
    recall: dict[int, float]
    bytes_per_picture: float | None
    queries_per_second: float
    reference: bool = False
    """Not the model itself but what it is measured by."""


@dataclass(frozen=True)
class ShownEpoch:
    """A line of the training log; recall is a share between 0 and 1."""

    stage: str
    epoch: int
    loss: float
    recall: float
    kept: bool


@dataclass(frozen=True)
class ShownPair:
    """Two pictures; `shared` is how many vokens they begin with alike."""

    first: Picture
    second: Picture
    shared: int
    cosine: float


@dataclass(frozen=True)
class ShownGroup:
    """Pairs that share as much of their sequences."""

    title: str
    explanation: str
    pairs: tuple[ShownPair, ...]


@dataclass(frozen=True)
class Page:
    """Everything on the page."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    """Large figures at the top: (figure, what it is)."""
    queries: tuple[ShownQuery, ...]
    recall_note: str
    rows: tuple[ShownRow, ...]
    groups: tuple[ShownGroup, ...]
    usage: tuple[LevelUsage, ...]
    usage_note: str
    epochs: tuple[ShownEpoch, ...]
    untrained_recall: float
    steps: tuple[tuple[str, float], ...]
    """(what, seconds)."""
    commands: tuple[str, ...]
    credits: tuple[str, ...]


def write_page(path: Path, page: Page) -> None:
    """Write the page, complete or not at all. Raises `StorageError` where the disk refuses."""
    write_html(path, render(page))


def render(page: Page) -> str:
    """The HTML."""
    sections = [
        section("answers", "Queries and answers", _ANSWERS_NOTE, "".join(map(_query, page.queries))),
        section("recall", "Recall on pictures never seen", escape(page.recall_note), _recall_table(page.rows)),
        section("vokens", "What vokens say", _PAIRS_NOTE, "".join(map(_group, page.groups))),
        section("usage", "How the codebooks are used", escape(page.usage_note), _usage_table(page.usage)),
        section("training", "Training", _TRAINING_NOTE, _training(page)),
        section("next", "Go on with", "", f"<pre><code>{escape(chr(10).join(page.commands))}</code></pre>"),
    ]
    return document(page.title, page.lead, facts=page.facts, sections=sections, credits=page.credits)


_ANSWERS_NOTE = (
    "The model reads the query and writes voken sequences; the pictures below are those that have them. "
    "Each chip is a voken; equal numbers at one place have equal colours. ✓ marks a picture that is a right answer."
)
_PAIRS_NOTE = (
    "Pictures that look alike should begin with the same vokens (compare Figure 5 of the paper). Vokens that "
    "both pictures begin with are framed."
)
_TRAINING_NOTE = (
    "The generator, epoch by epoch; the epoch that was best on the validation pictures is kept. Recall is the mean of "
    "R@1, R@5 and R@10 by log-probability alone. It does not start at nothing: the generator begins as a search for "
    "the query’s own vector among the codebook entries, and learns what to add."
)


def _query(query: ShownQuery) -> str:
    return (
        f'<article class="query"><h3>“{escape(query.text)}”</h3><p class="origin">{escape(query.origin)}</p>'
        f'<ol class="hits">{"".join(map(_hit, query.hits))}</ol></article>'
    )


def _hit(hit: ShownHit) -> str:
    mark = '<b class="right" title="a right answer">✓</b> ' if hit.right else ""
    return (
        f'<li class="hit{" is-right" if hit.right else ""}">{image(hit.picture)}'
        f'<span class="name">{mark}{escape(hit.picture.name)}</span>'
        f'<span class="score">score {hit.score:.2f}</span>{chips(hit.picture.vokens)}</li>'
    )


def _group(group: ShownGroup) -> str:
    pairs = "".join(
        f'<li class="pair">{half(pair.first, pair.shared)}{half(pair.second, pair.shared)}'
        f'<span class="score">cosine {pair.cosine:.2f}</span></li>'
        for pair in group.pairs
    )
    body = f'<ul class="pairs">{pairs}</ul>' if group.pairs else '<p class="note">No such pair here.</p>'
    return f'<h3>{escape(group.title)}</h3><p class="origin">{escape(group.explanation)}</p>{body}'


def _recall_table(rows: Sequence[ShownRow]) -> str:
    cutoffs = list(rows[0].recall) if rows else []
    head = ["system", *(f"R@{cutoff}" for cutoff in cutoffs), "bytes a picture", "queries a second"]
    body = [
        (
            [
                row.name,
                *(f"{100 * row.recall[cutoff]:.1f}" for cutoff in cutoffs),
                "–" if row.bytes_per_picture is None else f"{row.bytes_per_picture:,.0f}",
                f"{row.queries_per_second:,.0f}",
            ],
            "reference" if row.reference else "",
        )
        for row in rows
    ]
    return table(head, body)


def _usage_table(usage: Sequence[LevelUsage]) -> str:
    rows = []
    for level in usage:
        share = 100 * level.perplexity / max(level.entries, 1)
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{min(share, 100):.0f}%"></i></span>'
        rows.append(
            ([str(level.level), f"{level.used:,} of {level.entries:,}", f"{level.perplexity:,.0f}", Html(bar)], "")
        )
    return table(["level", "entries used", "perplexity", "perplexity, share of all"], rows)


def _training(page: Page) -> str:
    head = ["stage", "epoch", "loss", "recall"]
    kept = not any(epoch.kept for epoch in page.epochs)
    before = ["before" + (" (kept)" if kept else ""), "", "", f"{100 * page.untrained_recall:.1f}"]
    rows: list[tuple[list[str], str]] = [(before, "kept" if kept else "")]
    for epoch in page.epochs:
        cells = [epoch.stage + (" (kept)" if epoch.kept else ""), str(epoch.epoch), f"{epoch.loss:.3f}"]
        rows.append(([*cells, f"{100 * epoch.recall:.1f}"], "kept" if epoch.kept else ""))
    recalls = [page.untrained_recall, *(epoch.recall for epoch in page.epochs)]
    charts = (
        f'<div class="charts">{_line("recall on validation, %", [100 * value for value in recalls])}'
        f"{_line('loss', [epoch.loss for epoch in page.epochs])}</div>"
    )
    steps = [([what, f"{seconds:,.0f} s"], "") for what, seconds in page.steps]
    return (
        f"{charts}<details><summary>Every epoch</summary>{table(head, rows)}</details>"
        f"<h3>Where the time went</h3>{table(['step', 'time'], steps)}"
    )


def _line(title: str, values: Sequence[float]) -> str:
    """A small chart as SVG; nothing with fewer than two values."""
    if len(values) < 2:
        return ""
    # from zero, as a cut axis makes a small change look like a fall
    low, spread = min(0.0, *values), (max(values) - min(0.0, *values)) or 1.0
    points = [
        (8 + 284 * place / (len(values) - 1), 92 - 76 * (value - low) / spread) for place, value in enumerate(values)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    label = escape(f"{title}: from {values[0]:.2f} to {values[-1]:.2f}", quote=True)
    return (
        f'<figure><svg viewBox="0 0 300 100" role="img" aria-label="{label}"><polyline points="{path}"/>'
        f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="3"/></svg>'
        f"<figcaption>{escape(title)}: {values[0]:.2f} → {values[-1]:.2f}</figcaption></figure>"
    )
