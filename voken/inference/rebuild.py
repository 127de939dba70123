"""Vokens back to vectors (Eq. 3) as a graph: what the voken rerank compares a query with."""

from __future__ import annotations

import numpy as np
from torch import nn

from voken.errors import ConfigError
from voken.image_tokenizer.model import ImageTokenizer
from voken.inference.graph import Graph
from voken.inference.weights import array, matrix


def rebuild_graph(tokenizer: ImageTokenizer) -> Graph:
    """`vokens` (sequences, M) to `vector` (sequences, dim), as `ImageTokenizer.decode`; always in float32."""
    graph = Graph()
    vokens = graph.input("vokens", "int64", ["sequences", tokenizer.levels])
    taken = [graph.op("Squeeze", one, graph.ints(1)) for one in graph.split(vokens, *[1] * tokenizer.levels, axis=1)]
    books = array(tokenizer.stacked_books())
    entries = [graph.op("Gather", graph.constant(book), one) for book, one in zip(books, taken, strict=True)]
    rows = graph.op("Sum", *entries)
    for layer in tokenizer.decoder.children():  # of the identity there are none
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
            raise ConfigError(f"The image tokenizer's layer {type(layer).__name__} has no graph. Search with torch.")
    graph.output("vector", graph.op("LpNormalization", rows, axis=-1, p=2), ["sequences", tokenizer.dim])
    return graph
