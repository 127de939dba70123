"""Residual quantization: a vector written as M entries of N-entry codebooks, each coding what the last left over.

Eq. 2 of the paper. Plain functions over tensors; this module does not know what the vectors stand for.

    >>> import torch
    >>> codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])    # two levels, two entries, one dimension
    >>> quantize(torch.tensor([[11.0]]), codebooks).vokens.tolist()    # 11 = 10 + 1
    [[1, 1]]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

_BLOCK = 1 << 24
"""Distances held at once, in floats: 64 MB."""


@dataclass(frozen=True)
class Quantized:
    """What quantization of `n` vectors gives."""

    vokens: Int[Tensor, "n M"]
    """Entry chosen at each level."""
    residuals: Float[Tensor, "n M e"]
    """r_j, what was left to code when level j chose (r_1 is the vector itself)."""
    entries: Float[Tensor, "n M e"]
    """The chosen entries; their sum over levels is ẑ^(M)."""


def quantize(vectors: Float[Tensor, "n e"], codebooks: Float[Tensor, "M N e"]) -> Quantized:
    """Greedy residual quantization (Eq. 2). Entries carry gradients to the codebooks; the choice does not.

    Ties go to the lower entry. Gradients flow into `codebooks` and `vectors` through `entries` and `residuals`.
    """
    residual, vokens, residuals, entries = vectors, [], [], []
    for codebook in codebooks:
        chosen = nearest(residual.detach(), codebook.detach())
        entry = codebook[chosen]
        vokens.append(chosen)
        residuals.append(residual)
        entries.append(entry)
        residual = residual - entry
    return Quantized(torch.stack(vokens, 1), torch.stack(residuals, 1), torch.stack(entries, 1))


def nearest(vectors: Float[Tensor, "n e"], codebook: Float[Tensor, "N e"]) -> Int[Tensor, " n"]:
    """Index of the closest entry to each vector, in squared Euclidean distance."""
    block = max(1, _BLOCK // len(codebook))
    parts = [squared_distances(part, codebook).argmin(1) for part in vectors.split(block)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=vectors.device)


def squared_distances(vectors: Float[Tensor, "*n e"], codebook: Float[Tensor, "N e"]) -> Float[Tensor, "*n N"]:
    """‖v − c‖² less the ‖v‖² that is the same for every entry: enough to rank and to softmax over entries."""
    return (codebook * codebook).sum(-1) - 2.0 * vectors @ codebook.T


def kmeans(
    vectors: Float[Tensor, "n e"], entries: int, *, iterations: int = 12, generator: torch.Generator
) -> Float[Tensor, "entries e"]:
    """Lloyd's k-means from a random sample of rows; an entry left empty restarts at a badly served row.

    With fewer rows than entries the rows are reused with a small disturbance, so that no two entries are equal.
    """
    if len(vectors) < entries:
        extra = torch.randint(len(vectors), (entries - len(vectors),), generator=generator)
        noise = torch.randn((len(extra), vectors.shape[1]), generator=generator).to(vectors)
        spread = vectors.std(0, correction=0).mean().clamp_min(1e-6)
        return torch.cat([vectors, vectors[extra] + 0.1 * spread * noise])
    order = torch.randperm(len(vectors), generator=generator)[:entries]
    codebook = vectors[order].clone()
    for _ in range(iterations):
        chosen = nearest(vectors, codebook)
        counts = torch.bincount(chosen, minlength=entries)
        sums = torch.zeros_like(codebook).index_add_(0, chosen, vectors)
        codebook = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], codebook)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            errors = (vectors - codebook[chosen]).pow(2).sum(1)
            codebook[empty] = vectors[errors.topk(len(empty)).indices]
    return codebook


def residual_kmeans(
    vectors: Float[Tensor, "n e"],
    levels: int,
    entries: int,
    *,
    shared: bool,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> Float[Tensor, "books entries e"]:
    """Codebooks by k-means over the whole set, level after level on that level's residuals.

    One book a level, or, `shared`, a single book whose entries are dealt out evenly to the levels; any level
    may then choose any entry. Returns (levels, entries, e), or (1, entries, e) when shared.
    """
    residual, books = vectors, []
    share = [entries // levels + (level < entries % levels) if shared else entries for level in range(levels)]
    for level in range(levels):
        if share[level]:
            books.append(kmeans(residual, share[level], generator=generator))
        usable = torch.cat(books) if shared else books[-1]
        residual = residual - usable[nearest(residual, usable)]
        progress("k-means", level + 1, levels)
    return torch.cat(books)[None] if shared else torch.stack(books)
