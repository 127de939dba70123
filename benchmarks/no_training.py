"""Recall of a folder of pictures that is indexed with nothing else: no captions, no training, no model.

    python benchmarks/no_training.py --flickr8k flickr8k --stamps /usr/share/tuxpaint/stamps --json no-training.json

Each part makes a collection as `voken index FOLDER` does and searches it as `voken search` does; its pictures are those
of the part alone.

- `--flickr8k`: a captioned data set as `voken fit` reads it. The pictures of `--split` (validation); every caption of
  theirs is a query, and the pictures of its concept are right.
- `--stamps`: the stamps of Tux Paint (Debian's package tuxpaint-stamps-default). Pictures are the PNG files that are in
  no folder `cartoon`, `alphabets` or `numbers`, have a text beside them, whose first line is the name, and a side of
  more than `--over` pixels (48). Every name is a query, and all pictures of that name are right. Nothing was chosen on
  them.

It also measures the time to the first answer, from the files alone, and the time of a second `voken index`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from report import markdown_table, option_parser, show_progress, write_report
from voken import Collection
from voken.data.captions import CaptionedImage, Dataset, read_dataset

CUTS = (1, 5, 10)
READ_OUTS = ("vector", "voken", "generate")
NO_PHOTOGRAPHS = {"cartoon", "alphabets", "numbers"}


def stamps(folder: Path, over: int) -> Dataset:
    """Tux Paint's stamps, with the name as the caption and as the concept."""
    images = []
    for path in sorted(folder.rglob("*.png")):
        names = path.with_suffix(".txt")
        if NO_PHOTOGRAPHS.isdisjoint(path.relative_to(folder).parts) and names.is_file():
            with Image.open(path) as image:
                if max(image.size) <= over:
                    continue
            name = names.read_text(encoding="utf-8").splitlines()[0].strip()
            images.append(CaptionedImage(path.relative_to(folder).as_posix(), path, (name,), concept=name))
    return Dataset("stamps", folder, tuple(images))


def copied(dataset: Dataset, folder: Path) -> Path:
    """The pictures of a data set in a folder of their own, without captions: numbers for names."""
    folder.mkdir(parents=True)
    for number, image in enumerate(dataset.images):
        shutil.copyfile(image.path, folder / f"{number:05}{image.path.suffix}")
    return folder


def recalls(dataset: Dataset, folder: Path, readout: str) -> tuple[int, list[float]]:
    """The number of queries, and the percentage of them that have a right picture among the first 1, 5 and 10 hits."""
    concepts = {f"{number:05}{image.path.suffix}": image.concept for number, image in enumerate(dataset.images)}
    queries = list(dict.fromkeys((text, image.concept) for image in dataset.images for text in image.captions))
    with Collection.open(folder, readout=readout, threads=1) as photos:
        answers = photos.search_many([text for text, _ in queries], max(CUTS))
    right = [
        [concepts[hit.image_id] == concept for hit in hits] for (_, concept), hits in zip(queries, answers, strict=True)
    ]
    return len(queries), [100 * sum(any(row[:cut]) for row in right) / len(right) for cut in CUTS]


def measure(dataset: Dataset, work: Path, encoder: str) -> dict[str, Any]:
    """Index a data set's pictures, and measure times and recalls."""
    folder = copied(dataset, work)
    start = time.perf_counter()
    report = Collection.index(folder, encoder=encoder, threads=1, progress=show_progress)
    with Collection.open(folder, threads=1) as photos:
        photos.search("a dog on a beach")
    first_answer = time.perf_counter() - start
    start = time.perf_counter()
    Collection.index(folder, threads=1)
    second = time.perf_counter() - start
    rows = {}
    for readout in READ_OUTS:
        queries, rows[readout] = recalls(dataset, folder, readout)
    return {
        "pictures": report.pictures,
        "left out": len(report.skipped),
        "queries": queries,
        "seconds to the first answer": first_answer,
        "seconds of a second index": second,
        "bytes per picture": report.bytes_per_picture,
        "recalls": rows,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """One row per set and read-out."""
    rows: list[Sequence[str]] = []
    for name, result in results.items():
        for readout, values in result["recalls"].items():
            recall = " / ".join(f"{value:.1f}" for value in values)
            times = f"{result['seconds to the first answer']:.0f} s", f"{result['seconds of a second index']:.2f} s"
            rows.append([name, str(result["pictures"]), str(result["queries"]), readout, recall, *times])
    heading = ["pictures of", "pictures", "queries", "read-out", "R@1 / 5 / 10", "first answer", "second index"]
    return markdown_table(heading, rows)


def main() -> None:
    """Measure the sets that are given."""
    parser = option_parser(__doc__)
    parser.add_argument("--flickr8k", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--over", type=int, default=48)
    parser.add_argument("--encoder", default="photos")
    parser.add_argument("--work", type=Path, default=Path("runs/no-training"))
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    results = {}
    if arguments.stamps is not None:
        results["stamps"] = measure(
            stamps(arguments.stamps, arguments.over), arguments.work / "stamps", arguments.encoder
        )
    if arguments.flickr8k is not None:
        split = read_dataset(arguments.flickr8k).split(arguments.split)
        results[f"Flickr8k {arguments.split}"] = measure(split, arguments.work / "flickr8k", arguments.encoder)
    print(table(results))
    write_report(arguments.json, results)


if __name__ == "__main__":
    main()
