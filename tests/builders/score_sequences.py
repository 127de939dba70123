"""What a search over a torch model must find: the log-probabilities of sequences, step by step, without a trie."""

from __future__ import annotations

import torch


def score_sequences(model, state, vokens):
    """Log-probabilities (queries, sequences) of the sequences `vokens` (queries, sequences, levels)."""
    queries, sequences, levels = vokens.shape
    vokens = vokens.to(model.device)
    parents = torch.zeros(queries, sequences, dtype=torch.long, device=model.device)
    logits, state = model.step(state, None, None)
    logits = logits.expand(-1, sequences, -1)
    total = torch.zeros(queries, sequences, device=model.device)
    for level in range(levels):
        log_prob = torch.log_softmax(logits.float(), dim=-1)
        total = total + log_prob.gather(2, vokens[:, :, level : level + 1]).squeeze(2)
        if level + 1 < levels:
            logits, state = model.step(state, vokens[:, :, level], parents)
            parents = torch.arange(sequences, device=model.device).expand(queries, -1)
    return total
