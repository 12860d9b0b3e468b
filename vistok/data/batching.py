"""How an epoch is cut into global batches: so many samples, so many of like length, or so many tokens.

The cut depends on the lengths and a seeded generator alone, never on how many processes share a batch. T samples of an
epoch, K batches.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from vistok.data.shard_reader import Array


class Batches(NamedTuple):
    """Batch k holds the positions order[bounds[k]:bounds[k + 1]] of the epoch. order [T], bounds [K + 1] int64."""

    order: Array
    bounds: Array

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def batch(self, number: int) -> Array:
        """The positions of a batch."""
        return self.order[self.bounds[number] : self.bounds[number + 1]]


class Batching(Protocol):
    """A way to cut; its repr tells two ways apart."""

    def cut(self, lengths: Array, rng: np.random.Generator) -> Batches:
        """Cut an epoch of samples of so many tokens [T] int64; every position is in exactly one batch, none is empty.

        Raises: ValueError naming the position of a sample that fits no batch.
        """
        ...


@dataclass(frozen=True)
class FixedBatches:
    """As the samples come, `samples` at a time; the last batch of an epoch may be smaller."""

    samples: int

    def __post_init__(self) -> None:
        _check("samples", self.samples)

    def cut(self, lengths: Array, rng: np.random.Generator) -> Batches:
        """See `Batching`."""
        return Batches(np.arange(len(lengths)), _every(self.samples, len(lengths)))


@dataclass(frozen=True)
class LengthBuckets:
    """`samples` at a time of like length, so that padding is small.

    Samples are sorted by length within pools of `pool` batches that follow one another, and the batches of a pool come
    in random order: what meets in a batch stays random but for the length.
    """

    samples: int
    pool: int = 32

    def __post_init__(self) -> None:
        _check("samples", self.samples)
        _check("pool", self.pool)

    def cut(self, lengths: Array, rng: np.random.Generator) -> Batches:
        """See `Batching`."""
        parts: list[Array] = []
        for start in range(0, len(lengths), self.samples * self.pool):
            window = lengths[start : start + self.samples * self.pool]
            by_length = start + np.argsort(window, kind="stable")
            bounds = _every(self.samples, len(window))
            batches = [by_length[bounds[number] : bounds[number + 1]] for number in range(len(bounds) - 1)]
            parts += [batches[number] for number in rng.permutation(len(batches))]
        return Batches(
            np.concatenate([np.zeros(0, np.int64), *parts]), np.cumsum([0, *map(len, parts)], dtype=np.int64)
        )


@dataclass(frozen=True)
class PackedBatches:
    """As the samples come, as many as `max_tokens` tokens hold: for attention over packed sequences."""

    max_tokens: int

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens)

    def cut(self, lengths: Array, rng: np.random.Generator) -> Batches:
        """See `Batching`."""
        if len(lengths) and lengths.max() > self.max_tokens:
            longest = int(lengths.argmax())
            raise ValueError(
                f"packed batches: expected samples of at most max_tokens={self.max_tokens}, the one at position "
                f"{longest} of the epoch has {lengths[longest]}; give more, or a budget to its store"
            )
        ends = np.cumsum(lengths)
        bounds = [0]
        while bounds[-1] < len(lengths):
            before = int(ends[bounds[-1] - 1]) if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, before + self.max_tokens, side="right")))
        return Batches(np.arange(len(lengths)), np.array(bounds, np.int64))


def _every(samples: int, total: int) -> Array:
    return np.append(np.arange(0, total, samples), total).astype(np.int64)


def _check(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"batching: expected {name} >= 1, got {value}")
