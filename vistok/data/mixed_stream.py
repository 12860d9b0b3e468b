"""Global batches out of several token stores, for one of several processes, to be stopped and gone on with anywhere.

What a global batch holds does not depend on how many processes share it, so a run that goes on with another number of
processes sees the batches that it would have seen, each sample in exactly one of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from vistok.data.batching import Batches, Batching
from vistok.data.collate import Collate
from vistok.data.iterate import store_identity
from vistok.data.mixture import Draw, Draws, Mixture
from vistok.data.shard_reader import Array
from vistok.tokens import TokenTensor

if TYPE_CHECKING:
    from vistok.data.store import TokenStore

_BATCHES = 2  # use of random numbers, beside those of a mixture


class Portion(NamedTuple):
    """What one process gets of a global batch.

    tokens: collated, None if it gets no sample, which happens in the last batches of an epoch. draws: where each sample
    of `tokens` is from. samples: of the whole global batch.
    """

    tokens: Any
    draws: tuple[Draw, ...]
    samples: int


class _Epoch(NamedTuple):
    draws: Draws
    lengths: Array
    batches: Batches


class MixedStream(IterableDataset[Portion]):
    """Portions of the global batches of a mixture; every process of a run gets one of each, be it without samples.

    A process takes every `world`-th sample of a batch, the longest first: at a token budget of world x M none has more
    than M tokens and one sample. Each iteration goes on where the last one was left and ends with the epoch; the next
    one begins the epoch after that.
    """

    def __init__(
        self,
        stores: Sequence["TokenStore"],
        batching: Batching,
        *,
        weights: Sequence[float] | None = None,
        samples: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        collate: Collate | None = None,
    ) -> None:
        """weights, samples, seed: see `Mixture`. rank, world: this process of how many.

        collate: makes a batch of the samples of a portion, TokenTensor.cat if left out.
        Raises: ValueError for a setting out of range, and as `Mixture` does.
        """
        if epoch < 0 or not 0 <= rank < world:
            raise ValueError(
                f"mixed stream: expected epoch >= 0 and a rank in 0..{world - 1} (world={world}), got {epoch}, {rank}"
            )
        self.stores, self.batching = tuple(stores), batching
        self.mixture = Mixture([len(store) for store in self.stores], weights, seed=seed, samples=samples)
        self._rank, self._world, self._collate = rank, world, collate or TokenTensor.cat
        self.epoch = epoch
        self._done = 0
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_plan"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._plan = lru_cache(maxsize=1)(self._make_plan)

    def __len__(self) -> int:
        """Global batches of this epoch."""
        return len(self._plan(self.epoch).batches)

    def __iter__(self) -> Iterator[Portion]:
        """Raises: ValueError in a worker process of a DataLoader, or for a sample that fits no batch."""
        if get_worker_info() is not None:
            raise ValueError(
                "mixed stream: expected to run in the process that trains, because its state lives there; give "
                "num_workers=0"
            )
        plan = self._plan(self.epoch)
        for number in range(self._done, len(plan.batches)):
            positions = plan.batches.batch(number)
            longest_first = positions[np.argsort(-plan.lengths[positions], kind="stable")]
            draws = tuple(plan.draws.at(int(position)) for position in longest_first[self._rank :: self._world])
            tokens = self._collate(self._read(draws)) if draws else None
            self._done = number + 1
            yield Portion(tokens, draws, len(positions))
        self.epoch, self._done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, counted in global batches: what was handed out.

        Any number of processes may go on from it, provided that all of them have stopped after the same batch.
        """
        return {
            "stores": [store_identity(store) for store in self.stores],
            "draws": list(self.mixture.counts),
            "batching": repr(self.batching),
            "seed": self.mixture.seed,
            "epoch": self.epoch,
            "batches": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, its epoch included. Raises: ValueError if it belongs to other stores or another order."""
        here = self.state_dict()
        if set(state) != set(here):
            raise ValueError(f"mixed stream: expected a state with {', '.join(here)}, got {', '.join(map(str, state))}")
        for name in ("stores", "draws", "batching", "seed"):
            if state[name] != here[name]:
                raise ValueError(
                    f"mixed stream: expected the state of {name} {here[name]!r}, got one of {state[name]!r}; go on "
                    "with the stores, weights and settings it was saved with, or begin anew without it"
                )
        epoch, done = state["epoch"], state["batches"]
        if type(epoch) is not int or epoch < 0 or type(done) is not int or not 0 <= done <= self._batches_in(epoch):
            raise ValueError(
                f"mixed stream: expected a state of epoch >= 0 and batches of that epoch, got {epoch!r}, {done!r}"
            )
        self.epoch, self._done = epoch, done

    def key(self, draw: Draw) -> str:
        """The key of a sample in its store."""
        return self.stores[draw.store].keys[draw.sample]

    def row(self, draw: Draw) -> dict[str, Any]:
        """What its store knows of a sample beside its tokens."""
        return self.stores[draw.store].rows[draw.sample]

    def _read(self, draws: Sequence[Draw]) -> list[TokenTensor]:
        found: dict[int, TokenTensor] = {}
        for store in {draw.store for draw in draws}:
            places = [place for place, draw in enumerate(draws) if draw.store == store]
            items = self.stores[store].__getitems__([draws[place].sample for place in places])
            found.update(zip(places, items, strict=True))
        return [found[place] for place in range(len(draws))]

    def _batches_in(self, epoch: int) -> int:
        return len(self._plan(epoch).batches)

    def _make_plan(self, epoch: int) -> _Epoch:
        draws = self.mixture.epoch(epoch)
        lengths = np.empty(len(self.mixture), np.int64)
        for number, store in enumerate(self.stores):
            chosen = draws.stores == number
            lengths[chosen] = store.lengths[draws.samples[chosen]]
        rng = np.random.default_rng([self.mixture.seed, _BATCHES, epoch])
        try:
            batches = self.batching.cut(lengths, rng)
        except ValueError as error:
            longest = draws.at(int(lengths.argmax()))
            raise ValueError(f"{self.stores[longest.store].location}, {self.key(longest)}: {error}") from error
        return _Epoch(draws, lengths, batches)
