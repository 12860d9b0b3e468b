"""`vistok eval complexity`: how many tokens each kind of image needs within an error, and whether the error holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vistok.cli._pictures import adaptive_tokenizer, squares
from vistok.metrics.complexity import CalibrationRow, calibrate, calibration_report, kc_curve, structure_score
from vistok.metrics.kinds_of_images import kinds
from vistok.report.contact_sheet import write_png
from vistok.report.json_file import write_json
from vistok.report.line_chart import Line, Point, line_chart

_EPSILONS = (0.03, 0.05, 0.07, 0.09, 0.14)


def complexity(
    name: str = "karl_nano",
    images: str | None = None,
    *,
    eps: list[float] | None = None,
    count: int = 48,
    checkpoint: str | None = None,
    calibrated: str | None = None,
    plot: str | None = None,
    json: str | None = None,
) -> None:
    """Print the tokens that photographs, blurred ones, gradients, chessboards and noise need, and how errors hold.

    Args:
        name: adaptive tokenizer, for example karl_nano.
        images: folder of photographs (default: samples of scikit-image), cut into squares.
        eps: mean absolute errors to ask for, of pixels in 0..1 (default .03 .05 .07 .09 .14).
        count: squares of each kind.
        checkpoint: weights other than the preset's own.
        calibrated: folder to save the model to, with the errors that hold for 95 % of these photographs.
        plot: PNG to draw the curves to.
        json: file to write the numbers to.
    """
    asked = sorted(eps or _EPSILONS)
    model = adaptive_tokenizer(name, checkpoint)
    photographs, of = squares(model, images, count)
    low, high = max(1, model.budget // 8), model.budget
    counts, scores = {}, {}
    for kind, pictures in kinds(photographs).items():
        counts[kind] = kc_curve(model, pictures, asked).float().mean(1).tolist()
        scores[kind] = float(structure_score(model, pictures, low, high).mean())
    report = calibration_report(model, photographs, asked)
    console = Console(width=max(Console().width, 100))
    console.print(_kinds_table(name, asked, counts, scores, (low, high)))
    console.print(_calibration_table(report))
    console.print(f"{of}; {model.budget} slots", highlight=False)
    if plot is not None:
        write_png(_chart(name, asked, counts), Path(plot))
    if calibrated is not None:
        calibrate(model, photographs)
        model.save_pretrained(calibrated)
        console.print(f"{calibrated}: the model with its calibration, for encode(calibrated=True)", markup=False)
    if json is not None:
        rows = [row._asdict() for row in report]
        write_json(json, {"tokenizer": name, "eps": asked, "kc": counts, "structure": scores, "calibration": rows})


def _kinds_table(
    name: str,
    epsilons: Sequence[float],
    counts: dict[str, list[float]],
    scores: dict[str, float],
    budgets: tuple[int, int],
) -> Table:
    table = Table("kind", title=f"{name}: mean tokens within a mean absolute error eps")
    for eps in epsilons:
        table.add_column(f"eps {eps:g}", justify="right")
    table.add_column(f"L1({budgets[0]}) - L1({budgets[1]})", justify="right")
    for kind, row in counts.items():
        table.add_row(kind, *(f"{value:.1f}" for value in row), f"{scores[kind]:.4f}")
    return table


def _calibration_table(report: Sequence[CalibrationRow]) -> Table:
    table = Table("eps", "tokens", "error", "over eps", "by", title="photographs: what was asked for and what came")
    for row in report:
        table.add_row(f"{row.eps:g}", f"{row.tokens:.1f}", f"{row.error:.4f}", f"{row.over:.0%}", f"{row.excess:.4f}")
    return table


def _chart(name: str, epsilons: Sequence[float], counts: dict[str, list[float]]) -> Any:
    lines = [
        Line(kind, [Point(eps, value, value, value) for eps, value in zip(epsilons, row, strict=True)])
        for kind, row in counts.items()
    ]
    return line_chart(lines, title=f"{name}: tokens by kind of image", x_label="eps", y_label="mean tokens kept")
