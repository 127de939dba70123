"""The trie against a trie of Python dictionaries."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voken.decoding.linear import best_leaves
from voken.decoding.node_bias import NodeBias
from voken.decoding.torch_expansion import TorchExpansion
from voken.decoding.trie import BitOffsets, VokenTrie, offsets_of
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError, EmptyDataError

VOKENS = np.array([[3, 1], [0, 2], [3, 2], [3, 1]])


@st.composite
def collections(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Voken matrices of all shapes: few or many vokens, duplicates, chains, one sequence, odd layouts and types."""
    size = draw(st.sampled_from([1, 2, 3, 7, 300]))
    levels = draw(st.integers(1, 9))
    images = draw(st.integers(1, 40))
    distinct = draw(st.integers(1, images))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = rng.integers(0, size, (distinct, levels))
    if draw(st.booleans()):
        pool[:, : draw(st.integers(0, levels))] = rng.integers(0, size)  # all start the same: one-child chains
    vokens = pool[rng.integers(0, distinct, images)]
    vokens = vokens.astype(draw(st.sampled_from(["int16", "int32", "int64", "uint16", "uint64", ">i4"])))
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed"]))
    if layout == "F":
        vokens = np.asfortranarray(vokens)
    elif layout == "strided":
        vokens = np.repeat(np.repeat(vokens, 2, axis=0), 3, axis=1)[::2, ::3]
    elif layout == "reversed":
        vokens = np.ascontiguousarray(vokens[::-1])[::-1]
    return vokens, size


def dict_trie(vokens: np.ndarray) -> tuple[dict, dict]:
    """All prefixes with the vokens that may follow, and the rows of each whole sequence."""
    follow, rows = defaultdict(set), defaultdict(list)
    for row, sequence in enumerate(map(tuple, vokens.tolist())):
        rows[sequence].append(row)
        for level, voken in enumerate(sequence):
            follow[sequence[:level]].add(voken)
    return follow, rows


@settings(max_examples=120, deadline=None)
@given(collections())
def test_trie_equals_a_trie_of_dictionaries(collection):
    vokens, size = collection
    trie = VokenTrie.from_vokens(vokens, size)
    follow, rows = dict_trie(vokens)
    ordered = sorted(rows)
    assert (trie.levels, trie.images, trie.sequences, trie.codebook_size) == (
        vokens.shape[1],
        len(vokens),
        len(rows),
        size,
    )
    assert [tuple(s) for s in trie.leaf_vokens(np.arange(trie.sequences)).tolist()] == ordered
    assert [trie.rows(leaf).tolist() for leaf in range(trie.sequences)] == [rows[s] for s in ordered]
    assert trie.leaf_of(np.array(ordered)).tolist() == list(range(len(ordered)))

    # Walk the torch side from the root: every node's children, as sequences.
    device = TorchExpansion.of(trie, "cpu")
    level_prefixes = [()]
    for level in range(trie.levels):
        nodes = torch.arange(len(level_prefixes)).view(1, -1)
        children, is_table = device.children(level, nodes)
        below = []
        for node, prefix in enumerate(level_prefixes):
            row = children[0, node].tolist()
            nodes_below = [child for child in row if child >= 0]
            assert nodes_below == list(range(len(below), len(below) + len(nodes_below)))
            vokens = device.voken_of(level + 1, torch.tensor(nodes_below, dtype=torch.long)).tolist()
            assert vokens == sorted(follow[prefix])
            if is_table:
                assert [voken for voken, child in enumerate(row) if child >= 0] == vokens
            below += [(*prefix, voken) for voken in vokens]
        assert len(below) == trie.nodes(level + 1)
        level_prefixes = below
    assert level_prefixes == ordered


@settings(max_examples=60, deadline=None)
@given(collections(), st.integers(0, 2**32 - 1))
def test_leaf_of_knows_what_is_absent(collection, seed):
    vokens, size = collection
    trie = VokenTrie.from_vokens(vokens, size)
    rows = dict_trie(vokens)[1]
    probes = np.random.default_rng(seed).integers(-1, size + 1, (50, vokens.shape[1]))
    expected = [tuple(p) in rows for p in probes.tolist()]
    leaves = trie.leaf_of(probes)
    assert (leaves >= 0).tolist() == expected
    is_present = leaves >= 0
    assert (trie.leaf_vokens(leaves[is_present]) == probes[is_present]).all()


def test_worked_example_of_the_module():
    trie = VokenTrie.from_vokens(VOKENS, 4)
    assert [trie.rows(leaf).tolist() for leaf in range(3)] == [[1], [0, 3], [2]]
    assert trie.leaf_vokens(np.array([2, 0])).tolist() == [[3, 2], [0, 2]]
    assert trie.leaf_of(np.array([[3, 2], [3, 0], [9, 9]])).tolist() == [2, -1, -1]
    assert TorchExpansion.of(trie, "cpu").first.tolist() == [0, -1, -1, 1]


@settings(max_examples=60, deadline=None)
@given(collections())
def test_images_and_leaves_are_told_apart_again(collection):
    vokens, size = collection
    trie = VokenTrie.from_vokens(vokens, size)
    rows = dict_trie(vokens)[1]
    np.testing.assert_array_equal(trie.image_vokens(), vokens)
    leaves = np.random.default_rng(0).integers(0, trie.sequences, 7)
    numbers, counts = trie.rows_of(leaves)
    expected = [rows[tuple(sequence)] for sequence in trie.leaf_vokens(leaves).tolist()]
    assert numbers.tolist() == [row for of_leaf in expected for row in of_leaf]
    assert counts.tolist() == list(map(len, expected))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.booleans())
def test_starts_equal_cumulative_sums(counts, packed):
    ends = np.cumsum(counts)
    is_first = np.zeros(ends[-1], dtype=bool)
    is_first[ends - counts] = True
    starts = BitOffsets.of(is_first) if packed else offsets_of(is_first)
    parents = np.arange(len(counts))
    start, end = starts.ranges(parents)
    assert (start.tolist(), end.tolist()) == ((ends - counts).tolist(), ends.tolist())
    assert starts.parents(np.arange(ends[-1])).tolist() == np.repeat(parents, counts).tolist()
    assert starts.expanded().tolist() == [0, *ends.tolist()]


def test_starts_take_the_form_that_is_smaller():
    one_each, one_parent = np.ones(10_000, dtype=bool), np.arange(10_000) == 0
    assert isinstance(offsets_of(one_each), BitOffsets)
    assert not isinstance(offsets_of(one_parent), BitOffsets)
    # more than are looked up in one go
    many = BitOffsets.of(np.ones(70_000, dtype=bool))
    assert many.ranges(np.arange(70_000))[1].tolist() == list(range(1, 70_001))


@pytest.mark.parametrize("shape", ["one crowded prefix", "one crowded sequence", "spread"])
def test_a_picture_takes_few_bytes_whatever_the_crowding(shape):
    vokens = np.random.default_rng(0).integers(0, 1024, (50_000, 4))
    if shape == "one crowded prefix":
        vokens[:, :2] = 7
    elif shape == "one crowded sequence":
        vokens[:] = 7
    trie = VokenTrie.from_vokens(vokens, 1024)
    # 2 bytes and 1.5 bits a node, 2 bytes and 1.5 bits a picture
    nodes = sum(trie.nodes(level) for level in range(5))
    assert trie.nbytes <= 2.1875 * (nodes + 50_000) + 200
    assert trie.row_nbytes < trie.nbytes


@pytest.mark.parametrize(("images", "size"), [(90, 4), (70_000, 300)])
@pytest.mark.parametrize("mmap", [True, False])
def test_saved_trie_is_the_same(tmp_path, mmap, images, size):
    """Row numbers of one and of three bytes, vokens of one and of two, starts as numbers and as bits."""
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, size, (images, 3)), size)
    trie.save(tmp_path / "trie")
    loaded = VokenTrie.load(tmp_path / "trie", mmap=mmap)
    assert loaded.codebook_size == size
    mine, theirs = trie._arrays(), loaded._arrays()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert loaded.nbytes == trie.nbytes
    assert isinstance(loaded.order.base, np.memmap) == mmap
    np.testing.assert_array_equal(loaded.image_vokens(), trie.image_vokens())
    TorchExpansion.of(loaded, "cpu")  # torch warns of arrays it could not write to, and warnings are errors here
    assert TorchExpansion.of(loaded, "cpu") is TorchExpansion.of(loaded, "cpu")


def test_a_mapped_trie_cannot_be_written(tmp_path):
    VokenTrie.from_vokens(VOKENS, 4).save(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        VokenTrie.load(tmp_path).order[:] = 0


@pytest.mark.parametrize(
    ("vokens", "error", "says"),
    [
        (np.zeros((0, 3), int), EmptyDataError, "no images"),
        (np.array([[0, 4]]), ConfigError, "row 0: voken 4"),
        (np.array([[0, 1], [-1, 0]]), ConfigError, "row 1: voken -1"),
        (np.zeros(3, int), ValueError, "shape"),
        (np.zeros((3, 0), int), ValueError, "shape"),
        (np.zeros((3, 2)), ValueError, "float64"),
        (np.zeros((3, 2), bool), ValueError, "bool"),
    ],
)
def test_wrong_vokens_are_refused_with_the_reason(vokens, error, says):
    with pytest.raises(error, match=says):
        VokenTrie.from_vokens(vokens, 4)


def test_wrong_numbers_are_refused():
    trie = VokenTrie.from_vokens(VOKENS, 4)
    with pytest.raises(ConfigError, match="codebook_size 0"):
        VokenTrie.from_vokens(VOKENS, 0)
    for leaf in (-1, 3):
        with pytest.raises(IndexError):
            trie.rows(leaf)
        with pytest.raises(IndexError):
            trie.leaf_vokens(np.array([leaf]))
    with pytest.raises(ValueError, match="2 vokens"):
        trie.leaf_of(np.zeros((1, 3), int))


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(CorruptArtifactError, match=r"trie\.json"):
        VokenTrie.load(tmp_path)
    VokenTrie.from_vokens(VOKENS, 4).save(tmp_path)
    order = np.load(tmp_path / "order.npy")
    for damaged in (order[:2], order.astype(np.int8), np.zeros(0, dtype=np.uint8)):  # cut, of another type, empty
        np.save(tmp_path / "order.npy", damaged)
        with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
            VokenTrie.load(tmp_path)
    np.save(tmp_path / "order.npy", order)
    (tmp_path / "order.npy").write_bytes((tmp_path / "order.npy").read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
        VokenTrie.load(tmp_path)
    for ruin in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        ruin(tmp_path / "order.npy")
        with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
            VokenTrie.load(tmp_path)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("norm", [0.0, 1.0])
def test_vokens_that_are_none_are_refused_wherever_they_would_be_places(tmp_path, level, norm):
    """`load` does not read them, and a scan in C would read beside its tables."""
    VokenTrie.from_vokens(VOKENS, 4).save(tmp_path)
    column = np.load(tmp_path / f"vokens_{level}.npy")
    column[-1] = 200
    np.save(tmp_path / f"vokens_{level}.npy", column)
    trie = VokenTrie.load(tmp_path)
    bias = NodeBias(norm_weight=norm, codebooks=np.ones((2, 4, 3), np.float32))
    table = np.zeros((1, 2, 4), np.float32)
    for read in (
        lambda: trie.leaf_vokens(np.arange(trie.sequences)),
        lambda: best_leaves(table, trie, 1, bias),
        lambda: best_leaves(table, trie, 1),
    ):
        with pytest.raises(CorruptArtifactError, match=r"voken 200, of 4\. Index the pictures again"):
            read()


def test_other_formats_are_refused_with_what_to_do(tmp_path):
    VokenTrie.from_vokens(VOKENS, 4).save(tmp_path)
    header = json.loads((tmp_path / "trie.json").read_text())
    for written, says in ((99, "99 is newer.*Upgrade"), (1, "older voken. Index the pictures again")):
        (tmp_path / "trie.json").write_text(json.dumps({**header, "format": written}))
        with pytest.raises(ArtifactVersionError, match=says):
            VokenTrie.load(tmp_path)
    del header["arrays"]["order"]
    (tmp_path / "trie.json").write_text(json.dumps(header))
    with pytest.raises(CorruptArtifactError, match="does not name 'order'"):
        VokenTrie.load(tmp_path)


def test_many_levels_and_many_vokens_sort_right():
    """More bits than one sort key holds; and as many as it holds, with no room for the row number."""
    for levels in (10, 3):
        vokens = np.random.default_rng(1).integers(0, 2**20, (500, levels)) // 2**18 * 2**18
        trie = VokenTrie.from_vokens(vokens, 2**20)
        assert (trie.leaf_vokens(np.arange(trie.sequences)) == np.unique(vokens, axis=0)).all()
        np.testing.assert_array_equal(trie.image_vokens(), vokens)
