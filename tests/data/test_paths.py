"""One spelling for one place."""

from pathlib import Path

from voken.data.paths import absolute_path, is_same_folder, relative_path


def test_dots_go_up_where_the_system_goes_up(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    monkeypatch.chdir(tmp_path / "photos")
    assert absolute_path(Path("x.png")) == tmp_path / "photos" / "x.png"
    assert absolute_path(Path("../photos/./x.png")) == tmp_path / "photos" / "x.png"
    assert absolute_path(tmp_path / "link" / "x.png") == tmp_path / "link" / "x.png"
    # as the kernel has it: above the folder that the link leads to
    assert absolute_path(tmp_path / "link" / ".." / "x.png") == tmp_path / "elsewhere" / "x.png"


def test_a_folder_by_its_link_is_the_same_folder(tmp_path):
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "photos" / "file-link.png").symlink_to("a/x.png")
    assert is_same_folder(tmp_path / "photos", tmp_path / "link")
    assert is_same_folder(tmp_path / "photos", tmp_path / "link" / "a" / "..")
    assert not is_same_folder(tmp_path / "photos", tmp_path / "photos" / "a")
    assert not is_same_folder(tmp_path / "photos", tmp_path / "gone")
    assert relative_path(tmp_path / "link" / "a" / "x.png", tmp_path / "photos") == "a/x.png"
    assert relative_path(tmp_path / "photos" / "a" / "x.png", tmp_path / "link") == "a/x.png"
    assert relative_path(tmp_path / "photos" / "file-link.png", tmp_path / "photos") == "file-link.png"
    assert relative_path(tmp_path / "other" / "x.png", tmp_path / "photos") is None
