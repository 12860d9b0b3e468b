"""The plain parts of a page: facts, remarks, text as it stands."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    title: str
    rows: Sequence[tuple[str, str]]
    template: ClassVar[str] = "facts.html.jinja"


@dataclass(frozen=True)
class Remarks:
    """Sentences, one below the other."""

    lines: Sequence[str]
    template: ClassVar[str] = "remarks.html.jinja"


@dataclass(frozen=True)
class Preformatted:
    """A text as it stands, folded away until it is asked for."""

    title: str
    text: str
    template: ClassVar[str] = "preformatted.html.jinja"
