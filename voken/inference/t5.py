"""Exports a `T5Generator` as a graph of the encoder with all cross-attention keys, and a graph of a decoder step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from voken.errors import ConfigError
from voken.generator.t5 import T5Generator
from voken.inference.graph import BeamTree, Graph, PackedTexts, Precision, array, matrix, norm_of
from voken.shapes import Float

_ACTIVATIONS = {"relu": ("Relu", False), "gelu_new": ("FastGelu", True), "gelu": ("Gelu", True)}
"""The operator, and whether only ONNX Runtime has it."""


def prefill_graph(generator: T5Generator, precision: Precision) -> Graph:
    """Turns texts into `shared_k0`, `shared_v0`, … (queries, heads, length, head_dim): each layer's keys and values."""
    graph = Graph(precision)
    config = generator.config
    heads, head_dim = config.num_heads, config.d_kv
    texts = PackedTexts.inputs(graph)
    hidden = graph.op("Gather", graph.constant(array(generator.encoder.embed_tokens.weight)), texts.tokens)
    graph.set_row_count(hidden)
    blocks = generator.encoder.block
    bias = _encoder_bias(generator, texts)
    normed = graph.rms_norm(hidden, *norm_of(blocks[0].layer[0].layer_norm))
    for number, block in enumerate(blocks):
        self_attention, feed_forward = block.layer
        attention = self_attention.SelfAttention
        joint = graph.linear(normed, np.concatenate([matrix(attention.q), matrix(attention.k), matrix(attention.v)], 1))
        query, keys, values = graph.split(texts.padded(joint), *[heads * head_dim] * 3)
        mixed = graph.attention(query, keys, values, heads=heads, scale=1.0, bias=bias, mask=texts.mask)
        out = graph.linear(texts.packed(mixed, heads * head_dim), matrix(attention.o))
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(feed_forward.layer_norm))
        out = _feed_forward(graph, normed, feed_forward.DenseReluDense, config)
        next_norm = blocks[number + 1].layer[0].layer_norm if number + 1 < len(blocks) else None
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(next_norm or generator.encoder.final_layer_norm))
    attentions = [block.layer[1].EncDecAttention for block in generator.decoder.block]
    joint = graph.linear(normed, np.concatenate([matrix(part) for a in attentions for part in (a.k, a.v)], 1))
    parts = graph.split(texts.padded(joint), *[heads * head_dim] * (2 * len(attentions)))
    for number, part in enumerate(parts):
        name = f"shared_{'kv'[number % 2]}{number // 2}"
        graph.output(name, graph.heads(part, heads, head_dim), ["queries", heads, "length", head_dim])
    return graph


def step_graph(generator: T5Generator, precision: Precision, level: int) -> Graph:
    """Predicts a level for all beams: `log_probs` (queries, beams, N), and keys and values of all nodes.

    Voken N stands for the start of a sequence. If the codebook is shared, one graph serves all levels.
    """
    graph = Graph(precision)
    config, vocabulary = generator.config, generator.vocabulary
    heads, head_dim = config.num_heads, config.d_kv
    inner = heads * head_dim
    tree = BeamTree.inputs(graph)
    mask = graph.input("mask", "int32", ["queries", "length"])
    start = array(generator.encoder.embed_tokens.weight[config.decoder_start_token_id])[None]
    table = array(vocabulary.embeddings[0 if vocabulary.shared else max(level - 1, 0)])
    hidden = graph.op("Gather", graph.constant(np.concatenate([table, start])), graph.reshape(tree.vokens, -1))
    graph.set_row_count(hidden)
    blocks = generator.decoder.block
    bias = tree.bias(_decoder_bias(generator))
    normed = graph.rms_norm(hidden, *norm_of(blocks[0].layer[0].layer_norm))
    for number, block in enumerate(blocks):
        self_attention, cross, feed_forward = block.layer
        attention = self_attention.SelfAttention
        joint = graph.linear(normed, np.concatenate([matrix(attention.q), matrix(attention.k), matrix(attention.v)], 1))
        query, keys, values = graph.split(graph.reshape(joint, tree.queries, -1, 3 * inner), *[inner] * 3)
        keys = tree.extended(f"k{number}", keys, heads, head_dim)
        values = tree.extended(f"v{number}", values, heads, head_dim)
        mixed = graph.attention(query, keys, values, heads=heads, scale=1.0, bias=bias)
        out = graph.linear(graph.reshape(mixed, -1, inner), matrix(attention.o))
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(cross.layer_norm))
        attention = cross.EncDecAttention
        query = graph.reshape(graph.linear(normed, matrix(attention.q)), tree.queries, -1, inner)
        keys, values = (
            graph.input(f"shared_{part}{number}", "float32", ["queries", heads, "length", head_dim]) for part in "kv"
        )
        mixed = graph.attention(query, keys, values, heads=heads, scale=1.0, mask=mask)
        out = graph.linear(graph.reshape(mixed, -1, inner), matrix(attention.o))
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(feed_forward.layer_norm))
        out = _feed_forward(graph, normed, feed_forward.DenseReluDense, config)
        next_norm = blocks[number + 1].layer[0].layer_norm if number + 1 < len(blocks) else None
        normed, hidden = graph.add_rms_norm(out, hidden, *norm_of(next_norm or generator.decoder.final_layer_norm))
    rows = array(vocabulary.output_rows[0 if vocabulary.shared else level])
    logits = graph.linear(normed, rows.T * np.float32(generator.scale))
    log_probs = graph.reshape(graph.op("LogSoftmax", logits, axis=-1), tree.queries, -1, vocabulary.codebook_size)
    graph.output("log_probs", log_probs, ["queries", "beams", vocabulary.codebook_size])
    return graph


def _feed_forward(graph: Graph, normed: str, dense: Any, config: Any) -> str:
    name = config.dense_act_fn
    if name not in _ACTIVATIONS:
        raise ConfigError(f"The checkpoint's activation {name!r} is not one of {', '.join(_ACTIVATIONS)}.")
    kind, contrib = _ACTIVATIONS[name]
    if not config.is_gated_act:
        inside = graph.op(kind, graph.linear(normed, matrix(dense.wi)), contrib=contrib)
        return graph.linear(inside, matrix(dense.wo), positive=name == "relu")
    joint = graph.linear(normed, np.concatenate([matrix(dense.wi_0), matrix(dense.wi_1)], 1))
    gate, inside = graph.split(joint, config.d_ff, config.d_ff)
    return graph.linear(graph.op("Mul", graph.op(kind, gate, contrib=contrib), inside), matrix(dense.wo))


def _encoder_bias(generator: T5Generator, texts: PackedTexts) -> str:
    """(1, heads, length, length): T5's bias depends on the distance between two positions."""
    graph, longest = texts.graph, generator.reader.max_tokens
    with torch.no_grad():
        first = generator.encoder.block[0].layer[0].SelfAttention
        biases = array(first.compute_bias(longest, longest, device=generator.device)[0])
    table = np.concatenate([biases[:, -1, :], biases[:, 0, 1:]], axis=1).T
    position = texts.range()
    behind = graph.op("Unsqueeze", graph.op("Sub", position, graph.integer(longest - 1)), graph.ints(1))
    bias = graph.op("Gather", graph.constant(np.ascontiguousarray(table)), graph.op("Sub", position, behind))
    return graph.op("Unsqueeze", graph.op("Transpose", bias, perm=[2, 0, 1]), graph.ints(0))


def _decoder_bias(generator: T5Generator) -> Float[np.ndarray, "distances heads"]:
    with torch.no_grad():
        first = generator.decoder.block[0].layer[0].SelfAttention
        bias = array(first.compute_bias(generator.levels, generator.levels, device=generator.device)[0])
    return bias[:, -1, ::-1].T
