"""Reading and writing data sets: every layout in miniature, and every way a line can be wrong."""

import json
from pathlib import Path

import pytest
from PIL import Image

from voken.data.captions import (
    MAX_CAPTION_CHARACTERS,
    CaptionedImage,
    Dataset,
    read_dataset,
    write_dataset,
)
from voken.errors import DataError, EmptyDataError, StorageError


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)
    return path


def imagefolder(folder: Path, *lines: object, names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    for name in names:
        picture(folder / name)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(text), encoding="utf-8")
    return folder


def test_imagefolder_with_every_field(tmp_path):
    line = {
        "file_name": "a.png",
        "captions": ["a dog", "ein Hündchen"],
        "split": "val",
        "concept": "dog",
        "family": "pets",
        "licence": "MIT",
        "vendor": "me",
    }
    dataset = read_dataset(imagefolder(tmp_path / "set", line, {"file_name": "b.png", "text": "a cat"}))
    assert dataset.name == "set"
    assert dataset.images == (
        CaptionedImage(
            "a.png", tmp_path / "set" / "a.png", ("a dog", "ein Hündchen"), "validation", "dog", "MIT", "pets", "me"
        ),
        CaptionedImage("b.png", tmp_path / "set" / "b.png", ("a cat",), "", "b.png", "", "b.png", ""),
    )


@pytest.mark.parametrize(
    ("fields", "captions"),
    [
        ({"caption": " one "}, ("one",)),
        ({"text": "one"}, ("one",)),
        ({"captions": []}, ()),
        ({"captions": ["", "  ", "x"]}, ("x",)),
        ({"text": None}, ()),
        ({}, ()),
    ],
)
def test_caption_fields(tmp_path, fields, captions):
    dataset = read_dataset(imagefolder(tmp_path, {"file_name": "a.png", **fields}))
    assert dataset.images[0].captions == captions


def test_metadata_file_itself_can_be_named(tmp_path):
    imagefolder(tmp_path, {"file_name": "a.png"})
    assert read_dataset(tmp_path / "metadata.jsonl") == read_dataset(tmp_path)


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path):
    imagefolder(tmp_path)
    text = '{"file_name": "a.png", "text": "é"}\r\n\r\n   \r\n{"file_name": "b.png"}\r\n'
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = read_dataset(tmp_path)
    assert [image.captions for image in dataset.images] == [("é",), ()]


def test_a_very_long_caption_is_cut(tmp_path):
    dataset = read_dataset(imagefolder(tmp_path, {"file_name": "a.png", "text": "x" * 100_000}))
    assert dataset.images[0].captions == ("x" * MAX_CAPTION_CHARACTERS,)


def test_a_lone_surrogate_does_not_reach_a_tokenizer(tmp_path):
    dataset = read_dataset(imagefolder(tmp_path, '{"file_name": "a.png", "text": "bad \\ud800 half"}'))
    assert dataset.images[0].captions == ("bad ? half",)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "this is not JSON"),
        ('{"file_name": ' + "9" * 5000 + "}", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        (["a.png"], "this must be a JSON object, not list"),
        ({"text": "x"}, "'file_name' is missing"),
        ({"file_name": ""}, "'file_name' is missing"),
        ({"file_name": 3}, "'file_name' must be a string, not int"),
        ({"file_name": "/etc/passwd.png"}, "absolute path"),
        ({"file_name": "C:\\x.png"}, "absolute path"),
        ({"file_name": "../a.png"}, "leaves the folder"),
        ({"file_name": "x\\..\\..\\a.png"}, "leaves the folder"),
        ({"file_name": "./"}, "not a file name"),
        ({"file_name": "a\0.png"}, "not a file name"),
        ({"file_name": "a.png"}, "is already on line 1"),
        ({"file_name": "./a.png"}, "is already on line 1"),
        ({"file_name": "gone.png"}, "gone.png does not exist"),
        ({"file_name": "sub"}, "does not exist"),
        ({"file_name": "b.png", "captions": "x"}, "'captions' must be a list of strings, not str"),
        ({"file_name": "b.png", "captions": ["x", 3]}, "captions[1] must be a string, not int"),
        ({"file_name": "b.png", "text": ["x"]}, "'text' must be a string, not list"),
        ({"file_name": "b.png", "split": "tset"}, "unknown split 'tset'"),
        ({"file_name": "b.png", "concept": 7}, "'concept' must be a string, not int"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    (tmp_path / "sub").mkdir()
    imagefolder(tmp_path, {"file_name": "a.png"}, "", line)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'metadata.jsonl'}, line 3: ")
    assert says in str(caught.value)


def test_metadata_that_is_not_utf8_names_the_line(tmp_path):
    imagefolder(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "a.png"}\n{"file_name": "b.png", "text": "\xff"}\n')
    with pytest.raises(DataError, match="line 2: not UTF-8"):
        read_dataset(tmp_path)


def test_empty_data_sets(tmp_path):
    with pytest.raises(EmptyDataError, match="it lists no picture"):
        read_dataset(imagefolder(tmp_path / "a", names=()) if picture(tmp_path / "a" / "x.png") else tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(EmptyDataError, match="no metadata"):
        read_dataset(tmp_path / "b")
    with pytest.raises(EmptyDataError):
        write_dataset(tmp_path / "c", "c", [])


def test_paths_that_are_no_data_set(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_dataset(tmp_path / "gone")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"this is not a folder, a metadata.jsonl or a Karpathy .json file"):
        read_dataset(tmp_path / "x.csv")


def test_a_folder_of_pictures_alone(tmp_path):
    for name in ("b.JPG", "sub/a.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = read_dataset(tmp_path)
    assert [(image.image_id, image.captions, image.concept) for image in dataset.images] == [
        ("b.JPG", (), "b.JPG"),
        ("sub/a.png", (), "sub/a.png"),
    ]


def flickr(name: str, split: str, *raws: str) -> dict:
    return {
        "sentids": [0],
        "imgid": 0,
        "sentences": [{"tokens": raw.split(), "raw": raw, "imgid": 0, "sentid": 0} for raw in raws],
        "split": split,
        "filename": name,
    }


def test_karpathy_flickr30k(tmp_path):
    images = [flickr("1.jpg", "train", "Two men.", " A dog. "), flickr("2.jpg", "val", "x"), flickr("3.jpg", "test")]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        picture(tmp_path / "flickr30k-images" / name)
    dataset = read_dataset(tmp_path)
    assert dataset.name == "flickr30k"
    assert [(image.image_id, image.split, image.captions) for image in dataset.images] == [
        ("1.jpg", "train", ("Two men.", "A dog.")),
        ("2.jpg", "validation", ("x",)),
        ("3.jpg", "test", ()),
    ]
    assert dataset.images[0].path == tmp_path / "flickr30k-images" / "1.jpg"
    # the same, with file and folder named apart
    apart = read_dataset(tmp_path / "dataset_flickr30k.json", tmp_path / "flickr30k-images")
    assert [image.path for image in apart.images] == [image.path for image in dataset.images]


def test_karpathy_coco(tmp_path):
    images = [
        {**flickr("COCO_val2014_000000000042.jpg", "restval", "a boat"), "filepath": "val2014", "cocoid": 42},
        {**flickr("COCO_train2014_000000000007.jpg", "test", "a hat"), "filepath": "train2014", "cocoid": 7},
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    picture(tmp_path / "coco" / "val2014" / "COCO_val2014_000000000042.jpg")
    picture(tmp_path / "coco" / "train2014" / "COCO_train2014_000000000007.jpg")
    dataset = read_dataset(tmp_path / "dataset_coco.json", tmp_path / "coco")
    assert [(image.image_id, image.split) for image in dataset.images] == [
        ("val2014/COCO_val2014_000000000042.jpg", "train"),
        ("train2014/COCO_train2014_000000000007.jpg", "test"),
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"filename": "gone.jpg"}, "'gone.jpg' is neither in"),
        ({"filename": None}, "'filename' is missing"),
        ({"filename": "../1.jpg"}, "leaves the folder"),
        ({"filepath": "/x"}, "absolute path"),
        ({"filename": "1.jpg"}, "occurs earlier"),
        ({"split": "later"}, "unknown split 'later'"),
        ({"sentences": ["x"]}, "'sentences' must be a list of objects"),
        ({"sentences": [{"raw": "x"}, {}]}, "sentences[1]: 'raw' is missing"),
    ],
)
def test_a_bad_karpathy_record_is_named(tmp_path, change, says):
    source = tmp_path / "dataset_x.json"
    source.write_text(
        json.dumps({"images": [flickr("1.jpg", "train", "x"), {**flickr("2.jpg", "train", "x"), **change}]})
    )
    picture(tmp_path / "1.jpg")
    picture(tmp_path / "2.jpg")
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert f"{source}, images[1]" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", '{"images": 3}', "{", '{"images": [3]}'])
def test_a_json_that_is_no_karpathy_file(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json"):
        read_dataset(tmp_path)


def test_an_empty_karpathy_file_and_two_of_them(tmp_path):
    (tmp_path / "dataset_a.json").write_text('{"images": []}')
    with pytest.raises(EmptyDataError):
        read_dataset(tmp_path)
    (tmp_path / "dataset_b.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="name one of them"):
        read_dataset(tmp_path)


def test_what_is_written_is_read_back(tmp_path):
    images = [
        CaptionedImage("x/a.png", picture(tmp_path / "x" / "a.png"), ("dog", "日本"), "train", "c", "MIT", "f", "v"),
        CaptionedImage("b.png", picture(tmp_path / "b.png")),
    ]
    written = write_dataset(tmp_path, tmp_path.name, images)
    assert read_dataset(tmp_path) == written == Dataset(tmp_path.name, tmp_path, tuple(images))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    inside = CaptionedImage("a.png", picture(tmp_path / "set" / "a.png"))
    write_dataset(tmp_path / "set", "set", [inside])
    before = (tmp_path / "set" / "metadata.jsonl").read_bytes()
    outside = CaptionedImage("o.png", picture(tmp_path / "o.png"))
    with pytest.raises(DataError, match="a path or a text in it cannot be written"):
        write_dataset(tmp_path / "set", "set", [inside, outside])
    assert (tmp_path / "set" / "metadata.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["a.png", "metadata.jsonl"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        write_dataset(tmp_path / "file", "x", [inside])


def test_split_and_concepts(tmp_path):
    def one(name: str, split: str, concept: str) -> CaptionedImage:
        return CaptionedImage(name, tmp_path / name, (), split, concept)

    dataset = Dataset("d", tmp_path, (one("1", "train", "b"), one("2", "test", "a"), one("3", "train", "b")))
    assert [image.image_id for image in dataset.split("train").images] == ["1", "3"]
    assert (len(dataset), dataset.concepts) == (3, ("b", "a"))
    with pytest.raises(EmptyDataError, match="'validation'; the data set has test, train"):
        dataset.split("validation")


def test_the_fingerprint_tells_contents_and_not_places(tmp_path):
    line = {"file_name": "a.png", "captions": ["a dog"], "split": "val", "concept": "dog"}
    first = read_dataset(imagefolder(tmp_path / "one", line)).fingerprint
    assert read_dataset(imagefolder(tmp_path / "two", line)).fingerprint == first
    for field, value in {"captions": ["a cat"], "split": "test", "concept": "cat"}.items():
        assert read_dataset(imagefolder(tmp_path / field, {**line, field: value})).fingerprint != first
    Image.new("RGB", (40, 40), "red").save(tmp_path / "two" / "a.png")
    assert read_dataset(tmp_path / "two").fingerprint != first
