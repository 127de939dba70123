"""The words around a query for CLIP and SigLIP, such as "a photo of {}", and the choice of them on a validation set.

These encoders were trained on captions from the web, and read a bare word less well than a phrase (Radford et al. 2021,
section 3.1.4). Which phrase is best depends on the checkpoint and on what people type, so it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from voken.errors import ConfigError
from voken.shapes import Float, Int

AS_TYPED = "{}"
PROMPTS = (
    AS_TYPED,
    "a photo of {}",
    "a photo of a {}.",
    "a picture of {}",
    "an image of {}.",
    "This is a photo of {}.",
    "itap of {}.",
)
"""The candidates: those of CLIP's and SigLIP's papers. If some are equally good, the first is taken."""
CUTS = (1, 5, 10)
_LONGEST = 200


@dataclass(frozen=True)
class PromptChoice:
    """The template with the best recall, and what each was worth."""

    template: str
    recalls: dict[str, tuple[float, ...]]
    """For each template, R@1, R@5 and R@10 of an exact search, from 0 to 1."""


class PromptedEncoder(Protocol):
    """An encoder that can put words around its texts."""

    prompt: str
    prompt_choice: PromptChoice | None

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """See `voken.encoders.interface.Encoder`."""
        ...


def check_prompt(template: str) -> str:
    """The template itself. Raises `ConfigError` unless it has exactly one place for the query."""
    if template.count(AS_TYPED) != 1 or len(template) > _LONGEST or "\n" in template:
        raise ConfigError(
            f"prompt {template[:80]!r}: must hold {{}} once, where the query goes, as in 'a photo of {{}}', in one "
            f"line of at most {_LONGEST} characters."
        )
    return template


def with_prompt(template: str, texts: Sequence[str]) -> list[str]:
    """Texts in a template. A text may hold braces."""
    before, after = template.split(AS_TYPED)
    return [f"{before}{text}{after}" for text in texts]


def choose_prompt(
    encoder: PromptedEncoder,
    captions: Sequence[str],
    pictures: Float[np.ndarray, "pictures dim"],
    pairs: Int[np.ndarray, "pairs 2"],
    report: Callable[[int], None] = lambda done: None,
) -> PromptChoice:
    """Try every template on captioned pictures, and let the encoder use the one with the best mean recall.

    Rows of `pairs` are (picture, caption). `report` is called with the number of templates that were tried.
    """
    from voken.metrics import first_relevant_by_product, recall_at  # a search needs only the templates

    recalls = {}
    for done, template in enumerate(PROMPTS, start=1):
        encoder.prompt = template
        texts = encoder.encode_texts(captions)
        first = first_relevant_by_product(texts, pictures, pairs[:, ::-1])
        recalls[template] = tuple(float(recall_at(first, cut).mean()) for cut in CUTS)
        report(done)
    best = max(PROMPTS, key=lambda template: sum(recalls[template]))
    encoder.prompt, encoder.prompt_choice = best, PromptChoice(best, recalls)
    return encoder.prompt_choice
