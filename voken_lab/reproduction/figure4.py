"""Figure 4 of the paper: queries a second against the size of the pool.

Speed does not depend on what vectors and sequences say, so these are random, and any pool size can be had; the
encoder and the generator's shapes are the track's. Texts are the track's queries, one at a time. Systems take turns.

GRACE has no line: its identifiers on our generator (see `voken_lab.systems.grace`) are as fast as our vokens of
the same length. In the paper it is slower for its larger language model.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voken.collection.base import Base, NumberColumn
from voken.collection.snapshot import Origin, Snapshot
from voken.decoding.trie import VokenTrie
from voken.encoders.two_tower import TwoTowerEncoder
from voken.image_tokenizer.train import train_tokenizer
from voken.inference.export import export_text_encoder
from voken.inference.text_encoder import TextEncoder as CompiledTextEncoder
from voken.model.model import Model
from voken.search.searcher import Searcher, load_model
from voken.training.fit import make_generator
from voken_lab.evaluation.machine import Machine, processor_of
from voken_lab.reproduction.arena import Arena, short_digest
from voken_lab.reproduction.tables import markdown_row
from voken_lab.systems.two_tower import TextEncoder

SIZES = (1_000, 10_000, 100_000, 370_000)
QUICK_SIZES = (1_000, 10_000)
BEAMS = 20
_TEXTS = 12
_TOP = 10

Search = Callable[[list[str]], object]


def key(arena: Arena, *, quick: bool) -> str:
    """Changes with whatever changes the figure: the settings, the data, the sizes."""
    said = [arena.config.to_dict(), arena.fingerprint, QUICK_SIZES if quick else SIZES, BEAMS]
    return short_digest(json.dumps(said, sort_keys=True))


def measure(arena: Arena, work: Path, *, quick: bool, rounds: int = 5) -> dict[str, Any]:
    """Queries a second of our system and of the exact two-tower, by pool size: medians over `rounds`."""
    sizes = QUICK_SIZES if quick else SIZES
    texts = [query.text for query in arena.queries[:_TEXTS]]
    searches = {size: _searches(arena, work, size) for size in sizes}
    seconds: dict[str, dict[int, list[float]]] = {}
    for number in range(-1, rounds):  # the first round pays for what loads lazily
        for size, systems in searches.items():
            for name, search in systems.items():
                begin = time.perf_counter()
                for text in texts:
                    search([text])
                if number >= 0:
                    taken = (time.perf_counter() - begin) / len(texts)
                    seconds.setdefault(name, {}).setdefault(size, []).append(taken)
        arena.progress("figure 4", number + 2, rounds + 1)
    return {
        "figure": "figure4",
        "title": "Figure 4. Queries a second against the size of the pool",
        "track": arena.track.name,
        "beams": BEAMS,
        "sizes": list(sizes),
        "queries_per_second": {
            name: {str(size): 1 / statistics.median(times) for size, times in found.items()}
            for name, found in seconds.items()
        },
        "machine": dataclasses.asdict(Machine.here()),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """A line a system, a column a size."""
    sizes: Sequence[int] = found["sizes"]
    lines = [f"**{found['title']}** — {found['track']}, one query at a time, {found['beams']} beams", ""]
    lines.append(markdown_row(["", *(f"{size:,}" for size in sizes), "largest / smallest"]))
    lines.append(markdown_row(["---", *["---:"] * (len(sizes) + 1)]))
    for name, speeds in found["queries_per_second"].items():
        values = [speeds[str(size)] for size in sizes]
        lines.append(markdown_row([name, *(f"{value:,.1f}" for value in values), f"{values[-1] / values[0]:.2f}"]))
    machine = found["machine"]
    return "\n".join([*lines, "", f"Random vectors and sequences; {processor_of(machine)}."])


def _searches(arena: Arena, work: Path, size: int) -> dict[str, Search]:
    from voken_lab.systems.faiss_tower import FaissTower

    random = np.random.default_rng(arena.seed)
    encoder = _text_encoder(arena, work)
    model = load_model(_model(arena, work))
    levels, entries = arena.config.tokenizer.levels, arena.config.tokenizer.codebook_size
    trie = VokenTrie.from_vokens(random.integers(0, entries, (size, levels), dtype=np.int32), entries)
    ids = NumberColumn(size)
    collection = Snapshot(Base(ids, ids, trie), Origin(Path(), model.fingerprint))
    settings = dataclasses.replace(model.search, beams=BEAMS, readout="generate")
    ours = Searcher(model, collection, settings, widen=False)
    vectors = random.standard_normal((size, arena.vectors.shape[1]), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact = FaissTower.flat(encoder, [str(row) for row in range(size)], vectors)
    return {
        "AVG, generate": lambda texts: ours.search(texts, _TOP),
        "two-tower, exact": lambda texts: exact.search(texts, _TOP),
    }


def _text_encoder(arena: Arena, work: Path) -> TextEncoder:
    """The two-tower reads with the same runtime as ours, where there is a graph for its encoder."""
    encoder = arena.prepared.encoder
    if not isinstance(encoder, TwoTowerEncoder):
        return encoder
    export_text_encoder(encoder, work / "texts")
    return CompiledTextEncoder.load(work / "texts")


def _model(arena: Arena, work: Path) -> Path:
    """Our system with its real codebooks and an untrained generator, whose speed is that of a trained one."""
    folder = work / "model"
    if not folder.exists():
        prepared, config = arena.prepared, arena.config
        short = dataclasses.replace(config.tokenizer, epochs=0)
        tokenizer, _ = train_tokenizer(
            prepared.train.paired_vectors(),
            prepared.validation.paired_vectors(),
            short,
            seed=arena.seed,
            progress=arena.progress,
        )
        generator = make_generator(prepared, tokenizer, config)
        search = dataclasses.replace(config.search, voken_weight=0.0, vector_weight=0.0)
        Model(config, prepared.encoder, tokenizer, generator, search, {}).save(folder)
    return folder
