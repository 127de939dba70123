"""Pages that are one HTML file: pictures as data, no script, nothing fetched from anywhere.

It knows how a page looks, and nothing of what stands on it. Text given to it is escaped; `Html` is HTML already.
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

THUMBNAIL = 96
_EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@dataclass(frozen=True)
class Picture:
    """A picture to show: its file, what it is (for those who cannot see it), and its vokens."""

    path: Path
    name: str
    vokens: tuple[int, ...]


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def document(
    title: str,
    lead: str,
    *,
    facts: Iterable[tuple[str, str]],
    sections: Iterable[str],
    credits: Iterable[str] = (),
    style: str = "",
) -> str:
    """A whole page. `facts` are large figures at the top: (figure, what it is); `sections` are HTML (see `section`);
    `credits` are lines at the foot; `style` is CSS after the common one.
    """
    tiles = "".join(f"<li><b>{escape(figure)}</b> {escape(what)}</li>" for figure, what in facts)
    lines = "".join(f"<li>{escape(line)}</li>" for line in credits)
    foot = f"<footer><ul>{lines}</ul></footer>\n" if lines else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n"
        f'<p class="lead">{escape(lead)}</p>\n<ul class="facts">{tiles}</ul>\n</header>\n<main>\n'
        + "\n".join(sections)
        + f"\n</main>\n{foot}</body>\n</html>\n"
    )


def write_html(path: Path, html: str) -> None:
    """Write a page, complete or not at all. Raises `StorageError` where the disk refuses."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(html, encoding="utf-8", errors="replace")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def section(name: str, title: str, note: str, body: str) -> str:
    """A part of the page. `note` and `body` are HTML, `name` is its anchor."""
    shown = f'<p class="note">{note}</p>' if note else ""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(title)}</h2>{shown}{body}</section>'


def thumbnail(path: Path, size: int = THUMBNAIL) -> str:
    """The picture as a data URI of a PNG, `size` pixels square; an empty one where it cannot be read."""
    try:
        image = open_image(path, size=size)
    except PictureError:
        return _EMPTY
    target = io.BytesIO()
    image.quantize(128).save(target, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def image(picture: Picture) -> str:
    """The picture itself, with its name for those who cannot see it."""
    alternative = escape(picture.name, quote=True)
    return f'<img src="{thumbnail(picture.path)}" width="72" height="72" alt="{alternative}">'


def chips(vokens: Sequence[int], shared: int = 0) -> str:
    """A voken sequence; equal numbers at one level have one colour, and the first `shared` are framed."""
    label = " ".join(map(str, vokens))
    # the golden angle sets neighbouring numbers far apart on the circle of colours
    hues = [round(voken * 137.508 + level * 47) % 360 for level, voken in enumerate(vokens)]
    shown = "".join(
        f'<i class="v{" same" if level < shared else ""}" style="--h:{hue}">{voken}</i>'
        for level, (voken, hue) in enumerate(zip(vokens, hues, strict=True))
    )
    return f'<span class="vokens" role="img" aria-label="vokens {label}">{shown}</span>'


def half(picture: Picture, shared: int) -> str:
    """One of a pair's two pictures; the first `shared` vokens are those of the other too."""
    name = f'<span class="name">{escape(picture.name)}</span>'
    return f'<div class="half">{image(picture)}{name}{chips(picture.vokens, shared)}</div>'


def table(
    head: Sequence[str],
    rows: Iterable[tuple[Sequence[str], str]],
    *,
    groups: Sequence[tuple[str, int]] = (),
    kinds: Sequence[str] = (),
) -> str:
    """A table. A row is its cells and its CSS class; `kinds` are CSS classes of the columns, `groups` are a row above
    the head: (title, columns it spans).
    """
    kinds = list(kinds) or [""] * len(head)

    def line(tag: str, cells: Sequence[str], scope: str = "") -> str:
        return "".join(
            f'<{tag}{scope} class="{kind}">{cell if isinstance(cell, Html) else escape(cell)}</{tag}>'
            for cell, kind in zip(cells, kinds, strict=True)
        )

    starts = [sum(span for _, span in groups[:place]) for place in range(len(groups))]
    above = "".join(
        f'<th scope="colgroup" colspan="{span}" class="{kinds[start]}">{escape(title)}</th>'
        for (title, span), start in zip(groups, starts, strict=True)
    )
    scope = ' scope="col"'
    header = (f"<tr>{above}</tr>" if above else "") + f"<tr>{line('th', head, scope)}</tr>"
    body = "".join(f'<tr class="{name}">{line("td", cells)}</tr>' for cells, name in rows)
    return f'<div class="wide"><table><thead>{header}</thead><tbody>{body}</tbody></table></div>'


STYLE = """
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
