"""Collections with a model of their own, from the first index to a folder that has grown."""

import json
import threading

import numpy as np
import pytest
from safetensors import SafetensorError

from builders.untrained import paint_noise, quick_encoder
from voken import Collection
from voken.collection import own_model
from voken.collection.store import Store
from voken.encoders import frozen
from voken.errors import ArtifactError, BusyError, ConfigError, EmptyDataError, StorageError
from voken.model import untrained

ENCODER = quick_encoder()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(frozen, "frozen_encoder", lambda settings, device=None: ENCODER)
    monkeypatch.setattr(untrained, "_MIXTURES", 300)


def ids(hits):
    return [hit.image_id for hit in hits]


def nearest(folder, text, count):
    """What exact search over the encoder's vectors answers."""
    from PIL import Image

    paths = sorted(folder.glob("*.png"))
    vectors = ENCODER.encode_images([Image.open(path).convert("RGB") for path in paths])
    cosines = vectors @ ENCODER.encode_texts([text])[0]
    return [paths[place].name for place in np.argsort(-cosines)[:count]]


def mixed_by_hand(folder):
    from PIL import Image

    paths = sorted(folder.glob("*.png"))
    vectors = ENCODER.encode_images([Image.open(path).convert("RGB") for path in paths])
    dog, cat = ENCODER.encode_texts(["a dog", "a cat"])
    return [paths[place].name for place in np.argsort(-(vectors @ (vectors[3] + 2 * dog - cat)))]


def test_a_folder_is_indexed_and_searched_with_nothing_else(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(8))
    report = Collection.index(folder)
    assert report.pictures == report.added == 8
    assert (report.fitted.encoder, report.fitted.pictures) == ("photos", 8)
    assert (report.fitted.levels, report.fitted.codebook_size) == (16, 256)
    assert report.skipped == ()
    again = Collection.index(folder)
    assert (again.unchanged, again.fitted) == (8, None)
    with Collection.open(folder) as photos:
        assert photos.folder == folder / ".voken"
        assert not photos.calibrated
        assert ids(photos.search("a dog on a beach", 8)) == nearest(folder, "a dog on a beach", 8)
        assert ids(photos.search_picture(folder / "003.png", 1)) == ["003.png"]
        mixed = photos.combine(like="003.png", plus=["a dog:2"], minus=["a cat"], k=4)
        assert ids(mixed) == [name for name in mixed_by_hand(folder) if name != "003.png"][:4]
    levels = {finding.level for finding in Collection.doctor(folder)}
    assert levels == {"good"}


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "no vectors"])
def test_a_folder_that_has_grown_is_fitted_again_without_encoding(tmp_path, monkeypatch, vectors):
    folder, cache = tmp_path / "photos", tmp_path / "cache"
    paint_noise(folder, range(6))
    Collection.index(folder, vectors=vectors, cache=cache)
    photos = Collection.open(folder)
    photos.search("a dog", 3)
    paint_noise(folder, range(6, 11))
    assert Collection.index(folder, cache=cache).fitted is None  # not yet twice as many
    assert len(photos.search("a dog", 20)) in (6, 11)
    paint_noise(folder, range(11, 13))
    encoded = []
    true_encode = type(ENCODER).encode_images
    monkeypatch.setattr(
        type(ENCODER), "encode_images", lambda self, images: encoded.append(len(images)) or true_encode(self, images)
    )
    report = Collection.index(folder, cache=cache)
    assert sum(encoded) == 2  # the new ones alone
    assert (report.fitted.pictures, report.pictures, report.sequences) == (13, 13, 13)
    store = Store.open(folder / ".voken")
    assert store.fitted == 13
    assert {path.name for path in store.folder.iterdir()} >= {"model-000002", "codebooks-000002.npy"}
    assert store.leftovers() == []
    snapshot = store.snapshot()
    model = json.loads((store.folder / "model-000002" / "manifest.json").read_text())
    assert model["kind"] == "model"
    # every picture has vokens of the new model, which stand for its vector
    from PIL import Image

    from voken.model.model import PictureSide

    side = PictureSide.load(store.folder / "model-000002")
    images = [Image.open(snapshot.path(row)).convert("RGB") for row in snapshot.rows.tolist()]
    rebuilt = side.tokenizer.decode(snapshot.vokens)
    assert (rebuilt * true_encode(ENCODER, images)).sum(1).min() > 0.999
    # a collection that was open all the time follows, and so does its encoder
    photos.add([folder / "000.png"], ids=["copy"])
    assert len(photos) == 14
    assert sorted(ids(photos.search("a dog", 20))) == sorted([*(f"{number:03}.png" for number in range(13)), "copy"])
    assert ids(photos.similar("000.png", 1)) == ["copy"]
    assert {finding.level for finding in Collection.doctor(folder)} == {"good"}


def test_uploads_survive_a_fit(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(3))
    Collection.index(folder)
    paint_noise(tmp_path / "elsewhere", range(20, 21))
    with Collection.open(folder) as photos, open(tmp_path / "elsewhere" / "020.png", "rb") as file:
        photos.add_uploads([("mine.png", file)], 10**6)
    paint_noise(folder, range(3, 8))
    assert Collection.index(folder).fitted.pictures == 9
    with Collection.open(folder) as photos:
        (upload,) = [image_id for image_id in ids(photos.search("dog", 20)) if image_id.startswith("pictures/")]
        assert photos.picture(upload).image().size == (48, 40)
        assert photos.metadata(upload)["title"] == "mine.png"


def test_a_fit_that_fails_changes_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    paint_noise(folder, range(3))
    Collection.index(folder)
    paint_noise(folder, range(3, 7))

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(untrained.Model, "save", fail)
        with pytest.raises(KeyboardInterrupt):
            Collection.index(folder)
    store = Store.open(folder / ".voken")
    assert (store.fitted, len(store.snapshot())) == (3, 7)
    with Collection.open(folder) as photos:
        assert len(photos.search("dog", 20)) == 7
    assert Collection.index(folder).fitted.pictures == 7


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    paint_noise(folder, range(2))

    def full(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("voken.generator.lite.save_file", full)
        with pytest.raises(StorageError, match=r"No space left on device.*Free some space"):
            Collection.index(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["000.png", "001.png"]
    assert Collection.index(folder).added == 2


def test_pictures_that_were_encoded_for_the_model_of_before_are_refused(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(3))
    Collection.index(folder)
    store = Store.open(folder / ".voken")
    with pytest.raises(BusyError, match="fitted again meanwhile"):
        store.commit((), fingerprint="that of another fit")


def test_searches_run_while_the_model_is_fitted_again(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(4))
    Collection.index(folder)
    photos, errors, stop = Collection.open(folder), [], threading.Event()

    def search():
        while not stop.is_set():
            try:
                assert len(photos.search("a dog", 30)) in (4, 10)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=search)
    thread.start()
    try:
        paint_noise(folder, range(4, 10))
        assert Collection.index(folder).fitted.pictures == 10
        photos._refresh()
        assert len(photos.search("a dog", 30)) == 10
    finally:
        stop.set()
        thread.join()
    assert errors == []


def test_no_picture_gives_no_collection_and_the_reason(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(EmptyDataError, match=r"The only picture cannot be used \(.*torn\.png"):
        Collection.index(folder)
    assert not (folder / ".voken").exists()


def test_the_encoder_of_a_collection_stays(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(2))
    Collection.index(folder, encoder="photos")
    assert Collection.index(folder, encoder="photos").unchanged == 2
    with pytest.raises(ConfigError, match=r"made with the encoder photos, not with some/clip.*--replace"):
        Collection.index(folder, encoder="some/clip")
    with pytest.raises(ConfigError, match="Leave one of the two out"):
        Collection.index(folder, None, tmp_path / "model", encoder="photos")
    own_model.check_encoder(Store.open(folder / ".voken"), "photos")
    assert Collection.index(folder, replace=True).fitted.pictures == 2


def test_a_collection_moves_with_its_folder(tmp_path):
    folder = tmp_path / "photos"
    paint_noise(folder, range(3))
    Collection.index(folder)
    folder.rename(tmp_path / "moved")
    with Collection.open(tmp_path / "moved") as photos:
        assert all(str(tmp_path / "moved") in hit.path for hit in photos.search("dog", 3))
    with pytest.raises(ArtifactError, match="no saved collection there"):
        Collection.open(folder)
