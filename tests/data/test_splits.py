"""Splits by family, and the hunt for pictures on two sides, against brute force."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voken.data.captions import CaptionedImage, Dataset
from voken.data.splits import (
    check_disjoint,
    dhash,
    drop_near_duplicates,
    one_per_concept,
    resplit,
    resplit_clean,
    split_by_concept,
)
from voken.errors import ConfigError, EmptyDataError, SplitLeakError


def dataset(families: list[int], hands: int = 2) -> Dataset:
    """`families[i]` concepts in family i, each drawn by `hands`."""
    images = [
        CaptionedImage(f"{f}-{c}-{h}", Path(f"/x/{f}-{c}-{h}.png"), concept=f"c{f}-{c}", family=f"f{f}")
        for f, size in enumerate(families)
        for c in range(size)
        for h in range(hands)
    ]
    return Dataset("d", Path("/x"), tuple(images))


def sides(dataset: Dataset, of: str) -> dict[str, set[str]]:
    by_side: dict[str, set[str]] = {}
    for image in dataset.images:
        by_side.setdefault(getattr(image, of), set()).add(image.split)
    return by_side


def test_resplit_gives_exact_counts_and_parts_no_family():
    source = dataset([5, 1, 1, 30, 2, 1, 1, 1, 3, 1, 1, 2, 1, 1, 1, 1, 1, 1])
    for seed in range(20):
        split = resplit(source, seed=seed, test_concepts=10, validation_concepts=4)
        assert len(split.split("test").concepts) == 10
        assert len(split.split("validation").concepts) == 4
        assert len(split.split("train").concepts) == len(source.concepts) - 14
        assert all(len(on) == 1 for on in sides(split, "family").values())
        assert [replace(image, split="") for image in split.images] == list(source.images)
        check_disjoint(split)


def test_resplit_depends_on_the_seed_alone():
    source = dataset([1] * 40)
    again = replace(source, images=source.images[::-1])
    first = {
        image.image_id: image.split for image in resplit(source, seed=3, test_concepts=9, validation_concepts=9).images
    }
    other = {
        image.image_id: image.split for image in resplit(again, seed=3, test_concepts=9, validation_concepts=9).images
    }
    assert first == other
    moved = resplit(source, seed=4, test_concepts=9, validation_concepts=9)
    assert first != {image.image_id: image.split for image in moved.images}


def test_resplit_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match="the data set has 4 concepts"):
        resplit(dataset([1] * 4), seed=0, test_concepts=3, validation_concepts=1)
    with pytest.raises(ConfigError, match="negative"):
        resplit(dataset([1] * 4), seed=0, test_concepts=-1, validation_concepts=1)


def test_resplit_clean_leaves_the_count_asked_for():
    source = dataset([1] * 100)
    split, dropped = resplit_clean(source, seed=3, test_concepts=20, validation_concepts=10, distance=None)
    assert dropped == []
    assert len(split.split("test").concepts) == 20
    assert len(split.split("train").concepts) == 68  # two more were drawn for the test, and are in no split
    again, _ = resplit_clean(source, seed=3, test_concepts=20, validation_concepts=10, distance=None)
    assert again.images == split.images


def test_split_by_concept_in_fractions_or_with_a_pool():
    source = dataset([1] * 100)
    split = split_by_concept(source, seed=0)
    assert [len(split.split(name).concepts) for name in ("train", "validation", "test")] == [70, 10, 20]
    split = split_by_concept(source, seed=0, fractions=(0.8, 0.2, 0.0), pool=33)
    assert [len(split.split(name).concepts) for name in ("train", "validation", "test")] == [47, 20, 33]
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_concept(source, seed=0, fractions=(0.5, 0.1, 0.1))


def test_one_per_concept():
    source = dataset([1, 2, 3] * 10, hands=5)
    split = one_per_concept(source, 0)
    assert split.concepts == source.concepts
    assert len(split) == len(source.concepts)
    assert split == one_per_concept(source, 0)
    assert split != one_per_concept(source, 1)
    # the draw of one concept does not hang on the others
    alone = one_per_concept(replace(source, images=source.images[:5]), 0)
    assert alone.images == split.images[:1]
    # every hand has its turn
    hands = {one_per_concept(source, seed).images[0].image_id for seed in range(60)}
    assert len(hands) == 5


def test_check_disjoint_names_an_example():
    train = CaptionedImage("a", Path("a"), split="train", concept="dog", family="pet")
    test = CaptionedImage("b", Path("b"), split="test", concept="cat", family="wild")

    def check(**change: str) -> None:
        check_disjoint(Dataset("d", Path(), (train, replace(test, **change))), file_hashes={"a": "1", "b": "2"})

    check()
    check(split="train", concept="dog")
    check(split="", concept="dog")
    with pytest.raises(SplitLeakError, match=r"the concept 'dog' is in train \(a\) and in test \(b\)"):
        check(concept="dog")
    with pytest.raises(SplitLeakError, match="the family 'pet'"):
        check(family="pet")
    with pytest.raises(SplitLeakError, match="the file content '7'"):
        check_disjoint(Dataset("d", Path(), (train, test)), file_hashes={"a": "7", "b": "7"})


def test_dhash_of_a_picture_made_by_hand():
    bits = np.random.default_rng(0).integers(0, 2, (8, 8))
    values = np.full((8, 9), 100, dtype=np.int64)
    # steps of 10 up or down; a step that is not up is a 0
    values[:, 1:] += np.cumsum(np.where(bits == 1, 10, -10), axis=1)
    expected = int("".join(str(bit) for bit in bits.ravel()), 2)
    assert dhash(Image.fromarray(values.astype(np.uint8))) == expected
    assert dhash(Image.new("RGB", (50, 50), "white")) == 0


def test_dhash_does_not_mind_size_and_light():
    rough = np.random.default_rng(1).integers(60, 180, (8, 9), dtype=np.uint8)
    picture = Image.fromarray(rough).resize((180, 160), Image.Resampling.BICUBIC)
    darker = picture.resize((90, 80)).point(lambda value: value - 40)
    other = Image.fromarray(np.random.default_rng(2).integers(60, 180, (8, 9), dtype=np.uint8)).resize((180, 160))
    assert (dhash(picture) ^ dhash(darker)).bit_count() <= 3
    assert (dhash(picture) ^ dhash(other)).bit_count() > 15


@pytest.fixture
def noise(tmp_path):
    """Forty pictures, some of them a slightly changed copy of an earlier one."""
    lots = np.random.default_rng(5)
    images = []
    vectors: list[np.ndarray] = []
    for number in range(40):
        values = lots.integers(0, 256, (8, 9), dtype=np.uint8)
        if number % 4 == 3:
            values = vectors[number - 3].copy()
            values[0, : number % 5] = 128
        vectors.append(values)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
        split = ("train", "train", "validation", "test")[number % 4]
        images.append(CaptionedImage(str(number), tmp_path / f"{number}.png", split=split))
    return Dataset("noise", tmp_path, tuple(images))


@pytest.mark.parametrize("distance", [0, 3, 8, 25])
def test_near_duplicates_agree_with_brute_force(noise, monkeypatch, distance):
    # a block of two rows, so that several blocks are put together
    monkeypatch.setattr("voken.data.splits._BLOCK", 45)
    hashes = {}
    for image in noise.images:
        with Image.open(image.path) as picture:
            hashes[image.image_id] = dhash(picture)
    train = [image.image_id for image in noise.split("train").images]
    expected = [
        image.image_id
        for image in noise.images
        if image.split == "train"
        or all(bin(hashes[image.image_id] ^ hashes[other]).count("1") > distance for other in train)
    ]
    dataset, dropped = drop_near_duplicates(noise, distance=distance)
    assert [image.image_id for image in dataset.images] == expected
    assert len(dropped) == 40 - len(expected) > 0
    assert all("bits from the train picture" in one.reason for one in dropped)


def test_exact_repeats_and_unreadable_pictures_go(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 8, 9), dtype=np.uint8)
    for name, index in (("a", 0), ("again", 0), ("b", 1), ("c", 2)):
        Image.fromarray(values[index]).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_text("no picture")
    splits = {"a": "train", "again": "train", "broken": "train", "b": "validation", "c": ""}
    images = tuple(CaptionedImage(name, tmp_path / f"{name}.png", split=split) for name, split in splits.items())
    dataset, dropped = drop_near_duplicates(Dataset("d", tmp_path, images), distance=0)
    assert [image.image_id for image in dataset.images] == ["a", "b", "c"]
    assert [(Path(one.path).name, one.reason) for one in dropped] == [
        ("again.png", "exact repeat of a"),
        ("broken.png", "not a picture of a known kind"),
    ]


def test_near_duplicates_refusals(tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    broken = Dataset("d", tmp_path, (CaptionedImage("x", tmp_path / "broken.png", split="test"),))
    with pytest.raises(EmptyDataError):
        drop_near_duplicates(broken, distance=0)
    with pytest.raises(ConfigError):
        drop_near_duplicates(broken, distance=64)
