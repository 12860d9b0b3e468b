import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vistok.lvlm.micro import MicroSettings
from vistok.train.micro_lvlm import Trainer, Training, train

TINY = MicroSettings(
    side=64, vision_width=32, vision_layers=1, vision_heads=2, text_width=32, text_layers=2, text_heads=2,
    text_kv_heads=1,
)  # fmt: skip


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"), model=TINY, tower_steps=2, steps=5, tower_batch=2, batch=2, questions=3, processes=1,
        warmup=2, save_every=2, log_every=1, validate_every=4,
    )  # fmt: skip


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.named.values()])


def steps_of(out):
    return [json.loads(line)["step"] for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training, tmp_path):
    whole = replace(training, out=str(tmp_path / "whole"))
    train(whole)

    def stop_at_three(step, values):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training, stop_at_three)
    train(training)
    ends = []
    for config in (whole, training):
        trainer = Trainer(config)
        trainer.resume()
        assert trainer.step == 5 and steps_of(config.out) == [1, 2, 3, 4, 5]
        ends.append(weights(trainer))
    assert torch.equal(*ends)


def test_the_tower_learns_alone_first_and_then_everything_with_it(training):
    trainer = Trainer(replace(training, steps=3))
    Path(training.out).mkdir()
    language = [p for name, p in trainer.model.named_parameters() if "language_model.layers" in name]
    tower = [p for name, p in trainer.model.named_parameters() if "vision_tower" in name and "layers" in name]
    before = [[p.detach().clone() for p in group] for group in (language, tower)]
    trainer.train_step()
    trainer.train_step()
    assert all(torch.equal(old, new) for old, new in zip(before[0], language, strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(before[1], tower, strict=True))
    values = trainer.train_step()
    assert not any(torch.equal(old, new) for old, new in zip(before[0], language, strict=True))
    assert {"answer", "tower", "projected", "picture", "tower_norms", "projected_norms"} <= set(values)


def test_the_model_folder_loads_with_transformers_alone(training):
    metrics = train(training)
    assert metrics["step"] == 5 and 0 <= metrics["accuracy"] <= 1
    folder = Path(training.out) / "model"
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    trainer = Trainer(training)
    trainer.resume()
    saved, trained = model.state_dict(), trainer.model.state_dict()
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[key], value.half().float()) for key, value in trained.items())
    assert AutoProcessor.from_pretrained(folder).tokenizer.bos_token == "<s>"


@pytest.mark.slow
def test_two_processes_see_different_scenes_and_end_with_one_model(training):
    seen = []
    train(replace(training, processes=2), lambda step, values: seen.append(values["loss"]))
    assert steps_of(training.out) == [1, 2, 3, 4, 5] and len(seen) == 5
    alone = Trainer(replace(training, processes=2))
    alone.resume()
    assert alone.step == 5
    first, second = (alone.batches.batch(2 * 5 + rank).pixels for rank in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(training):
    values = []
    config = replace(training, steps=60, tower_steps=60, tower_batch=8, warmup=5, log_every=60)
    train(config, lambda step, found: values.append(found["loss"]))
    assert sum(values[-10:]) < 0.75 * sum(values[:10])
