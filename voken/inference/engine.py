"""Search without torch: the graphs of `voken.inference.export`, run by ONNX Runtime, as a step model of numpy arrays.

    engine = Engine.load(folder)
    beams = beam_search(engine, trie, ["two dogs on a beach"], 20)

What a query's beams share (cross-attention keys, a prompt) is computed once a query and stays where it is; the keys
of beams grow as a tree (see `voken.inference.positions`). One engine may be used by many threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.artifact import read_json
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError
from voken.inference.packing import TextPacker
from voken.inference.runtime import LoadedGraph, session_options, value
from voken.inference.text_encoder import TextEncoder
from voken.shapes import Float32, Int, Int64

if TYPE_CHECKING:
    import onnxruntime

HEADER = "engine.json"
FORMAT = 1
_UNSEEN = 1 << 30
"""A distance past every table of `BeamTree.bias`."""


@dataclass(frozen=True)
class EngineState:
    """Queries that were read, and the tree of their beams so far."""

    shared: dict[str, Any]
    """Inputs of every step (ONNX Runtime's own values)."""
    grown: dict[str, Any]
    """Keys and values of all nodes, by the name of the output."""
    lengths: Int64[np.ndarray, " queries"]
    """Tokens of each query."""
    distance: Int64[np.ndarray, "queries beams nodes"]
    """From each beam of the last step to every node; empty before the first."""
    prefix: Int64[np.ndarray, "queries beams level"]
    first: Float32[np.ndarray, "queries 1 N"] | None
    """Log-probabilities of level 1, where reading gives them."""
    vector: Float32[np.ndarray, "queries dim"] | None
    """Where in the pictures' space the query aims, where the generator does."""

    @property
    def level(self) -> int:
        """How many vokens every beam has."""
        return int(self.prefix.shape[2])


class Engine:
    """A generator's graphs, loaded. A `StepModel` of numpy arrays; its logits are log-probabilities.

    Scores equal those of the torch generator to 1e-3 in float32; in int8 they are close (docs/speed.md).
    """

    device = None
    log_probs = True

    def __init__(self, folder: Path, header: dict[str, Any], options: onnxruntime.SessionOptions) -> None:
        self.folder = Path(folder)
        self.family, self.precision = str(header["family"]), str(header["precision"])
        self._levels, self._codebook_size = int(header["levels"]), int(header["codebook_size"])
        self._steps = [str(name) for name in header["steps"]]
        self._header = header
        self._options = options
        self._sessions: dict[str, LoadedGraph] = {}

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0, once: bool = False) -> Self:
        """Open what `export_generator` wrote. `threads` 0: as many as this process may use; `once`: for one query.

        The first engine of a process sets the threads for all. Graphs are read at their first use.
        Raises `CorruptArtifactError` where a file is missing or unfit, `ArtifactVersionError` for a newer format.
        """
        header = read_json(Path(folder) / HEADER)
        try:
            if int(header["format"]) > FORMAT:
                raise ArtifactVersionError(
                    f"{folder}: engine format {header['format']} is newer than this voken reads ({FORMAT}). "
                    "Upgrade voken."
                )
            return cls(Path(folder), header, session_options(threads, once=once))
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{Path(folder) / HEADER}: is not what was saved there ({error!r}). Make the engine again."
            ) from error

    @property
    def codebook_size(self) -> int:
        """N: how many vokens there are at each level."""
        return self._codebook_size

    @property
    def levels(self) -> int:
        """M: how many vokens a sequence has."""
        return self._levels

    @property
    def gives_vectors(self) -> bool:
        """Whether `query_vectors` can be asked."""
        return self._header["vectors"] is not None

    def warm_up(self) -> None:
        """Read every graph now instead of at the first query."""
        for name in ("prefill.onnx", *self._steps):
            self._graph(name)

    def prefill(self, texts: Sequence[str]) -> EngineState:
        """Read the queries."""
        tokens = self._reader.pack(texts)
        graph = self._graph("prefill.onnx")
        results = graph.run(tokens.inputs())
        grown = {name: results.pop(name) for name in list(results) if name[0] in "kv"}
        shared = {name: value for name, value in results.items() if name.startswith("shared_") or name == "aim"}
        shared["mask"] = value(tokens.mask)
        first = results["first"].numpy() if "first" in results else None
        queries = len(texts)
        distance = np.zeros((queries, 1, 0), dtype=np.int64)
        if self.family == "llama":  # the nodes are the prompt's tokens
            distance = np.where(tokens.mask, 0, _UNSEEN)[:, None].astype(np.int64)
        elif grown:  # the start of a sequence is a node
            distance = np.zeros((queries, 1, 1), dtype=np.int64)
        return EngineState(
            shared=shared,
            grown=grown,
            lengths=tokens.mask.sum(axis=1, dtype=np.int64),
            distance=distance,
            prefix=np.zeros((queries, 1, 0), dtype=np.int64),
            first=first,
            vector=results["aim"].numpy() if self._header["vectors"] == "aim" else None,
        )

    def step(
        self,
        state: EngineState,
        vokens: Int[np.ndarray, "queries beams"] | None,
        parents: Int[np.ndarray, "queries beams"] | None,
    ) -> tuple[Float32[np.ndarray, "queries beams N"], EngineState]:
        """As `voken.decoding.interface.StepModel`, of numpy arrays."""
        queries = len(state.lengths)
        if vokens is None or parents is None:
            if state.first is not None:
                return state.first, state
            # voken N stands for the start
            vokens, prefix = np.full((queries, 1), self.codebook_size, dtype=np.int64), state.prefix
            distance = state.distance
        else:
            vokens = np.ascontiguousarray(vokens, dtype=np.int64)
            row = np.arange(queries)[:, None]
            prefix = np.concatenate([state.prefix[row, parents], vokens[:, :, None]], axis=2)
            distance = state.distance[row, parents] + 1
        beams = vokens.shape[1]
        own = np.where(np.eye(beams, dtype=bool), 0, _UNSEEN)
        distance = np.concatenate([distance, np.broadcast_to(own, (queries, beams, beams))], axis=2)
        level = prefix.shape[2]
        position = np.repeat(state.lengths[:, None] + level - 1, beams, axis=1)
        last = level + 1 == self._levels
        inputs = {"vokens": vokens, "distance": distance, "prefix": prefix, "position": position}
        log_probs, grown = self._run_step(state, level, inputs, last)
        return log_probs, replace(state, grown=grown, distance=distance, prefix=prefix)

    @property
    def reads_trees(self) -> bool:
        """Whether there is `step_tree`: one graph writes all levels."""
        return len(set(self._steps)) == 1 and self.family != "lite"

    def step_tree(
        self,
        state: EngineState,
        vokens: Int[np.ndarray, "1 nodes"],
        parents: Int[np.ndarray, "1 beams"],
        extended: Int[np.ndarray, " others"],
    ) -> Float32[np.ndarray, "1 nodes N"]:
        """`step` for the beams of one query and for nodes below them, whose vokens are known, in one pass.

        The first of `vokens` are the beams', as many as `parents`, which are as in `step`. Each of the others extends
        the node (the beams come first) whose place `extended` says; it stands behind that one.
        """
        beams, nodes = parents.shape[1], vokens.shape[1]
        seen = state.distance.shape[2]
        distance = np.full((1, nodes, seen + nodes), _UNSEEN, dtype=np.int64)
        depth = np.full((1, nodes), state.level, dtype=np.int64)
        distance[0, :beams, :seen] = state.distance[0][parents[0]] + 1
        for node, above in enumerate(extended, start=beams):
            distance[0, node] = distance[0, above] + 1
            depth[0, node] = depth[0, above] + 1
            distance[0, node, seen + above] = 1
        own = np.arange(nodes)
        distance[0, own, seen + own] = 0
        inputs = {"vokens": vokens, "distance": distance, "position": state.lengths[:, None] + depth}
        return self._run_step(state, state.level + 1, inputs, last=True)[0]

    def _run_step(
        self, state: EngineState, level: int, arrays: dict[str, np.ndarray], last: bool
    ) -> tuple[Float32[np.ndarray, "queries beams N"], dict[str, Any]]:
        graph = self._graph(self._steps[level - self._levels])
        inputs = state.shared | {name: value(array) for name, array in arrays.items()}
        for name in graph.past:
            past = state.grown.get(name.removeprefix("past_"))
            inputs[name] = graph.no_past(name, len(state.lengths)) if past is None else past
        # what the last step would leave behind is read by nobody
        results = graph.run(inputs, ["log_probs"] if last else None)
        return results.pop("log_probs").numpy(), results

    def query_vectors(self, texts: Sequence[str], state: EngineState | None = None) -> Float32[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space, as `voken.model.model.Model.query_vectors`.

        Raises `ConfigError` where the engine has none: the encoder is not the built-in one.
        """
        if self._header["vectors"] == "aim":
            vector = (self.prefill(texts) if state is None else state).vector
            assert vector is not None
            unit: np.ndarray = vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)
            return unit
        if self._header["vectors"] is None:
            raise ConfigError(
                f"{self.folder}: has no vectors of texts. Search with read-out 'generate', or with torch."
            )
        return self._text_encoder.encode_texts(texts)

    def decode(self, vokens: Int[np.ndarray, "sequences M"]) -> Float32[np.ndarray, "sequences dim"]:
        """Unit vectors rebuilt from voken sequences, as `ImageTokenizer.decode`."""
        inputs = {"vokens": value(np.asarray(vokens, dtype=np.int64))}
        found: np.ndarray = self._graph("rebuild.onnx").run(inputs)["vector"].numpy()
        return found

    @cached_property
    def _reader(self) -> TextPacker:
        return TextPacker.load(self.folder, self._header["reader"])

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        return TextEncoder(self._graph(TextEncoder.GRAPH), TextPacker.load(self.folder, self._header["vectors"]))

    def _graph(self, name: str) -> LoadedGraph:
        found = self._sessions.get(name)
        if found is None:
            # two threads may both come here first: the second's is dropped
            found = self._sessions.setdefault(name, LoadedGraph.load(self.folder / name, self._options))
        return found
