"""How fast does `voken index` turn photographs of a camera into vectors, beside a plain loop with the same network?

The pictures are --pictures JPEGs of 12 megapixels (4,000 × 3,000, quality 90): photographs of --photographs, enlarged
and with the noise of a sensor, or drawn ones. The network is the built-in encoder `photos`. The loop opens, converts
and encodes 32 pictures at a time, as examples of such encoders do. Ours is what `voken index` does with its files: it
hashes them, decodes JPEGs at a reduced size in threads while the network computes, and caches the vectors.

The rows take turns, a batch of each, so that other work on the machine falls on both. A ratio is the median over
batches. The vectors differ a little, because a JPEG that is decoded at a reduced size is another picture.

    python benchmarks/indexing.py --photographs flickr8k --pictures 1000 --work runs/indexing --json indexing.json
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from report import markdown_table, option_parser, write_report

PLAIN, OURS = "plain loop", "voken index"
AT_ONCE = 32
"""Pictures that the loop holds at once."""
GRAIN = 4.0
"""Standard deviation of a sensor's noise, in steps of 255."""

Encode = Callable[[list[Path]], np.ndarray]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures, measure, print a table, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("--photographs", type=Path, help="a folder of photographs to enlarge; else they are drawn")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=[4000, 3000], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--batch", type=int, default=100, help="pictures of a turn")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--work", type=Path, default=Path("runs/indexing"))
    options = parser.parse_args(arguments)
    threads = options.threads or os.cpu_count() or 1
    paths = make_pictures(options.work / "pictures", options.photographs, options.pictures, tuple(options.size))
    rows = encoders(options.work, threads)
    for encode in rows.values():
        encode(paths[:1])  # the first call loads what the next ones need
    seconds: dict[str, list[tuple[float, float, int]]] = {name: [] for name in rows}
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in rows}
    for start in range(1, len(paths), options.batch):
        some = paths[start : start + options.batch]
        for name, encode in rows.items():
            clock, processor = time.perf_counter(), time.process_time()
            vectors[name].append(encode(some))
            seconds[name].append((time.perf_counter() - clock, time.process_time() - processor, len(some)))
    figures = {name: figures_of(seconds[name], seconds[PLAIN]) for name in rows}
    cosines = (np.concatenate(vectors[PLAIN]) * np.concatenate(vectors[OURS])).sum(axis=1)
    figures[OURS]["least_cosine"], figures[OURS]["mean_cosine"] = float(cosines.min()), float(cosines.mean())
    print(table(figures))
    settings = {"pictures": len(paths), "size": list(options.size), "batch": options.batch, "threads": threads}
    write_report(options.json, {"benchmark": "indexing", "settings": settings, "rows": figures})


def make_pictures(folder: Path, photographs: Path | None, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs as a camera writes them. Those that are there are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(photographs.rglob("*.jpg")) if photographs else []
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        random = np.random.default_rng(number)
        if sources:
            with Image.open(sources[number * 7 % len(sources)]) as opened:
                small = opened.convert("RGB")
        else:
            small = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        large = np.asarray(small.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        noise = random.standard_normal(large.shape[:2], dtype=np.float32)[:, :, None] * GRAIN
        partial = path.with_suffix(".partial")
        Image.fromarray((large + noise).clip(0, 255).astype(np.uint8)).save(partial, "JPEG", quality=90)
        partial.rename(path)
    return paths


def encoders(work: Path, threads: int) -> dict[str, Encode]:
    """The loop, and the way of `voken index`, with one network."""
    import torch

    from voken.encoders.cache import VectorCache, picture_vectors
    from voken.encoders.zero_shot import ZeroShotEncoder

    torch.set_num_threads(threads)
    encoder = ZeroShotEncoder()
    (work / "cache" / "vectors.sqlite3").unlink(missing_ok=True)
    cache = VectorCache(work / "cache")

    def plain(paths: list[Path]) -> np.ndarray:
        parts = []
        for start in range(0, len(paths), AT_ONCE):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + AT_ONCE]]
            parts.append(encoder.encode_images(images))
        return np.concatenate(parts)

    def ours(paths: list[Path]) -> np.ndarray:
        return picture_vectors(encoder, paths, cache=cache, workers=threads).vectors

    return {PLAIN: plain, OURS: ours}


def figures_of(measured: list[tuple[float, float, int]], plain: list[tuple[float, float, int]]) -> dict[str, Any]:
    """Rates of a row, and ratios to the plain loop."""
    clock, processor, count = (sum(values) for values in zip(*measured, strict=True))
    return {
        "pictures_per_second": count / clock,
        "processor_ms_per_picture": 1e3 * processor / count,
        "times_plain": statistics.median(theirs[0] / ours[0] for theirs, ours in zip(plain, measured, strict=True)),
        "times_plain_processor": statistics.median(
            theirs[1] / ours[1] for theirs, ours in zip(plain, measured, strict=True)
        ),
    }


def table(figures: dict[str, dict[str, Any]]) -> str:
    """A Markdown table."""
    heads = ["", "pictures/s", "× plain", "processor ms per picture", "× plain", "mean and least cosine"]
    lines = []
    for name, row in figures.items():
        cosine = f"{row['mean_cosine']:.4f}, {row['least_cosine']:.4f}" if "mean_cosine" in row else ""
        lines.append(
            [
                name,
                f"{row['pictures_per_second']:.1f}",
                f"{row['times_plain']:.2f}",
                f"{row['processor_ms_per_picture']:.0f}",
                f"{row['times_plain_processor']:.2f}",
                cosine,
            ]
        )
    return markdown_table(heads, lines)


if __name__ == "__main__":
    main()
