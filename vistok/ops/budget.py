"""Budgets to counts, and counts to slots: what every pruner that ranks or spaces tokens needs.

B items, N token slots, K slots of the result. An item keeps min(its budget, its valid tokens); K depends on shapes and
on the Python value of the budget only, so it is static in a compiled graph.
"""

import torch
from torch import Tensor

from vistok.protocols import Budget
from vistok.tokens import Selection, TokenTensor


def kept_tokens(tokens: TokenTensor, budget: Budget) -> tuple[int, Tensor]:
    """(K, counts [B] int64): slots of the result, and how many tokens each item keeps.

    budget: tokens (int), a fraction of each item's valid tokens (float in (0, 1], at least one token: max(1, round)),
    or tokens per item ([B] integers; K is then N). Raises: ValueError or TypeError if it is none of these.
    """
    slots, valid = tokens.num_slots, tokens.valid_lengths
    if isinstance(budget, Tensor):
        return slots, torch.minimum(_per_item(budget, valid), valid)
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise TypeError(f"budget: expected int, float in (0, 1] or Tensor [B], got {type(budget).__name__} {budget!r}")
    if isinstance(budget, float):
        if not 0.0 < budget <= 1.0:
            raise ValueError(f"budget: expected a fraction in (0, 1], got {budget}; give an int for a number of tokens")
        # float64 and round-half-even on both sides, so that K is the count of a full item.
        counts = torch.minimum((valid.double() * budget).round().to(torch.int64).clamp(min=1), valid)
        return min(max(1, round(budget * slots)), slots), counts
    if budget < 1:
        raise ValueError(f"budget: expected at least 1 token, got {budget}")
    return min(budget, slots), valid.clamp(max=budget)


def _per_item(budget: Tensor, valid: Tensor) -> Tensor:
    whole = not budget.is_floating_point() and budget.dtype not in (torch.bool, torch.complex64, torch.complex128)
    if budget.shape != valid.shape or not whole:
        raise ValueError(
            f"budget: expected integers [B] with B={valid.shape[0]}, got {list(budget.shape)} {budget.dtype}"
        )
    # Looking at the values needs a device synchronisation, and would break a compiled graph.
    if not torch.compiler.is_compiling() and budget.device.type == "cpu" and bool((budget < 0).any()):
        raise ValueError(f"budget: expected tokens >= 0 per item, got {budget.tolist()}")
    return budget.to(valid.device, torch.int64)


def best_slots(ranks: Tensor, slots: int, counts: Tensor) -> Tensor:
    """Slots [B, K=slots] int64 of the tokens with ranks 0..counts-1, ascending; others fill the rest of the row.

    ranks: [B, N] integers, 0 = best, distinct within an item.
    """
    chosen = ranks < counts[:, None]
    return torch.sort((~chosen).to(torch.int8), dim=1, stable=True).indices[:, :slots]


def as_selection(tokens: TokenTensor, index: Tensor, counts: Tensor, budget: Budget) -> Selection:
    """The selection of `index` [B, K]; lengths stay None where every item is known to fill all K slots."""
    full = tokens.lengths is None and not isinstance(budget, Tensor)
    return Selection(index, None if full else counts)
