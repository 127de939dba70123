"""Recall of the encoder without training ("photos") on a captioned data set: exact search, every caption a query.

    python benchmarks/zero_shot.py flickr8k --split validation --json zero-shot.json

The data set is a folder as `voken fit` reads it. Nothing is trained, so any split can be measured; choose settings on
one and report another. Pictures that share a concept are all right answers to its captions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from report import markdown_table, option_parser, show_progress, write_report
from voken.data.captions import read_dataset
from voken.encoders.cache import VectorCache, picture_vectors
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.metrics import first_relevant_by_product, recall_at
from voken.training.sides import side_of


def main() -> None:
    """Encode pictures and captions, rank, and print the recalls."""
    parser = option_parser(__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--work", type=Path, default=Path("runs/zero-shot"))
    arguments = parser.parse_args()
    split = read_dataset(arguments.dataset).split(arguments.split)
    encoder = ZeroShotEncoder()
    paths = [image.path for image in split.images]
    cache = VectorCache(arguments.work / "vectors")
    encoded = picture_vectors(encoder, paths, cache=cache, progress=show_progress)
    images = [split.images[row] for row in encoded.rows]
    side = side_of(images, encoded.vectors, encoder.encode_texts)
    queries = np.unique(np.stack([side.pairs[:, 1], side.concepts[side.pairs[:, 0]]], axis=1), axis=0)
    answers = np.argwhere(queries[:, 1:] == side.concepts)
    first = first_relevant_by_product(side.texts[queries[:, 0]], side.images, answers)
    recalls = {f"R@{cutoff}": 100 * float(recall_at(first, cutoff).mean()) for cutoff in (1, 5, 10)}
    print(f"{len(images)} pictures, {len(queries)} queries")
    print(markdown_table(["encoder", *recalls], [[encoder.name, *(f"{value:.1f}" for value in recalls.values())]]))
    write_report(arguments.json, {"pictures": len(images), "queries": len(queries), "recalls": recalls})


if __name__ == "__main__":
    main()
