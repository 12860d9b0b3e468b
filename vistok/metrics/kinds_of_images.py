"""Images whose complexity is known by their kind: noise, chessboards, gradients, blurred photographs."""

import torch
from torch import Tensor

from vistok.metrics.adaptive import blurred


def kinds(photographs: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Photographs [B, 3, S, S] and as many images of each other kind and of their size, by name."""
    count, _, height, width = photographs.shape
    return {
        "photographs": photographs,
        "blurred": blurred(photographs),
        "gradients": gradients(count, height, width, seed),
        "chessboard": chessboards(count, height, width, seed),
        "noise": torch.rand(photographs.shape, generator=torch.Generator().manual_seed(seed)),
    }


def gradients(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, 3, height, width]: one colour fades into another along a random direction."""
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, count, 3, 1, 1, generator=generator)
    angle = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    along = (0.5 + 0.5 * (x * angle.cos() + y * angle.sin()) / 2**0.5)[:, None]
    images: Tensor = first + (second - first) * along
    return images


def chessboards(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """[count, 3, height, width]: black and white squares of 6 to 16 pixels, shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(6, 17, (count, 1, 1), generator=generator)
    down, right = torch.randint(0, 16, (2, count, 1, 1), generator=generator)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    board: Tensor = ((y + down) // side + (x + right) // side) % 2
    return board[:, None].float().expand(-1, 3, -1, -1)
