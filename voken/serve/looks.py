"""What a page needs of pictures' files before it shows them: their proportions, and which of them look the same.

Two pictures look the same if small versions of them, 32 pixels a side, hardly differ: one is a copy of the other that
was saved again, made smaller or a little brighter. A crop is another picture. A stored vector cannot decide this: it
says what a picture shows, so that two photographs of one dog are as near to each other as a photograph and its copy.
Vectors, dates and hashes only decide which pictures are worth comparing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import numpy as np
from PIL import Image

from voken.api import Collection, ListedPicture
from voken.errors import VokenError

_SIDE = 32
_SAME = 0.985
"""The least correlation of two small versions that count as the same picture."""
_FLAT = 4.0
"""Standard deviation, of 255, under which a picture is one colour, so that a correlation says nothing."""
_SAME_COLOUR, _LIKE_COLOUR = 2.0, 32.0
"""The largest differences of the mean colours, of 255: of flat pictures, and of others, which may be brighter."""
_BURST_SECONDS = 10
_NEAR = 0.9
"""The least cosine of two pictures that are compared."""
_MOST_REMEMBERED = 16_384

Value = TypeVar("Value")


@dataclass(frozen=True)
class Look:
    """How a page can lay out one picture of a list."""

    width: int | None
    """Of the upright picture, in pixels; None if its file cannot be read."""
    height: int | None
    stack: str | None
    """The id of the first picture of the list that looks the same; None if there is none before it."""


class Looks:
    """Reads pictures' proportions and small versions, and remembers them by content. Any thread may use it."""

    def __init__(self, collection: Collection, *, follow_links: bool) -> None:
        self._collection = collection
        self._follow_links = follow_links
        self._lock = threading.Lock()
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self._versions: dict[str, np.ndarray | None] = {}

    def of(self, pictures: Sequence[ListedPicture]) -> list[Look]:
        """The look of each picture of a list. Reads the headers of their files, and compares some of them."""
        sizes = [self._remembered(self._sizes, picture, self._size) for picture in pictures]
        firsts = self._firsts(pictures)
        looks = []
        for place, size in enumerate(sizes):
            width, height = size or (None, None)
            stack = None if firsts[place] == place else pictures[firsts[place]].image_id
            looks.append(Look(width, height, stack))
        return looks

    def size(self, picture: ListedPicture) -> tuple[int, int] | None:
        """Width and height of a picture; None if its file cannot be read."""
        return self._remembered(self._sizes, picture, self._size)

    def _firsts(self, pictures: Sequence[ListedPicture]) -> list[int]:
        """For each picture the place of the first that looks the same."""
        firsts = list(range(len(pictures)))
        if len(pictures) < 2:
            return firsts
        vectors = self._collection.vectors([picture.image_id for picture in pictures])
        cosines = None if vectors is None else vectors @ vectors.T
        hashes = [picture.content_hash for picture in pictures]
        seconds = np.array(
            [
                datetime.fromisoformat(p.taken).timestamp() if p.is_dated else 1e6 * place
                for place, p in enumerate(pictures)
            ]
        )
        for place in range(1, len(pictures)):
            for other in range(place):
                if firsts[other] != other:
                    continue
                if hashes[place] and hashes[place] == hashes[other]:
                    firsts[place] = other
                    break
                near = cosines is None or cosines[place, other] >= _NEAR
                if not near and abs(seconds[place] - seconds[other]) > _BURST_SECONDS:
                    continue
                if self._same(pictures[place], pictures[other]):
                    firsts[place] = other
                    break
        return firsts

    def _same(self, one: ListedPicture, other: ListedPicture) -> bool:
        versions = [self._remembered(self._versions, picture, self._version) for picture in (one, other)]
        first, second = versions
        return first is not None and second is not None and look_the_same(first, second)

    def _remembered(
        self, values: dict[str, Value], picture: ListedPicture, read: Callable[[ListedPicture], Value]
    ) -> Value:
        key = picture.content_hash
        with self._lock:
            if key in values:
                return values[key]
        value = read(picture)
        if key:
            with self._lock:
                if len(values) >= _MOST_REMEMBERED:
                    values.pop(next(iter(values)))
                values[key] = value
        return value

    def _size(self, picture: ListedPicture) -> tuple[int, int] | None:
        with suppress(OSError, ValueError, VokenError), picture.open(follow_links=self._follow_links) as opened:
            return opened.size()
        return None

    def _version(self, picture: ListedPicture) -> np.ndarray | None:
        with suppress(OSError, ValueError, VokenError), picture.open(follow_links=self._follow_links) as opened:
            return small_version(opened.image(least_side=_SIDE))
        return None


def small_version(image: Image.Image) -> np.ndarray:
    """The picture at 32 × 32 pixels, 0 to 255 per colour: float32 (pixels, 3)."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).reshape(-1, 3)


def look_the_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two small versions are those of the same picture."""
    colours = one.mean(0), other.mean(0)
    difference = float(np.abs(colours[0] - colours[1]).max())
    first, second = one - colours[0], other - colours[1]
    deviations = first.std(), second.std()
    if min(deviations) < _FLAT:
        return max(deviations) < _FLAT and difference < _SAME_COLOUR
    return difference < _LIKE_COLOUR and float((first * second).mean() / (deviations[0] * deviations[1])) >= _SAME
