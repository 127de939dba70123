"""Splits a data set into train, validation and test, and finds pictures that are in two of them.

Families are split (see `CaptionedImage.family`), not pictures: all drawings of a concept, and concepts that differ only
by a gender sign, are in the same split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

import numpy as np
from PIL import Image

from voken.data.captions import SPLITS, CaptionedImage, Dataset
from voken.data.images import file_hash, load_images
from voken.data.skipped import Skipped
from voken.errors import ConfigError, EmptyDataError, SplitLeakError
from voken.progress import Progress, no_progress
from voken.shapes import Int64, UInt64

_BLOCK = 8_000_000


def resplit(dataset: Dataset, *, seed: int, test_concepts: int, validation_concepts: int) -> Dataset:
    """Draw a new split by family, with this many concepts in test and in validation, and the other concepts in train.

    A family with more concepts than test still needs goes to validation, or else to train. If the remaining families
    are all too large, a split has fewer concepts. Raises ConfigError if no concept would be left to train on.
    """
    if test_concepts < 0 or validation_concepts < 0:
        raise ConfigError("test_concepts and validation_concepts must not be negative")
    concepts: dict[str, set[str]] = {}
    for image in dataset.images:
        concepts.setdefault(image.family, set()).add(image.concept)
    total = sum(map(len, concepts.values()))
    if test_concepts + validation_concepts >= total:
        raise ConfigError(
            f"{dataset.name}: {test_concepts} test and {validation_concepts} validation concepts leave none to train "
            f"on: the data set has {total} concepts"
        )
    families = sorted(concepts)
    order = np.random.default_rng(seed).permutation(len(families))
    split: dict[str, str] = {}
    room = {"test": test_concepts, "validation": validation_concepts}
    for index in order:
        family = families[index]
        size = len(concepts[family])
        split[family] = next((name for name, left in room.items() if size <= left), "train")
        if split[family] != "train":
            room[split[family]] -= size
    return replace(dataset, images=tuple(replace(image, split=split[image.family]) for image in dataset.images))


def split_by_concept(
    dataset: Dataset,
    *,
    seed: int,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    pool: int | None = None,
) -> Dataset:
    """Draw a new split by family, with `fractions` of the concepts for train, validation and test.

    `pool` is the number of concepts in test; if given, it replaces the fraction. See `resplit`.
    """
    if any(fraction < 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(f"fractions must be three shares that sum to 1, not {fractions}")
    total = len(dataset.concepts)
    return resplit(
        dataset,
        seed=seed,
        test_concepts=round(total * fractions[2]) if pool is None else pool,
        validation_concepts=round(total * fractions[1]),
    )


def one_per_concept(dataset: Dataset, seed: int) -> Dataset:
    """One picture per concept, drawn by `seed`, in the data set's order.

    The draw for a concept does not depend on the other concepts.
    """

    def draw_key(image: CaptionedImage) -> bytes:
        return blake2b(f"{seed}:{image.image_id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    drawn: dict[str, CaptionedImage] = {}
    for image in dataset.images:
        other = drawn.get(image.concept)
        if other is None or draw_key(image) < draw_key(other):
            drawn[image.concept] = image
    ids = {image.image_id for image in drawn.values()}
    return replace(dataset, images=tuple(image for image in dataset.images if image.image_id in ids))


def check_disjoint(dataset: Dataset, *, file_hashes: Mapping[str, str] | None = None) -> None:
    """Raise SplitLeakError, with an example, if a concept, a family or a file is in two splits.

    `file_hashes` holds the hash of each picture's file by image id; without it files are not compared. Pictures of
    no split, or of one that is none of the three, are ignored.
    """
    first_images: dict[tuple[str, str], CaptionedImage] = {}
    for image in dataset.images:
        if image.split not in SPLITS:
            continue
        properties = [("concept", image.concept), ("family", image.family)]
        if file_hashes is not None and image.image_id in file_hashes:
            properties.append(("file content", file_hashes[image.image_id]))
        for kind, value in properties:
            first = first_images.setdefault((kind, value), image)
            if first.split != image.split:
                raise SplitLeakError(
                    f"{dataset.name}: the {kind} {value!r} is in {first.split} ({first.image_id}) and in "
                    f"{image.split} ({image.image_id}). Split by concept, for example with resplit()"
                )


def dhash(image: Image.Image) -> int:
    """The difference hash of a picture, 64 bits. The hashes of similar pictures differ in few bits.

    The picture is reduced to 9 × 8 grey pixels. A bit is set if a pixel is brighter than the one to its left. The bits
    are in the order of the pixels, row by row, from the highest bit.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def resplit_clean(
    dataset: Dataset, *, seed: int, test_concepts: int, validation_concepts: int, distance: int | None
) -> tuple[Dataset, list[Skipped]]:
    """Draw a new split with `resplit`, then call `drop_near_duplicates` unless `distance` is None.

    A tenth more test concepts are drawn at first, because some are dropped; in the end there are at most
    `test_concepts`. Returns the new data set and the dropped pictures.
    """
    drawn = resplit(
        dataset, seed=seed, test_concepts=test_concepts + test_concepts // 10, validation_concepts=validation_concepts
    )
    clean, dropped = (drawn, []) if distance is None else drop_near_duplicates(drawn, distance=distance)
    concepts = sorted(clean.split("test").concepts)
    chosen = {concepts[row] for row in np.random.default_rng(seed).permutation(len(concepts))[:test_concepts]}
    images = tuple(image for image in clean.images if image.split != "test" or image.concept in chosen)
    return Dataset(clean.name, clean.root, images), dropped


def drop_near_duplicates(
    dataset: Dataset, *, distance: int, workers: int = 2, progress: Progress = no_progress
) -> tuple[Dataset, list[Skipped]]:
    """Drop from validation and test every picture whose `dhash` is within `distance` bits of a train picture's.

    From train only exact repeats (equal file content) of an earlier picture are dropped, from all splits unreadable
    pictures. Returns the remaining data set, and the dropped pictures with their reasons (for a near-duplicate
    the train picture that it resembles). Raises EmptyDataError if nothing is left.
    """
    if not 0 <= distance < 64:
        raise ConfigError(f"distance must be 0 to 63 bits, not {distance}")
    dropped: dict[int, str] = {}
    hashes = np.zeros(len(dataset), dtype=np.uint64)
    paths = [image.path for image in dataset.images]
    for index, picture in load_images(paths, workers=workers, progress=progress):
        if isinstance(picture, Skipped):
            dropped[index] = picture.reason
        else:
            hashes[index] = dhash(picture)
    first: dict[str, int] = {}
    for index, image in enumerate(dataset.images):
        if image.split == "train" and index not in dropped:
            earlier = first.setdefault(file_hash(image.path), index)
            if earlier != index:
                dropped[index] = f"exact repeat of {dataset.images[earlier].image_id}"
    train = np.array([i for i, image in enumerate(dataset.images) if image.split == "train" and i not in dropped], int)
    held_out = [i for i, image in enumerate(dataset.images) if image.split in SPLITS[1:] and i not in dropped]
    if train.size and held_out:
        nearest, bits = _nearest(hashes[held_out], hashes[train])
        for index, neighbour, differing in zip(held_out, train[nearest].tolist(), bits.tolist(), strict=True):
            if differing <= distance:
                dropped[index] = f"{differing} bits from the train picture {dataset.images[neighbour].image_id}"
    images = tuple(image for index, image in enumerate(dataset.images) if index not in dropped)
    if not images:
        raise EmptyDataError(f"{dataset.name}: every picture is a near-duplicate or unreadable")
    report = [Skipped(str(dataset.images[index].path), dropped[index]) for index in sorted(dropped)]
    return replace(dataset, images=images), report


def _nearest(
    queries: UInt64[np.ndarray, " queries"], keys: UInt64[np.ndarray, " keys"]
) -> tuple[Int64[np.ndarray, " queries"], Int64[np.ndarray, " queries"]]:
    """For every query the first key that differs in the fewest bits, and the number of these bits. Works in blocks."""
    nearest = np.empty(len(queries), dtype=np.int64)
    bits = np.empty(len(queries), dtype=np.int64)
    step = max(1, _BLOCK // len(keys))
    for start in range(0, len(queries), step):
        block = np.bitwise_count(queries[start : start + step, None] ^ keys[None, :])
        nearest[start : start + step] = block.argmin(axis=1)
        bits[start : start + step] = block.min(axis=1)
    return nearest, bits
