"""A page of every part, with names that mean harm wherever a name goes."""

import numpy as np
from PIL import Image

from vistok.report.gallery import Gallery, Picture
from vistok.report.inline_picture import InlinePicture, inline_picture
from vistok.report.kept_overlay import AskedPicture, KeptOverlay
from vistok.report.page import Section
from vistok.report.parts import Facts, Preformatted, Remarks
from vistok.report.sortable_table import table_of
from vistok.report.svg_chart import Bar, Bars, Curve, LineChart, Mark, SideBySide
from vistok.report.token_map import token_map, token_strip

HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
CLOSING = "</script></style></title><script>document.title='owned'</script>'\"&amp;"


def kept_overlay(picture: InlinePicture) -> KeptOverlay:
    """Two methods at two budgets on a grid of 3 x 3, and a picture that was not found."""
    asked = [AskedPicture(HOSTILE, picture, 3, 3, HOSTILE, CLOSING), AskedPicture("gone", None, 0, 0, "?", "")]
    kept = {
        HOSTILE: {"0.5": [("f80", CLOSING), ("", "x")], "0.25": [("080", "second"), ("", "y")]},
        "other": {"0.5": [("ff8", "third"), ("", "z")]},
    }
    return KeptOverlay(CLOSING, asked, kept)


def sections() -> list[Section]:
    """One section of every part, with names that mean harm wherever a name goes."""
    rng = np.random.default_rng(0)
    first, second = (
        inline_picture(Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))) for _ in range(2)
    )
    colors = rng.integers(0, 256, (12, 3), dtype=np.uint8)
    cells = token_map(colors, (3, 4), 16, (48, 64), HOSTILE)
    strip = token_strip(colors[:5], np.arange(5), 64, HOSTILE)
    pictures = [
        Picture(HOSTILE, CLOSING, CLOSING, first, second, cells),
        Picture("x" * 300, "64 tokens", "a caption", None, second, None, strip),
        Picture("blank", ""),
    ]
    rows = [("b", 10, HOSTILE), ("a", 9, CLOSING), ("c", None, "x" * 200), ("d", 101.5, "")]
    wide = [[f"{row}.{column}" for column in range(40)] for row in range(3)]
    marks = [Mark(x, y, y - 1, y + 1, HOSTILE, front=x == 2) for x, y in ((1, 2), (2, float("nan")), (3, 4), (2, 9))]
    charts = [
        LineChart(HOSTILE, CLOSING, HOSTILE, [Curve(HOSTILE, marks)], small=True),
        Bars(HOSTILE, CLOSING, HOSTILE, [Bar(HOSTILE, 3, CLOSING), Bar("1", 0, "none")]),
    ]
    curves = [Curve(f"{HOSTILE}{number}", marks) for number in range(9)]
    parts = [
        Facts(CLOSING, [(HOSTILE, CLOSING), ("x" * 200, "y" * 200)]),
        Gallery(HOSTILE, pictures, CLOSING, HOSTILE),
        table_of(HOSTILE, ["name", "value", CLOSING], rows, marked=frozenset([1]), marked_as=HOSTILE),
        table_of("wide", [f"column {number}" for number in range(40)], wide),
        SideBySide(HOSTILE, charts),
        LineChart("chart", "x", "y", curves, ("level", 3.0), "front"),
        kept_overlay(first),
        Preformatted(HOSTILE, CLOSING * 40),
        Remarks([HOSTILE, "x" * 500]),
    ]
    return [Section(HOSTILE, CLOSING, parts), Section("second", "plain", [Remarks(["text"])])]
