"""Step models whose logits do not depend on the vokens before."""

from __future__ import annotations

import numpy as np
import torch

from voken.decoding.linear import level_rows


class LinearNumpyModel:
    """Log-probabilities are a table for each text and level. With a `grain` there are many ties."""

    device: torch.device | None = None
    log_probs = True
    reads_trees = False
    answers_once = False
    node_bias = None

    def __init__(self, size: int, levels: int, *, grain: float = 0.0) -> None:
        self.codebook_size, self.levels, self.grain = size, levels, grain
        self.steps = 0

    def table(self, text: str) -> np.ndarray:
        logits = np.random.default_rng([len(text), *map(ord, text)]).normal(0, 2, (self.levels, self.codebook_size))
        if self.grain:
            return (np.round(logits / self.grain) * self.grain).astype(np.float32)
        return (logits - np.log(np.exp(logits).sum(1, keepdims=True))).astype(np.float32)

    def prefill(self, texts):
        return 0, np.stack([self.table(text) for text in texts])

    def step(self, state, vokens, parents):
        self.steps += 1
        level, table = state
        return level_rows(table, level, vokens), (level + 1, table)

    def level_logits(self, state):
        return state[1]


class LinearTorchModel(LinearNumpyModel):
    """The same in torch, with logits that are no log-probabilities."""

    device = torch.device("cpu")
    log_probs = False

    def step(self, state, vokens, parents):
        rows, state = super().step(state, vokens, parents)
        return torch.from_numpy(np.array(rows) + 1.5), state

    def level_logits(self, state):
        return state[1] + np.float32(1.5)


class StepsOnly:
    """A model that does not say that it is linear, so that a search takes its steps."""

    def __init__(self, model: LinearNumpyModel) -> None:
        self.codebook_size, self.levels = model.codebook_size, model.levels
        self.device, self.log_probs, self.reads_trees = model.device, model.log_probs, model.reads_trees
        self.prefill, self.step = model.prefill, model.step
