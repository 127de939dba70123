"""The quantizer against a plain loop, and against vector-quantize-pytorch's ResidualVQ."""

import itertools

import numpy as np
import pytest
import torch
from vector_quantize_pytorch import ResidualVQ

from voken.image_tokenizer.model import kmeans, nearest, nearest_sequences, quantize, residual_kmeans


def loop_quantize(vectors, codebooks):
    """Eq. 2 word for word, one vector and one entry at a time, in float64."""
    sequences = []
    for vector in vectors.astype(np.float64):
        residual, sequence = vector.copy(), []
        for codebook in codebooks.astype(np.float64):
            distances = [float(((residual - entry) ** 2).sum()) for entry in codebook]
            sequence.append(int(np.argmin(distances)))
            residual = residual - codebook[sequence[-1]]
        sequences.append(sequence)
    return np.array(sequences)


@pytest.mark.parametrize(("levels", "entries", "width"), [(1, 2, 1), (4, 16, 8), (6, 7, 3)])
def test_equals_a_loop(levels, entries, width):
    random = np.random.default_rng(levels)
    vectors = random.standard_normal((40, width)).astype(np.float32)
    codebooks = random.standard_normal((levels, entries, width)).astype(np.float32)
    got = quantize(torch.from_numpy(vectors), torch.from_numpy(codebooks))
    assert got.vokens.tolist() == loop_quantize(vectors, codebooks).tolist()
    summed = sum(codebooks[level][got.vokens[:, level].numpy()] for level in range(levels))
    np.testing.assert_allclose(got.entries.sum(1).numpy(), summed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        got.residuals[:, -1].numpy() - got.entries[:, -1].numpy(), vectors - summed, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shared", [True, False])
def test_equals_residual_vq(shared):
    torch.manual_seed(0)
    oracle = ResidualVQ(dim=8, num_quantizers=4, codebook_size=32, shared_codebook=shared, kmeans_init=False).eval()
    codebooks = oracle.codebooks.detach().float()
    vectors = torch.randn(100, 8)
    quantized, indices, _ = oracle(vectors[None])
    ours = quantize(vectors, codebooks.expand(4, -1, -1))
    assert ours.vokens.tolist() == indices[0].tolist()
    torch.testing.assert_close(ours.entries.sum(1), quantized[0], rtol=1e-4, atol=1e-5)


def test_entries_carry_gradients_to_the_codebooks_only_where_chosen():
    codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]], requires_grad=True)
    quantize(torch.tensor([[11.0]]), codebooks).entries.sum().backward()
    assert codebooks.grad.tolist() == [[[0.0], [1.0]], [[0.0], [1.0]]]


def test_nearest_in_blocks_equals_at_once(monkeypatch):
    vectors, codebook = torch.randn(50, 4), torch.randn(9, 4)
    at_once = torch.cdist(vectors, codebook).argmin(1)
    monkeypatch.setattr("voken.image_tokenizer.model._DISTANCES_PER_BATCH", 27)
    assert nearest(vectors, codebook).tolist() == at_once.tolist()


def sums_of(codebooks):
    """Every sequence and the sum of its entries."""
    levels, entries, _ = codebooks.shape
    sequences = np.array(list(itertools.product(range(entries), repeat=levels)))
    return sequences, codebooks[np.arange(levels), sequences].sum(1)


@pytest.mark.parametrize(("levels", "entries", "width"), [(1, 5, 2), (3, 4, 2), (2, 9, 3)])
def test_enough_beams_find_the_nearest_sum_of_all(levels, entries, width):
    random = np.random.default_rng(levels)
    codebooks = random.standard_normal((levels, entries, width)).astype(np.float32)
    vectors = random.standard_normal((60, width)).astype(np.float32)
    sequences, sums = sums_of(codebooks.astype(np.float64))
    nearest_of_all = sequences[((vectors[:, None] - sums[None]) ** 2).sum(2).argmin(1)]
    got = nearest_sequences(torch.from_numpy(vectors), torch.from_numpy(codebooks), entries ** (levels - 1)).numpy()
    np.testing.assert_array_equal(got, nearest_of_all)
    if levels == 3:
        assert (loop_quantize(vectors, codebooks) != nearest_of_all).any(), "greedy finds all of them too: no test"


def test_some_beams_equal_a_loop_over_beams():
    random = np.random.default_rng(0)
    codebooks, vectors = random.standard_normal((4, 6, 3)), random.standard_normal((30, 3))
    expected = []
    for vector in vectors:
        beams = [((), vector)]
        for codebook in codebooks:
            longer = [((*beam, n), rest - entry) for beam, rest in beams for n, entry in enumerate(codebook)]
            beams = sorted(longer, key=lambda beam: (beam[1] ** 2).sum())[:3]
        expected.append(list(beams[0][0]))
    tensors = torch.from_numpy(vectors).float(), torch.from_numpy(codebooks).float()
    assert nearest_sequences(*tensors, 3).tolist() == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_blocks_of_rows_give_the_same_sequences(monkeypatch, beams):
    vectors, codebooks = torch.randn(50, 4), torch.randn(3, 8, 4)
    at_once = nearest_sequences(vectors, codebooks, beams)
    monkeypatch.setattr("voken.image_tokenizer.model._BEAM_FLOATS_PER_BATCH", 100)
    assert torch.equal(nearest_sequences(vectors, codebooks, beams), at_once)
    assert nearest_sequences(vectors[:0], codebooks, beams).shape == (0, 3)


def test_beams_change_the_choice_but_not_what_follows_from_it():
    vectors, codebooks = torch.randn(80, 4), torch.randn(3, 5, 4)
    greedy, searched = quantize(vectors, codebooks), quantize(vectors, codebooks, beams=25)
    errors = [(vectors - got.entries.sum(1)).pow(2).sum(1) for got in (greedy, searched)]
    assert (errors[1] <= errors[0] + 1e-5).all()
    assert (errors[1] < errors[0] - 1e-3).any()
    for level in range(3):
        torch.testing.assert_close(searched.entries[:, level], codebooks[level][searched.vokens[:, level]])
        torch.testing.assert_close(searched.residuals[:, level], vectors - searched.entries[:, :level].sum(1))


def test_kmeans_finds_well_separated_clusters():
    random = torch.Generator().manual_seed(1)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    vectors = (centres[:, None] + 0.1 * torch.randn(4, 50, 2, generator=random)).flatten(0, 1)
    entries = kmeans(vectors, 4, generator=random)
    assert torch.cdist(centres, entries).min(1).values.max() < 0.2


def test_kmeans_with_fewer_rows_than_entries_has_no_equal_entries():
    centres = kmeans(torch.randn(3, 4), 8, generator=torch.Generator().manual_seed(0))
    assert len(torch.unique(centres, dim=0)) == 8


@pytest.mark.parametrize("shared", [True, False])
def test_residual_kmeans_shapes_and_each_level_lowers_the_error(shared):
    random = torch.Generator().manual_seed(0)
    vectors = torch.randn(500, 6, generator=random)
    books = residual_kmeans(vectors, 3, 30, shared=shared, generator=random)
    assert books.shape == ((1, 30, 6) if shared else (3, 30, 6))
    errors = [vectors.pow(2).sum(1).mean()]
    for levels in (1, 2, 3):
        rebuilt = quantize(vectors, books.expand(3, -1, -1)[:levels]).entries.sum(1)
        errors.append((vectors - rebuilt).pow(2).sum(1).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.6 * errors[0]
