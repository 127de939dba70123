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
from voken.cli.app import use_threads
from voken.config import TokenizerConfig
from voken.image_tokenizer.model import ImageTokenizer
from voken.image_tokenizer.train import train_tokenizer
from voken_lab.evaluation.machine import Machine
from voken_lab.reproduction.experiment import Experiment
from voken_lab.reproduction.tracks import TRACKS, track
from voken_lab.systems.genius import GeniusConfig, genius_tokenizer, train_genius

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
    use_threads(options.threads)
    report: dict[str, Any] = {
        "benchmark": "genius",
        "machine": dataclasses.asdict(Machine.here()),
        "command": command,
        "rows": [],
    }
    chosen = track(options.track)
    trials = [
        Trial(Experiment.open(chosen, options.dataset, options.out, seed, quick=options.quick))
        for seed in options.seeds
    ]
    for row in search(trials, options.settings):
        report["rows"].append(row)
        changed = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
        print(f"{row['recall']:.4f}  {'best so far' if row['best so far'] else '':11}  {changed}", flush=True)
        if options.json:
            write_json(options.json, report)


def search(trials: Sequence[Trial], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row a run: its settings, and the recall."""
    own = dataclasses.asdict(GeniusConfig()) | {"tokenizer.alignment": genius_tokenizer().alignment}
    best = {name: own[name] for name in names}
    highest = _mean_recall(trials, best)
    yield {"settings": best, "recall": highest, "best so far": True}
    for name in names:
        start = best
        for value in VALUES[name]:
            if value == start[name]:
                continue
            settings = start | {name: value}
            recall = _mean_recall(trials, settings)
            better = recall > highest
            yield {"settings": settings, "recall": recall, "best so far": better}
            if better:
                best, highest = settings, recall


def _mean_recall(trials: Sequence[Trial], settings: dict[str, Any]) -> float:
    return sum(trial.recall(settings) for trial in trials) / len(trials)


class Trial:
    """A seed, with the split and the encoder that the reproduction has. Each tokenizer is trained once."""

    def __init__(self, experiment: Experiment) -> None:
        self._arena = experiment
        self._tokenizers: dict[TokenizerConfig, ImageTokenizer] = {}

    def recall(self, settings: dict[str, Any]) -> float:
        """Of the best epoch."""
        experiment, prepared = self._arena, self._arena.prepared
        same = experiment.config.tokenizer
        of_tokenizer = {name.partition(".")[2]: value for name, value in settings.items() if "." in name}
        of_generator = {name: value for name, value in settings.items() if "." not in name}
        tokenizer = self._tokenizer(
            genius_tokenizer(levels=same.levels, codebook_size=same.codebook_size, **of_tokenizer)
        )
        config = GeniusConfig(**of_generator)
        _, history = train_genius(
            prepared.encoder, prepared.train, prepared.validation, tokenizer, config, seed=experiment.seed
        )
        return max((history.untrained_recall, *(epoch.recall for epoch in history.epochs)))

    def _tokenizer(self, config: TokenizerConfig) -> ImageTokenizer:
        if config not in self._tokenizers:
            prepared = self._arena.prepared
            train, validation = prepared.train.paired_vectors(), prepared.validation.paired_vectors()
            self._tokenizers[config], _ = train_tokenizer(
                train, validation, config, seed=self._arena.seed, device=prepared.device
            )
        return self._tokenizers[config]


if __name__ == "__main__":
    main()
