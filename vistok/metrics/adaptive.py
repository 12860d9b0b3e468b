"""Whether an adaptive tokenizer spends its tokens where they are needed, and keeps what it promises.

PSNR is pooled: of the mean squared error over all images. The mean of per-image PSNR punishes whoever equalises errors,
even an oracle. B images, T slots.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.metrics.complexity import kc, kc_curve
from vistok.tokenizers._allocation import learned_halting, mean_absolute_error, verified

_SHUFFLES = 5


class Allocating(NamedTuple):
    """At one eps: mean tokens, pooled PSNR in dB, and that of the same mean count for all and of shuffled counts."""

    eps: float
    tokens: float
    psnr: float
    fixed_psnr: float
    shuffled_psnr: float


class Promise(NamedTuple):
    """At one eps with verification: share of satisfiable images over eps, how many none could satisfy, mean passes.

    once_over: share of the satisfiable images that one pass leaves over eps.
    """

    eps: float
    tokens: float
    over: float
    once_over: float
    unsatisfiable: int
    passes: float


class Falling(NamedTuple):
    """Counts over rising eps: their means, whether these fall strictly, share of images that never rise by over 2."""

    epsilons: tuple[float, ...]
    means: tuple[float, ...]
    strictly: bool
    share: float


def falling(model: Any, images: Tensor, epsilons: Sequence[float], *, slack: int = 2) -> Falling:
    """Counts of images [B, 3, H, W] at each eps; slack: tokens by which a count may rise between two of them."""
    counts = kc_curve(model, images, epsilons)
    means = counts.float().mean(1)
    never = (counts.diff(dim=0) <= slack).all(0)
    return Falling(tuple(epsilons), tuple(means.tolist()), bool((means.diff() < 0).all()), float(never.float().mean()))


@torch.inference_mode()
def error_ratio(model: Any, images: Tensor, share: int = 16) -> float:
    """Mean absolute error with T / share slots over that with all T, halting off."""
    errors = []
    for budget in (max(1, model.budget // share), model.budget):
        tokens = model.encode(images, budget=budget, halting=False)
        errors.append(float(mean_absolute_error(model.decode(tokens), images).mean()))
    return errors[0] / errors[1]


def simpler_gets_fewer(model: Any, simpler: Tensor, richer: Tensor, eps: float) -> tuple[float, int]:
    """Share of pairs of images in which the simpler one gets fewer tokens, and how many pairs that was asked of.

    Pairs of which both are at the least count that occurs are left out: less than that nobody can get.
    """
    few, many = kc(model, simpler, eps), kc(model, richer, eps)
    floor = min(int(few.min()), int(many.min()))
    asked = (few > floor) | (many > floor)
    return int((few < many)[asked].sum()) / max(1, int(asked.sum())), int(asked.sum())


def smooth_and_textured(images: Tensor) -> tuple[Tensor, Tensor]:
    """The third of the images with the least and the third with the most difference between neighbours, in order."""
    energy = images.diff(dim=2).abs().mean((1, 2, 3)) + images.diff(dim=3).abs().mean((1, 2, 3))
    order, third = energy.argsort(), len(images) // 3
    return images[order[:third]], images[order[len(images) - third :]]


def blurred(images: Tensor, factor: int = 8) -> Tensor:
    """images [B, 3, H, W] without what is finer than `factor` pixels: averaged down and interpolated up."""
    small = torch.nn.functional.avg_pool2d(images, factor)
    return torch.nn.functional.interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)


@torch.inference_mode()
def allocating(model: Any, images: Tensor, eps: float) -> Allocating:
    """Learned halting against one count for all images and against its own counts dealt out at random (5 times)."""
    found = model.encode(images, eps=eps)
    counts = found.valid_lengths.clamp(min=1)
    mean = float(counts.float().mean())
    below = math.floor(mean)
    # So many images get one token more that the mean is the same.
    fixed = torch.full_like(counts, below)
    fixed[torch.randperm(len(counts), generator=_seeded(0))[: round((mean - below) * len(counts))]] += 1
    shuffled = [
        _mse(model, images, counts[torch.randperm(len(counts), generator=_seeded(seed + 1))])
        for seed in range(_SHUFFLES)
    ]
    own = float((model.decode(found) - images).square().mean())
    return Allocating(eps, mean, _db(own), _db(_mse(model, images, fixed)), _db(sum(shuffled) / len(shuffled)))


@torch.inference_mode()
def promise(model: Any, images: Tensor, eps: float) -> Promise:
    """Verified halting at eps; images that all slots leave over eps are counted apart."""
    full = model.encode(images, halting=False)
    satisfiable = mean_absolute_error(model.decode(full), images) <= eps
    once, found = learned_halting(model, images, eps=eps), verified(model, images, eps=eps)
    satisfiable = satisfiable | found.met
    asked = max(1, int(satisfiable.sum()))
    return Promise(
        eps,
        float(found.tokens.valid_lengths.float().mean()),
        int((satisfiable & ~found.met).sum()) / asked,
        int((satisfiable & ~once.met).sum()) / asked,
        int((~satisfiable).sum()),
        float(found.encoder_passes.float().mean()),
    )


def _mse(model: Any, images: Tensor, budget: Tensor) -> float:
    decoded = model.decode(model.encode(images, budget=budget, halting=False))
    return float((decoded - images).square().mean())


def _db(mse: float) -> float:
    return -10 * math.log10(max(mse, 1e-12))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
