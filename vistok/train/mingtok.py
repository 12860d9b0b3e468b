"""Training of MingTok: features at masked places and pixels at once, in a plain loop that resumes to the bit.

Every draw of a step comes from (seed, step), so the state is weights, average, optimizers and the step. Latent
statistics are taken at the end in a streaming pass and become the model's `mean` and `scaling_factor`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vistok.config import deep_merge
from vistok.metrics.reconstruction import psnr
from vistok.registry import create, resolve
from vistok.tokenizers.mingtok import MingTok
from vistok.train.alignment import AlignmentLoss, adaptive_weight
from vistok.train.augment import augmented
from vistok.train.checkpoint import read_state, write_state
from vistok.train.export import write_half
from vistok.train.latent_statistics import latent_statistics
from vistok.train.losses import make_losses
from vistok.train.masked_features import draw_mask, on_grid
from vistok.train.mingtok_losses import Heads, Step, Targets, masked_step
from vistok.train.mixed_pictures import MixedPictures
from vistok.train.moving_average import moving_average
from vistok.train.optimizers import OPTIMIZERS, restore, update, warm_cosine
from vistok.train.step_loop import OnStep, run_steps
from vistok.train.teachers import Teacher, make_teacher

# No training comes to the batches of this step: their scenes are new, but their crops are of the same photographs.
_STATISTICS_FROM = 10**6


@dataclass(frozen=True)
class Training:
    """One run. photos: folders of training pictures; scales: shorter sides they are reduced to; scene_share: of scenes.

    tokenizer: name of a preset, settings: overrides of it. latent_teacher, semantic_teacher: of
    `vistok.train.teachers.make_teacher`, None for none. mask_ratio: hidden patches of a masked image, masked_share: of
    images that are masked; visible_weight: how much places count for the feature losses that are not hidden.
    pixels, latent, semantic: weights of the losses; perceptual: of further ones by name. alignment_teacher: None, or
    whose features the latents of whole images are laid out as (VA-VAE), up to cosine_margin and relation_margin;
    alignment: the gradient of that beside the pixels', at the encoder's last layer. learning_rate falls on a cosine
    to 0. statistics_batches: over which mean and std of latents are taken.
    The PSNR in the log, further losses and `decode` are of raw predictions: with another loss_type than "L1-plain",
    whose loss is of values that are stretched, squashed or normalized, they do not measure what was trained.
    """

    out: str
    tokenizer: str = "mingtok_nano"
    photos: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    latent_teacher: dict[str, Any] | None = None
    semantic_teacher: dict[str, Any] | None = None
    alignment_teacher: dict[str, Any] | None = None
    mask_ratio: float = 0.4
    masked_share: float = 0.5
    visible_weight: float = 0.0
    pixels: float = 1.0
    latent: float = 1.0
    semantic: float = 1.0
    alignment: float = 0.1
    cosine_margin: float = 0.5
    relation_margin: float = 0.25
    perceptual: dict[str, float] = field(default_factory=dict)
    scene_share: float = 0.5
    steps: int = 20_000
    batch: int = 16
    crop: int = 96
    scales: list[int] = field(default_factory=lambda: [1000, 700, 500, 350, 250, 180, 130, 100])
    jitter: float = 0.2
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    bf16: bool = True
    statistics_batches: int = 32
    seed: int = 0
    threads: int = 0
    save_every: int = 200
    log_every: int = 50


def train(training: Training, on_step: OnStep | None = None) -> dict[str, float]:
    """Run a recipe to its end and write the averaged model to `out/model`; returns the last logged metrics."""
    trainer = Trainer(training)
    metrics = trainer.run(on_step)
    write_half(trainer.finished(), Path(training.out) / "model")
    return metrics


class Trainer:
    """Model, heads, average, optimizers and step of one run; `run()` goes on from the last checkpoint in `out`."""

    def __init__(self, config: Training, teachers: Mapping[str, Teacher] | None = None) -> None:
        """teachers: "latent", "semantic" and "alignment", in place of those that the recipe names.

        Raises: ValueError for an unknown optimizer, a teacher or loss that does not exist.
        """
        if config.optimizer not in OPTIMIZERS:
            raise ValueError(f"mingtok: expected optimizer {' or '.join(OPTIMIZERS)}, got {config.optimizer!r}")
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config = config
        self.out = Path(config.out)
        self.teachers = dict(teachers) if teachers is not None else _teachers(config)
        self.aligned_with = self.teachers.pop("alignment", None)
        torch.manual_seed(config.seed)
        self.model: MingTok = create("tokenizer", config.tokenizer, **config.settings)
        widths = {name: self._width(teacher) for name, teacher in self.teachers.items()}
        self.heads = Heads(self.model, widths.get("latent"), widths.get("semantic"), self._alignment_loss())
        self.trained = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.average = AveragedModel(self.model, multi_avg_fn=moving_average(config.ema))
        self.optimizers = OPTIMIZERS[config.optimizer](self.trained, config.learning_rate, config.weight_decay)
        self.perceptual = make_losses(config.perceptual)
        self.pictures = MixedPictures(config.photos, config.crop, config.scales, config.seed, config.scene_share)
        self.step = 0
        self.seconds = 0.0

    def run(self, on_step: OnStep | None = None) -> dict[str, float]:
        """Go on from the last checkpoint to the last step, saving on the way; returns the last logged metrics."""
        return run_steps(self, on_step)

    def train_step(self) -> dict[str, float]:
        """One update; returns the weighted loss terms and the PSNR of images of which nothing was hidden."""
        config = self.config
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        images = augmented(self.pictures.batch(self.step, config.batch), config.jitter)
        grid = self.model.low_level_encoder.grid(images)
        masked = draw_mask(len(images), grid[0] * grid[1], config.mask_ratio, config.masked_share)
        self.trained.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            targets = self._targets(images, masked, grid)
            step = masked_step(self.model, self.heads, images, masked, targets, config.visible_weight)
        terms = {name: getattr(config, name) * value for name, value in step.terms.items()}
        terms |= {name: weight * loss(step.images, images) for name, (weight, loss) in self.perceptual.items()}
        terms |= self._alignment(images, masked, step, terms["pixels"], grid)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        norm = update(self.optimizers, total, self.trained.parameters(), self.learning_rate(), config.clip)
        self.average.update_parameters(self.model)
        self.step += 1
        values = {"loss": total, **terms, "grad_norm": norm}
        whole = ~masked.any(1)
        if bool(whole.any()):
            values["psnr"] = psnr(step.images.detach()[whole], images[whole])
        return {name: float(value.detach()) for name, value in values.items()}

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine from learning_rate to 0."""
        config = self.config
        return warm_cosine(config.learning_rate, self.step, config.steps, config.warmup)

    def finished(self) -> MingTok:
        """The averaged model in eval mode, with the latent statistics of scenes it was not trained on and of new crops.

        The crops are of the photographs that it was trained on: there are no others.
        """
        config = self.config
        average = self.average.module
        assert isinstance(average, MingTok)
        batches = (
            self.pictures.batch(_STATISTICS_FROM + number, config.batch) for number in range(config.statistics_batches)
        )
        measured = latent_statistics(lambda images: average.low_level_encoder(images * 2 - 1), batches, average.dim)
        found = {"mean": measured.overall_mean, "scaling_factor": measured.overall_std}
        settings = deep_merge(deep_merge(resolve("tokenizer", config.tokenizer).settings, config.settings), found)
        model: MingTok = create("tokenizer", config.tokenizer, **settings)
        model.load_state_dict(average.state_dict())
        return model.eval()

    def save(self) -> None:
        """Write the checkpoint whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "trained": self.trained.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        write_state(self.out, state)

    def resume(self) -> None:
        """Go on from `out/last.pt` if there is one."""
        state = read_state(self.out)
        if state is None:
            return
        self.step, self.seconds = state["step"], state["seconds"]
        self.trained.load_state_dict(state["trained"])
        self.average.load_state_dict(state["average"])
        restore(self.optimizers, state["optimizers"])

    def _targets(self, images: Tensor, masked: Tensor, grid: tuple[int, int]) -> Targets:
        """Teachers only look at images whose features count; the others' targets are zero and weigh nothing."""
        counts = masked.any(1) if not self.config.visible_weight else torch.ones(len(images), dtype=torch.bool)
        found: dict[str, Tensor] = {}
        for name, teacher in self.teachers.items():
            if bool(counts.any()):
                features = on_grid(teacher(images[counts]), grid)
                found[name] = features.new_zeros(len(images), *features.shape[1:])
                found[name][counts] = features
        return Targets(**found)

    def _alignment_loss(self) -> AlignmentLoss | None:
        config = self.config
        if self.aligned_with is None:
            return None
        margins = {"cosine_margin": config.cosine_margin, "relation_margin": config.relation_margin}
        return AlignmentLoss(self.model.dim, self._width(self.aligned_with), **margins)

    def _alignment(
        self, images: Tensor, masked: Tensor, step: Step, pixels: Tensor, grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The alignment of images of which nothing was hidden, weighed against `pixels`; nothing without a teacher."""
        whole = ~masked.any(1)
        if self.aligned_with is None or self.heads.alignment is None or not bool(whole.any()):
            return {}
        found = self.heads.alignment(step.latents[whole], self.aligned_with(images[whole]), grid)
        loss = found.cosine + found.relations
        last_layer = self.model.low_level_encoder.out_proj.weight
        return {"alignment": adaptive_weight(pixels, loss, last_layer, self.config.alignment) * loss}

    def _width(self, teacher: Teacher) -> int:
        side = self.config.crop
        return teacher(torch.zeros(1, 3, side, side)).shape[1]


def _teachers(config: Training) -> dict[str, Teacher]:
    named = {
        "latent": config.latent_teacher,
        "semantic": config.semantic_teacher,
        "alignment": config.alignment_teacher,
    }
    return {name: make_teacher(settings) for name, settings in named.items() if settings is not None}
