"""Training of the small autoencoders: a plain torch loop that resumes to the bit.

Every random draw of a step comes from (seed, step): batches from the sampler, noise from torch's generator, which is
seeded anew each step. So the state is weights, average, optimizer, step, and what codes the next log row reports.
"""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vistok.data.crops import CropSampler
from vistok.metrics.codebook_health import CodebookHealth, health_of
from vistok.metrics.reconstruction import psnr
from vistok.registry import create
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import export
from vistok.train.losses import Loss, PatchDiscriminator, hinge_discriminator_loss, make_losses
from vistok.train.moving_average import moving_average
from vistok.train.optimizers import update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps
from vistok.weights import load_weights


@dataclass(frozen=True)
class Training:
    """One run. photos: folders of training pictures; scales: shorter sides the pictures are reduced to, in pixels.

    tokenizer: name of a preset, settings: overrides of it, start: checkpoint to begin from, frozen: parts that keep
    their weights, for example ["encoder"], which keeps all ids. losses: name -> weight.
    learning_rate falls on a cosine to 2 % of itself at `steps`. adversarial: weight of the hinge GAN loss, 0 = none.
    """

    out: str
    tokenizer: str = "vq_nano"
    photos: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    start: str | None = None
    frozen: list[str] = field(default_factory=list)
    steps: int = 20_000
    batch: int = 32
    crop: int = 64
    scales: list[int] = field(default_factory=lambda: [1400, 1000, 700, 500, 350, 250])
    losses: dict[str, float] = field(default_factory=lambda: {"l2": 1.0})
    adversarial: float = 0.0
    adversarial_start: int = 0
    learning_rate: float = 6e-4
    warmup: int = 200
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = True
    seed: int = 0
    threads: int = 0
    save_every: int = 500
    log_every: int = 50
    tensorboard: bool = False


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe to its end and write the averaged model to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    export(trainer.averaged(), training.photos, Path(training.out) / "model")
    return metrics


class Trainer:
    """Model, average, optimizer(s) and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.out = Path(config.out)
        torch.manual_seed(config.seed)
        self.model: nn.Module = create("tokenizer", config.tokenizer, **config.settings)
        if config.start is not None:
            load_weights(self.model, config.start)
        for part in config.frozen:
            self.model.get_submodule(part).requires_grad_(False)
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(config.ema))
        self.optimizer = self._adamw(self.model)
        self.discriminator = PatchDiscriminator() if config.adversarial else None
        self.discriminator_optimizer = self._adamw(self.discriminator) if self.discriminator is not None else None
        self.losses: dict[str, tuple[float, Loss]] = make_losses(config.losses)
        self.sampler = CropSampler(config.photos, config.crop, config.scales, config.seed)
        self.books: list[CodebookHealth] | None = None
        self.step = 0
        self.seconds = 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        writer = _tensorboard(self.out) if self.config.tensorboard else None

        def write(row: dict[str, float]) -> None:
            self.books = None
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(name, value, self.step)

        return run_steps(self, on_step, measure=self._measured, on_row=write)

    def train_step(self) -> dict[str, float]:
        """One update of the model (and of the discriminator); returns the loss terms."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images = self.sampler.batch(self.step, config.batch)
        self.model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            output = self.model(images)
        terms = {name: weight * loss(output.images, images) for name, (weight, loss) in self.losses.items()}
        terms["bottleneck"] = output.loss
        adversarial = self.discriminator is not None and self.step >= config.adversarial_start
        if adversarial:
            assert self.discriminator is not None
            terms["adversarial"] = -config.adversarial * self.discriminator(output.images).mean()
        total = torch.stack([term.float() for term in terms.values()]).sum()
        norm = update([self.optimizer], total, self.model.parameters(), self.learning_rate(), config.clip)
        self.average.update_parameters(self.model)
        if adversarial:
            terms["discriminator"] = self._train_discriminator(images, output.images.detach())
        self.step += 1
        indices = getattr(output, "indices", None)
        if indices is not None:
            self._see(indices.detach(), int(output.stats.get("restarts", 0)))
        values = {
            "loss": total,
            "psnr": psnr(output.images.detach(), images),
            "grad_norm": norm,
            **terms,
            **output.stats,
        }
        return {name: float(value.detach()) for name, value in values.items()}

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine from learning_rate to 2 % of it at the last step."""
        config = self.config
        return warm_cosine(config.learning_rate, self.step, config.steps, config.warmup, floor=0.02)

    def averaged(self) -> nn.Module:
        """The averaged model, in eval mode; its buffers are the trained one's."""
        module: nn.Module = self.average.module
        return module.eval()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "books": [vars(book) for book in self.books or []],
        }
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.books = [CodebookHealth(**book) for book in state.get("books", [])] or None
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])

    def _measured(self, due: bool) -> dict[str, float]:
        """What a row says beside the loss terms."""
        return {"lr": self.learning_rate(), **_code_use(self.books)} if due else {}

    def _see(self, indices: Tensor, restarts: int) -> None:
        """Take ids of one step into the report since the last log row; codebooks too large to count have none."""
        sizes: tuple[int, ...] = self.model.codebook_sizes  # type: ignore[assignment]
        if max(sizes) > CodebookHealth.LARGEST:
            return
        new = health_of(sizes, indices)
        new[0].restarts = restarts
        self.books = new if self.books is None else [a.merged(b) for a, b in zip(self.books, new, strict=True)]

    def _adamw(self, module: nn.Module) -> torch.optim.AdamW:
        config = self.config
        return torch.optim.AdamW(
            module.parameters(), config.learning_rate, config.betas, weight_decay=config.weight_decay, fused=True
        )

    def _train_discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        assert self.discriminator is not None and self.discriminator_optimizer is not None
        loss = hinge_discriminator_loss(self.discriminator(real), self.discriminator(fake))
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()
        return loss.detach()


def _code_use(books: list[CodebookHealth] | None) -> dict[str, float]:
    """Code use since the last row: tokens of each codebook, means of usage and perplexity, dead codes, restarts."""
    reports = [book.report(points=0) for book in books or []]
    if not reports:
        return {}
    return {
        "codebook_tokens": reports[0]["tokens"],
        "codebook_usage": fmean(report["usage"] for report in reports),
        "codebook_perplexity": fmean(report["perplexity"] for report in reports),
        "dead_codes": sum(report["dead_codes"] for report in reports),
        "codebook_restarts": sum(report["restarts"] for report in reports),
    }


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=true needs the extra: pip install 'vistok[tensorboard]'") from error
    return SummaryWriter(str(out / "tensorboard"))
