"""Accuracy against visual tokens, one row for each method and budget, every row about the same questions."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vistok.lvlm.pruning_methods import Method
from vistok.lvlm.pruning_runs import Asking, OnBatch, Refused, Run, choose
from vistok.metrics import pareto
from vistok.metrics.accuracy import (
    Accuracy,
    PairedDifference,
    accuracy,
    accuracy_by_kind,
    paired_difference,
)

RANDOM = "random"
UNPRUNED = "unpruned"
COLUMNS = (
    *("method", "budget", "questions", "accuracy", "low", "high", "of_unpruned", "visual_tokens", "kept"),
    *("flops", "flops_share", "minus_random", "minus_random_low", "minus_random_high", "p_value", "verdict"),
    *("loses_to_random_in", "settings", "refused"),
)


@dataclass(frozen=True)
class Row:
    """One method at one budget, or UNPRUNED. score: with its Wilson interval; None where the method refused.

    of_unpruned: accuracy as a share of the unpruned model's. visual_tokens: per layer on average; kept: as a share.
    flops: of the language model for a prompt; flops_share: of the unpruned ones. settings: chosen among candidates.
    against_random: at the same budget, overall and of each kind, with 95 % intervals.
    """

    method: str
    budget: float
    score: Accuracy | None = None
    kinds: dict[str, Accuracy] = field(default_factory=dict)
    of_unpruned: float = 0.0
    visual_tokens: float = 0.0
    kept: float = 0.0
    flops: float = 0.0
    flops_share: float = 0.0
    against_random: PairedDifference | None = None
    kinds_against_random: dict[str, PairedDifference] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None

    @property
    def verdict(self) -> str:
        """Against random: "wins" or "loses" where the interval leaves no doubt, else "higher", "lower" or "same"."""
        if self.against_random is None:
            return ""
        low, high = self.against_random.interval
        if low > 0 or high < 0:
            return "wins" if low > 0 else "loses"
        difference = self.against_random.difference
        return "higher" if difference > 0 else "lower" if difference < 0 else "same"

    @property
    def loses_in(self) -> list[str]:
        """Kinds of questions of which random answers more, with the whole interval below 0."""
        return [kind for kind, each in self.kinds_against_random.items() if each.interval[1] < 0]


def compare(
    asking: Asking,
    methods: Sequence[Method],
    budgets: Sequence[float],
    *,
    tuning: Asking | None = None,
    on_batch: OnBatch | None = None,
) -> list[Row]:
    """All rows, UNPRUNED first; a budget's rows follow one another.

    methods: RANDOM among them. tuning: other questions, on which each method's settings are chosen for each budget;
    None leaves them as they are. Raises: ValueError if answers in the folders are of other settings, or a budget is
    outside (0, 1]; as `Method.build`.
    """
    wrong = [budget for budget in budgets if not 0 < budget <= 1]
    if wrong or not budgets:
        raise ValueError(f"budgets: expected shares of the visual tokens in (0, 1], got {wrong or 'none'}")
    for method in methods:
        for candidate in method.candidates if tuning is not None else ({},):
            method.build(candidate)  # so that a wrong setting is told before the first question
    full = asking.run(None, on_batch=on_batch)
    rows = [_row(asking, UNPRUNED, 1.0, full, full, None, {})]
    for budget in budgets:
        runs: dict[str, tuple[Run, dict[str, Any]] | str] = {}
        for method in methods:
            try:
                candidate = {} if tuning is None else choose(tuning, method, budget, on_batch)
                runs[method.name] = asking.run(method, budget, candidate, on_batch=on_batch), candidate
            except Refused as error:
                runs[method.name] = str(error)
        chance = runs[RANDOM]
        for name, found in runs.items():
            if isinstance(found, str):
                rows.append(Row(name, budget, refused=found))
            else:
                other = chance[0] if name != RANDOM and not isinstance(chance, str) else None
                rows.append(_row(asking, name, budget, found[0], full, other, found[1]))
    return rows


def _row(
    asking: Asking, name: str, budget: float, run: Run, full: Run, chance: Run | None, settings: dict[str, Any]
) -> Row:
    right, whole = asking.right(run), accuracy(asking.right(full)).accuracy
    score = accuracy(right)
    kinds = [question.kind for question in asking.questions]
    by_random = None if chance is None else asking.right(chance)
    return Row(
        name,
        budget,
        score,
        accuracy_by_kind(kinds, right),
        score.accuracy / whole if whole else 0.0,
        run.visual_tokens,
        run.visual_tokens / full.visual_tokens,
        run.flops["exact"],
        run.flops["exact"] / full.flops["exact"],
        None if by_random is None else paired_difference(by_random, right),
        {} if by_random is None else _by_kind(kinds, by_random, right),
        settings,
    )


def _by_kind(kinds: Sequence[str], first: Sequence[bool], second: Sequence[bool]) -> dict[str, PairedDifference]:
    found = {}
    for kind in dict.fromkeys(kinds):
        own = [number for number, each in enumerate(kinds) if each == kind]
        found[kind] = paired_difference([first[n] for n in own], [second[n] for n in own])
    return found


def losses(rows: Sequence[Row]) -> list[str]:
    """One sentence for each method: where it loses to random, by which budgets and kinds of questions."""
    said = []
    for name in dict.fromkeys(row.method for row in rows if row.against_random is not None):
        own = [row for row in rows if row.method == name]
        parts = [_at("", [row for row in own if row.verdict == "loses"])]
        for kind in dict.fromkeys(kind for row in own for kind in row.loses_in):
            parts.append(_at(f"in {kind} ", [row for row in own if kind in row.loses_in]))
        lost = "; ".join(filter(None, parts)) or "nowhere"
        others = [
            _at("lower, within the interval, ", [row for row in own if row.verdict == "lower"]),
            _at("refused ", [row for row in own if row.refused is not None]),
        ]
        said.append("; ".join([f"{name} loses to random {lost}", *filter(None, others)]))
    return said


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Rows that no other one beats: none is as accurate with fewer tokens per layer, or more accurate with as few."""
    scored = [(row, row.score) for row in rows if row.score is not None]
    front = pareto.pareto_front([(row.visual_tokens, score.accuracy) for row, score in scored])
    return [scored[number][0] for number in front]


def _at(words: str, rows: Sequence[Row]) -> str:
    """The budgets of the rows, empty if there are none."""
    return f"{words}at {', '.join(f'{row.budget:.0%}' for row in rows)}" if rows else ""


def as_csv(rows: Sequence[Row]) -> str:
    """A line for each row under COLUMNS; empty where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue()


def _cells(row: Row) -> list[str]:
    head, tail = [row.method, f"{row.budget:g}"], [settings_text(row.settings), row.refused or ""]
    if row.score is None:
        return [*head, *[""] * (len(COLUMNS) - 4), *tail]
    numbers = [row.score.accuracy, *row.score.interval, row.of_unpruned, row.visual_tokens, row.kept]
    numbers += [row.flops, row.flops_share]
    against = row.against_random
    difference = [] if against is None else [against.difference, *against.interval, against.p_value]
    written = [*map(_number, numbers), *(map(_number, difference) if difference else [""] * 4)]
    return [*head, str(row.score.questions), *written, row.verdict, " ".join(row.loses_in), *tail]


def settings_text(settings: dict[str, Any]) -> str:
    """For example "alpha=0.3 scope=image"."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _number(value: float) -> str:
    return f"{value:.6g}"
