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
        hashes = np.array([picture.content_hash or f"{place}" for place, picture in enumerate(pictures)])
        equal = hashes[:, None] == hashes[None, :]
        compared = self._worth_comparing(pictures) & ~equal
        places = np.flatnonzero(compared.any(1)).tolist()
        versions = {place: self._remembered(self._versions, pictures[place], self._version) for place in places}
        places = [place for place in places if versions[place] is not None]
        same = equal
        if places:
            pixels = np.stack([version for place in places if (version := versions[place]) is not None])
            block = np.ix_(places, places)
            same[block] |= compared[block] & look_the_same(pixels)
        for place in range(1, len(pictures)):
            earlier = [other for other in np.flatnonzero(same[place, :place]).tolist() if firsts[other] == other]
            firsts[place] = earlier[0] if earlier else place
        return firsts

    def _worth_comparing(self, pictures: Sequence[ListedPicture]) -> np.ndarray:
        """Which pairs may look the same: bool (pictures, pictures)."""
        seconds = np.array(
            [
                datetime.fromisoformat(picture.taken).timestamp() if picture.is_dated else -1e6 * (1 + place)
                for place, picture in enumerate(pictures)
            ]
        )
        worth: np.ndarray = np.abs(seconds[:, None] - seconds[None, :]) <= _BURST_SECONDS
        vectors = self._collection.vectors([picture.image_id for picture in pictures])
        return np.ones_like(worth) if vectors is None else worth | (vectors @ vectors.T >= _NEAR)

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


def look_the_same(versions: np.ndarray) -> np.ndarray:
    """Which pairs of small versions (pictures, pixels, 3) are of the same picture: bool (pictures, pictures)."""
    colours = versions.mean(1)
    difference = np.abs(colours[:, None] - colours[None, :]).max(2)
    centred = (versions - colours[:, None]).reshape(len(versions), -1)
    deviations = centred.std(1)
    is_flat = deviations < _FLAT
    correlations = (centred @ centred.T) / (centred.shape[1] * np.maximum(np.outer(deviations, deviations), 1e-9))
    alike = ~is_flat[:, None] & ~is_flat[None, :] & (difference < _LIKE_COLOUR) & (correlations >= _SAME)
    flat_alike = is_flat[:, None] & is_flat[None, :] & (difference < _SAME_COLOUR)
    same: np.ndarray = alike | flat_alike
    return same
