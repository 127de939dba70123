"""A folder tells everything that it holds: its pictures, and why each other file and folder is not one of them."""

import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from voken import artifact
from voken.data import images
from voken.data.captions import read_dataset
from voken.data.picture_folder import is_left_out, list_folder
from voken.errors import DataError, EmptyDataError


def picture(path, format_=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, format_)
    return path


def names(paths, folder):
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def reasons(left_out, folder):
    return {Path(one.path).relative_to(folder).as_posix(): one.reason for one in left_out}


def test_pictures_by_suffix_and_by_content(tmp_path):
    for name, format_ in (
        ("a.JPEG", "JPEG"),
        ("chrome.jfif", "JPEG"),
        ("old.jpe", "JPEG"),
        ("two.mpo", "MPO"),
        ("grey.pgm", "PPM"),
        ("moving.apng", "PNG"),
        ("noname", "JPEG"),
        ("odd.name", "PNG"),
        ("sub/b.PNG", None),
    ):
        picture(tmp_path / name, format_)
    listing = list_folder(tmp_path)
    assert names(listing.pictures, tmp_path) == sorted(
        ["a.JPEG", "chrome.jfif", "grey.pgm", "moving.apng", "noname", "odd.name", "old.jpe", "sub/b.PNG", "two.mpo"]
    )
    assert listing.left_out == ()
    with pytest.raises(DataError, match="no such folder"):
        list_folder(tmp_path / "gone")


def test_everything_else_is_named_with_its_kind(tmp_path):
    picture(tmp_path / "a.png")
    for name in (
        ".hidden.png",
        ".git/y.png",
        "@eaDir/a.png/THUMB.jpg",
        "#recycle/b.png",
        "x.lrdata/c.png",
        "lr.lrdata",
    ):
        picture(tmp_path / name, "PNG")
    for name, content in (
        ("notes.txt", b"x"),
        ("film.MOV", b"x"),
        ("logo.svg", b"<svg/>"),
        ("data", b"x"),
        ("nil", b""),
    ):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / "@eaDir")
    listing = list_folder(tmp_path)
    assert names(listing.pictures, tmp_path) == ["a.png", "lr.lrdata"]
    assert reasons(listing.left_out, tmp_path) == {
        ".hidden.png": "hidden (the name begins with a dot)",
        ".git": "hidden (the name begins with a dot)",
        "@eaDir": "thumbnails of a Synology NAS",
        "#recycle": "the trash of a Synology NAS",
        "x.lrdata": "previews of Lightroom",
        "notes.txt": "a text (.txt)",
        "film.MOV": "a film (.mov)",
        "logo.svg": "a drawing (.svg)",
        "data": "not a picture of a known kind",
        "nil": "empty file",
        "pipe": "a named pipe, not a file",
        "lost": "cannot be read (No such file or directory)",
        "linked": "a link to a folder, which is not followed",
    }


def test_what_needs_a_library_names_the_command(tmp_path, monkeypatch):
    heic = b"\0\0\0\x18ftypheic" + bytes(16)
    for name in ("IMG_1.heic", "renamed"):
        (tmp_path / name).write_bytes(heic)
    (tmp_path / "DSC_1.NEF").write_bytes(b"II*\0")
    monkeypatch.setattr("voken.data.images._is_installed", lambda module: False)
    monkeypatch.setattr("voken.data.images._formats", lambda: images._FORMATS)
    with pytest.raises(EmptyDataError, match=r"no picture \(it holds 2 × a HEIC picture\. To read it: pip install "):
        read_dataset(tmp_path)
    listing = list_folder(tmp_path)
    assert listing.pictures == ()
    assert all(one.may_pass for one in listing.left_out)
    assert reasons(listing.left_out, tmp_path)["DSC_1.NEF"].startswith(
        "a camera's raw picture. To read it: pip install"
    )


def test_collections_and_models_are_passed_over_and_other_manifests_are_not(tmp_path):
    picture(tmp_path / "web" / "icon.png")
    (tmp_path / "web" / "manifest.json").write_text('{"name": "an app"}')
    picture(tmp_path / "pipe" / "icon.png")
    os.mkfifo(tmp_path / "pipe" / "manifest.json")
    with artifact.writing(tmp_path / "my.voken", kind="collection", version=3, sealed=False) as partial:
        picture(partial / "pictures" / "17" / "17ab.png")
    listing = list_folder(tmp_path)
    assert names(listing.pictures, tmp_path) == ["pipe/icon.png", "web/icon.png"]
    assert reasons(listing.left_out, tmp_path)["my.voken"] == "a saved collection"
    with pytest.raises(DataError, match=r"my\.voken: is a saved collection\. Name the folder of the pictures"):
        list_folder(tmp_path / "my.voken")


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("drafts", ["a.png", "old/c.gif"]),
        ("*.gif", ["a.png", "drafts/b.png"]),
        ("old/*", ["a.png", "drafts/b.png"]),
        ("drafts/", ["a.png", "old/c.gif"]),
        ("?.png", ["old/c.gif"]),
        ("", ["a.png", "drafts/b.png", "old/c.gif"]),
    ],
)
def test_patterns_leave_out_files_and_folders(tmp_path, pattern, left):
    for name in ("a.png", "drafts/b.png", "old/c.gif"):
        picture(tmp_path / name)
    listing = list_folder(tmp_path, [pattern])
    assert names(listing.pictures, tmp_path) == left
    for name in ("a.png", "drafts/b.png", "old/c.gif"):
        assert is_left_out(name, [pattern]) == (name not in left)
    # and also what a data set lists
    lines = [json.dumps({"file_name": name}) for name in ("a.png", "drafts/b.png", "old/c.gif")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert [image.image_id for image in read_dataset(tmp_path, exclude=[pattern]).images] == left


def test_a_data_set_tells_what_it_does_not_list_and_what_is_not_there(tmp_path):
    for name in ("a.png", "b.png", "new/c.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    lines = [{"file_name": name} for name in ("a.png", "gone.png", "new")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = read_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == ["a.png"]
    assert reasons(dataset.skipped, tmp_path) == {
        "gone.png": "metadata.jsonl, line 2, lists it, but it does not exist",
        "new": "metadata.jsonl, line 3, lists it, but it does not exist",
    }
    assert reasons(dataset.left_out, tmp_path) == {
        "b.png": "not listed in metadata.jsonl",
        "new/c.png": "not listed in metadata.jsonl",
        "notes.txt": "a text (.txt)",
    }
    (tmp_path / "metadata.jsonl").unlink()
    images = [{"filename": name, "split": "train", "sentences": []} for name in ("b.png", "gone.png")]
    (tmp_path / "dataset_x.json").write_text(json.dumps({"images": images}))
    dataset = read_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == ["b.png"]
    assert reasons(dataset.skipped, tmp_path) == {
        "gone.png": "dataset_x.json, images[1], lists it, but it does not exist"
    }
    assert reasons(dataset.left_out, tmp_path)["a.png"] == "not listed in dataset_x.json"


def test_names_composed_otherwise_are_the_same_names(tmp_path):
    file = picture(tmp_path / unicodedata.normalize("NFD", "Été") / unicodedata.normalize("NFD", "café.png"))
    name = unicodedata.normalize("NFC", "Été/café.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": name}))
    dataset = read_dataset(tmp_path)
    assert [(image.image_id, image.path) for image in dataset.images] == [(name, file)]
    assert (dataset.skipped, dataset.left_out) == ((), ())


def test_folders_that_the_system_does_not_list_are_told(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "b.png")
    scan = os.scandir

    def refuse(path):
        if Path(path).name in refused:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    refused = {"sub"}
    listing = list_folder(tmp_path)
    assert names(listing.pictures, tmp_path) == ["a.png"]
    assert listing.unlisted == (tmp_path / "sub",)
    assert reasons(listing.left_out, tmp_path) == {"sub": "cannot be listed (Permission denied)"}
    refused = {tmp_path.name}
    with pytest.raises(DataError, match="cannot be listed"):
        list_folder(tmp_path)
