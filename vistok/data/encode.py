"""Pictures to a token store: the worker for one shard, and the loop over shards in this process or in several.

A picture that cannot be encoded is written to errors/NNNNN.jsonl and takes no other with it. The plan fixes what is
computed together, so the number of workers changes no byte.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from vistok.data.images import open_image
from vistok.data.plan import EncodeSettings, Picture, Plan, claim_folder, make_plan
from vistok.data.shard import Sample, read_commit, stored_columns, write_shard
from vistok.layers.preprocess import Preprocess
from vistok.protocols import Tokenizer

_READERS = 2  # threads that decompress pictures while the tokenizer computes
_AHEAD = 4  # pictures they may be ahead
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class EncodeSummary:
    """images, tokens, bytes, errors, shards: in the whole store; encoded: images of this run, which took `seconds`."""

    images: int
    tokens: int
    bytes: int
    errors: int
    shards: int
    shards_skipped: int
    encoded: int
    seconds: float
    images_per_second: float
    plan_hash: str


class _Item(NamedTuple):
    row: dict[str, Any]
    image: Tensor


def encode_folder(
    tokenizer: Tokenizer,
    source: str | Path,
    out: str | Path,
    settings: EncodeSettings | None = None,
    *,
    workers: int = 1,
) -> EncodeSummary:
    """Encode every picture below `source` into the token store `out`; run again to go on after an interruption.

    Raises: as `make_plan` and `run_plan`.
    """
    return run_plan(make_plan(tokenizer, source, settings), tokenizer, out, workers=workers)


def run_plan(
    plan: Plan,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    workers: int = 1,
    on_images: Callable[[int], None] = lambda count: None,
) -> EncodeSummary:
    """Do what is left of a plan. `on_images` hears how many pictures are done since it was last called.

    workers: processes that take shards in turn; 1 = this process. Raises: ValueError if `out` belongs to another plan;
    ChildProcessError if a worker process dies.
    """
    if workers < 1:
        raise ValueError(f"encode: expected workers >= 1, got {workers}")
    root = Path(out)
    claim_folder(plan, root)
    begin = time.perf_counter()
    left = [shard for shard in range(plan.num_shards) if read_commit(root, shard, plan.hash) is None]
    on_images(len(plan.pictures) - sum(len(plan.shard(shard)) for shard in left))
    if workers == 1 or len(left) <= 1:
        for shard in left:
            encode_shard(plan, tokenizer, root, shard, on_images)
    else:
        _in_processes(plan, tokenizer, root, left, min(workers, len(left)), on_images)
    return _summary(plan, root, left, time.perf_counter() - begin)


def encode_shard(
    plan: Plan, tokenizer: Tokenizer, out: Path, shard: int, on_images: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """Encode one shard and commit it; its commit record."""
    begin = time.perf_counter()
    samples: list[Sample] = []
    errors: list[dict[str, str]] = []
    with _ready_to_encode(tokenizer, plan.settings):
        items = _loaded(plan.shard(shard), tokenizer, errors, on_images)
        for batch in batches_by_size(items, plan.settings.batch, plan.settings.batch_pixels):
            samples += _encoded(tokenizer, batch, plan, errors)
            on_images(len(batch))
    samples.sort(key=lambda sample: str(sample.row["key"]))
    errors.sort(key=lambda error: error["key"])
    header = {name: str(plan.record[name]) for name in ("tokenizer", "fingerprint")}
    seconds = time.perf_counter() - begin
    return write_shard(out, shard, samples, errors, header=header, plan_hash=plan.hash, seconds=seconds)


def batches_by_size(items: Iterable[_Item], batch: int, max_pixels: int) -> Iterator[list[_Item]]:
    """Group images [3, H, W] of one size, at most `batch` of them; no more than about `max_pixels` wait to be grouped.

    Which images meet depends on their order only.
    """
    waiting: dict[tuple[int, int], list[_Item]] = {}

    def pixels(size: tuple[int, int]) -> int:
        return len(waiting[size]) * size[0] * size[1]

    for item in items:
        height, width = item.image.shape[1:]
        waiting.setdefault((height, width), []).append(item)
        if len(waiting[height, width]) == batch:
            yield waiting.pop((height, width))
        elif sum(map(pixels, waiting)) > max_pixels:
            yield waiting.pop(max(waiting, key=pixels))
    yield from waiting.values()


def _loaded(
    pictures: Iterable[Picture],
    tokenizer: Tokenizer,
    errors: list[dict[str, str]],
    on_images: Callable[[int], None],
) -> Iterator[_Item]:
    preprocess = getattr(tokenizer, "preprocess", Preprocess())
    for picture, opening in _opened(pictures):
        try:
            image = opening.result()
            row = {"key": picture.key, "source": picture.key, "source_offset": 0}
            item = _Item(row | {"width": image.width, "height": image.height}, preprocess(image))
        except Exception as error:  # whatever is wrong with one picture, the others go on
            errors.append(_error(picture.key, error))
            on_images(1)
        else:
            yield item


def _opened(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Future[Image.Image]]]:
    waiting: deque[tuple[Picture, Future[Image.Image]]] = deque()
    with ThreadPoolExecutor(_READERS) as pool:
        for picture in pictures:
            waiting.append((picture, pool.submit(_open, picture)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _open(picture: Picture) -> Image.Image:
    state = picture.path.stat()
    if (state.st_size, state.st_mtime_ns) != (picture.size, picture.mtime_ns):
        raise ValueError(f"{picture.path}: expected the file that was planned, it has changed since")
    return open_image(picture.path)


def _encoded(tokenizer: Tokenizer, batch: list[_Item], plan: Plan, errors: list[dict[str, str]]) -> list[Sample]:
    try:
        images = torch.stack([item.image for item in batch]).to(plan.settings.device)
        tokens = tokenizer.encode(images, **plan.settings.options).to("cpu").check()
        columns: dict[str, str] = plan.record["columns"]
        return [
            Sample(item.row, one.spec, stored_columns(one, columns)) for item, one in zip(batch, tokens, strict=True)
        ]
    except Exception as error:  # find out which one it was, the others are encoded
        if len(batch) == 1:
            errors.append(_error(batch[0].row["key"], error))
            return []
    return [sample for item in batch for sample in _encoded(tokenizer, [item], plan, errors)]


def _error(key: str, error: Exception) -> dict[str, str]:
    return {"key": key, "error": type(error).__name__, "message": str(error)}


@contextmanager
def _ready_to_encode(tokenizer: Tokenizer, settings: EncodeSettings) -> Iterator[None]:
    threads = torch.get_num_threads()
    training = isinstance(tokenizer, nn.Module) and tokenizer.training
    if isinstance(tokenizer, nn.Module):
        tokenizer.eval().to(settings.device)
    torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        if isinstance(tokenizer, nn.Module):
            tokenizer.train(training)


def _summary(plan: Plan, root: Path, done: list[int], seconds: float) -> EncodeSummary:
    found = [read_commit(root, shard, plan.hash) for shard in range(plan.num_shards)]
    commits = [record for record in found if record is not None]
    encoded = sum(record["n_samples"] for record in commits if record["shard"] in done)
    return EncodeSummary(
        images=sum(record["n_samples"] for record in commits),
        tokens=sum(record["n_tokens"] for record in commits),
        bytes=sum(record["bytes"] for record in commits),
        errors=sum(record["n_errors"] for record in commits),
        shards=len(commits),
        shards_skipped=plan.num_shards - len(done),
        encoded=encoded,
        seconds=seconds,
        images_per_second=encoded / seconds if seconds else 0.0,
        plan_hash=plan.hash,
    )


_work: dict[str, Any] = {}  # what a worker process was started with


def _in_processes(
    plan: Plan, tokenizer: Tokenizer, root: Path, shards: list[int], workers: int, on_images: Callable[[int], None]
) -> None:
    context = get_context("spawn")  # a fork of a process that has used torch's threads may hang
    counts: SimpleQueue[int] = context.SimpleQueue()
    # Pickled here, because multiprocessing would move the weights through shared memory, which may be small.
    start = (pickle.dumps((plan, tokenizer, root)), counts)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=start)
    try:
        waiting = {pool.submit(_work_on, shard) for shard in shards}
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            while not counts.empty():
                on_images(counts.get())
            for future in done:
                future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"{root}: a worker process died (out of memory?); run the same command again to go on, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(pickled: bytes, counts: "SimpleQueue[int]") -> None:
    _work["plan"], _work["tokenizer"], _work["root"] = pickle.loads(pickled)
    _work["counts"] = counts


def _work_on(shard: int) -> None:
    encode_shard(_work["plan"], _work["tokenizer"], _work["root"], shard, _work["counts"].put)
