"""`vistok eval watermark`: what a mark in ids costs, what it survives, how often it is seen where none is."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vistok import tokenizer as make_tokenizer
from vistok.codecs.watermark import SurvivalNet, Watermark, clustered_classes
from vistok.data.images import list_images, open_image
from vistok.data.samples import sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.watermark import Marking, WatermarkResult, measure_watermark
from vistok.report.json_file import write_json
from vistok.train.watermark import codebook_of, load_scorer

_SAMPLES = ("astronaut", "chelsea", "coffee", "rocket")


def watermark(
    name: str = "vq_nano",
    images: str | None = None,
    *,
    places: str | None = None,
    tokens: list[int] | None = None,
    key: str = "a key of yours",
    message: str | None = None,
    modulus: int = 2,
    clusters: int = 0,
    rate: float = 1e-3,
    keys: int = 50,
    crop: int = 256,
    checkpoint: str | None = None,
    json: str | None = None,
) -> None:
    """Mark pictures in their ids; print what that costs, and how often the mark is found behind JPEG and re-encoding.

    Args:
        name: tokenizer of one codebook.
        images: folder of pictures, or one picture; left out = four photographs of scikit-image.
        places: folder OUT/model of `vistok train watermark`, whose net chooses tokens; left out = the key alone does.
        tokens: how many tokens to mark.
        key: the secret.
        message: symbols 0..modulus-1 to carry, such as 01101001; left out = the mark alone.
        modulus: classes of ids.
        clusters: classes of so many k-means clusters of the codebook instead of ids, 0 = of ids.
        rate: false positives that are allowed, of which the exact threshold comes.
        keys: how many wrong keys each unmarked picture is tried with.
        crop: side in pixels of the centre crop.
        checkpoint: weights other than the preset's own.
        json: file to write the numbers to.
    """
    said = None if message is None else _symbols(message)
    model = make_tokenizer(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    if hasattr(model, "eval"):
        model.eval()
    codebook = codebook_of(model)
    classes = clustered_classes(codebook, clusters, modulus) if clusters else None
    mark = Watermark(codebook, key, modulus, classes)
    scorers = {"key": None} | ({} if places is None else {"learned": _scorer(places, codebook.shape[1])})
    pictures = _pictures(images, crop)
    results = [
        measure_watermark(model, pictures, mark, Marking(label, count, scorer), message=said, rate=rate, keys=keys)
        for count in tokens or [64, 256]
        for label, scorer in scorers.items()
    ]
    console = Console()
    console.print(_table(name, results, said is not None))
    wrong, trials = sum(row.false_found for row in results), sum(row.trials for row in results)
    console.print(
        f"unmarked pictures with wrong keys: {wrong} of {trials} taken for marked, at most {rate * trials:g} expected",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if json is not None:
        facts: dict[str, Any] = {"tokenizer": name, "checkpoint": checkpoint, "pictures": len(pictures), "crop": crop}
        facts |= {"modulus": modulus, "clusters": clusters, "rate": rate, "message": message}
        write_json(json, {**facts, "results": [asdict(row) | {"false_rate": row.false_rate} for row in results]})


def _scorer(places: str, dim: int) -> SurvivalNet:
    net = load_scorer(places)
    if net.dim != dim:
        raise ValueError(
            f"{places}: expected a net for codes of {dim} numbers, got one for {net.dim}; name that of this tokenizer"
        )
    return net


def _symbols(message: str) -> Tensor:
    if not message.isdigit():
        raise ValueError(f"eval watermark: expected a message of digits such as 01101001, got {message!r}")
    return torch.tensor([int(symbol) for symbol in message])


def _pictures(images: str | None, crop: int) -> Tensor:
    if crop < 1:
        raise ValueError(f"eval watermark: expected a crop of at least 1 pixel, got {crop}")
    paths = [sample_path(name) for name in _SAMPLES] if images is None else list_images(images)
    made = []
    for path in paths:
        try:
            made.append(Preprocess(crop=crop)(open_image(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; choose a smaller --crop") from error
    return torch.stack(made)


def _table(name: str, results: Sequence[WatermarkResult], told: bool) -> Table:
    title = escape(f"{name}: places whose class is right, pictures found")
    table = Table("places", "tokens", "at least", "dB lost", title=title)
    for attack in results[0].survival:
        table.add_column(escape(attack), justify="right")
    for row in results:
        shown = [f"{one.matches:.1%}, {one.found:.0%}" for one in row.survival.values()]
        if told:
            shown = [f"{cell}, read {one.symbols:.0%}" for cell, one in zip(shown, row.survival.values(), strict=True)]
        table.add_row(
            row.marking, str(row.count), str(row.threshold), f"{row.psnr_plain - row.psnr_marked:.2f}", *shown
        )
    return table
