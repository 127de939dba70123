"""The built-in sentence encoder, and the two-tower's head for texts, as parts of a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from voken.encoders.builtin import SentenceEncoder
from voken.encoders.two_tower import Tower, TwoTowerEncoder
from voken.inference.graph import Graph, Precision
from voken.inference.positions import PackedTexts
from voken.inference.weights import array, matrix

_NORM_EPSILON = 1e-12


@dataclass(frozen=True)
class SentenceReader:
    """MiniLM over packed texts. `read` may be called for several copies of it (one tuned, one as published)."""

    texts: PackedTexts
    offset: str
    """(tokens) the place of each token in its text."""

    @classmethod
    def inputs(cls, graph: Graph) -> SentenceReader:
        """Declare them."""
        return cls(PackedTexts.inputs(graph), graph.input("offset", "int64", ["tokens"]))

    def read(self, encoder: SentenceEncoder) -> str:
        """The last layer's state of every token, (tokens, 384)."""
        graph, texts = self.texts.graph, self.texts
        words = graph.op("Gather", graph.constant(array(encoder.words.weight)), texts.tokens)
        graph.rows_of(words)
        places = graph.op("Gather", graph.constant(array(encoder.positions.weight)), self.offset)
        first = encoder.first_norm
        hidden, _ = graph.add_layer_norm(places, words, array(first.weight), array(first.bias), _NORM_EPSILON)
        layers: Any = encoder.layers
        for layer in layers:
            joint = texts.padded(graph.linear(hidden, matrix(layer.qkv), array(layer.qkv.bias)))
            query, keys, values = graph.split(joint, *[encoder.dim] * 3)
            scale = (encoder.dim // layer.heads) ** -0.5
            seen = graph.attention(query, keys, values, heads=layer.heads, scale=scale, mask=texts.mask)
            out = graph.linear(texts.packed(seen, encoder.dim), matrix(layer.out))
            norm = layer.attention_norm
            hidden, _ = graph.add_layer_norm(
                out, hidden, array(norm.weight), array(norm.bias), _NORM_EPSILON, array(layer.out.bias)
            )
            inside = graph.linear(hidden, matrix(layer.up))
            inside = graph.op("BiasGelu", inside, graph.constant(array(layer.up.bias)), contrib=True)
            out = graph.linear(inside, matrix(layer.down))
            hidden, _ = graph.add_layer_norm(
                out, hidden, array(layer.norm.weight), array(layer.norm.bias), _NORM_EPSILON, array(layer.down.bias)
            )
        return hidden

    def pooled(self, states: str) -> str:
        """Mean over a text's tokens at unit length, (queries, 384)."""
        graph = self.texts.graph
        weight = graph.op("Unsqueeze", graph.op("Cast", self.texts.mask, to=1), graph.ints(2))
        total = graph.op("ReduceSum", graph.op("Mul", self.texts.padded(states), weight), graph.ints(1), keepdims=0)
        return graph.op("LpNormalization", total, axis=-1, p=2)


def text_vectors(graph: Graph, pooled: str, tower: Tower) -> str:
    """What `TwoTowerHead.project_texts` gives, (queries, dim) at unit length. Exact in any precision: it is small."""
    inputs = graph.op("Sub", pooled, graph.constant(array(tower.mean)))
    inputs = graph.op("Div", inputs, graph.constant(array(tower.std)))
    skipped = graph.linear(inputs, matrix(tower.skip), array(tower.skip.bias), exact=True)
    scale, shift = graph.constant(array(tower.norm.weight)), graph.constant(array(tower.norm.bias))
    normed = graph.op("LayerNormalization", inputs, scale, shift, axis=-1, epsilon=tower.norm.eps)
    inside = graph.op("Gelu", graph.linear(normed, matrix(tower.up), array(tower.up.bias), exact=True))
    mapped = graph.op("Add", skipped, graph.linear(inside, matrix(tower.down), array(tower.down.bias), exact=True))
    return graph.op("LpNormalization", mapped, axis=-1, p=2)


def vector_graph(encoder: TwoTowerEncoder, precision: Precision) -> Graph:
    """Texts to `vector` (queries, dim): the built-in encoder's own, for generators that do not read with it."""
    graph = Graph(precision)
    reader = SentenceReader.inputs(graph)
    pooled = reader.pooled(reader.read(encoder.sentences))
    graph.output("vector", text_vectors(graph, pooled, encoder.head.text_tower), ["queries", encoder.dim])
    return graph
