"""A training run's log as curves and a table."""

import json
from pathlib import Path

import pytest

from vistok.report.page import Section, render_page
from vistok.report.run_section import read_log, run_section
from vistok.report.svg_chart import SideBySide


def write(folder: Path, lines: list[str]) -> Path:
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def rows(count: int) -> list[str]:
    return [json.dumps({"step": step, "seconds": 0.1 * step, "loss": 1 / (1 + step)}) + "\n" for step in range(count)]


def charts(section: Section) -> dict[str, int]:
    (found,) = [part for part in section.parts if isinstance(part, SideBySide)]
    return {chart.title: len(chart.curves[0].marks) for chart in found.charts}  # type: ignore[union-attr]


def test_every_number_has_a_curve_but_for_the_axes_and_settings_and_card_are_there(tmp_path: Path) -> None:
    late = json.dumps({"step": 3, "loss": float("nan"), "arm": {"kept": 5}, "stage": "second", "done": True}) + "\n"
    (tmp_path / "config.json").write_text('{"batch": 4, "name": "<b>"}')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("# card of <i>mine</i>")
    section = run_section(write(tmp_path, [*rows(3), late]))
    assert charts(section) == {"loss": 4, "arm.kept": 1}
    text = render_page("t", [section])
    assert "card of &lt;i&gt;mine&lt;/i&gt;" in text and "&lt;b&gt;" in text and "second" in text


def test_a_long_log_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    section = run_section(write(tmp_path, rows(2500)))
    assert charts(section) == {"loss": 1000}
    text = render_page("t", [section])
    assert "200 of 2,500 logged lines" in text and "2,499" in text


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    found, remarks = read_log(write(tmp_path, [*rows(2), '{"step": 2, "lo']) / "metrics.jsonl")
    assert [row["step"] for row in found] == [0, 1] and "cut short" in remarks[0]


def test_a_run_that_has_logged_nothing_says_so(tmp_path: Path) -> None:
    assert "nothing yet" in render_page("t", [run_section(write(tmp_path, []))])


@pytest.mark.parametrize("line", ["no json\n", "[1]\n", '{"loss": 1}\n', '{"step": true}\n'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: expected"):
        run_section(write(tmp_path, [*rows(1), line, *rows(1)]))


def test_numbers_that_are_no_float_and_marks_that_end_lines_elsewhere_are_taken_as_they_stand(tmp_path: Path) -> None:
    lines = [*rows(2), '{"step": 2, "loss": ' + "9" * 400 + ', "note": "one\u2028line"}\n']
    section = run_section(write(tmp_path, lines))
    assert charts(section) == {"loss": 3}
    assert "one\u2028line" in render_page("t", [section])


def test_settings_that_are_nested_too_deep_are_remarked_on(tmp_path: Path) -> None:
    # Before Python 3.12 they cannot be read, from then on they cannot be indented.
    (tmp_path / "config.json").write_text('{"a":' * 5000 + "1" + "}" * 5000)
    assert "config.json cannot be read: " in render_page("t", [run_section(write(tmp_path, rows(2)))])
