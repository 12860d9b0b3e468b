"""Multi-token prediction: the weighted loss by hand, targets moved, heads that see nothing ahead."""

import math

import pytest
import torch

from vistok.layers.multi_token_heads import MultiTokenHeads, multi_token_loss, shifted


def test_the_loss_by_hand():
    losses = [torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0)]
    found = multi_token_loss(losses, beta=0.1, gamma=0.5, schedule="rsine", done=0.5)
    weight = math.sin(math.pi / 4) * 0.1
    assert float(found) == pytest.approx(2 + weight * (0.5 * 3 + 0.25 * 5), rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "ends"), [("constant", (1, 1)), ("linear", (0, 1)), ("sine", (0, 1)), ("rsine", (1, 0))]
)
def test_schedules_begin_and_end_where_they_should(schedule, ends):
    losses = [torch.tensor(0.0), torch.tensor(1.0)]
    found = [float(multi_token_loss(losses, beta=1, gamma=1, schedule=schedule, done=done)) for done in (0.0, 1.0)]
    assert found == pytest.approx(ends, abs=1e-6)


def test_the_next_token_alone_is_the_plain_loss():
    assert float(multi_token_loss([torch.tensor(2.0)], done=0.3)) == 2


def test_targets_move_to_the_front_and_none_are_left_behind():
    digits = torch.arange(6).reshape(1, 3, 2)
    assert shifted(digits, 2).tolist() == [[[4, 5], [-1, -1], [-1, -1]]]
    assert bool((shifted(digits, 4) == -1).all())


def test_heads_differ_and_see_no_later_position():
    torch.manual_seed(0)
    heads = MultiTokenHeads(8, 2, 2)
    hidden = torch.randn(1, 5, 8)
    changed = hidden.clone()
    changed[:, 3] += 1
    before, after = heads(hidden), heads(changed)
    assert not torch.equal(before[0], before[1])
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :3], other[:, :3]) and not torch.equal(one[:, 3:], other[:, 3:])


@pytest.mark.parametrize(
    "settings",
    [{"losses": []}, {"losses": [torch.tensor(1.0)], "schedule": "no"}, {"losses": [torch.tensor(1.0)], "done": 2}],
)
def test_what_makes_no_loss_is_told(settings):
    with pytest.raises(ValueError, match="multi_token_loss: expected"):
        multi_token_loss(settings.pop("losses"), **settings)


def test_at_least_one_token_ahead():
    with pytest.raises(ValueError, match="expected ahead >= 1"):
        MultiTokenHeads(8, 2, 0)
