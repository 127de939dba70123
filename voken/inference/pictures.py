"""Pictures to vectors and to vokens without torch: what `voken.inference.export` writes for CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.artifact import map_array, plain_path, read_json
from voken.decoding.quantize import nearest_sequences
from voken.encoders.preparation import PicturePreparation
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError
from voken.inference.engine import (
    CODE_BOOKS,
    CODE_GRAPH,
    FORMAT,
    METRIC,
    PICTURE_GRAPH,
    PICTURES_HEADER,
    Engine,
    LoadedGraph,
    ort_value,
    session_options,
)
from voken.shapes import Float32, Int32

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_BEAMS = 1 << 12
_BATCH = 16
"""Pictures that go through the network together. On a processor, more are no faster."""


class PictureGraph:
    """The picture side of a CLIP or SigLIP model: a `PreparingEncoder`."""

    def __init__(self, header: dict[str, Any], preparation: PicturePreparation, graph: LoadedGraph) -> None:
        self.name, self.fingerprint = str(header["name"]), str(header["fingerprint"])
        self.dim = int(header["dim"])
        self._preparation, self._graph = preparation, graph

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Self:
        """Open the picture side of an engine folder. `threads` 0 means all cores of the process.

        Raises `CorruptArtifactError` if a file is missing or damaged, `ArtifactVersionError` for a newer format.
        """
        folder = Path(folder)
        header = read_header(folder)
        try:
            preparation = PicturePreparation.from_dict(header["preparation"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise _wrong(folder, f"preparation: {error}") from error
        graph = LoadedGraph.load(plain_path(folder, PICTURE_GRAPH), session_options(threads))
        return cls(header, preparation, graph)

    @property
    def least_side(self) -> int:
        """See `voken.encoders.interface.PreparingEncoder`."""
        return self._preparation.least_side

    def prepare(self, image: Image) -> Image:
        """The part of a picture that is read, in its final size."""
        return self._preparation.prepare(image)

    def encode_images(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Unit vectors of pictures."""
        return self.encode_prepared([self.prepare(image) for image in images])

    def encode_prepared(self, images: Sequence[Image]) -> Float32[np.ndarray, "images dim"]:
        """Unit vectors of pictures that `prepare` returned."""
        vectors = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            results = self._graph.run({"pixels": ort_value(self._preparation.pixels(batch))})
            vectors[start : start + _BATCH] = self._graph.checked(results.get("vector"), (len(batch), self.dim))
        return vectors


class EngineTokenizer:
    """The image tokenizer of an engine. It quantizes in numpy; see `voken.image_tokenizer.model.ImageTokenizer`."""

    def __init__(self, engine: Engine, quantizer: dict[str, Any], dim: int, *, threads: int = 0) -> None:
        self.dim = dim
        self._engine, self._beams = engine, int(quantizer["beams"])
        self._code: LoadedGraph | None = None
        self.codebooks: Float32[np.ndarray, "M N e"]
        """The codebook of every level."""
        if quantizer["code"]:
            self._code = LoadedGraph.load(plain_path(engine.folder, CODE_GRAPH), session_options(threads))
            self.codebooks = _books(engine)
        else:
            books = engine.codebooks
            if books is None or books.shape[2] != dim:
                raise _wrong(engine.folder, "it has no codebooks for its vectors")
            self.codebooks = books
        self._metric = _metric(engine, dim) if quantizer.get("metric") else None

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Self:
        """Open the tokenizer of an engine folder. Raises what `PictureGraph.load` raises."""
        header = read_header(folder)
        return cls(Engine.load(folder, threads=threads), header["quantizer"], header["dim"], threads=threads)

    @property
    def levels(self) -> int:
        """M, the length of a voken sequence."""
        return self._engine.levels

    @property
    def codebook_size(self) -> int:
        """N, the number of entries per level."""
        return self._engine.codebook_size

    def code_vectors(self, vectors: Float32[np.ndarray, "images dim"]) -> Float32[np.ndarray, "images e"]:
        """What is quantized of vectors: their code, or the vectors themselves if the tokenizer has no layers."""
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ConfigError(
                f"This tokenizer was made for vectors of width {self.dim}; got an array of shape {vectors.shape}. Use "
                "the encoder that it was made with."
            )
        if self._code is None:
            return vectors
        results = self._code.run({"vector": ort_value(vectors)})
        return self._code.checked(results.get("code"), (len(vectors), self.codebooks.shape[2]))

    def encode(self, vectors: Float32[np.ndarray, "images dim"]) -> Int32[np.ndarray, "images M"]:
        """Voken sequences of vectors."""
        points, books = self.code_vectors(vectors), self.codebooks
        if self._metric is not None:
            points, books = points @ self._metric, books @ self._metric
        return nearest_sequences(points, books, self._beams)

    def decode(self, vokens: Int32[np.ndarray, "images M"]) -> Float32[np.ndarray, "images dim"]:
        """The vectors rebuilt from voken sequences, at unit length."""
        return self._engine.decode(vokens)


def read_header(folder: Path) -> dict[str, Any]:
    """The header of the picture side. Raises `CorruptArtifactError`, or `ArtifactVersionError` for a newer format."""
    header = read_json(Path(folder) / PICTURES_HEADER)
    if type(header.get("format")) is int and header["format"] > FORMAT:
        raise ArtifactVersionError(
            f"{folder}: picture format {header['format']} is newer than this voken reads ({FORMAT}). Upgrade voken."
        )
    quantizer = header.get("quantizer")
    possible = {
        "format": type(header.get("format")) is int,
        "name": isinstance(header.get("name"), str),
        "fingerprint": isinstance(header.get("fingerprint"), str),
        "dim": type(header.get("dim")) is int and 0 < header["dim"] < 1 << 16,
        "quantizer": quantizer is None
        or (
            isinstance(quantizer, dict)
            and quantizer.get("code") in ("", CODE_GRAPH)
            and quantizer.get("metric", "") in ("", METRIC)
            and type(quantizer.get("beams")) is int
            and 0 < quantizer["beams"] <= _MOST_BEAMS
        ),
    }
    wrong = next((name for name, holds in possible.items() if not holds), "")
    if wrong:
        raise _wrong(folder, f"{wrong} is {str(header.get(wrong))[:80]}")
    return header


def _books(engine: Engine) -> Float32[np.ndarray, "M N e"]:
    path = engine.folder / CODE_BOOKS
    books: np.ndarray = map_array(path)
    shape = (engine.levels, engine.codebook_size)
    if books.dtype != np.float32 or books.ndim != 3 or books.shape[:2] != shape or not np.isfinite(books).all():
        raise CorruptArtifactError(f"{path}: does not fit the engine. Create the engine again.")
    return books


def _metric(engine: Engine, dim: int) -> Float32[np.ndarray, "dim dim"]:
    path = engine.folder / METRIC
    metric: np.ndarray = map_array(path)
    if metric.dtype != np.float32 or metric.shape != (dim, dim) or not np.isfinite(metric).all():
        raise CorruptArtifactError(f"{path}: does not fit the engine. Create the engine again.")
    return metric


def _wrong(folder: Path, reason: str) -> CorruptArtifactError:
    return CorruptArtifactError(
        f"{Path(folder) / PICTURES_HEADER}: does not describe how pictures are encoded ({reason}). Create the engine "
        "again."
    )
