"""Tasks in several processes of this machine; a process that dies is replaced, and what it had begun is done again."""

import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any

Task = Callable[..., None]
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0  # for workers without a task to end
_work: dict[str, Any] = {}  # what a worker process was started with


def run_in_processes(
    task: Task,
    arguments: Mapping[int, tuple[Any, ...]],
    *,
    workers: int,
    max_restarts: int,
    on_count: Callable[[int], None],
) -> None:
    """Call `task(number, *arguments[number], on_count)` for every number, in spawned processes.

    task is pickled once per process and must bear being run twice for one number; what it tells its `on_count` arrives
    at the caller's. Raises: ChildProcessError if processes die more than `max_restarts` times; what a task raises.
    """
    context = get_context("spawn")  # a fork of a process that has used torch's threads may hang
    # Pickled here, because multiprocessing would move tensors through shared memory, which may be small.
    pickled = pickle.dumps(task)
    left = dict(arguments)
    for deaths in range(1, max_restarts + 2):
        try:
            return _run_pool(context, pickled, left, min(workers, len(left)), on_count)
        except BrokenProcessPool as error:
            if deaths > max_restarts:
                raise ChildProcessError(
                    f"worker processes died {deaths} times (out of memory?), {len(left)} of {len(arguments)} shards "
                    "are left; run the same command again to go on, with fewer workers"
                ) from error


def _run_pool(
    context: SpawnContext, task: bytes, left: dict[int, tuple[Any, ...]], workers: int, on_count: Callable[[int], None]
) -> None:
    """Takes from `left` what is done."""
    counts: SimpleQueue[int] = context.SimpleQueue()
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(task, counts))
    waiting: set[Future[None]] = set()
    try:
        numbers = {pool.submit(_work_on, number, *arguments): number for number, arguments in left.items()}
        waiting = set(numbers)
        while waiting:
            finished, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not counts.empty():
                on_count(counts.get())
            for future in finished:
                future.result()
                del left[numbers[future]]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        while any(future.running() for future in waiting):
            time.sleep(_POLL_SECONDS)
        _end(set(active_children()) - others)
        pool.shutdown(wait=True)


def _end(idle: set[BaseProcess]) -> None:
    """Workers that are done go by themselves, but not if another one died with the lock of the queue in its hands."""
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in idle:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in idle:
        process.kill()


def _start_worker(task: bytes, counts: "SimpleQueue[int]") -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _work["task"], _work["counts"] = pickle.loads(task), counts


def _die_with_parent() -> None:
    # A parent that is killed cannot stop its workers, and each would wait for ever for its next task.
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work_on(number: int, *arguments: Any) -> None:
    _work["task"](number, *arguments, _work["counts"].put)
