"""Figure 4 of the paper: queries per second against the size of the pool.

Speed does not depend on the content of vectors and sequences. They are random here, so a pool can have any size; the
encoder and the generator's shapes are the track's. The texts are the track's queries, searched one at a time, and
the systems take turns.

GRACE has no line: with our generator (see `voken_lab.systems.grace`) its identifiers are as fast as our vokens of the
same length. In the paper, GRACE is slower because its language model is larger.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voken.collection.base import Base, NumberColumn
from voken.collection.snapshot import Origin, Snapshot
from voken.config import ReadOutWeights
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder
from voken.image_tokenizer.train import train_tokenizer
from voken.inference.engine import TextEncoder as CompiledTextEncoder
from voken.inference.export import export_text_encoder
from voken.model.model import Model
from voken.search.searcher import Searcher, load_model
from voken.training.fit import make_generator
from voken_lab.evaluation.machine import Machine, processor_of
from voken_lab.reproduction.experiment import Experiment, short_digest
from voken_lab.reproduction.results import markdown_table
from voken_lab.systems.two_tower import TextEncoder

SIZES = (1_000, 10_000, 100_000, 370_000)
QUICK_SIZES = (1_000, 10_000)
BEAMS = 20
_TEXTS = 12
_TOP = 10

Search = Callable[[list[str]], object]


def _sizes(experiment: Experiment) -> tuple[int, ...]:
    return QUICK_SIZES if experiment.quick else SIZES


def key(experiment: Experiment) -> str:
    """A digest of everything that the figure depends on: the settings, the data, the sizes, the beams."""
    inputs = [experiment.config.to_dict(), experiment.fingerprint, _sizes(experiment), BEAMS]
    return short_digest(json.dumps(inputs, sort_keys=True))


def measure(experiment: Experiment, work: Path, *, rounds: int = 5) -> dict[str, Any]:
    """The figure as JSON: queries per second of our system and the exact two-tower by pool size (medians)."""
    texts = [query.text for query in experiment.queries[:_TEXTS]]
    searches = {size: _searches(experiment, work, size) for size in _sizes(experiment)}
    seconds: dict[str, dict[int, list[float]]] = {}
    for number in range(-1, rounds):  # the first round is not counted: some parts are only loaded then
        for size, systems in searches.items():
            for name, search in systems.items():
                begin = time.perf_counter()
                for text in texts:
                    search([text])
                if number >= 0:
                    per_query = (time.perf_counter() - begin) / len(texts)
                    seconds.setdefault(name, {}).setdefault(size, []).append(per_query)
        experiment.progress("figure 4", number + 2, rounds + 1)
    return {
        "figure": "figure4",
        "title": "Figure 4. Queries per second against the size of the pool",
        "track": experiment.track.name,
        "beams": BEAMS,
        "sizes": list(searches),
        "queries_per_second": {
            name: {str(size): 1 / statistics.median(times) for size, times in by_size.items()}
            for name, by_size in seconds.items()
        },
        "machine": dataclasses.asdict(Machine.here()),
    }


def as_markdown(figure: dict[str, Any]) -> str:
    """The figure as a Markdown table: one row per system, one column per size."""
    heads = ["", *(f"{size:,}" for size in figure["sizes"]), "largest / smallest"]
    rows = []
    for name, by_size in figure["queries_per_second"].items():
        speeds = [by_size[str(size)] for size in figure["sizes"]]
        rows.append([name, *(f"{speed:,.1f}" for speed in speeds), f"{speeds[-1] / speeds[0]:.2f}"])
    title = f"**{figure['title']}** — {figure['track']}, one query at a time, {figure['beams']} beams"
    note = f"Random vectors and sequences; {processor_of(figure['machine'])}."
    return "\n".join([title, "", *markdown_table(heads, rows), "", note])


def _searches(experiment: Experiment, work: Path, size: int) -> dict[str, Search]:
    from voken_lab.systems.faiss_tower import EncodedPool, FaissTower

    random = np.random.default_rng(experiment.seed)
    encoder = _text_encoder(experiment, work)
    model = load_model(_untrained_model(experiment, work))
    levels, entries = experiment.config.tokenizer.levels, experiment.config.tokenizer.codebook_size
    trie = VokenTrie.from_vokens(random.integers(0, entries, (size, levels), dtype=np.int32), entries)
    ids = NumberColumn(size)
    collection = Snapshot(Base(ids, ids, trie), Origin(Path(), model.fingerprint))
    settings = dataclasses.replace(model.search, beams=BEAMS, readout="generate")
    ours = Searcher(model, collection, settings, widen=False)
    vectors = random.standard_normal((size, experiment.pool_vectors.shape[1]), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = FaissTower.flat(EncodedPool(encoder, [str(row) for row in range(size)], vectors))
    return {
        "AVG, generate": lambda texts: ours.search(texts, _TOP),
        "two-tower, exact": lambda texts: exact.search(texts, _TOP),
    }


def _text_encoder(experiment: Experiment, work: Path) -> TextEncoder:
    """The two-tower's text encoder, in the runtime that our system uses if the encoder can be exported."""
    encoder = experiment.inputs.encoder
    if not isinstance(encoder, TwoTowerEncoder):
        return encoder
    export_text_encoder(encoder, work / "texts")
    return CompiledTextEncoder.load(work / "texts")


def _untrained_model(experiment: Experiment, work: Path) -> Path:
    """The folder of our system with real codebooks and an untrained generator, which is as fast as a trained one."""
    folder = work / "model"
    if not folder.exists():
        inputs, config = experiment.inputs, experiment.config
        tokenizer, _ = train_tokenizer(
            inputs.train.paired_vectors(),
            inputs.validation.paired_vectors(),
            dataclasses.replace(config.tokenizer, epochs=0),
            seed=experiment.seed,
            progress=experiment.progress,
        )
        generator = make_generator(inputs, tokenizer, config)
        Model(config, inputs.encoder, tokenizer, generator, config.search, {}, ReadOutWeights(0.0, 0.0)).save(folder)
    return folder
