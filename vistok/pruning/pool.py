"""Adaptive 2-D average pooling: the baseline that merges neighbours instead of choosing among them.

The n valid tokens of a grid of R x C fall into k cells of floor(n/k) or ceil(n/k) tokens: round(sqrt(k R / C)) bands of
rows, each cut along its columns. Where bands and columns divide the grid, `reduce` is torch's adaptive_avg_pool2d;
elsewhere that one's windows overlap, and take no other numbers of cells than a product.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.registry import register
from vistok.rows import grid_coords, leaders, scatter_rows, take_rows
from vistok.tokens import Assignment, Selection, TokenTensor

_LAST = torch.iinfo(torch.int64).max


@register
class Pool:
    """`reduce` averages the tokens of every cell; `select` keeps the one in its middle, evenly spaced both ways.

    Cells come from `coords`; without them from the grid of the spec, and without that the tokens are taken as a square.
    """

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending, the token nearest to the mean of each cell, the first of equals.

        Raises: TypeError for any context; ValueError for a budget out of range, or tokens of no known grid.
        """
        refuse_context("pool", context, self.needs)
        slots, counts = kept_tokens(tokens, budget)
        coords = _coords(tokens)
        middle = _middles(coords, _cells(coords, tokens.mask, counts), tokens.mask)
        others = torch.full_like(middle, tokens.num_slots, dtype=torch.int64)
        return as_selection(tokens, best_slots(others.masked_fill(middle, 0), slots, counts), counts, budget)

    def reduce(self, tokens: TokenTensor, budget: Budget, **context: Any) -> TokenTensor:
        """The tokens of `select` with the mean of their cell, weighted by `sizes`, as embeds and scores.

        Other fields are those of the token in the middle. Raises: as `select`.
        """
        selection = self.select(tokens, budget, **context)
        slots, counts = kept_tokens(tokens, budget)
        cells = _cells(_coords(tokens), tokens.mask, counts)
        kept = tokens.mask & (counts > 0)[:, None]
        merged = tokens.merge(Assignment(cells.where(kept, -1), slots))
        # Cells go along their band; the tokens in their middle stand where they stood.
        own = cells.gather(1, selection.index).clamp(max=max(slots - 1, 0))
        means = {
            name: take_rows(value, own)
            for name, value in merged.token_tensors().items()
            if name in ("embeds", "scores", "sizes")
        }
        return tokens.select(selection).replace(**means)


def _coords(tokens: TokenTensor) -> Tensor:
    """Row and column [B, N, 2] int64, 0 in padding."""
    coords = tokens.coords
    if coords is None:
        coords = grid_coords(*_grid(tokens), len(tokens), tokens.device)
    if coords.shape[2] != 2:
        raise ValueError(f"pool: expected coords of 2 axes, row and column, got {coords.shape[2]}")
    return coords.long().masked_fill(~tokens.mask[..., None], 0)


def _grid(tokens: TokenTensor) -> tuple[int, int]:
    count, grid = tokens.num_slots, tokens.spec.grid
    side = round(count**0.5)
    if len(grid) == 2 and grid[0] * grid[1] == count:
        return grid[0], grid[1]
    if grid or side * side != count or tokens.lengths is not None:
        raise ValueError(
            f"pool: expected tokens with coords, of a grid or a square, got {count} of them with grid {grid}; "
            "give coords [B, N, 2], row and column"
        )
    return side, side


def _cells(coords: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    """The cell [B, N] int64 of every token, 0..counts-1."""
    if not valid.shape[1]:
        return torch.zeros_like(coords[..., 0])
    n, k = valid.sum(1, keepdim=True).clamp(min=1), counts[:, None].clamp(min=1)
    least = coords.masked_fill(~valid[..., None], _LAST).amin(1, keepdim=True)
    row, column = (coords - least).masked_fill(~valid[..., None], 0).unbind(2)
    height, width = (1 + axis.amax(1, keepdim=True) for axis in (row, column))
    bands = (k * height / width).double().sqrt().round().long().clamp(min=1).minimum(k)
    along = _rank(row * width + column, valid)
    band = (_share(along, k, n) * bands + bands - 1) // k
    return _share(_rank((band * width + column) * height + row, valid), k, n)


def _share(rank: Tensor, k: Tensor, n: Tensor) -> Tensor:
    """Which of k stretches of n places a rank falls into: the largest q with floor(q n / k) <= rank."""
    return (((rank + 1) * k - 1) // n).minimum(k - 1)


def _rank(key: Tensor, valid: Tensor) -> Tensor:
    """[B, N] int64: place in the order of `key`, padding last."""
    key = key.masked_fill(~valid, _LAST)
    return key.argsort(dim=1, stable=True).argsort(dim=1)


def _middles(coords: Tensor, cells: Tensor, valid: Tensor) -> Tensor:
    """[B, N] bool: the token of each cell that is nearest to the mean of its coords."""
    slots = valid.shape[1]
    places = cells.where(valid, slots)
    size = scatter_rows(valid.double(), places, slots, "sum").clamp(min=1)
    apart = torch.zeros(valid.shape, dtype=torch.float64, device=valid.device)
    for axis in (0, 1):
        values = coords[..., axis].double()
        apart = apart + (values - (scatter_rows(values, places, slots, "sum") / size).gather(1, cells)).square()
    nearest = leaders(-apart, places, slots)
    return valid & (nearest.gather(1, cells) == torch.arange(slots, device=valid.device))
