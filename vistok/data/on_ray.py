"""The executor on a Ray cluster: one shard a task, through the same worker as on one machine. Needs the extra `ray`.

What comes back from a worker is the commit record of the shard's data, never tokens, and only this process, the driver,
writes it. So a worker or a node may be lost at any moment, and a task may run twice, even at once: both write the same
bytes, and the shard is there when its record is. A driver that is lost leaves shards without a record, which the next
one encodes again.
"""

import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vistok.data.encode_shard import Loader, OnImages, ShardWork
from vistok.data.inputs.entry import Entry
from vistok.data.load import Loaded, load
from vistok.data.records import shard_names
from vistok.data.remote import RemoteFiles

_HELD_BACK = 16  # decoded pictures that a stream may be ahead of its encoder, at least


@dataclass(frozen=True)
class OnRay:
    """Encodes shards by `schedule.workers` actors of a cluster; each has one shard at a time, more wait at the driver.

    address: "auto" (the cluster that this machine belongs to), "local" (one of its own) or what `ray.init` takes.
    num_cpus, num_gpus: what each actor takes of the cluster. decode_cpus: > 0 = pictures are read and decoded by tasks
    of their own that take so many CPUs each, on any node, and stream what is decoded to their actor, which then takes
    no CPU; 0 = each actor decodes in its own threads. `schedule.max_restarts` actors may be lost and are replaced.
    """

    address: str = "auto"
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    decode_cpus: float = 0.0

    def __post_init__(self) -> None:
        """Raises: ValueError naming what is out of range."""
        for name in ("num_cpus", "num_gpus", "decode_cpus"):
            if getattr(self, name) < 0:
                raise ValueError(f"ray: expected {name} >= 0, got {getattr(self, name)}")

    def __call__(self, work: ShardWork, shards: Mapping[int, Sequence[Entry]], on_images: OnImages) -> None:
        """Encode and commit `shards`.

        Raises: ImportError naming the extra; ConnectionError if there is no such cluster; ChildProcessError if actors
        keep dying; ValueError if the driver does not find what the workers write; what a worker raises.
        """
        if isinstance(work.files, RemoteFiles) and work.files.in_this_process_only:
            raise ValueError(f"{work.files.name}: workers on a cluster cannot write there; give another URL")
        if not shards:
            return
        with _connected(self.address):
            self._run(work, shards, on_images)

    def _run(self, work: ShardWork, shards: Mapping[int, Sequence[Entry]], on_images: OnImages) -> None:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        cpus = 0.0 if self.decode_cpus else self.num_cpus
        worker = ray.remote(num_cpus=cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0)(_Worker)
        # Pickled here and put once: every actor, and every one that replaces it, takes the same bytes.
        pickled = ray.put(pickle.dumps(work))
        left = deque(shards)
        running: dict[Any, tuple[Any, int]] = {}
        deaths = 0

        def submit(actor: Any) -> None:
            if left:
                shard = left.popleft()
                running[actor.encode.remote(shard, tuple(shards[shard]))] = actor, shard
            else:
                ray.kill(actor)  # so that another run may have its place

        for _ in range(min(work.schedule.workers, len(left))):
            submit(worker.remote(pickled, self.decode_cpus))
        try:
            while running:
                [answer], _ = ray.wait([*running], num_returns=1)
                actor, shard = running.pop(answer)
                try:
                    record = ray.get(answer)
                except RayTaskError as error:  # of the task itself, not of where it ran
                    cause = error.cause
                    raise cause if isinstance(cause, Exception) else error from None
                except (RayActorError, RayError) as error:
                    deaths += 1
                    if deaths > work.schedule.max_restarts:
                        raise ChildProcessError(
                            f"workers on the cluster died {deaths} times, {1 + len(left) + len(running)} of "
                            f"{len(shards)} shards are left; run the same command again to go on. The last one: {error}"
                        ) from error
                    ray.kill(actor)  # it may only be out of reach
                    left.appendleft(shard)
                    actor = worker.remote(pickled, self.decode_cpus)
                else:
                    if record is not None:
                        _check_written(work, record)
                        work.commit(record)
                    on_images(len(shards[shard]))
                submit(actor)
        finally:
            for actor, _ in running.values():
                ray.kill(actor)


class _Worker:
    """An actor: a process of the cluster that encodes one shard after the other."""

    def __init__(self, pickled: bytes, decode_cpus: float) -> None:
        self._work: ShardWork = pickle.loads(pickled)
        self._decode_cpus = decode_cpus

    def encode(self, shard: int, entries: Sequence[Entry]) -> dict[str, Any] | None:
        """Write the data of a shard; its commit record, None if too many pictures failed."""
        loader: Loader = partial(_decoded_elsewhere, self._decode_cpus) if self._decode_cpus else load
        return self._work.encode(shard, entries, loader=loader)


@dataclass(frozen=True)
class _Failure:
    """A picture that could not be loaded, told by another process."""

    place: int
    error: str
    message: str


def _decode(entries: Sequence[Entry], options: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any] | _Failure]:
    """A task of the decode pool: rows and pixels [3, H, W] in order, failures between them."""
    place = {entry.key: number for number, entry in enumerate(entries)}
    failures: deque[_Failure] = deque()

    def failed(entry: Entry, error: Exception) -> None:
        failures.append(_Failure(place[entry.key], type(error).__name__, str(error)))

    torch.set_num_threads(1)
    for loaded in load(entries, **options, failed=failed):
        while failures:
            yield failures.popleft()
        yield loaded.row, loaded.image.numpy()
    yield from failures


def _decoded_elsewhere(
    cpus: float, entries: Sequence[Entry], source: Any, fields: Any, preprocess: Any, *, failed: Any, **options: Any
) -> Iterator[Loaded]:
    """As `load`, by a task that takes CPUs anywhere in the cluster and waits when it is far enough ahead."""
    import ray

    pool = ray.remote(num_cpus=cpus, max_retries=-1, num_returns="streaming")(_decode)
    ahead = max(_HELD_BACK, options["ahead"])
    asked = {"source": source, "fields": fields, "preprocess": preprocess, **options}
    for answer in pool.options(_generator_backpressure_num_objects=ahead).remote(tuple(entries), asked):
        found = ray.get(answer)
        if isinstance(found, _Failure):
            failed(entries[found.place], type(found.error, (Exception,), {})(found.message))
        else:
            row, pixels = found
            yield Loaded(row, torch.from_numpy(np.array(pixels)))  # a copy: the cluster's memory is read-only


def _check_written(work: ShardWork, record: Mapping[str, Any]) -> None:
    names = shard_names(record["shard"])
    sizes = [work.files.size_of(path) for path in names[:2]]
    if None in sizes or sum(size or 0 for size in sizes) != record["bytes"]:
        raise ValueError(
            f"{work.files.name}: expected the files of shard {record['shard']} here, worker {record['worker']} wrote "
            "them elsewhere; give a URL, or a folder that all nodes share"
        )


@contextmanager
def _connected(address: str) -> Iterator[None]:
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray; install the extra: pip install 'vistok[ray]'") from error
    if ray.is_initialized():
        yield
        return
    ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        yield
    finally:
        ray.shutdown()
