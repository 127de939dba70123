"""Exports a trained generator as an engine: the graphs that `voken.inference.engine` searches with.

engine.json          family, sizes, and the graph of each level
prefill.onnx         reads the texts
step_….onnx          predicts a level; levels with the same graph share a file
vectors.onnx         turns texts into vectors, if the generator has no query point
rebuild.onnx         turns vokens back into vectors
codebooks.npy        the entries that sum to vectors, if the image tokenizer has no layers
tokenizer.json       the tokenizer of the texts, as `tokenizers` reads it
*.weights            the weights of each graph
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from voken.artifact import storage_errors, write_json
from voken.encoders.builtin import sentence_folder
from voken.encoders.two_tower import TwoTowerEncoder
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.errors import ConfigError, MissingExtraError
from voken.inference.engine import (
    CODEBOOKS,
    FORMAT,
    HEADER,
    QUERY_POINT,
    TEXT_ENCODER_GRAPH,
    TEXT_ENCODER_HEADER,
)

if TYPE_CHECKING:
    from voken.encoders.interface import Encoder
    from voken.generator.checkpoint import QueryReader
    from voken.generator.interface import Generator
    from voken.generator.lite import LiteGenerator
    from voken.generator.llama import LlamaGenerator
    from voken.generator.t5 import T5Generator
    from voken.image_tokenizer.model import ImageTokenizer
    from voken.inference.graph import Graph, Precision

BuiltInEncoder = TwoTowerEncoder | ZeroShotEncoder
"""The encoders that read texts with MiniLM, for which there are graphs."""


@dataclass(frozen=True)
class GeneratorGraphs:
    """Functions that build the graphs of a generator. Levels count from 0."""

    prefill: Callable[[Precision], Graph]
    step: Callable[[Precision, int], Graph]
    """Builds the graph that predicts a level."""
    stepped_levels: range
    """The levels that have a step: all, or all but the first if prefill computes its log-probabilities."""
    shared_step: bool
    """Whether all these levels have the same graph."""
    write_tokenizer: Callable[[Path], dict[str, Any]]
    """Writes the tokenizer of the texts into a folder and returns its settings."""


def lite_graphs(generator: LiteGenerator, encoder: Encoder | None) -> GeneratorGraphs:
    """The graphs of a lite generator. Raises `ConfigError` if it does not read with a built-in encoder."""
    from voken.inference import lite

    if not isinstance(encoder, BuiltInEncoder):
        raise ConfigError("A lite generator with this encoder cannot be exported. Search with torch.")
    return GeneratorGraphs(
        partial(lite.prefill_graph, generator, encoder),
        partial(lite.step_graph, generator),
        stepped_levels=range(1, generator.levels),
        shared_step=False,
        write_tokenizer=partial(_write_sentence_tokenizer, max_tokens=generator.config.max_query_tokens),
    )


def t5_graphs(generator: T5Generator, encoder: Encoder | None) -> GeneratorGraphs:
    """The graphs of a t5 generator."""
    from voken.inference import t5

    return GeneratorGraphs(
        partial(t5.prefill_graph, generator),
        partial(t5.step_graph, generator),
        stepped_levels=range(generator.levels),
        shared_step=generator.vocabulary.shared,
        write_tokenizer=partial(_write_query_tokenizer, generator.reader),
    )


def llama_graphs(generator: LlamaGenerator, encoder: Encoder | None) -> GeneratorGraphs:
    """The graphs of a llama generator."""
    from voken.inference import llama

    return GeneratorGraphs(
        partial(llama.prefill_graph, generator),
        partial(llama.step_graph, generator),
        stepped_levels=range(1, generator.levels),
        shared_step=generator.vocabulary.shared,
        write_tokenizer=partial(_write_query_tokenizer, generator.reader),
    )


def export_generator(
    generator: Generator,
    graphs_of: Callable[[Any, Encoder | None], GeneratorGraphs],
    folder: Path,
    *,
    precision: Precision = "float32",
    encoder: Encoder | None = None,
    tokenizer: ImageTokenizer | None = None,
) -> None:
    """Write the engine of `generator` into `folder`, which is created if it is missing.

    `graphs_of` is the function above for the generator's family (see `voken.model.model.FAMILIES`). With a built-in
    `encoder` and no usable query point of the generator, the engine gets a graph for text vectors, which the read-outs
    "voken" and "vector" need. `tokenizer` adds the graph that rebuilds vectors from vokens. Raises `MissingExtraError`
    without the package onnx, `ConfigError` if a part cannot be exported.
    """
    _check_onnx()
    graphs = graphs_of(generator, encoder)
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _save(graphs.prefill(precision), folder / "prefill.onnx")
        steps = _write_steps(graphs, folder, precision)
        reader = graphs.write_tokenizer(folder)
        vectors: Any = None
        # a query point can be compared with pictures only if codes and vectors share a space
        if generator.has_query_point and not (tokenizer is not None and tokenizer.config.layers):
            vectors = QUERY_POINT
        elif isinstance(encoder, BuiltInEncoder):
            vectors = _write_text_encoder(encoder, folder, precision)
        if tokenizer is not None:
            _save(rebuild_graph(tokenizer), folder / "rebuild.onnx")
            if not tokenizer.config.layers:
                np.save(folder / CODEBOOKS, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
    header = {
        "vectors": vectors,
        "family": generator.family,
        "reader": reader,
        "steps": steps,
        "format": FORMAT,
        "precision": precision,
        "levels": generator.levels,
        "codebook_size": generator.codebook_size,
    }
    write_json(folder / HEADER, header)


def export_text_encoder(encoder: BuiltInEncoder, folder: Path, *, precision: Precision = "float32") -> None:
    """Write what `voken.inference.engine.TextEncoder` loads into `folder`, which is created if it is missing."""
    _check_onnx()
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TEXT_ENCODER_HEADER, _write_text_encoder(encoder, folder, precision))


def rebuild_graph(tokenizer: ImageTokenizer) -> Graph:
    """Turns `vokens` (sequences, M) into `vector` (sequences, dim), as `ImageTokenizer.decode` (Eq. 3). In float32."""
    from voken.inference.graph import Graph, array, matrix

    graph = Graph()
    vokens = graph.input("vokens", "int64", ["sequences", tokenizer.levels])
    columns = graph.split(vokens, *[1] * tokenizer.levels, axis=1)
    columns = [graph.op("Squeeze", column, graph.ints(1)) for column in columns]
    books = array(tokenizer.stacked_books())
    entries = [graph.op("Gather", graph.constant(book), column) for book, column in zip(books, columns, strict=True)]
    rows = graph.op("Sum", *entries)
    for layer in tokenizer.decoder.children():  # the identity has none
        if isinstance(layer, nn.Linear):
            rows = graph.linear(rows, matrix(layer), array(layer.bias))
        elif isinstance(layer, nn.BatchNorm1d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            scale = array(layer.weight) / np.sqrt(array(layer.running_var) + layer.eps)
            shift = array(layer.bias) - array(layer.running_mean) * scale
            rows = graph.op("Add", graph.op("Mul", rows, graph.constant(scale)), graph.constant(shift))
        elif isinstance(layer, nn.ReLU):
            rows = graph.op("Relu", rows)
        elif not isinstance(layer, nn.Dropout):
            raise ConfigError(
                f"The image tokenizer's layer {type(layer).__name__} cannot be exported. Search with torch."
            )
    graph.output("vector", graph.op("LpNormalization", rows, axis=-1, p=2), ["sequences", tokenizer.dim])
    return graph


def _check_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError("onnx", "train")


def _write_steps(graphs: GeneratorGraphs, folder: Path, precision: Precision) -> list[str]:
    """Write the graphs of the steps, and return each level's file."""
    levels = graphs.stepped_levels
    names = ["step.onnx" if graphs.shared_step else f"step_{level}.onnx" for level in levels]
    for level, name in zip(levels, names, strict=True):
        if level == levels[0] or not graphs.shared_step:
            _save(graphs.step(precision, level), folder / name)
    return names


def _write_text_encoder(encoder: BuiltInEncoder, folder: Path, precision: Precision) -> dict[str, Any]:
    from voken.inference.lite import text_vector_graph

    _save(text_vector_graph(encoder, precision), folder / TEXT_ENCODER_GRAPH)
    return _write_sentence_tokenizer(folder, max_tokens=encoder.sentences.max_tokens, name="vectors_tokenizer.json")


def _save(graph: Graph, path: Path) -> None:
    graph.save(path, path.with_suffix(".weights"))


def _write_sentence_tokenizer(folder: Path, *, max_tokens: int, name: str = "tokenizer.json") -> dict[str, Any]:
    (folder / name).write_bytes((sentence_folder() / "tokenizer.json").read_bytes())
    return {"file": name, "max_tokens": max_tokens, "cut": "keep end", "added": [], "stand_in": 0}


def _write_query_tokenizer(reader: QueryReader, folder: Path) -> dict[str, Any]:
    """Write the tokenizer of a checkpoint so that it can be read without transformers."""
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("The checkpoint's tokenizer has no tokenizer.json. Save it once with its fast form.")
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return {
        "file": "tokenizer.json",
        "max_tokens": reader.max_text_tokens,
        "cut": "truncate",
        "added": list(reader.separator_tokens),
        "stand_in": reader.filler_token,
    }
