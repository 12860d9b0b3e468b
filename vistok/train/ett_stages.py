"""The stages of ETT as data (arXiv:2505.10562, section 3): what trains, what stays, which losses, which rates.

A model is made of named parts. Every row of the table puts each part on one side, so that none is forgotten.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import cos, pi
from typing import Any

from torch import nn

from vistok.config import check_settings

LOSSES = ("caption", "vq", "visual")
_DECAYS = ("cosine", "fixed")


@dataclass(frozen=True)
class Stage:
    """One row. trained, frozen: names of parts; losses: weight by name, "caption" L_cap, "vq" L_vq, "visual" L_gen.

    learning_rate: of all trained parts, or of each by name. warmup: share of the steps in which the rate rises; then it
    stays ("fixed") or falls to 0 ("cosine"). batch: items a step, side: of their pictures in pixels. stream: rows of
    the same number see the same batches. data: further arguments of what makes them.
    """

    name: str
    trained: Sequence[str]
    frozen: Sequence[str]
    losses: Mapping[str, float]
    learning_rate: float | Mapping[str, float]
    steps: int
    batch: int
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.03
    decay: str = "cosine"
    side: int = 96
    stream: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises: ValueError naming the stage and what is wrong with it."""
        where = f"stage {self.name!r}"
        both = sorted(set(self.trained) & set(self.frozen))
        if both or not self.trained:
            raise ValueError(f"{where}: expected some trained parts, none of them frozen too, got {both or 'none'}")
        if not self.losses or not set(self.losses) <= set(LOSSES):
            raise ValueError(f"{where}: expected losses among {', '.join(LOSSES)}, got {sorted(self.losses)}")
        if self.steps < 1 or self.batch < 1 or not 0 <= self.warmup <= 1 or self.decay not in _DECAYS:
            raise ValueError(
                f"{where}: expected steps and batch >= 1, warmup in 0..1 and decay in {_DECAYS}, got {self.steps}, "
                f"{self.batch}, {self.warmup} and {self.decay!r}"
            )
        if not 0 <= self.stream <= 9:
            raise ValueError(f"{where}: expected a stream in 0..9, got {self.stream}")
        if not isinstance(self.learning_rate, int | float) and set(self.learning_rate) != set(self.trained):
            raise ValueError(
                f"{where}: expected one learning_rate, or one for each of {sorted(self.trained)}, got those of "
                f"{sorted(self.learning_rate)}"
            )

    def rate(self, part: str, step: int) -> float:
        """The learning rate of a part at a step, counted from 0."""
        top = self.learning_rate if isinstance(self.learning_rate, int | float) else self.learning_rate[part]
        rising = round(self.warmup * self.steps)
        if step < rising:
            return top * (step + 1) / rising
        if self.decay == "fixed":
            return top
        return top * (1 + cos(pi * (step - rising) / max(1, self.steps - rising))) / 2

    def apply(self, parts: Mapping[str, nn.Module]) -> None:
        """Let exactly the listed parts train, in training mode; the others stay, in evaluation mode.

        A model need not have every frozen part of the table, for example no output rows for pictures.
        Raises: ValueError if it lacks a trained one, or has a part that the row does not name.
        """
        lacking, unnamed = set(self.trained) - set(parts), set(parts) - {*self.trained, *self.frozen}
        if lacking or unnamed:
            raise ValueError(
                f"stage {self.name!r}: expected trained to name parts of the model, which has {', '.join(parts)}, and "
                f"each of these to be named, got {', '.join(sorted(lacking)) or 'none'} that it lacks and "
                f"{', '.join(sorted(unnamed)) or 'none'} unnamed"
            )
        for name, part in parts.items():
            part.train(name in self.trained).requires_grad_(name in self.trained)


def read_stages(table: Iterable[Mapping[str, Any]]) -> dict[str, Stage]:
    """Rows of a YAML table by name, in their order.

    Raises: TypeError for a column that is none; ValueError for a missing one, a name given twice, or a bad value.
    """
    stages: dict[str, Stage] = {}
    needed = [each.name for each in fields(Stage)][:7]
    for number, row in enumerate(table, 1):
        check_settings(f"stage {row.get('name', number)!r}", Stage, row)
        missing = [name for name in needed if name not in row]
        if missing:
            raise ValueError(f"stage {row.get('name', number)!r}: expected also {', '.join(missing)}")
        stage = Stage(**{**row, "betas": tuple(row.get("betas", Stage.betas))})
        if stage.name in stages:
            raise ValueError(f"stages: expected names that differ, got {stage.name!r} twice")
        stages[stage.name] = stage
    return stages


def chosen_stages(stages: Mapping[str, Stage], names: Sequence[str]) -> list[Stage]:
    """The rows to go through: those named, in that order, or all. Raises: ValueError for a name that is none."""
    unknown = [name for name in names if name not in stages]
    if unknown or not stages:
        raise ValueError(f"run: expected names of stages among {', '.join(stages) or 'none'}, got {unknown}")
    return [stages[name] for name in names] if names else list(stages.values())
