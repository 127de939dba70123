"""Step models whose logits depend on the text and on the whole prefix, so that wrong beam ancestry shows."""

from __future__ import annotations

import numpy as np
import torch


class PrefixModel:
    """Logits are a table indexed by text and whole prefix; its state is what each beam has taken so far.

    A wrong parent or a forgotten reordering changes the prefix and so the logits.
    """

    device: torch.device | None = torch.device("cpu")
    log_probs = reads_trees = False

    def __init__(self, size: int, levels: int, *, grain: float = 0.0) -> None:
        self.codebook_size, self.levels, self.grain = size, levels, grain
        self.widths: list[int] = []

    def converted(self, logits: np.ndarray) -> torch.Tensor | np.ndarray:
        return torch.tensor(logits, dtype=torch.float32)

    def logits(self, text: str, prefix: tuple[int, ...]) -> np.ndarray:
        seed = [len(text), *map(ord, text), 999, *prefix]
        logits = np.random.default_rng(seed).normal(0, 2, self.codebook_size)
        return np.round(logits / self.grain) * self.grain if self.grain else logits

    def prefill(self, texts):
        return [(text, [()]) for text in texts]

    def step(self, state, vokens, parents):
        if vokens is not None:
            state = [
                (text, [(*prefixes[p], v) for p, v in zip(parents[q].tolist(), vokens[q].tolist(), strict=True)])
                for q, (text, prefixes) in enumerate(state)
            ]
        self.widths.append(len(state[0][1]))
        rows = [[self.logits(text, prefix) for prefix in prefixes] for text, prefixes in state]
        return self.converted(np.array(rows)), state

    def log_prob(self, text: str, sequence: tuple[int, ...], temperature: float = 1.0) -> float:
        total = 0.0
        for level, voken in enumerate(sequence):
            logits = self.logits(text, sequence[:level]) / temperature
            total += logits[voken] - np.log(np.exp(logits).sum())
        return total


class NumpyPrefixModel(PrefixModel):
    """The same without torch."""

    device = None

    def step(self, state, vokens, parents):
        assert vokens is None or vokens.dtype == parents.dtype == np.int64
        return super().step(state, vokens, parents)

    def converted(self, logits):
        return logits.astype(np.float32)


class LogProbPrefixModel(NumpyPrefixModel):
    """The same with log-probabilities at once."""

    log_probs = True

    def converted(self, logits):
        return super().converted(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
