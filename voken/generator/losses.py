"""The losses of stage 2: L_gen (Eq. 7) and L_dis (Eq. 9), and the forms that go past the paper.

All are means over queries, computed in float32, differentiable in the logits.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from voken.shapes import Bool, Float, Int


def generation_loss(
    logits: Float[Tensor, "pairs M N"], vokens: Int[Tensor, "pairs M"], *, temperature: float = 1.0
) -> Tensor:
    """L_gen, Eq. 7: minus the log-probability of the picture's vokens, summed over its M levels.

    `temperature` divides the logits, as the official code does; the softmax is over voken rows only.
    """
    return cross_entropy((logits.float() / temperature).flatten(0, 1), vokens.flatten(), reduction="sum") / len(vokens)


def soft_generation_loss(
    logits: Float[Tensor, "pairs M N"],
    entries: Int[Tensor, "pairs M K"],
    weights: Float[Tensor, "pairs M K"],
    *,
    temperature: float = 1.0,
) -> Tensor:
    """L_gen with a distribution over entries as the target: cross-entropy, summed over levels.

    With all weight on the picture's own voken it is `generation_loss`.
    """
    log_prob = (logits.float() / temperature).log_softmax(-1).gather(-1, entries)
    return -(weights * log_prob).sum() / len(entries)


def sequence_log_prob(
    logits: Float[Tensor, "queries sequences M N"], vokens: Int[Tensor, "queries sequences M"]
) -> Float[Tensor, "queries sequences"]:
    """s_j, the score of a sequence in Eq. 9: the sum of its vokens' log-probabilities."""
    return logits.float().log_softmax(-1).gather(-1, vokens[..., None]).squeeze(-1).sum(-1)


def discrimination_loss(
    scores: Float[Tensor, "queries sequences"], usable: Bool[Tensor, "queries sequences"]
) -> Tensor:
    """L_dis, Eq. 9: one softmax over the list, the positive in column 0; unusable columns are left out."""
    scores = scores.masked_fill(~usable, float("-inf"))
    return (scores.logsumexp(1) - scores[:, 0]).mean()


def distillation_loss(
    scores: Float[Tensor, "queries sequences"],
    teacher: Float[Tensor, "queries sequences"],
    usable: Bool[Tensor, "queries sequences"],
) -> Tensor:
    """Cross-entropy of the list's softmax against the softmax of a teacher's scores over the same list."""
    log_prob = scores.masked_fill(~usable, -1e4).log_softmax(1)
    target = teacher.masked_fill(~usable, float("-inf")).softmax(1)
    return -(target * log_prob).sum(1).mean()
