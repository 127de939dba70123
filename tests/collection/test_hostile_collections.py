"""Collections that somebody else made, to do harm: nothing outside is deleted, read or followed, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import zlib
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.tiny_store import entry, new_store
from voken import artifact
from voken.api import Collection
from voken.cli import app
from voken.collection.base import TextColumn
from voken.collection.store import Store
from voken.errors import ArtifactError, CorruptArtifactError, VokenError

PICTURES = 300
SUPER_JOURNAL = bytes.fromhex("d9d505f920a163d7")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    store = new_store(tmp_path_factory.mktemp("original") / "c")
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, store.codebooks().shape[1], (PICTURES, 2))
    store.commit([entry(f"trips/{row}.jpg", sequence) for row, sequence in enumerate(sequences)])
    store.compact()
    store.commit([entry("new.jpg", metadata='{"a": 1}')], remove=["trips/7.jpg"])
    return store.folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "c"))


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def seal(base):
    """Write the checksums of a base again, as somebody would who changes its files on purpose."""
    manifest = json.loads((base / "manifest.json").read_text())
    for name in manifest["files"]:
        path = base / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": artifact.sha256(path)}
    (base / "manifest.json").write_text(json.dumps(manifest))


def in_database(folder, script):
    with closing(sqlite3.connect(folder / "collection.sqlite3")) as connection:
        connection.executescript(script)


def set_state(folder, **values):
    with closing(sqlite3.connect(folder / "collection.sqlite3")) as connection:
        connection.executemany(
            "UPDATE settings SET value = ? WHERE name = ?",
            [(json.dumps(value), name) for name, value in values.items()],
        )
        connection.commit()


def read_all(folder):
    """Everything that reads: what `info`, `search`, `doctor` and `serve` do with a collection."""
    with Collection.open(folder, load=False) as collection:
        collection.info()
        snapshot = collection.store.snapshot()
        assert len(list(snapshot.ids)) >= len(snapshot)
        _ = [snapshot.metadata(row) for row in snapshot.rows.tolist()], snapshot.vokens, snapshot.paths
        _ = collection.wants_compaction
    findings = Collection.doctor(folder)
    wrong = [finding.what for finding in findings if finding.level == "wrong" and "model" not in finding.what]
    if wrong:
        raise CorruptArtifactError(wrong[0])


def test_an_honest_collection_is_read(folder):
    read_all(folder)


def test_reading_changes_nothing(folder):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    read_all(folder)
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


def super_journal(database, victim):
    """A journal that looks like one of a killed process, and that names `victim` as the journal above it."""
    size = database.stat().st_size
    head = SUPER_JOURNAL + struct.pack(">IIIII", 0, 0, size // 4096, 512, 4096)
    name = os.fsencode(victim)
    end = struct.pack(">I", (1 << 30) // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + SUPER_JOURNAL
    database.with_name(database.name + "-journal").write_bytes(head.ljust(512, b"\0") + end)


@pytest.mark.parametrize("command", ["info", "search", "doctor", "remove", "compact"])
def test_a_journal_deletes_no_file_elsewhere(folder, tmp_path, command):
    victim = tmp_path / "only-copy.txt"
    victim.write_text("precious")
    super_journal(folder / "collection.sqlite3", victim)
    words = {"search": ["a dog"], "remove": ["new.jpg"]}.get(command, [])
    result = CliRunner().invoke(app, [command, str(folder), *words])
    assert victim.read_text() == "precious"
    assert result.exit_code == 1
    assert "names a file elsewhere" in result.output.replace("\n", " ")
    # SQLite itself, asked to open the file for writing, would have deleted it
    with closing(sqlite3.connect(folder / "collection.sqlite3")) as connection:
        connection.execute("SELECT * FROM settings").fetchall()
    assert not victim.exists()


def test_a_change_that_was_cut_off_is_undone_by_a_reader(folder, tmp_path):
    before = Store.open(folder).snapshot()
    with closing(sqlite3.connect(folder / "collection.sqlite3", isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM added")
        connection.executemany(
            "INSERT INTO skipped VALUES (?, 'no reason', 1, 1)", [(f"{row:0300d}",) for row in range(1_000)]
        )
        killed = Path(shutil.copytree(folder, tmp_path / "killed"))
        connection.execute("ROLLBACK")
    assert (killed / "collection.sqlite3-journal").stat().st_size > 0
    assert (killed / "collection.sqlite3").read_bytes() != (folder / "collection.sqlite3").read_bytes()
    after = Store.open(killed).snapshot()
    assert after.key == before.key
    assert after.added.ids == before.added.ids
    assert after.skipped == before.skipped == ()


def endless_view(folder):
    in_database(
        folder,
        "DROP TABLE skipped; CREATE VIEW skipped AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
        "SELECT 'p' || i AS path, 'r' AS reason, i AS size, i AS modified FROM n",
    )


def trigger(folder):
    in_database(folder, "CREATE TRIGGER t AFTER INSERT ON removed BEGIN DELETE FROM added; END")


def generated_column(folder):
    in_database(folder, "DROP TABLE removed; CREATE TABLE removed (row INTEGER PRIMARY KEY, place AS (row * 2))")


def index_over_an_expression(folder):
    in_database(folder, "CREATE INDEX i ON added (length(id))")


def another_table(folder):
    in_database(folder, "CREATE TABLE more (x)")


def virtual_table(folder):
    in_database(folder, "CREATE VIRTUAL TABLE more USING fts5(x)")


def write_ahead_log(folder):
    in_database(folder, "PRAGMA journal_mode = WAL")


def a_log_beside_it(folder):
    (folder / "collection.sqlite3-wal").write_bytes(b"")


def linked_journal(folder):
    (folder / "collection.sqlite3-journal").symlink_to(folder.parent / "victim")


def linked_database(folder):
    (folder / "collection.sqlite3").rename(folder.parent / "elsewhere.sqlite3")
    (folder / "collection.sqlite3").symlink_to(folder.parent / "elsewhere.sqlite3")


def linked_base(folder):
    (folder / "base-000001").rename(folder.parent / "base-000001")
    (folder / "base-000001").symlink_to(folder.parent / "base-000001")


def linked_trie(folder):
    (folder / "base-000001" / "trie").rename(folder.parent / "trie")
    (folder / "base-000001" / "trie").symlink_to(folder.parent / "trie")


def linked_file(folder):
    (folder / "base-000001" / "vectors.npy").rename(folder.parent / "vectors.npy")
    (folder / "base-000001" / "vectors.npy").symlink_to(folder.parent / "vectors.npy")


def linked_uploads(folder):
    (folder.parent / "photos").mkdir()
    (folder / "pictures").symlink_to(folder.parent / "photos")


def base_elsewhere(folder):
    shutil.copytree(folder / "base-000001", folder.parent / "base-000001")
    set_state(folder, base="../base-000001")


def absolute_base(folder):
    set_state(folder, base=str(folder / "base-000001"))


def pipe_in_the_manifest(folder):
    os.mkfifo(folder / "pipe")
    rewrite(folder / "manifest.json", files={"pipe": {"bytes": 0, "sha256": "0" * 64}})


def device_in_the_manifest(folder):
    rewrite(folder / "manifest.json", files={"/dev/zero": {"bytes": 0, "sha256": "0" * 64}})


def parent_in_the_manifest(folder):
    rewrite(folder / "manifest.json", files={"../c/manifest.json": {"bytes": 0, "sha256": "0" * 64}})


def pipe_as_base_header(folder):
    (folder / "base-000001" / "base.json").unlink()
    os.mkfifo(folder / "base-000001" / "base.json")


def pipe_as_array(folder):
    (folder / "codebooks.npy").unlink()
    os.mkfifo(folder / "codebooks.npy")


def huge_codebook(folder):
    set_state(folder, codebook_size=10**9)


def huge_levels(folder):
    set_state(folder, levels=10**9)


def fraction(folder):
    set_state(folder, version=1.5)


def number_beyond_64_bits(folder):
    set_state(folder, next_row=10**30)


def list_for_a_text(folder):
    set_state(folder, root=["/"])


def huge_trie(folder):
    rewrite(folder / "base-000001" / "trie" / "trie.json", codebook_size=10**9)
    seal(folder / "base-000001")


def many_levels(folder):
    rewrite(folder / "base-000001" / "trie" / "trie.json", levels=10**9)
    seal(folder / "base-000001")


def long_value(folder):
    path = folder / "base-000001" / "trie" / "trie.json"
    arrays = json.loads(path.read_text())["arrays"]
    rewrite(path, arrays=arrays | {"order": ["x" * 50_000]})
    seal(folder / "base-000001")


def trie_elsewhere(folder):
    path = folder / "base-000001" / "trie" / "trie.json"
    arrays = json.loads(path.read_text())["arrays"]
    rewrite(path, arrays=arrays | {"../../../order": arrays["order"]})
    seal(folder / "base-000001")


def bomb(folder):
    """Blocks of 300 MB each, in a file of less than a megabyte."""
    base = folder / "base-000001"
    plain = zlib.compressobj(9)
    packed = b"".join(plain.compress(bytes(1 << 20)) for _ in range(300)) + plain.flush()
    blocks = np.load(base / "ids.blocks.npy")
    (base / "ids.zlib").write_bytes(packed * (len(blocks) - 1))
    np.save(base / "ids.blocks.npy", np.arange(len(blocks)) * len(packed))
    seal(base)


def one_block_for_all(folder):
    base = folder / "base-000001"
    blocks = np.load(base / "ids.blocks.npy")
    blocks[1:-1] = blocks[-1]
    blocks[2:-1] = 0
    np.save(base / "ids.blocks.npy", blocks)
    seal(base)


def objects_in_an_array(folder):
    np.save(folder / "codebooks.npy", np.array([{}], dtype=object), allow_pickle=True)


def zip_as_array(folder):
    np.savez(folder / "codebooks.npz", a=np.zeros(3))
    (folder / "codebooks.npz").rename(folder / "codebooks.npy")


def array_of_nothing(folder):
    (folder / "codebooks.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n"
    )


def nested_header(folder):
    (folder / "codebooks.npy").write_bytes(b"\x93NUMPY\x01\x00\xe8\x03" + b"(" * 999 + b"\n")


def sizes_that_differ(folder):
    np.save(folder / "codebooks.npy", np.zeros((2, 3, 4), np.float32))


def row_numbers_of_nobody(folder):
    base = folder / "base-000001"
    order = np.load(base / "trie" / "order.npy")
    order[:] = 255
    np.save(base / "trie" / "order.npy", order)
    seal(base)


def rows_of_another_base(folder):
    in_database(
        folder,
        "UPDATE removed SET row = 100000, place = 100000; UPDATE settings SET value = 200000 WHERE name = 'next_row'",
    )


def vokens_of_another_model(folder):
    in_database(folder, "UPDATE added SET vokens = x'ffffff7fffffff7f'")


def short_blob(folder):
    in_database(folder, "UPDATE added SET vokens = x'00'")


def number_for_a_blob(folder):
    in_database(folder, "UPDATE added SET hash = 7")


def text_for_a_number(folder):
    in_database(folder, "UPDATE added SET size = 'large'")


def nothing_left(folder):
    in_database(folder, "DELETE FROM settings")


def empty_database(folder):
    (folder / "collection.sqlite3").write_bytes(b"")


HARM = [
    endless_view,
    trigger,
    generated_column,
    index_over_an_expression,
    another_table,
    virtual_table,
    write_ahead_log,
    a_log_beside_it,
    linked_journal,
    linked_database,
    linked_base,
    linked_trie,
    linked_file,
    linked_uploads,
    base_elsewhere,
    absolute_base,
    pipe_in_the_manifest,
    device_in_the_manifest,
    parent_in_the_manifest,
    pipe_as_base_header,
    huge_codebook,
    huge_levels,
    fraction,
    number_beyond_64_bits,
    list_for_a_text,
    huge_trie,
    many_levels,
    long_value,
    trie_elsewhere,
    bomb,
    one_block_for_all,
    row_numbers_of_nobody,
    rows_of_another_base,
    vokens_of_another_model,
    short_blob,
    number_for_a_blob,
    text_for_a_number,
    nothing_left,
    empty_database,
]


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_harm_is_a_named_error(folder, tmp_path, harm):
    harm(folder)
    outside = {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir() if path != folder}
    with pytest.raises(ArtifactError, match=r"^\S.* .*") as raised:
        read_all(folder)
    assert len(str(raised.value)) < 1_100
    assert outside == {path: path.lstat().st_mtime_ns for path in tmp_path.iterdir() if path != folder}


@pytest.mark.parametrize(
    "harm", [pipe_as_array, objects_in_an_array, zip_as_array, array_of_nothing, nested_header, sizes_that_differ]
)
def test_codebooks_that_are_none(folder, harm):
    harm(folder)
    with pytest.raises(CorruptArtifactError, match=r"codebooks\.npy"):
        Store.open(folder).codebooks()


@pytest.mark.parametrize("harm", [trigger, endless_view, base_elsewhere], ids=lambda harm: harm.__name__)
def test_writers_refuse_it_too(folder, harm):
    harm(folder)
    store = Store(folder)
    for change in (lambda: store.commit(remove=["new.jpg"]), store.compact):
        with pytest.raises(ArtifactError):
            change()
    with closing(sqlite3.connect(folder / "collection.sqlite3")) as connection:
        assert connection.execute("SELECT count(*) FROM added").fetchone() == (1,)


@pytest.mark.parametrize(
    "content",
    [
        '{"kind": "collection", "version": 3, "files": []}',
        '{"kind": "collection", "version": "3", "files": {}}',
        '{"kind": "collection", "version": true, "files": {}}',
        '{"kind": ["collection"], "version": 3, "files": {}}',
        '{"kind": "collection", "version": 3, "files": {"a": 1}}',
        '{"kind": "collection", "version": 3, "files": {"a": {"bytes": "1", "sha256": ""}}}',
        '{"kind": "collection", "version": 3}',
        f'{{"kind": "collection", "version": {"9" * 5_000}, "files": {{}}}}',
        "[" * 200_000,
        "[]",
        "null",
        '{"kind": "collection", "version": 3, "files": {}}' + " " * (17 << 20),
        "\ud800",
    ],
    ids=range(13),
)
@pytest.mark.parametrize("command", ["info", "doctor"])
def test_odd_manifests_are_one_sentence(folder, content, command):
    (folder / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    result = CliRunner().invoke(app, [command, str(folder)])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "manifest.json" in result.output.replace("\n", "")
    assert len(result.output) < 600


@pytest.mark.parametrize("name", ["root", "root_relative", "model", "model_relative"])
@pytest.mark.parametrize(
    "value", ["x" * 5_000, "a/" * 5_000, "\0", "/dev/stdin/x"], ids=["name", "path", "nul", "pipe"]
)
def test_paths_that_the_system_refuses_are_places_where_nothing_is(folder, name, value):
    set_state(folder, **{name: value})
    with suppress(VokenError):  # any other error ends the test
        read_all(folder)
    with suppress(VokenError):
        Collection.index(folder, folder.parent)


def test_an_endless_table_ends(folder):
    """A page of the table that is its own neighbour: SQLite would return its rows again and again."""
    path = folder / "collection.sqlite3"
    in_database(
        folder,
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000) "
        "INSERT INTO removed SELECT i + 1000, i FROM n",
    )
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'removed'").fetchone()
    content = bytearray(path.read_bytes())
    start = (root - 1) * 4096
    assert content[start] == 5  # an inner page
    cells = struct.unpack(">H", content[start + 3 : start + 5])[0]
    first = struct.unpack(">H", content[start + 12 : start + 14])[0]
    child = content[start + first : start + first + 4]
    for place in range(cells):
        cell = struct.unpack(">H", content[start + 12 + 2 * place : start + 14 + 2 * place])[0]
        content[start + cell : start + cell + 4] = child
    path.write_bytes(content)
    with pytest.raises(ArtifactError):
        Store.open(folder).snapshot()


def test_texts_that_compress_too_well_are_stored_as_they_are(tmp_path):
    texts = ["x" * 50_000] * 200
    TextColumn.of(texts).save(tmp_path, "t")
    assert list(TextColumn.load(tmp_path, "t", 200)) == texts


def test_an_upload_path_leads_nowhere_else(folder, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"")
    with closing(sqlite3.connect(folder / "collection.sqlite3")) as connection:
        connection.execute("UPDATE added SET name = ?", ("\0pictures/../../secret.png",))
        connection.commit()
    with Collection.open(folder, load=False) as collection, pytest.raises(VokenError, match="plain name"):
        collection.picture("new.jpg")
