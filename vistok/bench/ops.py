"""Hot ops against the libraries that do the same: one thread, CPU time, in turn, after their answers were compared."""

import time
from collections.abc import Iterator

import torch

from vistok.bench import _lookup_free, _merging, _quantization, _selection
from vistok.bench.timing import Timing, in_turn


def run(rounds: int = 7) -> Iterator[tuple[str, list[Timing]]]:
    """Yield every case with its timings, vistok first.

    Peers of the extra `bench` that are not installed are left out.
    Raises: AssertionError if a peer's answer is not ours.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cases in (_quantization.cases, _lookup_free.cases, _selection.cases, _merging.cases):
            for name, candidates in cases():
                with torch.inference_mode():
                    yield name, in_turn(candidates, rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
