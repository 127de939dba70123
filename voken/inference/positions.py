"""What the graphs of all families have in common: packed texts, and beams that see their own ancestors only.

Texts are packed, so that no product is computed for padding: `tokens` holds the tokens of all texts one after another.
`place` (queries, length) says where in it a text's tokens are; only attention sees the padded form.

Beams form a tree. The keys of every node a query has visited stay where they were written; a beam sees those of its
own ancestors through `distance` (queries, beams, nodes), which says how many levels above a node lies, or that it is
no ancestor. So no cache is ever reordered or copied a beam (as in the tree attention of Miao et al. 2023, "SpecInfer").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voken.inference.graph import Graph
from voken.shapes import Float

UNSEEN = -1e30
"""Added to the score of what is not to be seen; finite, so that no softmax is of infinities alone."""


@dataclass(frozen=True)
class PackedTexts:
    """The inputs that say where tokens stand."""

    graph: Graph
    tokens: str
    """(tokens) word numbers."""
    place: str
    """(queries, length) rows of `tokens`; any row where there is padding."""
    unplace: str
    """(tokens) where each token stands in the flattened (queries · length)."""
    mask: str
    """(queries, length) 1 on a text's own tokens, else 0."""

    @classmethod
    def inputs(cls, graph: Graph) -> PackedTexts:
        """Declare them."""
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
        """(queries, length, …) → (tokens, width), for one entry a token or several that stand together."""
        return self.graph.op("Gather", self.graph.reshape(padded, -1, width), self.unplace)

    def range(self, repeat: int = 1) -> str:
        """0 … length · repeat - 1."""
        graph = self.graph
        length = graph.op("Mul", graph.op("Squeeze", graph.size(self.place, 1)), graph.integer(repeat))
        return graph.op("Range", graph.integer(0), length, graph.integer(1))


@dataclass(frozen=True)
class BeamTree:
    """The inputs of a step: which voken each beam took, and which nodes it sees."""

    graph: Graph
    vokens: str
    """(queries, beams)"""
    distance: str
    """(queries, beams, nodes): levels between a beam and a node of its path (0: itself), or `unseen`."""
    queries: str
    """How many queries, as one element of a shape."""

    @classmethod
    def inputs(cls, graph: Graph) -> BeamTree:
        """Declare them."""
        vokens = graph.input("vokens", "int64", ["queries", "beams"])
        distance = graph.input("distance", "int64", ["queries", "beams", "nodes"])
        return cls(graph, vokens, distance, graph.size(vokens, 0))

    def bias(self, by_distance: Float[np.ndarray, "distances heads"]) -> str:
        """(queries, heads, beams, nodes) to add to scores; distances past the table are not seen."""
        unseen = np.full((1, by_distance.shape[1]), UNSEEN)
        table = self.graph.constant(np.concatenate([by_distance, unseen]).astype(np.float32))
        last = self.graph.integer(len(by_distance))
        found = self.graph.op("Gather", table, self.graph.op("Min", self.distance, last))
        return self.graph.op("Transpose", found, perm=[0, 3, 1, 2])

    def extended(self, name: str, new: str, heads: int, head_dim: int) -> str:
        """Keys or values of all nodes, also an output: `past_NAME`, then `new` (queries, beams, heads · dim)."""
        shape: list[int | str] = ["queries", heads, "past", head_dim]
        past = self.graph.input(f"past_{name}", "float32", shape)
        grown = self.graph.op("Concat", past, self.graph.heads(new, heads, head_dim), axis=2)
        self.graph.output(name, grown, ["queries", heads, "nodes", head_dim])
        return grown
