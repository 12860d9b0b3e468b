"""The pictures of a shard, read and decoded by threads ahead of the tokenizer: in order, in bounded memory.

Nothing here changes a byte of the store but the decoder, so the number of threads is free.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition
from typing import Any, NamedTuple

import pyarrow as pa
from torch import Tensor

from vistok.data.decode_image import decode_image
from vistok.data.inputs.entry import Entry, Input

MAX_BYTES = 1 << 28  # of one picture's file


class Loaded(NamedTuple):
    """A picture: its row for the parquet file, and [3, H, W], uint8 or float32 in [0, 1], ready for `as_float`."""

    row: dict[str, Any]
    image: Tensor


def load(
    entries: Iterable[Entry],
    source: Input,
    fields: pa.Schema,
    preprocess: Callable[[Any], Tensor],
    *,
    threads: int,
    ahead: int,
    max_pixels: int,
    failed: Callable[[Entry, Exception], None],
) -> Iterator[Loaded]:
    """Yield every entry that can be read, in order; `failed` hears of the others.

    fields: columns of the rows besides the store's own. At most `ahead` pictures, and about `max_pixels` decoded
    pixels, wait at a time, besides one in each thread.
    """
    reader = _Reader(source, fields, preprocess, max_pixels, _Room(max_pixels))
    waiting: deque[tuple[Entry, Future[_Decoded]]] = deque()

    def first() -> Iterator[Loaded]:
        entry, future = waiting.popleft()
        try:
            decoded = future.result()
        except Exception as error:  # whatever is wrong with one picture, the others go on
            failed(entry, error)
        else:
            yield decoded.loaded  # what is large is encoded at once, so until then no other comes in
            reader.room.leave(decoded.pixels)

    with ThreadPoolExecutor(threads, thread_name_prefix="vistok-decode") as pool:
        try:
            for turn, entry in enumerate(entries):
                waiting.append((entry, pool.submit(reader.read, turn, entry)))
                if len(waiting) >= threads + ahead:
                    yield from first()
            while waiting:
                yield from first()
        finally:
            reader.room.close()
            pool.shutdown(cancel_futures=True)


class _Decoded(NamedTuple):
    loaded: Loaded
    pixels: int


class _Reader(NamedTuple):
    source: Input
    fields: pa.Schema
    preprocess: Callable[[Any], Tensor]
    max_pixels: int
    room: "_Room"

    def read(self, turn: int, entry: Entry) -> _Decoded:
        entered = 0

        def admit(pixels: int) -> None:
            nonlocal entered
            self.room.enter(turn, pixels)
            entered = pixels

        try:
            row, content = _content(entry, self.source, self.fields)
            array = decode_image(content, entry.key, max_pixels=self.max_pixels, admit=admit)
            height, width = array.shape[:2]
            crop_box = getattr(self.preprocess, "crop_box", lambda height, width: None)
            row |= {"width": width, "height": height, "crop": crop_box(height, width)}
            image = getattr(self.preprocess, "arrange", self.preprocess)(array)
        except BaseException:
            self.room.leave(entered)
            raise
        finally:
            self.room.pass_over(turn)
        return _Decoded(Loaded(row, image), entered)


def _content(entry: Entry, source: Input, fields: pa.Schema) -> tuple[dict[str, Any], bytes]:
    if entry.problem:
        raise ValueError(entry.problem)
    if entry.size > MAX_BYTES:
        raise ValueError(f"{entry.key}: expected a picture of at most {MAX_BYTES} bytes, it has {entry.size}")
    record = source.read(entry)
    row: dict[str, Any] = {
        "key": entry.key,
        "source": entry.source,
        "source_offset": entry.offset,
        "digest": hashlib.sha256(record.content).hexdigest()[:32],
        "caption": pa.scalar(record.caption, pa.string()).as_py(),
    }
    for field in fields:
        # One value that does not fit its column would otherwise be found when the whole shard is written.
        row[field.name] = pa.scalar(record.fields.get(field.name), field.type).as_py()
    return row, record.content


class _Room:
    """Lets decoded pictures into memory in their order, while their pixels fit; one picture always fits."""

    def __init__(self, pixels: int) -> None:
        self._limit = pixels
        self._used = 0
        self._turn = 0
        self._over: set[int] = set()
        self._closed = False
        self._changed = Condition()

    def enter(self, turn: int, pixels: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._turn == turn and self._fits(pixels)))
            if self._closed:
                raise RuntimeError("nobody waits for this picture any more")
            self._used += pixels
        self.pass_over(turn)

    def pass_over(self, turn: int) -> None:
        """Wait for this turn no longer: its picture has entered, or never will."""
        with self._changed:
            if turn >= self._turn:
                self._over.add(turn)
            while self._turn in self._over:
                self._over.remove(self._turn)
                self._turn += 1
            self._changed.notify_all()

    def leave(self, pixels: int) -> None:
        with self._changed:
            self._used -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._used == 0 or self._used + pixels <= self._limit
