"""A collection follows its folder: what is new, changed, moved and gone, looking at no more files than it must."""

import json
import os
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from builders.collections import make_collection
from builders.tiny_model import COLOURS, ColourEncoder, paint, paint_many, tiny_model
from builders.zones import in_zone
from voken.collection.filters import Filter, fields_of, matching_rows
from voken.collection.gallery import taken_seconds
from voken.collection.indexing import add_pictures, index_pictures, new_store
from voken.collection.store import PICTURES, Store
from voken.data import images
from voken.data.captions import read_dataset
from voken.errors import ArtifactError, ConfigError, EmptyDataError


class CountingEncoder(ColourEncoder):
    """Counts the pictures it encodes."""

    def __init__(self):
        self.encoded = 0

    def encode_images(self, images):
        self.encoded += len(images)
        return super().encode_images(images)


@pytest.fixture
def model():
    model_ = tiny_model()
    return type(model_)(CountingEncoder(), model_.tokenizer, model_.generator)


@pytest.fixture
def folder(tmp_path):
    paint_many(tmp_path / "in" / "trips", 6)
    return tmp_path / "in"


@pytest.fixture
def store(tmp_path, folder, model):
    store = new_store(tmp_path / "c", folder, model)
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.added, report.changes) == (6, 6)
    return store


def ids(store):
    snapshot = store.snapshot()
    return sorted(snapshot.ids[row] for row in snapshot.rows.tolist())


def same_as_anew(store, folder, tmp_path):
    """A collection made now of the folder has the same pictures, sequences and vectors."""
    fresh = make_collection(tmp_path / "fresh", read_dataset(folder), tiny_model())
    snapshot = store.snapshot()
    for row in fresh.rows.tolist():
        other = snapshot.find(fresh.ids[row])
        np.testing.assert_array_equal(snapshot.sequence(other), fresh.sequence(row))
        np.testing.assert_array_equal(snapshot.vectors[np.array([other])], fresh.vectors[np.array([row])])
        assert snapshot.path(other) == fresh.path(row)
    assert len(snapshot) == len(fresh)
    shutil.rmtree(tmp_path / "fresh")


def test_a_second_run_looks_into_no_file(store, folder, model, monkeypatch):
    def read(*args):
        raise AssertionError("looked into a file")

    monkeypatch.setattr("voken.collection.indexing.file_hash", read)
    before = store.snapshot()
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.unchanged, report.changes) == (6, 0)
    assert store.snapshot(before) is before


def test_new_changed_moved_copied_touched_and_gone(store, folder, model, tmp_path):
    encoded = model.encoder.encoded
    trips = folder / "trips"
    paint(folder / "new.png", (7, 99, 200))
    paint(trips / "p000.png", (250, 250, 3))  # changed
    (folder / "moved").mkdir()
    (trips / "p001.png").rename(folder / "moved" / "here.png")
    shutil.copy(trips / "p002.png", folder / "copy.png")
    os.utime(trips / "p003.png", (1, 1))
    (trips / "p004.png").unlink()
    report = index_pictures(store, read_dataset(folder), model)
    # p001 … p005 have equals by twos, which are hashed alike: what matters is that nothing known is encoded again
    assert model.encoder.encoded - encoded == 2
    assert (report.added, report.updated, report.removed + report.moved, report.unchanged) == (2, 1, 2, 3)
    assert report.moved == 1
    assert ids(store) == sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    same_as_anew(store, folder, tmp_path)
    again = index_pictures(store, read_dataset(folder), model)
    assert (again.changes, again.unchanged) == (0, len(ids(store)))
    store.compact()
    same_as_anew(store, folder, tmp_path)


def test_bad_files_are_named_once_and_tried_again_when_they_change(store, folder, model, monkeypatch):
    bad = folder / "bad.png"
    bad.write_bytes(b"not a picture")
    report = index_pictures(store, read_dataset(folder), model)
    assert [(one.path, one.reason) for one in report.skipped] == [(str(bad), "not a picture of a known kind")]
    looked = []
    real = images.file_hash
    monkeypatch.setattr("voken.collection.indexing.file_hash", lambda path: looked.append(path) or real(path))
    assert [one.path for one in index_pictures(store, read_dataset(folder), model).skipped] == [str(bad)]
    assert looked == []
    paint(bad, (1, 2, 3))
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.added, report.skipped) == (1, ())
    bad.write_bytes(b"broken again")  # a picture that is none any more is not to be found
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.removed, [one.path for one in report.skipped]) == (1, [str(bad)])
    bad.unlink()
    assert index_pictures(store, read_dataset(folder), model).skipped == ()


def test_a_run_that_is_stopped_goes_on(tmp_path, folder, model, monkeypatch):
    monkeypatch.setattr("voken.collection.indexing._PICTURES_PER_COMMIT", 2)
    store = new_store(tmp_path / "c", folder, model)

    def stop(what, done, total):
        if what == "pictures to vectors" and done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_pictures(store, read_dataset(folder), model, progress=stop)
    assert len(ids(store)) == 4  # and searchable
    report = index_pictures(Store.open(tmp_path / "c"), read_dataset(folder), model)
    assert (report.added, report.unchanged) == (2, 4)


def test_metadata_follows_its_file(tmp_path, model):
    folder = tmp_path / "in"
    paint(folder / "a.png", COLOURS["red"])
    paint(folder / "b.png", COLOURS["blue"])

    def write(*extra):
        rows = [{"file_name": "a.png", "text": "secret words"}, {"file_name": "b.png"}]
        lines = [json.dumps(row | more) for row, more in zip(rows, extra, strict=True)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))

    write({"licence": "CC0", "stars": 3}, {"tags": ["sea", "sand"]})
    store = new_store(tmp_path / "c", folder, model)
    index_pictures(store, read_dataset(folder), model)
    assert fields_of(store.snapshot()) == ["date", "folder", "licence", "stars", "tags"]
    snapshot = store.snapshot()
    assert json.loads(snapshot.metadata(snapshot.find("a.png"))) == {"licence": "CC0", "stars": 3}
    encoded = model.encoder.encoded
    write({"licence": "CC0", "stars": 5}, {"tags": ["sea", "sand"]})
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.updated, report.unchanged, model.encoder.encoded) == (1, 1, encoded)
    store.compact()
    snapshot = store.snapshot()
    assert json.loads(snapshot.metadata(snapshot.find("a.png")))["stars"] == 5


def test_ids_of_single_pictures(store, model, tmp_path):
    first, second = paint(tmp_path / "1.png", COLOURS["green"]), paint(tmp_path / "2.png", COLOURS["white"])
    add_pictures(store, [first, first, second], model, ids=["a", "again", "b"], metadata=["", "", '{"x":1}'])
    snapshot = store.snapshot()
    assert (snapshot.path(snapshot.find("a")), snapshot.path(snapshot.find("b"))) == (first, second)
    assert snapshot.metadata(snapshot.find("b")) == '{"x":1}'
    with pytest.raises(ConfigError, match="each of the 2 pictures"):
        add_pictures(store, [first, second], model, ids=["a"])


def test_single_pictures_from_anywhere(store, folder, model, tmp_path):
    outside = paint(tmp_path / "out.png", COLOURS["green"])
    uploaded = paint(store.folder / PICTURES / "up.png", COLOURS["white"])
    report = add_pictures(store, [outside, uploaded, tmp_path / "none.png", folder / "trips" / "p000.png"], model)
    assert sorted(report.added) == sorted([outside.as_posix(), f"{PICTURES}/up.png"])
    assert report.updated == ("trips/p000.png",)
    assert [(one.path, one.reason) for one in report.skipped] == [
        (str(tmp_path / "none.png"), "cannot be read (No such file or directory)")
    ]
    snapshot = store.snapshot()
    assert {snapshot.path(snapshot.find(name)) for name in report.added} == {outside, uploaded}
    assert snapshot.ids_of_paths([outside.as_posix(), "nothing"]) == {outside.as_posix(): [outside.as_posix()]}
    # an update of the folder keeps what was uploaded, and not what lies elsewhere
    index_pictures(store, read_dataset(folder), model)
    assert f"{PICTURES}/up.png" in ids(store)
    assert outside.as_posix() not in ids(store)


def test_what_cannot_be_indexed_is_refused(store, folder, model, tmp_path):
    paint(tmp_path / "other" / "x.png", (1, 1, 1))
    with pytest.raises(ConfigError, match=r"holds the pictures of .*in, not of .*other"):
        index_pictures(store, read_dataset(tmp_path / "other"), model)
    with pytest.raises(ArtifactError, match="another model"):
        index_pictures(store, read_dataset(folder), tiny_model(fingerprint="other"))
    for path in (folder / "trips").iterdir():
        path.write_bytes(b"")
    with pytest.raises(EmptyDataError, match=r"None of the 6 pictures could be used .*empty file"):
        index_pictures(store, read_dataset(folder), model)


def test_dates_come_from_the_camera_or_else_from_the_file(tmp_path, model):
    folder = tmp_path / "in"
    folder.mkdir()
    shot = Image.new("RGB", (8, 8), COLOURS["red"])
    exif = Image.Exif()
    exif[306] = "2023:07:14 10:20:30"
    exif.get_ifd(0x8769)[36867] = "2021:05:31 23:59:59"
    shot.save(folder / "shot.jpg", exif=exif)
    paint(folder / "plain.png", COLOURS["blue"])
    os.utime(folder / "plain.png", (1_700_000_000, 1_700_000_000))  # 2023-11-14
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(folder / "plain.png", folder / "deep" / "er" / "odd.png")
    exif[306] = exif.get_ifd(0x8769)[36867] = "0000:00:00 00:00:00"
    shot.save(folder / "odd.jpg", exif=exif)
    os.utime(folder / "odd.jpg", (86_400, 86_400))  # 1970-01-02
    store = new_store(tmp_path / "c", folder, model)
    index_pictures(store, read_dataset(folder), model)

    def matching(*filters):
        snapshot = store.snapshot()
        return {snapshot.ids[row] for row in matching_rows(snapshot, map(Filter.parse, filters)).tolist()}

    with in_zone("UTC"):
        for _ in range(2):
            assert matching("date=2021") == matching("date=2021-05") == matching("date=2021-5-31") == {"shot.jpg"}
            assert matching("date=2021-05-30") == set()
            assert matching("date<2021") == matching("date<=1970-01-02") == {"odd.jpg"}
            assert matching("date>=2021-05-31") == {"shot.jpg", "plain.png"} | matching("folder=deep")
            assert matching("date>2021") == {"plain.png"} | matching("folder=deep")
            assert matching("date!=2021", "date!=1970", "folder!=deep") == {"plain.png"}
            assert (
                matching("folder=deep") == matching("folder=deep/er") == matching("folder~EEP") == {"deep/er/odd.png"}
            )
            assert matching("folder=dee") == set()
            assert len(matching("folder=.")) == 4
            store.compact()
    snapshot = store.snapshot()
    rows = np.array([snapshot.find(name) for name in ("shot.jpg", "odd.jpg", "plain.png")])
    with in_zone("America/New_York"):
        shot, odd, plain = taken_seconds(snapshot, rows).tolist()
    assert shot == datetime(2021, 5, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    assert plain == 1_700_000_000 - 5 * 3600
    assert odd == 86_400 - 5 * 3600


def test_a_picture_that_is_replaced_while_it_is_indexed_waits_for_the_next_run(store, folder, model):
    """Its hash would be that of another picture than its vector, and copies would get the wrong vector."""
    target = paint(folder / "x.png", COLOURS["green"])
    old = target.read_bytes()

    def replace_it(stage, done, total):
        if stage == "read new files" and done == total:
            paint(target, COLOURS["white"])

    report = index_pictures(store, read_dataset(folder), model, progress=replace_it)
    assert [file.reason for file in report.skipped] == ["cannot be read (it changed meanwhile)"]
    assert "x.png" not in ids(store)
    (folder / "copy.png").write_bytes(old)
    report = index_pictures(store, read_dataset(folder), model)
    assert (report.added, report.skipped) == (2, ())
    snapshot = store.snapshot()
    for name, colour in (("x.png", "white"), ("copy.png", "green")):
        vector = model.encoder.encode_images([Image.new("RGB", (8, 8), COLOURS[colour])])[0]
        np.testing.assert_array_equal(snapshot.vectors[snapshot.find(name)], vector.astype(np.float16))


def test_a_file_with_another_id_stays_while_it_cannot_be_read(store, folder, model, monkeypatch):
    target = paint(folder / "x.png", COLOURS["green"])
    add_pictures(store, [target], model, ids=["holiday"], metadata=['{"x":1}'])
    original = images._open_file

    def refuse(path):
        if path == target:
            raise PermissionError(13, "Permission denied")
        return original(path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "_open_file", refuse)
        report = index_pictures(store, read_dataset(folder), model)
    assert (report.removed, len(report.skipped)) == (0, 1)
    assert "holiday" in ids(store)
    report = index_pictures(store, read_dataset(folder), model)
    assert report.moved == 1
    snapshot = store.snapshot()
    assert snapshot.metadata(snapshot.find("x.png")) == '{"x":1}'


def test_a_moved_folder_is_known_by_its_files_whatever_their_ids(store, folder, model, tmp_path):
    names = sorted((folder / "trips").iterdir())
    add_pictures(store, names, model, ids=[f"id {place}" for place in range(len(names))])
    store.commit(remove=[name for name in ids(store) if not name.startswith("id ")])
    folder.rename(tmp_path / "moved")
    report = index_pictures(store, read_dataset(tmp_path / "moved"), model)
    assert (report.moved, report.pictures) == (6, 6)
