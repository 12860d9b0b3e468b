"""A store on a page, however little is known of it."""

from pathlib import Path

import pytest

from vistok.report.page import render_page
from vistok.report.store_pictures import Decoder
from vistok.report.store_section import store_section

from ..data.store_fixtures import write_store

NONE = Decoder(None, "it is not here")


def shown(path: Path, samples: int = 12, room: int = 1_000_000) -> str:
    return render_page("t", [store_section(path, NONE, None, samples, room)])


def test_a_store_of_which_only_ids_are_known_shows_lengths_and_use_of_codes(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [[3, 5], [2]])
    text = shown(tmp_path / "store")
    assert "it is not here" in text and "say where they are with --images" in text
    assert "2 of 5 slots hold a token." in text and "Samples by length, 3.3 tokens on average" in text
    assert "3 (0.3%)" in text and "897" in text and "used 2 to 3 times: 2 codes" in text


def test_pictures_are_capped_by_bytes(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [[3, 5], [2]])
    text = shown(tmp_path / "store", room=200)
    assert "slots hold a token" in text and "More would have made this file too large" in text
    assert text.count("<article") < 3


def test_no_picture_is_wanted_and_a_store_without_samples(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [[3, 5], [2]])
    write_store(tmp_path / "empty", [[]])
    assert "0 of 3 samples are shown." in shown(tmp_path / "store", samples=0)
    assert "No sample is committed yet." in shown(tmp_path / "empty")


def test_ids_beyond_the_codebook_are_an_error_that_names_the_store(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [[1] * 902])
    with pytest.raises(
        ValueError, match="store: CodebookHealth: expected ids in 0..899.*901; run `vistok store verify`"
    ):
        shown(tmp_path / "store", samples=2)
