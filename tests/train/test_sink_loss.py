"""The decorrelation loss by hand, with padding on either side, and what its gradient does."""

import math

import pytest
import torch

from vistok.train.sink_loss import decorrelation_loss


def test_the_loss_of_three_tokens_is_the_mean_square_of_two_cosines() -> None:
    hidden = torch.tensor([[[2.0, 0.0], [1.0, 1.0], [0.0, -5.0]]])
    assert float(decorrelation_loss(hidden)) == pytest.approx((0.5 + 0.0) / 2)
    against = torch.tensor([[[1.0, 0.0], [-3.0, 0.0], [math.cos(1.0), math.sin(1.0)]]])
    assert float(decorrelation_loss(against)) == pytest.approx((1 + math.cos(1.0) ** 2) / 2)
    assert float(decorrelation_loss([hidden, against])) == pytest.approx((0.25 + (1 + math.cos(1.0) ** 2) / 2) / 2)


@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_has_no_say(left: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, padding = torch.randn(2, 5, 8, generator=draw), 100 * torch.randn(2, 2, 8, generator=draw)
    parts = (padding, hidden) if left else (hidden, padding)
    valid = torch.cat([torch.full(part.shape[:2], part is hidden) for part in parts], 1)
    assert torch.allclose(decorrelation_loss(torch.cat(parts, 1), valid), decorrelation_loss(hidden))


def test_following_the_gradient_turns_tokens_away_from_the_first() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 6, 16, generator=draw) + 2).requires_grad_()
    before = float(decorrelation_loss(hidden).detach())
    optimizer = torch.optim.SGD([hidden], lr=20.0)
    for _ in range(100):
        optimizer.zero_grad()
        decorrelation_loss(hidden).backward()
        optimizer.step()
    assert before > 0.5 and float(decorrelation_loss(hidden).detach()) < 0.01


def test_states_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one layer"):
        decorrelation_loss([])
    with pytest.raises(ValueError, match="all alike"):
        decorrelation_loss([torch.zeros(1, 3, 2), torch.zeros(1, 3, 4)])
    with pytest.raises(ValueError, match="two tokens a prompt"):
        decorrelation_loss(torch.zeros(1, 3, 2), torch.tensor([[True, False, False]]))
