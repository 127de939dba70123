"""The vector cache against real SQLite files: filled, shared, cut off, full and damaged."""

import sqlite3
import threading
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from voken import artifact
from voken.encoders.cache import FILE, VectorCache
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, StorageError


def mean_colours(images):
    """An encoder whose answer is plain to see: the picture's mean colour."""
    return np.stack([np.asarray(image, dtype=np.float32).mean(axis=(0, 1)) for image in images])


class Counting:
    def __init__(self, stop_after=None):
        self.batches = []
        self.stop_after = stop_after

    def __call__(self, images):
        if self.stop_after is not None and len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(len(images))
        return mean_colours(images)


@pytest.fixture
def cache(tmp_path):
    return VectorCache(tmp_path / "cache")


@pytest.fixture
def paths(tmp_path):
    files = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number, 2 * number, 3 * number)).save(path)
        files.append(path)
    return files


def expected(numbers):
    return np.array([[number, 2 * number, 3 * number] for number in numbers], dtype=np.float32)


def test_what_is_put_is_got_by_encoder(cache):
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    cache.put_many("one", ["a", "b", "c"], vectors)
    cache.put_many("two", ["a"], vectors[2:])
    stored = cache.get_many("one", ["c", "x", "a"])
    assert stored.keys() == {"a", "c"}
    np.testing.assert_array_equal(stored["a"], vectors[0])
    np.testing.assert_array_equal(stored["c"], vectors[2])
    np.testing.assert_array_equal(cache.get_many("two", ["a"])["a"], vectors[2])
    assert len(cache) == 4
    cache.put_many("one", ["a"], vectors[1:2])
    np.testing.assert_array_equal(cache.get_many("one", ["a"])["a"], vectors[1])
    assert len(VectorCache(cache.folder)) == 4


def test_more_hashes_than_one_question_holds(cache):
    names = [f"{number:04}" for number in range(1203)]
    cache.put_many("one", names, np.arange(1203, dtype=np.float32)[:, None])
    vectors = cache.get_many("one", names)
    assert [vectors[name][0] for name in names] == list(range(1203))
    with pytest.raises(ConfigError, match="2 hashes for 1 vectors"):
        cache.put_many("one", ["a", "b"], np.zeros((1, 2), np.float32))


def test_files_are_encoded_once(cache, paths):
    encode, calls = Counting(), []
    first = cache.encode_files(paths, encode, "mean", batch_size=3, progress=lambda *call: calls.append(call))
    np.testing.assert_array_equal(first.vectors, expected(range(7)))
    assert first.rows.tolist() == list(range(7))
    assert first.skipped == []
    assert encode.batches == [3, 3, 1]
    assert calls == [("pictures to vectors", done, 7) for done in (0, 3, 6, 7)]
    again = cache.encode_files(paths[::-1], encode, "mean")
    np.testing.assert_array_equal(again.vectors, expected(range(6, -1, -1)))
    assert encode.batches == [3, 3, 1]
    cache.encode_files(paths, encode, "another encoder")
    assert encode.batches == [3, 3, 1, 7]


def test_batches_of_large_pictures_are_small(cache, paths, monkeypatch):
    monkeypatch.setattr("voken.encoders.cache._PIXELS_PER_BATCH", 2 * 8 * 8)
    encode = Counting()
    encoded = cache.encode_files(paths, encode, "mean")
    assert encode.batches == [2, 2, 2, 1]
    np.testing.assert_array_equal(encoded.vectors, expected(range(7)))


def test_moved_files_are_known_changed_ones_are_not(cache, paths):
    encode = Counting()
    cache.encode_files(paths[:2], encode, "mean")
    moved = paths[0].rename(paths[0].with_name("elsewhere.png"))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[1])
    encoded = cache.encode_files([moved, paths[1]], encode, "mean")
    np.testing.assert_array_equal(encoded.vectors, [[0, 0, 0], [9, 9, 9]])
    assert encode.batches == [2, 1]


def test_equal_files_are_encoded_once_and_all_get_their_row(cache, paths):
    copy = paths[3].with_name("copy.png")
    copy.write_bytes(paths[3].read_bytes())
    encode = Counting()
    encoded = cache.encode_files([paths[3], paths[1], copy], encode, "mean")
    np.testing.assert_array_equal(encoded.vectors, expected([3, 1, 3]))
    assert encode.batches == [2]


def test_a_file_that_changes_after_it_was_hashed_is_skipped(cache, paths):
    """Otherwise its new content would be known under the hash of its old content, for every later run."""
    old = paths[1].read_bytes()

    def change(_stage, done, _total):
        if done == 0:
            Image.new("RGB", (8, 8), (9, 9, 9)).save(paths[1])

    encoded = cache.encode_files(paths[:3], mean_colours, "mean", progress=change)
    assert encoded.rows.tolist() == [0, 2]
    assert [(item.path, item.reason) for item in encoded.skipped] == [
        (str(paths[1]), "cannot be read (it changed meanwhile)")
    ]
    assert encoded.skipped[0].may_pass
    copy = paths[1].with_name("copy.png")
    copy.write_bytes(old)
    encoded = cache.encode_files([copy, paths[1]], mean_colours, "mean")
    np.testing.assert_array_equal(encoded.vectors, [[1, 2, 3], [9, 9, 9]])


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_bad_files_are_skipped_and_listed(cache, paths, batch_size):
    paths[0].write_bytes(b"")
    paths[2].write_text("not a picture")
    paths[6].write_bytes(paths[6].read_bytes()[:40])
    missing = paths[0].with_name("missing.png")
    twin = paths[0].with_name("twin.png")
    twin.write_text("not a picture")
    encoded = cache.encode_files([*paths, missing, twin], mean_colours, "mean", batch_size=batch_size)
    assert encoded.rows.tolist() == [1, 3, 4, 5]
    np.testing.assert_array_equal(encoded.vectors, expected([1, 3, 4, 5]))
    assert [item.path for item in encoded.skipped] == [str(p) for p in (paths[0], paths[2], paths[6], missing, twin)]
    assert all(item.reason for item in encoded.skipped)


def test_only_bad_files_or_none(cache, paths):
    paths[0].write_bytes(b"")
    for files in ([paths[0]], []):
        encoded = cache.encode_files(files, mean_colours, "mean")
        assert encoded.vectors.shape == (0, 0)
        assert len(encoded.rows) == 0
        assert len(encoded.skipped) == len(files)


def test_a_run_cut_off_goes_on_where_it_was(cache, paths):
    with pytest.raises(KeyboardInterrupt):
        cache.encode_files(paths, Counting(stop_after=2), "mean", batch_size=2)
    assert len(cache) == 4
    encode = Counting()
    encoded = VectorCache(cache.folder).encode_files(paths, encode, "mean", batch_size=2)
    assert encode.batches == [2, 1]
    np.testing.assert_array_equal(encoded.vectors, expected(range(7)))


@pytest.mark.parametrize("setting", ["batch_size", "workers"])
def test_impossible_settings_are_refused(cache, paths, setting):
    with pytest.raises(ConfigError, match=setting):
        cache.encode_files(paths, mean_colours, "mean", **{setting: 0})


def _put(folder, first):
    for number in range(first, first + 40):
        VectorCache(folder).put_many("one", [str(number)], np.full((1, 4), number, np.float32))


def test_many_processes_and_threads_share_a_folder(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        started = [pool.submit(_put, tmp_path, 0)]
        threads = [threading.Thread(target=_put, args=(tmp_path, first)) for first in (40, 80)]
        for thread in threads:
            thread.start()
        for waiting in (*(job.result for job in started), *(thread.join for thread in threads)):
            waiting()
    vectors = VectorCache(tmp_path).get_many("one", [str(number) for number in range(120)])
    assert {name: row.tolist() for name, row in vectors.items()} == {str(n): [n] * 4 for n in range(120)}


def test_a_full_disk_is_told_and_what_was_there_is_kept(cache, paths, monkeypatch):
    cache.encode_files(paths[:2], mean_colours, "mean")
    with closing(sqlite3.connect(cache.path)) as plain:
        pages = plain.execute("PRAGMA page_count").fetchone()[0]

    def small_disk(*arguments, **settings):
        connection = connect(*arguments, **settings)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    connect = sqlite3.connect
    monkeypatch.setattr(artifact.sqlite3, "connect", small_disk)
    with pytest.raises(StorageError, match=r"vectors\.sqlite3.*full.*Free some space"):
        cache.put_many("one", [str(n) for n in range(50)], np.zeros((50, 500), np.float32))
    monkeypatch.undo()
    assert len(cache) == 2
    np.testing.assert_array_equal(cache.encode_files(paths[:2], Counting(0), "mean").vectors, expected([0, 1]))


def test_a_locked_cache_is_told(cache, monkeypatch):
    monkeypatch.setattr(artifact, "WAIT_SECONDS", 0.01)
    holder = sqlite3.connect(cache.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="another process"):
        cache.put_many("one", ["a"], np.zeros((1, 2), np.float32))
    holder.close()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_told(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"vectors\.sqlite3.*Delete the file"):
        VectorCache(tmp_path).get_many("one", ["a"])


def test_a_vector_cut_short_and_another_table_are_told(cache):
    cache.put_many("one", ["a"], np.zeros((1, 4), np.float32))
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute("UPDATE vectors SET vector = x'0000'")
    with pytest.raises(CorruptArtifactError, match="cut short"):
        cache.get_many("one", ["a"])
    with connection:
        connection.execute("DROP TABLE vectors")
        connection.execute("CREATE TABLE vectors (something TEXT)")
    connection.close()
    with pytest.raises(CorruptArtifactError, match="no such column"):
        cache.get_many("one", ["a"])


def test_a_newer_format_is_left_alone(cache):
    connection = sqlite3.connect(cache.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ArtifactVersionError, match="99"):
        VectorCache(cache.folder)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(StorageError, match="is not a folder"):
            VectorCache(folder)
