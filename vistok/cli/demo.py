"""Turn five photographs into tokens and back; print a table and write a contact sheet."""

from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

from PIL.Image import Image
from rich.console import Console
from rich.table import Table

from vistok import tokenizer as make_tokenizer
from vistok.data.images import open_image
from vistok.data.samples import SAMPLES, sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr
from vistok.metrics.round_trip import evaluating, round_trip
from vistok.protocols import Tokenizer
from vistok.report.contact_sheet import Column, contact_sheet, write_png
from vistok.report.json_file import write_json

_TOKENIZER = "vq_nano"


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
        out: folder for the contact sheet, demo.png.
        json: file to write the table's numbers to.
    """
    rows, sheet = run_demo(make_tokenizer(_TOKENIZER, pretrained=True), out)
    console = Console()
    console.print(demo_table(_TOKENIZER, rows))
    console.print(f"originals over reconstructions: {sheet}", soft_wrap=True, markup=False, highlight=False)
    if json is not None:
        write_json(json, {"tokenizer": _TOKENIZER, "images": [asdict(row) for row in rows]})


def run_demo(tokenizer: Tokenizer, out: str | Path) -> tuple[list[DemoRow], Path]:
    """Encode and decode every sample at full size and write the sheet; returns the rows and the sheet's path.

    Raises: ImportError naming the extra if scikit-image is absent.
    """
    pictures = {name: open_image(sample_path(name)) for name in SAMPLES}
    with evaluating(tokenizer):
        shown = [_show(tokenizer, name, picture) for name, picture in pictures.items()]
    sheet = Path(out, "demo.png")
    write_png(contact_sheet([column for _, column in shown]), sheet)
    return [row for row, _ in shown], sheet


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


def _show(tokenizer: Tokenizer, name: str, picture: Image) -> tuple[DemoRow, Column]:
    image = Preprocess()(picture)
    trip = round_trip(tokenizer, image)
    quality = float(psnr(trip.image[None], image[None]))
    bits = None if trip.bits is None else ceil(trip.bits)
    row = DemoRow(name, picture.width, picture.height, trip.length, bits, quality, trip.seconds)
    label = f"{tokenizer.spec.name}: {trip.length:,} tokens, {quality:.1f} dB"
    return row, Column(picture, to_picture(trip.image), f"{name}: {picture.width} x {picture.height}", label)


COMMAND = demo
