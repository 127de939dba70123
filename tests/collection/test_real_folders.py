"""What happens to folders of real people: drives that vanish, permissions, copies, files in the wrong place."""

import json
import os
import shutil
import sys
import unicodedata
from io import BytesIO
from pathlib import Path

import pytest
from typer.testing import CliRunner

from builders.tiny_model import COLOURS, paint, paint_many, tiny_model
from voken import Collection, artifact
from voken.cli import app
from voken.collection.doctor import examine
from voken.collection.index_lock import index_lock
from voken.collection.store import PICTURES, Store
from voken.data import images
from voken.errors import ArtifactError, BusyError, ConfigError, DataError, EmptyDataError

MAX_PIXELS = 10_000


@pytest.fixture
def model():
    return tiny_model()


def ids(path):
    snapshot = Store.open(path).snapshot()
    return sorted(snapshot.ids[row] for row in snapshot.rows.tolist())


def reasons(report, folder):
    return {os.path.relpath(one.path, folder): one.reason for one in report.skipped}


def upload(collection, name, colour, folder):
    content = paint(folder / "upload" / name, COLOURS[colour]).read_bytes()
    return collection.add_uploads([(name, BytesIO(content))], MAX_PIXELS).added[0]


# Nothing destroys the only copy of a picture.


def test_a_collection_in_its_own_folder_of_pictures_lists_its_uploads_once(tmp_path, model):
    folder = tmp_path / "photos"
    paint(folder / "a.png", COLOURS["red"])
    Collection.index(folder / "my.voken", folder, model)
    with Collection.open(folder / "my.voken", model=model) as collection:
        image_id = upload(collection, "mine.png", "blue", tmp_path)
        report = Collection.index(folder / "my.voken", folder, model)
        assert ids(folder / "my.voken") == sorted(["a.png", image_id])
        assert reasons(report, folder) == {"my.voken": "a saved collection"}
        with pytest.raises(DataError, match="no picture of the collection has that id"):
            collection.delete(f"my.voken/{image_id}")
        file = collection.picture(image_id).path
        collection.delete("a.png")
        assert (folder / "a.png").is_file()
        assert file.is_file()
        collection.delete(image_id)
        assert not file.exists()


def test_a_file_of_the_user_stays_wherever_it_lies(tmp_path, model):
    """By its id it is the user's, also in a folder named like the collection's own."""
    folder = tmp_path / "c" / "photos"
    Collection.index(tmp_path / "c", [paint(tmp_path / "in" / "x.png", COLOURS["red"])], model)
    picture = paint(folder / "a.png", COLOURS["blue"])
    with Collection.open(tmp_path / "c", model=model) as collection:
        collection.add([picture])
        collection.delete(picture.as_posix())
        assert picture.is_file()
        # one upload under two ids: the file stays for the other
        image_id = upload(collection, "mine.png", "green", tmp_path)
        file = collection.picture(image_id).path
        collection.add([file], ids=["alias"])
        collection.delete("alias")
        assert file.is_file()
        assert collection.picture(image_id).path == file
        # a link to the collection leads to the same upload
        (tmp_path / "link").symlink_to("c")
        collection.add([tmp_path / "link" / image_id])
        assert sum(str(path).endswith(file.name) for path in collection.store.snapshot().paths) == 1


def test_replacing_refuses_to_delete_what_voken_did_not_write(tmp_path, model):
    picture = paint(tmp_path / "in" / "a.png", COLOURS["red"])
    Collection.index(tmp_path / "c", picture.parent, model)
    Collection.index(tmp_path / "c", picture.parent, model, replace=True)  # nothing of others is in there
    for name in ("photos/only.png", "base-jumping/only.png", "notes.txt"):
        other = tmp_path / "c" / name
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"the only copy")
        with pytest.raises(ArtifactError, match=r"did not write this file.*Move it away first"):
            Collection.index(tmp_path / "c", picture.parent, model, replace=True)
        with Collection.open(tmp_path / "c", model=model) as collection:
            collection.add([picture])
            collection.compact()
        assert other.read_bytes() == b"the only copy"
        other.unlink()


def test_two_that_create_one_collection_do_not_replace_each_other(tmp_path, model, monkeypatch):
    folder = paint(tmp_path / "in" / "a.png", COLOURS["red"]).parent
    Collection.index(tmp_path / "c", folder, model)
    monkeypatch.setattr("voken.artifact._may_write", lambda destination, replace: True)  # as it was a moment ago
    with (
        pytest.raises(ArtifactError, match="already exists"),
        artifact.writing(tmp_path / "c", kind="collection", version=3, sealed=False),
    ):
        pass
    assert ids(tmp_path / "c") == ["a.png"]


# A passing failure is not a fact.


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, model, monkeypatch):
    folder = tmp_path / "in"
    for name in ("a.png", "b.png"):
        paint(folder / name, COLOURS["red" if name == "a.png" else "blue"])
    real, refused = images._open_file, {"b.png"}

    def refuse(path):
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(images, "_open_file", refuse)
    report = Collection.index(tmp_path / "c", folder, model)
    assert reasons(report, folder) == {"b.png": "cannot be read (Permission denied)"}
    version = report.version
    assert Collection.index(tmp_path / "c", folder, model).version == version  # nothing is new
    refused.clear()
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.added, report.skipped, ids(tmp_path / "c")) == (1, (), ["a.png", "b.png"])
    # a picture that is in the collection stays while its file cannot be read, and is read when it can be
    refused.add("a.png")
    paint(folder / "a.png", COLOURS["green"])
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.removed, ids(tmp_path / "c")) == (0, ["a.png", "b.png"])
    refused.clear()
    assert Collection.index(tmp_path / "c", folder, model).updated == 1


def test_pictures_of_a_folder_that_cannot_be_listed_stay(tmp_path, model, monkeypatch):
    folder = tmp_path / "in"
    for name in ("a.png", "sub/b.png", "sub/deep/c.png"):
        paint(folder / name, (len(name), 2, 3))
    Collection.index(tmp_path / "c", folder, model)
    scan = os.scandir

    def refuse(path):
        if Path(path).name == "sub":
            raise OSError(116, "Stale file handle")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.removed, report.unchanged) == (0, 1)
    assert reasons(report, folder) == {"sub": "cannot be listed (Stale file handle)"}
    assert len(ids(tmp_path / "c")) == 3
    monkeypatch.undo()
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.unchanged, report.skipped) == (3, ())


def test_a_drive_that_is_not_mounted_is_not_a_deletion(tmp_path, model):
    folder = tmp_path / "in"
    paint_many(folder / "drive", 12)
    paint(folder / "a.png", COLOURS["red"])
    Collection.index(tmp_path / "c", folder, model)
    (folder / "drive").rename(tmp_path / "unmounted")
    (folder / "drive").mkdir()
    paint(folder / "new.png", COLOURS["blue"])
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.added, report.removed, report.missing, report.pictures) == (1, 0, 12, 14)
    (folder / "drive").rmdir()
    (tmp_path / "unmounted").rename(folder / "drive")
    assert Collection.index(tmp_path / "c", folder, model).missing == 0
    shutil.rmtree(folder / "drive")
    report = Collection.index(tmp_path / "c", folder, model, remove_missing=True)
    assert (report.removed, report.missing, report.pictures) == (12, 0, 2)


def test_a_listed_picture_that_is_gone_stops_nothing(tmp_path, model):
    folder = tmp_path / "in"
    for name in ("a.png", "b.png", "c.png"):
        paint(folder / name, (len(name), ord(name[0]), 3))
    lines = [json.dumps({"file_name": name}) for name in ("a.png", "b.png", "c.png")]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    Collection.index(tmp_path / "c", folder, model)
    (folder / "b.png").unlink()
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.removed, ids(tmp_path / "c")) == (1, ["a.png", "c.png"])
    assert reasons(report, folder) == {"b.png": "metadata.jsonl, line 2, lists it, but it does not exist"}
    # a listing that names fewer pictures says which it leaves out
    (folder / "metadata.jsonl").write_text(lines[0])
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.removed, reasons(report, folder)) == (1, {"c.png": "not listed in metadata.jsonl"})


# Paths, copies and moves.


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_not_utf8_stop_nothing(tmp_path, model):
    """Neither as names of pictures nor in the reasons why others are left out."""
    folder = tmp_path / "photos"
    inner = folder / os.fsdecode(b"caf\xe9")
    for name in (folder / "a.png", inner / "b.png", inner / os.fsdecode(b"\xff.png")):
        paint(name, COLOURS["red"])
    (inner / "metadata.jsonl").write_text('{"file_name": "b.png", "n": 1}\n{"file_name": "gone.png"}\n')
    report = Collection.index(tmp_path / "c", folder, model)
    reasons = {Path(file.path).name: file.reason for file in report.skipped}
    assert "does not exist" in reasons["gone.png"]
    assert Collection.open(tmp_path / "c", model=model).info().skipped == report.skipped
    again = Collection.index(tmp_path / "c", folder, model)
    assert (again.changes, again.skipped) == (0, report.skipped)
    result = CliRunner().invoke(app, ["info", str(tmp_path / "c"), "--skipped", "--json"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["skipped"]) == len(report.skipped)


def test_one_folder_by_many_paths(tmp_path, model, monkeypatch):
    paint(tmp_path / "photos" / "a.png", COLOURS["red"])
    outside = paint(tmp_path / "more" / "b.png", COLOURS["blue"])
    (tmp_path / "work").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "work")
    Collection.index("../c", "../photos", model)
    collection = Collection.open("../c", model=model)
    monkeypatch.chdir(tmp_path)
    assert ids(tmp_path / "c") == ["a.png"]
    assert len(collection) == 1  # also from another working folder
    for folder in ("photos", "link", "work/../photos"):
        assert Collection.index("c", folder, model).unchanged == 1
    for path in ("more/b.png", "work/../more/b.png", outside):
        collection.add([path])
    paint(tmp_path / "photos" / "n.png", COLOURS["green"])
    collection.add(["link/n.png", "photos/n.png"])
    assert ids("c") == sorted(["a.png", "n.png", outside.as_posix()])
    assert collection.remove(paths=["work/../photos/a.png", "link/n.png"]).removed == ("a.png", "n.png")


def test_a_file_that_has_two_ids_is_removed_with_both(tmp_path, model):
    for name in ("a.png", "b.png"):
        paint(tmp_path / "photos" / name, COLOURS["red"])
    Collection.index(tmp_path / "c", tmp_path / "photos", model)
    collection = Collection.open(tmp_path / "c", model=model)
    collection.add([tmp_path / "photos" / "a.png"], ids=["best"])
    assert ids(tmp_path / "c") == ["a.png", "b.png", "best"]
    assert set(collection.remove(paths=[tmp_path / "photos" / "a.png"]).removed) == {"a.png", "best"}
    assert ids(tmp_path / "c") == ["b.png"]


def test_a_copy_uses_its_own_pictures(tmp_path, model):
    for name in ("a.png", "b.png"):
        paint(tmp_path / "one" / "photos" / name, COLOURS["red" if name == "a.png" else "blue"])
    Collection.index(tmp_path / "one" / "c", tmp_path / "one" / "photos", model)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copy = Store.open(tmp_path / "two" / "c").snapshot()
    assert {path.parent for path in copy.paths} == {tmp_path / "two" / "photos"}
    assert Collection.index(tmp_path / "two" / "c", tmp_path / "two" / "photos", model).unchanged == 2
    # the collection alone moves to a place where another folder has that name
    (tmp_path / "three" / "photos").mkdir(parents=True)
    shutil.copytree(tmp_path / "one" / "c", tmp_path / "three" / "c")
    alone = Store.open(tmp_path / "three" / "c").snapshot()
    assert {path.parent for path in alone.paths} == {tmp_path / "one" / "photos"}


def test_pictures_that_move_alone_are_followed_and_others_are_refused(tmp_path, model):
    paint_many(tmp_path / "in", 6)
    Collection.index(tmp_path / "c", tmp_path / "in", model)
    paint(tmp_path / "other" / "x.png", COLOURS["red"])
    with pytest.raises(ConfigError, match="holds the pictures of"):
        Collection.index(tmp_path / "c", tmp_path / "other", model)
    (tmp_path / "in").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="holds the pictures of"):
        Collection.index(tmp_path / "c", tmp_path / "other", model)
    report = Collection.index(tmp_path / "c", tmp_path / "moved", model)
    assert (report.unchanged, report.changes) == (6, 0)
    assert Store.open(tmp_path / "c").snapshot().root == tmp_path / "moved"


def test_an_id_is_found_in_every_composition(tmp_path, model):
    name = unicodedata.normalize("NFD", "café.png")
    paint(tmp_path / "in" / name, COLOURS["red"])
    paint(tmp_path / "in" / "b.png", COLOURS["blue"])
    Collection.index(tmp_path / "c", tmp_path / "in", model)
    with Collection.open(tmp_path / "c", model=model) as collection:
        assert "café.png" in collection
        assert collection.picture("café.png").image_id == name
        assert collection.remove(["café.png"]).removed == (name,)


# Single pictures.


def test_ids_and_metadata_belong_to_their_file(tmp_path, model):
    Collection.index(tmp_path / "c", [paint(tmp_path / "in" / "x.png", COLOURS["red"])], model)
    a, b = paint(tmp_path / "a.png", COLOURS["blue"]), paint(tmp_path / "b.png", COLOURS["green"])
    with Collection.open(tmp_path / "c", model=model) as collection:
        fields = [{"n": "a"}, {"n": "a2"}, {"n": "b"}]
        change = collection.add([a, a, b], ids=["A", "A2", "B"], metadata=fields)
        assert change.added == ("A", "A2", "B")
        assert [(collection.picture(one).path, collection.metadata(one)) for one in change.added] == [
            (a, {"n": "a"}),
            (a, {"n": "a2"}),
            (b, {"n": "b"}),
        ]
        for count in (1, 3):
            with pytest.raises(ConfigError, match="for each of the 2 pictures"):
                collection.add([a, b], ids=["x", "y", "z"][:count])
            with pytest.raises(ConfigError, match="for each of the 2 pictures"):
                collection.add([a, b], metadata=[{}] * count)
        with pytest.raises(ConfigError, match="occurs twice, with different metadata"):
            collection.add([a, a], metadata=[{}, {"n": 1}])
        change = collection.remove(["B", "B", "none", "none"])
        assert (change.removed, change.absent) == (("B",), ("none",))
        # a file that is there keeps its id and what it is not given
        change = collection.add([b, tmp_path / "in" / ".." / "b.png", a])
        assert (change.added, len(collection)) == ((b.as_posix(),), 4)
        assert change.updated in (("A",), ("A2",))
        assert collection.metadata(change.updated[0])["n"].startswith("a")


def test_adding_again_keeps_metadata_and_indexing_does_too(tmp_path, model):
    folder = tmp_path / "in"
    a, b = paint(folder / "a.png", COLOURS["red"]), paint(folder / "b.png", COLOURS["blue"])
    (folder / "metadata.jsonl").write_text('{"file_name":"a.png","licence":"CC0"}\n{"file_name":"b.png"}')
    Collection.index(tmp_path / "c", folder, model)
    with Collection.open(tmp_path / "c", model=model) as collection:
        assert collection.add([a]).updated == ("a.png",)
        assert collection.metadata("a.png") == {"licence": "CC0"}
        collection.add([a], metadata=[{}])
        assert collection.metadata("a.png") == {}
        (folder / "metadata.jsonl").unlink()
        Collection.index(tmp_path / "c", folder, model)
        collection.add([a, b], metadata=[{"rating": 5}, None])
        for _ in range(2):  # no file describes the pictures: what the caller said stays, also if the file moves
            Collection.index(tmp_path / "c", folder, model)
            a.rename(folder / "moved.png") if a.exists() else None
        assert Collection.open(tmp_path / "c", model=model).metadata("moved.png") == {"rating": 5}
        image_id = upload(collection, "one.png", "green", tmp_path)
        collection.add([collection.picture(image_id).path], metadata=[{"title": "one.png", "rating": 1}])
        assert collection.add([collection.picture(image_id).path]).updated == (image_id,)
        assert collection.metadata(image_id) == {"title": "one.png", "rating": 1}


@pytest.mark.parametrize("order", [("a.png", "b.png"), ("b.png", "a.png")])
def test_of_equal_pictures_the_one_that_was_renamed_keeps_its_fields(tmp_path, model, order):
    folder = tmp_path / "in"
    for name in order:
        paint(folder / name, COLOURS["red"])
    Collection.index(tmp_path / "c", folder, model)
    with Collection.open(tmp_path / "c", model=model, load=False) as collection:
        for name in order:
            collection.add([folder / name], metadata=[{"from": name}])
    (folder / "a.png").rename(folder / "c.png")
    (folder / "b.png").touch()
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.moved, report.unchanged, report.updated) == (1, 1, 0)
    with Collection.open(tmp_path / "c", model=model, load=False) as collection:
        assert collection.metadata("c.png") == {"from": "a.png"}
        assert collection.metadata("b.png") == {"from": "b.png"}
        assert "a.png" not in collection


def test_fields_go_with_the_file_that_described_them(tmp_path, model):
    folder = paint(tmp_path / "in" / "a.png", COLOURS["red"]).parent
    (folder / "metadata.jsonl").write_text('{"file_name":"a.png","licence":"CC0"}')
    Collection.index(tmp_path / "c", folder, model)
    (folder / "metadata.jsonl").unlink()
    assert Collection.index(tmp_path / "c", folder, model).updated == 1
    snapshot = Store.open(tmp_path / "c").snapshot()
    assert snapshot.metadata(snapshot.find("a.png")) == ""


# Options are remembered, and what cannot be done is said.


def test_what_is_left_out_is_remembered(tmp_path, model):
    folder = tmp_path / "in"
    names = ("a.png", "drafts/b.png", "c.png")
    for name in names:
        paint(folder / name, (len(name), 2, 3))
    splits = dict(zip(names, ("train", "train", "test"), strict=True))
    lines = [json.dumps({"file_name": name, "split": split}) for name, split in splits.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    Collection.index(tmp_path / "c", folder, model, split="train", exclude=["drafts"])
    for options, expected in (
        ({}, ["a.png"]),
        ({"split": "all"}, ["a.png", "c.png"]),
        ({}, ["a.png", "c.png"]),
        ({"exclude": [""]}, sorted(names)),
        ({"split": "test"}, ["c.png"]),
    ):
        Collection.index(tmp_path / "c", folder, model, **options)
        assert ids(tmp_path / "c") == expected, options


def test_a_limit_of_pixels_is_remembered_and_may_change(tmp_path, model):
    folder = paint(tmp_path / "in" / "a.png", COLOURS["red"]).parent
    images.Image.new("RGB", (100, 100), "blue").save(folder / "large.png")
    report = Collection.index(tmp_path / "c", folder, model, max_pixels=5000)
    assert reasons(report, folder) == {"large.png": "claims 100 × 100 pixels, over the limit of 5,000"}
    assert Collection.index(tmp_path / "c", folder, model).pictures == 1
    report = Collection.index(tmp_path / "c", folder, model, max_pixels=10_000)
    assert (report.added, report.skipped) == (1, ())
    with pytest.raises(ConfigError, match="max_pixels"):
        Collection.index(tmp_path / "c", folder, model, max_pixels=0)


def test_vectors_cannot_come_or_go(tmp_path, model):
    folder = paint(tmp_path / "in" / "a.png", COLOURS["red"]).parent
    Collection.index(tmp_path / "c", folder, model, vectors=False)
    Collection.index(tmp_path / "c", folder, model)
    with pytest.raises(ConfigError, match=r"created without vectors.*--replace"):
        Collection.index(tmp_path / "c", folder, model, vectors=True)


def test_who_is_indexing_is_named(tmp_path, model):
    folder = paint(tmp_path / "in" / "a.png", COLOURS["red"]).parent
    Collection.index(tmp_path / "c", folder, model)
    with index_lock(tmp_path / "c"), pytest.raises(BusyError, match=rf"process {os.getpid()} on .* is indexing it"):
        Collection.index(tmp_path / "c", folder, model)
    assert Collection.index(tmp_path / "c", folder, model).unchanged == 1


def test_a_first_run_can_be_searched_and_stopped(tmp_path, model):
    folder = tmp_path / "in"
    paint_many(folder, 100)
    searched = []

    def stop(what, done, total):
        if what == "pictures to vectors" and done < total:
            with Collection.open(tmp_path / "c", model=model) as collection:
                searched.append(len(collection.search("red", 5)))
            if len(collection) >= 32:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Collection.index(tmp_path / "c", folder, model, progress=stop)
    assert searched[-1] == 5
    report = Collection.index(tmp_path / "c", folder, model)
    assert (report.pictures, report.unchanged >= 32) == (100, True)


def test_the_doctor_compares_contents_only_if_asked(tmp_path, model):
    folder = paint(tmp_path / "in" / "a.bmp", COLOURS["red"]).parent
    os.utime(folder / "a.bmp", (1, 1))
    Collection.index(tmp_path / "c", folder, model)

    def files(**options):
        return [one.what for one in examine(tmp_path / "c", **options) if "files of" in one.what or "file " in one.what]

    assert "every picture's file exists and has the content that it was indexed with" in files(pictures=True)
    paint(folder / "a.bmp", COLOURS["blue"])
    os.utime(folder / "a.bmp", (1, 1))
    assert "every picture's file exists and has the size and time that it was indexed with" in files()
    assert any(what.startswith("1 files of pictures have other content") for what in files(pictures=True))


def test_a_folder_of_other_things_says_what_it_holds(tmp_path, model):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "logo.svg").write_text("<svg/>")
    with pytest.raises(EmptyDataError, match=r"it holds logo\.svg: a drawing \(\.svg\)"):
        Collection.index(tmp_path / "c", tmp_path / "in", model)
    assert not (tmp_path / "c" / PICTURES).exists()
