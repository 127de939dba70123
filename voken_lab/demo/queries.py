"""The demo's queries: a few general phrases, and captions of the unseen pictures.

A phrase is used if the pool holds at least two of its concepts. The model's hits do not influence the
choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from voken.data.captions import Dataset

_PHRASES: tuple[tuple[str, str], ...] = (
    ("a red fruit", "red apple, cherries, strawberry, tomato, watermelon"),
    ("an animal with wings", "bird, eagle, owl, duck, swan, dove, parrot, bat, butterfly, honeybee, dragon, goose"),
    ("a wild cat", "tiger, tiger face, leopard, lion, black cat"),
    ("stormy weather", "tornado, cloud with lightning, cloud with lightning and rain, cyclone, cloud with rain, fog"),
    ("a musical instrument", "trumpet, trombone, banjo, flute, guitar, violin, saxophone, accordion, long drum, drum"),
    ("a boat on the water", "sailboat, ship, passenger ship, motor boat, canoe, ferry, speedboat"),
    ("something cold and sweet to eat", "ice cream, soft ice cream, shaved ice, lollipop, cupcake"),
    ("it tastes sour", "lemon, lime, grapes, kiwi fruit"),
    ("a face that is afraid", "fearful face, anguished face, face screaming in fear, anxious face with sweat"),
    ("an animal of the sea", "whale, spouting whale, fish, squid, octopus, crab, shark, dolphin, tropical fish"),
    ("a place to pray", "church, mosque, hindu temple, synagogue, kaaba, place of worship"),
    ("a warm light in the dark", "fire, candle, lamp post, red paper lantern, jack-o-lantern, diya lamp"),
)
_GENERAL, _CAPTIONS = 5, 3


@dataclass(frozen=True)
class DemoQuery:
    """A text and the concepts that are right answers to it."""

    text: str
    concepts: frozenset[str]
    origin: str
    """Where the text comes from, in words for the page."""


def demo_queries(pool: Dataset, *, seed: int) -> tuple[DemoQuery, ...]:
    """At most eight queries for the pictures of `pool`."""
    fitting = [(text, frozenset(concepts.split(", ")) & set(pool.concepts)) for text, concepts in _PHRASES]
    general = [DemoQuery(text, concepts, "a general phrase") for text, concepts in fitting if len(concepts) >= 2]
    general = general[:_GENERAL]
    captions: dict[str, set[str]] = {}
    for image in pool.images:
        for caption in image.captions:
            if 3 <= len(caption.split()) <= 6 and "," not in caption and caption.isascii():
                captions.setdefault(caption, set()).add(image.concept)

    def random_key(caption: str) -> bytes:
        return blake2b(f"{seed}:{caption}".encode(), digest_size=8).digest()

    drawn: list[DemoQuery] = []
    for caption in sorted(captions, key=random_key):
        if all(not captions[caption] & query.concepts for query in drawn):
            drawn.append(DemoQuery(caption, frozenset(captions[caption]), "a caption of an unseen picture"))
    return (*general, *drawn[: _GENERAL + _CAPTIONS - len(general)])
