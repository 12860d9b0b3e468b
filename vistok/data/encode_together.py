"""Pictures to several token stores, one for each tokenizer, read and decoded once for all of them.

One store for each, not one with a set of columns for each: tokens of two tokenizers differ in length, grid and header,
and a store of one plan stays what the rest of vistok knows. Each is the same to the byte as from a run of its tokenizer
alone, so it may be begun together and gone on with alone, or the other way round.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any, Protocol, TypeVar

import torch

from vistok.data.encode import EncodeSummary, run_plan
from vistok.data.encode_shard import Loader, OnImages, Schedule, ShardWork, ignored
from vistok.data.inputs.entry import Entry
from vistok.data.load import Loaded, load
from vistok.data.plan import Plan
from vistok.data.processes import run_in_processes
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Tokenizer

_HELD_BACK = 2  # pictures that wait for each tokenizer
_SHARED = ("inputs", "shard_samples", "max_pixels", "threads", "device")
_T = TypeVar("_T")
Tasks = Mapping[int, tuple[Sequence[Entry], tuple[int, ...]]]  # by shard: its entries, and the works that lack it


class ExecutorOfSeveral(Protocol):
    """Encodes and commits shards with several tokenizers, somewhere, as `Executor` does with one."""

    def run(self, works: Sequence[ShardWork], tasks: Tasks, on_images: OnImages) -> None: ...


def run_plans(
    plans: Sequence[Plan],
    tokenizers: Sequence[Tokenizer],
    outs: Sequence[str | Path],
    schedule: Schedule | None = None,
    *,
    on_images: OnImages = ignored,
    executor: ExecutorOfSeveral | None = None,
) -> list[EncodeSummary]:
    """Do what is left of several plans of one input, as `run_plan` does; a picture that any needs is decoded once.

    on_images: hears of a picture once for each tokenizer. executor: None = this machine.
    Raises: ValueError if the plans differ in input, shards or machine; as `run_plan` for each.
    """
    schedule = schedule or Schedule()
    for name in _SHARED:
        if len({repr(plan.record[name]) for plan in plans}) > 1:
            raise ValueError(f"encode: expected plans of the same {name}, got {[plan.record[name] for plan in plans]}")
    left: list[tuple[ShardWork, Mapping[int, Sequence[Entry]]]] = []
    summaries: list[EncodeSummary] = []

    def run(number: int) -> None:
        """Claims and holds one store inside the other, and works on all of them in the innermost."""
        if number == len(plans):
            _encode(left, schedule, on_images, executor)
            return

        def collect(work: ShardWork, shards: Mapping[int, Sequence[Entry]], on_images: OnImages) -> None:
            left.append((work, shards))
            run(number + 1)

        summary = run_plan(
            plans[number], tokenizers[number], outs[number], schedule, on_images=on_images, executor=collect
        )
        summaries.append(summary)

    run(0)
    return summaries[::-1]


def _encode(
    left: Sequence[tuple[ShardWork, Mapping[int, Sequence[Entry]]]],
    schedule: Schedule,
    on_images: OnImages,
    executor: ExecutorOfSeveral | None,
) -> None:
    together = _Together(tuple(work for work, _ in left))
    numbers = sorted({shard for _, shards in left for shard in shards})
    tasks: dict[int, tuple[Sequence[Entry], tuple[int, ...]]] = {}
    for shard in numbers:
        which = tuple(place for place, (_, shards) in enumerate(left) if shard in shards)
        tasks[shard] = (left[which[0]][1][shard], which)
    if executor is not None:
        executor.run(together.works, tasks, on_images)
        return
    if schedule.workers == 1 or len(tasks) <= 1:
        for shard, task in tasks.items():
            together.encode_and_commit(shard, *task, on_images)
        return
    run_in_processes(
        together.encode_and_commit,
        tasks,
        workers=schedule.workers,
        max_restarts=schedule.max_restarts,
        on_count=on_images,
    )


@dataclass(frozen=True)
class _Together:
    """The works of all tokenizers. Pickles, for worker processes."""

    works: tuple[ShardWork, ...]

    def encode_and_commit(
        self, shard: int, entries: Sequence[Entry], which: tuple[int, ...], on_images: OnImages = ignored
    ) -> None:
        """Encode one shard with the tokenizers numbered `which` and commit it to their stores."""

        def encode(work: ShardWork, loader: Loader) -> None:
            record = work.encode(shard, entries, on_images, loader)
            if record is not None:
                work.commit(record)

        in_lanes([self.works[number] for number in which], entries, encode)


def in_lanes(
    works: Sequence[ShardWork],
    entries: Sequence[Entry],
    encode: Callable[[ShardWork, Loader], _T],
    loader: Loader = load,
) -> list[_T]:
    """Call `encode` for each work, in a thread of its own that takes pictures as they come; what they return.

    loader: reads and decodes for all of them. Raises: what `encode` raises.
    """
    lanes = [_Lane() for _ in works]
    with _threads(works[0].plan.settings.threads), ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(_run_lane, encode, work, lane) for work, lane in zip(works, lanes, strict=True)]
        try:
            _decode_once(works, entries, lanes, loader)
        finally:
            for lane in lanes:
                lane.end()
    return [future.result() for future in running]


def _run_lane(encode: Callable[[ShardWork, Loader], _T], work: ShardWork, lane: "_Lane") -> _T:
    def loader(*_: Any, failed: Callable[[Entry, Exception], None], **__: Any) -> Iterator[Loaded]:
        for item in lane:
            if isinstance(item, Loaded):
                yield item
            else:
                failed(*item)
        if not lane.whole:
            raise RuntimeError("encode: the pictures of a shard were not read to their end")

    try:
        return encode(work, loader)
    finally:
        lane.leave()


def _decode_once(
    works: Sequence[ShardWork], entries: Sequence[Entry], lanes: Sequence["_Lane"], loader: Loader
) -> None:
    """Every picture to all lanes, to each as its tokenizer's preprocess makes it, or with what went wrong."""

    def all_failed(entry: Entry, error: Exception) -> None:
        for lane in lanes:
            lane.put((entry, error))

    plan, by_key = works[0].plan, {entry.key: entry for entry in entries}
    each = _EachOf([getattr(work.tokenizer, "preprocess", Preprocess()) for work in works])
    loaded = loader(
        entries,
        plan.input,
        plan.fields,
        each,
        threads=works[0].schedule.decode_threads,
        ahead=2 * plan.settings.batch,
        max_pixels=plan.settings.max_pixels,
        failed=all_failed,
    )
    for row, images in loaded:
        for lane, crop, image in zip(lanes, row["crop"], images, strict=True):
            wrong = next((found for found in (crop, image) if isinstance(found, Exception)), None)
            lane.put(Loaded({**row, "crop": crop}, image) if wrong is None else (by_key[row["key"]], wrong))
    for lane in lanes:
        lane.whole = True


class _EachOf:
    """Several preprocesses as one: what each makes of a picture, or the exception that it raises."""

    def __init__(self, preprocesses: Sequence[Any]) -> None:
        self._preprocesses = preprocesses

    def crop_box(self, height: int, width: int) -> list[Any]:
        boxes = [getattr(one, "crop_box", lambda height, width: None) for one in self._preprocesses]
        return [_outcome(box, height, width) for box in boxes]

    def arrange(self, array: Any) -> Any:
        return [_outcome(getattr(one, "arrange", one), array) for one in self._preprocesses]

    __call__ = arrange


def _outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        return error


class _Lane:
    """Pictures on their way to one tokenizer, few at a time. whole: all of the shard's have been put in."""

    def __init__(self) -> None:
        self.whole = False
        self._items: deque[Any] = deque()
        self._ended = self._left = False
        self._changed = Condition()

    def put(self, item: Any) -> None:
        """Wait for room; nothing is kept once the taker has left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or len(self._items) < _HELD_BACK)
            if not self._left:
                self._items.append(item)
            self._changed.notify_all()

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def leave(self) -> None:
        """No more will be taken."""
        with self._changed:
            self._left = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


@contextmanager
def _threads(count: int) -> Iterator[None]:
    # Set around all lanes: each sets its own and puts back what it found, which must not be another number.
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
