"""Collections: complete or absent, opened as they were saved, refusing what does not belong."""

import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.collections import make_collection
from builders.tiny_model import COLOURS, ColourEncoder, paint, paint_many, tiny_model
from voken.collection.base import TextColumn
from voken.collection.indexing import new_store
from voken.collection.snapshot import refuse_repeats
from voken.collection.store import Store
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
    created = make_collection(tmp_path / "c", files, model)
    again = Store.open(tmp_path / "c").snapshot(verify=True)
    vectors = model.encoder.encode_images([_image(path) for path in files])
    for collection in (created, again):
        assert list(collection.ids) == [path.name for path in files]
        assert collection.paths == files
        assert collection.path(3) == files[3]
        np.testing.assert_array_equal(collection.vokens, model.tokenizer.encode(vectors))
        np.testing.assert_allclose(collection.vectors, vectors, atol=1e-3)
        assert len(collection) == collection.trie.images == 10
        assert collection.skipped == ()
        size = collection.size
        assert (size.paths, size.vectors) == (0, 10 * 3 * 2)  # the ids are the paths; float16
        assert collection.bytes_per_picture * 10 == size.trie_levels + size.picture_numbers + size.vectors
        assert size.total == collection.bytes_per_picture * 10 + size.ids + size.files
        assert size.files == 10 * 40
    on_disk = sum((tmp_path / "c" / "base-000001" / name).stat().st_size for name in ("ids.zlib", "ids.blocks.npy"))
    assert again.size.ids == on_disk - 128  # the header of one .npy
    assert again.size == created.size


def _image(path):
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def test_a_data_set_keeps_its_ids_and_vectors_may_be_left_out(tmp_path):
    paint(tmp_path / "in" / "a" / "red.png", COLOURS["red"])
    paint(tmp_path / "in" / "blue.png", COLOURS["blue"])
    rows = [{"file_name": "a/red.png", "text": "red"}, {"file_name": "blue.png", "text": "blue"}]
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    collection = make_collection(tmp_path / "c", read_dataset(tmp_path / "in"), tiny_model(), vectors=False)
    assert list(collection.ids) == ["a/red.png", "blue.png"]
    assert collection.vectors is None
    assert not list((tmp_path / "c").rglob("vectors.npy"))


def test_pictures_outside_the_root_and_odd_names(tmp_path):
    inside, outside = paint(tmp_path / "in" / "ünï 例.png", (9, 9, 9)), paint(tmp_path / "out.png", (1, 200, 1))
    images = (CaptionedImage("one", inside), CaptionedImage("\ud800two", outside))
    collection = make_collection(tmp_path / "c", Dataset("d", tmp_path / "in", images), tiny_model())
    assert list(collection.ids) == ["one", "\ud800two"]
    assert collection.paths == [inside, outside]


def test_bad_pictures_are_left_out_and_listed(tmp_path):
    good = paint(tmp_path / "in" / "good.png", (200, 10, 10))
    (tmp_path / "in" / "empty.jpg").write_bytes(b"")
    (tmp_path / "in" / "torn.png").write_bytes(good.read_bytes()[:40])
    files = [tmp_path / "in" / name for name in ("empty.jpg", "good.png", "missing.png", "torn.png")]
    collection = make_collection(tmp_path / "c", files, tiny_model())
    assert list(collection.ids) == ["good.png"]
    assert [one.path for one in Store.open(tmp_path / "c").snapshot().skipped] == [str(files[i]) for i in (0, 2, 3)]
    assert all(one.reason for one in collection.skipped)


def test_only_bad_pictures_are_no_collection(tmp_path):
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    for file in files:
        file.write_bytes(b"not a picture")
    with pytest.raises(EmptyDataError, match=r"None of the 5 pictures .*a\.png: .*c\.png: .*and 2 more"):
        make_collection(tmp_path / "c", files, tiny_model())
    assert not (tmp_path / "c").exists()
    with pytest.raises(EmptyDataError, match="no picture to index"):
        make_collection(tmp_path / "c", [], tiny_model())


def test_ids_that_stand_twice_are_refused(tmp_path):
    path = paint(tmp_path / "a.png", (1, 2, 3))
    twice = Dataset("d", tmp_path, (CaptionedImage("same", path), CaptionedImage("same", path)))
    with pytest.raises(DataError, match="'same' occurs twice"):
        make_collection(tmp_path / "c", twice, tiny_model())


def test_a_second_run_decodes_nothing_again(tmp_path):
    files = paint_many(tmp_path / "in", 6)
    cache = VectorCache(tmp_path / "cache")
    make_collection(tmp_path / "c", files, tiny_model(), cache=cache)

    class Idle(ColourEncoder):
        def encode_images(self, images):
            raise AssertionError("encoded again")

    model = tiny_model()
    model = type(model)(Idle(), model.tokenizer, model.generator)
    again = make_collection(tmp_path / "d", files, model, cache=cache)
    np.testing.assert_array_equal(again.vokens, Store.open(tmp_path / "c").snapshot().vokens)


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    files = paint_many(tmp_path / "in", 4)
    with pytest.raises(ArtifactError, match="already exists"):
        make_collection(tmp_path / "in", files, tiny_model())
    make_collection(tmp_path / "c", files, tiny_model())
    with pytest.raises(ArtifactError, match="a saved collection is there already"):
        new_store(tmp_path / "c", tmp_path / "in", tiny_model())
    assert len(make_collection(tmp_path / "c", files[:2], tiny_model(), replace=True)) == 2
    assert len(Store.open(tmp_path / "c").snapshot()) == 2


def test_damage_is_seen(tmp_path):
    make_collection(tmp_path / "c", paint_many(tmp_path / "in", 6), tiny_model())
    for part in ("trie/vokens_1.npy", "trie/order.npy", "ids.zlib", "base.json", "vectors.npy", "files.npy"):
        name = f"base-000001/{part}"
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "c", copy)
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=name):
            Store.open(copy).snapshot(verify=True)
        (copy / name).write_bytes(content[:-3])
        with pytest.raises(CorruptArtifactError, match=name):
            Store.open(copy).snapshot()
        shutil.rmtree(copy)
    with pytest.raises(ArtifactError, match="no saved collection"):
        Store.open(tmp_path).snapshot()
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    for version, says in ((99, "Upgrade"), (1, "older voken. Index the pictures again")):
        (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"version": version}))
        with pytest.raises(ArtifactVersionError, match=says):
            Store.open(tmp_path / "c").snapshot()


@pytest.mark.parametrize("limit", [200, 400])
def test_a_full_disk_leaves_nothing_behind(tmp_path, limit):
    files = paint_many(tmp_path / "in", 30)  # as many as one commit holds
    cache = VectorCache(tmp_path / "cache")
    make_collection(tmp_path / "first", files, tiny_model(), cache=cache)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(what, done, total):  # the cache is done with when it says so; no file may grow beyond the limit then
        if what == "pictures to vectors" and done == total:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    try:
        with pytest.raises(StorageError, match=r"second.*run the (same )?command again"):
            make_collection(tmp_path / "second", files, tiny_model(), cache=cache, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "first", "in"]


def test_pictures_and_collection_may_move_together(tmp_path):
    files = paint_many(tmp_path / "old" / "in", 4)
    make_collection(tmp_path / "old" / "c", files, tiny_model(), model_folder=tmp_path / "old" / "model")
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Store.open(tmp_path / "new" / "c").snapshot()
    assert moved.paths == [tmp_path / "new" / "in" / path.name for path in files]
    assert moved.model_folders[1].resolve() == tmp_path / "new" / "model"


def test_another_model_is_refused(tmp_path):
    collection = make_collection(tmp_path / "c", paint_many(tmp_path / "in", 4), tiny_model())
    collection.check_model(tiny_model())
    with pytest.raises(ArtifactError, match="made with another model"):
        collection.check_model(tiny_model(fingerprint="other"))


def test_ids_that_are_numbers_and_paths_that_are_not_ids(tmp_path):
    files = paint_many(tmp_path / "in", 6)
    images = tuple(CaptionedImage(str(place), path) for place, path in enumerate(files))
    created = make_collection(tmp_path / "c", Dataset("d", tmp_path / "in", images), tiny_model())
    assert list(created.ids) == ["0", "1", "2", "3", "4", "5"]
    assert (created.ids[-1], created.ids[1:3]) == ("5", ["1", "2"])
    assert created.size.ids == 0
    assert created.size.paths > 0
    assert created.paths == files
    assert not list((tmp_path / "c").rglob("ids.*"))
    with pytest.raises(IndexError):
        created.ids[6]


def test_an_id_that_stands_twice_is_found_among_many():
    ids = [f"p{place}" for place in range(5000)]
    refuse_repeats(ids)
    refuse_repeats([])
    with pytest.raises(DataError, match="'p77' occurs twice"):
        refuse_repeats([*ids, "p77"])


def test_opening_needs_no_pictures_no_model_and_no_torch(tmp_path):
    files = paint_many(tmp_path / "in", 6)
    make_collection(tmp_path / "c", files, tiny_model())
    code = (
        "import sys; from pathlib import Path; from voken.collection.store import Store\n"
        f"collection = Store.open(Path({str(tmp_path / 'c')!r})).snapshot()\n"
        "print(collection.ids[5], collection.vokens.shape, {'torch', 'PIL', 'onnxruntime'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{files[5].name} (6, 2) set()"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(categories=None), max_size=12), max_size=20), st.integers(1, 40))
def test_text_column_gives_back_what_it_was_given(texts, times):
    texts = texts * times  # several blocks
    column = TextColumn.of(texts)
    assert list(column) == texts
    assert [column[place] for place in range(len(column))] == texts
    assert column[-3:] == texts[-3:]


def test_text_column_on_disk(tmp_path):
    texts = ["", "a", "例え", "\udcff.png", "", "z" * 1000] * 50
    TextColumn.of(texts).save(tmp_path, "t")
    column = TextColumn.load(tmp_path, "t", 300)
    assert list(column) == texts
    assert column[-1] == texts[-1]
    assert column[127:130] == texts[127:130]
    assert column.nbytes < 300 * 3
    with pytest.raises(IndexError):
        column[300]
    TextColumn.of([]).save(tmp_path, "none")
    assert list(TextColumn.load(tmp_path, "none", 0)) == []
    with pytest.raises(CorruptArtifactError, match="its size is not that of its blocks"):
        TextColumn.load(tmp_path, "t", 128)
    with pytest.raises(CorruptArtifactError, match="block 2 holds 44 texts, not 45"):
        TextColumn.load(tmp_path, "t", 301)[300]
    content = (tmp_path / "t.zlib").read_bytes()
    (tmp_path / "t.zlib").write_bytes(bytes(len(content)))
    with pytest.raises(CorruptArtifactError, match=r"t\.zlib: is damaged"):
        TextColumn.load(tmp_path, "t", 300)[0]
    (tmp_path / "t.zlib").write_bytes(b"short")
    with pytest.raises(CorruptArtifactError, match="blocks"):
        TextColumn.load(tmp_path, "t", 300)
    (tmp_path / "t.blocks.npy").unlink()
    with pytest.raises(CorruptArtifactError, match="missing"):
        TextColumn.load(tmp_path, "t", 300)
