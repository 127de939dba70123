"""ONNX graphs written operation by operation, with the fused operators of ONNX Runtime.

An exporter that traces a model cannot know that beams share cross-attention keys, that a query's padding need not be
computed, or which product may run in int8. So the graphs are written out, by the few words below. Nothing here knows
of texts, vokens or torch; weights come as numpy arrays.

Int8 ("int8" precision). A weight matrix is rounded per output column to 7 bits: on processors without VNNI two
products are added in 16 bits, which 8-bit weights could overflow. Its input is rounded *per row*, with the row's own
scale, so that what a row gives does not depend on what else is in the batch. Products are then exact integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from voken.shapes import Float, Shaped

Precision = Literal["float32", "int8"]

_OPSET, _CONTRIB = 21, "com.microsoft"
_IR_VERSION = 10
_WEIGHT_STEPS, _INPUT_STEPS, _SHIFT = 63, 127, 128
_SMALLEST_SCALE = 1e-20
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int32": TensorProto.INT32}


class Graph:
    """A graph under construction. Values are named by strings; rows of a matrix are positions (of texts or beams)."""

    def __init__(self, precision: Precision = "float32") -> None:
        self.precision = precision
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._names: dict[str, str] = {}
        self._shift = ""

    def input(self, name: str, dtype: Literal["float32", "int64", "int32"], shape: Sequence[int | str]) -> str:
        """Declare an input; a string in `shape` is a size that may differ from call to call."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str]) -> None:
        """Declare `value` (float32) as the output `name`."""
        self._names[value] = name
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def constant(self, array: Shaped[np.ndarray, "*shape"]) -> str:
        """A weight."""
        name = f"c{len(self._constants)}"
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def op(self, kind: str, *inputs: str, contrib: bool = False, **attributes: Any) -> str:
        """Apply an operator with one result; an input that is "" is left out."""
        return self.ops(kind, 1, *inputs, contrib=contrib, **attributes)[0]

    def ops(self, kind: str, results: int, *inputs: str, contrib: bool = False, **attributes: Any) -> list[str]:
        """Apply an operator with several results."""
        names = [f"v{len(self._nodes)}_{place}" for place in range(results)]
        domain = _CONTRIB if contrib else ""
        self._nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def rows_of(self, matrix: str) -> None:
        """What `linear` is given from here on has as many rows as `matrix`."""
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
        """rows · weight + bias, for a matrix `rows`; in the graph's precision unless `exact`.

        `positive`: no entry of `rows` is below 0 (as after a ReLU), so that int8 need not keep a sign.
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
        # of a row of zeros the scale is 0, and so is the result, whatever its integers are
        scale = self.op("Mul", largest, self.floats(1 / (255 if positive else _INPUT_STEPS)))
        # signed inputs are shifted to unsigned ones: products of two signed bytes are far slower without VNNI
        integers = self.op("QuantizeLinear", rows, scale, *([] if positive else [self._shift]), axis=0)
        product = self.op(
            "MatMulIntegerToFloat",
            integers,
            self.constant(rounded),
            self.floats(1.0),
            self.constant(column),
            self.constant(np.array(0 if positive else _SHIFT, dtype=np.uint8)),
            contrib=True,
        )
        return self.op("Mul", product, self.op("Unsqueeze", scale, self.ints(1)))

    def ints(self, *values: int) -> str:
        """A vector of integers, as shapes and axes are given."""
        return self.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> str:
        """A number."""
        return self.constant(np.array(value, dtype=np.int64))

    def floats(self, value: float) -> str:
        """A number."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, value: str, *shape: int | str) -> str:
        """Another shape; -1 is what is left, 0 keeps the size of that place, a string is a one-element vector."""
        if all(isinstance(size, int) for size in shape):
            return self.op("Reshape", value, self.ints(*(int(size) for size in shape)))
        parts = [size if isinstance(size, str) else self.ints(size) for size in shape]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def size(self, value: str, axis: int) -> str:
        """The size of an axis as a one-element vector, for `reshape`."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def split(self, value: str, *sizes: int, axis: int = -1) -> list[str]:
        """Cut along an axis."""
        return self.ops("Split", len(sizes), value, self.ints(*sizes), axis=axis)

    def heads(self, value: str, heads: int, head_dim: int) -> str:
        """(batch, positions, heads · head_dim) → (batch, heads, positions, head_dim)."""
        return self.op("Transpose", self.reshape(value, 0, 0, heads, head_dim), perm=[0, 2, 1, 3])

    def attention(
        self, query: str, keys: str, values: str, *, heads: int, scale: float, bias: str = "", mask: str = ""
    ) -> str:
        """softmax(scale · QKᵀ + bias) V per head.

        `query` (batch, positions, heads · dim); `keys`, `values` (batch, heads, seen, dim), or both as `query`; `bias`
        "" or added to the scores, (batch or 1, heads or 1, positions, seen); `mask` "" or int32 (batch, seen), 0 where
        nothing is to be seen. Result (batch, positions, heads · dim).
        """
        return self.op(
            "MultiHeadAttention", query, keys, values, "", mask, bias, contrib=True, num_heads=heads, scale=scale
        )

    def rms_norm(self, hidden: str, scale: Float[np.ndarray, " width"], epsilon: float) -> str:
        """Divided by the root mean square of each row, times `scale`."""
        return self.op("SimplifiedLayerNormalization", hidden, self.constant(scale), axis=-1, epsilon=epsilon)

    def add_rms_norm(
        self, change: str, hidden: str, scale: Float[np.ndarray, " width"], epsilon: float
    ) -> tuple[str, str]:
        """`rms_norm` of the sum, and the sum."""
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
        """Layer norm of change + bias + hidden, and that sum."""
        parts = [change, hidden, self.constant(scale), self.constant(shift)]
        if bias is not None:
            parts.append(self.constant(bias))
        results = self.ops("SkipLayerNormalization", 4, *parts, contrib=True, epsilon=epsilon)
        return results[0], results[3]

    def save(self, path: Path, weights: Path) -> None:
        """Write the graph; constants go to `weights`, a file in the same folder that graphs may not share."""
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
        if weights.exists():  # small ones stay in the graph
            weights.chmod(path.stat().st_mode)  # the library keeps them from other users
