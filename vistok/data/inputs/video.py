"""Videos as the pictures that they show, one entry a frame, by PyAV (extra `video`).

A frame is known by its time stamp, so reading it gives the same pixels wherever the reading began. F frames of a video.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from vistok.data.decode_image import MAX_PIXELS
from vistok.data.inputs.entry import Entry, Record
from vistok.data.inputs.files import Files, check_unchanged, in_order, spelled, suffix_of, version_of
from vistok.data.inputs.kept import Kept

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_FIELDS = pa.schema([("frame", pa.int64()), ("seconds", pa.float64())])
_OPEN = 8  # videos that a process holds open


@dataclass(frozen=True)
class VideoInput:
    """Frames of the videos among `files`, with their number and their time from the first frame on.

    fps: so many a second, each the one on show at its time; frames: so many of each video, evenly spread; neither:
    every one. Keys are `file#number`, entries lie at their time stamps.
    """

    files: Files
    fps: float | None = None
    frames: int | None = None
    opened: Kept = field(default_factory=lambda: Kept(_OPEN), repr=False, compare=False)
    listed: Kept = field(default_factory=Kept, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises: ValueError if fps and frames are both given or one is out of range."""
        if self.fps is not None and self.frames is not None:
            raise ValueError(f"videos: expected fps or frames, got both ({self.fps} and {self.frames})")
        if self.fps is not None and not 0 < self.fps < 1e6:
            raise ValueError(f"videos: expected fps above 0, got {self.fps}")
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"videos: expected frames >= 1, got {self.frames}")

    @property
    def fields(self) -> pa.Schema:
        """frame: its number in the video, from 0; seconds: its time."""
        return _FIELDS

    @property
    def left_out(self) -> dict[str, int]:
        """Other files by suffix."""
        found: dict[str, int] = dict(self.files.left_out)
        for name in self.files.names:
            if not is_video(name):
                found[suffix_of(name)] = found.get(suffix_of(name), 0) + 1
        return dict(sorted(found.items()))

    @property
    def decoder(self) -> str:
        """Libraries and versions that decide the pixels."""
        av = _av()
        versions = {name: ".".join(map(str, numbers)) for name, numbers in av.library_versions.items()}
        return f"PyAV {av.__version__}, " + ", ".join(
            f"{name} {versions[name]}" for name in ("libavcodec", "libswscale") if name in versions
        )

    def entries(self) -> list[Entry]:
        """The chosen frames, and a problem for each video that cannot be read."""
        _av()
        found = list(self.files.problems)
        for name in filter(is_video, self.files.names):
            source = spelled(name)
            try:
                version = version_of(self.files.path(source).stat())
                stamps, rate = self._stamps(source)
                found += [
                    Entry(f"{source}#{number:06d}", source, stamps[number], -1, version)
                    for number in _chosen(stamps, rate, self.fps, self.frames)
                ]
            except (OSError, ValueError) as error:
                found.append(Entry(source, source, problem=f"{source}: {error}"))
        return in_order(found)

    def read(self, entry: Entry) -> Record:
        """One frame, as an uncompressed picture. Raises: ValueError, OSError if it cannot be read or has changed."""
        path = self.files.path(entry.source)
        check_unchanged(path, entry, path.stat()) if not entry.problem else check_unchanged(path, entry)
        number = int(entry.key.rpartition("#")[2])
        reader = self.opened.get((entry.source, entry.version), lambda: _Reader(path))
        return Record(
            reader.picture(entry.offset),
            None,
            {"frame": number, "seconds": float((entry.offset - self._start(entry)) * reader.rate)},
        )

    def _start(self, entry: Entry) -> int:
        return self._stamps(entry.source)[0][0]

    def _stamps(self, source: str) -> tuple[list[int], Fraction]:
        """Time stamps of all frames [F] in the order they are shown, and the seconds of one unit."""
        path = self.files.path(source)
        return self.listed.get((source, version_of(path.stat())), lambda: _time_stamps(path))


def is_video(name: str) -> bool:
    """Whether a file name ends like a video's."""
    return name.lower().endswith(SUFFIXES)


class _Reader:
    """A video held open. Frames asked for in order are decoded once; going back costs the way from a key frame."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        self._container: Any
        self._stream: Any
        self._open()
        context = self._stream.codec_context
        self.rate: Fraction = self._stream.time_base
        if context.width * context.height > MAX_PIXELS:
            raise ValueError(
                f"{path}: expected at most {MAX_PIXELS} pixels, its header says {context.width} x {context.height}"
            )
        self._frames: Iterator[Any] = iter(())
        self._last: int | None = None

    def picture(self, stamp: int) -> bytes:
        """The frame of a time stamp as a BMP file. Raises: ValueError if it cannot be decoded."""
        with self._lock, _errors_named(self._path):
            frame = self._forward(stamp)
            if frame is None:
                self._container.seek(stamp, stream=self._stream, backward=True)
                frame = self._forward(stamp, anew=True)
            if frame is None:  # a container without an index may seek beyond what it was asked for
                self._open()
                frame = self._forward(stamp, anew=True)
            if frame is None:
                raise ValueError(f"there is no frame at time stamp {stamp}; the video may be damaged before it")
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
        content = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(content, "BMP")
        return content.getvalue()

    def _open(self) -> None:
        self._container = _av().open(str(self._path))
        self._stream = self._container.streams.video[0]

    def _forward(self, stamp: int, *, anew: bool = False) -> Any:
        """Decode up to a frame, from where the container stands if `anew`; None if it is not ahead."""
        if anew:
            self._frames, self._last = self._container.decode(self._stream), None
        elif self._last is None or self._last >= stamp:
            return None
        for frame in self._frames:
            if frame.pts is None:
                continue
            self._last = frame.pts
            if frame.pts >= stamp:
                return frame if frame.pts == stamp else None
        self._last = None
        return None


def _time_stamps(path: Path) -> tuple[list[int], Fraction]:
    with _errors_named(path), _av().open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("there is no video in it")
        stream: Any = container.streams.video[0]
        stamps = {packet.pts for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard}
        if not stamps:
            raise ValueError("there are no frames with a time stamp in it")
        return sorted(stamps), stream.time_base


def _chosen(stamps: list[int], rate: Fraction, fps: float | None, frames: int | None) -> list[int]:
    """Numbers of frames, rising, none twice."""
    total = len(stamps)
    if frames is not None:
        return list(dict.fromkeys((2 * turn + 1) * total // (2 * frames) for turn in range(frames)))
    if fps is None:
        return list(range(total))
    step = 1 / (Fraction(str(fps)) * rate)  # in units of time stamps
    turns = int((stamps[-1] - stamps[0]) / step) + 1
    shown = np.searchsorted(stamps, [float(stamps[0] + turn * step) for turn in range(turns)], side="right") - 1
    return list(dict.fromkeys(shown.tolist()))


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # PyAV's have many bases
        raise ValueError(f"{path.name}: expected a readable video, got {error}") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV; install the extra: pip install 'vistok[video]'") from error
    return av
