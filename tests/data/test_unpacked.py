"""Pictures inside archives, Parquet files and hub data sets, each as a miniature of the true files."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from voken.cli import app
from voken.data import unpacked
from voken.data.captions import read_dataset
from voken.data.tar_members import Member, tar_members
from voken.data.unpacked import hub_pictures, unpack
from voken.errors import ConfigError, DataError, EmptyDataError, MissingExtraError


def jpeg(shade=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def write_tar(path, members):
    """As webdataset's writer does: in the format with extended headers, which hold the time to the microsecond."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            header = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.name, header.mtime, header.mode, header.uname = name, 1700000000.123456, 0o444, "bigdata"
            if content is header:
                archive.addfile(header)
            else:
                header.size = len(content)
                archive.addfile(header, io.BytesIO(content))
    return path


def sample(key, shade=0, **fields):
    record = {"key": key, "status": "success", "url": f"https://example.org/{key}", "caption": "x", **fields}
    return [
        (f"{key}.jpg", jpeg(shade)),
        (f"{key}.json", json.dumps(record).encode()),
        (f"{key}.txt", f"a caption of {key}".encode()),
    ]


def captions(dataset):
    return {image.image_id: image.captions for image in dataset.images}


def reasons(dataset, root):
    return {file.path.removeprefix(f"{root}/"): file.reason for file in dataset.skipped}


# ---- webdataset ----


def test_the_shards_of_img2dataset(tmp_path):
    shards = tmp_path / "shards"
    write_tar(shards / "00000.tar", [*sample("000000000", 10, width=8), *sample("000000001", 20)])
    write_tar(shards / "00001.tar", sample("000010000", 30))
    (shards / "00000_stats.json").write_text("{}")
    pyarrow.parquet.write_table(pyarrow.table({"url": ["u"], "key": ["000000000"]}), shards / "00000.parquet")
    with pytest.raises(DataError, match=rf"the pictures are in archives.*: voken unpack {shards} DIR"):
        read_dataset(shards)
    dataset = unpack(shards, tmp_path / "out")
    assert dataset.skipped == ()
    assert captions(read_dataset(tmp_path / "out")) == captions(dataset)
    assert captions(dataset) == {
        f"{shard}/{key}.jpg": (f"a caption of {key}",)
        for shard, key in (("00000", "000000000"), ("00000", "000000001"), ("00001", "000010000"))
    }
    assert dataset.images[0].path.read_bytes() == jpeg(10)
    assert json.loads(dataset.images[0].metadata) == {
        "key": "000000000",
        "url": "https://example.org/000000000",
        "width": 8,
    }
    with pytest.raises(ConfigError, match="holds a data set already"):
        unpack(shards, tmp_path / "out")


def test_splits_and_folders_and_other_suffixes_of_webdataset(tmp_path):
    members = [("a/cat.png", jpeg()), ("a/cat.caption", b"a cat"), ("b/cat.jpg", jpeg()), ("b/cat.cls", b"3")]
    members += [("b/dog.small.jpg", b"no"), ("b/dog.jpg", jpeg()), ("b/hen.v2.jpg", jpeg())]
    source = write_tar(tmp_path / "pets-train-000.tar", members)
    dataset = unpack(source, tmp_path / "out")
    assert captions(dataset) == {
        "pets-train-000/a/cat.jpg": ("a cat",),
        "pets-train-000/b/cat.jpg": (),
        "pets-train-000/b/dog.jpg": (),
        "pets-train-000/b/hen.jpg": (),
    }
    assert {image.split for image in dataset.images} == {"train"}


def test_what_is_wrong_with_a_member_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacked, "MAX_PICTURE_BYTES", 100_000)
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    source = write_tar(
        tmp_path / "s.tar",
        [
            *sample("1"),
            ("2.jpg", b"no picture"),
            ("3.jpg", link),
            ("../4.jpg", jpeg()),
            ("/5.jpg", jpeg()),
            (".6.jpg", jpeg()),
            ("7.jpg", bytes(100_001)),
            ("8.jpg", jpeg()),
            ("8.json", b"{"),
            ("8.txt", b"\xff"),
            ("caf\u00e9 " + "x" * 120 + ".jpg", jpeg()),
            ("a:b.jpg", jpeg()),
            ("1.jpg", jpeg(9)),
            *sample("9"),
        ],
    )
    dataset = unpack(source, tmp_path / "out")
    assert list(captions(dataset)) == [
        "s/1.jpg",
        "s/8.jpg",
        f"s/caf\u00e9 {'x' * 120}.jpg",
        "s/1-4.jpg",
        "s/9.jpg",
    ]
    assert reasons(dataset, source) == {
        "2.jpg": "not a picture, or its header is damaged",
        "3.jpg": "not a plain file",
        "../4.jpg": "its name is no plain path below the folder",
        "/5.jpg": "its name is no plain path below the folder",
        ".6.jpg": "its name is no plain path below the folder",
        "7.jpg": "100,001 bytes, over the limit of 100,000",
        "8.json": "not used: this is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1))",
        "8.txt": "not used: not UTF-8 (invalid start byte)",
        "a:b.jpg": "its name is no plain path below the folder",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"s.tar", "out"}


def test_a_damaged_header_costs_one_member(tmp_path):
    source = write_tar(tmp_path / "s.tar", [("1.jpg", jpeg()), ("2.jpg", jpeg()), ("3.jpg", jpeg())])
    content = bytearray(source.read_bytes())
    at = content.index(b"2.jpg\0")
    content[at : at + 512] = b"?" * 512
    source.write_bytes(content)
    dataset = unpack(source, tmp_path / "out")
    assert list(captions(dataset)) == ["s/1.jpg", "s/3.jpg"]
    (damage,) = dataset.skipped
    assert damage.path == str(source)
    assert damage.reason.startswith(f"damaged after 1.jpg: bytes {at:,} to ")


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        (lambda size, at: at + 512 + 100, "cut off: 100 of {length} bytes are there"),
        (lambda size, at: at, "cut off after 1.txt: the archive has no end"),
        (lambda size, at: 300, "this is no tar archive"),
    ],
)
def test_a_truncated_shard_is_named_and_the_others_go_on(tmp_path, left, reason):
    source = write_tar(tmp_path / "in" / "a.tar", [*sample("1"), ("2.jpg", jpeg())])
    content = source.read_bytes()
    with tarfile.open(source) as archive:
        at = archive.getmember("2.jpg").offset_data - 512
    source.write_bytes(content[: left(len(content), at)])
    write_tar(tmp_path / "in" / "b.tar", sample("3"))
    dataset = unpack(tmp_path / "in", tmp_path / "out")
    assert "b/3.jpg" in captions(dataset)
    assert reason.format(length=f"{len(jpeg()):,}") in [file.reason for file in dataset.skipped]


def test_the_reader_agrees_with_tarfile_in_every_format(tmp_path):
    names = ["short.jpg", "d" * 60 + "/" + "n" * 90 + ".jpg", "\u00fc" * 80 + ".jpg", "x" * 180 + ".jpg"]
    for tar_format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tar_format) as archive:
            for name in names:
                header = tarfile.TarInfo(name)
                header.size = len(name)
                archive.addfile(header, io.BytesIO(name.encode()[: len(name)]))
        with tarfile.open(path) as archive:
            expected = [Member(one.name, archive.extractfile(one).read()) for one in archive.getmembers()]
        assert list(tar_members(path, limit=lambda name: 1000)) == expected


def test_bytes_of_any_kind_end_in_a_report(tmp_path):
    """Every cut and every changed byte of a small archive: no exception, and only members that are intact."""
    whole = write_tar(tmp_path / "s.tar", [("1.txt", b"one"), ("2.txt", b"two")]).read_bytes()
    path = tmp_path / "t.tar"
    for at in range(0, 4096, 7):
        for content in (whole[:at], whole[:at] + b"\xff" + whole[at + 1 :], whole[:at] + b"0" + whole[at + 1 :]):
            path.write_bytes(content)
            for member in tar_members(path, limit=lambda name: 100):
                assert not isinstance(member, Member) or len(member.content) == 3


# ---- Parquet ----


PICTURE = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})


def write_parquet(path, pictures, metadata=None, kind=PICTURE, column="image", group=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({column: pyarrow.array(pictures, kind), **columns})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pyarrow.parquet.write_table(table, path, row_group_size=group, compression="none")
    return path


LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}
FEATURES = {"info": {"features": {"image": {"_type": "Image"}, "label": LABEL}}}


def test_hugging_faces_picture_columns(tmp_path):
    source = tmp_path / "set"
    write_parquet(
        source / "data" / "train-00000-of-00001.parquet",
        [{"bytes": jpeg(1), "path": "a.jpg"}, {"bytes": jpeg(2), "path": None}, {"bytes": jpeg(3), "path": "../a.jpg"}],
        FEATURES,
        text=["one", None, "three"],
        label=[1, 0, 7],
        year=[2020, 2021, None],
    )
    write_parquet(
        source / "data" / "test-00000-of-00001.parquet",
        [{"bytes": jpeg(4), "path": "a.jpg"}, None, {"bytes": None, "path": "/etc/hostname"}],
        text=["four", "five", "six"],
    )
    with pytest.raises(EmptyDataError, match=rf"inside these files: voken unpack {source} DIR"):
        read_dataset(source)
    dataset = unpack(source, tmp_path / "out")
    train, test = "data/train-00000-of-00001", "data/test-00000-of-00001"
    assert captions(dataset) == {
        f"{test}/a.jpg": ("four",),
        f"{train}/a.jpg": ("one",),
        f"{train}/00000002.jpg": (),
        f"{train}/a-4.jpg": ("three",),
    }
    assert [image.split for image in dataset.images] == ["test", "train", "train", "train"]
    assert [json.loads(image.metadata or "{}") for image in dataset.images[1:]] == [
        {"label": "dog", "year": 2020},
        {"label": "cat", "year": 2021},
        {"label": 7},
    ]
    assert reasons(dataset, source) == {
        f"{test}.parquet, row 2": "holds no picture",
        f"{test}.parquet, row 3": "its picture is a file elsewhere (/etc/hostname)",
    }
    assert captions(read_dataset(tmp_path / "out")) == captions(dataset)


def test_img2datasets_parquet_and_sets_with_five_captions(tmp_path):
    source = write_parquet(
        tmp_path / "00000.parquet",
        [jpeg(1), b"broken"],
        kind=pyarrow.binary(),
        column="jpg",
        key=["000000000", "000000001"],
        caption=["a dog", "a cat"],
    )
    dataset = unpack(source, tmp_path / "one")
    assert captions(dataset) == {"00000/000000000.jpg": ("a dog",)}
    assert reasons(dataset, source.parent) == {"00000.parquet, row 2": "not a picture, or its header is damaged"}
    numbered = {f"caption_{number}": [f"text {number}"] for number in range(5)}
    source = write_parquet(tmp_path / "f8k.parquet", [{"bytes": jpeg(), "path": None}], **numbered)
    assert list(captions(unpack(source, tmp_path / "two")).values()) == [tuple(f"text {n}" for n in range(5))]
    source = write_parquet(tmp_path / "f30k.parquet", [{"bytes": jpeg(), "path": None}], caption=[["one", "two"]])
    assert list(captions(unpack(source, tmp_path / "three")).values()) == [("one", "two")]


def test_columns_of_other_names_are_named_by_the_user(tmp_path):
    picture = [{"bytes": jpeg(), "path": None}]
    source = write_parquet(
        tmp_path / "a.parquet", picture, column="front", back=pyarrow.array(picture, PICTURE), product=["a shoe"]
    )
    with pytest.raises(DataError, match=r"the columns of bytes are: back, front\. Name the one with"):
        unpack(source, tmp_path / "out")
    with pytest.raises(DataError, match=r"has no column 'titel'; it has .*product.*\(--caption\)"):
        unpack(source, tmp_path / "out", picture="front", caption="titel")
    dataset = unpack(source, tmp_path / "out", picture="front", caption="product")
    assert captions(dataset) == {"a/00000001.jpg": ("a shoe",)}


def test_a_damaged_stretch_of_a_parquet_file_is_named(tmp_path):
    pictures = [{"bytes": jpeg(shade), "path": f"{shade}.jpg"} for shade in range(4)]
    source = write_parquet(tmp_path / "a.parquet", pictures, group=1, text=list("abcd"))
    content = bytearray(source.read_bytes())
    with pyarrow.parquet.ParquetFile(source) as file:
        chunk = file.metadata.row_group(2).column(0)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 30] = b"\xff" * 30
    source.write_bytes(content)
    dataset = unpack(source, tmp_path / "out")
    assert list(captions(dataset)) == ["a/0.jpg", "a/1.jpg", "a/3.jpg"]
    (damage,) = dataset.skipped
    assert damage.reason.startswith("rows 3 to 3 cannot be read (")
    source.write_bytes(b"PAR1 no")
    with pytest.raises(EmptyDataError, match="this is not a Parquet file"):
        unpack(source, tmp_path / "none")
    assert not (tmp_path / "none" / "metadata.jsonl").exists()


# ---- the hub ----


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return module


def hub_folder(root):
    for split, shade in (("train", 0), ("validation", 9)):
        write_parquet(
            root / "data" / f"{split}-00000-of-00001.parquet",
            [{"bytes": jpeg(shade), "path": "a.jpg"}, {"bytes": jpeg(shade + 1), "path": "b.jpg"}],
            FEATURES,
            text=["one", "two"],
            label=[0, 1],
        )
    return root


def test_a_data_set_of_the_hub_by_its_name(tmp_path, monkeypatch, datasets):
    root = hub_folder(tmp_path / "hub" / "some" / "pets")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: load(str(tmp_path / "hub" / name), config))
    monkeypatch.chdir(tmp_path)
    dataset = unpack("some/pets", tmp_path / "out")
    assert captions(dataset) == {
        "train/a.jpg": ("one",),
        "train/b.jpg": ("two",),
        "validation/a.jpg": ("one",),
        "validation/b.jpg": ("two",),
    }
    assert [image.split for image in dataset.images] == ["train", "train", "validation", "validation"]
    assert json.loads(dataset.images[1].metadata) == {"label": "dog"}
    assert dataset.images[3].path.read_bytes() == jpeg(10)
    from_files = unpack(root, tmp_path / "files")
    assert {image.path.read_bytes() for image in from_files.images} == {
        image.path.read_bytes() for image in dataset.images
    }


def test_a_folder_of_pictures_through_datasets(tmp_path, datasets):
    root = tmp_path / "folder"
    for name in ("train/a.jpg", "train/b.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg())
    lines = ({"file_name": "a.jpg", "text": "one"}, {"file_name": "b.jpg", "text": "two"})
    (root / "train" / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = list(hub_pictures(str(root), unpacked._ColumnNames()))
    assert [(one.key, one.content, one.fields["captions"]) for one in found] == [
        ("train/a", jpeg(), ["one"]),
        ("train/b", jpeg(), ["two"]),
    ]


def test_a_name_that_the_hub_does_not_have(tmp_path, monkeypatch, datasets):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"some/none: `datasets` cannot read it"):
        unpack("some/none", tmp_path / "out")
    with pytest.raises(DataError, match=r"no such file or folder, and no name on the hub \(USER/NAME\)"):
        unpack("none", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"voken-search\[hub\]"):
        unpack("some/none", tmp_path / "out")


# ---- the command ----


def test_the_command_says_what_it_wrote_and_what_it_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tar(Path("s-train.tar"), [*sample("1"), ("2.jpg", b"no"), *sample("3")])
    run = CliRunner().invoke(app, ["unpack", "s-train.tar", "out", "--limit", "2"])
    assert run.exit_code == 0, run.output
    assert run.stdout.splitlines() == ["out: 2 pictures (2 train)", f"Next: voken fit {tmp_path}/out --out out.model"]
    assert "s-train.tar/2.jpg: not a picture" in run.stderr
    plain = CliRunner().invoke(app, ["unpack", ".", "more"])
    assert plain.exit_code == 0, plain.output
    (tmp_path / "empty").mkdir()
    nothing = CliRunner().invoke(app, ["unpack", "empty", "other"])
    assert nothing.exit_code == 1
    assert "there is no .tar and no .parquet file" in nothing.stderr
