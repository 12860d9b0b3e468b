"""Tell what was measured of each method, from the results that ship with the embedded weights."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from vistok.report.measured import markdown, measured


def status(*, as_markdown: bool = False) -> None:
    """Print a line for each result that ships with the weights: by which command, and what it found.

    Args:
        as_markdown: print the table of README.
    """
    lines = measured()
    if as_markdown:
        print(markdown(lines))
        return
    table = Table("name", "papers", "measured by", "found", box=box.SIMPLE_HEAD)
    for line in lines:
        table.add_row(line.name, ", ".join(line.papers), line.command, line.found)
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False).print(table)


COMMAND = status
