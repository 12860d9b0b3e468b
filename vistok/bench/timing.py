"""Timing that survives a busy machine: candidates in turn, in one process, compared by the median of paired ratios."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """One candidate: median seconds of a call, and the median over rounds of its seconds divided by the first one's."""

    name: str
    seconds: float
    ratio: float


def in_turn(candidates: Mapping[str, Callable[[], object]], rounds: int = 7) -> list[Timing]:
    """Call every candidate once per round, after one call to warm up; the first candidate is the base of the ratios.

    Raises: ValueError without candidates or rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError(f"in_turn: expected candidates and rounds >= 1, got {list(candidates)} and {rounds}")
    for call in candidates.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    base = next(iter(seconds.values()))
    return [
        Timing(name, median(taken), median(t / b for t, b in zip(taken, base, strict=True)))
        for name, taken in seconds.items()
    ]
