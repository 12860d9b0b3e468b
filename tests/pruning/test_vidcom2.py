"""VidCom2 against loops over the formula, and its shares where they add up to the budget by themselves."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import vistok
from vistok.pruning.vidcom2 import first_places, gaussians, steady_channels, turns
from vistok.tokens import TokenSpec, TokenTensor


def tokens_of(embeds: Tensor, **fields: Tensor) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=embeds, **fields)


def pick(embeds: Tensor, frames: Tensor, budget: int, **setting: Any) -> list[int]:
    """What is kept of one video: embeds [N, D], frames [N]."""
    pruner = vistok.pruner("vidcom2", **setting)
    chosen: list[int] = pruner.select(tokens_of(embeds[None]), budget, frames=frames[None]).index[0].tolist()
    return chosen


def formula(embeds: Tensor, count: int, keep: float) -> list[list[int]]:
    """The kept slots of each of `count` frames of equal size, every share rounded alone; float64."""
    x = embeds.double()
    channels = x.var(0, unbiased=False).argsort()[: x.shape[1] // 2]
    y = normalize(x[:, channels], dim=1).unflatten(0, (count, -1))

    def near(center: Tensor) -> Tensor:
        distance = (y - center).square().sum(2)
        return sum((torch.exp(-distance / (2 * a)) for a in (0.125, 0.25, 0.5, 1, 2)), torch.zeros(()))

    video, frame = near(y.mean((0, 1))), near(y.mean(1, keepdim=True))
    chance = (-video.mean(1) / 0.01).softmax(0)
    shares = (keep * (1 + chance - 1 / count)).clamp(max=1) * y.shape[1]
    numbers = shares.round().long().tolist()
    order = (video + frame).argsort(1)
    return [sorted(order[f, :number].tolist()) for f, number in enumerate(numbers)]


@pytest.mark.parametrize("seed", range(10, 16))
def test_it_keeps_what_the_formula_does_where_its_rounded_shares_make_the_budget(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    count, size = 5, 30
    scene = torch.randn(1, 16, generator=draw) * 2
    embeds = scene + torch.randn(count * size, 16, generator=draw)
    frames = torch.arange(count).repeat_interleave(size)
    for keep in (0.2, 0.3, 0.5):
        expected = [f * size + slot for f, slots in enumerate(formula(embeds, count, keep)) for slot in slots]
        # The authors' rounding decides the total, and Webster's method finds the same shares for it.
        assert pick(embeds, frames, len(expected)) == expected


def test_a_frame_that_stands_out_keeps_more() -> None:
    draw = torch.Generator().manual_seed(7)
    embeds = torch.randn(1, 8, generator=draw) + 0.3 * torch.randn(60, 8, generator=draw)
    embeds[20:30] += 3 * torch.randn(1, 8, generator=draw)
    frames = torch.arange(6).repeat_interleave(10)
    kept = torch.zeros(60).scatter(0, torch.tensor(pick(embeds, frames, 18)), 1).reshape(6, 10).sum(1)
    assert kept.sum() == 18 and kept[2] > 4
    assert all(2 <= number <= 3 for frame, number in enumerate(kept.tolist()) if frame != 2)


def test_a_high_temperature_shares_evenly() -> None:
    embeds = torch.randn(60, 8, generator=torch.Generator().manual_seed(8))
    frames = torch.arange(6).repeat_interleave(10)
    kept = torch.zeros(60).scatter(0, torch.tensor(pick(embeds, frames, 18, temperature=1e6)), 1)
    assert kept.reshape(6, 10).sum(1).tolist() == [3.0] * 6


def test_turns_by_hand() -> None:
    likeness = torch.tensor([[0.3, 0.1, 0.2, 0.9, 0.8]], dtype=torch.float64)
    share = torch.tensor([[3.0, 3.0, 3.0, 1.0, 1.0]], dtype=torch.float64)
    group = torch.tensor([[0, 0, 0, 3, 3]])
    found = turns(likeness, share, group, torch.ones(1, 5, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[2.5 / 3, 0.5 / 3, 1.5 / 3, 1.5, 0.5]], dtype=torch.float64))


def test_the_steadiest_channels_are_compared() -> None:
    embeds = torch.tensor([[[0.0, 5.0, 1.0, 9.0], [9.0, 5.0, 2.0, 9.0], [1.0, 5.0, 3.0, 8.0], [70.0, 80.0, 90.0, 1.0]]])
    counted = torch.tensor([[True, True, True, False]])
    assert steady_channels(embeds, counted, 0.5)[0, :3].tolist() == [[5.0, 9.0], [5.0, 9.0], [5.0, 8.0]]
    assert steady_channels(embeds, counted, 0.1)[0, :3].tolist() == [[5.0]] * 3


def test_gaussians_are_five_at_the_center() -> None:
    points = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = gaussians(points, points[:, :1])
    expected = sum(torch.exp(torch.tensor(-2.0 / (2 * a))) for a in (0.125, 0.25, 0.5, 1, 2))
    torch.testing.assert_close(found.float(), torch.tensor([[5.0, float(expected)]]))


def test_frames_are_numbered_by_where_they_begin() -> None:
    frames = torch.tensor([[4, 4, -1, 7, 0, 7, 3]])
    counted = torch.tensor([[True, True, False, True, True, True, False]])
    assert first_places(frames, counted).tolist() == [[1, 1, 0, 3, 0, 3, 0]]


def test_what_belongs_to_no_frame_is_kept_first_and_nan_last() -> None:
    embeds = torch.randn(12, 6, generator=torch.Generator().manual_seed(3))
    frames = torch.tensor([0, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1, -1])
    assert {5, 11} <= set(pick(embeds, frames, 4))
    embeds[[1, 7]] = torch.nan
    assert pick(embeds, frames, 10) == [0, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_equal_tokens_are_taken_from_the_front_of_every_frame() -> None:
    assert pick(torch.ones(12, 4), torch.arange(3).repeat_interleave(4), 6) == [0, 1, 4, 5, 8, 9]


def test_more_budget_adds_to_what_less_budget_kept() -> None:
    embeds = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
    frames = torch.arange(4).repeat_interleave(10)
    kept = [set(pick(embeds, frames, budget)) for budget in range(1, 41)]
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))


def test_missing_frames_and_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"vidcom2: expected frames \[1, 6\], got none"):
        vistok.pruner("vidcom2").select(tokens_of(torch.ones(1, 6, 2)), 2)
    with pytest.raises(ValueError, match=r"expected channels in \(0, 1\], got 0"):
        vistok.pruner("vidcom2", channels=0)
    with pytest.raises(ValueError, match="expected temperature > 0, got 0"):
        vistok.pruner("vidcom2", temperature=0)
