"""The residual block is local: what it reaches is exactly what it says."""

import torch
from torch import Tensor

from vistok.layers.conv import ResidualBlock, channel_rms_norm


def block(width: int = 4) -> ResidualBlock:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResidualBlock(width)


def response(x: Tensor, row: int, col: int) -> Tensor:
    """Where the output moves when one position of the input does."""
    moved = x.clone()
    moved[:, :, row, col] += 1
    with torch.no_grad():
        difference: Tensor = (block()(moved) - block()(x)).abs().amax((0, 1)) > 0
    return difference


def test_an_output_depends_on_its_reach_and_no_further(generator: torch.Generator) -> None:
    x = torch.randn(1, 4, 11, 11, generator=generator)
    moved = response(x, 5, 5)
    reach = ResidualBlock.reach
    assert moved[5 - reach : 6 + reach, 5 - reach : 6 + reach].all()
    assert moved.sum() == (2 * reach + 1) ** 2


def test_it_starts_near_the_identity(generator: torch.Generator) -> None:
    x = torch.randn(2, 64, 8, 8, generator=generator)
    with torch.no_grad():
        change = block(64)(x) - x
    assert 0 < change.std() < 0.3


def test_norm_sets_the_mean_square_over_channels_to_one(generator: torch.Generator) -> None:
    x = torch.randn(2, 16, 3, 3, generator=generator) * 50
    torch.testing.assert_close(channel_rms_norm(x).square().mean(1), torch.ones(2, 3, 3))
    assert torch.equal(channel_rms_norm(torch.zeros(1, 4, 2, 2)), torch.zeros(1, 4, 2, 2))


def test_norm_of_a_small_example() -> None:
    x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(channel_rms_norm(x).flatten(), torch.tensor([3.0, 4.0]) / 12.5**0.5)


def test_norm_keeps_the_dtype() -> None:
    x = torch.full((1, 4, 1, 1), 300.0, dtype=torch.bfloat16)
    assert channel_rms_norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(channel_rms_norm(x), torch.ones_like(x))
