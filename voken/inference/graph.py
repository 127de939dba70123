"""Builds ONNX graphs operation by operation, with the fused operators of ONNX Runtime.

An exporter that traces a model cannot know that beams share cross-attention keys, that padding need not be computed, or
which products may run in int8. So the graphs are built by hand, with the methods of `Graph`.

**Int8** (precision "int8"). A weight matrix is rounded per output column to 7 bits: processors without VNNI add two
products in 16 bits, which 8-bit weights could overflow. The other factor is rounded *per row*, with a scale per row, so
that the result of a row does not depend on the rest of the batch. The products are then exact integers.

**Packed texts.** No product is computed for padding: `tokens` holds the tokens of all texts one after another, and
`place` (queries, length) holds the index in `tokens` of each text's tokens. Only attention sees the padded form.

**Beams form a tree.** The keys of every node that a query has visited stay in place. A beam attends only to the keys of
its ancestors, by `distance` (queries, beams, nodes): how many levels a node is above the beam, or a number beyond all
levels if it is no ancestor. So caches are never reordered or copied per beam. This is the tree attention of Miao et
al. 2023, "SpecInfer".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from voken.shapes import Float, Shaped

Precision = Literal["float32", "int8"]

_OPSET, _CONTRIB = 21, "com.microsoft"
_IR_VERSION = 10
_WEIGHT_STEPS, _INPUT_STEPS, _SHIFT = 63, 127, 128
_SMALLEST_SCALE = 1e-20
UNSEEN = -1e30
"""Added to the attention scores of positions that must not be seen. It is finite, so that no softmax is over infinities
alone."""
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "uint8": TensorProto.UINT8,
}


class Graph:
    """A graph under construction, in which strings name values. Rows of a matrix are positions in texts, or beams."""

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision = precision
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, str] = {}
        self._shift = ""

    def input(self, name: str, dtype: Literal["float32", "int64", "int32", "uint8"], shape: Sequence[int | str]) -> str:
        """Declare an input. A string in `shape` names a size that may differ from call to call."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Declare `value` (float32) as the output `name`."""
        self._names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, array: Shaped[np.ndarray, "*shape"]) -> str:
        """A weight, stored in the graph."""
        name = f"c{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def op(self, kind: str, *inputs: str, contrib: bool = False, **attributes: Any) -> str:
        """Apply an operator with one result. An input "" is omitted."""
        return self.ops(kind, 1, *inputs, contrib=contrib, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, contrib: bool = False, **attributes: Any) -> list[str]:
        """Apply an operator with several results."""
        names = [f"v{len(self._nodes)}_{place}" for place in range(results)]
        domain = _CONTRIB if contrib else ""
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def set_row_count(self, matrix: str) -> None:
        """Say that from now on the inputs of `linear` have as many rows as `matrix`."""
        if self.precision == "int8":
            self._shift = self.op("Expand", self.constant(np.array(_SHIFT, dtype=np.uint8)), self.size(matrix, 0))

    def linear(
        self,
        rows: str,
        weight: Float[np.ndarray, "width out"],
        bias: Float[np.ndarray, " out"] | None = None,
        *,
        positive: bool = False,
        exact: bool = False,
    ) -> str:
        """rows · weight + bias, in the graph's precision, or in float32 if `exact`.

        `positive` says that no entry of `rows` is below 0 (as after a ReLU), so that int8 needs no sign.
        """
        if self.precision == "float32" or exact:
            product = self.op("MatMul", rows, self.constant(weight.astype(np.float32)))
        else:
            product = self._rounded_product(rows, weight, positive)
        return product if bias is None else self.op("Add", product, self.constant(bias))

    def _rounded_product(self, rows: str, weight: Float[np.ndarray, "width out"], positive: bool) -> str:
        column = np.maximum(np.abs(weight).max(axis=0) / _WEIGHT_STEPS, _SMALLEST_SCALE).astype(np.float32)
        rounded = np.round(weight / column).astype(np.int8)
        largest = self.op("ReduceMax", rows if positive else self.op("Abs", rows), self.ints(1), keepdims=0)
        # a row of zeros has scale 0, so its result is 0 whatever its integers are
        scale = self.op("Mul", largest, self.scalar(1 / (255 if positive else _INPUT_STEPS)))
        # signed inputs are shifted to unsigned ones: without VNNI, products of two signed bytes are far slower
        integers = self.op("QuantizeLinear", rows, scale, *([] if positive else [self._shift]), axis=0)
        product = self.op(
            "MatMulIntegerToFloat",
            integers,
            self.constant(rounded),
            self.scalar(1.0),
            self.constant(column),
            self.constant(np.array(0 if positive else _SHIFT, dtype=np.uint8)),
            contrib=True,
        )
        return self.op("Mul", product, self.op("Unsqueeze", scale, self.ints(1)))

    def ints(self, *values: int) -> str:
        """A vector of integers, such as a shape or axes."""
        return self.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> str:
        """An integer scalar."""
        return self.constant(np.array(value, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, value: str, *shape: int | str) -> str:
        """`value` in another shape: -1 is the remaining size, 0 keeps an axis, a string names a one-element vector."""
        if all(isinstance(size, int) for size in shape):
            return self.op("Reshape", value, self.ints(*(int(size) for size in shape)))
        parts = [size if isinstance(size, str) else self.ints(size) for size in shape]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def size(self, value: str, axis: int) -> str:
        """The size of an axis as a one-element vector, for `reshape`."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def split(self, value: str, *sizes: int, axis: int = -1) -> list[str]:
        """Split `value` along an axis."""
        return self.ops("Split", len(sizes), value, self.ints(*sizes), axis=axis)

    def heads(self, value: str, heads: int, head_dim: int) -> str:
        """(batch, positions, heads · head_dim) → (batch, heads, positions, head_dim)."""
        return self.op("Transpose", self.reshape(value, 0, 0, heads, head_dim), perm=[0, 2, 1, 3])

    def attention(
        self,
        query: str,
        keys: str,
        values: str,
        *,
        heads: int,
        scale: float,
        bias: str = "",
        mask: str = "",
        causal: bool = False,
    ) -> str:
        """softmax(scale · QKᵀ + bias) V per head.

        `query` (batch, positions, heads · dim); `keys`, `values` (batch, heads, seen, dim), or both as `query`; `bias`
        (batch or 1, heads or 1, positions, seen); `mask` int32 (batch, seen), 0 for positions that must not be seen.
        With `causal`, a position sees only itself and those before. The result is (batch, positions, heads · dim).
        """
        inputs = (query, keys, values, "", mask, bias)
        options = {"unidirectional": 1} if causal else {}
        return self.op("MultiHeadAttention", *inputs, contrib=True, num_heads=heads, scale=scale, **options)

    def rms_norm(self, hidden: str, scale: Float[np.ndarray, " width"], epsilon: float) -> str:
        """Each row divided by its root mean square, times `scale`."""
        return self.op("SimplifiedLayerNormalization", hidden, self.constant(scale), axis=-1, epsilon=epsilon)

    def add_rms_norm(
        self, change: str, hidden: str, scale: Float[np.ndarray, " width"], epsilon: float
    ) -> tuple[str, str]:
        """`rms_norm` of change + hidden, and this sum."""
        parts = (change, hidden, self.constant(scale))
        results = self.ops("SkipSimplifiedLayerNormalization", 4, *parts, contrib=True, epsilon=epsilon)
        return results[0], results[3]

    def add_layer_norm(
        self,
        change: str,
        hidden: str,
        scale: Float[np.ndarray, " width"],
        shift: Float[np.ndarray, " width"],
        epsilon: float,
        bias: Float[np.ndarray, " width"] | None = None,
    ) -> tuple[str, str]:
        """The layer norm of change + bias + hidden, and this sum."""
        parts = [change, hidden, self.constant(scale), self.constant(shift)]
        if bias is not None:
            parts.append(self.constant(bias))
        results = self.ops("SkipLayerNormalization", 4, *parts, contrib=True, epsilon=epsilon)
        return results[0], results[3]

    def save(self, path: Path, weights: Path) -> None:
        """Write the graph to `path`, and its large constants to the file `weights` in the same folder."""
        for node in self._nodes:
            for names in (node.input, node.output):
                names[:] = [self._names.get(name, name) for name in names]
        graph = helper.make_graph(
            self._nodes, "voken", self._inputs, self._outputs, initializer=list(self._constants.values())
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="voken")
        weights.unlink(missing_ok=True)
        onnx.save_model(model, str(path), save_as_external_data=True, location=weights.name, size_threshold=4096)
        if weights.exists():  # small constants stay in the graph
            weights.chmod(path.stat().st_mode)  # onnx makes the file readable by its owner only


@dataclass(frozen=True)
class PackedTexts:
    """The inputs of a graph that reads texts."""

    graph: Graph
    tokens: str
    """(tokens) the tokens of all texts."""
    place: str
    """(queries, length) the index in `tokens` of each token; any index for padding."""
    unplace: str
    """(tokens) the index of each token in the flattened (queries, length)."""
    mask: str
    """(queries, length) 1 for a token, 0 for padding."""

    @classmethod
    def inputs(cls, graph: Graph) -> Self:
        """Declare the inputs."""
        return cls(
            graph,
            graph.input("tokens", "int64", ["tokens"]),
            graph.input("place", "int64", ["queries", "length"]),
            graph.input("unplace", "int64", ["tokens"]),
            graph.input("mask", "int32", ["queries", "length"]),
        )

    def padded(self, rows: str) -> str:
        """(tokens, width) → (queries, length, width)."""
        return self.graph.op("Gather", rows, self.place)

    def packed(self, padded: str, width: int) -> str:
        """(queries, length, …) → (tokens, width); a token may have several adjacent rows, all counted in `width`."""
        return self.graph.op("Gather", self.graph.reshape(padded, -1, width), self.unplace)

    def range(self, repeat: int = 1) -> str:
        """0 … length · repeat - 1."""
        graph = self.graph
        length = graph.op("Mul", graph.op("Squeeze", graph.size(self.place, 1)), graph.integer(repeat))
        return graph.op("Range", graph.integer(0), length, graph.integer(1))


@dataclass(frozen=True)
class BeamTree:
    """The inputs of a step: the last voken of each beam, and which nodes the beam sees."""

    graph: Graph
    vokens: str
    """(queries, beams) the last voken of each beam."""
    distance: str
    """(queries, beams, nodes) levels from a beam up to a node of its path (0: itself); a larger number for others."""
    queries: str
    """The number of queries, as a one-element vector."""

    @classmethod
    def inputs(cls, graph: Graph) -> Self:
        """Declare the inputs."""
        vokens = graph.input("vokens", "int64", ["queries", "beams"])
        distance = graph.input("distance", "int64", ["queries", "beams", "nodes"])
        return cls(graph, vokens, distance, graph.size(vokens, 0))

    def bias(self, by_distance: Float[np.ndarray, "distances heads"]) -> str:
        """A bias (queries, heads, beams, nodes) of attention. Nodes at distances beyond the table are not seen."""
        unseen = np.full((1, by_distance.shape[1]), UNSEEN)
        table = self.graph.constant(np.concatenate([by_distance, unseen]).astype(np.float32))
        last = self.graph.integer(len(by_distance))
        bias = self.graph.op("Gather", table, self.graph.op("Min", self.distance, last))
        return self.graph.op("Transpose", bias, perm=[0, 3, 1, 2])

    def extended(self, name: str, new: str, heads: int, head_dim: int) -> str:
        """Keys or values of all nodes: the input `past_NAME`, then `new` (queries, beams, heads · dim). An output."""
        shape: list[int | str] = ["queries", heads, "past", head_dim]
        past = self.graph.input(f"past_{name}", "float32", shape)
        extended = self.graph.op("Concat", past, self.graph.heads(new, heads, head_dim), axis=2)
        self.graph.output(name, extended, ["queries", heads, "nodes", head_dim])
        return extended


def array(tensor: Tensor) -> Float[np.ndarray, "*shape"]:
    """A copy of a tensor in float32."""
    copied: np.ndarray = tensor.detach().float().cpu().numpy()
    return copied


def matrix(module: Any) -> Float[np.ndarray, "width out"]:
    """The matrix by which a linear layer multiplies rows, including LoRA adapters of peft."""
    base = getattr(module, "base_layer", module)
    weight = base.weight.detach().float()
    if hasattr(module, "get_delta_weight"):
        with torch.no_grad():
            for name in module.active_adapters:
                weight = weight + module.get_delta_weight(name).float()
    return np.ascontiguousarray(array(weight).T)


def norm_of(module: Any) -> tuple[Float[np.ndarray, " width"], float]:
    """Scale and epsilon of an RMS norm of transformers."""
    return array(module.weight), float(module.variance_epsilon)
