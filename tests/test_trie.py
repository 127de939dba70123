"""The trie against a trie of Python dictionaries."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from voken.decoding.trie import VokenTrie
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
    device = trie.to_torch("cpu")
    level_prefixes = [()]
    for level in range(trie.levels):
        nodes = torch.arange(len(level_prefixes)).view(1, -1)
        children, is_table = device.children(level, nodes)
        below = []
        for node, prefix in enumerate(level_prefixes):
            row = children[0, node].tolist()
            found = [child for child in row if child >= 0]
            assert found == list(range(len(below), len(below) + len(found)))
            taken = device.voken_of(level + 1, torch.tensor(found, dtype=torch.long)).tolist()
            assert taken == sorted(follow[prefix])
            if is_table:
                assert [voken for voken, child in enumerate(row) if child >= 0] == taken
            below += [(*prefix, voken) for voken in taken]
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
    found = leaves >= 0
    assert (trie.leaf_vokens(leaves[found]) == probes[found]).all()


def test_worked_example_of_the_module():
    trie = VokenTrie.from_vokens(VOKENS, 4)
    assert [trie.rows(leaf).tolist() for leaf in range(3)] == [[1], [0, 3], [2]]
    assert trie.leaf_vokens(np.array([2, 0])).tolist() == [[3, 2], [0, 2]]
    assert trie.leaf_of(np.array([[3, 2], [3, 0], [9, 9]])).tolist() == [2, -1, -1]
    assert trie.first.tolist() == [0, -1, -1, 1]


@pytest.mark.parametrize("size", [4, 400])
@pytest.mark.parametrize("mmap", [True, False])
def test_saved_trie_is_the_same(tmp_path, mmap, size):
    trie = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 4, (90, 3)), size)
    assert (trie.second is None) == (size == 400)  # one with the table of level 2, one without
    trie.save(tmp_path / "trie")
    loaded = VokenTrie.load(tmp_path / "trie", mmap=mmap)
    assert loaded.codebook_size == size
    mine, theirs = trie._arrays(), loaded._arrays()
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert loaded.nbytes == trie.nbytes == sum(array.size * 4 for array in mine.values())
    assert isinstance(loaded.order.base, np.memmap) == mmap
    loaded.to_torch("cpu")  # torch warns of arrays it could not write to, and warnings are errors here
    assert loaded.to_torch("cpu") is loaded.to_torch("cpu")


def test_a_mapped_trie_is_never_written_back(tmp_path):
    VokenTrie.from_vokens(VOKENS, 4).save(tmp_path)
    VokenTrie.load(tmp_path).order[:] = 0
    assert VokenTrie.load(tmp_path).rows(1).tolist() == [0, 3]


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
    np.save(tmp_path / "order.npy", np.zeros(2, dtype=np.int32))
    with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
        VokenTrie.load(tmp_path)
    (tmp_path / "order.npy").write_bytes(b"")
    with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
        VokenTrie.load(tmp_path)
    (tmp_path / "order.npy").unlink()
    with pytest.raises(CorruptArtifactError, match=r"order\.npy"):
        VokenTrie.load(tmp_path)
    header = json.loads((tmp_path / "trie.json").read_text())
    (tmp_path / "trie.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(ArtifactVersionError, match="99"):
        VokenTrie.load(tmp_path)


def test_many_levels_and_many_vokens_sort_right():
    """More bits than one sort key holds."""
    vokens = np.random.default_rng(1).integers(0, 2**20, (500, 10)) // 2**18 * 2**18
    trie = VokenTrie.from_vokens(vokens, 2**20)
    assert (trie.leaf_vokens(np.arange(trie.sequences)) == np.unique(vokens, axis=0)).all()
