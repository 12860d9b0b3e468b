"""Where the slots of a 1-D tokenizer look first: coarse to fine over the grid, each with the position code of its cell.

Order: the four quadrant centres, then farthest-point sampling (Gonzalez 1985), so that any first T slots cover the
image evenly. Position code: 2-D sines and cosines (arXiv:1706.03762, section 3.5), half of the width for each axis.
"""

import math

import torch
from torch import Tensor

_LONGEST = 100.0  # longest wavelength over the shortest one


def slot_cells(rows: int, cols: int) -> Tensor:
    """Cells of a grid in slot order: [rows * cols, 2] int64 row and column, every cell once."""
    cells = torch.cartesian_prod(torch.arange(rows), torch.arange(cols))
    places = (cells + 0.5) / torch.tensor([rows, cols])
    nearest = torch.full((len(cells),), math.inf)
    order: list[int] = []
    for y, x in ((0.25, 0.25), (0.75, 0.75), (0.25, 0.75), (0.75, 0.25)):
        first = int((places - torch.tensor([y, x])).square().sum(1).argmin())
        if first not in order:
            order.append(first)
            nearest = torch.minimum(nearest, (places - places[first]).square().sum(1))
    while len(order) < len(cells):
        nearest[order] = -1.0
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (places - places[order[-1]]).square().sum(1))
    return cells[order]


def position_codes(cells: Tensor, width: int) -> Tensor:
    """cells [n, 2] -> [n, width] in [-1, 1], the shortest wave four cells long. Raises: ValueError unless 4 | width."""
    if width % 4:
        raise ValueError(f"position_codes: expected a width divisible by 4, got {width}")
    quarter = width // 4
    frequency = 0.5 * math.pi * _LONGEST ** -(torch.arange(quarter) / max(quarter - 1, 1))
    angles = cells.float()[:, :, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(1)
