"""Choose on validation what does not depend on a query: the corrections of all scores, and the memory's weight.

The corrections (`voken.decoding.node_bias`) are chosen together, on the exact scores of all sequences of the
validation pictures, so the choice does not depend on a number of beams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from voken.config import ReadOutWeights, SearchConfig
from voken.decoding.beam import beam_search
from voken.decoding.node_bias import measure_prior, sequence_prior, squared_lengths
from voken.decoding.trie import VokenTrie
from voken.generator.interface import Generator
from voken.generator.lite import CaptionMemory, LiteGenerator
from voken.generator.train import ValidationQueries, point_scores, validation_ranks, validation_recall
from voken.metrics import first_relevant, mean_recall, recall_at
from voken.model.model import Model
from voken.search.corrections import Corrections
from voken.shapes import Bool, Float

_NORM_WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
"""Weights that are tried, in units of the ratio of two standard deviations over the pictures: of a query's scores, and
of the squared lengths. For scores s·<t, z> with a unit t that ratio is about s, whatever the generator's scale is."""
_PRIOR_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_STEP = 2**0.5
"""Factor by which a grid goes on beyond its last weight."""
_MOST_STEPS = 20
_SCORES = 200_000
"""Largest queries × sequences of the exact scores. Each takes a step of the model for every level."""
_LEAST_QUERIES = 100
_LOGITS_AT_ONCE = 1 << 22
"""Largest queries × sequences × N in one step: 16 MB of float32."""
_PRIOR_CAPTIONS = 64
"""Training captions with which a prior is measured. Every indexed sequence is scored for each of them, so more are
expensive in a search."""
_MEMORY_SHARES = (0.0, 0.5, 1.0)
_MEMORY_BEAMS = 20
REPORTED_BEAMS = (10, 20, 50, 100)
_REPORTED_QUERIES = 250


@dataclass(frozen=True, eq=False)
class ExactScores:
    """The scores of all validation pictures for some validation queries, and the parts that corrections weigh."""

    log_prob: Float[np.ndarray, "queries pictures"]
    relevant: Bool[np.ndarray, "queries pictures"]
    squared_length: Float[np.ndarray, " pictures"] | None = None
    """None if the codebooks' entries do not sum to vectors."""
    prior: Float[np.ndarray, " pictures"] | None = None
    """None if the generator was not trained: then its prior is flat."""

    @property
    def norm_unit(self) -> float:
        """The deviation of a query's scores over the deviation of the squared lengths; 0 if the lengths are equal."""
        if self.squared_length is None or not len(self.log_prob):
            return 0.0
        spread = float(self.squared_length.std())
        return float(np.median(self.log_prob.std(axis=1))) / spread if spread > 1e-9 else 0.0

    def recall(self, norm: float, prior: float) -> float:
        """The mean of R@1, R@5 and R@10 with these weights."""
        scores = self.log_prob
        if norm:
            assert self.squared_length is not None
            scores = scores - norm * self.squared_length
        if prior:
            assert self.prior is not None
            scores = scores - prior * self.prior
        return mean_recall(first_relevant(scores, self.relevant))


class ScoredModel(Protocol):
    """The part of a `Model` that scores sequences."""

    @property
    def generator(self) -> Generator:
        """Writes the sequences."""
        ...

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"] | None:
        """The entries that sum to the vectors of pictures, if they do."""
        ...


def exact_scores(
    model: ScoredModel, validation: ValidationQueries, prior_captions: Sequence[str], *, seed: int = 0
) -> ExactScores:
    """Score all validation pictures for a draw of the queries. Without captions no prior is measured."""
    generator = model.generator
    trie = VokenTrie.from_vokens(validation.vokens, generator.codebook_size)
    leaves = trie.leaf_of(validation.vokens)
    relevant = validation.is_relevant
    codebooks = model.codebooks
    lengths = None if codebooks is None else squared_lengths(codebooks, validation.vokens)
    if isinstance(generator, LiteGenerator) and generator.ranks_by_point and not prior_captions:
        # up to a term of each query, which no ranking sees
        return ExactScores(point_scores(generator, validation, length_weight=0.0), relevant, lengths)
    drawn = np.arange(len(validation.texts))
    most = max(_LEAST_QUERIES, _SCORES // trie.sequences)
    if len(drawn) > most:
        drawn = np.sort(np.random.default_rng(seed).choice(drawn, most, replace=False))
    log_prob = np.zeros((len(drawn), trie.sequences), np.float32)
    at_once = max(1, _LOGITS_AT_ONCE // (trie.sequences * trie.codebook_size))
    for start in range(0, len(drawn), at_once):
        texts = [validation.texts[row] for row in drawn[start : start + at_once]]
        beams = beam_search(generator, trie, texts, trie.sequences)
        np.put_along_axis(log_prob[start : start + at_once], beams.leaf, beams.log_prob, 1)
    prior = None
    if prior_captions:
        prior = sequence_prior(measure_prior(generator, prior_captions, trie), trie)[leaves]
    return ExactScores(log_prob[:, leaves], relevant[drawn], lengths, prior)


def choose_corrections(search: SearchConfig, scores: ExactScores) -> tuple[ReadOutWeights, dict[str, Any]]:
    """The weights of both corrections with the best validation recall; if equal, the smaller ones.

    A weight that is set in `search` is not changed. The second value is a report, ready for JSON.
    """
    if not len(scores.relevant):
        return search.weights(ReadOutWeights(norm=0.0, prior=0.0)), {}
    unit = scores.norm_unit
    norms = [search.norm_weight or 0.0]
    if search.norm_weight is None:
        norms = [float(f"{unit * weight:.4g}") for weight in _NORM_WEIGHTS] if unit else [0.0]
    priors = [search.prior_weight or 0.0]
    if search.prior_weight is None:
        priors = list(_PRIOR_WEIGHTS) if scores.prior is not None else [0.0]
    recalls: dict[tuple[float, float], float] = {}
    for _ in range(_MOST_STEPS):
        for pair in ((norm, prior) for prior in priors for norm in norms):
            if pair not in recalls:
                recalls[pair] = scores.recall(*pair)
        norm, prior = max(recalls, key=lambda pair: (recalls[pair], -pair[0] - pair[1]))
        at_edge = False
        for grid, best, pinned in ((norms, norm, search.norm_weight), (priors, prior, search.prior_weight)):
            if pinned is None and best and best == grid[-1]:
                grid.append(best * _STEP)
                at_edge = True
        if not at_edge:
            break
    report = {
        "queries": len(scores.relevant),
        "norm_unit": unit,
        "recalls": [
            {"norm": norm, "prior": prior, "recall": recall} for (norm, prior), recall in sorted(recalls.items())
        ],
    }
    return search.weights(ReadOutWeights(norm=norm, prior=prior)), report


def prior_captions(captions: Sequence[str], seed: int) -> tuple[str, ...]:
    """The training captions with which a model's prior is measured, drawn by `seed`."""
    drawn = np.random.default_rng(seed).permutation(len(captions))[:_PRIOR_CAPTIONS]
    return tuple(captions[row] for row in sorted(drawn.tolist()))


def choose_memory_weight(generator: LiteGenerator, validation: ValidationQueries) -> dict[str, float]:
    """Set the generator's memory weight to the share of it (none, half or all) with the best validation recall.

    A memory must be better than none by two standard errors of the difference over queries: it takes more bytes than
    all vokens, and a gain by chance on validation is a loss elsewhere. A memory of no weight is dropped. Returns the
    recalls by weight.
    """
    config = generator.config
    if not (config.memory_weight and len(generator.memory_vectors) and validation.texts):
        return {}
    found = {}
    for share in _MEMORY_SHARES:
        weight = share * config.memory_weight
        generator.config = replace(config, memory_weight=weight)
        ranks = validation_ranks(generator, validation, _MEMORY_BEAMS)
        found[weight] = np.mean([recall_at(ranks, k) for k in (1, 5, 10)], axis=0)
    helpful = {
        weight: recalls for weight, recalls in found.items() if not weight or _surely_better(recalls, found[0.0])
    }
    best = max(helpful, key=lambda weight: (helpful[weight].mean(), -weight))
    generator.config = replace(config, memory_weight=best)
    if not best:
        vectors, pictures = generator.memory_vectors[:0], generator.memory_pictures[:0]
        generator.memorize(CaptionMemory([], vectors.cpu().numpy(), pictures.cpu().numpy(), {}))
    return {f"{weight:g}": float(recalls.mean()) for weight, recalls in found.items()}


def _surely_better(recalls: Float[np.ndarray, " queries"], others: Float[np.ndarray, " queries"]) -> bool:
    gains = recalls - others
    return bool(gains.mean() > 2 * gains.std() / len(gains) ** 0.5)


def recall_by_beams(
    model: Model, validation: ValidationQueries, corrections: Corrections
) -> Iterator[tuple[int, float]]:
    """The validation recall with each of `REPORTED_BEAMS`, as long as there are so many sequences, for 250 queries."""
    shown = np.unique(np.linspace(0, len(validation.texts) - 1, _REPORTED_QUERIES).astype(np.int64))
    answers = validation.relevant[np.isin(validation.relevant[:, 0], shown)]
    relevant = np.stack([np.searchsorted(shown, answers[:, 0]), answers[:, 1]], 1)
    validation = replace(validation, texts=[validation.texts[row] for row in shown], relevant=relevant)
    sequences = len(np.unique(validation.vokens, axis=0))
    for beams in REPORTED_BEAMS:
        if beams == REPORTED_BEAMS[0] or beams < sequences:
            yield beams, validation_recall(model.generator, validation, beams, bias=corrections.of)
