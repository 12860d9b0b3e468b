"""Pictures beside what became of them, each with a slider, its tokens and its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vistok.report.inline_picture import InlinePicture
from vistok.report.token_map import TokenMap, TokenStrip


@dataclass(frozen=True)
class Picture:
    """One sample; what is not known of it is left out."""

    name: str
    numbers: str
    caption: str = ""
    original: InlinePicture | None = None
    decoded: InlinePicture | None = None
    map: TokenMap | None = None
    strip: TokenStrip | None = None

    @property
    def small(self) -> bool:
        """Whether its pixels are to be seen as squares."""
        shown = self.original or self.decoded
        return shown is not None and shown.small

    @property
    def views(self) -> list[tuple[str, str]]:
        """What its reader may choose to see: value and label."""
        both = self.original is not None and self.decoded is not None
        found = [("picture", "Compare" if both else "Picture")] if self.original or self.decoded else []
        found += [("map", "Tokens")] if self.map else []
        return found + ([("difference", "Difference")] if both else [])

    @property
    def bytes(self) -> int:
        """About what it adds to the page."""
        return sum(len(part.uri) for part in (self.original, self.decoded, self.map, self.strip) if part is not None)


@dataclass(frozen=True)
class Gallery:
    """Samples in a grid. left_out: a sentence about those that are not shown."""

    title: str
    items: Sequence[Picture]
    hint: str = ""
    left_out: str = ""
    template: ClassVar[str] = "gallery.html.jinja"
