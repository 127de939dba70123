"""Graphs as ONNX Runtime runs them: loaded once, called by many threads, all on one set of processor threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from voken.errors import CorruptArtifactError

if TYPE_CHECKING:
    import onnxruntime


class LoadedGraph:
    """A graph and the names of what it takes and gives."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._shapes = {one.name: one.shape for one in session.get_inputs()}
        self._results = [one.name for one in session.get_outputs()]
        self.past = [name for name in self._shapes if name.startswith("past_")]

    @classmethod
    def load(cls, path: Path, options: onnxruntime.SessionOptions) -> Self:
        """Read a graph. Raises `CorruptArtifactError` where it cannot be read."""
        import onnxruntime

        try:
            return cls(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CorruptArtifactError(f"{path}: cannot be read ({reason}). Make the engine again.") from error

    def run(self, inputs: dict[str, Any], results: list[str] | None = None) -> dict[str, Any]:
        """ONNX Runtime's values in, and out; inputs that the graph does not take are left out."""
        names = self._results if results is None else results
        taken = {name: inputs[name] for name in self._shapes}
        return dict(zip(names, self._session.run_with_ort_values(names, taken), strict=True))

    def no_past(self, name: str, queries: int) -> Any:
        """An empty cache."""
        _, heads, _, head_dim = self._shapes[name]
        return value(np.zeros((queries, heads, 0, head_dim), dtype=np.float32))


def value(array: np.ndarray) -> Any:
    """An array as ONNX Runtime takes it, not copied."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def session_options(threads: int = 0, *, once: bool = False) -> onnxruntime.SessionOptions:
    """For graphs that share the process's threads; the first call sets how many (0: as many as it may use).

    Sessions with threads of their own would spin against each other. `once`: for a process that asks one query, where
    laying the weights out for the processor takes longer than it saves, and a second thread costs more than it does.
    """
    import onnxruntime

    global _threads
    if _threads is None:
        _threads = threads or (1 if once else len(os.sched_getaffinity(0)))
        onnxruntime.set_global_thread_pool_sizes(_threads, 1)
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 3
    if once:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


_threads: int | None = None
