"""Vokens as words of a language model: each voken has an embedding, and an output row that predicts it.

The rows are separate from the checkpoint's vocabulary. Appending them with `resize_token_embeddings` of transformers
would tie an untied head again (T5 v1.1, Flan-T5 and mT5 in transformers 5.23). Besides, with a separate table the
softmax is over voken rows only, and only they receive its gradient.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from voken.errors import ConfigError
from voken.shapes import Float, Int


class VokenVocabulary(nn.Module):
    """Embeddings and output rows of N vokens: one set for all levels, or one set per level.

    With `tied`, the embedding of a voken is also its output row, as in a checkpoint with a tied head.
    """

    def __init__(self, *, levels: int, codebook_size: int, width: int, shared: bool, tied: bool) -> None:
        super().__init__()
        self.levels, self.codebook_size, self.width = levels, codebook_size, width
        self.shared, self.tied = shared, tied
        shape = (1 if shared else levels, codebook_size, width)
        self.embeddings = nn.Parameter(torch.zeros(shape))
        self.head = None if tied else nn.Parameter(torch.zeros(shape))

    @classmethod
    def from_codebooks(
        cls,
        codebooks: Float[np.ndarray, "levels N code_dim"],
        width: int,
        *,
        shared: bool,
        copy: bool,
        seed: int,
        embedding_rms: float,
        head_rms: float | None,
    ) -> Self:
        """Start from an image tokenizer's codebooks (the paper, section 3.2), or at random (its ablation).

        A codebook row becomes an embedding through a fixed orthonormal map to `width` (the identity if the
        widths agree), scaled so that each table has the root mean square of the checkpoint's rows:
        `embedding_rms`, and `head_rms` for the output rows (None if they are tied). With `shared`, only the first
        codebook is used. Without `copy`, rows are drawn from a normal distribution with this root mean square.
        Raises `ConfigError` if the codebooks have another shape, are all zeros or hold numbers that are not finite.
        """
        codebooks = np.asarray(codebooks, dtype=np.float32)
        if codebooks.ndim != 3 or 0 in codebooks.shape:
            raise ConfigError(f"codebooks must have the shape (levels, N, width); these have {codebooks.shape}.")
        levels, size, _ = codebooks.shape
        vocabulary = cls(levels=levels, codebook_size=size, width=width, shared=shared, tied=head_rms is None)
        random = torch.Generator().manual_seed(seed)
        if copy:
            rows = _mapped(torch.from_numpy(codebooks[:1] if shared else codebooks), width, random)
        else:
            rows = torch.randn(vocabulary.embeddings.shape, generator=random)
        rms = rows.square().mean(dim=(1, 2), keepdim=True).sqrt()
        if not bool(torch.isfinite(rms).all()) or not bool((rms > 0).all()):
            raise ConfigError(
                "A codebook is all zeros or holds numbers that are not finite: the image tokenizer was not trained. "
                "Train it again, or set generator.copy_voken_embeddings to false."
            )
        vocabulary.embeddings.data.copy_(rows / rms * embedding_rms)
        if vocabulary.head is not None and head_rms is not None:
            vocabulary.head.data.copy_(rows / rms * head_rms)
        return vocabulary

    def embed(self, vokens: Int[Tensor, "*shape"], level: int) -> Float[Tensor, "*shape width"]:
        """Embeddings of vokens at `level` (0 … M - 1)."""
        return nn.functional.embedding(vokens, self.embeddings[0 if self.shared else level])

    def embed_prefixes(
        self, vokens: Int[Tensor, "queries sequences prefix"]
    ) -> Float[Tensor, "queries sequences prefix width"]:
        """Embeddings of the first vokens of sequences, equal to those of `embed` at each level."""
        if self.shared:
            return nn.functional.embedding(vokens, self.embeddings[0])
        levels = torch.arange(vokens.shape[2], device=vokens.device)
        embedded: Tensor = self.embeddings[levels, vokens]
        return embedded

    def logits(self, hidden: Float[Tensor, "*shape width"], level: int) -> Float[Tensor, "*shape N"]:
        """Logits of the vokens of `level` (0 … M - 1)."""
        return nn.functional.linear(hidden, self.output_rows[0 if self.shared else level])

    def sequence_logits(
        self, hidden: Float[Tensor, "queries sequences levels width"]
    ) -> Float[Tensor, "queries sequences levels N"]:
        """`logits` for all levels of sequences at once."""
        if self.shared:
            return nn.functional.linear(hidden, self.output_rows[0])
        return torch.einsum("qkld,lnd->qkln", hidden, self.output_rows)

    @property
    def output_rows(self) -> Float[Tensor, "tables N width"]:
        """The rows that predict vokens: one table if the codebook is shared, otherwise one per level."""
        return self.embeddings if self.head is None else self.head


def rms(rows: Tensor) -> float:
    """The root mean square of a table's entries."""
    return float(rows.detach().float().square().mean().sqrt())


def _mapped(
    codebooks: Float[Tensor, "tables N code_dim"], width: int, random: torch.Generator
) -> Float[Tensor, "tables N width"]:
    code_dim = codebooks.shape[2]
    if code_dim == width:
        return codebooks
    longer, shorter = max(code_dim, width), min(code_dim, width)
    orthonormal = torch.linalg.qr(torch.randn(longer, shorter, generator=random)).Q
    mapped: Tensor = codebooks @ (orthonormal.T if code_dim < width else orthonormal)
    return mapped
