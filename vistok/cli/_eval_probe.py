"""`vistok eval probe`: what a linear layer reads off continuous tokens of rendered scenes."""

from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok import tokenizer as make_tokenizer
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.scene_probe import LEVELS, SceneProbe, scene_probe
from vistok.report.json_file import write_json


def probe(
    name: str = "mingtok_nano",
    *,
    scenes: int = 500,
    side: int = 96,
    checkpoint: str | None = None,
    json: str | None = None,
) -> None:
    """Print how often a linear probe reads colour, shape, texture and number of things off frozen continuous tokens.

    It is fitted on scenes of the validation split and measured on as many of the test split.

    Args:
        name: tokenizer with continuous tokens on a grid; one with semantic tokens, as mingtok_nano, is probed twice.
        scenes: scenes to fit on, and as many to measure on.
        side: of the scenes in pixels, 64 to 336.
        checkpoint: weights other than the preset's own.
        json: file to write the numbers to.
    """
    if scenes < 1:
        raise ValueError(f"eval probe: expected at least 1 scene, got {scenes}")
    model = make_tokenizer(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    if hasattr(model, "eval"):
        model.eval()
    found = scene_probe(model, seeds_of("validation")[:scenes], seeds_of("test")[:scenes], side=side)
    console = Console()
    console.print(_table(name, scenes, found))
    told = "decodes nothing" if found.psnr is None else f"reconstructs the test scenes at {found.psnr:.2f} dB PSNR"
    console.print(f"{name} {told}", highlight=False, markup=False, soft_wrap=True)
    if json is not None:
        numbers = {"tokenizer": name, "checkpoint": checkpoint, "scenes": scenes, "side": side, **asdict(found)}
        write_json(json, numbers | {"mean": {level: asdict(found.mean(level)) for level in LEVELS}})


def _table(name: str, scenes: int, found: SceneProbe) -> Table:
    stages = list(found.rows[0].accuracy)
    table = Table("of", "attribute", title=escape(f"{name}: linear probe on {scenes} test scenes, % right"))
    for heading in ("chance", *stages):
        table.add_column(heading, justify="right")
    for level in LEVELS:
        rows = [row for row in found.rows if row.level == level]
        for row in [*rows, found.mean(level)]:
            shares = [row.chance, *(row.accuracy[stage] for stage in stages)]
            style = "bold" if row.attribute == "mean" else None
            table.add_row(level, row.attribute, *(f"{100 * share:.1f}" for share in shares), style=style)
        table.add_section()
    return table
