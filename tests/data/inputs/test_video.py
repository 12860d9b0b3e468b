import pickle
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vistok.data.decode_image import decode_image
from vistok.data.encode import encode_folder
from vistok.data.encode_shard import Schedule
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings
from vistok.data.store import TokenStore

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'vistok[video]'")

FRAMES, RATE = 40, 10


def write_video(path: Path, frames: int = FRAMES, codec: str = "libx264") -> np.ndarray:
    """A square that moves over a ramp, 32 x 48, 10 frames a second, a key frame every 12; returns what is shown."""
    rows, columns = np.mgrid[:32, :48]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, options={"g": "12", "bf": "2"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(frames):
            pixels = np.stack([rows * 4, columns * 4, (rows + columns + 3 * number) % 256], 2).astype(np.uint8)
            pixels[8:16, number : number + 8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    (root / "sub").mkdir()
    write_video(root / "a.mp4")
    write_video(root / "sub" / "b.mkv", 7, "mpeg4")
    (root / "notes.txt").write_text("who filmed it")
    return root


@pytest.fixture(scope="module")
def shown(folder) -> np.ndarray:
    with av.open(str(folder / "a.mp4")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_every_frame_is_an_entry_with_its_number_and_time(folder, shown):
    videos = open_input(folder)
    entries = videos.entries()
    keys = [entry.key for entry in entries]
    assert keys == [f"a.mp4#{number:06d}" for number in range(FRAMES)] + [f"sub/b.mkv#{n:06d}" for n in range(7)]
    assert videos.left_out == {".txt": 1} and videos.fields.names == ["frame", "seconds"]
    for number, entry in enumerate(entries[:FRAMES]):
        record = videos.read(entry)
        assert np.array_equal(decode_image(record.content, entry.key), shown[number])
        assert record.fields == {"frame": number, "seconds": pytest.approx(number / RATE)}


def test_a_frame_is_the_same_wherever_the_reading_began(folder, shown):
    videos = open_input(folder)
    entries = videos.entries()[:FRAMES]
    for number in (37, 3, 4, 5, 20, 19, 0, 39, 11, 12):
        other = pickle.loads(pickle.dumps(videos)) if number % 2 else videos
        assert np.array_equal(decode_image(other.read(entries[number]).content, "frame"), shown[number]), number


def test_fps_and_frames_choose_evenly(folder):
    def numbers(**options) -> list[int]:
        entries = open_input(folder, **options).entries()
        return [int(entry.key[-6:]) for entry in entries if entry.source == "a.mp4"]

    assert numbers(fps=2) == list(range(0, 40, 5))
    assert numbers(fps=2.5) == list(range(0, 40, 4))
    assert numbers(fps=4) == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37]
    assert numbers(fps=100) == list(range(40))
    assert numbers(frames=4) == [5, 15, 25, 35]
    assert numbers(frames=1) == [20] and numbers(frames=99) == list(range(40))


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(folder, discrete, tmp_path):
    settings = EncodeSettings(shard_samples=9, threads=1)
    videos = open_input(folder, fps=5)
    for name in ("whole", "stopped"):
        summary = encode_folder(discrete, videos, tmp_path / name, settings, Schedule(decode_threads=1))
    assert (summary.images, summary.shards) == (20 + 4, 3)
    (tmp_path / "stopped" / "commits" / "00001.json").unlink()
    encode_folder(discrete, open_input(folder, fps=5), tmp_path / "stopped", settings, Schedule(decode_threads=3))
    for part in ("safetensors", "parquet"):
        for shard in range(3):
            name = f"shards/{shard:05d}.{part}"
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    store = TokenStore(tmp_path / "stopped", tokenizer=discrete)
    assert store.keys[:3] == ["a.mp4#000000", "a.mp4#000002", "a.mp4#000004"]
    assert store.rows[2]["seconds"] == pytest.approx(0.4) and "libavcodec" in store.dataset["decoder"]


def test_what_is_no_video_is_a_problem_and_takes_no_other_with_it(folder, tmp_path):
    whole = (folder / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "good.mp4").write_bytes(whole)
    (tmp_path / "text.mp4").write_text("no video")
    entries = open_input(tmp_path, frames=2).entries()
    problems = {entry.source: entry.problem for entry in entries if entry.problem}
    assert set(problems) == {"cut.mp4", "text.mp4"} and "expected a readable video" in problems["text.mp4"]
    assert sum(entry.source == "good.mp4" for entry in entries) == 2
    with pytest.raises(ValueError, match="expected a readable video"):
        open_input(tmp_path).read(entries[0])


def test_a_video_that_changed_is_noticed(folder, tmp_path):
    write_video(tmp_path / "a.mp4", 5)
    videos = open_input(tmp_path)
    entry = videos.entries()[0]
    write_video(tmp_path / "a.mp4", 6)
    with pytest.raises(ValueError, match="has changed since"):
        videos.read(entry)


def test_a_frame_that_is_not_there_is_an_error_that_says_so(folder):
    videos = open_input(folder)
    entry = videos.entries()[0]
    with pytest.raises(ValueError, match="no frame at time stamp"):
        videos.read(replace(entry, offset=entry.offset + 1))


def test_settings_that_make_no_sense_are_refused(folder, tmp_path):
    for options, said in (
        ({"fps": 1, "frames": 2}, "expected fps or frames, got both"),
        ({"fps": 0}, "expected fps above 0"),
        ({"frames": 0}, "expected frames >= 1"),
        ({"caption": "x"}, "caption='x' means nothing for videos"),
    ):
        with pytest.raises(ValueError, match=said):
            open_input(folder, **options)
    (tmp_path / "p.png").write_bytes(b"")
    with pytest.raises(ValueError, match="fps=2 means nothing for pictures"):
        open_input(tmp_path, fps=2)


def test_an_odd_rate_is_exact(tmp_path):
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(24000, 1001))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(48):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 4 * number, np.uint8))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    numbers = [int(entry.key[-6:]) for entry in open_input(path, fps=6).entries()]
    assert numbers == [int(Fraction(turn * 24000, 6 * 1001)) for turn in range(12)]
