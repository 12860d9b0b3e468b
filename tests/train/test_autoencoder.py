import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.train.autoencoder import Trainer, Training, train

TINY = {"width": 16, "fine_width": 8, "encoder_blocks": 1, "decoder_blocks": 1, "fine_blocks": 1}


@pytest.fixture
def training(tmp_path):
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.fromarray(data.astronaut()).save(pictures / "astronaut.png")
    return Training(
        out=str(tmp_path / "run"), photos=[str(pictures)], settings=TINY, steps=6, batch=2, crop=32, scales=[64],
        warmup=2, save_every=3, log_every=1,
    )  # fmt: skip


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("tokenizer", ["vq_nano", "kl_nano"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(training, tokenizer, tmp_path):
    training = replace(training, tokenizer=tokenizer, adversarial=0.1, adversarial_start=2)
    whole = Trainer(training)
    whole.run()
    halves = Trainer(replace(training, out=str(tmp_path / "halves")))

    def stop_at_four(step, values):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves.run(stop_at_four)
    resumed = Trainer(replace(training, out=str(tmp_path / "halves")))
    resumed.run()
    assert resumed.step == 6
    logged = [json.loads(line)["step"] for line in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6]
    assert torch.equal(weights(resumed), weights(whole))
    for mine, other in zip(
        resumed.averaged().state_dict().values(), whole.averaged().state_dict().values(), strict=True
    ):
        assert torch.equal(mine, other)


def test_metrics_are_logged_with_every_loss_term(training):
    last = Trainer(replace(training, losses={"l1": 1.0, "l2": 2.0}, adversarial=0.1)).run()
    logged = [json.loads(line) for line in Path(training.out, "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6] and logged[-1] == last
    assert {"loss", "l1", "l2", "adversarial", "discriminator", "bottleneck", "psnr", "usage", "lr"} <= set(last)
    total = sum(last[name] for name in ("l1", "l2", "adversarial", "bottleneck"))
    assert last["loss"] == pytest.approx(total, rel=1e-4)


def test_code_use_is_logged_over_all_tokens_since_the_last_row_also_of_a_run_that_was_resumed(training, tmp_path):
    quantizer = {"method": "vq", "dim": 4, "codebook_size": 500, "kmeans_iterations": 0, "decay": 0.4}
    settings = TINY | {"patch": 8, "quantizer": quantizer}
    training = replace(training, settings=settings, log_every=4, save_every=1)

    def stop_at_three(step, values):
        if step == 3:
            raise KeyboardInterrupt

    Trainer(training).run()
    halves = replace(training, out=str(tmp_path / "halves"))
    with pytest.raises(KeyboardInterrupt):
        Trainer(halves).run(stop_at_three)
    Trainer(halves).run()
    rows, resumed = (
        [json.loads(line) for line in Path(run.out, "metrics.jsonl").read_text().splitlines()]
        for run in (training, halves)
    )
    names = ("codebook_tokens", "codebook_usage", "codebook_perplexity", "dead_codes", "codebook_restarts")
    assert [row["codebook_tokens"] for row in rows] == [4 * 2 * 16, 2 * 2 * 16]  # steps, images, tokens
    assert [[row[name] for name in names] for row in resumed] == [[row[name] for name in names] for row in rows]
    assert rows[0]["codebook_usage"] > rows[0]["usage"] > 0  # more than in the one batch of the row
    assert rows[0]["dead_codes"] == round(500 * (1 - rows[0]["codebook_usage"]))
    assert rows[0]["codebook_restarts"] > 0


def test_frozen_parts_keep_their_weights_and_the_others_learn(training):
    trainer = Trainer(replace(training, frozen=["encoder"]))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}


def test_the_learning_rate_warms_up_and_falls_to_two_percent(training):
    trainer = Trainer(training)
    rates = []
    trainer.run(lambda step, values: rates.append(trainer.learning_rate()))
    assert trainer.optimizer.param_groups[0]["lr"] < training.learning_rate
    assert rates[-1] == pytest.approx(0.02 * training.learning_rate)


def test_an_infinite_loss_stops_the_run_and_names_the_step(training):
    trainer = Trainer(replace(training, tokenizer="kl_nano", learning_rate=1e30, clip=1e30, warmup=0))
    with pytest.raises(FloatingPointError, match="step"):
        trainer.run()


@pytest.mark.parametrize("tokenizer", ["vq_nano", "kl_nano"])
def test_a_finished_run_leaves_a_folder_that_checkpoint_takes(training, tokenizer, tmp_path, photograph):
    train(replace(training, tokenizer=tokenizer))
    model = vistok.tokenizer(tokenizer, checkpoint=tmp_path / "run" / "model")
    assert model.decode(model.encode(photograph[:, :, :64, :64])).shape == (1, 3, 64, 64)
    if tokenizer == "kl_nano":
        embeds = model.encode(photograph).embeds.detach()
        assert embeds.std(dim=1).mean() == pytest.approx(1, abs=0.5) and embeds.mean().abs() < 0.5
    assert not list((tmp_path / "run").glob("*.tmp.*"))


@pytest.mark.slow
def test_a_short_training_lowers_the_error_of_a_photograph(training, photograph):
    trainer = Trainer(replace(training, steps=150, batch=4, warmup=20, learning_rate=2e-3))
    before = (trainer.model(photograph).images - photograph).square().mean()
    trainer.run()
    after = (trainer.averaged()(photograph).images - photograph).square().mean()
    assert after < before / 3
