"""One epoch of a token store after another, for one of several processes, to be stopped and gone on with anywhere.

N samples of the store.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from vistok.data.collate import Collate
from vistok.data.shard_reader import Array
from vistok.tokens import TokenTensor

if TYPE_CHECKING:
    from vistok.data.store import TokenStore

_AHEAD, _AHEAD_BYTES = 256, 1 << 25  # samples that are read together, and about how many bytes


class Step(NamedTuple):
    """samples: what this rank gets. done: samples of the epoch that all ranks have had after this step."""

    samples: Sequence[int]
    done: int


class TokenStream(IterableDataset[Any]):
    """Samples as batches of one, or batches of them; reads ahead, and knows what it has handed out.

    Each iteration goes on where the last one was left and ends with the epoch; the next one begins the epoch after
    that (`epoch` tells which). Over all ranks every sample comes exactly once in an epoch; the last step of some ranks
    may be smaller or absent.
    """

    def __init__(
        self,
        store: "TokenStore",
        batch: int | None = None,
        *,
        max_tokens: int | None = None,
        collate: Collate | None = None,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """batch: samples per batch. max_tokens: fill batches up to so many tokens instead, or as well.

        Without either, samples come one by one. collate: makes a batch out of a list of samples, TokenTensor.cat if
        left out. shuffle: order by seed and epoch, the same on every rank. rank, world: this process of how many.
        Raises: ValueError for a setting out of range, or if a sample alone has more than max_tokens.
        """
        for name, value, least in (("batch", batch, 1), ("max_tokens", max_tokens, 1), ("seed", seed, 0),
                                   ("epoch", epoch, 0), ("world", world, 1)):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"iter: expected {name} >= {least}, got {value}")
        if not 0 <= rank < world:
            raise ValueError(f"iter: expected a rank in 0..{world - 1} (world={world}), got {rank}")
        if collate is not None and batch is None and max_tokens is None:
            raise ValueError("iter: expected batch or max_tokens beside collate, got neither")
        self._store, self._batch, self._max_tokens = store, batch, max_tokens
        self._collate: Collate = collate or TokenTensor.cat
        self._shuffle, self._seed, self._rank, self._world = shuffle, seed, rank, world
        self.epoch = epoch
        self._done = 0
        if max_tokens is not None:
            self._check_lengths(max_tokens)

    def __iter__(self) -> Iterator[Any]:
        """Raises: ValueError in a worker process of a DataLoader."""
        if get_worker_info() is not None:
            raise ValueError(
                "TokenStore.iter: expected to run in the process that trains, because its state lives there; give "
                "num_workers=0, or DataLoader(store, sampler=...) for worker processes"
            )
        single = self._batch is None and self._max_tokens is None
        for samples, done in self._read():
            self._done = done
            yield samples[0] if single else self._collate(samples)
        self.epoch, self._done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands, counted over all ranks: what was handed out, not what was read ahead.

        Any number of ranks may go on from it, provided that all of them have stopped after the same step.
        """
        return {
            "store": store_identity(self._store),
            "shuffle": self._shuffle,
            "seed": self._seed,
            "epoch": self.epoch,
            "samples": self._done,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, its epoch included. Raises: ValueError if it belongs to another store or order."""
        here = self.state_dict()
        if set(state) != set(here):
            raise ValueError(f"iter: expected a state with {', '.join(here)}, got {', '.join(map(str, state))}")
        for name in ("store", "shuffle", "seed"):
            if state[name] != here[name]:
                raise ValueError(
                    f"iter: expected the state of {name} {here[name]!r}, got one of {state[name]!r}; go on with the "
                    "store and the settings it was saved with, or begin anew without it"
                )
        epoch, done = state["epoch"], state["samples"]
        if type(epoch) is not int or epoch < 0 or type(done) is not int or not 0 <= done <= len(self._store):
            raise ValueError(
                f"iter: expected a state of epoch >= 0 with 0..{len(self._store)} samples, got {epoch!r} with {done!r}"
            )
        self.epoch, self._done = epoch, done

    def _read(self) -> Iterator[tuple[list[TokenTensor], int]]:
        steps = self._steps()
        together = 1 if self._max_tokens is not None else max(1, self._ahead() // (self._batch or 1))
        while window := list(islice(steps, together)):
            items = iter(self._store.__getitems__([sample for step in window for sample in step.samples]))
            for step in window:
                if step.samples:
                    yield list(islice(items, len(step.samples))), step.done

    def _ahead(self) -> int:
        stored = sum(int(record["bytes"]) for record in self._store.commits.values())
        return min(_AHEAD, _AHEAD_BYTES * len(self._store) // max(1, stored))

    def _steps(self) -> Iterator[Step]:
        order = np.arange(len(self._store))
        if self._shuffle:
            order = np.random.default_rng([self._seed, self.epoch]).permutation(len(self._store))
        ends = None if self._max_tokens is None else np.cumsum(self._store.lengths[order])
        done = self._done
        while done < len(order):
            if ends is None:
                stop = min(done + (self._batch or 1) * self._world, len(order))
                # Every world-th sample, so that ranks differ by one sample at most.
                mine = order[done + self._rank : stop : self._world]
            else:
                stops = self._filled(ends, done)
                mine, stop = order[stops[self._rank] : stops[self._rank + 1]], stops[-1]
            yield Step(mine.tolist(), stop)
            done = stop

    def _filled(self, ends: Array, start: int) -> list[int]:
        # The limits of one batch per rank, one after another in the order of the epoch.
        assert self._max_tokens is not None
        stops = [start]
        for _ in range(self._world):
            before = int(ends[stops[-1] - 1]) if stops[-1] else 0
            stop = int(np.searchsorted(ends, before + self._max_tokens, side="right"))
            stops.append(stop if self._batch is None else min(stop, stops[-1] + self._batch))
        return stops

    def _check_lengths(self, max_tokens: int) -> None:
        lengths = self._store.lengths
        if len(lengths) and lengths.max() > max_tokens:
            longest = int(lengths.argmax())
            raise ValueError(
                f"iter: expected samples of at most max_tokens={max_tokens}, sample {longest} "
                f"({self._store.rows[longest]['key']}) has {lengths[longest]}; give more, or a budget to the store"
            )


def store_identity(store: "TokenStore") -> str:
    """What tells one state of a store from another: its plan, and which shards are committed with how many samples."""
    parts = [
        store.dataset["plan_hash"],
        *((shard, end) for shard, end in zip(store.shards, store.ends, strict=True)),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
