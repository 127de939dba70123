"""Queries that a page suggests: texts that the collection itself answers well.

They come from what is known of the pictures: titles and other short texts in their metadata, else names of things that
pictures show (ImageNet's classes, compared with the stored vectors), else names of folders. A text is suggested only
if a search for it leads to the picture that it came from.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.resources import files

import numpy as np

from voken.api import Collection, ListedPicture
from voken.errors import VokenError

EXAMPLES = 8
_TEXT_FIELDS = ("caption", "title", "description", "alt", "concept", "name", "text", "keywords", "tags")
_SAMPLE = 1_000
"""So many pictures, spread evenly over the collection, are looked at."""
_TRIED = 48
_HITS = 3
"""The picture that a text came from must be among so many hits."""
_TEXTS_AT_ONCE = 64
_WORD = re.compile(r"[^\W\d_]{3,}")
_FILE_LIKE = re.compile(r"\.\w{2,4}$|[_\d]{4,}|^(img|dsc|dscn|pict?|image|scan|untitled)\W*\d*$", re.IGNORECASE)
_DULL = frozenset(
    {"pictures", "photos", "images", "dcim", "camera", "train", "test", "validation", "all", "new", "misc"}
)


class Examples:
    """The suggested queries of a collection, which are chosen when they are first needed. Any thread may use it."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._lock = threading.Lock()
        self._pictures = -1
        self._texts: tuple[str, ...] = ()

    def get(self) -> tuple[str, ...]:
        """At most eight texts. They are chosen again if a tenth of the pictures has been added or removed."""
        with self._lock:
            count = len(self._collection)
            if self._pictures < 0 or abs(count - self._pictures) > self._pictures / 10:
                self._texts = _choose(self._collection)
                self._pictures = count
            return self._texts


def _choose(collection: Collection) -> tuple[str, ...]:
    gallery = collection.gallery()
    step = max(1, len(gallery) // _SAMPLE)
    sample = [picture for offset in range(0, len(gallery), step) for picture in collection.listed(gallery, offset, 1)]
    chosen: list[str] = []
    for candidates in (_titles(sample), _things(collection, sample), _folders(sample)):
        for text in _answered(collection, candidates, chosen):
            chosen.append(text)
            if len(chosen) == EXAMPLES:
                return tuple(chosen)
    return tuple(chosen)


def _answered(
    collection: Collection, candidates: Iterable[tuple[str, frozenset[str]]], chosen: list[str]
) -> Iterator[str]:
    """The candidates (a text, and the ids that answer it) that a search answers, and that share no word with others."""
    used = {word for text in chosen for word in _words(text)}
    tried = 0
    for text, ids in candidates:
        words = _words(text)
        if not words or used & words:
            continue
        tried += 1
        if tried > _TRIED:
            return
        try:
            hits = collection.search(text, _HITS)
        except VokenError:
            return
        if any(hit.image_id in ids for hit in hits):
            used |= words
            yield text


def _titles(sample: list[ListedPicture]) -> list[tuple[str, frozenset[str]]]:
    """Short texts of the metadata, those of two to five words first."""
    ids: dict[str, set[str]] = {}
    for picture in sample:
        for text in _texts(picture):
            ids.setdefault(text, set()).add(picture.image_id)
    telling = sorted(ids, key=lambda text: (not 2 <= len(text.split()) <= 5, len(ids[text]) > 3))
    return [(text, frozenset(ids[text])) for text in telling]


def _texts(picture: ListedPicture) -> Iterator[str]:
    for field in _TEXT_FIELDS:
        value = picture.metadata.get(field)
        for text in (value if isinstance(value, list) else [value])[:2]:
            if isinstance(text, str) and len(text.split()) <= 8 and len(text) <= 60 and not _FILE_LIKE.search(text):
                yield " ".join(text.split())


def _things(collection: Collection, sample: list[ListedPicture]) -> list[tuple[str, frozenset[str]]]:
    """Names of things that some pictures show much more than others do, the surest first."""
    vectors = collection.vectors([picture.image_id for picture in sample])
    if vectors is None or len(vectors) < 2:
        return []
    names = thing_names()
    blocks = [collection.query_vectors(names[at : at + _TEXTS_AT_ONCE]) for at in range(0, len(names), _TEXTS_AT_ONCE)]
    if any(block is None or block.shape[1] != vectors.shape[1] for block in blocks):
        return []
    return _things_shown(vectors, np.concatenate([block for block in blocks if block is not None]), names, sample)


def _things_shown(
    vectors: np.ndarray,
    name_vectors: np.ndarray,
    names: list[str],
    sample: list[ListedPicture],
) -> list[tuple[str, frozenset[str]]]:
    cosines = vectors @ name_vectors.T
    # some names are near to every picture, and some pictures to every name
    cosines -= cosines.mean(0, keepdims=True)
    cosines -= cosines.mean(1, keepdims=True)
    best = cosines.argmax(1)
    strength = cosines[np.arange(len(best)), best]
    candidates = []
    for place in np.argsort(-strength).tolist():
        shown = np.flatnonzero(best == best[place])
        candidates.append((names[int(best[place])], frozenset(sample[other].image_id for other in shown.tolist())))
    return list(dict(candidates).items())


def _folders(sample: list[ListedPicture]) -> list[tuple[str, frozenset[str]]]:
    ids: dict[str, set[str]] = {}
    for picture in sample:
        name = re.sub(r"[_\-.]+", " ", picture.folder.rpartition("/")[2]).strip()
        if name and name.casefold() not in _DULL and not re.search(r"\d{2,}", name):
            ids.setdefault(name, set()).add(picture.image_id)
    return [(name, frozenset(members)) for name, members in sorted(ids.items(), key=lambda entry: -len(entry[1]))]


@cache
def thing_names() -> list[str]:
    """The first name of each of ImageNet's 1,000 classes."""
    table = files("voken.encoders").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    return list(dict.fromkeys(row.split("\t")[1].split(", ")[0] for row in table.splitlines()[1:]))


def _words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORD.findall(text))
