import hashlib
import io
import threading

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vistok.data.inputs.entry import Entry, Record
from vistok.data.load import MAX_BYTES, _Room, load
from vistok.layers.preprocess import Preprocess


def _png(shade: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side // 2), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


class _Shades:
    """An input of pictures in memory, one shade each; `late` holds one of them back until all others were asked for."""

    fields = pa.schema([("number", pa.int8())])

    def __init__(self, count: int, late: int | None = None) -> None:
        self.count, self.late = count, late
        self.others = threading.Semaphore(0)

    def entries(self) -> list[Entry]:
        return [Entry(f"{number}", "memory", number) for number in range(self.count)]

    def read(self, entry: Entry) -> Record:
        if entry.offset == self.late:
            for _ in range(2):
                self.others.acquire(timeout=10)
        self.others.release()
        return Record(_png(entry.offset), f"shade {entry.offset}", {"number": entry.offset})


def _load(source, entries=None, preprocess=None, threads=2, max_pixels=10**6):
    failed: list[tuple[str, str]] = []
    options = {"threads": threads, "ahead": 4, "max_pixels": max_pixels}
    found = load(
        entries or source.entries(),
        source,
        source.fields,
        preprocess or Preprocess(),
        **options,
        failed=lambda e, x: failed.append((e.key, str(x))),
    )
    return list(found), failed


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pictures_come_in_order_however_long_each_takes(threads):
    loaded, failed = _load(_Shades(20, late=3 if threads > 2 else None), threads=threads)
    assert [int(one.image[0, 0, 0]) for one in loaded] == list(range(20)) and not failed
    assert loaded[7].row == {
        "key": "7",
        "source": "memory",
        "source_offset": 7,
        "digest": hashlib.sha256(_png(7)).hexdigest()[:32],
        "caption": "shade 7",
        "number": 7,
        "width": 8,
        "height": 4,
        "crop": None,
    }


def test_less_room_than_one_picture_needs_changes_nothing_but_how_many_wait():
    source = _Shades(12)
    whole, _ = _load(source, threads=3)
    room, failed = _load(source, threads=3, max_pixels=32)
    assert not failed and [one.row for one in room] == [one.row for one in whole]


def test_what_cannot_be_read_is_told_with_its_reason_and_takes_nothing_with_it():
    entries = [
        Entry("fine", "memory", 1),
        Entry("listed bad", "memory", 2, problem="its name leads out of the archive"),
        Entry("huge", "memory", 3, size=MAX_BYTES + 1),
        Entry("number does not fit", "memory", 200),
        Entry("fine too", "memory", 4),
    ]
    loaded, failed = _load(_Shades(1), entries)
    assert [one.row["key"] for one in loaded] == ["fine", "fine too"]
    assert [key for key, _ in failed] == ["listed bad", "huge", "number does not fit"]
    assert failed[0][1] == "its name leads out of the archive" and "at most" in failed[1][1]
    assert "200" in failed[2][1]


def test_the_crop_is_recorded_in_pixels_of_the_picture():
    (one,), _ = _load(_Shades(1), preprocess=Preprocess(resize=2, crop=2))
    assert one.image.shape == (3, 2, 2) and one.image.dtype == torch.float32
    assert one.row["crop"] == (0, 2, 4, 4)


def test_any_callable_does_as_preprocess():
    (one,), _ = _load(_Shades(1), preprocess=lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    assert one.image.dtype == torch.float32 and one.row["crop"] is None


def test_a_reader_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    source = _Shades(50)
    found = load(
        source.entries(),
        source,
        source.fields,
        Preprocess(),
        threads=3,
        ahead=4,
        max_pixels=32,
        failed=lambda entry, error: None,
    )
    next(found)
    found.close()
    assert threading.active_count() == before


def test_no_more_pixels_than_fit_are_let_in_and_always_in_turn():
    room = _Room(10)
    seen: list[int] = []

    def enter(turn: int) -> None:
        room.enter(turn, 6)
        seen.append(turn)

    threads = [threading.Thread(target=enter, args=(turn,)) for turn in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for number in range(3):
        threads[2 - number].join(timeout=10)
        assert seen == list(range(number + 1))
        room.leave(6)
