"""Figure 4 of the paper: queries per second against the size of the pool.

Speed does not depend on the content of vectors and sequences. They are random here, so a pool can have any size; the
encoder and the generator's shapes are the track's. The texts are the track's queries, searched one at a time, and
the systems take turns.

GRACE has two lines, for its shortest and its longest identifiers, both of which grow with the pool: structured ones (a
balanced tree here) and strings. Its generator is ours with GRACE's settings (see `voken_lab.systems.grace`), and it is
searched as ours is. In the paper, GRACE is slower than AVG because its language model is larger.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voken.collection.base import Base, NumberColumn
from voken.collection.snapshot import Origin, Snapshot
from voken.config import ReadOutWeights, RunConfig
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder
from voken.image_tokenizer.train import sized_for, train_tokenizer
from voken.inference.engine import TextEncoder as CompiledTextEncoder
from voken.inference.export import export_text_encoder
from voken.model.model import Model
from voken.search.searcher import Searcher, load_model
from voken.training.fit import make_generator
from voken_lab.evaluation.machine import Machine, processor_of
from voken_lab.reproduction.experiment import Experiment, short_digest
from voken_lab.reproduction.results import markdown_table
from voken_lab.systems.grace import Identifiers, Scheme, grace_settings, identifiers
from voken_lab.systems.pictures import SearchSystem
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
    grace = dataclasses.asdict(grace_settings())
    inputs = [experiment.config.to_dict(), grace, experiment.fingerprint, _sizes(experiment), BEAMS]
    return short_digest(json.dumps(inputs, sort_keys=True))


def measure(experiment: Experiment, work: Path, *, rounds: int = 5) -> dict[str, Any]:
    """The figure as JSON: queries per second of our system, GRACE and the exact two-tower by pool size (medians)."""
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
    config = experiment.config
    tokenizer = sized_for(config.tokenizer, len(experiment.inputs.train.images))
    vokens = random.integers(0, tokenizer.codebook_size, (size, tokenizer.levels), dtype=np.int32)
    ours = _searcher(experiment, config, Identifiers(vokens, tokenizer.codebook_size), work)
    grace = {
        f"GRACE ({scheme} id)": _searcher(
            experiment, dataclasses.replace(config, generator=grace_settings()), _identifiers(scheme, size), work
        )
        for scheme in ("structured", "string")
    }
    vectors = random.standard_normal((size, experiment.pool_vectors.shape[1]), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = FaissTower.flat(EncodedPool(encoder, [str(row) for row in range(size)], vectors))
    systems: dict[str, SearchSystem] = {"AVG, generate": ours, **grace, "two-tower, exact": exact}
    return {name: partial(system.search, k=_TOP) for name, system in systems.items()}


def _identifiers(scheme: Scheme, size: int) -> Identifiers:
    """GRACE's identifiers of a pool without clusters: a structured one is a path in a balanced tree."""
    if scheme == "structured":
        children = min(256, max(2, math.ceil(size**0.5)))
        levels = max(2, math.ceil(round(math.log(size, children), 6)))
        digits = np.arange(size)[:, None] // children ** np.arange(levels - 1, -1, -1) % children
        return Identifiers(digits.astype(np.int32), children)
    return identifiers(scheme, np.zeros((size, 1), np.float32), seed=0)


def _searcher(experiment: Experiment, config: RunConfig, pool: Identifiers, work: Path) -> Searcher:
    """A search of the pool's sequences with an untrained generator of these settings."""
    tokenizer = dataclasses.replace(
        config.tokenizer, levels=pool.sequences.shape[1], codebook_size=pool.codebook_size, epochs=0
    )
    model = load_model(_untrained_model(experiment, dataclasses.replace(config, tokenizer=tokenizer), work))
    ids = NumberColumn(len(pool.sequences))
    trie = VokenTrie.from_vokens(pool.sequences, pool.codebook_size)
    collection = Snapshot(Base(ids, ids, trie), Origin(Path(), model.fingerprint))
    settings = dataclasses.replace(model.search, beams=BEAMS, readout="generate")
    return Searcher(model, collection, settings, widen=False)


def _text_encoder(experiment: Experiment, work: Path) -> TextEncoder:
    """The two-tower's text encoder, in the runtime that our system uses if the encoder can be exported."""
    encoder = experiment.inputs.encoder
    if not isinstance(encoder, TwoTowerEncoder):
        return encoder
    export_text_encoder(encoder, work / "texts")
    return CompiledTextEncoder.load(work / "texts")


def _untrained_model(experiment: Experiment, config: RunConfig, work: Path) -> Path:
    """The folder of a model with real codebooks and an untrained generator, which is as fast as a trained one."""
    folder = work / f"model-{short_digest(json.dumps(config.to_dict(), sort_keys=True))}"
    if not folder.exists():
        inputs = experiment.inputs
        tokenizer, _ = train_tokenizer(
            inputs.train.paired_vectors(),
            inputs.validation.paired_vectors(),
            config.tokenizer,
            seed=experiment.seed,
            progress=experiment.progress,
        )
        generator = make_generator(inputs, tokenizer, config)
        Model(config, inputs.encoder, tokenizer, generator, config.search, {}, ReadOutWeights(0.0, 0.0)).save(folder)
    return folder
