"""Joint batches against the same items run alone; what goes wrong for one caller must not touch the others."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for

import pytest

from voken.errors import BusyError, ConfigError, VokenError
from voken.search.batching import Batcher

SOON = 30
"""Seconds after which something hangs. Nothing waits that long where all is well."""


class Squares:
    """Squares, in a batch that the test may hold; keeps the batches it saw and whether two ever overlapped."""

    def __init__(self, held=False):
        self.batches = []
        self.overlapped = False
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self._inside = threading.Lock()
        if not held:
            self.go.set()

    def __call__(self, key, items):
        free = self._inside.acquire(blocking=False)
        self.overlapped |= not free
        self.batches.append(list(items))
        self.started.release()
        assert self.go.wait(SOON)
        time.sleep(0)
        if free:
            self._inside.release()
        if "poison" in items:
            raise ValueError("poisoned")
        return [item * item for item in items]

    def wait_started(self):
        assert self.started.acquire(timeout=SOON)


@pytest.mark.parametrize("max_wait", [0.0, 0.002])
def test_many_threads_get_what_one_gets_in_fewer_calls(max_wait):
    run = Squares()
    everyone = threading.Barrier(64)

    def caller(first):
        everyone.wait(SOON)
        return [batcher.call([item])[0] for item in range(first, first + 20)]

    with Batcher(run, max_wait=max_wait) as batcher, ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(caller, range(0, 64 * 20, 20)))
    assert answers == [[item * item for item in range(first, first + 20)] for first in range(0, 64 * 20, 20)]
    assert not run.overlapped
    assert sorted(item for batch in run.batches for item in batch) == list(range(64 * 20))
    assert max(map(len, run.batches)) <= 32
    assert len(run.batches) < 64 * 20


def test_what_comes_while_a_batch_runs_is_the_next_batch_oldest_first():
    run = Squares(held=True)
    with Batcher(run, max_batch=4) as batcher:
        futures = [batcher.submit(0)]
        run.wait_started()
        futures += [batcher.submit(item) for item in range(1, 11)]
        run.go.set()
        assert [future.result(SOON) for future in futures] == [item * item for item in range(11)]
    assert run.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_batch_waits_for_company_only_until_it_is_full():
    run = Squares()
    with Batcher(run, max_batch=3, max_wait=SOON) as batcher:
        futures = [batcher.submit(item) for item in range(3)]
        assert [future.result(SOON / 2) for future in futures] == [0, 1, 4]
        late = batcher.submit(5)
        batcher.close()  # nobody else will come
        assert late.result(SOON / 2) == 25
    assert run.batches == [[0, 1, 2], [5]]


def test_only_equal_keys_share_a_batch_and_no_key_starves():
    run = Squares(held=True)
    with Batcher(run, max_batch=2) as batcher:
        futures = [batcher.submit(0, key=0)]
        run.wait_started()
        futures += [batcher.submit(item, key=item % 10) for item in (11, 12, 21, 31, 22, 13, 41)]
        run.go.set()
        wait_for(futures, SOON)
    assert run.batches == [[0], [11, 21], [12, 22], [31, 41], [13]]
    assert [future.result() for future in futures] == [n * n for n in (0, 11, 12, 21, 31, 22, 13, 41)]


def test_a_lone_caller_runs_in_its_own_thread():
    def where(key, items):
        return [threading.current_thread().name for _ in items]

    with Batcher(where) as batcher:
        assert batcher.call([0]) == [threading.current_thread().name]
        assert batcher.submit(0).result(SOON) == "voken-batcher"


def test_items_of_one_call_go_together_and_stay_in_order():
    run = Squares()
    with Batcher(run, max_batch=4, max_queue=2) as batcher:
        assert batcher.call(range(10)) == [item * item for item in range(10)]
        assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        assert asyncio.run(batcher.acall(range(5))) == [0, 1, 4, 9, 16]  # more than may wait, where none waits
        assert batcher.call([]) == asyncio.run(batcher.acall([])) == []
    assert run.batches[3:] == [[0, 1, 2, 3], [4]]


def test_asyncio_gather_and_a_second_loop():
    run = Squares()

    async def all_at_once():
        return await asyncio.wait_for(asyncio.gather(*(batcher.acall([item]) for item in range(200))), SOON)

    with Batcher(run) as batcher:
        for _ in range(2):
            assert asyncio.run(all_at_once()) == [[item * item] for item in range(200)]
    assert len(run.batches) < 400


def test_only_the_poisoned_item_fails():
    run = Squares(held=True)
    with Batcher(run) as batcher:
        futures = [batcher.submit(0)]
        run.wait_started()
        futures += [batcher.submit(item) for item in (1, "poison", 3)]
        run.go.set()
        with pytest.raises(ValueError, match="poisoned"):
            futures[2].result(SOON)
        assert [futures[place].result(SOON) for place in (0, 1, 3)] == [0, 1, 9]
        with pytest.raises(ValueError, match="poisoned"):
            batcher.call([2, "poison"])
        assert batcher.call([4]) == [16]
    assert run.batches[1] == [1, "poison", 3]


@pytest.mark.parametrize("wrong", [SystemExit("run wants out"), None], ids=["SystemExit", "a result too few"])
def test_whatever_run_does_nobody_waits_for_ever(wrong):
    def run(key, items):
        if wrong is not None:
            raise wrong
        return []

    with Batcher(run) as batcher:
        for _ in range(2):  # the thread survives the first
            with pytest.raises(SystemExit if wrong is not None else RuntimeError):
                batcher.submit(1).result(SOON)
        with pytest.raises(SystemExit if wrong is not None else RuntimeError):
            batcher.call([1])
        with pytest.raises(SystemExit if wrong is not None else RuntimeError):
            batcher.call([1])


def test_close_while_busy_finishes_what_was_accepted():
    run = Squares(held=True)
    batcher = Batcher(run, max_batch=2)
    futures = [batcher.submit(item) for item in range(7)]
    run.wait_started()
    closing = [threading.Thread(target=batcher.close) for _ in range(2)]
    for thread in closing:
        thread.start()
    while not batcher._closed:
        time.sleep(0.001)
    with pytest.raises(BusyError, match="closed"):
        batcher.submit(7)
    with pytest.raises(BusyError, match="closed"):
        batcher.call([7])
    run.go.set()
    for thread in closing:
        thread.join(SOON)
        assert not thread.is_alive()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [item * item for item in range(7)]
    batcher.close()


def test_a_cancelled_waiter_harms_nobody():
    run = Squares(held=True)

    async def scene():
        running = asyncio.create_task(batcher.acall([0]))
        await asyncio.to_thread(run.wait_started)
        waiting = [asyncio.create_task(batcher.acall([item])) for item in range(1, 6)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        running.cancel()  # its item runs already, and is answered to nobody
        await asyncio.sleep(0)
        run.go.set()
        return await asyncio.wait_for(asyncio.gather(running, *waiting, return_exceptions=True), SOON)

    with Batcher(run) as batcher:
        gone, first, also_gone, *others = asyncio.run(scene())
    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(also_gone, asyncio.CancelledError)
    assert [first, *others] == [[1], [9], [16], [25]]
    assert run.batches == [[0], [1, 3, 4, 5]]


def test_close_returns_where_all_that_waited_was_cancelled():
    run = Squares(held=True)
    batcher = Batcher(run)
    first, second = batcher.submit(1), None
    run.wait_started()
    second = batcher.submit(2)
    assert second.cancel()
    run.go.set()
    batcher.close()
    assert first.result() == 1
    with pytest.raises(CancelledError):
        second.result()
    assert run.batches == [[1]]


def test_a_full_queue_says_so_and_cancelled_places_are_free_again():
    run = Squares(held=True)
    with Batcher(run, max_queue=2) as batcher:
        futures = [batcher.submit(0)]
        run.wait_started()
        futures += [batcher.submit(1), batcher.submit(2)]
        with pytest.raises(BusyError, match="2 queries wait"):
            batcher.submit(3)
        with pytest.raises(BusyError, match="2 queries wait"):
            asyncio.run(batcher.acall([3]))
        with pytest.raises(VokenError):
            batcher.call([3])
        assert futures.pop(1).cancel()
        futures.append(batcher.submit(4))
        run.go.set()
        assert [future.result(SOON) for future in futures] == [0, 4, 16]
        assert batcher.submit(5).result(SOON) == 25
    assert run.batches == [[0], [2, 4], [5]]


@pytest.mark.parametrize(
    "impossible",
    [{"max_batch": 0}, {"max_wait": -1.0}, {"max_wait": float("nan")}, {"max_queue": 0}],
)
def test_impossible_options(impossible):
    with pytest.raises(ConfigError):
        Batcher(Squares(), **impossible)


def test_an_idle_batcher_keeps_no_thread_and_starts_another(monkeypatch):
    monkeypatch.setattr("voken.search.batching._IDLE_SECONDS", 0.01)
    with Batcher(Squares()) as batcher:
        for item in range(3):
            assert batcher.submit(item).result(SOON) == item * item
            deadline = time.monotonic() + SOON
            while batcher._has_thread and time.monotonic() < deadline:
                time.sleep(0.005)
            assert not batcher._has_thread


def python(script):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=SOON, check=False
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own_thread_and_queue():
    result = python(
        """
import os, threading, time
from voken.search.batching import Batcher
started, go = threading.Event(), threading.Event()
def run(key, items):
    started.set(); go.wait()
    return [item * item for item in items]
batcher = Batcher(run)
held = [batcher.submit(item) for item in range(3)]   # the parent's thread runs, and its queue is not empty
started.wait()
child = os.fork()
if child == 0:
    go.set()
    right = batcher.call([5]) == [25] and batcher.submit(6).result(10) == 36 and not held[2].done()
    batcher.close()
    os._exit(0 if right else 1)
_, status = os.waitpid(child, 0)
go.set()
print(os.waitstatus_to_exitcode(status), [future.result() for future in held], batcher.call([4]))
"""
    )
    assert (result.returncode, result.stdout.strip()) == (0, "0 [0, 1, 4] [16]"), result.stderr


def test_the_interpreter_ends_while_a_batch_runs():
    result = python(
        """
import threading, time
from voken.search.batching import Batcher
def run(key, items):
    started.set(); time.sleep(3600)
started = threading.Event()
batcher = Batcher(run)
for item in range(3):
    batcher.submit(item)
started.wait()
print("ends")
"""
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "ends\n", "")
