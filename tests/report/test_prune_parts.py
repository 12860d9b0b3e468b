"""A pruning evaluation on a page: the curve, the table, and what is kept of the pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vistok.report.eval_section import eval_section
from vistok.report.kept_overlay import KeptOverlay
from vistok.report.page import Section, render_page
from vistok.report.prune_parts import is_pruning, prune_parts

HOSTILE = "</script><img src=x onerror=alert(1)>"


def score(accuracy: float) -> dict[str, Any]:
    return {"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1], "questions": 10}


def row(method: str, budget: float, accuracy: float | None, tokens: float) -> dict[str, Any]:
    return {
        **{"method": method, "budget": budget, "score": None if accuracy is None else score(accuracy)},
        **{"kinds": {HOSTILE: score(0.5)}, "visual_tokens": tokens, "kept": tokens / 9, "flops_share": 0.5},
        **{"against_random": None, "verdict": "", "loses_to_random_in": [], "settings": {}, "refused": None},
    }


def result(folder: Path) -> dict[str, Any]:
    Image.new("RGB", (30, 30), "red").save(folder / "one.png")
    pictures = [str(folder / "one.png"), str(folder / "gone.png")]
    asked = [{"picture": name, "question": HOSTILE, "answer": "4", "grid": [3, 3]} for name in pictures]
    told = [{"method": HOSTILE, "budget": 0.5, "kept": ["ff8", ""], "answers": [HOSTILE, "3"]}]
    rows = [row("unpruned", 1.0, 0.9, 9.0), row(HOSTILE, 0.5, 0.8, 4.5), row("other", 0.5, 0.7, 5.0)]
    return {
        "settings": {"methods": [HOSTILE], "budgets": [0.5], "weights": "ab" * 32, "data": None},
        "rows": [*rows, row("none", 0.1, None, 0.0) | {"refused": "cannot"}],
        "notes": ["a note"],
        "shown": {"scene_side": None, "questions": asked, "rows": told},
    }


def test_everything_is_on_the_page_as_text_and_missing_pictures_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result(tmp_path)))
    section = eval_section(tmp_path / "result.json", 12, 1_000_000)
    text = render_page("t", [section])
    assert HOSTILE not in text and text.count("</script>") == 2
    assert "cannot" in text and "a note" in text and "abababababababab" in text and "ab" * 32 not in text
    assert f"not found where they were asked about: {tmp_path / 'gone.png'}" in text
    (overlay,) = [part for part in section.parts if isinstance(part, KeptOverlay)]
    assert overlay.kept == {HOSTILE: {"0.5": [("ff8", HOSTILE), ("", "3")]}}
    assert [asked.picture is None for asked in overlay.pictures] == [False, True]


def test_scenes_are_rendered_again_from_their_seeds(tmp_path: Path) -> None:
    value = result(tmp_path)
    value["shown"] = {
        "scene_side": 64,
        "questions": [{"picture": 7, "question": "?", "answer": "", "grid": [3, 3]}],
        "rows": [{"method": "m", "budget": 0.5, "kept": ["000"], "answers": ["x"]}],
    }
    (overlay,) = [part for part in prune_parts(value, 12, 1_000_000) if isinstance(part, KeptOverlay)]
    (asked,) = overlay.pictures
    assert asked.name == "scene 7" and asked.picture is not None and asked.picture.width == 64


def test_why_a_method_cannot_be_shown_is_said(tmp_path: Path) -> None:
    value = result(tmp_path)
    value["shown"]["rows"].append(
        {"method": "m", "budget": 0.1, "kept": ["", ""], "answers": ["", ""], "why_not": "no"}
    )
    text = render_page("t", [Section("s", "k", prune_parts(value, 12, 1_000_000))])
    assert "m at 10%: what it keeps is not shown: no" in text


def test_a_result_from_before_says_how_to_add_what_is_kept(tmp_path: Path) -> None:
    value = result(tmp_path)
    del value["shown"]
    assert is_pruning(value)
    (tmp_path / "old.json").write_text(json.dumps(value))
    assert "give the same `vistok eval prune` command again" in render_page(
        "t", [eval_section(tmp_path / "old.json", 12, 1_000_000)]
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", "3"])
def test_a_file_that_holds_no_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="x.json: expected"):
        eval_section(tmp_path / "x.json", 12, 1)


def test_a_row_that_is_not_as_it_is_written_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    value = result(tmp_path)
    value["rows"][1]["score"] = {"accuracy": "high"}
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="x.json: expected a result as vistok writes it"):
        eval_section(tmp_path / "x.json", 12, 1)


@pytest.mark.parametrize("change", [{"kept": ["f", ""]}, {"kept": ["zz8", ""]}, {"kept": [7, ""]}])
def test_tokens_that_do_not_go_with_the_grid_are_refused_before_a_page_counts_them(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    value = result(tmp_path)
    value["shown"]["rows"][0] |= change
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="x.json: expected a result as vistok writes it.*9 tokens"):
        eval_section(tmp_path / "x.json", 12, 1_000_000)


@pytest.mark.parametrize("wrong", [10**400, {"accuracy": 0.5, "interval": [0.1]}])
def test_numbers_that_cannot_be_drawn_are_an_error_that_names_the_file(tmp_path: Path, wrong: Any) -> None:
    value = result(tmp_path)
    value["rows"][1]["score"] = wrong
    (tmp_path / "x.json").write_text(json.dumps(value))
    with pytest.raises(ValueError, match="x.json: expected a result as vistok writes it"):
        eval_section(tmp_path / "x.json", 12, 1)


def test_a_method_is_chosen_by_its_name_to_the_letter(tmp_path: Path) -> None:
    value = result(tmp_path)
    value["shown"]["rows"][0]["method"] = "two  spaces"
    text = render_page("t", [Section("s", "k", prune_parts(value, 12, 1_000_000))])
    assert '<option value="two  spaces">two  spaces</option>' in text


def test_tokens_that_are_no_grid_are_not_counted_as_none_of_none(tmp_path: Path) -> None:
    value = result(tmp_path)
    value["shown"]["questions"][0]["grid"] = None
    value["shown"]["rows"][0]["kept"] = ["ff8", "ff8"]
    (overlay,) = [part for part in prune_parts(value, 12, 1_000_000) if isinstance(part, KeptOverlay)]
    assert overlay.kept == {HOSTILE: {"0.5": [("", HOSTILE), ("ff8", "3")]}}
