"""Next-token against multi-token fine-tuning: stages in order, resumable, the heads' loss reaches the model."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vistok.train.multi_token import Trainer, Training, metrics_of, train
from vistok.train.portrait_trial import levels_of


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"), pictures=4, held_out=2, model={"width": 16, "layers": 2, "heads": 2},
        base_steps=1, head_steps=1, tune_steps=2, batch=2, ahead=2, betas=[0.0, 0.5], reader_steps=1,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_tells_of_every_copy_and_says_the_same_when_it_is_run_again(training):
    found = train(training)
    for beta in training.betas:
        told = metrics_of(found, beta)
        assert 0 < told["bits"] < 20 and {"name_color", "draw_shape"} <= set(told)
    assert train(training) == found
    # More steps of the first stage would leave heads and copies behind that began with fewer.
    with pytest.raises(ValueError, match="base_steps 1 there and 2 now"):
        train(replace(training, base_steps=2))
    weights = [path.name for path in sorted((Trainer(training).out / "model").iterdir())]
    assert weights == ["tuned_0.5.safetensors", "tuned_0.safetensors"]


def test_heads_learn_alone_and_their_loss_then_reaches_the_model(training):
    trainer = Trainer(training)
    trainer.model.requires_grad_(False)
    trainer.head_loss(0).backward()
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert any(parameter.grad is not None for parameter in trainer.heads.parameters())
    trainer.model.requires_grad_(True)
    arm = nn.ModuleDict({"model": trainer.model, "heads": trainer.heads})
    plain, ahead = (trainer.tuning(arm, beta)(0) for beta in (0.0, 0.5))
    assert float(ahead.detach()) > float(plain.detach())
    gradients = [torch.autograd.grad(loss, trainer.model.embed.table.weight)[0] for loss in (plain, ahead)]
    assert not torch.equal(*gradients)


def test_the_loss_of_a_head_is_that_of_the_token_behind_the_next(training):
    trainer = Trainer(training)
    sequence = torch.randint(2, (1, 6, 7), generator=torch.Generator().manual_seed(0))
    losses = trainer.losses(trainer.model, trainer.heads, sequence)
    trunk, _ = trainer.model(sequence)
    states = trainer.model.llama.model.norm(trainer.heads.blocks[1](trunk, torch.ones(6, 6).tril()[None, None].bool()))
    logits, by_hand = trainer.model.unembed(states), 0.0
    for place in range(3):  # 6 tokens, head 2 looks 3 ahead
        parts = logits[0, place].split(list(trainer.model.sizes))
        by_hand -= sum(part.log_softmax(0)[digit] for part, digit in zip(parts, sequence[0, place + 3], strict=True))
    torch.testing.assert_close(losses[2], by_hand / 3)


def test_what_cannot_be_trained_is_told(training):
    with pytest.raises(ValueError, match="at least one beta"):
        Trainer(replace(training, betas=[]))
    with pytest.raises(ValueError, match="expected a tokenizer with FSQ levels"):
        levels_of(object())
