"""List names: what `vistok.tokenizer(name)` and the functions beside it can build."""

import sys

from rich import box
from rich.console import Console
from rich.table import Table

from vistok.config import unknown
from vistok.registry import FOLDERS, info, names


def list_names(kind: str = "all", pattern: str = "*") -> int:
    """List names with their method, weights and summary.

    Args:
        kind: tokenizer, pruner, quantizer, readout, codec, or all.
        pattern: shell pattern for the names, quoted: '*nano*'.
    """
    if kind != "all" and kind.removesuffix("s") not in FOLDERS:
        raise KeyError(unknown("kind", kind, ["all", *FOLDERS]))
    kinds = list(FOLDERS) if kind == "all" else [kind.removesuffix("s")]
    table = Table("name", "kind", "method", "weights", "summary", box=box.SIMPLE_HEAD)
    for column in table.columns[:-1]:
        column.no_wrap = True
    for each in kinds:
        for name in names(each, pattern):
            config = info(each, name)
            # Of a place on the hub the owner only: `vistok info` has the whole, and lines have 240 columns.
            weights = (config.weights or "-").partition("/")[0]
            table.add_row(name, each, config.method, weights, config.summary)
    if not table.row_count:
        print(f"no name of kind {kind} matches {pattern!r}", file=sys.stderr)
        return 1
    # A pipe has no width; wrapping to 80 columns would break the lines that grep looks at.
    Console(width=None if sys.stdout.isatty() else 240, markup=False, highlight=False).print(table)
    return 0


COMMAND = list_names
