"""How many visual tokens the layers of a decoder see: a falling schedule, scaled to a budget. B items, L layers.

A schedule cuts behind layers c_1 < c_2 < ... and leaves there the fractions r_1 >= r_2 >= ... of the visual tokens at
the decoder's input. A budget is the mean over all L layers of the fraction that a layer sees; one factor f reaches it:
c_1 + 1 + sum_i (c_{i+1} - c_i) min(1, f r_i) = budget L, the last cut reaching to layer L - 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vistok.protocols import Budget, LayerPlan, LayerView


def check_ratios(method: str, prune_after: Sequence[int | float], ratios: Sequence[float]) -> tuple[float, ...]:
    """The ratios as they are. Raises: ValueError unless they fall within [0, 1], one for each layer of prune_after."""
    falling = all(0.0 <= ratio <= 1.0 for ratio in ratios) and all(a >= b for a, b in pairwise(ratios))
    if len(ratios) != len(prune_after) or not falling:
        raise ValueError(
            f"{method}: expected {len(prune_after)} ratios in [0, 1], falling, one per layer of prune_after, got "
            f"{list(ratios)}"
        )
    return tuple(ratios)


def kept_fractions(
    method: str,
    prune_after: Sequence[int | float],
    ratios: Sequence[float],
    view: LayerView,
    budget: Budget | None,
) -> dict[int, Tensor]:
    """Layer -> [B] float64: what a cut behind it leaves of an item's visual tokens at the decoder's input.

    view: of the decoder's input. budget: tokens per layer on average, as `LayerPruner.begin` takes it; None: the ratios
    as they are. Layers that are one in a decoder of this depth are one cut, to the smaller ratio.
    Raises: TypeError or ValueError for something else than a budget; ValueError, beginning with `method`, for one out
    of the schedule's reach.
    """
    cuts = sorted(int(LayerPlan(prune_after=(layer,)).resolve(view.layers).prune_after[0]) for layer in prune_after)
    falling = dict(zip(cuts, ratios, strict=True))
    shares = _shares(budget, view.original)
    scaled = [_scaled(method, falling, view.layers, share) for share in shares]
    columns = torch.tensor(scaled, dtype=torch.float64, device=view.original.device).reshape(len(shares), len(falling))
    return dict(zip(falling, columns.T, strict=True))


def kept_counts(fractions: Tensor, original: Tensor, *, down: bool = False) -> Tensor:
    """fractions [B] of original [B] tokens, as int64 [B]: rounded to the nearest (down: the lower) whole number.

    At least one token, unless the fraction or the number of tokens is 0.
    """
    exact = fractions * original
    # 1e-9: 0.3 * 10 and the like must not fall below the whole number that they are.
    whole = ((exact + 1e-9).floor() if down else exact.round()).to(torch.int64)
    return whole.clamp(min=1).where((fractions > 0) & (original > 0), 0)


def _shares(budget: Budget | None, original: Tensor) -> list[float | None]:
    """The budget of every item as a fraction of its visual tokens."""
    counts = original.tolist()
    if budget is None:
        return [None] * len(counts)
    if isinstance(budget, bool) or not isinstance(budget, int | float | Tensor):
        raise TypeError(f"budget: expected int, float in (0, 1] or Tensor [B], got {type(budget).__name__} {budget!r}")
    if isinstance(budget, float):
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"budget: expected a fraction in (0, 1], got {budget}; give an int for a number of tokens")
        return [budget] * len(counts)
    wanted = budget.tolist() if isinstance(budget, Tensor) else [budget] * len(counts)
    if not isinstance(wanted, list) or len(wanted) != len(counts) or any(value < 1 for value in wanted):
        raise ValueError(f"budget: expected at least 1 token for each of {len(counts)} items, got {budget}")
    return [min(1.0, value / count) if count else 1.0 for value, count in zip(wanted, counts, strict=True)]


def _scaled(method: str, falling: dict[int, float], layers: int, share: float | None) -> list[float]:
    """Ratios times one factor, at most 1 each, so that the layers see `share` of the tokens on average."""
    cuts, ratios = list(falling), list(falling.values())
    if share is None or not cuts:
        return ratios
    spans = [end - begin for begin, end in pairwise([*cuts, layers - 1])]
    wanted = share * layers - (cuts[0] + 1)
    if wanted < 0:
        raise ValueError(
            f"{method}: expected a budget of at least {(cuts[0] + 1) / layers:.3f} of the visual tokens per layer on "
            f"average, which the layers before the first cut see, got {share:.3f}; cut earlier (prune_after) or put a "
            f"pruner at the input before"
        )
    for full in range(len(ratios) + 1):
        below = sum(span * ratio for span, ratio in zip(spans[full:], ratios[full:], strict=True))
        left = wanted - sum(spans[:full])
        if left > 1e-9 and full < len(ratios) and not below:
            raise ValueError(
                f"{method}: expected a budget of at most {(cuts[full] + 1) / layers:.3f} of the visual tokens per "
                f"layer on average, as the cut behind layer {cuts[full]} leaves none, got {share:.3f}; raise its ratio"
            )
        factor = left / below if below else 0.0
        if full == len(ratios) or ratios[full] * factor <= 1.0:
            return [1.0] * full + [ratio * factor for ratio in ratios[full:]]
    raise AssertionError("some number of ratios is capped")
