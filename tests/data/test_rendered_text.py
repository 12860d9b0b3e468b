"""Rendered text: the same bytes each time, letters where they belong, and what the font lacks told by name."""

from pathlib import Path

import pytest
import torch

from vistok.data.rendered_text import TextRenderer

WRITER = TextRenderer(16)


def test_text_is_black_on_white_at_the_left_and_the_same_every_time() -> None:
    page = WRITER.render(["star", "a"], height=24, width=64)
    assert page.shape == (2, 3, 24, 64) and page.dtype == torch.float32
    assert float(page.max()) == 1 and float(page.min()) < 0.1
    assert bool((page[:, :, :, WRITER.width("star") + 1 :] == 1).all())
    assert torch.equal(page, TextRenderer(16).render(["star", "a"], height=24, width=64))
    assert torch.equal(page[:, 0], page[:, 2])


def test_equal_beginnings_look_equal_and_other_letters_do_not() -> None:
    page = WRITER.render(["starb", "starc"])[:, 0]
    edge = WRITER.width("sta")
    assert torch.equal(page[0, :, :edge], page[1, :, :edge]) and not torch.equal(page[0], page[1])


def test_size_follows_the_longest_text_where_none_is_given() -> None:
    assert WRITER.render(["a", "longer"]).shape[2:] == (WRITER.height, WRITER.width("longer"))
    assert WRITER.render([""]).shape[3] == 1


def test_characters_that_the_font_lacks_are_named() -> None:
    assert WRITER.missing("a é ü a é") == "éü" and WRITER.missing("~ “quoted” …") == ""
    with pytest.raises(ValueError, match="Pillow's own font has, got 'café' with 'é'; give font="):
        WRITER.render(["tea", "café"])


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one line"):
        WRITER.render(["two\nlines"])
    with pytest.raises(ValueError, match=r"expected at least \d+ x \d+ pixels for 'wide text'.*got 24 x 8"):
        WRITER.render(["wide text"], height=24, width=8)
    with pytest.raises(ValueError, match="list of at least one text, got 'word'"):
        WRITER.render("word")
    with pytest.raises(ValueError, match="at least 4 pixels, got 3"):
        TextRenderer(3)
    (tmp_path / "no.ttf").write_bytes(b"no font")
    with pytest.raises(FileNotFoundError, match=r"no\.ttf: expected a TrueType or OpenType font file"):
        TextRenderer(16, tmp_path / "no.ttf")
