"""How many tokens images need within an error: KARL's estimate of Kolmogorov complexity, and how far it can be trusted.

KC_eps(x, T) = min t <= T with |x^_t - x| <= eps (arXiv:2507.07995, section 3), read off as the tokens kept in one pass.
Models are adaptive tokenizers: `encode` takes eps, budget and halting. B images, E requested errors.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.tokenizers._allocation import Target, learned_halting, mean_absolute_error


class CalibrationRow(NamedTuple):
    """What came of one requested error over a set of images.

    over: share of the images whose error is larger, excess: mean of that error minus eps among these (0 if none).
    """

    eps: float
    tokens: float
    error: float
    over: float
    excess: float


@torch.inference_mode()
def kc(model: Any, images: Tensor, eps: float | Tensor, *, budget: int | None = None) -> Tensor:
    """Tokens kept of each image [B, 3, H, W] at eps (a number or [B]): [B] int64."""
    kept: Tensor = model.encode(images, eps=eps, budget=budget).valid_lengths
    return kept


def kc_curve(model: Any, images: Tensor, epsilons: Sequence[float], *, budget: int | None = None) -> Tensor:
    """Tokens kept at each of E errors: [E, B] int64."""
    return torch.stack([kc(model, images, eps, budget=budget) for eps in epsilons])


@torch.inference_mode()
def structure_score(model: Any, images: Tensor, low: int = 32, high: int = 256) -> Tensor:
    """Mean absolute error with `low` tokens minus that with `high`, halting off: [B].

    Near 0 where tokens do not help (noise), large where few rules explain much (arXiv:2507.07995, section 5).
    """
    errors = []
    for budget in (low, high):
        tokens = model.encode(images, budget=budget, halting=False)
        errors.append(mean_absolute_error(model.decode(tokens), images))
    return errors[0] - errors[1]


@torch.inference_mode()
def calibration_report(
    model: Any, images: Tensor, epsilons: Sequence[float], *, target: Target = mean_absolute_error
) -> list[CalibrationRow]:
    """One row for each requested error: whether what was asked for is what came (table 3 of the paper)."""
    rows = []
    for eps in epsilons:
        found = learned_halting(model, images, eps=eps, target=target)
        missed = found.error[~found.met] - eps
        rows.append(
            CalibrationRow(
                eps,
                float(found.tokens.valid_lengths.float().mean()),
                float(found.error.mean()),
                float((~found.met).float().mean()),
                float(missed.mean()) if len(missed) else 0.0,
            )
        )
    return rows


@torch.inference_mode()
def calibrate(model: Any, images: Tensor, *, share: float = 0.95) -> dict[float, float]:
    """For each error the model knows, the error that holds for `share` of the images; set on the model and returned.

    From then on `encode(calibrated=True, eps=e)` asks for the largest error whose bound is <= e, and `save_pretrained`
    keeps the table. Raises: ValueError for no image, or a share outside (0, 1].
    """
    if not len(images) or not 0 < share <= 1:
        raise ValueError(f"calibrate: expected images and a share in (0, 1], got {len(images)} and {share}")
    bounds = {}
    for eps in model.epsilons:
        error = learned_halting(model, images, eps=eps).error.sort().values
        bounds[float(eps)] = float(error[math.ceil(share * len(error) - 1e-9) - 1])
    model.set_calibration(bounds)
    return bounds
