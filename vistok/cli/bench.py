"""Measure vistok and its peers in turn, in one process; prints ratios, since absolute times depend on the machine."""

from importlib import import_module
from importlib.resources import files
from typing import Any

from rich.console import Console
from rich.table import Table

from vistok.config import check_settings, unknown
from vistok.report.json_file import write_json

_NOT_BENCHMARKS = ("timing",)
_WIDTH = 140


def bench(
    name: str | None = None, rounds: int = 7, options: dict[str, Any] | None = None, json: str | None = None
) -> None:
    """Run one benchmark, or all of them.

    Args:
        name: file in vistok/bench, for example ops.
        rounds: times every candidate is called; the medians are printed.
        options: further settings of the benchmark, as a YAML mapping, for example '{size: small}' for prune.
        json: file to write the numbers to.
    """
    stems = sorted(
        path.name.removesuffix(".py") for path in files("vistok.bench").iterdir() if path.name.endswith(".py")
    )
    known = [stem for stem in stems if stem not in _NOT_BENCHMARKS and not stem.startswith("_")]
    if name is not None and name not in known:
        raise KeyError(unknown("benchmark", name, known))
    if options and name is None:
        raise ValueError("bench: expected --options with the name of the benchmark that takes them")
    rows = []
    for stem in known if name is None else [name]:
        module = import_module(f"vistok.bench.{stem}")
        check_settings(f"benchmark {stem!r}", module.run, options or {})
        columns: dict[str, str] = getattr(module, "COLUMNS", {})
        table = Table("case", "candidate", "median ms", "time / first", *columns, title=stem)
        for case, timings in module.run(rounds, **(options or {})):
            for timing in timings:
                further = [form.format(timing) for form in columns.values()]
                table.add_row(case, timing.name, f"{timing.seconds * 1e3:.2f}", f"{timing.ratio:.2f}", *further)
                rows.append({"benchmark": stem, "case": case, **vars(timing)})
        # A terminal that is narrower had better wrap the lines of the table than lose its columns.
        Console(width=max(Console().width, _WIDTH)).print(table)
    if json is not None:
        write_json(json, rows)


COMMAND = bench
