"""A picture in an answer, whichever system searched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One picture in the ranked answer to a query.

    Answers list hits by falling `score`. Two hits of one answer with equal scores are tied: the system does
    not say which is better, and the evaluation takes the mean over both orders.

    What `score` is depends on the system (a log-probability, a cosine, …). Only scores of one answer are comparable.
    `vokens` is the picture's sequence of M vokens, empty if the system has none.
    """

    image_id: str
    path: str
    score: float
    vokens: tuple[int, ...] = ()
    confidence: float | None = None
    """Calibrated probability that the hit is right (`voken.search.readouts`); None if the model is not calibrated."""
