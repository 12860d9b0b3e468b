"""The loop of a training run: steps, a log, checkpoints, and on from where it stopped."""

import json
import math
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from vistok.train.metrics_log import append_row, drop_rows_after, last_row

OnStep = Callable[[int, dict[str, float]], None]


class Run(Protocol):
    """What goes through the loop. config: a dataclass with steps, log_every and save_every; out: its folder.

    step: updates made; seconds: what they took, in processes before this one too.
    """

    config: Any
    out: Path
    step: int
    seconds: float

    def train_step(self) -> dict[str, float]:
        """One update, `step` rises by 1; returns "loss" and what else is logged."""
        ...

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        ...

    def resume(self) -> None:
        """Go on from the checkpoint if there is one."""
        ...


def run_steps(
    run: Run,
    on_step: OnStep | None = None,
    *,
    measure: Callable[[bool], dict[str, float]] | None = None,
    on_row: Callable[[dict[str, float]], None] | None = None,
    ends: Collection[int] = (),
    writes: bool = True,
) -> dict[str, float]:
    """Go on from the last checkpoint to the last step; returns the last row of `out/metrics.jsonl`.

    measure: called after each step with whether a row is due, returns further values. on_row: sees every row. ends:
    steps that end a stage, which have a row and a checkpoint as the last step has. writes: False in all processes of a
    run but one, which then keeps the folder for all; they return no row.
    Raises: FloatingPointError naming folder and step if a loss is not finite.
    """
    config = run.config
    if writes:
        run.out.mkdir(parents=True, exist_ok=True)
        (run.out / "config.json").write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
    run.resume()
    log = run.out / "metrics.jsonl"
    if writes:
        drop_rows_after(log, run.step)
    row = last_row(log) if writes else {}
    began = time.monotonic() - run.seconds
    while run.step < config.steps:
        values = run.train_step()
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"{run.out}: loss is {values['loss']} at step {run.step}; lower the learning rate")
        last = run.step == config.steps or run.step in ends
        due = last or run.step % config.log_every == 0
        if measure is not None:
            values |= measure(due)
        run.seconds = time.monotonic() - began
        if due and writes:
            row = {"step": run.step, "seconds": round(run.seconds, 1), **values}
            append_row(log, row)
            if on_row is not None:
                on_row(row)
        if writes and (last or run.step % config.save_every == 0):
            run.save()
        if on_step is not None:
            on_step(run.step, values)
    return row
