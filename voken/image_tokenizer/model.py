"""The image tokenizer: image vectors to voken sequences and back (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from voken.artifact import read_json, write_json
from voken.config import TokenizerConfig, from_dict
from voken.errors import ConfigError
from voken.image_tokenizer.quantizer import Quantized, quantize, squared_distances
from voken.shapes import Float, Int

_ROWS = 4096


class ImageTokenizer(nn.Module):
    """MLP, residual quantizer, mirrored MLP. With no `config.layers` both MLPs are the identity and r_1 = v_i.

    Deterministic once trained: a vector has one voken sequence. Batch norm runs on its saved statistics.
    """

    def __init__(self, dim: int, config: TokenizerConfig) -> None:
        super().__init__()
        _check(config)
        self.dim = dim
        self.config = config
        self.code_dim = config.code_dim if config.layers else dim
        widths = [dim, *config.layers, self.code_dim]
        self.encoder: nn.Module = _mlp(widths, config.dropout) if config.layers else nn.Identity()
        self.decoder: nn.Module = _mlp(widths[::-1], config.dropout) if config.layers else nn.Identity()
        books = 1 if config.shared_codebook else config.levels
        self.books = nn.Parameter(torch.randn(books, config.codebook_size, self.code_dim) * self.code_dim**-0.5)

    @property
    def levels(self) -> int:
        """M."""
        return self.config.levels

    @property
    def codebook_size(self) -> int:
        """N."""
        return self.config.codebook_size

    def stacked_books(self) -> Float[Tensor, "M N e"]:
        """The codebook of every level, the same one M times where it is shared; with gradients."""
        return self.books.expand(self.levels, -1, -1)

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"]:
        """The codebook of every level, as an array."""
        return self.stacked_books().detach().cpu().numpy()

    def quantize(self, vectors: Float[Tensor, "n dim"]) -> Quantized:
        """Tensors in, tensors out, with gradients: what training uses."""
        return self.quantize_coded(self.code(vectors))

    def quantize_coded(self, coded: Float[Tensor, "n e"]) -> Quantized:
        """Quantize what the encoder MLP has already coded."""
        return quantize(coded, self.stacked_books())

    def code(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n e"]:
        """What is quantized: the encoder MLP's output, or the vectors themselves."""
        coded: Tensor = self.encoder(vectors)
        return coded

    def rebuild(self, summed: Float[Tensor, "n e"]) -> Float[Tensor, "n dim"]:
        """v̂ of Eq. 3 from the sum of the entries, not normalised."""
        rebuilt: Tensor = self.decoder(summed)
        return rebuilt

    def encode(self, vectors: Float[np.ndarray, "images dim"]) -> Int[np.ndarray, "images M"]:
        """Voken sequences of image vectors, int32. Each picture alone: nothing depends on the others."""
        self._check_width(vectors)
        with self._inference():
            parts = [self.quantize(rows).vokens.cpu().numpy() for rows in self._rows(vectors)]
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros((0, self.levels), np.int32)

    def code_vectors(self, vectors: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images e"]:
        """`code` of arrays."""
        self._check_width(vectors)
        with self._inference():
            return np.concatenate([self.code(rows).cpu().numpy() for rows in self._rows(vectors)])

    def decode(self, vokens: Int[np.ndarray, "images M"]) -> Float[np.ndarray, "images dim"]:
        """v̂, the vectors rebuilt from voken sequences (Eq. 3), L2-normalised so that they compare by cosine."""
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] != self.levels:
            raise ConfigError(f"voken sequences of this tokenizer are {self.levels} long; got shape {vokens.shape}.")
        parts = []
        with self._inference():
            books = self.stacked_books()
            for rows in torch.from_numpy(vokens.astype(np.int64)).to(self.books.device).split(_ROWS):
                entries = torch.stack([book[rows[:, level]] for level, book in enumerate(books)], 1)
                rebuilt = self.rebuild(entries.sum(1))
                parts.append(nn.functional.normalize(rebuilt, dim=1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def soft_targets(
        self, vectors: Float[np.ndarray, "images dim"], *, temperature: float, keep: int
    ) -> tuple[Int[np.ndarray, "images M keep"], Float[np.ndarray, "images M keep"]]:
        """At each level, softmax of minus the squared distance of the true residual to every entry.

        The residual is the one that remains after the picture's own vokens, so the targets go with teacher
        forcing. Only the `keep` most probable entries are returned, renormalised: entries, then probabilities.
        """
        self._check_width(vectors)
        entries, weights = [], []
        with self._inference():
            for rows in self._rows(vectors):
                residuals = self.quantize(rows).residuals
                books = enumerate(self.stacked_books())
                scores = torch.stack([-squared_distances(residuals[:, level], book) for level, book in books], 1)
                top = (scores / temperature).topk(min(keep, self.codebook_size), dim=-1)
                entries.append(top.indices.cpu().numpy().astype(np.int32))
                weights.append(top.values.softmax(-1).cpu().numpy())
        return np.concatenate(entries), np.concatenate(weights)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into an existing folder."""
        write_json(folder / "config.json", {"dim": self.dim, **asdict(self.config)})
        save_file(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / "model.safetensors"
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        values = read_json(folder / "config.json")
        tokenizer = cls(values.pop("dim"), from_dict(TokenizerConfig, values))
        tokenizer.load_state_dict(load_file(folder / "model.safetensors"))
        return tokenizer.eval()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(was_training)

    def _rows(self, vectors: Float[np.ndarray, "images dim"]) -> list[Tensor]:
        tensor = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)).to(self.books.device)
        return list(tensor.split(_ROWS)) if len(tensor) else []

    def _check_width(self, vectors: Float[np.ndarray, "images dim"]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ConfigError(
                f"this tokenizer was trained on vectors {self.dim} wide; got shape {vectors.shape}. "
                "Use the encoder it was trained with."
            )


def _mlp(widths: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (wide, narrow) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(wide, narrow))
        if index < len(widths) - 2:
            layers += [nn.BatchNorm1d(narrow), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _check(config: TokenizerConfig) -> None:
    if config.levels < 1 or config.codebook_size < 2:
        raise ConfigError(f"tokenizer: {config.levels} levels of {config.codebook_size} entries; at least 1 of 2.")
    if not 0 <= config.mixture < 1:
        raise ConfigError(f"tokenizer.mixture is {config.mixture}; it is a share, 0 or more and below 1.")
    if config.layers and min(*config.layers, config.code_dim) < 1:
        raise ConfigError("tokenizer.layers and tokenizer.code_dim are widths, 1 or more.")
