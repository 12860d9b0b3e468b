"""Turn five photographs into tokens and back; print a table, write a contact sheet and a report."""

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from math import ceil
from pathlib import Path

from PIL.Image import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vistok import tokenizer as make_tokenizer
from vistok.data.images import open_image
from vistok.data.samples import SAMPLES, sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr
from vistok.metrics.round_trip import RoundTrip, evaluating, round_trip
from vistok.protocols import Tokenizer
from vistok.report.contact_sheet import Column, contact_sheet, write_png
from vistok.report.gallery import Gallery
from vistok.report.json_file import write_json
from vistok.report.page import Part, Section, write_page
from vistok.report.sortable_table import table_of
from vistok.report.store_pictures import gallery_hint
from vistok.report.token_pictures import slot_count, token_colors, token_picture

_TOKENIZER = "vq_nano"
_REPORT = "report.html"


@dataclass(frozen=True)
class DemoRow:
    """One photograph: bits of the raw ids (None if continuous), psnr in dB, seconds to encode and decode."""

    image: str
    width: int
    height: int
    tokens: int
    bits: int | None
    psnr: float
    seconds: float


def demo(out: str = "demo-out", json: str | None = None) -> None:
    """Encode and decode the photographs that scikit-image ships, with the embedded tokenizer vq_nano.

    Args:
        out: folder for the contact sheet, demo.png, and report.html, which a browser opens.
        json: file to write the table's numbers to.
    """
    rows, sheet = run_demo(make_tokenizer(_TOKENIZER, pretrained=True), out)
    console = Console()
    console.print(demo_table(_TOKENIZER, rows))
    for line in (f"originals over reconstructions: {sheet}", f"the same to look at closely: {sheet.parent / _REPORT}"):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if json is not None:
        write_json(json, {"tokenizer": _TOKENIZER, "images": [asdict(row) for row in rows]})


def run_demo(tokenizer: Tokenizer, out: str | Path) -> tuple[list[DemoRow], Path]:
    """Encode and decode every sample at full size, write sheet and report; returns the rows and the sheet's path.

    Raises: ImportError naming the extra if scikit-image is absent.
    """
    pictures = {name: open_image(sample_path(name)) for name in SAMPLES}
    with evaluating(tokenizer):
        shown = [_show(tokenizer, name, picture) for name, picture in pictures.items()]
    sheet = Path(out, "demo.png")
    rows = [each.row for each in shown]
    write_png(contact_sheet([each.column for each in shown]), sheet)
    _write_report(tokenizer, shown, sheet.parent / _REPORT)
    return rows, sheet


def demo_table(name: str, rows: list[DemoRow]) -> Table:
    """The rows of tokenizer `name` as a table for a terminal."""
    table = Table("image", title=f"photographs to tokens and back: {name}")
    for heading in ("size", "tokens", "bits", "PSNR (dB)", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        bits = "-" if row.bits is None else f"{row.bits:,}"
        size = f"{row.width} x {row.height}"
        table.add_row(row.image, size, f"{row.tokens:,}", bits, f"{row.psnr:.2f}", f"{row.seconds:.2f}")
    return table


@dataclass(frozen=True, eq=False)
class _Shown:
    """A photograph [3, H, W], its tokens and what they became."""

    row: DemoRow
    column: Column
    image: Tensor
    trip: RoundTrip


def _write_report(tokenizer: Tokenizer, shown: Sequence[_Shown], path: Path) -> None:
    tokens = [each.trip.tokens for each in shown]
    slots = max(slot_count(each, tokenizer) for each in tokens)
    pictures = [
        token_picture(
            *(each.row.image, (each.row.width, each.row.height), own, colors, slots),
            original=each.image,
            decoded=each.trip.image,
        )
        for each, own, colors in zip(shown, tokens, token_colors(tokens), strict=True)
    ]
    headings = ("image", "width", "height", "tokens", "bits", "PSNR (dB)", "seconds")
    # A reader wants to know how long it took, to a hundredth.
    values = [[*astuple(each.row)[:-2], round(each.row.psnr, 2), round(each.row.seconds, 2)] for each in shown]
    name = tokenizer.spec.name
    parts: list[Part] = [
        Gallery("Photographs", pictures, gallery_hint(pictures)),
        table_of("Numbers", headings, values),
    ]
    write_page(path, f"Photographs to tokens and back: {name}", [Section(name, "tokenizer", parts)])


def _show(tokenizer: Tokenizer, name: str, picture: Image) -> _Shown:
    image = Preprocess()(picture)
    trip = round_trip(tokenizer, image)
    quality = float(psnr(trip.image[None], image[None]))
    bits = None if trip.bits is None else ceil(trip.bits)
    row = DemoRow(name, picture.width, picture.height, trip.length, bits, quality, trip.seconds)
    label = f"{tokenizer.spec.name}: {trip.length:,} tokens, {quality:.1f} dB"
    column = Column(picture, to_picture(trip.image), f"{name}: {picture.width} x {picture.height}", label)
    return _Shown(row, column, image, trip)


COMMAND = demo
