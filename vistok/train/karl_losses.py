"""KARL's two runs of one training step (arXiv:2507.07995, section 3) and what supervises the halting.

Estimate: T slots, all decoded, labels "keep", which reach an error eps0. Learn: all slots at eps0, whose answer is
known by then: keep the first T, halt the rest. T may differ by image: then a batch says more about who needs what.
B images, T slots of a run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.tokenizers.karl import Karl, Run

Terms = dict[str, Tensor]
Reconstruct = Callable[[Run, Tensor, int], Terms]
"""A run, its images [B, 3, H, W] and how many slots make it up -> loss terms of the reconstruction, weighted."""


class Step(NamedTuple):
    """runs, their weighted loss terms, loss [] their sum; error [B] of the first run.

    slots: how many make up each run (on average), those of the first one in the second too; budgets [B] of the first.
    """

    runs: tuple[Run, ...]
    terms: tuple[Terms, ...]
    loss: Tensor
    error: Tensor
    slots: tuple[int, ...]
    budgets: Tensor


class EpsilonSchedule(nn.Module):
    """Errors that first runs ask for: bins that the model already reaches become rarer. Part of a checkpoint."""

    probability: Tensor
    epsilons: Tensor

    def __init__(self, epsilons: Sequence[float], at_most: float = 0.04, decay: float = 0.99) -> None:
        """Uniform over the bins <= at_most to begin with (at least the lowest one)."""
        super().__init__()
        bins = torch.tensor(tuple(epsilons))
        start = (bins <= max(at_most, float(bins[0]))).float()
        self.decay = decay
        self.register_buffer("epsilons", bins)
        self.register_buffer("probability", start / start.sum())

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """[count] errors, with repetition."""
        rows = torch.multinomial(self.probability, count, replacement=True, generator=generator)
        return self.epsilons[rows]

    @torch.no_grad()
    def update(self, error: Tensor) -> None:
        """error [B] of a first run: bins no smaller than the least of them lose 1 % of their share."""
        reached = self.epsilons >= error.min()
        self.probability.mul_(torch.where(reached, self.decay, 1.0))
        self.probability.div_(self.probability.sum())


def two_runs(
    model: Karl,
    images: Tensor,
    first: int | Tensor,
    second: int | None,
    eps: Tensor,
    reconstruct: Reconstruct,
    *,
    halting_weight: float = 1.0,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Step:
    """One step at budgets `first` (for all, or [B]) and `second` (None = no second run), first asked for eps [B].

    images [B, 3, H, W] in [0, 1]. noise: of each run, for a VAE base. The decoder of the second run sees what the model
    itself keeps.
    """
    budgets = torch.as_tensor(first, device=images.device).expand(len(images))
    longest, typical = int(budgets.max()), round(float(budgets.float().mean()))
    used = torch.arange(longest, device=images.device) < budgets[:, None]
    valid = used if isinstance(first, Tensor) else None
    estimate = model.run(images, longest, model.bins(eps, images), halting=False, valid=valid, noise=noise[0])
    terms = reconstruct(estimate, images, typical) | {"codebook": estimate.loss}
    terms["keep"] = halting_weight * halting_loss(estimate.halt_logits, used, halt=False)
    with torch.no_grad():
        error = pixel_error(model, estimate, images)
    if second is None:
        return Step((estimate,), (terms,), _sum(terms), error, (typical,), budgets)
    learn = model.run(images, second, model.bins(error, images), halting=True, noise=noise[1])
    more = reconstruct(learn, images, min(typical, second)) | {"codebook": learn.loss}
    needed = torch.arange(second, device=images.device) < budgets[:, None]
    more["keep"] = halting_weight * halting_loss(learn.halt_logits, needed, halt=False)
    if not bool(needed.all()):
        more["halt"] = halting_weight * halting_loss(learn.halt_logits, ~needed, halt=True)
    slots = (typical, min(typical, second))
    return Step((estimate, learn), (terms, more), _sum(terms) + _sum(more), error, slots, budgets)


def distillation_step(
    model: Karl,
    images: Tensor,
    first: int | Tensor,
    second: int,
    eps: Tensor,
    *,
    noise: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Step:
    """Stage 1: the decoder learns what the frozen base tokenizer says about the image."""
    return two_runs(model, images, first, second, eps, distillation(model), noise=noise)


def distillation(model: Karl) -> Reconstruct:
    """The base tokenizer's own terms; for a pixel base L1 + 2 MSE."""
    return lambda run, images, slots: model.base_tokenizer.terms(run.decoded, run.target)


def _sum(terms: Terms) -> Tensor:
    return torch.stack([term.float() for term in terms.values()]).sum()


def halting_loss(logits: Tensor, slots: Tensor, *, halt: bool) -> Tensor:
    """Binary cross entropy of halt logits [B, T] with one label, a mean over the `slots` [B, T] of each image.

    Then the mean over images; one without such slots counts as 0.
    """
    labels = torch.full_like(logits, float(halt), dtype=torch.float32)
    each = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return (each.where(slots, 0.0).sum(1) / slots.sum(1).clamp(min=1)).mean()


def pixel_error(model: Any, run: Run, images: Tensor) -> Tensor:
    """Mean absolute error [B] of a run's images, as they come out of the base's decoder."""
    decoded: Tensor = model.base_tokenizer.pixels(run.decoded, run.grid)
    return (decoded.float() - images).abs().mean((1, 2, 3))
