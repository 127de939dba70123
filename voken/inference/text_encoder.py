"""The built-in encoder's text side without torch: texts to vectors of the space that pictures are in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from voken.artifact import read_json
from voken.inference.packing import TextPacker
from voken.inference.runtime import LoadedGraph, session_options
from voken.shapes import Float32


class TextEncoder:
    """A graph of `voken.inference.sentences.vector_graph`, and the tokenizer before it."""

    GRAPH: ClassVar[str] = "vectors.onnx"
    HEADER: ClassVar[str] = "vectors.json"

    def __init__(self, graph: LoadedGraph, packer: TextPacker) -> None:
        self._graph, self._packer = graph, packer

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Self:
        """Open what `voken.inference.export.export_text_encoder` wrote. Raises `CorruptArtifactError` for damage."""
        folder = Path(folder)
        packer = TextPacker.load(folder, read_json(folder / cls.HEADER))
        return cls(LoadedGraph.load(folder / cls.GRAPH, session_options(threads)), packer)

    def encode_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dim"]:
        """Unit vectors, as `TwoTowerEncoder.encode_texts`."""
        found: np.ndarray = self._graph.run(self._packer.pack(texts).inputs())["vector"].numpy()
        return found
