"""Cells in several processes. A cell is trained and measured by itself, so which process does it changes no figure."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from voken.progress import no_progress
from voken_lab.reproduction.arena import Arena
from voken_lab.reproduction.cells import Cell, try_cell

_arenas: dict[int, Arena] = {}
"""By seed: what a process works on, told when it begins."""


def in_processes(
    arenas: Mapping[int, Arena],
    wanted: Sequence[tuple[int, Cell]],
    *,
    jobs: int,
    threads: int,
    quick: bool,
    checkpoints: str,
) -> Iterator[tuple[int, Cell, str]]:
    """`try_cell` of each pair (seed, cell) in `jobs` processes of `threads` threads, as each is done.

    The script that calls this guards its entry with `if __name__ == "__main__"`. Whoever leaves early, or dies, ends
    the processes; what they had finished is kept.
    """
    silent = {seed: dataclasses.replace(arena, progress=no_progress) for seed, arena in arenas.items()}
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(silent, threads)
    ) as pool:
        try:
            # first the encoders, a seed a process: every cell of a seed waits for the same one
            for _ in pool.map(_encode, sorted({seed for seed, _ in wanted})):
                pass
            asked = {pool.submit(_measure, seed, cell, quick, checkpoints): (seed, cell) for seed, cell in wanted}
            for done in as_completed(asked):
                yield (*asked[done], done.result())
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin(arenas: dict[int, Arena], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _arenas.update(arenas)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends its children
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A parent that is killed cannot say so, and a child would wait for it for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(seed: int) -> None:
    _ = _arenas[seed].vectors  # trains the encoder, and keeps both on the disk


def _measure(seed: int, cell: Cell, quick: bool, checkpoints: str) -> str:
    return try_cell(cell, _arenas[seed], quick=quick, checkpoints=checkpoints)
