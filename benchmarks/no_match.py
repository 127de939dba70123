"""Does a search know when nothing matches? Measures the confidence of hits on concepts that training never saw.

Every caption of the test split is searched twice: in a pool that holds its pictures, and in the same pool without them
(a collection built without these pictures). A hit is right if its picture shows the caption's concept. The first case
has the weight of the calibration's prior, half by default. `voken.search.searcher.Searcher` searches, with the saved
engine if the model has one; the first ten hits count.

  right, confidence   of first hits: the share that was right, and the share that the confidence promised
  ECE                 expected calibration error in ten bins of equal width, of first hits and of all ten
  AUROC               the chance that a query whose pictures are in the pool has a surer first hit than a query whose
                      pictures are not; beside it the same by the top cosine of the exact two-tower and by the top
                      log-probability. Taking the right picture away changes the first hit only if it was that
                      picture: with R@1 of 0.12, no AUROC can be far above 0.5 + 0.12 / 2
  thresholds          for each stated precision, the threshold from validation and its effect here. Recall is the share
                      of queries with pictures in the pool that keep a right hit; silence is the share of the other
                      queries that keep no hit. "–": no threshold reached the precision on validation

Pools of --sizes hold one picture of each of that many test concepts. They show how calibration drifts as the pool grows
beyond the validation pool, whose size is in the table's footer. --all-pictures adds a pool of all test pictures, which
is larger but also has more right pictures per query.

    voken data emoji emoji && voken fit emoji --out emoji.model
    python benchmarks/no_match.py emoji.model emoji --all-pictures --json no-match-emoji.json
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from report import conditions, markdown_table, option_parser, show_progress, write_report
from voken.api import use_threads
from voken.collection.snapshot import Snapshot
from voken.config import ReadOutName
from voken.data.captions import Dataset, read_dataset
from voken.encoders.cache import VectorCache, picture_vectors
from voken.errors import ConfigError, EmptyDataError
from voken.model.calibration import Calibration, ReadOutCalibration
from voken.model.model import Model
from voken.search.hit import Hit
from voken.search.searcher import Searcher, SearchModel, load_model
from voken.shapes import Bool, Float
from voken.training.choose import HITS
from voken_lab.evaluation.protocol import Pool, Query, draw_queries, pool_of, queries_of

READOUTS: tuple[ReadOutName, ...] = ("generate", "voken", "vector")
BINS = 10


@dataclass(frozen=True, eq=False)
class AnswerArrays:
    """Hits, one row per query and case; the case with the right pictures in the pool comes first."""

    confidence: Float[np.ndarray, "answers hits"]
    is_right: Bool[np.ndarray, "answers hits"]
    is_hit: Bool[np.ndarray, "answers hits"]
    score: Float[np.ndarray, "answers hits"]
    has_right_pictures: Bool[np.ndarray, " answers"]

    @property
    def first_confidence(self) -> Float[np.ndarray, " answers"]:
        """Confidence of the first hit, 0 without a hit."""
        confidence: np.ndarray = np.where(self.is_hit[:, 0], self.confidence[:, 0], 0.0)
        return confidence

    def weights(self, prior: float) -> Float[np.ndarray, "answers hits"]:
        """The weight of every hit."""
        weights: np.ndarray = np.where(self.has_right_pictures, prior, 1 - prior)[:, None] * self.is_hit
        return weights


@dataclass(frozen=True)
class Bin:
    """Hits of nearly one confidence. Shares are weighted."""

    hits: int
    confidence: float
    right: float
    weight: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Search, print the tables, write JSON."""
    parser = option_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 400, 1000], help="too large ones are left out")
    parser.add_argument("--all-pictures", action="store_true", help="add a pool of all pictures of the split")
    parser.add_argument("--readouts", nargs="+", choices=READOUTS, default=list(READOUTS))
    parser.add_argument("--precisions", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9])
    parser.add_argument("--queries", type=int, default=1000, help="the largest number per pool, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0, help="draws pools and queries")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--cache", type=Path, default=Path("runs/no-match/vectors"), help="vectors of pictures")
    options = parser.parse_args(arguments)
    use_threads(options.threads)
    model = Model.load(options.model)
    searched = load_model(options.model, threads=options.threads)
    calibration = searched.calibration
    if calibration is None:
        reason = model.validation.get("calibration", {}).get("none", "Its version of voken did not calibrate models.")
        raise ConfigError(f"{options.model} is not calibrated. {reason}")
    split = read_dataset(options.dataset).split(options.split)
    encoded = picture_vectors(
        model.encoder, [image.path for image in split.images], cache=VectorCache(options.cache), progress=show_progress
    )
    images = tuple(split.images[row] for row in encoded.rows)
    rows: list[dict[str, Any]] = []
    for name, members in pools(Dataset(split.name, split.root, images), options):
        pool = Dataset(split.name, split.root, tuple(images[row] for row in members))
        queries = queries_of(split, Pool(tuple(image.image_id for image in pool.images)))
        queries = draw_queries(queries, options.queries, options.seed)
        experiment = Experiment(model, searched, pool, encoded.vectors[members], queries)
        answers = experiment.search(tuple(dict.fromkeys(["generate", *options.readouts])))
        for readout in options.readouts:
            rows.append({"pool": name} | figures_of(experiment, answers, readout, calibration, options.precisions))
        report = conditions() | {
            "benchmark": "no_match",
            "workload": {"dataset": split.name, "split": options.split, "model": model.config.name}
            | {key: getattr(options, key) for key in ("queries", "seed", "precisions")},
            "calibration": dataclasses.asdict(calibration),
            "rows": rows,
        }
        write_report(options.json, report)
    print(tables(report))


def pools(images: Dataset, options: argparse.Namespace) -> list[tuple[str, np.ndarray]]:
    """Rows of the pictures of each pool. A smaller one is part of a larger one."""
    drawn = set(pool_of(images, one_per_concept=True, seed=options.seed).image_ids)
    one_each = np.array([row for row, image in enumerate(images.images) if image.image_id in drawn])
    order = np.random.default_rng(options.seed).permutation(len(one_each))
    named_pools = [(f"{size:,}", np.sort(one_each[order[:size]])) for size in options.sizes if size <= len(one_each)]
    if options.all_pictures:
        named_pools.append((f"{len(images):,}, all pictures", np.arange(len(images))))
    if not named_pools:
        raise EmptyDataError(
            f"{images.name}: {len(one_each)} concepts are too few for a pool of {min(options.sizes)} with one picture "
            "each. Give smaller --sizes."
        )
    return named_pools


class Experiment:
    """A pool, and the queries that are searched in it with and without their right pictures."""

    def __init__(
        self,
        model: Model,
        searched: SearchModel,
        images: Dataset,
        vectors: Float[np.ndarray, "pictures dim"],
        queries: Sequence[Query],
    ) -> None:
        self.model = model
        self.searched = searched
        self.images = images
        self.queries = tuple(queries)
        self._vectors = vectors
        ids = [image.image_id for image in images.images]
        self.relevant = np.array([[name in query.relevant for name in ids] for query in queries])

    def search(self, readouts: Sequence[ReadOutName]) -> dict[ReadOutName, AnswerArrays]:
        """The hits of every query in both cases."""
        whole = self._snapshot(np.full(len(self.images), True))
        every = range(len(self.queries))
        answers = {readout: [*self._search(whole, readout, every), *([] for _ in every)] for readout in readouts}
        # Queries with the same right pictures share one pool.
        rows_by_relevant: dict[frozenset[str], list[int]] = {}
        for row, query in enumerate(self.queries):
            rows_by_relevant.setdefault(query.relevant, []).append(row)
        for count, rows in enumerate(rows_by_relevant.values(), start=1):
            others = ~self.relevant[rows[0]]
            if others.any():  # an empty collection has no hits
                pool = self._snapshot(others)
                for readout in readouts:
                    for row, hits in zip(rows, self._search(pool, readout, rows), strict=True):
                        answers[readout][len(self.queries) + row] = hits
            show_progress("without the right pictures", count, len(rows_by_relevant))
        return {readout: self._arrays(hits) for readout, hits in answers.items()}

    def _snapshot(self, members: Bool[np.ndarray, " pictures"]) -> Snapshot:
        images = tuple(itertools.compress(self.images.images, members))
        return Snapshot.of_vectors(dataclasses.replace(self.images, images=images), self._vectors[members], self.model)

    def _search(self, pool: Snapshot, readout: ReadOutName, rows: Sequence[int]) -> list[list[Hit]]:
        search = dataclasses.replace(self.searched.search, readout=readout)
        searcher = Searcher(self.searched, pool, search, widen=False)
        return searcher.search([self.queries[row].text for row in rows], HITS)

    def _arrays(self, answers: Sequence[Sequence[Hit]]) -> AnswerArrays:
        shape = (len(answers), HITS)
        confidence, score = np.zeros(shape), np.full(shape, -np.inf)
        right, is_hit = np.zeros(shape, bool), np.zeros(shape, bool)
        for row, answer in enumerate(answers):
            relevant = self.queries[row % len(self.queries)].relevant
            for place, hit in enumerate(answer):
                assert hit.confidence is not None
                confidence[row, place], score[row, place] = hit.confidence, hit.score
                right[row, place], is_hit[row, place] = hit.image_id in relevant, True
        return AnswerArrays(confidence, right, is_hit, score, np.arange(len(answers)) < len(self.queries))

    def top_cosines(self) -> Float[np.ndarray, " answers"]:
        """Greatest cosines of the exact two-tower, which uses the encoder's vector of the query."""
        texts = self.model.encoder.encode_texts([query.text for query in self.queries])
        cosine = texts @ self._vectors.T
        without = np.where(self.relevant, -np.inf, cosine)
        return np.concatenate([cosine.max(1), without.max(1)])


def figures_of(
    experiment: Experiment,
    answers_by_readout: dict[ReadOutName, AnswerArrays],
    readout: ReadOutName,
    calibration: Calibration,
    precisions: Sequence[float],
) -> dict[str, Any]:
    """Every figure of one read-out."""
    answers = answers_by_readout[readout]
    weights = answers.weights(calibration.prior)
    (readout_calibration,) = (each for each in calibration.readouts if each.readout == readout)
    bins = reliability(answers.confidence, answers.is_right, weights)
    first_bins = reliability(answers.confidence[:, :1], answers.is_right[:, :1], weights[:, :1])
    first = weights[:, 0] / weights[:, 0].sum()
    return {
        "pictures": len(experiment.images),
        "right_pictures": float(experiment.relevant.sum(1).mean()),
        "readout": readout,
        "queries": len(experiment.queries),
        "recall@1": float(answers.is_right[answers.has_right_pictures, 0].mean()),
        "first_right": float(first @ answers.is_right[:, 0]),
        "first_confidence": float(first @ answers.confidence[:, 0]),
        "first_ece": calibration_error(first_bins),
        "ece": calibration_error(bins),
        "auroc": {
            "confidence": auroc(answers.first_confidence, answers.has_right_pictures),
            "two-tower cosine": auroc(experiment.top_cosines(), answers.has_right_pictures),
            "log-probability": auroc(answers_by_readout["generate"].score[:, 0], answers.has_right_pictures),
        },
        "auroc_first_right": auroc(answers.first_confidence, answers.is_right[:, 0]),
        "bins": [dataclasses.asdict(group) for group in bins],
        "falls_with_score": bool(np.all(np.diff(answers.confidence, axis=1) <= 1e-12, where=answers.is_hit[:, 1:])),
        "thresholds": [
            at_precision(answers, weights, readout_calibration, stated)
            for stated in sorted({*precisions, *(threshold.precision for threshold in readout_calibration.thresholds)})
        ],
    }


def at_precision(
    answers: AnswerArrays, weights: Float[np.ndarray, "answers hits"], calibration: ReadOutCalibration, stated: float
) -> dict[str, Any]:
    """The hits above the threshold of a stated precision."""
    threshold = next((at.confidence for at in calibration.thresholds if at.precision >= stated), None)
    if threshold is None:
        return {"stated": stated, "threshold": None}
    above: np.ndarray = answers.is_hit & (answers.confidence >= threshold)
    total = (weights * above).sum()
    return {
        "stated": stated,
        "threshold": threshold,
        "hits": int(above.sum()),
        "precision": float((weights * above * answers.is_right).sum() / total) if total else None,
        "recall": float((above & answers.is_right).any(1)[answers.has_right_pictures].mean()),
        "silence": float(1 - np.any(above, axis=1)[~answers.has_right_pictures].mean()),
    }


def reliability(
    confidence: Float[np.ndarray, "answers hits"],
    right: Bool[np.ndarray, "answers hits"],
    weights: Float[np.ndarray, "answers hits"],
) -> list[Bin]:
    """Ten bins of equal width, without the empty bins. Hits without weight do not count."""
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        inside = weights * (place == number)
        total = inside.sum()
        if total:
            mean, share = (inside * confidence).sum() / total, (inside * right).sum() / total
            bins.append(Bin(int((inside > 0).sum()), float(mean), float(share), float(total / weights.sum())))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean difference of confidence and share of right hits over the bins, by their weight."""
    return sum(group.weight * abs(group.confidence - group.right) for group in bins)


def auroc(score: Float[np.ndarray, " cases"], positive: Bool[np.ndarray, " cases"]) -> float | None:
    """The chance that a positive case scores above a negative one; a tie counts half. None without either kind."""
    positives, negatives = np.asarray(score)[positive], np.sort(np.asarray(score)[~positive])
    if not len(positives) or not len(negatives):
        return None
    below = (np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")) / 2
    return float(below.mean() / len(negatives))


def tables(report: dict[str, Any]) -> str:
    """Three tables in Markdown, the calibration and the conditions."""
    heads = ["pool", "read-out", "queries", "R@1", "first hit right", "its confidence", "its ECE", "ECE of ten hits"]
    heads += ["AUROC by confidence", "by top cosine", "by log-probability"]
    lines = []
    for row in report["rows"]:
        by = row["auroc"]
        figures = [row["recall@1"], row["first_right"], row["first_confidence"], row["first_ece"], row["ece"]]
        figures += [by["confidence"], by["two-tower cosine"], by["log-probability"]]
        lines.append([row["pool"], row["readout"], f"{row['queries']:,}", *map(_figure, figures)])
    recall_table = markdown_table(heads, lines, text_columns=2)

    heads = [
        "pool",
        "read-out",
        "stated precision",
        "threshold",
        "measured precision",
        "hits kept",
        "recall",
        "silence",
    ]
    lines = []
    for row in report["rows"]:
        for at in row["thresholds"]:
            hits = f"{at['hits']:,}" if "hits" in at else "–"
            figures = [_figure(at.get(name)) for name in ("threshold", "precision", "recall", "silence")]
            lines.append([row["pool"], row["readout"], f"{at['stated']:g}", *figures[:2], hits, *figures[2:]])
    threshold_table = markdown_table(heads, lines, text_columns=2)

    lines = []
    for row in report["rows"]:
        for group in row["bins"]:
            low = min(int(group["confidence"] * BINS), BINS - 1) / BINS
            cells = [row["pool"], row["readout"], f"{low:.1f} – {low + 1 / BINS:.1f}", f"{group['hits']:,}"]
            lines.append([*cells, _figure(group["confidence"]), _figure(group["right"])])
    heads = ["pool", "read-out", "confidence", "hits", "mean confidence", "right"]
    bin_table = markdown_table(heads, lines, text_columns=2)

    calibration, machine = report["calibration"], report["machine"]
    threads = f", {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}" if machine["threads"] else ""
    footer = (
        f"Calibrated on {calibration['queries']:,} queries of {calibration['concepts']:,} concepts over "
        f"{calibration['pool']:,} pictures, {calibration['right']:.2f} right per query, {calibration['beams']} beams; "
        f"prior {calibration['prior']:g}. {machine['cpu']}, {machine['cores']} cores{threads}, "
        f"torch {machine['torch']}."
    )
    return "\n\n".join([recall_table, threshold_table, bin_table, f"{footer}\n`{report['command']}`"])


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
