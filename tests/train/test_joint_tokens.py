"""Ids, vectors and both: every arm runs, learns only what is its own, and is judged the same way."""

from dataclasses import replace

import pytest
import torch

from vistok.train.joint_tokens import ARMS, Trainer, Training, train


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"), pictures=4, held_out=2, model={"width": 8, "layers": 1, "heads": 2}, steps=1,
        batch=2, draw_steps=2, reader_steps=1,
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_tells_of_every_arm_and_says_the_same_when_it_is_run_again(training):
    found = train(training)
    assert {"bits_ids", "bits_joint", "bits_joint_seen", "error_vectors", "error_joint", "error_joint_seen"} <= set(
        found
    )
    assert {"draw_color_ids", "draw_color_vectors", "draw_color_joint", "draw_color_joint_vectors"} <= set(found)
    assert "bits_vectors" not in found and "error_ids" not in found
    assert train(training) == found
    with pytest.raises(ValueError, match="seed 0 there and 1 now"):
        train(replace(training, seed=1))
    assert (Trainer(training).out / "drawn.png").is_file()


@pytest.mark.parametrize(("name", "head"), [("ids", "z_head"), ("vectors", "id_head")])
def test_an_arm_of_one_part_has_no_loss_of_the_other(training, name, head):
    trainer = Trainer(training)
    model = trainer.made()
    trainer.loss(model, ARMS[name])(0).backward()
    spared = getattr(model.denoiser, head).weight.grad
    assert spared is None or not spared.any()
    used = {"ids": "id_head", "vectors": "z_head"}[name]
    assert getattr(model.denoiser, used).weight.grad.any()


def test_vectors_of_ids_lead_back_to_them(training):
    trainer = Trainer(training)
    ids = trainer.trial.pictures.ids
    assert torch.equal(trainer.nearest_ids(trainer.vectors(ids)), ids)
    spread = trainer.vectors(ids).flatten(0, 1)
    torch.testing.assert_close(spread.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
