"""Sequences laid out as one run of positions, against the layout written out."""

import torch

from voken.generator.lite import by_level, levels_and_attention_mask, packed_positions


def test_layout_by_hand():
    start = torch.tensor([[[9.0]]])
    written = torch.tensor([[[[1.0], [2.0]], [[3.0], [4.0]], [[5.0], [6.0]]]])
    flat = packed_positions(start, written)
    assert flat[0, :, 0].tolist() == [9, 1, 3, 5, 2, 4, 6]
    assert [part[0, :, 0].tolist() for part in by_level(flat, 3)] == [[9], [1, 3, 5], [2, 4, 6]]


def test_a_position_attends_to_the_start_and_its_sequence_up_to_itself():
    level, attends = levels_and_attention_mask(2, 2, torch.device("cpu"))
    assert level.tolist() == [0, 1, 1, 2, 2]
    assert [row.nonzero()[:, 0].tolist() for row in attends] == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4]]


def test_one_sequence_is_causal():
    level, attends = levels_and_attention_mask(1, 3, torch.device("cpu"))
    assert level.tolist() == [0, 1, 2, 3]
    assert torch.equal(attends, torch.ones(4, 4, dtype=torch.bool).tril())


def test_one_level_is_the_start_alone():
    level, attends = levels_and_attention_mask(5, 0, torch.device("cpu"))
    assert level.tolist() == [0]
    assert attends.tolist() == [[True]]
    assert [part.shape[1] for part in by_level(torch.zeros(2, 1, 3), 5)] == [1]
