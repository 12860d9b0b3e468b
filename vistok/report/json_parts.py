"""Any JSON as parts of a page: values as facts, lists of objects as tables, whatever their names are."""

from collections.abc import Mapping, Sequence
from typing import Any

from vistok.report.page import Part
from vistok.report.parts import Facts, Remarks
from vistok.report.sortable_table import cell_of, table_of

_DEEP = 6
_DEEPEST = 40  # of what is shown as text
_WIDE = 60  # columns of a table
_LONG = 400  # characters of one value


def parts_of(title: str, value: Any, depth: int = 0) -> list[Part]:
    """Parts that show `value`; what is nested too deep is shown as text, what is too long or wide is said to be cut."""
    if isinstance(value, Mapping) and depth < _DEEP:
        return _of_object(title, value, depth)
    if _is_table(value):
        return _table(title, value)
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return [Remarks(value)]
    return [Facts(title, [("value", _text(value))])]


def flattened(value: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Nested objects under dotted names."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, Mapping) and depth < _DEEP:
            found |= flattened(each, f"{prefix}{name}.", depth + 1)
        else:
            found[f"{prefix}{name}"] = each
    return found


def _of_object(title: str, value: Mapping[str, Any], depth: int) -> list[Part]:
    plain = {name: each for name, each in value.items() if not _has_parts(each)}
    parts: list[Part] = [Facts(title, [(name, _text(each)) for name, each in plain.items()])] if plain else []
    for name, each in value.items():
        if name in plain:
            continue
        own = name if depth == 0 else f"{title}: {name}"
        if isinstance(each, Mapping) and _is_series(each):
            columns = range(1, len(next(iter(each.values()))) + 1)
            rows = [{"name": key, **dict(zip(map(str, columns), one, strict=True))} for key, one in each.items()]
            parts += _table(own, rows)
        elif isinstance(each, Mapping) and _is_rows(each):
            parts += _table(own, [{"name": key, **_as_row(one)} for key, one in each.items()])
        elif isinstance(each, Mapping) and _is_row(each):
            parts.append(Facts(own, [(key, _text(one)) for key, one in each.items()]))
        else:
            parts += parts_of(own, each, depth + 1)
    return parts


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> list[Part]:
    flat = [flattened(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    headings = names[:_WIDE]
    table = table_of(title, headings, ([_cell(row.get(name, "")) for name in headings] for row in flat))
    left_out = len(names) - len(headings)
    return [table, *([Remarks([f"{title}: {left_out:,} more columns are not shown."])] if left_out else [])]


def _has_parts(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and bool(value) and (_is_table(value) or all(isinstance(v, str) for v in value))


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)


def _is_row(value: Mapping[str, Any]) -> bool:
    """Whether no object is inside."""
    return not any(isinstance(each, Mapping) or _is_table(each) for each in value.values())


def _is_rows(value: Mapping[str, Any]) -> bool:
    """Whether everything inside is an object of the same names and of plain values, so that each is a row."""
    if len(value) < 2 or not all(isinstance(each, Mapping) and each for each in value.values()):
        return False
    flat = [flattened(each) for each in value.values()]
    return all(_is_row(each) and each.keys() == flat[0].keys() for each in flat)


def _is_series(value: Mapping[str, Any]) -> bool:
    """Whether everything inside is a list of as many numbers, so that each is a row."""
    lists = list(value.values())
    if len(lists) < 2 or not all(isinstance(each, list) and 2 <= len(each) < _WIDE for each in lists):
        return False
    numbers = all(isinstance(one, int | float) for each in lists for one in each)
    return numbers and len({len(each) for each in lists}) == 1


def _as_row(value: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name} ": each for name, each in value.items()} if "name" in value else dict(value)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else cell_of(_text(value))


def _text(value: Any, depth: int = 0) -> str:
    if isinstance(value, Mapping | list) and depth == _DEEPEST:
        text = "..."
    elif isinstance(value, Mapping):
        text = ", ".join(f"{name}: {_text(each, depth + 1)}" for name, each in value.items()) or "-"
    elif isinstance(value, list):
        text = ", ".join(_text(each, depth + 1) for each in value) or "-"
    else:
        text = cell_of(value).text
    return text if len(text) <= _LONG else text[:_LONG] + " ..."
