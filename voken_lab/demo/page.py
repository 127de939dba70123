"""The content of the demo's page. It does not know how the content was measured; `templates/demo.html` lays it out."""

from __future__ import annotations

from dataclasses import dataclass

from voken.image_tokenizer.train import LevelUsage
from voken_lab.pages.page import HitCard, PairSection, render


@dataclass(frozen=True)
class QueryCard:
    """A query and its hits, best first."""

    text: str
    origin: str
    hits: tuple[HitCard, ...]


@dataclass(frozen=True)
class RecallRow:
    """A row of the recall table. `recall` holds shares between 0 and 1 by cutoff."""

    name: str
    recall: dict[int, float]
    bytes_per_picture: float | None
    queries_per_second: float
    is_reference: bool = False
    """Whether it is a system that the model is compared with."""


@dataclass(frozen=True)
class EpochRow:
    """A row of the training log. `recall` is a share between 0 and 1."""

    stage: str
    epoch: int
    loss: float
    recall: float
    is_chosen: bool


@dataclass(frozen=True)
class DemoPage:
    """Everything on the page."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    """Large figures at the top: (figure, description)."""
    queries: tuple[QueryCard, ...]
    recall_note: str
    rows: tuple[RecallRow, ...]
    """Empty if no captions say which pictures are right answers; then no hit is marked either."""
    groups: tuple[PairSection, ...]
    usage: tuple[LevelUsage, ...]
    usage_note: str
    training_note: str
    epochs: tuple[EpochRow, ...]
    """Empty if no generator was trained."""
    untrained_recall: float
    steps: tuple[tuple[str, float], ...]
    """(name, seconds)."""
    commands: tuple[str, ...]
    credits: tuple[str, ...]

    def render(self) -> str:
        """The page's HTML."""
        return render("demo.html", title=self.title, lead=self.lead, facts=self.facts, credits=self.credits, page=self)
