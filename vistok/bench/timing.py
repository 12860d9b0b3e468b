"""Timing that survives a busy machine: candidates in turn, in one process, compared by the median of paired ratios."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Candidates = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """One candidate: median seconds of a call, and the median over rounds of its seconds divided by the first one's."""

    name: str
    seconds: float
    ratio: float


def in_turn(candidates: Candidates, rounds: int = 7, *, clock: Callable[[], float] = time.perf_counter) -> list[Timing]:
    """Call every candidate once per round, after one call to warm up; the first candidate is the base of the ratios.

    clock: in seconds; `time.process_time` for what runs in one thread. Raises: ValueError without candidates or rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"in_turn: expected candidates and rounds >= 1, got {list(candidates)} and {rounds}")
    for call in candidates.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            began = clock()
            call()
            seconds[name].append(clock() - began)
    base = next(iter(seconds.values()))
    return [
        Timing(name, median(taken), median(t / b for t, b in zip(taken, base, strict=True)))
        for name, taken in seconds.items()
    ]
