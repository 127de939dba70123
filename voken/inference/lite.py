"""A `LiteGenerator` over the built-in encoder as graphs: reading and level 1 in one, then one graph a level.

Every level has its own rows, so it has its own graph: a matrix that a graph holds is laid out for the processor once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voken.encoders.two_tower import TwoTowerEncoder
from voken.generator.lite import LiteGenerator
from voken.inference.graph import Graph, Precision
from voken.inference.positions import BeamTree
from voken.inference.sentences import SentenceReader, text_vectors
from voken.inference.weights import array, matrix

_EPSILON = 1e-5
RECALLED = 2048
"""Training captions that a rounded search of the memory passes on to the exact one."""


def prefill_graph(generator: LiteGenerator, encoder: TwoTowerEncoder, precision: Precision) -> Graph:
    """Texts to `shared_k0`, … (queries, heads, length, head_dim), `aim` (queries, e), level 1's `first` log-
    probabilities (queries, 1, N) and the start's keys and values `k0`, `v0`, …"""
    graph = Graph(precision)
    reader = SentenceReader.inputs(graph)
    states = reader.read(encoder.sentences)
    vector = text_vectors(graph, reader.pooled(states), encoder.head.text_tower)
    if generator.text is not None:
        states = reader.read(generator.text)
    layers = _Layers(generator, graph)
    memory = graph.linear(states, matrix(generator.read), array(generator.read.bias))
    memory, mask = reader.texts.padded(memory), reader.texts.mask
    if generator.config.query_vector:
        own = graph.linear(vector, matrix(generator.vector_in), array(generator.vector_in.bias), exact=True)
        memory = graph.op("Concat", graph.op("Unsqueeze", own, graph.ints(1)), memory, axis=1)
        mask = _with_vector(graph, mask)
    scale, shift = (graph.constant(array(part)) for part in (generator.read_norm.weight, generator.read_norm.bias))
    memory = graph.op("LayerNormalization", memory, scale, shift, axis=-1, epsilon=_EPSILON)
    rows = graph.reshape(memory, -1, generator.config.width)
    graph.rows_of(rows)
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
    aim = _aim(graph, generator, vector)
    graph.output("aim", aim, ["queries", generator.entries.shape[2]])
    start = graph.constant(array(generator.start + generator.place[0])[None])
    hidden = graph.op("Expand", start, graph.op("Concat", queries, graph.ints(layers.width), axis=0))
    graph.rows_of(hidden)
    for number in range(len(generator.layers)):
        _, keys, values = layers.project(hidden, number, queries)
        for name, part in (("k", keys), ("v", values)):
            placed = graph.heads(part, layers.heads, layers.head_dim)
            graph.output(f"{name}{number}", placed, ["queries", layers.heads, 1, layers.head_dim])
        # the start sees itself alone
        hidden = layers.rest(hidden, values, shared[number], mask, number, queries)
    summed = graph.constant(np.zeros((1, 1, generator.entries.shape[2]), dtype=np.float32))
    graph.output("first", layers.log_probs(hidden, 0, aim, summed, queries), ["queries", 1, generator.codebook_size])
    return graph


def step_graph(generator: LiteGenerator, precision: Precision, level: int) -> Graph:
    """One level (1 or deeper) for all beams: `log_probs` (queries, beams, N), keys and values of all nodes.

    `prefix` (queries, beams, level) are all vokens of each beam; the last of them are `vokens`.
    """
    graph = Graph(precision)
    tree = BeamTree.inputs(graph)
    layers = _Layers(generator, graph)
    mask = graph.input("mask", "int32", ["queries", "length"])
    if generator.config.query_vector:
        mask = _with_vector(graph, mask)
    rows = array(generator.voken_in[level - 1] + generator.place[level])
    hidden = graph.op("Gather", graph.constant(rows), graph.reshape(tree.vokens, -1))
    graph.rows_of(hidden)
    bias = tree.bias(np.zeros((generator.levels, 1)))
    for number in range(len(generator.layers)):
        query, keys, values = layers.project(hidden, number, tree.queries)
        keys = tree.extended(f"k{number}", keys, layers.heads, layers.head_dim)
        values = tree.extended(f"v{number}", values, layers.heads, layers.head_dim)
        seen = graph.attention(query, keys, values, heads=layers.heads, scale=layers.scale, bias=bias)
        shape: list[int | str] = ["queries", layers.heads, "memory", layers.head_dim]
        shared = [graph.input(f"shared_{name}{number}", "float32", shape) for name in "kv"]
        hidden = layers.rest(hidden, seen, shared, mask, number, tree.queries)
    aim, summed = "", ""
    if generator.config.query_vector:
        aim = graph.input("aim", "float32", ["queries", generator.entries.shape[2]])
        prefix = graph.input("prefix", "int64", ["queries", "beams", level])
        taken = graph.ops("Split", level, prefix, axis=2, num_outputs=level)
        entries = [
            graph.op(
                "Gather", graph.constant(array(generator.entries[before])), graph.op("Squeeze", one, graph.ints(2))
            )
            for before, one in enumerate(taken)
        ]
        summed = graph.op("Sum", *entries)
    log_probs = layers.log_probs(hidden, level, aim, summed, tree.queries)
    graph.output("log_probs", log_probs, ["queries", "beams", generator.codebook_size])
    return graph


def _with_vector(graph: Graph, mask: str) -> str:
    """The mask of what is attended to: the query's vector, which every text has, then its tokens."""
    first = graph.op("Slice", mask, graph.ints(0), graph.ints(1), graph.ints(1))
    return graph.op("Concat", first, mask, axis=1)


class _Layers:
    """The decoder's layers on rows (queries · beams, width)."""

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

    def rest(self, hidden: str, seen: str, shared: list[str], mask: str, number: int, queries: str) -> str:
        """From what self-attention saw (queries, beams, width) to the layer's end, (rows, width)."""
        graph, layer = self._graph, self._layer(number)
        out = graph.linear(graph.reshape(seen, -1, self.width), matrix(layer.self_out))
        normed, hidden = self._add_and_norm(out, hidden, layer.self_out.bias, layer.norms[1])
        query = graph.linear(normed, matrix(layer.cross_query), array(layer.cross_query.bias))
        query = graph.reshape(query, queries, -1, self.width)
        seen = graph.attention(query, *shared, heads=self.heads, scale=self.scale, mask=mask)
        out = graph.linear(graph.reshape(seen, -1, self.width), matrix(layer.cross_out))
        normed, hidden = self._add_and_norm(out, hidden, layer.cross_out.bias, layer.norms[2])
        inside = graph.linear(normed, matrix(layer.up))
        inside = graph.op("BiasGelu", inside, graph.constant(array(layer.up.bias)), contrib=True)
        out = graph.linear(inside, matrix(layer.down), array(layer.down.bias))
        return graph.op("Add", hidden, out)

    def log_probs(self, hidden: str, level: int, aim: str, summed: str, queries: str) -> str:
        """(queries, beams, N); the inner products with the codebook, which carry most of it, are always exact."""
        graph, generator = self._graph, self._generator
        normed = self._norm(hidden, generator.norm.weight, generator.norm.bias)
        logits = graph.linear(normed, array(generator.voken_out[level]).T, array(generator.bias[level]))
        logits = graph.reshape(logits, queries, -1, generator.codebook_size)
        if generator.config.query_vector:
            wanted = graph.op("Mul", aim, graph.floats(float(generator.similarity[level].detach())))
            before = graph.op("Mul", summed, graph.floats(float(generator.repetition[level].detach())))
            wanted = graph.op("Sub", graph.op("Unsqueeze", wanted, graph.ints(1)), before)
            products = graph.linear(wanted, array(generator.entries[level]).T, exact=True)
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


def _aim(graph: Graph, generator: LiteGenerator, vector: str) -> str:
    if not generator.config.query_vector:
        nothing = graph.floats(0.0)
        shape = graph.op("Concat", graph.size(vector, 0), graph.ints(generator.entries.shape[2]), axis=0)
        return graph.op("Expand", nothing, shape)
    aim = graph.linear(vector, matrix(generator.to_code), exact=True)
    if not (generator.config.memory_weight and len(generator.memory_vectors)):
        return aim
    recalled = graph.op("LpNormalization", _recalled(graph, generator, vector), axis=-1, p=2)
    return graph.op("Add", aim, graph.op("Mul", recalled, graph.floats(generator.config.memory_weight)))


def _recalled(graph: Graph, generator: LiteGenerator, vector: str) -> str:
    """The softmax-weighted mean of what the memory's captions stood beside, (queries, e).

    In int8 a rounded product picks the nearest captions and the exact one ranks these; the others weigh nothing.
    """
    vectors, pictures = array(generator.memory_vectors), array(generator.memory_pictures)
    temperature = graph.floats(generator.config.memory_temperature)
    if graph.precision == "float32" or len(vectors) <= RECALLED:
        similarity = graph.linear(vector, vectors.T, exact=True)
        weights = graph.op("Softmax", graph.op("Div", similarity, temperature), axis=-1)
        return graph.op("MatMul", weights, graph.constant(pictures))
    graph.rows_of(vector)
    _, nearest = graph.ops("TopK", 2, graph.linear(vector, vectors.T), graph.ints(RECALLED), axis=-1, sorted=0)
    near = graph.op("Gather", graph.constant(vectors), nearest)
    similarity = graph.op("MatMul", near, graph.op("Unsqueeze", vector, graph.ints(2)))
    weights = graph.op("Softmax", graph.op("Div", similarity, temperature), axis=1)
    weights = graph.op("Transpose", weights, perm=[0, 2, 1])
    found = graph.op("MatMul", weights, graph.op("Gather", graph.constant(pictures), nearest))
    return graph.op("Squeeze", found, graph.ints(1))
