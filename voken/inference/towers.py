"""Exports the towers of CLIP and SigLIP: a graph that turns pixels into vectors, and the reading of texts.

Both towers are stacks of the same transformer layers, with a layer norm before attention and before the feed-forward
(Dosovitskiy et al. 2021, "An image is worth 16x16 words"; Radford et al. 2021, "Learning transferable visual models
from natural language supervision"; Zhai et al. 2023, "Sigmoid loss for language image pre-training"). A tower that
gives only a vector computes the end of its last layer only for the position that the vector is read from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voken.encoders.clip import HubEncoder
from voken.errors import ConfigError
from voken.inference.graph import Graph, PackedTexts, Precision, array, matrix

PIXELS = "pixels"
_FLOAT = 1
"""ONNX's number of float32."""


def picture_graph(encoder: HubEncoder, precision: Precision) -> Graph:
    """Turns `pixels` (images, height, width, 3), bytes that `PicturePreparation.pixels` gave, into `vector` (images,
    dim), as `encode_prepared`.
    """
    tower = encoder.model.vision_model
    config, embeddings = tower.config, tower.embeddings
    graph = Graph(precision)
    height, width = encoder.preparation.size
    pixels = graph.input(PIXELS, "uint8", ["images", height, width, 3])
    side = int(config.patch_size)
    rows, columns = height // side, width // side
    if rows * columns != embeddings.num_patches:
        raise ConfigError(
            f"The image processor gives pictures of {height} × {width} pixels, and the network reads others. Correct "
            "the checkpoint's preprocessor_config.json."
        )
    if (rows * side, columns * side) != (height, width):  # a convolution leaves out what is no whole patch
        ends = graph.ints(rows * side, columns * side)
        pixels = graph.op("Slice", pixels, graph.ints(0, 0), ends, graph.ints(1, 2))
    patches = graph.op("Transpose", graph.reshape(pixels, -1, rows, side, columns, side * 3), perm=[0, 1, 3, 2, 4])
    patches = graph.op("Cast", graph.reshape(patches, -1, side * side * 3), to=_FLOAT)
    hidden = graph.linear(patches, *_patch_matrix(encoder), exact=True)
    places = array(embeddings.position_embedding.weight)
    dim, tokens = int(config.hidden_size), rows * columns
    hidden = graph.reshape(hidden, -1, tokens, dim)
    if encoder.family == "clip":
        hidden = graph.op("Add", hidden, graph.constant(places[1:]))
        first = graph.constant((array(embeddings.class_embedding) + places[0])[None, None])
        ones = graph.ints(1, dim)
        shape = graph.op("Concat", graph.size(hidden, 0), ones, axis=0)
        hidden = graph.op("Concat", graph.op("Expand", first, shape), hidden, axis=1)
        tokens += 1
    else:
        hidden = graph.op("Add", hidden, graph.constant(places))
    hidden = graph.reshape(hidden, -1, dim)
    if encoder.family == "clip":
        hidden = _layer_norm(graph, hidden, tower.pre_layrnorm)
    layers = _Layers(graph, tower.encoder.layers, config, tower.post_layernorm)

    def mix(joint: str) -> str:
        return graph.reshape(layers.attention(graph.reshape(joint, -1, tokens, 3 * dim)), -1, dim)

    def first_of_picture(states: str) -> str:
        first = graph.op("Gather", graph.reshape(states, -1, tokens, dim), graph.ints(0), axis=1)
        return graph.op("Squeeze", first, graph.ints(1))

    if encoder.family == "clip":
        pooled = layers.apply(hidden, mix, first_of_picture)
        pooled = graph.linear(pooled, matrix(encoder.model.visual_projection), exact=True)
    else:
        states = layers.apply(hidden, mix)
        pooled = _attention_pool(graph, tower.head, graph.reshape(states, -1, tokens, dim), config)
    graph.output("vector", graph.op("LpNormalization", pooled, axis=-1, p=2), ["images", encoder.dim])
    return graph


@dataclass(frozen=True)
class ReadTexts:
    """What a text tower makes of packed texts."""

    texts: PackedTexts
    states: str
    """(tokens, width) the state of every token of the last layer, normalised; "" if they were not asked for."""
    vectors: str
    """(queries, dim) at unit length."""


def read_texts(graph: Graph, encoder: HubEncoder, *, states: bool) -> ReadTexts:
    """Declare the inputs of texts, and read them, with or without the states of all their tokens.

    Texts of SigLIP come with their padding, to which it attends (see `voken.inference.engine.TextPacker`).
    """
    texts = PackedTexts.inputs(graph)
    offset = graph.input("offset", "int64", ["tokens"])
    last = graph.input("last", "int64", ["queries"])
    tower = encoder.model.text_model
    config, embeddings = tower.config, tower.embeddings
    words = graph.op("Gather", graph.constant(array(embeddings.token_embedding.weight)), texts.tokens)
    places = graph.op("Gather", graph.constant(array(embeddings.position_embedding.weight)), offset)
    layers = _Layers(graph, tower.encoder.layers, config, tower.final_layer_norm, causal=encoder.family == "clip")

    def mix(joint: str) -> str:
        return texts.packed(layers.attention(texts.padded(joint)), int(config.hidden_size))

    def last_of_text(rows: str) -> str:
        return graph.op("Gather", rows, last)

    rows = layers.apply(graph.op("Add", words, places), mix, None if states else last_of_text)
    pooled = last_of_text(rows) if states else rows
    head = encoder.model.text_projection if encoder.family == "clip" else tower.head
    bias = None if head.bias is None else array(head.bias)
    vectors = graph.op("LpNormalization", graph.linear(pooled, matrix(head), bias, exact=True), axis=-1, p=2)
    return ReadTexts(texts, rows if states else "", vectors)


class _Layers:
    """The layers of a tower, on rows (positions of all texts or pictures, width)."""

    def __init__(self, graph: Graph, layers: Sequence[Any], config: Any, norm: Any, *, causal: bool = False) -> None:
        self._graph, self._layers, self._norm, self._causal = graph, list(layers), norm, causal
        self._width, self._heads = int(config.hidden_size), int(config.num_attention_heads)
        self._activation = _activation(graph, str(config.hidden_act))

    def attention(self, joint: str) -> str:
        """Attention over queries, keys and values side by side, (batch, positions, 3 · width)."""
        graph, width = self._graph, self._width
        scale = (width // self._heads) ** -0.5
        parts = graph.split(joint, width, width, width)
        return graph.attention(*parts, heads=self._heads, scale=scale, causal=self._causal)

    def apply(self, hidden: str, mix: Callable[[str], str], pool: Callable[[str], str] | None = None) -> str:
        """The states after all layers and the last norm. `mix` applies `attention` to rows.

        `pool` chooses the rows that are wanted of the last layer; the others are then not computed to the end.
        """
        graph = self._graph
        graph.set_row_count(hidden)
        normed = _layer_norm(graph, hidden, self._layers[0].layer_norm1 if self._layers else self._norm)
        for number, layer in enumerate(self._layers):
            attention, inner = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            weight = np.concatenate([matrix(part) for part in projections], axis=1)
            mixed = mix(graph.linear(normed, weight, np.concatenate([array(part.bias) for part in projections])))
            is_last = number == len(self._layers) - 1
            if is_last and pool is not None:
                mixed, hidden = pool(mixed), pool(hidden)
                graph.set_row_count(hidden)
            out = graph.linear(mixed, matrix(attention.out_proj))
            normed, hidden = _add_layer_norm(graph, out, hidden, layer.layer_norm2, attention.out_proj)
            inside = self._activation(graph.linear(normed, matrix(inner.fc1)), array(inner.fc1.bias))
            norm = self._norm if is_last else self._layers[number + 1].layer_norm1
            normed, hidden = _add_layer_norm(graph, graph.linear(inside, matrix(inner.fc2)), hidden, norm, inner.fc2)
        return pool(normed) if pool is not None and not self._layers else normed


def _attention_pool(graph: Graph, head: Any, states: str, config: Any) -> str:
    """SigLIP's vector of a picture, (images, width): what a learned query attends to in `states` (images, positions,
    width), and a perceptron of it."""
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    attention = head.attention
    weight, bias = array(attention.in_proj_weight).T, array(attention.in_proj_bias)
    query = array(head.probe).reshape(1, width) @ weight[:, :width] + bias[:width]
    shape = graph.op("Concat", graph.size(states, 0), graph.ints(1, width), axis=0)
    queries = graph.op("Expand", graph.constant(query[None]), shape)
    rows = graph.reshape(states, -1, width)
    joint = graph.linear(rows, np.ascontiguousarray(weight[:, width:]), bias[width:])
    joint = graph.reshape(joint, graph.size(states, 0), -1, 2 * width)
    keys, values = graph.split(joint, width, width)
    mixed = graph.attention(queries, keys, values, heads=heads, scale=(width // heads) ** -0.5)
    hidden = graph.reshape(mixed, -1, width)
    hidden = graph.linear(hidden, matrix(attention.out_proj), array(attention.out_proj.bias), exact=True)
    normed = _layer_norm(graph, hidden, head.layernorm)
    inside = graph.linear(normed, matrix(head.mlp.fc1), exact=True)
    inside = _activation(graph, str(config.hidden_act))(inside, array(head.mlp.fc1.bias))
    return graph.op("Add", hidden, graph.linear(inside, matrix(head.mlp.fc2), array(head.mlp.fc2.bias), exact=True))


def _patch_matrix(encoder: HubEncoder) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (side · side · 3, width) and the bias that turn the bytes of a patch into its first state.

    They are those of the network and of the scaling of pixels in one.
    """
    convolution = encoder.model.vision_model.embeddings.patch_embedding
    weight = array(convolution.weight).astype(np.float64)
    preparation = encoder.preparation
    bias = np.einsum("oirc,i->o", weight, np.array(preparation.shift))
    if convolution.bias is not None:
        bias += array(convolution.bias)
    scaled = weight * np.array(preparation.scale)[:, None, None]
    rows = scaled.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    return np.ascontiguousarray(rows, dtype=np.float32), bias.astype(np.float32)


def _activation(graph: Graph, name: str) -> Callable[[str, np.ndarray], str]:
    """A function that adds a bias to rows and applies the activation that transformers calls `name`."""
    if name == "quick_gelu":
        return lambda rows, bias: graph.op(
            "QuickGelu", graph.op("Add", rows, graph.constant(bias)), contrib=True, alpha=1.702
        )
    kinds = {"gelu": "BiasGelu", "gelu_pytorch_tanh": "FastGelu", "gelu_new": "FastGelu", "gelu_fast": "FastGelu"}
    if name not in kinds:
        raise ConfigError(f"The encoder's activation {name} cannot be exported. Search with torch.")
    return lambda rows, bias: graph.op(kinds[name], rows, graph.constant(bias), contrib=True)


def _layer_norm(graph: Graph, hidden: str, norm: Any) -> str:
    scale, shift = graph.constant(array(norm.weight)), graph.constant(array(norm.bias))
    return graph.op("LayerNormalization", hidden, scale, shift, axis=-1, epsilon=float(norm.eps))


def _add_layer_norm(graph: Graph, change: str, hidden: str, norm: Any, linear: Any) -> tuple[str, str]:
    """`Graph.add_layer_norm` with the bias of the linear layer that gave `change`."""
    scale, shift = array(norm.weight), array(norm.bias)
    return graph.add_layer_norm(change, hidden, scale, shift, float(norm.eps), array(linear.bias))
