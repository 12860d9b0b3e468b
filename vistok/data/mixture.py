"""Which sample comes when, if several stores feed one training by weight: a function of seed, epoch and position only.

S stores; T draws of an epoch of the mixture.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from vistok.data.shard_reader import Array

_PLACES, _ORDER = 0, 1  # what random numbers are for, so that no two uses share a stream


class Draw(NamedTuple):
    """One sample of one store. round: how often that store had been gone through before."""

    store: int
    round: int
    sample: int


class Draws(NamedTuple):
    """The draws of an epoch in their order, each array [T] int64: the fields of `Draw`."""

    stores: Array
    rounds: Array
    samples: Array

    def at(self, position: int) -> Draw:
        """The draw at a position of the epoch."""
        return Draw(*(int(values[position]) for values in self))


class Mixture:
    """Samples of S stores, each store in an order of its own that no sample repeats, interleaved by weight.

    counts: draws of each store in an epoch of the mixture, in the exact ratio of the weights but for rounding. They lie
    evenly: after p of T draws a store of count n has given n p / T of its own, but for 1 + S n / T at most.

    A store that ends begins anew at once, in another order, and goes on into the next epoch of the mixture from where
    it was: so weights hold all the way, and no sample comes a second time before all of its store have come once. An
    epoch of the mixture is the shortest in which every store gives at least as many samples as it has; without weights,
    which are then the sizes, that is every sample of every store exactly once.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        samples: int | None = None,
    ) -> None:
        """sizes: samples of each store. weights: any positive numbers, left out = the sizes.

        samples: draws of an epoch, if other than that shortest (a small weight of a large store makes it long, and the
        draws of an epoch are held in memory, 24 bytes each).
        Raises: ValueError for a store without samples, a weight that is no positive number, or what is out of range.
        """
        if not sizes or min(sizes) < 1:
            raise ValueError(f"mixture: expected stores with at least one sample each, got sizes {list(sizes)}")
        if weights is not None and (len(weights) != len(sizes) or not all(0 < weight < np.inf for weight in weights)):
            raise ValueError(
                f"mixture: expected one positive weight for each of {len(sizes)} stores, got {list(weights)}; leave a "
                "store out that shall give nothing"
            )
        if seed < 0 or (samples is not None and samples < 1):
            raise ValueError(f"mixture: expected seed >= 0 and samples >= 1, got {seed} and {samples}")
        self.sizes, self.seed = tuple(sizes), seed
        # The decimal that was written, not the nearest binary fraction: 0.8 and 0.2 are 4 to 1.
        exact = [Fraction(str(weight)) for weight in (sizes if weights is None else weights)]
        self.counts = _least(self.sizes, exact) if samples is None else _apportioned(samples, exact)

    def __len__(self) -> int:
        return sum(self.counts)

    def epoch(self, epoch: int) -> Draws:
        """The draws of an epoch, the first of which is 0; the same for the same seed wherever they are asked for."""
        rng = np.random.default_rng([self.seed, _PLACES, epoch])
        # The j-th of n draws lies somewhere in the j-th of n equal parts of the epoch.
        places = [(np.arange(count) + rng.random(count)) / max(1, count) for count in self.counts]
        order = np.argsort(np.concatenate(places), kind="stable")
        stores = np.repeat(np.arange(len(self.counts)), self.counts)[order]
        numbers = [np.arange(epoch * count, (epoch + 1) * count) for count in self.counts]
        rounds = [number // size for number, size in zip(numbers, self.sizes, strict=True)]
        samples = [self._samples(store, number) for store, number in enumerate(numbers)]
        return Draws(stores, np.concatenate(rounds)[order], np.concatenate(samples)[order])

    def _samples(self, store: int, numbers: Array) -> Array:
        """The samples of a store that its draws with these numbers, which follow one another, give."""
        size = self.sizes[store]
        found = np.empty(len(numbers), np.int64)
        done = 0
        while done < len(numbers):
            turn, start = divmod(int(numbers[done]), size)
            some = min(size - start, len(numbers) - done)
            order = np.random.default_rng([self.seed, _ORDER, store, turn]).permutation(size)
            found[done : done + some] = order[start : start + some]
            done += some
        return found


def _least(sizes: Sequence[int], weights: Sequence[Fraction]) -> tuple[int, ...]:
    scale = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    return tuple(int(scale * weight) for weight in weights)


def _apportioned(samples: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Shares by weight that add up to `samples`: whole parts, then one more for the largest remainders."""
    shares = [samples * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda store: counts[store] - shares[store])
    for store in by_remainder[: samples - sum(counts)]:
        counts[store] += 1
    return tuple(counts)
