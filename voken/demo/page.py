"""One HTML page with everything in it: pictures as data, no script, nothing fetched from anywhere.

It knows what a page shows, and nothing of how it was found.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from voken.artifact import storage_errors
from voken.data.images import open_image
from voken.errors import PictureError
from voken.image_tokenizer.report import LevelUsage

THUMBNAIL = 96
_EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@dataclass(frozen=True)
class Picture:
    """A picture to show: its file, what it is (for those who cannot see it), and its vokens."""

    path: Path
    name: str
    vokens: tuple[int, ...]


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
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(render(page), encoding="utf-8", errors="replace")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def render(page: Page) -> str:
    """The HTML."""
    sections = [
        _section("answers", "Queries and answers", _ANSWERS_NOTE, "".join(map(_query, page.queries))),
        _section("recall", "Recall on pictures never seen", escape(page.recall_note), _recall_table(page.rows)),
        _section("vokens", "What vokens say", _PAIRS_NOTE, "".join(map(_group, page.groups))),
        _section("usage", "How the codebooks are used", escape(page.usage_note), _usage_table(page.usage)),
        _section("training", "Training", _TRAINING_NOTE, _training(page)),
        _section("next", "Go on with", "", f"<pre><code>{escape(chr(10).join(page.commands))}</code></pre>"),
    ]
    facts = "".join(f"<li><b>{escape(figure)}</b> {escape(what)}</li>" for figure, what in page.facts)
    credits = "".join(f"<li>{escape(line)}</li>" for line in page.credits)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(page.title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{escape(page.title)}</h1>\n"
        f'<p class="lead">{escape(page.lead)}</p>\n<ul class="facts">{facts}</ul>\n</header>\n<main>\n'
        + "\n".join(sections)
        + f"\n</main>\n<footer><ul>{credits}</ul></footer>\n</body>\n</html>\n"
    )


def thumbnail(path: Path, size: int = THUMBNAIL) -> str:
    """The picture as a data URI of a PNG, `size` pixels square; an empty one where it cannot be read."""
    try:
        image = open_image(path, size=size)
    except PictureError:
        return _EMPTY
    target = io.BytesIO()
    image.quantize(128).save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


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


def _section(name: str, title: str, note: str, body: str) -> str:
    """`note` is HTML."""
    shown = f'<p class="note">{note}</p>' if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{shown}{body}</section>'


def _image(picture: Picture) -> str:
    alternative = escape(picture.name, quote=True)
    return f'<img src="{thumbnail(picture.path)}" width="72" height="72" alt="{alternative}">'


def _chips(vokens: Sequence[int], shared: int = 0) -> str:
    label = " ".join(map(str, vokens))
    # the golden angle sets neighbouring numbers far apart on the circle of colours
    hues = [round(voken * 137.508 + level * 47) % 360 for level, voken in enumerate(vokens)]
    chips = "".join(
        f'<i class="v{" same" if level < shared else ""}" style="--h:{hue}">{voken}</i>'
        for level, (voken, hue) in enumerate(zip(vokens, hues, strict=True))
    )
    return f'<span class="vokens" role="img" aria-label="vokens {label}">{chips}</span>'


def _query(query: ShownQuery) -> str:
    return (
        f'<article class="query"><h3>“{escape(query.text)}”</h3><p class="origin">{escape(query.origin)}</p>'
        f'<ol class="hits">{"".join(map(_hit, query.hits))}</ol></article>'
    )


def _hit(hit: ShownHit) -> str:
    mark = '<b class="right" title="a right answer">✓</b> ' if hit.right else ""
    return (
        f'<li class="hit{" is-right" if hit.right else ""}">{_image(hit.picture)}'
        f'<span class="name">{mark}{escape(hit.picture.name)}</span>'
        f'<span class="score">score {hit.score:.2f}</span>{_chips(hit.picture.vokens)}</li>'
    )


def _group(group: ShownGroup) -> str:
    pairs = "".join(
        f'<li class="pair">{_half(pair.first, pair.shared)}{_half(pair.second, pair.shared)}'
        f'<span class="score">cosine {pair.cosine:.2f}</span></li>'
        for pair in group.pairs
    )
    body = f'<ul class="pairs">{pairs}</ul>' if group.pairs else '<p class="note">No such pair here.</p>'
    return f'<h3>{escape(group.title)}</h3><p class="origin">{escape(group.explanation)}</p>{body}'


def _half(picture: Picture, shared: int) -> str:
    name = f'<span class="name">{escape(picture.name)}</span>'
    return f'<div class="half">{_image(picture)}{name}{_chips(picture.vokens, shared)}</div>'


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
    return _table(head, body)


def _usage_table(usage: Sequence[LevelUsage]) -> str:
    rows = []
    for level in usage:
        share = 100 * level.perplexity / max(level.entries, 1)
        bar = f'<span class="bar" aria-hidden="true"><i style="width:{min(share, 100):.0f}%"></i></span>'
        rows.append(
            ([str(level.level), f"{level.used:,} of {level.entries:,}", f"{level.perplexity:,.0f}", _Html(bar)], "")
        )
    return _table(["level", "entries used", "perplexity", "perplexity, share of all"], rows)


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
        f"{charts}<details><summary>Every epoch</summary>{_table(head, rows)}</details>"
        f"<h3>Where the time went</h3>{_table(['step', 'time'], steps)}"
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


class _Html(str):
    """A cell that is HTML already."""

    __slots__ = ()


def _table(head: Sequence[str], rows: Iterable[tuple[Sequence[str], str]]) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr class="{kind}">'
        + "".join(f"<td>{cell if isinstance(cell, _Html) else escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for cells, kind in rows
    )
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


_STYLE = """
:root{--paper:#fbfaf7;--card:#fff;--ink:#1d1f24;--soft:#5c616b;--line:#e2e0da;--accent:#2b5fd9;--good:#1a7f45;
--chip-l:88%;--chip-s:62%;--chip-ink:#1d1f24}
@media (prefers-color-scheme:dark){:root{--paper:#15171b;--card:#1e2126;--ink:#e9eaee;--soft:#a2a8b4;--line:#333842;
--accent:#8fb0ff;--good:#6fd39a;--chip-l:27%;--chip-s:38%;--chip-ink:#f2f3f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:0 20px 48px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{padding:40px 0 8px}
h1{font-size:2rem;line-height:1.2;margin:0 0 8px;letter-spacing:-.01em}
h2{font-size:1.35rem;margin:44px 0 4px}
h3{font-size:1.05rem;margin:22px 0 0}
.lead{font-size:1.08rem;max-width:62ch;margin:0;color:var(--soft)}
.note{max-width:72ch;margin:0 0 12px;color:var(--soft)}
.origin{margin:0 0 10px;color:var(--soft);font-size:.9rem}
.facts{display:flex;flex-wrap:wrap;gap:10px;list-style:none;padding:0;margin:22px 0 0}
.facts li{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px 14px;color:var(--soft);
font-size:.9rem;flex:1 1 130px}
.facts b{display:block;font-size:1.4rem;line-height:1.25;color:var(--ink)}
.query{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:14px 16px 16px;margin:0 0 14px}
.query h3{margin:0;font-size:1.15rem}
.hits,.pairs{list-style:none;margin:0;padding:0;display:grid;gap:10px}
.hits{grid-template-columns:repeat(auto-fill,minmax(112px,1fr))}
.pairs{grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:14px}
.hit,.half{display:flex;flex-direction:column;align-items:center;text-align:center;gap:4px;min-width:0}
.hit{border:1px solid transparent;border-radius:10px;padding:8px 4px}
.hit.is-right{border-color:var(--good)}
.right{color:var(--good)}
img{border-radius:8px;background:#fff;border:1px solid var(--line);width:72px;height:72px;object-fit:contain}
.name{font-size:.85rem;line-height:1.25;overflow-wrap:anywhere}
.score{font-size:.78rem;color:var(--soft);font-variant-numeric:tabular-nums}
.vokens{display:flex;flex-wrap:wrap;justify-content:center;gap:2px;max-width:128px;margin-top:auto}
.v{font:600 .68rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;padding:0 2px;min-width:24px;
text-align:center;border-radius:4px;border:1.5px solid transparent;color:var(--chip-ink);
background:hsl(var(--h) var(--chip-s) var(--chip-l))}
.v.same{border-color:var(--ink)}
.pair{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:12px;display:grid;
grid-template-columns:1fr 1fr;gap:10px}
.pair>.score{grid-column:1/-1;text-align:center}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:8px 0;font-variant-numeric:tabular-nums;background:var(--card);
border:1px solid var(--line);border-radius:12px;font-size:.95rem}
th,td{padding:7px 14px;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:600;font-size:.85rem}
tbody tr{border-top:1px solid var(--line)}
tr.reference td{color:var(--soft)}
tr.kept td{font-weight:600}
.bar{display:inline-block;width:120px;height:10px;border-radius:5px;background:var(--line);overflow:hidden}
.bar i{display:block;height:100%;background:var(--accent)}
.charts{display:flex;flex-wrap:wrap;gap:14px;margin:10px 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:10px;flex:1 1 280px;
max-width:460px}
svg{display:block;width:100%;height:auto}
polyline{fill:none;stroke:var(--accent);stroke-width:2}
circle{fill:var(--accent)}
figcaption{font-size:.85rem;color:var(--soft)}
summary{cursor:pointer;color:var(--accent)}
pre{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px;overflow-x:auto;font-size:.9rem}
footer{margin-top:48px;border-top:1px solid var(--line);color:var(--soft);font-size:.85rem}
footer ul{padding-left:18px}
@media (max-width:480px){body{padding:0 12px 32px}header{padding-top:24px}h1{font-size:1.6rem}
.hits{grid-template-columns:repeat(auto-fill,minmax(92px,1fr));gap:4px}.query{padding:12px 8px}th,td{padding:6px 9px}
.facts li{flex-basis:120px}}
"""
