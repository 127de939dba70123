"""Charts as SVG inside a page, drawn by matplotlib: lines, labelled points, bars.

A chart shows figures of one source: the paper's figures and measured ones never share a chart. Colours are the page's
CSS variables, so that a chart follows light and dark mode. Equal figures give equal SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from voken.errors import MissingExtraError
from voken_lab.pages.page import Markup

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
except ImportError:
    raise MissingExtraError("matplotlib", "bench") from None

# matplotlib takes no CSS variables, so it draws with these colours and `_svg` puts the variables in their place.
_INK, _SOFT, _LINE, _ACCENT, _CARD = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {_INK: "--ink", _SOFT: "--soft", _LINE: "--line", _ACCENT: "--accent", _CARD: "--card"}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 72,  # one point is then one unit of the SVG
    "figure.facecolor": "none",
    "font.sans-serif": ["DejaVu Sans"],  # measures the text; the page's font shows it
    "font.size": 12,
    "grid.color": _LINE,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _SOFT,
    "ytick.major.size": 0,
}
_CHARACTER = 6.6
"""Estimated width of a letter of a label, in units of the SVG; browsers differ."""


@dataclass(frozen=True)
class Point:
    """A figure; `spread` is its standard deviation, None if there is none."""

    x: float
    y: float
    spread: float | None = None


@dataclass(frozen=True)
class LabelledPoint:
    """A point with its label. `is_ours` points are drawn filled, the others as rings."""

    label: str
    point: Point
    is_ours: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart to put on a page; `kind` is its CSS class."""

    title: str
    svg: Markup
    kind: Literal["measured-panel", "paper-panel", "broad"]


@matplotlib.rc_context(_STYLE)
def bars(title: str, values: Sequence[tuple[str, float, float | None]], *, paper: bool = False) -> Chart:
    """Horizontal bars, each (label, value in %, standard deviation or None). Raises `ValueError` without values."""
    height = 34 * len(values) + 34
    figure, axes = _axes(340, height, (6, 24, 334, height - 4))
    axes.grid(False)
    axes.spines["left"].set_visible(True)
    rows = range(len(values))
    top = max([value + (spread or 0) for _, value, spread in values] + [1])
    axes.barh(rows, [value for _, value, _ in values], height=0.32, color=_ACCENT)
    for row, (label, value, spread) in enumerate(values):
        _spread_line(axes, [value - (spread or 0), value + (spread or 0)], [row, row], spread)
        axes.text(0, row - 0.24, f" {label}", va="bottom")
        axes.text(value + (spread or 0), row, f" {_value(value, spread)}", va="center", fontweight="bold")
    axes.set(xlim=(0, 1.35 * top), ylim=(len(values) - 0.6, -0.9), yticks=[])
    summary = "; ".join(f"{label}: {_value(value, spread)}" for label, value, spread in values)
    return Chart(title, _svg(figure, f"{title}. {summary}"), _kind(paper))


@matplotlib.rc_context(_STYLE)
def lines(
    title: str, x_title: str, series: Mapping[str, Sequence[Point]], *, log: bool = False, paper: bool = False
) -> Chart | None:
    """One line per name. The x axis has a tick at each point; x values are whole numbers. None without points."""
    points = [point for line in series.values() for point in line]
    if not points:
        return None
    figure, axes = _axes(360, 240, (42, 42, 348, 208))
    for style, (name, line) in zip(("-", "--", ":"), series.items(), strict=False):
        x, y = [point.x for point in line], [point.y for point in line]
        axes.plot(x, y, style, label=name, color=_ACCENT, marker="o", markersize=5, linewidth=2)
        for point in line:
            _spread_line(axes, [point.x, point.x], _span(point), point.spread)
    if log:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({point.x for point in points})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set(xlabel=x_title, ylim=(0, _top(points)))
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 0.99), ncols=len(series), handlelength=2.4)
    summary = "; ".join(
        f"{name}: " + ", ".join(f"{point.y:.1f} at {point.x:,.0f}" for point in line) for name, line in series.items()
    )
    return Chart(title, _svg(figure, f"{title}. {x_title}. {summary}"), _kind(paper))


@matplotlib.rc_context(_STYLE)
def curve(title: str, x_title: str, points: Sequence[Point]) -> Chart | None:
    """A line through many points, on a y axis that need not begin at 0. None without points."""
    if not points:
        return None
    figure, axes = _axes(360, 240, (52, 42, 348, 228))
    axes.plot([point.x for point in points], [point.y for point in points], color=_ACCENT, linewidth=2, marker=".")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.set(xlabel=x_title)
    low, high = min(points, key=lambda point: point.y), max(points, key=lambda point: point.y)
    ends = f"From {points[0].y:.4g} to {points[-1].y:.4g}"
    summary = f"{ends}; lowest {low.y:.4g} at {low.x:g}, highest {high.y:.4g} at {high.x:g}"
    return Chart(title, _svg(figure, f"{title}. {x_title}. {summary}"), "measured-panel")


@matplotlib.rc_context(_STYLE)
def scatter(title: str, x_title: str, marks: Sequence[LabelledPoint]) -> Chart | None:
    """Labelled points over a logarithmic x axis; `y` in %, `x` above zero. None without points."""
    if not marks:
        return None
    figure, axes = _axes(760, 416, (40, 46, 744, 402))
    low, high = (bound(mark.point.x for mark in marks) for bound in (min, max))
    axes.set(xlabel=x_title, xscale="log", xlim=(low / 1.6, high * 1.6), ylim=(0, _top([m.point for m in marks])))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.grid(axis="x")
    centres = [tuple(axes.transData.transform((mark.point.x, mark.point.y))) for mark in marks]
    occupied = [(x - 6, y - 6, x + 6, y + 6) for x, y in centres]
    for mark, (x, y) in zip(marks, centres, strict=True):
        _spread_line(axes, [mark.point.x, mark.point.x], _span(mark.point), mark.point.spread)
        fill, edge = (_ACCENT, _ACCENT) if mark.is_ours else (_CARD, _SOFT)
        axes.plot(mark.point.x, mark.point.y, "o", markersize=9, color=fill, markeredgecolor=edge, markeredgewidth=1.8)
        dx, dy = _label_offset(mark.label, x, y, occupied)
        is_far = abs(dy) > 13 or abs(dx) > 9
        axes.annotate(
            mark.label,
            (mark.point.x, mark.point.y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": _SOFT, "linewidth": 0.7} if is_far else None,
        )
    summary = "; ".join(f"{mark.label}: {mark.point.y:.1f} % at {mark.point.x:,.3g}" for mark in marks)
    return Chart(title, _svg(figure, f"{title}. {x_title}. {summary}"), "broad")


def _axes(width: int, height: int, box: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A figure of `width` × `height` units whose axes lie in `box`: left, bottom, right, top."""
    left, bottom, right, top = box
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((left / width, bottom / height, (right - left) / width, (top - bottom) / height))
    return figure, axes


def _svg(figure: Figure, description: str) -> Markup:
    """The figure as an SVG element of an HTML page: without namespaces, metadata, clipping and ids that repeat."""
    target = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    matplotlib.rcParams["svg.hashsalt"] = description  # ids that are the same in every run, and differ between charts
    figure.savefig(target, format="svg", metadata=nothing)
    svg = target.getvalue()
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<clipPath.*?</clipPath>|<!--.*?-->", "", body, flags=re.S
    )
    body = re.sub(r' clip-path="[^"]*"| id="(?!m[0-9a-f]+")[^"]*"', "", body).replace("xlink:href", "href")
    body = re.sub("|".join(_VARIABLES), lambda match: f"var({_VARIABLES[match.group()]})", body)
    opening = Markup('<svg class="chart" role="img" viewBox="{}" aria-label="{}">').format(view_box[1], description)
    return opening + Markup(body) + Markup("</svg>")


def _kind(paper: bool) -> Literal["measured-panel", "paper-panel"]:
    return "paper-panel" if paper else "measured-panel"


def _value(value: float, spread: float | None) -> str:
    return f"{value:.1f}" + (f" ± {spread:.1f}" if spread is not None else "")


def _span(point: Point) -> list[float]:
    return [max(point.y - (point.spread or 0), 0), point.y + (point.spread or 0)]


def _spread_line(axes: Axes, x: Sequence[float], y: Sequence[float], spread: float | None) -> None:
    if spread is not None:
        axes.plot(x, y, color=_INK, linewidth=1.2, zorder=3)


def _top(points: Sequence[Point]) -> float:
    """The end of the y axis. The axis starts at zero, because on a cut axis a small change looks like a fall."""
    return max(1.0, 1.08 * max(point.y + (point.spread or 0) for point in points))


def _label_offset(
    label: str, x: float, y: float, occupied: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """The nearest offset from the point at which the label covers nothing; the label's box is occupied from then on."""
    width = _CHARACTER * len(label)
    rises = sorted((13 * step for step in range(-14, 15)), key=abs)
    offsets = [(dx, dy) for dy in rises for dx in (9, -9, 24, -24)]
    boxes = [(x + dx if dx > 0 else x + dx - width, y + dy) for dx, dy in offsets]

    def is_free(left: float, middle: float) -> bool:
        is_inside = left >= 42 and left + width <= 758 and 52 <= middle <= 404
        return is_inside and not any(
            left < right and begin < left + width and middle - 6 < top and bottom < middle + 6
            for begin, bottom, right, top in occupied
        )

    place = next((place for place, box in enumerate(boxes) if is_free(*box)), 0)
    left, middle = boxes[place]
    occupied.append((left, middle - 6, left + width, middle + 6))
    return offsets[place]
