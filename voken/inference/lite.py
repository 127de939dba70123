"""Exports a `LiteGenerator`: a graph for the text and level 1, and one per deeper level.

A linear one needs no decoder: its only graph computes the log-probabilities of all levels. Otherwise each level has its
own voken rows, and therefore its own graph: ONNX Runtime prepares the matrices of a graph only once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from voken.encoders.builtin import SentenceEncoder
from voken.encoders.clip import HubEncoder
from voken.encoders.zero_shot import ZeroShotEncoder
from voken.generator.lite import LiteGenerator
from voken.inference.engine import QUERY_POINT, TABLE
from voken.inference.export import BuiltInEncoder, ExportedEncoder
from voken.inference.graph import BeamTree, Graph, PackedTexts, Precision, array, matrix
from voken.inference.towers import read_texts

_EPSILON, _SENTENCE_EPSILON = 1e-5, 1e-12
RECALLED = 2048
"""Training captions that the rounded search of the memory passes to the exact one."""


def prefill_graph(generator: LiteGenerator, encoder: ExportedEncoder, precision: Precision) -> Graph:
    """Turns texts into the inputs of the steps.

    Outputs: `shared_k0`, `shared_v0`, … (queries, heads, tokens, head_dim), cross-attention keys and values; the
    query point (queries, e); `first` (queries, 1, N), the log-probabilities of level 1; `k0`, `v0`, …, keys and values
    of the start position. A linear generator only has the query point, and `table` (queries, M, N), the
    log-probabilities of all levels.
    """
    graph = Graph(precision)
    linear = generator.is_linear
    if isinstance(encoder, HubEncoder):
        read = read_texts(graph, encoder, states=not linear)
        texts, states, vector = read.texts, read.states, read.vectors
    else:
        reader = SentenceReader.inputs(graph)
        every = reader.read(encoder.sentences)
        texts, vector = reader.texts, text_vectors(reader, every, encoder)
        states = every[-1] if generator.text is None or linear else reader.read(generator.text)[-1]
    if linear:
        query_point = _query_point(graph, generator, vector)
        graph.output(QUERY_POINT, query_point, ["queries", generator.entries.shape[2]])
        sizes: list[int | str] = ["queries", generator.levels, generator.codebook_size]
        graph.output(TABLE, _table(graph, generator, query_point), sizes)
        return graph
    graph.set_row_count(states)
    layers = _Layers(generator, graph)
    memory = graph.linear(states, matrix(generator.read), array(generator.read.bias))
    memory, mask = texts.padded(memory), texts.mask
    if generator.config.query_vector:
        vector_token = graph.linear(vector, matrix(generator.vector_in), array(generator.vector_in.bias), exact=True)
        memory = graph.op("Concat", graph.op("Unsqueeze", vector_token, graph.ints(1)), memory, axis=1)
        mask = _with_vector(graph, mask)
    scale, shift = (graph.constant(array(part)) for part in (generator.read_norm.weight, generator.read_norm.bias))
    memory = graph.op("LayerNormalization", memory, scale, shift, axis=-1, epsilon=_EPSILON)
    rows = graph.reshape(memory, -1, generator.config.width)
    graph.set_row_count(rows)
    queries = graph.size(mask, 0)
    shared = []
    decoder: Any = generator.layers
    for number, layer in enumerate(decoder):
        joint = graph.linear(rows, matrix(layer.cross_in), array(layer.cross_in.bias))
        parts = graph.split(graph.reshape(joint, queries, -1, 2 * layers.width), layers.width, layers.width)
        parts = [graph.heads(part, layers.heads, layers.head_dim) for part in parts]
        for name, part in zip("kv", parts, strict=True):
            graph.output(f"shared_{name}{number}", part, ["queries", layers.heads, "memory", layers.head_dim])
        shared.append(parts)
    start = graph.constant(array(generator.start + generator.place[0])[None])
    hidden = graph.op("Expand", start, graph.op("Concat", queries, graph.ints(layers.width), axis=0))
    graph.set_row_count(hidden)
    for number in range(len(generator.layers)):
        _, keys, values = layers.project(hidden, number, queries)
        for name, part in (("k", keys), ("v", values)):
            placed = graph.heads(part, layers.heads, layers.head_dim)
            graph.output(f"{name}{number}", placed, ["queries", layers.heads, 1, layers.head_dim])
        # the start attends only to itself, so the result of attention is its values
        hidden = layers.after_attention(hidden, values, shared[number], mask, number, queries)
    query_point = _query_point(graph, generator, vector)
    graph.output(QUERY_POINT, query_point, ["queries", generator.entries.shape[2]])
    graph.output(
        "first", layers.log_probs(hidden, 0, query_point, "", queries), ["queries", 1, generator.codebook_size]
    )
    return graph


def step_graph(generator: LiteGenerator, precision: Precision, level: int) -> Graph:
    """Predicts a level after the first for all beams.

    Outputs: `log_probs` (queries, beams, N), and keys and values of all nodes. The input `prefix` (queries, beams,
    level) holds all vokens of each beam; the last of them are `vokens`.
    """
    graph = Graph(precision)
    tree = BeamTree.inputs(graph)
    layers = _Layers(generator, graph)
    mask = graph.input("mask", "int32", ["queries", "length"])
    if generator.config.query_vector:
        mask = _with_vector(graph, mask)
    rows = array(generator.voken_in[level - 1] + generator.place[level])
    hidden = graph.op("Gather", graph.constant(rows), graph.reshape(tree.vokens, -1))
    graph.set_row_count(hidden)
    bias = tree.bias(np.zeros((generator.levels, 1)))
    for number in range(len(generator.layers)):
        query, keys, values = layers.project(hidden, number, tree.queries)
        keys = tree.extended(f"k{number}", keys, layers.heads, layers.head_dim)
        values = tree.extended(f"v{number}", values, layers.heads, layers.head_dim)
        mixed = graph.attention(query, keys, values, heads=layers.heads, scale=layers.scale, bias=bias)
        shape: list[int | str] = ["queries", layers.heads, "memory", layers.head_dim]
        shared = [graph.input(f"shared_{name}{number}", "float32", shape) for name in "kv"]
        hidden = layers.after_attention(hidden, mixed, shared, mask, number, tree.queries)
    query_point, prefix, summed = "", "", ""
    if generator.config.query_vector:
        query_point = graph.input(QUERY_POINT, "float32", ["queries", generator.entries.shape[2]])
        prefix = graph.input("prefix", "int64", ["queries", "beams", level])
        if not generator.repetition[level]:  # the entries so far do not matter: the file is smaller without them
            prefix = ""
    if prefix:
        columns = graph.ops("Split", level, prefix, axis=2, num_outputs=level)
        entries = [
            graph.op("Gather", graph.constant(array(book)), graph.op("Squeeze", column, graph.ints(2)))
            for book, column in zip(generator.entries, columns, strict=False)
        ]
        summed = graph.op("Sum", *entries)
    log_probs = layers.log_probs(hidden, level, query_point, summed, tree.queries)
    graph.output("log_probs", log_probs, ["queries", "beams", generator.codebook_size])
    return graph


def _table(graph: Graph, generator: LiteGenerator, query_point: str) -> str:
    """The log-probabilities of a linear generator at all levels. Always in float32, as `_Layers.log_probs`."""
    entries = array(generator.similarity)[:, None, None] * array(generator.entries)
    logits = graph.linear(
        query_point, entries.reshape(-1, entries.shape[2]).T, array(generator.bias).reshape(-1), exact=True
    )
    logits = graph.reshape(logits, -1, generator.levels, generator.codebook_size)
    return graph.op("LogSoftmax", logits, axis=-1)


def _with_vector(graph: Graph, mask: str) -> str:
    """The mask of the query's vector, which is never padding, and of its tokens."""
    first = graph.op("Slice", mask, graph.ints(0), graph.ints(1), graph.ints(1))
    return graph.op("Concat", first, mask, axis=1)


class _Layers:
    """The decoder's layers, on rows (queries · beams, width)."""

    def __init__(self, generator: LiteGenerator, graph: Graph) -> None:
        self._generator, self._graph = generator, graph
        self.width, self.heads = generator.config.width, generator.config.heads
        self.head_dim = self.width // self.heads
        self.scale = self.head_dim**-0.5

    def project(self, hidden: str, number: int, queries: str) -> list[str]:
        """Queries, keys and values of self-attention, (queries, beams, width)."""
        graph, layer = self._graph, self._layer(number)
        joint = graph.linear(self._norm(hidden, layer.norms[0]), matrix(layer.self_in), array(layer.self_in.bias))
        return graph.split(graph.reshape(joint, queries, -1, 3 * self.width), *[self.width] * 3)

    def after_attention(self, hidden: str, mixed: str, shared: list[str], mask: str, number: int, queries: str) -> str:
        """The layer's output (rows, width), from the output of self-attention `mixed` (queries, beams, width)."""
        graph, layer = self._graph, self._layer(number)
        out = graph.linear(graph.reshape(mixed, -1, self.width), matrix(layer.self_out))
        normed, hidden = self._add_and_norm(out, hidden, layer.self_out.bias, layer.norms[1])
        query = graph.linear(normed, matrix(layer.cross_query), array(layer.cross_query.bias))
        query = graph.reshape(query, queries, -1, self.width)
        mixed = graph.attention(query, *shared, heads=self.heads, scale=self.scale, mask=mask)
        out = graph.linear(graph.reshape(mixed, -1, self.width), matrix(layer.cross_out))
        normed, hidden = self._add_and_norm(out, hidden, layer.cross_out.bias, layer.norms[2])
        inside = graph.linear(normed, matrix(layer.up))
        inside = graph.op("BiasGelu", inside, graph.constant(array(layer.up.bias)), contrib=True)
        out = graph.linear(inside, matrix(layer.down), array(layer.down.bias))
        return graph.op("Add", hidden, out)

    def log_probs(self, hidden: str, level: int, query_point: str, summed: str, queries: str) -> str:
        """(queries, beams, N). The inner products with the codebook matter most, so they are always float32.

        `summed` is the sum of the entries so far, or "" if it does not matter.
        """
        graph, generator = self._graph, self._generator
        normed = self._norm(hidden, generator.norm.weight, generator.norm.bias)
        logits = graph.linear(normed, array(generator.voken_out[level]).T, array(generator.bias[level]))
        logits = graph.reshape(logits, queries, -1, generator.codebook_size)
        if generator.config.query_vector:
            missing = graph.op("Mul", query_point, graph.scalar(float(generator.similarity[level].detach())))
            missing = graph.op("Unsqueeze", missing, graph.ints(1))
            if summed:
                before = graph.op("Mul", summed, graph.scalar(float(generator.repetition[level].detach())))
                missing = graph.op("Sub", missing, before)
            products = graph.linear(missing, array(generator.entries[level]).T, exact=True)
            logits = graph.op("Add", logits, products)
        return graph.op("LogSoftmax", logits, axis=-1)

    def _layer(self, number: int) -> Any:
        return self._generator.layers[number]

    def _norm(self, hidden: str, scale: Any, shift: Any = None) -> str:
        parts = [self._graph.constant(array(part)) for part in (scale, shift) if part is not None]
        return self._graph.op("LayerNormalization", hidden, *parts, axis=-1, epsilon=_EPSILON)

    def _add_and_norm(self, change: str, hidden: str, bias: Any, scale: Any) -> tuple[str, str]:
        shift = np.zeros(self.width, dtype=np.float32)
        return self._graph.add_layer_norm(change, hidden, array(scale), shift, _EPSILON, array(bias))


def _query_point(graph: Graph, generator: LiteGenerator, vector: str) -> str:
    if not generator.config.query_vector:
        zero = graph.scalar(0.0)
        shape = graph.op("Concat", graph.size(vector, 0), graph.ints(generator.entries.shape[2]), axis=0)
        return graph.op("Expand", zero, shape)
    point = graph.linear(vector, matrix(generator.to_code), exact=True)
    if generator.config.moves_query_point:
        scaled = graph.op("Mul", vector, graph.scalar(generator.vector_in.in_features**0.5))
        inside = graph.linear(scaled, matrix(generator.point_in), exact=True)
        inside = graph.op("BiasGelu", inside, graph.constant(array(generator.point_in.bias)), contrib=True)
        moved = graph.linear(inside, matrix(generator.point_out), exact=True)
        point = graph.op("LpNormalization", graph.op("Add", point, moved), axis=-1, p=2)
    if not (generator.config.memory_weight and len(generator.memory_vectors)):
        return point
    recalled = graph.op("LpNormalization", _recalled(graph, generator, vector), axis=-1, p=2)
    return graph.op("Add", point, graph.op("Mul", recalled, graph.scalar(generator.config.memory_weight)))


def _recalled(graph: Graph, generator: LiteGenerator, vector: str) -> str:
    """The mean of the memory's pictures, weighted by a softmax over the similarity of their captions, (queries, e).

    In int8, a rounded product finds the nearest captions and an exact one weights them. The others get no weight.
    """
    vectors, pictures = array(generator.memory_vectors), array(generator.memory_pictures)
    temperature = graph.scalar(generator.config.memory_temperature)
    if graph.precision == "float32" or len(vectors) <= RECALLED:
        similarity = graph.linear(vector, vectors.T, exact=True)
        weights = graph.op("Softmax", graph.op("Div", similarity, temperature), axis=-1)
        return graph.op("MatMul", weights, graph.constant(pictures))
    graph.set_row_count(vector)
    _, nearest = graph.ops("TopK", 2, graph.linear(vector, vectors.T), graph.ints(RECALLED), axis=-1, sorted=0)
    nearest_vectors = graph.op("Gather", graph.constant(vectors), nearest)
    similarity = graph.op("MatMul", nearest_vectors, graph.op("Unsqueeze", vector, graph.ints(2)))
    weights = graph.op("Softmax", graph.op("Div", similarity, temperature), axis=1)
    weights = graph.op("Transpose", weights, perm=[0, 2, 1])
    mean = graph.op("MatMul", weights, graph.op("Gather", graph.constant(pictures), nearest))
    return graph.op("Squeeze", mean, graph.ints(1))


@dataclass(frozen=True)
class SentenceReader:
    """MiniLM over packed texts. `read` may be called for several encoders, such as a tuned and the published one."""

    texts: PackedTexts
    offset: str
    """(tokens) the position of each token in its text."""

    @classmethod
    def inputs(cls, graph: Graph) -> Self:
        """Declare the inputs."""
        return cls(PackedTexts.inputs(graph), graph.input("offset", "int64", ["tokens"]))

    def read(self, encoder: SentenceEncoder) -> list[str]:
        """Every token's word piece and its states in all layers, each (tokens, 384)."""
        graph, texts = self.texts.graph, self.texts
        words = graph.op("Gather", graph.constant(array(encoder.words.weight)), texts.tokens)
        graph.set_row_count(words)
        places = graph.op("Gather", graph.constant(array(encoder.positions.weight)), self.offset)
        first = encoder.first_norm
        hidden, _ = graph.add_layer_norm(places, words, array(first.weight), array(first.bias), _SENTENCE_EPSILON)
        layers: Any = encoder.layers
        every = [words]
        for layer in layers:
            joint = texts.padded(graph.linear(hidden, matrix(layer.qkv), array(layer.qkv.bias)))
            query, keys, values = graph.split(joint, *[encoder.dim] * 3)
            scale = (encoder.dim // layer.heads) ** -0.5
            mixed = graph.attention(query, keys, values, heads=layer.heads, scale=scale, mask=texts.mask)
            out = graph.linear(texts.packed(mixed, encoder.dim), matrix(layer.out))
            norm = layer.attention_norm
            hidden, _ = graph.add_layer_norm(
                out, hidden, array(norm.weight), array(norm.bias), _SENTENCE_EPSILON, array(layer.out.bias)
            )
            inside = graph.linear(hidden, matrix(layer.up))
            inside = graph.op("BiasGelu", inside, graph.constant(array(layer.up.bias)), contrib=True)
            out = graph.linear(inside, matrix(layer.down))
            hidden, _ = graph.add_layer_norm(
                out, hidden, array(layer.norm.weight), array(layer.norm.bias), _SENTENCE_EPSILON, array(layer.down.bias)
            )
            every.append(hidden)
        return every

    def pooled(self, states: str) -> str:
        """The mean over a text's tokens, at unit length, (queries, 384)."""
        return self.texts.graph.op("LpNormalization", self._total(states), axis=-1, p=2)

    def pooled_layers(self, every: list[str]) -> str:
        """As `SentenceEncoder.pool_layers`, (queries, 2,688)."""
        graph = self.texts.graph
        count = graph.op("ReduceSum", graph.op("Cast", self.texts.mask, to=1), graph.ints(1), keepdims=1)
        means = [graph.op("Div", self._total(states), count) for states in every[:-1]]
        return graph.op("Concat", *means, self.pooled(every[-1]), axis=1)

    def _total(self, states: str) -> str:
        graph = self.texts.graph
        weight = graph.op("Unsqueeze", graph.op("Cast", self.texts.mask, to=1), graph.ints(2))
        return graph.op("ReduceSum", graph.op("Mul", self.texts.padded(states), weight), graph.ints(1), keepdims=0)


def text_vectors(reader: SentenceReader, every: list[str], encoder: BuiltInEncoder) -> str:
    """Unit vectors (queries, dim), as `encode_texts`, from what `read` returned. They are always float32: they are
    cheap."""
    graph = reader.texts.graph
    if isinstance(encoder, ZeroShotEncoder):
        pooled = reader.pooled(every[-1])
        relative = graph.op("Sub", pooled, graph.constant(encoder.vectors.query_centre))
        unit = graph.op("LpNormalization", relative, axis=-1, p=2)
        padding = np.array([0, 0, 0, encoder.dim - encoder.sentences.dim], dtype=np.int64)
        return graph.op("Pad", unit, graph.constant(padding)) if padding.any() else unit
    pooled = reader.pooled_layers(every) if encoder.head.config.text_layers else reader.pooled(every[-1])
    vectors = [_tower(graph, pooled, tower) for tower in encoder.head.text_towers]
    if len(vectors) == 1:
        return vectors[0]
    scale = graph.constant(np.array(len(vectors) ** -0.5, dtype=np.float32))
    return graph.op("Mul", graph.op("Concat", *vectors, axis=1), scale)


def _tower(graph: Graph, pooled: str, tower: Any) -> str:
    inputs = graph.op("Sub", pooled, graph.constant(array(tower.mean)))
    inputs = graph.op("Div", inputs, graph.constant(array(tower.std)))
    skipped = graph.linear(inputs, matrix(tower.skip), array(tower.skip.bias), exact=True)
    scale, shift = graph.constant(array(tower.norm.weight)), graph.constant(array(tower.norm.bias))
    normed = graph.op("LayerNormalization", inputs, scale, shift, axis=-1, epsilon=tower.norm.eps)
    inside = graph.op("Gelu", graph.linear(normed, matrix(tower.up), array(tower.up.bias), exact=True))
    mapped = graph.op("Add", skipped, graph.linear(inside, matrix(tower.down), array(tower.down.bias), exact=True))
    return graph.op("LpNormalization", mapped, axis=-1, p=2)


def text_vector_graph(encoder: ExportedEncoder, precision: Precision) -> Graph:
    """Turns texts into `vector` (queries, dim) of an encoder, for generators that do not read with it."""
    graph = Graph(precision)
    if isinstance(encoder, HubEncoder):
        graph.output("vector", read_texts(graph, encoder, states=False).vectors, ["queries", encoder.dim])
        return graph
    reader = SentenceReader.inputs(graph)
    vectors = text_vectors(reader, reader.read(encoder.sentences), encoder)
    graph.output("vector", vectors, ["queries", encoder.dim])
    return graph
