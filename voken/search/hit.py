"""One picture in an answer: what every search returns, whichever system made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One picture in the ranked answer to a query.

    Answers list hits by falling `score`. Two hits of one answer with equal scores are tied: the system
    has no opinion on their order, and the evaluation gives the expected value over both.

    `score` is the system's own (a log-probability, a cosine, …) and compares within one answer only.
    `vokens` is the picture's sequence of M vokens, empty where the system has none.
    """

    image_id: str
    path: str
    score: float
    vokens: tuple[int, ...] = ()
    confidence: float | None = None
    """Calibrated probability that the hit is right (`voken.search.confidence`); None if the model is not calibrated."""
