"""Data sets in the forms in which people hand them around, each as a miniature of the true files."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from voken.data.captions import read_dataset
from voken.errors import DataError, MissingExtraError


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


def paint(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


def captions(dataset):
    return {image.image_id: image.captions for image in dataset.images}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- COCO ----


def coco(*names, text="a dog"):
    images = [{"id": 100 + number, "file_name": name, "height": 4, "width": 4} for number, name in enumerate(names)]
    annotations = [
        {"image_id": 100 + number, "id": 7 + 10 * number + at, "caption": f"{text} {number}{letter}"}
        for number in range(len(names))
        for at, letter in enumerate("ab")
    ]
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}


def test_coco_with_its_folders_and_splits(root):
    paint(root, "train2017/000000000009.jpg", "val2017/000000000139.jpg", "val2017/000000000285.jpg")
    write(root / "annotations/captions_train2017.json", json.dumps(coco("000000000009.jpg")))
    write(root / "annotations/captions_val2017.json", json.dumps(coco("000000000139.jpg", "000000000285.jpg")))
    write(root / "annotations/instances_val2017.json", json.dumps({"images": [], "annotations": []}))
    dataset = read_dataset(root)
    assert captions(dataset) == {
        "train2017/000000000009.jpg": ("a dog 0a", "a dog 0b"),
        "val2017/000000000139.jpg": ("a dog 0a", "a dog 0b"),
        "val2017/000000000285.jpg": ("a dog 1a", "a dog 1b"),
    }
    assert [image.split for image in dataset.images] == ["train", "validation", "validation"]
    one = read_dataset(root / "annotations/captions_val2017.json", root / "val2017")
    assert list(captions(one)) == ["000000000139.jpg", "000000000285.jpg"]
    assert [file.path.rpartition("/")[2] for file in dataset.left_out] == ["instances_val2017.json"]


def test_coco_says_what_is_wrong_with_an_entry(root):
    paint(root, "a.jpg")
    path = root / "captions.json"
    for change, fault in (
        (lambda content: content["annotations"][1].update(image_id=5), r"annotations\[1\]: its image_id"),
        (lambda content: content["annotations"][0].pop("caption"), r"annotations\[0\]: 'caption' is missing"),
        (lambda content: content["images"][0].pop("file_name"), r"images\[0\]: 'file_name' is missing"),
        (lambda content: content["images"][0].update(file_name="../a.jpg"), r"images\[0\]: .* leaves the folder"),
    ):
        content = coco("a.jpg")
        change(content)
        write(path, json.dumps(content))
        with pytest.raises(DataError, match=rf"captions\.json, {fault}"):
            read_dataset(path)


# ---- Flickr ----

TOKENS = """1000268201.jpg#0\tA child in a pink dress is climbing up a set of stairs .
1000268201.jpg#1\tA girl going into a wooden building .

1001773457.jpg#0\tA black dog and a spotted dog are fighting
2258277193.jpg.1#0\tnot a picture that anybody has
"""


def test_flickr8k_with_its_token_file_and_its_lists(root):
    paint(root, "Flicker8k_Dataset/1000268201.jpg", "Flicker8k_Dataset/1001773457.jpg")
    write(root / "Flickr8k.token.txt", TOKENS)
    write(root / "Flickr8k.lemma.token.txt", TOKENS.lower())
    write(root / "Flickr_8k.trainImages.txt", "1000268201.jpg\n")
    write(root / "Flickr_8k.devImages.txt", "1001773457.jpg\n")
    dataset = read_dataset(root)
    assert captions(dataset) == {
        "Flicker8k_Dataset/1000268201.jpg": (
            "A child in a pink dress is climbing up a set of stairs .",
            "A girl going into a wooden building .",
        ),
        "Flicker8k_Dataset/1001773457.jpg": ("A black dog and a spotted dog are fighting",),
    }
    assert [image.split for image in dataset.images] == ["train", "validation"]
    (missing,) = dataset.skipped
    assert missing.reason == "Flickr8k.token.txt, line 5, lists it, but it does not exist"


def test_flickr30k_with_its_token_file_or_with_kaggles_table(root):
    paint(root, "flickr30k-images/36979.jpg")
    token = write(root / "results_20130124.token", '36979.jpg#0\tA "group" of men\n36979.jpg#1\tTwo men , friends\n')
    expected = {"flickr30k-images/36979.jpg": ('A "group" of men', "Two men , friends")}
    assert captions(read_dataset(root)) == expected
    token.unlink()
    table = 'image_name| comment_number| comment\n36979.jpg| 0| A "group" of men\n36979.jpg| 1| Two men , friends\n'
    write(root / "results.csv", table)
    assert captions(read_dataset(root)) == expected


def test_a_line_of_a_token_file_without_a_tab_is_named(root):
    paint(root, "a.jpg")
    path = write(root / "set.token", "a.jpg#0\tone\na.jpg#1 two\n")
    with pytest.raises(DataError, match=r"set\.token, line 2: this is not NAME#NUMBER"):
        read_dataset(path)


# ---- tables ----


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "image,caption\na.jpg,a dog , running\na.jpg,a dog\nb/c.jpg,snow\n"),  # Kaggle's Flickr8k
        ("captions.csv", 'filepath;title;year\na.jpg;"a dog , running";2020\na.jpg;a dog;2020\nb/c.jpg;snow;2021\n'),
        ("captions.tsv", "a.jpg\ta dog , running\na.jpg\ta dog\nb/c.jpg\tsnow\n"),
        ("other.csv", '\ufeffPath,Text\r\na.jpg,"a dog , running"\r\na.jpg,a dog\r\n\r\nb/c.jpg,snow\r\n'),
        ("lists.csv", 'image,captions\na.jpg,"[""a dog , running"", ""a dog""]"\nb/c.jpg,snow\n'),
    ],
)
def test_tables_with_and_without_a_heading(root, name, text):
    paint(root, "a.jpg", "b/c.jpg")
    path = write(root / name, text)
    dataset = read_dataset(root if name.startswith("captions") else path)
    assert captions(dataset) == {"a.jpg": ("a dog , running", "a dog"), "b/c.jpg": ("snow",)}
    assert dataset.skipped == ()
    if "year" in text:
        assert json.loads(dataset.images[1].metadata) == {"year": "2021"}


def test_lines_of_a_table_that_cannot_be_used_are_named(root):
    paint(root, "a.jpg")
    short = write(root / "captions.csv", "file,caption,year\na.jpg,a dog,1\na.jpg,a cat\n")
    with pytest.raises(DataError, match=r"captions\.csv, line 3: 2 cells, not 3"):
        read_dataset(short)
    empty = write(root / "captions.csv", "file,caption\n,a dog\n")
    with pytest.raises(DataError, match=r"captions\.csv, line 2: names no picture"):
        read_dataset(empty)
    other = write(root / "numbers.csv", "x,y\n1,2\n")
    with pytest.raises(DataError, match=r"line 1: there is no column 'file_name'"):
        read_dataset(other)
    paint(root, "one/b.jpg", "two/b.jpg")
    write(root / "captions.csv", "file,caption\nb.jpg,a dog\none/b.jpg,a cat\n")
    dataset = read_dataset(root)
    assert captions(dataset) == {"one/b.jpg": ("a cat",)}
    assert [file.reason for file in dataset.skipped] == [
        "captions.csv, line 2, names 2 pictures; give the path relative to the folder"
    ]


def test_a_file_of_such_a_name_that_is_something_else_hides_no_picture(root):
    paint(root, "a.jpg")
    write(root / "captions.txt", "These are my holidays.\n")
    write(root / "captions.json", '{"model": "x"}')
    dataset = read_dataset(root)
    assert list(captions(dataset)) == ["a.jpg"]
    assert sorted(file.reason.partition(":")[0] for file in dataset.skipped) == ["not read as captions"] * 2


def test_two_lists_at_once_are_refused(root):
    paint(root, "a.jpg")
    write(root / "captions.txt", "image,caption\na.jpg,a dog\n")
    write(root / "results.csv", "image,caption\na.jpg,a dog\n")
    with pytest.raises(DataError, match=r"several data set files \(captions\.txt, results\.csv\); name one"):
        read_dataset(root)


# ---- Parquet ----


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_metadata_in_parquet_as_hugging_face_writes_it(root):
    paint(root, "train/a.jpg", "train/b.jpg")
    names, texts = ["a.jpg", "b.jpg"], ["a dog", None]
    parquet(root / "train" / "metadata.parquet", file_name=names, text=texts, year=[2020, 2021], thumb=[b"x", b"y"])
    dataset = read_dataset(root)
    assert captions(dataset) == {"train/a.jpg": ("a dog",), "train/b.jpg": ()}
    assert [image.split for image in dataset.images] == ["train", "train"]
    assert json.loads(dataset.images[0].metadata) == {"year": 2020}


def test_captions_in_parquet(root):
    paint(root, "images/a.jpg")
    path = parquet(root / "captions.parquet", image_path=["a.jpg", "a.jpg"], caption=["a dog", "running"])
    assert captions(read_dataset(root)) == {"images/a.jpg": ("a dog", "running")}
    several = parquet(root / "more.parquet", image=["a.jpg"], captions=[["one", "two"]])
    assert captions(read_dataset(several)) == {"images/a.jpg": ("one", "two")}
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"captions\.parquet: this is not a Parquet file"):
        read_dataset(path)


def test_parquet_without_pyarrow_names_the_extra(root, monkeypatch):
    paint(root, "a.jpg")
    path = parquet(root / "captions.parquet", file_name=["a.jpg"], caption=["a dog"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"voken-search\[parquet\]"):
        read_dataset(path)


# ---- img2dataset ----


def shard(folder, *keys):
    for key in keys:
        paint(folder, f"{key}.jpg")
        write(folder / f"{key}.txt", f"a caption of {key}")
        record = {"url": f"https://example.org/{key}", "key": key, "status": "success", "width": 4, "caption": "x"}
        write(folder / f"{key}.json", json.dumps(record))


def test_img2dataset_in_files(root):
    shard(root / "00000", "000000000", "000000001")
    shard(root / "00001", "000010000")
    for number in (0, 1):
        write(root / f"{number:05}_stats.json", json.dumps({"count": 2, "successes": 2}))
        parquet(root / f"{number:05}.parquet", url=["u"], key=["k"])
    dataset = read_dataset(root)
    assert captions(dataset) == {
        f"{key[:5]}/{key}.jpg": (f"a caption of {key}",) for key in ("000000000", "000000001", "000010000")
    }
    assert json.loads(dataset.images[0].metadata) == {
        "url": "https://example.org/000000000",
        "key": "000000000",
        "width": 4,
    }
    write(root / "00001" / "000010000.json", "{")
    with pytest.raises(DataError, match=r"000010000\.json: this is not JSON"):
        read_dataset(root)


def test_img2dataset_in_archives_is_unpacked_first(root):
    write(root / "00000_stats.json", "{}")
    write(root / "00000.tar", "")
    with pytest.raises(DataError, match=rf"00000\.tar: the pictures are in archives.*voken unpack {root} DIR"):
        read_dataset(root)
    shard(root / "00000", "000000000")
    assert list(captions(read_dataset(root))) == ["00000/000000000.jpg"]
