"""Fitting a small classifier in epochs as visual query tuning does (arXiv:2212.03220): Adam or SGD, warm-up, cosine.

N rows, C classes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

LogitsOf = Callable[[Tensor], Tensor]  # rows [B] int64 -> logits [B, C]


def _adam(groups: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, rate)


def _sgd(groups: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, rate, momentum=0.9)


# Adam's decay is the coupled one, an L2 penalty inside the gradient, not AdamW's.
SOLVERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


@dataclass(frozen=True)
class Recipe:
    """How to fit. learning_rate: for 256 rows a batch, scaled to `batch`; weight_decay: of all but biases.

    The rate of epoch e is e / warm_epochs of the full one, so the first is at 0, then half a cosine.
    Raises: ValueError for a solver, sizes or epochs that there cannot be.
    """

    learning_rate: float
    weight_decay: float
    solver: str = "adam"
    batch: int = 128
    epochs: int = 100
    warm_epochs: int = 10

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"recipe: expected solver {' or '.join(SOLVERS)}, got {self.solver!r}")
        if self.batch < 1 or not 0 <= self.warm_epochs < self.epochs:
            raise ValueError(
                f"recipe: expected batch >= 1 and 0 <= warm_epochs < epochs, got {self.batch}, {self.warm_epochs} and "
                f"{self.epochs}"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        full = self.learning_rate * self.batch / 256
        if epoch < self.warm_epochs:
            return full * epoch / self.warm_epochs
        share = (epoch - self.warm_epochs) / (self.epochs - self.warm_epochs)
        return full * 0.5 * (1 + math.cos(math.pi * share))


def fit(
    module: nn.Module,
    logits_of: LogitsOf,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    penalty: Callable[[], Tensor] | None = None,
) -> float:
    """Fit what takes a gradient in `module` to labels [N] int64 of rows 0..N-1 by cross entropy; the last loss.

    seed: of the order of rows. penalty: added to the loss of each batch. A loss that is not finite ends the fit at once
    and is returned, so that a search may go on with other settings.
    """
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    biases = [value for name, value in named if name.endswith("bias")]
    others = [value for name, value in named if not name.endswith("bias")]
    groups = [
        {"params": part, "weight_decay": decay}
        for part, decay in ((others, recipe.weight_decay), (biases, 0.0))
        if part
    ]
    solver = SOLVERS[recipe.solver](groups, recipe.learning_rate)
    draw = torch.Generator().manual_seed(seed)
    last = math.nan
    for epoch in range(recipe.epochs):
        for group in solver.param_groups:
            group["lr"] = recipe.rate(epoch)
        for rows in torch.randperm(len(labels), generator=draw).split(recipe.batch):
            loss = nn.functional.cross_entropy(logits_of(rows), labels[rows])
            if penalty is not None:
                loss = loss + penalty()
            last = float(loss.detach())
            if not math.isfinite(last):
                return last
            solver.zero_grad()
            loss.backward()
            solver.step()
    return last


@torch.no_grad()
def predicted(logits_of: LogitsOf, rows: Tensor, batch: int = 250) -> Tensor:
    """The most likely class of each of rows [N] int64, [N] int64."""
    return torch.cat([logits_of(part).argmax(1) for part in rows.split(batch)])
