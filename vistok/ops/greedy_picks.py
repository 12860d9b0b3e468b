"""Pick tokens one after the other: the largest value is taken, all values change, and so on. B items, N token slots."""

from collections.abc import Callable

import torch
from torch import Tensor

from vistok.ops.cpu import library
from vistok.ops.token_choice import first_largest, first_pick

Picks = tuple[Tensor, Tensor, Tensor]
Update = Callable[[Tensor, Tensor], Tensor]


def pick_in_torch(points: Tensor, values: Tensor, start: Tensor, k: int, update: Update) -> Picks:
    """points [B, N, D], values [B, N] (-inf: not to be picked), start [B] -> picks and values [B, k], counts [B].

    update: values [B, N] and the pick's point [B, D] -> values beside one pick more. A row without a token left repeats
    its last pick, or 0, with value -inf; counts is the number of picks before that.
    """
    batch, slots = values.shape
    indices = torch.zeros(batch, k, dtype=torch.int64, device=values.device)
    found = torch.full((batch, k), -torch.inf, dtype=values.dtype, device=values.device)
    pick = first_pick(start, values > -torch.inf)[:, None]
    for step in range(k if slots else 0):
        best = values.gather(1, pick)
        indices[:, step : step + 1] = pick
        found[:, step : step + 1] = best
        values = values.scatter(1, pick, -torch.inf)
        values = update(values, points.gather(1, pick[:, :, None].expand(-1, -1, points.shape[2])).squeeze(1))
        left = values > -torch.inf
        pick = torch.where(left.any(1, keepdim=True), first_largest(values, left)[:, None], pick)
    return indices, found, (found > -torch.inf).sum(1)


def pick_compiled(op: str, x: Tensor, valid: Tensor, start: Tensor, k: int, *options: int) -> Picks:
    """The same by the C++ function `op`: x [B, N, D] float, valid [B, N] bool, start [B] int64, its own options."""
    function = library.function(op)
    x, valid, start = x.float().contiguous(), valid.contiguous(), start.contiguous()
    indices, found = torch.empty(len(x), k, dtype=torch.int64), torch.empty(len(x), k)
    counts = torch.empty(len(x), dtype=torch.int64)
    pointers = (tensor.data_ptr() for tensor in (x, valid, start, indices, found, counts))
    if function(*pointers, *x.shape, k, *options, torch.get_num_threads()):
        raise MemoryError(f"{op}: no memory to compare {x.shape[1]} tokens of width {x.shape[2]}")
    return indices, found, counts
