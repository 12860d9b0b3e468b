"""All that a JSON file says is on the page, whatever its shape."""

from typing import Any

from vistok.report.json_parts import flattened, parts_of
from vistok.report.page import Section, render_page
from vistok.report.parts import Facts, Remarks
from vistok.report.sortable_table import SortableTable


def test_lists_of_objects_are_tables_and_values_are_facts() -> None:
    value = {"a": 1, "rows": [{"x": 1, "deep": {"y": 2.5}}, {"x": None, "z": [1, 2]}], "notes": ["one", "two"]}
    facts, table, remarks = parts_of("Summary", value)
    assert isinstance(facts, Facts) and facts.rows == [("a", "1")]
    assert isinstance(table, SortableTable) and table.headings == ["x", "deep.y", "z"]
    assert [[cell.text for cell in row] for row in table.rows] == [["1", "2.5", ""], ["-", "", "1, 2"]]
    assert isinstance(remarks, Remarks) and list(remarks.lines) == ["one", "two"]


def test_objects_of_like_objects_are_tables_by_name() -> None:
    (table,) = parts_of("Summary", {"kinds": {"red": {"accuracy": 0.5}, "blue": {"accuracy": 1.0}}})
    assert isinstance(table, SortableTable) and table.headings == ["name", "accuracy"]


def test_lists_of_as_many_numbers_are_rows_and_nested_names_are_columns() -> None:
    series, means = parts_of(
        "Summary",
        {"kc": {"a": [3, 2.5], "b": [1, 0]}, "mean": {"x": {"n": 1, "by": {"y": 2}}, "z": {"n": 3, "by": {"y": 4}}}},
    )
    assert isinstance(series, SortableTable) and series.headings == ["name", "1", "2"]
    assert [[cell.text for cell in row] for row in series.rows] == [["a", "3", "2.5"], ["b", "1", "0"]]
    assert isinstance(means, SortableTable) and means.headings == ["name", "n", "by.y"]
    assert [[cell.text for cell in row] for row in means.rows] == [["x", "1", "2"], ["z", "3", "4"]]


def test_every_value_is_somewhere_on_the_page() -> None:
    deep: Any = "bottom"
    for level in range(20):
        deep = {f"level{level}": deep, "beside": [f"in {level}"]}
    strange = {"": "", "mixed": [1, {"a": "object"}, ["list"]], "empty": {}, "none": [], "truth": True, "deep": deep}
    text = render_page("t", [Section("s", "k", parts_of("Summary", strange))])
    for words in ("object", "list", "yes", "bottom", "in 0", "in 19"):
        assert words in text


def test_nested_names_are_joined_by_dots() -> None:
    assert flattened({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_columns_beyond_the_most_are_counted_and_nesting_ends_somewhere() -> None:
    table, remarks = parts_of("rows", [{f"c{number}": number for number in range(67)}])
    assert isinstance(table, SortableTable) and len(table.headings) == 60
    assert isinstance(remarks, Remarks) and list(remarks.lines) == ["rows: 7 more columns are not shown."]
    deep: Any = 1
    for _ in range(900):
        deep = {"a": deep}
    assert "a: a: a:" in render_page("t", [Section("s", "k", parts_of("deep", deep))])
