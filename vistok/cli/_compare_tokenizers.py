"""`vistok compare tokenizers`: what the bits of each tokenizer buy, on the same squares of pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor

from vistok.cli._pictures import squares_of
from vistok.cli.encode import load_tokenizer
from vistok.data.shard import write_atomic
from vistok.metrics.rate_distortion import RatePoint, rate_point, slots_to_choose
from vistok.protocols import Tokenizer
from vistok.registry import method, names, resolve
from vistok.report.comparison_files import as_csv, write_comparison
from vistok.report.contact_sheet import write_png
from vistok.report.json_file import write_json
from vistok.report.line_chart import Line, Point, line_chart
from vistok.report.rate_parts import COLUMNS, curves_of, front_of, rate_table

_SHARES = "1,0.5,0.25,0.125"
_WIDTH = 110
_NOTES = (
    "bits a pixel: raw ids, or 16 bits a number where tokens are continuous, with the mask of slots where their number "
    "varies; nothing is entropy-coded",
    "JPEG, WebP: PSNR of the best file of at most the tokens' bytes; JPEG counts from its SOS marker on, WebP the "
    "whole file; - where no file is so small",
)


def tokenizers(
    tokenizer_names: list[str] | None = None,
    *,
    images: str | None = None,
    budgets: list[str] | None = None,
    side: int = 96,
    count: int = 24,
    out: str = "tokenizer-compare",
    json: str | None = None,
) -> None:
    """Bits per pixel against PSNR and SSIM of tokenizers, beside JPEG and WebP of the same bytes, and the Pareto front.

    Tokenizers of adaptive length get a row for each budget, the others one. The folder holds table.csv, table.md,
    plot.png, result.json and report.html.

    Args:
        tokenizer_names: as `vistok list` shows them (default: all that ship with their weights and decode).
        images: folder of pictures (default: photographs of scikit-image), reduced and cut into squares.
        budgets: shares of the tokens of an adaptive tokenizer (default 1,0.5,0.25,0.125).
        side: of a square, in pixels.
        count: squares at most.
        out: folder of the results.
        json: file to write all numbers to.
    """
    if side < 16 or count < 1:
        raise ValueError(f"compare tokenizers: expected --side >= 16 and --count >= 1, got {side} and {count}")
    shares = _shares(budgets or [_SHARES])
    models = _models(tokenizer_names)
    pictures, of = squares_of(side, images, count)
    tasks = [(name, model, budget) for name, model in models.items() for budget in _budgets(model, shares)]
    console = Console(width=max(Console().width, _WIDTH))
    points = [
        _point(name, model, pictures, budget)
        for name, model, budget in track(tasks, "comparing", console=Console(stderr=True), transient=True)
    ]
    rows = [asdict(point) for point in points]
    front = [rows[number] for number in front_of(rows)]
    notes = [f"{of}; means over squares", *_NOTES, f"Pareto front: {', '.join(map(_named, front)) or 'empty'}"]
    settings = {"tokenizers": list(models), "budgets": shares, "images": images or "scikit-image", "side": side}
    result = {"settings": settings | {"squares": len(pictures)}, "rows": rows, "notes": notes}
    folder = Path(out)
    write_atomic(folder / "table.csv", as_csv(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]).encode())
    drawn = any(row["psnr"] is not None for row in rows)
    if drawn:
        write_png(_plot(rows, of), folder / "plot.png")
    else:
        (folder / "plot.png").unlink(missing_ok=True)  # of other tokenizers, from before
    write_json(folder / "result.json", result)
    written = [*write_comparison(folder, rate_table(rows)), *(["plot.png"] if drawn else [])]
    console.print(_table(rows))
    for line in [*notes, f"{folder}: table.csv, {', '.join(written)}, result.json"]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        write_json(json, result)


def _models(given: Sequence[str] | None) -> dict[str, Tokenizer]:
    """Tokenizers by name, in eval mode. Raises: ValueError for one without a decoder that was named."""
    chosen = [word for text in given or () for word in text.split(",") if word]
    found = {name: load_tokenizer(name, None) for name in dict.fromkeys(chosen or _embedded())}
    if silent := [name for name, model in found.items() if "decode" in getattr(model, "cannot", ())]:
        raise ValueError(f"compare tokenizers: expected tokenizers that decode, got {', '.join(silent)}")
    return found


def _embedded() -> list[str]:
    """Names of tokenizers whose weights are in the package, and that decode."""
    presets = {name: resolve("tokenizer", name) for name in names("tokenizer", pretrained=True)}
    own = [name for name, preset in presets.items() if str(preset.weights).startswith("embedded:")]
    return [name for name in own if "decode" not in getattr(method("tokenizer", presets[name].method), "cannot", ())]


def _shares(given: Sequence[str]) -> list[float]:
    words = [word for text in given for word in text.split(",") if word]
    try:
        shares = [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--budgets: expected shares of the tokens such as 1,0.5,0.25, got {given}") from error
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"--budgets: expected shares of the tokens in (0, 1], got {', '.join(given)}")
    return list(dict.fromkeys(shares))


def _budgets(model: Tokenizer, shares: Sequence[float]) -> list[int | None]:
    slots = slots_to_choose(model)
    return [None] if slots is None else list(dict.fromkeys(max(1, round(share * slots)) for share in shares))


def _point(name: str, model: Tokenizer, pictures: Tensor, budget: int | None) -> RatePoint:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return rate_point(name, model, pictures, budget)
    except (ValueError, NotImplementedError) as error:
        return RatePoint(name, budget, refused=" ".join(str(error).split()))


def _named(row: dict[str, Any]) -> str:
    return row["tokenizer"] if row["budget"] is None else f"{row['tokenizer']} with {row['budget']} tokens"


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    shown = rate_table(rows)
    table = Table(title="rate and distortion; the Pareto front in bold")
    for heading, numeric in zip(shown.headings, shown.numeric, strict=True):
        table.add_column(heading, justify="right" if numeric else "left")
    for number, cells in enumerate(shown.rows):
        table.add_row(*(escape(cell.text) for cell in cells), style="bold" if number in shown.marked else None)
    return table


def _plot(rows: Sequence[dict[str, Any]], of: str) -> Any:
    lines = [
        Line(name, [Point(x, y, y, y, ringed=front) for x, y, front in points]) for name, points in curves_of(rows)
    ]
    return line_chart(
        lines,
        title=f"{of}; rings: Pareto front",
        x_label="bits per pixel, raw ids or 16-bit numbers",
        y_label="PSNR (dB)",
        log=True,
    )
