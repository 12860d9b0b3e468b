"""Pictures with the tokens that a pruner drops laid over in shade, by method and budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vistok.report.inline_picture import InlinePicture


@dataclass(frozen=True)
class AskedPicture:
    """A picture (None if it cannot be found), its grid, and what was asked about it."""

    name: str
    picture: InlinePicture | None
    rows: int
    cols: int
    question: str
    answer: str


@dataclass(frozen=True)
class KeptOverlay:
    """kept: method -> budget as text -> per picture its `bits` (empty if it cannot be shown) and the answer given."""

    title: str
    pictures: Sequence[AskedPicture]
    kept: dict[str, dict[str, list[tuple[str, str]]]]
    template: ClassVar[str] = "kept_overlay.html.jinja"

    @property
    def methods(self) -> list[str]:
        """Names in the order of the rows."""
        return list(self.kept)

    @property
    def budgets(self) -> list[str]:
        """All budgets of all methods, the largest first."""
        found = {budget for each in self.kept.values() for budget in each}
        return sorted(found, key=float, reverse=True)

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"budgets": self.budgets, "kept": self.kept}
