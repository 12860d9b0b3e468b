"""One stage of a recipe with several: a module, the loss of a step, AdamW, a folder; resumable to the bit.

Every draw of a step must come from its number, so that a stopped stage goes on as if it had not been.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from vistok.train.checkpoint import read_state, write_state
from vistok.train.optimizers import adamw, restore, update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps


@dataclass(frozen=True)
class StageSettings:
    """How long and how fast; the rate falls on a cosine to 0."""

    steps: int
    rate: float = 2e-3
    warmup: int = 20
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: int = 200
    log_every: int = 50


class Stage:
    """Trains what of `module` asks for gradients."""

    def __init__(self, out: Path, module: nn.Module, loss: Callable[[int], Tensor], config: StageSettings) -> None:
        """loss: of a step, by its number from 0."""
        self.out, self.module, self.loss, self.config = out, module, loss, config
        self.optimizers = adamw(module, config.rate, config.weight_decay)
        self.step, self.seconds = 0, 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step; returns the last logged row."""
        return run_steps(self, on_step)

    def train_step(self) -> dict[str, float]:
        """One update; returns the loss."""
        config, loss = self.config, self.loss(self.step)
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        rate = warm_cosine(config.rate, self.step, config.steps, config.warmup)
        update(self.optimizers, loss, trained, rate, config.clip)
        self.step += 1
        return {"loss": float(loss.detach())}

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.module.load_state_dict(state["module"])
        restore(self.optimizers, state["optimizers"])
