"""`vistok eval codebook`: what a tokenizer's codes cost, lose and mean, beside k-means and shuffled labels."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vistok import tokenizer as make_tokenizer
from vistok.data.images import list_images, open_image
from vistok.data.scenes.splits import seeds_of
from vistok.layers.preprocess import Preprocess
from vistok.metrics.scene_codebook import CodebookMeaning, own_side, picture_codebook, scene_codebook
from vistok.report.json_file import write_json

_SOURCES = {"codes": "codes", "k_means": "k-means"}


def codebook(
    name: str = "vq_nano",
    *,
    images: str | None = None,
    scenes: int = 200,
    side: int = 96,
    crop: int = 256,
    merged: int = 64,
    beta: float = 1.0,
    draws: int = 20,
    checkpoint: str | None = None,
    json: str | None = None,
) -> None:
    """Print bits per code, the variance that codes leave, and what they say about colour, shape and texture of things.

    On rendered scenes of the test split, beside k-means with as many clusters; on pictures of your own without labels.

    Args:
        name: discrete tokenizer, for example vq_nano, ett_nano or seed_nano.
        images: folder of pictures without labels, in place of scenes.
        scenes: how many scenes.
        side: of the scenes in pixels, 64 to 336, for tokenizers that take any size.
        crop: side in pixels of the centre crop of each picture, for tokenizers that take any size.
        merged: clusters of code vectors that codes are merged into, for the rows "merged".
        beta: bits that all of the variance is worth, in L = bits + beta * share of the variance.
        draws: shuffles of the labels.
        checkpoint: weights other than the preset's own.
        json: file to write the numbers to.
    """
    if min(scenes, draws, merged) < 1 or beta < 0:
        raise ValueError(
            f"eval codebook: expected --scenes, --draws and --merged >= 1 and --beta >= 0, got {scenes}, {draws}, "
            f"{merged} and {beta}"
        )
    model: Any = make_tokenizer(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    if hasattr(model, "eval"):
        model.eval()
    if images is None:
        found = scene_codebook(model, seeds_of("test")[:scenes], side=side, merged=merged, beta=beta, draws=draws)
    else:
        own = own_side(model)
        remedy = "choose a smaller --crop" if own is None else f"{name} takes no smaller side"
        found = picture_codebook(model, _pictures(images, own or crop, remedy), merged=merged, beta=beta)
    console = Console(width=max(Console().width, 120))
    console.print(_table(found))
    for line in _explained(found):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        write_json(json, {"images": images, "scenes": scenes if images is None else None, **asdict(found)})


def _pictures(folder: str, side: int, remedy: str) -> Iterator[Tensor]:
    for path in list_images(Path(folder)):
        picture = open_image(path)
        try:
            image = Preprocess(crop=side)(picture)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {remedy}") from error
        yield image


def _table(found: CodebookMeaning) -> Table:
    units = "patches" if found.unit == "patch" else "pictures"
    title = f"{found.tokenizer}: codes as clusters of {units}; labels in bits above shuffled (AMI)"
    table = Table("codebook", "clusters of", title=escape(title))
    first = next(iter(found.rows.values()))
    labels = list(first.codes.labels)
    for heading in ("items", "clusters", "I(X;C)", "variance left", f"L({found.beta:g})", *labels):
        table.add_column(heading, justify="right")
    for name, row in found.rows.items():
        for source, shown in _SOURCES.items():
            own = getattr(row, source)
            cells = [f"{own.items:.0f}", f"{own.clusters:.0f}", f"{own.complexity:.3f}", f"{own.distortion:.2%}"]
            told = [own.labels[kind] for kind in labels]
            cells += [f"{own.objective:.3f}", *(f"{each.above_shuffled:.3f} ({each.adjusted:.3f})" for each in told)]
            table.add_row(name, shown, *cells)
        if labels:
            chance = [f"{row.codes.labels[kind].shuffled:.3f}" for kind in labels]
            table.add_row(name, "shuffled", *[""] * 5, *chance, style="dim")
        table.add_section()
    if labels:
        table.add_row("", "H(label)", *[""] * 5, *(f"{first.codes.labels[kind].classes:.3f}" for kind in labels))
    return table


def _explained(found: CodebookMeaning) -> Iterator[str]:
    if found.unit == "picture":
        yield f"means over {found.places} places of the sequence; a cluster is the pictures with the same code there"
    if "merged" in found.rows:
        yield f"merged: the same codes in at most {found.merged} clusters of their vectors"
    yield "I(X;C): bits of a code among these items; k-means: as many clusters, of the same pixels"
    for name, row in found.rows.items():
        if row.codes.clusters > row.codes.items / 2:
            yield f"{name}: more clusters than half the items, so that nothing can be said; take more --scenes"
        elif row.break_even is not None:
            yield f"{name}: codes and k-means have the same L at beta {row.break_even:.1f}"
    if next(iter(found.rows.values())).codes.labels:
        yield (
            "labels: plug-in mutual information less its mean with labels shuffled thing by thing, which stands below; "
            "the JSON file has both, and Miller-Madow's estimate"
        )
