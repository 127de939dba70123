"""The image tokenizer: image vectors to voken sequences and back (section 3.1 of the paper).

Residual quantization (Eq. 2) approximates a vector by a sum of M codebook entries. Each entry is chosen from N to be
nearest to the residual, which is the vector minus the entries before:

    >>> codebooks = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])    # two levels, two entries, one dimension
    >>> quantize(torch.tensor([[11.0]]), codebooks).vokens.tolist()    # 11 = 10 + 1
    [[1, 1]]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from voken.progress import Progress, no_progress
from voken.shapes import Float, Int

_ROWS_PER_BATCH = 4096
_DISTANCES_PER_BATCH = 1 << 24
"""64 MB of floats."""
_BEAM_FLOATS_PER_BATCH = 1 << 21
"""8 MB of floats for the distances of a block, and as much for its residuals."""


class ImageTokenizer(nn.Module):
    """An MLP, a residual quantizer, and a mirrored MLP. Without `config.layers`, both MLPs are the identity.

    In evaluation mode a vector always has the same voken sequence: batch norm uses its saved statistics.
    """

    def __init__(self, dim: int, config: TokenizerConfig) -> None:
        super().__init__()
        _check_config(config)
        self.dim = dim
        self.config = config
        self.scale = dim**0.5 if config.layers and config.input_scale == "rms" else 1.0
        self.code_dim = config.code_dim if config.layers else dim
        widths = [dim, *config.layers, self.code_dim]
        self.encoder: nn.Module = _mlp(widths, config.dropout) if config.layers else nn.Identity()
        self.decoder: nn.Module = _mlp(widths[::-1], config.dropout) if config.layers else nn.Identity()
        books = 1 if config.shared_codebook else config.levels
        self.books = nn.Parameter(torch.randn(books, config.codebook_size, self.code_dim) * self.code_dim**-0.5)
        self.metric: Tensor | None
        """(e, e) or None. Distances are measured between vectors times this matrix."""
        self.register_buffer("metric", torch.eye(self.code_dim) if config.query_metric else None)

    @property
    def levels(self) -> int:
        """M, the length of a voken sequence."""
        return self.config.levels

    @property
    def codebook_size(self) -> int:
        """N, the number of entries per level."""
        return self.config.codebook_size

    def stacked_books(self) -> Float[Tensor, "M N e"]:
        """The codebook of every level, with gradients. A shared codebook is repeated M times."""
        return self.books.expand(self.levels, -1, -1)

    @property
    def codebooks(self) -> Float[np.ndarray, "M N e"]:
        """The codebook of every level, as an array."""
        return self.stacked_books().detach().cpu().numpy()

    def quantize(self, vectors: Float[Tensor, "n dim"]) -> Quantized:
        """Quantize vectors, with gradients, for training."""
        return self.quantize_coded(self.code(vectors))

    def quantize_coded(self, coded: Float[Tensor, "n e"]) -> Quantized:
        """Quantize outputs of `code`, with gradients."""
        return quantize(coded, self.stacked_books(), beams=self.config.encoding_beams, metric=self.metric)

    def code(self, vectors: Float[Tensor, "n dim"]) -> Float[Tensor, "n e"]:
        """The encoder MLP's output, or the vectors themselves if there is no MLP. This is what is quantized."""
        coded: Tensor = self.encoder(vectors * self.scale)
        return coded

    def rebuild(self, summed: Float[Tensor, "n e"]) -> Float[Tensor, "n dim"]:
        """v̂ of Eq. 3, the decoder MLP's output for a sum of entries. It is not normalised."""
        rebuilt: Tensor = self.decoder(summed) / self.scale
        return rebuilt

    def encode(self, vectors: Float[np.ndarray, "images dim"]) -> Int[np.ndarray, "images M"]:
        """Voken sequences of image vectors, int32. A picture's sequence does not depend on the other pictures."""
        self._check_width(vectors)
        with self._inference():
            parts = [self.quantize(rows).vokens.cpu().numpy() for rows in self._rows(vectors)]
        return np.concatenate(parts).astype(np.int32) if parts else np.zeros((0, self.levels), np.int32)

    def code_vectors(self, vectors: Float[np.ndarray, "images dim"]) -> Float[np.ndarray, "images e"]:
        """`code` for arrays."""
        self._check_width(vectors)
        with self._inference():
            return np.concatenate([self.code(rows).cpu().numpy() for rows in self._rows(vectors)])

    def decode(self, vokens: Int[np.ndarray, "images M"]) -> Float[np.ndarray, "images dim"]:
        """v̂, the vectors rebuilt from voken sequences (Eq. 3), L2-normalised for comparison by cosine."""
        vokens = np.asarray(vokens)
        if vokens.ndim != 2 or vokens.shape[1] != self.levels:
            raise ConfigError(
                f"Voken sequences of this tokenizer have {self.levels} levels; got an array of shape {vokens.shape}."
            )
        parts = []
        with self._inference():
            books = self.stacked_books()
            for rows in torch.from_numpy(vokens.astype(np.int64)).to(self.books.device).split(_ROWS_PER_BATCH):
                entries = torch.stack([book[rows[:, level]] for level, book in enumerate(books)], 1)
                rebuilt = self.rebuild(entries.sum(1))
                parts.append(nn.functional.normalize(rebuilt, dim=1).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    def soft_targets(
        self, vectors: Float[np.ndarray, "images dim"], *, temperature: float, entries: int
    ) -> tuple[Int[np.ndarray, "images M entries"], Float[np.ndarray, "images M entries"]]:
        """At each level, a softmax over minus the squared distances between the residual and the codebook entries.

        The residual is computed with the picture's own vokens at earlier levels, as in teacher forcing. Returns
        the numbers of the `entries` most probable entries, and their probabilities scaled to sum to 1. The picture's
        own voken comes first. If the beam chose another entry than the nearest, it counts as equally near.
        """
        self._check_width(vectors)
        top_entries, weights = [], []
        with self._inference():
            for rows in self._rows(vectors):
                quantized = self.quantize(rows)
                residuals = measured(quantized.residuals, self.metric)
                books = enumerate(measured(self.stacked_books(), self.metric))
                scores = torch.stack([-squared_distances(residuals[:, level], book) for level, book in books], 1)
                own_first = scores.scatter(-1, quantized.vokens[..., None], torch.inf)
                top = own_first.topk(min(entries, self.codebook_size), dim=-1)
                top.values[..., 0] = scores.amax(-1)
                top_entries.append(top.indices.cpu().numpy().astype(np.int32))
                weights.append((top.values / temperature).softmax(-1).cpu().numpy())
        return np.concatenate(top_entries), np.concatenate(weights)

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
        return list(tensor.split(_ROWS_PER_BATCH)) if len(tensor) else []

    def _check_width(self, vectors: Float[np.ndarray, "images dim"]) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ConfigError(
                f"This tokenizer was trained on vectors of width {self.dim}; got an array of shape {vectors.shape}. "
                "Use the encoder that it was trained with."
            )


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing `n` vectors."""

    vokens: Int[Tensor, "n M"]
    """The entry chosen at each level."""
    residuals: Float[Tensor, "n M e"]
    """r_j, which level j quantizes: the vector minus the entries of the levels before (r_1 is the vector itself)."""
    entries: Float[Tensor, "n M e"]
    """The chosen entries; their sum over levels is ẑ^(M)."""


def measured(vectors: Float[Tensor, "*n e"], metric: Float[Tensor, "e e"] | None) -> Float[Tensor, "*n e"]:
    """Vectors whose Euclidean distances are those of `vectors` in the metric; None is the Euclidean one."""
    return vectors if metric is None else vectors @ metric


def quantize(
    vectors: Float[Tensor, "n e"],
    codebooks: Float[Tensor, "M N e"],
    *,
    beams: int = 1,
    metric: Float[Tensor, "e e"] | None = None,
) -> Quantized:
    """Residual quantization with the vokens of `nearest_sequences`. With one beam and no metric it is Eq. 2 as written.

    Gradients flow into `codebooks` and `vectors` through `entries` and `residuals`, but not through the choice.
    """
    vokens = nearest_sequences(measured(vectors.detach(), metric), measured(codebooks.detach(), metric), beams)
    residual, residuals, entries = vectors, [], []
    for codebook, chosen in zip(codebooks, vokens.unbind(1), strict=True):
        entry = codebook[chosen]
        residuals.append(residual)
        entries.append(entry)
        residual = residual - entry
    return Quantized(vokens, torch.stack(residuals, 1), torch.stack(entries, 1))


def nearest_sequences(
    vectors: Float[Tensor, "n e"], codebooks: Float[Tensor, "M N e"], beams: int
) -> Int[Tensor, "n M"]:
    """For each vector, a sequence of entries whose sum is near to it, by beam search over the levels.

    Every level keeps the `beams` beginnings that leave the smallest residuals. One beam is the greedy choice of Eq. 2;
    N^(M-1) beams find the nearest sum of all. At the last level, of equally near entries the first one is chosen.
    """
    entries, width = codebooks.shape[1:]
    block = max(1, _BEAM_FLOATS_PER_BATCH // (beams * max(entries, width)))
    parts = [_nearest_sequences(part, codebooks, beams) for part in vectors.split(block)]
    return torch.cat(parts) if parts else torch.zeros((0, len(codebooks)), dtype=torch.long, device=vectors.device)


def _nearest_sequences(
    vectors: Float[Tensor, "n e"], codebooks: Float[Tensor, "M N e"], beams: int
) -> Int[Tensor, "n M"]:
    rows = torch.arange(len(vectors), device=vectors.device)[:, None]
    residuals = vectors[:, None]
    errors = torch.zeros((len(vectors), 1), device=vectors.device)  # ‖residual‖² − ‖vector‖² of every beam
    vokens = torch.zeros((len(vectors), 1, 0), dtype=torch.long, device=vectors.device)
    for level, codebook in enumerate(codebooks):
        entries = len(codebook)
        distances = squared_distances(residuals, codebook)
        reached = (distances if beams == 1 else errors[..., None] + distances).flatten(1)
        if beams == 1 or level == len(codebooks) - 1:
            chosen = reached.argmin(1, keepdim=True)
        else:
            chosen = reached.topk(min(beams, reached.shape[1]), largest=False).indices
        beam, entry = chosen // entries, chosen % entries
        errors = reached.gather(1, chosen)
        residuals = residuals[rows, beam] - codebook[entry]
        vokens = torch.cat([vokens[rows, beam], entry[..., None]], 2)
    return vokens[:, 0]


def nearest(vectors: Float[Tensor, "n e"], codebook: Float[Tensor, "N e"]) -> Int[Tensor, " n"]:
    """Index of the closest entry to each vector, in squared Euclidean distance."""
    block = max(1, _DISTANCES_PER_BATCH // len(codebook))
    parts = [squared_distances(part, codebook).argmin(1) for part in vectors.split(block)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=vectors.device)


def squared_distances(vectors: Float[Tensor, "*n e"], codebook: Float[Tensor, "N e"]) -> Float[Tensor, "*n N"]:
    """‖v − c‖² − ‖v‖². ‖v‖² is the same for every entry, so leaving it out changes no rank or softmax over entries."""
    return (codebook * codebook).sum(-1) - 2.0 * vectors @ codebook.T


def kmeans(
    vectors: Float[Tensor, "n e"],
    entries: int,
    *,
    iterations: int = 12,
    generator: torch.Generator,
    metric: Float[Tensor, "e e"] | None = None,
) -> Float[Tensor, "entries e"]:
    """Lloyd's k-means, starting from a random sample of rows. `metric` decides which entry is nearest to a row.

    An entry that no row is nearest to moves to one of the rows that are farthest from their entries. If there are
    fewer rows than entries, rows are reused with a little noise, so that no two entries are equal.
    """
    if len(vectors) < entries:
        extra = torch.randint(len(vectors), (entries - len(vectors),), generator=generator)
        noise = torch.randn((len(extra), vectors.shape[1]), generator=generator).to(vectors)
        spread = vectors.std(0, correction=0).mean().clamp_min(1e-6)
        return torch.cat([vectors, vectors[extra] + 0.1 * spread * noise])
    order = torch.randperm(len(vectors), generator=generator)[:entries]
    codebook = vectors[order].clone()
    places = measured(vectors, metric)
    for _ in range(iterations):
        chosen = nearest(places, measured(codebook, metric))
        counts = torch.bincount(chosen, minlength=entries)
        sums = torch.zeros_like(codebook).index_add_(0, chosen, vectors)
        codebook = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], codebook)
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            errors = (places - measured(codebook, metric)[chosen]).pow(2).sum(1)
            codebook[empty] = vectors[errors.topk(len(empty)).indices]
    return codebook


def residual_kmeans(
    vectors: Float[Tensor, "n e"],
    levels: int,
    entries: int,
    *,
    shared: bool,
    generator: torch.Generator,
    metric: Float[Tensor, "e e"] | None = None,
    progress: Progress = no_progress,
) -> Float[Tensor, "books entries e"]:
    """Codebooks computed level by level, by k-means over the residuals of all vectors at that level.

    Without `shared` there is one codebook per level, (levels, entries, e). With `shared` there is one for all levels,
    (1, entries, e). Each level then adds an equal share of the entries, and may choose any entry added so far.
    """
    residual, books = vectors, []
    share = [entries // levels + (level < entries % levels) if shared else entries for level in range(levels)]
    for level in range(levels):
        if share[level]:
            books.append(kmeans(residual, share[level], generator=generator, metric=metric))
        usable = torch.cat(books) if shared else books[-1]
        residual = residual - usable[nearest(measured(residual, metric), measured(usable, metric))]
        progress("k-means", level + 1, levels)
    return torch.cat(books)[None] if shared else torch.stack(books)


def _mlp(widths: list[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (width_in, width_out) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(width_in, width_out))
        if index < len(widths) - 2:
            layers += [nn.BatchNorm1d(width_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _check_config(config: TokenizerConfig) -> None:
    if config.levels < 1 or config.codebook_size < 2:
        raise ConfigError(
            f"tokenizer.levels is {config.levels} and tokenizer.codebook_size {config.codebook_size}; "
            "they must be at least 1 and 2."
        )
    if config.encoding_beams < 1:
        raise ConfigError(f"tokenizer.encoding_beams is {config.encoding_beams}; it must be at least 1.")
    if config.query_metric and config.layers:
        raise ConfigError(
            "tokenizer.query_metric needs vectors that are quantized as they are. Set tokenizer.layers=[]."
        )
    if not 0 <= config.query_metric <= 1:
        raise ConfigError(f"tokenizer.query_metric is {config.query_metric}; it must be between 0 and 1.")
    if config.layers and min(*config.layers, config.code_dim) < 1:
        raise ConfigError("tokenizer.layers and tokenizer.code_dim are widths, and must be 1 or more.")
