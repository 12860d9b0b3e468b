"""The loop that trainings share: what is logged and saved when, and that a stopped run goes on."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vistok.train.checkpoint import read_state, write_state
from vistok.train.step_loop import run_steps


@dataclass(frozen=True)
class Config:
    steps: int = 10
    log_every: int = 4
    save_every: int = 3


class Halving:
    """A loss that halves with every step."""

    def __init__(self, out: Path, config: Config | None = None) -> None:
        self.config: Any = config or Config()
        self.out, self.step, self.seconds = out, 0, 0.0
        self.loss = 1.0
        self.saved: list[int] = []

    def train_step(self) -> dict[str, float]:
        self.step += 1
        self.loss /= 2
        return {"loss": self.loss}

    def save(self) -> None:
        self.saved.append(self.step)
        write_state(self.out, {"step": self.step, "seconds": self.seconds, "loss": self.loss})

    def resume(self) -> None:
        state = read_state(self.out)
        if state is not None:
            self.step, self.seconds, self.loss = state["step"], state["seconds"], state["loss"]


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_rows_and_checkpoints_come_when_due_and_at_the_ends_of_stages_and_of_the_run(tmp_path: Path) -> None:
    run = Halving(tmp_path / "new" / "run")
    seen: list[dict[str, float]] = []
    last = run_steps(run, on_row=seen.append, ends=(5,))
    assert [row["step"] for row in rows(run.out)] == [4, 5, 8, 10] and run.saved == [3, 5, 6, 9, 10]
    assert seen == rows(run.out) and last == seen[-1] and last["loss"] == 0.5**10
    assert json.loads((run.out / "config.json").read_text()) == {"steps": 10, "log_every": 4, "save_every": 3}


def test_what_is_measured_stands_in_the_row_and_is_told_of_every_step(tmp_path: Path) -> None:
    told: dict[int, dict[str, float]] = {}
    run = Halving(tmp_path)
    run_steps(run, told.__setitem__, measure=lambda due: {"accuracy": run.step / 10} if due else {})
    assert sorted(told) == list(range(1, 11)) and "accuracy" not in told[3] and told[4]["accuracy"] == 0.4
    assert [row["accuracy"] for row in rows(tmp_path)] == [0.4, 0.8, 1.0]


def test_a_run_that_is_stopped_goes_on_from_its_checkpoint_and_forgets_rows_behind_it(tmp_path: Path) -> None:
    def stop(step: int, values: dict[str, float]) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_steps(Halving(tmp_path), stop)
    resumed = Halving(tmp_path)
    steps: list[int] = []
    last = run_steps(resumed, lambda step, values: steps.append(step))
    assert steps == [7, 8, 9, 10] and last["loss"] == 0.5**10
    assert [row["step"] for row in rows(tmp_path)] == [4, 8, 10]
    assert run_steps(Halving(tmp_path)) == last == rows(tmp_path)[-1]


def test_a_loss_that_is_no_number_ends_the_run_by_name_and_is_not_saved(tmp_path: Path) -> None:
    run = Halving(tmp_path, Config(save_every=1))
    run.loss = math.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; lower the learning rate"):
        run_steps(run)
    assert run.saved == []


def test_a_process_that_does_not_write_leaves_the_folder_to_the_one_that_does(tmp_path):
    beside = Halving(tmp_path / "none")
    assert run_steps(beside, writes=False) == {} and beside.step == 10
    assert beside.saved == [] and not (tmp_path / "none").exists()
