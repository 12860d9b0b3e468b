"""Drawing in continuous latents: resumes to the bit, ends as a model that loads, and learns what it is asked for."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.config import read_yaml
from vistok.layers.flow_sampler import Guidance
from vistok.metrics.linear_probe import linear_probe
from vistok.train.image_latents import WORDS, Trainer, Training, load_generator, prompt, train
from vistok.train.portrait_latents import SHOWN


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mingtok")
    model: Any = vistok.tokenizer("mingtok_nano", **vistok.info("tokenizer", "mingtok_nano").tiny)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def training(tmp_path: Path, tokenizer: str) -> Training:
    return Training(
        out=str(tmp_path / "run"), checkpoint=tokenizer, side=64, pictures=6, held_out=2, steps=4, batch=2,
        model={"width": 16, "layers": 1, "heads": 2}, head={"width": 16, "depth": 1}, hidden=0.5, input_noise=0.1,
        warmup=1, save_every=1, log_every=1, guidances=[2.0, 1.0], flow_steps=1, reader_steps=1, reader_pictures=6,
    )  # fmt: skip


def state(trainer: Trainer) -> Iterator[Tensor]:
    yield from trainer.generator.parameters()
    yield from trainer.average.module.parameters()


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, tmp_path: Path) -> None:
    whole = Trainer(replace(training, out=str(tmp_path / "whole")))
    whole.run()

    def interrupt(step: int, values: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(training).run(interrupt)
    resumed = Trainer(training)
    resumed.run()
    assert all(torch.equal(mine, other) for mine, other in zip(state(resumed), state(whole), strict=True))
    assert int(resumed.average.n_averaged) == int(whole.average.n_averaged) == 4
    steps = [json.loads(line)["step"] for line in Path(training.out, "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_language_model_and_head_learn_and_the_tokenizer_stays(training: Training) -> None:
    trainer = Trainer(training)
    before = {name: value.detach().clone() for name, value in trainer.generator.named_parameters()}
    trainer.run()
    changed = {name for name, value in trainer.generator.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if not name.startswith("tokenizer.")} - {"language_model.lm_head.weight"}


def test_what_it_writes_draws_as_the_trained_model_does_and_is_judged_once(training: Training) -> None:
    metrics = train(training)
    names = {f"{verb}_{name}" for verb in ("read", "chance") for name in SHOWN}
    names |= {f"draw_{name}_at_{scale}" for name in SHOWN for scale in (1, 2)}
    assert names <= set(metrics) and metrics["chance_color"] == pytest.approx(1 / 6)
    assert metrics["accuracy"] == pytest.approx(sum(metrics[f"draw_{name}_at_2"] for name in SHOWN) / len(SHOWN))
    out = Path(training.out)
    assert (out / "drawn.png").stat().st_size > 0
    again = Trainer(training)
    again.resume()
    loaded = load_generator(out / "model", again.tokenizer)
    made = loaded.dialogue().make_image(
        prompt(loaded, again.held_out.attributes), (8, 8), guidance=Guidance(text=2.0), steps=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(again.tokenizer.decode(made.latents), again.draw(again.held_out.attributes, 2.0))
    log = (out / "metrics.jsonl").read_text()
    assert "accuracy" in train(training)
    assert (out / "metrics.jsonl").read_text() == log


def test_a_prompt_names_every_attribute_between_two_marks(training: Training) -> None:
    trainer = Trainer(training)
    values = {name: torch.tensor([len(words) - 1]) for name, words in SHOWN.items()}
    begin, asked, image = prompt(trainer.generator, values)
    assert [part.kind for part in (begin, asked, image)] == ["frame", "text", "frame"]
    said = [words[-1] for words in SHOWN.values()]
    rows: Any = trainer.generator.language_model.get_input_embeddings().weight
    assert torch.equal(asked.embeds[0], rows[[WORDS.index(word) for word in said]])
    assert len(set(WORDS)) == len(WORDS)


def test_the_recipe_names_settings_that_there_are() -> None:
    settings = read_yaml("train", "image_latents")
    assert settings.pop("method") == "image_latents" and settings.pop("summary")
    built = Training(out="", **settings)
    assert isinstance(built.learning_rate, float) and built.tokenizer == "mingtok_nano"


def test_muon_takes_the_matrices_of_both_transformers_blocks(training: Training) -> None:
    trainer = Trainer(training)
    by_muon = {id(value) for group in trainer.optimizers[0].param_groups for value in group["params"]}
    names = {name for name, value in trainer.generator.named_parameters() if id(value) in by_muon}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in names
    assert "head.diffloss.net.res_blocks.0.mlp.w12.weight" in names
    assert not any("embed" in name or "norm" in name or "tokenizer" in name for name in names)


@pytest.mark.slow
def test_in_half_a_minute_it_learns_to_draw_the_colours_it_is_asked_for(training: Training, tmp_path: Path) -> None:
    """The tokenizer has random weights, so that its pictures say nothing: colours are read off latents, linearly."""
    torch.manual_seed(0)
    large: Any = vistok.tokenizer(
        "mingtok_nano",
        low_level_encoder={"img_size": 64, "patch_size": 16, "depth": 1, "embed_dim": 64, "out_dim": 8},
        semantic_decoder={"in_dim": 8, "patch_size": 16, "embed_dim": 64, "decoder_depth": 1},
        pixel_decoder={"patch_size": 8, "decoder_depth": 1, "embed_dim": 64},
    )
    large.save_pretrained(tmp_path / "large")
    trainer = Trainer(
        replace(
            training, checkpoint=str(tmp_path / "large"), pictures=300, held_out=90, steps=250, batch=16,
            model={"width": 64, "layers": 2, "heads": 2}, head={"width": 64, "depth": 2}, hidden=0.15, input_noise=0.0,
            warmup=10, log_every=100, save_every=1000, learning_rate=5e-3, ema=0.98,
        )
    )  # fmt: skip
    asked = trainer.held_out.attributes

    def read(latents: Tensor) -> float:
        real, colors = trainer.pictures, asked["color"]
        return linear_probe(corners(real.latents), real.attributes["color"], corners(latents), colors).accuracy

    def drawn(scale: float) -> Tensor:
        generator: Any = trainer.average.module
        made = generator.dialogue().make_image(
            prompt(generator, asked), (4, 4), guidance=Guidance(text=scale), steps=6,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        assert made.latents.embeds is not None
        return made.latents.embeds

    before = read(drawn(2.0))
    values: list[dict[str, float]] = []
    trainer.run(lambda step, found: values.append(found))
    assert sum(row["loss"] for row in values[-20:]) < 0.8 * sum(row["loss"] for row in values[:20])
    after, without = read(drawn(2.0)), read(drawn(0.0))
    assert read(trainer.held_out.latents) > 0.5, "a probe that sees nothing says nothing"
    assert after > max(before, without) + 0.12, (before, without, after)


def corners(latents: Tensor) -> Tensor:
    """Extremes over the places: [S, N, C] -> [S, 2 C]."""
    return torch.cat([latents.amax(1), latents.amin(1)], -1)


def test_settings_that_there_are_not_are_named(training: Training) -> None:
    with pytest.raises(ValueError, match="optimizer adamw or muon, got 'sgd'"):
        Trainer(replace(training, optimizer="sgd"))
    with pytest.raises(ValueError, match="at least one scale"):
        Trainer(replace(training, guidances=[]))
    with pytest.raises(TypeError, match="image_latents model setting.*'widht'"):
        Trainer(replace(training, model={"widht": 8}))
