"""Exports a trained generator as an engine: the graphs that `voken.inference.engine` searches with.

engine.json          family, sizes, and the graph of each level
prefill.onnx         reads the texts
step_….onnx          predicts a level; levels with the same graph share a file; a linear generator has none
vectors.onnx         turns texts into vectors, if the generator has no query point
rebuild.onnx         turns vokens back into vectors
codebooks.npy        the entries that sum to vectors, if the image tokenizer has no layers
pictures.json        how pictures become vokens, if the encoder is CLIP or SigLIP
pictures.onnx        turns pixels into vectors
codes.onnx           turns vectors into what is quantized, if the image tokenizer has layers
code_books.npy       the entries that it is quantized with
metric.npy           the metric of the image tokenizer, if it has one
tokenizer.json       the tokenizer of the texts, as `tokenizers` reads it
*.weights            the weights of each graph
"""

from __future__ import annotations

import hashlib
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
from voken.encoders.clip import HubEncoder
from voken.encoders.two_tower import TwoTowerEncoder
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.errors import ConfigError, MissingExtraError
from voken.inference.engine import (
    CODE_BOOKS,
    CODE_GRAPH,
    CODEBOOKS,
    FORMAT,
    HEADER,
    LINEAR_FORMAT,
    METRIC,
    PICTURE_GRAPH,
    PICTURES_HEADER,
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
"""The encoders that read texts with MiniLM."""
ExportedEncoder = BuiltInEncoder | HubEncoder
"""The encoders for which there are graphs."""


@dataclass(frozen=True)
class GeneratorGraphs:
    """Functions that build the graphs of a generator. Levels count from 0."""

    prefill: Callable[[Precision], Graph]
    step: Callable[[Precision, int], Graph]
    """Builds the graph that predicts a level."""
    stepped_levels: range
    """The levels that have a step: all, or all but the first if prefill computes its log-probabilities, or none if it
    computes those of all levels."""
    shared_step: bool
    """Whether all these levels have the same graph."""
    write_tokenizer: Callable[[Path], dict[str, Any]]
    """Writes the tokenizer of the texts into a folder and returns its settings."""
    linear: bool = False
    """Whether prefill computes the log-probabilities of all levels (see `voken.decoding.interface.LinearModel`)."""


def lite_graphs(generator: LiteGenerator, encoder: Encoder | None) -> GeneratorGraphs:
    """The graphs of a lite generator. Raises `ConfigError` if there are none for its encoder."""
    from voken.inference import lite

    if not isinstance(encoder, ExportedEncoder):
        raise ConfigError("A lite generator with this encoder cannot be exported. Search with torch.")
    return GeneratorGraphs(
        partial(lite.prefill_graph, generator, encoder),
        partial(lite.step_graph, generator),
        stepped_levels=range(0) if generator.is_linear else range(1, generator.levels),
        shared_step=False,
        write_tokenizer=partial(_write_encoder_tokenizer, encoder, max_tokens=generator.config.max_query_tokens),
        linear=generator.is_linear,
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

    `graphs_of` is the function above for the generator's family (see `voken.model.model.FAMILIES`). With an exported
    `encoder` and no usable query point of the generator, the engine gets a graph for text vectors, which the read-outs
    "voken" and "vector" need. `tokenizer` adds the graph that rebuilds vectors from vokens, and with CLIP or SigLIP all
    that turns pictures into vokens. Raises `MissingExtraError` without the package onnx, `ConfigError` if a part cannot
    be exported.
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
        elif isinstance(encoder, ExportedEncoder):
            vectors = _write_text_encoder(encoder, folder, precision)
        if tokenizer is not None:
            _save(rebuild_graph(tokenizer), folder / "rebuild.onnx")
            if not tokenizer.config.layers:
                np.save(folder / CODEBOOKS, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
        if tokenizer is not None and isinstance(encoder, HubEncoder):
            write_json(folder / PICTURES_HEADER, _write_picture_side(encoder, tokenizer, folder, precision))
    header = {
        "vectors": vectors,
        "family": generator.family,
        "reader": reader,
        "steps": steps,
        "format": LINEAR_FORMAT if graphs.linear else FORMAT,
        "linear": graphs.linear,
        "precision": precision,
        "levels": generator.levels,
        "codebook_size": generator.codebook_size,
    }
    write_json(folder / HEADER, header)


def export_text_encoder(encoder: ExportedEncoder, folder: Path, *, precision: Precision = "float32") -> None:
    """Write what `voken.inference.engine.TextEncoder` loads into `folder`, which is created if it is missing."""
    _check_onnx()
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / TEXT_ENCODER_HEADER, _write_text_encoder(encoder, folder, precision))


def rebuild_graph(tokenizer: ImageTokenizer) -> Graph:
    """Turns `vokens` (sequences, M) into `vector` (sequences, dim), as `ImageTokenizer.decode` (Eq. 3). In float32."""
    from voken.inference.graph import Graph, array

    graph = Graph()
    vokens = graph.input("vokens", "int64", ["sequences", tokenizer.levels])
    columns = graph.split(vokens, *[1] * tokenizer.levels, axis=1)
    columns = [graph.op("Squeeze", column, graph.ints(1)) for column in columns]
    books = array(tokenizer.stacked_books())
    entries = [graph.op("Gather", graph.constant(book), column) for book, column in zip(books, columns, strict=True)]
    rows = graph.op("Sum", *entries)
    rows = _perceptron(graph, rows, tokenizer.decoder)
    graph.output("vector", graph.op("LpNormalization", rows, axis=-1, p=2), ["sequences", tokenizer.dim])
    return graph


def code_graph(tokenizer: ImageTokenizer) -> Graph:
    """Turns `vector` (images, dim) into `code` (images, e), as `ImageTokenizer.code_vectors`. In float32."""
    from voken.inference.graph import Graph

    graph = Graph()
    vectors = graph.input("vector", "float32", ["images", tokenizer.dim])
    rows = _perceptron(graph, graph.op("Mul", vectors, graph.scalar(tokenizer.scale)), tokenizer.encoder)
    graph.output("code", rows, ["images", tokenizer.code_dim])
    return graph


def export_picture_encoder(encoder: HubEncoder, folder: Path, *, precision: Precision = "float32") -> None:
    """Write what `voken.inference.pictures.PictureGraph` loads into `folder`, which is created if it is missing."""
    _check_onnx()
    folder = Path(folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PICTURES_HEADER, _write_picture_encoder(encoder, folder, precision))


def _perceptron(graph: Graph, rows: str, layers: nn.Module) -> str:
    """`rows` after an MLP of an image tokenizer."""
    from voken.inference.graph import array, matrix

    for layer in layers.children():  # the identity has none
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
    return rows


def _write_picture_side(
    encoder: HubEncoder, tokenizer: ImageTokenizer, folder: Path, precision: Precision
) -> dict[str, Any]:
    """Write the graphs from pixels to codes, and return the header."""
    from voken.inference.graph import array

    code = ""
    if tokenizer.config.layers:
        code = CODE_GRAPH
        _save(code_graph(tokenizer), folder / code)
        np.save(folder / CODE_BOOKS, tokenizer.codebooks.astype(np.float32), allow_pickle=False)
    metric = ""
    if tokenizer.metric is not None:
        metric = METRIC
        np.save(folder / metric, array(tokenizer.metric), allow_pickle=False)
    quantizer = {"code": code, "beams": tokenizer.config.encoding_beams, "metric": metric}
    return {**_write_picture_encoder(encoder, folder, precision), "quantizer": quantizer}


def _write_picture_encoder(encoder: HubEncoder, folder: Path, precision: Precision) -> dict[str, Any]:
    from voken.inference.towers import picture_graph

    _save(picture_graph(encoder, precision), folder / PICTURE_GRAPH)
    fingerprint = encoder.fingerprint  # of the weights; rounded ones give other vectors
    if precision != "float32":
        fingerprint = hashlib.sha256(f"{fingerprint} {precision}".encode()).hexdigest()[:32]
    return {
        "format": FORMAT,
        "name": encoder.name,
        "fingerprint": fingerprint,
        "dim": encoder.dim,
        "precision": precision,
        "preparation": encoder.preparation.to_dict(),
    }


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


def _write_text_encoder(encoder: ExportedEncoder, folder: Path, precision: Precision) -> dict[str, Any]:
    from voken.inference.lite import text_vector_graph

    _save(text_vector_graph(encoder, precision), folder / TEXT_ENCODER_GRAPH)
    max_tokens = encoder.max_tokens if isinstance(encoder, HubEncoder) else encoder.sentences.max_tokens
    return _write_encoder_tokenizer(encoder, folder, max_tokens=max_tokens, name="vectors_tokenizer.json")


def _save(graph: Graph, path: Path) -> None:
    graph.save(path, path.with_suffix(".weights"))


def _write_encoder_tokenizer(
    encoder: ExportedEncoder, folder: Path, *, max_tokens: int, name: str = "tokenizer.json"
) -> dict[str, Any]:
    """Write the tokenizer of an encoder so that it can be read without transformers."""
    if not isinstance(encoder, HubEncoder):
        return _write_sentence_tokenizer(folder, max_tokens=max_tokens, name=name)
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        from voken.inference.sentence_pieces import siglip_tokenizer

        backend = siglip_tokenizer(encoder.tokenizer)
    _write_tokenizer(backend, folder / name)
    padding: Any = None
    end = int(encoder.tokenizer.eos_token_id)
    if encoder.family == "siglip":
        max_tokens = encoder.max_tokens
        left = encoder.tokenizer.padding_side == "left"
        padding = {"length": max_tokens, "token": int(encoder.tokenizer.pad_token_id), "left": left}
    settings = {"max_tokens": min(max_tokens, encoder.max_tokens), "cut": "truncate", "added": [], "stand_in": 0}
    settings |= {"padding": padding, "end": end if padding is None else None, "prompt": encoder.prompt}
    return {"file": name, **settings}


def _write_sentence_tokenizer(folder: Path, *, max_tokens: int, name: str = "tokenizer.json") -> dict[str, Any]:
    (folder / name).write_bytes((sentence_folder() / "tokenizer.json").read_bytes())
    return {"file": name, "max_tokens": max_tokens, "cut": "keep end", "added": [], "stand_in": 0}


def _write_query_tokenizer(reader: QueryReader, folder: Path) -> dict[str, Any]:
    """Write the tokenizer of a checkpoint so that it can be read without transformers."""
    backend = getattr(reader.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError("The checkpoint's tokenizer has no tokenizer.json. Save it once with its fast form.")
    _write_tokenizer(backend, folder / "tokenizer.json")
    return {
        "file": "tokenizer.json",
        "max_tokens": reader.max_text_tokens,
        "cut": "truncate",
        "added": list(reader.separator_tokens),
        "stand_in": reader.filler_token,
    }


def _write_tokenizer(backend: Any, path: Path) -> None:
    """Write a tokenizer of the library `tokenizers`, without its limits."""
    content = json.loads(backend.to_str())
    content["truncation"] = content["padding"] = None
    merges = content["model"].get("merges", [])
    if merges and all(isinstance(pair, list) and not any(" " in part for part in pair) for pair in merges):
        content["model"]["merges"] = [" ".join(pair) for pair in merges]  # read in two thirds of the time
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
