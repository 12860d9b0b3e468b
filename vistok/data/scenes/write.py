"""Rendered scenes on disk: PNG files, questions as LLaVA conversations, and a Hugging Face data set in Parquet.

    OUT/scenes.json                                 the settings; the same ones go on where an earlier run stopped
    OUT/images/00000/train_0000000000.png           RGB
    OUT/depth/..., OUT/masks/...                    if asked for, under the names of the images
    OUT/conversations.jsonl                         one line a question; written last, so where it is all is there
    OUT/dataset/data/train-00000-of-00001.parquet   `datasets.load_dataset("OUT/dataset")`: all that is known of a scene

Depth is a 16-bit grey PNG in millimetres, which readers of metric depth open unchanged and divide by 1000 (NYU and
ScanNet use this unit; Depth Anything V2 divides by 100 or 256, as its data sets want). Readers of relative depth, such
as AURORA's tokenizer, want 8 bits with larger = nearer: scale 1 / depth to 0..255 for them.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from PIL import Image

import vistok
from vistok.data.images import list_images, open_image, reduced
from vistok.data.scenes.balance import BalancedChoice
from vistok.data.scenes.layout import Layout, make_layout
from vistok.data.scenes.questions import KINDS, Question
from vistok.data.scenes.render import MAX_SIDE, MIN_SIDE, render
from vistok.data.scenes.rows import parquet, pictures, row
from vistok.data.scenes.splits import seeds_of, split_of
from vistok.data.shard import write_atomic

_SHARD = 500  # scenes of one Parquet file and one folder of pictures, the unit that is resumed
_RECORD = "scenes.json"
_PHOTOGRAPH_SIDES = 3  # a background is at least a third of a photograph's shorter side: more pixels show nowhere

Asked = list[tuple[Layout, list[Question]]]


@dataclass(frozen=True)
class SceneSettings:
    """What to write. first_seed: where in the split's seeds to begin; size: side of the pictures in pixels.

    questions_per_scene: fewer where a scene has fewer. depth, masks: as PNG files too; the data set always has both.
    Raises: ValueError naming the field that is out of range.
    """

    count: int
    split: str = "train"
    first_seed: int = 0
    size: int = 96
    questions_per_scene: int = 4
    depth: bool = False
    masks: bool = False

    def __post_init__(self) -> None:
        there = len(seeds_of(self.split))
        last = there - self.count
        for name, low, high in (
            ("count", 1, there),
            ("first_seed", 0, last),
            ("size", MIN_SIDE, MAX_SIDE),
            ("questions_per_scene", 1, 1000),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")

    @property
    def seeds(self) -> range:
        """The seeds of the scenes, in order."""
        return seeds_of(self.split)[self.first_seed : self.first_seed + self.count]

    @property
    def maps(self) -> tuple[str, ...]:
        """The folders of pictures."""
        return ("images", *(name for name in ("depth", "masks") if getattr(self, name)))


@dataclass(frozen=True)
class ScenesSummary:
    """What a folder holds: questions by kind, and by kind and answer; `rendered`: scenes of this run, in `seconds`."""

    scenes: int
    questions: int
    kinds: dict[str, int]
    answers: dict[str, dict[str, int]]
    rendered: int
    seconds: float


def write_scenes(
    out: str | Path,
    settings: SceneSettings,
    photographs: str | Path | None = None,
    *,
    on_scenes: Callable[[int], None] = lambda count: None,
) -> ScenesSummary:
    """Write scenes into a new folder, or go on with one of the same settings.

    photographs: folder of pictures for the backgrounds. on_scenes: called with how many scenes more are done.
    Raises: ValueError if the folder holds something else or other scenes, if another process writes to it, or if a
    photograph cannot be read; FileNotFoundError if there is no such folder of photographs; OSError naming the file that
    cannot be written.
    """
    started, root = time.monotonic(), Path(out)
    files = [] if photographs is None else list_images(photographs)
    backgrounds = [_background(path, settings.size) for path in files]
    _claim(root, asdict(settings) | {"photographs": _fingerprint(files), "vistok": vistok.__version__})
    with _locked(root):
        _remove_leftovers(root)
        choice, rendered = BalancedChoice(), 0
        with _whole_file(root / "conversations.jsonl") as conversations:
            for shard, seeds in enumerate(_in_shards(settings.seeds)):
                layouts = [make_layout(seed) for seed in seeds]
                asked = [(layout, choice.choose(layout, settings.questions_per_scene)) for layout in layouts]
                if not _is_written(root, shard, settings):
                    _write_shard(root, shard, asked, settings, backgrounds)
                    rendered += len(asked)
                conversations.writelines(_lines(shard, asked, settings))
                on_scenes(len(asked))
    kinds, answers = _tally(choice)
    return ScenesSummary(
        settings.count, choice.asked.total(), kinds, answers, rendered, round(time.monotonic() - started, 3)
    )


def _claim(root: Path, record: Mapping[str, Any]) -> None:
    """Take a new folder by its record, or check that the one there is the same."""
    file = root / _RECORD
    if not file.exists():
        if root.exists() and not root.is_dir():
            raise ValueError(f"{root}: expected a folder for the scenes, got a file")
        if root.exists() and any(not entry.name.startswith(_RECORD) for entry in root.iterdir()):
            raise ValueError(f"{root}: expected a new or empty folder, got other files; choose another")
        write_atomic(file, (json.dumps(record, indent=2) + "\n").encode())
        return
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON, got {error}; choose another folder") from error
    if there != record:
        other = there if isinstance(there, dict) else {}
        differing = "; ".join(
            f"{name}: there {other.get(name)!r}, here {record.get(name)!r}"
            for name in sorted({*other, *record})
            if other.get(name) != record.get(name)
        )
        raise ValueError(f"{root} holds other scenes: {differing}. Give the same settings, or another folder")


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with open(root / _RECORD, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{root}: expected a folder that no other process writes to, one does; wait") from error
        yield


def _remove_leftovers(root: Path) -> None:
    """Delete what a killed process left."""
    for left in list(root.rglob("*.tmp.*")):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """A text file to write piece by piece that is there only once it is whole."""
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _in_shards(seeds: range) -> list[range]:
    return [seeds[start : start + _SHARD] for start in range(0, len(seeds), _SHARD)]


def _is_written(root: Path, shard: int, settings: SceneSettings) -> bool:
    folders = [root / name / f"{shard:05d}" for name in settings.maps]
    return _parquet_file(root, shard, settings).is_file() and all(folder.is_dir() for folder in folders)


def _parquet_file(root: Path, shard: int, settings: SceneSettings) -> Path:
    total = len(_in_shards(settings.seeds))
    return root / "dataset" / "data" / f"{settings.split}-{shard:05d}-of-{total:05d}.parquet"


def _write_shard(
    root: Path, shard: int, asked: Asked, settings: SceneSettings, photographs: Sequence[Image.Image]
) -> None:
    """Folders of pictures, each moved into place whole, then the Parquet file, which says that they are there."""
    rows = []
    maps: dict[str, dict[str, bytes]] = {name: {} for name in settings.maps}
    for layout, questions in asked:
        scene = render(layout, settings.size, photographs)
        files, name = pictures(scene), f"{_name(layout)}.png"
        rows.append(row(scene, files, questions, name))
        for folder, content in zip(("images", "depth", "masks"), files, strict=True):
            if folder in maps:
                maps[folder][name] = content
    for folder, named in maps.items():
        _write_folder(root / folder / f"{shard:05d}", named)
    write_atomic(_parquet_file(root, shard, settings), parquet(rows))


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    partial = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        for name, content in contents.items():
            with open(partial / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # of a shard whose Parquet file never came
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _lines(shard: int, asked: Asked, settings: SceneSettings) -> Iterator[str]:
    """A line of JSON for each question, as LLaVA reads them; its paths start from the folder."""
    for layout, questions in asked:
        name = _name(layout)
        places = {folder: f"{folder}/{shard:05d}/{name}.png" for folder in settings.maps}
        for number, question in enumerate(questions):
            line = {
                "id": f"{name}_{number:02d}",
                "image": places["images"],
                **{folder: place for folder, place in places.items() if folder != "images"},
                "conversations": [
                    {"from": "human", "value": f"<image>\n{question.text}"},
                    {"from": "gpt", "value": question.answer},
                ],
                "seed": question.seed,
                "kind": question.kind,
            }
            yield json.dumps(line) + "\n"


def _name(layout: Layout) -> str:
    split = split_of(layout.seed)
    return f"{split}_{layout.seed - seeds_of(split).start:010d}"


def _tally(choice: BalancedChoice) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    answers: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    for (kind, answer), times in sorted(choice.asked.items()):
        answers[kind][answer] = times
    return {kind: sum(times.values()) for kind, times in answers.items()}, answers


def _background(path: Path, side: int) -> Image.Image:
    photograph = open_image(path)
    most = _PHOTOGRAPH_SIDES * side
    return reduced(photograph, most) if min(photograph.size) > most else photograph


def _fingerprint(files: Sequence[Path]) -> str | None:
    """What the backgrounds depend on: the content of the photographs, in their order."""
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
