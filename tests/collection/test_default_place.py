"""The place of a collection that nobody named."""

import os

import pytest

from voken.collection.default_place import default_place, find_collection
from voken.data.picture_folder import list_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def save(place):
    place.mkdir(parents=True)
    (place / "manifest.json").write_text('{"kind": "collection", "version": 3, "files": {}}')
    return place


def test_it_is_in_the_folder_of_the_pictures(folder):
    assert default_place(folder) == folder / ".voken"
    assert default_place(folder / "metadata.jsonl") == folder / ".voken"
    assert find_collection(folder) == folder  # there is none yet
    save(folder / ".voken")
    assert find_collection(folder) == folder / ".voken"
    assert find_collection(folder / ".voken") == folder / ".voken"
    assert find_collection(folder / "absent") == folder / "absent"


def test_a_folder_that_cannot_be_written_to_has_its_collection_among_the_users_data(folder, tmp_path, monkeypatch):
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder and writable(path, mode))
    place = default_place(folder)
    assert place.parent == tmp_path / "data" / "voken" / "collections"
    assert place.name.startswith("photos-")
    other = tmp_path / "other" / "photos"
    other.mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert default_place(other) != place
    save(place)
    monkeypatch.setattr(os, "access", writable)
    assert default_place(folder) == find_collection(folder) == place  # it stays where it is


def test_a_listing_does_not_mention_it(folder):
    (folder / "a.png").write_bytes(b"x")
    save(folder / ".voken")
    assert list_folder(folder).left_out == ()
    (folder / "deeper" / ".voken").mkdir(parents=True)  # empty: not a collection
    assert [file.path for file in list_folder(folder).left_out] == [str(folder / "deeper" / ".voken")]
