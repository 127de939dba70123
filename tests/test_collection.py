"""Collections: complete or absent, opened as they were saved, refusing what does not belong."""

import json
import resource
import shutil

import numpy as np
import pytest
from tiny_model import COLOURS, ColourEncoder, paint, paint_many, tiny_model

from voken.collection.store import Collection
from voken.collection.text_column import TextColumn
from voken.data.captions import CaptionedImage, Dataset, read_dataset
from voken.encoders.cache import VectorCache
from voken.errors import (
    ArtifactError,
    ArtifactVersionError,
    CorruptArtifactError,
    DataError,
    EmptyDataError,
    StorageError,
)


def test_what_is_opened_is_what_was_made(tmp_path):
    files = paint_many(tmp_path / "in", 10)
    model = tiny_model()
    made = Collection.create(tmp_path / "c", files, model)
    again = Collection.open(tmp_path / "c", verify=True)
    vectors = model.encoder.encode_images([_image(path) for path in files])
    for collection in (made, again):
        assert list(collection.ids) == [path.name for path in files]
        assert collection.paths == files
        assert collection.path(3) == files[3]
        np.testing.assert_array_equal(collection.vokens, model.tokenizer.encode(vectors))
        np.testing.assert_allclose(collection.vectors, vectors, atol=1e-3)
        assert len(collection) == collection.trie.images == 10
        assert collection.skipped == ()
        assert collection.bytes_per_picture > 2 * 4 + 3 * 2


def _image(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def test_a_data_set_keeps_its_ids_and_vectors_may_be_left_out(tmp_path):
    paint(tmp_path / "in" / "a" / "red.png", COLOURS["red"])
    paint(tmp_path / "in" / "blue.png", COLOURS["blue"])
    rows = [{"file_name": "a/red.png", "text": "red"}, {"file_name": "blue.png", "text": "blue"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    collection = Collection.create(tmp_path / "c", read_dataset(tmp_path / "in"), tiny_model(), vectors=False)
    assert list(collection.ids) == ["a/red.png", "blue.png"]
    assert collection.vectors is None
    assert not (tmp_path / "c" / "vectors.npy").exists()


def test_pictures_outside_the_root_and_odd_names(tmp_path):
    inside, outside = paint(tmp_path / "in" / "ünï 例.png", (9, 9, 9)), paint(tmp_path / "out.png", (1, 200, 1))
    images = (CaptionedImage("one", inside), CaptionedImage("\ud800two", outside))
    collection = Collection.create(tmp_path / "c", Dataset("d", tmp_path / "in", images), tiny_model())
    assert list(collection.ids) == ["one", "\ud800two"]
    assert collection.paths == [inside, outside]


def test_bad_pictures_are_left_out_and_listed(tmp_path):
    good = paint(tmp_path / "in" / "good.png", (200, 10, 10))
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "torn.png").write_bytes(good.read_bytes()[:40])
    files = [tmp_path / "in" / name for name in ("empty.jpg", "good.png", "missing.png", "torn.png")]
    collection = Collection.create(tmp_path / "c", files, tiny_model())
    assert list(collection.ids) == ["good.png"]
    assert [one.path for one in Collection.open(tmp_path / "c").skipped] == [str(files[i]) for i in (0, 2, 3)]
    assert all(one.reason for one in collection.skipped)


def test_only_bad_pictures_are_no_collection(tmp_path):
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    for file in files:
        file.write_bytes(b"not a picture")
    with pytest.raises(EmptyDataError, match=r"None of the 5 pictures .*a\.png: .*c\.png: .*and 2 more"):
        Collection.create(tmp_path / "c", files, tiny_model())
    assert not (tmp_path / "c").exists()
    with pytest.raises(EmptyDataError, match="no picture to index"):
        Collection.create(tmp_path / "c", [], tiny_model())


def test_ids_that_stand_twice_are_refused(tmp_path):
    path = paint(tmp_path / "a.png", (1, 2, 3))
    twice = Dataset("d", tmp_path, (CaptionedImage("same", path), CaptionedImage("same", path)))
    with pytest.raises(DataError, match="'same' stands twice"):
        Collection.create(tmp_path / "c", twice, tiny_model())


def test_a_second_run_decodes_nothing_again(tmp_path):
    files = paint_many(tmp_path / "in", 6)
    cache = VectorCache(tmp_path / "cache")
    Collection.create(tmp_path / "c", files, tiny_model(), cache=cache)

    class Idle(ColourEncoder):
        def encode_images(self, images):
            raise AssertionError("encoded again")

    model = tiny_model()
    model = type(model)(Idle(), model.tokenizer, model.generator)
    again = Collection.create(tmp_path / "d", files, model, cache=cache)
    np.testing.assert_array_equal(again.vokens, Collection.open(tmp_path / "c").vokens)


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    files = paint_many(tmp_path / "in", 4)
    with pytest.raises(ArtifactError, match="already exists"):
        Collection.create(tmp_path / "in", files, tiny_model())
    Collection.create(tmp_path / "c", files, tiny_model())
    with pytest.raises(ArtifactError, match="a saved collection is there already"):
        Collection.create(tmp_path / "c", files[:2], tiny_model())
    assert len(Collection.create(tmp_path / "c", files[:2], tiny_model(), replace=True)) == 2
    assert len(Collection.open(tmp_path / "c")) == 2


def test_damage_is_seen(tmp_path):
    Collection.create(tmp_path / "c", paint_many(tmp_path / "in", 6), tiny_model())
    for name in ("vokens.npy", "trie/order.npy", "ids.utf8", "config.json", "vectors.npy"):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "c", copy)
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=name):
            Collection.open(copy, verify=True)
        (copy / name).write_bytes(content[:-3])
        with pytest.raises(CorruptArtifactError, match=name):
            Collection.open(copy)
        shutil.rmtree(copy)
    with pytest.raises(ArtifactError, match="no saved collection"):
        Collection.open(tmp_path)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ArtifactVersionError, match="Upgrade"):
        Collection.open(tmp_path / "c")


@pytest.mark.parametrize("limit", [200, 400])
def test_a_full_disk_leaves_nothing_behind(tmp_path, limit):
    files = paint_many(tmp_path / "in", 40)
    cache = VectorCache(tmp_path / "cache")
    Collection.create(tmp_path / "first", files, tiny_model(), cache=cache)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(what, done, total):  # the cache is done with when it says so; no file may grow beyond the limit then
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with pytest.raises(StorageError, match=r"second.*untouched"):
            Collection.create(tmp_path / "second", files, tiny_model(), cache=cache, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "first", "in"]


def test_pictures_and_collection_may_move_together(tmp_path):
    files = paint_many(tmp_path / "old" / "in", 4)
    Collection.create(tmp_path / "old" / "c", files, tiny_model(), model_folder=tmp_path / "old" / "model")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Collection.open(tmp_path / "new" / "c")
    assert moved.paths == [tmp_path / "new" / "in" / path.name for path in files]
    assert moved.model_folders[1].resolve() == tmp_path / "new" / "model"


def test_another_model_is_refused(tmp_path):
    collection = Collection.create(tmp_path / "c", paint_many(tmp_path / "in", 4), tiny_model())
    collection.check_model(tiny_model())
    with pytest.raises(ArtifactError, match="made with another model"):
        collection.check_model(tiny_model(fingerprint="other"))


def test_text_column(tmp_path):
    texts = ["", "a", "例え", "\udcff.png", "", "z" * 1000]
    TextColumn.of(texts).save(tmp_path, "t")
    column = TextColumn.load(tmp_path, "t")
    assert list(column) == texts
    assert column[-1] == texts[-1]
    assert column[1:3] == texts[1:3]
    with pytest.raises(IndexError):
        column[6]
    TextColumn.of([]).save(tmp_path, "none")
    assert list(TextColumn.load(tmp_path, "none")) == []
    (tmp_path / "t.utf8").write_bytes(b"short")
    with pytest.raises(CorruptArtifactError, match="offsets"):
        TextColumn.load(tmp_path, "t")
    (tmp_path / "t.offsets.npy").unlink()
    with pytest.raises(CorruptArtifactError, match="cannot be read"):
        TextColumn.load(tmp_path, "t")
