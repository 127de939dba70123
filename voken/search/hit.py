"""One picture in an answer: what every search returns, whichever system ran it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One picture in the ranked answer to a query.

    Answers list hits by falling `score`. Two hits of one answer with equal scores are tied: the system has no opinion
    on their order, and the evaluation takes the expected value over both.

    What `score` is depends on the system (a log-probability, a cosine, …). Scores compare within one answer only.
    `vokens` is the picture's sequence of M vokens, empty if the system has none.
    """

    image_id: str
    path: str
    score: float
    vokens: tuple[int, ...] = ()
    confidence: float | None = None
    """Calibrated probability that the hit is right (`voken.search.readouts`); None if the model is not calibrated."""
