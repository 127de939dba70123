"""Which settings of the GENIUS-style baseline are its best, so that `voken reproduce` compares with a tuned one.

Chosen by recall on the validation split (mean of R@1, R@5 and R@10 at ten beams, of the best epoch, over --seeds); test
pictures are not opened. One setting after the other takes its values, in the order of `VALUES`; the best one stays
while the next are tried. The first run has the settings as they are.

    voken data emoji emoji
    python benchmarks/genius.py emoji --track emoji --json genius.json
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from voken.artifact import write_json
from voken.config import TokenizerConfig
from voken.encoders.cache import VectorCache
from voken.evaluation.machine import Machine
from voken.fit import Prepared
from voken.image_tokenizer.model import ImageTokenizer
from voken.image_tokenizer.train import train_tokenizer
from voken.reproduction.arena import Arena
from voken.reproduction.tracks import TRACKS, track
from voken.systems.genius import GeniusConfig, genius_tokenizer, train_genius

VALUES: dict[str, tuple[Any, ...]] = {
    "tokenizer.alignment": ("none", "infonce"),
    "mix_alpha": (0.0, 0.5, 2.0, 8.0),
    "learning_rate": (3e-4, 1e-3, 3e-3),
    "dropout": (0.0, 0.2, 0.4),
    "copy_voken_embeddings": (False, True),
    "layers": (1, 2, 4),
    "prefix_tokens": (1, 4, 8),
    "batch_size": (128, 256),
    "width": (128, 256),
}
"""Names without a dot are of `GeniusConfig`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print a line a run, write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--track", choices=sorted(TRACKS), required=True)
    parser.add_argument("--quick", action="store_true", help="as of voken reproduce")
    parser.add_argument("--settings", nargs="+", choices=sorted(VALUES), default=list(VALUES), help="to be tried")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where voken reproduce keeps its encoders")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "benchmarks/genius.py", *(sys.argv[1:] if arguments is None else arguments)])
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    report: dict[str, Any] = {
        "benchmark": "genius",
        "machine": dataclasses.asdict(Machine.here()),
        "command": command,
        "rows": [],
    }
    for row in search(list(arenas(options)), options.settings):
        report["rows"].append(row)
        changed = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        print(f"{row['recall']:.4f}  {'best so far' if row['best so far'] else '':11}  {changed}", flush=True)
        if options.json:
            write_json(options.json, report)


def arenas(options: argparse.Namespace) -> Iterator[Arena]:
    """A seed each, with the split and the encoder that the reproduction has."""
    chosen = track(options.track)
    for seed in options.seeds:
        yield Arena(
            chosen,
            chosen.read(options.dataset, None, seed, quick=options.quick),
            chosen.config(seed, quick=options.quick),
            options.out / chosen.name / f"seed-{seed}{'-quick' if options.quick else ''}",
            VectorCache(options.out / "vectors"),
        )


def search(found: Sequence[Arena], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row a run: its settings, and the recall."""
    own = dataclasses.asdict(GeniusConfig()) | {"tokenizer.alignment": genius_tokenizer().alignment}
    best = {name: own[name] for name in names}
    tried = {tuple(best.values()): _recall(found, best)}
    yield {"settings": best, "recall": tried[tuple(best.values())], "best so far": True}
    for name in names:
        for value in VALUES[name]:
            settings = best | {name: value}
            key = tuple(settings.values())
            if key in tried:
                continue
            tried[key] = _recall(found, settings)
            better = tried[key] > tried[tuple(best.values())]
            yield {"settings": settings, "recall": tried[key], "best so far": better}
            if better:
                best = settings


def _recall(found: Sequence[Arena], settings: dict[str, Any]) -> float:
    return sum(_one_recall(arena, settings) for arena in found) / len(found)


def _one_recall(arena: Arena, settings: dict[str, Any]) -> float:
    same = arena.config.tokenizer
    shape = {"levels": same.levels, "codebook_size": same.codebook_size}
    of_tokenizer = {name.partition(".")[2]: value for name, value in settings.items() if "." in name}
    of_generator = {name: value for name, value in settings.items() if "." not in name}
    tokenizer = _tokenizer(arena.prepared, genius_tokenizer(**shape, **of_tokenizer), arena.seed)
    _, history = train_genius(
        arena.prepared.encoder,
        arena.prepared.train,
        arena.prepared.validation,
        tokenizer,
        GeniusConfig(**of_generator),
        seed=arena.seed,
    )
    return max((history.untrained_recall, *(epoch.recall for epoch in history.epochs)))


_made: dict[tuple[TokenizerConfig, int], ImageTokenizer] = {}


def _tokenizer(prepared: Prepared, config: TokenizerConfig, seed: int) -> ImageTokenizer:
    key = (config, seed)
    if key not in _made:
        train, validation = prepared.train.paired(), prepared.validation.paired()
        _made[key], _ = train_tokenizer(train, validation, config, seed=seed, device=prepared.device)
    return _made[key]


if __name__ == "__main__":
    main()
