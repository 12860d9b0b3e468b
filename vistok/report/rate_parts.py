"""The parts of `vistok compare tokenizers`: distortion against rate, with JPEG and WebP of the same bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistok.metrics.pareto import pareto_front
from vistok.report.json_parts import flattened
from vistok.report.page import Part
from vistok.report.parts import Facts, Remarks
from vistok.report.sortable_table import Cell, SortableTable, cell_of, table_of
from vistok.report.svg_chart import Curve, LineChart, Mark

Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("tokenizer", "budget", "tokens", "bits_per_pixel", "psnr", "ssim", "jpeg_psnr", "webp_psnr", "refused")
_HEADINGS = (
    *("tokenizer", "budget", "tokens", "bits a pixel", "PSNR (dB)", "SSIM"),
    *("JPEG (dB)", "WebP (dB)", "refused"),
)
_FORMS = {
    "tokens": ".1f",
    "bits_per_pixel": ".4f",
    "psnr": ".2f",
    "ssim": ".4f",
    "jpeg_psnr": ".2f",
    "webp_psnr": ".2f",
}
_CODECS = {"jpeg_psnr": "JPEG", "webp_psnr": "WebP"}


def is_rates(value: Mapping[str, Any]) -> bool:
    """Whether a result is one of `vistok compare tokenizers`."""
    rows = value.get("rows")
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, dict) and {*COLUMNS} <= {*row} for row in rows)


def rate_parts(value: Mapping[str, Any]) -> list[Part]:
    """All parts. Raises: KeyError, TypeError if a row is not as the command writes it."""
    rows: Rows = value["rows"]
    parts: list[Part] = []
    if any(row["psnr"] is not None for row in rows):
        parts.append(rate_chart(rows))
    parts.append(rate_table(rows))
    notes = value.get("notes")
    parts += [Remarks(list(map(str, notes)))] if isinstance(notes, list) and notes else []
    told = [(name, cell_of(each).text) for name, each in flattened(value.get("settings", {})).items()]
    return [*parts, Facts("Settings", told)] if told else parts


def front_of(rows: Rows) -> list[int]:
    """Numbers of the rows on the Pareto front of bits per pixel and PSNR."""
    scored = [number for number, row in enumerate(rows) if row["psnr"] is not None]
    return [scored[at] for at in pareto_front([(rows[n]["bits_per_pixel"], rows[n]["psnr"]) for n in scored])]


def rate_table(rows: Rows) -> SortableTable:
    """A row for each tokenizer and budget; those on the front stand out."""
    front = frozenset(front_of(rows))
    words = "on the Pareto front: no other row is as close with fewer bits"
    cells = [[_cell(name, row[name]) for name in COLUMNS] for row in rows]
    return table_of("Rate and distortion", _HEADINGS, cells, marked=front, marked_as=words if front else "")


def curves_of(rows: Rows) -> list[tuple[str, list[tuple[float, float, bool]]]]:
    """Per tokenizer, then JPEG and WebP, the points: bits per pixel, PSNR, whether on the front."""
    front = set(front_of(rows))
    scored = [(number, row) for number, row in enumerate(rows) if row["psnr"] is not None]
    curves = []
    for name in dict.fromkeys(row["tokenizer"] for _, row in scored):
        own = [(number, row) for number, row in scored if row["tokenizer"] == name]
        curves.append((name, [(row["bits_per_pixel"], row["psnr"], number in front) for number, row in own]))
    for column, name in _CODECS.items():
        points = sorted({(row["bits_per_pixel"], row[column], False) for _, row in scored if row[column] is not None})
        curves += [(f"{name}, equal bytes", points)] if points else []
    return curves


def rate_chart(rows: Rows) -> LineChart:
    """PSNR against bits per pixel."""
    curves = []
    for name, points in curves_of(rows):
        marks = [Mark(x, y, text=f"{name}: {x:.4g} bits a pixel, {y:.2f} dB", front=front) for x, y, front in points]
        curves.append(Curve(name, marks))
    return LineChart(
        *("Rate and distortion", "bits per pixel, raw ids or 16-bit numbers", "PSNR (dB)", curves),
        front_name="Pareto front of the tokenizers",
        log=True,
    )


def _cell(name: str, value: Any) -> Cell:
    if value is None:
        return Cell("" if name == "refused" else "-")
    return Cell(f"{value:{_FORMS[name]}}", value) if name in _FORMS else cell_of(value)
