"""One shard of an encode run: its pictures read, decoded, batched, encoded, and written as the data of a store.

A picture that cannot be encoded is written to errors/NNNNN.jsonl and takes no other with it. The plan fixes what is
computed together, so where and how often this runs changes no byte.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vistok.data.inputs.entry import Entry
from vistok.data.load import Loaded, load
from vistok.data.plan import EncodeSettings, Plan
from vistok.data.shard import Sample, Writes, stored_columns, write_commit, write_data, write_errors
from vistok.data.store_files import StoreFiles
from vistok.layers.preprocess import Preprocess, as_float
from vistok.protocols import Tokenizer

OnImages = Callable[[int], None]
Loader = Callable[..., Iterator[Loaded]]


def ignored(count: int) -> None:
    """Hears of progress and does nothing."""


@dataclass(frozen=True)
class Schedule:
    """How the work is done, none of which changes a byte of the store.

    workers: processes that take shards in turn; 1 = this process. decode_threads: threads per worker that read and
    decode pictures while the tokenizer computes. max_restarts: how many dead worker processes are replaced.
    max_error_rate: a shard with a larger share of pictures that failed is not committed. retry_errors: encode those
    shards again in which a picture failed.
    """

    workers: int = 1
    decode_threads: int = 2
    max_restarts: int = 3
    max_error_rate: float = 1.0
    retry_errors: bool = False

    def __post_init__(self) -> None:
        """Raises: ValueError naming what is out of range."""
        for name, least in (("workers", 1), ("decode_threads", 1), ("max_restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"encode: expected {name} >= {least}, got {getattr(self, name)}")
        if not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"encode: expected max_error_rate from 0 to 1, got {self.max_error_rate}")


@dataclass(frozen=True)
class ShardWork:
    """What a worker needs to encode any shard of a plan, besides the shard's entries: plan (without entries), model.

    Pickles, also for another machine, where `files` and the plan's input must mean the same places.
    """

    plan: Plan
    tokenizer: Tokenizer
    files: StoreFiles
    schedule: Schedule

    def commit(self, record: Mapping[str, Any]) -> None:
        """Make a shard part of the store. Raises: OSError naming the file."""
        write_commit(self.files, record)

    def encode(
        self,
        shard: int,
        entries: Sequence[Entry],
        on_images: OnImages = ignored,
        loader: Loader = load,
        into: Writes | None = None,
    ) -> dict[str, Any] | None:
        """Encode the entries of one shard and write its data; its commit record, None if too many failed.

        The same bytes each time, so a shard may be encoded twice, even by two workers at once. loader: who reads and
        decodes, with the arguments of `load`. into: where its data are put, None = the store.
        """
        begin = time.perf_counter()
        plan, settings = self.plan, self.plan.settings
        place = {entry.key: number for number, entry in enumerate(entries)}
        samples: list[Sample] = []
        errors: list[dict[str, str]] = []

        def failed(key: str, error: Exception) -> None:
            errors.append({"key": key, "error": type(error).__name__, "message": str(error)})
            on_images(1)

        with _ready_to_encode(self.tokenizer, settings):
            loaded = loader(
                entries,
                plan.input,
                plan.fields,
                getattr(self.tokenizer, "preprocess", Preprocess()),
                threads=self.schedule.decode_threads,
                ahead=2 * settings.batch,  # while one batch is encoded, the next can be decoded
                max_pixels=settings.max_pixels,
                failed=lambda entry, error: failed(entry.key, error),
            )
            for batch in batches_by_size(loaded, settings.batch, settings.batch_pixels):
                encoded = _encoded(self.tokenizer, batch, plan, failed)
                samples += encoded
                on_images(len(encoded))
        samples.sort(key=lambda sample: place[sample.row["key"]])
        errors.sort(key=lambda error: place[error["key"]])
        if len(errors) > self.schedule.max_error_rate * len(entries):
            write_errors(into or self.files, shard, errors)
            return None
        return write_data(
            into or self.files,
            shard,
            samples,
            errors,
            header={name: str(plan.record[name]) for name in ("tokenizer", "fingerprint")},
            plan_hash=plan.hash,
            schema=plan.row_schema,
            seconds=time.perf_counter() - begin,
        )

    def encode_and_commit(self, shard: int, entries: Sequence[Entry], on_images: OnImages = ignored) -> None:
        """Encode the entries of one shard and commit it, unless too many fail."""
        record = self.encode(shard, entries, on_images)
        if record is not None:
            self.commit(record)


def batches_by_size(items: Iterable[Loaded], batch: int, max_pixels: int) -> Iterator[list[Loaded]]:
    """Group images [3, H, W] of one size, at most `batch` of them; no more than about `max_pixels` wait to be grouped.

    Which images meet depends on their order only.
    """
    waiting: dict[tuple[int, int], list[Loaded]] = {}

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


def _encoded(
    tokenizer: Tokenizer, batch: list[Loaded], plan: Plan, failed: Callable[[str, Exception], None]
) -> list[Sample]:
    try:
        images = _batched([item.image for item in batch], plan.settings.device)
        options = plan.settings.options | _generators(tokenizer, batch, plan.settings)
        tokens = tokenizer.encode(images, **options).to("cpu").check()
        columns: dict[str, str] = plan.record["columns"]
        return [
            Sample(item.row, one.spec, stored_columns(one, columns)) for item, one in zip(batch, tokens, strict=True)
        ]
    except Exception as error:  # find out which one it was, the others are encoded
        if len(batch) == 1:
            failed(batch[0].row["key"], error)
            return []
    return [sample for item in batch for sample in _encoded(tokenizer, [item], plan, failed)]


def _batched(images: list[Tensor], device: str) -> Tensor:
    """Images [3, H, W] of one size, uint8 or float32, to float32 [B, 3, H, W] in [0, 1] on the device."""
    # In the layout that decoders give and convolutions like best.
    rows = [image.permute(1, 2, 0) for image in images]
    if torch.device(device).type != "cpu":
        return as_float(torch.stack(rows).to(device)).permute(0, 3, 1, 2)
    batch = np.empty((len(rows), *rows[0].shape), np.float32)
    for row, place in zip(rows, batch, strict=True):  # one by one, so that each stays in the cache
        # numpy, because torch's threads would take the cores from the decoders for as long as they wait for more.
        np.copyto(place, row.numpy())
        if row.dtype == torch.uint8:
            place /= np.float32(255)
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def _generators(tokenizer: Tokenizer, batch: list[Loaded], settings: EncodeSettings) -> dict[str, Any]:
    """A generator per picture for a tokenizer that can draw, so that what it draws does not depend on the batch."""
    if "generator" not in inspect.signature(tokenizer.encode).parameters:
        return {}
    digests = [hashlib.sha256(f"{settings.seed}:{item.row['key']}".encode()).digest() for item in batch]
    return {"generator": [torch.Generator().manual_seed(int.from_bytes(digest[:8], "little")) for digest in digests]}


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
