"""One HTML file that needs no server and asks for nothing: sections of parts, each part rendered by its own template.

Everything that is shown goes through the template engine's escaping; style and script are inlined, and the page's
content security policy admits these two by hash, pictures as data URIs, and nothing else.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vistok.data.shard import write_atomic

_ASSETS = Path(__file__).parent / "assets"


class Part(Protocol):
    """What a section is made of: plain data, and the name of the template (in assets/) that shows it as `part`."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Section:
    """What is told of one source: its name, what kind of thing it is, and the parts in the order of the page."""

    title: str
    kind: str
    parts: Sequence[Part]


def render_page(title: str, sections: Sequence[Section]) -> str:
    """The page as text; the same sections give the same text. Raises: ValueError if there is no section."""
    if not sections:
        raise ValueError("report: expected at least one section, got none")
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    # Our own two files: nothing of what is shown is in them, and escaping would change their hashes.
    text = environment.get_template("page.html.jinja").render(
        title=title, sections=sections, policy=policy, style=Markup(style), script=Markup(script)
    )
    # A name read from a damaged file may hold what UTF-8 cannot.
    return text.encode("utf-8", "backslashreplace").decode()


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> int:
    """Write the page, whole or not at all; parent folders are made. Returns its bytes. Raises: as `render_page`."""
    content = render_page(title, sections).encode()
    write_atomic(Path(path), content)
    return len(content)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
