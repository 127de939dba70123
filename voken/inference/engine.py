"""A step model without torch: ONNX Runtime runs the graphs of `voken.inference.export` on numpy arrays.

    engine = Engine.load(folder)
    beams = beam_search(engine, trie, ["two dogs on a beach"], 20)

Values that all beams of a query share (cross-attention keys, a prompt) are computed once per query. The keys of beams
form a tree that only grows (see `voken.inference.graph`). Several threads may use the same engine at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.artifact import map_array, open_file, plain_path, read_json
from voken.decoding.linear import level_rows
from voken.decoding.trie import MAX_ENTRIES, MAX_LEVELS
from voken.encoders.prompts import AS_TYPED, check_prompt, with_prompt
from voken.errors import ArtifactVersionError, ConfigError, CorruptArtifactError
from voken.shapes import Float32, Int, Int64

if TYPE_CHECKING:
    import onnxruntime
    from tokenizers import Tokenizer

HEADER, FORMAT = "engine.json", 1
LINEAR_FORMAT = 2
"""The format of engines without steps, which `LinearModel`s have. An older voken cannot search with them."""
TABLE = "table"
"""The output of the prefill graph of a linear model."""
QUERY_POINT = "aim"
"""The name of query points in saved graphs and headers."""
PICTURES_HEADER, PICTURE_GRAPH = "pictures.json", "pictures.onnx"
CODE_GRAPH, CODE_BOOKS, METRIC = "codes.onnx", "code_books.npy", "metric.npy"
TEXT_ENCODER_GRAPH, TEXT_ENCODER_HEADER = "vectors.onnx", "vectors.json"
_FAMILIES = ("lite", "t5", "llama")
_MAX_TOKENS = 1 << 16
_MAX_TOKENIZER_BYTES = 64 << 20
_READER = {"file": str, "max_tokens": int, "cut": str, "added": list, "stand_in": int}
"""The settings of a tokenizer, and their types."""
_PADDING = {"length": int, "token": int, "left": bool}
"""The settings of a tokenizer whose texts are all padded to one length, and their types."""
CODEBOOKS = "codebooks.npy"
_UNSEEN = 1 << 30
"""A distance that is larger than every table of `voken.inference.graph.BeamTree.bias`, so that a node is not seen."""
_threads: int | None = None
"""The size of the thread pool that all graphs of the process share; None until the first graph is opened."""


@dataclass(frozen=True)
class EngineState:
    """The queries after `prefill`, and the tree of their beams so far."""

    shared: dict[str, Any]
    """Inputs of every step, as values of ONNX Runtime."""
    cache: dict[str, Any]
    """Keys and values of all nodes of the tree, by the names of the graph's outputs."""
    lengths: Int64[np.ndarray, " queries"]
    """The number of tokens of each query."""
    distance: Int64[np.ndarray, "queries beams nodes"]
    """Levels between each beam of the last step and every node, if the node is on the beam's path; else `_UNSEEN`."""
    prefix: Int64[np.ndarray, "queries beams level"]
    first_log_probs: Float32[np.ndarray, "queries 1 N"] | None
    """Log-probabilities of level 1, if the prefill graph computes them."""
    query_point: Float32[np.ndarray, "queries dim"] | None
    """The point in the pictures' space near which each query's picture should lie, if the generator computes one."""
    table: Float32[np.ndarray, "queries M N"] | None = None
    """Log-probabilities of all levels, if the generator is linear."""

    @property
    def level(self) -> int:
        """The number of vokens in every beam so far."""
        return int(self.prefix.shape[2])


class Engine:
    """The loaded graphs of a generator: a numpy `StepModel` that returns log-probabilities, and a `LinearModel`.

    In float32, scores equal those of the torch generator to 1e-3; in int8 they are close (docs/reference/speed.md).
    """

    device = None
    log_probs = True
    node_bias = None

    def __init__(
        self, folder: Path, header: dict[str, Any], options: onnxruntime.SessionOptions, *, once: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.answers_once = once
        self.family, self.precision = str(header["family"]), str(header["precision"])
        self._levels, self._codebook_size = int(header["levels"]), int(header["codebook_size"])
        self._steps = [str(name) for name in header["steps"]]
        self._header = header
        self._options = options
        self._graphs: dict[str, LoadedGraph] = {}

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0, once: bool = False) -> Self:
        """Open an engine folder. `threads` 0 means all cores of the process; `once`, that it answers a single query.

        The first engine of a process sets the number of threads for all engines. Graphs are read when first used.
        Raises `CorruptArtifactError` if a file is missing or damaged, `ArtifactVersionError` for a newer format.
        """
        path = Path(folder) / HEADER
        header = read_json(path)
        if type(header.get("format")) is int and header["format"] > LINEAR_FORMAT:
            raise ArtifactVersionError(
                f"{folder}: engine format {header['format']} is newer than this voken reads ({LINEAR_FORMAT}). "
                "Upgrade voken."
            )
        if wrong := _wrong_entry(header):
            value = str(header.get(wrong))[:80]
            raise CorruptArtifactError(
                f"{path}: does not describe an engine ({wrong} is {value}). Create the engine again."
            )
        return cls(Path(folder), header, session_options(threads, once=once), once=once)

    @property
    def codebook_size(self) -> int:
        """N, the number of vokens at each level."""
        return self._codebook_size

    @property
    def levels(self) -> int:
        """M, the number of vokens in a sequence."""
        return self._levels

    @property
    def reads_trees(self) -> bool:
        """Whether `step_tree` may be called, which needs one graph for all levels."""
        return len(set(self._steps)) == 1 and self.family != "lite"

    def warm_up(self) -> None:
        """Read every graph now instead of at the first query."""
        for name in ("prefill.onnx", *self._steps):
            self._graph(name)

    def prefill(self, texts: Sequence[str]) -> EngineState:
        """Read the queries."""
        tokens = self._packer.pack(texts)
        graph = self._graph("prefill.onnx")
        results = graph.run(tokens.inputs())
        cache = {name: results.pop(name) for name in list(results) if name[0] in "kv"}
        shared = {name: result for name, result in results.items() if name.startswith("shared_") or name == QUERY_POINT}
        shared["mask"] = ort_value(tokens.mask)
        queries = len(texts)
        distance = np.zeros((queries, 1, 0), dtype=np.int64)
        if self.family == "llama":  # the nodes are the prompt's tokens
            distance = np.where(tokens.mask, 0, _UNSEEN)[:, None].astype(np.int64)
        elif cache:  # the start of a sequence is a node
            distance = np.zeros((queries, 1, 1), dtype=np.int64)
        return EngineState(
            shared=shared,
            cache=cache,
            lengths=tokens.mask.sum(axis=1, dtype=np.int64),
            distance=distance,
            prefix=np.zeros((queries, 1, 0), dtype=np.int64),
            first_log_probs=graph.checked(results["first"], (queries, 1, self._codebook_size))
            if "first" in results
            else None,
            query_point=graph.checked(results.get(QUERY_POINT), (queries, -1))
            if self._header["vectors"] == QUERY_POINT
            else None,
            table=graph.checked(results.get(TABLE), (queries, self._levels, self._codebook_size))
            if self._header.get("linear")
            else None,
        )

    def level_logits(self, state: EngineState) -> Float32[np.ndarray, "queries M N"] | None:
        """See `voken.decoding.interface.LinearModel`."""
        return state.table

    def step(
        self,
        state: EngineState,
        vokens: Int[np.ndarray, "queries beams"] | None,
        parents: Int[np.ndarray, "queries beams"] | None,
    ) -> tuple[Float32[np.ndarray, "queries beams N"], EngineState]:
        """See `voken.decoding.interface.StepModel`."""
        queries = len(state.lengths)
        if state.table is not None:
            level = 0 if vokens is None else state.level + 1
            prefix = np.zeros((queries, 1, level), dtype=np.int64)
            return level_rows(state.table, level, vokens), replace(state, prefix=prefix)
        if vokens is None or parents is None:
            if state.first_log_probs is not None:
                return state.first_log_probs, state
            # voken N stands for the start of a sequence
            vokens, prefix = np.full((queries, 1), self.codebook_size, dtype=np.int64), state.prefix
            distance = state.distance
        else:
            vokens = np.ascontiguousarray(vokens, dtype=np.int64)
            row = np.arange(queries)[:, None]
            prefix = np.concatenate([state.prefix[row, parents], vokens[:, :, None]], axis=2)
            distance = state.distance[row, parents] + 1
        beams = vokens.shape[1]
        to_new_nodes = np.where(np.eye(beams, dtype=bool), 0, _UNSEEN)
        distance = np.concatenate([distance, np.broadcast_to(to_new_nodes, (queries, beams, beams))], axis=2)
        level = prefix.shape[2]
        position = np.repeat(state.lengths[:, None] + level - 1, beams, axis=1)
        last = level + 1 == self._levels
        inputs = {"vokens": vokens, "distance": distance, "prefix": prefix, "position": position}
        log_probs, cache = self._run_step(state, level, inputs, last)
        return log_probs, replace(state, cache=cache, distance=distance, prefix=prefix)

    def step_tree(
        self,
        state: EngineState,
        vokens: Int[np.ndarray, "1 nodes"],
        parents: Int[np.ndarray, "1 beams"],
        extended: Int[np.ndarray, " others"],
    ) -> Float32[np.ndarray, "1 nodes N"]:
        """`step` in a single pass for the beams of one query and for given nodes below them.

        The first entries of `vokens` are those of the beams, with `parents` as in `step`. Each further entry is a node
        that extends an earlier entry, at the index in `extended`.
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
        every_node = np.arange(nodes)
        distance[0, every_node, seen + every_node] = 0
        inputs = {"vokens": vokens, "distance": distance, "position": state.lengths[:, None] + depth}
        return self._run_step(state, state.level + 1, inputs, last=True)[0]

    def _run_step(
        self, state: EngineState, level: int, arrays: dict[str, np.ndarray], last: bool
    ) -> tuple[Float32[np.ndarray, "queries beams N"], dict[str, Any]]:
        step = level - self._levels
        if not -len(self._steps) <= step < 0:
            raise CorruptArtifactError(
                f"{self.folder / HEADER}: names {len(self._steps)} steps for {self._levels} levels. Create it again."
            )
        graph = self._graph(self._steps[step])
        inputs = state.shared | {name: ort_value(array) for name, array in arrays.items()}
        for name in graph.past:
            past = state.cache.get(name.removeprefix("past_"))
            inputs[name] = graph.empty_cache(name, len(state.lengths)) if past is None else past
        # the keys and values of the last step are not needed
        results = graph.run(inputs, ["log_probs"] if last else None)
        shape = (*arrays["vokens"].shape, self._codebook_size)
        return graph.checked(results.pop("log_probs", None), shape), results

    def query_vectors(self, texts: Sequence[str], state: EngineState | None = None) -> Float32[np.ndarray, "texts dim"]:
        """Unit vectors of queries in the pictures' space; see `voken.model.model.Model.query_vectors`.

        Raises `ConfigError` if the engine has no text vectors because the encoder is not the built-in one.
        """
        if self._header["vectors"] == QUERY_POINT:
            point = (self.prefill(texts) if state is None else state).query_point
            assert point is not None
            unit: np.ndarray = point / np.maximum(np.linalg.norm(point, axis=1, keepdims=True), 1e-12)
            return unit
        if self._header["vectors"] is None:
            raise ConfigError(
                f"{self.folder}: cannot compute vectors of texts. Search with read-out 'generate', or with torch."
            )
        return self._text_encoder.encode_texts(texts)

    def decode(self, vokens: Int[np.ndarray, "sequences M"]) -> Float32[np.ndarray, "sequences dim"]:
        """Unit vectors rebuilt from voken sequences; see `ImageTokenizer.decode`."""
        graph = self._graph("rebuild.onnx")
        results = graph.run({"vokens": ort_value(np.asarray(vokens, dtype=np.int64))})
        return graph.checked(results.get("vector"), (len(vokens), -1))

    @cached_property
    def codebooks(self) -> Float32[np.ndarray, "M N e"] | None:
        """The entries that sum to the vectors of pictures; None if the image tokenizer has layers, or if an older voken
        wrote the engine."""
        path = self.folder / CODEBOOKS
        if not path.is_file():
            return None
        codebooks: np.ndarray = map_array(path)
        if (
            codebooks.dtype != np.float32
            or codebooks.ndim != 3
            or codebooks.shape[:2] != (self.levels, self.codebook_size)
            or not np.isfinite(codebooks).all()
        ):
            raise CorruptArtifactError(f"{path}: does not fit the engine. Create the engine again.")
        return codebooks

    @cached_property
    def _packer(self) -> TextPacker:
        return TextPacker.load(self.folder, self._header["reader"])

    @cached_property
    def _text_encoder(self) -> TextEncoder:
        return TextEncoder(self._graph(TEXT_ENCODER_GRAPH), TextPacker.load(self.folder, self._header["vectors"]))

    def _graph(self, name: str) -> LoadedGraph:
        graph = self._graphs.get(name)
        if graph is None:
            # if two threads load the same graph at once, the second copy is dropped
            graph = self._graphs.setdefault(name, LoadedGraph.load(plain_path(self.folder, name), self._options))
        return graph


def _wrong_entry(header: dict[str, Any]) -> str:
    """The first entry of an engine's header that is impossible; empty if all are possible."""
    steps, vectors, linear = header.get("steps"), header.get("vectors"), header.get("linear", False)
    possible = {
        "format": type(header.get("format")) is int,
        "family": header.get("family") in _FAMILIES,
        "precision": isinstance(header.get("precision"), str),
        "levels": _is_number(header.get("levels"), 1, MAX_LEVELS),
        "codebook_size": _is_number(header.get("codebook_size"), 1, MAX_ENTRIES),
        "linear": type(linear) is bool,
        "steps": isinstance(steps, list)
        and (len(steps) == 0 if linear else 0 < len(steps) <= MAX_LEVELS)
        and all(isinstance(name, str) and "/" not in name for name in steps),
        "reader": _is_reader(header.get("reader")),
        "vectors": "vectors" in header and (vectors is None or vectors == QUERY_POINT or _is_reader(vectors)),
    }
    return next((name for name, holds in possible.items() if not holds), "")


def _is_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_reader(settings: Any) -> bool:
    return (
        isinstance(settings, dict)
        and all(type(settings.get(name)) is kind for name, kind in _READER.items())
        and "/" not in settings["file"]
        and 1 < settings["max_tokens"] <= _MAX_TOKENS
        and len(settings["added"]) <= _MAX_TOKENS
        and all(_is_number(token, 0, _UNSEEN) for token in (settings["stand_in"], *settings["added"]))
        and _is_padding(settings.get("padding"))
        and _is_prompt(settings.get("prompt", AS_TYPED))
        and (settings.get("end") is None or _is_number(settings["end"], 0, _UNSEEN))
    )


def _is_prompt(prompt: Any) -> bool:
    try:
        return isinstance(prompt, str) and check_prompt(prompt) == prompt
    except ConfigError:
        return False


def _is_padding(padding: Any) -> bool:
    return padding is None or (
        isinstance(padding, dict)
        and all(type(padding.get(name)) is kind for name, kind in _PADDING.items())
        and _is_number(padding["length"], 1, _MAX_TOKENS)
        and _is_number(padding["token"], 0, _UNSEEN)
    )


class TextEncoder:
    """The text side of the built-in encoder without torch: turns texts into vectors of the pictures' space."""

    def __init__(self, graph: LoadedGraph, packer: TextPacker) -> None:
        self._graph, self._packer = graph, packer

    @classmethod
    def load(cls, folder: Path, *, threads: int = 0) -> Self:
        """Open what `voken.inference.export.export_text_encoder` wrote.

        Raises `CorruptArtifactError` if a file is missing or damaged.
        """
        folder = Path(folder)
        settings = read_json(folder / TEXT_ENCODER_HEADER)
        if not _is_reader(settings):
            raise CorruptArtifactError(
                f"{folder / TEXT_ENCODER_HEADER}: does not describe a tokenizer. Create the engine again."
            )
        packer = TextPacker.load(folder, settings)
        return cls(LoadedGraph.load(folder / TEXT_ENCODER_GRAPH, session_options(threads)), packer)

    def encode_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "texts dim"]:
        """Unit vectors of texts; see `TwoTowerEncoder.encode_texts`."""
        results = self._graph.run(self._packer.pack(texts).inputs())
        return self._graph.checked(results.get("vector"), (len(texts), -1))


@dataclass(frozen=True)
class PackedTokens:
    """Tokens of texts, one text after another; only with the padding that a network attends to."""

    rows: list[list[int]]
    mask: Int[np.ndarray, "queries length"]
    """1 for a token, 0 for padding."""

    def inputs(self) -> dict[str, Any]:
        """The inputs that `voken.inference.graph.PackedTexts` declares, each token's position in its text (`offset`),
        and each text's last token (`last`)."""
        lengths = np.array([len(row) for row in self.rows], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        length = self.mask.shape[1]
        within = np.arange(length)
        offset = np.concatenate([within[:size] for size in lengths])
        arrays = {
            "tokens": np.concatenate([np.asarray(row, dtype=np.int64) for row in self.rows]),
            "place": np.minimum(starts[:, None] + within, int(lengths.sum()) - 1),
            "unplace": offset + np.repeat(np.arange(len(self.rows)) * length, lengths),
            "offset": offset,
            "last": starts + lengths - 1,
            "mask": self.mask,
        }
        return {name: ort_value(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class TextPacker:
    """A tokenizer with a length limit."""

    tokenizer: Tokenizer
    max_tokens: int
    keeps_end: bool
    """Whether a text that is cut keeps its end token, as the sentence encoder needs."""
    added: list[int]
    """Tokens to append to every text."""
    filler: int
    """The token that stands for a text without tokens."""
    padding: dict[str, Any] | None = None
    """For a network that attends to padding: the `length` of all texts, the padding's `token`, and whether it is to the
    `left` of a text."""
    end: int | None = None
    """For a network whose vector is read from the first such token: the token that ends a text."""
    prompt: str = AS_TYPED
    """The words around every text (see `voken.encoders.prompts`)."""

    @classmethod
    def load(cls, folder: Path, settings: dict[str, Any]) -> Self:
        """Load the tokenizer that `settings` describe. Raises `CorruptArtifactError` if it cannot be read."""
        from tokenizers import Tokenizer

        path = plain_path(folder, settings["file"])
        with open_file(path, max_bytes=_MAX_TOKENIZER_BYTES) as file:
            content = file.read()
        try:
            tokenizer = Tokenizer.from_buffer(content)
        # tokenizers raises the bare class, and for some files the panic of another language
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise CorruptArtifactError(f"{path}: cannot be read ({error}). Create the engine again.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        keeps_end = settings["cut"] == "keep end"
        if not keeps_end:
            tokenizer.enable_truncation(settings["max_tokens"])
        return cls(
            tokenizer,
            settings["max_tokens"],
            keeps_end,
            settings["added"],
            settings["stand_in"],
            settings.get("padding"),
            settings.get("end"),
            settings.get("prompt", AS_TYPED),
        )

    def pack(self, texts: Sequence[str]) -> PackedTokens:
        """Tokenize texts. Raises `CorruptArtifactError` if the tokenizer contradicts itself."""
        try:
            encodings = self.tokenizer.encode_batch(with_prompt(self.prompt, texts))
        except BaseException as error:  # as in `load`
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise CorruptArtifactError(
                f"The engine's tokenizer cannot read this text ({error}). Create the engine again."
            ) from error
        rows = [encoding.ids for encoding in encodings]
        if self.keeps_end:
            rows = [row if len(row) <= self.max_tokens else [*row[: self.max_tokens - 1], row[-1]] for row in rows]
        if (end := self.end) is not None:
            rows = [row[: row.index(end) + 1] if end in row else row for row in rows]
        rows = [row + self.added or [self.filler] for row in rows]
        lengths = np.array([len(row) for row in rows])
        if self.padding is None:
            return PackedTokens(rows, (np.arange(int(lengths.max())) < lengths[:, None]).astype(np.int32))
        length, left = self.padding["length"], self.padding["left"]
        fill = [[self.padding["token"]] * (length - len(row)) for row in rows]
        rows = [extra + row if left else row + extra for row, extra in zip(rows, fill, strict=True)]
        place = np.arange(length)[::-1] if left else np.arange(length)
        return PackedTokens(rows, (place < lengths[:, None]).astype(np.int32))


class LoadedGraph:
    """A graph in ONNX Runtime, and the names of its inputs and outputs."""

    def __init__(self, path: Path, session: onnxruntime.InferenceSession) -> None:
        self._path = path
        self._session = session
        self._shapes = {node.name: node.shape for node in session.get_inputs()}
        self._results = [node.name for node in session.get_outputs()]
        self.past = [name for name in self._shapes if name.startswith("past_")]

    @classmethod
    def load(cls, path: Path, options: onnxruntime.SessionOptions) -> Self:
        """Read a graph. Raises `CorruptArtifactError` if it cannot be read."""
        import onnxruntime

        open_file(path).close()  # it is a regular file; ONNX Runtime keeps the files that it names in their folder
        try:
            # without the fallback, which prints to standard output
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            return cls(path, session)
        except Exception as error:  # ONNX Runtime has an exception class for each status
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptArtifactError(f"{path}: cannot be read ({reason}). Create the engine again.") from error

    def run(self, inputs: dict[str, Any], results: list[str] | None = None) -> dict[str, Any]:
        """Run the graph on values of ONNX Runtime. `inputs` may hold more than the graph needs.

        Raises `CorruptArtifactError` if the graph needs something else, or fails.
        """
        names = self._results if results is None else results
        try:
            used = {name: inputs[name] for name in self._shapes}
            return dict(zip(names, self._session.run_with_ort_values(names, used), strict=True))
        except Exception as error:  # ONNX Runtime has an exception class for each status
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptArtifactError(f"{self._path}: cannot be run ({reason}). Create the engine again.") from error

    def checked(self, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A result as an array. -1 stands for any number. Raises `CorruptArtifactError` for another shape or type."""
        array = None if value is None else value.numpy()
        if (
            not isinstance(array, np.ndarray)
            or array.dtype != np.float32
            or len(array.shape) != len(shape)
            or any(side not in (-1, real) for side, real in zip(shape, array.shape, strict=True))
        ):
            actual = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise CorruptArtifactError(
                f"{self._path}: gives {actual} where {shape} is expected. Create the engine again."
            )
        return array

    def empty_cache(self, name: str, queries: int) -> Any:
        """The input `name` (past keys or values) before the first step."""
        shape = self._shapes[name]
        if len(shape) != 4 or not all(_is_number(side, 1, _MAX_TOKENS) for side in (shape[1], shape[3])):
            raise CorruptArtifactError(f"{self._path}: its input {name!r} has no heads. Create the engine again.")
        _, heads, _, head_dim = shape
        return ort_value(np.zeros((queries, heads, 0, head_dim), dtype=np.float32))


def ort_value(array: np.ndarray) -> Any:
    """An array as a value of ONNX Runtime, without a copy if it is contiguous."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def session_options(threads: int = 0, *, once: bool = False) -> onnxruntime.SessionOptions:
    """Options for graphs that share a thread pool. The first call sets its size (0: all cores of the process).

    Separate pools per session would compete for the cores. With `once`, the process answers a single query: then
    rearranging the weights for the processor takes longer than it saves, and so does a second thread.
    """
    import onnxruntime

    global _threads
    if _threads is None:
        onnxruntime.disable_telemetry_events()  # `voken` sets a variable; this is for a program that loaded it earlier
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _threads = threads or (1 if once else cores)
        onnxruntime.set_global_thread_pool_sizes(_threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4  # its errors are raised, too
    # each graph would keep the most memory that it ever needed
    options.enable_cpu_mem_arena = False
    if once:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options
