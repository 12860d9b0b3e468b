"""Train a model from a recipe in configs/train or from a YAML file; goes on where an earlier run stopped."""

import os
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vistok.config import check_settings, check_types, merge_base, parse_yaml, read_yaml
from vistok.report.json_file import write_json


def train(
    recipe: str,
    out: str,
    photos: list[str] | None = None,
    steps: int | None = None,
    options: dict[str, Any] | None = None,
    json: str | None = None,
) -> None:
    """Train; the result is the folder OUT/model, which `checkpoint=` takes, or transformers if it is an LVLM.

    Args:
        recipe: name in configs/train (for example vq_nano) or a YAML file.
        out: folder of the run: config.json, metrics.jsonl, last.pt, model/.
        photos: folders of training pictures, for example what `vistok data photos` wrote.
        steps: number of steps, if another than the recipe's.
        options: further settings of the recipe, as a YAML mapping, for example '{batch: 8, threads: 1}'.
        json: file to write the last metrics to.
    """
    settings = _read(recipe)
    module = import_module(f"vistok.train.{settings.pop('method')}")
    given = {"out": out, "photos": photos, "steps": steps, **(options or {})}
    settings |= {name: value for name, value in given.items() if value is not None}
    check_settings(f"recipe {recipe!r}", module.Training, settings)
    check_types(f"recipe {recipe!r}", module.Training, settings)
    if any(field.name == "photos" for field in fields(module.Training)) and not settings.get("photos"):
        raise ValueError("train: expected --photos with a folder of pictures; `vistok data photos DIR` fetches some")
    training = module.Training(**settings)
    with _progress() as progress:
        task = progress.add_task("training", total=getattr(training, "steps", None))
        metrics = module.train(
            training,
            lambda step, values: progress.update(task, completed=step, description=_describe(values)),
        )
    if _is_another():
        return
    Console(stderr=True).print(f"{out}/model: {_describe(metrics)}")
    if json is not None:
        write_json(json, metrics)


def _is_another() -> bool:
    """Whether a launcher (torchrun, accelerate) started this beside the process that tells and writes."""
    return os.environ.get("RANK", "0") != "0"


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        raw = parse_yaml(path.read_text(encoding="utf-8"), recipe)
    else:
        raw = read_yaml("train", recipe)
    settings = merge_base(raw, lambda parent: read_yaml("train", parent))
    if "method" not in settings:
        raise ValueError(f"{recipe}: expected `method:` to name a file of vistok/train, found none")
    return {key: value for key, value in settings.items() if key != "summary"}


def _describe(values: dict[str, float]) -> str:
    """The few numbers that people watch, as far as a recipe has them."""
    formats = {"step": "step {:.0f}", "loss": "loss {:.4f}", "psnr": "{:.2f} dB", "accuracy": "accuracy {:.1%}"}
    formats |= {"held_out_loss": "held-out loss {:.4f}", "overlap": "overlap {:.1%}", "scenes": "{:,.0f} scenes seen"}
    formats |= {"recall": "R@1 {:.1%}", "recall_codes": "from codes {:.1%}"}
    return ", ".join(form.format(values[name]) for name, form in formats.items() if name in values) or "done already"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


COMMAND = train
