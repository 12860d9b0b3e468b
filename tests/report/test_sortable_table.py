"""Cells know by what they are sorted."""

import pytest

from vistok.report.sortable_table import MAX_ROWS, number_text, table_of


def test_a_column_is_numeric_if_all_it_has_are_numbers_or_nothing() -> None:
    table = table_of("t", ["a", "b", "c", "d"], [[1, "x", None, True], [2.5, 3, None, False], [None, "", 4, None]])
    assert table.numeric == [True, False, True, False]
    assert [row[0].key for row in table.rows] == ["1.0", "2.5", ""]
    assert [row[3].text for row in table.rows] == ["yes", "no", "-"]


def test_rows_beyond_the_most_are_counted() -> None:
    table = table_of("t", ["a"], [[number] for number in range(MAX_ROWS + 7)])
    assert len(table.rows) == MAX_ROWS and table.left_out == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345, "12,345"),
        (2.0, "2"),
        (0.123456789, "0.12346"),
        (123456.7, "123,457"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_are_written_for_readers(value: float, text: str) -> None:
    assert number_text(value) == text


def test_what_is_not_finite_is_shown_and_not_sorted_by() -> None:
    table = table_of("t", ["a"], [[float("nan")], [1.5], [float("-inf")], [float("inf")]])
    assert [row[0].number for row in table.rows] == [None, 1.5, None, None]
    assert table.numeric == [True]
