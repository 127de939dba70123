"""Reading and writing data sets: every layout in miniature, and every way a line can be wrong."""

import json
from dataclasses import replace
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
from voken.data.splits import check_disjoint
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
        ({"text": ["one", "two"]}, ("one", "two")),
        ({"captions": "one"}, ("one",)),
        ({"captions": ["x", 3, None, {"no": "text"}, True]}, ("x", "3")),
        ({"caption": {"no": "text"}}, ()),
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
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    (tmp_path / "sub").mkdir()
    imagefolder(tmp_path, {"file_name": "a.png"}, "", line)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'metadata.jsonl'}, line 3: ")
    assert says in str(caught.value)


def test_values_that_only_training_needs_stop_nothing(tmp_path):
    lines = (
        {"file_name": "a.png", "split": "unlabeled", "concept": 7, "license": 3, "vendor": ["x"], "family": {"a": 1}},
        {"file_name": "b.png", "split": "Unlabeled", "captions": ["x", {"not": "a text"}], "concept": True},
    )
    dataset = read_dataset(imagefolder(tmp_path, *lines))
    first, second = dataset.images
    assert (first.split, first.concept, first.licence, first.vendor, first.family) == ("unlabeled", "7", "3", "", "7")
    assert (second.split, second.captions, second.concept) == ("unlabeled", ("x",), "b.png")
    assert json.loads(first.metadata) == {name: value for name, value in lines[0].items() if name != "file_name"}
    assert [(Path(value.path).name, value.reason) for value in dataset.unused_values] == [
        ("metadata.jsonl, line 1", "'family' is not used: it must be a string, not dict"),
        ("metadata.jsonl, line 2", "captions[1] is not used: it must be a string, not dict"),
        ("metadata.jsonl, line 2", "'concept' is not used: it must be a string, not bool"),
        (
            "metadata.jsonl",
            "the split 'unlabeled' of 2 pictures (the first: 1) is unknown; they are not trained on. "
            "Use train, validation or test",
        ),
    ]
    assert dataset.skipped == ()
    # a split that nobody uses separates nothing
    check_disjoint(
        Dataset("d", tmp_path, tuple(replace(first, split=split, concept="c") for split in ("unlabeled", "train")))
    )


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
    (tmp_path / "x.txt").write_text("a,b")
    with pytest.raises(DataError, match="this is not a folder, and no list of pictures that voken can read"):
        read_dataset(tmp_path / "x.txt")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x.csv, line 1: there is no column 'file_name'"):
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
        ({"filename": None}, "'filename' is missing"),
        ({"filename": "../1.jpg"}, "leaves the folder"),
        ({"filepath": "/x"}, "absolute path"),
        ({"filename": "1.jpg"}, "occurs earlier"),
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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dataset-metadata.json", '{"title": "x", "id": "me/x"}'),
        ("dataset_infos.json", '{"default": {"features": {}}}'),
        ("dataset.json", "[1]"),
        ("dataset_torn.json", '{"images": ['),
    ],
)
def test_files_of_other_programs_do_not_hide_the_pictures(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    picture(tmp_path / "a.png")
    dataset = read_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == ["a.png"]
    assert [Path(file.path).name for file in dataset.skipped] == [name]
    assert dataset.skipped[0].reason.startswith("not read as a data set: ")
    with pytest.raises(DataError, match=name):
        read_dataset(tmp_path / name)


def test_karpathy_sentences_in_other_forms(tmp_path):
    sentences = [{"raw": ""}, {"raw": " "}, {"tokens": ["a", "dog"]}, "a cat", {}, {"raw": "x"}, {"raw": ["y"]}]
    record = {**flickr("1.jpg", "later", "x"), "sentences": sentences}
    (tmp_path / "dataset_x.json").write_text(json.dumps({"images": [record], "dataset": 3}))
    picture(tmp_path / "1.jpg")
    dataset = read_dataset(tmp_path)
    assert (dataset.name, dataset.images[0].split) == ("x", "later")
    assert dataset.images[0].captions == ("a dog", "a cat", "x")
    assert [value.reason.partition(" is ")[0] for value in dataset.unused_values] == [
        "sentences[6]",
        "the split 'later' of 1 pictures (the first: 0)",
    ]


# ---- Hugging Face's layouts ----


def test_metadata_csv(tmp_path):
    for name in ("a.png", "b, c.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.csv").write_bytes(
        b"\xef\xbb\xbffile_name,text,licence,year,zip,price,ok,\r\n"
        b'a.png,"a cat, asleep",CC0,2020,007,1.50,True,x\r\n'
        b'\r\n"b, c.png","two\nlines",,-3,,1e5\r\n'
    )
    dataset = read_dataset(tmp_path)
    assert [(image.image_id, image.captions, image.licence) for image in dataset.images] == [
        ("a.png", ("a cat, asleep",), "CC0"),
        ("b, c.png", ("two\nlines",), ""),
    ]
    first, second = (json.loads(image.metadata) for image in dataset.images)
    assert first == {"licence": "CC0", "year": 2020, "zip": "007", "price": 1.5, "ok": "True"}
    assert second == {"year": -3, "price": "1e5"}
    assert read_dataset(tmp_path / "metadata.csv").images == dataset.images


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_metadata_csv_as_spreadsheets_write_it(tmp_path, delimiter):
    picture(tmp_path / "a.png")
    rows = ["file_name", "text", "n"], ["a.png", "a cat, asleep", "7"]
    (tmp_path / "metadata.csv").write_text("\n".join(map(delimiter.join, rows)))
    (image,) = read_dataset(tmp_path).images
    assert (image.captions, image.metadata) == (("a cat, asleep",), '{"n":7}')


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("file_name,n\na.png,1\na.png,2\n", "line 3: file_name 'a.png' is already on line 2"),
        ("n,file_name\n1,a.png\n2\n", "line 3: "),
        ("file_name,n\n,2\n", "line 2: 'file_name' is missing"),
        ("file_name,n\n\xff,2\n", "line 2: not UTF-8"),
    ],
)
def test_a_bad_row_of_a_csv_is_named(tmp_path, rows, says):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path / "metadata.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'metadata.csv'}, {says}")


def test_a_metadata_file_in_each_folder(tmp_path):
    for name in ("train/a.png", "train/deep/b.png", "data/validation/c.png", "loose/d.png", "train.png"):
        picture(tmp_path / name)
    (tmp_path / "train" / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "a cat"}\n{"file_name": "deep/b.png", "split": "test"}'
    )
    (tmp_path / "data" / "validation" / "metadata.csv").write_text("file_name,n\nc.png,3")
    (tmp_path / "loose" / "metadata.jsonl").write_text('{"url": "another program wrote this"}')
    (tmp_path / "train" / "metadata.parquet").write_bytes(b"PAR1")
    dataset = read_dataset(tmp_path)
    assert {(image.image_id, image.split, image.captions, image.metadata) for image in dataset.images} == {
        ("train/a.png", "train", ("a cat",), ""),
        ("train/deep/b.png", "test", (), '{"split":"test"}'),
        ("data/validation/c.png", "validation", (), '{"n":3}'),
        ("loose/d.png", "", (), ""),
        ("train.png", "", (), ""),
    }
    assert all(image.path == tmp_path / image.image_id for image in dataset.images)
    assert {str(Path(file.path).relative_to(tmp_path)): file.reason for file in dataset.skipped} == {
        "loose/metadata.jsonl": "not read: line 1: 'file_name' is missing",
        "train/metadata.parquet": "not read, because there is a metadata.jsonl",
    }


def test_of_two_metadata_files_the_first_is_read(tmp_path):
    imagefolder(tmp_path, {"file_name": "a.png", "n": 1})
    (tmp_path / "metadata.csv").write_text("file_name,n\nb.png,2")
    dataset = read_dataset(tmp_path)
    assert [image.metadata for image in dataset.images] == ['{"n":1}']
    assert "not read, because there is a metadata.jsonl" in dataset.skipped[0].reason
    # a table that is not about pictures hides none
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("name,n\nb.png,2")
    dataset = read_dataset(tmp_path)
    assert [image.image_id for image in dataset.images] == ["a.png", "b.png"]
    assert "there is no column 'file_name'" in dataset.skipped[0].reason


def test_an_empty_karpathy_file_and_two_of_them(tmp_path):
    (tmp_path / "dataset_a.json").write_text('{"images": []}')
    with pytest.raises(EmptyDataError):
        read_dataset(tmp_path)
    (tmp_path / "dataset_b.json").write_text('{"images": []}')
    with pytest.raises(DataError, match="Name one of them"):
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
    with pytest.raises(EmptyDataError, match=r"'validation'\. Its pictures are in test, train"):
        dataset.split("validation")


def test_the_fingerprint_tells_contents_and_not_places(tmp_path):
    line = {"file_name": "a.png", "captions": ["a dog"], "split": "val", "concept": "dog"}
    first = read_dataset(imagefolder(tmp_path / "one", line)).fingerprint
    assert read_dataset(imagefolder(tmp_path / "two", line)).fingerprint == first
    for field, value in {"captions": ["a cat"], "split": "test", "concept": "cat"}.items():
        assert read_dataset(imagefolder(tmp_path / field, {**line, field: value})).fingerprint != first
    Image.new("RGB", (40, 40), "red").save(tmp_path / "two" / "a.png")
    assert read_dataset(tmp_path / "two").fingerprint != first
