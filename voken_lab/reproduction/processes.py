"""Measures cells in several processes. Cells do not depend on each other, so the figures are those of one process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from voken.progress import no_progress
from voken_lab.reproduction.cells import Cell, try_cell
from voken_lab.reproduction.experiment import Experiment

_experiments: dict[int, Experiment] = {}
"""The experiments of a worker process by seed, set when it starts."""


def measure_in_processes(
    experiments: Mapping[int, Experiment], seeds_and_cells: Sequence[tuple[int, Cell]], *, jobs: int, threads: int
) -> Iterator[tuple[int, Cell, str]]:
    """Run `try_cell` for each pair (seed, cell) in `jobs` processes of `threads` threads; yield each as it ends.

    The calling script must guard its entry with `if __name__ == "__main__"`. If the caller stops early or dies, the
    processes end too. Complete cells stay on disk.
    """
    silent = {seed: dataclasses.replace(experiment, progress=no_progress) for seed, experiment in experiments.items()}
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(silent, threads)
    ) as pool:
        try:
            # The encoders are trained first, one seed per process, because every cell of a seed needs the same encoder.
            for _ in pool.map(_encode_pool, sorted({seed for seed, _ in seeds_and_cells})):
                pass
            jobs_by_future = {pool.submit(_measure, seed, cell): (seed, cell) for seed, cell in seeds_and_cells}
            for future in as_completed(jobs_by_future):
                yield (*jobs_by_future[future], future.result())
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _start_worker(experiments: dict[int, Experiment], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _experiments.update(experiments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends its children
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this process when the parent dies: a killed parent cannot notify its children."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_pool(seed: int) -> None:
    _ = _experiments[seed].pool_vectors  # trains the encoder and saves it and the vectors


def _measure(seed: int, cell: Cell) -> str:
    return try_cell(cell, _experiments[seed])
