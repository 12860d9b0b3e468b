"""Markdown that stays one table whatever is in its cells."""

from vistok.report.markdown_table import markdown_table


def test_pipes_and_line_breaks_do_not_end_a_cell() -> None:
    text = markdown_table(["name", "n"], [["a|b\nc", "1"], ["d\\", "-"]], [False, True])
    assert text == "| name | n |\n| --- | ---: |\n| a\\|b c | 1 |\n| d\\\\ | - |\n"
