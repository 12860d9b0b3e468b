"""Measure vistok and its peers in turn, in one process; prints ratios, since absolute times depend on the machine."""

from importlib import import_module
from importlib.resources import files

from rich.console import Console
from rich.table import Table

from vistok.config import unknown
from vistok.report.json_file import write_json

_NOT_BENCHMARKS = ("timing",)


def bench(name: str | None = None, rounds: int = 7, json: str | None = None) -> None:
    """Run one benchmark, or all of them.

    Args:
        name: file in vistok/bench, for example ops.
        rounds: times every candidate is called; the medians are printed.
        json: file to write the numbers to.
    """
    stems = sorted(
        path.name.removesuffix(".py") for path in files("vistok.bench").iterdir() if path.name.endswith(".py")
    )
    known = [stem for stem in stems if stem not in _NOT_BENCHMARKS and not stem.startswith("_")]
    if name is not None and name not in known:
        raise KeyError(unknown("benchmark", name, known))
    rows = []
    for stem in known if name is None else [name]:
        table = Table("case", "candidate", "median ms", "time / vistok's", title=stem)
        for case, timings in import_module(f"vistok.bench.{stem}").run(rounds):
            for timing in timings:
                table.add_row(case, timing.name, f"{timing.seconds * 1e3:.2f}", f"{timing.ratio:.2f}")
                rows.append({"benchmark": stem, "case": case, **vars(timing)})
        Console().print(table)
    if json is not None:
        write_json(json, rows)


COMMAND = bench
