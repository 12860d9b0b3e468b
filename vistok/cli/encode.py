"""Pictures to a token store."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vistok.report.json_file import write_json

if TYPE_CHECKING:
    from vistok.data.encode import EncodeSummary
    from vistok.protocols import Tokenizer

_DEFAULT = "vq_nano"
_TILE = 1024  # pixels; larger tiles take more memory and less time at their borders


def encode(
    src: str,
    out: str,
    *,
    tokenizer: list[str] | None = None,
    checkpoint: list[str] | None = None,
    image: str | None = None,
    caption: str | None = None,
    key: str | None = None,
    split: str | None = None,
    fps: float | None = None,
    frames: int | None = None,
    depth: str | None = None,
    depth_codec: str = "depth_nano",
    depth_unit: float = 0.001,
    boxes: str | None = None,
    box_codec: str = "loc1024",
    masks: str | None = None,
    mask_codec: str = "seg128",
    mask_checkpoint: str | None = None,
    batch: int = 8,
    shard_samples: int = 1000,
    workers: int = 1,
    decode_threads: int = 2,
    tile: int | None = None,
    eps: float | None = None,
    verify: bool = False,
    max_pixels: int | None = None,
    threads: int = 2,
    device: str = "cpu",
    seed: int = 0,
    max_restarts: int = 3,
    max_error_rate: float = 1.0,
    retry_errors: bool = False,
    urls: bool = False,
    url_schemes: list[str] | None = None,
    url_timeout: float = 10.0,
    url_max_bytes: int = 64 << 20,
    url_private: bool = False,
    engine: Literal["local", "ray"] = "local",
    address: str = "auto",
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    decode_cpus: float = 0.0,
    json: str | None = None,
) -> int:
    """Encode pictures into a token store; the same command goes on where an earlier one stopped.

    Args:
        src: pictures: a folder (searched through), a file, a glob in quotes, WebDataset tars, Parquet files, a data set
            that Hugging Face's save_to_disk wrote, a URL of such pictures, tars or Parquet files (s3://bucket/photos),
            or with --urls a list of URLs.
        out: folder of the store, or a URL that fsspec can write to, such as s3://bucket/store.
        tokenizer: name, see `vistok list`; left out = vq_nano. Several names, each picture being decoded once for all
            of them: OUT is a folder of stores then, one of each name.
        checkpoint: file, folder or hf:owner/name with weights other than the tokenizer's own; one for each of several.
        image: column of the pictures in a table, if its name and type do not tell.
        caption: column of the captions in a table.
        key: column of a table that names each picture.
        split: split of a Hugging Face data set.
        fps: of videos (extra `video`), so many frames a second; left out with --frames = every one.
        frames: of videos, so many frames of each, evenly spread.
        depth: folder of depth maps (16-bit grey or floating point) under the names of the pictures; their ids become
            the column depth_ids.
        depth_codec: name of the codec that makes them.
        depth_unit: metres of one step of a 16-bit map.
        boxes: annotation file with boxes of things (COCO's .json, or .jsonl with file_name and objects), or of a table
            the column of such objects; they become the columns box_ids and box_labels.
        box_codec: name of the codec that makes them.
        masks: folder of maps of things (0 the background) under the names of the pictures, or an annotation file with
            polygons or run lengths; they become the column mask_ids, and mask_labels.
        mask_codec: name of the codec that makes them.
        mask_checkpoint: its weights, as of checkpoint; seg128 has none of its own.
        batch: pictures of one size that are encoded together.
        shard_samples: pictures per shard, the unit that is resumed.
        workers: processes that encode shards side by side; changes no byte of the store.
        decode_threads: threads of each worker that read and decode pictures; changes no byte of the store.
        tile: work on tiles of that many pixels, for large pictures in bounded memory; 0 = on whole pictures; left out
            = 1024 where the tokenizer has tiles.
        eps: mean absolute error to meet (pixels in 0..1), for tokenizers of adaptive length.
        verify: decode, measure, and spend more on the pictures that miss their eps.
        max_pixels: a picture of more is an error; left out = 25,000,000.
        threads: torch threads of each worker; part of the plan, because it may change the last bits.
        device: cpu, cuda, ...
        seed: of what is random in a tokenizer; with a picture's key it decides alone.
        max_restarts: how many worker processes may die and be replaced.
        max_error_rate: a shard in which a larger share of pictures fails is not committed.
        retry_errors: encode those shards again in which a picture failed.
        urls: src is a list of URLs: a text file with one a line, CSV or Parquet, where --image names their column.
        url_schemes: schemes that are fetched, also behind redirects; left out = http and https.
        url_timeout: seconds without an answer until a picture counts as failed.
        url_max_bytes: of a picture; what is larger is not fetched to its end and counts as failed.
        url_private: fetch from addresses that are not public, too: this machine, the local network.
        engine: local = this machine; ray = a Ray cluster (extra `ray`), which sees src and out under the same names.
        address: of the Ray cluster; auto = the one that this machine belongs to, local = one of its own.
        num_cpus: CPUs of the cluster that each of the --workers takes.
        num_gpus: GPUs of the cluster that each of them takes.
        decode_cpus: decode in tasks of their own on any node, so many CPUs each; 0 = each worker decodes by itself.
        json: file to write the numbers to.
    """
    from vistok.data.decode_image import MAX_PIXELS
    from vistok.data.encode import run_plan
    from vistok.data.encode_shard import Schedule
    from vistok.data.encode_together import run_plans
    from vistok.data.inputs.box_ids import BoxCodec
    from vistok.data.inputs.depth_maps import DepthMaps
    from vistok.data.inputs.fetch import SCHEMES, FetchRules
    from vistok.data.inputs.mask_ids import MaskCodec, MaskLists, MaskMaps
    from vistok.data.inputs.open import open_input
    from vistok.data.on_ray import OnRay
    from vistok.data.plan import EncodeSettings, make_plan

    schedule = Schedule(workers, decode_threads, max_restarts, max_error_rate, retry_errors)
    rules = None
    if urls:
        rules = FetchRules(tuple(url_schemes or SCHEMES), url_timeout, max_bytes=url_max_bytes, private=url_private)
    maps = None if depth is None else DepthMaps(Path(depth), depth_codec, unit=depth_unit)
    outlines: MaskMaps | MaskLists | None = None
    if masks is not None:
        seg = MaskCodec(mask_codec, mask_checkpoint)
        outlines = MaskMaps(Path(masks), seg) if Path(masks).is_dir() else MaskLists(Path(masks), seg)
    pictures = open_input(
        src,
        image=image,
        caption=caption,
        key=key,
        split=split,
        urls=rules,
        fps=fps,
        frames=frames,
        depth=maps,
        boxes=None if boxes is None else (boxes, BoxCodec(box_codec)),
        masks=outlines,
    )
    names = tokenizer or [_DEFAULT]
    checkpoints: Sequence[str | None] = checkpoint or [None] * len(names)
    _check_names(names, checkpoints)
    # Named here, before the model is loaded: a mistyped number had better be an error at once.
    executor = OnRay(address, num_cpus, num_gpus, decode_cpus) if engine == "ray" else None
    models = [load_tokenizer(name, weights) for name, weights in zip(names, checkpoints, strict=True)]
    settings = EncodeSettings(
        batch=batch,
        shard_samples=shard_samples,
        threads=threads,
        device=device,
        seed=seed,
        split=split,
        max_pixels=max_pixels or MAX_PIXELS,
    )
    plans = [
        make_plan(model, pictures, replace(settings, options=_tiling(model, tile) | _length(model, eps, verify)))
        for model in models
    ]
    outs = [out] if len(names) == 1 else [f"{out}/{name}" for name in names]
    with image_progress() as progress:
        task = progress.add_task("encoding", total=sum(len(plan.entries) for plan in plans))
        advance = partial(progress.advance, task)
        if len(plans) == 1:
            summaries = [run_plan(plans[0], models[0], out, schedule, on_images=advance, executor=executor)]
        else:
            summaries = run_plans(plans, models, outs, schedule, on_images=advance, executor=executor)
    for place, summary in zip(outs, summaries, strict=True):
        _print_summary(summary, place, pictures.left_out)
    if json is not None:
        found = [
            asdict(summary)
            | {"store": place, "tokenizer": name, "fingerprint": plan.record["fingerprint"], "workers": workers}
            for summary, place, name, plan in zip(summaries, outs, names, plans, strict=True)
        ]
        write_json(json, (found[0] if len(found) == 1 else {"stores": found}) | {"left_out": pictures.left_out})
    return 0 if all(summary.images for summary in summaries) else 1


def _check_names(names: Sequence[str], checkpoints: Sequence[str | None]) -> None:
    if len(set(names)) < len(names) or len(checkpoints) != len(names):
        raise ValueError(
            f"--tokenizer: expected different names, and --checkpoint for all of them or for none, got {len(names)} "
            f"names ({', '.join(names)}) and {len(checkpoints)} checkpoints"
        )


def _tiling(model: "Tokenizer", tile: int | None) -> dict[str, int]:
    if tile is None:
        return {"tile": _TILE} if "tile" in signature(model.encode).parameters else {}
    return {"tile": tile} if tile else {}


def _length(model: "Tokenizer", eps: float | None, verify: bool) -> dict[str, float | bool]:
    wanted: dict[str, float | bool] = ({} if eps is None else {"eps": eps}) | ({"verify": True} if verify else {})
    missing = [name for name in wanted if name not in signature(model.encode).parameters]
    if missing:
        raise ValueError(
            f"--{missing[0]}: expected a tokenizer of adaptive length such as karl_nano, {model.spec.name} makes the "
            "same number of tokens for all images of a size"
        )
    return wanted


def load_tokenizer(name: str, checkpoint: str | None) -> "Tokenizer":
    """A tokenizer with weights: those of `checkpoint`, else its own.

    Raises: ValueError if it has parameters and no weights for them: random ones would encode nothing.
    """
    from torch import nn

    import vistok

    has_own = vistok.info("tokenizer", name).weights is not None
    model = vistok.tokenizer(name, pretrained=has_own, checkpoint=checkpoint)
    has_parameters = isinstance(model, nn.Module) and next(model.parameters(), None) is not None
    if has_parameters and checkpoint is None and not has_own:
        raise ValueError(f"tokenizer {name!r} has no pretrained weights; give some with --checkpoint")
    return model


def image_progress() -> Progress:
    """A progress bar on stderr: done of total, images/s, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _ImagesPerSecond(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def _print_summary(summary: "EncodeSummary", out: str, left_out: Mapping[str, int]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    resumed = f" ({summary.shards_skipped} of {summary.shards} shards were there)" if summary.shards_skipped else ""
    console.print(
        f"{escape(out)}: {summary.images} images, {summary.tokens} tokens, {summary.bytes} bytes{resumed}; this run "
        f"{summary.encoded} images in {summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s; "
        f"{summary.errors} errors"
    )
    if summary.errors:
        console.print(f"what failed and why: {escape(out)}/errors/*.jsonl", style="yellow")
    if left_out:
        counts = ", ".join(f"{name} ({count})" for name, count in left_out.items())
        console.print(f"not carried along: {escape(counts)}", style="yellow")


COMMAND = encode
