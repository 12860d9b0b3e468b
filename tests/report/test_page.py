"""A page holds everything it shows, admits nothing else, and is the same for the same sections."""

import base64
import hashlib
import re
from pathlib import Path

import pytest

from vistok.report.page import render_page, write_page

from .pages import CLOSING, HOSTILE, sections


def test_names_captions_and_headings_are_escaped() -> None:
    text = render_page(CLOSING, sections())
    assert HOSTILE not in text and CLOSING not in text
    assert text.count("<script") == 2 and text.count("</script>") == 2


def test_the_same_sections_give_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / "folder" / name for name in ("a.html", "b.html")]
    sizes = [write_page(file, CLOSING, sections()) for file in files]
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1] and sizes == [len(content) for content in contents]
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["a.html", "b.html"]


def test_style_and_script_are_admitted_by_hash_and_nothing_else_is() -> None:
    text = render_page("title", sections())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#39;none&#39;" in policy and "unsafe" not in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    assert " style=" not in text
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{kind} &#39;sha256-{digest}&#39;" in policy.replace("&#43;", "+")


def test_what_utf_8_cannot_hold_is_shown_as_its_code() -> None:
    assert "broken\\udcff" in render_page("broken\udcff", sections())


def test_a_page_without_sections_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one section"):
        write_page(tmp_path / "page.html", "title", [])
    assert not list(tmp_path.iterdir())
