"""One way to open an input, whatever its kind: pictures, tar files, Parquet files, a Hugging Face data set."""

import os
from collections.abc import Callable, Iterable, Mapping
from glob import has_magic
from pathlib import Path

from vistok.data.images import SUFFIXES
from vistok.data.inputs.arrow import dataset_input, is_dataset, stream_input
from vistok.data.inputs.box_ids import BoxCodec, BoxColumn, BoxLists
from vistok.data.inputs.depth_maps import DepthMaps
from vistok.data.inputs.entry import Input
from vistok.data.inputs.fetch import FetchRules
from vistok.data.inputs.files import Files, collect, spelled, suffix_of
from vistok.data.inputs.folder import FolderInput, is_picture
from vistok.data.inputs.from_beside import FromBeside
from vistok.data.inputs.matching import matching
from vistok.data.inputs.object_files import Infos, ObjectFiles, listed_below, matching_objects, one_object
from vistok.data.inputs.objects import ObjectInput
from vistok.data.inputs.parquet import parquet_input
from vistok.data.inputs.ranged import FileList
from vistok.data.inputs.tables import TableInput
from vistok.data.inputs.urls import url_input
from vistok.data.inputs.video import SUFFIXES as VIDEO_SUFFIXES
from vistok.data.inputs.video import VideoInput, is_video
from vistok.data.inputs.walk import walk
from vistok.data.inputs.webdataset import COMPRESSED, WebDatasetInput, compressed, is_archive

_ACCEPTED = (
    f"pictures ({', '.join(SUFFIXES)}), .tar files (WebDataset), .parquet files, .arrow streams, "
    f"a data set that `save_to_disk` of Hugging Face wrote, or videos ({', '.join(VIDEO_SUFFIXES)})"
)
_TABLES: dict[str, Callable[..., TableInput]] = {"Parquet files": parquet_input, "Arrow streams": stream_input}
_VIDEOS = "videos"
_RANGED = ("tar files", "Parquet files")  # what may lie behind a URL, beside pictures
_WEB = ("http://", "https://")
_KINDS: dict[str, Callable[[str], bool]] = {
    "pictures": is_picture,
    _VIDEOS: is_video,
    "tar files": is_archive,
    "Parquet files": lambda name: suffix_of(name) == ".parquet",
    "Arrow streams": lambda name: suffix_of(name) == ".arrow",
}


def open_input(
    source: str | Path,
    *,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    split: str | None = None,
    urls: FetchRules | None = None,
    fps: float | None = None,
    frames: int | None = None,
    depth: DepthMaps | None = None,
    boxes: tuple[str, BoxCodec] | None = None,
    masks: FromBeside | None = None,
) -> Input:
    """Open a file, a folder, all that a glob pattern names, or a URL; it must hold things of one kind.

    image, caption, key: columns of a table, None = found by name and type (key: file and row). split: of a DatasetDict.
    urls: given = the table is a list of URLs (text, CSV or Parquet, `image` its column of them) to be fetched by these
    rules. fps, frames: which frames of videos, see `VideoInput`. depth, masks: of the pictures in a folder. boxes: an
    annotation file of the pictures in a folder, or a column of a table, and the codec that makes ids of them.
    Raises: FileNotFoundError naming the path; PermissionError if the folder cannot be listed; ValueError if it holds
    nothing that can be read, things of several kinds, or if an option does not apply to its kind.
    """
    columns = {"image": image, "caption": caption, "key": key}
    of_videos = {"fps": fps, "frames": frames}
    of_pictures = {"depth": depth, "masks": masks}
    of_files = {**of_videos, **of_pictures}
    unless_boxed = {"boxes": boxes and boxes[0]}
    source = str(source).removeprefix("file://")
    if "://" in source and urls is None:
        return _behind_url(source.rstrip("/"), columns, boxes, {**of_files, "split": split})
    path = Path(source)
    if urls is not None:
        _refuse(str(source), "lists of URLs", {**of_files, **unless_boxed, "split": split})
        found = _files(path) if os.path.lexists(path) else _matches(str(source))
        return url_input(found, url=image, caption=caption, key=key, rules=urls)
    if os.path.lexists(path):
        if is_dataset(path):
            _refuse(str(source), "data sets", of_files)
            return _with_boxes(dataset_input(path, **columns, split=split), boxes)
        files = _files(path)
    elif has_magic(str(source)):
        files = _matches(str(source))
    else:
        raise FileNotFoundError(f"no such file or folder: {source}; expected {_ACCEPTED}")
    kind = _kind(str(source), files)
    unfit: dict[str, object] = {"split": split}
    unfit |= {} if kind in _TABLES else columns
    unfit |= {} if kind == _VIDEOS else of_videos
    unfit |= {} if kind == "pictures" else of_pictures
    unfit |= {} if kind == "pictures" or kind in _TABLES else unless_boxed
    _refuse(str(source), kind, unfit)
    if kind in _TABLES:
        return _with_boxes(_TABLES[kind](files, **columns), boxes)
    if kind == _VIDEOS:
        return VideoInput(files, fps, frames)
    if kind != "pictures":
        return WebDatasetInput(files)
    lists = None if boxes is None else BoxLists(Path(boxes[0]), boxes[1])
    return FolderInput(files, tuple(maker for maker in (depth, lists, masks) if maker is not None))


def _with_boxes(table: TableInput, boxes: tuple[str, BoxCodec] | None) -> Input:
    return table if boxes is None else BoxColumn(table, *boxes)


def _behind_url(
    url: str, columns: Mapping[str, str | None], boxes: tuple[str, BoxCodec] | None, unfit: Mapping[str, object]
) -> Input:
    name = url.rpartition("/")[2]
    infos: Infos | None = None
    web = url.startswith(_WEB)
    named = not has_magic(url) or (not web and bool(listed_below(url)))  # brackets may be part of a name
    if not named and not web:
        files = matching_objects(url)
    elif named and any(_KINDS[kind](name) for kind in _RANGED):
        files = one_object(url)
    elif web:
        raise ValueError(
            f"{url}: a web server lists nothing; name one .tar or .parquet file by a URL that ends so, or write the "
            "URLs of pictures into a file, see --urls"
        )
    else:
        infos = listed_below(url)
        files = ObjectFiles(url, tuple(sorted(infos)))
    kind = _kind(url, files) if files.names else "pictures"
    if kind not in ("pictures", *_RANGED):
        raise ValueError(
            f"{url}: expected pictures, .tar or .parquet files behind a URL, got {kind}; copy them to a disk"
        )
    table = kind in _TABLES
    _refuse(url, f"{kind} behind a URL", {**unfit, **({} if table else {**columns, "boxes": boxes and boxes[0]})})
    if table:
        return _with_boxes(parquet_input(files, **columns), boxes)
    if kind == "pictures" and infos is None:
        raise ValueError(
            f"{url}: expected a folder of pictures behind a URL, got a pattern; name their folder, which must hold no "
            "tar or Parquet file"
        )
    return WebDatasetInput(files) if infos is None or kind != "pictures" else ObjectInput(url, found=[infos])


def _files(path: Path) -> Files:
    if not path.is_dir():
        return collect(path.parent, [path.name])
    try:
        return walk(path)
    except PermissionError as error:
        raise PermissionError(f"{path}: expected a folder that you may list, got {error.strerror}") from error


def _matches(pattern: str) -> Files:
    try:
        files = matching(pattern)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"no file matches {pattern}: {error.filename} is no folder") from error
    except PermissionError as error:
        raise PermissionError(f"{pattern}: expected folders that you may list, got {error}") from error
    if not files.names and not files.problems:
        raise FileNotFoundError(f"no file matches {pattern}; expected {_ACCEPTED}")
    return files


def _kind(source: str, files: FileList) -> str:
    counts = {kind: sum(map(fits, files.names)) for kind, fits in _KINDS.items()}
    kinds = [kind for kind, count in counts.items() if count]
    # Cameras put films beside their pictures: those are left out like any other file.
    kinds = [kind for kind in kinds if kind != _VIDEOS] or kinds
    if not kinds and files.problems:
        raise ValueError(f"{source}: expected {_ACCEPTED}, found none; {files.problems[0].problem}")
    if not kinds:
        raise ValueError(f"{source}: expected {_ACCEPTED}, found none")
    if len(kinds) > 1:
        found = " and ".join(f"{counts[kind]} {kind}" for kind in kinds)
        raise ValueError(f"{source}: expected one kind of input, found {found}; name one by a pattern, such as '*.tar'")
    archives = [name for name in files.names if is_archive(name)]
    if archives and all(suffix_of(name) in COMPRESSED for name in archives):
        raise ValueError(compressed(str(files.path(spelled(archives[0])))))
    return kinds[0]


def _refuse(source: str, kind: str, options: Mapping[str, object]) -> None:
    given: Iterable[str] = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{source}: {', '.join(given)} means nothing for {kind}; leave it out")
