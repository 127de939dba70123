"""Exports a `LlamaGenerator` as a graph that reads the prompt and a graph for a step.

Query heads that share a key head become further positions of that head. The weights are reordered for this, so that it
costs nothing at run time, and the prompt's keys are never repeated per query head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from voken.errors import ConfigError
from voken.generator.llama import LlamaGenerator
from voken.inference.graph import UNSEEN, BeamTree, Graph, PackedTexts, Precision, array, matrix, norm_of
from voken.shapes import Float


def prefill_graph(generator: LlamaGenerator, precision: Precision) -> Graph:
    """Turns prompts into `k0`, `v0`, … (queries, key heads, length, head_dim) and `first`, the scores of level 1."""
    graph = Graph(precision)
    model, layers = generator.transformer, _Layers(generator)
    texts = PackedTexts.inputs(graph)
    offset = graph.op("Unsqueeze", graph.input("offset", "int64", ["tokens"]), graph.ints(1))
    last = graph.input("last", "int64", ["queries"])
    hidden = graph.op("Gather", graph.constant(array(model.embed_tokens.weight)), texts.tokens)
    graph.set_row_count(hidden)
    bias = _causal_bias(texts, layers.group)
    rotary = layers.rotary(graph, generator.reader.max_tokens)
    normed = graph.rms_norm(hidden, *norm_of(model.layers[0].input_layernorm))
    for number, layer in enumerate(model.layers):
        query, keys, values = layers.project(graph, normed, layer)
        query, keys = (rotary(graph.op("Unsqueeze", part, graph.ints(1)), offset) for part in (query, keys))
        query = graph.reshape(texts.padded(graph.op("Squeeze", query, graph.ints(1))), 0, -1, layers.key_width)
        keys = graph.heads(texts.padded(graph.op("Squeeze", keys, graph.ints(1))), layers.key_heads, layers.head_dim)
        values = graph.heads(texts.padded(values), layers.key_heads, layers.head_dim)
        for name, part in (("k", keys), ("v", values)):
            graph.output(f"{name}{number}", part, ["queries", layers.key_heads, "length", layers.head_dim])
        mixed = graph.attention(query, keys, values, heads=layers.key_heads, scale=layers.scale, bias=bias)
        out = graph.linear(texts.packed(mixed, layers.group * layers.key_width), layers.output_matrix(layer))
        normed, hidden = layers.feed_forward(graph, out, hidden, layer, number)
    rows = array(generator.vocabulary.output_rows[0])
    logits = graph.linear(graph.op("Gather", normed, last), rows.T, exact=True)
    first = graph.op("Unsqueeze", graph.op("LogSoftmax", logits, axis=-1), graph.ints(1))
    graph.output("first", first, ["queries", 1, generator.codebook_size])
    return graph


def step_graph(generator: LlamaGenerator, precision: Precision, level: int) -> Graph:
    """Predicts a level after the first for all beams: `log_probs` (queries, beams, N), and all keys and values.

    If the codebook is shared, one graph serves all levels.
    """
    graph = Graph(precision)
    model, vocabulary, layers = generator.transformer, generator.vocabulary, _Layers(generator)
    tree = BeamTree.inputs(graph)
    position = graph.input("position", "int64", ["queries", "beams"])
    table = array(vocabulary.embeddings[0 if vocabulary.shared else level - 1])
    hidden = graph.op("Gather", graph.constant(table), graph.reshape(tree.vokens, -1))
    graph.set_row_count(hidden)
    rotary = layers.rotary(graph, generator.reader.max_tokens + generator.levels)
    beam_bias = tree.bias(np.zeros((generator.reader.max_tokens + generator.levels, 1)))
    bias = graph.op("Expand", graph.op("Unsqueeze", beam_bias, graph.ints(3)), graph.ints(1, 1, 1, layers.group, 1))
    bias = graph.reshape(bias, tree.queries, 1, -1, graph.size(tree.distance, 2))
    normed = graph.rms_norm(hidden, *norm_of(model.layers[0].input_layernorm))
    for number, layer in enumerate(model.layers):
        query, keys, values = (
            graph.reshape(part, tree.queries, -1, width)
            for part, width in zip(layers.project(graph, normed, layer), layers.widths, strict=True)
        )
        keys = tree.extended(f"k{number}", rotary(keys, position), layers.key_heads, layers.head_dim)
        values = tree.extended(f"v{number}", values, layers.key_heads, layers.head_dim)
        query = graph.reshape(rotary(query, position), tree.queries, -1, layers.key_width)
        mixed = graph.attention(query, keys, values, heads=layers.key_heads, scale=layers.scale, bias=bias)
        out = graph.linear(graph.reshape(mixed, -1, layers.group * layers.key_width), layers.output_matrix(layer))
        normed, hidden = layers.feed_forward(graph, out, hidden, layer, number)
    logits = graph.linear(normed, array(vocabulary.output_rows[0 if vocabulary.shared else level]).T)
    log_probs = graph.reshape(graph.op("LogSoftmax", logits, axis=-1), tree.queries, -1, vocabulary.codebook_size)
    graph.output("log_probs", log_probs, ["queries", "beams", vocabulary.codebook_size])
    return graph


class _Layers:
    """The parts of a Llama layer, with the query heads ordered (group, key head) instead of (key head, group)."""

    def __init__(self, generator: LlamaGenerator) -> None:
        self._model = generator.transformer
        config, attention = generator.config, generator.transformer.layers[0].self_attn
        if config.hidden_act != "silu" or config.attention_bias or config.mlp_bias:
            raise ConfigError("Only the published Llama layer (SiLU, no biases) can be exported. Search with torch.")
        self.key_heads = int(config.num_key_value_heads)
        self.group = int(config.num_attention_heads) // self.key_heads
        self.head_dim, self.scale = int(attention.head_dim), float(attention.scaling)
        self.key_width = self.key_heads * self.head_dim
        self.widths = (self.group * self.key_width, self.key_width, self.key_width)

    def project(self, graph: Graph, normed: str, layer: Any) -> list[str]:
        """Queries, keys and values (rows, width)."""
        attention = layer.self_attn
        query = self._regrouped(matrix(attention.q_proj).T).T
        joint = np.concatenate([query, matrix(attention.k_proj), matrix(attention.v_proj)], axis=1)
        return graph.split(graph.linear(normed, joint), *self.widths)

    def output_matrix(self, layer: Any) -> Float[np.ndarray, "inner width"]:
        """The matrix that follows attention."""
        return self._regrouped(matrix(layer.self_attn.o_proj))

    def feed_forward(self, graph: Graph, out: str, hidden: str, layer: Any, number: int) -> tuple[str, str]:
        """Add the output of attention, then feed forward. Returns the next layer's input, normalised and not."""
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(layer.post_attention_layernorm))
        joint = graph.linear(normed, np.concatenate([matrix(layer.mlp.gate_proj), matrix(layer.mlp.up_proj)], 1))
        gate, inside = graph.ops("Split", 2, joint, axis=-1, num_outputs=2)
        gated = graph.op("Mul", graph.op("QuickGelu", gate, contrib=True, alpha=1.0), inside)
        layers = self._model.layers
        next_norm = layers[number + 1].input_layernorm if number + 1 < len(layers) else self._model.norm
        return graph.add_rms_norm(graph.linear(gated, matrix(layer.mlp.down_proj)), hidden, *norm_of(next_norm))

    def rotary(self, graph: Graph, positions: int) -> Any:
        """A function of (values, positions) that rotates values (batch, length, width) by positions (batch, length)."""
        numbers = torch.arange(positions)[None]
        with torch.no_grad():
            cosine, sine = self._model.rotary_emb(torch.zeros(1, 1), position_ids=numbers)
        half = self.head_dim // 2
        tables = [graph.constant(array(part[0])[:, :half]) for part in (cosine, sine)]
        return lambda heads, position: graph.op("RotaryEmbedding", heads, position, *tables, contrib=True)

    def _regrouped(self, rows: Float[np.ndarray, "inner width"]) -> Float[np.ndarray, "inner width"]:
        split = rows.reshape(self.key_heads, self.group, self.head_dim, -1)
        return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(rows.shape)


def _causal_bias(texts: PackedTexts, group: int) -> str:
    """(1, 1, length · group, length): the heads of a position see this position and earlier ones."""
    graph = texts.graph
    row = graph.op("Unsqueeze", graph.op("Div", texts.range(group), graph.integer(group)), graph.ints(1))
    is_seen = graph.op("LessOrEqual", texts.range(), row)
    bias = graph.op("Where", is_seen, graph.scalar(0.0), graph.scalar(UNSEEN))
    return graph.op("Unsqueeze", bias, graph.ints(0, 1))
