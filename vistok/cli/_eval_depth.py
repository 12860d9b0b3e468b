"""`vistok eval depth`: how well the depth of held-out scenes survives a depth codec, and a picture of it."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vistok import codec as make_codec
from vistok.data.scenes.render import MAX_SIDE, MIN_SIDE, render
from vistok.data.scenes.splits import SPLITS, seeds_of
from vistok.metrics.depth import DepthScores, abs_rel, depth_trip, scene_depth_scores
from vistok.report.contact_sheet import Column, contact_sheet, write_png
from vistok.report.json_file import write_json

_LEARNED_FROM = "train"
_SHOWN = 6
_ENLARGED = 3


def depth(
    name: str = "depth_nano",
    *,
    scenes: int = 500,
    splits: list[str] | None = None,
    checkpoint: str | None = None,
    sheet: str | None = None,
    json: str | None = None,
) -> None:
    """Print AbsRel and delta_1 of round trips, how often decoded maps tell which thing is nearer, and the code use.

    Metres are restored with the limits of each true map: tokens say what is nearer, not how far away all of it is.

    Args:
        name: depth codec for metres, for example depth_nano.
        scenes: scenes of each split.
        splits: of the scenes: validation, test, heldout (pairs of colour and shape never seen); default the last two.
        checkpoint: weights other than the preset's own.
        sheet: PNG to draw six maps of the first split to, the true ones above the decoded ones, nearest bright.
        json: file to write the numbers to.
    """
    asked = splits or ["test", "heldout"]
    for split in asked:
        if split not in SPLITS or split == _LEARNED_FROM:
            known = ", ".join(known for known in SPLITS if known != _LEARNED_FROM)
            raise ValueError(f"eval depth: expected splits among {known}, got {split!r}")
    if scenes < 1:
        raise ValueError(f"eval depth: expected at least 1 scene, got {scenes}")
    model: Any = make_codec(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    if not hasattr(model, "range") or not MIN_SIDE <= model.image_size <= MAX_SIDE:
        raise ValueError(
            f"eval depth: expected a depth codec that sees {MIN_SIDE} to {MAX_SIDE} pixels a side, got {name!r}"
        )
    if model.range.polarity != "near_low":
        raise ValueError(f"eval depth: expected a codec for metres (polarity near_low), {name!r} takes near_high maps")
    model.eval()
    found = {split: scene_depth_scores(model, seeds_of(split)[:scenes]) for split in asked}
    console = Console(width=max(Console().width, 100))
    console.print(_table(name, found))
    for split, scores in found.items():
        book = scores.health.report()
        console.print(
            f"{split}: {book['codes'] - book['dead_codes']:,} of {book['codes']:,} codes used by {book['tokens']:,} "
            f"tokens, perplexity {book['perplexity']:,.1f} = {book['bits_per_token']:.2f} bits a token",
            highlight=False,
            soft_wrap=True,
        )
    if sheet is not None:
        write_png(_sheet(model, seeds_of(asked[0])[:_SHOWN]), sheet)
    if json is not None:
        reports = {split: scores.report() for split, scores in found.items()}
        write_json(json, {"codec": name, "checkpoint": checkpoint, "splits": reports})


def _table(name: str, found: dict[str, DepthScores]) -> Table:
    table = Table("scenes", title=f"{name}: depth after a round trip, metres restored with each map's own limits")
    for heading in ("number", "AbsRel", "delta_1 %", "nearest %", "farthest %", "nearer of two %"):
        table.add_column(heading, justify="right")
    for split, scores in found.items():
        orders = (scores.nearest, scores.farthest, scores.pairs)
        table.add_row(
            split,
            f"{scores.scenes:,}",
            f"{scores.abs_rel:.4f}",
            f"{100 * scores.delta_1:.1f}",
            *("-" if share is None else f"{100 * share:.1f}" for share in orders),
        )
    return table


def _sheet(model: Any, seeds: range) -> Image.Image:
    maps = torch.from_numpy(np.stack([render(seed, max(MIN_SIDE, model.image_size)).depth for seed in seeds]))
    trip = depth_trip(model, maps)
    errors = abs_rel(trip.restored, trip.target).tolist()
    columns = [
        Column(_grey(model, true), _grey(model, decoded), f"scene {seed}", f"AbsRel {error:.3f}")
        for seed, true, decoded, error in zip(seeds, trip.target, trip.restored, errors, strict=True)
    ]
    return contact_sheet(columns)


def _grey(model: Any, metres: Tensor) -> Image.Image:
    """metres [1, S, S] as a picture, the nearest white, enlarged so that single pixels can be seen."""
    values = model.range.apply(metres[None]).values[0, 0]
    picture = Image.fromarray((values * 255).round().to(torch.uint8).numpy()).convert("RGB")
    return picture.resize((picture.width * _ENLARGED, picture.height * _ENLARGED), Image.Resampling.NEAREST)
