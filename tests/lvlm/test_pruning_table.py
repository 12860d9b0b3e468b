"""Every row is about the same questions, and says where it loses to random."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from vistok.lvlm.pruning_methods import Method, find_methods
from vistok.lvlm.pruning_runs import Asking
from vistok.lvlm.pruning_table import COLUMNS, Row, as_csv, compare, losses, pareto_front
from vistok.lvlm.scene_questions import scene_picture, scene_questions
from vistok.metrics.accuracy import accuracy, paired_difference

from .micro_fixtures import tiny_micro


@dataclass(frozen=True)
class Made:
    """Right answers of a method and of random."""

    method: str
    budget: float
    right: Sequence[bool]
    random: Sequence[bool]

    def row(self) -> Row:
        found = paired_difference(self.random, self.right)
        kinds = {"color": found, "count": paired_difference([True], [True])}
        return Row(self.method, self.budget, accuracy(self.right), against_random=found, kinds_against_random=kinds)


YES, NO = [True] * 40, [False] * 40
MIXED = [True, False] * 20


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    asking = Asking(
        "tiny", *tiny_micro(), scene_questions("test", 14), scene_picture(64), tmp_path_factory.mktemp("a"), 7, 2
    )
    return compare(asking, [*find_methods([]), Method("never", "transprune")], [0.5, 0.25])


def test_rows_are_all_methods_at_all_budgets_after_the_unpruned_one(rows: list[Row]) -> None:
    names = ["random", "uniform", "pool", "downsample", "never"]
    assert [(row.method, row.budget) for row in rows] == [
        ("unpruned", 1.0),
        *((name, 0.5) for name in names),
        *((name, 0.25) for name in names),
    ]
    assert rows[0].kept == rows[0].flops_share == 1.0
    for row in rows:
        if row.score is not None:
            assert row.kept == row.budget and row.score.questions == 14
            assert sum(kind.questions for kind in row.kinds.values()) == 14


def test_differences_are_paired_with_random_at_the_same_budget(rows: list[Row]) -> None:
    found = {(row.method, row.budget): row for row in rows}
    for (name, budget), row in found.items():
        if name in ("random", "unpruned", "never"):
            assert row.against_random is None and row.verdict == ""
        else:
            random = found["random", budget].score
            assert row.against_random is not None and row.score is not None and random is not None
            assert row.against_random.difference == pytest.approx(row.score.accuracy - random.accuracy)
            assert row.kinds_against_random.keys() == row.kinds.keys()


def test_a_method_that_cannot_do_it_has_a_row_with_its_reason(rows: list[Row]) -> None:
    refused = [row for row in rows if row.method == "never"]
    assert all(row.score is None and "relative depth" in str(row.refused) for row in refused) and len(refused) == 2


def test_the_csv_has_a_line_for_each_row_and_the_same_columns_in_all(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(lines) == len(rows) and all(tuple(line) == COLUMNS for line in lines)
    assert None not in {value for line in lines for value in line.values()}
    for line, row in zip(lines, rows, strict=True):
        assert (line["method"], float(line["budget"]), line["refused"]) == (row.method, row.budget, row.refused or "")
        if row.score is None:
            assert line["accuracy"] == line["verdict"] == ""
        else:
            assert float(line["accuracy"]) == pytest.approx(row.score.accuracy, abs=1e-5)
            assert float(line["visual_tokens"]) == pytest.approx(36 * row.budget)


@pytest.mark.parametrize(
    ("right", "random", "verdict"),
    [(YES, MIXED, "wins"), (NO, MIXED, "loses"), ([*YES[1:], False], YES, "lower"), (YES, YES, "same")],
)
def test_a_verdict_needs_the_whole_interval(right: list[bool], random: list[bool], verdict: str) -> None:
    assert Made("a", 0.5, right, random).row().verdict == verdict


def test_each_method_says_where_it_loses() -> None:
    rows = [
        Made("bad", 0.5, NO, MIXED).row(),
        Made("bad", 0.25, NO, MIXED).row(),
        Made("fair", 0.5, [*YES[1:], False], YES).row(),
        Row("fair", 0.25, refused="too few"),
        Made("good", 0.5, YES, MIXED).row(),
    ]
    assert losses(rows) == [
        "bad loses to random at 50%, 25%; in color at 50%, 25%",
        "fair loses to random nowhere; lower, within the interval, at 50%; refused at 25%",
        "good loses to random nowhere",
    ]


@pytest.mark.parametrize("budgets", [[], [0.0], [0.5, 1.5]])
def test_budgets_that_are_no_shares_are_refused(tmp_path: Path, budgets: list[float]) -> None:
    asking = Asking("tiny", *tiny_micro(), scene_questions("test", 2), scene_picture(64), tmp_path)
    with pytest.raises(ValueError, match=r"shares of the visual tokens in \(0, 1\]"):
        compare(asking, find_methods([]), budgets)


def test_the_pareto_front_is_what_no_row_beats_in_tokens_and_accuracy() -> None:
    points = {
        "full": (100, 40),
        "good": (30, 38),
        "bad": (30, 20),
        "same": (40, 38),
        "small": (10, 30),
        "tie": (10, 30),
    }
    rows = [
        Row(name, 0.5, accuracy([True] * right + [False] * (40 - right)), visual_tokens=float(tokens))
        for name, (tokens, right) in points.items()
    ]
    front = pareto_front([*rows, Row("refused", 0.5, refused="cannot")])
    assert [row.method for row in front] == ["full", "good", "small", "tie"]
