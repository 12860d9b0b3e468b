"""Pictures to a token store."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vistok.report.json_file import write_json

if TYPE_CHECKING:
    from vistok.data.encode import EncodeSummary
    from vistok.protocols import Tokenizer


def encode(
    src: str,
    out: str,
    *,
    tokenizer: str = "vq_nano",
    checkpoint: str | None = None,
    batch: int = 8,
    shard_samples: int = 1000,
    workers: int = 1,
    tile: int | None = None,
    threads: int = 2,
    device: str = "cpu",
    json: str | None = None,
) -> int:
    """Encode pictures into a token store; the same command goes on where an earlier one stopped.

    Args:
        src: folder of pictures (searched through), or one picture.
        out: folder of the store.
        tokenizer: name, see `vistok list`.
        checkpoint: file, folder or hf:owner/name with weights other than the tokenizer's own.
        batch: pictures of one size that are encoded together.
        shard_samples: pictures per shard, the unit that is resumed.
        workers: processes that encode shards side by side; changes no byte of the store.
        tile: work on tiles of that many pixels, for large pictures in bounded memory.
        threads: torch threads of each worker; part of the plan, because it may change the last bits.
        device: cpu, cuda, ...
        json: file to write the numbers to.
    """
    from vistok.data.encode import run_plan
    from vistok.data.plan import EncodeSettings, make_plan

    model = load_tokenizer(tokenizer, checkpoint)
    options = {} if tile is None else {"tile": tile}
    settings = EncodeSettings(batch=batch, shard_samples=shard_samples, threads=threads, device=device, options=options)
    plan = make_plan(model, src, settings)
    with image_progress() as progress:
        task = progress.add_task("encoding", total=len(plan.pictures))
        summary = run_plan(
            plan, model, out, workers=workers, on_images=lambda count: progress.update(task, advance=count)
        )
    _print_summary(summary, out)
    if json is not None:
        settled = {"store": out, "tokenizer": tokenizer, "fingerprint": plan.record["fingerprint"], "workers": workers}
        write_json(json, asdict(summary) | settled)
    return 0 if summary.images else 1


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


def _print_summary(summary: "EncodeSummary", out: str) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    resumed = f" ({summary.shards_skipped} of {summary.shards} shards were there)" if summary.shards_skipped else ""
    console.print(
        f"{escape(out)}: {summary.images} images, {summary.tokens} tokens, {summary.bytes} bytes{resumed}; this run "
        f"{summary.encoded} images in {summary.seconds:.1f} s, {summary.images_per_second:.1f} images/s; "
        f"{summary.errors} errors"
    )
    if summary.errors:
        console.print(f"what failed and why: {escape(out)}/errors/*.jsonl", style="yellow")


COMMAND = encode
