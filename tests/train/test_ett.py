"""Runs of ETT: through the stages of a table, to be stopped and resumed, each moving what it says and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import vistok
from vistok.config import read_yaml
from vistok.lvlm.causal_lm import load_words
from vistok.lvlm.visual_generation import VisualHead
from vistok.train.ett import Trainer, Training, train
from vistok.train.ett_conversations import Conversations
from vistok.train.ett_model import Batch, EndToEnd
from vistok.train.ett_stages import Stage

TABLE: list[dict[str, Any]] = [
    {"name": "tokenizer", "trained": ["tokenizer"], "frozen": ["projector", "language", "head"], "losses": {"vq": 1.0}},
    {"name": "alignment", "trained": ["projector"], "frozen": ["tokenizer", "language", "head"],
     "losses": {"caption": 1.0}},
    {"name": "semantic", "trained": ["tokenizer", "projector", "language"], "frozen": ["head"],
     "losses": {"caption": 1.0, "vq": 0.25}},
    {"name": "generation", "trained": ["projector", "language", "head"], "frozen": ["tokenizer"],
     "losses": {"visual": 1.0}},
]  # fmt: skip
SIZES = {"learning_rate": 1e-3, "steps": 2, "batch": 2}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(
        out=str(tmp_path / "run"), stages=[{**row, **SIZES} for row in TABLE], save_every=1, log_every=1, bf16=False
    )


def tiny_model(seed: int = 0) -> EndToEnd:
    torch.manual_seed(seed)
    tokenizer: Any = vistok.tokenizer("ett_nano", **vistok.info("tokenizer", "ett_nano").tiny)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=19, **sizes))  # type: ignore[arg-type]
    return EndToEnd(tokenizer, language, head=VisualHead(16, tokenizer.codebook_sizes))


def noise(stage: Stage, number: int) -> Batch:
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(3, 19, (stage.batch, 5), generator=draw)
    images = torch.rand(stage.batch, 3, 16, 16, generator=draw)
    return Batch(images, ids, ids, torch.tensor([1]), prompt=ids)


def weights(model: EndToEnd) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}


def test_each_stage_moves_exactly_the_parts_that_it_lists(training: Training, tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    metrics = Trainer(training, noise, model).run()
    assert metrics["step"] == 8 and metrics["stage"] == 3
    for row in TABLE:
        after = load_file(tmp_path / "run" / f"{row['name']}.safetensors")
        assert moved(before, after) == set(row["trained"])
        before = after
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == list(range(1, 9)) and {row["stage"] for row in logged} == {0, 1, 2, 3}
    assert {"l1", "quantizer"} <= set(logged[0]) and "caption" in logged[2] and "visual" in logged[6]
    assert {"l1", "quantizer", "caption", "norm_tokenizer", "norm_language"} <= set(logged[4])


@pytest.mark.parametrize("stop", [3, pytest.param(2, marks=pytest.mark.slow)])  # within a stage, and between two
def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, tmp_path: Path, stop: int) -> None:
    whole = tiny_model()
    config = replace(training, run=["alignment", "semantic"], adversarial=0.1)
    Trainer(config, noise, whole).run()

    def stopped(step: int, values: dict[str, float]) -> None:
        if step == stop:
            raise KeyboardInterrupt

    halves = replace(config, out=str(tmp_path / "halves"))
    with pytest.raises(KeyboardInterrupt):
        Trainer(halves, noise, tiny_model()).run(stopped)
    resumed = tiny_model(seed=1)
    Trainer(halves, noise, resumed).run()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert [json.loads(row)["step"] for row in (tmp_path / "halves" / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]  # noqa: E501  # fmt: skip


def test_a_run_starts_from_a_stage_of_another_and_goes_through_the_named_stages_only(
    training: Training, tmp_path: Path
) -> None:
    Trainer(replace(training, run=["tokenizer", "alignment"]), noise, tiny_model()).run()
    start = tmp_path / "run" / "alignment.safetensors"
    assert not (tmp_path / "run" / "semantic.safetensors").exists()
    config = replace(training, out=str(tmp_path / "arm"), start=str(start), run=["semantic"])
    trainer = Trainer(config, noise, tiny_model(seed=3))
    assert moved(load_file(start), weights(trainer.model)) == set()
    assert trainer.run()["step"] == 2


def test_rows_of_one_stream_see_the_same_batches_and_seeds_others(training: Training, tmp_path: Path) -> None:
    def seen(seed: int, name: str, stream: int) -> list[int]:
        numbers: list[int] = []

        def batches(stage: Stage, number: int) -> Batch:
            numbers.append(number)
            return noise(stage, number)

        rows = [{**row, "stream": stream} for row in training.stages]
        config = replace(training, out=str(tmp_path / f"{seed}{name}{stream}"), stages=rows, run=[name], seed=seed)
        Trainer(config, batches, tiny_model()).run()
        return numbers

    assert seen(0, "semantic", 2) == seen(0, "alignment", 2)
    assert not set(seen(0, "semantic", 2)) & {*seen(1, "semantic", 2), *seen(0, "semantic", 1)}


def test_an_infinite_loss_stops_the_run_and_names_stage_and_step(training: Training) -> None:
    rows = [{**row, "learning_rate": 1e30} for row in training.stages]
    with pytest.raises(FloatingPointError, match="stage tokenizer, step 2"):
        Trainer(replace(training, stages=rows), noise, tiny_model()).run()


def test_the_shipped_recipe_runs_on_scenes_and_leaves_a_tokenizer(tmp_path: Path) -> None:
    recipe = {
        name: value for name, value in read_yaml("train", "ett_nano").items() if name not in ("summary", "method")
    }
    rows = [{**row, "batch": 1, "side": 64} for row in recipe["stages"]]
    tiny = {**vistok.info("tokenizer", "ett_nano").tiny, "patch": 16}
    config = Training(
        **{**recipe, "out": str(tmp_path / "run"), "stages": rows, "settings": tiny, "steps": 1},
        assessed=0, log_every=1,
    )  # fmt: skip
    metrics = train(config)
    assert metrics["step"] == 5 and {"log_l2", "caption"} <= set(metrics)
    trained: Any = vistok.tokenizer("ett_nano", checkpoint=tmp_path / "run" / "model")
    saved = load_file(tmp_path / "run" / "semantic.safetensors")
    assert torch.equal(trained.quantizer.codebook, saved["tokenizer.quantizer.codebook"].half().float())
    with pytest.raises(ValueError, match="speak the words of micro_lvlm"):
        Trainer(config, None, tiny_model())


def on_scenes(training: Training, **changes: Any) -> Trainer:
    tiny = {**vistok.info("tokenizer", "ett_nano").tiny, "patch": 16}
    rows = [{**row, "batch": 1, "side": 64} for row in training.stages]
    return Trainer(replace(training, stages=rows, settings=tiny, steps=1, assessed=0, **changes))


def test_a_stage_that_learns_to_make_pictures_runs_on_scenes_beside_one_that_answers(training: Training) -> None:
    rows = [*training.stages, {**TABLE[3], **SIZES, "name": "both", "losses": {"visual": 1.0, "caption": 1.0}}]
    metrics = on_scenes(replace(training, stages=rows), generate=True, run=["generation", "both"]).run()
    assert metrics["visual"] > 0 and metrics["caption"] > 0


def test_a_run_on_scenes_takes_any_seed(training: Training) -> None:
    seen = []
    for seed in (0, 1_000, 123_456):
        trainer = on_scenes(training, seed=seed, run=["alignment"])
        batch = trainer._scenes(trainer.current, (seed * 10) * 1_000_000)
        seen.append(batch.images)
        trainer.train_step()
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_the_discriminator_sees_what_the_generator_is_judged_by(training: Training) -> None:
    trainer = Trainer(replace(training, adversarial=0.1, run=["tokenizer"]), noise, tiny_model())
    assert trainer.discriminator is not None
    given: list[Tensor] = []
    trainer.discriminator.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        for parameter in trainer.model.tokenizer.parameters():
            parameter.mul_(3)  # far out of [0, 1]
    trainer.train_step()
    judged, real, fake = given
    assert not fake.requires_grad and torch.equal(fake, judged) and not torch.equal(real, fake)
    assert fake.min() < 0 or fake.max() > 1


def test_a_tokenizer_in_evaluation_mode_stays_so_when_the_discriminator_learns(training: Training) -> None:
    rows = [{**TABLE[0], **SIZES, "trained": ["projector"], "frozen": ["tokenizer", "language", "head"],
             "losses": {"vq": 1.0, "caption": 1.0}}]  # fmt: skip
    trainer = Trainer(replace(training, stages=rows, adversarial=0.1), noise, tiny_model())
    trainer.train_step()
    assert not any(module.training for module in trainer.model.tokenizer.modules())


def test_a_run_that_makes_pictures_starts_from_one_without_output_rows_for_them(
    training: Training, tmp_path: Path
) -> None:
    path = str(tmp_path / "start.safetensors")
    parts = tiny_model(seed=1)
    whole = EndToEnd(parts.tokenizer, parts.language)
    save_model(whole, path)
    config = replace(training, start=path, run=["generation"])
    trainer = Trainer(config, noise, tiny_model(seed=3))
    assert moved(weights(whole), {n: v for n, v in weights(trainer.model).items() if n in weights(whole)}) == set()
    save_model(tiny_model(), path)
    with pytest.raises(ValueError, match=r"has head\.weight that it does not"):
        Trainer(replace(config, run=["alignment"]), noise, whole)
    save_file({"head.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="expected weights that fit the run's model"):
        Trainer(config, noise, tiny_model())
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"lacks .*projector\.0\.bias.* and has other"):
        Trainer(config, noise, tiny_model())


def test_a_file_of_pictures_with_answers_trains_too(training: Training, tmp_path: Path) -> None:
    words = ["dark", "bright", "grey"]
    for level, name in enumerate(words):
        Image.new("RGB", (20 + level, 16), (100 * level,) * 3).save(tmp_path / f"{name}.png")
    talk = [
        {"image": f"{name}.png",
         "conversations": [{"from": "human", "value": "<image>\nhow ?"}, {"from": "gpt", "value": answer}]}
        for name, answer in zip(words, ("1", "2 things", "3"), strict=True)
    ]  # fmt: skip
    (tmp_path / "talk.json").write_text(json.dumps(talk))
    config = replace(
        training, data=str(tmp_path / "talk.json"), language="micro_lvlm", tokenizer="ett_nano", generate=True,
        settings=vistok.info("tokenizer", "ett_nano").tiny, stages=[{**row, "side": 16} for row in training.stages],
        prompt="{question} assistant :", run=["semantic", "generation"], steps=1,
    )  # fmt: skip
    trainer = Trainer(config)
    assert trainer.run()["step"] == 2
    tokenizer = load_words("micro_lvlm")
    read = Conversations(config.data or "", None, tokenizer, prompt="{question} assistant :")
    passes = [read.batch(number, 2, 16) for number in range(3)]
    said = [tokenizer.decode(ids[labels != -100]) for batch in passes for ids, labels in zip(batch.ids, batch.labels, strict=True)]  # noqa: E501  # fmt: skip
    assert sorted(said[:3]) == sorted(said[3:]) == ["1 </s>", "2 things </s>", "3 </s>"]
    whole = [tokenizer.decode(ids) for batch in passes for ids in batch.ids]
    assert all("how ? assistant :" in text for text in whole)
    assert trainer.config.seed == 0
    orders = [
        [float(trainer.batches(replace(trainer.stages[0], batch=1, stream=stream), number).images.mean())
         for number in range(9)]
        for stream in (0, 0, 1)
    ]  # fmt: skip
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])
    shades = {float(picture.mean()) for batch in passes for picture in batch.images}
    assert len(shades) == 3 and all(batch.images.shape == (2, 3, 16, 16) for batch in passes)
    prompts = {tokenizer.decode(p[m == 1]) for b in passes if b.prompt is not None and b.mask is not None for p, m in zip(b.prompt, b.mask, strict=True)}  # noqa: E501  # fmt: skip
    assert prompts == {"<s> 1", "<s> 2 things", "<s> 3"}


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match="found none"):
        Conversations(tmp_path / "none.jsonl", None, None)
