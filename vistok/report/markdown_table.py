"""A table in Markdown, for an issue or a README."""

from collections.abc import Sequence


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Headings, a rule and the rows; numeric columns stand at the right. What would end a cell is escaped."""
    rule = ["---:" if each else "---" for each in numeric]
    return "".join(f"| {' | '.join(map(_cell, row))} |\n" for row in [headings, rule, *rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
