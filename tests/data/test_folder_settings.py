"""A `voken.toml` in a folder of pictures leaves out more, and a faulty one is an error with its line."""

import os
import re

import pytest
from PIL import Image

from builders.tiny_model import COLOURS, paint, tiny_model
from voken import Collection
from voken.collection.store import Store
from voken.data.captions import read_dataset
from voken.data.folder_settings import FolderSettings, read_folder_settings
from voken.data.picture_folder import list_folder
from voken.errors import DataError


def test_a_folder_without_the_file_leaves_out_nothing(tmp_path):
    assert read_folder_settings(tmp_path) == FolderSettings((), 0)


def test_all_settings(tmp_path):
    (tmp_path / "voken.toml").write_bytes(
        b'\xef\xbb\xbf# pictures\r\nexclude = [\r\n  "drafts",\r\n  "*.gif",\r\n]\r\nmax_pixels = 50_000\r\n'
    )
    assert read_folder_settings(tmp_path) == FolderSettings(("drafts", "*.gif"), 50_000)
    (tmp_path / "voken.toml").write_text("")
    assert read_folder_settings(tmp_path) == FolderSettings((), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# x\nexclude = [1,,]", r"voken\.toml: is not TOML: .*line 2"),
        (b"[" * 50_000, r"voken\.toml: is not TOML"),
        (b"\xff", r"voken\.toml: is not UTF-8"),
        (b"#" * 70_000, r"voken\.toml: is longer than 65536 bytes"),
        (b"\nexcludes = []", r"voken\.toml, line 2: excludes is no setting\. Use exclude or max_pixels\."),
        (b"[exclude]\na = 1", r"voken\.toml, line 1: exclude is not a list of texts"),
        (b'# x\n\nexclude = "drafts"', r"voken\.toml, line 3: exclude is not a list of texts"),
        (b"exclude = [1]", r"voken\.toml, line 1: exclude is not a list of texts"),
        (b"exclude = []\nmax_pixels = 0", r"voken\.toml, line 2: max_pixels is not a whole number from 1 to 100000000"),
        (b"max_pixels = true", r"voken\.toml, line 1: max_pixels is not a whole number"),
        (b"max_pixels = 1e6", r"voken\.toml, line 1: max_pixels is not a whole number"),
        (b"max_pixels = 100000001", r"line 1: max_pixels .*--max-pixels"),  # it may not allow more than the default
        (b"max_pixels = " + b"9" * 5_000, r"voken\.toml"),
    ],
)
def test_a_faulty_file_is_an_error_with_its_line(tmp_path, content, message):
    (tmp_path / "voken.toml").write_bytes(content)
    paint(tmp_path / "a.png", COLOURS["red"])
    with pytest.raises(DataError, match=message) as raised:
        read_dataset(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1_000


def test_what_is_no_file_is_an_error_and_makes_nobody_wait(tmp_path):
    (tmp_path / "voken.toml").mkdir()
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'voken.toml'}: ")):
        read_folder_settings(tmp_path)
    (tmp_path / "voken.toml").rmdir()
    os.mkfifo(tmp_path / "voken.toml")
    with pytest.raises(DataError, match="is not a file"):
        read_folder_settings(tmp_path)


def test_index_follows_it(tmp_path):
    folder, collection = tmp_path / "photos", tmp_path / "c"
    for name in ("a.png", "b.gif", "drafts/c.png", "sketches/d.png"):
        paint(folder / name, COLOURS["red"])
    model = tiny_model()

    def index(**options):
        report = Collection.index(collection, folder, model, threads=1, **options)
        snapshot = Store.open(collection).snapshot()
        return sorted(snapshot.ids[row] for row in snapshot.rows.tolist()), report

    assert index()[0] == ["a.png", "b.gif", "drafts/c.png", "sketches/d.png"]
    (folder / "voken.toml").write_text('exclude = ["drafts", "*.gif"]')
    ids, report = index()
    assert ids == ["a.png", "sketches/d.png"]
    reasons = {one.path.removeprefix(f"{folder}/"): one.reason for one in report.skipped}
    assert reasons == dict.fromkeys(["b.gif", "drafts"], "excluded (--exclude, voken.toml)")
    assert index(exclude=["sketches"])[0] == ["a.png"]  # both leave out
    (folder / "voken.toml").write_text('exclude = ["a.png"]')
    assert index(exclude=[])[0] == ["b.gif", "drafts/c.png", "sketches/d.png"]
    Image.new("RGB", (100, 100), "blue").save(folder / "large.png")
    (folder / "voken.toml").write_text("exclude = ['?.gif', '*/*']\nmax_pixels = 5_000")
    ids, report = index()
    assert (ids, [one.path for one in report.skipped if "5,000" in one.reason]) == (
        ["a.png"],
        [str(folder / "large.png")],
    )
    (folder / "voken.toml").write_text("exclude = ['?.gif', '*/*']\nmax_pixels = 10_000")
    assert index()[0] == ["a.png", "large.png"]
    (folder / "voken.toml").write_text("exclude = drafts")
    with pytest.raises(DataError, match="is not TOML"):
        index()
    (folder / "voken.toml").unlink()
    assert index()[0] == ["a.png", "b.gif", "drafts/c.png", "large.png", "sketches/d.png"]
    (folder / "voken.toml").write_text("max_pixels = 10")
    other = Collection.index(tmp_path / "other", folder, model, max_pixels=5_000, threads=1)  # the option counts
    assert (other.pictures, ["5,000" in one.reason for one in other.skipped]) == (4, [True])


def test_data_sets_of_captions_follow_it(tmp_path):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": "drafts/b.png"}\n')
    (tmp_path / "voken.toml").write_text('exclude = ["drafts"]')
    for name in ("a.png", "drafts/b.png"):
        paint(tmp_path / name, COLOURS["red"])
    for path in (tmp_path, tmp_path / "metadata.jsonl"):
        assert [image.image_id for image in read_dataset(path).images] == ["a.png"]
    assert "voken.toml" not in {one.path.rpartition("/")[2] for one in list_folder(tmp_path).left_out}
