"""Charts as SVG that stands in a page: lines with spreads, labelled points, bars. Nothing is drawn by a library.

A chart shows figures of one origin; what the paper says and what was measured are two charts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px;margin:10px 0 20px}
.panels figure{max-width:none}
.chart text{font-size:12px;fill:var(--ink);paint-order:stroke;stroke:var(--card);stroke-width:3px}
.chart .tick{fill:var(--soft)}
.chart .end{text-anchor:end}.chart .middle{text-anchor:middle}
.chart line{stroke:var(--line);stroke-width:1}
.chart .spread{stroke:var(--ink);stroke-width:1.2}
.chart .lead-line{stroke:var(--soft);stroke-width:.7}
.chart .dash1{stroke-dasharray:6 4}.chart .dash2{stroke-dasharray:2 4}
.chart .ring{fill:var(--card);stroke:var(--soft);stroke-width:1.8}
.chart .ours{fill:var(--accent)}
.roomy{overflow-x:auto}.roomy svg{min-width:600px}
figure.broad{max-width:940px;margin:10px 0}
.bars{list-style:none;margin:8px 0 0;padding:0;display:grid;gap:9px}
.bars li{display:grid;grid-template-columns:1fr auto;gap:1px 10px;font-size:.9rem}
.bars b{font-weight:600;font-variant-numeric:tabular-nums}
.track{grid-column:1/-1;position:relative;height:12px;border-radius:3px;background:var(--line)}
.track i{display:block;height:100%;border-radius:3px;background:var(--accent)}
.track .spread{position:absolute;top:3px;height:6px;border:solid var(--ink);border-width:0 1.5px;
background:linear-gradient(var(--ink),var(--ink)) center/100% 1.5px no-repeat}
.paper-panel{--accent:#8a8f99}
"""
"""What the charts need beside the style of `voken_lab.pages.html`."""


@dataclass(frozen=True)
class Point:
    """A figure: `spread` is its standard deviation, None where there is none."""

    x: float
    y: float
    spread: float | None = None


@dataclass(frozen=True)
class Mark:
    """A labelled point; `ours` ones are drawn filled."""

    label: str
    point: Point
    ours: bool = False


def bars(title: str, values: Sequence[tuple[str, float, float | None]], *, paper: bool = False) -> str:
    """Bars from zero: (label, value in %, standard deviation or None)."""
    top = _ceiling([value for _, value, _ in values])
    rows = []
    for label, value, spread in values:
        whisker = ""
        if spread is not None:
            left, right = max(value - spread, 0), min(value + spread, top)
            whisker = (
                f'<span class="spread" style="left:{100 * left / top:.2f}%;width:{100 * (right - left) / top:.2f}%">'
                "</span>"
            )
        said = f"{value:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")
        rows.append(
            f'<li><span>{escape(label)}</span><b>{said}</b><span class="track" aria-hidden="true">'
            f'<i style="width:{100 * value / top:.2f}%"></i>{whisker}</span></li>'
        )
    caption = f"{title}; a whole bar is {top:g} %"
    return f'{_opening(paper)}<figcaption>{escape(caption)}</figcaption><ul class="bars">{"".join(rows)}</ul></figure>'


def lines(
    title: str, x_title: str, series: Mapping[str, Sequence[Point]], *, log: bool = False, paper: bool = False
) -> str:
    """A line a name, its name beside its end; the places on the x axis are those of the points, whole numbers. Nothing
    without points.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    places = sorted({point.x for point in points})
    across = _Axis(places[0], places[-1], 42, 304, log=log)
    up = _Axis(0, _ceiling([point.y for point in points]), 178, 12)
    drawn = [_grid(up, 42, 304)]
    last = -math.inf
    for place in places:
        at = across.at(place)
        shown = f"{place:,.0f}"
        if at - last > 7 * len(shown) + 4:  # nearer, the numbers would run into each other
            drawn.append(f'<text class="tick middle" x="{at:.1f}" y="195">{shown}</text>')
            last = at
    drawn.append(f'<text class="tick middle" x="173" y="214">{escape(x_title)}</text>')
    ends: list[tuple[float, str]] = []
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        path = " ".join(f"{across.at(point.x):.1f},{up.at(point.y):.1f}" for point in line)
        drawn.append(f'<polyline class="dash{number}" points="{path}"/>')
        drawn += [_spread(across.at(point.x), point, up) for point in line]
        drawn += [f'<circle cx="{across.at(point.x):.1f}" cy="{up.at(point.y):.1f}" r="3"/>' for point in line]
        ends.append((up.at(line[-1].y), name))
    heights: list[float] = []
    for height, _ in sorted(ends):
        heights.append(max(height, heights[-1] + 13) if heights else height)
    rise = max(heights[-1] - 172, 0)  # the lowest name stays above the numbers of the x axis
    for height, (_, name) in zip(heights, sorted(ends), strict=True):
        drawn.append(f'<text x="312" y="{height - rise + 4:.1f}">{escape(name)}</text>')
    width = 318 + 7.6 * max(map(len, series))
    said = "; ".join(
        f"{name}: " + ", ".join(f"{point.y:.1f} at {point.x:,.0f}" for point in line) for name, line in series.items()
    )
    label = escape(f"{title}. {x_title}. {said}", quote=True)
    return (
        f'{_opening(paper)}<figcaption>{escape(title)}</figcaption><svg class="chart" role="img" '
        f'viewBox="0 0 {width:.0f} 222" aria-label="{label}">{"".join(drawn)}</svg></figure>'
    )


def scatter(title: str, x_title: str, marks: Sequence[Mark]) -> str:
    """Points with their labels over a logarithmic x axis; nothing without points. `y` in %, `x` above zero."""
    if not marks:
        return ""
    low, high = min(mark.point.x for mark in marks), max(mark.point.x for mark in marks)
    across = _Axis(low / 1.6, high * 1.6, 40, 740, log=True)
    up = _Axis(0, _ceiling([mark.point.y for mark in marks]), 370, 14)
    drawn = [_grid(up, 40, 740)]
    for tick in _log_ticks(low / 1.6, high * 1.6):
        at = across.at(tick)
        drawn.append(f'<line x1="{at:.1f}" y1="14" x2="{at:.1f}" y2="370"/>')
        drawn.append(f'<text class="tick middle" x="{at:.1f}" y="388">{tick:,g}</text>')
    drawn.append(f'<text class="tick middle" x="390" y="408">{escape(x_title)}</text>')
    centres = [(across.at(mark.point.x), up.at(mark.point.y)) for mark in marks]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    dots, texts = [], []
    for mark, (x, y) in zip(marks, centres, strict=True):
        dots.append(_spread(x, mark.point, up))
        dots.append(f'<circle class="{"ours" if mark.ours else "ring"}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        left, middle, far = _place(mark.label, x, y, taken)
        if far:
            end = left if left > x else left + _width(mark.label)
            dots.insert(0, f'<line class="lead-line" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{middle:.1f}"/>')
        texts.append(f'<text x="{left:.1f}" y="{middle + 4:.1f}">{escape(mark.label)}</text>')
    said = "; ".join(f"{mark.label}: {mark.point.y:.1f} % at {mark.point.x:,.3g}" for mark in marks)
    label = escape(f"{title}. {x_title}. {said}", quote=True)
    return (
        f'<figure class="broad"><figcaption>{escape(title)}</figcaption><div class="roomy"><svg class="chart" '
        f'viewBox="0 0 760 416" role="img" aria-label="{label}">{"".join(drawn + dots + texts)}</svg></div></figure>'
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        share = ((math.log(value) if self.log else value) - low) / ((high - low) or 1)
        return self.start + share * (self.end - self.start)


def _opening(paper: bool) -> str:
    return f'<figure class="{"paper-panel" if paper else "measured-panel"}">'


def _ceiling(values: Sequence[float]) -> float:
    """A round number that no value passes."""
    top = max([*values, 1.0])
    power = 10.0 ** math.floor(math.log10(top))
    return next(step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= top)


def _grid(up: _Axis, left: float, right: float) -> str:
    """From zero in quarters, as a cut axis makes a small change look like a fall."""
    drawn = []
    for part in range(5):
        value = up.high * part / 4
        at = up.at(value)
        drawn.append(f'<line x1="{left}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        drawn.append(f'<text class="tick end" x="{left - 5}" y="{at + 4:.1f}">{value:,g}</text>')
    return "".join(drawn)


def _spread(x: float, point: Point, up: _Axis) -> str:
    if point.spread is None:
        return ""
    bottom, top = up.at(max(point.y - point.spread, 0)), up.at(min(point.y + point.spread, up.high))
    return f'<line class="spread" x1="{x:.1f}" y1="{bottom:.1f}" x2="{x:.1f}" y2="{top:.1f}"/>'


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 1e4 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _width(label: str) -> float:
    return 6.6 * len(label)


def _place(label: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float, bool]:
    """The first free place for a label around its point, the nearest first: its left end, its middle, and whether it
    is far enough off to need a line. The place is taken from then on.
    """
    width = _width(label)
    rises = sorted((13 * step for step in range(-12, 13)), key=abs)
    starts = (x + 9, x - 9 - width, x + 24, x - 24 - width)
    places = [(start, y + rise, abs(rise) > 13 or start in starts[2:]) for rise in rises for start in starts]
    inside = [place for place in places if place[0] >= 42 and place[0] + width <= 758 and 12 <= place[1] <= 364]

    def free(place: tuple[float, float, bool]) -> bool:
        left, middle, _ = place
        return not any(
            left < right and begin < left + width and middle - 6 < bottom and top < middle + 6
            for begin, top, right, bottom in taken
        )

    left, middle, far = next(filter(free, inside), places[0])
    taken.append((left, middle - 6, left + width, middle + 6))
    return left, middle, far
