"""The executor on a Ray cluster: one shard a task, through the same worker as on one machine. Needs the extra `ray`.

What comes back from a worker is the commit record of the shard's data, never tokens. The data lie under names of that
attempt, and only this process, the driver, gives them the shard's names and writes the record. So a worker or a node
may be lost at any moment, or be cut off and go on: a task may run twice, even at once and with other outcomes, and one
of them becomes the shard. A driver that is lost leaves shards without a record, which the next one encodes again.
"""

import pickle
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from vistok.data.attempt import Attempt, commit_attempt, write_attempt
from vistok.data.encode_shard import Loader, OnImages, ShardWork
from vistok.data.encode_together import Tasks, in_lanes
from vistok.data.inputs.entry import Entry
from vistok.data.load import Loaded, load
from vistok.data.remote import RemoteFiles

_COMMITS = 16  # at once: behind a URL one takes a dozen requests, one after the other
_POLL_SECONDS = 0.02
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
        self.run([work], {shard: (entries, (0,)) for shard, entries in shards.items()}, on_images)

    def run(self, works: Sequence[ShardWork], tasks: Tasks, on_images: OnImages) -> None:
        """Encode and commit shards with one tokenizer or several, whose works have one schedule. Raises: as a call."""
        for work in works:
            if isinstance(work.files, RemoteFiles) and work.files.in_this_process_only:
                raise ValueError(f"{work.files.name}: workers on a cluster cannot write there; give another URL")
        if not tasks:
            return
        with _connected(self.address):
            self._run(works, tasks, on_images)

    def _run(self, works: Sequence[ShardWork], tasks: Tasks, on_images: OnImages) -> None:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        cpus = 0.0 if self.decode_cpus else self.num_cpus
        worker = ray.remote(num_cpus=cpus, num_gpus=self.num_gpus, max_restarts=0, max_task_retries=0)(_Worker)
        # Pickled here and put once: every actor, and every one that replaces it, takes the same bytes.
        pickled = ray.put(pickle.dumps(works))
        schedule = works[0].schedule
        left = deque(tasks)
        running: dict[Any, tuple[Any, int]] = {}
        committing: dict[Future[None], tuple[Any, int]] = {}
        deaths = 0

        def submit(actor: Any) -> None:
            if left:
                shard = left.popleft()
                running[actor.encode.remote(shard, *tasks[shard])] = actor, shard
            else:
                ray.kill(actor)  # so that another run may have its place

        def commit(which: Sequence[int], attempts: Sequence[Attempt]) -> None:
            for number, attempt in zip(which, attempts, strict=True):
                commit_attempt(works[number], attempt)

        for _ in range(min(schedule.workers, len(left))):
            submit(worker.remote(pickled, self.decode_cpus))
        pool = ThreadPoolExecutor(_COMMITS, thread_name_prefix="vistok-commit")
        try:
            while running or committing:
                for done in [future for future in committing if future.done()]:
                    done.result()
                    actor, shard = committing.pop(done)
                    entries, which = tasks[shard]
                    on_images(len(entries) * len(which))
                    submit(actor)
                if not running:
                    wait(committing, return_when=FIRST_COMPLETED)
                    continue
                answers, _ = ray.wait([*running], num_returns=1, timeout=_POLL_SECONDS if committing else None)
                if not answers:
                    continue
                [answer] = answers
                actor, shard = running.pop(answer)
                try:
                    attempts: list[Attempt] = ray.get(answer)
                except RayTaskError as error:  # of the task itself, not of where it ran
                    ray.kill(actor)
                    cause = error.cause
                    raise cause if isinstance(cause, Exception) else error from None
                except (RayActorError, RayError) as error:
                    deaths += 1
                    if deaths > schedule.max_restarts:
                        lacking = 1 + len(left) + len(running) + len(committing)
                        raise ChildProcessError(
                            f"workers on the cluster died {deaths} times, {lacking} of {len(tasks)} shards are "
                            f"left; run the same command again to go on. The last one: {error}"
                        ) from error
                    ray.kill(actor)  # it may only be out of reach
                    left.appendleft(shard)
                    actor = worker.remote(pickled, self.decode_cpus)
                else:
                    committing[pool.submit(commit, tasks[shard][1], attempts)] = actor, shard
                    continue
                submit(actor)
        finally:
            for actor, _ in (*running.values(), *committing.values()):
                ray.kill(actor)
            pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """An actor: a process of the cluster that encodes one shard after the other."""

    def __init__(self, pickled: bytes, decode_cpus: float) -> None:
        self._works: Sequence[ShardWork] = pickle.loads(pickled)
        self._decode_cpus = decode_cpus

    def encode(self, shard: int, entries: Sequence[Entry], which: Sequence[int]) -> list[Attempt]:
        """Write the data of a shard by the works numbered `which`, apart from what others have written."""
        loader: Loader = partial(_decoded_elsewhere, self._decode_cpus) if self._decode_cpus else load
        works = [self._works[number] for number in which]
        if len(works) == 1:
            return [write_attempt(works[0], shard, entries, loader)]
        return in_lanes(works, entries, lambda work, own: write_attempt(work, shard, entries, own), loader)


@dataclass(frozen=True)
class _Failure:
    """A picture that could not be loaded, told by another process."""

    place: int
    what: "_Told"


@dataclass(frozen=True)
class _Told:
    """An exception as text: not every one of them can be pickled."""

    error: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> "_Told":
        return cls(type(error).__name__, str(error))

    def exception(self) -> Exception:
        found: Exception = type(self.error, (Exception,), {})(self.message)
        return found


def _decode(entries: Sequence[Entry], options: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Any] | _Failure]:
    """A task of the decode pool: rows and pixels [3, H, W] in order, failures between them."""
    place = {entry.key: number for number, entry in enumerate(entries)}
    failures: deque[_Failure] = deque()

    def failed(entry: Entry, error: Exception) -> None:
        failures.append(_Failure(place[entry.key], _Told.of(error)))

    torch.set_num_threads(1)
    for loaded in load(entries, **options, failed=failed):
        while failures:
            yield failures.popleft()
        yield {**loaded.row, "crop": _packed(loaded.row["crop"])}, _packed(loaded.image)
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
            failed(entries[found.place], found.what.exception())
        else:
            row, pixels = found
            yield Loaded({**row, "crop": _unpacked(row["crop"])}, _unpacked(pixels))


def _packed(value: Any) -> Any:
    """Pixels of one tokenizer, or of each of several, without what cannot travel."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, list):
        return [_packed(one) for one in value]
    return _Told.of(value) if isinstance(value, Exception) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))  # a copy: the cluster's memory is read-only
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    return value.exception() if isinstance(value, _Told) else value


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
