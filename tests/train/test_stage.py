"""A stage that was interrupted ends with the same bits; frozen parts stay."""

import pytest
import torch
from torch import nn

from vistok.train.stage import Stage, StageSettings


def made():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))


def loss_of(module):
    def loss(step):
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return (module(rows) - rows.sum(1, keepdim=True)).square().mean()

    return loss


def run(folder, on_step=None):
    module = made()
    module[0].requires_grad_(False)
    Stage(folder, module, loss_of(module), StageSettings(6, save_every=2, log_every=1)).run(on_step)
    return module


def test_an_interrupted_stage_ends_with_the_same_bits_and_leaves_what_is_frozen(tmp_path):
    def interrupt(step, values):
        if step == 4:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", interrupt)
    resumed = run(tmp_path / "parts")
    for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
    start = made()
    assert torch.equal(start[0].weight, whole[0].weight) and not torch.equal(start[1].weight, whole[1].weight)


def test_a_stage_lowers_its_loss(tmp_path):
    module = made()
    loss = loss_of(module)
    before = float(loss(1000).detach())
    Stage(tmp_path, module, loss, StageSettings(60, rate=5e-2)).run()
    assert float(loss(1000).detach()) < before / 2
