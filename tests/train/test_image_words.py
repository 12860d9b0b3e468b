"""Naming and drawing in ids: resumes to the bit, ends as a plain model, and learns what it is shown."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from vistok.lvlm.new_rows import matrices
from vistok.lvlm.row_files import merge_rows
from vistok.lvlm.token_families import seed
from vistok.lvlm.vocabulary import VocabMap
from vistok.train.image_words import Trainer, Training, train
from vistok.train.naming_and_drawing import naming

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture
def training(tmp_path):
    return Training(
        out=str(tmp_path / "run"),
        model={"width": 16, "layers": 1, "heads": 2}, patch=32, codes=8, codebook_rounds=1, pictures=12,
        held_out=4, base_steps=2, steps=5, batch=2, rank=2, reader_steps=1, save_every=1, log_every=1, warmup=1,
    )  # fmt: skip


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.trained.parameters()])


@pytest.mark.parametrize("stop", [1, 4])
def test_a_run_that_was_interrupted_in_either_stage_ends_with_the_same_bits(training, tmp_path, stop):
    whole = Trainer(replace(training, out=str(tmp_path / "whole")))
    whole.run()

    def interrupt(step, values):
        if step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(training).run(interrupt)
    resumed = Trainer(training)
    resumed.run()
    assert torch.equal(weights(whole), weights(resumed))
    steps = [json.loads(line)["step"] for line in Path(training.out, "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_the_base_model_is_frozen_in_the_second_stage_and_its_old_rows_with_it(training):
    trainer = Trainer(training)
    trainer.run()
    trainer.trained.merge_and_unload()
    words = len(trainer.base["lm_head.weight"])
    for name, matrix in (("model.embed_tokens.weight", "embedding"), ("lm_head.weight", "head")):
        now = matrices(trainer.model)[matrix]
        assert torch.equal(now[:words], trainer.base[name])
        assert len(now) == 128
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(trainer.model.get_parameter(name), trainer.base[name])


def test_what_it_writes_is_a_plain_model_that_names_as_the_trained_one_did(training):
    metrics = train(training)
    assert {"accuracy", "name_color", "draw_shape", "read_texture", "naming_loss", "drawing_loss"} <= set(metrics)
    out = Path(training.out)
    model = LlamaForCausalLM.from_pretrained(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    vocabulary = VocabMap.of(tokenizer, seed(8))
    again = Trainer(training)
    named = naming(model, tokenizer, vocabulary, *again.held_out)
    assert named == {name[5:]: value for name, value in metrics.items() if name.startswith("name_")}
    assert torch.equal(load_file(out / "model" / "codebook.safetensors")["codebook"], again.codes.codebook)
    merged = merge_rows(out / "new_rows.safetensors", again.tokenizer, again.model)
    assert merged.maps["seed"] == vocabulary
    assert (out / "drawn.png").stat().st_size > 0
    log = (out / "metrics.jsonl").read_text()
    assert train(training)["accuracy"] == metrics["accuracy"]
    assert (out / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize("steps", [0, 5])
def test_stages_that_do_not_fit_are_named(training, steps):
    with pytest.raises(ValueError, match="0 < base_steps < steps"):
        Trainer(replace(training, base_steps=steps))


@pytest.mark.slow
def test_in_half_a_minute_it_learns_to_name_and_to_draw_colours(training, tmp_path):
    """Chance is 1/6 for each; what it can do when the vocabulary has just joined is the other measure."""
    trainer = Trainer(
        Training(
            out=str(tmp_path), codes=128, pictures=600, held_out=100, base_steps=80, steps=330, batch=32,
            reader_steps=100, log_every=250,
        )
    )  # fmt: skip
    while trainer.step < 80:
        trainer.train_step()
    trainer.attach()
    before, loss = trainer.judge(), trainer.held_out_losses()["held_out_loss"]
    after = trainer.run() | trainer.judge()
    assert after["held_out_loss"] < loss - 1
    assert after["name_color"] > 0.5 and before["name_color"] < 0.3
    assert after["read_color"] > 0.8, "a judge that sees nothing says nothing"
    assert after["draw_color"] > before["draw_color"] + 0.2 and after["draw_color"] > 0.4
