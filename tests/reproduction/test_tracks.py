"""Tracks with a data set's own split: what is searched, what is asked, and what is left out."""

import json

import numpy as np
import pytest
from PIL import Image

from voken.config import preset
from voken.errors import DataError
from voken_lab.evaluation.protocol import pool_of, queries_of
from voken_lab.reproduction.tracks import TRACKS, track

CAPTIONS = ["a dog on a beach", "a dog near the sea", "sand", "a wave", "an animal"]


@pytest.fixture
def photographs(tmp_path):
    """Twelve pictures of noise for each split; test picture 1 shows almost what train picture 1 shows."""
    random = np.random.default_rng(0)
    lines = []
    for split in ("train", "validation", "test"):
        for number in range(12):
            pixels = random.integers(0, 256, (24, 24), dtype=np.uint8)
            if (split, number) == ("test", 1):
                pixels = np.asarray(Image.open(tmp_path / "train-1.png")).copy()
                pixels[0, 0] ^= 1
            name = f"{split}-{number}.png"
            Image.fromarray(pixels).save(tmp_path / name)
            own = [f"{caption} {split} {number}" for caption in CAPTIONS]
            lines.append({"file_name": name, "captions": own, "concept": name, "split": split})
    lines[-1]["captions"][0] = lines[-2]["captions"][0].upper()
    write(tmp_path, lines)
    return tmp_path


def write(folder, lines):
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def test_flickr8k_is_its_official_split_whatever_the_seed(photographs):
    read = [track("flickr8k").read(photographs, None, seed, quick=False) for seed in (0, 1)]
    assert read[0].images == read[1].images
    assert [len(read[0].split(name)) for name in ("train", "validation", "test")] == [12, 12, 12]
    test = read[0].split("test")
    queries = queries_of(test, pool_of(test), distinct=track("flickr8k").distinct)
    assert len(queries) == 60
    shared = [query for query in queries if len(query.relevant) == 2]
    assert [set(query.relevant) for query in shared] == [{"test-10.png", "test-11.png"}] * 2


def test_rsicd_drops_near_duplicates_that_cross_splits_and_says_which(photographs):
    dataset = track("rsicd").read(photographs, None, 0, quick=False)
    assert "test-1.png" not in {image.image_id for image in dataset.images}
    assert len(dataset) == 35
    (dropped,) = dataset.skipped
    assert dropped.path.endswith("test-1.png")
    assert "train-1.png" in dropped.reason
    assert "but near-duplicates" in track("rsicd").pool_in_words
    assert "duplicates" not in track("flickr8k").pool_in_words


def test_a_quick_run_has_a_sixth_of_each_split(photographs):
    dataset = track("flickr8k").read(photographs, None, 0, quick=True)
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [2, 2, 2]
    other = track("flickr8k").read(photographs, None, 1, quick=True)
    assert {image.image_id for image in other.images} != {image.image_id for image in dataset.images}
    settings = track("flickr8k").config(0, quick=True)
    assert settings.encoder.image_size < track("flickr8k").config(0, quick=False).encoder.image_size


def test_karpathys_file_beside_a_folder_of_pictures_is_read(photographs, tmp_path):
    records = [json.loads(line) for line in (photographs / "metadata.jsonl").read_text().splitlines()]
    (photographs / "metadata.jsonl").unlink()
    images = [
        {
            "filename": record["file_name"],
            "split": {"validation": "val"}.get(record["split"], record["split"]),
            "sentences": [{"raw": caption} for caption in record["captions"]],
        }
        for record in records
    ]
    file = photographs / "dataset_flickr8k.json"
    file.write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    dataset = track("flickr8k").read(file, photographs, 0, quick=False)
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [12, 12, 12]
    assert dataset.images[-1].captions == tuple(records[-1]["captions"])


def test_a_data_set_without_its_split_is_refused(photographs):
    lines = [json.loads(line) for line in (photographs / "metadata.jsonl").read_text().splitlines()]
    write(photographs, [line | {"split": "train"} for line in lines])
    with pytest.raises(DataError, match=r"no picture is in the split 'test', and the track flickr8k .* field 'split'"):
        track("flickr8k").read(photographs, None, 0, quick=False)


def test_every_track_has_settings_that_exist():
    for each in TRACKS.values():
        for quick in (False, True):
            assert each.config(3, quick=quick).seed == 3
        preset(each.preset).override(each.settings)
