"""A trie with changes against a trie built afresh of the rows that are left."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.prefix_models import LogProbPrefixModel, NumpyPrefixModel, PrefixModel
from voken.decoding.beam import beam_search
from voken.decoding.merged_trie import merged_trie, places_of
from voken.decoding.torch_expansion import TorchExpansion
from voken.decoding.trie import BitOffsets, ChildOffsets, NumberOffsets, VokenTrie
from voken.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Change:
    """A base and what is done to it, with what is left of both."""

    base: VokenTrie
    dead: np.ndarray
    added: np.ndarray
    added_rows: np.ndarray
    rows: np.ndarray
    vokens: np.ndarray

    @classmethod
    def of(cls, vokens, dead, added, stays, size, base=None) -> Change:
        """`dead` are rows of `vokens`; `kept` says which of `added` were not removed again."""
        base = VokenTrie.from_vokens(vokens, size) if base is None else base
        live = np.setdiff1d(np.arange(len(vokens)), dead)
        added_rows = len(vokens) + np.flatnonzero(stays)
        left = np.concatenate([vokens[live], added[stays]])
        return cls(base, dead, added[stays], added_rows, np.concatenate([live, added_rows]), left)

    @property
    def merged(self) -> VokenTrie:
        return merged_trie(self.base, places_of(self.base, self.dead), self.added, self.added_rows)

    @property
    def fresh(self) -> VokenTrie:
        if not len(self.rows):
            return VokenTrie.empty(self.base.levels, self.base.codebook_size)
        return VokenTrie.from_vokens(self.vokens, self.base.codebook_size, self.rows)


def in_form(trie: VokenTrie, form: str) -> VokenTrie:
    """The same with all its starts as numbers, or as bits, or each as it is smaller."""

    def other(starts: ChildOffsets, children: int) -> ChildOffsets:
        first = np.isin(np.arange(children), starts.expanded()[:-1])
        return BitOffsets.of(first) if form == "bits" else NumberOffsets(starts.expanded())

    if form == "smaller" or not trie.images:
        return trie
    counts = [trie.nodes(level) for level in range(1, trie.levels + 1)]
    child_offsets = tuple(map(other, trie.child_offsets, counts))
    return dataclasses.replace(trie, child_offsets=child_offsets, row_offsets=other(trie.row_offsets, trie.images))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """Few vokens, so that sequences collide, prefixes die, and what died comes back; and some more."""
    size, levels = draw(st.sampled_from([1, 2, 3, 3, 3, 40])), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vokens = rng.integers(0, size, (draw(st.sampled_from([0, 1, 5, 30, 90, 300])), levels))
    added = rng.integers(0, size, (draw(st.sampled_from([0, 1, 5, 30, 120])), levels))
    part = draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    dead = np.flatnonzero(rng.random(len(vokens)) < part)
    if len(vokens) and draw(st.booleans()):  # all that starts alike dies
        dead = np.union1d(dead, np.flatnonzero((vokens[:, :2] == vokens[0, :2]).all(axis=1)))
    stays = rng.random(len(added)) < draw(st.sampled_from([0.5, 1.0]))
    if not len(vokens):
        return Change.of(vokens, dead, added, stays, size, VokenTrie.empty(levels, size))
    base = in_form(VokenTrie.from_vokens(vokens, size), draw(st.sampled_from(["numbers", "bits", "smaller"])))
    return Change.of(vokens, rng.permutation(dead), added, stays, size, base)


def assert_same(merged: VokenTrie, fresh: VokenTrie) -> None:
    """Equal in all that is asked of a trie."""
    assert (merged.levels, merged.codebook_size) == (fresh.levels, fresh.codebook_size)
    assert (merged.images, merged.sequences) == (fresh.images, fresh.sequences)
    assert [merged.nodes(level) for level in range(fresh.levels + 1)] == [
        fresh.nodes(level) for level in range(fresh.levels + 1)
    ]
    for mine, theirs in zip((*merged.vokens, merged.order), (*fresh.vokens, fresh.order), strict=True):
        assert len(mine) == len(theirs)
        every = np.arange(len(theirs))
        if theirs is fresh.order:
            for places in (every, slice(None), slice(3, 9)):
                np.testing.assert_array_equal(merged.rows_at(places), fresh.rows_at(places))
            continue
        assert np.asarray(mine).dtype == mine[every].dtype == theirs.dtype
        np.testing.assert_array_equal(mine[every], theirs)
        np.testing.assert_array_equal(np.asarray(mine), theirs)
    counts = [fresh.nodes(level) for level in range(fresh.levels + 1)]
    mine, theirs = (*merged.child_offsets, merged.row_offsets), (*fresh.child_offsets, fresh.row_offsets)
    for parents, children, one, other in zip(counts, [*counts[1:], fresh.images], mine, theirs, strict=True):
        np.testing.assert_array_equal(one.expanded(), other.expanded())
        assert one.expanded().dtype == np.int32
        np.testing.assert_array_equal(one.ranges(np.arange(parents)), other.ranges(np.arange(parents)))
        np.testing.assert_array_equal(one.firsts(np.arange(parents + 1)), other.expanded())
        of_each = np.repeat(np.arange(parents), np.diff(other.expanded()))
        for starts in (one, other):
            assert starts.parents(np.arange(children + 1)).tolist() == [*of_each, parents]
    leaves = np.random.default_rng(0).permutation(fresh.sequences)
    sequences = fresh.leaf_vokens(leaves)
    np.testing.assert_array_equal(merged.leaf_vokens(leaves), sequences)
    np.testing.assert_array_equal(merged.leaf_of(sequences), leaves)
    for result, expected in zip(merged.rows_of(leaves), fresh.rows_of(leaves), strict=True):
        np.testing.assert_array_equal(result, expected)


@settings(max_examples=250, deadline=None)
@given(changes())
def test_merged_is_as_fresh(change):
    merged = change.merged
    assert_same(merged, change.fresh)
    rows, vokens = merged.row_vokens()
    np.testing.assert_array_equal(rows, change.rows)
    np.testing.assert_array_equal(vokens, change.vokens)
    # all sequences that a small codebook has, and one of vokens it does not have
    size, levels = merged.codebook_size, merged.levels
    every = np.stack(np.unravel_index(np.arange(min(size**levels, 100)), (size,) * levels), axis=1)
    every = np.concatenate([every, np.full((1, levels), size)])
    np.testing.assert_array_equal(merged.leaf_of(every), change.fresh.leaf_of(every))


@settings(max_examples=100, deadline=None)
@given(changes(), st.data())
def test_a_column_takes_as_an_array_does(change, data):
    """Scattered numbers, and runs as an expansion asks for, past the end as well."""
    merged, fresh = change.merged, change.fresh
    level = data.draw(st.integers(0, fresh.levels - 1))
    if not fresh.sequences:
        return
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    mine, theirs = merged.vokens[level], fresh.vokens[level]
    count = len(theirs)
    starts, width = rng.integers(0, count, rng.integers(1, 6)), int(rng.choice([1, 3, 16, 17, 50]))
    runs = starts[:, None] + np.arange(width)
    for indices in (runs, runs - width // 2, rng.permuted(runs, axis=1), starts, runs[:, :, None], runs[:0]):
        np.testing.assert_array_equal(mine.take(indices, mode="clip"), theirs.take(indices, mode="clip"))


@settings(max_examples=120, deadline=None)
@given(changes(), st.sampled_from([PrefixModel, NumpyPrefixModel, LogProbPrefixModel]), st.integers(1, 40))
def test_a_search_finds_the_same(change, kind, beams):
    if not len(change.rows):
        return
    model = kind(change.base.codebook_size, change.base.levels)
    mine, theirs = (beam_search(model, trie, ["a", "bc"], beams) for trie in (change.merged, change.fresh))
    for name in ("leaf", "vokens", "log_prob"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


class TreePrefixModel(LogProbPrefixModel):
    """One that can be looked ahead in."""

    reads_trees = True
    trees = 0

    def step_tree(self, state, vokens, parents, extended):
        self.trees += 1
        [(text, prefixes)] = state
        beams = parents.shape[1]
        read = [(*prefixes[p], v) for p, v in zip(parents[0].tolist(), vokens[0, :beams].tolist(), strict=True)]
        for above, voken in zip(extended.tolist(), vokens[0, beams:].tolist(), strict=True):
            read.append((*read[above], voken))
        return self.converted(np.array([[self.logits(text, prefix) for prefix in read]]))


def test_a_search_that_looks_ahead_finds_the_same():
    """Many vokens, few sequences: one child a node from level 1 on."""
    rng = np.random.default_rng(5)
    vokens, added = rng.integers(0, 50, (40, 4)), rng.integers(0, 50, (20, 4))
    added[:5] = vokens[:5]
    change = Change.of(vokens, np.arange(0, 40, 3), added, np.arange(20) % 4 != 1, 50)
    model = TreePrefixModel(50, 4)
    mine, theirs = (beam_search(model, trie, ["a"], 5) for trie in (change.merged, change.fresh))
    assert model.trees == 2
    for name in ("leaf", "vokens", "log_prob"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_worked_example():
    """Row 1 leaves its sequence to row 2; row 0 takes a whole branch away; two of the added share a new one."""
    base = VokenTrie.from_vokens(np.array([[0, 1], [2, 0], [2, 0], [2, 2]]), 4)
    added = np.array([[3, 3], [2, 1], [3, 3], [2, 2]])
    merged = merged_trie(base, places_of(base, np.array([0, 1])), added, np.array([4, 5, 6, 9]))
    assert merged.leaf_vokens(np.arange(4)).tolist() == [[2, 0], [2, 1], [2, 2], [3, 3]]
    assert [merged.rows(leaf).tolist() for leaf in range(4)] == [[2], [5], [3, 9], [4, 6]]
    assert merged.leaf_of(np.array([[0, 1], [2, 1]])).tolist() == [-1, 1]
    assert merged.images == 6


def test_what_does_not_change_is_not_copied():
    base = VokenTrie.from_vokens(np.random.default_rng(0).integers(0, 8, (50_000, 5)), 8)
    none = np.zeros(0, dtype=np.int64)
    assert merged_trie(base, none, np.zeros((0, 5), dtype=np.int64), none) is base
    added = np.array([[1, 2, 3, 4, 5]])
    merged = merged_trie(base, np.array([7, 70, 700]), added, np.array([50_000]))
    assert merged.images == 49_998
    assert merged.nbytes < base.nbytes + 3000
    assert merged.row_nbytes < merged.nbytes
    for mine, theirs in zip((*merged.vokens, merged.order), (*base.vokens, base.order), strict=True):
        assert np.shares_memory(mine if mine is theirs else mine.base, theirs)


def test_row_numbers_that_need_another_byte():
    vokens = np.random.default_rng(0).integers(0, 4, (250, 3))
    added = vokens[:20]
    for dead in (np.arange(0), np.arange(100, 240)):
        change = Change.of(vokens, dead, added, np.ones(20, dtype=bool), 4)
        assert change.base.order.shape[1] == 1
        assert_same(change.merged, change.fresh)


@pytest.mark.parametrize("removed", ["some", "all"])
def test_saved_it_is_a_trie_of_its_own(tmp_path, removed):
    rng = np.random.default_rng(0)
    vokens, added = rng.integers(0, 6, (300, 3)), rng.integers(0, 6, (50, 3))
    dead, stays = np.arange(0, 300, 1 if removed == "all" else 4), np.full(50, removed == "some")
    change = Change.of(vokens, dead, added, stays, 6)
    change.merged.save(tmp_path)
    for mmap in (True, False):
        loaded = VokenTrie.load(tmp_path, mmap=mmap)
        assert_same(loaded, change.fresh)
        assert type(loaded.row_offsets) is type(change.fresh.row_offsets)


def test_wrong_changes_are_refused():
    base = VokenTrie.from_vokens(np.array([[0, 1], [2, 0], [2, 0]]), 4)
    none, one = np.zeros(0, dtype=np.int64), np.array([[2, 0]])
    for place in (-1, 3):
        with pytest.raises(IndexError, match=r"0 … 2"):
            merged_trie(base, np.array([place]), one[:0], none)
    with pytest.raises(ValueError, match="2 vokens expected"):
        merged_trie(base, none, np.array([[2, 0, 0]]), np.array([3]))
    with pytest.raises(ValueError, match="0 sequences"):
        merged_trie(base, none, one, none)
    with pytest.raises(ValueError, match="higher"):
        merged_trie(base, none, one, np.array([2]))
    with pytest.raises(ConfigError, match="voken 4"):
        merged_trie(base, none, np.array([[4, 0]]), np.array([3]))
    for row, says in ((3, "row 3 is not in"), (-1, "0 or more")):
        with pytest.raises(IndexError, match=says):
            places_of(base, np.array([0, row]))


@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_places_are_those_of_the_rows(monkeypatch, at_once):
    monkeypatch.setattr("voken.decoding.merged_trie._AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(1000, 300, replace=False))
    trie = VokenTrie.from_vokens(rng.integers(0, 3, (300, 3)), 3, rows)
    queried = rng.permutation(rows)[:40]
    assert trie.rows_at(places_of(trie, queried)).tolist() == queried.tolist()
    assert places_of(trie, queried[:0]).tolist() == []
    with pytest.raises(IndexError, match="row"):
        places_of(VokenTrie.empty(3, 3), queried)


def test_a_part_of_a_collection_answers_with_its_row_numbers():
    vokens = np.random.default_rng(0).integers(0, 3, (80, 3))
    rows = np.flatnonzero(np.arange(80) % 3 == 1)
    part = VokenTrie.from_vokens(vokens[rows], 3, rows)
    for leaf, sequence in enumerate(part.leaf_vokens(np.arange(part.sequences))):
        assert part.rows(leaf).tolist() == [row for row in rows if (vokens[row] == sequence).all()]
    numbers, sequences = part.row_vokens()
    assert numbers.tolist() == rows.tolist()
    np.testing.assert_array_equal(sequences, vokens[rows])
    with pytest.raises(ValueError, match="row_vokens"):
        part.image_vokens()
    for wrong in (rows[1:], rows[::-1].copy(), rows - 2, np.append(rows[:-1], 2**31)):
        with pytest.raises(ValueError, match="ascend"):
            VokenTrie.from_vokens(vokens[rows], 3, wrong)


def test_the_trie_of_nothing(tmp_path):
    trie = VokenTrie.empty(3, 300)
    assert [trie.nodes(level) for level in range(4)] == [1, 0, 0, 0]
    assert (trie.images, trie.sequences, trie.levels, trie.codebook_size) == (0, 0, 3, 300)
    assert trie.leaf_of(np.array([[0, 0, 0]])).tolist() == [-1]
    assert [part.tolist() for part in trie.rows_of(np.zeros(0, dtype=np.int64))] == [[], []]
    assert trie.image_vokens().shape == trie.leaf_vokens(np.zeros(0, dtype=np.int64)).shape == (0, 3)
    assert TorchExpansion.of(trie, "cpu").counts == (1, 0, 0, 0)
    with pytest.raises(IndexError):
        trie.rows(0)
    trie.save(tmp_path)
    assert_same(VokenTrie.load(tmp_path), trie)
