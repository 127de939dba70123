"""Plots of the benchmarks, drawn from their JSON. A caption names the machine.

    python benchmarks/plots.py scaling.json equal-bytes-emoji.json --out docs/images --format svg

Colours are Okabe and Ito's, which colour-blind readers can tell apart; markers or the labels differ as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
LINES = ("-", "--", ":", "-.")
Report = dict[str, Any]
Plots = Iterator[tuple[str, Figure]]
"""Pairs of a name and a figure."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the plots of every report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/plots"))
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    options = parser.parse_args(arguments)
    matplotlib.rcParams["svg.hashsalt"] = "voken"  # the same numbers give the same file
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        kind = report.get("benchmark", "quality")
        if kind not in PLOTS:
            raise SystemExit(f"{path}: benchmark {kind!r} has no plot. There are: {', '.join(PLOTS)}.")
        for name, figure in PLOTS[kind](report):
            figure.text(0.01, 0.01, caption(report), fontsize=7, va="bottom")
            target = options.out / f"{path.stem}-{name}.{options.format}"
            metadata = {"Date": None} if options.format == "svg" else None
            figure.savefig(target, metadata=metadata, dpi=150)
            print(target)


def caption(report: Report) -> str:
    """The machine that the numbers come from."""
    machine = report.get("machine") or report["rows"][0]["machine"]
    threads = report.get("workload", {}).get("threads") or machine.get("threads")
    parts = [f"{machine['cpu']}, {machine['cores']} cores", f"{threads} threads" if threads else ""]
    parts += [f"numpy {machine['numpy']}" if machine.get("numpy") else "", machine.get("accelerator") or ""]
    return "Measured on " + ", ".join(part for part in parts if part)


def labelled_axes(x: str, y: str, *, width: float = 7.0, height: float = 4.6) -> tuple[Figure, Axes]:
    """An empty figure with label_of axes and room for the caption."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, 0.04, 1, 0.96)))
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def style(place: int) -> dict[str, Any]:
    """Colour, marker and dashes of line number `place`."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place // len(COLOURS) % len(LINES)],
        "markersize": 5,
    }


def scaling(report: Report) -> Plots:
    """Figure 4 of the paper, and recall against speed over the real set."""
    growing: list[Report] = report.get("growing", [])
    for batch in growing[0]["seconds"] if growing else ():
        figure, axes = labelled_axes("pictures", "queries per second", height=5.4)
        for place, row in enumerate(growing):
            line = sorted((int(size), 1 / statistics.median(times)) for size, times in row["seconds"][batch].items())
            label = ", ".join(part for part in (row["system"], row["precision"], row["draw"]) if part)
            axes.plot([size for size, _ in line], [speed for _, speed in line], label=label, **style(place))
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"A query from text to ids, batch {batch}")
        axes.legend(fontsize=6, ncols=2)
        yield f"growing-{batch}", figure
    real = report.get("real", {"points": []})
    for precision in dict.fromkeys(point["precision"] for point in real["points"]):
        figure, axes = labelled_axes("R@10 (%)", "queries per second")
        points = [point for point in real["points"] if point["precision"] == precision]
        systems = dict.fromkeys(point["system"] for point in points if point["system"] != "nothing")
        for place, system in enumerate(systems):
            line = [(100 * point["recall"]["10"], point["speed"]) for point in points if point["system"] == system]
            axes.plot([recall for recall, _ in line], [speed for _, speed in line], label=system, **style(place))
        for point in points:
            if point["system"] == "nothing":
                axes.axhline(point["speed"], color=COLOURS[-1], linewidth=1, label="reading the text alone")
        axes.set_yscale("log")
        axes.set_title(f"{real['pictures']:,} pictures, {real['queries']:,} queries one at a time, {precision}")
        axes.legend(fontsize=7)
        yield f"recall-{precision}", figure


def equal_bytes(report: Report) -> Plots:
    """Recall against bytes per picture: means over seeds."""
    for pool in dict.fromkeys(row["dataset"] for row in report["rows"]):
        figure, axes = labelled_axes("bytes per picture", "R@10 (%)")
        rows = [row for row in report["rows"] if row["dataset"] == pool]
        sizes = sorted({row["levels"] for row in rows})
        for place, name in enumerate(dict.fromkeys(map(label_of, rows))):
            recalls = [
                [row["recall"]["10"] for row in rows if (label_of(row), row["levels"]) == (name, m)] for m in sizes
            ]
            axes.plot(sizes, [100 * statistics.mean(values) for values in recalls], label=name, **style(place))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{size}" for size in sizes])
        axes.set_title(f"{pool}, {rows[0]['pool_size']:,} pictures")
        axes.legend(fontsize=7)
        yield pool.replace(" ", "-"), figure


def quality(report: Report) -> Plots:
    """Recall of every row, means over seeds."""
    for pool in dict.fromkeys(row["dataset"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["dataset"] == pool]
        bars = {
            name: {
                f"R@{cutoff}": 100 * statistics.mean(row["recall"][cutoff] for row in rows if label_of(row) == name)
                for cutoff in rows[0]["recall"]
            }
            for name in dict.fromkeys(map(label_of, rows))
        }
        yield pool.replace(" ", "-"), grouped_bars(bars, "recall (%)", f"{pool}, {rows[0]['pool_size']:,} pictures")


def label_of(row: Report) -> str:
    """The label of a row: its system and read-out."""
    return ", ".join(part for part in (row["system"], row["readout"]) if part)


def index_size(report: Report) -> Plots:
    """Bytes per picture by part, and the time to open a collection, against its size."""
    parts = ("trie_levels", "picture_numbers", "ids", "paths")
    bars = {
        f"{row['pictures']:,} {row['draw']}": {part: row["size"][part] / row["pictures"] for part in parts}
        for row in report["rows"]
    }
    yield "bytes", grouped_bars(bars, "bytes per picture", "What a collection takes, without vectors")
    figure, axes = labelled_axes("pictures", "milliseconds to open")
    for place, draw in enumerate(dict.fromkeys(row["draw"] for row in report["rows"])):
        rows = [row for row in report["rows"] if row["draw"] == draw]
        times = [1000 * statistics.median(opening["open_seconds"] for opening in row["opened"]) for row in rows]
        axes.plot([row["pictures"] for row in rows], times, label=draw, **style(place))
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend()
    yield "opening", figure


def decoding(report: Report) -> Plots:
    """Milliseconds per query, by shape and batch."""
    for shape, shape_report in report["shapes"].items():
        bars = {
            name: {
                f"batch {batch}": 1000 * statistics.median(seconds) for batch, seconds in row["seconds_a_query"].items()
            }
            for name, row in shape_report["rows"].items()
        }
        title = f"T5-{shape}, {shape_report['workload']['beams']} beams"
        yield shape, grouped_bars(bars, "milliseconds per query", title)


def training_step(report: Report) -> Plots:
    """The speed of each form of the training step relative to the naive form."""
    names = {"times_naive": "by the wall", "cpu_times_naive": "by CPU time"}
    bars = {
        name: {label: row[key] for key, label in names.items()}
        for name, row in report["rows"].items()
        if row["times_naive"]
    }
    yield "times", grouped_bars(bars, "times the naive form", "Training stage 2, pairs per second")


def cold_start(report: Report) -> Plots:
    """Seconds of a search from the shell."""
    bars = {name: {label: row[key] for key, label in _SECONDS.items()} for name, row in report["rows"].items()}
    yield "seconds", grouped_bars(bars, "seconds", "A process from start to end")


_SECONDS = {"seconds": "by the wall", "cpu_seconds": "CPU time"}


def grouped_bars(bars: dict[str, dict[str, float]], label: str, title: str) -> Figure:
    """A group of horizontal bars for each name, the first on top."""
    figure, axes = labelled_axes(label, "", height=1.6 + 0.4 * len(bars))
    kinds = list(dict.fromkeys(kind for group in bars.values() for kind in group))
    thickness = 0.8 / len(kinds)
    for place, kind in enumerate(kinds):
        heights = [row + place * thickness for row in range(len(bars))]
        values = [figures.get(kind, 0.0) for figures in bars.values()]
        group = axes.barh(heights, values, thickness, label=kind, color=COLOURS[place])
        axes.bar_label(group, fmt="%.3g", fontsize=6, padding=2)
    axes.set_yticks([row + 0.4 - thickness / 2 for row in range(len(bars))], list(bars), fontsize=7)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.legend(fontsize=7)
    return figure


PLOTS: dict[str, Callable[[Report], Plots]] = {
    plot.__name__: plot for plot in (scaling, equal_bytes, quality, index_size, decoding, training_step, cold_start)
}


if __name__ == "__main__":
    main()
