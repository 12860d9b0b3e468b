"""How many tokens each image gets: learned halting, a prefix, or a search for the smallest number within an error.

Every policy gives the same: tokens, the error measured on the decoded images, and what that took in passes. B images.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.tokens import TokenTensor

Target = Callable[[Tensor, Tensor], Tensor]
"""Decoded and true images [B, 3, H, W] -> error [B]; any measure that falls as images get closer."""


class Allocation(NamedTuple):
    """tokens; error [B] of the decoded images; met [B]: error <= eps; passes [B] int64 through encoder and decoder."""

    tokens: TokenTensor
    error: Tensor
    met: Tensor
    encoder_passes: Tensor
    decoder_passes: Tensor


def mean_absolute_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Mean over channels and pixels, [B]: what KARL is trained to meet."""
    return (decoded - images).abs().mean((1, 2, 3))


def learned_halting(
    model: Any, images: Tensor, *, eps: float | Tensor, target: Target = mean_absolute_error, **options: Any
) -> Allocation:
    """One pass: the tokens that the model itself keeps for eps. options: of `model.encode`."""
    tokens = model.encode(images, eps=eps, **options)
    return _measured(model, images, tokens, _per_image(eps, images), target)


def prefix(
    model: Any,
    images: Tensor,
    *,
    budget: int | Tensor,
    eps: float | Tensor = 0.0,
    target: Target = mean_absolute_error,
) -> Allocation:
    """One pass: the first `budget` tokens of all that the model makes; for tokenizers whose prefixes decode."""
    tokens = model.encode(images, halting=False).truncate(budget)
    return _measured(model, images, tokens, _per_image(eps, images), target)


def error_search(
    model: Any, images: Tensor, *, eps: float | Tensor, budget: int | None = None, target: Target = mean_absolute_error
) -> Allocation:
    """The smallest budget in 1..`budget` with an error <= eps, by bisection; one pass through both nets for each try.

    The error is taken to fall with the budget. Images that the full budget does not satisfy get the full budget.
    """
    asked = _per_image(eps, images)
    full = model.budget if budget is None else budget
    best = _measured(model, images, model.encode(images, budget=full, halting=False), asked, target)
    fails, meets = torch.zeros_like(best.encoder_passes), torch.full_like(best.encoder_passes, full)
    while len(rows := ((meets - fails > 1) & best.met).nonzero()[:, 0]):
        tried = (fails[rows] + meets[rows]) // 2
        tokens = model.encode(images[rows], budget=tried, halting=False)
        result = _measured(model, images[rows], tokens, asked[rows], target)
        meets[rows] = tried.where(result.met, meets[rows])
        fails[rows] = fails[rows].where(result.met, tried)
        best = _updated(best, rows, result, result.met)
    return best


def verified(
    model: Any,
    images: Tensor,
    *,
    eps: float | Tensor,
    budget: int | Tensor | None = None,
    target: Target = mean_absolute_error,
) -> Allocation:
    """Learned halting, measured; images that miss their eps are asked for less, by bisection over `model.epsilons`.

    What comes out meets eps by measurement, or carries all slots of the budget because nothing less sufficed; `met`
    is False only where these do not suffice either.
    """
    asked = _per_image(eps, images)
    best = learned_halting(model, images, eps=asked, target=target, budget=budget)
    known = torch.tensor(model.epsilons, device=images.device)
    missed = ~best.met
    fails, meets = model.bins(asked, images).clone(), torch.full_like(best.encoder_passes, -1)
    while len(rows := (missed & (fails - meets > 1)).nonzero()[:, 0]):
        tried = (fails[rows] + meets[rows]) // 2
        tokens = model.encode(images[rows], budget=_rows_of(budget, rows), eps=known[tried])
        result = _measured(model, images[rows], tokens, asked[rows], target)
        meets[rows] = tried.where(result.met, meets[rows])
        fails[rows] = fails[rows].where(result.met, tried)
        best = _updated(best, rows, result, result.met)
    if len(rows := (missed & (meets < 0)).nonzero()[:, 0]):
        tokens = model.encode(images[rows], budget=_rows_of(budget, rows), halting=False)
        result = _measured(model, images[rows], tokens, asked[rows], target)
        best = _updated(best, rows, result, torch.ones_like(result.met))
    return best


def _rows_of(budget: int | Tensor | None, rows: Tensor) -> int | Tensor | None:
    return budget[rows] if isinstance(budget, Tensor) else budget


def _measured(model: Any, images: Tensor, tokens: TokenTensor, eps: Tensor, target: Target) -> Allocation:
    with torch.no_grad():
        error = target(model.decode(tokens), images)
    once = torch.ones(len(images), dtype=torch.int64, device=images.device)
    return Allocation(tokens, error, error <= eps, once, once.clone())


def _updated(best: Allocation, rows: Tensor, result: Allocation, taken: Tensor) -> Allocation:
    """`best` with the passes of `result` added at `rows`, and its tokens and error there where `taken`."""
    encoder_passes, decoder_passes = best.encoder_passes.clone(), best.decoder_passes.clone()
    encoder_passes[rows] += result.encoder_passes
    decoder_passes[rows] += result.decoder_passes
    place = torch.arange(len(best.error), device=rows.device)
    place[rows[taken]] = len(best.error) + taken.nonzero()[:, 0]
    return Allocation(
        TokenTensor.cat([best.tokens, result.tokens])[place],
        torch.cat([best.error, result.error])[place],
        torch.cat([best.met, result.met])[place],
        encoder_passes,
        decoder_passes,
    )


def _per_image(eps: float | Tensor, images: Tensor) -> Tensor:
    return torch.as_tensor(eps, dtype=torch.float32, device=images.device).expand(len(images))
