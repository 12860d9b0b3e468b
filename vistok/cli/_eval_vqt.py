"""`vistok eval vqt`: the table of a finished `vistok train vqt`, readouts beside the linear probe."""

from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vistok.metrics.paired_accuracy import Difference, paired_difference
from vistok.report.json_file import write_json
from vistok.train.vqt_results import Result, read_results


def vqt(run: str, *, json: str | None = None) -> None:
    """Print accuracies of VQT and of the linear probe on test images, their differences, and what selection costs.

    Args:
        run: folder of `vistok train vqt`.
        json: file to write the numbers to.
    """
    results = read_results(run)
    linear = {result.facts.task: result for result in results if not result.facts.tokens}
    rows = [summary(result.facts.task, [result], linear) for result in results]
    rows += [summary("mean", group, linear) for group in _groups(results) if len(group) > 1]
    console = Console(width=max(Console().width, 150))
    console.print(_table(run, rows))
    first = results[0]
    console.print(
        f"{first.right.shape[1]:,} test images a task, seeds {', '.join(map(str, first.facts.seeds))}. Accuracy: mean "
        "over seeds (lowest to highest). In brackets: 95 % of 2,000 paired bootstrap draws of images and of seeds. "
        "solved: the linear probe fitted to convergence on standardised features of the training images, measured on "
        "the test images like all others. refitted: a new head on all features of the frozen queries; kept: one on "
        "those that group lasso chose, fitted alike.",
        highlight=False,
        soft_wrap=True,
    )
    if json is not None:
        write_json(json, {"run": run, "rows": rows})


def summary(task: str, group: list[Result], linear: dict[str, Result]) -> dict[str, Any]:
    """The numbers of one readout over one task or several; linear: the probe's results by task, as far as there are.

    Differences are None where there is nothing to compare with.
    """
    facts = group[0].facts
    right = torch.stack([result.right for result in group])
    against = [linear[result.facts.task].right for result in group if facts.tokens and result.facts.task in linear]
    refitted = [result.refit_right for result in group if result.refit_right is not None]
    selected = [result.kept_right for result in group if result.kept_right is not None]
    solved = [result.facts.solved for result in group if result.facts.solved is not None]
    # A mean over some of the tasks only would be beside one over all.
    again, kept = (torch.stack(found) if len(found) == len(group) else None for found in (refitted, selected))
    return {
        "task": task,
        "readout": facts.readout,
        "features": facts.features,
        "recipes": [[result.facts.learning_rate, result.facts.weight_decay] for result in group],
        "accuracy": float(right.double().mean()),
        "accuracies": right.double().mean((0, 2)).tolist(),
        "solved": sum(solved) / len(solved) if solved else None,
        "over_linear": paired_difference(right, torch.stack(against))._asdict() if len(against) == len(group) else None,
        "refit_accuracy": None if again is None else float(again.double().mean()),
        "kept_features": facts.kept_features,
        "kept_accuracy": None if kept is None else float(kept.double().mean()),
        "kept_over_all": None if kept is None or again is None else paired_difference(kept, again)._asdict(),
    }


def _groups(results: list[Result]) -> list[list[Result]]:
    counts = sorted({result.facts.tokens for result in results})
    return [[result for result in results if result.facts.tokens == tokens] for tokens in counts]


def _table(run: str, rows: list[dict[str, Any]]) -> Table:
    table = Table("task", "readout", title=escape(f"{run}: accuracy on test images, %"))
    for heading in ("features", "accuracy", "solved", "over linear", "refitted", "kept", "accuracy", "over refitted"):
        table.add_column(heading, justify="right")
    task = None
    for line in rows:
        if task not in (None, line["task"]):
            table.add_section()
        task = line["task"]
        runs = line["accuracies"]
        table.add_row(
            line["task"],
            line["readout"],
            f"{line['features']:,}",
            f"{100 * line['accuracy']:.1f} ({100 * min(runs):.1f} to {100 * max(runs):.1f})",
            _percent(line["solved"]),
            _difference(line["over_linear"]),
            _percent(line["refit_accuracy"]),
            "" if line["kept_features"] is None else f"{line['kept_features']:,}",
            _percent(line["kept_accuracy"]),
            _difference(line["kept_over_all"]),
        )
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _difference(found: dict[str, float] | None) -> str:
    if found is None:
        return ""
    value = Difference(**found)
    return f"{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
