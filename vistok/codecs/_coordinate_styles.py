"""How published models write coordinates: their tokens, the order of the axes, the rule of the bins, the label's place.

aurora: (<PIXEL_x1>,<PIXEL_y1>,<PIXEL_x2>,<PIXEL_y2>), the image squashed to 336 x 336.
paligemma: <locy1><locx1><locy2><locx2> label, several joined by " ; ".
florence: label<loc_x1><loc_y1><loc_x2><loc_y2>, several boxes of one label behind one another.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vistok.codecs._token_strings import florence_codes, loc_codes, pixel_codes

# Reads as a loc token to anyone, of whichever family.
LOC_LOOK = r"<loc[^<>\s]*>?"


@dataclass(frozen=True)
class Style:
    """codes: the strings of K bins; look: what a reader takes for one; rule: of `Bins`; y_first: order of the axes.

    before, between, after: around the tokens of one item. label: "after", "before" or "" for no place. joint: between
    items. repeats: whether several items may follow one another without anything between.
    """

    codes: Callable[[int], tuple[str, ...]]
    look: str
    bins: int
    rule: str
    y_first: bool = False
    before: str = ""
    between: str = ""
    after: str = ""
    label: str = ""
    joint: str = ""
    repeats: bool = False


STYLES = {
    "aurora": Style(pixel_codes, r"<PIXEL_[^<>\s]*>?", 336, "round", before="(", between=",", after=")", joint=", "),
    "paligemma": Style(loc_codes, LOC_LOOK, 1024, "ends", y_first=True, label="after", joint=" ; "),
    "florence": Style(florence_codes, LOC_LOOK, 1000, "floor", label="before", repeats=True),
}


def style_of(name: str) -> Style:
    """A style by name. Raises: ValueError naming those there are."""
    if name not in STYLES:
        raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {name!r}")
    return STYLES[name]
